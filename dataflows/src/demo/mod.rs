//! `ictflow demo`: MovieLens-100K replayed as streams through the whole pipeline.
//!
//! Real parts on embedded defaults: `local` topics, the local LLM, the MiniLM encoder, trained ICT weights
//! (`trained.rs`). Each rating is an impression and its outcome at the same second. They come in batches of 1,000
//! events; before each batch every user in it gets a candidate set, and after it an epoch closes. The catalog is
//! edited while the job runs. The ratings that trained nothing come in smaller batches, and two rankers are
//! measured on them (`prequential.rs`). At the end every user gets a last set of 20 films not seen, so that more
//! than 10,000 pairs are live, and the reference consumer ranks those of two users.
//!
//! With `--again` a *new* job runs over the same input logs: it calls nothing, embeds nothing, and its
//! live vectors must equal the first job's byte for byte.

pub mod closing;
pub mod movielens;
pub mod prequential;
mod producer;
pub mod report;
pub mod samples;
pub mod trained;

use crate::cli::tell_address;
use crate::config::checked::{Config, models};
use crate::config::raw::Raw;
use crate::epochs::{self, read_compacted};
use crate::explain::Lineage;
use crate::job::{Job, Step};
use crate::progress::Reporter;
use crate::rank::ranker::Ranker;
use crate::rank::subscription::{self, Subscription};
use crate::status::Observer;
use crate::summary::Summary;
use clap::Args;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::config::CotStride;
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use ictflow_schemas::{Millis, limits};
use movielens::{MovieLens, Rating};
use prequential::{BATCH, Measured, epoch, measure};
use producer::{BATCH_RATINGS, PARTITIONS, Producer, Replay};
use samples::Samples;
use serde::Serialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Options of the demo.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The folder of the demo's state and summary.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
    /// Run a new job over the logs of the demo before, and compare every live vector.
    #[arg(long)]
    again: bool,
    /// Replay only so many ratings.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    ratings: usize,
    /// Take trained weights of this folder in the place of those of the program: as `make weights` fills it, and
    /// made on the same data. A new job over the logs takes those of the demo before.
    #[arg(long, value_name = "DIR", conflicts_with = "again")]
    weights: Option<PathBuf>,
    /// Serve metrics, probes and the status page here while it runs (host:port); off by default.
    #[arg(long, default_value = "off", hide_default_value = true)]
    listen: String,
}

/// What looks at the demo's job after each step.
struct Watch {
    reporter: Reporter,
    observer: Observer,
    samples: Samples,
}

impl Watch {
    fn step(&mut self, job: &mut Job, step: &Step) {
        self.observer.step(job, step);
        self.samples.look(job);
        self.reporter.report(job);
    }
}

/// One example in so many gets a CoT: about 15 of each label on this data.
const STRIDE: CotStride = CotStride { positive: 3_700, explicit_negative: 3_000, implicit_negative: 3_000 };

/// The ratings for which [`STRIDE`] was chosen.
const STRIDE_RATINGS: u64 = 100_000;

/// The stride for a shorter replay: about half as many CoTs, however short it is.
fn stride(ratings: usize) -> CotStride {
    let ratings = ratings as u64;
    if ratings >= STRIDE_RATINGS {
        return STRIDE;
    }
    let scaled = |stride: u64| (2 * stride * ratings / STRIDE_RATINGS).max(1);
    CotStride {
        positive: scaled(STRIDE.positive),
        explicit_negative: scaled(STRIDE.explicit_negative),
        implicit_negative: scaled(STRIDE.implicit_negative),
    }
}

const YEAR: Millis = 365 * 24 * 3_600_000;

/// Runs the demo.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.again { again(arguments) } else { first(arguments) }
}

/// The file of the demo's configuration in its state, for commands that judge a job by what it was run with.
const CONFIG: &str = "job.toml";

