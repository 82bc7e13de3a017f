//! The standing embeddings: which texts have a vector, which were refused.
//!
//! **Computes**: of the records of one topic key the greatest offset stands; an unusable record or
//! a null is a tombstone of its key. A text is *known* with a vector if its ok record stands, and
//! *answered* if that or its failure stands: a failed text has no vector and isn't asked again.
//!
//! **Memory**: one shared vector an embedded text.

use crate::staged::staged;
use crate::standing::Standing;
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::vector::Quantised;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// A record of `embeddings` for the encoder in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EmbeddingChange {
    /// The text.
    pub text: Digest,
    /// Whether the key is a failure's.
    pub failure: bool,
    /// The offset.
    pub offset: i64,
    /// Whether a usable record stands here; else the key's tombstone.
    pub usable: bool,
    /// The vector of a usable ok record.
    pub vector: Option<Quantised>,
}

/// What the operator gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// The text has this vector.
    Known(Digest, Quantised),
    /// The text needs no call.
    Answered(Digest),
}

impl Output {
    /// The text and vector of a known text.
    pub fn known(self) -> Option<(Digest, Quantised)> {
        match self {
            Output::Known(text, vector) => Some((text, vector)),
            _ => None,
        }
    }

    /// The text that needs no call.
    pub fn answered(self) -> Option<Digest> {
        match self {
            Output::Answered(text) => Some(text),
            _ => None,
        }
    }
}

/// The state of the operator.
#[derive(Debug, Default)]
pub struct Vectors {
    texts: HashMap<Digest, Standing<Quantised>>,
}

impl Vectors {
    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<EmbeddingChange>, out: &mut Changes<Output>) {
        let mut records: Vec<EmbeddingChange> = changes.into_iter().map(|(change, _)| change).collect();
        records.sort_by_key(|record| record.offset);
        let mut touched = BTreeSet::new();
        for record in records {
            touched.insert(record.text);
            let standing = self.texts.entry(record.text).or_default();
            if record.failure {
                standing.set_failed(record.usable);
            } else {
                standing.set_answer(record.vector);
            }
        }
        for text in touched {
            let Some(standing) = self.texts.get_mut(&text) else { continue };
            let stands = standing.settle(|vector, diff| {
                out.push((Output::Answered(text), diff));
                out.extend(vector.map(|vector| (Output::Known(text, vector), diff)));
            });
            if !stands {
                self.texts.remove(&text);
            }
        }
    }
}

/// The operator `vectors`.
pub fn vectors<'s>(
    embeddings: VecCollection<'s, Epoch, EmbeddingChange, isize>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Vectors::default();
    staged(
        embeddings,
        "vectors",
        |change| change.text.number(),
        move |_, changes, out| state.step(changes, out),
    )
}
