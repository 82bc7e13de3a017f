//! What the dataflow knows of an item: digests and ids, never texts.

use crate::Id;
use crate::framing::Digest;
use crate::vector::Quantised;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The state of an existing item. Two records that differ in attributes only give the same state,
/// so a price edit changes nothing downstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemState {
    /// The digest of the newest text: what a content key depends on.
    pub text: Digest,
    /// The normalised creator.
    pub creator: Option<Id>,
    /// The normalised categories, each once.
    pub categories: Vec<Id>,
    /// The vector of the newest text that has one, since the item's last tombstone. An edit keeps
    /// the vector before it until the new text is embedded.
    pub vector: Option<ItemVector>,
}

/// A vector with the digest of the text that it is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemVector {
    /// The embedded text's digest.
    pub text: Digest,
    /// The quantised vector.
    pub vector: Quantised,
}

/// A shared item state.
pub type Item = Arc<ItemState>;
