//! Why what was served differs from what the pair's past says as of the impression.
//!
//! An impression at the event time t came in epoch e, so that it met what the epochs before had left: the
//! labels that had come by then and were before their event clock T, compared by the sketches effective at T.
//! As of t the labels before t count, by the sketches effective at t. A label that only one of the two saw is
//! a cause, and says which.

use super::replay::{Known, Replayed};
use ictflow_operators::as_of::Row;
use ictflow_operators::retrieval::neighbours::boundary;
use ictflow_schemas::example::{Example, Served, Verdict};
use ictflow_schemas::history::Identity;
use ictflow_schemas::neighbour::Neighbourhood;
use ictflow_schemas::{Id, Millis, NO_TIME};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// A cause of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Other ICT weights than those that made the as-of vector.
    ModelChange,
    /// A demonstration whose text wasn't there yet, or was another one.
    Cot,
    /// An event that came after the impression and happened before it; or the impression itself came after
    /// what its user did later.
    LateEvent,
    /// Sketches effective at another boundary.
    SketchPeriod,
    /// A label or engagement of the impression's own epoch, or one between the event clock of the epoch
    /// before and the impression; an implicit label that waited for its partition's clock.
    EpochGranularity,
    /// None of these: the catalog, which is as it is now; an erasure; a limit of the pool.
    Other,
}

impl Cause {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::ModelChange => "model_change",
            Cause::Cot => "cot",
            Cause::LateEvent => "late_event",
            Cause::SketchPeriod => "sketch_period",
            Cause::EpochGranularity => "epoch_granularity",
            Cause::Other => "other",
        }
    }

    /// What a person can make of it.
    pub fn meaning(self) -> &'static str {
        match self {
            Cause::ModelChange => "served by other weights than the configured ones",
            Cause::Cot => "a CoT wasn't there yet, or was another one",
            Cause::LateEvent => {
                "an event came after the impression and happened before it, or the other way round"
            }
            Cause::SketchPeriod => "sketches were those of another period",
            Cause::EpochGranularity => {
                "a label came with the impression's epoch, or the event clock wasn't at its time"
            }
            Cause::Other => "none of these: the catalog changed since, a user was erased, a limit was met",
        }
    }
}

/// Labels by user and by item, in order of label_time.
pub(super) struct Labels<'r> {
    replayed: &'r Replayed,
    neighbourhood: Neighbourhood,
    of_users: HashMap<Id, Vec<&'r Known>>,
    of_items: HashMap<Id, Vec<&'r Known>>,
    by_id: HashMap<Uuid, &'r Known>,
}

/// An impression's moment.
#[derive(Clone, Copy)]
struct Moment {
    /// The epoch that brought it.
    epoch: i64,
    /// The event clock before that epoch.
    clock: Millis,
    /// Its event time.
    time: Millis,
}

/// What is asked of an example that differs.
pub(super) struct Asked<'a> {
    /// What its pair's past says as of it.
    pub row: &'a Row,
    /// The example.
    pub example: &'a Example,
    /// What was served.
    pub served: &'a Served,
    /// The demonstrations as of it; empty for weights that read none.
    pub used: &'a [Uuid],
    /// Whether the configured weights are those that served.
    pub same_weights: bool,
}

impl<'r> Labels<'r> {
    pub fn new(replayed: &'r Replayed, neighbourhood: Neighbourhood) -> Self {
        let (mut of_users, mut of_items): (HashMap<Id, Vec<&Known>>, HashMap<Id, Vec<&Known>>) =
            (HashMap::new(), HashMap::new());
        let mut by_id = HashMap::new();
        for known in replayed.examples.values() {
            of_users.entry(known.example.identity.user.clone()).or_default().push(known);
            of_items.entry(known.example.item.clone()).or_default().push(known);
            by_id.insert(ictflow_schemas::neighbour::neighbour_id(&known.example.identity), known);
        }
        for labels in of_users.values_mut().chain(of_items.values_mut()) {
            labels.sort_by_key(|known| known.example.label_time);
        }
        Labels { replayed, neighbourhood, of_users, of_items, by_id }
    }

    /// The causes of an example's difference; sketches of others are looked at where nothing nearer explains
    /// it.
    pub fn causes(&self, asked: &Asked<'_>) -> BTreeSet<Cause> {
        let mut causes = BTreeSet::new();
        if !asked.same_weights {
            causes.insert(Cause::ModelChange);
        }
        let Some(epoch) = self.replayed.shown.get(&asked.example.identity) else {
            return BTreeSet::from([Cause::Other]);
        };
        let before = self.replayed.clocks.range(..epoch).next_back();
        let moment = Moment {
            epoch: *epoch,
            clock: before.map_or(NO_TIME, |(_, clock)| *clock),
            time: asked.example.identity.event_time,
        };
        self.of_rings(asked, moment, &mut causes);
        self.of_histories(asked, moment, &mut causes);
        self.of_demonstrations(asked, moment, &mut causes);
        if causes.is_empty() {
            self.of_sketches(asked, moment, &mut causes);
        }
        if causes.is_empty() {
            causes.insert(Cause::Other);
        }
        causes
    }

