//! What transactions left on a real broker, seen by a client that isn't ours.

use super::kafka::Broker;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// A consumer that sees what this isolation level lets it.
fn consumer(broker: &Broker, isolation: &str) -> BaseConsumer {
    broker
        .client()
        .set("group.id", "transactions")
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap_or_else(|error| panic!("make a consumer: {error}"))
}

/// By partition, where a topic ends for this isolation level.
fn ends(consumer: &BaseConsumer, topic: &str) -> Vec<i64> {
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).unwrap_or_else(|error| panic!("{error}"));
    let count = metadata.topics()[0].partitions().len() as i32;
    let end = |partition| consumer.fetch_watermarks(topic, partition, LIMIT).map(|(_, end)| end);
    (0..count).map(|partition| end(partition).unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// The offsets of a topic's records by partition, those of aborted and open transactions too with
/// `read_uncommitted`.
///
/// # Panics
/// Where the topic can't be read to its end.
pub fn offsets(broker: &Broker, topic: &str, isolation: &str) -> BTreeSet<(i32, i64)> {
    let consumer = consumer(broker, isolation);
    let partitions = ends(&consumer, topic).len();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment
            .add_partition_offset(topic, partition as i32, Offset::Beginning)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    consumer.assign(&assignment).unwrap_or_else(|error| panic!("{error}"));
    let (mut found, mut ended, begun) = (BTreeSet::new(), BTreeSet::new(), Instant::now());
    while ended.len() < partitions {
        assert!(begun.elapsed() < LIMIT, "{topic} wasn't read to its end in {LIMIT:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => drop(found.insert((message.partition(), message.offset()))),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            Some(Err(error)) => panic!("read {topic}: {error}"),
            None => {}
        }
    }
    found
}

/// How many records of a topic a reader of committed ones doesn't see.
pub fn aborted(broker: &Broker, topic: &str) -> usize {
    let committed = offsets(broker, topic, "read_committed");
    offsets(broker, topic, "read_uncommitted").difference(&committed).count()
}

/// Whether a transaction is open on a topic: its last stable offset stands before its end.
pub fn open(broker: &Broker, topic: &str) -> bool {
    let [stable, end] =
        ["read_committed", "read_uncommitted"].map(|level| ends(&consumer(broker, level), topic));
    stable != end
}

/// Looks at where a topic of one partition ends, open transactions included.
pub struct Watch {
    consumer: BaseConsumer,
    topic: String,
}

impl Watch {
    /// A watch on a topic of the broker at this address.
    ///
    /// # Panics
    /// Where no client can be made.
    pub fn new(bootstrap: &str, topic: &str) -> Self {
        let consumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "watch")
            .set("isolation.level", "read_uncommitted")
            .create()
            .unwrap_or_else(|error| panic!("make a consumer: {error}"));
        Watch { consumer, topic: topic.to_owned() }
    }

    /// Where it ends now.
    ///
    /// # Panics
    /// Where the broker doesn't answer.
    pub fn end(&self) -> i64 {
        self.consumer.fetch_watermarks(&self.topic, 0, LIMIT).unwrap_or_else(|error| panic!("{error}")).1
    }
}
