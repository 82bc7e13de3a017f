//! `ictflow demo`: MovieLens-100K replayed as streams through the whole pipeline.
//!
//! Real parts on embedded defaults: `local` topics, the local LLM, the MiniLM encoder. Each rating is
//! an impression and its outcome at the same second. They come in batches of 1,000 events; before each
//! batch every user in it gets a candidate set, and after it an epoch closes. The catalog is edited
//! while the job runs. At the end every user gets a last set of 20 films not seen, so that more than
//! 10,000 pairs are live.
//!
//! With `--again` a *new* job runs over the same input logs: it calls nothing, embeds nothing, and its
//! live vectors must equal the first job's byte for byte.

pub mod movielens;
pub mod report;
pub mod samples;

use crate::cli::{tell_address, warn_untrained};
use crate::config::checked::{Config, models};
use crate::config::raw::Raw;
use crate::epochs::{self, read_compacted};
use crate::explain::Lineage;
use crate::job::{Job, Step};
use crate::names::Names;
use crate::progress::Reporter;
use crate::status::Observer;
use crate::summary::Summary;
use clap::Args;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::{Format, Wire};
use movielens::{MovieLens, Rating, events};
use samples::Samples;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
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

/// Events of one batch: 500 ratings.
const BATCH_RATINGS: usize = 500;

/// Films of a candidate set beside those that are rated.
const OTHERS: usize = 20;

/// Partitions of the demo's topics.
const PARTITIONS: u32 = 4;

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

fn config(out: &Path, job: &str, suffix: &str, stride: CotStride) -> Result<Config> {
    let mut raw = Raw {
        job: Some(job.to_owned()),
        state: Some(out.to_owned()),
        workers: Some(2),
        semantics: Semantics { cot_stride: stride, demonstration_ttl_ms: YEAR, ..Semantics::default() },
        ..Raw::default()
    };
    raw.topics.partitions = Some(PARTITIONS);
    raw.topics.suffix = suffix.to_owned();
    Config::check(raw, None)
}

