//! Promote and rollback: the live job goes on on other topics, with nothing lost and nothing left over.

use super::{Values, committed, cut, filled, local, order, prepare, script, start, to, values};
use crate::rescale::{on_kafka, play, wide};
use crate::verify::{kinds, verified};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::{Error, Result};
use ictflow_dataflows::backfill::{self, Demands, Switched};
use ictflow_dataflows::epochs::{load, read_whole};
use ictflow_dataflows::explain::Lineage;
use ictflow_dataflows::job::{Edge, Edges, Job};
use ictflow_dataflows::names::Names;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_SUBSTEP, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_tests::support::kafka::Broker;
use ictflow_tests::support::oracle::python;
use ictflow_tests::support::world::{
    Store, World, append, append_and_step, candidates, hashed, item, settle, template,
};
use rdkafka::producer::BaseProducer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub fn promote(world: &World, name: &str, demands: Demands) -> Result<Switched> {
    let collection = world.points.as_ref().map(|_| "ictflow");
    let parts = || world.parts(vec![template()], Validator::new(&Prompt::builtin()), hashed());
    let semantics = Arc::new(world.semantics.clone());
    let stop = AtomicBool::new(false);
    backfill::promote(parts, &semantics, &world.options(), collection, (name, demands), &stop)
}

pub fn rollback(world: &World) -> Result<Switched> {
    let collection = world.points.as_ref().map(|_| "ictflow");
    let parts = || world.parts(vec![template()], Validator::new(&Prompt::builtin()), hashed());
    let semantics = Arc::new(world.semantics.clone());
    backfill::rollback(parts, &semantics, &world.options(), collection, &AtomicBool::new(false))
}

pub const FORCE: Demands = Demands { force: true, max_behind: 0 };

/// The features and examples that readers find.
fn outputs(world: &World) -> [Values; 2] {
    let names = world.active_names();
    [Topic::Features, Topic::Examples].map(|topic| values(world, &names, topic))
}

/// A job over the same logs that was never switched, in one coarse epoch.
fn twin(world: &World, name: &str) -> [Values; 2] {
    let twin = World {
        job: format!("{}-{name}", world.job),
        epoch: 100_000,
        generate: false,
        snapshots: None,
        ..world.clone()
    };
    settle(&mut start(&twin));
    [Topic::Features, Topic::Examples].map(|topic| twin.compacted(topic))
}

fn equal(found: &[Values; 2], wanted: &[Values; 2], when: &str) {
    for (topic, (found, wanted)) in ["features", "examples"].iter().zip(found.iter().zip(wanted)) {
        let lost = wanted.keys().filter(|key| !found.contains_key(*key)).count();
        let left = found.keys().filter(|key| !wanted.contains_key(*key)).count();
        let wrong = found.iter().filter(|(key, value)| wanted.get(*key).is_some_and(|w| w != *value)).count();
        assert_eq!(
            (lost, left, wrong),
            (0, 0, 0),
            "{when}: {topic} lost, left over, wrong of {}",
            wanted.len()
        );
    }
}

/// Positions (epoch, substep) ascend for each key, so that a reader who compares them takes every record.
fn positions_ascend(world: &World, topic: &str) {
    let mut newest: BTreeMap<Vec<u8>, (i64, i64)> = BTreeMap::new();
    read_whole(&mut *world.topics(), topic, |record| {
        let number = |name: &str| -> i64 {
            let header = record.headers.iter().find(|(found, _)| found == name).unwrap();
            std::str::from_utf8(&header.1).unwrap().parse().unwrap()
        };
        let place = (number(HEADER_EPOCH), number(HEADER_SUBSTEP));
        if let Some(before) = newest.insert(record.key.clone().unwrap(), place) {
            assert!(before < place, "{before:?} then {place:?}");
        }
    })
    .unwrap();
}

