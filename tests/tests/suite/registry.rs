//! Jobs behind a schema registry: a real one with a real Kafka, producers and readers of another
//! language; and a double whose failures the test decides.

use crate::parity::{mutated, semantics, verify};
use ictflow_connectors::registry::{Config, Found, framing};
use ictflow_connectors::secret::Secret;
use ictflow_dataflows::config::checked;
use ictflow_dataflows::config::raw::{self, Raw, TopicsKind};
use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::explain::Lineage;
use ictflow_dataflows::tail;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::feature::{Feature, feature_key};
use ictflow_schemas::framing::{Partitioner, hex};
use ictflow_schemas::topic::{NewRecord, Policy, Record, Topic};
use ictflow_schemas::wire::{Format, Wire, split_single_object, versions};
use ictflow_tests::support::kafka::{Broker, root, unique};
use ictflow_tests::support::oracle::python;
use ictflow_tests::support::registry::{self, Apicurio, Double};
use ictflow_tests::support::world::{
    self, Store, World, candidates, event, hashed, item, record, settle, template,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Interactions as another team has them: another name, order and number type, one field more.
const THEIR_INTERACTIONS: &str = r#"{"type":"record","name":"Click","namespace":"shop.web","fields":[
    {"name":"device","type":"string","default":"tv"},
    {"name":"event_time","type":{"type":"long","logicalType":"timestamp-millis"}},
    {"name":"value","type":["null","float"],"default":null},
    {"name":"impression_id","type":["null","string"],"default":null},
    {"name":"kind","type":"string"},{"name":"item_id","type":"string"},
    {"name":"user_id","type":"string"},{"name":"event_id","type":"string"}]}"#;

/// Items of theirs: no attributes, no time of update.
const THEIR_ITEMS: &str = r#"{"type":"record","name":"Product","fields":[
    {"name":"sku","type":"int","default":7},
    {"name":"tags","type":{"type":"array","items":"string"},"default":[]},
    {"name":"title","type":["string","null"],"default":""},
    {"name":"categories","type":{"type":"array","items":"string"},"default":[]},
    {"name":"language","type":["null","string"],"default":null},
    {"name":"description","type":["null","string"],"default":null},
    {"name":"creator","type":["null","string"],"default":null}]}"#;

/// An id that no registry of these tests gives away.
const NO_ID: u32 = 9_999_999;

pub fn ours(topic: Topic) -> &'static str {
    versions(topic).last().unwrap().source
}

