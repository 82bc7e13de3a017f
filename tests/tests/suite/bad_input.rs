//! Bad input of every kind: each has its named outcome, the job goes on, everything else stays as it
//! is, and nothing is dropped in silence.

mod damage;
mod extremes;
mod hostile;
mod lines;

use crate::parity::verify;
use damage::{Outcome, Row, base, rest, rows, sent};
use ictflow_dataflows::dead_letters::ratio::Ratio;
use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::embedding::Embedding;
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{self, World, feed, hashed, settle, template};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub const PARTITIONS: u32 = 3;

/// Every example gets a CoT, so that damage would show in demonstrations too.
pub fn semantics() -> Semantics {
    Semantics {
        cot_stride: CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 },
        ..Semantics::default()
    }
}

/// All the damage that a test wants: no share of it stops these jobs.
pub fn start(folder: &Path, semantics: Semantics, weights: &Arc<Vec<u8>>) -> (World, Job) {
    let mut world = World::new(folder, "bad", semantics, weights.clone());
    world.dead_letters = Ratio::OFF;
    let job = world.start(template(), hashed());
    (world, job)
}

/// The features and examples that stand. When a CoT was written is wall-clock, and differs.
pub fn standing(world: &World) -> BTreeMap<Vec<u8>, String> {
    standing_but(world, |_| ())
}

/// The same, but for what is changed in features before.
fn standing_but(world: &World, change: impl Fn(&mut Feature)) -> BTreeMap<Vec<u8>, String> {
    let mut out = BTreeMap::new();
    for (key, value) in world.compacted(Topic::Features) {
        let mut feature = Feature::decode(&value).unwrap();
        feature.cot_created_at = None;
        change(&mut feature);
        out.insert(key, format!("{feature:?}"));
    }
    for (key, value) in world.compacted(Topic::Examples) {
        out.insert(key, format!("{:?}", ExampleRecord::decode(&value).unwrap()));
    }
    out
}

/// Those that name none of the damage's own ids: as they are, and without what neighbours say. A label that
/// counts speaks of its item to whoever is offered it.
fn outputs(world: &World) -> [BTreeMap<Vec<u8>, String>; 2] {
    let ours = |key: &[u8]| key.windows(2).any(|two| two == b"zz");
    let alone = |feature: &mut Feature| (feature.votes, feature.neighbours) = (vec![], vec![]);
    [standing(world), standing_but(world, alone)].map(|mut out| {
        out.retain(|key, _| !ours(key));
        out
    })
}

/// The dead letters in the order of the topic.
pub fn dead_letters(world: &World) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    read_whole(&mut *world.topics(), world.names().of(Topic::DeadLetters), |record| {
        letters.push(DeadLetter::decode(&record.value.unwrap()).unwrap());
    })
    .unwrap();
    letters
}

/// Every record read is accepted, seen, or a dead letter; none twice.
pub fn account(world: &World, job: &Job) {
    let letters = dead_letters(world);
    let dead = |topic: Topic| letters.iter().filter(|l| l.topic == world.names().of(topic)).count() as u64;
    let on = |topic: Topic| {
        let ends = world.topics().ends(world.names().of(topic)).unwrap();
        ends.iter().sum::<i64>() as u64
    };
    let judged = job.judgements();
    assert_eq!(judged.interactions, on(Topic::Interactions));
    assert_eq!(judged.accepted + judged.seen + dead(Topic::Interactions), judged.interactions);
    assert_eq!(judged.items + dead(Topic::Items), on(Topic::Items));
    assert_eq!(judged.candidates + dead(Topic::Candidates), on(Topic::Candidates));
    let counted: u64 = judged.dead_letters.values().sum();
    assert_eq!(counted, letters.len() as u64);
    let mut places: Vec<_> = letters.iter().map(|l| (&l.topic, l.partition, l.offset)).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), letters.len(), "a dead letter comes twice");
}

/// Appends one record and gives its position.
fn append(job: &mut Job, record: &NewRecord) -> (i32, i64) {
    let offset = job.topics().ends(&record.topic).unwrap()[record.partition as usize];
    job.topics().append(std::slice::from_ref(record)).unwrap();
    (record.partition as i32, offset)
}

