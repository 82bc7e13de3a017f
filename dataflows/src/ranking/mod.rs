//! Rankers on data sets: made ready, trained, measured.
//!
//! ```text
//! folder ── dataset ──┬── neighbours (as of each example's time) ──┐
//!                     ├── embeddings (one vector a text, cached) ──┼── tensors ── fit ── scores ── evaluate ── table
//!                     └── split, histories ────────────────────────┘      ▲
//!                                              arms, model ───────────────┘
//! ```
//!
//! `arms` says what a model is given, and is the list of a table's rows; `model` puts a backbone and what an
//! arm brings together; `fit` trains one model; `evaluate` trains and measures all of them, cell by cell, and
//! reads finished cells back. Everything is drawn from seeds, and no figure depends on a clock.

pub mod arms;
pub mod cell;
pub mod dataset;
pub mod embeddings;
pub mod evaluate;
pub mod fit;
pub mod model;
pub mod neighbours;
pub mod progress;
pub mod table;
pub mod tensors;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod world;

use ictflow_connectors::Error;

/// A failure of a training or an evaluation. Errors of rankers, splits and metrics say themselves what would
/// help; what is left to say is that nothing is lost.
pub(crate) fn failed(context: impl Into<String>, error: impl ToString) -> Error {
    Error::fatal(context, error, "finished cells are kept: the same command goes on after them")
}
