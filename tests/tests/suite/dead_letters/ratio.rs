//! A job stops before it commits an epoch with too many dead letters, and goes on once it may.

use super::{T0, garbage, home, outputs, script, world};
use crate::bad_input::{account, dead_letters};
use crate::kafka_job::send;
use crate::parity::verify;
use crate::registry::{ours, put};
use ictflow_connectors::Disposition;
use ictflow_dataflows::dead_letters::ratio::Ratio;
use ictflow_dataflows::epochs;
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::registry::{self, Double};
use ictflow_tests::support::world::{
    Store, World, append, event, feed, hashed, item, record, settle, template,
};
use rdkafka::producer::BaseProducer;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const RATIO: Ratio = Ratio { max: 0.1, window: 100 };

/// So many events of ann, a second apart, from `from` on; each n-th is garbage, from the first on.
fn stream(from: usize, count: usize, each: usize) -> Vec<Value> {
    let line = |n: usize| {
        let time = T0 + 200_000 + 1_000 * n as i64;
        match (n - from).is_multiple_of(each) {
            true => garbage("ann", time),
            false => event("ann", &format!("s{n}"), ["a", "b", "c"][n % 3], "click", None, time),
        }
    };
    (from..from + count).map(line).collect()
}

/// What stops a job, by a start or by a step.
fn stopped(world: &World) -> String {
    let error = match world.try_start(template(), hashed()) {
        Err(error) => error,
        Ok(mut job) => job.run_until_idle(|_| {}).unwrap_err(),
    };
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    error.to_string()
}

/// Where it stopped: the part of the message that names the record and the counts.
fn place(message: &str) -> &str {
    let from = message.find(": ").unwrap() + 2;
    &message[from..from + message[from..].find(';').unwrap()]
}

/// The epochs on record.
fn recorded(world: &World) -> usize {
    epochs::load(&mut *world.topics(), world.names().of(Topic::Epochs), &world.job).unwrap().len()
}

/// A job that has committed as much damage as may be, and has 61 more damaged records before it.
fn damaged(folder: &Path, snapshots: bool) -> World {
    let mut world = world(folder, "job");
    world.dead_letters = RATIO;
    if snapshots {
        world.snapshots = Some((folder.join("snapshots"), Duration::from_secs(3_600)));
    }
    let mut job = world.start(template(), hashed());
    feed(&mut job, &script(), world.partitions);
    // Ten of 100 in the window are as many as may be.
    feed(&mut job, &[stream(0, 100, 1_000), stream(100, 100, 10)].concat(), world.partitions);
    assert_eq!(dead_letters(&world).len(), 11);
    job.snapshot();
    assert_eq!(job.snapshots().is_some(), snapshots);
    append(
        &mut job,
        &[stream(200, 40, 1_000), stream(240, 60, 1), stream(300, 200, 1_000)].concat(),
        world.partitions,
    );
    world
}

#[test]
fn a_job_stops_before_the_same_record_at_every_start_and_goes_on_once_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let world = damaged(folder.path(), false);
    let (live, letters, before) = (outputs(&world), dead_letters(&world), recorded(&world));
    let first = stopped(&world);
    let ann = home("ann", world.partitions);
    // Four good events of ann's own stand before the stream; others may share the partition.
    let own = script().into_iter().filter(|line| {
        line["topic"] == "interactions" && home(line["key"].as_str().unwrap(), world.partitions) == ann
    });
    // The last 100 up to 244 hold 150, 160, 170, 180, 190, 200 and 240 to 244.
    let crossing = own.count() + 244;
    for part in [
        format!("commit epoch {}", before + 1),
        format!(
            "11 of the last 100 records up to interactions[{ann}]@{crossing} are dead letters (11 unreadable)"
        ),
        "more than max_dead_letter_ratio 0.1".to_owned(),
        "is it written with a schema of this topic".to_owned(),
        "raise [limits] max_dead_letter_ratio".to_owned(),
    ] {
        assert!(first.contains(&part), "{part}: {first}");
    }
    assert_eq!((dead_letters(&world), recorded(&world)), (letters.clone(), before));
    assert_eq!(outputs(&world), live);
    // A higher limit that is still too low stops it further on, a lower one at once.
    let at = |max: f64| stopped(&World { dead_letters: Ratio { max, ..RATIO }, ..world.clone() });
    let place_of = |n: usize| format!("up to interactions[{ann}]@{} are", crossing - 244 + n);
    assert!(at(0.5).contains(&format!("51 of the last 100 records {}", place_of(288))), "{}", at(0.5));
    // Under none at all what is committed was let through: the window starts after it, with 200 and 240.
    assert!(at(0.0).contains(&format!("2 of the last 41 records {}", place_of(240))), "{}", at(0.0));
    // However the log is cut, it is the same record; what came before it may be committed, it never is.
    for epoch in [1_000, 7, 50] {
        assert_eq!(place(&stopped(&World { epoch, ..world.clone() })), place(&first), "{epoch}");
    }
    let found = dead_letters(&world);
    assert!(
        found.len() > letters.len() && found.iter().all(|letter| letter.offset < crossing as i64),
        "{found:?}"
    );
    // Raised or switched off, it goes on with nothing lost.
    let world = World { dead_letters: Ratio { max: 0.7, ..RATIO }, ..world };
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(dead_letters(&world).len(), 11 + 1 + 60 + 1);
    account(&world, &job);
    verify(&world, &job, folder.path(), &["--min-features", "3"]);
    drop(job);
    // The damage is passed: the first limit holds again, over what was committed too.
    let world = World { dead_letters: RATIO, ..world };
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    feed(&mut job, &stream(500, 50, 1_000), world.partitions);
    assert_eq!(dead_letters(&world).len(), 74);
}

