//! The end-to-end tests: one binary.
#![allow(clippy::unwrap_used)]

mod parity;
