//! Neighbours: labelled examples as the sources `same_item` and `same_user` keep them, and their votes.
//!
//! Both sources ask what was said of *this* item by others, and by *this* user of others. They need no
//! history and no text of an example, so a compact form travels: who, what, when, which label, and
//! how far the label was from what this user mostly says.

use crate::example::{Example, Verdict};
use crate::framing::Frame;
use crate::history::{Entry, Identity, Label};
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};

/// What stands for 1 in rates and residuals.
pub const RATE_ONE: i32 = 1_024;

/// The components of a sketch, and the bits of an id's signs.
pub const SKETCH_WIDTH: usize = 1_024;

/// A labelled example without its history.
///
/// The derived order is "newer": greater (label_time, event_time, user, event_id), ids by bytes. The
/// last three are the identity, so no two examples of a collection are equal in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LabelledExample {
    /// When the label was known.
    pub label_time: Millis,
    /// When it happened.
    pub event_time: Millis,
    /// The user.
    pub user: Id,
    /// The producer's id of the event.
    pub event_id: Id,
    /// The item.
    pub item: Id,
    /// The label; an implicit negative is told from an explicit one.
    pub verdict: Verdict,
    /// The label in units of 1/[`RATE_ONE`] less the user's [`rate`] at that time.
    pub residual: i32,
    /// The user's partition, whose maximum says when the example is final.
    pub partition: u32,
}

impl LabelledExample {
    /// The compact form of an example.
    pub fn of(example: &Example) -> Self {
        LabelledExample {
            label_time: example.label_time,
            event_time: example.identity.event_time,
            user: example.identity.user.clone(),
            event_id: example.identity.event_id.clone(),
            item: example.item.clone(),
            verdict: example.verdict,
            residual: residual(example.verdict, rate(&example.history)),
            partition: example.partition,
        }
    }

    /// 1 or 0.
    pub fn label(&self) -> i32 {
        self.verdict.value()
    }

    /// The identity of the example.
    pub fn identity(&self) -> Identity {
        Identity { user: self.user.clone(), event_time: self.event_time, event_id: self.event_id.clone() }
    }
}

/// How often a user says yes, by the labels of a history: ⌊1024 (p + 1) / (p + n + 2)⌋ with p positive
/// and n negative entries. One half where there is no label. Within 1..1023.
pub fn rate(history: &[Entry]) -> i32 {
    let count = |label| history.iter().filter(|entry| entry.label == label).count() as i64;
    let (positive, negative) = (count(Label::Positive), count(Label::Negative));
    // A fraction of RATE_ONE below one.
    (i64::from(RATE_ONE) * (positive + 1) / (positive + negative + 2)) as i32
}

/// The residual of a label: 1024 · label − rate.
pub fn residual(verdict: Verdict, rate: i32) -> i32 {
    RATE_ONE * verdict.value() - rate
}

/// The signs of an id in a table, `user` or `item`: bit 1 is +1, bit 0 is −1; byte 0 first, in a byte the
/// least significant bit first.
///
/// The first 1,024 bits of BLAKE3's extended output over the framed (`sketch`, table, id).
pub fn signs(table: &str, id: &str) -> [u8; SKETCH_WIDTH / 8] {
    let mut bits = [0; SKETCH_WIDTH / 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&Frame::new().text("sketch").text(table).text(id).into_bytes());
    hasher.finalize_xof().fill(&mut bits);
    bits
}

/// What the selected neighbours of one source say: exact sums over them, y the label, r the residual, w
/// the weight by similarity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Votes {
    /// How many neighbours there are.
    pub count: i64,
    /// Σ y.
    pub positives: i64,
    /// Σ r.
    pub residuals: i64,
    /// Σ w.
    pub weights: i64,
    /// Σ w y.
    pub weighted_positives: i64,
    /// Σ w r.
    pub weighted_residuals: i64,
}

impl Votes {
    /// The mean label, less one half.
    pub fn mean_label(&self) -> f32 {
        quotient(2 * self.positives - self.count, 2 * self.count)
    }

    /// The mean residual, where 1 is a label.
    pub fn mean_residual(&self) -> f32 {
        quotient(self.residuals, i64::from(RATE_ONE) * self.count)
    }

    /// The weighted mean label, less one half.
    pub fn weighted_label(&self) -> f32 {
        quotient(2 * self.weighted_positives - self.weights, 2 * self.weights)
    }

    /// The weighted mean residual, where 1 is a label.
    pub fn weighted_residual(&self) -> f32 {
        quotient(self.weighted_residuals, i64::from(RATE_ONE) * self.weights)
    }

    /// The votes as numbers: count, mean label, mean residual, weighted label, weighted residual. All
    /// zeros where there is no neighbour.
    pub fn numbers(&self) -> [f32; 5] {
        [
            self.count as f32,
            self.mean_label(),
            self.mean_residual(),
            self.weighted_label(),
            self.weighted_residual(),
        ]
    }
}

/// A quotient rounded to f64, then to f32; 0 where the divisor is 0. Both numbers are exact in f64, so
/// the bits are the same everywhere.
fn quotient(dividend: i64, divisor: i64) -> f32 {
    if divisor == 0 { 0.0 } else { (dividend as f64 / divisor as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(labels: &[Label]) -> Vec<Entry> {
        let entry = |label: &Label| Entry {
            event_time: 0,
            event_id: "e".into(),
            item: "i".into(),
            kind: "k".into(),
            label: *label,
        };
        labels.iter().map(entry).collect()
    }

    #[test]
    fn rates_shrink_to_one_half_and_never_reach_the_ends() {
        use Label::{Negative, None, Positive};
        for (labels, expected) in [
            (&[][..], 512),
            (&[None, None], 512),
            (&[Positive], 682),
            (&[Negative], 341),
            (&[Positive, Negative, None], 512),
            (&[Positive; 20], 977),
            (&[Negative; 20], 46),
            (&[Positive; 5_000], 1_023),
        ] {
            assert_eq!(rate(&history(labels)), expected, "{} labels", labels.len());
        }
        assert_eq!(residual(Verdict::Positive, 682), 342);
        assert_eq!(residual(Verdict::Negative, 682), -682);
        assert_eq!(residual(Verdict::ImplicitNegative, 682), -682);
    }

    #[test]
    fn votes_of_nobody_and_of_the_weightless_are_zeros() {
        assert_eq!(Votes::default().numbers(), [0.0; 5]);
        let opposite = Votes { count: 2, positives: 2, residuals: 512, ..Votes::default() };
        assert_eq!(opposite.numbers(), [2.0, 0.5, 0.25, 0.0, 0.0]);
    }

    #[test]
    fn newer_is_by_label_time_then_identity() {
        let example = |label_time, event_time, user: &str, event_id: &str, item: &str| LabelledExample {
            label_time,
            event_time,
            user: user.into(),
            event_id: event_id.into(),
            item: item.into(),
            verdict: Verdict::Positive,
            residual: 0,
            partition: 0,
        };
        let ascending = [
            example(1, 9, "z", "z", "z"),
            example(2, 1, "z", "z", "z"),
            example(2, 2, "a", "z", "z"),
            example(2, 2, "b", "a", "z"),
            example(2, 2, "b", "b", "a"),
        ];
        assert!(ascending.is_sorted_by(|a, b| a < b));
    }
}
