//! Assembly of ictflow: the graph, the jobs, the one binary.
pub mod engine;
pub mod pipeline;
