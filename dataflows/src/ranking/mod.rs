//! Rankers on data sets: made ready, trained, measured.
//!
//! ```text
//! folder ── dataset ──┬── neighbours (as of each example's time) ──┐
//!                     ├── cots ── demonstrations (likewise) ───────┤
//!                     ├── embeddings (one vector a text, cached) ──┼── tensors ── fit ── scores ── evaluate ── table
//!                     └── split, histories ────────────────────────┘      ▲
//!                                              arms, model ───────────────┘
//! ```
//!
//! A data set is read of a folder, or, by `examples`, of what a job published or exported.
//!
//! `arms` says what a model is given, and is the list of a table's rows; `model` puts a backbone and what an
//! arm brings together; `fit` trains one model; `evaluate` trains all of them, cell by cell, and reads finished
//! cells back; `measure` makes a `report` of them, and `table` writes it; `train` trains one and writes the files
//! that serve it. Everything is drawn from seeds, and no figure depends on a clock.

pub mod arms;
pub mod cell;
pub mod cots;
pub mod dataset;
pub mod delay;
pub mod demonstrations;
pub mod embeddings;
pub mod evaluate;
pub mod examples;
pub mod fit;
pub mod measure;
pub mod model;
pub mod neighbours;
pub mod plot;
pub mod progress;
pub mod report;
pub mod table;
pub mod tensors;
pub mod train;

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
