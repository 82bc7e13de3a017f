//! A program takes over what an older version left, and refuses what a newer one did, without touching
//! it.

use crate::parity::{mutated, semantics};
use ictflow_connectors::Disposition;
use ictflow_dataflows::epochs::read_whole;
use ictflow_schemas::epoch::{EpochRecord, Progress, WRITER_VERSION};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::framing::Frame;
use ictflow_schemas::topic::{NewRecord, Record, Topic};
use ictflow_schemas::wire::{Wire, single_object, split_single_object, versions};
use ictflow_tests::support::world::{self, World, feed, hashed, play, settle, template};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

fn world(folder: &Path, job: &str) -> World {
    let mut world = World::new(folder, job, semantics(10), world::weights(384));
    world.epoch = 200;
    world
}

fn slice(folder: &Path, seed: &str) -> Vec<Value> {
    mutated(folder, &["--events", "1000", "--seed", seed, "--partitions", "3"])
}

fn read(world: &World, topic: Topic) -> Vec<Record> {
    let mut records = Vec::new();
    read_whole(&mut *world.topics(), world.names().of(topic), |record| records.push(record)).unwrap();
    records
}

/// What the topics of a job hold, by topic: how many records, and the last one.
fn held(world: &World) -> BTreeMap<Topic, (usize, Option<Record>)> {
    Topic::ALL
        .into_iter()
        .map(|topic| {
            let mut records = read(world, topic);
            (topic, (records.len(), records.pop()))
        })
        .collect()
}

/// A value of the newest schema as the first one wrote it: without the fields that came since, which are
/// the last ones and empty.
fn first_version<T: Wire>(topic: Topic, value: &T, empty: &[u8]) -> Vec<u8> {
    let all = versions(topic);
    assert_eq!(all.len(), 2, "another version came: write this test for it");
    let bytes = value.encode();
    let (newest, datum) = split_single_object(&bytes).unwrap();
    assert_eq!(newest, all[1].fingerprint);
    single_object(all[0].fingerprint, datum.strip_suffix(empty).expect("the new fields are empty"))
}

/// Copies the topics of a job into another store, as an older version would have written them.
fn older(from: &World, to: &World) -> usize {
    let (names, mut topics, mut old) = (from.names(), to.topics(), 0);
    for topic in Topic::ALL {
        let count = from.topics().partitions(names.of(topic)).unwrap().unwrap();
        topics.ensure(to.names().of(topic), count, topic.policy()).unwrap();
        for record in read(from, topic) {
            let value = record.value.map(|value| match topic {
                Topic::Epochs => {
                    old += 1;
                    let mut epoch = EpochRecord::decode(&value).unwrap();
                    epoch.starts.clear();
                    // An empty map, an empty list, no outputs.
                    first_version(topic, &epoch, &[0, 0, 0])
                }
                Topic::Progress => {
                    old += 1;
                    let progress = Progress { snapshot: None, ..Progress::decode(&value).unwrap() };
                    first_version(topic, &progress, &[0])
                }
                Topic::Features => {
                    old += 1;
                    let feature = Feature::decode(&value).unwrap();
                    let (votes, neighbours, history_labels) = (vec![], vec![], vec![]);
                    let feature = Feature { votes, neighbours, history_labels, ..feature };
                    // Three empty lists, and the first kind.
                    first_version(topic, &feature, &[0, 0, 0, 0])
                }
                Topic::Examples => {
                    old += 1;
                    first_version(topic, &ExampleRecord::decode(&value).unwrap().without_served(), &[0])
                }
                _ => value,
            });
            let new = NewRecord {
                topic: to.names().of(topic).to_owned(),
                partition: record.partition,
                timestamp: record.timestamp,
                key: record.key,
                value,
                headers: record.headers,
            };
            topics.append(&[new]).unwrap();
        }
    }
    old
}

#[test]
fn what_an_older_version_left_is_taken_over() {
    let [before, after] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let script = slice(before.path(), "21");
    let (first, second) = script.split_at(script.len() / 2);
    let left = world(before.path(), "shop");
    let mut job = left.start(template(), hashed());
    play(&mut job, first, left.partitions, 100);
    let committed = job.committed();
    drop(job);
    let taken = world(after.path(), "shop");
    assert!(older(&left, &taken) > 10);
    let mut job = taken.start(template(), hashed());
    assert_eq!(job.committed(), committed);
    settle(&mut job);
    assert_eq!((job.requester().accounting.attempts, job.requester().accounting.embeddings), (0, 0));
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        assert!(taken.compacted(topic) == left.compacted(topic), "{topic:?} changed by the taking over");
    }
    play(&mut job, second, taken.partitions, 100);
    drop(job);
    let records = read(&taken, Topic::Progress);
    let progress = Progress::decode(records.last().unwrap().value.as_deref().unwrap()).unwrap();
    assert!(progress.epoch > committed);
    assert_eq!(progress.writer_version, WRITER_VERSION);
    // A third start reads the log of both versions.
    drop(taken.start(template(), hashed()));
    let batch = World { job: "batch".into(), generate: false, epoch: 100_000, ..taken.clone() };
    settle(&mut batch.start(template(), hashed()));
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        assert!(taken.compacted(topic) == batch.compacted(topic), "{topic:?}");
    }
    assert!(taken.compacted(Topic::Features).len() > 100);
}

/// Writes a record to partition 0 of a topic of the job.
fn put(world: &World, topic: Topic, key: Option<Vec<u8>>, value: Option<Vec<u8>>) {
    let new = NewRecord {
        topic: world.names().of(topic).to_owned(),
        partition: 0,
        timestamp: None,
        key,
        value,
        headers: Vec::new(),
    };
    world.topics().append(&[new]).unwrap();
}

