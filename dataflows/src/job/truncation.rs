//! Inputs that have forgotten records which recorded epochs hold.
//!
//! A job's state rests on its inputs from the offsets where they began when it started, or from those of
//! its snapshot. Where a log has forgotten more than that, a start refuses by name; where that is
//! accepted, the loss stands on record: the next bounds record says where the logs begin now.

use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::Topic;
use std::collections::BTreeMap;

/// By input log, the first offset of each partition.
pub type Starts = BTreeMap<String, Vec<i64>>;

/// The inputs whose records may not go. `items` and `candidates` are compacted by their owner, who may
/// let old ones go altogether: what is gone there is as if it had been deleted.
const KEPT: [Topic; 3] = [Topic::Interactions, Topic::Cot, Topic::Embeddings];

/// What the inputs have forgotten.
#[derive(Clone, Debug, Default)]
pub struct Truncation {
    /// Where `interactions` begin now.
    begins: Vec<i64>,
    /// Whether any user was ever erased: then the owner may have purged that user's records too.
    erased: bool,
    /// Where the logs begin, to be recorded with the next epoch. A job that accepted a loss isn't idle until
    /// that is done: the next start would be refused again.
    pub to_record: Option<Starts>,
}

impl Truncation {
    /// Holds where the inputs begin now against what the job rests on. `from` are the ends of the
    /// snapshot that is loaded, if any.
    ///
    /// # Errors
    /// `Fatal` where needed records are gone and that isn't accepted.
    pub fn look(
        topics: &mut dyn Topics,
        names: &Names,
        records: &[EpochRecord],
        from: Option<&EpochRecord>,
        accept: bool,
    ) -> Result<Self> {
        let starts = starts(topics, names)?;
        // A job without a record rests on what is there.
        let gone = if records.is_empty() { Vec::new() } else { gone(&starts, names, records, from) };
        if !gone.is_empty() && !accept {
            return Err(Error::fatal(
                "start the job",
                format!("needed offsets are gone: {}", gone.join(", ")),
                "restore the topic or a snapshot; --accept-truncated goes on without them and puts the loss on record",
            ));
        }
        if !gone.is_empty() {
            tracing::warn!(gone = gone.join(", "), "going on without records that are gone");
        }
        Ok(Truncation {
            begins: starts[Topic::Interactions.name()].clone(),
            erased: records.iter().any(|record| !record.erasures.is_empty()),
            to_record: (records.is_empty() || !gone.is_empty()).then_some(starts),
        })
    }

    /// Holds the partition maxima that a replay computes against those on record. They may be less where
    /// the log has forgotten some of the epoch's records, or where an erased user's may be purged.
    ///
    /// # Errors
    /// `Fatal` where they differ otherwise.
    pub fn check(&self, record: &EpochRecord, before: Option<&EpochRecord>, maxima: &[Millis]) -> Result<()> {
        let interactions = Topic::Interactions.name();
        let end_before = |partition: usize| {
            let ends = before.and_then(|before| before.ends.get(interactions));
            ends.and_then(|ends| ends.get(partition)).copied().unwrap_or(0)
        };
        let agrees = |(partition, (computed, recorded)): (usize, (&Millis, &Millis))| {
            let forgotten = self.begins.get(partition).is_some_and(|begin| *begin > end_before(partition));
            computed == recorded || (computed < recorded && (forgotten || self.erased))
        };
        if maxima.len() == record.maxima.len() && maxima.iter().zip(&record.maxima).enumerate().all(agrees) {
            return Ok(());
        }
        Err(Error::fatal(
            format!("replay epoch {}", record.epoch),
            "the interactions give other partition maxima than the epoch recorded",
            "the log was changed below a committed bound, or a schema that the registry didn't know is known now: start a new job on it",
        ))
    }
}

/// Where the inputs begin now.
///
/// # Errors
/// What the store says.
pub(crate) fn starts(topics: &mut dyn Topics, names: &Names) -> Result<Starts> {
    let of = |topic: Topic| Ok((topic.name().to_owned(), topics.starts(names.of(topic))?));
    Topic::INPUTS.into_iter().map(of).collect()
}

/// What the inputs have forgotten of what a job's recorded epochs rest on, each as topic/partition with the
/// first offset needed and the first one kept. `from` are the ends of the snapshot that is loaded, if any.
pub(crate) fn gone(
    starts: &Starts,
    names: &Names,
    records: &[EpochRecord],
    from: Option<&EpochRecord>,
) -> Vec<String> {
    let recorded = records.iter().rev().find(|record| !record.starts.is_empty());
    let mut gone = Vec::new();
    for topic in KEPT {
        let rests = recorded.and_then(|record| record.starts.get(topic.name()));
        let loaded =
            from.filter(|_| topic == Topic::Interactions).and_then(|record| record.ends.get(topic.name()));
        for (partition, begin) in starts[topic.name()].iter().enumerate() {
            let of = |offsets: Option<&Vec<i64>>| {
                offsets.and_then(|offsets| offsets.get(partition)).copied().unwrap_or(0)
            };
            let needed = of(rests).max(of(loaded));
            if *begin > needed {
                gone.push(format!(
                    "{}/{partition} is needed from offset {needed} and kept from {begin}",
                    names.of(topic)
                ));
            }
        }
    }
    gone
}
