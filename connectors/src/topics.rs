//! Where topics live: one trait for `kafka`, `local` and `files`.
//!
//! A store offers readers at known offsets, plain durable appends for the internal logs, and a
//! transactional writer that fences its predecessor and commits records atomically.

use crate::Result;
use ictflow_schemas::topic::{NewRecord, Policy, Record};
use std::time::Duration;

/// A store of topics.
pub trait Topics: Send {
    /// The partition count of a topic, `None` where it doesn't exist.
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>>;

    /// Creates a topic where it doesn't exist. An existing topic with another partition count is
    /// a fatal error that names both counts.
    fn ensure(&mut self, topic: &str, partitions: u32, policy: Policy) -> Result<()>;

    /// The end offsets by partition: the first offset that a read_committed reader can't read yet.
    /// Everything below is readable now.
    fn ends(&mut self, topic: &str) -> Result<Vec<i64>>;

    /// By partition the first offset kept: what retention or a deletion took lies below it. Compaction
    /// leaves gaps and doesn't move it. An empty partition's is its end.
    fn starts(&mut self, topic: &str) -> Result<Vec<i64>>;

    /// By partition the first offset whose record has a timestamp at or after `time_ms`; the end
    /// where none has. A record without a timestamp has none. Timestamps needn't rise with offsets:
    /// later records may be older. On Kafka the offset may be that of a control or aborted record,
    /// hence a little before the record meant, never after it; a negative time gives the starts there.
    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>>;

    /// A reader of all partitions from these offsets (one a partition; an offset below the first
    /// one kept starts at the first one kept). Committed records only.
    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn Reader>>;

    /// Appends records to plain logs and returns when all are durable, in their order within a
    /// partition. On an error some may have been written: the caller appends them again, and
    /// readers take the greatest offset of a key.
    fn append(&mut self, records: &[NewRecord]) -> Result<()>;

    /// The transactional writer of an id. Every earlier writer of the id is fenced when this
    /// returns: it can commit nothing any more, and what it left open is aborted.
    fn writer(&mut self, transactional_id: &str) -> Result<Box<dyn Writer>>;
}

/// A reader of one topic.
pub trait Reader: Send {
    /// Up to `max` records, waiting at most `wait` for the first. Within a partition records come
    /// in offset order, each once. An empty answer means that none came in time.
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Record>>;

    /// By partition the offset below which every committed record was returned. It passes control
    /// records and compacted gaps once the reader has seen the partition's end: after an empty
    /// poll it is at least the end that [`Topics::ends`] gave before that poll.
    fn positions(&self) -> Vec<i64>;
}

/// A transactional writer: idle between calls, one transaction a call.
pub trait Writer: Send {
    /// Writes the records in one transaction and commits it, all or nothing. `offsets` are
    /// consumed positions (topic, partition, offset), published to the group named as the
    /// transactional id for monitoring only.
    ///
    /// # Errors
    /// `Retry` where nothing was committed and the writer may be asked again. `Fatal` where the writer
    /// was fenced: another one does its work. `Restart` where it isn't known whether the transaction was
    /// committed, or whether a fence or the transaction's timeout ended it: drop the writer, fence again,
    /// read progress again.
    fn commit(&mut self, records: &[NewRecord], offsets: &[(String, u32, i64)]) -> Result<()>;

    /// Asks the store whether this writer still stands, by a transaction that no reader sees. `topic` is
    /// any topic that exists. A writer that was idle when another failed can tell a timeout, after which
    /// its job starts anew, from a successor, to which the job leaves the field.
    ///
    /// # Errors
    /// `Fatal` where the writer was fenced, `Restart` where it is closed and can't tell, `Retry` where
    /// the store doesn't answer.
    fn standing(&mut self, topic: &str) -> Result<()> {
        // For stores without a cheaper way: this publishes a position, for monitoring only.
        self.commit(&[], &[(topic.to_owned(), 0, 0)])
    }
}