    /// Labels that only one of the two rings had.
    fn of_rings(&self, asked: &Asked<'_>, moment: Moment, causes: &mut BTreeSet<Cause>) {
        let (user, item) = (&asked.example.identity.user, &asked.example.item);
        let nothing = Vec::new();
        let of_item = self.of_items.get(item).unwrap_or(&nothing);
        let of_user = self.of_users.get(user).unwrap_or(&nothing);
        // Neither source looks at what the user said of this very item.
        let own = |known: &Known| (&known.example.identity.user, &known.example.item) == (user, item);
        for ring in [self.newest(of_item, moment), self.newest(of_user, moment)] {
            let others = ring.iter().filter(|known| !own(known));
            causes.extend(others.filter_map(|known| moment.of_label(known, moment.time, moment.clock)));
        }
    }

    /// Engagements that only one of the two histories had, the user's and those of neighbours.
    fn of_histories(&self, asked: &Asked<'_>, moment: Moment, causes: &mut BTreeSet<Cause>) {
        causes.extend(self.of_history(asked.example, moment));
        let later = self.replayed.engagements.get(&asked.example.identity.user).is_some_and(|engagements| {
            engagements.iter().any(|(time, epoch)| *time >= moment.time && *epoch < moment.epoch)
        });
        if later {
            causes.insert(Cause::LateEvent);
        }
        for neighbour in asked.row.sources.same_item.iter().chain(&asked.row.sources.same_user) {
            if let Some(known) = self.by_id.get(&neighbour.example.id) {
                causes.extend(self.of_history(&known.example, moment));
            }
        }
    }

    /// What an example's history has that came with the impression's epoch or after it.
    fn of_history(&self, example: &Example, moment: Moment) -> Option<Cause> {
        let user = &example.identity.user;
        let come = example.history.iter().filter_map(|entry| {
            let (event_time, event_id) = (entry.event_time, entry.event_id.clone());
            self.replayed.engaged.get(&Identity { user: user.clone(), event_time, event_id })
        });
        let last = *come.max()?;
        if last > moment.epoch {
            Some(Cause::LateEvent)
        } else {
            (last == moment.epoch).then_some(Cause::EpochGranularity)
        }
    }

    /// Demonstrations that only one of the two had, or with another text.
    fn of_demonstrations(&self, asked: &Asked<'_>, moment: Moment, causes: &mut BTreeSet<Cause>) {
        let served: BTreeSet<Uuid> =
            asked.served.demonstrations.iter().filter_map(|id| id.parse().ok()).collect();
        let of_label = |id: &Uuid| {
            let told = self.replayed.demonstrations.get(id)?;
            let known = self.replayed.examples.get(&told.demonstration.identity)?;
            moment.of_label(known, moment.time, moment.clock)
        };
        for id in asked.used {
            let epochs = self.replayed.demonstrations.get(id).map(|told| told.epochs);
            let there = epochs.is_some_and(|(first, _)| first < moment.epoch);
            if let Some(cause) = of_label(id) {
                causes.insert(cause);
                continue;
            }
            let written_since = epochs.is_some_and(|(_, last)| last >= moment.epoch);
            if written_since || (!there && !served.contains(id)) {
                causes.insert(Cause::Cot);
            }
        }
        let used: BTreeSet<Uuid> = asked.used.iter().copied().collect();
        causes.extend(served.difference(&used).filter_map(of_label));
    }

    /// Labels that only one of the two took into the sketches that the rings are compared by.
    fn of_sketches(&self, asked: &Asked<'_>, moment: Moment, causes: &mut BTreeSet<Cause>) {
        let period = self.neighbourhood.sketch_period_ms;
        let bounds = (boundary(moment.time, period), boundary(moment.clock, period));
        let (user, item) = (&asked.example.identity.user, &asked.example.item);
        let nothing = Vec::new();
        let of = |labels: &HashMap<Id, Vec<&'r Known>>, key: &Id| {
            let ring = labels.get(key).unwrap_or(&nothing);
            self.newest(ring, moment).to_vec()
        };
        let users = of(&self.of_items, item).into_iter().map(|known| &known.example.identity.user);
        let items = of(&self.of_users, user).into_iter().map(|known| &known.example.item);
        let users: BTreeSet<&Id> = users.chain([user]).collect();
        let items: BTreeSet<&Id> = items.chain([item]).collect();
        let of_users = users.into_iter().filter_map(|user| self.of_users.get(user));
        let of_items = items.into_iter().filter_map(|item| self.of_items.get(item));
        for known in of_users.chain(of_items).flatten() {
            causes.extend(moment.of_sketched(known, bounds.0, bounds.1));
        }
    }

    /// The newest of a key's labels that either of the two may have had: those before both times down to the
    /// ring's length, and all between them.
    fn newest<'l>(&self, labels: &'l [&'r Known], moment: Moment) -> &'l [&'r Known] {
        let before = |time: Millis| labels.partition_point(|known| known.example.label_time < time);
        let (common, end) = (before(moment.time.min(moment.clock)), before(moment.time.max(moment.clock)));
        &labels[common.saturating_sub(self.neighbourhood.ring)..end]
    }
}

