//! Neighbours: labelled examples as the sources `same_item` and `same_user` keep them, and their votes.
//!
//! Both sources ask what was said of *this* item by others, and by *this* user of others. They need no
//! history and no text of an example, so a compact form travels: who, what, when, which label.

use crate::example::{Example, Verdict};
use crate::framing::Frame;
use crate::history::{Entry, Identity, Label};
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What stands for 1 in rates, residuals and label centres.
pub const RATE_ONE: i32 = 1_024;

/// The label centre of a catalog of which nothing is known: one half.
pub const LABEL_CENTRE: i32 = RATE_ONE / 2;

/// The components of a sketch, and the bits of an id's signs.
pub const SKETCH_WIDTH: usize = 1_024;

/// R: how many labelled examples of an item and of a user are looked at.
pub const RING: usize = 128;
/// M: how many of them are selected and vote.
pub const SELECTED: usize = 32;
/// How long sketches stand still, milliseconds of event time: one hour.
pub const SKETCH_PERIOD_MS: Millis = 3_600_000;

/// The values that a job or a training may set; all else about neighbours is constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Neighbourhood {
    /// R.
    pub ring: usize,
    /// M.
    pub selected: usize,
    /// How long sketches stand still, milliseconds; 0 lets every label count at once.
    pub sketch_period_ms: Millis,
    /// What a label is compared with in sketches, in 1/1024: the base rate where few labels are positive.
    pub label_centre: i32,
}

impl Default for Neighbourhood {
    fn default() -> Self {
        Neighbourhood {
            ring: RING,
            selected: SELECTED,
            sketch_period_ms: SKETCH_PERIOD_MS,
            label_centre: LABEL_CENTRE,
        }
    }
}

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
    /// How often the user said yes before, by the example's history: [`rate`]. Neither sketches nor votes
    /// read it.
    pub rate: i32,
    /// The user's partition, whose maximum says when the example is final.
    pub partition: u32,
    /// The id under which `features` names it: [`neighbour_id`]. Follows from the identity.
    pub id: Uuid,
}

/// The id of an example on `features`: UUIDv5(UUIDv5(URL, `ictflow:example`), framed (user_id, event_time,
/// event_id)). It says nothing of the user to whom doesn't know the identity.
pub fn neighbour_id(identity: &Identity) -> Uuid {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"ictflow:example");
    Uuid::new_v5(&namespace, &identity.frame().into_bytes())
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
            rate: rate(&example.history),
            partition: example.partition,
            id: neighbour_id(&example.identity),
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

/// How often a user says yes, by the labels of a history: [`rate_of`] its positive and negative entries.
pub fn rate(history: &[Entry]) -> i32 {
    let count = |label| history.iter().filter(|entry| entry.label == label).count() as i64;
    let positives = count(Label::Positive);
    rate_of(positives, positives + count(Label::Negative))
}

/// The rate of p positive ones among n labels: ⌊1024 (p + 1) / (n + 2)⌋. One half where there is no label;
/// below 1024, and above 0 up to 1,022 labels.
pub fn rate_of(positives: i64, labels: i64) -> i32 {
    // A fraction of RATE_ONE below one.
    (i64::from(RATE_ONE) * (positives + 1)).div_euclid((labels + 2).max(1)) as i32
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

/// What others said of an item: exact sums, y the label, w the weight by similarity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemVotes {
    /// n: how many labels the item's ring has, the user's own left out.
    pub ring: i64,
    /// p: how many of them are positive.
    pub ring_positives: i64,
    /// m: how many neighbours were selected.
    pub selected: i64,
    /// Σ y over the selected.
    pub positives: i64,
    /// Σ w.
    pub weights: i64,
    /// Σ w (2y − 1).
    pub weighted_labels: i64,
}

impl ItemVotes {
    /// n; (2p − n) / 2(n + 2), the ring's rate less one half; (2Σy − m) / 2m, the mean label less one half;
    /// Σw(2y − 1) / 2Σw, the weighted one. 0 where a divisor is.
    pub fn numbers(&self) -> [f32; 4] {
        [
            self.ring as f32,
            quotient(2 * self.ring_positives - self.ring, 2 * (self.ring + 2)),
            quotient(2 * self.positives - self.selected, 2 * self.selected),
            quotient(self.weighted_labels, 2 * self.weights),
        ]
    }
}

/// What a user said of other items: exact sums, y the label, w the weight by similarity, d the label less
/// the item's rate, in units of 1/1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserVotes {
    /// m: how many neighbours were selected.
    pub selected: i64,
    /// Σ y.
    pub positives: i64,
    /// Σ w.
    pub weights: i64,
    /// Σ w (2y − 1).
    pub weighted_labels: i64,
    /// Σ d.
    pub deviations: i64,
    /// Σ w d.
    pub weighted_deviations: i64,
}

impl UserVotes {
    /// m; (2Σy − m) / 2m, the mean label less one half; Σw(2y − 1) / 2Σw, the weighted one;
    /// Σd / 1024m; Σwd / 1024Σw. 0 where a divisor is.
    pub fn numbers(&self) -> [f32; 5] {
        [
            self.selected as f32,
            quotient(2 * self.positives - self.selected, 2 * self.selected),
            quotient(self.weighted_labels, 2 * self.weights),
            quotient(self.deviations, i64::from(RATE_ONE) * self.selected),
            quotient(self.weighted_deviations, i64::from(RATE_ONE) * self.weights),
        ]
    }
}

/// How many numbers the votes of both sources are.
pub const VOTES: usize = 9;

/// The votes of both sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Votes {
    /// Of `same_item`.
    pub same_item: ItemVotes,
    /// Of `same_user`.
    pub same_user: UserVotes,
}

impl Votes {
    /// The nine votes as numbers, those of `same_item` first. Counts come as they are.
    pub fn numbers(&self) -> [f32; VOTES] {
        let ([a, b, c, d], [e, f, g, h, i]) = (self.same_item.numbers(), self.same_user.numbers());
        [a, b, c, d, e, f, g, h, i]
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
    }

    #[test]
    fn votes_of_nobody_and_of_the_weightless_are_zeros() {
        assert_eq!(Votes::default().numbers(), [0.0; 9]);
        let weightless = UserVotes { selected: 2, positives: 2, deviations: 1_024, ..UserVotes::default() };
        assert_eq!(weightless.numbers(), [2.0, 0.5, 0.0, 0.5, 0.0]);
        let unselected = ItemVotes { ring: 2, ring_positives: 2, ..ItemVotes::default() };
        assert_eq!(unselected.numbers(), [2.0, 0.25, 0.0, 0.0]);
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
            rate: 512,
            partition: 0,
            id: Uuid::nil(),
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
