//! The Qdrant connector through its trait, with the real client, against a double on the wire.

use ictflow_connectors::points::{Point, Points, Query, Standing, vanished};
use ictflow_connectors::qdrant::{Config, Qdrant, probe};
use ictflow_connectors::secret::Secret;
use ictflow_connectors::{Disposition, Error};
use ictflow_tests::support::qdrant::{COLLECTION, Call, Double, Dump, Fault};
use qdrant_client::qdrant::{Distance, UpdateStatus};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::Code;
use uuid::Uuid;

const WIDTH: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

/// Short pauses, long waits: nothing here depends on how fast the machine is.
fn config(double: &Double) -> Config {
    Config { url: double.url(), timeout_ms: 30_000, retry_base_ms: 1, retry_max_ms: 10, ..Config::default() }
}

fn open(config: Config) -> Qdrant {
    let mut store = Qdrant::new(config).unwrap();
    store.prepare(WIDTH).unwrap();
    store
}

fn id(n: u32) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, &n.to_be_bytes())
}

/// Numbers that look random and are the same in every run of a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    fn vector(&mut self, size: usize) -> Vec<f32> {
        (0..size).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

/// A point; `version` changes all of its contents.
fn point(n: u32, version: u32) -> Point {
    let mut dice = Dice(u64::from(n) << 32 | u64::from(version));
    Point {
        id: id(n),
        sample: dice.vector(2 * WIDTH),
        cot: dice.vector(WIDTH),
        user: format!("user {}", n % 7),
        item: format!("item {}", n % 11),
        positive: n.is_multiple_of(3),
        label_time: i64::from(n) * 1_000,
        history: vec![format!("item {}", n % 5), "an item".into()],
        creator: n.is_multiple_of(2).then(|| format!("creator {n}")),
        categories: vec!["drama".into()],
        digest: format!("digest {n}.{version}"),
    }
}

fn points(range: std::ops::Range<u32>) -> Vec<Point> {
    range.map(|n| point(n, 0)).collect()
}

fn query(n: u32) -> Query {
    let Point { sample, user, item, .. } = point(n, 99);
    Query { sample, user, item }
}

fn retries(error: &Error) -> bool {
    matches!(error.disposition, Disposition::Retry { .. })
}

fn live(dump: &Dump) -> bool {
    dump.payload["deleted"] == json!(false)
}

fn digests(double: &Double) -> BTreeMap<Uuid, (String, bool)> {
    let digest = |dump: &Dump| dump.payload["digest"].as_str().unwrap().to_owned();
    double.points().into_iter().map(|(id, dump)| (id, (digest(&dump), live(&dump)))).collect()
}

#[test]
fn a_collection_is_made_with_its_indexes_before_any_point() {
    let double = Double::start();
    let mut store = open(config(&double));
    let vectors = BTreeMap::from([("cot".to_owned(), WIDTH as u64), ("sample".to_owned(), 2 * WIDTH as u64)]);
    assert_eq!(double.vectors(COLLECTION), vectors);
    store.write(1, &points(0..3), &[]).unwrap();
    let indexes: BTreeMap<String, usize> =
        ["deleted", "epoch", "item", "positive", "user"].map(|field| (field.to_owned(), 0)).into();
    assert_eq!(double.indexes(COLLECTION), indexes);
    open(config(&double));
    assert_eq!((double.count("create"), double.count("create_field_index")), (1, 5));
    assert_eq!(double.points().len(), 3);
}

#[test]
fn a_collection_that_was_left_half_made_is_completed() {
    let double = Double::start();
    double.make(COLLECTION, &[("sample", 8, Distance::Dot), ("cot", 4, Distance::Dot)]);
    double.index(COLLECTION, "user");
    let reached = probe(&config(&double), WIDTH).unwrap();
    assert_eq!((reached.version.as_str(), reached.points), ("1.20.0", Some(0)));
    assert_eq!(reached.missing_indexes, ["positive", "deleted", "epoch", "item"]);
    open(config(&double));
    assert_eq!(probe(&config(&double), WIDTH).unwrap().missing_indexes, [""; 0]);
    assert_eq!((double.count("create"), double.count("create_field_index")), (0, 4));
}