/// The configuration of a job of the demo, as a file has it.
fn config_text(out: &Path, job: &str, suffix: &str, stride: CotStride) -> Result<String> {
    let absolute = |path: &Path| {
        let path = std::path::absolute(path).map_err(|error| {
            Error::fatal(format!("find {}", path.display()), error, "name a folder by --out")
        })?;
        Ok(toml::Value::String(path.to_string_lossy().into_owned()))
    };
    let (state, weights) = (absolute(out)?, absolute(&trained::ict(out))?);
    let CotStride { positive, explicit_negative, implicit_negative } = stride;
    Ok(format!(
        "# What this job of the demo was run with.\njob = \"{job}\"\nstate = {state}\nworkers = 2\n\n\
         [topics]\npartitions = {PARTITIONS}\nsuffix = \"{suffix}\"\n\n[ict]\nweights = {weights}\n\n\
         [semantics]\ndemonstration_ttl_ms = {YEAR}\ncot_stride = {{ positive = {positive}, \
         explicit_negative = {explicit_negative}, implicit_negative = {implicit_negative} }}\n"
    ))
}

fn config(out: &Path, job: &str, suffix: &str, stride: CotStride) -> Result<Config> {
    let raw: Raw = toml::from_str(&config_text(out, job, suffix, stride)?)
        .map_err(|error| Error::fatal("configure the demo", error, "this is a defect: please report it"))?;
    Config::check(raw, None)
}

/// Lays the configuration of the demo's first job into its state.
fn lay_config(out: &Path, stride: CotStride) -> Result<()> {
    let path = out.join(CONFIG);
    std::fs::write(&path, config_text(out, "demo", "", stride)?).map_err(|error| {
        Error::fatal(format!("write {}", path.display()), error, "the folder must be writable")
    })
}

fn first(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let out = &arguments.out;
    let folder = models().join("data").join("ml-100k");
    let mut data = MovieLens::read(&folder)?;
    data.ratings.truncate(arguments.ratings);
    let weights = match &arguments.weights {
        Some(folder) => trained::Files::read(folder)?,
        None => trained::Files::built_in(),
    };
    let whole = MovieLens::dataset(&folder)?;
    let rankers = weights.rankers(&whole)?;
    let test_from = prequential::test_from(&whole)?;
    drop(whole);
    empty(out)?;
    let mut config = config(out, "demo", "", stride(data.ratings.len()))?;
    config.listen(Some(&arguments.listen))?;
    let observer = Observer::start(&config.telemetry, &config.options.job)?;
    tell_address(&observer);
    println!("loading the LLM and the encoder");
    let mut producer = Producer::new(config.topics(false)?, config.options.names.clone());
    weights.lay_into(out)?;
    lay_config(out, stride(data.ratings.len()))?;
    let parts = config.parts()?;
    producer.catalog(&data.items)?;
    let mut job = Job::start(parts, config.semantics.clone(), config.options.clone())?;
    println!("replaying {} ratings of {} films as streams", data.ratings.len(), data.items.len());
    let mut watch = Watch { reporter: Reporter::new("demo"), observer, samples: Samples::begin() };
    watch.reporter.expect(2 * data.ratings.len() as u64);
    watch.observer.started(&job);
    let mut replay = Replay::new(&data.items, data.ratings.len());
    job.step(Duration::ZERO)?;
    let (before, test) = prequential::parts(&data.ratings, test_from);
    for ratings in before.chunks(BATCH_RATINGS) {
        producer.offer(&mut replay, ratings)?;
        producer.rate(&mut replay, ratings)?;
        producer.edit(&mut replay, &job)?;
        epoch(&mut job, |job, step| watch.step(job, step))?;
    }
    let mut subscription = None;
    let mut measured = None;
    if !test.is_empty() {
        // Rankers read texts: those of all films, as in training.
        while job.requester().unembedded() > 0 {
            let step = job.step(crate::requester::IDLE)?;
            watch.step(&mut job, &step);
        }
        let subscription = subscription.insert(subscribe(&config, &rankers.with, Some(test))?);
        let inputs = (&mut job, &mut producer, &mut replay);
        let watched = |job: &mut Job, step: &Step| watch.step(job, step);
        measured = Some(measure(inputs, subscription, &rankers, (test, BATCH), watched)?);
    }
    producer.last_sets(&mut replay)?;
    until_idle(&mut job, &mut watch)?;
    edit_a_demonstration(&mut producer, &mut replay, &mut job, &mut watch)?;
    watch.observer.finish(&mut job);
    watch.reporter.finish(&job);
    let summary = Summary::of(&job, started.elapsed().as_secs_f64());
    let mut subscription = match subscription {
        Some(subscription) => subscription,
        None => subscribe(&config, &rankers.with, None)?,
    };
    subscription.catch_up()?;
    let (mut topics, names) = (config.topics(true)?, &config.options.names);
    let pairs = closing::pairs(&subscription);
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(user, item)| (&**user, &**item)).collect();
    let lineage = Lineage::read_pairs(&mut *topics, names, &config.options.job, Format::Avro, &pairs)?;
    let texts = match summary.vector_kind {
        VectorKind::Decoder => Vec::new(),
        VectorKind::Attention => closing::texts(&mut *topics, names, &replay.catalog)?,
    };
    closing::tell_users(&lineage);
    closing::tell_texts(&texts);
    if let Some((user, item)) = pairs.first()
        && let Some(text) = lineage.explain(user, item)
    {
        println!("\nictflow explain --state {} {user} {item}\n{text}", out.display());
    }
    closing::tell_measured(measured.as_ref());
    closing::tell_ranked(&mut subscription, &rankers, out)?;
    let path = out.join("summary.json");
    write_json(&path, &Figures { summary: &summary, prequential: measured.as_ref() })?;
    tell(&summary, &path);
    let path = out.join("report.html");
    let shown = report::Shown {
        summary: &summary,
        samples: &watch.samples,
        lineage: &lineage,
        texts: &texts,
        measured: measured.as_ref(),
    };
    report::write(&path, &shown)?;
    println!("the report, for a browser: {}", path.display());
    println!("recomputed from the logs and compared: ictflow verify --config {}", out.join(CONFIG).display());
    Ok(())
}

