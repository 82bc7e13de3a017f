//! What was served against what training sees as of each impression: equal where nothing was late, and each
//! planted difference by its cause.

use ictflow_dataflows::consistency::{Cause, Report, consistency};
use ictflow_dataflows::epochs::read_compacted;
use ictflow_dataflows::job::Job;
use ictflow_dataflows::recompute::Plan;
use ictflow_operators::ict::{Kind, Shape, Weights, untrained_of};
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::CotRecord;
use ictflow_schemas::example::{ExampleRecord, Served};
use ictflow_schemas::neighbour::Neighbourhood;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{
    SECOND, T0, World, append, candidates, event, feed, hashed, item, settle, template,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// From one impression to the next.
const STEP: i64 = 10 * SECOND;
const USERS: usize = 6;
const ITEMS: usize = 8;

fn weights(kind: Kind, seed: u64) -> Arc<Vec<u8>> {
    Arc::new(untrained_of(kind, seed, Shape { text: 384, ..Shape::default() }).unwrap())
}

/// Every label counts and asks for a CoT; an impression without an outcome is a negative after a minute.
fn world(folder: &Path, kind: Kind, sketch_period_ms: i64) -> World {
    let semantics = Semantics {
        cot_stride: CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 },
        attribution_window_ms: 60 * SECOND,
        neighbours: Neighbourhood { sketch_period_ms, ..Neighbourhood::default() },
        ..Semantics::default()
    };
    World { partitions: 1, ..World::new(folder, "job", semantics, weights(kind, 7)) }
}

/// The catalog, and all of it offered to everyone.
fn opening() -> Vec<Value> {
    let names: Vec<String> = (0..ITEMS).map(|n| format!("m{n}")).collect();
    let offered: Vec<&str> = names.iter().map(String::as_str).collect();
    let films = names.iter().map(|name| item(name, Some(&format!("Film {name} of many")), "1"));
    let sets = (0..USERS).map(|n| candidates(&format!("u{n}"), T0 - STEP, &offered));
    films.chain(sets).collect()
}

/// A step: somebody else does something elsewhere, so that the event clock is just before the impression; the
/// impression; in most steps its outcome a second later.
fn step(n: usize) -> Vec<Value> {
    let time = T0 + n as i64 * STEP;
    let (user, film) = (format!("u{}", n % USERS), format!("m{}", (n * 5 + n / USERS) % ITEMS));
    let mut events = vec![
        event("z", &format!("z{n}"), "nowhere", "rate", Some(5.0), time - 1),
        event(&user, &format!("i{n}"), &film, "impression", None, time),
    ];
    if n % 5 != 4 {
        let stars = if n.is_multiple_of(3) { 2.0 } else { 5.0 };
        events.push(event(&user, &format!("r{n}"), &film, "rate", Some(stars), time + SECOND));
    }
    events
}

fn started(world: &World) -> Job {
    let mut job = world.start(template(), hashed());
    feed(&mut job, &opening(), world.partitions);
    job
}

/// Each event in an epoch of its own, with all its answers before the next.
fn one_by_one(world: &World, job: &mut Job, steps: std::ops::Range<usize>) {
    for event in steps.flat_map(step) {
        feed(job, &[event], world.partitions);
    }
}

fn report(world: &World) -> Report {
    let (names, encoder) = (world.names(), hashed());
    let plan = Plan {
        names: &names,
        semantics: Arc::new(world.semantics.clone()),
        formats: BTreeMap::new(),
        encoder: (encoder.id().to_owned(), encoder.width()),
        weights: Arc::new(Weights::from_safetensors(&world.weights).unwrap()).into(),
        workers: 2,
        chunk: 0,
    };
    consistency(&mut *world.topics(), &plan, &world.job, |_, _| {}).unwrap()
}

/// What the examples on the topic were served.
fn served(world: &World) -> Vec<Served> {
    let values = read_compacted(&mut *world.topics(), world.names().of(Topic::Examples)).unwrap();
    values.values().filter_map(|(_, value)| ExampleRecord::decode(value).unwrap().served).collect()
}

/// Every example that was compared is equal, and there are enough of them.
fn all_equal(report: &Report) {
    assert!(report.compared >= 30, "{report:?}");
    assert_eq!(report.share(), Some(1.0), "{report:?}");
    assert_eq!((report.unmade, report.other_width), (0, 0), "{report:?}");
    assert_eq!(report.votes.p95, 0.0);
    assert!(report.vectors.p95 <= 1e-5, "{report:?}");
    assert!(report.causes.is_empty() && report.differences.is_empty(), "{report:?}");
}

fn causes(report: &Report) -> Vec<Cause> {
    report.causes.keys().copied().collect()
}

#[test]
fn what_was_served_is_what_training_sees_where_nothing_was_late() {
    for kind in [Kind::Attention, Kind::Decoder] {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path(), kind, 0);
        let mut job = started(&world);
        one_by_one(&world, &mut job, 0..44);
        drop(job);
        let served = served(&world);
        // They say something: labels of others and of the user, and demonstrations where they are read.
        let told = served.iter().filter(|served| served.neighbours.len() > 4 && served.votes[0] > 1.0);
        assert!(told.count() > 8, "{kind}");
        let full = served.iter().filter(|served| served.demonstrations.len() == 4).count();
        assert!((full > 20) == (kind == Kind::Decoder), "{kind}: {full}");
        assert!(served.iter().all(|served| served.vector_kind == kind && served.epoch > 0));
        let report = report(&world);
        all_equal(&report);
        assert_eq!(report.compared as usize, served.len());
        assert!(report.unserved > 0, "what z did elsewhere was served nothing");
        assert_eq!(crate::export::holds_what_stands(&world, folder.path()) as usize, served.len());

        // Other weights than those that served: the votes stay what they are, and so do the vectors of
        // attention over nobody, which no weight decides.
        let nobody = |served: &&Served| kind == Kind::Attention && served.neighbours.is_empty();
        let same = served.iter().filter(nobody).count() as u64;
        let other = World { weights: weights(kind, 8), ..world.clone() };
        let report = self::report(&other);
        assert_eq!((report.equal, report.equal_votes), (same, report.compared), "{report:?}");
        assert_eq!(report.causes, BTreeMap::from([(Cause::ModelChange, report.compared - same)]));
        assert!(report.vectors.mean > 0.0 && report.votes.mean == 0.0, "{report:?}");
    }
}

