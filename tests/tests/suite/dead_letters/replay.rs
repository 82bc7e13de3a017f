//! Records that were refused are appended again, once, where that can help.

use super::{MINUTE, T0, again, all_again, astray, garbage, home, outputs, replays, script, world};
use crate::bad_input::dead_letters;
use crate::kafka_job::send;
use crate::parity::verify;
use crate::registry::{configuration, ours, put};
use ictflow_connectors::registry::Config;
use ictflow_dataflows::dead_letters::Selection;
use ictflow_dataflows::dead_letters::replay::{Of, Outcome, Refusal, replay, writer_id};
use ictflow_dataflows::job::{Edge, Edges};
use ictflow_schemas::dead_letter::Reason;
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::registry::{self, Double};
use ictflow_tests::support::world::{
    Store, World, append, candidates, event, feed, hashed, item, record, settle, template,
};
use rdkafka::producer::BaseProducer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The outputs of a job over these lines.
fn of(lines: &[Value]) -> BTreeMap<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "good");
    let mut job = world.start(template(), hashed());
    feed(&mut job, lines, world.partitions);
    assert!(dead_letters(&world).is_empty());
    outputs(&world)
}

#[test]
fn what_a_registry_learns_late_counts_as_if_it_had_been_good_from_the_start() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let mut world = world(folder.path(), "mended");
    world.registry = Some(Config { unknown_id_ms: 0, ..registry::config(double.url()) });
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    // The next ids that the registry will give away.
    let next = double.put("other-value", r#"{"type":"record","name":"R","fields":[]}"#) + 1;
    let inputs = [Topic::Interactions, Topic::Items, Topic::Candidates];
    let id_of = |topic: &str| next + inputs.iter().position(|t| t.name() == topic).unwrap() as u32;
    // An event, a film and a set of each kind under schemas that aren't there yet; the newest event isn't.
    let hidden = |n: usize, line: &Value| {
        let of_users = ["ann-3", "bob-1", "eve-2"].iter().any(|id| line["value"]["event_id"] == *id);
        of_users
            || (line["topic"] == "items" && n == 2)
            || (line["topic"] == "candidates" && line["key"] == "eve")
    };
    let script = script();
    for (n, line) in script.iter().enumerate() {
        let id = hidden(n, line).then(|| id_of(line["topic"].as_str().unwrap()));
        put(&world, std::slice::from_ref(line), id);
    }
    settle(&mut job);
    let letters = dead_letters(&world);
    assert_eq!(letters.len(), 5, "{letters:?}");
    assert!(letters.iter().all(|letter| letter.reason == "unreadable"));
    let clean = of(&script);
    assert_ne!(outputs(&world), clean);
    // Nothing is mended yet: then a replay would only make more dead letters.
    assert_eq!(all_again(&world), (0, 0, BTreeMap::from([("still_refused", 5)])));
    for (topic, n) in inputs.iter().zip(0..) {
        let schema = ours(*topic);
        assert_eq!(double.put(&format!("{}-value", topic.name()), schema), next + n, "{topic:?}");
    }
    // A dry run counts and appends nothing.
    let (dry, lines) = again(&world, &Selection::default(), true).unwrap();
    assert_eq!((dry.replayed, lines.len()), (5, 5));
    assert_eq!(replays(&world, Topic::Interactions).len(), 0);
    assert_eq!(all_again(&world), (5, 0, BTreeMap::new()));
    assert_eq!(all_again(&world), (0, 5, BTreeMap::new()), "twice is once");
    settle(&mut job);
    assert_eq!(all_again(&world), (0, 5, BTreeMap::new()));
    assert_eq!(dead_letters(&world).len(), 5);
    assert_eq!(outputs(&world), clean);
    let of_topic = inputs.map(|topic| replays(&world, topic));
    assert_eq!(of_topic.each_ref().map(BTreeMap::len), [3, 1, 1]);
    // The very bytes, on their partition, at their time.
    for letter in &letters {
        let position = letter.source().to_string();
        let replayed = of_topic.iter().find_map(|replays| replays.get(&position)).unwrap();
        assert_eq!((&replayed.key, &replayed.value), (&letter.key, &letter.payload), "{position}");
        assert_eq!(replayed.partition, letter.partition as u32);
        let sent = script.iter().map(|line| record(line, world.partitions, ""));
        let sent = sent.filter(|sent| (&sent.topic, &sent.key) == (&letter.topic, &letter.key));
        assert!(sent.map(|sent| sent.timestamp).any(|at| at == replayed.timestamp), "{position}");
    }
    // What is judged anew from the beginning accepts each where it stood, and drops the replays as seen.
    drop(job);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(outputs(&world), clean);
    assert_eq!(job.judgements().seen, 3);
}