#[test]
fn a_point_stands_with_all_that_it_is_made_of() {
    let double = Double::start();
    let mut store = open(config(&double));
    let point = point(6, 0);
    store.write(5, std::slice::from_ref(&point), &[]).unwrap();
    let dump = &double.points()[&point.id];
    let expected = json!({
        "user": "user 6", "item": "item 6", "positive": true, "label_time": 6_000,
        "history": ["item 1", "an item"], "creator": "creator 6", "categories": ["drama"],
        "digest": "digest 6.0", "epoch": 5, "deleted": false,
    });
    assert_eq!(serde_json::Value::Object(dump.payload.clone()), expected);
    assert_eq!(dump.vectors, BTreeMap::from([("sample".into(), point.sample), ("cot".into(), point.cot)]));
}

/// One thing that a store does, on a collection with points 0 to 5 of epoch 3, of which 4 and 5 are marked.
struct Operation {
    name: &'static str,
    /// The call that goes wrong.
    method: &'static str,
    writes: bool,
    run: fn(&mut Qdrant) -> Result<String, Error>,
}

const OPERATIONS: [Operation; 8] = [
    Operation {
        name: "prepare",
        method: "collection_info",
        writes: false,
        run: |store| store.prepare(WIDTH).map(|()| String::new()),
    },
    Operation {
        name: "upsert new and old points",
        method: "upsert",
        writes: true,
        run: |store| store.write(4, &[point(0, 1), point(9, 1)], &[]).map(|()| String::new()),
    },
    Operation {
        name: "upsert within the epoch",
        method: "upsert",
        writes: true,
        run: |store| store.write(3, &[point(0, 0), point(4, 0)], &[]).map(|()| String::new()),
    },
    Operation {
        name: "mark",
        method: "set_payload",
        writes: true,
        run: |store| store.write(4, &[], &[id(1), id(4), id(77)]).map(|()| String::new()),
    },
    Operation {
        name: "write and mark",
        method: "set_payload",
        writes: true,
        run: |store| store.write(4, &[point(2, 1)], &[id(3)]).map(|()| String::new()),
    },
    Operation {
        name: "purge",
        method: "delete",
        writes: true,
        run: |store| store.purge(3).map(|()| String::new()),
    },
    Operation {
        name: "list",
        method: "scroll",
        writes: false,
        run: |store| store.list().map(|listed| format!("{listed:?}")),
    },
    Operation {
        name: "look up",
        method: "query_batch",
        writes: false,
        run: |store| store.nearest(&[query(1), query(2)], 2).map(|found| format!("{found:?}")),
    },
];

fn with_six_points() -> (Double, Qdrant) {
    let double = Double::start();
    let mut store = open(config(&double));
    store.write(3, &points(0..6), &[]).unwrap();
    store.write(3, &[], &[id(4), id(5)]).unwrap();
    (double, store)
}

#[test]
fn passing_faults_of_every_kind_change_no_result() {
    let codes = [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::ResourceExhausted,
        Code::Internal,
        Code::Unknown,
        Code::Aborted,
        Code::FailedPrecondition,
    ];
    let mut of_any: Vec<Fault> = codes.map(Fault::Refuse).to_vec();
    of_any.extend([Fault::Throttle(1), Fault::CutBefore, Fault::Cut]);
    let mut of_writes = of_any.clone();
    for status in [UpdateStatus::Acknowledged, UpdateStatus::WaitTimeout, UpdateStatus::ClockRejected] {
        of_writes.extend([true, false].map(|applied| Fault::Unconfirmed { status, applied }));
    }
    for operation in OPERATIONS {
        let (double, mut store) = with_six_points();
        let expected = (operation.run)(&mut store).unwrap();
        let expected_points = double.points();
        for fault in if operation.writes { &of_writes } else { &of_any } {
            // Three, since the client library hides one of some kinds from the connector.
            for times in [1, 3] {
                let case = format!("{} under {fault:?} x {times}", operation.name);
                let (double, mut store) = with_six_points();
                double.fault(Some(operation.method), *fault, times);
                let result = (operation.run)(&mut store).unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(double.faults_left(), 0, "{case}: not every fault was met");
                assert_eq!(result, expected, "{case}");
                assert_eq!(double.points(), expected_points, "{case}");
            }
        }
    }
}

