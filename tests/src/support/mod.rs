//! What the tests share: worlds replayed through a job, dumps, the independent oracle.

pub mod chaos;
pub mod child;
pub mod disturbed;
pub mod endpoint;
pub mod hosts;
pub mod http;
pub mod kafka;
pub mod oracle;
pub mod program;
pub mod qdrant;
pub mod registry;
pub mod simulated;
pub mod stream;
pub mod transactions;
pub mod verifier;
pub mod world;
