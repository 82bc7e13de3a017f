//! The ICT module: from a sample and its demonstrations to one vector of d values.
//!
//! ```text
//! user, history ── user part ─┐
//!                             ├─ join ── x_q ───────────────┐
//! item ─────────── item part ─┘                             ├─ decode ── vector
//! demonstrations ── (x, c, y) each, once ── prefix (K, V) ──┘
//! ```
//!
//! `weights` is the file, `tokens` is what the decoder reads, `decoder` the two layers of causal
//! attention, `kernel` the arithmetic.
//!
//! **A pure function.** A vector depends on the weights, the sample and the ordered demonstrations,
//! and on nothing else: not on the other rows of a batch, what was kept from before, the number of
//! threads, vector width or the system's maths library. So a replay, a batch recomputation and the
//! oracle find the bits that were published. Against an independent program in double precision
//! (`golden/ict.py`) it is within 1e-5.
//!
//! **What to keep.** An [`ItemRows`] and an [`ItemPart`] per item, a [`UserPart`] per live user, the
//! [`DemonstrationTokens`] per demonstration, a [`Prefix`] per ordered list where many pairs share
//! one. All are tied to one weights version.

mod decoder;
mod kernel;
mod tokens;
mod weights;

#[cfg(test)]
mod tests;

pub use decoder::{DemonstrationTokens, Prefix};
pub use tokens::{ItemPart, ItemRows, Sample, UserPart};
pub use weights::{
    FIELDS, HEADS, LAYERS, MAX_DEMONSTRATIONS, SAMPLE_HIDDEN, Shape, TEXT_HIDDEN, Weights, WeightsError,
    untrained,
};
