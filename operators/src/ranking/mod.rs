//! Ranking: from the ids of a sample, its scalars and its vector to the logit of a positive label.

pub mod ids;
