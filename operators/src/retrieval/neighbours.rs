//! Neighbours of a pair: what the sources `same_item` and `same_user` share. Their constants, the time
//! rules, the selection.
//!
//! **Time**: as of a time t a source sees the labels with label_time strictly before t, and compares by
//! the sketches that are effective at t: those of the labels with label_time strictly before
//! [`boundary`] (t). Live, t is the event clock; in training it is the example's event_time. A label is
//! never known before its example happened, so nothing can see itself.
//!
//! **Order**: ascending (score, newer), nearest last; newer is the order of [`LabelledExample`]. It is
//! total, so equal scores leave nothing open.

use ictflow_schemas::Millis;
use ictflow_schemas::neighbour::{LabelledExample, Votes};
pub use ictflow_schemas::neighbour::{Neighbourhood, RING, SELECTED, SKETCH_PERIOD_MS};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How many final examples a ring keeps beyond [`RING`], against erasures.
pub const SPARE: usize = 32;

/// The norm of a unit form is 2 to this power, so a cosine is in units of 2^28.
pub const UNIT_BITS: u32 = 14;

/// How much a cosine of sketches counts in `same_user`, where a cosine of texts counts 1. The score is
/// their sum halved: see [`super::same_user`].
pub const SKETCH_SHARE: i64 = 2;

/// A weight is squared in units of 2 to minus this power, its last time without a shift: see
/// [`super::votes`].
pub const WEIGHT_BITS: u32 = 15;

/// B(t): the last multiple of the period that isn't after `time`, or `time` itself where the period is
/// 0. Sketches effective at `time` hold the labels strictly before it.
pub fn boundary(time: Millis, period: Millis) -> Millis {
    if period <= 0 { time } else { time.div_euclid(period).saturating_mul(period) }
}

/// A labelled example with its score for one pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Neighbour {
    /// How near it is. First field: the derived order is that of the selection.
    pub score: i64,
    /// The example.
    pub example: Arc<LabelledExample>,
}

/// What both sources say of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sources {
    /// What others said of the item: the selected, ascending, nearest last.
    pub same_item: Vec<Neighbour>,
    /// What the user said of other items, likewise.
    pub same_user: Vec<Neighbour>,
    /// What they vote.
    pub votes: Votes,
}

/// The best `selected` of scored examples, ascending, nearest last. At most that many and whatever
/// was given is held.
pub fn best<'a>(
    scored: impl Iterator<Item = (i64, &'a Arc<LabelledExample>)>,
    selected: usize,
) -> Vec<Neighbour> {
    let mut scored: Vec<(i64, &Arc<LabelledExample>)> = scored.collect();
    let surplus = scored.len().saturating_sub(selected);
    if surplus > 0 && surplus < scored.len() {
        scored.select_nth_unstable(surplus);
    }
    scored.drain(..surplus);
    scored.sort_unstable();
    scored.into_iter().map(|(score, example)| Neighbour { score, example: example.clone() }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ictflow_schemas::example::Verdict;

    /// A labelled example; what isn't named follows from `id`.
    pub(crate) fn labelled(
        user: &str,
        item: &str,
        event_time: Millis,
        label_time: Millis,
        id: usize,
    ) -> Arc<LabelledExample> {
        let verdict = [Verdict::Positive, Verdict::Negative, Verdict::ImplicitNegative][id * 7 % 3];
        Arc::new(LabelledExample {
            label_time,
            event_time,
            user: user.into(),
            event_id: format!("e{id}").into(),
            item: item.into(),
            verdict,
            rate: 46 + (id * 977 % 930) as i32,
            partition: 0,
            id: uuid::Uuid::from_u128(id as u128),
        })
    }

    #[test]
    fn boundaries_are_multiples_at_or_before_the_time() {
        for (time, period, expected) in [
            (0, 10, 0),
            (9, 10, 0),
            (10, 10, 10),
            (-1, 10, -10),
            (-10, 10, -10),
            (7, 0, 7),
            (7, 1, 7),
            (ictflow_schemas::NO_TIME, 10, ictflow_schemas::NO_TIME),
            (ictflow_schemas::NO_TIME, 0, ictflow_schemas::NO_TIME),
        ] {
            assert_eq!(boundary(time, period), expected, "{time} by {period}");
        }
    }
}
