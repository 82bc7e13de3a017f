//! Backfills with a store of points: a collection of their own, to which readers are led by a promote.

use super::outputs::{FORCE, promote, rollback};
use super::{Asked, cut, filled, job, order, prepare, script, start};
use crate::parity::{semantics, verify};
use crate::qdrant_job::{over, stored};
use crate::rescale::play;
use ictflow_connectors::qdrant::alias_of;
use ictflow_dataflows::backfill::{self, Demands, Order};
use ictflow_dataflows::job::Job;
use ictflow_dataflows::points::point;
use ictflow_tests::support::qdrant::{COLLECTION, Double, Fault};
use ictflow_tests::support::world::settle;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use tonic::Code;
use uuid::Uuid;

fn with_collection(name: &str) -> Order {
    Order { collection: Some(format!("{COLLECTION}-{name}")), ..order(name) }
}

/// The live points of a collection, or of the one that an alias leads to.
fn live(double: &Double, name: &str) -> BTreeSet<Uuid> {
    let points = double.points_of(name).into_iter().filter(|(_, point)| point.payload["deleted"] == false);
    points.map(|(id, _)| id).collect()
}

/// What readers from outside find is just the job's pool, point by point.
fn readers_find_the_pool(double: &Double, job: &Job) {
    let points = double.points_of(&alias_of(COLLECTION));
    let pool: BTreeSet<Uuid> = job.demonstrations().iter().map(|c| c.id).collect();
    assert!(pool.len() > 20, "{} demonstrations", pool.len());
    assert_eq!(live(double, &alias_of(COLLECTION)), pool);
    for demonstration in job.demonstrations() {
        let (found, wanted) = (&points[&demonstration.id], point(demonstration));
        assert_eq!(found.payload["digest"], wanted.digest.as_str());
        assert_eq!(found.vectors["sample"], wanted.sample);
    }
}

#[test]
fn an_alias_leads_readers_to_the_collection_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    let mut world = over(folder.path(), "live", &double, semantics(10));
    // Many small epochs in the backfill: its points are of later epochs than the job's.
    world.epoch = 1_000;
    let lines = script(folder.path(), "900", world.partitions);
    let thirds = cut(&lines, 3);
    let mut job = start(&world);
    play(&world, &mut job, thirds[0], 1_000);
    readers_find_the_pool(&double, &job);
    assert_eq!(double.alias(&alias_of(COLLECTION)).as_deref(), Some(COLLECTION));
    let report = filled(&world, &Order { epoch_events: Some(20), ..with_collection("new") });
    assert!(report.equal() && report.exact, "{report}");
    assert_eq!(live(&double, "ictflow-new"), live(&double, COLLECTION));
    assert_eq!(double.alias("ictflow-new-active"), None, "a backfill leads nobody");
    assert_eq!(double.alias(&alias_of(COLLECTION)).as_deref(), Some(COLLECTION));
    play(&world, &mut job, thirds[1], 1_000);
    drop(job);

    let switched = promote(&world, "new", Demands::default()).unwrap();
    assert_eq!(switched.outputs.collection.as_deref(), Some("ictflow-new"));
    assert_eq!(double.alias(&alias_of(COLLECTION)).as_deref(), Some("ictflow-new"));
    let mut job = start(&world);
    play(&world, &mut job, thirds[2], 1_000);
    readers_find_the_pool(&double, &job);
    assert_eq!(live(&double, "ictflow-new"), live(&double, &alias_of(COLLECTION)));
    assert_ne!(live(&double, COLLECTION), live(&double, "ictflow-new"), "the one before stays as it was");
    drop(job);

    // The alias can't be switched at once: the next start does it.
    double.fault(Some("update_aliases"), Fault::Refuse(Code::InvalidArgument), 1);
    let back = rollback(&world).unwrap();
    assert_eq!(back.outputs.collection.as_deref(), Some(COLLECTION));
    assert_eq!(double.faults_left(), 0);
    assert_eq!(double.alias(&alias_of(COLLECTION)).as_deref(), Some("ictflow-new"));
    let mut job = start(&world);
    settle(&mut job);
    play(&world, &mut job, &thirds[2][..5], 1_000);
    assert_eq!(double.alias(&alias_of(COLLECTION)).as_deref(), Some(COLLECTION));
    readers_find_the_pool(&double, &job);
}

#[test]
fn with_a_stored_search_every_vector_is_the_ict_of_its_ids_over_a_promote() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    let mut world = over(folder.path(), "live", &double, stored(10));
    world.epoch = 200;
    let lines = script(folder.path(), "900", world.partitions);
    let [first, second] = cut(&lines, 2)[..] else { unreachable!("two parts") };
    let mut live = start(&world);
    play(&world, &mut live, first, 200);
    drop(live);
    let (plan, asked) = (prepare(&world, &with_collection("new")).unwrap(), Asked::default());
    let mut backfilled = job(&world, &plan, &asked);
    assert!(backfill::drive(&mut backfilled, &AtomicBool::new(false), |_| {}).unwrap());
    assert!(backfilled.points().unwrap().lookups > 0);
    assert_eq!(asked.counts(), (0, 0));
    let demands = ["--min-features", "100", "--min-full", "0.3", "--job", "live.backfill.new"];
    verify(&world, &backfilled, &folder.path().join("a"), &demands);
    drop(backfilled);
    promote(&world, "new", FORCE).unwrap();
    let mut live = start(&world);
    play(&world, &mut live, second, 200);
    verify(&world, &live, &folder.path().join("b"), &["--min-features", "100", "--min-full", "0.3"]);
    readers_find_the_pool(&double, &live);
}
