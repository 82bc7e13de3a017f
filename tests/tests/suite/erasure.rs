//! Erasing a user: what goes, what stays, and that nothing brings the user back.

use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::job::{Edge, Edges, Job};
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::CotRecord;
use ictflow_schemas::embedding::Embedding;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{self, World, candidates, event, feed, hashed, item, settle, template};
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

const T0: i64 = 1_000_000_000;
const MINUTE: i64 = 60_000;
const USERS: [&str; 4] = ["u1", "u2", "u3", "u4"];

fn world(folder: &Path, job: &str) -> World {
    let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    let semantics = Semantics { cot_stride, ..Semantics::default() };
    let mut world = World::new(folder, job, semantics, world::weights(384));
    world.calls_file = Some(folder.join(format!("{job}.calls")));
    world.snapshots = Some((folder.join("snapshots"), Duration::from_secs(3_600)));
    world
}

fn start(world: &World) -> Job {
    world.start(template(), hashed())
}

/// Each user rates film `b`, then `a`, then later `c` or `e`; and is offered `c` and `d`. The first ratings are final
/// when the last come.
fn script() -> Vec<Value> {
    let mut lines: Vec<Value> =
        ["a", "b", "c", "d", "e"].iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    for (n, user) in USERS.into_iter().enumerate() {
        let (time, stars) = (T0 + MINUTE * n as i64, if n % 2 == 0 { 5.0 } else { 1.0 });
        lines.push(event(user, &format!("{user}-1"), "b", "rate", Some(5.0), time));
        lines.push(event(user, &format!("{user}-2"), "a", "rate", Some(stars), time + 1_000));
    }
    for user in USERS {
        // Only the first rates `e`: no other text is like that.
        let film = if user == "u1" { "e" } else { "c" };
        lines.push(event(user, &format!("{user}-3"), film, "rate", Some(4.0), T0 + 100 * MINUTE));
        lines.push(candidates(user, T0 + 101 * MINUTE, &["c", "d"]));
    }
    lines
}

/// A key of an output names the user.
fn names(key: &[u8], user: &str) -> bool {
    key.windows(user.len()).any(|part| part == user.as_bytes())
}

fn standing(world: &World, topic: Topic, user: &str) -> usize {
    world.compacted(topic).keys().filter(|key| names(key, user)).count()
}

fn cots(world: &World, user: &str) -> Vec<CotRecord> {
    let cots = world.compacted(Topic::Cot).into_values().map(|value| CotRecord::decode(&value).unwrap());
    cots.filter(|cot| cot.user_id == user).collect()
}

fn embedded(world: &World) -> BTreeMap<String, Embedding> {
    let values = world.compacted(Topic::Embeddings).into_values();
    values.map(|value| Embedding::decode(&value).unwrap()).map(|e| (e.digest.clone(), e)).collect()
}

fn gone(world: &World, user: &str) {
    for topic in [Topic::Features, Topic::Examples] {
        assert_eq!(standing(world, topic, user), 0, "{topic:?}");
    }
    assert_eq!(cots(world, user).len(), 0);
}

