//! A job of the program on a real Kafka, in a process of its own, and what must stand afterwards.

use super::undisturbed::{none_violated, undisturbed};
use crate::parity::{mutated, semantics, verify};
use ictflow_connectors::kafka::Config;
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::epochs::{load, read_whole};
use ictflow_schemas::epoch::Progress;
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::program::Program;
use ictflow_tests::support::transactions;
use ictflow_tests::support::verifier::COMMITTED;
use ictflow_tests::support::world::{self, Store, World, hashed, record, settle, template};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// A job, its inputs' script, and its configuration file.
pub struct Supervised {
    pub world: World,
    pub script: Vec<Value>,
    folder: tempfile::TempDir,
    test: &'static str,
    bootstrap: String,
    /// How long an open transaction is looked at before it counts as one: a part of its timeout.
    settled_ms: u64,
    /// One client for all that is sent.
    sender: Mutex<Box<dyn Topics>>,
}

impl Supervised {
    /// A job of so many mutated events. `test` is the path of the test that calls this; `kafka` and `set`
    /// change its configuration.
    pub fn new(
        broker: &Broker,
        test: &'static str,
        events: usize,
        kafka: impl FnOnce(&mut Config),
        set: impl FnOnce(&mut Value),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script =
            mutated(folder.path(), &["--events", &events.to_string(), "--seed", "11", "--partitions", "3"]);
        let mut world = World::new(folder.path(), &unique("supervised"), semantics(10), world::weights(384));
        let mut config = broker.config();
        // Each job tries the broker on a topic of its own: tests run side by side.
        config.conformance_topic = unique("conformance");
        kafka(&mut config);
        world.store = Store::Kafka(Box::new(config.clone()));
        world.prefix = format!("{}-", unique("supervised"));
        world.epoch = 50;
        let names = world.names();
        let mut topics = world.topics();
        for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
            topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
        }
        let weights = folder.path().join("weights.safetensors");
        std::fs::write(&weights, &*world.weights).unwrap();
        let names: serde_json::Map<String, Value> =
            Topic::ALL.map(|topic| (topic.name().to_owned(), names.of(topic).into())).into_iter().collect();
        let mut file = json!({
            "job": world.job,
            "state": folder.path().join("state"),
            "epochs": {"interval_ms": 5, "max_events": world.epoch},
            "generator": {"kind": "template"},
            "encoder": {"kind": "hashed"},
            "ict": {"weights": weights},
            "topics": {"kind": "kafka", "names": names, "kafka": config},
            "run": {"restart_pause_ms": 100, "restart_pause_max_ms": 1_000},
            "telemetry": {"listen": "127.0.0.1:0", "lag_every_ms": 100},
            "semantics": world.semantics,
        });
        set(&mut file);
        prune(&mut file);
        let text = toml::to_string(&file).unwrap();
        std::fs::write(folder.path().join("job.toml"), text).unwrap();
        let settled_ms = (config.transaction_timeout_ms / 5).min(2_000);
        let (bootstrap, sender) = (broker.bootstrap(), Mutex::new(topics));
        Supervised { world, script, folder, test, bootstrap, settled_ms, sender }
    }

    /// Starts the program, which says what it says under this name.
    pub fn start(&self, name: &str) -> Program {
        let config = self.folder.path().join("job.toml");
        Program::start(self.test, self.folder.path(), name, &["run", "--config", config.to_str().unwrap()])
    }

    /// Sends records of the script.
    pub fn send(&self, lines: &[Value]) {
        let mut records: Vec<_> =
            lines.iter().map(|line| record(line, self.world.partitions, &self.world.prefix)).collect();
        // Kafka takes no timestamp before 1970: such a record gets the broker's.
        for record in &mut records {
            record.timestamp = record.timestamp.filter(|time| *time > 0);
        }
        self.sender.lock().unwrap().append(&records).unwrap();
    }

    /// A watch on the outputs' ends.
    pub fn watch(&self) -> Watch {
        let names = self.world.names();
        let mut asked = TopicPartitionList::new();
        for topic in [Topic::Features, Topic::Examples] {
            for partition in 0..self.world.partitions as i32 {
                asked.add_partition_offset(names.of(topic), partition, Offset::End).unwrap();
            }
        }
        for topic in [Topic::Progress, Topic::DeadLetters] {
            asked.add_partition_offset(names.of(topic), 0, Offset::End).unwrap();
        }
        let client = |isolation: &str| {
            let mut client = rdkafka::ClientConfig::new();
            client.set("bootstrap.servers", &self.bootstrap).set("isolation.level", isolation);
            client.create().unwrap()
        };
        Watch { asked, committed: client("read_committed"), all: client("read_uncommitted") }
    }

    /// Sends the rest of the script in small blocks, and stops the program at one moment after the other,
    /// until it stands stopped within an open transaction. Gives what wasn't sent. A look at a program that
    /// runs comes too late: only what is stopped stays as it was seen.
    pub fn stop_within_a_transaction<'a>(&self, program: &Program, rest: &'a [Value]) -> &'a [Value] {
        let watch = self.watch();
        let mut sent = 0;
        for (n, block) in rest.chunks(25).enumerate() {
            self.send(block);
            sent += block.len();
            for attempt in 0..8 {
                std::thread::sleep(Duration::from_millis((n as u64 * 7 + attempt * 13) % 40));
                program.signal("STOP");
                // What was on its way to the broker has most likely arrived by the last look, also on a busy
                // machine: still open is open.
                let stays = |pause| {
                    std::thread::sleep(Duration::from_millis(pause));
                    watch.open()
                };
                if stays(50) && stays(500) && stays(self.settled_ms) {
                    return &rest[sent..];
                }
                program.signal("CONT");
            }
        }
        panic!("no transaction was seen open: {}", program.said());
    }

    /// What must hold however often it was disturbed: the outputs are those of the independent oracle and
    /// of a job that nothing disturbed, every epoch was committed once, whole and in order, and no
    /// transaction is open. The program must have ended.
    pub fn holds(&self, broker: &Broker) {
        let mut job = self.world.start(template(), hashed());
        settle(&mut job);
        verify(&self.world, &job, self.folder.path(), &["--min-features", "50"]);
        drop(job);
        none_violated(&self.world, &undisturbed(&self.world, "undisturbed", self.folder.path(), false));
        let names = self.world.names();
        for topic in COMMITTED.into_iter().chain([Topic::Epochs]) {
            assert!(!transactions::open(broker, names.of(topic)), "a transaction is open on {topic:?}");
        }
    }

    /// The last epoch that stands committed on the broker; 0 before the first.
    pub fn committed(&self) -> i64 {
        let mut committed = 0;
        let names = self.world.names();
        read_whole(&mut *self.world.topics(), names.of(Topic::Progress), |record| {
            committed = Progress::decode(record.value.as_deref().unwrap()).unwrap().epoch;
        })
        .unwrap();
        committed
    }

    /// The last epoch that is recorded, committed or not.
    pub fn recorded(&self) -> i64 {
        let names = self.world.names();
        let records = load(&mut *self.world.topics(), names.of(Topic::Epochs), &self.world.job).unwrap();
        records.last().map_or(0, |record| record.epoch)
    }

    /// Records of the outputs that stand on the log and were never committed.
    pub fn aborted(&self, broker: &Broker) -> usize {
        let names = self.world.names();
        COMMITTED.into_iter().map(|topic| transactions::aborted(broker, names.of(topic))).sum()
    }
}

/// Looks at where the outputs end, with and without what isn't committed.
pub struct Watch {
    asked: TopicPartitionList,
    committed: BaseConsumer,
    all: BaseConsumer,
}

impl Watch {
    /// Whether a transaction is open on the outputs.
    pub fn open(&self) -> bool {
        // The committed ends first: a commit between the two looks must not pass for an open transaction
        // where nothing else is.
        let ends = |client: &BaseConsumer| {
            let answered = client.offsets_for_times(self.asked.clone(), LIMIT).unwrap();
            let mut ends: Vec<(String, i32, Option<i64>)> = answered
                .elements()
                .iter()
                .map(|end| (end.topic().to_owned(), end.partition(), end.offset().to_raw()))
                .collect();
            ends.sort();
            ends
        };
        let all = ends(&self.all);
        let committed = ends(&self.committed);
        all.iter().zip(&committed).any(|(all, committed)| all.2 > committed.2)
    }
}

/// Leaves out nulls, which TOML doesn't know.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(prune);
        }
        Value::Array(all) => all.iter_mut().for_each(prune),
        _ => {}
    }
}
