//! Ranking: data sets and their splits, backbones, metrics.

pub mod bootstrap;
pub mod draws;
pub mod histories;
pub mod metrics;
pub mod segments;
pub mod split;
