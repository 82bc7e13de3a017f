//! Limits that no configuration raises, and how large a record of ours can get under those that one sets.
//!
//! A record that a store refuses would stop the job, since its epoch can never be committed. So the
//! sizes are bounded where input is accepted, and the largest output follows from them.

use crate::config::Semantics;

/// The greatest `cot_stride`.
pub const STRIDE: u64 = 1_000_000_000;
/// The greatest `max_window_events`.
pub const WINDOW_EVENTS: usize = 1_000_000;
/// The greatest `max_candidates`.
pub const CANDIDATES: usize = 100_000;
/// The greatest `max_live_pairs`.
pub const LIVE_PAIRS: usize = 100_000_000;
/// The greatest `max_demonstrations`.
pub const DEMONSTRATIONS: usize = 10_000_000;
/// The greatest `neighbours.ring`.
pub const RING: usize = 4_096;
/// The greatest `neighbours.selected`, of each source.
pub const NEIGHBOURS: usize = 128;
/// The least `max_record_bytes`: what a small interaction needs.
pub const LEAST_RECORD_BYTES: usize = 1_024;
/// The greatest `max_record_bytes`.
pub const RECORD_BYTES: usize = 64 << 20;
/// The greatest `max_id_bytes`.
pub const ID_BYTES: usize = 1_024;
/// The most categories of an item that count as ids; its text has them all.
pub const CATEGORIES: usize = 64;
/// The most kinds.
pub const KINDS: usize = 64;
/// The longest name of a kind, bytes.
pub const KIND_BYTES: usize = 64;
/// The greatest width of a vector on `features`.
pub const VECTOR_WIDTH: usize = 1_024;

/// The greatest width of a text's vector on `embeddings`.
pub const TEXT_WIDTH: usize = 4_096;
/// The longest text on `cot`, bytes.
pub const COT_BYTES: usize = 4_096;

/// What a record of ours has beside ids, entries, vectors and payloads, bytes: the store's framing,
/// the three headers, Avro's lengths, numbers, words, the names of versions and topics.
pub const OVERHEAD: usize = 8_192;

/// One used demonstration on `features`: point id, score, label, freshness.
const DEMONSTRATION: usize = 38 + 10 + 2 + 1;

/// One used neighbour on `features`: source, id, score, label.
const NEIGHBOUR: usize = 1 + 38 + 10 + 2;

/// One id of a demonstration or neighbour in what was served.
const SERVED_ID: usize = 38;

/// What an id or a word takes beside its own bytes: Avro's length.
const LENGTH: usize = 5;

impl Semantics {
    /// The largest record that the job writes for these values, bytes, key, headers and framing
    /// included: a dead letter, a feature, an example, a CoT or a text's vector.
    pub fn largest_record(&self) -> usize {
        let id = self.max_id_bytes + LENGTH;
        let l = self.history_length;
        // The key repeats the ids.
        let used = self.demonstrations * DEMONSTRATION + 2 * self.neighbours.selected * NEIGHBOUR;
        let feature = 4 * id + l * (id + 1) + used + 4 * VECTOR_WIDTH;
        let ids = self.demonstrations + 2 * self.neighbours.selected;
        let served = ids * SERVED_ID + 4 * VECTOR_WIDTH;
        let example = 5 * id + l * (id + KIND_BYTES + LENGTH + 10 + 10) + served;
        let answer = (2 * id + COT_BYTES).max(4 * TEXT_WIDTH);
        OVERHEAD + self.max_record_bytes.max(feature).max(example).max(answer)
    }
}