/// What `summary.json` holds.
#[derive(Serialize)]
struct Figures<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    /// What the rankers reached; null where the replay ended before the test part.
    prequential: Option<&'a Measured>,
}

/// Follows the demo's topics as `ictflow rank` does: the pairs of the users of these ratings, or of all.
fn subscribe(config: &Config, ranker: &Ranker, of: Option<&[Rating]>) -> Result<Subscription> {
    let users = of.map(|ratings| ratings.iter().map(|rating| rating.user.clone()).collect::<HashSet<_>>());
    let options = subscription::Options {
        job: Some(config.options.job.clone()),
        names: config.options.names.clone(),
        items: Format::Avro,
        semantics: config.semantics.clone(),
        encoder: ranker.encoder(),
        users,
        most: limits::LIVE_PAIRS,
    };
    Subscription::open(config.topics_of_consumer(false)?, options)
}

/// Steps until the job is idle, watched.
fn until_idle(job: &mut Job, watch: &mut Watch) -> Result<()> {
    while !job.idle()? {
        let step = job.step(crate::requester::IDLE)?;
        watch.step(job, &step);
    }
    Ok(())
}

/// Empties the folder of an earlier demo. A folder that isn't one is left alone.
fn empty(out: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::fatal(
            format!("empty {}", out.display()),
            e,
            "the demo starts from an empty state: name another folder",
        )
    };
    if !out.exists() {
        return Ok(());
    }
    let entries = std::fs::read_dir(out).map_err(failed)?.count();
    if entries > 0 && !out.join(ictflow_connectors::local::FILE_NAME).exists() {
        return Err(failed(std::io::Error::other("it isn't empty and holds no demo")));
    }
    std::fs::remove_dir_all(out).map_err(failed)
}

/// One text edit on an item that a live demonstration uses: its key is asked anew, and nothing else.
fn edit_a_demonstration(
    producer: &mut Producer,
    replay: &mut Replay,
    job: &mut Job,
    watch: &mut Watch,
) -> Result<()> {
    let Some(item) = job.demonstrations().iter().next().map(|demonstration| demonstration.item.to_string())
    else {
        return Ok(());
    };
    let before = job.requester().accounting.first_calls;
    if let Some(edited) = replay.catalog.get_mut(&item) {
        edited.title = edited.title.take().map(|title| format!("{title}, restored"));
        let edited = edited.clone();
        producer.item(&item, Some(&edited))?;
    }
    until_idle(job, watch)?;
    let asked = job.requester().accounting.first_calls - before;
    eprintln!("edited the title of item {item}, which a demonstration is about: {asked} CoT asked anew");
    Ok(())
}