impl Moment {
    /// Why only one of the two had a label, where that is so: as of the impression those before `shown`, when
    /// it was served those before `clock`.
    fn of_label(self, known: &Known, shown: Millis, clock: Millis) -> Option<Cause> {
        let time = known.example.label_time;
        let come = known.epoch < self.epoch;
        match (time < shown, time < clock && come) {
            (true, false) if !come => Some(self.of_arrival(known)),
            (true, false) | (false, true) => Some(Cause::EpochGranularity),
            _ => None,
        }
    }

    /// The same of sketches, by their boundaries.
    fn of_sketched(self, known: &Known, shown: Millis, clock: Millis) -> Option<Cause> {
        let time = known.example.label_time;
        let come = known.epoch < self.epoch;
        match (time < shown, time < clock && come) {
            (true, false) if !come => Some(self.of_arrival(known)),
            // The clock was beyond the label, and its boundary wasn't; or the other way round.
            (true, false) if time < self.clock => Some(Cause::SketchPeriod),
            (false, true) if time < self.time => Some(Cause::SketchPeriod),
            (true, false) | (false, true) => Some(Cause::EpochGranularity),
            _ => None,
        }
    }

    /// Of a label that hadn't come: with the impression, or after it.
    fn of_arrival(self, known: &Known) -> Cause {
        let implicit = known.example.verdict == Verdict::ImplicitNegative;
        if known.epoch > self.epoch && !implicit { Cause::LateEvent } else { Cause::EpochGranularity }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn known(label_time: Millis, epoch: i64, verdict: Verdict) -> Known {
        let identity = Identity { user: "u".into(), event_time: 0, event_id: "e".into() };
        let example =
            Example { identity, partition: 0, item: "i".into(), verdict, label_time, history: [].into() };
        Known { example: Arc::new(example), epoch }
    }

    #[test]
    fn a_label_that_only_one_side_had_says_why() {
        use Cause::{EpochGranularity, LateEvent, SketchPeriod};
        use Verdict::{ImplicitNegative, Positive};
        // Shown in epoch 9 at time 100, the clock before it was at 90.
        let moment = Moment { epoch: 9, clock: 90, time: 100 };
        for (label_time, epoch, verdict, cause) in [
            (80, 8, Positive, None),
            (80, 9, Positive, Some(EpochGranularity)),
            (80, 10, Positive, Some(LateEvent)),
            (80, 10, ImplicitNegative, Some(EpochGranularity)),
            (90, 8, Positive, Some(EpochGranularity)),
            (99, 10, Positive, Some(LateEvent)),
            (100, 10, Positive, None),
        ] {
            let found = moment.of_label(&known(label_time, epoch, verdict), 100, 90);
            assert_eq!(found, cause, "{label_time} in epoch {epoch}");
        }
        // A clock that is ahead showed what isn't there yet.
        let ahead = Moment { clock: 120, ..moment };
        assert_eq!(ahead.of_label(&known(110, 8, Positive), 100, 120), Some(EpochGranularity));
        assert_eq!(ahead.of_label(&known(120, 8, Positive), 100, 120), None);
        // Sketches of periods of 50: as of 100 those before 100, at 90 those before 50.
        for (label_time, epoch, cause) in [
            (40, 8, None),
            (40, 10, Some(LateEvent)),
            (60, 8, Some(SketchPeriod)),
            (95, 8, Some(EpochGranularity)),
            (100, 8, None),
        ] {
            let found = moment.of_sketched(&known(label_time, epoch, Positive), 100, 50);
            assert_eq!(found, cause, "{label_time} in epoch {epoch}");
        }
        let ahead = Moment { clock: 151, time: 149, ..moment };
        assert_eq!(ahead.of_sketched(&known(120, 8, Positive), 100, 150), Some(SketchPeriod));
        assert_eq!(ahead.of_sketched(&known(149, 8, Positive), 100, 150), Some(EpochGranularity));
    }
}
