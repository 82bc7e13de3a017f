//! The examples of one user: impressions with their verdicts, outcomes that are their own.
//!
//! **Computes**, for every impression not yet final: its verdict by [`crate::attribution`], else 0
//! (implicit) when the partition maximum is beyond event_time + attribution_window; unknown before.
//! An outcome without impression is its own example. Its history is strictly before it.
//!
//! **Late events** correct what was emitted: a late engagement the histories of later examples, a
//! late outcome a verdict, a late impression the attribution.
//!
//! **Memory**: an example stays until it is final, that is until the partition maximum is beyond
//! event_time + attribution_window + lateness. Then it leaves without a retraction: it has its last
//! value for ever.

use crate::Changes;
use crate::attribution::{EventKey, ItemEvents, Outcome};
use crate::history::Window;
use crate::recovery::{Packer, unpack};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::history::{Entry, History, Identity, Label};
use ictflow_schemas::interaction::Event;
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// An example that isn't final.
#[derive(Clone, Debug)]
struct Held {
    item: Id,
    /// Verdict and its time by an outcome; the implicit one is derived.
    outcome: Option<(Verdict, Millis)>,
    history: History,
    emitted: Option<Arc<Example>>,
}

/// The examples of one user that aren't final.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    items: HashMap<Id, ItemEvents>,
    held: BTreeMap<EventKey, Held>,
    /// Examples without an outcome whose implicit verdict isn't due yet.
    unlabelled: BTreeSet<EventKey>,
    /// Unsettled outcomes by age, with their item.
    unsettled: BTreeSet<(EventKey, Id)>,
    /// Held examples to look at again in this step.
    dirty: BTreeSet<EventKey>,
    /// Emitted examples that are none any more.
    gone: Vec<Arc<Example>>,
}

/// The examples of one user as they are saved, their histories as indices into a table of entries.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedExamples {
    items: BTreeMap<Id, ItemEvents>,
    held: Vec<SavedExample>,
    unsettled: Vec<(EventKey, Id)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedExample {
    key: EventKey,
    item: Id,
    outcome: Option<(Verdict, Millis)>,
    history: Vec<u32>,
}

