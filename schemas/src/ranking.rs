//! Rankings: lists of a consumer of `features`, as `ictflow rank --publish` writes them.
//!
//! A job knows nothing of them. Their topic is the consumer's, of any name; its key is the raw user id, on the
//! partition that `interactions` and `features` have the user on, and a null value says that the user has no
//! list any more.

use crate::Millis;
use crate::feature::CotStatus;
use crate::wire::{Codec, WireError};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// One item of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedItem {
    /// The item.
    pub item_id: String,
    /// The probability of a positive label, by the ranker.
    pub score: f64,
    /// How complete the demonstrations of its vector are.
    pub cot_status: CotStatus,
    /// The epoch that its vector is of.
    pub epoch: i64,
    /// When its vector was published.
    pub published_at: Option<Millis>,
    /// The newest history entry's time in its vector.
    pub event_time: Option<Millis>,
    /// The version of the ICT weights that made its vector.
    pub ict_weights: String,
}

/// The list of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// The user.
    pub user_id: String,
    /// The SHA-256 of the ranker's file.
    pub ranker: String,
    /// The list, best first.
    pub ranked: Vec<RankedItem>,
}

fn codec() -> &'static Codec {
    static CODEC: OnceLock<Codec> = OnceLock::new();
    CODEC.get_or_init(|| Codec::new(&[include_str!("../wire/rankings.v1.avsc")]))
}

impl Ranking {
    /// The value as single-object Avro under the newest schema.
    pub fn encode(&self) -> Vec<u8> {
        codec().encode(self)
    }

    /// Reads single-object Avro of any version of the schema.
    ///
    /// # Errors
    /// Where the bytes aren't such a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        codec().decode(bytes)
    }
}
