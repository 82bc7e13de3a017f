//! Sending records and waiting for every report, for appends and transactions alike.

use super::client::{Context, Counts, Deliveries, Shared, lock};
use super::config::wire_size;
use super::error::failure;
use crate::{Error, Result};
use ictflow_schemas::topic::NewRecord;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one look at the producer's queue takes: it adds at most this to a call.
const SLICE: Duration = Duration::from_millis(2);

/// Records sent between two looks at the producer's queue.
const SERVE_EVERY: usize = 1_000;

/// Refuses records that Kafka can't carry, before any is sent.
pub(super) fn check(shared: &Shared, records: &[NewRecord]) -> Result<()> {
    for (index, record) in records.iter().enumerate() {
        // The place in the call, never the content.
        let context = || format!("send record {index} to {}[{}]", record.topic, record.partition);
        let size =
            wire_size(record.key.as_deref().unwrap_or_default(), record.value.as_deref(), &record.headers);
        let limit = shared.config.message_max_bytes;
        if size > limit {
            let detail = format!("it may take {size} bytes, and kafka.message_max_bytes is {limit}");
            return Err(Error::poison(
                context(),
                detail,
                "raise it and the topic's max.message.bytes together",
            ));
        }
        // librdkafka reads 0 as "now", and brokers refuse what is below.
        if record.timestamp.is_some_and(|timestamp| timestamp <= 0) {
            return Err(Error::poison(context(), "its timestamp is not above 0", "leave the timestamp out"));
        }
        known(shared, context, &record.topic, record.partition)?;
    }
    Ok(())
}

/// Refuses a partition that doesn't exist. librdkafka would ask for it until the timeout.
pub(super) fn known(
    shared: &Shared,
    context: impl Fn() -> String,
    topic: &str,
    partition: u32,
) -> Result<()> {
    match shared.has_partition(topic, partition)? {
        Ok(()) => Ok(()),
        Err(count) => Err(Error::fatal(
            context(),
            format!("the topic has {count} partitions"),
            "its partition count changed: restore the topic as it was",
        )),
    }
}

/// Sends records and returns when the report of each has come, or with the first failure. After a
/// failure some may still be on their way.
pub(super) fn send(
    producer: &BaseProducer<Context>,
    records: &[NewRecord],
    deadline: Instant,
) -> std::result::Result<(), KafkaError> {
    let deliveries = &producer.context().deliveries;
    let call = {
        let mut deliveries = lock(deliveries);
        *deliveries = Deliveries { call: deliveries.call.wrapping_add(1), ..Deliveries::default() };
        deliveries.call
    };
    for (index, record) in records.iter().enumerate() {
        let mut message = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&record.topic, call)
            .partition(i32::try_from(record.partition).unwrap_or(i32::MAX));
        message.key = record.key.as_deref();
        message.payload = record.value.as_deref();
        message.timestamp = record.timestamp;
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            message.headers = Some(record.headers.iter().fold(headers, |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value.as_slice()) })
            }));
        }
        while let Err((error, unsent)) = producer.send(message) {
            let full = matches!(error, KafkaError::MessageProduction(Code::QueueFull));
            if !full || Instant::now() >= deadline {
                return Err(error);
            }
            // The queue is the limit on memory: wait for reports to make room.
            producer.poll(SLICE);
            message = unsent;
        }
        if index % SERVE_EVERY == SERVE_EVERY - 1 {
            producer.poll(Duration::ZERO);
            if let Some(error) = lock(deliveries).failure.clone() {
                return Err(error);
            }
        }
    }
    loop {
        {
            let deliveries = lock(deliveries);
            if let Some(error) = &deliveries.failure {
                return Err(error.clone());
            }
            if deliveries.reported >= records.len() {
                return Ok(());
            }
        }
        if Instant::now() >= deadline {
            return Err(KafkaError::MessageProduction(Code::MessageTimedOut));
        }
        producer.poll(SLICE);
    }
}

/// The idempotent producer of plain appends. It is dropped after a failure, so that nothing of a
/// failed call is sent between the records of the next.
pub(super) struct Appender {
    shared: Arc<Shared>,
    producer: Option<BaseProducer<Context>>,
}

impl Appender {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Appender { shared: Arc::clone(shared), producer: None }
    }

    pub(super) fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        check(shared, records)?;
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => shared
                .config
                .producer(&shared.client)
                .create_with_context(Context::new(&shared.counts))
                .map_err(|error| failure("create the kafka producer", &error))?,
        };
        // Reports come within the delivery timeout; the rest is for a queue that must drain first.
        let deadline = Instant::now() + shared.config.delivery_timeout() + shared.config.request_timeout();
        if let Err(error) = send(&producer, records, deadline) {
            let error = producer
                .client()
                .fatal_error()
                .map_or(error, |(code, _)| KafkaError::MessageProduction(code));
            return Err(producer.context().failure(format!("append {} records", records.len()), &error));
        }
        producer.context().passed();
        Counts::add(&shared.counts.records_appended, records.len());
        self.producer = Some(producer);
        Ok(())
    }
}
