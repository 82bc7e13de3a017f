//! CoT texts for the training examples of a data set: asked, kept, judged, read back.
//!
//! ```text
//! data set ── examples (in the order of asking) ── asking ──▶ log ──┬── texts (by sample, for rankers)
//!                                                  ▲  budget        └── judge ── quality ── report
//!                                       generator ─┘
//! ```
//!
//! `ictflow cots` is no part of a job, but asks as one does: the same prompt view and content key, the same
//! attempts and validation. So an answer is one for the job too, and the log's lines are records of `cot`.
//! Only samples of the training part are asked, for a prompt states the label. Texts name what persons
//! watched: they stay in the log, in the cache folder, and no part of one is printed.

pub mod asking;
pub mod examples;
pub mod judge;
pub mod log;
pub mod quality;
pub mod report;
pub mod texts;

#[cfg(test)]
mod tests;
