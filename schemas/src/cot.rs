//! Chain-of-thought texts: content keys, the records of `cot`, and what a prompt is made of.

use crate::framing::{Digest, Domain, Frame, digest};
use crate::history::{Entry, Label};
use crate::item::ItemText;
use crate::{Id, Millis};
use serde::{Deserialize, Serialize};

/// Whether a key was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CotStatus {
    /// `text` holds a validated CoT.
    Ok,
    /// Every attempt of the schedule failed validation; the key is not asked again.
    Failed,
}

/// A record of the internal log `cot`: the answer to one content key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CotRecord {
    /// Whether the key was answered.
    pub status: CotStatus,
    /// The user whose data the key holds.
    pub user_id: String,
    /// The item.
    pub item_id: String,
    /// `positive` or `negative`; `none` where the prompt stated none, which no job asks.
    pub decision: String,
    /// The prompt version.
    pub prompt_version: String,
    /// The model.
    pub llm_model: String,
    /// The decoding parameters, canonical JSON.
    pub parameters: String,
    /// The CoT; empty where failed.
    pub text: String,
    /// Calls made, retries included.
    pub attempts: i32,
    /// Prompt tokens over all attempts.
    pub tokens_in: i64,
    /// Generated tokens over all attempts.
    pub tokens_out: i64,
    /// Why the last attempt ended: `stop`, `length`, or the validation's refusal.
    pub finish_reason: String,
    /// Share of distinct words among those the model wrote, 0 to 1 (`llm-cf` calls it the
    /// repetition part of coherence).
    pub quality: f64,
    /// When it was written, milliseconds of the wall clock; never decides a value.
    pub created_at: Millis,
}

impl CotRecord {
    /// The record's key on `cot` for a content key: 64 hex digits, `failed:` before a failure's.
    pub fn topic_key(&self, key: &Digest) -> Vec<u8> {
        topic_key(self.status, key)
    }
}

/// The key on `cot` of an answer with this status.
pub fn topic_key(status: CotStatus, key: &Digest) -> Vec<u8> {
    match status {
        CotStatus::Ok => key.hex().into_bytes(),
        CotStatus::Failed => format!("failed:{}", key.hex()).into_bytes(),
    }
}

/// Reads a key of `cot`: the status that its form says, and the content key.
pub fn parse_topic_key(key: &[u8]) -> Option<(CotStatus, Digest)> {
    let text = std::str::from_utf8(key).ok()?;
    match text.strip_prefix("failed:") {
        Some(rest) => Some((CotStatus::Failed, Digest::from_hex(rest)?)),
        None => Some((CotStatus::Ok, Digest::from_hex(text)?)),
    }
}

/// What one content key asks: all that its answer depends on beside the versions in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PromptView {
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// The digest of the item's text.
    pub item_text: Digest,
    /// The label that the CoT has to explain; `None` for the control that states none.
    pub decision: Label,
    /// The newest P engagements before the example, oldest first, as (item, kind, label).
    pub history: Vec<(Id, Id, Label)>,
}

impl PromptView {
    /// The view of an example: its newest `p` engagements.
    pub fn new(user: Id, item: Id, item_text: Digest, decision: Label, history: &[Entry], p: usize) -> Self {
        let skip = history.len().saturating_sub(p);
        let history = history[skip..].iter().map(|e| (e.item.clone(), e.kind.clone(), e.label)).collect();
        PromptView { user, item, item_text, decision, history }
    }

    /// The content key under the versions in force.
    ///
    /// Digest over (`key`, prompt_version, llm_model, parameters, user_id, item_id, item text
    /// digest, decision, count, then item, kind, label of each entry).
    pub fn content_key(&self, prompt_version: &str, llm_model: &str, parameters: &str) -> Digest {
        let mut frame = Frame::new()
            .text(prompt_version)
            .text(llm_model)
            .text(parameters)
            .text(&self.user)
            .text(&self.item)
            .digest(&self.item_text)
            .text(self.decision.word())
            .int(self.history.len() as i64);
        for (item, kind, label) in &self.history {
            frame = frame.text(item).text(kind).text(label.word());
        }
        digest(Domain::Key, &frame)
    }
}

/// One entry of a prompt's history with the item's present text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptEntry {
    /// The item's fields; `None` where the item is gone.
    pub item: Option<ItemText>,
    /// The kind.
    pub kind: String,
    /// The label.
    pub label: Label,
}

/// What a generator gets: a prompt view with texts in the place of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CotRequest {
    /// The content key; its first 8 hex digits are the fence's nonce.
    pub key: Digest,
    /// The target item's fields.
    pub item: ItemText,
    /// `Positive` or `Negative`; `None` only under a prompt that states no decision.
    pub decision: Label,
    /// The history, oldest first.
    pub history: Vec<PromptEntry>,
}

/// Canonical JSON of decoding parameters or a semantic config: sorted keys, no blanks, text beyond
/// ASCII unescaped. Decimals must be strings, as the config writes them.
///
/// `serde_json`'s map is a BTreeMap here (its `preserve_order` feature is off), so keys come out
/// sorted by bytes.
pub fn canonical_json(value: &serde_json::Value) -> String {
    value.to_string()
}
