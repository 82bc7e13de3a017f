//! The lineage of one vector: `ictflow explain USER ITEM`.
//!
//! Everything is read from the topics, as the job saw them at its committed epoch: the feature, its
//! history, the demonstrations that it used (found on `examples` by their point ids), the CoT of each
//! and the prompt that asked for it (`prompt.rs`), the votes and the neighbours that cast them. What is told of them stands in `explanation.rs`.
//!
//! A fresh demonstration has its own CoT, found by its content key. A stale one has the fallback: among
//! the ok records of the same user, item, decision, prompt version and model whose text has a vector,
//! the one with the greatest offset.
//!
//! Memory: what the asked pairs need. The topics are read through and the rest dropped.

mod explanation;
mod prompt;
mod read;

pub use explanation::{Cot, Demonstration, Example, Explanation, HistoryItem, Neighbour, Prompted, Said};
pub use read::{job_of_outputs, live_pairs};

use crate::names::Names;
use crate::sources::usable;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Id;
use ictflow_schemas::cot::{CotRecord, CotStatus, PromptView, parse_topic_key};
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::{Feature, feature_key};
use ictflow_schemas::framing::{Digest, text_digest, unframe};
use ictflow_schemas::history::{Entry, Label};
use ictflow_schemas::item::{Item, ItemText};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Format, Wire};
use read::{Standing, examples, features, read_bounded, standing};
use std::collections::{BTreeMap, HashMap, HashSet};

/// How many texts of one item are kept, the newest: a stale CoT may have been asked with an older one.
const MAX_TEXTS: usize = 64;

/// What the topics say that an explanation needs.
pub struct Lineage {
    /// By key, the feature and the epoch that published it.
    features: HashMap<Vec<u8>, (Feature, i64)>,
    /// By item, its texts up to the newest; empty where it is deleted.
    texts: HashMap<String, Vec<String>>,
    /// By point id, and those of neighbours by theirs.
    examples: HashMap<String, ExampleRecord>,
    /// By content key, the offset and the ok record.
    cots: HashMap<Digest, (i64, CotRecord)>,
    /// Texts of `cots` that have a vector.
    embedded: HashSet<Digest>,
    actives: Actives,
    committed: i64,
    prompt_history: usize,
}

impl Lineage {
    /// Reads what every live pair of a job needs.
    ///
    /// # Errors
    /// `Fatal` where a topic can't be read or the job never closed an epoch.
    pub fn read(topics: &mut dyn Topics, names: &Names, job: &str, items: Format) -> Result<Self> {
        Lineage::gather(topics, names, job, items, None)
    }

    /// Reads what one pair needs.
    ///
    /// # Errors
    /// Those of [`Lineage::read`].
    pub fn read_pair(
        topics: &mut dyn Topics,
        names: &Names,
        job: &str,
        items: Format,
        pair: (&str, &str),
    ) -> Result<Self> {
        Lineage::read_pairs(topics, names, job, items, &[pair])
    }

    /// Reads what some pairs need. Of these the neighbours are read too, since they are few.
    ///
    /// # Errors
    /// Those of [`Lineage::read`].
    pub fn read_pairs(
        topics: &mut dyn Topics,
        names: &Names,
        job: &str,
        items: Format,
        pairs: &[(&str, &str)],
    ) -> Result<Self> {
        let keys = pairs.iter().map(|(user, item)| feature_key(user, item)).collect();
        Lineage::gather(topics, names, job, items, Some(keys))
    }

