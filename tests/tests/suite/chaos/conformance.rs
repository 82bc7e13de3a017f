//! R0: what exactly-once rests on, row by row, on Apache Kafka and on a double that lies.

use ictflow_connectors::kafka::conformance::{Report, Row};
use ictflow_connectors::kafka::{Config as KafkaConfig, Kafka};
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::check::{Report as Checked, Target, check, probe};
use ictflow_dataflows::config::checked::Config;
use ictflow_dataflows::conformance::before_a_new_job;
use ictflow_tests::support::kafka::{Broker, unique};
use rdkafka::mocking::MockCluster;
use std::path::{Path, PathBuf};

/// Every property, in the order in which it is tried.
const ROWS: [&str; 6] = [
    "a committed transaction",
    "an aborted transaction",
    "the end behind markers",
    "an open transaction",
    "a transaction left open",
    "a fenced writer",
];

fn verdicts(report: &Report) -> Vec<(&'static str, bool)> {
    report.rows.iter().map(|Row { what, holds, .. }| (*what, *holds)).collect()
}

#[test]
fn apache_kafka_holds_every_row() {
    let mut kafka = Broker::shared().connect();
    let (topic, id) = (unique("conformance"), unique("conformance"));
    let report = kafka.prove(&topic, &id).unwrap();
    println!("Apache Kafka\n{report}");
    assert_eq!(verdicts(&report), ROWS.map(|what| (what, true)));
    assert!(report.refusal().is_none());
    // What an earlier trial left changes nothing, and neither does one at the same time.
    let other = unique("conformance");
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| Broker::shared().connect().prove(&topic, &other).unwrap());
        let again = kafka.prove(&topic, &id).unwrap();
        for report in [again, beside.join().unwrap()] {
            assert!(report.refusal().is_none(), "{report}");
        }
    });
    let retention = kafka.topic_setting(&topic, "retention.ms");
    assert_eq!(retention.as_deref(), Some("3600000"), "the topic forgets");
}

/// librdkafka's mock cluster takes all calls of a transaction and shows what was aborted.
#[test]
fn a_double_that_shows_aborted_records_is_refused() {
    let double = MockCluster::new(1).unwrap();
    double.create_topic("conformance", 1, 1).unwrap();
    let mut kafka = Kafka::connect(double_config(&double.bootstrap_servers())).unwrap();
    let report = kafka.prove("conformance", "job.conformance").unwrap();
    println!("librdkafka's mock cluster\n{report}");
    let verdicts = verdicts(&report);
    assert_eq!(verdicts[0], (ROWS[0], true), "{report}");
    assert_eq!(verdicts[1], (ROWS[1], false), "{report}");
    let refusal = report.refusal().unwrap().to_string();
    assert!(
        refusal.contains("an aborted transaction: wanted is hidden, seen shown: committed, aborted"),
        "{refusal}"
    );
}

fn double_config(bootstrap: &str) -> KafkaConfig {
    KafkaConfig {
        bootstrap_servers: vec![bootstrap.to_owned()],
        request_timeout_ms: 5_000,
        delivery_timeout_ms: 8_000,
        transaction_timeout_ms: 10_000,
        ..KafkaConfig::default()
    }
}

fn configured(folder: &Path, bootstrap: &str, job: &str, topic: &str) -> PathBuf {
    let file = folder.join("job.toml");
    let text = format!(
        "job = \"{job}\"\nstate = \"{}\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n\
         [topics]\nkind = \"kafka\"\nsuffix = \".{job}\"\n[topics.kafka]\nbootstrap_servers = [\"{bootstrap}\"]\n\
         request_timeout_ms = 5000\nconformance_topic = \"{topic}\"\n",
        folder.join("state").display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn a_new_job_refuses_such_a_broker_and_check_shows_why() {
    let double = MockCluster::new(1).unwrap();
    double.create_topic("trial", 1, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = configured(folder.path(), &double.bootstrap_servers(), "new", "trial");
    let config = Config::read(&file).unwrap();
    let refusal = before_a_new_job(&config, &mut *config.topics(false).unwrap()).unwrap_err().to_string();
    assert!(refusal.starts_with("prove exactly-once on the broker: "), "{refusal}");
    // Left out by name.
    let off = configured(folder.path(), &double.bootstrap_servers(), "new", "off");
    let config = Config::read(&off).unwrap();
    before_a_new_job(&config, &mut *config.topics(false).unwrap()).unwrap();

    let (job, topic) = (unique("probed"), unique("probed"));
    let broker = Broker::shared();
    let file = configured(folder.path(), &broker.bootstrap(), &job, &topic);
    let report = check(&Target::Config(file.clone()), false);
    assert!(!report.checked.contains(&"broker conformance"), "unasked it writes nothing");
    assert_eq!(broker.connect().partitions(&topic).unwrap(), None);
    let mut report = Checked::default();
    probe(&Target::Config(file.clone()), &mut report);
    assert_eq!(report.checked, ["broker conformance"]);
    assert!(report.problems.is_empty(), "{report:?}");
    assert_eq!(report.conformance.len(), ROWS.len());
    let config = Config::read(&file).unwrap();
    before_a_new_job(&config, &mut *config.topics(false).unwrap()).unwrap();
}
