//! A whole job on a real Apache Kafka: in by a second client, held against the oracle, out read by
//! others; restarted in between.

use crate::parity::{mutated, semantics, verify};
use ictflow_connectors::kafka::Kafka;
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::check::{Target, check};
use ictflow_dataflows::copies::{self, Copies};
use ictflow_dataflows::tail;
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::framing::{Partitioner, unframe};
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_tests::support::kafka::{Broker, kcat, unique};
use ictflow_tests::support::oracle::python;
use ictflow_tests::support::world::{self, Store, World, event, hashed, record, settle, template};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// Sends records as a client that isn't ours.
pub fn send(producer: &BaseProducer, lines: &[Value], world: &World) {
    for line in lines {
        let new = record(line, world.partitions, &world.prefix);
        let mut message = BaseRecord::<[u8], [u8]>::to(&new.topic).partition(new.partition as i32);
        message.key = new.key.as_deref();
        message.payload = new.value.as_deref();
        message.timestamp = new.timestamp;
        producer.send(message).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(LIMIT).unwrap();
}

/// By partition, the lines of a copy in their order.
fn copied(path: &Path) -> BTreeMap<u32, Vec<String>> {
    let mut lines: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        lines.entry(value["partition"].as_u64().unwrap() as u32).or_default().push(line.to_owned());
    }
    lines
}

/// By partition, the lines that a copy of a topic must have.
fn logged(world: &World, topic: Topic) -> BTreeMap<u32, Vec<String>> {
    let (names, mut lines) = (world.names(), BTreeMap::<u32, Vec<String>>::new());
    let name = names.of(topic);
    ictflow_dataflows::epochs::read_whole(&mut *world.topics(), name, |record| {
        let line = tail::line(topic, name, &record, Format::Avro, false).to_string();
        lines.entry(record.partition).or_default().push(line);
    })
    .unwrap();
    assert!(!lines.is_empty(), "{name}");
    lines
}

#[test]
fn a_job_on_a_real_broker_equals_the_oracle_over_a_restart() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "800", "--seed", "3", "--partitions", "3"]);
    let mut world = World::new(folder.path(), &unique("job"), semantics(10), world::weights(384));
    world.store = Store::Kafka(Box::new(broker.config()));
    world.prefix = format!("{}-", unique("kafka-job"));
    world.epoch = 500;
    let names = world.names();
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    let plain: BaseProducer = broker.client().create().unwrap();
    let (first, second) = script.split_at(script.len() / 2);
    send(&plain, first, &world);
    // What an aborted transaction wrote stays invisible.
    let aborted: BaseProducer = broker.client().set("transactional.id", unique("aborts")).create().unwrap();
    aborted.init_transactions(LIMIT).unwrap();
    aborted.begin_transaction().unwrap();
    let ghost = event("ghost", "g1", "1", "rate", Some(5.0), 874_724_710_000);
    send(&aborted, &[ghost], &world);
    aborted.abort_transaction(LIMIT).unwrap();

    let outputs = [Topic::Features, Topic::Examples, Topic::DeadLetters];
    let path = |topic: Topic| folder.path().join(format!("copy-{}.jsonl", topic.name()));
    let targets = outputs.map(|topic| copies::Target { topic, path: path(topic) });
    let mut copies = Copies::open(&targets, &mut *topics, &names).unwrap();
    let mut job = world.start(template(), hashed());
    copies.start(job.topics()).unwrap();
    settle(&mut job);
    verify(&world, &job, folder.path(), &["--min-features", "50"]);
    // Some of it is copied; then the process dies.
    assert!(copies.copy(job.totals()).unwrap());
    drop(copies);
    let epoch = job.committed();
    drop(job);

    let mut copies = Copies::open(&targets, &mut *topics, &names).unwrap();
    let mut job = world.start(template(), hashed());
    assert_eq!(job.committed(), epoch, "a restart commits nothing by itself");
    copies.start(job.topics()).unwrap();
    send(&plain, second, &world);
    settle(&mut job);
    let totals = job.totals();
    assert!(copies.finish(job.topics(), totals).unwrap());
    for topic in outputs {
        assert_eq!(copied(&path(topic)), logged(&world, topic), "{}", topic.name());
    }
    verify(&world, &job, folder.path(), &["--min-features", "100", "--min-full", "0.3"]);
    let examples = world.compacted(Topic::Examples);
    assert!(examples.values().all(|value| ExampleRecord::decode(value).unwrap().user_id != "ghost"));

    crate::explain::every_demonstration_is_explained(&world);
    crate::export::holds_what_stands(&world, folder.path());

    // Another client sees the same keys, on the partition of the user, each with its headers.
    let features = world.compacted(Topic::Features);
    let output = kcat(broker)
        .args(["-C", "-q", "-e", "-o", "beginning", "-X", "isolation.level=read_committed"])
        .args(["-t", names.of(Topic::Features), "-f", "%p %K %S %h\\n"])
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().count() >= features.len(), "{} lines", lines.lines().count());
    for line in lines.lines() {
        for header in ["ictflow-epoch=", "ictflow-substep=", "ictflow-published-at="] {
            assert!(line.contains(header), "{line}");
        }
    }
    // The subscriber's recipe, by the reader that the README names.
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/reader.py");
    let output = Command::new(python())
        .arg(reader)
        .args(["--bootstrap", &broker.bootstrap(), "--topic", names.of(Topic::Features)])
        .args(["--until-end", "--quiet"])
        .output()
        .unwrap();
    let last: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(last["live"].as_u64().unwrap() as usize, features.len());
    let mut wrong = Vec::new();
    ictflow_dataflows::epochs::read_whole(&mut *world.topics(), names.of(Topic::Features), |record| {
        let key = record.key.unwrap();
        let user = unframe(&key).unwrap()[0].to_vec();
        if Partitioner::Murmur2.partition(&user, world.partitions) != record.partition {
            wrong.push(user);
        }
    })
    .unwrap();
    assert!(wrong.is_empty());
}

