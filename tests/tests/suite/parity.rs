//! Features, examples, dead letters and wanted keys equal a batch recomputation by an independent
//! program, and don't depend on epochs or workers.

use ictflow_dataflows::config::checked::models;
use ictflow_dataflows::dead_letters::ratio::Ratio;
use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::{CotRecord, CotStatus};
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::framing::Digest;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::oracle;
use ictflow_tests::support::world::{self, World, hashed, play, settle, template};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The program's own limits, as the mutator's bursts and sizes expect them.
const MAX_WINDOW_EVENTS: usize = 250;
const MAX_RECORD_BYTES: usize = 16_384;

pub fn semantics(stride: u64) -> Semantics {
    Semantics {
        max_window_events: MAX_WINDOW_EVENTS,
        max_record_bytes: MAX_RECORD_BYTES,
        cot_stride: CotStride { positive: stride, explicit_negative: stride, implicit_negative: stride },
        demonstration_ttl_ms: 365 * 24 * 3_600_000,
        ..Semantics::default()
    }
}

/// Writes the mutated ml-100k as a script.
pub fn mutated(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let (data, out) = (models().join("data").join("ml-100k"), folder.join("script.jsonl"));
    assert!(data.exists(), "no data in {}: run `make models` once", data.display());
    let mut all = vec!["--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    all.extend(arguments);
    let (ok, text) = oracle::run("mutate.py", &all);
    assert!(ok, "{text}");
    world::script(&out)
}

/// Asks the oracle, with further demands; gives its report.
pub fn verify(world: &World, job: &Job, folder: &Path, demands: &[&str]) -> Value {
    let dumps = folder.join("dumps");
    world.dump(job, &dumps);
    verify_dumps(&dumps, demands)
}

/// Asks the oracle about dumps of a world.
pub fn verify_dumps(dumps: &Path, demands: &[&str]) -> Value {
    let path = |name: &str| dumps.join(name).to_str().unwrap().to_owned();
    let (wanted, weights) = (path("wanted.txt"), path("weights.safetensors"));
    let mut arguments =
        vec!["verify", "--dumps", dumps.to_str().unwrap(), "--wanted", &wanted, "--weights", &weights];
    arguments.extend(demands);
    let (ok, text) = oracle::run("oracle.py", &arguments);
    assert!(ok, "the oracle found differences or unmet demands:\n{text}");
    serde_json::from_str(&text).unwrap()
}

/// A new job over the same logs, without a call.
fn replayed(first: &World, name: &str, workers: usize, epoch: usize) -> World {
    let world =
        World { job: name.to_owned(), workers, epoch, generate: false, calls_file: None, ..first.clone() };
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    if workers == 2 {
        let events = job.events_by_worker();
        let total: u64 = events.iter().sum();
        assert!(events.iter().all(|share| 4 * share > total), "shares {events:?}");
    }
    world
}

/// Holds the compacted outputs of two jobs against each other, byte for byte.
pub fn same(first: &World, second: &World) {
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        let (a, b) = (first.compacted(topic), second.compacted(topic));
        assert_eq!(a.len(), b.len(), "{topic:?} of {}", second.job);
        let different = a.iter().filter(|(key, value)| b.get(*key) != Some(value)).count();
        assert_eq!(different, 0, "{topic:?} of {}", second.job);
    }
}

/// Runs a new job over logs that stand, without a call, and holds it against the oracle.
fn verified(first: &World, name: &str, folder: &Path, change: impl Fn(&mut Semantics), hits: &mut Hits) {
    let mut world = World { job: name.to_owned(), generate: false, calls_file: None, ..first.clone() };
    change(&mut world.semantics);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    hits.add(&verify(&world, &job, folder, &[]));
}

/// How often each rule was hit in the comparison that hit it most: the same logs compared twice don't
/// count twice.
#[derive(Default)]
struct Hits(BTreeMap<String, u64>);

impl Hits {
    fn add(&mut self, report: &Value) {
        for (rule, hits) in report["hits"].as_object().unwrap() {
            let most = self.0.entry(rule.clone()).or_default();
            *most = (*most).max(hits.as_u64().unwrap());
        }
    }

    fn require(&self, least: u64) {
        let rare: Vec<_> = self.0.iter().filter(|(_, hits)| **hits < least).collect();
        assert!(rare.is_empty(), "rules hit fewer than {least} times: {rare:?}");
    }
}

#[test]
fn a_slice_equals_the_oracle_at_any_epoch_and_worker_count() {
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "2000", "--seed", "1", "--partitions", "3"]);
    let first = slice(folder.path(), &script, &mut Hits::default());
    for (name, workers, epoch) in [("ones", 1, 1), ("two", 2, 700), ("four", 4, 100_000)] {
        same(&first, &replayed(&first, name, workers, epoch));
    }
}

/// Plays a slice in epochs of 100 and holds it against the oracle.
fn slice(folder: &Path, script: &[Value], hits: &mut Hits) -> World {
    let mut first = World::new(folder, "first", semantics(10), world::weights(384));
    first.epoch = 100;
    let mut job = first.start(template(), hashed());
    play(&mut job, script, first.partitions, 100);
    let report = verify(&first, &job, folder, &["--min-features", "500", "--min-full", "0.3"]);
    assert!(report["compared"]["wanted"].as_u64().unwrap() > 100);
    hits.add(&report);
    first
}