#[test]
fn faults_that_outlast_the_attempts_are_a_retry_and_the_same_call_heals() {
    for operation in OPERATIONS {
        let (double, mut store) = with_six_points();
        let expected = (operation.run)(&mut store).unwrap();
        let expected_points = double.points();
        let faults = [Fault::Refuse(Code::Unavailable), Fault::Refuse(Code::DeadlineExceeded), Fault::Cut];
        for fault in faults {
            let (double, _) = with_six_points();
            let mut store = open(Config { retries: 2, ..config(&double) });
            double.fault(Some(operation.method), fault, 100);
            let before = double.count(operation.method);
            let error = (operation.run)(&mut store).unwrap_err();
            assert_eq!(error.disposition, Disposition::Retry { after: Duration::from_millis(10) }, "{error}");
            assert!(!vanished(&error), "{error}");
            // One attempt and two more, each repeated once by the client library for some faults.
            let calls = double.count(operation.method) - before;
            assert!((3..=6 * 2).contains(&calls), "{}: {calls} calls", operation.name);
            assert!(store.counts().retries.load(Ordering::Relaxed) >= 2);
            double.forget_faults();
            assert_eq!((operation.run)(&mut store).unwrap(), expected, "{}", operation.name);
            assert_eq!(double.points(), expected_points, "{}", operation.name);
        }
    }
}

#[test]
fn what_a_person_must_correct_stops_at_once_with_a_hint() {
    for (code, hint) in [
        (Code::InvalidArgument, "width"),
        (Code::Unauthenticated, "qdrant.api_key"),
        (Code::PermissionDenied, "qdrant.api_key"),
        (Code::Unimplemented, "1.16"),
        (Code::OutOfRange, "qdrant.batch"),
        (Code::DataLoss, "log"),
    ] {
        for operation in OPERATIONS {
            let (double, _) = with_six_points();
            // One stream, since others end what they have begun.
            let mut store = open(Config { streams: 1, ..config(&double) });
            let (before, points) = (double.count(operation.method), double.points());
            double.fault(Some(operation.method), Fault::Refuse(code), 1);
            let error = (operation.run)(&mut store).unwrap_err();
            assert_eq!(error.disposition, Disposition::Fatal, "{}: {error}", operation.name);
            assert!(error.hint.contains(hint), "{}: {error}", operation.name);
            assert_eq!(double.count(operation.method), before + 1, "{}", operation.name);
            if operation.name != "write and mark" {
                assert_eq!(double.points(), points, "{}", operation.name);
            }
        }
    }
}

#[test]
fn a_vanished_collection_is_told_by_name_and_filled_anew() {
    for operation in OPERATIONS.into_iter().filter(|operation| operation.name != "prepare") {
        let (double, mut store) = with_six_points();
        double.lose(COLLECTION);
        let error = (operation.run)(&mut store).unwrap_err();
        assert!(vanished(&error) && retries(&error), "{}: {error}", operation.name);
        assert!(error.to_string().contains(COLLECTION) && error.hint.contains("prepare"), "{error}");
        // Nothing makes it in passing: it must be filled anew first.
        assert!(!double.exists(COLLECTION));
        store.prepare(WIDTH).unwrap();
        assert!(store.list().unwrap().is_empty());
        store.write(4, &points(0..6), &[]).unwrap();
        assert_eq!(double.points().len(), 6);
        assert_eq!(double.indexes(COLLECTION).values().copied().collect::<Vec<_>>(), [0; 5]);
    }
}

#[test]
fn an_answer_that_comes_too_late_is_asked_for_again() {
    let double = Double::start();
    let mut store = open(Config { timeout_ms: 1_000, ..config(&double) });
    // The client library asks twice, then the connector does.
    double.fault(Some("upsert"), Fault::Slow(60_000), 2);
    store.write(1, &points(0..2), &[]).unwrap();
    double.fault(Some("query_batch"), Fault::Slow(60_000), 2);
    assert_eq!(store.nearest(&[query(5)], 5).unwrap()[0].len(), 2);
    assert_eq!((double.points().len(), double.faults_left()), (2, 0));
    assert!(double.count("upsert") >= 3 && store.counts().retries.load(Ordering::Relaxed) >= 2);
}

