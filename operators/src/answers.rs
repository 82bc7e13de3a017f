//! The standing answers of the LLM.
//!
//! **Computes**: of the records of one topic key the greatest offset stands; an unusable record or
//! a null is a tombstone of its key. A content key is answered if its ok record or its failure
//! stands; an ok record beats a failure at any offset.
//!
//! **Memory**: about 300 B a record that stands, its text outside.

use crate::staged::staged;
use crate::standing::Standing;
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::Label;
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What an ok record says, without its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// The content key.
    pub key: Digest,
    /// The record's offset in its user's partition: among fallbacks the greatest wins.
    pub offset: i64,
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// The decision that it explains.
    pub decision: Label,
    /// The prompt version.
    pub prompt_version: Id,
    /// The model.
    pub llm_model: Id,
    /// The digest of its text.
    pub text: Digest,
    /// When it was written.
    pub created_at: Millis,
}

/// A record of `cot`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AnswerChange {
    /// (partition, offset): the order of records.
    pub position: (u32, i64),
    /// The content key.
    pub key: Digest,
    /// Whether the key is a failure's.
    pub failure: bool,
    /// Whether a usable record stands here; else the key's tombstone.
    pub usable: bool,
    /// The facts of a usable ok record.
    pub answer: Option<Arc<Answer>>,
}

/// What the operator gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// An ok record stands.
    Ok(Arc<Answer>),
    /// The key needs no call; true where only a failure stands.
    Answered(Digest, bool),
}

impl Output {
    /// The standing ok record.
    pub fn ok(self) -> Option<Arc<Answer>> {
        match self {
            Output::Ok(answer) => Some(answer),
            _ => None,
        }
    }

    /// The key that needs no call.
    pub fn answered(self) -> Option<Digest> {
        match self {
            Output::Answered(key, _) => Some(key),
            _ => None,
        }
    }

    /// The key for which only a failure stands.
    pub fn failed(self) -> Option<Digest> {
        match self {
            Output::Answered(key, true) => Some(key),
            _ => None,
        }
    }
}

/// The state of the operator.
#[derive(Debug, Default)]
pub struct Answers {
    keys: HashMap<Digest, Standing<Arc<Answer>>>,
}

impl Answers {
    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<AnswerChange>, out: &mut Changes<Output>) {
        let mut records: Vec<AnswerChange> = changes.into_iter().map(|(change, _)| change).collect();
        records.sort();
        let mut touched = BTreeSet::new();
        for record in records {
            touched.insert(record.key);
            let standing = self.keys.entry(record.key).or_default();
            if record.failure {
                standing.set_failed(record.usable);
            } else {
                standing.set_answer(record.answer);
            }
        }
        for key in touched {
            let Some(standing) = self.keys.get_mut(&key) else { continue };
            let stands = standing.settle(|answer, diff| {
                out.push((Output::Answered(key, answer.is_none()), diff));
                out.extend(answer.map(|answer| (Output::Ok(answer), diff)));
            });
            if !stands {
                self.keys.remove(&key);
            }
        }
    }
}

/// The operator `answers`.
pub fn answers<'s>(
    records: VecCollection<'s, Epoch, AnswerChange, isize>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Answers::default();
    staged(records, "answers", |change| change.key.number(), move |_, changes, out| state.step(changes, out))
}