#[test]
fn the_whole_of_ml_100k_equals_the_oracle_and_hits_every_rule() {
    let mut hits = Hits::default();
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--seed", "7", "--partitions", "3"]);
    let mut first = World::new(folder.path(), "first", semantics(200), world::weights(384));
    // The mutator damages one candidate set in eight, on purpose.
    first.dead_letters = Ratio::OFF;
    let mut job = first.start(template(), hashed());
    play(&mut job, &script, first.partitions, 1_000);
    let report = verify(&first, &job, folder.path(), &["--min-features", "10000", "--min-full", "0.3"]);
    assert!(report["expected"]["live_demonstrations"].as_u64().unwrap() > 300);
    hits.add(&report);
    let demonstrations: Vec<Arc<Demonstration>> = job.demonstrations().iter().cloned().collect();
    drop(job);
    for (name, workers, epoch) in [("tens", 2, 10_000), ("hundreds", 4, 100_000)] {
        same(&first, &replayed(&first, name, workers, epoch));
    }
    // Logs as failures leave them, and limits that bite.
    damage(&first, &demonstrations);
    let limits = |semantics: &mut Semantics| {
        semantics.max_demonstrations = 100;
        semantics.demonstration_ttl_ms = 120 * 24 * 3_600_000;
    };
    verified(&first, "damaged", folder.path(), limits, &mut hits);
    // Pools with too few demonstrations, on a slice.
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "2000", "--seed", "2", "--partitions", "3"]);
    let first = slice(folder.path(), &script, &mut hits);
    let strides = |positive, others| {
        move |s: &mut Semantics| {
            s.cot_stride = CotStride { positive, explicit_negative: others, implicit_negative: others };
        }
    };
    verified(&first, "none", folder.path(), strides(10_000_000, 10_000_000), &mut hits);
    verified(&first, "one-side", folder.path(), strides(10_000_000, 10), &mut hits);
    verified(&first, "few", folder.path(), |s| s.max_demonstrations = 3, &mut hits);
    hits.require(20);
}

/// Writes what failures, damage and edits without an answer leave on the logs.
fn damage(world: &World, demonstrations: &[Arc<Demonstration>]) {
    let mut topics = world.topics();
    let mut newest: BTreeMap<&str, BTreeMap<Vec<u8>, (u32, Vec<u8>)>> = BTreeMap::new();
    for topic in ["cot", "embeddings", "items"] {
        let of = newest.entry(topic).or_default();
        read_whole(&mut *topics, topic, |record| {
            let Some(key) = record.key else { return };
            match record.value {
                // The last readable item stands, as for the program.
                Some(value) if topic == "items" && Item::decode(&value).is_err() => None,
                Some(value) => of.insert(key, (record.partition, value)),
                None => of.remove(&key),
            };
        })
        .unwrap();
    }
    let new = |topic: &str, partition, key: Vec<u8>, value| NewRecord {
        topic: topic.to_owned(),
        partition,
        timestamp: Some(world::EDITED_AT),
        key: Some(key),
        value,
        headers: Vec::new(),
    };
    let mut records = Vec::new();
    // CoTs: by turns a tombstone, garbage, a failure in the place of the answer, and nothing.
    for (i, (key, (partition, value))) in newest["cot"].iter().enumerate() {
        let mut failure = CotRecord::decode(value).unwrap();
        match i % 8 {
            0 => records.push(new("cot", *partition, key.clone(), None)),
            1 => records.push(new("cot", *partition, key.clone(), Some(b"garbage".to_vec()))),
            2 => {
                failure.status = CotStatus::Failed;
                failure.text = String::new();
                let digest = Digest::from_hex(std::str::from_utf8(key).unwrap()).unwrap();
                records.push(new("cot", *partition, key.clone(), None));
                records.push(new("cot", *partition, failure.topic_key(&digest), Some(failure.encode())));
            }
            _ => {}
        }
    }
    // Embeddings: a tombstone, a vector that isn't of unit norm, a failure.
    for (i, (key, (partition, value))) in newest["embeddings"].iter().enumerate() {
        let mut embedding = Embedding::decode(value).unwrap();
        match i % 10 {
            0 => records.push(new("embeddings", *partition, key.clone(), None)),
            1 => {
                embedding.vector[0] += 0.5;
                records.push(new("embeddings", *partition, key.clone(), Some(embedding.encode())));
            }
            2 => {
                embedding.status = EmbeddingStatus::Failed;
                embedding.vector.clear();
                records.push(new("embeddings", *partition, key.clone(), None));
                records.push(new("embeddings", *partition, embedding.key(), Some(embedding.encode())));
            }
            _ => {}
        }
    }
    // Vectors that are gone under demonstrations: their items have none any more.
    let bare: BTreeSet<String> = demonstrations
        .iter()
        .step_by(5)
        .filter_map(|c| c.item_state.vector.as_ref().map(|vector| vector.text.hex()))
        .collect();
    for (key, (partition, value)) in &newest["embeddings"] {
        if bare.contains(&Embedding::decode(value).unwrap().digest) {
            records.push(new("embeddings", *partition, key.clone(), None));
        }
    }
    // Edits that nobody answers: the demonstrations on these items fall back to their old text.
    let edited: BTreeSet<&str> = demonstrations.iter().rev().step_by(2).map(|c| &*c.item).collect();
    for id in edited {
        let (partition, value) = &newest["items"][id.as_bytes()];
        let mut item = Item::decode(value).unwrap();
        item.description = Some("An edit that nobody answers.".to_owned());
        records.push(new("items", *partition, id.as_bytes().to_vec(), Some(item.encode())));
    }
    topics.append(&records).unwrap();
}
