//! Where demonstrations stand as points outside the dataflow, behind one trait.
//!
//! The dataflow is the source of truth: a store of points can be filled anew from it at any time.
//! A store answers lookups with candidates; the dataflow drops ids it doesn't know and scores the rest
//! with exact integers.

use crate::{Error, Result};
use ictflow_schemas::Millis;
use std::collections::BTreeMap;
use uuid::Uuid;

/// A demonstration as a point.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The point id.
    pub id: Uuid,
    /// a_c ++ b_c: the mean of the history's vectors, then the item's vector.
    pub sample: Vec<f32>,
    /// The vector of the CoT's text.
    pub cot: Vec<f32>,
    /// The user.
    pub user: String,
    /// The item.
    pub item: String,
    /// Whether the label is 1.
    pub positive: bool,
    /// When the label was known.
    pub label_time: Millis,
    /// Ids of the history's items, oldest first.
    pub history: Vec<String>,
    /// The item's creator.
    pub creator: Option<String>,
    /// The item's categories.
    pub categories: Vec<String>,
    /// A digest of all that the point is made of, hex: equal digests need no write.
    pub digest: String,
}

/// What the store says of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The epoch of its last write.
    pub epoch: i64,
    /// Whether it is marked as deleted.
    pub deleted: bool,
    /// Its digest.
    pub digest: String,
}

/// A lookup of the nearest demonstrations of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The mean of the history's vectors, then the item's vector.
    pub sample: Vec<f32>,
    /// The pair's user and item: a demonstration of just this pair is left out.
    pub user: String,
    /// The item.
    pub item: String,
}

/// The hint of a failure that says that the store has lost all points.
pub(crate) const VANISHED: &str =
    "the collection is gone: prepare makes it anew, then all points must be written again";

/// Whether a failure says that the store has lost all points: it must be prepared and filled anew.
/// Such a failure is a `Retry`.
pub fn vanished(error: &Error) -> bool {
    error.hint == VANISHED
}

/// A store of points.
pub trait Points: Send {
    /// Makes the collection with its payload indexes where it doesn't exist, and checks its widths
    /// where it does.
    ///
    /// # Errors
    /// `Fatal` where an existing collection has other vectors.
    fn prepare(&mut self, width: usize) -> Result<()>;

    /// Every point, those marked as deleted included.
    fn list(&mut self) -> Result<BTreeMap<Uuid, Standing>>;

    /// Writes an epoch's points and marks others as deleted; returns when all of it is durable and
    /// found by lookups. A point that a later epoch wrote stays as it is. Doing it again changes
    /// nothing.
    fn write(&mut self, epoch: i64, points: &[Point], deleted: &[Uuid]) -> Result<()>;

    /// For each query up to `limit` ids of each label, in no order that means anything; points marked
    /// as deleted are left out.
    fn nearest(&mut self, queries: &[Query], limit: usize) -> Result<Vec<Vec<Uuid>>>;

    /// Removes points that were marked as deleted at or before `epoch`.
    fn purge(&mut self, epoch: i64) -> Result<()>;

    /// Goes on in another collection, which must be prepared. A store that has only one stays in it.
    fn select(&mut self, _collection: &str) {}

    /// Leads readers from outside, who follow one name, to the collection in use, in one step. Doing it
    /// again changes nothing. A store without such names does nothing.
    ///
    /// # Errors
    /// `Retry` where the store doesn't answer; `Fatal` where the name can't be given.
    fn activate(&mut self) -> Result<()> {
        Ok(())
    }
}