fn again(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let out = &arguments.out;
    if !out.join(ictflow_connectors::local::FILE_NAME).exists() || !trained::ict(out).exists() {
        return Err(Error::fatal(
            "run the demo again",
            "there are no logs of a demo before",
            "run `make demo` first",
        ));
    }
    let config = unused(out)?;
    let mut job = Job::start(config.parts()?, config.semantics.clone(), config.options.clone())?;
    let mut reporter = Reporter::new("again");
    job.run_until_idle(|job| reporter.report(job))?;
    reporter.finish(&job);
    let summary = Summary::of(&job, started.elapsed().as_secs_f64());
    let mut topics = config.topics(true)?;
    let first = read_compacted(&mut *topics, Topic::Features.name())?;
    let second = read_compacted(&mut *topics, config.options.names.of(Topic::Features))?;
    let different = first.iter().filter(|(key, value)| second.get(*key) != Some(value)).count();
    let extra = second.keys().filter(|key| !first.contains_key(*key)).count();
    let path = out.join("summary-again.json");
    write_json(&path, &summary)?;
    tell(&summary, &path);
    println!(
        "{} live vectors of the first job, {} of the new one: {different} differ, {extra} more",
        first.len(),
        second.len()
    );
    if different + extra > 0 || summary.called > 0 || summary.embeddings_computed > 0 || second.is_empty() {
        return Err(Error::fatal(
            "compare the two jobs",
            format!(
                "{different} differ, {extra} more, {} called, {} embedded",
                summary.called, summary.embeddings_computed
            ),
            "a replay must give the same bytes and call nothing: this is a defect",
        ));
    }
    println!("every live vector is equal byte for byte; nothing was called, nothing embedded");
    Ok(())
}

/// The configuration of a job that never ran on these logs, whatever ran before.
fn unused(out: &Path) -> Result<Config> {
    let stride = recorded_stride(out)?;
    for n in 1.. {
        let (job, suffix) = (format!("again-{n}"), format!(".again-{n}"));
        let config = config(out, &job, &suffix, stride)?;
        if config.topics(true)?.partitions(config.options.names.of(Topic::Epochs))?.is_none() {
            return Ok(config);
        }
    }
    Err(Error::fatal("run the demo again", "every name is taken", "run `make demo` first"))
}

/// The stride of the demo before: it depends on how many ratings it replayed.
fn recorded_stride(out: &Path) -> Result<CotStride> {
    let first = config(out, "demo", "", STRIDE)?;
    let epochs = first.options.names.of(Topic::Epochs);
    let records = epochs::load(&mut *first.topics(true)?, epochs, &first.options.job)?;
    let recorded = records.iter().rev().find_map(|record| record.config.as_deref());
    let value = recorded.and_then(|config| serde_json::from_str::<serde_json::Value>(config).ok());
    let stride = value.and_then(|config| serde_json::from_value(config.get("cot_stride")?.clone()).ok());
    stride.ok_or_else(|| {
        Error::fatal("run the demo again", "the demo before recorded no stride", "run `make demo` first")
    })
}

fn tell(summary: &Summary, path: &Path) {
    let full = match summary.vector_kind {
        VectorKind::Decoder => format!(", {} with all demonstrations", summary.features_full_k),
        VectorKind::Attention => String::new(),
    };
    println!(
        "\n{} interactions, {} examples, {} demonstrations; {} features live{full}, {} published, by the weights {}",
        summary.interactions,
        summary.examples,
        summary.demonstrations,
        summary.features_live,
        summary.features_published,
        summary.ict_weights.get(..12).unwrap_or(&summary.ict_weights)
    );
    println!(
        "CoTs: {} wanted, {} called in {} attempts, {} failed; amplification {}, coverage {}; {} texts embedded; {:.0} s",
        summary.wanted,
        summary.called,
        summary.attempts,
        summary.failed,
        summary.amplification,
        summary.coverage,
        summary.embeddings_computed,
        summary.seconds
    );
    println!("all figures: {}", path.display());
}

/// Writes a value as JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::fatal(format!("write {}", path.display()), e, "the folder must be writable")
    };
    let text = serde_json::to_string_pretty(value).map_err(|e| failed(&e))?;
    std::fs::write(path, text + "\n").map_err(|e| failed(&e))
}
