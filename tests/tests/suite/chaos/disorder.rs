//! R12: events that come shuffled within the lateness, twice, hopelessly late, or all once more behind
//! themselves. The outputs are those of the events sorted, each once.

use crate::parity::verify;
use fastrand::Rng;
use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::chaos::{first_seed, rounds};
use ictflow_tests::support::world::{self, World, candidates, hashed, item, play, settle, template};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const START: i64 = 1_700_000_000_000;
const EVENTS: i64 = 1_500;
/// Event time between two events: all of them take 75 minutes, several attribution windows.
const PACE: i64 = 3_000;
const USERS: usize = 25;
const ITEMS: usize = 40;
/// Events of an epoch: disorder reaches over several.
const BLOCK: usize = 60;
/// Events that come hopelessly late.
const HOPELESS: usize = 12;

fn semantics() -> Semantics {
    let cot_stride = CotStride { positive: 2, explicit_negative: 2, implicit_negative: 2 };
    Semantics {
        cot_stride,
        history_length: 6,
        prompt_history: 4,
        max_demonstrations: 100,
        ..Semantics::default()
    }
}

/// The catalog and the candidate sets: what has no order among events.
fn opening(rng: &mut Rng) -> Vec<Value> {
    let ids: Vec<String> = (0..ITEMS).map(|n| format!("i{n}")).collect();
    let mut lines: Vec<Value> = ids.iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    for user in 0..USERS {
        let offered: Vec<&str> = (0..6).map(|_| ids[rng.usize(..ITEMS)].as_str()).collect();
        lines.push(candidates(&format!("u{user}"), START, &offered));
    }
    lines
}

fn event(
    time: i64,
    id: String,
    user: usize,
    of: usize,
    kind: &str,
    value: Option<f64>,
    shown: Option<&str>,
) -> Value {
    json!({
        "topic": "interactions", "key": format!("u{user}"), "timestamp": time,
        "value": {
            "event_id": id, "user_id": format!("u{user}"), "item_id": format!("i{of}"), "kind": kind,
            "value": value, "impression_id": shown, "event_time": time,
        },
    })
}

/// Events in their order, each once, no two at one time.
fn sorted(rng: &mut Rng) -> Vec<Value> {
    let mut shown: Vec<(usize, usize, String)> = Vec::new();
    (0..EVENTS)
        .map(|n| {
            let time = START + n * PACE + rng.i64(0..PACE);
            let (id, user, of) = (format!("e{n}"), rng.usize(..USERS), rng.usize(..ITEMS));
            let outcomes =
                [("like", None), ("skip", None), ("rate", Some(4.5)), ("play", Some(0.2)), ("click", None)];
            let (kind, value) = outcomes[rng.usize(..outcomes.len())];
            match rng.u32(..10) {
                0..=4 => {
                    shown.push((user, of, id.clone()));
                    event(time, id, user, of, "impression", None, None)
                }
                5..=7 if !shown.is_empty() => {
                    let recent = shown.len().saturating_sub(30);
                    let (user, of, impression) = shown[rng.usize(recent..shown.len())].clone();
                    let named = rng.bool().then_some(impression.as_str());
                    event(time, id, user, of, kind, value, named)
                }
                _ => event(time, id, user, of, kind, value, None),
            }
        })
        .collect()
}

fn time(line: &Value) -> i64 {
    line["value"]["event_time"].as_i64().unwrap()
}

/// Delivers each event at most the lateness after its time, one in ten a second time, and some that are new
/// hopelessly late. Gives the lines and how many came twice.
fn disordered(rng: &mut Rng, sorted: &[Value], lateness: i64) -> (Vec<Value>, u64) {
    let mut placed: Vec<(i64, Value)> = Vec::new();
    let mut twice = 0;
    let place = |rng: &mut Rng, line: &Value| {
        let when = time(line) + rng.i64(0..lateness);
        let mut line = line.clone();
        line["timestamp"] = json!(when);
        (when, line)
    };
    for line in sorted {
        placed.push(place(rng, line));
        if rng.u32(..10) == 0 {
            placed.push(place(rng, line));
            twice += 1;
        }
    }
    placed.sort_by_key(|(when, _)| *when);
    let mut lines: Vec<Value> = placed.into_iter().map(|(_, line)| line).collect();
    // By then the partition of every user has seen events of half an hour later.
    for n in 0..HOPELESS {
        let at = rng.usize(lines.len() * 3 / 4..=lines.len());
        let mut line = event(START + n as i64, format!("h{n}"), rng.usize(..USERS), 0, "like", None, None);
        line["timestamp"] = json!(START + EVENTS * PACE);
        lines.insert(at, line);
    }
    (lines, twice)
}

