//! Worlds: scripts of input records, jobs on `local` topics over them, dumps for the oracle.

use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_connectors::kafka::{self, Kafka};
use ictflow_connectors::llm::answer::Progress;
use ictflow_connectors::llm::health::Health;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::llm::{Draft, Generate};
use ictflow_connectors::local::Local;
use ictflow_connectors::points::Points;
use ictflow_connectors::registry::{self, Registered};
use ictflow_connectors::snapshots::Snapshots;
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::cluster::Cluster;
use ictflow_dataflows::dead_letters::ratio::Ratio;
use ictflow_dataflows::epochs::{read_compacted, read_whole};
use ictflow_dataflows::job::outputs::active;
use ictflow_dataflows::job::{Edges, Job, Options, Parts};
use ictflow_dataflows::names::Names;
use ictflow_dataflows::tail;
use ictflow_operators::ict::{Shape, Weights, untrained};
use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::CotRequest;
use ictflow_schemas::example::comparable;
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::{Format, Wire};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// One record to produce, as `tests/oracle/mutate.py` writes it.
pub fn record(line: &Value, partitions: u32, prefix: &str) -> NewRecord {
    let topic = line["topic"].as_str().unwrap();
    let key = line["key"].as_str().map(|key| key.as_bytes().to_vec());
    let value = match (line["raw"].as_str(), &line["value"]) {
        (Some(raw), _) => Some(unhex(raw)),
        (None, Value::Null) => None,
        (None, value) => Some(encode(topic, value)),
    };
    let place = line["partition"].as_u64().map(|p| p as u32);
    NewRecord {
        topic: format!("{prefix}{topic}"),
        partition: place.unwrap_or_else(|| {
            key.as_deref().map_or(0, |key| Partitioner::Murmur2.partition(key, partitions))
        }),
        timestamp: line["timestamp"].as_i64(),
        key,
        value,
        headers: Vec::new(),
    }
}