#[test]
fn a_late_event_is_the_cause_of_just_what_it_changed() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), Kind::Attention, 0);
    let mut job = started(&world);
    one_by_one(&world, &mut job, 0..20);
    let [clock, impression, outcome] = step(20).try_into().unwrap();
    feed(&mut job, &[clock], world.partitions);
    feed(&mut job, std::slice::from_ref(&impression), world.partitions);
    // Somebody said something of the film before it was shown, and that came later.
    let (film, time) = (impression["value"]["item_id"].as_str().unwrap(), T0 + 20 * STEP - SECOND / 2);
    let late = event("late", "late", film, "rate", Some(5.0), time);
    feed(&mut job, &[late], world.partitions);
    feed(&mut job, &[outcome], world.partitions);
    one_by_one(&world, &mut job, 21..40);
    drop(job);
    let report = report(&world);
    assert_eq!(report.causes, BTreeMap::from([(Cause::LateEvent, 1)]), "{report:?}");
    assert_eq!(report.equal + 1, report.compared);
    let [difference] = &report.differences[..] else { panic!("{report:?}") };
    assert_eq!((difference.event_id.as_str(), difference.item.as_str()), ("i20", film));
    assert!(difference.votes > 0.0 && difference.vector > Some(0.0), "{difference:?}");
}

#[test]
fn sketches_of_another_period_and_events_of_one_epoch_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    // Every second impression is just at a boundary, the clock before it just before.
    let periods = world(folder.path(), Kind::Attention, 2 * STEP);
    let mut job = started(&periods);
    one_by_one(&periods, &mut job, 0..40);
    drop(job);
    let found = report(&periods);
    assert_eq!(causes(&found), [Cause::SketchPeriod], "{found:?}");
    assert!(found.equal > 10 && found.equal < found.compared, "{found:?}");

    let folder = tempfile::tempdir().unwrap();
    let coarse = world(folder.path(), Kind::Attention, 0);
    let mut job = started(&coarse);
    for block in (0..40).collect::<Vec<usize>>().chunks(8) {
        let events: Vec<Value> = block.iter().flat_map(|n| step(*n)).collect();
        append(&mut job, &events, coarse.partitions);
        settle(&mut job);
    }
    drop(job);
    let found = report(&coarse);
    assert_eq!(causes(&found), [Cause::EpochGranularity], "{found:?}");
    assert!(found.compared > 20 && found.equal < found.compared, "{found:?}");
}

#[test]
fn a_text_that_was_written_since_is_the_cause_where_demonstrations_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), Kind::Decoder, 0);
    let mut job = started(&world);
    one_by_one(&world, &mut job, 0..30);
    all_but_few_equal(&report(&world), 0);
    let records: Vec<NewRecord> = read_compacted(&mut *world.topics(), "cot")
        .unwrap()
        .into_iter()
        .map(|(key, (partition, value))| {
            let mut cot = CotRecord::decode(&value).unwrap();
            cot.text.push_str(" Said once more.");
            NewRecord {
                topic: "cot".to_owned(),
                partition,
                timestamp: Some(T0),
                key: Some(key),
                value: Some(cot.encode()),
                headers: Vec::new(),
            }
        })
        .collect();
    job.topics().append(&records).unwrap();
    settle(&mut job);
    drop(job);
    let read = served(&world).iter().filter(|served| !served.demonstrations.is_empty()).count();
    let report = report(&world);
    assert_eq!(report.causes, BTreeMap::from([(Cause::Cot, read as u64)]), "{report:?}");
    all_but_few_equal(&report, read as u64);
    assert_eq!(report.equal_votes, report.compared);
}

fn all_but_few_equal(report: &Report, different: u64) {
    assert_eq!(report.equal + different, report.compared, "{report:?}");
    assert!(report.compared > 20, "{report:?}");
}

#[test]
fn a_restart_between_impression_and_label_leaves_nothing_served() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), Kind::Attention, 0);
    let mut job = started(&world);
    one_by_one(&world, &mut job, 0..10);
    let [clock, impression, outcome] = step(10).try_into().unwrap();
    for event in [clock, impression] {
        feed(&mut job, &[event], world.partitions);
    }
    let before = served(&world).len();
    drop(job);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    feed(&mut job, &[outcome], world.partitions);
    let of = |id: &str| {
        let values = read_compacted(&mut *world.topics(), world.names().of(Topic::Examples)).unwrap();
        let mut records = values.values().map(|(_, value)| ExampleRecord::decode(value).unwrap());
        records.find(|record| record.event_id == id).unwrap()
    };
    assert_eq!(of("i10").served, None);
    assert_eq!(served(&world).len(), before, "those with a label keep it over the restart");
    // From then on it is known again.
    one_by_one(&world, &mut job, 11..25);
    assert!(of("i12").served.is_some());
    drop(job);
    let found = report(&world);
    assert_eq!(found.share(), Some(1.0), "{found:?}");
}
