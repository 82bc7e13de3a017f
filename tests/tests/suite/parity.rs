//! Features, examples, dead letters and wanted keys equal a batch recomputation by an independent
//! program, and don't depend on epochs or workers.

use ictflow_connectors::llm::answer::{Tmp, TmpE};
use ictflow_schemas::config::Semantics;
use ictflow_tests::support::{oracle, world};
use std::path::Path;

/// Writes the mutated ml-100k as a script.
fn mutated(folder: &Path, arguments: &[&str]) -> Vec<serde_json::Value> {
    let home = std::env::var("HOME").unwrap();
    let cache = std::env::var("ICTFLOW_MODELS").unwrap_or(format!("{home}/.cache/ictflow"));
    let (data, out) = (format!("{cache}/data/ml-100k"), folder.join("script.jsonl"));
    let mut all = vec!["--data", &data, "--out", out.to_str().unwrap()];
    all.extend(arguments);
    let (ok, text) = oracle::run("mutate.py", &all);
    assert!(ok, "{text}");
    world::script(&out)
}

#[test]
fn a_slice_equals_the_oracle() {
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "2000", "--seed", "1", "--partitions", "3"]);
    let semantics = Semantics {
        max_window_events: 250,
        cot_stride: ictflow_schemas::config::CotStride {
            positive: 10,
            explicit_negative: 10,
            implicit_negative: 10,
        },
        ..Semantics::default()
    };
    let world = world::World::new(folder.path(), "first", semantics, world::weights(384));
    let mut job = world.start(Box::new(Tmp), Box::new(TmpE));
    let t = std::time::Instant::now();
    world::play(&mut job, &script, world.partitions, 100);
    eprintln!("played {:?} {:?} {:?}", t.elapsed(), job.judgements(), job.requester().accounting);
    let dumps = folder.path().join("dumps");
    world.dump(&job, &dumps);
    let keep = std::path::Path::new("/tmp/dumps");
    let _ = std::fs::remove_dir_all(keep);
    std::process::Command::new("cp").args(["-r", dumps.to_str().unwrap(), "/tmp/dumps"]).status().unwrap();
    let (ok, text) = oracle::run(
        "oracle.py",
        &[
            "verify",
            "--dumps",
            dumps.to_str().unwrap(),
            "--wanted",
            dumps.join("wanted.txt").to_str().unwrap(),
            "--weights",
            dumps.join("weights.safetensors").to_str().unwrap(),
        ],
    );
    eprintln!("{text}");
    assert!(ok);
}
