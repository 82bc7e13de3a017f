//! The configuration file: raw as it is written, checked as it is used.

pub mod checked;
pub(crate) mod generators;
#[cfg(test)]
mod limits;
pub mod parse;
pub mod raw;