/// Live, a backfill that stays behind, a promote, more input, a rollback, more input, a promote again.
fn switched_back_and_forth(folder: &Path, world: &World) {
    let lines = script(folder, "2000", world.partitions);
    let quarters = cut(&lines, 4);
    let mut live = start(world);
    play(world, &mut live, quarters[0], 100);
    let report = filled(world, &order("new"));
    assert!(report.equal() && report.exact, "{report}");
    // The backfill is behind when it is promoted, and the newest snapshot is of after its end.
    play(world, &mut live, quarters[1], 100);
    live.snapshot();
    let before = outputs(world);
    let old = world.names().of(Topic::Features).to_owned();

    // A run of the job is fenced, and says so.
    let switched = promote(world, "new", Demands::default()).unwrap();
    let epoch = switched.epoch.unwrap();
    assert_eq!(switched.outputs.features, format!("{old}.new"));
    let refused = match world.store {
        Store::Local(_) => {
            append_and_step(&mut live, &[item("zz", Some("A film"), "1")], world.partitions).unwrap_err()
        }
        Store::Kafka(_) => loop {
            let producer: BaseProducer = Broker::shared().client().create().unwrap();
            crate::kafka_job::send(&producer, &[item("zz", Some("A film"), "1")], world);
            if let Err(error) = live.step(Duration::from_millis(20)) {
                break error;
            }
        },
    };
    assert!(refused.to_string().contains("fenced"), "{refused}");
    drop(live);
    assert_eq!(world.active_names().of(Topic::Features), format!("{old}.new"));
    equal(&outputs(world), &before, "promoted");
    equal(&outputs(world), &twin(world, "one"), "promoted");
    let again = promote(world, "new", Demands::default()).unwrap();
    assert_eq!((again.outputs, again.epoch), (switched.outputs, None));

    // It goes on there; the topics before stay as they were.
    let mut live = start(world);
    assert_eq!(live.names().of(Topic::Features), format!("{old}.new"));
    settle(&mut live);
    play(world, &mut live, quarters[2], 100);
    live.snapshot();
    drop(live);
    equal(&outputs(world), &twin(world, "two"), "after the promote");
    assert!(values(world, &world.names(), Topic::Features) == before[0]);
    readers_follow(world);
    no_difference(world, None, "after the promote");
    // At the epoch before it the outputs before it count, which nobody wrote since.
    no_difference(world, Some(epoch - 1), "before the promote");
    let epochs = load(&mut *world.topics(), world.names().of(Topic::Epochs), &world.job).unwrap();
    let named: Vec<i64> = epochs.iter().filter(|e| e.outputs.is_some()).map(|e| e.epoch).collect();
    assert_eq!(named, [epoch]);

    // Back: what became final meanwhile is caught up with.
    let back = rollback(world).unwrap();
    assert_eq!(back.outputs.features, old);
    assert!(back.epoch.unwrap() > epoch);
    equal(&outputs(world), &twin(world, "three"), "rolled back");
    assert_eq!(rollback(world).unwrap().epoch, None);
    let mut live = start(world);
    play(world, &mut live, quarters[3], 100);
    drop(live);
    assert_eq!(world.active_names(), world.names());
    equal(&outputs(world), &twin(world, "four"), "after the rollback");
    no_difference(world, None, "after the rollback");

    // And there again, where the job wrote last some epochs ago.
    promote(world, "new", FORCE).unwrap();
    equal(&outputs(world), &twin(world, "five"), "promoted again");
    for topic in [Topic::Features, Topic::Examples] {
        positions_ascend(world, world.names().of(topic));
        positions_ascend(world, world.active_names().of(topic));
    }
    // A backfill whose topics are the job's own isn't run again.
    let refused = prepare(world, &order("new")).unwrap_err().to_string();
    assert!(refused.contains("it was promoted"), "{refused}");
}

/// `verify` holds the outputs in force at an epoch against the logs.
fn no_difference(world: &World, epoch: Option<i64>, when: &str) {
    let report = verified(world, epoch);
    assert_eq!(kinds(&report), BTreeMap::new(), "{when}");
    assert!(report.features > 100 && report.examples > 200, "{when}: {report:?}");
}

