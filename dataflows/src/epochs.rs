//! The log of bounds: what each epoch holds, written before its data enters the dataflow.

use ictflow_connectors::topics::{Topics, Writer};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::invariants;
use ictflow_schemas::topic::{NewRecord, Record};
use ictflow_schemas::wire::Wire;
use std::collections::BTreeMap;
use std::time::Duration;

/// How many records a whole read polls at once.
const POLL: usize = 10_000;

/// How long a whole read waits for the end that the topic said it has.
const PATIENCE_ROUNDS: usize = 600;

/// Reads every committed record of a topic up to the end that it has now, and gives each to `keep`.
///
/// # Errors
/// `Fatal` where the end can't be reached within a minute.
pub fn read_whole(topics: &mut dyn Topics, topic: &str, mut keep: impl FnMut(Record)) -> Result<()> {
    let ends = topics.ends(topic)?;
    let from = vec![0; ends.len()];
    read_range(topics, topic, &from, &ends, |record| {
        keep(record);
        true
    })
}

/// Reads the committed records of a topic from these offsets up to those bounds, one each a
/// partition, and gives each to `keep`, until that is false. A bound must not exceed the end.
///
/// # Errors
/// `Fatal` where a bound can't be reached within a minute.
pub fn read_range(
    topics: &mut dyn Topics,
    topic: &str,
    from: &[i64],
    ends: &[i64],
    mut keep: impl FnMut(Record) -> bool,
) -> Result<()> {
    let mut reader = topics.reader(topic, from)?;
    let mut rounds = 0;
    while reader.positions().iter().zip(ends).any(|(position, end)| position < end) {
        let records = reader.poll(POLL, Duration::from_millis(100))?;
        rounds = if records.is_empty() { rounds + 1 } else { 0 };
        if rounds > PATIENCE_ROUNDS {
            return Err(Error::fatal(
                format!("read topic {topic}"),
                "its end wasn't reached within a minute",
                "is a transaction on it still open, or the store overloaded?",
            ));
        }
        for record in records {
            let partition = record.partition as usize;
            if ends.get(partition).is_some_and(|end| record.offset < *end) && !keep(record) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The compacted view of a topic: by key the newest record's partition and value; a null removes.
///
/// # Errors
/// Those of [`read_whole`].
pub fn read_compacted(topics: &mut dyn Topics, topic: &str) -> Result<BTreeMap<Vec<u8>, (u32, Vec<u8>)>> {
    let mut values = BTreeMap::new();
    read_whole(topics, topic, |record| {
        let Some(key) = record.key else { return };
        match record.value {
            Some(value) => values.insert(key, (record.partition, value)),
            None => values.remove(&key),
        };
    })?;
    Ok(values)
}

/// The recorded bounds of a job, by epoch, from epoch 1 without a gap. For an equal epoch the
/// lowest offset wins: a fenced predecessor may have written one more.
///
/// # Errors
/// `Fatal` where the log contradicts itself: then no replay could be exact.
pub fn load(topics: &mut dyn Topics, topic: &str, job: &str) -> Result<Vec<EpochRecord>> {
    let mut epochs: BTreeMap<i64, EpochRecord> = BTreeMap::new();
    let mut unreadable = None;
    read_whole(topics, topic, |record| match record.value.as_deref().map(EpochRecord::decode) {
        Some(Ok(epoch)) if epoch.job == job => {
            epochs.entry(epoch.epoch).or_insert(epoch);
        }
        Some(Err(error)) => unreadable = Some(format!("offset {}: {error}", record.offset)),
        _ => {}
    })?;
    if let Some(detail) = unreadable {
        return Err(broken(topic, detail));
    }
    let epochs: Vec<EpochRecord> = epochs.into_values().collect();
    if epochs.first().is_some_and(|first| first.epoch != 1 || first.config.is_none()) {
        return Err(broken(topic, "the first epoch is missing".to_owned()));
    }
    for pair in epochs.windows(2) {
        invariants::epoch_follows(&pair[0], &pair[1]).map_err(|violation| broken(topic, violation.0))?;
    }
    Ok(epochs)
}

fn broken(topic: &str, detail: String) -> Error {
    Error::fatal(
        format!("read the bounds on {topic}"),
        detail,
        "the log of bounds must be kept as long as the inputs: start a new job on the same inputs",
    )
}

/// Commits the bounds of an epoch, in a transaction of its own.
pub fn commit(writer: &mut dyn Writer, topic: &str, record: &EpochRecord) -> Result<()> {
    writer.commit(&[new_record(topic, record)], &[])
}

/// The record of an epoch on the log of bounds.
pub(crate) fn new_record(topic: &str, record: &EpochRecord) -> NewRecord {
    NewRecord {
        topic: topic.to_owned(),
        partition: 0,
        timestamp: None,
        key: Some(record.key()),
        value: Some(record.encode()),
        headers: Vec::new(),
    }
}
