//! `ictflow backfill`: the job's outputs once more, beside it, and how they compare with the live ones.

use super::Store;
use super::run::stop_flag;
use crate::backfill::{self, Bound, Order, Outcome, Plan, Progress};
use crate::config::checked::Config;
use crate::job::{Job, Started};
use clap::Args;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// Options of `backfill`.
#[derive(Debug, Args)]
#[command(after_help = "\
Its topics are the job's with .NAME behind, its collection is the job's with -NAME behind. Started again with \
the same name it goes on; one that has ended compares again. Ends with 0 where the outputs are equal, else 1.")]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// Its name: 1 to 64 letters, digits, dashes or underscores.
    name: String,
    /// Publish examples from here on only: milliseconds, RFC 3339, or offset:interactions/0=120,... for the
    /// time of that record in its partition. Features are those live at the end, whatever this says.
    #[arg(long, value_name = "BOUND", allow_hyphen_values = true)]
    from: Option<String>,
    /// End here: epoch:N (what the job's epoch N holds), milliseconds or RFC 3339 (records of interactions,
    /// items and candidates that are earlier), or offset:TOPIC/PARTITION=N,... By default, and for whatever
    /// isn't named, what the job's committed epoch holds.
    #[arg(long, value_name = "BOUND", allow_hyphen_values = true)]
    to: Option<String>,
    /// Interactions in one epoch at most [default: 100000].
    #[arg(long, value_name = "N",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    epoch_events: Option<usize>,
    /// Ask the LLM and the encoder what has no answer. Without it nothing is asked.
    #[arg(long)]
    generate: bool,
    /// The collection of its points, in the place of COLLECTION-NAME.
    #[arg(long, value_name = "COLLECTION")]
    collection: Option<String>,
    /// Go on although records are gone that the job's state rests on.
    #[arg(long)]
    accept_truncated: bool,
    /// Print the parity report as one JSON object.
    #[arg(long)]
    json: bool,
}

fn bound(option: &'static str, text: &Option<String>) -> Result<Option<(String, Bound)>> {
    let Some(text) = text else { return Ok(None) };
    match backfill::parse(text) {
        Ok(bound) => Ok(Some((text.clone(), bound))),
        Err(problem) => Err(Error::fatal(option, problem, "see ictflow backfill --help")),
    }
}

impl Arguments {
    fn order(&self, config: &Config) -> Result<Order> {
        backfill::check_name(&self.name)?;
        let configured = config.raw().qdrant.as_ref().map(|qdrant| &qdrant.collection);
        let collection = match (&self.collection, configured) {
            (Some(_), None) => {
                return Err(Error::fatal(
                    "read --collection",
                    "the configuration has no store of points",
                    "add the section [qdrant], or leave it out",
                ));
            }
            (Some(given), Some(live)) if given == live => {
                return Err(Error::fatal(
                    "read --collection",
                    "it is the live job's",
                    "name one of the backfill's own",
                ));
            }
            (Some(given), _) => Some(given.clone()),
            (None, live) => live.map(|live| format!("{live}-{}", self.name)),
        };
        Ok(Order {
            name: self.name.clone(),
            from: bound("read --from", &self.from)?,
            to: bound("read --to", &self.to)?,
            epoch_events: self.epoch_events,
            generate: self.generate,
            collection,
            accept_truncated: self.accept_truncated,
        })
    }
}

/// Runs a backfill to its end, or goes on with it, and compares.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = arguments.store.config()?;
    let order = arguments.order(&config)?;
    let mut topics = config.topics(false)?;
    let format = config.formats().get(&Topic::Interactions).copied().unwrap_or(Format::Avro);
    let plan = backfill::prepare(&mut *topics, &config.options, &order, format)?;
    if let Some(ended) = backfill::outcome(&mut *topics, &config.options, &plan)? {
        eprintln!("backfill {}: it has ended with epoch {}", plan.name, ended.epoch);
    } else {
        drop(topics);
        if !fill(&config, &plan, arguments.accept_truncated)? {
            return Ok(ExitCode::FAILURE);
        }
        topics = config.topics(false)?;
    }
    compare(&mut *topics, &config, &plan, arguments.json)
}

/// Runs the backfill's job. False where it was told to stop.
fn fill(config: &Config, plan: &Plan, accept_truncated: bool) -> Result<bool> {
    let mut parts = config.parts()?;
    parts.snapshots = None;
    let stop = stop_flag()?;
    let mut options = backfill::options(&config.options, plan);
    options.accept_truncated = accept_truncated;
    let mut progress = Progress::new(&plan.name);
    let stopped = |epoch: i64| {
        eprintln!(
            "backfill {}: stopped after epoch {epoch}; nothing is lost, start it again to go on",
            plan.name
        );
    };
    let begun = Instant::now();
    let observe = |job: &Job| progress.report(job);
    let mut job = match Job::start_unless(parts, config.semantics.clone(), options, &stop, observe)? {
        Started::Running(job) => *job,
        Started::Stopped { replayed, .. } => {
            stopped(replayed as i64);
            return Ok(false);
        }
    };
    let ended = backfill::drive(&mut job, &stop, |job| progress.report(job))?;
    job.drain(config.drain)?;
    progress.finish(&job);
    if !ended {
        stopped(job.committed());
        return Ok(false);
    }
    let (seconds, judged) = (begun.elapsed().as_secs_f64(), job.judgements());
    let accounting = &job.requester().accounting;
    eprintln!(
        "backfill {}: {} epochs, {} interactions in {seconds:.1} s ({:.0} a second), {} features, {} keys asked, {} texts embedded",
        plan.name,
        job.committed(),
        judged.interactions,
        judged.interactions as f64 / seconds.max(0.001),
        job.sink().features_live(),
        accounting.called,
        accounting.embeddings,
    );
    Ok(true)
}

/// Compares and prints the report.
fn compare(topics: &mut dyn Topics, config: &Config, plan: &Plan, json: bool) -> Result<ExitCode> {
    let Outcome { parity, .. } = backfill::conclude(topics, &config.options, plan)?;
    let report = parity.unwrap_or_default();
    let text = match json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|e| Error::fatal("print the report", e, "this is a defect: please report it"))?,
        false => report.to_string(),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::fatal("print the report", e, "start the backfill again, it compares again"))?;
    if report.equal() {
        eprintln!("backfill {}: `ictflow promote {}` makes its outputs the job's", plan.name, plan.name);
    }
    Ok(if report.equal() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
