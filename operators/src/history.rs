//! Histories and examples of users: one operator, since both read the same window.
//!
//! **Computes**, over the accumulated accepted events of a user: the newest L engagements, and for
//! every example ([`crate::examples`]) the newest L engagements strictly before it. Order of events:
//! (event_time, event_id by bytes). A function of the *set* of events: any order within `lateness`,
//! any cut into epochs and any number of workers give the same collections.
//!
//! **Late events** get their own history and correct others, because the window keeps the
//! engagements not older than maximum − lateness and the L before them. Duplicates never come here:
//! [`crate::accept`] drops them.
//!
//! **Memory**: that window for every user ever seen, and the examples that aren't final.
//!
//! A timely operator of our own: measured 5 to 20 times cheaper than differential's `reduce`, which
//! keeps every event. The differential implementation is the oracle of its test.

use crate::clock::{Clock, Wheel};
use crate::examples::{Examples, SavedExamples};
use crate::recovery::{self, Orders, Packer, Part, Recovery, Saved, Unsaved, unpack};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::Example;
use ictflow_schemas::history::{Entry, History};
use ictflow_schemas::interaction::Event;
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// The engagements of one user that a history may still need, in the order of events.
#[derive(Clone, Debug, Default)]
pub struct Window {
    entries: Vec<Entry>,
}

impl Window {
    /// Adds an engagement; one that is there already changes nothing.
    pub fn insert(&mut self, entry: Entry) {
        if let Err(position) = self.entries.binary_search(&entry) {
            self.entries.insert(position, entry);
        }
    }

    /// The newest `length` engagements strictly before `time`, oldest first.
    pub fn before(&self, time: Millis, length: usize) -> History {
        let end = self.entries.partition_point(|entry| entry.event_time < time);
        self.entries[end.saturating_sub(length)..end].into()
    }

    /// The newest `length` engagements, oldest first.
    pub fn newest(&self, length: usize) -> History {
        self.entries[self.entries.len().saturating_sub(length)..].into()
    }

    /// The engagements, in the order of events.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Drops what no history needs any more: all but the engagements not older than `oldest` and
    /// the `length` before them.
    pub fn trim(&mut self, oldest: Millis, length: usize) {
        let first = self.entries.partition_point(|entry| entry.event_time < oldest);
        self.entries.drain(..first.saturating_sub(length));
    }
}

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// An accepted event.
    Event(Event),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
    /// States to put back, to forget, to save.
    Recovery(Recovery),
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A user's newest history.
    Newest(Id, History),
    /// An example with its verdict and history. A final example leaves the state silently.
    Example(Arc<Example>),
    /// A user's state.
    Saved(Saved),
}

impl Output {
    /// The saved state.
    pub fn saved(self) -> Option<Saved> {
        match self {
            Output::Saved(saved) => Some(saved),
            _ => None,
        }
    }

    /// The user and the newest history.
    pub fn newest(self) -> Option<(Id, History)> {
        match self {
            Output::Newest(user, history) => Some((user, history)),
            _ => None,
        }
    }

