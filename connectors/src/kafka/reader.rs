//! A reader of one topic at known offsets.

use super::client::{Context, Counts, Shared, offsets};
use super::error::{classify, failure};
use crate::topics::Reader;
use crate::{Disposition, Error, Result};
use ictflow_schemas::topic::Record;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often an idle reader looks up the ends by itself: it notices a lost broker, and passes ends
/// that another process was given.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// How long one wait for an event takes while a gap is being passed; then a seek that didn't take
/// hold is made again.
const SLICE: Duration = Duration::from_millis(200);

/// A reader that assigns its partitions itself.
///
/// librdkafka hands over records and, once for each end that it reaches, an end-of-partition event
/// without its offset. Control records, aborted records and compacted gaps take offsets and give
/// no record. So a position past them is proven in this way: look up the end, seek to the known
/// position (whatever was queued before is dropped by librdkafka), and wait for the event: it
/// comes from a fetch later than the look-up, hence lies at or past that end.
pub(super) struct KafkaReader {
    shared: Arc<Shared>,
    consumer: BaseConsumer<Context>,
    topic: String,
    with_headers: bool,
    /// The offset below which every committed record was returned.
    positions: Vec<i64>,
    /// An end that was looked up before the newest seek, or before the start: what an
    /// end-of-partition event proves.
    proven: Vec<i64>,
    /// A failure that came after records of the same poll.
    failed: Option<Error>,
    checked: Instant,
}

impl KafkaReader {
    pub(super) fn open(shared: &Arc<Shared>, topic: &str, from: &[i64]) -> Result<Self> {
        let context = || format!("read topic {topic}");
        let ends = shared.ends(topic)?;
        if from.len() != ends.len() {
            let detail =
                format!("offsets of {} partitions were given, the topic has {}", from.len(), ends.len());
            return Err(Error::fatal(
                context(),
                detail,
                "its partition count changed, which ictflow doesn't follow: restore the topic as it was",
            ));
        }
        let starts = shared.starts(topic, ends.len() as u32)?;
        let mut positions = Vec::with_capacity(from.len());
        let mut assignment = TopicPartitionList::with_capacity(from.len());
        for (partition, ((from, start), end)) in from.iter().zip(&starts).zip(&ends).enumerate() {
            // A plain start would jump to the first offset kept and read everything again.
            if from > end {
                let detail = format!("partition {partition} ends at {end}, before the wanted offset {from}");
                return Err(Error::fatal(
                    context(),
                    detail,
                    "the topic was made anew or lost records: start a new job, or restore the topic",
                ));
            }
            let position = *from.max(start);
            positions.push(position);
            assignment
                .add_partition_offset(topic, partition as i32, Offset::Offset(position))
                .map_err(|error| failure(context(), &error))?;
        }
        let consumer: BaseConsumer<Context> = shared
            .config
            .reader(&shared.client)
            .create_with_context(Context::new(&shared.counts))
            .map_err(|error| failure("create the kafka reader", &error))?;
        consumer.assign(&assignment).map_err(|error| failure(context(), &error))?;
        Ok(KafkaReader {
            with_headers: !shared.config.topics_without_headers.iter().any(|without| without == topic),
            shared: Arc::clone(shared),
            consumer,
            topic: topic.to_owned(),
            positions,
            proven: ends,
            failed: None,
            checked: Instant::now(),
        })
    }

    /// Collects records until there are `max`, none is left at hand, or the deadline passes with
    /// none. `done` may end a wait without records.
    fn collect(
        &mut self,
        max: usize,
        deadline: Instant,
        done: impl Fn(&Self) -> bool,
    ) -> Result<Vec<Record>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let max = max.max(1);
        let mut records = Vec::new();
        while records.len() < max {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if records.is_empty() { left } else { Duration::ZERO };
            match self.consumer.poll(wait) {
                None if !records.is_empty() || left.is_zero() => break,
                None => {}
                Some(Ok(message)) => {
                    let record = record(&message, self.with_headers);
                    let position = &mut self.positions[record.partition as usize];
                    // An offset comes again only where librdkafka had to start a fetch anew.
                    if record.offset >= *position {
                        *position = record.offset + 1;
                        let size = record.key.as_ref().map_or(0, Vec::len)
                            + record.value.as_ref().map_or(0, Vec::len);
                        Counts::add(&self.shared.counts.bytes_read, size);
                        records.push(record);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    let partition = partition as usize;
                    self.positions[partition] = self.positions[partition].max(self.proven[partition]);
                }
                // librdkafka reconnects and fetches on; the deadline bounds the wait.
                Some(Err(error)) if matches!(classify(&error), Disposition::Retry { .. }) => {}
                Some(Err(error)) => {
                    let error = failure(format!("read topic {}", self.topic), &error);
                    if records.is_empty() {
                        return Err(error);
                    }
                    self.failed = Some(error);
                    break;
                }
            }
            if records.is_empty() && done(self) {
                break;
            }
        }
        Counts::add(&self.shared.counts.records_read, records.len());
        Ok(records)
    }

