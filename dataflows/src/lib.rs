//! Assembly of ictflow: the graph, the jobs, the one binary.

pub mod backfill;
pub mod call_times;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod copies;
pub mod demo;
pub mod engine;
pub mod epochs;
pub mod explain;
pub mod filter;
pub mod job;
pub mod keeper;
pub mod names;
pub mod pipeline;
pub mod points;
pub mod progress;
pub mod queue;
pub mod requester;
pub mod sink;
pub mod sources;
pub mod status;
pub mod summary;
pub mod tail;
pub mod texts;