/// Sends records as a producer of another language: in turn under our schema, under theirs, and as
/// single-object Avro without the registry.
fn produce(broker: &Broker, registry: &str, lines: &[Value], world: &World) {
    let mut child = Command::new(python())
        .arg(root().join("tests/registry/produce.py"))
        .args(["--bootstrap", &broker.bootstrap(), "--registry", registry])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    for (i, line) in lines.iter().enumerate() {
        let new = record(line, world.partitions, &world.prefix);
        let (topic, value) = (line["topic"].as_str().unwrap(), &line["value"]);
        let schema = match (topic, i % 3) {
            _ if value.is_null() => None,
            ("interactions", 0) => Some(THEIR_INTERACTIONS),
            ("items", 0) => Some(THEIR_ITEMS),
            ("interactions", 1) => Some(ours(Topic::Interactions)),
            ("items", 1) => Some(ours(Topic::Items)),
            ("candidates", 0 | 1) => Some(ours(Topic::Candidates)),
            _ => None,
        };
        let line = json!({
            "topic": new.topic, "partition": new.partition, "timestamp": new.timestamp,
            "key": new.key.as_deref().map(hex), "value": value, "schema": schema,
            "raw": new.value.as_deref().map(hex),
        });
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the producer failed");
}

/// Every record of a topic as it stands there.
fn standing(world: &World, topic: Topic) -> Vec<Record> {
    let mut records = Vec::new();
    read_whole(&mut *world.raw_topics(), world.names().of(topic), |record| records.push(record)).unwrap();
    records
}

/// The dead letters, by the source's topic, partition and offset.
fn dead_letters(world: &World) -> BTreeMap<(String, i32, i64), DeadLetter> {
    let letters = world.compacted(Topic::DeadLetters);
    let letter = |value: &Vec<u8>| DeadLetter::decode(value).unwrap();
    letters.values().map(letter).map(|l| ((l.topic.clone(), l.partition, l.offset), l)).collect()
}

/// The configuration of a world's job, as a file would give it.
pub fn configuration(world: &World, folder: &Path) -> checked::Config {
    let (kind, kafka, file) = match &world.store {
        Store::Local(file) => (TopicsKind::Local, None, Some(file.clone())),
        Store::Kafka(config) => (TopicsKind::Kafka, Some((**config).clone()), None),
    };
    let names = world.names().roles().into_iter().map(|(name, topic)| (topic, name)).collect();
    let raw = Raw {
        job: Some(world.job.clone()),
        state: Some(folder.to_owned()),
        topics: raw::Topics { kind, kafka, file, names, ..raw::Topics::default() },
        registry: world.registry.clone(),
        ..Raw::default()
    };
    checked::Config::check(raw, None).unwrap()
}

#[test]
fn a_job_behind_a_real_registry_equals_the_oracle_over_a_restart() {
    let (broker, registry) = (Broker::shared(), Apicurio::start());
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "600", "--seed", "5", "--partitions", "3"]);
    let mut world = World::new(folder.path(), &unique("framed"), semantics(10), world::weights(384));
    world.store = Store::Kafka(Box::new(broker.config()));
    world.registry = Some(registry::config(registry.url()));
    world.prefix = format!("{}-", unique("registry-job"));
    world.epoch = 400;
    let names = world.names();
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    let (first, second) = script.split_at(script.len() / 2);
    produce(broker, registry.url(), first, &world);
    let lost = NewRecord {
        topic: names.of(Topic::Interactions).to_owned(),
        partition: Partitioner::Murmur2.partition(b"u", world.partitions),
        timestamp: Some(874_724_710_000),
        key: Some(b"u".to_vec()),
        value: Some(framing::join(NO_ID, b"whatever")),
        headers: Vec::new(),
    };
    topics.append(std::slice::from_ref(&lost)).unwrap();

    let mut job = world.start(template(), hashed());
    settle(&mut job);
    verify(&world, &job, folder.path(), &["--no-payload", "--min-features", "30"]);
    let before = world.compacted(Topic::Features);
    drop(job);

    // What was framed is read back byte for byte: a restart finds nothing to publish.
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!((job.totals().committed.features, job.totals().committed.retractions), (0, 0));
    assert_eq!(world.compacted(Topic::Features), before);
    produce(broker, registry.url(), second, &world);
    settle(&mut job);
    verify(&world, &job, folder.path(), &["--no-payload", "--min-features", "60"]);

    // Every dead letter holds its record's bytes as they stand on the topic.
    let letters = dead_letters(&world);
    let mut framed = 0;
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        for record in standing(&world, topic) {
            let place = (names.of(topic).to_owned(), record.partition as i32, record.offset);
            if let Some(letter) = letters.get(&place) {
                let (payload, value) = (letter.payload.as_deref(), record.value.as_deref());
                // An oversized one is cut; what is left are its first bytes.
                let cut = letter.reason == "oversized"
                    && payload.zip(value).is_some_and(|(payload, value)| value.starts_with(payload));
                assert!(cut || payload == value, "{place:?}");
                assert_eq!(letter.key, record.key, "{place:?}");
                framed += usize::from(record.value.as_deref().and_then(framing::split).is_some());
            }
        }
    }
    assert!(framed > 10, "{framed} dead letters of framed records");
    assert!(letters.values().any(|l| l.reason == "unreadable" && l.payload == lost.value));

    // On the topics of ours every value is framed under our schema, which the registry holds.
    let client = registry::client(world.registry.as_ref().unwrap());
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters, Topic::Cot, Topic::Epochs] {
        let Found::Schema(stored) = client.latest(&format!("{}-value", names.of(topic))).unwrap() else {
            panic!("{topic:?} has no schema");
        };
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(json(&stored.text), json(ours(topic)));
        let id = client.lookup(&format!("{}-value", names.of(topic)), ours(topic)).unwrap().unwrap();
        let records = standing(&world, topic);
        assert!(!records.is_empty());
        for record in records {
            if let Some(value) = &record.value {
                assert_eq!(framing::split(value).unwrap().0, id, "{topic:?}");
            }
        }
    }

    // The subscriber's recipe, through the registry; without it the reader says what it needs.
    let features = world.compacted(Topic::Features);
    let read = |more: &[&str]| {
        Command::new(python())
            .arg(root().join("deploy/reader.py"))
            .args(["--bootstrap", &broker.bootstrap(), "--topic", names.of(Topic::Features)])
            .args(["--until-end", "--quiet"])
            .args(more)
            .output()
            .unwrap()
    };
    let output = read(&["--registry", registry.url()]);
    let last: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(last["live"].as_u64().unwrap() as usize, features.len());
    let output = read(&[]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--registry"));

    // `tail` and `explain` work through it.
    let config = configuration(&world, folder.path());
    let mut topics = config.topics(true).unwrap();
    let mut shown = 0;
    read_whole(&mut *topics, names.of(Topic::Features), |record| {
        let raw = record.raw().map(hex);
        let line = tail::line(Topic::Features, "features", &record, Format::Avro, true);
        assert!(line.get("undecodable").is_none() && line["raw"].as_str() == raw.as_deref());
        assert!(raw.is_none_or(|raw| raw.starts_with("00")));
        shown += 1;
    })
    .unwrap();
    assert!(shown >= features.len());
    let lineage = Lineage::read(&mut *topics, &names, &world.job, Format::Avro).unwrap();
    let value = Feature::decode(features.values().next().unwrap()).unwrap();
    assert!(lineage.explain(&value.user_id, &value.item_id).unwrap().contains("ict by "));

    // The check: all fits, then a producer's newest schema doesn't, and neither does one that stands
    // where we write.
    config.check_registry().unwrap();
    let subject = |topic| format!("{}-value", names.of(topic));
    let spoilt = THEIR_INTERACTIONS
        .replace(r#"{"name":"kind","type":"string"},"#, "")
        .replace("timestamp-millis", "timestamp-micros");
    client.register(&subject(Topic::Interactions), &spoilt).unwrap();
    let job_of_another = World { job: unique("other"), ..world.clone() };
    registry.set_compatibility("BACKWARD");
    let foreign = r#"{"type":"record","name":"Feature","fields":[{"name":"x","type":"long"}]}"#;
    let taken = format!("{}-value", job_of_another.names().of(Topic::Features));
    client.register(&taken, foreign).unwrap();
    let error = configuration(&job_of_another, folder.path()).check_registry().unwrap_err().to_string();
    for word in [
        names.of(Topic::Interactions),
        "field kind is missing and has no default",
        "field event_time is timestamp-micros, ours is long: ours are milliseconds",
        &taken,
        "the registry refuses our schema",
    ] {
        assert!(error.contains(word), "{word} in {error}");
    }
    let error = job_of_another.try_topics(false).err().unwrap().to_string();
    assert!(error.contains(&taken) && error.contains("409"), "{error}");
}

/// A world on one file, behind a double, with an item that every example needs.
pub fn small(folder: &Path, double: &Double, job: &str) -> World {
    let semantics = Semantics { cot_stride: crate::parity::semantics(1).cot_stride, ..Semantics::default() };
    let mut world = World::new(folder, job, semantics, world::weights(384));
    world.registry = Some(registry::config(double.url()));
    world
}

/// Puts records on their topics, their values framed under an id, or as they are.
pub fn put(world: &World, lines: &[Value], id: Option<u32>) {
    let mut topics = world.raw_topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(topic.name(), world.partitions, topic.policy()).unwrap();
    }
    let mut records: Vec<NewRecord> = lines.iter().map(|line| record(line, world.partitions, "")).collect();
    for record in &mut records {
        if let (Some(id), Some(value)) = (id, &record.value) {
            record.value = Some(framing::join(id, split_single_object(value).unwrap().1));
        }
    }
    topics.append(&records).unwrap();
}

