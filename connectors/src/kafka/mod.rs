//! Topics on Apache Kafka.
//!
//! * **Delivery**: [`Topics::append`] returns when every in-sync replica has the records
//!   (`acks=all`, idempotent). [`Writer::commit`] returns when the transaction is committed for
//!   good: all of its records become visible, or none. Readers and [`Topics::ends`] see them a
//!   moment later, when the broker has written its markers; [`Topics::writer`] returns after the
//!   markers of every earlier writer. After a failed append some records may stand on the
//!   topic, and the caller's second attempt doubles them. A commit whose outcome isn't known is
//!   `Restart`: fence again and read progress again; so is a transaction that the broker may have
//!   ended for its time. A writer that a later one fenced is `Fatal`. Readers see committed records only. An empty
//!   commit asks the broker nothing, so it doesn't notice a fence.
//! * **Ordering**: the caller's order within a partition, on append and commit; offset order
//!   within a partition on reading. None between partitions.
//! * **Retries**: librdkafka resends, reconnects (0.1 to 2 s apart) and refreshes leaders by
//!   itself, within `delivery_timeout_ms` for a record, `request_timeout_ms` for an answer and
//!   `transaction_timeout_ms` for a transaction. Nothing is retried above that: a failure that may
//!   pass is `Retry`, after which a writer is idle and a reader reads on. An open transaction is
//!   aborted before its `Retry` is returned. After a broker refused a record for good, librdkafka
//!   fails the next transaction on that partition once more (`Retry`), to take a new epoch. `classify` is the one table of verdicts.
//! * **Limits**: a record by `message_max_bytes` (checked before anything is sent), a producer by
//!   `send_queue_records` and `send_queue_kib` (a full queue makes the caller wait), a reader by
//!   `fetch_queue_records` a partition and `fetch_queue_kib` in all, every wait by the timeouts
//!   above. Timestamps must be above 0.
//! * **Secrets**: passwords come by reference, from a file or the environment, and are printed
//!   nowhere: not in `Debug`, not in errors, not in logs. Keys and values of records never appear
//!   in errors; a record is named by its place in the call, its topic and its partition.
//! * **Telemetry**: [`Counts`], and librdkafka's own lines under the tracing target `librdkafka`.
//!
//! Topics are never created by reading or writing. A reader that is overtaken by retention fails
//! with a named error; it doesn't jump.

mod client;
mod config;
pub mod conformance;
mod error;
mod reader;
mod send;
mod writer;

pub use crate::secret::Secret;
pub use client::Counts;
pub use config::{Compression, Config, Mechanism, Protocol, Security, wire_size};
pub use error::classify;

use crate::topics::{Reader, Topics, Writer};
use crate::{Error, Result};
use client::Shared;
use error::failure;
use ictflow_schemas::topic::{NewRecord, Policy};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use send::Appender;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The largest batch that brokers take by default; topics of ours get a larger limit where the
/// config has one.
const BROKER_DEFAULT_MAX: usize = 1_048_588;

/// A store of topics on a Kafka cluster.
pub struct Kafka {
    shared: Arc<Shared>,
    appender: Appender,
}