    /// The example.
    pub fn example(self) -> Option<Arc<Example>> {
        match self {
            Output::Example(example) => Some(example),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct User {
    partition: u32,
    window: Window,
    examples: Examples,
    newest: History,
    /// The time under which the user stands in the partition's wheel.
    due: Option<Millis>,
}

/// A user as saved.
#[derive(Debug, Serialize, Deserialize)]
struct SavedUser {
    partition: u32,
    /// All entries of the window and of the examples' histories, in the order of events.
    table: Vec<Entry>,
    window: Vec<u32>,
    examples: SavedExamples,
}

impl User {
    fn save(&self) -> SavedUser {
        let packer = Packer::new(self.window.entries().iter().chain(self.examples.entries()));
        SavedUser {
            partition: self.partition,
            window: packer.pack(self.window.entries()),
            examples: self.examples.save(&packer),
            table: packer.table(),
        }
    }

    fn restore(saved: SavedUser) -> Self {
        User {
            partition: saved.partition,
            window: Window { entries: unpack(&saved.table, &saved.window).to_vec() },
            examples: Examples::restore(saved.examples, &saved.table),
            ..User::default()
        }
    }
}

/// The state of the operator.
#[derive(Debug)]
pub struct Histories {
    semantics: Arc<Semantics>,
    users: HashMap<Id, User>,
    /// By partition, the users with something due.
    wheels: BTreeMap<u32, Wheel<Id>>,
    unsaved: Unsaved,
}

impl Histories {
    /// An empty state.
    pub fn new(semantics: Arc<Semantics>) -> Self {
        Histories { semantics, users: HashMap::new(), wheels: BTreeMap::new(), unsaved: Unsaved::default() }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let mut events: BTreeMap<Id, Vec<Event>> = BTreeMap::new();
        let (mut clock, mut orders) = (None, Orders::default());
        for (input, _) in changes {
            match input {
                Input::Recovery(recovery) => orders.take(recovery),
                Input::Event(event) => events.entry(event.user.clone()).or_default().push(event),
                Input::Clock(_, now) => clock = Some(now),
            }
        }
        let Some(clock) = clock else { return };
        let mut examples = Changes::new();
        let mut restored: BTreeSet<Id> = BTreeSet::new();
        for saved in orders.restore {
            if let Some(state) = &saved.state {
                self.users.insert(saved.user.clone(), User::restore(recovery::decode(state)));
                events.entry(saved.user.clone()).or_default();
                restored.insert(saved.user);
            }
        }
        for user in &orders.erase {
            self.erase(user, out, &mut examples);
        }
        // Users without an event of this epoch whose time has come.
        for (partition, wheel) in &mut self.wheels {
            for user in wheel.pop(clock.maximum(*partition)) {
                events.entry(user).or_default();
            }
        }
        for (id, mut events) in events {
            events.sort();
            // What was put back is saved already, unless an event changes it.
            if !(events.is_empty() && restored.contains(&id)) {
                self.unsaved.insert(&id);
            }
            self.user(&id, &events, &clock, out, &mut examples);
        }
        out.extend(examples.into_iter().map(|(example, diff)| (Output::Example(example), diff)));
        if let Some(extent) = orders.save {
            let users = self.unsaved.take(extent, self.users.keys().cloned());
            let state = |user: &Id| self.users.get(user).map(User::save);
            recovery::save(Part::History, users, Output::Saved, state, out);
        }
    }

    /// Forgets a user: what was emitted and may still change is retracted. Final examples stand only
    /// downstream.
    fn erase(&mut self, id: &Id, out: &mut Changes<Output>, examples: &mut Changes<Arc<Example>>) {
        let Some(user) = self.users.remove(id) else { return };
        self.unsaved.insert(id);
        if !user.newest.is_empty() {
            out.push((Output::Newest(id.clone(), user.newest), -1));
        }
        examples.extend(user.examples.into_emitted().map(|example| (example, -1)));
    }

    fn user(
        &mut self,
        id: &Id,
        events: &[Event],
        clock: &Clock,
        out: &mut Changes<Output>,
        examples: &mut Changes<Arc<Example>>,
    ) {
        let semantics = &*self.semantics;
        let user = self.users.entry(id.clone()).or_default();
        if let Some(event) = events.first() {
            user.partition = event.partition;
        }
        for event in events.iter().filter(|event| event.engagement) {
            user.window.insert(event.entry.clone());
        }
        user.examples.add(events, &user.window, semantics);
        let maximum = clock.maximum(user.partition);
        user.examples.flush(id, user.partition, maximum, semantics, examples);
        let newest = user.window.newest(semantics.history_length);
        if newest != user.newest {
            if !user.newest.is_empty() {
                out.push((Output::Newest(id.clone(), user.newest.clone()), -1));
            }
            out.push((Output::Newest(id.clone(), newest.clone()), 1));
            user.newest = newest;
        }
        user.window.trim(maximum.saturating_sub(semantics.lateness_ms), semantics.history_length);
        let due = user.examples.due(semantics);
        // A name that stands too early is popped and registers again; one that stands too late
        // would be a missed change.
        let standing = user.due.filter(|standing| *standing >= maximum);
        if let Some(due) = due
            && standing.is_none_or(|standing| due < standing)
        {
            self.wheels.entry(user.partition).or_default().register(due, id.clone());
            user.due = Some(due);
        } else {
            user.due = standing;
        }
    }
}

/// The operator `history`. `taken` counts the events that this worker's part of it took.
pub fn history<'s>(
    events: VecCollection<'s, Epoch, Event, isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    recovery: VecCollection<'s, Epoch, Recovery, isize>,
    semantics: Arc<Semantics>,
    taken: Rc<Cell<u64>>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Histories::new(semantics);
    let input = events
        .map(Input::Event)
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)))
        .concat(recovery.filter(|recovery| recovery.concerns(Part::History)).map(Input::Recovery));
    let by = |input: &Input| match input {
        Input::Event(event) => route(&event.user),
        Input::Recovery(recovery) => recovery.route(),
        Input::Clock(worker, _) => *worker,
    };
    staged(input, "history", by, move |_, changes, out| {
        let events = changes.iter().filter(|(input, _)| matches!(input, Input::Event(_))).count();
        taken.set(taken.get() + events as u64);
        state.step(changes, out);
    })
}