/// What stands after any writes in any order: of each point that of the greatest epoch, where a mark
/// beats an upsert.
#[test]
fn the_order_and_number_of_writes_decide_nothing() {
    let random = RandomState::new().hash_one(1) >> 16;
    for seed in [1, 2, 3, random] {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let double = Double::start();
        let mut store = open(config(&double));
        store.write(0, &points(0..20), &[]).unwrap();
        let mut expected: BTreeMap<u32, (u32, bool)> = (0..20).map(|n| (n, (0, false))).collect();
        let mut writes = Vec::new();
        for epoch in 1..8u32 {
            for n in 0..20 {
                let (upserted, marked) = match dice.below(5) {
                    0 => (true, false),
                    1 => (false, true),
                    2 => (true, true),
                    _ => continue,
                };
                for (wanted, mark) in [(upserted, false), (marked, true)] {
                    for _ in 0..if wanted { 1 + dice.below(2) } else { 0 } {
                        writes.push((epoch, n, mark));
                    }
                }
                expected.insert(n, (epoch, marked));
            }
        }
        while !writes.is_empty() {
            let (epoch, n, mark) = writes.swap_remove(dice.below(writes.len()));
            let (upserts, marks) = match mark {
                true => (vec![], vec![id(n)]),
                false => (vec![point(n, epoch)], vec![]),
            };
            store.write(i64::from(epoch), &upserts, &marks).unwrap();
        }
        let listed = store.list().unwrap();
        assert_eq!(listed.len(), 20, "seed {seed}");
        for (n, (epoch, marked)) in expected {
            let standing = &listed[&id(n)];
            assert_eq!(
                (standing.epoch, standing.deleted),
                (i64::from(epoch), marked),
                "point {n} of seed {seed}"
            );
            // A mark keeps what it marks, which may be of any earlier epoch.
            assert!(marked || standing.digest == format!("digest {n}.{epoch}"), "point {n} of seed {seed}");
        }
    }
}

#[test]
fn a_write_that_arrives_late_changes_nothing() {
    type Step = fn(&mut Qdrant);
    // (the held write, what follows before it arrives, what must stand then)
    let table: [(&str, &str, Step, Step, (&str, bool)); 6] = [
        (
            "upsert before a later upsert",
            "upsert",
            |store| store.write(5, &[point(0, 5)], &[]).unwrap(),
            |store| store.write(6, &[point(0, 6)], &[]).unwrap(),
            ("digest 0.6", true),
        ),
        (
            "upsert before a later mark",
            "upsert",
            |store| store.write(5, &[point(0, 5)], &[]).unwrap(),
            |store| store.write(6, &[], &[id(0)]).unwrap(),
            ("digest 0.5", false),
        ),
        (
            "upsert before a mark of its epoch",
            "upsert",
            |store| store.write(5, &[point(0, 5)], &[]).unwrap(),
            |store| store.write(5, &[], &[id(0)]).unwrap(),
            ("digest 0.5", false),
        ),
        (
            "mark before a later upsert",
            "set_payload",
            |store| store.write(5, &[], &[id(0)]).unwrap(),
            |store| store.write(6, &[point(0, 6)], &[]).unwrap(),
            ("digest 0.6", true),
        ),
        (
            "mark before a later mark and upsert",
            "set_payload",
            |store| store.write(5, &[], &[id(0)]).unwrap(),
            |store| {
                store.write(6, &[], &[id(0)]).unwrap();
                store.write(7, &[point(0, 7)], &[]).unwrap();
            },
            ("digest 0.7", true),
        ),
        (
            "purge before a revival",
            "delete",
            |store| store.purge(4).unwrap(),
            |store| store.write(6, &[point(0, 6)], &[]).unwrap(),
            ("digest 0.6", true),
        ),
    ];
    for (name, method, held, follows, expected) in table {
        let double = Double::start();
        let mut store = open(config(&double));
        store.write(3, &[point(0, 3)], &[]).unwrap();
        double.fault(Some(method), Fault::Hold, 1);
        // The first try hangs on its way; the client library's second one arrives.
        held(&mut store);
        follows(&mut store);
        assert_eq!(double.release(), 1, "{name}");
        assert_eq!(
            digests(&double),
            BTreeMap::from([(id(0), (expected.0.to_owned(), expected.1))]),
            "{name}"
        );
    }
}

/// The one place where the guard has nothing to compare with, as the module doc says.
#[test]
fn a_write_that_outlives_a_purge_is_seen_by_the_next_listing() {
    let double = Double::start();
    let mut store = open(config(&double));
    double.fault(Some("upsert"), Fault::Hold, 1);
    store.write(5, &[point(0, 5)], &[]).unwrap();
    store.write(6, &[], &[id(0)]).unwrap();
    store.purge(6).unwrap();
    assert!(double.points().is_empty());
    assert_eq!(double.release(), 1);
    let standing = Standing { epoch: 5, deleted: false, digest: "digest 0.5".into() };
    assert_eq!(store.list().unwrap(), BTreeMap::from([(id(0), standing)]));
    store.write(7, &[], &[id(0)]).unwrap();
    store.purge(7).unwrap();
    assert!(double.points().is_empty());
}

