//! Up to where the labels of a job are known: what a training set's newest rows lack.
//!
//! A label is known with its outcome, and that an impression has none only when the attribution window is over.
//! So of the newest impressions those with an outcome stand on `examples`, and the others not yet: a set that goes
//! up to the newest row has too many of the former.

use crate::epochs;
use crate::explain::job_of_outputs;
use crate::job::read_progress;
use crate::names::Names;
use ictflow_connectors::Result;
use ictflow_connectors::topics::Topics;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::{Millis, NO_TIME};
use serde::{Deserialize, Serialize};

/// Times before which nothing is missing, by the partition that is furthest behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Settled {
    /// Every impression before it has its label.
    pub known_before: Millis,
    /// No label before it changes any more, but by erasure.
    pub final_before: Millis,
}

/// What is read of the semantics that an epoch records.
#[derive(Deserialize)]
struct Windows {
    attribution_window_ms: Millis,
    lateness_ms: Millis,
}

impl Settled {
    /// Reads it of a job's committed epoch: of the job named or, without a name, of the only one on these topics.
    /// `None` where no such job has committed an event.
    ///
    /// # Errors
    /// What the store says; `Fatal` where the job's records can't be read.
    pub fn read(topics: &mut dyn Topics, names: &Names, job: Option<&str>) -> Result<Option<Self>> {
        for topic in [Topic::Epochs, Topic::Progress] {
            if topics.partitions(names.of(topic))?.is_none() {
                return Ok(None);
            }
        }
        let job = match job {
            Some(job) => Some(job.to_owned()),
            None => job_of_outputs(topics, names)?,
        };
        let Some(job) = job else { return Ok(None) };
        let progress = read_progress(topics, names.of(Topic::Progress), Some(&job))?;
        let Some(committed) = progress.iter().find(|progress| progress.job == job) else { return Ok(None) };
        let records = epochs::load(topics, names.of(Topic::Epochs), &job)?;
        Ok(Self::at(&records, committed.epoch))
    }

    /// At an epoch.
    fn at(records: &[EpochRecord], epoch: i64) -> Option<Self> {
        let mut until = records.iter().filter(|record| record.epoch <= epoch).rev();
        let last = until.clone().next()?;
        let windows: Windows =
            serde_json::from_str(until.find_map(|record| record.config.as_deref())?).ok()?;
        // A partition without any event holds nothing up.
        let behind = last.maxima.iter().copied().filter(|maximum| *maximum != NO_TIME).min()?;
        let known_before = behind.saturating_sub(windows.attribution_window_ms);
        Some(Settled { known_before, final_before: known_before.saturating_sub(windows.lateness_ms) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_schemas::config::Semantics;
    use ictflow_schemas::epoch::Actives;
    use std::collections::BTreeMap;

    fn record(epoch: i64, maxima: &[Millis], config: Option<Semantics>) -> EpochRecord {
        EpochRecord {
            job: "j".to_owned(),
            epoch,
            ends: BTreeMap::new(),
            maxima: maxima.to_vec(),
            clock: maxima.iter().copied().max().unwrap(),
            actives: Actives::default(),
            config_digest: String::new(),
            config: config.map(|semantics| semantics.canonical()),
            starts: BTreeMap::new(),
            erasures: Vec::new(),
            outputs: None,
        }
    }

    #[test]
    fn the_partition_that_is_furthest_behind_decides_by_the_recorded_windows() {
        let semantics = Semantics { attribution_window_ms: 100, lateness_ms: 20, ..Semantics::default() };
        let records = [
            record(1, &[NO_TIME, NO_TIME], Some(semantics)),
            record(2, &[NO_TIME, 1_000], None),
            record(3, &[700, 5_000], None),
        ];
        let settled = |known_before, final_before| Some(Settled { known_before, final_before });
        for (epoch, expected) in
            [(0, None), (1, None), (2, settled(900, 880)), (3, settled(600, 580)), (9, settled(600, 580))]
        {
            assert_eq!(Settled::at(&records, epoch), expected, "epoch {epoch}");
        }
    }
}
