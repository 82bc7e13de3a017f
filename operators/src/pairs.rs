//! Pairs: for which (user, item) a ranker wants a feature now, as far as the user's side says.
//!
//! **Computes**: (u, i) iff u's newest candidate set stands, isn't older than `pair_ttl`, has i, and
//! no outcome of u on i has event_time > computed_at; or an impression of u on i not older than
//! `pair_ttl` has no outcome at or after it. That the item exists is judged in [`crate::retrieval`].
//!
//! **Ties, late events**: of a user's candidate records the greatest offset stands, whatever its
//! computed_at. For events only the newest impression and the newest outcome of a pair matter, by
//! event time, so order is nothing.
//!
//! **Memory**: two times for every (user, item) with an event within `pair_ttl`, and each user's set.

use crate::clock::{Clock, Wheel};
use crate::recovery::{self, Orders, Part, Recovery, Saved, Unsaved};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::history::Label;
use ictflow_schemas::interaction::Event;
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// A readable candidate record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CandidateChange {
    /// The user.
    pub user: Id,
    /// The record's offset: the greatest of a user stands.
    pub offset: i64,
    /// computed_at and the items; `None` withdraws the set.
    pub set: Option<(Millis, Arc<[Id]>)>,
}

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// An accepted event.
    Event(Event),
    /// A candidate record.
    Candidates(CandidateChange),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
    /// States to put back, to forget, to save.
    Recovery(Recovery),
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A pair, as far as the user's side says.
    Pair(Id, Id),
    /// A user's state.
    Saved(Saved),
}

impl Output {
    /// The pair.
    pub fn pair(self) -> Option<(Id, Id)> {
        match self {
            Output::Pair(user, item) => Some((user, item)),
            _ => None,
        }
    }

    /// The saved state.
    pub fn saved(self) -> Option<Saved> {
        match self {
            Output::Saved(saved) => Some(saved),
            _ => None,
        }
    }
}

/// A user's times as saved: by item, the newest impression and the newest outcome. Candidate sets are
/// read again from their log.
type SavedTimes = std::collections::BTreeMap<Id, (Option<Millis>, Option<Millis>)>;

#[derive(Debug, Default)]
struct Times {
    impression: Option<Millis>,
    outcome: Option<Millis>,
    /// Whether the wheel has the pair.
    waiting: bool,
}

#[derive(Debug, Default)]
struct User {
    set_offset: Option<i64>,
    computed_at: Millis,
    set: HashSet<Id>,
    times: HashMap<Id, Times>,
    live: HashSet<Id>,
}

impl User {
    fn is_live(&self, item: &Id, clock: &Clock, ttl: Millis) -> bool {
        let times = self.times.get(item);
        let outcome = times.and_then(|t| t.outcome);
        let offered = self.set.contains(item)
            && !clock.expired(self.computed_at, ttl)
            && outcome.is_none_or(|outcome| outcome <= self.computed_at);
        let shown = times.and_then(|t| t.impression).is_some_and(|impression| {
            !clock.expired(impression, ttl) && outcome.is_none_or(|outcome| outcome < impression)
        });
        offered || shown
    }
}

/// What waits in the wheel.
#[derive(Clone, Debug)]
enum Due {
    /// The user's candidate set may have expired.
    Set(Id),
    /// The newest event of a pair may have.
    Pair(Id, Id),
}

/// The state of the operator.
#[derive(Debug)]
pub struct Pairs {
    semantics: Arc<Semantics>,
    users: HashMap<Id, User>,
    wheel: Wheel<Due>,
    unsaved: Unsaved,
}

impl Pairs {
    /// An empty state.
    pub fn new(semantics: Arc<Semantics>) -> Self {
        Pairs { semantics, users: HashMap::new(), wheel: Wheel::default(), unsaved: Unsaved::default() }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let ttl = self.semantics.pair_ttl_ms;
        let mut clock = None;
        let mut touched: BTreeSet<(Id, Id)> = BTreeSet::new();
        let (mut events, mut sets, mut orders) = (Vec::new(), Vec::new(), Orders::default());
        for (input, _) in changes {
            match input {
                Input::Clock(_, now) => clock = Some(now),
                Input::Event(event) => events.push(event),
                Input::Candidates(change) => sets.push(change),
                Input::Recovery(recovery) => orders.take(recovery),
            }
        }
        let Some(clock) = clock else { return };
        for saved in orders.restore {
            self.restore(saved, &mut touched);
        }
        for user in &orders.erase {
            self.erase(user, out);
        }
        for event in events {
            if self.event(&event) {
                touched.insert((event.user, event.entry.item));
            }
        }
        for change in sets {
            self.replace(change, &mut touched);
        }
        // A name is due once the clock is beyond time + ttl, which is just when it expires.
        for due in self.wheel.pop(clock.now) {
            match due {
                Due::Set(user) => {
                    if let Some(state) = self.users.get(&user) {
                        touched.extend(state.set.iter().map(|item| (user.clone(), item.clone())));
                    }
                }
                Due::Pair(user, item) => {
                    if let Some(times) =
                        self.users.get_mut(&user).and_then(|state| state.times.get_mut(&item))
                    {
                        times.waiting = false;
                    }
                    touched.insert((user, item));
                }
            }
        }
        for (user, item) in touched {
            self.judge(user, item, &clock, ttl, out);
        }
        if let Some(extent) = orders.save {
            let users = self.unsaved.take(extent, self.users.keys().cloned());
            let state = |user: &Id| {
                let times = &self.users.get(user)?.times;
                let saved =
                    times.iter().map(|(item, times)| (item.clone(), (times.impression, times.outcome)));
                (!times.is_empty()).then(|| saved.collect::<SavedTimes>())
            };
            recovery::save(Part::Pairs, users, Output::Saved, state, out);
        }
    }

