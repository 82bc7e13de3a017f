//! The one test binary.

mod kafka_topics;
