//! `verify` finds nothing on what a job published, beside a running job too, and each planted fault as its
//! kind.

use crate::parity::{mutated, semantics};
use ictflow_dataflows::recompute::Plan;
use ictflow_dataflows::verify::compare::Kind;
use ictflow_dataflows::verify::{Report, read, verify};
use ictflow_operators::ict::Weights;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_SUBSTEP, NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{self, World, hashed, play, template};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn verified(world: &World, epoch: Option<i64>) -> Report {
    try_verified(world, epoch).unwrap()
}

fn try_verified(world: &World, epoch: Option<i64>) -> ictflow_connectors::Result<Report> {
    let (names, encoder) = (world.names(), hashed());
    let plan = Plan {
        names: &names,
        semantics: Arc::new(world.semantics.clone()),
        formats: BTreeMap::new(),
        encoder: (encoder.id().to_owned(), encoder.width()),
        weights: Arc::new(Weights::from_safetensors(&world.weights).unwrap()).into(),
        workers: 2,
        chunk: 700,
    };
    verify(&mut *world.topics(), &plan, &world.job, epoch, |_, _| {})
}

pub fn kinds(report: &Report) -> BTreeMap<(&'static str, Kind), usize> {
    let mut kinds = BTreeMap::new();
    for violation in &report.violations {
        *kinds.entry((violation.topic, violation.kind)).or_default() += 1;
    }
    kinds
}

/// A record at a position.
fn record(
    world: &World,
    topic: Topic,
    at: (u32, &[u8]),
    value: Option<Vec<u8>>,
    position: (i64, i64),
) -> NewRecord {
    let header = |name: &str, number: i64| (name.to_owned(), number.to_string().into_bytes());
    NewRecord {
        topic: world.names().of(topic).to_owned(),
        partition: at.0,
        timestamp: None,
        key: Some(at.1.to_vec()),
        value,
        headers: vec![header(HEADER_EPOCH, position.0), header(HEADER_SUBSTEP, position.1)],
    }
}

#[test]
fn a_good_job_has_no_difference_and_each_planted_fault_is_found_as_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "1500", "--seed", "21", "--partitions", "3"]);
    let mut world = World::new(folder.path(), "job", semantics(10), world::weights(384));
    world.epoch = 100;
    let mut job = world.start(template(), hashed());
    let half = script.len() / 2;
    play(&mut job, &script[..half], world.partitions, 100);
    drop(job);
    let mut job = world.start(template(), hashed());
    play(&mut job, &script[half..], world.partitions, 100);

    // Beside the job that goes on, at its committed epoch and at an earlier one.
    let report = verified(&world, None);
    assert_eq!(kinds(&report), BTreeMap::new());
    assert_eq!((report.epoch, report.superseded), (job.committed(), 0));
    assert!(report.features > 300 && report.examples > 500 && report.dead_letters > 10, "{report:?}");
    let earlier = verified(&world, Some(job.committed() / 2));
    assert_eq!(kinds(&earlier), BTreeMap::new());
    assert!(earlier.features > 100 && earlier.features != report.features);
    let committed = job.committed();
    drop(job);

    let seen = read(&mut *world.topics(), &world.names(), Topic::Features).unwrap();
    let live = world.compacted(Topic::Features);
    let of = |key: &[u8]| seen.iter().filter(|record| record.key == key).collect::<Vec<_>>();
    // A key that was published at least twice, with another lineage before.
    let (key, value, older) = live
        .iter()
        .find_map(|(key, value)| {
            let lineage = |v: &[u8]| Feature { ict: Vec::new(), ..Feature::decode(v).unwrap() };
            let earlier = of(key).into_iter().filter_map(|record| record.value.clone());
            let older = earlier.into_iter().find(|older| lineage(older) != lineage(value))?;
            Some((key.clone(), value.clone(), older))
        })
        .unwrap();
    let place = (of(&key)[0].partition, key.as_slice());
    let next = |n: i64| (committed, 1_000_000 + n);
    let bent = {
        let mut feature = Feature::decode(&value).unwrap();
        feature.ict[0] = f32::from_bits(feature.ict[0].to_bits() ^ 1);
        feature.encode()
    };
    let last = seen.iter().rev().find(|record| record.partition == place.0).unwrap();
    let position =
        |p: Option<ictflow_dataflows::verify::compare::Position>| (p.unwrap().epoch, p.unwrap().substep);
    let features = |at, value, position| record(&world, Topic::Features, at, value, position);
    let plants: Vec<(Kind, NewRecord)> = vec![
        (Kind::Lost, features(place, None, next(0))),
        (Kind::Wrong, features(place, Some(bent), next(1))),
        (Kind::Stale, features(place, Some(older), next(2))),
        (Kind::Leftover, features((place.0, b"nobody"), Some(value.clone()), next(3))),
        (Kind::Duplicate, features((place.0, &last.key), last.value.clone(), position(last.position))),
        (Kind::Uncommitted, features(place, Some(value.clone()), (0, 0))),
        (Kind::Misplaced, features(((place.0 + 1) % 3, &key), Some(value.clone()), next(4))),
        // Of an early epoch, under a number that nobody had.
        (Kind::Reordered, features(place, Some(value.clone()), (1, 2_000_000))),
        (
            Kind::Unreadable,
            NewRecord { headers: Vec::new(), ..features(place, Some(value.clone()), next(5)) },
        ),
    ];
    for (n, (kind, plant)) in plants.into_iter().enumerate() {
        let copy = folder.path().join(format!("copy-{n}"));
        std::fs::create_dir(&copy).unwrap();
        for file in ["topics.sqlite", "topics.sqlite-wal", "topics.sqlite-shm"] {
            if folder.path().join(file).exists() {
                std::fs::copy(folder.path().join(file), copy.join(file)).unwrap();
            }
        }
        let damaged = World { store: world::Store::Local(copy.join("topics.sqlite")), ..world.clone() };
        damaged.topics().append(&[plant]).unwrap();
        let found = kinds(&verified(&damaged, None));
        assert_eq!(found, BTreeMap::from([(("features", kind), 1)]), "{kind:?}");
    }
}

#[test]
fn what_cannot_be_verified_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path(), "job", semantics(10), world::weights(384));
    let mut job = world.start(template(), hashed());
    world::feed(&mut job, &[world::item("a", Some("Film a"), "1")], world.partitions);
    let refused = |world: &World, epoch| try_verified(world, epoch).unwrap_err().to_string();
    assert!(refused(&world, Some(99)).contains("its bounds aren't on record"));
    assert!(
        refused(&World { job: "other".into(), topics_of: Some("job".into()), ..world.clone() }, None)
            .contains("belong to job job")
    );
    assert!(
        refused(&World { semantics: semantics(11), ..world.clone() }, None).contains("[semantics] differ")
    );
    let other = Arc::new(
        ictflow_operators::ict::untrained(
            8,
            ictflow_operators::ict::Shape { text: 384, ..Default::default() },
        )
        .unwrap(),
    );
    assert!(refused(&World { weights: other, ..world.clone() }, None).contains("weights"));
}