    fn gather(
        topics: &mut dyn Topics,
        names: &Names,
        job: &str,
        items: Format,
        only: Option<HashSet<Vec<u8>>>,
    ) -> Result<Self> {
        if topics.partitions(names.of(Topic::Epochs))?.is_none() {
            return Err(Error::fatal(
                "explain",
                format!("topic {} doesn't exist", names.of(Topic::Epochs)),
                "has the job run yet? does the suffix fit?",
            ));
        }
        let features = features(topics, names, only.as_ref())?;
        let published = features.values().map(|(_, epoch)| *epoch).max().unwrap_or(0);
        let Standing { committed, ends, actives, prompt_history } = standing(topics, names, job, published)?;
        let examples = examples(topics, names, &features, only.is_some())?;
        let mut wanted: HashSet<&str> = HashSet::new();
        for (feature, _) in features.values() {
            wanted.insert(&feature.item_id);
            wanted.extend(feature.history.iter().map(String::as_str));
        }
        for example in examples.values() {
            wanted.insert(&example.item_id);
            wanted.extend(example.history.iter().map(|entry| entry.item_id.as_str()));
        }
        let mut lineage = Lineage {
            texts: HashMap::new(),
            cots: HashMap::new(),
            embedded: HashSet::new(),
            actives,
            committed,
            prompt_history,
            features: HashMap::new(),
            examples: HashMap::new(),
        };
        lineage.read_texts(topics, names, &ends, items, &wanted)?;
        lineage.read_cots(topics, names, &ends, &examples)?;
        lineage.read_embedded(topics, names, &ends)?;
        Ok(Lineage { features, examples, ..lineage })
    }

    fn read_texts(
        &mut self,
        topics: &mut dyn Topics,
        names: &Names,
        ends: &BTreeMap<String, Vec<i64>>,
        format: Format,
        wanted: &HashSet<&str>,
    ) -> Result<()> {
        read_bounded(topics, names, Topic::Items, ends, |record| {
            let Some(Ok(key)) = record.key.map(String::from_utf8) else { return };
            if !wanted.contains(key.as_str()) {
                return;
            }
            match record.value.as_deref().map(|value| Item::decode_as(format, value)) {
                Some(Ok(item)) => {
                    let (texts, text) = (self.texts.entry(key).or_default(), item.text());
                    if texts.last() != Some(&text) {
                        texts.push(text);
                    }
                    if texts.len() > MAX_TEXTS {
                        texts.remove(0);
                    }
                }
                None => {
                    self.texts.remove(&key);
                }
                Some(Err(_)) => {}
            }
        })
    }

    fn read_cots(
        &mut self,
        topics: &mut dyn Topics,
        names: &Names,
        ends: &BTreeMap<String, Vec<i64>>,
        examples: &HashMap<String, ExampleRecord>,
    ) -> Result<()> {
        let groups: HashSet<(&str, &str, &str)> =
            examples.values().map(|e| (e.user_id.as_str(), e.item_id.as_str(), decision(e).word())).collect();
        read_bounded(topics, names, Topic::Cot, ends, |record| {
            let Some((CotStatus::Ok, key)) = record.key.as_deref().and_then(parse_topic_key) else { return };
            let value = record.value.as_deref().and_then(|value| CotRecord::decode(value).ok());
            let needed = |cot: &CotRecord| {
                groups.contains(&(cot.user_id.as_str(), cot.item_id.as_str(), cot.decision.as_str()))
            };
            match value.filter(|cot| usable(cot, CotStatus::Ok) && needed(cot)) {
                Some(cot) => self.cots.insert(key, (record.offset, cot)),
                // What can't be used is a tombstone of its key.
                None => self.cots.remove(&key),
            };
        })
    }

    fn read_embedded(
        &mut self,
        topics: &mut dyn Topics,
        names: &Names,
        ends: &BTreeMap<String, Vec<i64>>,
    ) -> Result<()> {
        let wanted: HashSet<Digest> = self.cots.values().map(|(_, cot)| text_digest(&cot.text)).collect();
        let encoder = self.actives.encoder.clone();
        read_bounded(topics, names, Topic::Embeddings, ends, |record| {
            let parts = record.key.as_deref().and_then(unframe).unwrap_or_default();
            let [of, text] = parts[..] else { return };
            let Some(text) = std::str::from_utf8(text).ok().and_then(Digest::from_hex) else { return };
            if of != encoder.as_bytes() || !wanted.contains(&text) {
                return;
            }
            let value = record.value.as_deref().and_then(|value| Embedding::decode(value).ok());
            let known = value.is_some_and(|value| {
                value.status == EmbeddingStatus::Ok
                    && record.key.as_deref() == Some(&value.key())
                    && value.usable().is_some()
            });
            if known {
                self.embedded.insert(text)
            } else {
                self.embedded.remove(&text)
            };
        })
    }

