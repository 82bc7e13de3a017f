//! Demonstrations: eligible examples with a CoT, as retrieval and the ICT see them.

use crate::catalog::Item;
use crate::history::Identity;
use crate::vector::{Quantised, VectorSum};
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A demonstration with all that its tokens and scores are made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Demonstration {
    /// When its label was known. First field: the derived order is the one of `max_demonstrations`
    /// and of ties, (label_time, point id).
    pub label_time: Millis,
    /// The point id.
    pub id: Uuid,
    /// The example.
    pub identity: Identity,
    /// Its item.
    pub item: Id,
    /// The item's state; it exists and has a vector.
    pub item_state: Item,
    /// Whether the label is 1.
    pub positive: bool,
    /// The example's history with the states of the items that exist.
    pub history: Vec<(Id, Option<Item>)>,
    /// The sum of the vectors of the history's items that have one.
    pub text: VectorSum,
    /// a_c: the rounded mean of the same.
    pub mean: Quantised,
    /// The vector of the CoT's text.
    pub cot: Quantised,
    /// The content key whose record gave the text.
    pub cot_key: crate::framing::Digest,
    /// Whether that is the example's own key; else it is the fallback.
    pub fresh: bool,
    /// When the CoT was written.
    pub cot_created_at: Millis,
}

impl Demonstration {
    /// b_c: the item's vector. Empty for an item without one, which no demonstration has.
    pub fn item_vector(&self) -> &[i16] {
        self.item_state.vector.as_ref().map_or(&[], |vector| &vector.vector)
    }
}