#[test]
fn misrouted_events_come_back_where_they_belong_and_the_oracle_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "strayed");
    let script = script();
    let strays = |line: &Value| {
        line["topic"] == "interactions" && line["value"]["event_id"].as_str().unwrap().ends_with('3')
    };
    let sent: Vec<Value> =
        script.iter().map(|line| if strays(line) { astray(line.clone(), 3) } else { line.clone() }).collect();
    let mut job = world.start(template(), hashed());
    feed(&mut job, &sent, world.partitions);
    assert_eq!(dead_letters(&world).len(), 3);
    assert_eq!(all_again(&world), (3, 0, BTreeMap::new()));
    settle(&mut job);
    assert_eq!(all_again(&world), (0, 3, BTreeMap::new()));
    for replayed in replays(&world, Topic::Interactions).values() {
        let user = String::from_utf8(replayed.key.clone().unwrap()).unwrap();
        assert_eq!(replayed.partition, home(&user, world.partitions));
    }
    assert_eq!(outputs(&world), of(&script));
    verify(&world, &job, folder.path(), &["--min-features", "3"]);
    drop(job);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(outputs(&world), of(&script));
    verify(&world, &job, folder.path(), &["--min-features", "3"]);
}

#[test]
fn what_cannot_come_back_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "refused");
    world.semantics.max_id_bytes = 16;
    let mut job = world.start(template(), hashed());
    feed(&mut job, &script(), world.partitions);
    let now = T0 + 140_000;
    let mut future = event("ann", "f", "a", "click", None, now + 6 * MINUTE);
    future["timestamp"] = now.into();
    let mut keyless = garbage("ann", now);
    keyless["key"] = Value::Null;
    let mut film = garbage("a", now);
    film["topic"] = "items".into();
    let mut other = film.clone();
    other["key"] = "b".into();
    let mut set = garbage("ann", now);
    set["topic"] = "candidates".into();
    let bad = [
        ("late", event("ann", "l", "a", "click", None, now - 20 * MINUTE)),
        ("future", future),
        ("conflict", event("ann", "ann-4", "d", "click", None, T0 + 120_000)),
        ("limit", event("ann", &"x".repeat(17), "a", "click", None, now)),
        ("still_refused", garbage("bob", now)),
        ("no_key", keyless),
        ("newer", film),
        ("still_refused", other),
        ("strayed_set", astray(candidates("ann", now, &["c"]), 3)),
        ("newer", set),
        ("erased", astray(event("eve", "gone", "a", "click", None, now), 3)),
        ("erased", garbage("eve", now)),
        ("too_late_now", astray(event("ann", "slow", "a", "click", None, now), 3)),
    ];
    for (_, line) in &bad {
        append(&mut job, std::slice::from_ref(line), world.partitions);
    }
    settle(&mut job);
    assert_eq!(dead_letters(&world).len(), bad.len());
    // What comes afterwards: newer records of two keys, an erasure, and time on ann's partition.
    let after = [
        item("a", Some("Film a, again"), "1"),
        candidates("ann", now + 1, &["d"]),
        event("ann", "last", "a", "click", None, now + 11 * MINUTE),
    ];
    feed(&mut job, &after, world.partitions);
    job.erase("eve").unwrap();
    let before = job.topics().ends("interactions").unwrap();
    let (report, lines) = again(&world, &Selection::default(), false).unwrap();
    assert_eq!((report.replayed, report.before, report.left), (0, 0, 0), "{lines:?}");
    let letters = dead_letters(&world);
    let mut found: Vec<(&str, String)> = Vec::new();
    for line in &lines {
        let Outcome::Refused(refusal) = line.outcome else { panic!("{line:?}") };
        let letter = letters.iter().find(|letter| letter.source() == line.source).unwrap();
        assert_eq!(line.reason, letter.reason);
        found.push((refusal.word(), format!("{:?} {:?}", letter.topic, letter.key)));
    }
    let mut wanted: Vec<(&str, String)> = bad
        .iter()
        .map(|(word, line)| {
            let key = line["key"].as_str().map(|key| key.as_bytes().to_vec());
            (*word, format!("{:?} {key:?}", line["topic"].as_str().unwrap()))
        })
        .collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    assert_eq!(job.topics().ends("interactions").unwrap(), before, "nothing was appended");
    // One by one they have the same names, and so they have in a dry run.
    for line in &lines {
        let selection = Selection {
            topic: Some(line.source.topic.clone()),
            partition: Some(line.source.partition),
            offsets: Some(line.source.offset..line.source.offset + 1),
            ..Selection::default()
        };
        assert_eq!(again(&world, &selection, true).unwrap().1, std::slice::from_ref(line));
    }
    let late = Selection { reason: Some(Reason::Late), ..Selection::default() };
    let (report, _) = again(&world, &late, false).unwrap();
    assert_eq!(report.refused, BTreeMap::from([(Refusal::Late, 1)]));
}

