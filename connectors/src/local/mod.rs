//! Topics in one SQLite file: the embedded store.
//!
//! Offsets start at 0 and have no gaps. A topic is a range of one clustered table ordered by
//! (topic, partition, offset), so reading is a range scan and appending touches one page a
//! partition. The tables stand in `store.rs`, the framing of headers in `headers.rs`.
//!
//! # Delivery
//! [`Topics::append`] and a writer's commit are one SQL transaction each: all or nothing, also
//! across topics. SQLite's write-ahead log is synchronised to the disk before either returns
//! (`synchronous=FULL`), so what was appended survives the death of the process at any moment,
//! and a power cut as far as the disk keeps what it has acknowledged. The price is one
//! synchronisation a call, whatever its number of records, so append in batches. Measured on a
//! shared virtual disk (`examples/topics_speed.rs`): an append of one record takes 0.2 to 4 ms
//! (`NORMAL`: 0.03 ms), and commits of 10,000 small records reach 250,000 to 600,000 records/s
//! against 340,000 to 650,000. `NORMAL` also survives the death of the process, but could lose the
//! last calls in a power cut, paid answers of an LLM among them, while a snapshot or vector store
//! beside the file kept what it learnt from them.
//! Nothing is doubled by the store itself. A commit whose outcome isn't known (an I/O error in
//! COMMIT) is `Fatal`, and that writer refuses every later call.
//! A writer's id carries a generation; making a writer raises it, and a commit by an older
//! generation is `Fatal` with "fenced" and writes nothing.
//!
//! # Ordering
//! Offset order within a partition; the records of a call keep their order. A poll sees one
//! consistent view of the file, serves partitions in turn with equal shares, and depends on the
//! log and the calls alone. A commit is visible to every process when the call returns.
//!
//! # Retries
//! A write waits up to [`BUSY_TIMEOUT`] for writers of other processes (writers of this process
//! queue without polling), then ends as `Retry`, nothing written. Nothing else is tried again.
//!
//! # Limits
//! * A poll returns at most `max` records and stops once it holds [`POLL_BYTES`].
//! * Key, value and headers of one record are below 1 GB each (SQLite's own limit).
//! * Local keeps everything: the policy of a topic is recorded and never applied, so the file grows
//!   with the logs. The earliest offset is always 0.
//! * One process writes at a time; readers never wait for a writer. The folder must be on a local
//!   disk (no network file system) and writable also for [`Local::open_read_only`], as SQLite keeps
//!   the shared index of its log beside the file.
//! * The log beside the file is folded in every 32 MiB and cut back to 64 MiB.
//! * An idle reader looks for new records every 1 to 10 ms.
//!
//! # Secrets
//! None. Keys, values and headers never stand in errors or traces.
//!
//! # Telemetry
//! Traces at debug level: each commit and append with its number of records, each fencing with its
//! generation. [`Local::group_offsets`] gives the consumed positions for lag.

mod headers;
mod read;
mod store;
#[cfg(test)]
mod tests;
mod write;

use crate::{Error, Result, topics, topics::Topics};
use ictflow_schemas::topic::{NewRecord, Policy};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::{Access, Gate, Shape, failure};

/// The customary name of the file in a job's state folder.
pub const FILE_NAME: &str = "topics.db";

/// The version of the file format that this program writes. It refuses newer ones.
pub const FORMAT_VERSION: i32 = 1;

/// How long a write waits for the writers of other processes.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// A poll stops once its records hold this many bytes, whatever its `max`.
pub const POLL_BYTES: usize = 64 << 20;

/// The first record of a partition.
const FIRST: &str = "SELECT \"offset\" FROM records WHERE topic = ?1 AND partition = ?2
     ORDER BY \"offset\" LIMIT 1";

/// The first record of a partition with a timestamp at or after a time; -1 is none.
const FIRST_AT: &str = "SELECT \"offset\" FROM records WHERE topic = ?1 AND partition = ?2
     AND timestamp >= ?3 AND timestamp <> -1 ORDER BY \"offset\" LIMIT 1";

/// A handle on a file of topics. Several handles, threads and processes may use one file at once.
pub struct Local {
    connection: Connection,
    path: PathBuf,
    /// `None` where the handle is read-only.
    gate: Option<Gate>,
}

/// A topic as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its number of partitions.
    pub partitions: u32,
    /// Its policy, recorded and not applied.
    pub policy: Policy,
}

/// What writing and reading need of a topic.
struct TopicRow {
    id: i64,
    partitions: u32,
}

impl Local {
    /// Opens the file for reading and writing; creates it and its folder where missing.
    ///
    /// # Errors
    /// `Fatal` where the folder can't be written, the file isn't ours or its format is newer;
    /// `Retry` where another process keeps it locked for [`BUSY_TIMEOUT`].
    pub fn open(path: impl AsRef<Path>) -> Result<Local> {
        let (connection, path, gate) = store::open(path.as_ref())?;
        Ok(Local { connection, path, gate: Some(gate) })
    }

