//! Interactions: one event of a user on an item, and the table that says what a kind means.

use crate::history::{Entry, Label};
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A record of the topic `interactions` as its producer wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interaction {
    /// The producer's id of the event; with user and time it is the event's identity.
    pub event_id: String,
    /// The user; also the record's key.
    pub user_id: String,
    /// The item.
    pub item_id: String,
    /// One of the configured kinds.
    pub kind: String,
    /// Watch ratio, rating and the like, where the kind has one.
    #[serde(default)]
    pub value: Option<f64>,
    /// The `event_id` of the impression that the event answers, where the producer knows it.
    #[serde(default)]
    pub impression_id: Option<String>,
    /// When it happened, in milliseconds.
    pub event_time: Millis,
}

/// When a rule of the kind table holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// For every event of the kind.
    Always,
    /// For none.
    Never,
    /// For events whose value is at least this.
    From(f64),
    /// For events whose value is below this.
    Below(f64),
}

impl When {
    fn needs_value(self) -> bool {
        matches!(self, When::From(_) | When::Below(_))
    }

    fn holds(self, value: Option<f64>) -> bool {
        match (self, value) {
            (When::Always, _) => true,
            (When::From(limit), Some(value)) => value >= limit,
            (When::Below(limit), Some(value)) => value < limit,
            _ => false,
        }
    }
}

/// What one kind means.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindRule {
    /// The item was shown. An impression is never an engagement and has no label.
    #[serde(default)]
    pub impression: bool,
    /// Whether the event enters the history.
    #[serde(default = "never")]
    pub engagement: When,
    /// Whether the event is a positive outcome. Judged before `negative`.
    #[serde(default = "never")]
    pub positive: When,
    /// Whether the event is an explicit negative outcome.
    #[serde(default = "never")]
    pub negative: When,
}

fn never() -> When {
    When::Never
}

impl KindRule {
    /// Whether an event of the kind must carry a finite value.
    pub fn needs_value(&self) -> bool {
        [self.engagement, self.positive, self.negative].into_iter().any(When::needs_value)
    }

    /// The label of an event of the kind.
    pub fn label(&self, value: Option<f64>) -> Label {
        if self.impression {
            Label::None
        } else if self.positive.holds(value) {
            Label::Positive
        } else if self.negative.holds(value) {
            Label::Negative
        } else {
            Label::None
        }
    }

    /// Whether an event of the kind enters the history.
    pub fn is_engagement(&self, value: Option<f64>) -> bool {
        !self.impression && self.engagement.holds(value)
    }
}

/// The configured table: what each kind means. An event of a kind not in it is unreadable.
pub type KindTable = BTreeMap<String, KindRule>;

/// The default table: click, play ≥ 0.5, like, purchase and rate are engagements; positive are
/// these, a rating from 4; negative are skip and a rating below 4.
pub fn default_kinds() -> KindTable {
    let rule =
        |impression, engagement, positive, negative| KindRule { impression, engagement, positive, negative };
    use When::{Always, Below, From, Never};
    [
        ("impression", rule(true, Never, Never, Never)),
        ("click", rule(false, Always, Always, Never)),
        ("play", rule(false, From(0.5), From(0.5), Never)),
        ("like", rule(false, Always, Always, Never)),
        ("purchase", rule(false, Always, Always, Never)),
        ("rate", rule(false, Always, From(4.0), Below(4.0))),
        ("skip", rule(false, Never, Never, Always)),
    ]
    .into_iter()
    .map(|(kind, rule)| (kind.to_owned(), rule))
    .collect()
}

/// An accepted event, with what the table says of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Event {
    /// The user.
    pub user: Id,
    /// The partition on which the user stands.
    pub partition: u32,
    /// Time, event id, item, kind and label.
    pub entry: Entry,
    /// Whether it enters the history.
    pub engagement: bool,
    /// Whether it is an impression.
    pub impression: bool,
    /// The impression that it names.
    pub impression_id: Option<Id>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_table_labels_as_documented() {
        let table = default_kinds();
        let judge = |kind: &str, value| (table[kind].is_engagement(value), table[kind].label(value));
        assert_eq!(judge("click", None), (true, Label::Positive));
        assert_eq!(judge("play", Some(0.5)), (true, Label::Positive));
        assert_eq!(judge("play", Some(0.49)), (false, Label::None));
        assert_eq!(judge("rate", Some(4.0)), (true, Label::Positive));
        assert_eq!(judge("rate", Some(3.5)), (true, Label::Negative));
        assert_eq!(judge("skip", None), (false, Label::Negative));
        assert_eq!(judge("impression", None), (false, Label::None));
        assert!(table["play"].needs_value() && table["rate"].needs_value());
        assert!(!table["click"].needs_value());
    }
}
