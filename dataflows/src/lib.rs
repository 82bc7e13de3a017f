//! Assembly of ictflow: the graph, the jobs, the one binary.

pub mod engine;
pub mod epochs;
pub mod job;
pub mod names;
pub mod pipeline;
pub mod requester;
pub mod sink;
pub mod sources;
pub mod tail;
pub mod texts;
