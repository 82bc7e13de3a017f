//! The source `same_item`: what other users said of this item, the most similar users first.
//!
//! **Computes**, for a pair of user u and item i at a time: of the ring of i, the newest R labelled
//! examples on i, those of other users; score = cos(S_u, S_v) by the effective sketches of the users,
//! in units of 2^28, 0 where one of the two has none; the best M by (score, newer), nearest last.
//! The ring is cut to R before the user's own are left out.

use super::neighbours::{Neighbour, best};
use super::unit::cosine;
use ictflow_schemas::neighbour::LabelledExample;
use std::sync::Arc;

/// The neighbours of a pair among the ring of its item. `sketch` gives the unit form of a user's
/// effective sketch.
pub fn same_item<'s>(
    user: &str,
    ring: &[Arc<LabelledExample>],
    sketch: impl Fn(&str) -> Option<&'s [i16]>,
    selected: usize,
) -> Vec<Neighbour> {
    let own = sketch(user);
    let others = ring.iter().filter(|example| &*example.user != user);
    best(others.map(|example| (score(own, sketch(&example.user)), example)), selected)
}

/// How similar two users are by their sketches.
#[inline]
pub fn score(user: Option<&[i16]>, other: Option<&[i16]>) -> i64 {
    cosine(user, other)
}
