//! Dead letters: a replay after a fix, and the ratio above which a job stops.

mod ratio;
mod replay;

use crate::bad_input::{dead_letters, standing};
use ictflow_connectors::Result;
use ictflow_dataflows::dead_letters::Selection;
use ictflow_dataflows::dead_letters::replay::{Line, Of, Outcome, Refusal, Report, replay};
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::topic::{HEADER_REPLAY_OF, NewRecord, Topic};
use ictflow_tests::support::world::{self, World, candidates, event, item};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const T0: i64 = 1_700_000_000_000;
const MINUTE: i64 = 60_000;

fn world(folder: &Path, job: &str) -> World {
    let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    World::new(folder, job, Semantics { cot_stride, ..Semantics::default() }, world::weights(384))
}

/// Films, then three users who rate them and are offered others.
fn script() -> Vec<Value> {
    let mut lines: Vec<Value> =
        ["a", "b", "c", "d"].iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    for (n, user) in ["ann", "bob", "eve"].into_iter().enumerate() {
        let time = T0 + 10_000 * n as i64;
        lines.extend([
            event(user, &format!("{user}-1"), "b", "rate", Some(5.0), time),
            event(user, &format!("{user}-2"), "a", "impression", None, time + 60_000),
            event(user, &format!("{user}-3"), "a", "rate", Some(1.0 + 2.0 * n as f64), time + 65_000),
            event(user, &format!("{user}-4"), "c", "click", None, time + 120_000),
            candidates(user, time + 130_000, &["c", "d"]),
        ]);
    }
    lines
}

/// The partition of a user.
fn home(user: &str, partitions: u32) -> u32 {
    Partitioner::Murmur2.partition(user.as_bytes(), partitions)
}

/// A record on the partition after its own.
fn astray(mut line: Value, partitions: u32) -> Value {
    let key = line["key"].as_str().unwrap().to_owned();
    line["partition"] = ((home(&key, partitions) + 1) % partitions).into();
    line
}

/// Bytes that are no value of any topic.
fn garbage(user: &str, time: i64) -> Value {
    serde_json::json!({"topic": "interactions", "key": user, "timestamp": time, "raw": "ffff00"})
}

/// The features and examples that stand, without the wall-clock; there are some.
fn outputs(world: &World) -> BTreeMap<Vec<u8>, String> {
    let out = standing(world);
    assert!(!out.is_empty());
    out
}

/// Replays a world's dead letters.
fn again(world: &World, selection: &Selection, dry: bool) -> Result<(Report, Vec<Line>)> {
    let names = world.names();
    let of = Of { job: &world.job, names: &names, semantics: Arc::new(world.semantics.clone()) };
    let mut lines = Vec::new();
    let mut topics = world.try_topics(true)?;
    let report = replay(&mut *topics, &of, selection, dry, |line| lines.push(line.clone()))?;
    Ok((report, lines))
}

/// Replays all of a world's dead letters: how many were replayed, were before, and were refused, each by its
/// name.
fn all_again(world: &World) -> (u64, u64, BTreeMap<&'static str, u64>) {
    let (report, lines) = again(world, &Selection::default(), false).unwrap();
    let count =
        |wanted: fn(&Outcome) -> bool| lines.iter().filter(|line| wanted(&line.outcome)).count() as u64;
    assert_eq!(report.replayed, count(|outcome| matches!(outcome, Outcome::Replayed(_))));
    assert_eq!(report.before, count(|outcome| matches!(outcome, Outcome::Before)));
    assert_eq!(report.refused.values().sum::<u64>(), count(|outcome| matches!(outcome, Outcome::Refused(_))));
    assert_eq!((report.left, lines.len()), (0, dead_letters(world).len()));
    let refused = report.refused.iter().map(|(refusal, count): (&Refusal, _)| (refusal.word(), *count));
    (report.replayed, report.before, refused.collect())
}

/// The records on a topic that are replays, by what they are replays of.
fn replays(world: &World, topic: Topic) -> BTreeMap<String, NewRecord> {
    let mut found = BTreeMap::new();
    ictflow_dataflows::epochs::read_whole(&mut *world.raw_topics(), world.names().of(topic), |record| {
        let header = record.headers.iter().find(|(header, _)| header == HEADER_REPLAY_OF);
        if let Some((_, position)) = header {
            let new = NewRecord {
                topic: topic.name().to_owned(),
                partition: record.partition,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: Vec::new(),
            };
            let twice = found.insert(String::from_utf8(position.clone()).unwrap(), new);
            assert!(twice.is_none(), "{position:?} was replayed twice");
        }
    })
    .unwrap();
    found
}