/// Plays the base, the damage, and the rest.
fn played(row: &Row, weights: &Arc<Vec<u8>>, clean: &[BTreeMap<Vec<u8>, String>; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let mut semantics = semantics();
    (row.change)(&mut semantics);
    let limit = semantics.max_record_bytes;
    let (world, mut job) = start(folder.path(), semantics, weights);
    feed(&mut job, &base(), PARTITIONS);
    let before = job.judgements().clone();
    let record = row.record();
    let place = append(&mut job, &record);
    settle(&mut job);
    let after = job.judgements().clone();
    feed(&mut job, &rest(), PARTITIONS);

    account(&world, &job);
    let letters = dead_letters(&world);
    match &row.outcome {
        Outcome::Dead(reason) => {
            assert_eq!(letters.len(), 1, "{letters:?}");
            let letter = &letters[0];
            assert_eq!((letter.reason.as_str(), letter.stage.as_str()), (reason.word(), "accept"));
            assert_eq!(
                (letter.topic.as_str(), letter.partition, letter.offset),
                (row.topic.name(), place.0, place.1)
            );
            let key = record.key.clone().map(|key| key[..key.len().min(limit)].to_vec());
            let room = limit - key.as_ref().map_or(0, Vec::len);
            let payload = record.value.clone().map(|value| value[..value.len().min(room)].to_vec());
            assert_eq!(letter.key, key);
            assert!(letter.payload == payload, "the payload isn't the record's");
        }
        Outcome::Seen => assert_eq!((after.seen - before.seen, letters.len()), (1, 0)),
        Outcome::Counts | Outcome::Text(_) => {
            let counts = |j: &ictflow_dataflows::sources::Judgements| j.accepted + j.items + j.candidates;
            assert_eq!((counts(&after) - counts(&before), letters.len()), (1, 0), "{letters:?}");
        }
    }
    if let Outcome::Text(text) = &row.outcome {
        let digest = text_digest(text).hex();
        let embedded = world.compacted(Topic::Embeddings);
        assert!(
            embedded.values().any(|value| Embedding::decode(value).unwrap().digest == digest),
            "this text went on: {text:?}"
        );
    }
    let which = usize::from(matches!(row.outcome, Outcome::Counts) && row.topic == Topic::Interactions);
    let (now, clean) = (&outputs(&world)[which], &clean[which]);
    assert_eq!(now.len(), clean.len());
    for (key, value) in clean {
        assert_eq!(now.get(key), Some(value));
    }
}

#[test]
fn each_kind_of_damage_has_its_outcome_and_changes_nothing_else() {
    let weights = world::weights(384);
    let folder = tempfile::tempdir().unwrap();
    let (world, mut job) = start(folder.path(), semantics(), &weights);
    feed(&mut job, &base(), PARTITIONS);
    feed(&mut job, &rest(), PARTITIONS);
    account(&world, &job);
    let clean = outputs(&world);
    assert!(
        job.sink().features_live() >= 4 && job.sink().features_full_k() > 0,
        "{}",
        job.sink().features_live()
    );
    let rows = rows();
    let mut failed = Vec::new();
    for row in &rows {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| played(row, &weights, &clean)));
        if result.is_err() {
            failed.push(format!("{} of {}", row.name, row.topic.name()));
        }
    }
    assert!(failed.is_empty(), "{} of {} rows failed: {failed:#?}", failed.len(), rows.len());
    // Every reason, and every input.
    for reason in [
        "unreadable",
        "oversized",
        "misrouted",
        "future",
        "late",
        "conflict",
        "window_full",
        "too_many_candidates",
    ] {
        assert!(
            rows.iter().any(|row| matches!(&row.outcome, Outcome::Dead(r) if r.word() == reason)),
            "{reason}"
        );
    }
}

/// Rows for the semantics that a whole job has.
fn plain_rows() -> Vec<Row> {
    rows().into_iter().filter(|row| !row.changes).collect()
}

#[test]
fn all_kinds_of_damage_in_one_job_agree_with_the_oracle() {
    let folder = tempfile::tempdir().unwrap();
    let (world, mut job) = start(folder.path(), semantics(), &world::weights(384));
    feed(&mut job, &base(), PARTITIONS);
    for row in plain_rows() {
        append(&mut job, &row.record());
    }
    settle(&mut job);
    feed(&mut job, &rest(), PARTITIONS);
    account(&world, &job);
    let report = verify(&world, &job, folder.path(), &["--min-features", "4"]);
    assert!(report["compared"]["dead_letters"].as_u64().unwrap() > 40, "{report}");
}

/// A stream of good events, for damage to stand in.
fn stream(events: i64) -> Vec<Value> {
    (0..events)
        .map(|n| {
            let (user, item) = (format!("s{}", n % 17), format!("m{}", 1 + n % 4));
            let kind = ["click", "rate", "impression", "skip"][(n % 4) as usize];
            let value = (kind == "rate").then_some(1.0 + (n % 5) as f64);
            world::event(&user, &format!("s{n}"), &item, kind, value, damage::T + 120_000 + n * 10)
        })
        .collect()
}