/// Two late in turn: the later one must not make the earlier one late.
#[test]
fn replays_are_judged_with_what_no_epoch_holds_yet_and_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "order");
    let mut job = world.start(template(), hashed());
    let other = (0..).map(|n| format!("u{n}")).find(|u| home(u, 3) == home("ann", 3)).unwrap();
    let lines = [
        event("ann", "0", "a", "click", None, T0),
        astray(event("ann", "1", "a", "click", None, T0 + MINUTE), 3),
        astray(event(&other, "2", "a", "click", None, T0 + 10 * MINUTE), 3),
        astray(event("ann", "3", "a", "click", None, T0 + 11 * MINUTE), 3),
    ];
    feed(&mut job, &lines, world.partitions);
    assert_eq!(dead_letters(&world).len(), 3);
    // The job hasn't read this yet, and will before it reads a replay: the first is late by then.
    append(&mut job, &[event("ann", "4", "a", "click", None, T0 + 11 * MINUTE + 1)], world.partitions);
    assert_eq!(all_again(&world), (2, 0, BTreeMap::from([("too_late_now", 1)])));
    settle(&mut job);
    assert_eq!(job.judgements().accepted, 4);
    assert_eq!(dead_letters(&world).len(), 3, "none was refused again");
}

#[test]
fn a_replay_that_is_refused_again_is_a_letter_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "again");
    world.semantics.max_window_events = 2;
    let mut job = world.start(template(), hashed());
    let lines: Vec<Value> =
        (0..3).map(|n| event("ann", &n.to_string(), "a", "click", None, T0 + n)).collect();
    feed(&mut job, &lines, world.partitions);
    assert_eq!(dead_letters(&world).len(), 1);
    assert_eq!(all_again(&world), (1, 0, BTreeMap::new()));
    settle(&mut job);
    // Its window is still full. The first is done with, its replay may be tried again.
    assert_eq!(dead_letters(&world).len(), 2);
    assert_eq!(all_again(&world), (1, 1, BTreeMap::new()));
    assert_eq!(replays(&world, Topic::Interactions).len(), 2);
}