    /// Opens an existing file for reading only, also while a job writes it.
    ///
    /// # Errors
    /// As [`Local::open`], and `Fatal` where the file doesn't exist or holds no topics yet.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Local> {
        let path = path.as_ref();
        let connection = store::connect(path, Access::Read)?;
        if store::check(&connection, path)? == Shape::Empty {
            return Err(Error::fatal(
                format!("opening {}", path.display()),
                "it holds no topics yet",
                "start the job first, or check the state folder",
            ));
        }
        Ok(Local { connection, path: path.to_owned(), gate: None })
    }

    /// Every topic, by name.
    ///
    /// # Errors
    /// Those of the file.
    pub fn topics(&self) -> Result<Vec<TopicInfo>> {
        let context = format!("listing the topics of {}", self.path.display());
        let failed = |error| failure(context.as_str(), error);
        let mut statement = self
            .connection
            .prepare_cached("SELECT name, partitions, policy FROM topics ORDER BY name")
            .map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut topics = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let policy: String = row.get(2).map_err(failed)?;
            let policy = policy_of(&policy).ok_or_else(|| {
                Error::fatal(
                    context.as_str(),
                    format!("a topic has the policy {policy}"),
                    "restore the state folder from a copy",
                )
            })?;
            topics.push(TopicInfo {
                name: row.get(0).map_err(failed)?,
                partitions: row.get(1).map_err(failed)?,
                policy,
            });
        }
        Ok(topics)
    }

    /// The consumed positions that the writer of a transactional id last published, as
    /// (topic, partition, next offset), by topic and partition. For monitoring only.
    ///
    /// # Errors
    /// Those of the file.
    pub fn group_offsets(&self, group: &str) -> Result<Vec<(String, u32, i64)>> {
        let failed = |error| failure(format!("reading the positions of {group}"), error);
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT topic, partition, \"offset\" FROM group_offsets WHERE group_id = ?1
                 ORDER BY topic, partition",
            )
            .map_err(failed)?;
        statement
            .query_map([group], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .and_then(Iterator::collect)
            .map_err(failed)
    }

    /// The gate of the file's writers, or why there is none.
    fn gate(&self, context: &str) -> Result<Gate> {
        self.gate.clone().ok_or_else(|| {
            Error::fatal(
                context,
                format!("{} is open for reading only", self.path.display()),
                "write through the job that owns the state folder",
            )
        })
    }

    /// By partition the first offset that a query finds, else the end; in one view of the file.
    fn first_offsets(
        &mut self,
        topic: &str,
        context: &str,
        query: &str,
        time_ms: Option<i64>,
    ) -> Result<Vec<i64>> {
        let failed = |error| failure(context, error);
        let found = self.topic(topic, context)?;
        let transaction = self.connection.transaction().map_err(failed)?;
        let first = |partition: u32| {
            let mut statement = transaction.prepare_cached(query).map_err(failed)?;
            let first: Option<i64> = match time_ms {
                Some(at) => statement.query_row(params![found.id, partition, at], |row| row.get(0)),
                None => statement.query_row(params![found.id, partition], |row| row.get(0)),
            }
            .optional()
            .map_err(failed)?;
            first.map_or_else(|| end_of(&transaction, found.id, partition, context), Ok)
        };
        (0..found.partitions).map(first).collect()
    }

    fn topic(&self, name: &str, context: &str) -> Result<TopicRow> {
        topic_of(&self.connection, name, context)?.ok_or_else(|| {
            Error::fatal(
                context,
                format!("topic {name} doesn't exist in {}", self.path.display()),
                "check the topic's name, or start the job that creates it",
            )
        })
    }
}

impl Topics for Local {
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>> {
        let found = topic_of(&self.connection, topic, &format!("looking up topic {topic}"))?;
        Ok(found.map(|topic| topic.partitions))
    }

    fn ensure(&mut self, topic: &str, partitions: u32, policy: Policy) -> Result<()> {
        let context = format!("ensuring topic {topic}");
        let failed = |error| failure(context.as_str(), error);
        if partitions == 0 || i32::try_from(partitions).is_err() {
            return Err(Error::fatal(
                context,
                format!("{partitions} partitions were asked for"),
                "ask for at least one and fewer than 2^31",
            ));
        }
        let mut found = topic_of(&self.connection, topic, &context)?;
        if found.is_none() {
            let gate = self.gate(&context)?;
            let _guard = gate.enter();
            let transaction =
                self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            transaction
                .execute(
                    "INSERT INTO topics (name, partitions, policy) VALUES (?1, ?2, ?3)
                     ON CONFLICT (name) DO NOTHING",
                    params![topic, partitions, policy_name(policy)],
                )
                .map_err(failed)?;
            transaction.commit().map_err(failed)?;
            // Another process may have been first, with another count.
            found = topic_of(&self.connection, topic, &context)?;
        }
        match found {
            Some(found) if found.partitions == partitions => Ok(()),
            Some(found) => Err(count_mismatch(&context, topic, found.partitions, partitions)),
            None => Err(Error::fatal(context, "the topic vanished", "check the disk of the state folder")),
        }
    }