#[test]
fn damage_that_was_let_through_stops_nothing_after_it() {
    for snapshots in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut world = world(folder.path(), "passed");
        world.dead_letters = RATIO;
        if snapshots {
            world.snapshots = Some((folder.path().join("snapshots"), Duration::from_secs(3_600)));
        }
        // Of a stream without its first record, which is garbage.
        let good = |from: usize, count: usize| stream(from - 1, count + 1, 1_000).split_off(1);
        let mut job = world.start(template(), hashed());
        feed(&mut job, &[script(), good(1, 99)].concat(), world.partitions);
        // Every second record, up to the end of the log.
        append(&mut job, &stream(100, 60, 2), world.partitions);
        drop(job);
        let first = stopped(&world);
        assert!(place(&first).starts_with("11 of the last 100 records"), "{first}");
        assert_eq!(place(&stopped(&world)), place(&first));
        let high = World { dead_letters: Ratio { max: 0.5, ..RATIO }, ..world.clone() };
        let mut job = high.start(template(), hashed());
        settle(&mut job);
        job.snapshot();
        assert_eq!(job.snapshots().is_some_and(|figures| figures.epoch.is_some()), snapshots);
        drop(job);
        assert_eq!(dead_letters(&world).len(), 30);
        // Under the first limit again good events pass, at every start.
        for (from, count) in [(160, 12), (172, 20)] {
            let mut job = world.start(template(), hashed());
            settle(&mut job);
            let before = job.sources().last().unwrap().ends().iter().sum::<i64>();
            feed(&mut job, &good(from, count), world.partitions);
            let after = job.sources().last().unwrap().ends().iter().sum::<i64>();
            assert_eq!((after - before, dead_letters(&world).len()), (count as i64, 30), "{snapshots}");
        }
        // New damage stops it: the fourth record is more than a tenth of those since.
        let mut job = world.start(template(), hashed());
        settle(&mut job);
        append(&mut job, &stream(192, 20, 1), world.partitions);
        drop(job);
        let again = stopped(&world);
        assert!(place(&again).starts_with("4 of the last 36 records"), "{again}");
        assert_eq!(place(&stopped(&world)), place(&again));
        let replayed = stopped(&World { snapshots: None, ..world.clone() });
        assert_eq!(place(&replayed), place(&again), "{snapshots}");
        assert_eq!(dead_letters(&world).len(), 30);
    }
}

#[test]
fn a_start_from_a_snapshot_stops_where_a_replay_does() {
    let folder = tempfile::tempdir().unwrap();
    let world = damaged(folder.path(), true);
    let kept = world.snapshots.clone();
    let job = World { dead_letters: Ratio::OFF, ..world.clone() }.try_start(template(), hashed()).unwrap();
    assert!(job.snapshots().unwrap().epoch.is_some(), "it starts from a snapshot");
    assert_eq!(job.sources().last().unwrap().read().0, 0, "and reads no event again");
    drop(job);
    let from_snapshot = stopped(&world);
    let replayed = stopped(&World { snapshots: None, ..world.clone() });
    assert_eq!(place(&from_snapshot), place(&replayed));
    assert!(place(&replayed).starts_with("11 of the last 100 records"), "{replayed}");
    // An erasure rewrites the snapshots and leaves what the sources refused, whatever the user's name.
    let off = World { dead_letters: Ratio::OFF, generate: false, ..world.clone() };
    let mut job = off.start(template(), hashed());
    for partition in 0..world.partitions {
        job.erase(&partition.to_string()).unwrap();
    }
    drop(job);
    let world = World { snapshots: kept, ..world };
    assert_eq!(place(&stopped(&world)), place(&replayed));
}

