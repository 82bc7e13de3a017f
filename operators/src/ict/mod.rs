//! The ICT module: from a sample and what was retrieved for it to one vector of d values.
//!
//! ```text
//! user, history ── user part ─┐
//!                             ├─ join ── x_q ───────────────┐
//! item ─────────── item part ─┘                             ├─ decode ── vector   (kind `decoder`)
//! demonstrations ── (x, c, y) each, once ── prefix (K, V) ──┘
//!
//!                                     x_q ──────────────────┐
//! neighbours ── user part, item part, label, scalars ───────┴─ attend ── vector   (kind `attention`)
//! ```
//!
//! `shape` is the contract of the weights, `file` reads and checks them, `weights` lays them out;
//! `versions` holds them by version; `tokens` is what both kinds read, `decoder` the two layers of causal
//! attention, `attention` the pooling of neighbours, `kernel` the arithmetic. `training` computes the
//! same, differentiably.
//!
//! **A pure function.** A vector depends on the weights, the sample and the ordered demonstrations or
//! neighbours, and on nothing else: not on the other rows of a batch, what was kept from before, the
//! number of threads, vector width or the system's maths library. So a replay, a batch recomputation
//! and the oracle find the bits that were published. Against independent programs in double precision
//! (`golden/ict.py`, `golden/attention.py`) it is within 1e-5.
//!
//! **What to keep.** An [`ItemRows`] and an [`ItemPart`] per item, a [`UserPart`] per live user, the
//! [`DemonstrationTokens`] per demonstration, a [`Prefix`] per ordered list where many pairs share
//! one; for attention a [`NeighbourUserPart`] per user and a [`NeighbourItemPart`] per item. All are
//! tied to one weights version.

mod attention;
mod decoder;
mod error;
mod file;
mod kernel;
mod shape;
mod tokens;
pub mod training;
mod untrained;
mod versions;
mod weights;

#[cfg(test)]
mod attention_tests;
#[cfg(test)]
mod tests;

pub use attention::{
    NeighbourInput, NeighbourItemPart, NeighbourUserPart, age_scalar, age_units, count_scalar,
    piecewise_log2, residual_scalar, score_scalar,
};
pub use decoder::{DemonstrationTokens, Prefix};
pub use error::WeightsError;
pub use shape::{
    FIELDS, HEADS, Kind, LAYERS, MAX_DEMONSTRATIONS, MAX_NEIGHBOURS, NEIGHBOUR_HIDDEN, SAMPLE_HIDDEN,
    SOURCES, Shape, TEXT_HIDDEN,
};
pub use tokens::{ItemPart, ItemRows, Sample, UserPart};
pub use untrained::{untrained, untrained_of};
pub use versions::{Find, Versions};
pub use weights::Weights;
