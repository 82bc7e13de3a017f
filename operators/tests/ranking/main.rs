//! Metrics, bootstrap, splits and histories of rankers: against scikit-learn's numbers, and against their
//! definitions.
#![allow(clippy::unwrap_used)]

mod metrics;
mod splits;
