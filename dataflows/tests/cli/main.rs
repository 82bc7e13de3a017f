//! The command line, by the binary itself.
#![allow(clippy::unwrap_used)]

mod backfill;
mod check;
mod cluster;
mod consistency;
mod cots;
mod dead_letters;
mod demo;
mod evaluate;
mod explain;
mod export;
mod files;
mod rank;
mod signals;
mod support;
mod tail;
mod train;