#[test]
fn check_finds_on_a_broker_what_a_start_would_refuse_and_makes_nothing() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let (prefix, file) = (unique("check"), folder.path().join("job.toml"));
    let names: String = Topic::ALL.map(|t| format!("{0} = \"{prefix}-{0}\"\n", t.name())).concat();
    let text = format!(
        "state = \"{}\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n[topics]\nkind = \"kafka\"\n\
         [topics.names]\n{names}[topics.kafka]\nbootstrap_servers = [\"{}\"]\n",
        folder.path().join("state").display(),
        broker.bootstrap()
    );
    let checked = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let report = check(&Target::Config(file.clone()), false);
        assert!(report.skipped.is_empty(), "{report:?}");
        report.problems.into_iter().map(|p| format!("{}: {}", p.key, p.problem)).collect::<Vec<_>>()
    };
    let topic = |role: &str| format!("topic {prefix}-{role}");
    let missing = |role: &str| format!("{}: it doesn't exist", topic(role));
    assert_eq!(checked(&text), [missing("interactions"), missing("items")]);
    let mut kafka = Kafka::connect(broker.config()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(kafka.partitions(&format!("{prefix}-interactions")).unwrap(), None, "check makes no topic");
    for (role, count) in [("interactions", 3), ("items", 1), ("features", 2)] {
        kafka.ensure(&format!("{prefix}-{role}"), count, Policy::Compact).unwrap();
    }
    let count = format!("{}: it has 2 partitions, and 3 are needed", topic("features"));
    assert_eq!(checked(&text), std::slice::from_ref(&count));
    // A log of answers that the broker would delete by age.
    kafka.ensure(&format!("{prefix}-cot"), 3, Policy::CompactAndTime).unwrap();
    let forgets = format!("{}: its cleanup.policy is compact,delete, and compact is needed", topic("cot"));
    let found = checked(&text);
    assert!(found.len() == 2 && found.contains(&count) && found.contains(&forgets), "{found:?}");
    // More than the broker's own limit, which features has.
    let large = checked(&format!("{text}message_max_bytes = 2000000\n"));
    for role in ["features", "cot"] {
        let small = |found: &String| found.starts_with(&topic(role)) && found.contains("max.message.bytes");
        assert!(large.iter().any(small), "{role}: {large:?}");
    }
    assert_eq!(large.len(), 4, "{large:?}");
    assert!(!folder.path().join("state").exists());
}
