//! Which impression an outcome belongs to, for one user and one item.
//!
//! **Computes**: an outcome at time o belongs to the newest impression, by (event_time, event_id),
//! among those with o − window ≤ impression ≤ o; where its `impression_id` names some of these,
//! only among the named. A verdict is 1 with the earliest positive outcome of the impression, else
//! 0 with its earliest explicit negative.
//!
//! **Late events**: the result is a function of the *set* of events, so their order is nothing.
//! An outcome older than maximum − lateness can't be re-attributed any more, since every impression
//! still to come is younger; it is folded into its impression ([`ItemEvents::settle`]).
//!
//! **Memory**: impressions not older than maximum − window − lateness and outcomes not older than
//! maximum − lateness.

use ictflow_schemas::history::Label;
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The order of events of one user: (event_time, event_id by bytes).
pub type EventKey = (Millis, Id);

/// A labelled event that isn't settled yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// `Positive` or `Negative`.
    pub label: Label,
    /// The impression that it names.
    pub impression_id: Option<Id>,
}

/// The earliest outcomes of an impression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earliest {
    /// The earliest positive one.
    pub positive: Option<EventKey>,
    /// The earliest explicit negative one.
    pub negative: Option<EventKey>,
}

impl Earliest {
    fn add(&mut self, key: &EventKey, label: Label) {
        let slot = if label == Label::Positive { &mut self.positive } else { &mut self.negative };
        if slot.as_ref().is_none_or(|earliest| key < earliest) {
            *slot = Some(key.clone());
        }
    }
}

/// The events of one user on one item that can still change a verdict.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ItemEvents {
    /// Impressions with the settled outcomes folded into them.
    impressions: BTreeMap<EventKey, Earliest>,
    /// Outcomes that aren't settled.
    outcomes: BTreeMap<EventKey, Outcome>,
}

/// The attribution of all events of one item.
#[derive(Clone, Debug, Default)]
pub struct Attribution {
    /// By impression its earliest outcomes, folded and not.
    pub impressions: BTreeMap<EventKey, Earliest>,
    /// Unsettled outcomes that belong to no impression: each is its own example.
    pub own: BTreeMap<EventKey, Label>,
    /// Unsettled outcomes that belong to one.
    pub taken: Vec<EventKey>,
}

impl ItemEvents {
    /// Adds an impression.
    pub fn add_impression(&mut self, key: EventKey) {
        self.impressions.entry(key).or_default();
    }

    /// Adds an outcome.
    pub fn add_outcome(&mut self, key: EventKey, outcome: Outcome) {
        self.outcomes.insert(key, outcome);
    }

    /// Attributes every unsettled outcome; settled ones stand in their impression.
    pub fn attribute(&self, window: Millis) -> Attribution {
        let mut result = Attribution { impressions: self.impressions.clone(), ..Attribution::default() };
        for (key, outcome) in &self.outcomes {
            match self.impression_of(key, outcome, window).cloned() {
                Some(impression) => {
                    result.impressions.entry(impression).or_default().add(key, outcome.label);
                    result.taken.push(key.clone());
                }
                None => {
                    result.own.insert(key.clone(), outcome.label);
                }
            }
        }
        result
    }

    /// Folds an outcome whose attribution can't change any more into its impression. One that is
    /// its own example is simply forgotten here: the example holds its verdict.
    pub fn settle(&mut self, key: &EventKey, window: Millis) {
        if let Some(outcome) = self.outcomes.remove(key)
            && let Some(impression) = self.impression_of(key, &outcome, window).cloned()
        {
            self.impressions.entry(impression).or_default().add(key, outcome.label);
        }
    }

    /// Forgets an impression whose example is final.
    pub fn forget(&mut self, impression: &EventKey) {
        self.impressions.remove(impression);
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.impressions.is_empty() && self.outcomes.is_empty()
    }

    fn impression_of(&self, key: &EventKey, outcome: &Outcome, window: Millis) -> Option<&EventKey> {
        let oldest = key.0.saturating_sub(window);
        let candidates = || {
            // Newest first, from the youngest that is at or before the outcome.
            self.impressions.keys().rev().skip_while(|k| k.0 > key.0).take_while(move |k| k.0 >= oldest)
        };
        let named = outcome.impression_id.as_ref().and_then(|id| candidates().find(|k| k.1 == *id));
        named.or_else(|| candidates().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(time: Millis, id: &str) -> EventKey {
        (time, id.into())
    }

    fn outcome(label: Label, names: Option<&str>) -> Outcome {
        Outcome { label, impression_id: names.map(Id::from) }
    }

    #[test]
    fn the_newest_impression_within_the_window_wins_unless_another_is_named() {
        let mut events = ItemEvents::default();
        for (time, id) in [(0, "a"), (10, "b"), (10, "c"), (30, "d")] {
            events.add_impression(key(time, id));
        }
        events.add_outcome(key(20, "o1"), outcome(Label::Positive, None));
        events.add_outcome(key(20, "o2"), outcome(Label::Negative, Some("a")));
        events.add_outcome(key(20, "o3"), outcome(Label::Negative, Some("nowhere")));
        let result = events.attribute(20);
        assert_eq!(result.impressions[&key(10, "c")].positive, Some(key(20, "o1")));
        assert_eq!(result.impressions[&key(10, "c")].negative, Some(key(20, "o3")));
        assert_eq!(result.impressions[&key(0, "a")].negative, Some(key(20, "o2")));
        assert_eq!(result.impressions[&key(30, "d")], Earliest::default());
        // At the window's end it still counts; one beyond it doesn't.
        events.add_outcome(key(50, "o4"), outcome(Label::Positive, None));
        events.add_outcome(key(51, "o5"), outcome(Label::Positive, None));
        let result = events.attribute(20);
        assert_eq!(result.impressions[&key(30, "d")].positive, Some(key(50, "o4")));
        assert!(result.own.contains_key(&key(51, "o5")));
    }

    #[test]
    fn settling_changes_no_verdict() {
        let mut events = ItemEvents::default();
        events.add_impression(key(0, "a"));
        events.add_outcome(key(1, "n"), outcome(Label::Negative, None));
        events.add_outcome(key(2, "p"), outcome(Label::Positive, None));
        let before = events.attribute(10).impressions;
        events.settle(&key(1, "n"), 10);
        events.settle(&key(2, "p"), 10);
        assert_eq!(events.attribute(10).impressions, before);
    }
}
