//! Examples: impressions with their labels, and outcomes that belong to no impression.

use crate::history::{History, Identity, Label};
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};

/// The label of an example, once known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// 1: the earliest positive outcome.
    Positive,
    /// 0: the earliest explicit negative, where no outcome was positive.
    Negative,
    /// 0: no outcome by the end of the attribution window.
    ImplicitNegative,
}

impl Verdict {
    /// 1 or 0.
    pub fn value(self) -> i32 {
        i32::from(self == Verdict::Positive)
    }

    /// The decision that a prompt states.
    pub fn decision(self) -> Label {
        if self == Verdict::Positive { Label::Positive } else { Label::Negative }
    }
}

/// An example with its history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Example {
    /// (user, event_time, event_id) of the impression, or of the outcome that is its own example.
    pub identity: Identity,
    /// The user's partition.
    pub partition: u32,
    /// The item.
    pub item: Id,
    /// The label.
    pub verdict: Verdict,
    /// The outcome's time; for an implicit negative event_time + attribution_window.
    pub label_time: Millis,
    /// The newest L engagements strictly before event_time.
    pub history: History,
}

/// A record of the topic `examples`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleRecord {
    /// The user.
    pub user_id: String,
    /// When the example happened.
    pub event_time: Millis,
    /// Its event id.
    pub event_id: String,
    /// The item.
    pub item_id: String,
    /// 1 or 0.
    pub label: i32,
    /// Whether the 0 is for want of any outcome.
    pub implicit: bool,
    /// When the label was known, by event time.
    pub label_time: Millis,
    /// The history strictly before `event_time`, oldest first.
    pub history: Vec<HistoryRecord>,
}

/// One entry of a history as `examples` carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// The item.
    pub item_id: String,
    /// The kind.
    pub kind: String,
    /// `positive`, `negative` or `none`.
    pub label: String,
    /// When it happened.
    pub event_time: Millis,
}

impl Example {
    /// The record of this example.
    pub fn record(&self) -> ExampleRecord {
        ExampleRecord {
            user_id: self.identity.user.to_string(),
            event_time: self.identity.event_time,
            event_id: self.identity.event_id.to_string(),
            item_id: self.item.to_string(),
            label: self.verdict.value(),
            implicit: self.verdict == Verdict::ImplicitNegative,
            label_time: self.label_time,
            history: self
                .history
                .iter()
                .map(|entry| HistoryRecord {
                    item_id: entry.item.to_string(),
                    kind: entry.kind.to_string(),
                    label: entry.label.word().to_owned(),
                    event_time: entry.event_time,
                })
                .collect(),
        }
    }
}
