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
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::PromptView;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::Identity;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
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
    held: HashMap<Identity, Held>,
    by_item: HashMap<Id, HashSet<Identity>>,
    items: HashMap<Id, Item>,
    wheel: Wheel<Identity>,
    /// The versions under which the emitted keys stand.
    actives: Option<Arc<Actives>>,
}

impl Eligibility {
    /// An empty state.
    pub fn new(semantics: Arc<Semantics>) -> Self {
        Eligibility {
            semantics,
            held: HashMap::new(),
            by_item: HashMap::new(),
            items: HashMap::new(),
            wheel: Wheel::default(),
            actives: None,
        }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Eligible>) {
        let mut touched: BTreeSet<Identity> = BTreeSet::new();
        let mut latest: HashMap<Identity, Option<Arc<Example>>> = HashMap::new();
        let mut clock = None;
        for (input, diff) in changes {
            match input {
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
    }

    /// Takes the new value of an example; `None` where it was retracted. An example never changes
    /// its item: that would be another event.
    fn replace(&mut self, identity: &Identity, example: Option<Arc<Example>>) {
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

    fn emit(&mut self, identity: Identity, clock: &Clock, out: &mut Changes<Eligible>) {
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
            out.extend(held.emitted.take().map(|old| (old, -1)));
            out.extend(eligible.clone().map(|new| (new, 1)));
            held.emitted = eligible;
        }
        // Past its ttl or not selected: only a change of the example itself brings it back.
        if example.is_none() {
            let item = held.item.clone();
            self.held.remove(&identity);
            unlink(&mut self.by_item, &item, &identity);
        }
    }
}

/// The operator `eligible`. `items` are broadcast.
pub fn eligible<'s>(
    examples: VecCollection<'s, Epoch, Arc<Example>, isize>,
    items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    semantics: Arc<Semantics>,
) -> VecCollection<'s, Epoch, Eligible, isize> {
    let mut state = Eligibility::new(semantics);
    let input = examples
        .map(Input::Example)
        .concat(items.map(|(worker, item)| Input::Item(worker, item)))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Example(example) => route(&example.identity.user),
        Input::Item(worker, _) | Input::Clock(worker, _) => *worker,
    };
    staged(input, "eligible", by, move |_, changes, out| state.step(changes, out))
}