/// What commands and subscribers read is what is in force.
fn readers_follow(world: &World) {
    let names = world.active_names();
    let values = values(world, &names, Topic::Features);
    if let Store::Kafka(_) = world.store {
        let output = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/reader.py"))
            .args(["--bootstrap", &Broker::shared().bootstrap(), "--until-end", "--quiet"])
            .args(["--topic", world.names().of(Topic::Features), "--job", &world.job])
            .args(["--epochs", names.of(Topic::Epochs)])
            .output()
            .unwrap();
        let last: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(last["live"].as_u64().unwrap() as usize, values.len());
    }
    let feature = values.values().map(|value| Feature::decode(value).unwrap());
    let feature = feature.max_by_key(|feature| feature.demonstrations.len()).unwrap();
    let pair = (feature.user_id.as_str(), feature.item_id.as_str());
    let lineage = Lineage::read_pair(&mut *world.topics(), &names, &world.job, Format::Avro, pair).unwrap();
    let explained = lineage.explanation(pair.0, pair.1).unwrap();
    assert_eq!(explained.demonstrations.len(), feature.demonstrations.len());
}

#[test]
fn the_job_goes_on_on_promoted_topics_and_back_with_nothing_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = local(folder.path());
    world.snapshots = Some((folder.path().join("snapshots"), Duration::from_secs(3_600)));
    switched_back_and_forth(folder.path(), &world);
}

#[test]
fn the_job_goes_on_on_promoted_topics_and_back_with_nothing_lost_on_kafka() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = on_kafka(folder.path(), "promoted", wide(10));
    world.epoch = 100;
    world.snapshots = Some((folder.path().join("snapshots"), Duration::from_secs(3_600)));
    switched_back_and_forth(folder.path(), &world);
}

#[test]
fn a_switch_that_is_cut_short_is_finished_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let lines = script(folder.path(), "600", 3);
    let [first, second] = cut(&lines, 2)[..] else { unreachable!("two parts") };
    for edge in [Edge::BoundsRecorded, Edge::PointsAcknowledged, Edge::BeforeCommit, Edge::Committed] {
        for switch in ["promote", "rollback"] {
            let folder = tempfile::tempdir().unwrap();
            let world = local(folder.path());
            let mut live = start(&world);
            play(&world, &mut live, first, 100);
            filled(&world, &order("new"));
            play(&world, &mut live, second, 100);
            drop(live);
            if switch == "rollback" {
                promote(&world, "new", Demands::default()).unwrap();
            }
            let edges = Edges::new(move |at, _| assert!(at != edge, "killed"));
            let killing = World { edges, ..world.clone() };
            let killed = catch_unwind(AssertUnwindSafe(|| match switch {
                "promote" => promote(&killing, "new", Demands::default()),
                _ => rollback(&killing),
            }));
            assert!(killed.is_err(), "{switch} {edge:?}");
            let epochs = committed(&world);
            settle(&mut start(&world));
            let new = world.active_names() != world.names();
            assert_eq!(new, switch == "promote", "{switch} {edge:?}");
            equal(&outputs(&world), &twin(&world, "twin"), &format!("{switch} {edge:?}"));
            // Asked for again, it is there already.
            let again = match switch {
                "promote" => promote(&world, "new", Demands::default()),
                _ => rollback(&world),
            };
            assert_eq!(again.unwrap().epoch, None, "{switch} {edge:?}");
            assert_eq!(committed(&world), epochs, "{switch} {edge:?}");
        }
    }
}

#[test]
fn an_epoch_under_way_is_committed_to_the_outputs_before() {
    let folder = tempfile::tempdir().unwrap();
    let world = local(folder.path());
    let lines = script(folder.path(), "600", 3);
    let [first, second] = cut(&lines, 2)[..] else { unreachable!("two parts") };
    let mut live = start(&world);
    play(&world, &mut live, first, 100);
    filled(&world, &order("new"));
    drop(live);
    // The job dies between an epoch's bounds and its commit.
    let edges = Edges::new(move |at, _| assert!(at != Edge::BeforeCommit, "killed"));
    let mut dying = start(&World { edges, ..world.clone() });
    let killed = catch_unwind(AssertUnwindSafe(|| play(&world, &mut dying, second, 100)));
    assert!(killed.is_err());
    drop(dying);
    let recorded = committed(&world);
    let switched = promote(&world, "new", Demands::default()).unwrap();
    assert_eq!(switched.epoch, Some(recorded + 1));
    settle(&mut start(&world));
    equal(&outputs(&world), &twin(&world, "one"), "promoted");
    rollback(&world).unwrap();
    equal(&outputs(&world), &twin(&world, "two"), "rolled back");
}

