//! The command line. A command that isn't built isn't in `--help`.
//!
//! What a command is for goes to standard output, everything else to standard error. A command ends
//! with 0 where it did what it was asked, 1 where it failed (`check`: where it found problems), 2 where
//! the command line itself is wrong.

mod backfill;
mod check;
mod consistency;
mod cots;
mod data_set;
mod dead_letters;
mod erase;
mod evaluate;
mod explain;
mod export;
mod promote;
mod rank;
mod run;
mod supervise;
mod tail;
mod train;
mod training;
mod verify;

pub use run::{tell_address, warn_untrained};
pub use supervise::Restarts;

use crate::config::checked::{Config, InputFiles};
use crate::config::raw::Raw;
use crate::demo;
use crate::explain::job_of_outputs;
use crate::job::outputs;
use crate::names::Names;
use crate::recompute::Plan;
use clap::{Args, Parser, Subcommand};
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Streams of interactions and items in, ICT feature vectors out.
#[derive(Debug, Parser)]
#[command(name = "ictflow", version, about = "Streams of interactions and items in, ICT feature vectors out")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the job's outputs once more from its logs, into topics and a collection of their own, without
    /// asking anything, and compare them with the live ones.
    Backfill(backfill::Arguments),
    /// Find every problem of a configuration, its files and its connections. Writes nothing, but for --probe.
    Check(check::Arguments),
    /// Compare what was served with each impression with what training sees as of it: the share that is equal,
    /// the drift, and the causes. Calls and writes nothing.
    Consistency(consistency::Arguments),
    /// Ask CoT texts for training examples of a data set, keep them in a log, and judge their quality.
    Cots(Box<cots::Arguments>),
    /// Dead letters: list them, or append them to their inputs again after a fix.
    DeadLetters(dead_letters::Arguments),
    /// Replay MovieLens-100K as streams through the whole pipeline, on embedded defaults.
    Demo(demo::Arguments),
    /// Erase a user from the job's outputs, logs and snapshots, and print what was erased and what wasn't.
    Erase(erase::Arguments),
    /// Train rankers on a data set with and without what neighbours say, and measure the gain.
    Evaluate(Box<evaluate::Arguments>),
    /// Explain one vector: its history, its demonstrations, their prompts and CoT texts.
    Explain(explain::Arguments),
    /// Write a point-in-time training set in Parquet from the job's examples and its items' texts.
    Export(export::Arguments),
    /// Make a backfill's outputs the job's own.
    Promote(promote::Promote),
    /// Rank users' live pairs by a trained ranker from the newest vectors on the feature topic: the reference
    /// consumer.
    Rank(rank::Arguments),
    /// Go back to the outputs before the last promote.
    Rollback(promote::Rollback),
    /// Run a job.
    Run(Box<run::Arguments>),
    /// Print decoded records of a topic as JSON Lines.
    Tail(Box<tail::Arguments>),
    /// Train a ranker and the ICT weights that it reads vectors of, and write both to be served.
    Train(Box<train::Arguments>),
    /// Recompute the outputs from the logs and compare them with what stands. Calls and writes nothing.
    Verify(verify::Arguments),
}

/// Which job a command is about.
#[derive(Debug, Args)]
struct Store {
    /// The configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// The state folder of a job on `local` topics or files, in the place of a configuration.
    #[arg(long, conflicts_with = "config")]
    state: Option<PathBuf>,
}

impl Store {
    /// The job's topics as readers follow them: its outputs may have been switched.
    fn names(&self, config: &Config, topics: &mut dyn Topics) -> Result<Names> {
        // A state folder alone doesn't say the job's name; its topics do.
        let job = self.config.is_some().then_some(config.options.job.as_str());
        outputs::active(topics, &config.options.names, job)
    }

    /// The job whose outputs are recomputed, and how: its interactions in coarse epochs of so many.
    fn plan<'c>(
        &self,
        config: &'c Config,
        topics: &mut dyn Topics,
        chunk: usize,
    ) -> Result<(String, Plan<'c>)> {
        let names = &config.options.names;
        // A state folder alone doesn't say the job's name; its outputs do.
        let recorded = match self.config {
            None => job_of_outputs(topics, names)?,
            Some(_) => None,
        };
        let encoder = config.encoder()?;
        let plan = Plan {
            names,
            semantics: config.semantics.clone(),
            formats: config.formats(),
            encoder: (encoder.id().to_owned(), encoder.width()),
            weights: config.versions(encoder.width(), false)?,
            workers: config.options.workers,
            chunk,
        };
        Ok((recorded.unwrap_or_else(|| config.options.job.clone()), plan))
    }

    fn config(&self) -> Result<Config> {
        match (&self.config, &self.state) {
            (Some(path), _) => Config::read_with_inputs(path),
            (None, Some(state)) => {
                let files = InputFiles::of_state(state)?;
                let plain = || Raw { state: Some(state.clone()), ..Raw::default() };
                Config::check(files.as_ref().map_or_else(plain, |files| files.raw(state)), files)
            }
            (None, None) => {
                Err(Error::fatal("find the job", "no configuration", "give --config FILE or --state DIR"))
            }
        }
    }
}

/// Parses the command line, runs the command, prints a failure.
pub fn run() -> ExitCode {
    run_parsed(Cli::parse())
}

/// [`run`] with these arguments in the place of the command line's; the first is the program's name. For a
/// process that runs the program and was started as another one.
pub fn run_from<T: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = T>) -> ExitCode {
    run_parsed(Cli::parse_from(arguments))
}

fn run_parsed(cli: Cli) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ICTFLOW_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    let done = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Backfill(arguments) => backfill::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Consistency(arguments) => consistency::run(&arguments).map(done),
        Command::Cots(arguments) => cots::run(&arguments).map(done),
        Command::DeadLetters(arguments) => dead_letters::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments).map(done),
        Command::Erase(arguments) => erase::run(&arguments).map(done),
        Command::Evaluate(arguments) => evaluate::run(&arguments).map(done),
        Command::Explain(arguments) => explain::run(&arguments).map(done),
        Command::Export(arguments) => export::run(&arguments).map(done),
        Command::Promote(arguments) => promote::promote(&arguments).map(done),
        Command::Rank(arguments) => rank::run(&arguments).map(done),
        Command::Rollback(arguments) => promote::rollback(&arguments).map(done),
        Command::Run(arguments) => run::run(&arguments).map(done),
        Command::Tail(arguments) => tail::run(&arguments).map(done),
        Command::Train(arguments) => train::run(&arguments).map(done),
        Command::Verify(arguments) => verify::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("ictflow: {error}");
        ExitCode::FAILURE
    })
}