fn encode(topic: &str, value: &Value) -> Vec<u8> {
    match topic {
        "interactions" => serde_json::from_value::<Interaction>(value.clone()).unwrap().encode(),
        "items" => serde_json::from_value::<Item>(value.clone()).unwrap().encode(),
        "candidates" => serde_json::from_value::<Candidates>(value.clone()).unwrap().encode(),
        other => panic!("no input topic: {other}"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// A timestamp for records of no moment.
pub const EDITED_AT: i64 = 900_000_000_000;

/// A store of topics.
#[derive(Clone)]
pub enum Store {
    /// One SQLite file.
    Local(PathBuf),
    /// A broker.
    Kafka(Box<kafka::Config>),
}

/// How a test runs a job.
#[derive(Clone)]
pub struct World {
    /// Where the topics live.
    pub store: Store,
    /// The schema registry that frames the values, if any.
    pub registry: Option<registry::Config>,
    /// Put before the names of all topics, so that tests share a broker.
    pub prefix: String,
    /// The job's name; its own topics end in it.
    pub job: String,
    /// The job whose topics it takes for its own; itself by default.
    pub topics_of: Option<String>,
    /// Partitions of the inputs.
    pub partitions: u32,
    /// Timely workers.
    pub workers: usize,
    /// The other processes.
    pub cluster: Cluster,
    /// Events of an epoch.
    pub epoch: usize,
    /// The semantics.
    pub semantics: Semantics,
    /// Whether calls are made.
    pub generate: bool,
    /// The weights file's bytes.
    pub weights: Arc<Vec<u8>>,
    /// Where calls are accounted.
    pub calls_file: Option<PathBuf>,
    /// Where snapshots are kept and how often one is taken.
    pub snapshots: Option<(PathBuf, Duration)>,
    /// How many records of a partition may be dead letters.
    pub dead_letters: Ratio,
    /// Whether a start goes on without needed records that are gone.
    pub accept_truncated: bool,
    /// What is called at the edges of a commit.
    pub edges: Edges,
    /// The store of points and its over-fetch, made anew for each job.
    pub points: Option<Arc<MakePoints>>,
}

/// Makes a store of points.
pub type MakePoints = dyn Fn() -> (Box<dyn Points>, usize) + Send + Sync;

/// Untrained weights for the text width of the encoder in use.
pub fn weights(width: usize) -> Arc<Vec<u8>> {
    Arc::new(untrained(7, Shape { text: width, ..Shape::default() }).unwrap())
}

impl World {
    /// A world of one worker in a folder.
    pub fn new(folder: &Path, job: &str, semantics: Semantics, weights: Arc<Vec<u8>>) -> Self {
        World {
            store: Store::Local(folder.join("topics.sqlite")),
            registry: None,
            prefix: String::new(),
            topics_of: None,
            job: job.to_owned(),
            partitions: 3,
            workers: 1,
            cluster: Cluster::default(),
            epoch: 1_000,
            semantics,
            generate: true,
            weights,
            calls_file: None,
            snapshots: None,
            dead_letters: Ratio::default(),
            accept_truncated: false,
            edges: Edges::default(),
            points: None,
        }
    }

    /// The topics' names of this job.
    pub fn names(&self) -> Names {
        let plain =
            Names::new(&BTreeMap::new(), &format!(".{}", self.topics_of.as_ref().unwrap_or(&self.job)));
        let prefixed = Topic::ALL.map(|topic| (topic, format!("{}{}", self.prefix, plain.of(topic))));
        Names::new(&prefixed.into_iter().collect(), "")
    }

    /// The store, behind the registry where there is one.
    pub fn topics(&self) -> Box<dyn Topics> {
        self.try_topics(false).unwrap()
    }

    /// The store, or why the registry doesn't let it be opened.
    pub fn try_topics(&self, read_only: bool) -> ictflow_connectors::Result<Box<dyn Topics>> {
        let store = self.raw_topics();
        Ok(match &self.registry {
            None => store,
            Some(config) => {
                Box::new(Registered::open(store, config.clone(), self.names().roles(), read_only)?)
            }
        })
    }

    /// The store as it is, values as they stand on the topics.
    pub fn raw_topics(&self) -> Box<dyn Topics> {
        match &self.store {
            Store::Local(file) => Box::new(Local::open(file).unwrap()),
            Store::Kafka(config) => Box::new(Kafka::connect((**config).clone()).unwrap()),
        }
    }

    /// Starts the job with a generator and an encoder.
    pub fn start(&self, generator: Box<dyn Generate>, encoder: Box<dyn Embed>) -> Job {
        self.try_start(generator, encoder).unwrap()
    }

    /// Starts the job, or says why not.
    pub fn try_start(
        &self,
        generator: Box<dyn Generate>,
        encoder: Box<dyn Embed>,
    ) -> ictflow_connectors::Result<Job> {
        self.try_start_observed(generator, encoder, |_| {})
    }

    /// Starts the job and lets `observe` look at it while it replays.
    pub fn try_start_observed(
        &self,
        generator: Box<dyn Generate>,
        encoder: Box<dyn Embed>,
        observe: impl FnMut(&Job),
    ) -> ictflow_connectors::Result<Job> {
        self.try_start_with(vec![generator], Validator::new(&Prompt::builtin()), encoder, observe)
    }

    /// Starts the job with several generators and what judges them, and lets `observe` look at it.
    pub fn try_start_with(
        &self,
        generators: Vec<Box<dyn Generate>>,
        validator: Validator,
        encoder: Box<dyn Embed>,
        observe: impl FnMut(&Job),
    ) -> ictflow_connectors::Result<Job> {
        let parts = self.parts(generators, validator, encoder)?;
        Job::start_observed(parts, Arc::new(self.semantics.clone()), self.options(), observe)
    }

    /// What the job is made of.
    pub fn parts(
        &self,
        generators: Vec<Box<dyn Generate>>,
        validator: Validator,
        encoder: Box<dyn Embed>,
    ) -> ictflow_connectors::Result<Parts> {
        Ok(Parts {
            topics: self.try_topics(false)?,
            formats: BTreeMap::new(),
            generators,
            validator,
            encoder,
            weights: Arc::new(Weights::from_safetensors(&self.weights).unwrap()).into(),
            points: self.points.as_ref().map(|make| make()),
            snapshots: match &self.snapshots {
                Some((folder, interval)) => {
                    Some((Snapshots::open(&folder.display().to_string())?, *interval))
                }
                None => None,
            },
        })
    }

    /// How the job runs.
    pub fn options(&self) -> Options {
        Options {
            job: self.job.clone(),
            names: self.names(),
            workers: self.workers,
            cluster: self.cluster.clone(),
            epoch_max_events: self.epoch,
            create_inputs: matches!(self.store, Store::Local(_)).then_some(self.partitions),
            generate: self.generate,
            calls_file: self.calls_file.clone(),
            dead_letters: self.dead_letters,
            accept_truncated: self.accept_truncated,
            edges: self.edges.clone(),
            by_hand: false,
            bounded: None,
            switch: None,
        }
    }

    /// Dumps every topic of the job and the wanted keys into a folder, for the oracle.
    pub fn dump(&self, job: &Job, folder: &Path) {
        let wanted = job.requester().wanted().iter().map(|key| key.hex()).collect();
        dump(&mut *self.topics(), job.names(), wanted, &self.weights, folder);
    }

    /// The topics' names with the outputs in force.
    pub fn active_names(&self) -> Names {
        active(&mut *self.topics(), &self.names(), Some(&self.job)).unwrap()
    }

    /// The compacted values of a topic of this job: by key the newest value that isn't null, as jobs over the
    /// same logs agree on it.
    pub fn compacted(&self, topic: Topic) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let values = read_compacted(&mut *self.topics(), self.names().of(topic)).unwrap();
        values.into_iter().map(|(key, (_, value))| (key, comparable(topic, &value).into_owned())).collect()
    }
}

/// Dumps every topic, the wanted keys and the weights into a folder, for the oracle.
pub fn dump(topics: &mut dyn Topics, names: &Names, wanted: Vec<String>, weights: &[u8], folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for topic in Topic::ALL {
        let file = std::fs::File::create(folder.join(format!("{}.jsonl", topic.name()))).unwrap();
        let mut file = std::io::BufWriter::new(file);
        read_whole(topics, names.of(topic), |record| {
            writeln!(file, "{}", tail::line(topic, names.of(topic), &record, Format::Avro, true)).unwrap();
        })
        .unwrap();
    }
    std::fs::write(folder.join("wanted.txt"), wanted.join("\n")).unwrap();
    std::fs::write(folder.join("weights.safetensors"), weights).unwrap();
}

/// Steps a job until it is idle.
pub fn settle(job: &mut Job) {
    job.run_until_idle(|_| {}).unwrap();
}

/// Appends a script in blocks that hold so many interactions, one step of the job after each.
pub fn play(job: &mut Job, script: &[Value], partitions: u32, block: usize) {
    let mut records = Vec::new();
    let mut events = 0;
    for line in script {
        events += usize::from(line["topic"] == "interactions");
        records.push(record(line, partitions, ""));
        if events == block {
            job.topics().append(&std::mem::take(&mut records)).unwrap();
            job.step(Duration::from_millis(5)).unwrap();
            events = 0;
        }
    }
    job.topics().append(&records).unwrap();
    settle(job);
}

/// Reads a script.
pub fn script(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The generator without a model.
pub fn template() -> Box<dyn Generate> {
    Box::new(Template::new(Prompt::builtin()))
}

/// A generator with a hook around each call: to hold it back, or to keep what it wrote.
pub struct Hooked<F> {
    /// The generator that makes the calls.
    pub inner: Box<dyn Generate>,
    /// Makes a call in the inner one's place.
    pub hook: F,
}

impl<F> Generate for Hooked<F>
where
    F: FnMut(&mut dyn Generate, &CotRequest, u32) -> ictflow_connectors::Result<Draft> + Send,
{
    fn model(&self) -> &str {
        self.inner.model()
    }
    fn prompt_version(&self) -> &str {
        self.inner.prompt_version()
    }
    fn parameters(&self) -> &str {
        self.inner.parameters()
    }
    fn attempts(&self) -> u32 {
        self.inner.attempts()
    }
    fn ready(&mut self, request: &CotRequest, progress: &Progress) -> Option<Duration> {
        self.inner.ready(request, progress)
    }
    fn health(&self) -> Option<Arc<Health>> {
        self.inner.health()
    }
    fn generate(&mut self, request: &CotRequest, attempt: u32) -> ictflow_connectors::Result<Draft> {
        (self.hook)(&mut *self.inner, request, attempt)
    }
}

/// The encoder without a model.
pub fn hashed() -> Box<dyn Embed> {
    Box::new(Hashed::new(384))
}

/// A record of an interaction, at its event time.
pub fn event(user: &str, id: &str, item: &str, kind: &str, value: Option<f64>, time: i64) -> Value {
    serde_json::json!({
        "topic": "interactions", "key": user, "timestamp": time,
        "value": {"event_id": id, "user_id": user, "item_id": item, "kind": kind, "value": value, "event_time": time},
    })
}

/// A record of an item with a title and categories, `None` to delete it.
pub fn item(id: &str, title: Option<&str>, price: &str) -> Value {
    let value = title.map(
        |title| serde_json::json!({"title": title, "categories": ["Drama"], "attributes": {"price": price}}),
    );
    serde_json::json!({"topic": "items", "key": id, "timestamp": 1, "value": value})
}

/// A record of a candidate set.
pub fn candidates(user: &str, computed_at: i64, items: &[&str]) -> Value {
    serde_json::json!({
        "topic": "candidates", "key": user, "timestamp": computed_at,
        "value": {"computed_at": computed_at, "items": items},
    })
}

/// When worlds begin that are written by hand, milliseconds.
pub const T0: i64 = 1_000_000_000;
/// Milliseconds in a second.
pub const SECOND: i64 = 1_000;

/// Four films, three users who rated film `b` and then `a`, two likes and a dislike, and are offered `c` and `d`.
pub fn films() -> Vec<Value> {
    let mut lines: Vec<Value> =
        ["a", "b", "c", "d"].iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    for (n, (user, stars)) in [("u1", 5.0), ("u2", 4.0), ("u3", 1.0)].into_iter().enumerate() {
        let time = T0 + 60 * SECOND * n as i64;
        lines.push(event(user, &format!("{user}-1"), "b", "rate", Some(5.0), time));
        lines.push(event(user, &format!("{user}-2"), "a", "rate", Some(stars), time + SECOND));
    }
    for user in ["u1", "u2", "u3"] {
        lines.push(candidates(user, T0 + 600 * SECOND, &["c", "d"]));
    }
    lines
}

/// Appends records and steps until the job is idle.
pub fn feed(job: &mut Job, lines: &[Value], partitions: u32) {
    append(job, lines, partitions);
    settle(job);
}

/// Appends records.
pub fn append(job: &mut Job, lines: &[Value], partitions: u32) {
    let records: Vec<NewRecord> = lines.iter().map(|line| record(line, partitions, "")).collect();
    job.topics().append(&records).unwrap();
}

/// Appends records and steps until an epoch closes, or says why none does.
pub fn append_and_step(job: &mut Job, lines: &[Value], partitions: u32) -> ictflow_connectors::Result<()> {
    append(job, lines, partitions);
    while job.step(Duration::from_millis(20))?.epoch.is_none() {}
    Ok(())
}

/// Steps until an epoch closes.
pub fn close(job: &mut Job) {
    while job.step(Duration::from_millis(20)).unwrap().epoch.is_none() {}
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The calls of the accounting file: (key, attempt).
pub fn calls(path: &Path) -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let (key, attempt) = line.split_once(' ').unwrap();
            (key.to_owned(), attempt.parse().unwrap())
        })
        .collect()
}