/// Events of a user: an impression of each item and its outcome, from `at` on.
pub fn events(user: &str, items: &[&str], at: i64) -> Vec<Value> {
    let rated = |(i, item): (usize, &&str)| {
        let time = at + 60_000 * i as i64;
        [
            event(user, &format!("{item}-{at}-shown"), item, "impression", None, time),
            event(user, &format!("{item}-{at}-rated"), item, "rate", Some(5.0), time + 1_000),
        ]
    };
    items.iter().enumerate().flat_map(rated).collect()
}

const NOW: i64 = 1_700_000_000_000;

#[test]
fn a_registry_that_is_down_stops_the_job_and_makes_no_dead_letter() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let world = small(folder.path(), &double, "down");
    let id = double.put("interactions-value", ours(Topic::Interactions));
    put(&world, &[item("a", Some("A"), "1"), item("b", Some("B"), "1")], None);
    put(&world, &events("u", &["a", "b"], NOW), Some(id));

    double.set_down(true);
    let error = world.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains("reach the schema registry") && error.contains("failed 3 times"), "{error}");
    assert!(error.contains("is the registry up?"), "{error}");
    double.set_down(false);
    // As many failures as are waited for; one more is too many.
    double.set_busy(3);
    let error = world.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains("503: busy"), "{error}");
    double.set_busy(2);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(job.judgements().accepted, 4);

    // A known id needs no registry any more, in either direction.
    double.set_down(true);
    double.requests();
    put(&world, &events("u", &["a"], NOW + 600_000), Some(id));
    put(&world, &[candidates("u", NOW + 700_000, &["b"])], None);
    settle(&mut job);
    assert_eq!(job.judgements().accepted, 6);
    // A new one does. The job stops; nothing of the record is lost or refused.
    let other = double.put("interactions-value", &ours(Topic::Interactions).replace("One event", "An event"));
    put(&world, &events("u", &["a"], NOW + 800_000), Some(other));
    let error = job.run_until_idle(|_| {}).unwrap_err().to_string();
    assert!(
        error.contains(&format!("read schema {other}")) && error.contains("is the registry up?"),
        "{error}"
    );
    drop(job);
    assert!(standing(&world, Topic::DeadLetters).is_empty());
    double.set_down(false);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(job.judgements().accepted, 8);
    assert!(world.compacted(Topic::DeadLetters).is_empty());
    assert!(!world.compacted(Topic::Features).is_empty());
    // A schema was asked for once by each process that met it, whatever the number of its records.
    let asked = double.requests();
    assert_eq!(
        asked.iter().filter(|r| r.ends_with(&format!("/schemas/ids/{other}"))).count(),
        1,
        "{asked:?}"
    );
}

