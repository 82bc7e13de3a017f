//! Writing: the rows of a batch, and the fenced writer.

use super::headers;
use super::store::{Gate, failure};
use super::topic_of;
use crate::{Error, Result, clock, topics};
use ictflow_schemas::topic::NewRecord;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::HashMap;

/// Writes records into an open transaction; their offsets follow the last ones of their partitions.
pub(super) fn insert(transaction: &Transaction<'_>, records: &[NewRecord], context: &str) -> Result<()> {
    let failed = |error| failure(context, error);
    let now = clock::now_ms();
    let mut places: HashMap<(&str, u32), Place> = HashMap::new();
    let mut insert = transaction
        .prepare_cached(
            "INSERT INTO records (topic, partition, \"offset\", timestamp, key, value, headers)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .map_err(failed)?;
    for record in records {
        let place = match places.get_mut(&(record.topic.as_str(), record.partition)) {
            Some(place) => place,
            None => {
                let place = Place::find(transaction, &record.topic, record.partition, context)?;
                places.entry((record.topic.as_str(), record.partition)).or_insert(place)
            }
        };
        insert
            .execute(params![
                place.topic,
                record.partition,
                place.next,
                record.timestamp.unwrap_or(now),
                record.key,
                record.value,
                headers::encode(&record.headers),
            ])
            .map_err(failed)?;
        place.next += 1;
    }
    Ok(())
}

/// Where the next record of a partition goes.
struct Place {
    topic: i64,
    next: i64,
}

impl Place {
    fn find(connection: &Connection, name: &str, partition: u32, context: &str) -> Result<Place> {
        let Some(topic) = topic_of(connection, name, context)? else {
            return Err(Error::fatal(
                context,
                format!("topic {name} doesn't exist"),
                "create it first: the job does this at start",
            ));
        };
        if partition >= topic.partitions {
            return Err(Error::fatal(
                context,
                format!(
                    "topic {name} has {} partitions, the record names partition {partition}",
                    topic.partitions
                ),
                "give every job of this state folder the same partition counts",
            ));
        }
        Ok(Place { topic: topic.id, next: super::end_of(connection, topic.id, partition, context)? })
    }
}

/// The transactional writer of one id.
pub(super) struct Writer {
    connection: Connection,
    gate: Gate,
    id: String,
    generation: i64,
    /// Set where it isn't known whether the last transaction was committed.
    lost: bool,
}

impl Writer {
    /// Fences every earlier writer of the id.
    pub(super) fn fence(mut connection: Connection, gate: Gate, id: &str) -> Result<Writer> {
        let context = format!("fencing the writers of {id}");
        let failed = |error| failure(context.as_str(), error);
        let generation = {
            let _guard = gate.enter();
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            let generation: i64 = transaction
                .query_row(
                    "INSERT INTO writers (id, generation) VALUES (?1, 1)
                     ON CONFLICT (id) DO UPDATE SET generation = generation + 1
                     RETURNING generation",
                    [id],
                    |row| row.get(0),
                )
                .map_err(failed)?;
            transaction.commit().map_err(failed)?;
            generation
        };
        tracing::debug!(id, generation, "fenced the earlier writers of an id");
        Ok(Writer { connection, gate, id: id.to_owned(), generation, lost: false })
    }
}

impl topics::Writer for Writer {
    fn commit(&mut self, records: &[NewRecord], offsets: &[(String, u32, i64)]) -> Result<()> {
        let context = format!("committing {} records as {}", records.len(), self.id);
        if self.lost {
            return Err(lost(context));
        }
        let failed = |error| failure(context.as_str(), error);
        let _guard = self.gate.enter();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        unfenced(&transaction, &self.id, self.generation, &context)?;
        insert(&transaction, records, &context)?;
        {
            let mut statement = transaction
                .prepare_cached(
                    "INSERT INTO group_offsets (group_id, topic, partition, \"offset\") VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (group_id, topic, partition) DO UPDATE SET \"offset\" = excluded.\"offset\"",
                )
                .map_err(failed)?;
            for (topic, partition, offset) in offsets {
                statement.execute(params![self.id, topic, partition, offset]).map_err(failed)?;
            }
        }
        if let Err(error) = transaction.commit() {
            // The WAL may or may not hold the commit mark now.
            self.lost = true;
            return Err(Error::restart(
                context,
                format!("it isn't known whether the transaction was committed: {error}"),
                "fence again and read the progress again; check the disk of the state folder",
            ));
        }
        tracing::debug!(id = self.id, records = records.len(), "committed a transaction");
        Ok(())
    }
    /// Reads the newest generation; writes nothing.
    fn standing(&mut self, _topic: &str) -> Result<()> {
        let context = format!("asking whether the writer of {} stands", self.id);
        if self.lost {
            return Err(lost(context));
        }
        unfenced(&self.connection, &self.id, self.generation, &context)
    }
}

/// The failure of a writer that doesn't know what it committed last.
fn lost(context: String) -> Error {
    Error::restart(
        context,
        "an earlier commit ended without a known outcome",
        "fence again and read the progress again",
    )
}

/// Refuses a writer that isn't the newest of its id.
fn unfenced(connection: &Connection, id: &str, generation: i64, context: &str) -> Result<()> {
    let newest: Option<i64> = connection
        .prepare_cached("SELECT generation FROM writers WHERE id = ?1")
        .and_then(|mut statement| statement.query_row([id], |row| row.get(0)).optional())
        .map_err(|error| failure(context, error))?;
    if newest == Some(generation) {
        return Ok(());
    }
    let newest = newest.map_or_else(|| "none".to_owned(), |newest| newest.to_string());
    Err(Error::fatal(
        context,
        format!("fenced: this writer has generation {generation}, the newest has {newest}"),
        "another process runs this job: stop one of them, or give it another name",
    ))
}
