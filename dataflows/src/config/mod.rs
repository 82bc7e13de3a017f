//! The configuration file: raw as it is written, checked as it is used.

pub mod checked;
#[cfg(test)]
mod limits;
pub mod parse;
pub mod raw;