#[test]
fn an_unknown_id_is_a_dead_letter_with_its_raw_bytes_and_a_stray_answer_is_none() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let world = small(folder.path(), &double, "unknown");
    let id = double.put("interactions-value", ours(Topic::Interactions));
    let never = double
        .put("interactions-value", r#"{"type":"record","name":"R","fields":[{"name":"x","type":"int"}]}"#);
    put(&world, &[item("a", Some("A"), "1")], Some(NO_ID));
    put(&world, &events("u", &["a"], NOW), Some(NO_ID));
    put(&world, &events("v", &["a"], NOW), Some(never));
    put(&world, &events("w", &["a"], NOW), Some(id));
    // The right schema before bytes that aren't its datum, and what isn't framed at all.
    let bytes = [framing::join(id, &[7; 9]), vec![0, 0, 0], vec![0], Vec::new()];
    let mut records = Vec::new();
    for value in &bytes {
        let mut record = record(&event("x", "e", "a", "click", None, NOW), world.partitions, "");
        record.value = Some(value.clone());
        records.push(record);
    }
    world.raw_topics().append(&records).unwrap();
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(job.judgements().accepted, 2);
    assert_eq!(job.judgements().dead_letters, BTreeMap::from([("unreadable", 9)]));
    let letters = dead_letters(&world);
    assert_eq!(letters.len(), 9);
    for topic in [Topic::Interactions, Topic::Items] {
        for record in standing(&world, topic) {
            let place = (topic.name().to_owned(), record.partition as i32, record.offset);
            assert_eq!(letters.contains_key(&place), record.key.as_deref() != Some(b"w"), "{place:?}");
            if let Some(letter) = letters.get(&place) {
                assert_eq!((&letter.payload, letter.stage.as_str()), (&record.value, "accept"), "{place:?}");
            }
        }
    }
    // Asked twice for each topic that has it, then taken as unknown for a while.
    let asked = double.requests();
    let unknown = asked.iter().filter(|r| r.ends_with(&format!("/schemas/ids/{NO_ID}"))).count();
    assert_eq!(unknown, 4, "{asked:?}");

    // A 404 that isn't the registry's own says nothing about an id.
    let late =
        double.put("interactions-value", &ours(Topic::Interactions).replace("One event", "Some event"));
    put(&world, &events("w", &["a"], NOW + 60_000), Some(late));
    double.set_astray(true);
    let error = job.run_until_idle(|_| {}).unwrap_err().to_string();
    assert!(error.contains("status 404") && error.contains("is registry.url the base of the API"), "{error}");
    drop(job);
    double.set_astray(false);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!((job.judgements().accepted, dead_letters(&world).len()), (4, 9));
    drop(job);

    // A registry that lost our own schemas: the answers on our topics must not count as unusable.
    double.forget();
    double.put("x-value", ours(Topic::Items));
    let error = world.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains("doesn't know id") && error.contains("restore its schemas"), "{error}");
}

