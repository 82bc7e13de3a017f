//! The votes of both sources: what rings and selected neighbours say, as exact sums.
//!
//! **Computes** the weight of a score s (units of 2^28) as ((1 + s) / 2)^8 in units of 2^30:
//! x = 2^14 + ⌊s / 2^14⌋, held within 0..2^15, twice x ← ⌊x² / 2^15⌋, and x². So opposites say nothing, and
//! strangers (s = 0) a 256th of what the nearest say. The sums are those of [`ItemVotes`] and
//! [`UserVotes`].

use super::neighbours::{Neighbour, UNIT_BITS, WEIGHT_BITS};
use ictflow_schemas::neighbour::{ItemVotes, LabelledExample, RATE_ONE, UserVotes};

/// The weight of a score, 0..2^30.
pub fn weight(score: i64) -> i64 {
    let base = ((1 << UNIT_BITS) + score.div_euclid(1 << UNIT_BITS)).clamp(0, 1 << WEIGHT_BITS);
    let square = (base * base) >> WEIGHT_BITS;
    let fourth = (square * square) >> WEIGHT_BITS;
    fourth * fourth
}

/// What others say of an item: the labels of its ring, the user's own left out, and the selected of them.
pub fn item_votes<'a>(ring: impl Iterator<Item = &'a LabelledExample>, selected: &[Neighbour]) -> ItemVotes {
    let mut votes = ItemVotes::default();
    for example in ring {
        votes.ring += 1;
        votes.ring_positives += i64::from(example.label());
    }
    for Neighbour { score, example } in selected {
        let (weight, label) = (weight(*score), i64::from(example.label()));
        votes.selected += 1;
        votes.positives += label;
        votes.weights += weight;
        votes.weighted_labels += weight * (2 * label - 1);
    }
    votes
}

/// What a user says of other items. `rate` gives the rate of an item's effective labels, in 1/1024.
pub fn user_votes(selected: &[Neighbour], rate: impl Fn(&str) -> i32) -> UserVotes {
    let mut votes = UserVotes::default();
    for Neighbour { score, example } in selected {
        let (weight, label) = (weight(*score), i64::from(example.label()));
        let deviation = i64::from(RATE_ONE) * label - i64::from(rate(&example.item));
        votes.selected += 1;
        votes.positives += label;
        votes.weights += weight;
        votes.weighted_labels += weight * (2 * label - 1);
        votes.deviations += deviation;
        votes.weighted_deviations += weight * deviation;
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
            (0, 1 << 22),
            (-1, 2_047 * 2_047),
            (one / 2, 10_368 * 10_368),
            (one, 1 << 30),
            (3 * one / 2, 1 << 30),
            (i64::MIN, 0),
            (i64::MAX, 1 << 30),
        ] {
            assert_eq!(weight(score), expected, "of {score}");
        }
    }
}
