//! Inputs on a real Kafka that have forgotten records which a job's state rests on: refused by name,
//! accepted on record, and no matter where a snapshot stands for them.

use super::undisturbed::outputs;
use crate::backfill::{filled, order};
use crate::parity::{semantics, verify};
use crate::verify::{kinds, verified};
use fastrand::Rng;
use ictflow_connectors::{Disposition, Error};
use ictflow_dataflows::epochs::load;
use ictflow_dataflows::job::Job;
use ictflow_dataflows::verify::compare::Kind;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::chaos::{first_seed, rounds};
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::world::{
    self, Store, World, calls, candidates, event, hashed, item, record, settle, template,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

const START: i64 = 1_700_000_000_000;
const USERS: usize = 12;
const ITEMS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A world on the broker, with its catalog and what each user is offered.
fn world(broker: &Broker, folder: &Path, name: &str) -> World {
    let mut world = World::new(folder, &unique(name), semantics(1), world::weights(384));
    world.store = Store::Kafka(Box::new(broker.config()));
    world.prefix = format!("{}-", unique(name));
    world.epoch = 7;
    world.calls_file = Some(folder.join("calls.txt"));
    let names = world.names();
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    let mut lines: Vec<Value> = ITEMS.iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    lines.extend((0..USERS).map(|n| candidates(&format!("u{n}"), START, &["d", "e"])));
    append(&world, &lines);
    world
}

/// Ratings in the order of their times, so that what is left of them reads like a log of its own.
fn ratings(numbers: Range<usize>) -> Vec<Value> {
    numbers
        .map(|n| {
            let (user, stars) = (format!("u{}", n % USERS), if n % 2 == 0 { 5.0 } else { 1.0 });
            let film = ITEMS[(n / USERS + n) % 3];
            event(&user, &format!("r{n}"), film, "rate", Some(stars), START + 60_000 * n as i64)
        })
        .collect()
}

fn append(world: &World, lines: &[Value]) {
    let records: Vec<_> = lines.iter().map(|line| record(line, world.partitions, &world.prefix)).collect();
    world.topics().append(&records).unwrap();
}

fn start(world: &World) -> Job {
    world.start(template(), hashed())
}

fn refused(world: &World) -> Error {
    world.try_start(template(), hashed()).err().expect("a start is refused")
}

/// Starts a job, lets it do all that there is to do, and says up to which epoch.
fn run(world: &World) -> i64 {
    let mut job = start(world);
    settle(&mut job);
    job.committed()
}

fn recorded(world: &World) -> Vec<EpochRecord> {
    load(&mut *world.topics(), world.names().of(Topic::Epochs), &world.job).unwrap()
}

fn starts(world: &World, topic: Topic) -> Vec<i64> {
    world.topics().starts(world.names().of(topic)).unwrap()
}

fn ends(world: &World, topic: Topic) -> Vec<i64> {
    world.topics().ends(world.names().of(topic)).unwrap()
}

/// What a refusal says: every partition that lost something, what is needed, what is kept, what to do; and
/// nothing is written.
fn named(error: &Error, topic: &str, needed: &[i64], kept: &[i64]) {
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    let text = error.to_string();
    for (partition, (needed, kept)) in needed.iter().zip(kept).enumerate() {
        let says = format!("{topic}/{partition} is needed from offset {needed} and kept from {kept}");
        assert_eq!(text.contains(&says), kept > needed, "{says}: {text}");
    }
    assert!(text.contains("--accept-truncated"), "{text}");
}

/// The features of a new job over the logs as they stand, which the independent oracle confirms.
fn anew(world: &World, name: &str, folder: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let new = World {
        job: format!("{}-{name}", world.job),
        epoch: 1_000,
        generate: false,
        calls_file: None,
        snapshots: None,
        accept_truncated: false,
        ..world.clone()
    };
    let mut job = start(&new);
    settle(&mut job);
    verify(&new, &job, &folder.join(name), &["--min-features", "20"]);
    drop(job);
    new.compacted(Topic::Features)
}

#[test]
fn forgotten_interactions_are_refused_by_name_or_accepted_once_and_for_all() {
    let mut rng = Rng::with_seed(seed());
    for round in 0..rounds(1, 6) {
        let broker = Broker::shared();
        let folder = tempfile::tempdir().unwrap();
        let world = world(broker, folder.path(), "forgotten");
        append(&world, &ratings(0..60));
        run(&world);
        append(&world, &ratings(60..90));
        let committed = run(&world);
        let (before, features) = (outputs(&world), world.compacted(Topic::Features));
        assert_eq!(features.len(), 2 * USERS);

        // Anywhere, within an epoch or between two; at least one record is lost.
        let mut below: Vec<i64> =
            ends(&world, Topic::Interactions).iter().map(|end| rng.i64(0..=*end)).collect();
        below[0] = below[0].max(1);
        println!("round {round}: interactions are kept from {below:?}");
        let interactions = world.names().of(Topic::Interactions).to_owned();
        broker.forget(&interactions, &below);
        assert_eq!(starts(&world, Topic::Interactions), below);
        named(&refused(&world), &interactions, &[0; 3], &below);
        assert!(outputs(&world) == before, "a refused start writes nothing");

        // Accepted, it goes on with what is left, and that is on record though no input came.
        let accepting = World { accept_truncated: true, ..world.clone() };
        let after = run(&accepting);
        assert!(after > committed);
        let records = recorded(&world);
        let loss = records.iter().find(|record| record.epoch == committed + 1).unwrap();
        assert_eq!(loss.starts["interactions"], below);
        assert_eq!(records.iter().filter(|record| !record.starts.is_empty()).count(), 2);
        let left = world.compacted(Topic::Features);
        assert!(left != features, "histories are shorter");
        assert!(left == anew(&world, "anew", folder.path()));

        // A later start isn't refused, and has nothing to do.
        let stand = outputs(&world);
        assert_eq!(run(&world), after);
        assert!(outputs(&world) == stand);
        append(&world, &ratings(90..110));
        assert!(run(&world) > after);
        assert!(world.compacted(Topic::Features) == anew(&world, "later", folder.path()));

        // Where more goes it is refused again: the record says from where it is needed now.
        let all = ends(&world, Topic::Interactions);
        broker.forget(&interactions, &all);
        named(&refused(&world), &interactions, &below, &all);
    }
}

fn seed() -> u64 {
    let seed = first_seed(67);
    println!("ICTFLOW_SEED={seed}");
    seed
}

#[test]
fn forgotten_answers_are_refused_by_name_and_asked_again_where_that_is_accepted() {
    for topic in [Topic::Cot, Topic::Embeddings] {
        let broker = Broker::shared();
        let folder = tempfile::tempdir().unwrap();
        let mut world = world(broker, folder.path(), "answers");
        // No snapshot stands for the answers: their log is its own.
        world.snapshots = Some((folder.path().join("snapshots"), Duration::from_secs(3_600)));
        append(&world, &ratings(0..60));
        let mut job = start(&world);
        settle(&mut job);
        job.snapshot();
        let committed = job.committed();
        drop(job);
        let (before, features) = (outputs(&world), world.compacted(Topic::Features));
        let asked = calls(world.calls_file.as_deref().unwrap()).len();
        assert!(asked > 20, "{asked}");

        let name = world.names().of(topic).to_owned();
        let all = ends(&world, topic);
        broker.forget(&name, &all);
        named(&refused(&world), &name, &vec![0; all.len()], &all);
        assert!(outputs(&world) == before, "a refused start writes nothing");

        let after = run(&World { accept_truncated: true, ..world.clone() });
        assert!(after > committed);
        let again = calls(world.calls_file.as_deref().unwrap()).len() - asked;
        assert_eq!(again > 0, topic == Topic::Cot, "{again} calls");
        // The answers say the same again, so the vectors come back; only the answers' age is another.
        let back = world.compacted(Topic::Features);
        assert!(ageless(&back) == ageless(&features), "{topic:?}");
        assert!(back == anew(&world, "anew", folder.path()), "{topic:?}");
        let stand = outputs(&world);
        assert_eq!(run(&world), after);
        assert!(outputs(&world) == stand, "{topic:?}");
        assert_eq!(calls(world.calls_file.as_deref().unwrap()).len(), asked + again);
    }
}

/// Features without the time when their answers were written.
fn ageless(features: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<Feature> {
    let features = features.values().map(|value| Feature::decode(value).unwrap());
    features.map(|feature| Feature { cot_created_at: None, ..feature }).collect()
}

#[test]
fn without_its_bounds_a_job_is_refused_whatever_is_accepted() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let world = world(broker, folder.path(), "bounds");
    append(&world, &ratings(0..30));
    run(&world);
    let (before, epochs) = (outputs(&world), world.names().of(Topic::Epochs).to_owned());
    broker.forget(&epochs, &[3]);
    for accept_truncated in [false, true] {
        let error = refused(&World { accept_truncated, ..world.clone() });
        assert_eq!(error.disposition, Disposition::Fatal, "{error}");
        let text = error.to_string();
        assert!(text.contains(&epochs) && text.contains("the first epoch is missing"), "{text}");
        assert!(text.contains("must be kept"), "{text}");
    }
    assert!(world.compacted(Topic::Features).len() == 2 * USERS);
    assert_eq!(outputs(&world)[&Topic::Features], before[&Topic::Features]);
}

#[test]
fn a_snapshot_stands_for_what_was_forgotten_before_it() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(broker, folder.path(), "covered");
    world.snapshots = Some((folder.path().join("snapshots"), Duration::from_secs(3_600)));
    // It has read what the other one can't read any more.
    let twin = World {
        job: format!("{}-twin", world.job),
        snapshots: None,
        generate: false,
        calls_file: None,
        ..world.clone()
    };
    append(&world, &ratings(0..60));
    let mut job = start(&world);
    settle(&mut job);
    job.snapshot();
    let kept = job.snapshots().unwrap().epoch.unwrap();
    append(&world, &ratings(60..80));
    settle(&mut job);
    let committed = job.committed();
    assert!(committed > kept);
    drop(job);
    let mut living = start(&twin);
    settle(&mut living);

    let records = recorded(&world);
    let covered = records.iter().find(|record| record.epoch == kept).unwrap().ends["interactions"].clone();
    let interactions = world.names().of(Topic::Interactions).to_owned();
    broker.forget(&interactions, &covered);
    let before = outputs(&world);
    assert_eq!(run(&world), committed, "nobody is asked, and there is nothing to do");
    assert!(outputs(&world) == before);
    append(&world, &ratings(80..110));
    assert!(run(&world) > committed);
    settle(&mut living);
    drop(living);
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        assert!(world.compacted(topic) == twin.compacted(topic), "{topic:?}");
    }
    assert_eq!(world.compacted(Topic::Features).len(), 2 * USERS);
    assert_eq!(recorded(&world).iter().filter(|record| !record.starts.is_empty()).count(), 1, "no loss");

    // Without the snapshot the same start is refused; so is one whose snapshot stands before what is kept.
    named(&refused(&World { snapshots: None, ..world.clone() }), &interactions, &[0; 3], &covered);
    let all = ends(&world, Topic::Interactions);
    broker.forget(&interactions, &all);
    named(&refused(&world), &interactions, &covered, &all);
}