#[test]
fn a_job_takes_up_a_registry_over_topics_that_were_written_without_one() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let mut world = small(folder.path(), &double, "migrated");
    let registry = world.registry.take();
    put(&world, &[item("a", Some("A"), "1"), item("b", Some("B"), "1")], None);
    put(&world, &events("u", &["a"], NOW), None);
    put(&world, &[candidates("u", NOW + 5_000, &["a", "b"])], None);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    drop(job);
    let before = world.compacted(Topic::Features);
    assert!(before.contains_key(&feature_key("u", "b")));

    world.registry = registry;
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!(
        (job.totals().committed.features, job.requester().accounting.first_calls),
        (0, 0),
        "nothing is new"
    );
    assert_eq!(world.compacted(Topic::Features), before);
    let id = double.put("interactions-value", ours(Topic::Interactions));
    put(&world, &events("u", &["b"], NOW + 60_000), Some(id));
    put(&world, &[candidates("u", NOW + 120_000, &["a"])], None);
    settle(&mut job);
    assert_eq!(job.judgements().accepted, 4);
    // Both framings stand on one topic, and one view shows both.
    let framed = |r: &Record| r.value.as_deref().is_some_and(|value| framing::split(value).is_some());
    for topic in [Topic::Epochs, Topic::Features, Topic::Interactions] {
        let records = standing(&world, topic);
        assert!(records.iter().any(framed) && !records.iter().all(framed), "{topic:?}");
    }
    for value in world.compacted(Topic::Features).values() {
        Feature::decode(value).unwrap();
    }
    drop(job);
    let mut job = world.start(template(), hashed());
    settle(&mut job);
    assert_eq!((job.totals().committed.features, job.requester().accounting.first_calls), (0, 0));
}

