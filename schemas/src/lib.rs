//! The nouns of ictflow: records of the topics, their keys, digests and pure rules.
//!
//! This crate depends on nothing else of ours and does no I/O. `operators` and `connectors` both
//! speak in these types and never import each other. See `README.md` for the topics' contract.

pub mod candidates;
pub mod catalog;
pub mod config;
pub mod cot;
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
pub mod topic;
pub mod vector;
pub mod wire;

/// A user, item or event id. Cheap to clone; ordered by bytes.
pub type Id = std::sync::Arc<str>;

/// Event-time in milliseconds. Before the first event every maximum is [`NO_TIME`].
pub type Millis = i64;

/// The value of a partition maximum and of the event clock before the first event.
pub const NO_TIME: Millis = i64::MIN;
