//! The end-to-end tests: one binary.
#![allow(clippy::unwrap_used)]

mod backfill;
mod bad_input;
mod chaos;
mod consistency;
mod dead_letters;
mod economy;
mod endpoint;
mod erasure;
mod explain;
mod export;
mod generator;
mod kafka_job;
mod kafka_topics;
mod limits;
mod models;
mod parity;
mod qdrant_job;
mod qdrant_points;
mod rank;
mod registry;
mod rescale;
mod snapshots;
mod telemetry;
mod verify;
