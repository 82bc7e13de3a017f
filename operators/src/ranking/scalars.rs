//! The scalars that rankers read beside ids, texts and the vector: of a user's own labels and of the votes.
//!
//! Training makes them of a data set, a consumer of the records of `features`: both by these two functions, so
//! that a ranker is served what it was trained on. Counts n come as L2(1 + n) / 8.

use crate::ict::count_scalar;
use ictflow_schemas::neighbour::{RATE_ONE, VOTES, rate_of};

/// Scalars of the user's own labels: their shrunk rate less one half, and their number.
pub const LABEL_SCALARS: usize = 2;

/// The places of the two counts among the votes: labels of the item's ring, selected of the user's.
const COUNTS: [usize; 2] = [0, 4];

/// What labels of a user say, of which so many are positive: the rate of positive ones, shrunk to one half and
/// less one half, and their number.
pub fn label_scalars(positive: i64, labels: i64) -> [f32; LABEL_SCALARS] {
    [rate_of(positive, labels) as f32 / RATE_ONE as f32 - 0.5, count_scalar(labels.unsigned_abs())]
}

/// The votes as scalars: the two counts as such, the others as they are.
pub fn vote_scalars(mut votes: [f32; VOTES]) -> [f32; VOTES] {
    for place in COUNTS {
        // A count is a whole number, and not below zero.
        votes[place] = count_scalar(votes[place].max(0.0) as u64);
    }
    votes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_logarithms_and_the_rest_stays() {
        let votes = [15.0, 0.25, -0.5, 0.5, 1.0, 0.125, -0.25, 0.75, -0.75];
        assert_eq!(vote_scalars(votes), [0.5, 0.25, -0.5, 0.5, 0.125, 0.125, -0.25, 0.75, -0.75]);
        assert_eq!(vote_scalars([0.0; VOTES]), [0.0; VOTES]);
        assert_eq!(label_scalars(0, 0), [0.0, 0.0]);
        assert_eq!(label_scalars(1, 1), [682.0 / 1_024.0 - 0.5, 0.125]);
    }
}
