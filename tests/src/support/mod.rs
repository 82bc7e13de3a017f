//! What the tests share: worlds replayed through a job, dumps, the independent oracle.

pub mod kafka;
pub mod oracle;
pub mod registry;
pub mod world;
