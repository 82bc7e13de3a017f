//! Dead letters: records that were refused, with where they stood and why.

use crate::framing::Frame;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a record was refused. The word stands on the topic and in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Undecodable, an unknown kind, a missing or not finite value, an empty id, a wrong key, a time
    /// outside the years that are read.
    Unreadable,
    /// More bytes than `max_record_bytes`, or an id of more than `max_id_bytes`.
    Oversized,
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
    pub const ALL: [Reason; 8] = [
        Reason::Unreadable,
        Reason::Oversized,
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
            Reason::Oversized => "oversized",
            Reason::Misrouted => "misrouted",
            Reason::Future => "future",
            Reason::Late => "late",
            Reason::Conflict => "conflict",
            Reason::WindowFull => "window_full",
            Reason::TooManyCandidates => "too_many_candidates",
        }
    }
}

impl Reason {
    /// The reason of a word on the topic.
    pub fn from_word(word: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.word() == word)
    }

    /// Whether it says that records are written wrongly. Late ones and those over a user's window say when
    /// they came and how much one user does: a topic isn't damaged by them.
    pub fn is_damage(self) -> bool {
        !matches!(self, Reason::Late | Reason::WindowFull)
    }

    /// What a person may look for, once records are refused for it.
    pub fn hint(self) -> &'static str {
        match self {
            Reason::Unreadable => {
                "is it written with a schema of this topic, its key the id, its kind one of [semantics.kinds], its time in milliseconds?"
            }
            Reason::Oversized => "shorten the record, or raise max_record_bytes or max_id_bytes in a new job",
            Reason::Misrouted => {
                "producers partition otherwise: set [semantics] partitioner to theirs, murmur2 for java clients, crc32 for librdkafka's default"
            }
            Reason::Future => "a producer's clock is ahead, or its event times aren't in milliseconds",
            Reason::Late => "events come later than lateness_ms after others of their partition",
            Reason::Conflict => {
                "a producer used one event_id twice for different events of a user at one time"
            }
            Reason::WindowFull => {
                "one user has more events than max_window_events within lateness_ms: is it a robot?"
            }
            Reason::TooManyCandidates => "offer at most max_candidates items, or raise it in a new job",
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
    /// The raw key; of an oversized record its first `max_record_bytes`.
    #[serde(with = "crate::wire::optional_bytes")]
    pub key: Option<Vec<u8>>,
    /// The raw payload; of an oversized record what the key leaves of `max_record_bytes`.
    #[serde(with = "crate::wire::optional_bytes")]
    pub payload: Option<Vec<u8>>,
}

/// Where a record stands on the store. Its text is `topic[partition]@offset`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The topic's name.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
}

impl Position {
    /// Reads the text of a position; `None` where it is none.
    pub fn parse(text: &str) -> Option<Position> {
        let (place, offset) = text.rsplit_once('@')?;
        let (topic, partition) = place.strip_suffix(']')?.rsplit_once('[')?;
        let position = Position {
            topic: topic.to_owned(),
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
        };
        // Another spelling of a number would be another position.
        (position.to_string() == text && position.offset >= 0).then_some(position)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

impl DeadLetter {
    /// Where the refused record stands.
    pub fn source(&self) -> Position {
        let partition = u32::try_from(self.partition).unwrap_or_default();
        Position { topic: self.topic.clone(), partition, offset: self.offset }
    }

    /// Cuts key and payload to `limit` bytes together, the key first. Only a record that is refused
    /// for its size has more; what is cut off still stands at the source position.
    pub fn cut(&mut self, limit: usize) {
        let key = self.key.as_mut().map_or(0, |key| {
            key.truncate(limit);
            key.len()
        });
        if let Some(payload) = &mut self.payload {
            payload.truncate(limit - key);
        }
    }

    /// The key: framed source position (topic, partition, offset).
    pub fn key(&self) -> Vec<u8> {
        Frame::new().text(&self.topic).int(self.partition.into()).int(self.offset).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_back_from_its_text_and_nothing_else_is_one() {
        for (topic, partition, offset) in [("interactions", 0, 0), ("a.b-c_d[1]@2", 41, i64::MAX)] {
            let position = Position { topic: topic.to_owned(), partition, offset };
            assert_eq!(Position::parse(&position.to_string()), Some(position));
        }
        for text in ["", "t", "t@1", "t[0]", "t[0]@", "t[0]@-1", "t[-1]@1", "t[00]@1", "t[0]@+1", "t[0]@1 "] {
            assert_eq!(Position::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_reason_is_found_by_its_word() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.word()), Some(reason));
        }
        assert_eq!(Reason::from_word("tardy"), None);
    }
}
