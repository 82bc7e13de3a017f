//! The source `same_user`: what this user said of other items, the most similar items first.
//!
//! **Computes**, for a pair of user u and item i at a time: of the ring of u, the newest R labelled
//! examples of u, those on other items; score = ⌊(2 cos(S_i, S_j) + cos(c_i, c_j)) / 2⌋ with S the
//! effective sketches of the items and c their centred texts, in units of 2^28; a cosine is 0 where one
//! of the two is missing; the best M by (score, newer), nearest last.
//! The ring is cut to R before those on the item are left out.

use super::neighbours::{Neighbour, SKETCH_SHARE, best};
use super::unit::cosine;
use ictflow_schemas::neighbour::LabelledExample;
use std::sync::Arc;

/// What an item is compared by: unit forms of its effective sketch and of its centred text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Item<'s> {
    /// The sketch.
    pub sketch: Option<&'s [i16]>,
    /// The text.
    pub text: Option<&'s [i16]>,
}

/// The neighbours of a pair among the ring of its user. `known` gives what an item is compared by.
pub fn same_user<'s>(
    item: &str,
    ring: &[Arc<LabelledExample>],
    known: impl Fn(&str) -> Item<'s>,
    selected: usize,
) -> Vec<Neighbour> {
    let own = known(item);
    let others = ring.iter().filter(|example| &*example.item != item);
    best(others.map(|example| (score(own, known(&example.item)), example)), selected)
}

/// How similar two items are by sketches and texts.
#[inline]
pub fn score(item: Item, other: Item) -> i64 {
    let sketches = SKETCH_SHARE * cosine(item.sketch, other.sketch);
    (sketches + cosine(item.text, other.text)).div_euclid(2)
}
