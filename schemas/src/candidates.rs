//! Candidate sets: what the recall stage offers a user now.

use crate::Millis;
use serde::{Deserialize, Serialize};

/// A record of the topic `candidates`, keyed by user; null withdraws the set.
///
/// The newest record, the one with the greatest offset, stands. A repeated item counts once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidates {
    /// When the set was computed: outcomes after it take their item out of it.
    pub computed_at: Millis,
    /// The offered items, at most `max_candidates`.
    pub items: Vec<String>,
}
