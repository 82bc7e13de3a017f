//! The configuration file: raw as it is written, checked as it is used.

pub mod checked;
pub mod parse;
pub mod raw;
