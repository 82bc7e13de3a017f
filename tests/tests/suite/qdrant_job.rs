//! Whole jobs over a store of points: no feature without its points, and every vector equals the ICT
//! of the ids in its record, whatever the store goes through.

use crate::parity::{mutated, semantics, verify, verify_dumps};
use ictflow_connectors::points::{Point, Points};
use ictflow_connectors::qdrant::{Config, Qdrant};
use ictflow_dataflows::job::Job;
use ictflow_dataflows::points;
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::qdrant::{Double, Dump, Fault};
use ictflow_tests::support::world::{self, World, candidates, event, feed, hashed, item, play, template};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::Code;
use uuid::Uuid;

/// So long a job may wait for its store before a test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

fn config(double: &Double) -> Config {
    // Short waits, so that a store that is down shows soon.
    Config {
        url: double.url(),
        timeout_ms: 2_000,
        connect_timeout_ms: 1_000,
        retries: 1,
        retry_base_ms: 10,
        retry_max_ms: 50,
        ..Config::default()
    }
}

pub fn over(folder: &Path, job: &str, double: &Double, semantics: Semantics) -> World {
    let mut world = World::new(folder, job, semantics, world::weights(384));
    let config = config(double);
    world.points = Some(std::sync::Arc::new(move || {
        (Box::new(Qdrant::new(config.clone()).unwrap()) as Box<_>, config.over_fetch)
    }));
    world
}

pub fn stored(stride: u64) -> Semantics {
    Semantics { search: Search::Stored, ..semantics(stride) }
}

fn start(world: &World) -> Job {
    world.start(template(), hashed())
}

/// The points that aren't marked as deleted.
pub fn live(double: &Double) -> BTreeMap<Uuid, Dump> {
    double.points().into_iter().filter(|(_, point)| point.payload["deleted"] == false).collect()
}

/// The live points are just the job's demonstrations, each with its vectors.
pub fn points_are_the_demonstrations(double: &Double, job: &Job) {
    let live = live(double);
    let ids: BTreeSet<Uuid> = job.demonstrations().iter().map(|demonstration| demonstration.id).collect();
    assert_eq!(live.keys().copied().collect::<BTreeSet<_>>(), ids);
    for demonstration in job.demonstrations() {
        let (point, wanted) = (&live[&demonstration.id], points::point(demonstration));
        assert_eq!(point.vectors["sample"], wanted.sample);
        assert_eq!(point.vectors["cot"], wanted.cot);
        assert_eq!(point.payload["digest"], wanted.digest.as_str());
    }
}

/// Steps until the job has committed an epoch or waits for its store.
fn until(job: &mut Job, reached: impl Fn(&Job) -> bool) {
    let begun = Instant::now();
    while !reached(job) {
        assert!(begun.elapsed() < PATIENCE, "not reached; stalled: {:?}", job.stalled());
        job.step(Duration::from_millis(20)).unwrap();
    }
}

#[test]
fn every_vector_is_the_ict_of_the_ids_in_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    let script = mutated(folder.path(), &["--events", "1500", "--seed", "4", "--partitions", "3"]);
    let mut world = over(folder.path(), "job", &double, stored(10));
    (world.epoch, world.workers) = (100, 2);
    let mut job = start(&world);
    play(&mut job, &script, world.partitions, 100);
    let report = verify(&world, &job, folder.path(), &["--min-features", "400", "--min-full", "0.3"]);
    assert!(report["compared"]["demonstrations"].as_u64().unwrap() > 1_000);
    points_are_the_demonstrations(&double, &job);
    let figures = job.points().unwrap();
    assert!(figures.measured > 20 && figures.upserted > 100, "{figures:?}");
    // The double searches exactly, so a lookup finds the best but for ties in f32.
    assert!(figures.recalled * 100 >= figures.measured * 99, "{figures:?}");
    // A restart takes the standing ids back: it writes nothing, asks for nothing, publishes nothing.
    let features = world.compacted(Topic::Features);
    drop(job);
    let mut job = start(&world);
    feed(&mut job, &[item("new", Some("A new film"), "1")], world.partitions);
    let figures = job.points().unwrap();
    assert_eq!((figures.lookups, figures.upserted, figures.deleted), (0, 0, 0));
    assert_eq!(job.totals().committed.features, 0);
    assert_eq!(world.compacted(Topic::Features), features);
}

/// Films, users and their likes: each user's second rating has a history.
fn small(users: usize) -> Vec<Value> {
    let time = |n: usize| 1_000_000_000 + 60_000 * n as i64;
    let mut lines: Vec<Value> =
        ["a", "b", "c", "d"].iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    for n in 0..users {
        let (user, stars) = (format!("u{n}"), if n % 2 == 0 { 5.0 } else { 1.0 });
        lines.push(event(&user, &format!("{user}-1"), "b", "rate", Some(5.0), time(n)));
        lines.push(event(&user, &format!("{user}-2"), "a", "rate", Some(stars), time(n) + 1_000));
    }
    lines.extend((0..users).map(|n| candidates(&format!("u{n}"), time(users), &["c", "d"])));
    lines
}

