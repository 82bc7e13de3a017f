//! Features, examples, dead letters and wanted keys equal a batch recomputation by an independent
//! program, and don't depend on epochs or workers.

use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::topic::Topic;
use ictflow_tests::support::oracle;
use ictflow_tests::support::world::{self, World, hashed, play, settle, template};
use std::path::Path;

/// The program's own limit, as the mutator's bursts expect it.
const MAX_WINDOW_EVENTS: usize = 250;

fn semantics(stride: u64) -> Semantics {
    Semantics {
        max_window_events: MAX_WINDOW_EVENTS,
        cot_stride: CotStride { positive: stride, explicit_negative: stride, implicit_negative: stride },
        demonstration_ttl_ms: 365 * 24 * 3_600_000,
        ..Semantics::default()
    }
}

/// Writes the mutated ml-100k as a script.
fn mutated(folder: &Path, arguments: &[&str]) -> Vec<serde_json::Value> {
    let home = std::env::var("HOME").unwrap();
    let cache = std::env::var("ICTFLOW_MODELS").unwrap_or(format!("{home}/.cache/ictflow"));
    let (data, out) = (format!("{cache}/data/ml-100k"), folder.join("script.jsonl"));
    assert!(Path::new(&data).exists(), "no data in {data}: run `make models` once");
    let mut all = vec!["--data", &data, "--out", out.to_str().unwrap()];
    all.extend(arguments);
    let (ok, text) = oracle::run("mutate.py", &all);
    assert!(ok, "{text}");
    world::script(&out)
}

/// Asks the oracle, with further demands; gives its report.
fn verify(world: &World, job: &Job, folder: &Path, demands: &[&str]) -> serde_json::Value {
    let dumps = folder.join("dumps");
    world.dump(job, &dumps);
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
    let world = World {
        file: first.file.clone(),
        job: name.to_owned(),
        workers,
        epoch,
        generate: false,
        semantics: first.semantics.clone(),
        weights: first.weights.clone(),
        partitions: first.partitions,
        calls_file: None,
    };
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    if workers == 2 {
        let events = job.events_by_worker();
        let total: u64 = events.iter().sum();
        assert!(events.iter().all(|share| 4 * share > total), "shares {events:?}");
    }
    world
}

fn same(first: &World, second: &World) {
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        let (a, b) = (first.compacted(topic), second.compacted(topic));
        assert_eq!(a.len(), b.len(), "{topic:?} of {}", second.job);
        let different = a.iter().filter(|(key, value)| b.get(*key) != Some(value)).count();
        assert_eq!(different, 0, "{topic:?} of {}", second.job);
    }
}

#[test]
fn a_slice_equals_the_oracle_at_any_epoch_and_worker_count() {
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "2000", "--seed", "1", "--partitions", "3"]);
    let mut first = World::new(folder.path(), "first", semantics(10), world::weights(384));
    first.epoch = 100;
    let mut job = first.start(template(), hashed());
    play(&mut job, &script, first.partitions, 100);
    let report = verify(&first, &job, folder.path(), &["--min-features", "500", "--min-full", "0.3"]);
    assert!(report["compared"]["wanted"].as_u64().unwrap() > 100);
    drop(job);
    for (name, workers, epoch) in [("ones", 1, 1), ("two", 2, 700), ("four", 4, 100_000)] {
        same(&first, &replayed(&first, name, workers, epoch));
    }
}

#[test]
fn the_whole_of_ml_100k_equals_the_oracle_at_any_epoch_and_worker_count() {
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--seed", "7", "--partitions", "3"]);
    let first = World::new(folder.path(), "first", semantics(200), world::weights(384));
    let mut job = first.start(template(), hashed());
    play(&mut job, &script, first.partitions, 1_000);
    let demands = ["--min-features", "10000", "--min-full", "0.3", "--require-hits", "20"];
    let report = verify(&first, &job, folder.path(), &demands);
    assert!(report["compared"]["demonstrations"].as_u64().unwrap() > 10_000);
    drop(job);
    for (name, workers, epoch) in [("tens", 2, 10_000), ("hundreds", 4, 100_000)] {
        same(&first, &replayed(&first, name, workers, epoch));
    }
}