#[test]
fn a_mark_makes_no_point() {
    let double = Double::start();
    let mut store = open(config(&double));
    store.write(1, &points(0..2), &[]).unwrap();
    store.write(2, &[], &(0..300).map(id).collect::<Vec<_>>()).unwrap();
    assert_eq!(double.points().len(), 2);
    assert!(double.points().values().all(|dump| !live(dump) && dump.vectors.len() == 2));
    store.write(3, &[point(0, 3)], &[]).unwrap();
    assert_eq!(digests(&double)[&id(0)], ("digest 0.3".into(), true));
}

#[test]
fn a_purge_takes_what_was_marked_by_then_and_nothing_else() {
    let double = Double::start();
    let mut store = open(config(&double));
    store.write(1, &points(0..6), &[]).unwrap();
    for (epoch, n) in [(2, 0), (3, 1), (4, 2)] {
        store.write(epoch, &[], &[id(n)]).unwrap();
    }
    for _ in 0..2 {
        store.purge(3).unwrap();
        let left: BTreeSet<Uuid> = double.points().into_keys().collect();
        assert_eq!(left, [2, 3, 4, 5].map(id).into());
    }
    store.purge(4).unwrap();
    assert_eq!(double.points().len(), 3);
    store.purge(1 << 53).unwrap();
    assert_eq!(double.points().len(), 3);
    assert_eq!(store.purge((1 << 53) + 1).unwrap_err().disposition, Disposition::Fatal);
}

#[test]
fn lookups_give_the_best_of_each_label_by_the_exact_product() {
    let double = Double::start();
    let mut store = open(Config { query_batch: 7, ..config(&double) });
    let mut all = points(0..300);
    // Of one user and item, the nearest of all by far: only this pair's own lookup leaves it out.
    all[42].sample = vec![100.0; 2 * WIDTH];
    store.write(1, &all, &[]).unwrap();
    let marked: Vec<Uuid> = (0..300).step_by(13).map(id).collect();
    store.write(2, &[], &marked).unwrap();
    let mut queries: Vec<Query> = (1_000..1_040).map(query).collect();
    let like = |user: &str, item: &str| Query { sample: vec![1.0; 8], user: user.into(), item: item.into() };
    queries.extend([like("user 0", "item 9"), like("user 0", "item 0"), like("user 1", "item 9")]);
    for limit in [1, 8, 16, 400] {
        let found = store.nearest(&queries, limit).unwrap();
        assert_eq!(found.len(), queries.len());
        for (query, found) in queries.iter().zip(&found) {
            let mut expected = BTreeSet::new();
            for label in [true, false] {
                let score = |point: &Point| -> f64 {
                    point.sample.iter().zip(&query.sample).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
                };
                let mut best: Vec<(f64, Uuid)> = all
                    .iter()
                    .filter(|point| point.positive == label && !marked.contains(&point.id))
                    .filter(|point| (&point.user, &point.item) != (&query.user, &query.item))
                    .map(|point| (score(point), point.id))
                    .collect();
                best.sort_by(|a, b| b.0.total_cmp(&a.0));
                expected.extend(best.into_iter().take(limit).map(|(_, id)| id));
            }
            assert_eq!(found.len(), expected.len(), "no id twice");
            assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), expected, "limit {limit}");
        }
        // The user alone or the item alone doesn't leave it out.
        let has = |at: usize| found[at].contains(&id(42));
        assert_eq!((has(40), has(41), has(42)), (false, true, true));
    }
    assert_eq!(store.nearest(&queries[..2], 0).unwrap(), [Vec::<Uuid>::new(), Vec::new()]);
    assert!(store.nearest(&[], 5).unwrap().is_empty());
    assert_eq!(store.nearest(&queries, 10_000).unwrap().len(), 43);
    assert_eq!(store.nearest(&queries, 10_001).unwrap_err().disposition, Disposition::Fatal);
}