    /// The feature of a pair.
    pub fn feature(&self, user: &str, item: &str) -> Option<&Feature> {
        self.features.get(&feature_key(user, item)).map(|(feature, _)| feature)
    }

    /// Every live pair that was read, in order of key.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        let sorted: BTreeMap<_, _> = self.features.iter().collect();
        sorted.values().map(|(f, _)| (f.user_id.as_str(), f.item_id.as_str())).collect()
    }

    /// An item as a person knows it: its title, else its id.
    pub fn title(&self, item: &str) -> String {
        match self.text(item).map(|text| ItemText::parse(text).title) {
            Some(title) if !title.is_empty() => title,
            Some(_) => item.to_owned(),
            None => format!("{item} (deleted)"),
        }
    }

    /// The newest text of an item.
    fn text(&self, item: &str) -> Option<&String> {
        self.texts.get(item).and_then(|texts| texts.last())
    }

    /// The example and the CoT behind a used demonstration.
    pub fn demonstration(&self, id: &str, fresh: bool) -> Option<(&ExampleRecord, Option<&CotRecord>)> {
        let example = self.examples.get(id)?;
        Some((example, self.cot(example, fresh).map(|(_, _, cot)| cot)))
    }

    /// The content key, offset and record of the CoT that an example used.
    fn cot(&self, example: &ExampleRecord, fresh: bool) -> Option<(Digest, i64, &CotRecord)> {
        if fresh {
            let key = self.own_key(example)?;
            return self.cots.get(&key).map(|(offset, cot)| (key, *offset, cot));
        }
        let fits = |cot: &CotRecord| {
            cot.user_id == example.user_id
                && cot.item_id == example.item_id
                && cot.decision == decision(example).word()
                && cot.prompt_version == self.actives.prompt_version
                && cot.llm_model == self.actives.llm_model
                && self.embedded.contains(&text_digest(&cot.text))
        };
        self.cots
            .iter()
            .filter(|(_, (_, cot))| fits(cot))
            .max_by_key(|(key, (offset, _))| (*offset, **key))
            .map(|(key, (offset, cot))| (*key, *offset, cot))
    }

    /// The content key that an example wants under the versions in force.
    fn own_key(&self, example: &ExampleRecord) -> Option<Digest> {
        let Actives { prompt_version, llm_model, parameters, .. } = &self.actives;
        let view = self.view(example, self.text(&example.item_id)?);
        Some(view.content_key(prompt_version, llm_model, parameters))
    }

    /// What an example's prompt is made of, with this text of its item.
    fn view(&self, example: &ExampleRecord, text: &str) -> PromptView {
        let entry = |entry: &ictflow_schemas::example::HistoryRecord| Entry {
            event_time: entry.event_time,
            event_id: Id::from(""),
            item: entry.item_id.as_str().into(),
            kind: entry.kind.as_str().into(),
            label: label(&entry.label),
        };
        let history: Vec<Entry> = example.history.iter().map(entry).collect();
        PromptView::new(
            example.user_id.as_str().into(),
            example.item_id.as_str().into(),
            text_digest(text),
            decision(example),
            &history,
            self.prompt_history,
        )
    }

    /// The whole lineage of a pair's vector as text, `None` where the pair has no feature.
    pub fn explain(&self, user: &str, item: &str) -> Option<String> {
        self.explanation(user, item).map(|explanation| explanation.to_string())
    }
}

fn decision(example: &ExampleRecord) -> Label {
    if example.label == 1 { Label::Positive } else { Label::Negative }
}

fn label(word: &str) -> Label {
    match word {
        "positive" => Label::Positive,
        "negative" => Label::Negative,
        _ => Label::None,
    }
}
