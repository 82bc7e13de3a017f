//! The end-to-end tests: one binary.
#![allow(clippy::unwrap_used)]

mod economy;
mod generator;
mod kafka_job;
mod kafka_topics;
mod parity;
mod registry;
