//! A job on `local` topics whose answers stand on their logs: what the sections of the whole path
//! run.

use crate::Fallible;
use crate::script::{Chunk, Script, WIDTH};
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::local::Local;
use ictflow_connectors::snapshots::Snapshots;
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::job::{Job, Options, Parts};
use ictflow_dataflows::names::Names;
use ictflow_operators::ict::{Shape, Weights, untrained};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::topic::{NewRecord, Topic};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The name of a store's file in its folder.
const FILE: &str = "topics.db";

/// The folder under which stores are made: on the disk of the build, since a temporary folder is
/// often memory, where a commit costs nothing.
pub fn disk() -> Fallible<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Untrained weights of the default shape: they cost what trained ones cost.
pub fn weights() -> Fallible<Arc<Weights>> {
    Ok(Arc::new(Weights::from_safetensors(&untrained(7, Shape::default())?)?))
}

/// A store in a folder.
pub fn open(folder: &Path) -> Fallible<Local> {
    Ok(Local::open(folder.join(FILE))?)
}

/// Copies a store whose users are gone.
pub fn copy(from: &Path, to: &Path) -> Fallible<()> {
    for suffix in ["", "-wal"] {
        let name = format!("{FILE}{suffix}");
        if from.join(&name).exists() {
            std::fs::copy(from.join(&name), to.join(&name))?;
        }
    }
    Ok(())
}

/// Writes what a script's job has seen before a clock runs: catalog, answers, warm-up.
pub fn fill(folder: &Path, script: &Script, weights: &Arc<Weights>) -> Fallible<()> {
    fill_topics(&mut open(folder)?, script, weights, &|topic| topic.name().to_owned())
}

/// The same on any store, its topics named by `name`.
pub fn fill_topics(
    topics: &mut dyn Topics,
    script: &Script,
    weights: &Arc<Weights>,
    name: &dyn Fn(Topic) -> String,
) -> Fallible<()> {
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates, Topic::Cot] {
        topics.ensure(&name(topic), script.partitions, topic.policy())?;
    }
    topics.ensure(&name(Topic::Embeddings), 1, Topic::Embeddings.policy())?;
    let mut append = |records: &[NewRecord]| -> Fallible<()> {
        for records in records.chunks(10_000) {
            topics.append(&named(records, name))?;
        }
        Ok(())
    };
    append(&script.catalog())?;
    append(&script.answers(weights)?)?;
    script.warm.iter().try_for_each(|chunk| append(&chunk.records))
}

/// Records of a script for topics that are named by `name`.
pub fn named(records: &[NewRecord], name: &dyn Fn(Topic) -> String) -> Vec<NewRecord> {
    let rename = |record: &NewRecord| {
        let topic = Topic::from_name(&record.topic).map_or_else(|| record.topic.clone(), name);
        NewRecord { topic, ..record.clone() }
    };
    records.iter().map(rename).collect()
}

/// Starts a job on a store and lets it catch up.
pub fn start(folder: &Path, semantics: &Semantics, partitions: u32, workers: usize) -> Fallible<Job> {
    begin(parts(Box::new(open(folder)?), None)?, semantics, options("bench", partitions, workers))
}

/// Starts a job of these parts and lets it catch up.
pub fn begin(parts: Parts, semantics: &Semantics, options: Options) -> Fallible<Job> {
    let mut job = Job::start(parts, Arc::new(semantics.clone()), options)?;
    job.run_until_idle(|_| {})?;
    Ok(job)
}

/// What a job is made of, on this store; with a folder of snapshots, which are taken when asked for.
pub fn parts(topics: Box<dyn Topics>, snapshots: Option<&Path>) -> Fallible<Parts> {
    let snapshots = match snapshots {
        Some(folder) => Some((Snapshots::open(&folder.display().to_string())?, Duration::from_secs(86_400))),
        None => None,
    };
    Ok(Parts {
        topics,
        formats: BTreeMap::new(),
        generators: vec![Box::new(Template::new(Prompt::builtin()))],
        points: None,
        snapshots,
        validator: Validator::new(&Prompt::builtin()),
        encoder: Box::new(Hashed::new(WIDTH)),
        weights: weights()?.into(),
    })
}

/// How a job runs: it asks nothing.
pub fn options(job: &str, partitions: u32, workers: usize) -> Options {
    Options {
        job: job.to_owned(),
        names: Names::new(&BTreeMap::new(), ""),
        workers,
        epoch_max_events: 10_000,
        create_inputs: Some(partitions),
        generate: false,
        calls_file: None,
        dead_letters: Default::default(),
        accept_truncated: false,
        edges: Default::default(),
        by_hand: false,
        bounded: None,
        switch: None,
        cluster: Default::default(),
    }
}

/// Appends a chunk, not measured, then runs it as one epoch, measured by `clock`.
pub fn epoch<T>(job: &mut Job, chunk: &Chunk, clock: impl FnOnce(&mut Job) -> Fallible<T>) -> Fallible<T> {
    job.topics().append(&chunk.records)?;
    let (before, committed) = (job.judgements().accepted, job.committed());
    let measured = clock(job)?;
    let (taken, epochs) = (job.judgements().accepted - before, job.committed() - committed);
    if taken != chunk.events as u64 || epochs != 1 {
        return Err(format!("{taken} of {} events were accepted, in {epochs} epochs", chunk.events).into());
    }
    Ok(measured)
}

/// Steps until an epoch is committed.
pub fn close(job: &mut Job) -> Fallible<()> {
    while job.step(Duration::from_millis(5))?.epoch.is_none() {}
    Ok(())
}

/// What a figure of the whole path depends on.
pub fn conditions(job: &Job, users: usize, workers: usize) -> String {
    let workers = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
    let [demonstrations, pairs, users, items] =
        [job.demonstrations().len(), job.sink().pairs_live(), users, job.items()]
            .map(|count| crate::report::number(count as f64));
    format!("{workers}, {demonstrations} demonstrations, {pairs} live pairs, {users} users, {items} items")
}
