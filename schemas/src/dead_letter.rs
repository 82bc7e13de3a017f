//! Dead letters: records that were refused, with where they stood and why.

use crate::framing::Frame;
use serde::{Deserialize, Serialize};

/// Why a record was refused. The word stands on the topic and in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Undecodable, an unknown kind, a missing or not finite value, an empty id, a wrong key.
    Unreadable,
    /// On another partition than its key's.
    Misrouted,
    /// Later than the record's timestamp by more than `max_future_skew`.
    Future,
    /// Older than the partition maximum by more than `lateness`.
    Late,
    /// An accepted identity with other fields.
    Conflict,
    /// More than `max_window_events` events of the user within the lateness window.
    WindowFull,
    /// A candidate set of more than `max_candidates` items.
    TooManyCandidates,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 7] = [
        Reason::Unreadable,
        Reason::Misrouted,
        Reason::Future,
        Reason::Late,
        Reason::Conflict,
        Reason::WindowFull,
        Reason::TooManyCandidates,
    ];

    /// The word on the topic.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Unreadable => "unreadable",
            Reason::Misrouted => "misrouted",
            Reason::Future => "future",
            Reason::Late => "late",
            Reason::Conflict => "conflict",
            Reason::WindowFull => "window_full",
            Reason::TooManyCandidates => "too_many_candidates",
        }
    }
}

/// A record of the topic `dead_letters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The input topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Where it was refused.
    pub stage: String,
    /// The reason's word.
    pub reason: String,
    /// The raw key.
    #[serde(with = "crate::wire::optional_bytes")]
    pub key: Option<Vec<u8>>,
    /// The raw payload.
    #[serde(with = "crate::wire::optional_bytes")]
    pub payload: Option<Vec<u8>>,
}

impl DeadLetter {
    /// The key: framed source position (topic, partition, offset).
    pub fn key(&self) -> Vec<u8> {
        Frame::new().text(&self.topic).int(self.partition.into()).int(self.offset).into_bytes()
    }
}
