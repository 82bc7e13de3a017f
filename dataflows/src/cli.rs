//! The command line. A command that isn't built isn't in `--help`.

use crate::config::checked::{Config, InputFiles};
use crate::config::raw::Raw;
use crate::demo;
use crate::epochs;
use crate::explain::Lineage;
use crate::job::Job;
use crate::progress::Reporter;
use crate::status::Observer;
use crate::summary::Summary;
use crate::tail;
use clap::{Args, Parser, Subcommand};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Streams of interactions and items in, ICT feature vectors out.
#[derive(Debug, Parser)]
#[command(name = "ictflow", version, about = "Streams of interactions and items in, ICT feature vectors out")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Replay MovieLens-100K as streams through the whole pipeline, on embedded defaults.
    Demo(demo::Arguments),
    /// Explain one vector: its history, its demonstrations, their CoT texts.
    Explain(Explain),
    /// Run a job.
    Run(Run),
    /// Print decoded records of a topic as JSON Lines.
    Tail(Tail),
}

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
    fn config(&self) -> Result<Config> {
        match (&self.config, &self.state) {
            (Some(path), _) => Config::read(path),
            (None, Some(state)) => {
                let files = InputFiles::of_state(state)?;
                Config::check(Raw { state: Some(state.clone()), ..Raw::default() }, files)
            }
            (None, None) => {
                Err(Error::fatal("find the job", "no configuration", "give --config FILE or --state DIR"))
            }
        }
    }
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    store: Store,
    /// JSON Lines of interactions, in the place of a topic.
    #[arg(long, requires = "items", requires = "state")]
    interactions: Option<PathBuf>,
    /// JSON Lines of items.
    #[arg(long, requires = "interactions")]
    items: Option<PathBuf>,
    /// JSON Lines of candidate sets.
    #[arg(long, requires = "interactions")]
    candidates: Option<PathBuf>,
    /// Go on reading files that are still being written.
    #[arg(long, requires = "interactions")]
    follow: bool,
    /// Use the deterministic template in the place of the LLM, and hashed vectors in the place of the
    /// encoder: fast, for a first look at your own data.
    #[arg(long, requires = "interactions")]
    dry: bool,
    /// Stop when all input is committed and every wanted CoT is answered.
    #[arg(long)]
    until_idle: bool,
    /// Serve metrics, probes and the status page here (host:port, or off), in the place of [telemetry]
    /// listen. Over files it is off by default.
    #[arg(long)]
    listen: Option<String>,
    /// Write the job's figures to this file at the end.
    #[arg(long)]
    summary: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    store: Store,
    /// interactions, items, candidates, cot, embeddings, epochs, progress, features, examples or
    /// dead_letters.
    #[arg(default_value = "features")]
    topic: String,
    /// Go on when the end is reached.
    #[arg(long, short)]
    follow: bool,
    /// Add each value's bytes as hex.
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
struct Explain {
    #[command(flatten)]
    store: Store,
    /// The user.
    user: String,
    /// The item.
    item: String,
}

/// Parses the command line, runs the command, prints a failure.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("ICTFLOW_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Explain(arguments) => explain(&arguments),
        Command::Run(arguments) => run_job(&arguments),
        Command::Tail(arguments) => tail_topic(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ictflow: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that SIGTERM and SIGINT raise: the job ends after the epoch under way.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // A second signal ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| Error::fatal("watch for signals", e, "does the platform allow handlers?"))?;
    }
    Ok(stop)
}

