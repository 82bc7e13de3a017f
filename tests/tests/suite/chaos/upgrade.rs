//! A program takes over what an older version left, and refuses what a newer one did, without touching
//! it.

use crate::parity::{mutated, semantics};
use ictflow_connectors::Disposition;
use ictflow_dataflows::epochs::read_whole;
use ictflow_schemas::epoch::{EpochRecord, Progress, WRITER_VERSION};
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

#[test]
fn what_a_newer_version_left_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "shop");
    let script = slice(folder.path(), "22");
    let (first, second) = script.split_at(script.len() / 2);
    let mut job = world.start(template(), hashed());
    play(&mut job, first, world.partitions, 100);
    drop(job);
    let (names, own) = (world.names(), read(&world, Topic::Progress).pop().unwrap());
    let progress = Progress::decode(own.value.as_deref().unwrap()).unwrap();
    let put = |topic: Topic, key: &Option<Vec<u8>>, value: Vec<u8>| {
        let new = NewRecord {
            topic: names.of(topic).to_owned(),
            partition: 0,
            timestamp: None,
            key: key.clone(),
            value: Some(value),
            headers: Vec::new(),
        };
        world.topics().append(&[new]).unwrap();
    };
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
        // The newest record of a key counts once the newer version's is compacted away; until then a
        // record that can't be read is refused wherever it stands.
        put(Topic::Progress, &own.key, version(WRITER_VERSION));
        if says == "writer version" {
            drop(world.start(template(), hashed()));
        }
    }
    // Unreadable ones stay refused; on a store without it the job goes on where it stood.
    let clean = tempfile::tempdir().unwrap();
    let copy = World { store: world::Store::Local(clean.path().join("topics.sqlite")), ..world.clone() };
    let good = |record: &Record| Progress::decode(record.value.as_deref().unwrap()).is_ok();
    let mut topics = copy.topics();
    for topic in Topic::ALL {
        let count = world.topics().partitions(names.of(topic)).unwrap().unwrap();
        topics.ensure(names.of(topic), count, topic.policy()).unwrap();
        let records = read(&world, topic).into_iter();
        let records =
            records.filter(|record| topic != Topic::Progress || good(record)).map(|record| NewRecord {
                topic: names.of(topic).to_owned(),
                partition: record.partition,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: record.headers,
            });
        topics.append(&records.collect::<Vec<_>>()).unwrap();
    }
    let mut job = copy.start(template(), hashed());
    assert_eq!(job.committed(), progress.epoch);
    feed(&mut job, second, copy.partitions);
    let batch = World { job: "batch".into(), generate: false, epoch: 100_000, ..copy.clone() };
    settle(&mut batch.start(template(), hashed()));
    assert!(copy.compacted(Topic::Features) == batch.compacted(Topic::Features));
    // Bounds of a newer version are refused likewise.
    put(Topic::Epochs, &None, single_object([7; 8], &[1, 2, 3]));
    let error = world.try_start(template(), hashed()).err().unwrap();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
}
