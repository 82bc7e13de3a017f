//! R16: a store of points that is down, slow, throttled, dies or loses all it had, while its job restarts
//! from snapshots and erases users.

use crate::parity::{mutated, verify};
use crate::qdrant_job::{live, over, points_are_the_demonstrations, stored};
use crate::verify::verified;
use fastrand::Rng;
use ictflow_connectors::Disposition;
use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::job::{Edge, Edges, Job};
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::{HEADER_EPOCH, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::chaos::{first_seed, rounds};
use ictflow_tests::support::qdrant::{COLLECTION, Double, Fault, View};
use ictflow_tests::support::world::{World, append, hashed, settle, template};
use qdrant_client::qdrant::Distance;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::Code;
use uuid::Uuid;

/// How long a step waits for input.
const STEP: Duration = Duration::from_millis(5);

/// What the store goes through, by name.
type Trouble = (&'static str, fn(&mut Double));

const TROUBLES: [Trouble; 9] = [
    ("refuses as 503 does", |double| double.fault(None, Fault::Refuse(Code::Unavailable), 9)),
    ("throttles as 429 does", |double| double.fault(Some("upsert"), Fault::Throttle(1), 3)),
    ("is too slow", |double| double.fault(Some("upsert"), Fault::Slow(3_000), 2)),
    ("dies after it wrote", |double| double.fault(Some("upsert"), Fault::Cut, 5)),
    ("dies before it wrote", |double| double.fault(Some("upsert"), Fault::CutBefore, 5)),
    ("dies in a lookup", |double| double.fault(Some("query_batch"), Fault::CutBefore, 5)),
    ("is down", Double::stop),
    ("loses its collection", |double| double.lose(COLLECTION)),
    ("comes back empty and dies between two batches", |double| {
        double.restart(false);
        double.fault(Some("upsert"), Fault::Slow(0), 1);
        double.fault(Some("upsert"), Fault::CutBefore, 5);
    }),
];

/// The points that aren't marked as deleted.
fn live_of(view: &View) -> BTreeSet<Uuid> {
    let points = view.points().into_iter();
    points.filter(|(_, point)| point.payload["deleted"] == false).map(|(id, _)| id).collect()
}

fn ids(feature: &Feature) -> impl Iterator<Item = Uuid> {
    feature.demonstrations.iter().map(|used| used.id.parse().unwrap())
}

/// Looks at every commit: what it published names only points that the store holds. Counts what was seen.
fn watched(world: &World, double: &Double) -> (Edges, Arc<AtomicU64>) {
    let (world, view, seen) = (world.clone(), double.view(), Arc::new(AtomicU64::new(0)));
    let counter = seen.clone();
    let edges = Edges::new(move |edge, epoch| {
        if edge != Edge::Committed {
            return;
        }
        let held = live_of(&view);
        read_whole(&mut *world.topics(), world.names().of(Topic::Features), |record| {
            let Some(value) = record.value.as_deref() else { return };
            if record.number(HEADER_EPOCH) == Some(epoch) {
                let feature = Feature::decode(value).unwrap();
                let missing: Vec<Uuid> = ids(&feature).filter(|id| !held.contains(id)).collect();
                assert!(missing.is_empty(), "epoch {epoch} published a feature without {missing:?}");
                counter.fetch_add(feature.demonstrations.len() as u64, Ordering::Relaxed);
            }
        })
        .unwrap();
    });
    (edges, seen)
}

/// At rest: the live points are the live demonstrations, and all that stands is made of them.
fn at_rest(world: &World, double: &Double, job: &Job) {
    points_are_the_demonstrations(double, job);
    let held: BTreeSet<Uuid> = live(double).into_keys().collect();
    for value in world.compacted(Topic::Features).values() {
        let feature = Feature::decode(value).unwrap();
        assert!(ids(&feature).all(|id| held.contains(&id)), "{} {}", feature.user_id, feature.item_id);
    }
}

#[test]
fn no_feature_outruns_its_points_whatever_their_store_goes_through() {
    let first = first_seed(71);
    for seed in first..first + rounds(1, 20) {
        println!("ICTFLOW_SEED={seed}");
        undergo(seed);
    }
}

fn undergo(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut double = Double::start();
    let events = ["--events", "1200", "--seed", &seed.to_string(), "--partitions", "3"];
    let script = mutated(folder.path(), &events);
    let mut world = over(folder.path(), "job", &double, stored(3));
    world.epoch = 100;
    // As often as can be, so that every restart finds one.
    world.snapshots = Some((folder.path().join("snapshots"), Duration::from_millis(1)));
    let (edges, seen) = watched(&world, &double);
    world.edges = edges;
    let mut job = start(&world);
    for (piece, lines) in script.chunks(script.len() / TROUBLES.len() + 1).enumerate() {
        let (what, trouble) = *rng.choice(&TROUBLES).unwrap();
        println!("piece {piece}: the store {what}");
        trouble(&mut double);
        append(&mut job, lines, world.partitions);
        for _ in 0..rng.usize(1..20) {
            job.step(STEP).unwrap();
        }
        if rng.bool() {
            // A kill, wherever it stands; the successor begins in the trouble, too.
            drop(job);
            if what == "is down" {
                double.restart(true);
            }
            job = start(&world);
            println!("piece {piece}: restarted from the snapshot of {:?}", job.snapshots().unwrap().epoch);
        } else if what == "is down" {
            double.restart(true);
        }
        settle(&mut job);
        double.forget_faults();
        at_rest(&world, &double, &job);
    }
    verify(&world, &job, folder.path(), &["--min-features", "200"]);

    // One user goes, and the store takes its time.
    let users: BTreeSet<String> =
        job.demonstrations().iter().map(|demonstration| demonstration.identity.user.to_string()).collect();
    let user = rng.choice(users).unwrap();
    let own: BTreeSet<Uuid> = job
        .demonstrations()
        .iter()
        .filter(|demonstration| *demonstration.identity.user == *user)
        .map(|demonstration| demonstration.id)
        .collect();
    double.fault(None, Fault::Refuse(Code::Unavailable), 9);
    let receipt = job.erase(&user).unwrap();
    assert_eq!(receipt.demonstrations, own.len());
    double.forget_faults();
    settle(&mut job);
    gone(&world, &double, &job, &own);
    let features = world.compacted(Topic::Features);
    drop(job);
    // Neither a kept snapshot, nor the logs, nor a store that begins anew bring the user back.
    for snapshots in [world.snapshots.clone(), None] {
        double.restart(false);
        let mut job = start(&World { snapshots, ..world.clone() });
        append(&mut job, &[new_item(seed)], world.partitions);
        settle(&mut job);
        gone(&world, &double, &job, &own);
        assert!(world.compacted(Topic::Features) == features);
    }
    let seen = seen.load(Ordering::Relaxed);
    assert!(seen > 500, "{seen} uses of demonstrations were published");
    println!("{seen} uses of demonstrations were published, each with its point in the store");
}

fn start(world: &World) -> Job {
    world.start(template(), hashed())
}

/// An item that nobody is offered: it makes an epoch and changes no feature.
fn new_item(seed: u64) -> Value {
    ictflow_tests::support::world::item(&format!("nobody-{seed}"), Some("For nobody"), "1")
}

/// The user's demonstrations are nowhere, and what stands is what the logs give without the user. Dead
/// letters stand as they are: the receipt says so.
fn gone(world: &World, double: &Double, job: &Job, own: &BTreeSet<Uuid>) {
    at_rest(world, double, job);
    assert!(live(double).keys().all(|id| !own.contains(id)));
    let mut report = verified(world, None);
    report.violations.retain(|violation| violation.topic != Topic::DeadLetters.name());
    assert!(report.violations.is_empty(), "{:?}", &report.violations[..report.violations.len().min(5)]);
    assert!(report.features > 100, "{}", report.features);
}

#[test]
fn a_collection_of_another_width_stops_the_job_by_name_and_publishes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    double.make(COLLECTION, &[("sample", 10, Distance::Dot), ("cot", 5, Distance::Dot)]);
    let script = mutated(folder.path(), &["--events", "300", "--seed", "3", "--partitions", "3"]);
    let world = over(folder.path(), "job", &double, stored(3));
    let mut job = start(&world);
    append(&mut job, &script, world.partitions);
    let error = job.run_until_idle(|_| {}).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    let text = error.to_string();
    assert!(text.contains(COLLECTION) && text.contains("sample has 10 components, not 768"), "{text}");
    assert!(world.compacted(Topic::Features).is_empty());
    assert_eq!(double.count("upsert"), 0);
    drop(job);
    still_refused(&world);
    // Once a person has taken it away the job goes on by itself.
    double.lose(COLLECTION);
    let mut job = start(&world);
    settle(&mut job);
    at_rest(&world, &double, &job);
    verify(&world, &job, folder.path(), &["--min-features", "50"]);
}

/// A restart changes nothing about it.
fn still_refused(world: &World) {
    let refused = world
        .try_start(template(), hashed())
        .and_then(|mut job| job.run_until_idle(|_| {}).map(|()| drop(job)));
    assert_eq!(refused.unwrap_err().disposition, Disposition::Fatal);
    assert!(world.compacted(Topic::Features).is_empty());
}
