//! The votes of a source: what its selected neighbours say, as exact sums.
//!
//! **Computes** the weight of a score s (units of 2^28) as ((1 + s) / 2)^4 in units of 2^15:
//! b = 2^14 + ⌊s / 2^14⌋, held within 0..2^15, then twice b ← ⌊b² / 2^15⌋. So opposites say nothing,
//! and strangers (s = 0) a sixteenth of what the nearest say. The sums are those of [`Votes`].

use super::neighbours::{Neighbour, UNIT_BITS, WEIGHT_BITS, WEIGHT_SQUARINGS};
use ictflow_schemas::neighbour::Votes;

/// The weight of a score, 0..2^15.
pub fn weight(score: i64) -> i64 {
    let one = 1 << WEIGHT_BITS;
    let base = ((1 << UNIT_BITS) + score.div_euclid(1 << UNIT_BITS)).clamp(0, one);
    (0..WEIGHT_SQUARINGS).fold(base, |weight, _| (weight * weight) >> WEIGHT_BITS)
}

/// The votes of neighbours.
pub fn votes(neighbours: &[Neighbour]) -> Votes {
    let mut votes = Votes::default();
    for Neighbour { score, example } in neighbours {
        let (weight, label, residual) =
            (weight(*score), i64::from(example.label()), i64::from(example.residual));
        votes.count += 1;
        votes.positives += label;
        votes.residuals += residual;
        votes.weights += weight;
        votes.weighted_positives += weight * label;
        votes.weighted_residuals += weight * residual;
    }
    votes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_rise_with_the_score_and_are_held_within_their_range() {
        let one = 1 << 28;
        for (score, expected) in [
            (-one, 0),
            (-3 * one, 0),
            (0, 2_048),
            (-1, 2_047),
            (one / 2, 10_368),
            (one, 32_768),
            (3 * one / 2, 32_768),
            (i64::MIN, 0),
            (i64::MAX, 32_768),
        ] {
            assert_eq!(weight(score), expected, "of {score}");
        }
    }
}