#[test]
fn requests_stay_within_their_limits() {
    let double = Double::start();
    let sizes = |double: &Double, method: &str, before: usize| -> Vec<usize> {
        let calls: Vec<Call> = double.calls().into_iter().filter(|call| call.method == method).collect();
        calls[before..].iter().map(|call| call.points).collect()
    };
    let mut store = open(Config { batch: 256, streams: 1, query_batch: 4, ..config(&double) });
    for (count, expected) in [(256, vec![256]), (257, vec![256, 1]), (1, vec![1]), (0, vec![])] {
        let before = double.count("upsert");
        store.write(1, &points(0..count), &[]).unwrap();
        assert_eq!(sizes(&double, "upsert", before), expected, "{count} points");
        let before = double.count("set_payload");
        store.write(2, &[], &(0..count).map(id).collect::<Vec<_>>()).unwrap();
        assert_eq!(double.count("set_payload") - before, expected.len(), "{count} marks");
    }
    for (pairs, expected) in [(4, vec![8]), (5, vec![8, 2]), (0, vec![])] {
        let before = double.count("query_batch");
        store.nearest(&(0..pairs).map(query).collect::<Vec<_>>(), 1).unwrap();
        assert_eq!(sizes(&double, "query_batch", before), expected, "{pairs} pairs");
    }
    // Several streams: all points arrive, no request is above the batch.
    let mut store = open(Config { batch: 64, streams: 4, ..config(&double) });
    let before = double.count("upsert");
    store.write(3, &points(0..2_000), &[]).unwrap();
    let sizes = sizes(&double, "upsert", before);
    assert_eq!((sizes.iter().sum::<usize>(), sizes.iter().max()), (2_000, Some(&64)));
    assert_eq!(double.points().values().filter(|dump| live(dump)).count(), 2_000);
    let counts = store.counts();
    assert_eq!(counts.upserted.load(Ordering::Relaxed), 2_000);
    assert_eq!(counts.write_requests.load(Ordering::Relaxed), sizes.len() as u64);
}

#[test]
fn a_listing_goes_page_by_page_up_to_its_limit() {
    let double = Double::start();
    let fill = |count: u32| {
        double.lose(COLLECTION);
        open(config(&double)).write(1, &points(0..count), &[]).unwrap();
    };
    for (count, pages) in [(0, 1), (10, 1), (11, 2), (20, 2), (95, 10)] {
        fill(count);
        let mut store = open(Config { page_points: 10, ..config(&double) });
        let before = double.count("scroll");
        let listed = store.list().unwrap();
        assert_eq!(listed.keys().copied().collect::<BTreeSet<_>>(), (0..count).map(id).collect());
        assert_eq!(double.count("scroll") - before, pages, "{count} points");
        assert_eq!(store.counts().listed.load(Ordering::Relaxed), u64::from(count));
    }
    for (max_points, fits) in [(95, true), (94, false)] {
        let mut store = open(Config { page_points: 10, max_points, ..config(&double) });
        let listed = store.list();
        assert_eq!(listed.is_ok(), fits);
        if let Err(error) = listed {
            assert!(error.disposition == Disposition::Fatal && error.hint.contains("max_points"), "{error}");
        }
    }
}

#[test]
fn a_foreign_collection_is_refused_by_name_and_left_as_it_is() {
    let (sample, cot) = (("sample", 8, Distance::Dot), ("cot", 4, Distance::Dot));
    for (vectors, words) in [
        (vec![("sample", 6, Distance::Dot), cot], "sample has 6 components, not 8"),
        (vec![sample, ("cot", 3, Distance::Dot)], "cot has 3 components, not 4"),
        (vec![("sample", 8, Distance::Cosine), cot], "sample has the distance Cosine, not Dot"),
        (vec![sample], "no vector named cot"),
        (vec![("", 8, Distance::Dot)], "no vector named sample"),
        (vec![sample, cot, ("image", 4, Distance::Dot)], "another vector, named \"image\""),
    ] {
        let double = Double::start();
        double.make(COLLECTION, &vectors);
        let mut store = Qdrant::new(config(&double)).unwrap();
        for error in [store.prepare(WIDTH).unwrap_err(), probe(&config(&double), WIDTH).unwrap_err()] {
            assert_eq!(error.disposition, Disposition::Fatal);
            assert!(
                error.to_string().contains(words) && error.to_string().contains(COLLECTION),
                "{words}: {error}"
            );
        }
        assert_eq!(double.count("create") + double.count("create_field_index"), 0);
        // What wasn't prepared isn't written.
        assert_eq!(store.write(1, &points(0..1), &[]).unwrap_err().disposition, Disposition::Fatal);
    }
    let double = Double::start();
    double.make(COLLECTION, &[sample, cot]);
    double.index(COLLECTION, "epoch");
    let error = Qdrant::new(config(&double)).unwrap().prepare(WIDTH).unwrap_err();
    assert!(error.to_string().contains("index on epoch is Keyword, not Integer"), "{error}");
}