#[test]
fn a_cause_that_is_mended_leaves_no_trace() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let mut world = world(folder.path(), "mended");
    world.registry = Some(registry::config(double.url()));
    world.dead_letters = RATIO;
    let mut job = world.start(template(), hashed());
    feed(&mut job, &script(), world.partitions);
    // A producer takes up a schema that nobody registered.
    let id = double.put("other-value", r#"{"type":"record","name":"R","fields":[]}"#) + 1;
    let lines = stream(1, 99, 1_000);
    let lines = &lines[1..];
    put(&world, lines, Some(id));
    drop(job);
    assert!(stopped(&world).contains("unreadable"));
    assert!(stopped(&world).contains("unreadable"));
    assert_eq!(double.put("interactions-value", ours(Topic::Interactions)), id);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!((job.judgements().accepted, dead_letters(&world).len()), (12 + 98, 0));
}

#[test]
fn items_and_sets_are_judged_too_from_the_first_epoch_on() {
    for topic in ["items", "candidates"] {
        let folder = tempfile::tempdir().unwrap();
        let mut world = world(folder.path(), "first");
        world.dead_letters = RATIO;
        let mut topics = world.topics();
        for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
            topics.ensure(topic.name(), 1, topic.policy()).unwrap();
        }
        world.partitions = 1;
        let bad = |n: usize| {
            let mut line = garbage(&format!("k{n}"), T0);
            line["topic"] = topic.into();
            record(&line, 1, "")
        };
        topics.append(&(0..10).map(bad).collect::<Vec<_>>()).unwrap();
        let error = stopped(&world);
        assert!(error.contains(&format!("10 of the last 10 records up to {topic}[0]@9")), "{error}");
        assert!(error.starts_with("commit epoch 1: "), "{error}");
        assert_eq!(recorded(&world), 0);
        let mut job = World { dead_letters: Ratio::OFF, ..world.clone() }.start(template(), hashed());
        feed(&mut job, &[item("a", Some("A"), "1")], 1);
        assert_eq!(dead_letters(&world).len(), 10);
        account(&world, &job);
    }
}

#[test]
fn late_events_and_a_robot_stop_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "late");
    (world.dead_letters, world.semantics.max_window_events) = (RATIO, 20);
    let mut job = world.start(template(), hashed());
    feed(&mut job, &script(), world.partitions);
    let late = |n: i64| event("bob", &format!("l{n}"), "a", "click", None, T0 - 30 * 60_000 - n);
    let robot = |n: i64| event("ann", &format!("r{n}"), "a", "click", None, T0 + 200_000 + n);
    let lines: Vec<Value> = (0..300).map(late).chain((0..300).map(robot)).collect();
    feed(&mut job, &lines, world.partitions);
    let letters = dead_letters(&world);
    let count = |reason: &str| letters.iter().filter(|letter| letter.reason == reason).count();
    assert_eq!((count("late"), count("window_full")), (300, 300 - 16));
    account(&world, &job);
}

#[test]
fn on_a_real_broker_a_job_stops_and_goes_on() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), &unique("ratio"));
    world.prefix = format!("{}-", unique("ratio"));
    world.store = Store::Kafka(Box::new(broker.config()));
    world.dead_letters = RATIO;
    let names = world.names();
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    let plain: BaseProducer = broker.client().create().unwrap();
    send(&plain, &[script(), stream(0, 100, 1_000)].concat(), &world);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    let standing = (dead_letters(&world), recorded(&world));
    send(&plain, &[stream(100, 60, 1), stream(160, 40, 1_000)].concat(), &world);
    let error = job.run_until_idle(|_| {}).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    drop(job);
    // What came before the crossing record may be committed, it and what follows isn't.
    let again = stopped(&world);
    assert_eq!(place(&again), place(&error.to_string()));
    assert!(recorded(&world) >= standing.1 && dead_letters(&world).len() <= standing.0.len() + 10);
    let mut job =
        World { dead_letters: Ratio { max: 0.9, ..RATIO }, ..world.clone() }.start(template(), hashed());
    settle(&mut job);
    assert_eq!(dead_letters(&world).len(), 1 + 60 + 1);
    verify(&world, &job, folder.path(), &["--min-features", "3"]);
}