impl Examples {
    /// The entries of all histories.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.held.values().flat_map(|held| held.history.iter())
    }

    /// The state between two steps. What was emitted follows from it and the partition maximum.
    pub fn save(&self, packer: &Packer) -> SavedExamples {
        let saved = |(key, held): (&EventKey, &Held)| SavedExample {
            key: key.clone(),
            item: held.item.clone(),
            outcome: held.outcome,
            history: packer.pack(&held.history),
        };
        SavedExamples {
            items: self.items.iter().map(|(item, events)| (item.clone(), events.clone())).collect(),
            held: self.held.iter().map(saved).collect(),
            unsettled: self.unsettled.iter().cloned().collect(),
        }
    }

    /// The state that was saved, with nothing emitted yet: the next flush emits what is known.
    pub fn restore(saved: SavedExamples, table: &[Entry]) -> Self {
        let mut examples = Examples {
            items: saved.items.into_iter().collect(),
            unsettled: saved.unsettled.into_iter().collect(),
            ..Examples::default()
        };
        for SavedExample { key, item, outcome, history } in saved.held {
            if outcome.is_none() {
                examples.unlabelled.insert(key.clone());
            }
            examples.dirty.insert(key.clone());
            let held = Held { item, outcome, history: unpack(table, &history), emitted: None };
            examples.held.insert(key, held);
        }
        examples
    }

    /// Everything that was emitted and may be retracted.
    pub fn into_emitted(self) -> impl Iterator<Item = Arc<Example>> {
        self.gone.into_iter().chain(self.held.into_values().filter_map(|held| held.emitted))
    }

    /// Takes the user's new events of an epoch. Engagements must be in `window` already.
    pub fn add(&mut self, events: &[Event], window: &Window, semantics: &Semantics) {
        let mut touched = BTreeSet::new();
        let mut first_engagement = None;
        for event in events {
            let key = (event.entry.event_time, event.entry.event_id.clone());
            let item = &event.entry.item;
            if event.engagement {
                first_engagement = Some(
                    first_engagement
                        .map_or(event.entry.event_time, |t: Millis| t.min(event.entry.event_time)),
                );
            }
            if event.impression {
                self.items.entry(item.clone()).or_default().add_impression(key.clone());
                self.hold(key, item, window, semantics.history_length);
                touched.insert(item.clone());
            } else if event.entry.label != Label::None {
                let outcome =
                    Outcome { label: event.entry.label, impression_id: event.impression_id.clone() };
                self.items.entry(item.clone()).or_default().add_outcome(key.clone(), outcome);
                self.unsettled.insert((key, item.clone()));
                touched.insert(item.clone());
            }
        }
        for item in &touched {
            self.attribute(item, window, semantics);
        }
        if let Some(first) = first_engagement {
            self.correct_histories(first, window, semantics.history_length);
        }
    }

    fn hold(&mut self, key: EventKey, item: &Id, window: &Window, length: usize) {
        let history = window.before(key.0, length);
        let held = Held { item: item.clone(), outcome: None, history, emitted: None };
        self.held.insert(key.clone(), held);
        self.unlabelled.insert(key.clone());
        self.dirty.insert(key);
    }

    /// Re-attributes the outcomes of an item and updates the verdicts that differ.
    fn attribute(&mut self, item: &Id, window: &Window, semantics: &Semantics) {
        let attribution = self.items[item].attribute(semantics.attribution_window_ms);
        for (impression, earliest) in &attribution.impressions {
            let outcome = match (&earliest.positive, &earliest.negative) {
                (Some(positive), _) => Some((Verdict::Positive, positive.0)),
                (None, Some(negative)) => Some((Verdict::Negative, negative.0)),
                (None, None) => None,
            };
            self.set_outcome(impression, outcome);
        }
        for (key, label) in attribution.own {
            if !self.held.contains_key(&key) {
                self.hold(key.clone(), item, window, semantics.history_length);
            }
            let verdict = if label == Label::Positive { Verdict::Positive } else { Verdict::Negative };
            self.set_outcome(&key, Some((verdict, key.0)));
        }
        for key in attribution.taken {
            // A late impression took the outcome: the example of its own goes.
            if let Some(held) = self.held.remove(&key) {
                self.dirty.remove(&key);
                self.unlabelled.remove(&key);
                self.gone.extend(held.emitted);
            }
        }
    }

    fn set_outcome(&mut self, key: &EventKey, outcome: Option<(Verdict, Millis)>) {
        let Some(held) = self.held.get_mut(key) else { return };
        if held.outcome != outcome {
            held.outcome = outcome;
            self.dirty.insert(key.clone());
        }
        if outcome.is_some() {
            self.unlabelled.remove(key);
        } else {
            self.unlabelled.insert(key.clone());
        }
    }

    fn correct_histories(&mut self, first: Millis, window: &Window, length: usize) {
        // Strictly before: an engagement at `first` is in the history of examples after it.
        let after = (first.saturating_add(1), Id::from(""));
        for (key, held) in self.held.range_mut(after..) {
            let history = window.before(key.0, length);
            if *history != *held.history {
                held.history = history;
                self.dirty.insert(key.clone());
            }
        }
    }

    /// Emits what changed, with the partition maximum at the epoch's end, and lets go of what can't
    /// change any more.
    pub fn flush(
        &mut self,
        user: &Id,
        partition: u32,
        maximum: Millis,
        semantics: &Semantics,
        out: &mut Changes<Arc<Example>>,
    ) {
        let window = semantics.attribution_window_ms;
        while let Some(key) = self.unlabelled.first()
            && maximum > key.0.saturating_add(window)
        {
            self.dirty.extend(self.unlabelled.pop_first());
        }
        out.extend(self.gone.drain(..).map(|example| (example, -1)));
        for key in std::mem::take(&mut self.dirty) {
            let Some(held) = self.held.get_mut(&key) else { continue };
            let implicit = maximum > key.0.saturating_add(window);
            let known = held
                .outcome
                .or_else(|| implicit.then(|| (Verdict::ImplicitNegative, key.0.saturating_add(window))));
            let example = known.map(|(verdict, label_time)| {
                Arc::new(Example {
                    identity: Identity { user: user.clone(), event_time: key.0, event_id: key.1.clone() },
                    partition,
                    item: held.item.clone(),
                    verdict,
                    label_time,
                    history: held.history.clone(),
                })
            });
            if example != held.emitted {
                out.extend(held.emitted.take().map(|old| (old, -1)));
                out.extend(example.clone().map(|new| (new, 1)));
                held.emitted = example;
            }
        }
        self.release(maximum, semantics);
    }

    /// Settles outcomes and forgets examples that are final.
    fn release(&mut self, maximum: Millis, semantics: &Semantics) {
        let (window, lateness) = (semantics.attribution_window_ms, semantics.lateness_ms);
        while let Some((key, item)) = self.unsettled.first()
            && maximum > key.0.saturating_add(lateness)
        {
            if let Some(events) = self.items.get_mut(item) {
                events.settle(key, window);
            }
            self.forget_empty(item.clone());
            self.unsettled.pop_first();
        }
        while let Some((key, held)) = self.held.first_key_value()
            && is_final(key.0, maximum, semantics)
        {
            if let Some(events) = self.items.get_mut(&held.item) {
                events.forget(key);
            }
            self.forget_empty(held.item.clone());
            self.held.pop_first();
        }
    }

    fn forget_empty(&mut self, item: Id) {
        if self.items.get(&item).is_some_and(ItemEvents::is_empty) {
            self.items.remove(&item);
        }
    }

    /// The event time beyond which the partition maximum must be for the next change without an
    /// event: an implicit verdict, a settlement, an example becoming final.
    pub fn due(&self, semantics: &Semantics) -> Option<Millis> {
        let (window, lateness) = (semantics.attribution_window_ms, semantics.lateness_ms);
        let implicit = self.unlabelled.first().map(|key| key.0.saturating_add(window));
        let settled = self.unsettled.first().map(|(key, _)| key.0.saturating_add(lateness));
        let last = self.held.first_key_value().map(|(key, _)| final_after(key.0, semantics));
        [implicit, settled, last].into_iter().flatten().min()
    }
}

/// The partition maximum beyond which an example of this time is final.
pub fn final_after(event_time: Millis, semantics: &Semantics) -> Millis {
    event_time.saturating_add(semantics.attribution_window_ms).saturating_add(semantics.lateness_ms)
}

/// Whether an example of this time is final: it changes only by erasure.
pub fn is_final(event_time: Millis, maximum: Millis, semantics: &Semantics) -> bool {
    maximum > final_after(event_time, semantics)
}
