//! What every client shares: callbacks, counts, the ends that were given out, metadata queries.

use super::config::Config;
use super::error::{classify, code, failure};
use crate::{Disposition, Error, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::{Message, Offset, TopicPartitionList};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the connector counts, since its start and over all of its clients.
#[derive(Debug, Default)]
pub struct Counts {
    /// Records returned to readers.
    pub records_read: AtomicU64,
    /// Bytes of their keys and values.
    pub bytes_read: AtomicU64,
    /// Records appended and acknowledged.
    pub records_appended: AtomicU64,
    /// Records written in committed transactions.
    pub records_committed: AtomicU64,
    /// Transactions committed.
    pub commits: AtomicU64,
    /// Transactions aborted.
    pub aborts: AtomicU64,
    /// Records whose delivery failed; an aborted transaction counts its own.
    pub failed_deliveries: AtomicU64,
    /// Errors of connections and brokers that librdkafka reported and handles itself.
    pub client_errors: AtomicU64,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Locks, also where another thread panicked: the values are plain.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The delivery reports of one call.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Which call they belong to; a report of an earlier call is dropped.
    pub(super) call: usize,
    /// Reports that came, good or bad.
    pub(super) reported: usize,
    /// Where the record of the last good report stands.
    pub(super) offset: i64,
    /// The first failure among them.
    pub(super) failure: Option<KafkaError>,
}

/// The callbacks of one client.
pub(super) struct Context {
    counts: Arc<Counts>,
    /// The newest error that only a person can mend, such as a refused password. librdkafka
    /// reports it, with a reason, beside the call, which itself only times out.
    lasting: Mutex<Option<(KafkaError, String)>>,
    pub(super) deliveries: Mutex<Deliveries>,
}

impl Context {
    pub(super) fn new(counts: &Arc<Counts>) -> Self {
        Context { counts: Arc::clone(counts), lasting: Mutex::default(), deliveries: Mutex::default() }
    }

    /// Whether an error that only a person can mend was reported.
    pub(super) fn lasting(&self) -> bool {
        lock(&self.lasting).is_some()
    }

    /// Forgets what was reported before a call that went well: it has passed.
    pub(super) fn passed(&self) {
        *lock(&self.lasting) = None;
    }

    /// A failure of a call, told by its lasting cause where one was reported meanwhile.
    pub(super) fn failure(&self, context: impl Into<String>, error: &KafkaError) -> Error {
        match lock(&self.lasting).take() {
            Some((cause, reason)) if matches!(classify(error), Disposition::Retry { .. }) => {
                let mut failed = failure(context, &cause);
                failed.detail = format!("{}: {reason}", failed.detail);
                failed
            }
            _ => failure(context, error),
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::info!(target: "librdkafka", facility, "{message}")
            }
            // Nothing that librdkafka says by itself must page a person: calls fail with their own errors.
            _ => tracing::warn!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition comes this way too.
        if code(&error) == Some(Code::PartitionEOF) || matches!(error, KafkaError::PartitionEOF(_)) {
            return;
        }
        Counts::add(&self.counts.client_errors, 1);
        tracing::warn!(target: "librdkafka", "{error}: {reason}");
        if classify(&error) == Disposition::Fatal {
            *lock(&self.lasting) = Some((error, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    /// The number of the call that sent the record.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, call: usize) {
        let mut deliveries = lock(&self.deliveries);
        if call != deliveries.call {
            return;
        }
        deliveries.reported += 1;
        match result {
            Ok(message) => deliveries.offset = message.offset(),
            Err((error, _)) => {
                Counts::add(&self.counts.failed_deliveries, 1);
                deliveries.failure.get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// What the store, its readers and its writers share.
pub(super) struct Shared {
    pub(super) config: Config,
    /// The settings common to all clients. It holds secrets: never print it.
    pub(super) client: ClientConfig,
    /// A client for metadata and offsets; it reads nothing and joins nothing.
    pub(super) metadata: BaseConsumer<Context>,
    pub(super) counts: Arc<Counts>,
    /// The greatest ends given out, by topic: what a reader's empty answer vouches for.
    ends: Mutex<HashMap<String, Vec<i64>>>,
    /// Partition counts of topics that were written to.
    counts_by_topic: Mutex<HashMap<String, u32>>,
}

impl Shared {
    pub(super) fn new(config: Config) -> Result<Self> {
        let client = config.client()?;
        let counts = Arc::new(Counts::default());
        let mut settings = client.clone();
        settings.set("isolation.level", "read_committed").set("allow.auto.create.topics", "false");
        let metadata = settings
            .create_with_context(Context::new(&counts))
            .map_err(|error| failure("create the kafka client", &error))?;
        Ok(Shared {
            config,
            client,
            metadata,
            counts,
            ends: Mutex::default(),
            counts_by_topic: Mutex::default(),
        })
    }

    /// Serves the metadata client's queue, where reports of errors wait; it grows otherwise.
    fn serve(&self) {
        while self.metadata.poll(Duration::ZERO).is_some() {}
    }

    /// A failure of a metadata query, told by its cause where one was reported.
    pub(super) fn failure(&self, context: impl Into<String>, error: &KafkaError) -> Error {
        self.serve();
        self.metadata.context().failure(context, error)
    }

    /// The partition count of a topic, `None` where it doesn't exist.
    pub(super) fn partitions(&self, topic: &str) -> Result<Option<u32>> {
        let context = || format!("look up topic {topic}");
        let metadata = self
            .metadata
            .fetch_metadata(Some(topic), self.config.request_timeout())
            .map_err(|error| self.failure(context(), &error))?;
        self.serve();
        self.metadata.context().passed();
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(Code::from) {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
            Some(code) => Err(failure(context(), &KafkaError::MetadataFetch(code))),
            None => Ok(Some(found.partitions().len() as u32).filter(|count| *count > 0)),
        }
    }

    /// The partition count of a topic that must exist.
    pub(super) fn existing(&self, topic: &str) -> Result<u32> {
        self.partitions(topic)?.ok_or_else(|| {
            Error::fatal(
                format!("look up topic {topic}"),
                "the topic doesn't exist",
                "create it, or check its configured name",
            )
        })
    }

    /// Whether a topic has a partition, as `Err(count)` where it hasn't. Asks the broker once, and
    /// again before it says no: a topic may have been made anew.
    pub(super) fn has_partition(&self, topic: &str, partition: u32) -> Result<std::result::Result<(), u32>> {
        if lock(&self.counts_by_topic).get(topic).is_some_and(|count| partition < *count) {
            return Ok(Ok(()));
        }
        let count = self.existing(topic)?;
        lock(&self.counts_by_topic).insert(topic.to_owned(), count);
        Ok(if partition < count { Ok(()) } else { Err(count) })
    }

    /// The ends of a topic, remembered: readers vouch for them from now on.
    pub(super) fn ends(&self, topic: &str) -> Result<Vec<i64>> {
        let count = self.existing(topic)?;
        let ends = offsets(&self.metadata, topic, count, Offset::End, self.config.request_timeout())
            .map_err(|error| self.failure(format!("look up the ends of topic {topic}"), &error))?;
        self.remember(topic, &ends);
        Ok(ends)
    }

    /// The first offsets kept.
    pub(super) fn starts(&self, topic: &str, count: u32) -> Result<Vec<i64>> {
        offsets(&self.metadata, topic, count, Offset::Beginning, self.config.request_timeout())
            .map_err(|error| self.failure(format!("look up the starts of topic {topic}"), &error))
    }

    /// By partition the first offset with a timestamp at or after a time, else the end.
    pub(super) fn offsets_at(&self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        // The ends first: a record that comes between the two look-ups must not be passed over.
        let ends = self.ends(topic)?;
        if time_ms < 0 {
            // The protocol has other meanings for negative times; no timestamp here is below 0.
            return self.starts(topic, ends.len() as u32);
        }
        let timeout = self.config.request_timeout();
        let found = lookup(&self.metadata, topic, ends.len() as u32, Offset::Offset(time_ms), timeout)
            .map_err(|error| self.failure(format!("look up a time in topic {topic}"), &error))?;
        Ok(found.into_iter().zip(ends).map(|(found, end)| found.unwrap_or(end)).collect())
    }

    /// Remembers ends that were given out.
    fn remember(&self, topic: &str, ends: &[i64]) {
        let mut known = lock(&self.ends);
        let known = known.entry(topic.to_owned()).or_default();
        known.resize(known.len().max(ends.len()), 0);
        for (known, end) in known.iter_mut().zip(ends) {
            *known = (*known).max(*end);
        }
    }

    /// The greatest ends given out for a topic; empty where none were.
    pub(super) fn given(&self, topic: &str) -> Vec<i64> {
        lock(&self.ends).get(topic).cloned().unwrap_or_default()
    }
}

/// The offsets of one kind (beginning or end) for all partitions of a topic, one request a broker.
/// The client's isolation level makes an end the last stable offset.
pub(super) fn offsets(
    client: &BaseConsumer<Context>,
    topic: &str,
    count: u32,
    kind: Offset,
    timeout: Duration,
) -> std::result::Result<Vec<i64>, KafkaError> {
    let found = lookup(client, topic, count, kind, timeout)?;
    // A partition without an answer has no leader for now.
    found.into_iter().collect::<Option<_>>().ok_or(KafkaError::MetadataFetch(Code::LeaderNotAvailable))
}

/// The offsets of one kind, or at a time, for all partitions of a topic; `None` where no record has
/// that time.
fn lookup(
    client: &BaseConsumer<Context>,
    topic: &str,
    count: u32,
    kind: Offset,
    timeout: Duration,
) -> std::result::Result<Vec<Option<i64>>, KafkaError> {
    let mut asked = TopicPartitionList::with_capacity(count as usize);
    for partition in 0..count as i32 {
        asked.add_partition_offset(topic, partition, kind)?;
    }
    let answered = client.offsets_for_times(asked, timeout)?;
    let mut offsets: Vec<Option<Option<i64>>> = vec![None; count as usize];
    for element in answered.elements() {
        element.error()?;
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            Offset::End => None,
            _ => continue,
        };
        if let Some(slot) =
            usize::try_from(element.partition()).ok().and_then(|partition| offsets.get_mut(partition))
        {
            *slot = Some(offset);
        }
    }
    // A partition without an answer has no leader for now.
    offsets.into_iter().collect::<Option<_>>().ok_or(KafkaError::MetadataFetch(Code::LeaderNotAvailable))
}