#[test]
fn the_check_names_every_topic_field_and_reason_at_once() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let world = small(folder.path(), &double, "checked");
    let config = configuration(&world, folder.path());
    // Nothing is registered yet: that is no problem, and the check registers nothing.
    config.check_registry().unwrap();
    assert!(double.requests().iter().all(|request| !request.ends_with("/versions")));
    double.put("interactions-value", &ours(Topic::Interactions).replace("\"event_time\"", "\"at\""));
    double
        .put("items-value", r#"{"type":"record","name":"Order","fields":[{"name":"total","type":"long"}]}"#);
    double.put(
        "candidates-value",
        r#"{"type":"record","name":"C","fields":[{"name":"computed_at","type":"string"},
        {"name":"items","type":{"type":"array","items":"long"}}]}"#,
    );
    let features = world.names().of(Topic::Features).to_owned();
    double.put(
        &format!("{features}-value"),
        r#"{"type":"record","name":"Feature","fields":[{"name":"user_id","type":"string"}]}"#,
    );
    let error = config.check_registry().unwrap_err().to_string();
    for words in [
        "topic interactions, subject interactions-value: field event_time is missing and has no default",
        "topic items, subject items-value: it has none of our fields",
        "topic candidates, subject candidates-value: field computed_at is string, ours is long",
        "field items[] is long, ours is string",
        &format!("topic {features}, subject {features}-value: the registry refuses our schema"),
        "READER_FIELD_MISSING_DEFAULT_VALUE",
    ] {
        assert!(error.contains(words), "{words} in {error}");
    }
    // The job itself is refused too, before it writes anything.
    let error = world.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains(&format!("{features}-value")) && error.contains("409"), "{error}");
}

#[test]
fn credentials_go_by_reference_and_schemas_need_not_be_registered_by_the_job() {
    let (double, folder) = (Double::start(), tempfile::tempdir().unwrap());
    let mut world = small(folder.path(), &double, "refused");
    double.set_authorization("Basic aWN0ZmxvdzpvcGVuIHNlc2FtZQ==");
    let error = world.try_topics(false).err().unwrap().to_string();
    assert!(error.contains("status 401") && error.contains("username and password"), "{error}");
    assert_eq!(double.requests().len(), 1, "a refusal isn't tried again");
    let file = folder.path().join("password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let config = Config {
        username: Some("ictflow".into()),
        password: Some(Secret::File { file }),
        register: false,
        ..registry::config(double.url())
    };
    world.registry = Some(config.clone());
    let error = world.try_topics(false).err().unwrap().to_string();
    assert!(error.contains("schemas/wire/") && error.contains("registry.register"), "{error}");
    assert!(!error.contains("sesame"), "{error}");
    let error = configuration(&world, folder.path()).check_registry().unwrap_err().to_string();
    assert_eq!(error.matches("isn't registered, and registry.register is off").count(), 7, "{error}");
    for (name, topic) in world.names().roles() {
        double.put(&config.subject(&name), ours(topic));
    }
    double.requests();
    world.try_topics(false).unwrap();
    assert!(double.requests().iter().all(|request| !request.ends_with("/versions")));
    configuration(&world, folder.path()).check_registry().unwrap();
    // A reader asks for nothing until it meets an id.
    double.requests();
    world.try_topics(true).unwrap();
    assert_eq!(double.requests(), Vec::<String>::new());
}

#[test]
fn a_schema_is_read_up_to_its_limit() {
    let double = Double::start();
    let client = registry::client(&Config { max_schema_bytes: 1_000, ..registry::config(double.url()) });
    let sized = |bytes: usize| {
        let schema = |doc: &str| format!(r#"{{"type":"record","name":"R","doc":"{doc}","fields":[]}}"#);
        schema(&"x".repeat(bytes - schema("").len()))
    };
    for (bytes, fits) in [(1_000, true), (1_001, false), (5_000_000, false)] {
        let id = double.put("x-value", &sized(bytes));
        let found = client.schema(id).unwrap();
        assert_eq!(matches!(&found, Found::Schema(stored) if stored.text.len() == bytes), fits, "{bytes}");
        assert_eq!(found == Found::TooLarge, !fits, "{bytes}");
        assert_eq!(client.latest("x-value").unwrap(), found);
    }
    assert_eq!(client.schema(NO_ID).unwrap(), Found::Unknown);
    assert_eq!(client.latest("y-value").unwrap(), Found::Unknown);
}