/// Copies the answers of one world into another, so that both have the same.
fn copy_answers(from: &World, to: &World) {
    let mut topics = to.topics();
    for topic in [Topic::Cot, Topic::Embeddings] {
        let name = from.names().of(topic).to_owned();
        let count = from.topics().partitions(&name).unwrap().unwrap();
        topics.ensure(&name, count, topic.policy()).unwrap();
        let mut records = Vec::new();
        read_whole(&mut *from.topics(), &name, |record| {
            records.push(NewRecord {
                topic: name.clone(),
                partition: record.partition,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: record.headers,
            });
        })
        .unwrap();
        topics.append(&records).unwrap();
    }
}

/// Dead letters by reason.
fn letters(world: &World) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for value in world.compacted(Topic::DeadLetters).values() {
        *counts.entry(DeadLetter::decode(value).unwrap().reason).or_default() += 1;
    }
    counts
}

fn same_outputs(seed: u64, what: &str, found: &World, expected: &World) {
    for topic in [Topic::Features, Topic::Examples] {
        let (found, expected) = (found.compacted(topic), expected.compacted(topic));
        let different = expected.iter().filter(|(key, value)| found.get(*key) != Some(value)).count();
        assert_eq!((found.len(), different), (expected.len(), 0), "seed {seed}, {what}: {topic:?}");
    }
}

fn started(world: &World) -> Job {
    world.start(template(), hashed())
}

fn undergo(seed: u64, folder: &Path, with_oracle: bool) {
    let mut rng = Rng::with_seed(seed);
    let (opening, sorted) = (opening(&mut rng), sorted(&mut rng));
    let weights = world::weights(384);
    let ordered = World::new(&folder.join("ordered"), "job", semantics(), weights.clone());
    let disturbed =
        World { generate: false, ..World::new(&folder.join("disturbed"), "job", semantics(), weights) };
    std::fs::create_dir_all(folder.join("ordered")).unwrap();
    std::fs::create_dir_all(folder.join("disturbed")).unwrap();
    let lateness = disturbed.semantics.lateness_ms;

    let mut job = started(&ordered);
    let whole: Vec<Value> = opening.iter().chain(&sorted).cloned().collect();
    play(&mut job, &whole, ordered.partitions, whole.len());
    assert_eq!((job.judgements().accepted, job.judgements().seen), (EVENTS as u64, 0), "seed {seed}");
    drop(job);
    copy_answers(&ordered, &disturbed);

    let (lines, twice) = disordered(&mut rng, &sorted, lateness);
    let mut job = started(&disturbed);
    let whole: Vec<Value> = opening.iter().chain(&lines).cloned().collect();
    play(&mut job, &whole, disturbed.partitions, BLOCK);
    same_outputs(seed, "shuffled", &disturbed, &ordered);
    assert!(disturbed.compacted(Topic::Features).len() > 100, "seed {seed}");
    let judged = job.judgements().clone();
    assert_eq!((judged.accepted, judged.seen), (EVENTS as u64, twice), "seed {seed}");
    assert_eq!(letters(&disturbed), BTreeMap::from([("late".into(), HOPELESS as u64)]), "seed {seed}");
    assert_eq!(judged.dead_letters.get("late"), Some(&(HOPELESS as u64)), "seed {seed}");
    assert!(twice > EVENTS as u64 / 20, "seed {seed}: only {twice} came twice");

    // All of it once more: what the windows still know was seen, the rest is late, by each partition's maximum.
    let home = |line: &Value| {
        Partitioner::Murmur2.partition(line["key"].as_str().unwrap().as_bytes(), disturbed.partitions)
    };
    let mut maxima: BTreeMap<u32, i64> = BTreeMap::new();
    for line in &sorted {
        let maximum = maxima.entry(home(line)).or_insert(i64::MIN);
        *maximum = (*maximum).max(time(line));
    }
    let late = lines.iter().filter(|line| time(line) < maxima[&home(line)] - lateness).count() as u64;
    let seen = lines.len() as u64 - late;
    assert!(late > 500 && seen > 50, "seed {seed}: {late} late, {seen} seen");
    play(&mut job, &lines, disturbed.partitions, BLOCK);
    settle(&mut job);
    same_outputs(seed, "replayed behind itself", &disturbed, &ordered);
    assert_eq!(job.judgements().seen, twice + seen, "seed {seed}");
    assert_eq!(letters(&disturbed), BTreeMap::from([("late".into(), HOPELESS as u64 + late)]), "seed {seed}");
    if with_oracle {
        verify(&disturbed, &job, folder, &[]);
    }
}

#[test]
fn disorder_within_the_lateness_changes_no_output() {
    let seed = first_seed(71);
    for seed in seed..seed + rounds(3, 20) {
        println!("seed {seed}");
        let folder = tempfile::tempdir().unwrap();
        // The independent program reads the disordered logs themselves.
        undergo(seed, folder.path(), seed == first_seed(71));
    }
}