#[test]
fn one_record_in_a_hundred_or_every_one_may_be_damaged() {
    let seed = 20_261_124;
    println!("seed {seed}");
    for percent in [1, 100] {
        let mut dice = extremes::Dice(seed);
        let folder = tempfile::tempdir().unwrap();
        let (world, mut job) = start(folder.path(), semantics(), &world::weights(384));
        feed(&mut job, &base(), PARTITIONS);
        let pool: Vec<Row> =
            plain_rows().into_iter().filter(|row| matches!(row.outcome, Outcome::Dead(_))).collect();
        let (mut damaged, mut good) = (0, 0);
        for line in stream(2_000) {
            if dice.below(100) < percent {
                let row = &pool[dice.below(pool.len() as u64) as usize];
                // Large records by the hundred would only take time.
                if row.record().value.as_ref().is_none_or(|value| value.len() < 20_000) {
                    append(&mut job, &row.record());
                    damaged += 1;
                }
            } else {
                world::append(&mut job, &[line], PARTITIONS);
                good += 1;
            }
        }
        settle(&mut job);
        assert_eq!(dead_letters(&world).len(), damaged);
        assert!(if percent == 100 { good == 0 && damaged > 1_500 } else { damaged > 5 }, "{good} {damaged}");
        // And it goes on.
        let live = job.sink().features_live();
        feed(&mut job, &rest(), PARTITIONS);
        assert!(job.sink().features_live() > live);
        account(&world, &job);
        verify(&world, &job, folder.path(), &["--min-features", "4"]);
    }
}

#[test]
fn a_pair_of_an_unknown_item_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (world, mut job) = start(folder.path(), semantics(), &world::weights(384));
    feed(&mut job, &base(), PARTITIONS);
    let (live, pairs) = (job.sink().features_live(), job.sink().pairs_live());
    let time = damage::T + 130_000;
    let unknown = [
        world::event("ann", "zz1", "nowhere", "impression", None, time),
        world::candidates("bob", time, &["m4", "nowhere"]),
    ];
    let accepted = job.judgements().accepted;
    feed(&mut job, &unknown, PARTITIONS);
    // Accepted and counted, its example known in time; no feature of it yet.
    assert_eq!(job.judgements().accepted, accepted + 1);
    assert_eq!((job.sink().features_live(), job.sink().pairs_live()), (live, pairs));
    assert!(dead_letters(&world).is_empty());
    feed(&mut job, &[world::item("nowhere", Some("Here After All"), "1")], PARTITIONS);
    assert_eq!((job.sink().features_live(), job.sink().pairs_live()), (live + 2, pairs + 2));
    account(&world, &job);
    verify(&world, &job, folder.path(), &["--min-features", "4"]);
}

/// Producers on librdkafka's own partitioner: inputs by crc32, and outputs beside them.
#[test]
fn a_job_partitions_by_crc32_where_its_producers_do() {
    use ictflow_schemas::framing::{Partitioner, unframe};
    let crc32 = |user: &str| Partitioner::Crc32.partition(user.as_bytes(), PARTITIONS);
    let murmur2 = |user: &str| Partitioner::Murmur2.partition(user.as_bytes(), PARTITIONS);
    let folder = tempfile::tempdir().unwrap();
    let semantics = Semantics { partitioner: Partitioner::Crc32, ..semantics() };
    let (world, mut job) = start(folder.path(), semantics, &world::weights(384));
    let mut script = [base(), stream(400), rest()].concat();
    for line in &mut script {
        let place = crc32(line["key"].as_str().unwrap());
        if line["topic"] != "items" {
            line["partition"] = place.into();
        }
    }
    feed(&mut job, &script, PARTITIONS);
    assert!(dead_letters(&world).is_empty());
    // One that its producer put where Java would.
    let user = (0..).map(|n| format!("zz{n}")).find(|user| crc32(user) != murmur2(user)).unwrap();
    let mut strayed = [
        world::event(&user, "zz", "m1", "click", None, damage::T + 130_000),
        world::candidates(&user, damage::T, &["m1"]),
    ];
    for line in &mut strayed {
        line["partition"] = murmur2(&user).into();
    }
    feed(&mut job, &strayed, PARTITIONS);
    let reasons: Vec<String> = dead_letters(&world).into_iter().map(|letter| letter.reason).collect();
    assert_eq!(reasons, ["misrouted", "misrouted"]);
    for topic in [Topic::Features, Topic::Examples, Topic::Cot] {
        let mut users = 0;
        read_whole(&mut *world.topics(), world.names().of(topic), |record| {
            let user = match topic {
                Topic::Cot => sent(&record),
                _ => String::from_utf8(unframe(record.key.as_deref().unwrap()).unwrap()[0].to_vec()).unwrap(),
            };
            assert_eq!(record.partition, crc32(&user), "{topic:?}");
            users += 1;
        })
        .unwrap();
        assert!(users > 10, "{topic:?} has {users} records");
    }
    account(&world, &job);
    verify(&world, &job, folder.path(), &["--min-features", "10"]);
}
