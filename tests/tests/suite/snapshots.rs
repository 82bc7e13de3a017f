//! A start from a snapshot gives what a replay from the earliest offsets gives, at any worker count; a
//! damaged snapshot is never used.

use crate::parity::{mutated, semantics};
use ictflow_dataflows::job::Job;
use ictflow_schemas::topic::Topic;
use ictflow_tests::support::world::{self, World, append, hashed, play, record, settle, template};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A slice of mutated ml-100k: late events, duplicates, edits, deletions.
fn slice(folder: &Path, seed: &str) -> Vec<Value> {
    mutated(folder, &["--events", "1500", "--seed", seed, "--partitions", "3"])
}

fn world(folder: &Path, job: &str) -> World {
    let mut world = World::new(folder, job, semantics(10), world::weights(384));
    world.epoch = 100;
    world.snapshots = Some((folder.join("snapshots"), Duration::from_secs(3_600)));
    world
}

fn start(world: &World) -> Job {
    world.start(template(), hashed())
}

/// What the job has published, compacted.
fn outputs(world: &World) -> [std::collections::BTreeMap<Vec<u8>, Vec<u8>>; 2] {
    [world.compacted(Topic::Features), world.compacted(Topic::Examples)]
}

/// A job without snapshots, over the logs as they stand, in one coarse epoch.
fn batch(world: &World, name: &str) -> [std::collections::BTreeMap<Vec<u8>, Vec<u8>>; 2] {
    let mut fresh = World { job: name.to_owned(), snapshots: None, generate: false, ..world.clone() };
    fresh.epoch = 100_000;
    settle(&mut start(&fresh));
    outputs(&fresh)
}

fn same(
    found: &[std::collections::BTreeMap<Vec<u8>, Vec<u8>>; 2],
    wanted: &[std::collections::BTreeMap<Vec<u8>, Vec<u8>>; 2],
) {
    for (found, wanted) in found.iter().zip(wanted) {
        assert_eq!(found.len(), wanted.len());
        assert_eq!(found.iter().filter(|(key, value)| wanted.get(*key) != Some(value)).count(), 0);
    }
}

#[test]
fn a_start_from_a_snapshot_equals_a_replay_at_any_worker_count() {
    let folder = tempfile::tempdir().unwrap();
    let script = slice(folder.path(), "11");
    let mut world = world(folder.path(), "live");
    let mut job = start(&world);
    let pieces: Vec<&[Value]> = script.chunks(script.len() / 5 + 1).collect();
    let mut replayed = Vec::new();
    for (i, piece) in pieces.into_iter().enumerate() {
        if i > 0 {
            // Killed some epochs after the snapshot: the next start loads it and replays the rest.
            drop(job);
            world.workers = [1, 2, 3, 1, 4][i];
            let mut epochs = 0;
            job = world
                .try_start_observed(template(), hashed(), |job| epochs = epochs.max(job.epoch()))
                .unwrap();
            let from = job.snapshots().unwrap().epoch;
            replayed.push((from, epochs, job.sources().last().unwrap().read().0));
        }
        let (first, second) = piece.split_at(piece.len() / 2);
        play(&mut job, first, world.partitions, 100);
        job.snapshot();
        play(&mut job, second, world.partitions, 100);
    }
    // Each start began at a snapshot and read no more than what came after it.
    for (from, epochs, read) in &replayed {
        assert!(from.is_some_and(|from| from > 1 && from < *epochs), "{replayed:?}");
        assert!(*read < script.len() as u64 / 5, "{replayed:?}");
    }
    same(&outputs(&world), &batch(&world, "batch"));
    assert!(outputs(&world)[0].len() > 300);
}

#[test]
fn a_damaged_snapshot_is_passed_over_and_none_at_all_is_a_replay() {
    let folder = tempfile::tempdir().unwrap();
    let script = slice(folder.path(), "12");
    let world = world(folder.path(), "live");
    let mut job = start(&world);
    let third = script.len() / 3;
    play(&mut job, &script[..third], world.partitions, 100);
    job.snapshot();
    let older = job.snapshots().unwrap().epoch;
    play(&mut job, &script[third..2 * third], world.partitions, 100);
    job.snapshot();
    let newer = job.snapshots().unwrap().epoch;
    assert!(older < newer);
    drop(job);
    let objects = |newest: bool| {
        let mut files: Vec<PathBuf> = world::files(&folder.path().join("snapshots"));
        files.retain(|file| file.to_string_lossy().contains("segment"));
        files.sort();
        if newest { vec![files.pop().unwrap()] } else { files }
    };
    flip(&objects(true));
    let mut job = start(&world);
    assert_eq!(job.snapshots().unwrap().epoch, older);
    play(&mut job, &script[2 * third..], world.partitions, 100);
    drop(job);
    flip(&objects(false));
    let job = start(&world);
    assert_eq!(job.snapshots().unwrap().epoch, None);
    drop(job);
    same(&outputs(&world), &batch(&world, "batch"));
}

/// Changes one byte in the middle of each file.
fn flip(files: &[PathBuf]) {
    for file in files {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
}

#[test]
fn snapshots_of_other_bounds_and_jobs_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let script = slice(folder.path(), "14");
    let first = world(folder.path(), "first");
    let mut job = start(&first);
    append(&mut job, &script, first.partitions);
    settle(&mut job);
    job.snapshot();
    drop(job);
    // Another job in the same place starts from the beginning.
    let second = World { job: "second".to_owned(), ..first.clone() };
    let mut job = start(&second);
    assert_eq!(job.snapshots().unwrap().epoch, None);
    settle(&mut job);
    job.snapshot();
    drop(job);
    // The same name over other topics: its snapshot belongs to other bounds.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = World { snapshots: first.snapshots.clone(), ..world(elsewhere.path(), "first") };
    let mut job = start(&other);
    job.topics()
        .append(&script.iter().take(300).map(|line| record(line, 3, "")).collect::<Vec<_>>())
        .unwrap();
    settle(&mut job);
    drop(job);
    let job = start(&other);
    assert_eq!(job.snapshots().unwrap().epoch, None);
}