#[test]
fn an_exact_job_keeps_its_points_in_the_store_too_and_gives_the_same_features() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    let plain = World::new(folder.path(), "plain", semantics(1), world::weights(384));
    let mut job = start(&plain);
    feed(&mut job, &small(6), plain.partitions);
    drop(job);
    let mirrored = over(folder.path(), "mirrored", &double, semantics(1));
    let mut job = start(&mirrored);
    world::settle(&mut job);
    assert_eq!(mirrored.compacted(Topic::Features), plain.compacted(Topic::Features));
    assert_eq!(live(&double).len(), 6);
    points_are_the_demonstrations(&double, &job);
    assert_eq!(double.count("query_batch"), 0, "nothing is looked up");
    // A deleted item takes its demonstrations out of the store.
    feed(&mut job, &[item("a", None, "1")], mirrored.partitions);
    assert_eq!((live(&double).len(), double.points().len()), (0, 6), "marked, not yet removed");
    points_are_the_demonstrations(&double, &job);
}

/// What the store goes through, by name.
type Trouble = (&'static str, fn(&mut Double));

const TROUBLES: [Trouble; 7] = [
    ("refuses", |double| double.fault(None, Fault::Refuse(Code::Unavailable), 12)),
    ("is too slow", |double| double.fault(Some("upsert"), Fault::Slow(5_000), 3)),
    ("dies after it wrote", |double| double.fault(Some("upsert"), Fault::Cut, 4)),
    ("dies in a lookup", |double| double.fault(Some("query_batch"), Fault::CutBefore, 6)),
    ("throttles", |double| double.fault(Some("upsert"), Fault::Throttle(1), 3)),
    ("isn't there", Double::stop),
    ("comes back empty", |double| double.restart(false)),
];

#[test]
fn an_epoch_waits_for_its_points_and_recovers_by_itself() {
    for (what, trouble) in TROUBLES {
        eprintln!("the store {what}");
        let folder = tempfile::tempdir().unwrap();
        let mut double = Double::start();
        let world = over(folder.path(), "job", &double, stored(1));
        let mut job = start(&world);
        feed(&mut job, &small(4), world.partitions);
        assert_eq!(live(&double).len(), 4, "{what}");
        let (committed, standing) = (job.committed(), world.compacted(Topic::Features));
        assert_eq!(standing.len(), 8, "{what}");
        trouble(&mut double);
        // New demonstrations: their epoch has points to write and pairs to look up.
        let more: Vec<Value> = small(8).into_iter().skip(4).collect();
        world::append(&mut job, &more, world.partitions);
        if what == "isn't there" {
            until(&mut job, |job| job.stalled().is_some());
            let stalled = job.committed();
            for _ in 0..5 {
                let step = job.step(Duration::from_millis(20)).unwrap();
                assert_eq!(step.epoch, None, "nothing is committed past an epoch without its points");
            }
            assert_eq!(job.committed(), stalled);
            let known: BTreeSet<String> = live_before(&standing);
            for value in world.compacted(Topic::Features).values() {
                let feature = Feature::decode(value).unwrap();
                assert!(feature.demonstrations.iter().all(|used| known.contains(&used.id)));
            }
            assert!(!job.idle().unwrap());
            double.restart(true);
        }
        until(&mut job, |job| job.committed() > committed);
        world::settle(&mut job);
        assert_eq!(world.compacted(Topic::Features).len(), 16, "{what}");
        points_are_the_demonstrations(&double, &job);
        verify(&world, &job, folder.path(), &["--min-features", "16", "--min-full", "1"]);
    }
}

/// The ids that standing features use.
fn live_before(features: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeSet<String> {
    let ids =
        |value: &Vec<u8>| Feature::decode(value).unwrap().demonstrations.into_iter().map(|used| used.id);
    features.values().flat_map(ids).collect()
}

#[test]
fn a_job_starts_without_its_store_and_publishes_when_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut double = Double::start();
    double.stop();
    let world = over(folder.path(), "job", &double, stored(1));
    let mut job = start(&world);
    world::append(&mut job, &small(4), world.partitions);
    until(&mut job, |job| job.stalled().is_some());
    assert!(world.compacted(Topic::Features).is_empty());
    // A kill while it waits: the successor runs the recorded epoch again, and waits in its turn.
    drop(job);
    double.restart(true);
    let mut job = start(&world);
    world::settle(&mut job);
    assert_eq!(world.compacted(Topic::Features).len(), 8);
    points_are_the_demonstrations(&double, &job);
    verify(&world, &job, folder.path(), &["--min-features", "8", "--min-full", "1"]);
}

/// Asks the oracle, which knows nothing of erasures, about logs that never had a user. The user's events
/// must not be the newest of their partition.
fn verify_without(user: &str, world: &World, job: &Job, folder: &Path, demands: &[&str]) -> Value {
    let dumps = folder.join("dumps-without");
    world.dump(job, &dumps);
    for topic in [Topic::Interactions, Topic::Candidates] {
        let file = dumps.join(format!("{}.jsonl", topic.name()));
        let text = std::fs::read_to_string(&file).unwrap();
        let of_others =
            |line: &&str| serde_json::from_str::<Value>(line).unwrap()["key"].as_str() != Some(user);
        let left: Vec<&str> = text.lines().filter(of_others).collect();
        assert!(left.len() < text.lines().count(), "{topic:?} had records of {user}");
        std::fs::write(&file, left.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }
    verify_dumps(&dumps, demands)
}

#[test]
fn an_erased_user_leaves_the_store_too_and_no_snapshot_brings_the_points_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut double = Double::start();
    let mut world = over(folder.path(), "job", &double, stored(1));
    world.snapshots = Some((folder.path().join("snapshots"), Duration::from_secs(3_600)));
    let mut job = start(&world);
    feed(&mut job, &small(6), world.partitions);
    job.snapshot();
    feed(&mut job, &small(12), world.partitions);
    assert_eq!(live(&double).len(), 12);
    // Killed past its snapshot: the next start loads that and replays the rest.
    drop(job);
    let mut job = start(&world);
    assert!(job.snapshots().unwrap().epoch.is_some());
    world::settle(&mut job);
    points_are_the_demonstrations(&double, &job);
    verify(&world, &job, folder.path(), &["--min-features", "24", "--min-full", "1"]);

    let own: BTreeSet<Uuid> =
        job.demonstrations().iter().filter(|c| &*c.identity.user == "u2").map(|c| c.id).collect();
    let used = |features: &BTreeMap<Vec<u8>, Vec<u8>>| -> usize {
        live_before(features).iter().filter(|id| own.contains(&id.parse().unwrap())).count()
    };
    assert_eq!((own.len(), used(&world.compacted(Topic::Features))), (1, 1), "somebody uses it");
    // The store is down when the user goes, and comes back by itself.
    let later = Duration::from_millis(500);
    double.stop();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(later);
            double.restart(true);
        });
        assert_eq!(job.erase("u2").unwrap().demonstrations, 1);
    });
    world::settle(&mut job);
    let features = world.compacted(Topic::Features);
    assert_eq!((features.len(), used(&features)), (22, 0));
    let demands = ["--min-features", "22", "--min-full", "1"];
    for keep in [true, false] {
        points_are_the_demonstrations(&double, &job);
        assert_eq!(live(&double).len(), 11);
        verify_without("u2", &world, &job, folder.path(), &demands);
        drop(job);
        double.restart(keep);
        job = start(&world);
        assert!(job.snapshots().unwrap().epoch.is_some());
        feed(&mut job, &[item(&format!("new-{keep}"), Some("A new film"), "1")], world.partitions);
        assert!(world.compacted(Topic::Features) == features);
    }
    points_are_the_demonstrations(&double, &job);
    assert_eq!(live(&double).len(), 11);
}