impl Kafka {
    /// Connects: checks the config, reads its secrets, and asks a broker for the cluster.
    ///
    /// # Errors
    /// `Fatal` where the config has problems (all are named at once), a secret can't be read, or
    /// the broker refuses this client; `Retry` where no broker answers in time.
    pub fn connect(config: Config) -> Result<Self> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Error::fatal("read the kafka config", problems.join("; "), "correct the config"));
        }
        let shared = Arc::new(Shared::new(config)?);
        let deadline = Instant::now() + shared.config.request_timeout();
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
            let Err(error) = shared.metadata.fetch_metadata(None, left) else { break };
            // A broker that is starting is waited for; one that refuses this client is not. What
            // it refuses is told beside the call, and may come a little later.
            while shared.metadata.poll(Duration::from_millis(100)).is_some() {}
            if shared.metadata.context().lasting() || Instant::now() >= deadline {
                let context = format!("reach {}", shared.config.bootstrap_servers.join(", "));
                return Err(shared.failure(context, &error));
            }
        }
        Ok(Kafka { appender: Appender::new(&shared), shared })
    }

    /// Another handle on the same store, for another thread. Both know the ends that either gave.
    pub fn another(&self) -> Self {
        Kafka { shared: Arc::clone(&self.shared), appender: Appender::new(&self.shared) }
    }

    /// What this store and its readers and writers counted.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.shared.counts)
    }

    fn admin(&self) -> Result<(AdminClient<DefaultClientContext>, AdminOptions)> {
        let timeout = Some(self.shared.config.request_timeout());
        let admin =
            self.shared.client.create().map_err(|error| failure("create the kafka admin client", &error))?;
        Ok((admin, AdminOptions::new().request_timeout(timeout).operation_timeout(timeout)))
    }

    /// Asks the broker to create a topic; one that exists by now is fine.
    fn create(&self, topic: &str, partitions: u32, policy: Policy) -> Result<()> {
        let context = || format!("create topic {topic} with {partitions} partitions");
        let (admin, options) = self.admin()?;
        let config = &self.shared.config;
        let replication = config.replication.map_or(-1, |replicas| replicas.min(32_767) as i32);
        let limit = config.message_max_bytes.to_string();
        let mut new = NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(replication))
            .set("cleanup.policy", cleanup(policy));
        if policy == Policy::Append {
            // These logs are what every output is a function of: the owner decides what goes.
            new = new.set("retention.ms", "-1");
        }
        if config.message_max_bytes > BROKER_DEFAULT_MAX {
            new = new.set("max.message.bytes", &limit);
        }
        let answers =
            block_on(admin.create_topics([&new], &options)).map_err(|error| failure(context(), &error))?;
        match answers.into_iter().next() {
            Some(Err((_, code))) if code != Code::TopicAlreadyExists => {
                Err(failure(context(), &KafkaError::AdminOp(code)))
            }
            _ => Ok(()),
        }
    }

    /// A setting of a topic that exists, such as `max.message.bytes`; `None` where the broker doesn't
    /// tell it, which it may refuse to this client.
    pub fn topic_setting(&self, topic: &str, name: &str) -> Option<String> {
        let (admin, options) = self.admin().ok()?;
        let asked = [ResourceSpecifier::Topic(topic)];
        let answers = block_on(admin.describe_configs(&asked, &options)).ok()?;
        answers.into_iter().flatten().find_map(|resource| resource.get(name).and_then(|e| e.value.clone()))
    }

    /// Warns where a topic that exists forgets in another way than its role needs. Its settings
    /// are its owner's, and looking at them may be forbidden, so this never fails.
    fn warn_of_policy(&self, topic: &str, policy: Policy) {
        let Ok((admin, options)) = self.admin() else { return };
        let asked = [ResourceSpecifier::Topic(topic)];
        let Ok(answers) = block_on(admin.describe_configs(&asked, &options)) else { return };
        for resource in answers.into_iter().flatten() {
            let found =
                resource.get("cleanup.policy").and_then(|entry| entry.value.clone()).unwrap_or_default();
            if !forgets_as(&found, policy) {
                tracing::warn!(
                    topic,
                    found,
                    wanted = cleanup(policy),
                    "the topic's cleanup.policy isn't what its role needs"
                );
            }
        }
    }
}

impl Topics for Kafka {
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>> {
        self.shared.partitions(topic)
    }

    fn ensure(&mut self, topic: &str, partitions: u32, policy: Policy) -> Result<()> {
        let context = || format!("ensure topic {topic}");
        if partitions == 0 || partitions > i32::MAX as u32 {
            return Err(Error::fatal(
                context(),
                format!("{partitions} partitions are asked for"),
                "ask for at least 1",
            ));
        }
        let found = match self.shared.partitions(topic)? {
            Some(found) => {
                self.warn_of_policy(topic, policy);
                found
            }
            None => {
                self.create(topic, partitions, policy)?;
                self.await_topic(topic)?
            }
        };
        if found != partitions {
            return Err(Error::fatal(
                context(),
                format!("it has {found} partitions, and {partitions} are needed"),
                "make the counts equal: every user stands on the partition of its key, in all topics alike",
            ));
        }
        Ok(())
    }

    fn ends(&mut self, topic: &str) -> Result<Vec<i64>> {
        self.shared.ends(topic)
    }

    fn starts(&mut self, topic: &str) -> Result<Vec<i64>> {
        let count = self.shared.existing(topic)?;
        self.shared.starts(topic, count)
    }

    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        self.shared.offsets_at(topic, time_ms)
    }

    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn Reader>> {
        Ok(Box::new(reader::KafkaReader::open(&self.shared, topic, from)?))
    }

    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        self.appender.append(records)
    }

    fn writer(&mut self, transactional_id: &str) -> Result<Box<dyn Writer>> {
        Ok(Box::new(writer::KafkaWriter::open(&self.shared, transactional_id)?))
    }
}

impl Kafka {
    /// Waits until a topic that was just created has leaders everywhere; returns its partition
    /// count. Creation is asynchronous on a cluster.
    fn await_topic(&self, topic: &str) -> Result<u32> {
        let deadline = Instant::now() + self.shared.config.request_timeout();
        loop {
            let ready = self.shared.ends(topic).map(|ends| ends.len() as u32);
            match ready {
                Ok(count) => return Ok(count),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// Whether a `cleanup.policy` is that of a role.
pub fn forgets_as(found: &str, policy: Policy) -> bool {
    let set = |text: &str| {
        let mut words: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
        words.sort();
        words
    };
    set(found) == set(cleanup(policy))
}

/// Kafka's word for a policy.
pub fn cleanup(policy: Policy) -> &'static str {
    match policy {
        Policy::Append | Policy::Time => "delete",
        Policy::Compact => "compact",
        Policy::CompactAndTime => "compact,delete",
    }
}

/// Runs a future of the admin client, whose own thread wakes it. No runtime is needed, and it may
/// be called within one.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park(),
        }
    }
}