/// The topic of examples goes by age, too: what it let go is told apart from what is lost.
#[test]
fn examples_that_their_topic_let_go_are_no_difference_and_features_are() {
    let (broker, folder) = (Broker::shared(), tempfile::tempdir().unwrap());
    let world = world(broker, folder.path(), "expired");
    append(&world, &ratings(0..120));
    run(&world);
    let found = verified(&world, None);
    assert_eq!((kinds(&found), found.expired), (BTreeMap::new(), 0));
    let third: Vec<i64> = ends(&world, Topic::Examples).iter().map(|end| end / 3).collect();
    broker.forget(world.names().of(Topic::Examples), &third);
    assert_eq!(starts(&world, Topic::Examples), third);
    let found = verified(&world, None);
    assert_eq!(kinds(&found), BTreeMap::new());
    assert!(found.expired > 10, "{found:?}");
    let report = filled(&world, &order("again"));
    assert!(report.equal() && report.exact, "{report}");
    assert_eq!(report.examples.expired as usize, found.expired);
    // Features never go by age.
    let some: Vec<i64> = ends(&world, Topic::Features).iter().map(|end| end - 1).collect();
    broker.forget(world.names().of(Topic::Features), &some);
    let found = kinds(&verified(&world, None));
    assert!(found.keys().all(|kind| *kind == ("features", Kind::Lost)) && !found.is_empty(), "{found:?}");
}