#[test]
fn what_no_epoch_committed_is_taken_back_and_a_strange_collection_refused() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    let world = over(folder.path(), "job", &double, stored(1));
    let mut job = start(&world);
    feed(&mut job, &small(4), world.partitions);
    // A point of an epoch that was never committed.
    let one = job.demonstrations().iter().next().unwrap().clone();
    let stray = Point { id: Uuid::from_u128(7), digest: "nobody's".to_owned(), ..points::point(&one) };
    let mut connection = Qdrant::new(config(&double)).unwrap();
    connection.prepare(384).unwrap();
    connection.write(job.committed() + 1, &[stray], &[]).unwrap();
    assert_eq!(live(&double).len(), 5);
    drop(job);
    let mut job = start(&world);
    feed(&mut job, &small(5), world.partitions);
    points_are_the_demonstrations(&double, &job);
    let epoch = job.committed();
    drop(job);
    // A new job whose epochs begin anew can't tell its points from later ones.
    let other = over(folder.path(), "other", &double, stored(1));
    let mut job = start(&other);
    let error = job.run_until_idle(|_| {}).unwrap_err().to_string();
    assert!(error.contains("the collection has points of epoch") && error.contains("another job"), "{error}");
    assert!(epoch > job.committed());
    assert!(other.compacted(Topic::Features).is_empty());
}

#[test]
fn a_stored_search_without_a_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path(), "job", stored(1), world::weights(384));
    let error = world.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains("no store of points") && error.contains("[qdrant]"), "{error}");
}
