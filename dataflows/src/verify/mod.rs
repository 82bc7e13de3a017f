//! `ictflow verify`: what stands on the outputs at a committed epoch, held against a recomputation.
//!
//! [`read`] takes the records of the output topics as they stand, [`crate::recompute`] gives what must
//! stand there, [`compare::check`] finds every difference. Nothing is written and nobody is fenced, so it
//! may run beside the job: what the job commits meanwhile is of later epochs and left out.

pub mod compare;

use crate::epochs::read_whole;
use crate::names::Names;
use crate::recompute::{Plan, Values, bounds_of, recompute, recorded, used};
use compare::{Position, Seen, Violation, check};
use ictflow_connectors::Result;
use ictflow_connectors::topics::Topics;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_SUBSTEP, Record, Topic};
use std::collections::BTreeMap;

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// The epoch.
    pub epoch: i64,
    /// Features that must stand.
    pub features: usize,
    /// Examples that must stand.
    pub examples: usize,
    /// Dead letters that must stand.
    pub dead_letters: usize,
    /// Interactions read.
    pub interactions: u64,
    /// The differences.
    pub violations: Vec<Violation>,
    /// Keys that the job wrote again after the epoch: what stood there may be compacted away.
    pub superseded: usize,
    /// Unreadable records of `items` and `candidates`: compaction may have taken their good predecessors.
    pub unreadable_views: u64,
    /// Live pairs that wait for a vector.
    pub waiting: u64,
    /// Partitions of `interactions` that lost records since the job began.
    pub truncated: usize,
}

/// Verifies the outputs of a job at an epoch, the committed one by default.
///
/// # Errors
/// Those of the store and of [`recompute`]; `Fatal` where the plan's semantics, encoder or weights aren't
/// those of the epoch.
pub fn verify(
    topics: &mut dyn Topics,
    plan: &Plan<'_>,
    job: &str,
    epoch: Option<i64>,
    progress: impl FnMut(u64, u64),
) -> Result<Report> {
    let (records, committed) = recorded(topics, plan.names, job)?;
    let epoch = epoch.unwrap_or(committed);
    let until = bounds_of(&records, epoch)?;
    crate::job::check_semantics(&records, &plan.semantics.canonical())?;
    crate::job::check_encoder(&records, &plan.encoder.0)?;
    if until.actives.ict_weights != plan.weights.version() {
        return Err(ictflow_connectors::Error::fatal(
            format!("verify epoch {epoch}"),
            format!(
                "it was made with the weights {}, not {}",
                until.actives.ict_weights,
                plan.weights.version()
            ),
            "set [ict] weights to that file",
        ));
    }
    let mut seen = BTreeMap::new();
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        seen.insert(topic, read(topics, plan.names, topic)?);
    }
    // Beside a running job there are newer commits; what is beyond this wasn't committed when it was read.
    let (_, committed) = recorded(topics, plan.names, job)?;
    let standing: Values = compare::standing(&seen[&Topic::Features], epoch);
    let found = recompute(topics, plan, &records, until, used(&standing), progress)?;
    let mut report = Report {
        epoch,
        features: found.features.len(),
        examples: found.examples.len(),
        dead_letters: found.dead_letters.len(),
        interactions: found.interactions,
        unreadable_views: found.unreadable_views,
        waiting: found.waiting,
        truncated: found.truncated,
        ..Report::default()
    };
    for (topic, expected) in [
        (Topic::Features, &found.features),
        (Topic::Examples, &found.examples),
        (Topic::DeadLetters, &found.dead_letters),
    ] {
        let (violations, superseded) = check(topic, expected, &seen[&topic], epoch, committed);
        report.violations.extend(violations);
        report.superseded += superseded;
    }
    Ok(report)
}

/// The records of an output topic with their positions.
///
/// # Errors
/// Those of the store.
pub fn read(topics: &mut dyn Topics, names: &Names, topic: Topic) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    read_whole(topics, names.of(topic), |record| seen.push(of(record)))?;
    Ok(seen)
}

fn of(record: Record) -> Seen {
    let position = record.number(HEADER_EPOCH).zip(record.number(HEADER_SUBSTEP));
    Seen {
        partition: record.partition,
        offset: record.offset,
        position: position.map(|(epoch, substep)| Position { epoch, substep }),
        key: record.key.unwrap_or_default(),
        value: record.value,
    }
}
