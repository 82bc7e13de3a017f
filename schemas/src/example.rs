//! Examples: impressions with their labels, and outcomes that belong to no impression.

use crate::feature::VectorKind;
use crate::history::{History, Identity, Label};
use crate::topic::Topic;
use crate::wire::Wire;
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

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

/// A record of the topic `examples`. All of it but `served` is a pure function of the logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// What stood on `features` when the impression came; `None` where nothing did, where the example is an
    /// outcome of its own, where a restart lay between impression and label, and on records of before the
    /// field existed.
    #[serde(default)]
    pub served: Option<Served>,
}

/// What stood on `features` for an example's pair when its impression came: the newest record of the epochs
/// before the one that brought the impression.
///
/// How a job cuts its epochs, and when it was started, decides it; so records are compared without it
/// ([`comparable`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// The epoch that published it, as in the header `ictflow-epoch` of the feature's record.
    pub epoch: i64,
    /// The version of the ICT weights.
    pub ict_weights: String,
    /// What kind of vector it was.
    pub vector_kind: VectorKind,
    /// The point ids of its demonstrations, nearest last.
    pub demonstrations: Vec<String>,
    /// The ids of its neighbours, those of `same_item` first, nearest last each.
    pub neighbours: Vec<String>,
    /// Its nine votes.
    pub votes: Vec<f32>,
    /// The vector.
    pub ict: Vec<f32>,
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
            served: None,
        }
    }
}

impl ExampleRecord {
    /// What is a function of the logs alone: the record without what was served.
    pub fn without_served(self) -> Self {
        ExampleRecord { served: None, ..self }
    }
}

/// A value of an output topic as two jobs over the same logs agree on it, byte for byte: of `examples` the
/// record without `served` in the newest schema, of other topics the value itself. A value that can't be
/// read stays as it is.
pub fn comparable(topic: Topic, value: &[u8]) -> Cow<'_, [u8]> {
    match topic {
        Topic::Examples => match ExampleRecord::decode(value) {
            Ok(record) => Cow::Owned(record.without_served().encode()),
            Err(_) => Cow::Borrowed(value),
        },
        _ => Cow::Borrowed(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_compare_without_what_was_served() {
        let record = ExampleRecord {
            user_id: "u".into(),
            event_time: 1,
            event_id: "e".into(),
            item_id: "i".into(),
            label: 1,
            implicit: false,
            label_time: 2,
            history: vec![],
            served: None,
        };
        let served = Served {
            epoch: 3,
            ict_weights: "w".into(),
            vector_kind: VectorKind::Attention,
            demonstrations: vec![],
            neighbours: vec!["n".into()],
            votes: vec![0.5],
            ict: vec![-1.0],
        };
        let with = ExampleRecord { served: Some(served), ..record.clone() }.encode();
        let without = record.encode();
        assert_ne!(with, without);
        assert_eq!(comparable(Topic::Examples, &with), without);
        assert_eq!(comparable(Topic::Examples, &without), without);
        let other = ExampleRecord { label: 0, ..record }.encode();
        assert_ne!(comparable(Topic::Examples, &with), comparable(Topic::Examples, &other));
        // Of other topics, and of what is no value of ours, every byte counts.
        assert_eq!(comparable(Topic::Features, &with), with);
        assert_eq!(comparable(Topic::Examples, b"garbage"), &b"garbage"[..]);
    }
}