/// Users go from outputs that weren't in force when they were erased, final examples too.
#[test]
fn a_user_who_was_erased_does_not_come_back_with_a_rollback() {
    let folder = tempfile::tempdir().unwrap();
    let world = local(folder.path());
    let lines = script(folder.path(), "900", 3);
    let [first, second] = cut(&lines, 2)[..] else { unreachable!("two parts") };
    let mut live = start(&world);
    play(&world, &mut live, first, 100);
    for name in ["a", "b"] {
        assert!(filled(&world, &order(name)).equal());
    }
    play(&world, &mut live, second, 100);
    drop(live);
    promote(&world, "a", FORCE).unwrap();
    promote(&world, "b", FORCE).unwrap();
    let examples = |names: &Names| values(&world, names, Topic::Examples);
    let of = |values: &Values, user: &str| {
        let names = |key: &&Vec<u8>| ictflow_schemas::framing::unframe(key).unwrap()[0] == user.as_bytes();
        values.keys().filter(names).count()
    };
    let (own, a) = (world.names(), world.names().of_backfill("a"));
    let user = examples(&own)
        .keys()
        .map(|key| String::from_utf8(ictflow_schemas::framing::unframe(key).unwrap()[0].to_vec()).unwrap())
        .max_by_key(|user| of(&examples(&own), user))
        .unwrap();
    let mut job = World { generate: false, ..world.clone() }.try_start(template(), hashed()).unwrap();
    let receipt = job.erase(&user).unwrap();
    assert!(receipt.examples > 3, "{receipt:?}");
    drop(job);
    assert!(
        of(&examples(&own), &user) > 3 && of(&examples(&a), &user) > 3,
        "outputs not in force still have them"
    );
    // A kill in between leaves it to the next start.
    let edges = Edges::new(move |at, _| assert!(at != Edge::BeforeCommit, "killed"));
    let killing = World { edges, ..world.clone() };
    assert!(catch_unwind(AssertUnwindSafe(|| rollback(&killing))).is_err());
    settle(&mut start(&world));
    assert_eq!(world.active_names().of(Topic::Features), a.of(Topic::Features));
    assert_eq!(of(&examples(&a), &user), 0);
    no_difference(&world, None, "back to a");
}

fn text(refused: Result<Switched>) -> String {
    refused.map_err(|error: Error| error.to_string()).unwrap_err()
}

