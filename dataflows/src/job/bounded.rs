//! A job that ends: a backfill. It takes its inputs up to bounds, publishes once it is there, and is done.
//!
//! Its epochs are full ones: input is gathered up to their size before one is closed, since nobody waits
//! for a part of it.

use super::Job;
use ictflow_connectors::Result;
use ictflow_schemas::Millis;
use ictflow_schemas::epoch::Erasure;
use ictflow_schemas::topic::Topic;
use std::collections::BTreeMap;
use std::time::Duration;

/// What bounds a job that ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounded {
    /// By input, one a partition, the offsets from which nothing is taken. An input that isn't named is
    /// read up to where it ends at the start, and on while anything is asked.
    pub until: BTreeMap<Topic, Vec<i64>>,
    /// By partition, the least event time of examples that are published; empty for all.
    pub from: Vec<Millis>,
    /// Users who are erased from the beginning.
    pub erasures: Vec<Erasure>,
    /// The collection of its points.
    pub collection: Option<String>,
}

/// How far a job that ends has come, in records of its inputs: offsets that hold none count too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Records below the bounds.
    pub whole: u64,
    /// Of these, those that were read.
    pub read: u64,
    /// Of these, those that are in an epoch.
    pub taken: u64,
}

impl Job {
    /// Reads ahead until an epoch is full or the bounds are reached; waits at most `wait` for input. Says
    /// whether an epoch is worth closing: it is full, or all of the input was read.
    ///
    /// # Errors
    /// Those of [`Job::step`].
    pub fn gather(&mut self, wait: Duration) -> Result<bool> {
        self.fill(wait)?;
        let full = |source: &crate::sources::Source| {
            source.topic() == Topic::Interactions && source.waiting() >= self.options.epoch_max_events
        };
        let ended = |source: &crate::sources::Source| source.until().is_none() || source.at_bound();
        // An epoch before the first one has its bounds already.
        Ok(self.last.is_none() || self.sources.iter().any(full) || self.sources.iter().all(ended))
    }

    /// Whether all that the bounds allow is committed and published, and nothing is asked.
    pub fn done(&self) -> bool {
        let asked = self.options.generate && (!self.requester.idle() || !self.unjournaled.is_empty());
        !asked
            && self.caught_up
            && self.uncommitted.is_none()
            && !self.switching()
            && self.sink.publishing()
            && self.sources.iter().all(|source| source.waiting() == 0)
    }

    /// How far the job has come towards the ends that it had at its start.
    pub fn extent(&self) -> Extent {
        let mut extent = Extent::default();
        for source in &self.sources {
            let (ends, positions) = (&self.ends_at_start[&source.topic()], source.positions());
            let of = |offsets: &[i64]| {
                offsets.iter().zip(ends).map(|(at, end)| (*at).clamp(0, (*end).max(0)) as u64).sum::<u64>()
            };
            extent.whole += of(ends);
            extent.read += of(&positions);
            extent.taken += of(source.ends());
        }
        extent
    }
}
