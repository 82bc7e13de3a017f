//! Histories: a user's newest engagements strictly before a time.

use crate::framing::{Digest, Domain, Frame, digest, unframe};
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What an event says about whether the user wanted the item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The user wanted it.
    Positive,
    /// The user turned it down.
    Negative,
    /// It says nothing.
    None,
}

impl Label {
    /// The word used in digests and on topics.
    pub fn word(self) -> &'static str {
        match self {
            Label::Positive => "positive",
            Label::Negative => "negative",
            Label::None => "none",
        }
    }

    /// The number that `history_labels` has: 1 positive, 0 negative, −1 none.
    pub fn number(self) -> i32 {
        match self {
            Label::Positive => 1,
            Label::Negative => 0,
            Label::None => -1,
        }
    }

    /// The label of a word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Label::Positive, Label::Negative, Label::None].into_iter().find(|label| label.word() == word)
    }
}

/// One event as it stands in a history. The derived order is the order of events everywhere:
/// (event_time, event_id by bytes); within one user that pair is unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// When it happened.
    pub event_time: Millis,
    /// The producer's id of the event.
    pub event_id: Id,
    /// The item.
    pub item: Id,
    /// The kind.
    pub kind: Id,
    /// The label that the kind table gives it.
    pub label: Label,
}

/// A history: at most L entries, oldest first.
pub type History = Arc<[Entry]>;

/// The identity of an example or engagement: (user_id, event_time, event_id).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The user.
    pub user: Id,
    /// When it happened.
    pub event_time: Millis,
    /// The producer's id of the event.
    pub event_id: Id,
}

impl Identity {
    /// The framed parts (user_id, event_time, event_id): the key on `examples`.
    pub fn frame(&self) -> Frame {
        Frame::new().text(&self.user).int(self.event_time).text(&self.event_id)
    }

    /// The identity in a key of `examples`; `None` where it is no such key.
    pub fn of_key(key: &[u8]) -> Option<Self> {
        let parts = unframe(key)?;
        let [user, time, event] = parts[..] else { return None };
        Some(Identity {
            user: std::str::from_utf8(user).ok()?.into(),
            event_time: i64::from_be_bytes(time.try_into().ok()?),
            event_id: std::str::from_utf8(event).ok()?.into(),
        })
    }

    /// The digest of the identity; an example's hash is its number.
    pub fn digest(&self) -> Digest {
        digest(Domain::Identity, &self.frame())
    }
}