fn run_job(arguments: &Run) -> Result<()> {
    let (mut config, files) = match (&arguments.interactions, &arguments.items) {
        (Some(interactions), Some(items)) => {
            let files = InputFiles {
                interactions: interactions.clone(),
                items: items.clone(),
                candidates: arguments.candidates.clone(),
                follow: arguments.follow,
            };
            let mut raw = Raw { state: arguments.store.state.clone(), ..Raw::default() };
            raw.telemetry = ictflow_connectors::telemetry::Config::off();
            if arguments.dry {
                raw.generator.kind = crate::config::raw::GeneratorKind::Template;
                raw.encoder.kind = crate::config::raw::EncoderKind::Hashed;
            }
            (Config::check(raw, Some(files))?, true)
        }
        _ => (arguments.store.config()?, false),
    };
    config.listen(arguments.listen.as_deref())?;
    let until_idle = arguments.until_idle || (files && !arguments.follow);
    let stop = stop_flag()?;
    let started = Instant::now();
    let mut observer = Observer::start(&config.telemetry, &config.options.job)?;
    tell_address(&observer);
    let (semantics, options) = (config.semantics.clone(), config.options.clone());
    let mut job = Job::start_observed(config.parts()?, semantics, options, |job| observer.replayed(job))?;
    observer.started(&job);
    warn_untrained(&job);
    let mut reporter = Reporter::new("run");
    let mut closed = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if until_idle && job.idle()? {
            break;
        }
        // Input is gathered for an interval, so that a trickle doesn't make an epoch a record; the LLM
        // and the encoder don't wait for it.
        while closed.elapsed() < config.interval && !stop.load(Ordering::Relaxed) {
            job.journal()?;
            observer.turn();
            std::thread::sleep(crate::requester::IDLE);
        }
        let step = job.step(crate::requester::IDLE)?;
        if step.epoch.is_some() {
            closed = Instant::now();
        }
        observer.step(&mut job, &step);
        reporter.report(&job);
    }
    observer.finish(&mut job);
    reporter.finish(&job);
    let judged = job.judgements();
    let refused: Vec<String> =
        judged.dead_letters.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let refused = if refused.is_empty() { "none".to_owned() } else { refused.join(", ") };
    eprintln!(
        "run: {} of {} interactions accepted, dead letters: {refused}",
        judged.accepted, judged.interactions
    );
    let summary = Summary::of(&job, started.elapsed().as_secs_f64());
    if let Some(path) = &arguments.summary {
        demo::write_json(path, &summary)?;
    }
    Ok(())
}

/// Says where the status page is, if anywhere.
pub fn tell_address(observer: &Observer) {
    if let Some(address) = observer.address() {
        eprintln!("the status page is http://{address}/, metrics are http://{address}/metrics");
    }
}

/// Says loudly that vectors of untrained weights carry no learned meaning.
pub fn warn_untrained(job: &Job) {
    if job.actives().ict_weights.starts_with("untrained-") {
        eprintln!(
            "warning: the ICT weights are untrained ({}): the vectors are exact, and no ranker gains by them yet",
            job.actives().ict_weights
        );
    }
}

fn tail_topic(arguments: &Tail) -> Result<()> {
    let config = arguments.store.config()?;
    let topic = Topic::from_name(&arguments.topic).ok_or_else(|| {
        let known: Vec<&str> = Topic::ALL.iter().map(|topic| topic.name()).collect();
        Error::fatal(
            "tail",
            format!("there is no topic {}", arguments.topic),
            Box::leak(known.join(", ").into_boxed_str()),
        )
    })?;
    let name = config.options.names.of(topic).to_owned();
    let mut topics = config.topics(true)?;
    if topics.partitions(&name)?.is_none() {
        return Err(Error::fatal(
            "tail",
            format!("topic {name} doesn't exist"),
            "has the job run yet? does the suffix fit?",
        ));
    }
    let format = config.formats().get(&topic).copied().unwrap_or(Format::Avro);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut gone = false;
    let mut print = |record: &ictflow_schemas::topic::Record, out: &mut dyn Write| {
        // A reader like `head` that has seen enough ends the command, not in an error.
        gone |= writeln!(out, "{}", tail::line(topic, &name, record, format, arguments.raw)).is_err();
        gone
    };
    if !arguments.follow {
        epochs::read_whole(&mut *topics, &name, |record| {
            print(&record, &mut out);
        })?;
        let _ = out.flush();
        return Ok(());
    }
    let count = topics.partitions(&name)?.unwrap_or(1);
    let mut reader = topics.reader(&name, &vec![0; count as usize])?;
    loop {
        for record in reader.poll(1_000, Duration::from_millis(200))? {
            if print(&record, &mut out) {
                return Ok(());
            }
        }
        if out.flush().is_err() {
            return Ok(());
        }
    }
}

fn explain(arguments: &Explain) -> Result<()> {
    let config = arguments.store.config()?;
    let mut topics = config.topics(true)?;
    let items = config.formats().get(&Topic::Items).copied().unwrap_or(Format::Avro);
    let lineage = Lineage::read(&mut *topics, &config.options.names, &config.options.job, items)?;
    match lineage.explain(&arguments.user, &arguments.item) {
        Some(text) => {
            print!("{text}");
            Ok(())
        }
        None => Err(Error::fatal(
            "explain",
            format!("user {} and item {} have no feature", arguments.user, arguments.item),
            "is the pair live (offered or shown, not answered, within pair_ttl), and has its item a vector?",
        )),
    }
}
