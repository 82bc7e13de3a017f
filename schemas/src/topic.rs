//! The topics by name and policy, and a record as every kind of topic store carries it.

use serde::{Deserialize, Serialize};

/// One of ictflow's topics. The names on the broker are configurable; this is their role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Input: events of users on items.
    Interactions,
    /// Input: the catalog.
    Items,
    /// Input, optional: what the recall stage offers.
    Candidates,
    /// Internal log: answers of the LLM.
    Cot,
    /// Internal log: answers of the encoder.
    Embeddings,
    /// Internal log: bounds.
    Epochs,
    /// Internal: the committed epoch.
    Progress,
    /// Output: ICT vectors.
    Features,
    /// Output: labelled examples.
    Examples,
    /// Output: refused records.
    DeadLetters,
}

/// How a topic forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing is forgotten by key; time retention is the owner's choice.
    Append,
    /// Only the newest record of a key need stay.
    Compact,
    /// Both.
    CompactAndTime,
    /// Records go by age: by the store's own default, unless its owner sets another.
    Time,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Topic; 10] = [
        Topic::Interactions,
        Topic::Items,
        Topic::Candidates,
        Topic::Cot,
        Topic::Embeddings,
        Topic::Epochs,
        Topic::Progress,
        Topic::Features,
        Topic::Examples,
        Topic::DeadLetters,
    ];

    /// The logs that every output is a function of, in the order in which an epoch feeds them.
    pub const INPUTS: [Topic; 5] =
        [Topic::Items, Topic::Candidates, Topic::Embeddings, Topic::Cot, Topic::Interactions];

    /// The default name.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Interactions => "interactions",
            Topic::Items => "items",
            Topic::Candidates => "candidates",
            Topic::Cot => "cot",
            Topic::Embeddings => "embeddings",
            Topic::Epochs => "epochs",
            Topic::Progress => "progress",
            Topic::Features => "features",
            Topic::Examples => "examples",
            Topic::DeadLetters => "dead_letters",
        }
    }

    /// The topic of a default name.
    pub fn from_name(name: &str) -> Option<Topic> {
        Topic::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// How it forgets. `features` is compacted only: pairs leave by tombstone, never by age.
    pub fn policy(self) -> Policy {
        match self {
            Topic::Interactions | Topic::Epochs => Policy::Append,
            Topic::Examples => Policy::CompactAndTime,
            // Raw payloads may be personal.
            Topic::DeadLetters => Policy::Time,
            _ => Policy::Compact,
        }
    }
}

/// A record read from a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// The broker's or producer's timestamp; `None` where the record has none or −1.
    pub timestamp: Option<i64>,
    /// The raw key.
    pub key: Option<Vec<u8>>,
    /// The value, in the format of its topic; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The value as it stood on the topic, where it came in another framing and `value` is what it
    /// says in ours; `None` where `value` itself is what stood there.
    pub framed: Option<Vec<u8>>,
    /// Headers in their order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// The value's bytes as they stood on the topic; `None` is a tombstone.
    pub fn raw(&self) -> Option<&[u8]> {
        self.framed.as_deref().or(self.value.as_deref())
    }

    /// The number that a header holds as decimal text; `None` without that header, or where it holds none.
    pub fn number(&self, header: &str) -> Option<i64> {
        let (_, value) = self.headers.iter().find(|(name, _)| name == header)?;
        std::str::from_utf8(value).ok()?.parse().ok()
    }
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// The topic's name on the store.
    pub topic: String,
    /// The partition, always set by us.
    pub partition: u32,
    /// The timestamp; the store's clock where `None`.
    pub timestamp: Option<i64>,
    /// The raw key; every record of ours has one.
    pub key: Option<Vec<u8>>,
    /// The raw value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in their order.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// The header that names the epoch of an output record, decimal text.
pub const HEADER_EPOCH: &str = "ictflow-epoch";
/// The header that numbers a record within its epoch's transaction, decimal text.
pub const HEADER_SUBSTEP: &str = "ictflow-substep";
/// The header with the wall-clock milliseconds of publication, decimal text.
pub const HEADER_PUBLISHED_AT: &str = "ictflow-published-at";
/// The header of a record that `dead-letters replay` appended to an input: where the refused record
/// stands of which it is the replay, as [`crate::dead_letter::Position`] writes it.
pub const HEADER_REPLAY_OF: &str = "ictflow-replay-of";
