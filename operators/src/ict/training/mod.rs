//! The ICT module as training sees it: the same formulas as `ict`, on candle, with gradients.
//!
//! ```text
//! Samples ── sample_token ── x_q ──┬─ decode ── vector, and r_k for the reconstruction loss
//! Demonstrations ── x, c, y ───────┘
//!                            x_q ──┬─ attend ── vector
//! Parties, Neighbours ─────────────┘
//! ```
//!
//! A [`Module`] is a set of variables under the names of `schemas/weights.md`; its methods are the
//! forward passes of a batch. Ids are compact: rows of tables that hold what the data set has. A
//! [`HashedRows`] leads from them to the rows of the file. Serving agrees within 1e-5.
//!
//! **Gradients.** Fused operations of candle-nn (`softmax_last_dim`, `rms_norm`, `rope_i`) stop the
//! gradient without a word, so none is used here; tests look at every variable. Row 0 of a table
//! stands for an absent id. The forward passes read it like any other row, so an optimiser has to
//! drop its gradient: [`Module::is_table`] says where.
//!
//! **Bits.** Matrix products are the library's. They are the same for the same seed, batch and
//! machine, and differ in last bits where the batch does. What is published comes from `ict` alone.

mod attention;
mod decoder;
mod layers;
mod module;
mod reconstruction;
mod rows;
mod samples;

#[cfg(test)]
mod tests;

pub use attention::{Neighbours, Parties};
pub use decoder::{Decoded, Demonstrations};
pub use module::{Architecture, Module};
pub use reconstruction::cosine_loss;
pub use rows::{HashedRows, TableRows};
pub use samples::Samples;

use super::WeightsError;

/// Why a module can't be made, run or saved.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The tensor library refused an operation.
    #[error(
        "the tensors of a batch don't fit: {0} (hint: ids must be below the rows of their table, shapes as documented)"
    )]
    Tensor(#[from] candle_core::Error),
    /// A file of weights is refused.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A variable isn't part of this architecture.
    #[error(
        "the architecture {architecture:?} has no variable `{name}` (hint: use the pass of its own kind)"
    )]
    Variable {
        /// The architecture.
        architecture: Architecture,
        /// The variable's name.
        name: String,
    },
    /// No kernel serves the architecture.
    #[error(
        "the architecture {architecture:?} can't be served, so it has no file (hint: it is for comparison; train `Decoder` or `Attention`)"
    )]
    NotServed {
        /// The architecture.
        architecture: Architecture,
    },
    /// Compact and hashed rows don't belong together.
    #[error("the rows of table `{table}` {problem} (hint: make them from the ids of the data set)")]
    Rows {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        problem: String,
    },
}