    /// The partitions that are short of their targets.
    fn behind(&self, targets: &[i64]) -> Vec<usize> {
        let short = self.positions.iter().zip(targets).map(|(position, target)| position < target);
        short.enumerate().filter_map(|(partition, short)| short.then_some(partition)).collect()
    }

    /// Passes what gives no record up to the targets; returns records where some come after all.
    fn pass(&mut self, max: usize, targets: &[i64]) -> Result<Vec<Record>> {
        let timeout = self.shared.config.request_timeout();
        let deadline = Instant::now() + timeout;
        loop {
            let behind = self.behind(targets);
            if behind.is_empty() {
                return Ok(Vec::new());
            }
            if Instant::now() >= deadline {
                let partition = behind[0];
                let detail = format!(
                    "partition {partition} stands at {}, and {} wasn't reached in {} ms",
                    self.positions[partition],
                    targets[partition],
                    timeout.as_millis()
                );
                return Err(Error::retry(
                    super::error::PAUSE,
                    format!("read topic {}", self.topic),
                    detail,
                    super::error::UNREACHABLE,
                ));
            }
            // Only where the newest seek was earlier than the target's look-up.
            let stale: Vec<usize> = behind.into_iter().filter(|p| self.proven[*p] < targets[*p]).collect();
            if !stale.is_empty() {
                self.seek(&stale, targets)?;
            }
            let slice = (Instant::now() + SLICE).min(deadline);
            let records = self.collect(max, slice, |reader| reader.behind(targets).is_empty())?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    /// Seeks partitions to where they stand, so that their next end-of-partition event proves the
    /// targets.
    fn seek(&mut self, partitions: &[usize], targets: &[i64]) -> Result<()> {
        let context = || format!("read topic {}", self.topic);
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition_offset(
                &self.topic,
                *partition as i32,
                Offset::Offset(self.positions[*partition]),
            )
            .map_err(|error| failure(context(), &error))?;
        }
        let sought =
            self.consumer.seek_partitions(list, self.shared.config.request_timeout()).map_err(|error| {
                Error::retry(super::error::PAUSE, context(), error, super::error::UNREACHABLE)
            })?;
        for element in sought.elements() {
            // A partition that isn't being fetched yet is sought again in the next round.
            if element.error().is_ok() {
                let partition = element.partition() as usize;
                self.proven[partition] = targets[partition];
            }
        }
        Ok(())
    }
}

impl Reader for KafkaReader {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Record>> {
        let mut targets = self.shared.given(&self.topic);
        let records = self.collect(max, Instant::now() + wait, |_| false)?;
        if !records.is_empty() {
            return Ok(records);
        }
        if self.checked.elapsed() >= IDLE_CHECK {
            let (count, timeout) = (self.positions.len() as u32, self.shared.config.request_timeout());
            let ends =
                offsets(&self.consumer, &self.topic, count, Offset::End, timeout).map_err(|error| {
                    self.consumer
                        .context()
                        .failure(format!("look up the ends of topic {}", self.topic), &error)
                })?;
            self.consumer.context().passed();
            targets = ends;
            self.checked = Instant::now();
        }
        self.pass(max, &targets)
    }

    fn positions(&self) -> Vec<i64> {
        self.positions.clone()
    }
}

/// A record as every store carries it.
fn record(message: &BorrowedMessage<'_>, with_headers: bool) -> Record {
    let timestamp = match message.timestamp() {
        Timestamp::CreateTime(at) | Timestamp::LogAppendTime(at) if at != -1 => Some(at),
        _ => None,
    };
    let headers = match message.headers() {
        Some(headers) if with_headers => headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec).unwrap_or_default()))
            .collect(),
        _ => Vec::new(),
    };
    Record {
        partition: message.partition() as u32,
        offset: message.offset(),
        timestamp,
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        framed: None,
        headers,
    }
}
