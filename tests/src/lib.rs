//! End-to-end tests of ictflow: what they share. The tests themselves are in `tests/suite`, one
//! binary.

pub mod support;