#[test]
fn an_erased_user_leaves_every_output_log_and_snapshot_and_never_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut job = start(&world);
    feed(&mut job, &script(), world.partitions);
    job.snapshot();
    feed(&mut job, &[event("u2", "u2-4", "d", "click", None, T0 + 102 * MINUTE)], world.partitions);
    job.snapshot();
    let others: Vec<_> = ["u2", "u3", "u4"]
        .iter()
        .map(|u| (standing(&world, Topic::Features, u), standing(&world, Topic::Examples, u)))
        .collect();
    let before = (
        standing(&world, Topic::Features, "u1"),
        standing(&world, Topic::Examples, "u1"),
        cots(&world, "u1").len(),
    );
    assert_eq!(
        before,
        (2, 3, 2),
        "c and d are offered, three ratings are examples, two of them with a history"
    );
    drop(job);

    // One text of the user stands on another user's record, too.
    let shared = cots(&world, "u1").into_iter().find(|cot| cot.item_id == "a").unwrap();
    let twin = CotRecord { user_id: "u9".into(), ..shared.clone() };
    let key = ictflow_schemas::framing::Digest([7; 32]);
    let mut topics = world.topics();
    topics
        .append(&[NewRecord {
            topic: "cot".into(),
            partition: 0,
            timestamp: None,
            key: Some(twin.topic_key(&key)),
            value: Some(twin.encode()),
            headers: Vec::new(),
        }])
        .unwrap();
    let own: Vec<String> = cots(&world, "u1").iter().map(|cot| text_digest(&cot.text).hex()).collect();
    assert!(own.iter().all(|digest| embedded(&world).contains_key(digest)));

    // The job is fenced by the one that erases.
    let mut running = start(&world);
    settle(&mut running);
    let mut job = World { generate: false, ..world.clone() }.try_start(template(), hashed()).unwrap();
    let receipt = job.erase("u1").unwrap();
    assert_eq!((receipt.features, receipt.examples, receipt.cots, receipt.demonstrations), (2, 3, 2, 2));
    assert_eq!((receipt.embeddings, receipt.embeddings_kept), (1, 1));
    assert!(receipt.snapshot_objects > 0);
    assert!(receipt.not_erased[0].starts_with("3 records of interactions"), "{:?}", receipt.not_erased);
    gone(&world, "u1");
    let left = embedded(&world);
    assert!(left.contains_key(&text_digest(&shared.text).hex()), "another record has the text");
    assert_eq!(own.iter().filter(|digest| left.contains_key(*digest)).count(), 1);
    assert!(!job.demonstrations().iter().any(|c| &*c.identity.user == "u1"));
    let refused = world::append_and_step(&mut running, &[item("f", Some("Film f"), "1")], world.partitions);
    assert!(refused.unwrap_err().to_string().contains("fenced"));
    // A job that was fenced still has the user, and must not keep it.
    running.snapshot();
    for file in world::files(&folder.path().join("snapshots")) {
        assert!(!names(&std::fs::read(&file).unwrap(), "u1"), "{}", file.display());
    }
    // Others keep what they had.
    let after: Vec<_> = ["u2", "u3", "u4"]
        .iter()
        .map(|u| (standing(&world, Topic::Features, u), standing(&world, Topic::Examples, u)))
        .collect();
    assert_eq!(after, others);
    drop((running, job));

    // From a snapshot, from the beginning, and as another job: the user stays away, nothing is asked.
    let calls = world::calls(world.calls_file.as_ref().unwrap()).len();
    for snapshots in [world.snapshots.clone(), None] {
        let mut job = start(&World { snapshots, ..world.clone() });
        settle(&mut job);
        // Of interactions a start from a snapshot reads none of the user, of candidates it does.
        assert!(job.judgements().erased > 0);
        gone(&world, "u1");
    }
    assert_eq!(world::calls(world.calls_file.as_ref().unwrap()).len(), calls);

    // New events of the user count again, without the past.
    let mut job = start(&world);
    let time = T0 + 103 * MINUTE;
    let lines =
        [event("u1", "new-1", "a", "click", None, time), event("u1", "new-2", "b", "click", None, time + 1)];
    feed(&mut job, &lines, world.partitions);
    assert_eq!(standing(&world, Topic::Examples, "u1"), 2);
    let second = job.erase("u1").unwrap();
    assert_eq!(second.examples, 2);
    gone(&world, "u1");
}

#[test]
fn a_kill_at_any_edge_of_an_erasure_is_finished_by_the_next_start() {
    for edge in [Edge::BoundsRecorded, Edge::PointsAcknowledged, Edge::BeforeCommit, Edge::Committed] {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path(), "job");
        let mut job = start(&world);
        feed(&mut job, &script(), world.partitions);
        job.snapshot();
        drop(job);
        let killing = World {
            edges: Edges::new(move |at, _| assert!(at != edge, "killed")),
            generate: false,
            ..world.clone()
        };
        let mut job = killing.start(template(), hashed());
        let killed = catch_unwind(AssertUnwindSafe(|| job.erase("u1")));
        assert!(killed.is_err(), "{edge:?}");
        drop(job);
        settle(&mut start(&world));
        gone(&world, "u1");
        for file in world::files(&folder.path().join("snapshots")) {
            assert!(!names(&std::fs::read(&file).unwrap(), "u1"), "{edge:?} {}", file.display());
        }
    }
}

#[test]
fn an_answer_that_was_under_way_is_retracted() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut job = start(&world);
    feed(&mut job, &script(), world.partitions);
    let late = cots(&world, "u1")[0].clone();
    let mut key = None;
    read_whole(&mut *world.topics(), "cot", |record| {
        let value = record.value.as_deref().map(|value| CotRecord::decode(value).unwrap());
        if value.as_ref() == Some(&late) {
            key = Some((record.key, record.partition));
        }
    })
    .unwrap();
    job.erase("u1").unwrap();
    let (key, partition) = key.unwrap();
    let record = NewRecord {
        topic: "cot".into(),
        partition,
        timestamp: None,
        key,
        value: Some(late.encode()),
        headers: Vec::new(),
    };
    job.topics().append(&[record]).unwrap();
    settle(&mut job);
    gone(&world, "u1");
}