#[test]
fn what_a_newer_version_left_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "shop");
    let script = slice(folder.path(), "22");
    let (first, second) = script.split_at(script.len() / 2);
    let mut job = world.start(template(), hashed());
    play(&mut job, first, world.partitions, 100);
    drop(job);
    let own = read(&world, Topic::Progress).pop().unwrap();
    let progress = Progress::decode(own.value.as_deref().unwrap()).unwrap();
    let put =
        |topic: Topic, key: &Option<Vec<u8>>, value: Vec<u8>| put(&world, topic, key.clone(), Some(value));
    let version = |version: &str| Progress { writer_version: version.into(), ..progress.clone() }.encode();
    let unknown = single_object([7; 8], &[1, 2, 3]);
    let newer = (WRITER_VERSION.parse::<u32>().unwrap() + 1).to_string();
    let faults = [
        ("a newer writer", version(&newer), "writer version"),
        ("a writer whose version is no number", version("1b"), "writer version"),
        ("a schema that isn't known", unknown, "schema fingerprint"),
    ];
    for (name, value, says) in faults {
        put(Topic::Progress, &own.key, value);
        let before = held(&world);
        let error =
            world.try_start(template(), hashed()).err().unwrap_or_else(|| panic!("{name} is refused"));
        assert_eq!(error.disposition, Disposition::Fatal, "{name}: {error}");
        let text = format!("{error} {}", error.hint);
        assert!(text.contains(says) && text.contains("newer version"), "{name}: {text}");
        assert!(held(&world) == before, "{name}: a refused start writes nothing");
        // The newest record of a key counts, as after compaction: once it can be read the job goes on.
        put(Topic::Progress, &own.key, version(WRITER_VERSION));
        drop(world.start(template(), hashed()));
    }
    let mut job = world.start(template(), hashed());
    assert_eq!(job.committed(), progress.epoch);
    feed(&mut job, second, world.partitions);
    drop(job);
    let batch = World { job: "batch".into(), generate: false, epoch: 100_000, ..world.clone() };
    settle(&mut batch.start(template(), hashed()));
    assert!(world.compacted(Topic::Features) == batch.compacted(Topic::Features));
    // Bounds of a newer version are refused likewise.
    put(Topic::Epochs, &None, single_object([7; 8], &[1, 2, 3]));
    let error = world.try_start(template(), hashed()).err().unwrap();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
}

/// Records on `progress` that nobody can read: by whom, the key, and whether a job of that name may exist.
fn strangers() -> [(&'static str, Option<Vec<u8>>, bool); 5] {
    let framed =
        |parts: &[&str]| parts.iter().fold(Frame::new(), |frame, part| frame.text(part)).into_bytes();
    [
        ("no key", None, false),
        ("a key that isn't framed", Some(b"shop".to_vec()), false),
        ("a key of two parts", Some(framed(&["shop", "1"])), false),
        ("a key that isn't text", Some(vec![0, 0, 0, 1, 0xff]), false),
        ("another job", Some(framed(&["stall"])), true),
    ]
}

#[test]
fn what_a_stranger_wrote_to_progress_stops_no_job_but_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "shop");
    let script = slice(folder.path(), "23");
    let mut pieces = script.chunks(script.len() / 6 + 1);
    let mut job = world.start(template(), hashed());
    play(&mut job, pieces.next().unwrap(), world.partitions, 100);
    let mut committed = job.committed();
    drop(job);
    for (who, key, is_job) in strangers() {
        put(&world, Topic::Progress, key.clone(), Some(b"who knows".to_vec()));
        let mut job = world.start(template(), hashed());
        assert_eq!(job.committed(), committed, "{who}");
        play(&mut job, pieces.next().unwrap(), world.partitions, 100);
        assert!(job.committed() > committed, "{who}");
        committed = job.committed();
        drop(job);

        // Whose outputs they are is asked by a new job: only a name that a job may have says so.
        let place = tempfile::tempdir().unwrap();
        let new = self::world(place.path(), "new");
        let mut topics = new.topics();
        topics.ensure(new.names().of(Topic::Progress), 1, Topic::Progress.policy()).unwrap();
        put(&new, Topic::Progress, key.clone(), Some(b"who knows".to_vec()));
        match new.try_start(template(), hashed()) {
            Ok(_) => assert!(!is_job, "{who}"),
            Err(error) => {
                assert!(is_job, "{who}: {error}");
                assert_eq!(error.disposition, Disposition::Fatal, "{error}");
                assert!(error.to_string().contains("belong to job stall"), "{error}");
                // A null takes it away, as its owner would.
                put(&new, Topic::Progress, key, None);
                drop(new.start(template(), hashed()));
            }
        }
    }
    let batch = World { job: "batch".into(), generate: false, epoch: 100_000, ..world.clone() };
    settle(&mut batch.start(template(), hashed()));
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        assert!(world.compacted(topic) == batch.compacted(topic), "{topic:?}");
    }

    // The job's own is refused by name, until it can be read again.
    let own = read(&world, Topic::Progress)
        .into_iter()
        .rfind(|record| record.value.as_deref().is_some_and(|value| Progress::decode(value).is_ok()));
    let own = own.unwrap();
    put(&world, Topic::Progress, own.key.clone(), Some(b"who knows".to_vec()));
    let before = held(&world);
    let error = world.try_start(template(), hashed()).err().unwrap();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    assert!(error.to_string().contains("the progress of job shop on progress"), "{error}");
    assert!(held(&world) == before, "a refused start writes nothing");
    put(&world, Topic::Progress, own.key, own.value);
    let mut job = world.start(template(), hashed());
    assert_eq!(job.committed(), committed);
    settle(&mut job);
    assert_eq!(job.committed(), committed, "it had nothing to do");
}
