//! The nouns of ictflow: records of the topics, their keys, digests and pure rules.
//!
//! This crate depends on nothing else of ours and does no I/O. `operators` and `connectors` both
//! speak in these types and never import each other. See `README.md` for the topics' contract.

pub mod candidates;
pub mod catalog;
pub mod config;
pub mod cot;
pub mod dataset;
pub mod dead_letter;
pub mod demonstration;
pub mod embedding;
pub mod epoch;
pub mod example;
pub mod feature;
pub mod framing;
pub mod history;
pub mod interaction;
pub mod invariants;
pub mod item;
pub mod limits;
pub mod neighbour;
pub mod ranking;
pub mod topic;
pub mod vector;
pub mod wire;

/// A user, item or event id. Cheap to clone; ordered by bytes.
pub type Id = std::sync::Arc<str>;

/// Event-time in milliseconds. Before the first event every maximum is [`NO_TIME`].
pub type Millis = i64;

/// 1900-01-01T00:00:00Z, the first event time that is read.
///
/// No real event is older or younger than these bounds, and sums of a time within them and of windows
/// stay far from the ends of i64.
pub const EARLIEST: Millis = -2_208_988_800_000;

/// 2200-01-01T00:00:00Z, the first event time that isn't read any more.
pub const LATEST: Millis = 7_258_118_400_000;

/// Whether a time that a producer wrote is one that is read: from [`EARLIEST`], below [`LATEST`].
pub fn is_plausible(time: Millis) -> bool {
    (EARLIEST..LATEST).contains(&time)
}

/// The value of a partition maximum and of the event clock before the first event.
pub const NO_TIME: Millis = i64::MIN;
