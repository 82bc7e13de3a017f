//! What stood for a pair when it was shown.
//!
//! **Computes**, for every accepted impression: the vector, votes and ids of its pair's feature as the epochs
//! *before* left it, nothing where the pair had none. The epoch's own changes don't show: a ranker that
//! showed the item couldn't have read them.
//!
//! **Not a function of the logs alone**: how epochs are cut, and when the job was started, decides it. While
//! features aren't published there are none, and an impression has no answer.
//!
//! **Memory**: none; an answer is a copy.

use super::{Features, Pair};
use ictflow_schemas::Id;
use ictflow_schemas::example::Served;
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::history::Identity;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

/// An impression.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shown {
    /// Whose it is.
    pub identity: Identity,
    /// What was shown.
    pub item: Id,
}

/// A feature as it stood, without its scores and history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stood {
    /// The version of the ICT weights.
    pub ict_weights: Arc<str>,
    /// What kind of vector it is.
    pub vector_kind: VectorKind,
    /// The demonstrations, nearest last.
    pub demonstrations: Arc<[Uuid]>,
    /// The neighbours, those of `same_item` first, nearest last each.
    pub neighbours: Arc<[Uuid]>,
    /// The bits of the votes.
    pub votes: Arc<[u32]>,
    /// The bits of the vector.
    pub ict: Arc<[u32]>,
}

/// An impression whose pair had a feature.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServedUpdate {
    /// The impression.
    pub shown: Shown,
    /// What stood.
    pub stood: Stood,
}

impl Stood {
    /// The record, with the epoch that published the feature.
    pub fn record(&self, epoch: i64) -> Served {
        let texts = |ids: &[Uuid]| ids.iter().map(Uuid::to_string).collect();
        let numbers = |bits: &[u32]| bits.iter().copied().map(f32::from_bits).collect();
        Served {
            epoch,
            ict_weights: self.ict_weights.to_string(),
            vector_kind: self.vector_kind,
            demonstrations: texts(&self.demonstrations),
            neighbours: texts(&self.neighbours),
            votes: numbers(&self.votes),
            ict: numbers(&self.ict),
        }
    }

    /// What a record says; `None` where an id isn't one.
    pub fn of(served: &Served) -> Option<Self> {
        let ids = |texts: &[String]| texts.iter().map(|id| id.parse().ok()).collect::<Option<Arc<[Uuid]>>>();
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect();
        Some(Stood {
            ict_weights: served.ict_weights.as_str().into(),
            vector_kind: served.vector_kind,
            demonstrations: ids(&served.demonstrations)?,
            neighbours: ids(&served.neighbours)?,
            votes: bits(&served.votes),
            ict: bits(&served.ict),
        })
    }
}

impl Features {
    /// What stands of the impression's pair. Called before the epoch's changes are taken.
    pub(super) fn stood(&self, shown: Shown) -> Option<ServedUpdate> {
        let key = (shown.identity.user.clone(), shown.item.clone());
        let Pair { retrieved, sources, ict, .. } = self.pairs.get(&key)?;
        let (retrieved, ict) = retrieved.as_ref().zip(ict.as_ref())?;
        let nothing = Arc::default();
        let sources = sources.as_ref().unwrap_or(&nothing);
        let used: &[_] = if self.live.pooled.is_some() { &[] } else { &retrieved.used };
        let neighbours = sources.same_item.iter().chain(&sources.same_user);
        let stood = Stood {
            ict_weights: self.actives.as_ref()?.ict_weights.as_str().into(),
            vector_kind: self.live.kind(),
            demonstrations: used.iter().map(|(demonstration, _)| demonstration.id).collect(),
            neighbours: neighbours.map(|neighbour| neighbour.example.id).collect(),
            votes: sources.votes.numbers().iter().map(|x| x.to_bits()).collect(),
            ict: ict.iter().map(|x| x.to_bits()).collect(),
        };
        Some(ServedUpdate { shown, stood })
    }
}
