//! The reference consumer of the feature topic: `ictflow rank`.
//!
//! ```text
//! epochs ── which topic? ──┐
//! features ── view ────────┼── score (a trained ranker) ── ranking ──┬── print
//! items, embeddings ── catalog ──┘                                   └── publish
//! ```
//!
//! `subscription` follows the topics, committed records only. `view` keeps the newest vector of each live pair,
//! `catalog` what a ranker reads of items; `ranker` is the trained file, `score` makes its inputs and the
//! logits, `ranking` the list of a user. `prequential` scores labelled events with the vectors of before their
//! labels, and measures.
//!
//! Ages are read off the wall clock: they are for people, and no score depends on them.

pub mod catalog;
pub mod followed;
pub mod prequential;
pub mod print;
pub mod publish;
pub mod ranker;
pub mod ranking;
pub mod score;
pub mod shortfalls;
pub mod subscription;
pub mod view;

#[cfg(test)]
mod tests;
