//! From a snapshot back to the state at its epoch, and from the state to a snapshot.
//!
//! A snapshot holds what derives from `interactions`. The other inputs are compacted logs, their own
//! snapshots: they are read from their starts to the ends of the snapshot's epoch, in one go. Together
//! they give the state that a replay from the earliest offsets gives at that epoch.

use super::Job;
use super::commit::GROUPS;
use crate::pipeline::EpochInput;
use crate::queue::Activity;
use crate::sources::Harvest;
use ictflow_connectors::Result;
use ictflow_operators::recovery::{SHARDS, Saved};
use ictflow_schemas::epoch::EpochRecord;
use std::time::Instant;

impl Job {
    /// Puts the state of a snapshot's epoch back.
    pub(super) fn restore(&mut self, record: &EpochRecord) -> Result<()> {
        let nothing = Vec::new();
        let mut harvest = self
            .harvest(|source| source.take_to(record.ends.get(source.topic().name()).unwrap_or(&nothing)))?;
        self.judge.raise(&record.maxima);
        let activity = Activity::of(&harvest.input, record.clock);
        let mut logs = Some(std::mem::take(&mut harvest.input));
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        let mut states: Vec<Saved> = Vec::new();
        let mut group = 0;
        let loaded = keeper.load(|shard, saved| {
            let of = usize::from(shard) * GROUPS / SHARDS;
            if of > group {
                self.put(record, group, std::mem::take(&mut states), &mut logs, &harvest, &activity);
                group = of;
            }
            states.extend(saved);
            Ok(())
        });
        self.keeper = Some(keeper);
        loaded?;
        self.put(record, group, states, &mut logs, &harvest, &activity);
        // Like a replay of this epoch, once the windows are back.
        self.judge.pass();
        self.restore_used(record);
        self.last = Some(record.clone());
        Ok(())
    }

    fn put(
        &mut self,
        record: &EpochRecord,
        group: usize,
        states: Vec<Saved>,
        logs: &mut Option<EpochInput>,
        harvest: &Harvest,
        activity: &Activity,
    ) {
        let with_logs = logs.is_some();
        let output = self.restore_group(record, group, states, logs.take().unwrap_or_default());
        self.sink.replay(&output.examples);
        match with_logs {
            true => self.requester.apply(&output, &harvest.answered, &harvest.embedded, activity),
            false => self.requester.apply(&output, &[], &[], activity),
        }
    }

    /// Takes a snapshot where one is due.
    pub(super) fn keep(&mut self) {
        let Some(extent) = self.keeper.as_mut().and_then(|keeper| keeper.due()) else { return };
        self.take_snapshot(extent);
    }

    /// Takes a snapshot now and waits until it is written: what a job that is stopped does, so that the next
    /// start replays little. Nothing without a place for snapshots.
    pub fn snapshot(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.settle();
            let extent = keeper.extent();
            self.take_snapshot(extent);
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.settle();
        }
    }

    fn take_snapshot(&mut self, extent: ictflow_operators::recovery::Extent) {
        let Some(record) = self.last.clone().filter(|last| {
            // Nothing to save, or nothing new.
            last.epoch == self.committed
                && self.keeper.as_ref().is_some_and(|keeper| keeper.figures.epoch != Some(last.epoch))
        }) else {
            return;
        };
        // One that was fenced may hold a user whom its successor has erased.
        if let Some(error) = self.fenced() {
            tracing::warn!(%error, "no snapshot is taken");
            return;
        }
        let begun = Instant::now();
        let states = self.save_states(extent);
        if let Some(keeper) = &mut self.keeper {
            keeper.write(&record, extent, states, begun.elapsed());
        }
    }

    /// Rewrites kept snapshots without a user.
    pub(super) fn rewrite_snapshots(&mut self, user: &str) -> Result<usize> {
        self.keeper.as_mut().map_or(Ok(0), |keeper| keeper.rewrite_without(user))
    }

    /// What was kept; `None` without a place for snapshots.
    pub fn snapshots(&self) -> Option<crate::keeper::Figures> {
        self.keeper.as_ref().map(|keeper| keeper.figures)
    }
}