#[test]
fn a_width_that_changes_behind_the_store_is_refused_by_the_server() {
    let (double, mut store) = with_six_points();
    double.make(COLLECTION, &[("sample", 16, Distance::Dot), ("cot", 8, Distance::Dot)]);
    for error in [store.write(4, &points(0..1), &[]).unwrap_err(), store.nearest(&[query(1)], 1).unwrap_err()]
    {
        assert_eq!(error.disposition, Disposition::Fatal);
        assert!(error.detail.contains("expected dim") && error.hint.contains("width"), "{error}");
    }
    let wide = Point { sample: vec![0.0; 16], ..point(1, 0) };
    let before = double.count("upsert");
    let error = store.write(4, &[point(2, 0), wide], &[]).unwrap_err();
    assert!(error.detail.contains("sample has 16 components, not 8"), "{error}");
    assert_eq!(double.count("upsert"), before, "nothing is sent where one point is wrong");
}

#[test]
fn points_of_another_program_are_named() {
    let double = Double::start();
    let mut store = open(config(&double));
    store.write(1, &points(0..3), &[]).unwrap();
    double.plant(COLLECTION, 17, &[("user", "canary")]);
    let error = store.list().unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(error.detail.contains("point 17") && error.hint.contains("qdrant.collection"), "{error}");
    assert!(!format!("{error:?}").contains("canary"));
}

#[test]
fn a_server_without_conditional_upserts_is_refused() {
    let double = Double::start();
    for (version, fits) in [("1.15.5", false), ("", false), ("1.16.0", true)] {
        double.version(version);
        let result = Qdrant::new(config(&double)).unwrap().prepare(WIDTH);
        assert_eq!(result.is_ok(), fits, "{version:?}");
        assert_eq!(double.exists(COLLECTION), fits);
        if let Err(error) = result {
            assert!(error.disposition == Disposition::Fatal && error.hint.contains("1.16"), "{error}");
        }
    }
}

#[test]
fn a_server_that_is_down_comes_back_with_or_without_its_points() {
    let mut double = Double::start();
    double.stop();
    let mut store = Qdrant::new(Config { retries: 1, ..config(&double) }).unwrap();
    for error in [store.prepare(WIDTH).unwrap_err(), probe(&config(&double), WIDTH).unwrap_err()] {
        assert!(retries(&error) && error.hint.contains("6334"), "{error}");
    }
    double.restart(true);
    store.prepare(WIDTH).unwrap();
    store.write(1, &points(0..5), &[]).unwrap();
    double.restart(true);
    assert_eq!(store.list().unwrap().len(), 5);
    double.stop();
    assert!(retries(&store.nearest(&[query(1_000)], 1).unwrap_err()));
    double.restart(false);
    let error = store.nearest(&[query(1_000)], 1).unwrap_err();
    assert!(vanished(&error), "{error}");
    store.prepare(WIDTH).unwrap();
    store.write(2, &points(0..5), &[]).unwrap();
    assert_eq!(store.nearest(&[query(1_000)], 9).unwrap()[0].len(), 5);
}

#[test]
fn a_server_that_dies_in_the_middle_of_a_write_gets_the_rest_after_it() {
    let mut double = Double::start();
    double.delay(2);
    let config = Config { batch: 64, streams: 4, retries: 2, ..config(&double) };
    let mut store = open(config);
    let all = points(0..3_000);
    let before = double.count("upsert");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| store.write(1, &all, &[]));
        let deadline = Instant::now() + LIMIT;
        while double.count("upsert") < before + 6 {
            assert!(Instant::now() < deadline, "no upserts arrive");
            std::thread::sleep(Duration::from_millis(1));
        }
        double.stop();
        // What it had of them stands; the rest is the same call again.
        assert!((1..3_000).contains(&double.points().len()));
        if let Err(error) = writer.join().unwrap() {
            assert!(retries(&error) && !vanished(&error), "{error}");
        }
    });
    double.delay(0);
    double.restart(true);
    store.write(1, &all, &[]).unwrap();
    let expected: BTreeMap<Uuid, (String, bool)> =
        all.iter().map(|point| (point.id, (point.digest.clone(), true))).collect();
    assert_eq!(digests(&double), expected);
}

fn keyed(double: &Double, folder: &std::path::Path, key: &str) -> Config {
    let file = folder.join("secret");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    Config { api_key: Some(Secret::File { file }), ..config(double) }
}