fn first(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let out = &arguments.out;
    let mut data = MovieLens::read(&models().join("data").join("ml-100k"))?;
    data.ratings.truncate(arguments.ratings);
    empty(out)?;
    let mut config = config(out, "demo", "", stride(data.ratings.len()))?;
    config.listen(Some(&arguments.listen))?;
    let observer = Observer::start(&config.telemetry, &config.options.job)?;
    tell_address(&observer);
    println!("loading the LLM and the encoder");
    let parts = config.parts()?;
    let mut producer = Producer { topics: config.topics(false)?, names: config.options.names.clone() };
    producer.catalog(&data.items)?;
    let mut job = Job::start(parts, config.semantics.clone(), config.options.clone())?;
    warn_untrained(&job);
    println!("replaying {} ratings of {} films as streams", data.ratings.len(), data.items.len());
    let mut watch = Watch { reporter: Reporter::new("demo"), observer, samples: Samples::begin() };
    watch.reporter.expect(2 * data.ratings.len() as u64);
    watch.observer.started(&job);
    let mut replay = Replay::new(&data);
    job.step(Duration::ZERO)?;
    let batches = data.ratings.chunks(BATCH_RATINGS).count();
    for (batch, ratings) in data.ratings.chunks(BATCH_RATINGS).enumerate() {
        producer.batch(&mut replay, ratings, BATCH_RATINGS * batch)?;
        // The catalog lives: price-like edits all the time, text edits and deletes now and then.
        if batch > 0 {
            producer.edits(&mut replay, batch, batches, &job)?;
        }
        loop {
            let step = job.step(Duration::from_millis(50))?;
            watch.step(&mut job, &step);
            if step.epoch.is_some() {
                break;
            }
        }
    }
    producer.last_sets(&mut replay)?;
    until_idle(&mut job, &mut watch)?;
    edit_a_demonstration(&mut producer, &mut replay, &mut job, &mut watch)?;
    watch.observer.finish(&mut job);
    watch.reporter.finish(&job);
    let summary = Summary::of(&job, started.elapsed().as_secs_f64());
    let mut topics = config.topics(true)?;
    let lineage = Lineage::read(&mut *topics, &config.options.names, &config.options.job, Format::Avro)?;
    show(&lineage);
    if let Some((user, item)) = lineage.pairs().into_iter().next() {
        // Of one pair the neighbours are read too.
        let (names, job) = (&config.options.names, &config.options.job);
        let one = Lineage::read_pair(&mut *topics, names, job, Format::Avro, (user, item))?;
        if let Some(text) = one.explain(user, item) {
            println!("\nictflow explain {user} {item}\n{text}");
        }
    }
    let path = out.join("summary.json");
    write_json(&path, &summary)?;
    tell(&summary, &path);
    let path = out.join("report.html");
    report::write(&path, &summary, &watch.samples, &lineage)?;
    println!("the report, for a browser: {}", path.display());
    Ok(())
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
    if !out.join(ictflow_connectors::local::FILE_NAME).exists() {
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

/// Three users with their demonstrations and texts.
fn show(lineage: &Lineage) {
    let mut shown = BTreeSet::new();
    for (user, item) in lineage.pairs() {
        if shown.len() == 3 || !shown.insert(user) {
            continue;
        }
        println!("\nuser {user} and the film offered, {}:", lineage.title(item));
        let used =
            lineage.feature(user, item).map(|feature| feature.demonstrations.clone()).unwrap_or_default();
        for demonstration in used.iter().rev() {
            if let Some((example, cot)) = lineage.demonstration(&demonstration.id, demonstration.fresh) {
                let label = if demonstration.label == 1 { "liked" } else { "did not like" };
                println!("  user {} {label} {}", example.user_id, lineage.title(&example.item_id));
                println!("    {}", cot.map_or("(no text)", |cot| &cot.text));
            }
        }
    }
}

fn tell(summary: &Summary, path: &Path) {
    println!(
        "\n{} interactions, {} examples, {} demonstrations; {} features live, {} with all demonstrations, {} published",
        summary.interactions,
        summary.examples,
        summary.demonstrations,
        summary.features_live,
        summary.features_full_k,
        summary.features_published
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

/// What the producer's side of the demo remembers.
struct Replay {
    catalog: BTreeMap<String, Item>,
    rated: BTreeMap<String, BTreeSet<String>>,
    /// Film ids in a fixed order, from which others are offered.
    ids: Vec<String>,
    offered: usize,
    time: Millis,
}

impl Replay {
    fn new(data: &MovieLens) -> Self {
        Replay {
            catalog: data.items.clone(),
            rated: BTreeMap::new(),
            ids: data.items.keys().cloned().collect(),
            offered: 0,
            time: 0,
        }
    }

    /// Films that a user hasn't rated and that exist, going round the catalog.
    fn others(&mut self, user: &str, besides: &BTreeSet<String>) -> Vec<String> {
        let mut others = Vec::new();
        let rated = self.rated.get(user);
        for _ in 0..self.ids.len() {
            if others.len() == OTHERS {
                break;
            }
            // A step that is coprime to most sizes spreads the offers over the catalog.
            self.offered = (self.offered + 7) % self.ids.len();
            let id = &self.ids[self.offered];
            let seen = rated.is_some_and(|rated| rated.contains(id)) || besides.contains(id);
            if !seen && self.catalog.contains_key(id) && !others.contains(id) {
                others.push(id.clone());
            }
        }
        others
    }
}

/// Writes the demo's input records.
struct Producer {
    topics: Box<dyn Topics>,
    names: Names,
}

impl Producer {
    fn record(
        &self,
        topic: Topic,
        key: &str,
        value: Option<Vec<u8>>,
        timestamp: Option<Millis>,
    ) -> NewRecord {
        NewRecord {
            topic: self.names.of(topic).to_owned(),
            partition: Partitioner::default().partition(key.as_bytes(), PARTITIONS),
            timestamp,
            key: Some(key.as_bytes().to_vec()),
            value,
            headers: Vec::new(),
        }
    }

    fn catalog(&mut self, items: &BTreeMap<String, Item>) -> Result<()> {
        for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
            self.topics.ensure(self.names.of(topic), PARTITIONS, topic.policy())?;
        }
        let records: Vec<NewRecord> =
            items.iter().map(|(id, item)| self.record(Topic::Items, id, Some(item.encode()), None)).collect();
        self.topics.append(&records)
    }

    fn item(&mut self, id: &str, item: Option<&Item>) -> Result<()> {
        let record = self.record(Topic::Items, id, item.map(Wire::encode), None);
        self.topics.append(&[record])
    }

    fn set(&self, user: &str, computed_at: Millis, items: Vec<String>) -> NewRecord {
        let value = Candidates { computed_at, items }.encode();
        self.record(Topic::Candidates, user, Some(value), Some(computed_at))
    }

    /// The candidate sets of a batch, then its events.
    fn batch(&mut self, replay: &mut Replay, ratings: &[Rating], first: usize) -> Result<()> {
        let mut rated: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for rating in ratings {
            rated.entry(&rating.user).or_default().insert(rating.item.clone());
        }
        let start = ratings.first().map_or(0, |rating| rating.time);
        let mut records = Vec::new();
        for (user, items) in rated {
            let others = replay.others(user, &items);
            records.push(self.set(user, start - 1, items.iter().cloned().chain(others).collect()));
            replay.rated.entry(user.to_owned()).or_default().extend(items);
        }
        for (i, rating) in ratings.iter().enumerate() {
            for event in events(first + i, rating) {
                records.push(self.record(
                    Topic::Interactions,
                    &rating.user,
                    Some(event.encode()),
                    Some(rating.time),
                ));
            }
        }
        replay.time = ratings.last().map_or(0, |rating| rating.time);
        self.topics.append(&records)
    }

    /// Edits of the catalog while the job runs: prices, which ask nothing; titles; deletes.
    fn edits(&mut self, replay: &mut Replay, batch: usize, batches: usize, job: &Job) -> Result<()> {
        let pick = |offset: usize| replay.ids[(batch * 13 + offset) % replay.ids.len()].clone();
        let (priced, retitled, deleted) = (pick(0), pick(5), pick(9));
        if let Some(item) = replay.catalog.get_mut(&priced) {
            item.attributes.insert("price".to_owned(), format!("{}.99", batch % 30));
            let item = item.clone();
            self.item(&priced, Some(&item))?;
        }
        if batch.is_multiple_of(10)
            && let Some(item) = replay.catalog.get_mut(&retitled)
        {
            item.description = Some(format!("Now in its edition of day {batch}."));
            let item = item.clone();
            self.item(&retitled, Some(&item))?;
        }
        // Films that a demonstration is about stay, so that the end shows all K.
        let used = job.demonstrations().iter().any(|c| *c.item == *deleted);
        if batch.is_multiple_of(20)
            && batch + 1 < batches
            && !used
            && replay.catalog.remove(&deleted).is_some()
        {
            self.item(&deleted, None)?;
        }
        Ok(())
    }

    /// A last set of films not seen, for every user.
    fn last_sets(&mut self, replay: &mut Replay) -> Result<()> {
        let users: Vec<String> = replay.rated.keys().cloned().collect();
        let mut records = Vec::new();
        for user in users {
            let others = replay.others(&user, &BTreeSet::new());
            records.push(self.set(&user, replay.time, others));
        }
        self.topics.append(&records)
    }
}