#[test]
fn what_is_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let world = local(folder.path());
    let lines = script(folder.path(), "600", 3);
    let [first, second] = cut(&lines, 2)[..] else { unreachable!("two parts") };
    let mut live = start(&world);
    play(&world, &mut live, first, 100);
    let middle = live.committed();
    assert!(text(rollback(&world)).contains("never promoted"));
    assert!(text(promote(&world, "nothing", Demands::default())).contains("there is no backfill"));
    assert!(text(promote(&world, "a.b", FORCE)).contains("is no name"));
    // Begun and not ended.
    let mut plan = prepare(&world, &order("begun")).unwrap();
    assert!(text(promote(&world, "begun", FORCE)).contains("has committed no epoch"));
    plan.details.epoch_events = 10;
    let parts = world.parts(vec![template()], Validator::new(&Prompt::builtin()), hashed()).unwrap();
    let options = backfill::options(&world.options(), &plan);
    let mut job = Job::start(parts, Arc::new(world.semantics.clone()), options).unwrap();
    while job.committed() < 4 {
        job.step(Duration::from_millis(5)).unwrap();
    }
    assert!(text(promote(&world, "begun", Demands::default())).contains("it hasn't ended"));
    // Whoever was filling it does so no more.
    let fenced = backfill::drive(&mut job, &AtomicBool::new(false), |_| {}).unwrap_err().to_string();
    assert!(fenced.contains("fenced"), "{fenced}");
    drop(job);
    // Ended and not compared.
    let plan = prepare(&world, &order("unseen")).unwrap();
    let parts = world.parts(vec![template()], Validator::new(&Prompt::builtin()), hashed()).unwrap();
    let options = backfill::options(&world.options(), &plan);
    let mut job = Job::start(parts, Arc::new(world.semantics.clone()), options).unwrap();
    assert!(backfill::drive(&mut job, &AtomicBool::new(false), |_| {}).unwrap());
    drop(job);
    assert!(text(promote(&world, "unseen", Demands::default())).contains("wasn't looked at"));
    // Compared and not equal.
    assert!(!filled(&world, &to("short", "offset:interactions/0=5")).equal());
    assert!(text(promote(&world, "short", Demands::default())).contains("aren't equal"));
    // Too far behind: at the limit it is taken.
    assert!(filled(&world, &order("old")).equal());
    play(&world, &mut live, second, 100);
    drop(live);
    let ends = |epoch: i64| {
        let epochs = load(&mut *world.topics(), world.names().of(Topic::Epochs), &world.job).unwrap();
        epochs[epoch as usize - 1].ends["interactions"].iter().sum::<i64>()
    };
    let behind = (ends(committed(&world)) - ends(middle)) as u64;
    assert!(behind > 100);
    let demands = |max_behind| Demands { force: false, max_behind };
    let refused = text(promote(&world, "old", demands(behind - 1)));
    assert!(refused.contains(&format!("{behind} interactions behind")), "{refused}");
    assert!(promote(&world, "old", demands(behind)).unwrap().epoch.is_some());
    rollback(&world).unwrap();
    // What is forced is made right in one epoch, unended and unequal as it is.
    for name in ["begun", "short"] {
        promote(&world, name, FORCE).unwrap();
        equal(&outputs(&world), &twin(&world, name), name);
    }
}

#[test]
fn a_user_who_was_erased_does_not_come_back_with_a_backfill() {
    let folder = tempfile::tempdir().unwrap();
    let world = local(folder.path());
    let lines = script(folder.path(), "600", 3);
    let mut live = start(&world);
    play(&world, &mut live, &lines, 100);
    let user = {
        let features = world.compacted(Topic::Features);
        Feature::decode(features.values().next().unwrap()).unwrap().user_id
    };
    let of_user = |values: &Values| {
        values
            .keys()
            .filter(|key| ictflow_schemas::framing::unframe(key).unwrap()[0] == user.as_bytes())
            .count()
    };
    assert!(filled(&world, &order("before")).equal());
    let begun = prepare(&world, &order("begun")).unwrap();
    drop(live);
    let mut live = World { generate: false, ..world.clone() }.try_start(template(), hashed()).unwrap();
    live.erase(&user).unwrap();
    drop(live);
    assert_eq!(outputs(&world).each_ref().map(of_user), [0, 0]);
    // One that holds the user is never promoted, nor gone on with.
    let refused = text(promote(&world, "before", FORCE));
    assert!(refused.contains("has erased a user since"), "{refused}");
    let refused = prepare(&world, &order(&begun.name)).unwrap_err().to_string();
    assert!(refused.contains("has erased a user since"), "{refused}");
    // A new one never has the user.
    let report = filled(&world, &order("after"));
    assert!(report.equal() && report.exact, "{report}");
    promote(&world, "after", Demands::default()).unwrap();
    assert_eq!(outputs(&world).each_ref().map(of_user), [0, 0]);
    let mut live = start(&world);
    append(&mut live, &[candidates("nobody", 1, &["1"])], world.partitions);
    settle(&mut live);
    drop(live);
    // A job without that record has the user, whose interactions still stand.
    let mut wanted = twin(&world, "twin");
    assert!(of_user(&wanted[0]) > 0);
    for values in &mut wanted {
        values.retain(|key, _| ictflow_schemas::framing::unframe(key).unwrap()[0] != user.as_bytes());
    }
    // There the user's labels speak through the votes of others: here they don't, as a recomputation says.
    let mut found = outputs(&world);
    for value in found[0].values_mut().chain(wanted[0].values_mut()) {
        let feature = Feature::decode(value).unwrap();
        *value = Feature { votes: vec![], neighbours: vec![], ..feature }.encode();
    }
    equal(&found, &wanted, "after an erasure");
    no_difference(&world, None, "after an erasure");
}