    fn restore(&mut self, saved: Saved, touched: &mut BTreeSet<(Id, Id)>) {
        let Some(state) = &saved.state else { return };
        let user = self.users.entry(saved.user.clone()).or_default();
        for (item, (impression, outcome)) in recovery::decode::<SavedTimes>(state) {
            user.times.insert(item.clone(), Times { impression, outcome, waiting: false });
            touched.insert((saved.user.clone(), item));
        }
    }

    fn erase(&mut self, id: &Id, out: &mut Changes<Output>) {
        let Some(user) = self.users.remove(id) else { return };
        self.unsaved.insert(id);
        out.extend(user.live.into_iter().map(|item| (Output::Pair(id.clone(), item), -1)));
    }

    /// Notes an impression or outcome; false for events that say nothing of a pair.
    fn event(&mut self, event: &Event) -> bool {
        let is_outcome = event.entry.label != Label::None;
        if !event.impression && !is_outcome {
            return false;
        }
        self.unsaved.insert(&event.user);
        let state = self.users.entry(event.user.clone()).or_default();
        let times = state.times.entry(event.entry.item.clone()).or_default();
        let slot = if event.impression { &mut times.impression } else { &mut times.outcome };
        *slot = Some(slot.map_or(event.entry.event_time, |time| time.max(event.entry.event_time)));
        true
    }

    fn replace(&mut self, change: CandidateChange, touched: &mut BTreeSet<(Id, Id)>) {
        let state = self.users.entry(change.user.clone()).or_default();
        if state.set_offset.is_some_and(|offset| offset > change.offset) {
            return;
        }
        state.set_offset = Some(change.offset);
        touched.extend(state.set.drain().map(|item| (change.user.clone(), item)));
        if let Some((computed_at, items)) = change.set {
            state.computed_at = computed_at;
            state.set = items.iter().cloned().collect();
            touched.extend(items.iter().map(|item| (change.user.clone(), item.clone())));
            let end = computed_at.saturating_add(self.semantics.pair_ttl_ms);
            self.wheel.register(end, Due::Set(change.user));
        }
    }

    fn judge(&mut self, user: Id, item: Id, clock: &Clock, ttl: Millis, out: &mut Changes<Output>) {
        let Some(state) = self.users.get_mut(&user) else { return };
        let live = state.is_live(&item, clock, ttl);
        if live && state.live.insert(item.clone()) {
            out.push((Output::Pair(user.clone(), item.clone()), 1));
        } else if !live && state.live.remove(&item) {
            out.push((Output::Pair(user.clone(), item.clone()), -1));
        }
        // Times older than the ttl can make no pair live and shade none: an unexpired computed_at or
        // impression is younger.
        if let Some(times) = state.times.get_mut(&item) {
            let young = |time: Option<Millis>| time.filter(|time| !clock.expired(*time, ttl));
            (times.impression, times.outcome) = (young(times.impression), young(times.outcome));
            match [times.impression, times.outcome].into_iter().flatten().min() {
                None => {
                    state.times.remove(&item);
                    self.unsaved.insert(&user);
                }
                Some(next) if !times.waiting => {
                    times.waiting = true;
                    self.wheel.register(next.saturating_add(ttl), Due::Pair(user.clone(), item));
                }
                Some(_) => {}
            }
        }
        if state.times.is_empty() && state.set_offset.is_none() {
            self.users.remove(&user);
        }
    }
}

/// The operator `pairs`.
pub fn pairs<'s>(
    events: VecCollection<'s, Epoch, Event, isize>,
    candidates: VecCollection<'s, Epoch, CandidateChange, isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    recovery: VecCollection<'s, Epoch, Recovery, isize>,
    semantics: Arc<Semantics>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Pairs::new(semantics);
    let input = events
        .map(Input::Event)
        .concat(candidates.map(Input::Candidates))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)))
        .concat(recovery.filter(|recovery| recovery.concerns(Part::Pairs)).map(Input::Recovery));
    let by = |input: &Input| match input {
        Input::Event(event) => route(&event.user),
        Input::Candidates(change) => route(&change.user),
        Input::Clock(worker, _) => *worker,
        Input::Recovery(recovery) => recovery.route(),
    };
    staged(input, "pairs", by, move |_, changes, out| state.step(changes, out))
}
