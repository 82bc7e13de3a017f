//! Features: the vectors that a ranker reads, and the demonstrations that they stand on.

use crate::Millis;
use crate::framing::Frame;
use crate::history::Identity;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How complete the demonstrations of a feature are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CotStatus {
    /// k = 0.
    None,
    /// 0 < k < K.
    Partial,
    /// k = K and at least one demonstration has the fallback's text.
    Stale,
    /// k = K and all are fresh.
    Full,
}

impl CotStatus {
    /// The status of k demonstrations of K.
    pub fn of(k: usize, k_max: usize, any_stale: bool) -> Self {
        if k == 0 {
            CotStatus::None
        } else if k < k_max {
            CotStatus::Partial
        } else if any_stale {
            CotStatus::Stale
        } else {
            CotStatus::Full
        }
    }
}

/// One demonstration as a feature used it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedDemonstration {
    /// The point id.
    pub id: String,
    /// The exact integer score.
    pub score: i64,
    /// 1 or 0.
    pub label: i32,
    /// True where the text is the demonstration's own CoT, false for the fallback.
    pub fresh: bool,
}

/// The kind of vector that weights make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VectorKind {
    /// A causal decoder over demonstrations with CoTs. What records of before the field existed have.
    #[default]
    Decoder,
    /// Attention over the neighbours of two sources.
    Attention,
}

impl VectorKind {
    /// Its name in the metadata of a file of weights.
    pub fn name(self) -> &'static str {
        match self {
            VectorKind::Decoder => "decoder",
            VectorKind::Attention => "attention",
        }
    }

    /// The kind of a name.
    pub fn of(name: &str) -> Option<Self> {
        [VectorKind::Decoder, VectorKind::Attention].into_iter().find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for VectorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The sources of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NeighbourSource {
    /// What others said of the pair's item.
    SameItem,
    /// What the pair's user said of other items.
    SameUser,
}

/// One labelled example that a source selected for a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedNeighbour {
    /// Who selected it.
    pub source: NeighbourSource,
    /// Which it is: [`crate::neighbour::neighbour_id`].
    pub id: String,
    /// The exact integer score, in units of 2^-28.
    pub score: i64,
    /// 1 or 0.
    pub label: i32,
}

/// A record of the topic `features`. A pure function of the logs: epoch, position and publish
/// time are headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// The user.
    pub user_id: String,
    /// The item.
    pub item_id: String,
    /// The ICT vector.
    pub ict: Vec<f32>,
    /// The demonstrations used, ascending score, nearest last.
    pub demonstrations: Vec<UsedDemonstration>,
    /// How many.
    pub k: i32,
    /// The item ids of the user's newest history, oldest first.
    pub history: Vec<String>,
    /// How complete the demonstrations are.
    pub cot_status: CotStatus,
    /// When the oldest used CoT was written.
    pub cot_created_at: Option<Millis>,
    /// The version of the ICT weights.
    pub ict_weights: String,
    /// The encoder.
    pub encoder: String,
    /// The prompt version.
    pub prompt_version: String,
    /// The LLM.
    pub llm_model: String,
    /// The newest history entry's time.
    pub event_time: Option<Millis>,
    /// The nine votes of the neighbours: [`crate::neighbour::Votes::numbers`]. Empty on records of before
    /// the field existed.
    #[serde(default)]
    pub votes: Vec<f32>,
    /// The neighbours that vote: those of `same_item`, then those of `same_user`, ascending score each,
    /// nearest last.
    #[serde(default)]
    pub neighbours: Vec<UsedNeighbour>,
    /// What kind of vector `ict` is.
    #[serde(default)]
    pub vector_kind: VectorKind,
    /// The labels of `history`, entry by entry: 1 positive, 0 negative, −1 none. Empty on records of before
    /// the field existed.
    #[serde(default)]
    pub history_labels: Vec<i32>,
}

/// The key of `features`: framed (user_id, item_id).
pub fn feature_key(user: &str, item: &str) -> Vec<u8> {
    Frame::new().text(user).text(item).into_bytes()
}

/// The id of a demonstration's point: UUIDv5(UUIDv5(URL, `ictflow:demonstration`), framed
/// (user_id, event_time, event_id, prompt_version)).
pub fn point_id(identity: &Identity, prompt_version: &str) -> Uuid {
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"ictflow:demonstration");
    Uuid::new_v5(&namespace, &identity.frame().text(prompt_version).into_bytes())
}