#[test]
fn a_run_is_fenced_by_the_next_and_by_an_erasure() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "fenced");
    let mut job = world.start(template(), hashed());
    let mut lines = script();
    lines.push(astray(event("ann", "ann-5", "a", "click", None, T0 + 130_000), 3));
    feed(&mut job, &lines, world.partitions);
    let of_ann = |world: &World| {
        let keys: Vec<Vec<u8>> = world.compacted(Topic::Examples).into_keys().collect();
        keys.iter().filter(|key| key.windows(3).any(|part| part == b"ann")).count()
    };
    assert_eq!(of_ann(&world), 3);
    drop(job);
    // While the erasure is under way a replay that read the bounds before it appends ann's event.
    let (raw, other) = (world.clone(), Arc::new(AtomicU32::new(0)));
    let replayed = other.clone();
    let interfering = World {
        edges: Edges::new(move |edge, _| {
            if edge == Edge::BoundsRecorded && replayed.fetch_add(1, Ordering::SeqCst) == 0 {
                let mut topics = raw.raw_topics();
                let mut writer = topics.writer(&writer_id(&raw.job)).unwrap();
                let new =
                    record(&event("ann", "ann-5", "a", "click", None, T0 + 130_000), raw.partitions, "");
                writer.commit(&[new], &[]).unwrap();
            }
        }),
        generate: false,
        ..world.clone()
    };
    let mut job = interfering.start(template(), hashed());
    let epoch = job.committed();
    let mut earlier = world.raw_topics().writer(&writer_id(&world.job)).unwrap();
    let receipt = job.erase("ann").unwrap();
    assert_eq!(other.load(Ordering::SeqCst), 2, "the erasure is made again");
    assert_eq!((receipt.epoch, job.committed()), (epoch + 2, epoch + 2));
    assert_eq!(receipt.examples, 3);
    settle(&mut job);
    assert_eq!(of_ann(&world), 0);
    assert_eq!(job.judgements().erased, 1);
    // A run that was under way when it began can't append any more.
    let refused = earlier.commit(&[record(&event("ann", "x", "a", "click", None, T0), 3, "")], &[]);
    assert!(refused.unwrap_err().to_string().contains("fenced"));
    assert_eq!(all_again(&world), (0, 0, BTreeMap::from([("erased", 1)])));
    // What the user does from now on counts, and may be replayed.
    let line = garbage("ann", T0 + 140_000);
    feed(&mut job, &[line], world.partitions);
    assert_eq!(all_again(&world), (0, 0, BTreeMap::from([("erased", 1), ("still_refused", 1)])));
}

#[test]
fn other_semantics_than_recorded_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "other");
    assert!(again(&world, &Selection::default(), true).is_err(), "no job has run");
    let mut job = world.start(template(), hashed());
    feed(&mut job, &script(), world.partitions);
    let mut other = world.clone();
    other.semantics.lateness_ms += 1;
    let error = again(&other, &Selection::default(), true).unwrap_err().to_string();
    assert!(error.contains("[semantics] differ"), "{error}");
}

#[test]
fn on_a_real_broker_twice_is_once_and_the_oracle_agrees() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), &unique("letters"));
    world.prefix = format!("{}-", unique("letters"));
    let names = world.names();
    let inputs = [Topic::Interactions, Topic::Items, Topic::Candidates];
    // The job reads its inputs without headers, as it does by default; a replay needs them.
    let mut config = broker.config();
    config.topics_without_headers = inputs.iter().map(|topic| names.of(*topic).to_owned()).collect();
    world.store = Store::Kafka(Box::new(config));
    let mut topics = world.topics();
    for topic in inputs {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    let plain: BaseProducer = broker.client().create().unwrap();
    let script = script();
    let strays = |line: &Value| line["topic"] == "interactions" && line["value"]["event_id"] != "eve-1";
    let mut sent: Vec<Value> =
        script.iter().map(|line| if strays(line) { astray(line.clone(), 3) } else { line.clone() }).collect();
    sent.push(event("eve", "late", "a", "click", None, T0 - 20 * MINUTE));
    send(&plain, &sent, &world);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    let letters = dead_letters(&world);
    assert_eq!(letters.len(), 12);
    let of = Of { job: &world.job, names: &names, semantics: Arc::new(world.semantics.clone()) };
    let run = |dry: bool| {
        let mut topics = configuration(&world, folder.path()).topics_of_replay(dry).unwrap();
        let report = replay(&mut *topics, &of, &Selection::default(), dry, |_| {}).unwrap();
        (report.replayed, report.before, report.refused)
    };
    let late = || BTreeMap::from([(Refusal::Late, 1)]);
    assert_eq!(run(true), (11, 0, late()));
    assert_eq!(run(false), (11, 0, late()));
    assert_eq!(run(false), (0, 11, late()));
    settle(&mut job);
    assert_eq!(run(false), (0, 11, late()));
    assert_eq!(dead_letters(&world).len(), 12);
    assert_eq!(outputs(&world), super::replay::of(&script));
    verify(&world, &job, folder.path(), &["--min-features", "3"]);
    drop(job);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    verify(&world, &job, folder.path(), &["--min-features", "3"]);
}
