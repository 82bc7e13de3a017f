//! What the tests run against. A thing that is missing on the machine fails the test with one
//! line that says what to install; nothing is skipped.

pub mod kafka;
