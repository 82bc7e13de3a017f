//! What stands on record of a job, whether it runs or not.

use super::start::{bounds_at, own_progress};
use crate::epochs;
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::epoch::{EpochRecord, Erasure};
use ictflow_schemas::topic::Topic;

/// A job as its records say.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    /// All bounds.
    pub records: Vec<EpochRecord>,
    /// The committed epoch; 0 before the first.
    pub committed: i64,
    /// Whether features were published by then.
    pub publishing: bool,
}

impl Recorded {
    /// Reads a job's records. Progress first: the bounds of the committed epoch are on record then.
    ///
    /// # Errors
    /// What the store says; `Fatal` where the outputs belong to another job, or the committed epoch's bounds
    /// are gone.
    pub(crate) fn read(topics: &mut dyn Topics, names: &Names, job: &str) -> Result<Self> {
        for topic in [Topic::Epochs, Topic::Progress] {
            if topics.partitions(names.of(topic))?.is_none() {
                return Ok(Recorded { records: Vec::new(), committed: 0, publishing: false });
            }
        }
        let name = names.of(Topic::Progress);
        let progress = own_progress(topics, name, job)?;
        let records = epochs::load(topics, names.of(Topic::Epochs), job)?;
        let committed = progress.as_ref().map_or(0, |progress| progress.epoch);
        bounds_at(&records, committed)?;
        Ok(Recorded { records, committed, publishing: progress.is_some_and(|progress| progress.publishing) })
    }

    /// Reads the records of a job that has committed something.
    ///
    /// # Errors
    /// Those of [`Recorded::read`]; `Fatal` where nothing is committed.
    pub(crate) fn of_committed(topics: &mut dyn Topics, names: &Names, job: &str) -> Result<Self> {
        let recorded = Recorded::read(topics, names, job)?;
        if recorded.committed > 0 {
            return Ok(recorded);
        }
        Err(Error::fatal(
            format!("find the committed epoch of job {job}"),
            "there is none",
            "has the job run, and is its name the configured one?",
        ))
    }

    /// The records up to the committed one.
    pub(crate) fn up_to_commit(&self) -> &[EpochRecord] {
        let count = self.records.iter().take_while(|record| record.epoch <= self.committed).count();
        &self.records[..count]
    }

    /// All erasures on record.
    pub(crate) fn erasures(&self) -> Vec<Erasure> {
        self.records.iter().flat_map(|record| record.erasures.iter().cloned()).collect()
    }
}
