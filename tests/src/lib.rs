//! Support of the end-to-end tests.
#![allow(clippy::unwrap_used)]

pub mod support;
