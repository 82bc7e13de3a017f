//! Segments of samples: warm and cold users, tail and new items.
//!
//! **Computes**, for every sample, from what a split shows:
//! * the length of its history, at most L;
//! * whether its user has a training sample;
//! * whether its item is *new* (no training row), of the *tail*, or of the *head*. Items are ranked by
//!   their training rows, drawn negatives not counted; items with equal counts stay together. The tail are
//!   those with at most c rows, c the greatest count for which they are at most a fifth of the items
//!   with a training row; where even the items of the least count are more, they are the tail.
//! * how many visible labelled rows on its item have a time strictly before its own: whether the item's
//!   ring of examples is empty.

use super::histories::Histories;
use super::split::{Sample, Split};
use ictflow_schemas::dataset::Dataset;

/// What the training rows say of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// None is on it.
    New,
    /// Few.
    Tail,
    /// More.
    Head,
}

/// Where a sample belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Entries of its history.
    pub history: u32,
    /// Whether its user has a training sample.
    pub trained_user: bool,
    /// What its item is.
    pub item: ItemKind,
    /// Visible labelled rows on the item, strictly before.
    pub earlier: u32,
}

/// A segment's name in tables, and which samples are in it.
pub type Slice = (&'static str, fn(&Segment) -> bool);

/// The segments that evaluations report. They overlap.
pub const SLICES: [Slice; 11] = [
    ("all", |_| true),
    ("history 0", |segment| segment.history == 0),
    ("history < 3", |segment| segment.history < 3),
    ("history >= 3", |segment| segment.history >= 3),
    ("users not in training", |segment| !segment.trained_user),
    ("users in training", |segment| segment.trained_user),
    ("new items", |segment| segment.item == ItemKind::New),
    ("tail items", |segment| segment.item == ItemKind::Tail),
    ("head items", |segment| segment.item == ItemKind::Head),
    ("items without a label yet", |segment| segment.earlier == 0),
    ("items with a label", |segment| segment.earlier > 0),
];

/// The greatest count of a tail item: see the module.
fn tail_bound(counts: &[u32]) -> u32 {
    let mut sorted: Vec<u32> = counts.iter().copied().filter(|&count| count > 0).collect();
    sorted.sort_unstable();
    let fifth = sorted.len() / 5;
    match (sorted.get(fifth), sorted.first()) {
        // The first that doesn't fit into a fifth, with all of its count, stays out.
        (Some(&beyond), Some(&least)) if beyond > least => beyond - 1,
        (_, Some(&least)) => least,
        _ => 0,
    }
}

/// The segments of samples, in their order.
pub fn segments(data: &Dataset, split: &Split, histories: &Histories, samples: &[Sample]) -> Vec<Segment> {
    let rows = data.rows();
    let mut trained = vec![false; data.users().len()];
    let mut counts = vec![0_u32; data.items().len()];
    for sample in &split.train {
        trained[rows[sample.row as usize].user as usize] = true;
        counts[sample.item as usize] += u32::from(!sample.is_drawn(data));
    }
    let bound = tail_bound(&counts);
    let kind = |item: u32| match counts[item as usize] {
        0 => ItemKind::New,
        count if count <= bound => ItemKind::Tail,
        _ => ItemKind::Head,
    };
    let segment = |sample: &Sample| Segment {
        history: histories.before(sample.row).len() as u32,
        trained_user: trained[rows[sample.row as usize].user as usize],
        item: kind(sample.item),
        earlier: 0,
    };
    let mut segments: Vec<Segment> = samples.iter().map(segment).collect();
    // Samples by row, since a walk over the rows counts what is before each.
    let mut order: Vec<u32> = (0..samples.len() as u32).collect();
    order.sort_unstable_by_key(|&at| samples[at as usize].row);
    let mut labelled = vec![0_u32; data.items().len()];
    let (mut first, mut next) = (0_usize, 0_usize);
    for same_time in rows.chunk_by(|a, b| a.time == b.time) {
        let end = first + same_time.len();
        while let Some(&at) = order.get(next).filter(|&&at| (samples[at as usize].row as usize) < end) {
            segments[at as usize].earlier = labelled[samples[at as usize].item as usize];
            next += 1;
        }
        for (row, visible) in same_time.iter().zip(&split.visible[first..end]) {
            labelled[row.item as usize] += u32::from(*visible && row.example);
        }
        first = end;
    }
    segments
}
