//! Eligibility: which examples get a CoT, and under which content key.
//!
//! **Computes**: an example with a known verdict and a non-empty history, whose hash mod the stride
//! of its class is 0, whose event_time isn't older than `demonstration_ttl`, and whose item exists;
//! with its prompt view and content key under the versions in force.
//!
//! **Late changes**: an example's correction or an item's edit retracts the old key and asserts the
//! new. Only examples *on* an edited item are touched: histories enter a key by ids.
//!
//! **Memory**: the examples that pass hash, history and age, also those whose item is missing (it may
//! be reborn); the broadcast catalog.

use crate::clock::{Clock, Wheel};
use crate::index::{set, unlink};
use crate::recovery::{self, Orders, Packer, Part, Recovery, Saved, Unsaved, unpack};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::PromptView;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::{Entry, Identity};
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// An example.
    Example(Arc<Example>),
    /// An item's state, for the worker named.
    Item(u64, (Id, Item)),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
    /// States to put back, to forget, to save.
    Recovery(Recovery),
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// An eligible example.
    Eligible(Eligible),
    /// A user's state.
    Saved(Saved),
}

impl Output {
    /// The eligible example.
    pub fn eligible(self) -> Option<Eligible> {
        match self {
            Output::Eligible(eligible) => Some(eligible),
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

/// A user's examples as saved, final ones too: those have left the operator `history`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SavedUser {
    /// All entries of the histories, in the order of events.
    table: Vec<Entry>,
    examples: Vec<SavedExample>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedExample {
    event_time: Millis,
    event_id: Id,
    partition: u32,
    item: Id,
    verdict: Verdict,
    label_time: Millis,
    history: Vec<u32>,
}

/// An eligible example with its content key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Eligible {
    /// The example.
    pub example: Arc<Example>,
    /// Its content key.
    pub key: Digest,
    /// What the key asks.
    pub view: Arc<PromptView>,
}

/// Whether hash and history allow an example a CoT.
pub fn selected(example: &Example, semantics: &Semantics) -> bool {
    let stride = match example.verdict {
        Verdict::Positive => semantics.cot_stride.positive,
        Verdict::Negative => semantics.cot_stride.explicit_negative,
        Verdict::ImplicitNegative => semantics.cot_stride.implicit_negative,
    };
    !example.history.is_empty() && example.identity.digest().number().is_multiple_of(stride)
}

#[derive(Debug)]
struct Held {
    item: Id,
    /// `None` once it is retracted or not selected any more.
    example: Option<Arc<Example>>,
    emitted: Option<Eligible>,
}

/// The state of the operator.
#[derive(Debug)]
pub struct Eligibility {
    semantics: Arc<Semantics>,
    held: BTreeMap<Identity, Held>,
    by_item: HashMap<Id, HashSet<Identity>>,
    items: HashMap<Id, Item>,
    wheel: Wheel<Identity>,
    /// The versions under which the emitted keys stand.
    actives: Option<Arc<Actives>>,
    unsaved: Unsaved,
}

impl Eligibility {
    /// An empty state.
    pub fn new(semantics: Arc<Semantics>) -> Self {
        Eligibility {
            semantics,
            held: BTreeMap::new(),
            by_item: HashMap::new(),
            items: HashMap::new(),
            wheel: Wheel::default(),
            actives: None,
            unsaved: Unsaved::default(),
        }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let mut touched: BTreeSet<Identity> = BTreeSet::new();
        let mut latest: HashMap<Identity, Option<Arc<Example>>> = HashMap::new();
        let (mut clock, mut orders) = (None, Orders::default());
        for (input, diff) in changes {
            match input {
                Input::Recovery(recovery) => orders.take(recovery),
                Input::Clock(_, now) => clock = Some(now),
                Input::Item(_, (id, item)) => {
                    set(&mut self.items, id.clone(), item, diff);
                    touched.extend(self.by_item.get(&id).into_iter().flatten().cloned());
                }
                Input::Example(example) => {
                    let newest = latest.entry(example.identity.clone()).or_default();
                    if diff > 0 {
                        *newest = Some(example);
                    }
                }
            }
        }
        let Some(clock) = clock else { return };
        for saved in orders.restore {
            self.restore(&saved, &mut touched);
        }
        for user in &orders.erase {
            for identity in self.of_user(user) {
                self.replace(&identity, None);
                touched.insert(identity);
            }
        }
        for (identity, example) in latest {
            self.replace(&identity, example);
            touched.insert(identity);
        }
        touched.extend(self.wheel.pop(clock.now));
        if self.actives.as_ref() != Some(&clock.actives) {
            // A switch of versions gives every example another key.
            self.actives = Some(clock.actives.clone());
            touched.extend(self.held.keys().cloned());
        }
        for identity in touched {
            self.emit(identity, &clock, out);
        }
        if let Some(extent) = orders.save {
            let every: BTreeSet<Id> = self.held.keys().map(|identity| identity.user.clone()).collect();
            let users = self.unsaved.take(extent, every.into_iter());
            recovery::save(Part::Eligible, users, Output::Saved, |user| self.save(user), out);
        }
    }

    /// The held examples of a user.
    fn of_user(&self, user: &Id) -> Vec<Identity> {
        let first = Identity { user: user.clone(), event_time: Millis::MIN, event_id: "".into() };
        let held = self.held.range(first..).map(|(identity, _)| identity);
        held.take_while(|identity| identity.user == *user).cloned().collect()
    }

    fn save(&self, user: &Id) -> Option<SavedUser> {
        let identities = self.of_user(user);
        let examples: Vec<&Arc<Example>> =
            identities.iter().filter_map(|identity| self.held[identity].example.as_ref()).collect();
        let packer = Packer::new(examples.iter().flat_map(|example| example.history.iter()));
        let saved = examples.iter().map(|example| SavedExample {
            event_time: example.identity.event_time,
            event_id: example.identity.event_id.clone(),
            partition: example.partition,
            item: example.item.clone(),
            verdict: example.verdict,
            label_time: example.label_time,
            history: packer.pack(&example.history),
        });
        let examples: Vec<SavedExample> = saved.collect();
        (!examples.is_empty()).then(|| SavedUser { examples, table: packer.table() })
    }

    fn restore(&mut self, saved: &Saved, touched: &mut BTreeSet<Identity>) {
        let Some(state) = &saved.state else { return };
        let SavedUser { table, examples } = recovery::decode(state);
        for example in examples {
            let SavedExample { event_time, event_id, partition, item, verdict, label_time, history } =
                example;
            let identity = Identity { user: saved.user.clone(), event_time, event_id };
            let history = unpack(&table, &history);
            let restored =
                Example { identity: identity.clone(), partition, item, verdict, label_time, history };
            self.put(&identity, Some(Arc::new(restored)));
            touched.insert(identity);
        }
    }

    /// Takes the new value of an example; `None` where it was retracted. An example never changes
    /// its item: that would be another event.
    fn replace(&mut self, identity: &Identity, example: Option<Arc<Example>>) {
        let held = self.held.get(identity).and_then(|held| held.example.as_ref());
        if held != example.as_ref() {
            self.unsaved.insert(&identity.user);
        }
        self.put(identity, example);
    }

    fn put(&mut self, identity: &Identity, example: Option<Arc<Example>>) {
        let example = example.filter(|example| selected(example, &self.semantics));
        match (self.held.get_mut(identity), example) {
            (Some(held), example) => held.example = example,
            (None, Some(example)) => {
                self.by_item.entry(example.item.clone()).or_default().insert(identity.clone());
                let end = identity.event_time.saturating_add(self.semantics.demonstration_ttl_ms);
                self.wheel.register(end, identity.clone());
                self.held.insert(
                    identity.clone(),
                    Held { item: example.item.clone(), example: Some(example), emitted: None },
                );
            }
            (None, None) => {}
        }
    }

    fn emit(&mut self, identity: Identity, clock: &Clock, out: &mut Changes<Output>) {
        let Some(held) = self.held.get_mut(&identity) else { return };
        let expired = clock.expired(identity.event_time, self.semantics.demonstration_ttl_ms);
        let example = held.example.clone().filter(|_| !expired);
        let eligible = example.as_ref().and_then(|example| {
            let item = self.items.get(&example.item)?;
            let view = PromptView::new(
                identity.user.clone(),
                example.item.clone(),
                item.text,
                example.verdict.decision(),
                &example.history,
                self.semantics.prompt_history,
            );
            let actives = &clock.actives;
            let key = view.content_key(&actives.prompt_version, &actives.llm_model, &actives.parameters);
            Some(Eligible { example: example.clone(), key, view: Arc::new(view) })
        });
        if eligible != held.emitted {
            out.extend(held.emitted.take().map(|old| (Output::Eligible(old), -1)));
            out.extend(eligible.clone().map(|new| (Output::Eligible(new), 1)));
            held.emitted = eligible;
        }
        // Past its ttl or not selected: only a change of the example itself brings it back.
        if example.is_none() {
            let item = held.item.clone();
            self.held.remove(&identity);
            self.unsaved.insert(&identity.user);
            unlink(&mut self.by_item, &item, &identity);
        }
    }
}

/// The operator `eligible`. `items` are broadcast.
pub fn eligible<'s>(
    examples: VecCollection<'s, Epoch, Arc<Example>, isize>,
    items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    recovery: VecCollection<'s, Epoch, Recovery, isize>,
    semantics: Arc<Semantics>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Eligibility::new(semantics);
    let input = examples
        .map(Input::Example)
        .concat(items.map(|(worker, item)| Input::Item(worker, item)))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)))
        .concat(recovery.filter(|recovery| recovery.concerns(Part::Eligible)).map(Input::Recovery));
    let by = |input: &Input| match input {
        Input::Example(example) => route(&example.identity.user),
        Input::Item(worker, _) | Input::Clock(worker, _) => *worker,
        Input::Recovery(recovery) => recovery.route(),
    };
    staged(input, "eligible", by, move |_, changes, out| state.step(changes, out))
}