    fn ends(&mut self, topic: &str) -> Result<Vec<i64>> {
        let context = format!("reading the ends of topic {topic}");
        let found = self.topic(topic, &context)?;
        // One view of the file: a commit shows in all partitions or in none.
        let transaction = self.connection.transaction().map_err(|error| failure(context.as_str(), error))?;
        (0..found.partitions).map(|partition| end_of(&transaction, found.id, partition, &context)).collect()
    }

    fn starts(&mut self, topic: &str) -> Result<Vec<i64>> {
        let context = format!("reading the starts of topic {topic}");
        self.first_offsets(topic, &context, FIRST, None)
    }

    /// As the trait says. There is no index of timestamps: it reads a partition up to the record found.
    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        let context = format!("looking up a time in topic {topic}");
        self.first_offsets(topic, &context, FIRST_AT, Some(time_ms))
    }

    /// As the trait says. An offset beyond the end is a `Fatal` error: the log that gave it isn't
    /// this one, or this one lost its tail.
    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn topics::Reader>> {
        let context = format!("opening a reader of topic {topic}");
        let found = self.topic(topic, &context)?;
        let ends = self.ends(topic)?;
        let next = starts(&context, topic, from, &ends)?;
        let connection = store::connect(&self.path, Access::Read)?;
        Ok(Box::new(read::Reader::new(connection, topic, &found, next)))
    }

    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let context = format!("appending {} records", records.len());
        let failed = |error| failure(context.as_str(), error);
        let gate = self.gate(&context)?;
        let _guard = gate.enter();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        write::insert(&transaction, records, &context)?;
        transaction.commit().map_err(failed)?;
        tracing::debug!(records = records.len(), "appended");
        Ok(())
    }

    fn writer(&mut self, transactional_id: &str) -> Result<Box<dyn topics::Writer>> {
        let gate = self.gate(&format!("fencing the writers of {transactional_id}"))?;
        let connection = store::connect(&self.path, Access::Write)?;
        Ok(Box::new(write::Writer::fence(connection, gate, transactional_id)?))
    }
}

/// The refusal of a topic with another partition count.
pub(crate) fn count_mismatch(context: &str, topic: &str, has: u32, asked: u32) -> Error {
    Error::fatal(
        context,
        format!("topic {topic} has {has} partitions, {asked} were asked for"),
        "set the configured count to the topic's, or use another topic or state folder",
    )
}

/// The first offsets of a reader, checked against the log.
pub(crate) fn starts(context: &str, topic: &str, from: &[i64], ends: &[i64]) -> Result<Vec<i64>> {
    if from.len() != ends.len() {
        return Err(Error::fatal(
            context,
            format!("topic {topic} has {} partitions, {} offsets were given", ends.len(), from.len()),
            "give one offset for each partition",
        ));
    }
    for (partition, (from, end)) in from.iter().zip(ends).enumerate() {
        if from > end {
            return Err(Error::fatal(
                context,
                format!(
                    "partition {partition} of topic {topic} ends at {end}, a reader was asked from {from}"
                ),
                "the log was replaced or lost its tail: restore it, or start with a new state folder",
            ));
        }
    }
    Ok(from.iter().map(|&from| from.max(0)).collect())
}

fn topic_of(connection: &Connection, name: &str, context: &str) -> Result<Option<TopicRow>> {
    connection
        .prepare_cached("SELECT id, partitions FROM topics WHERE name = ?1")
        .and_then(|mut statement| {
            statement
                .query_row([name], |row| Ok(TopicRow { id: row.get(0)?, partitions: row.get(1)? }))
                .optional()
        })
        .map_err(|error| failure(context, error))
}

fn end_of(connection: &Connection, topic: i64, partition: u32, context: &str) -> Result<i64> {
    let last: Option<i64> = connection
        .prepare_cached(
            "SELECT \"offset\" FROM records WHERE topic = ?1 AND partition = ?2
             ORDER BY \"offset\" DESC LIMIT 1",
        )
        .and_then(|mut statement| statement.query_row(params![topic, partition], |row| row.get(0)).optional())
        .map_err(|error| failure(context, error))?;
    Ok(last.map_or(0, |last| last + 1))
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Append => "append",
        Policy::Compact => "compact",
        Policy::CompactAndTime => "compact_and_time",
        Policy::Time => "time",
    }
}

fn policy_of(name: &str) -> Option<Policy> {
    [Policy::Append, Policy::Compact, Policy::CompactAndTime, Policy::Time]
        .into_iter()
        .find(|&policy| policy_name(policy) == name)
}