#[test]
fn a_key_lets_in_and_is_shown_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let double = Double::start();
    double.require_key("good-canary");
    let with = |key: &str| {
        std::fs::write(&file, format!("{key}\n")).unwrap();
        Qdrant::new(Config { api_key: Some(Secret::File { file: file.clone() }), ..config(&double) }).unwrap()
    };
    let mut store = with("good-canary");
    store.prepare(WIDTH).unwrap();
    store.write(1, &points(0..1), &[]).unwrap();
    let mut stranger = with("wrong-canary");
    let error = stranger.prepare(WIDTH).unwrap_err();
    // The server repeats the key in its answer.
    assert!(error.disposition == Disposition::Fatal && error.detail.contains("[redacted]"), "{error}");
    for shown in [format!("{error} {error:?}"), format!("{store:?} {stranger:?}")] {
        assert!(!shown.contains("canary"), "{shown}");
    }
    let mut nobody = Qdrant::new(config(&double)).unwrap();
    assert!(nobody.prepare(WIDTH).unwrap_err().hint.contains("qdrant.api_key"));
}

/// Set in the process that this test starts of itself.
const CHILD: &str = "ICTFLOW_TEST_QDRANT_LOGS";

/// Every line that any library logs at the finest level, in a process of its own, since the level
/// is one for the whole process.
#[test]
fn no_log_line_holds_the_key_or_a_user() {
    if std::env::var_os(CHILD).is_some() {
        return log_everything();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["qdrant_points::no_log_line_holds_the_key_or_a_user", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let lines = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
    assert!(output.status.success(), "{lines}");
    for word in ["is tried again", "h2::"] {
        assert!(lines.contains(word), "nothing of {word} was logged, so this shows nothing: {lines}");
    }
    for canary in ["key-canary", "user-canary", "item-canary"] {
        let found = lines.lines().find(|line| line.contains(canary));
        assert_eq!(found, None);
    }
}

fn log_everything() {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .init();
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start();
    double.require_key("key-canary");
    let mut store = open(keyed(&double, folder.path(), "key-canary"));
    let point = Point { user: "user-canary".into(), item: "item-canary".into(), ..point(1, 0) };
    double.fault(Some("upsert"), Fault::Refuse(Code::Unavailable), 3);
    store.write(1, std::slice::from_ref(&point), &[]).unwrap();
    double.fault(Some("query_batch"), Fault::Cut, 3);
    let query =
        Query { sample: point.sample.clone(), user: point.user.clone(), item: "item-canary 2".into() };
    assert_eq!(store.nearest(&[query], 1).unwrap(), [[point.id]]);
    double.require_key("another");
    let _ = store.list().unwrap_err();
}

#[test]
fn a_store_works_inside_another_runtime_and_ends_there() {
    let double = Double::start();
    for threads in [0, 1] {
        let runtime = match threads {
            0 => tokio::runtime::Builder::new_current_thread().build(),
            _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).build(),
        };
        runtime.unwrap().block_on(async {
            let mut store = open(config(&double));
            store.write(1, &points(0..3), &[]).unwrap();
            assert_eq!(store.list().unwrap().len(), 3);
        });
    }
}

#[test]
fn tls_to_a_server_without_it_is_an_error_with_a_hint() {
    let double = Double::start();
    let url = double.url().replace("http://", "https://");
    let mut store = Qdrant::new(Config { url, retries: 1, ..config(&double) }).unwrap();
    let error = store.prepare(WIDTH).unwrap_err();
    assert!(retries(&error) && error.hint.contains("qdrant.url"), "{error}");
}

/// The section stands commented out in the example files, since a job without it keeps its points in
/// the process. It must hold every key, the optional ones a step further in, and the defaults.
#[test]
fn the_example_files_name_every_key_with_its_default() {
    for text in
        [include_str!("../../../deploy/config/local.toml"), include_str!("../../../deploy/config/kafka.toml")]
    {
        let section = text.split("\n# [qdrant]\n").nth(1).unwrap().split("\n\n").next().unwrap();
        let lines = || section.lines().map(|line| line.strip_prefix("# ").unwrap());
        let set: Vec<&str> = lines().filter(|line| !line.starts_with('#')).collect();
        let config: Config = toml::from_str(&set.join("\n")).unwrap();
        assert_eq!(config, Config { url: "http://127.0.0.1:6334".into(), ..Config::default() });
        assert_eq!(config.problems(), [""; 0]);
        let all: Vec<&str> = lines().map(|line| line.trim_start_matches("# ")).collect();
        let config: Config = toml::from_str(&all.join("\n")).unwrap();
        assert!(config.api_key.is_some() && config.hnsw_ef.is_some() && config.problems().is_empty());
        let named: BTreeSet<&str> = all.iter().filter_map(|line| line.split(" = ").next()).collect();
        let known = serde_json::to_value(&config).unwrap();
        assert_eq!(named, known.as_object().unwrap().keys().map(String::as_str).collect());
    }
}
