//! The present of an epoch: partition maxima and event clock, as its bounds record has them.

use ictflow_schemas::epoch::Actives;
use ictflow_schemas::{Id, Millis, NO_TIME};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What every operator may know of an epoch. Each worker gets one copy an epoch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Clock {
    /// The maximum event time of each partition of `interactions`, at the epoch's end.
    pub maxima: Arc<[Millis]>,
    /// The largest of them; all TTLs are judged by it.
    pub now: Millis,
    /// Whether features are computed: closed while the job catches up, then open for ever.
    pub publish: bool,
    /// The versions in force.
    pub actives: Arc<Actives>,
    /// The version of the ICT weights that stand beside those in force, where any do. No value of an output
    /// depends on it but those of the shadow's own topic.
    pub shadow: Option<Id>,
}

impl Clock {
    /// The maximum of a partition; [`NO_TIME`] for one never heard of.
    pub fn maximum(&self, partition: u32) -> Millis {
        self.maxima.get(partition as usize).copied().unwrap_or(NO_TIME)
    }

    /// Whether `time` is older than the event clock by more than `ttl`.
    pub fn expired(&self, time: Millis, ttl: Millis) -> bool {
        self.now.saturating_sub(time) > ttl
    }
}

/// Names that wait for a point of event time: a timer wheel driven by data, never by wall clock.
///
/// Memory: one entry a registration. Popping gives names in time order.
#[derive(Clone, Debug)]
pub struct Wheel<N> {
    due: std::collections::BTreeMap<Millis, Vec<N>>,
}

impl<N> Default for Wheel<N> {
    fn default() -> Self {
        Wheel { due: Default::default() }
    }
}

impl<N> Wheel<N> {
    /// Registers a name that is due once the clock is *beyond* `time`.
    pub fn register(&mut self, time: Millis, name: N) {
        self.due.entry(time).or_default().push(name);
    }

    /// Takes every name whose time the clock is beyond.
    pub fn pop(&mut self, clock: Millis) -> Vec<N> {
        let later = self.due.split_off(&clock);
        let due = std::mem::replace(&mut self.due, later);
        due.into_values().flatten().collect()
    }
}
