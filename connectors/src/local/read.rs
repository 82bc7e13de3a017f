//! Reading a topic in offset order.

use super::store::failure;
use super::{POLL_BYTES, TopicRow, headers};
use crate::{Error, Result, topics};
use ictflow_schemas::topic::Record;
use rusqlite::{Connection, Row, params};
use std::time::{Duration, Instant};

/// The pause between two looks at an idle file starts here and doubles ...
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// ... up to here.
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// A reader of one topic on its own read-only connection.
pub(super) struct Reader {
    connection: Connection,
    name: String,
    topic: i64,
    /// The next offset by partition.
    next: Vec<i64>,
    /// The partition that is served first in the next poll.
    turn: usize,
    /// The data version of the file at which everything had been returned.
    drained: Option<i64>,
}

impl Reader {
    pub(super) fn new(connection: Connection, name: &str, topic: &TopicRow, next: Vec<i64>) -> Reader {
        Reader { connection, name: name.to_owned(), topic: topic.id, next, turn: 0, drained: None }
    }

    fn context(&self) -> String {
        format!("reading topic {}", self.name)
    }

    /// Changes whenever another connection, of any process, has committed. Ours never writes.
    fn data_version(&self) -> Result<i64> {
        self.connection
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|error| failure(self.context(), error))
    }

    /// Up to `max` records of one consistent view of the file, and whether that was all of them.
    ///
    /// Partitions take turns with equal shares of `max`; what one doesn't use, the others may. The
    /// next poll starts behind the last one served. So the order depends on the log and on the
    /// calls alone.
    fn scan(&mut self, max: usize) -> Result<(Vec<Record>, bool)> {
        let context = self.context();
        let failed = |error| failure(context.as_str(), error);
        let transaction = self.connection.transaction().map_err(failed)?;
        let mut statement = transaction
            .prepare_cached(
                "SELECT \"offset\", timestamp, key, value, headers FROM records
                 WHERE topic = ?1 AND partition = ?2 AND \"offset\" >= ?3 ORDER BY \"offset\" LIMIT ?4",
            )
            .map_err(failed)?;
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut next = self.next.clone();
        let mut turn = self.turn;
        let share = (max / next.len()).max(1);
        let mut open: Vec<bool> = vec![true; next.len()];
        let mut left = next.len();
        while left > 0 && out.len() < max && bytes < POLL_BYTES {
            let at = turn;
            turn = (turn + 1) % next.len();
            if !open[at] {
                continue;
            }
            let want = share.min(max - out.len());
            let partition = at as u32;
            let mut rows = statement
                .query(params![self.topic, partition, next[at], i64::try_from(want).unwrap_or(i64::MAX)])
                .map_err(failed)?;
            let mut got = 0;
            while bytes < POLL_BYTES {
                let Some(row) = rows.next().map_err(failed)? else { break };
                let (record, size) = record(row, partition, &context)?;
                if record.offset != next[at] {
                    return Err(Error::fatal(
                        context,
                        format!(
                            "partition {partition} has offset {} where {} is due",
                            record.offset, next[at]
                        ),
                        "records were removed by hand: restore the state folder from a copy",
                    ));
                }
                next[at] += 1;
                got += 1;
                bytes += size;
                out.push(record);
            }
            if got < want && bytes < POLL_BYTES {
                open[at] = false;
                left -= 1;
            }
        }
        // Positions move only now: a failed poll can be tried again.
        self.next = next;
        self.turn = turn;
        Ok((out, left == 0))
    }
}

/// The record of a row, and its size in bytes.
fn record(row: &Row<'_>, partition: u32, context: &str) -> Result<(Record, usize)> {
    let failed = |error| failure(context, error);
    let offset: i64 = row.get(0).map_err(failed)?;
    let timestamp: i64 = row.get(1).map_err(failed)?;
    let key: Option<Vec<u8>> = row.get(2).map_err(failed)?;
    let value: Option<Vec<u8>> = row.get(3).map_err(failed)?;
    let blob = row.get_ref(4).map_err(failed)?.as_blob_or_null().map_err(|error| failed(error.into()))?;
    let size =
        key.as_ref().map_or(0, Vec::len) + value.as_ref().map_or(0, Vec::len) + blob.map_or(0, <[u8]>::len);
    let headers = match blob {
        None => Vec::new(),
        Some(blob) => headers::decode(blob).ok_or_else(|| {
            Error::fatal(
                context,
                format!("the headers of partition {partition}, offset {offset} are damaged"),
                "restore the state folder from a copy",
            )
        })?,
    };
    let timestamp = (timestamp != -1).then_some(timestamp);
    Ok((Record { partition, offset, timestamp, key, value, framed: None, headers }, size))
}

impl topics::Reader for Reader {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Record>> {
        let start = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            // Read before the scan: a commit between the two only costs one more scan.
            let version = self.data_version()?;
            if self.drained != Some(version) {
                let (records, all) = self.scan(max)?;
                self.drained = all.then_some(version);
                if !records.is_empty() || max == 0 {
                    return Ok(records);
                }
            }
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn positions(&self) -> Vec<i64> {
        self.next.clone()
    }
}
