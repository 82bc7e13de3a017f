//! The lineage of one vector: `ictflow explain USER ITEM`.
//!
//! Everything is read from the topics: the feature, its history, the demonstrations that it used
//! (found on `examples` by their point ids) and the CoT of each (by its content key on `cot`).

use crate::epochs::read_whole;
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRecord, CotStatus, PromptView, parse_topic_key};
use ictflow_schemas::epoch::{Actives, EpochRecord};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::{Feature, feature_key, point_id};
use ictflow_schemas::framing::{Digest, text_digest};
use ictflow_schemas::history::{Entry, Identity, Label};
use ictflow_schemas::item::{Item, ItemText};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Format, Wire};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

/// What the topics say that an explanation needs.
pub struct Lineage {
    features: HashMap<Vec<u8>, (Feature, String)>,
    texts: HashMap<String, String>,
    examples: HashMap<String, ExampleRecord>,
    cots: HashMap<Digest, (i64, CotRecord)>,
    actives: Actives,
    prompt_history: usize,
}

impl Lineage {
    /// Reads the topics of a job.
    ///
    /// # Errors
    /// `Fatal` where a topic can't be read or the job never closed an epoch.
    pub fn read(topics: &mut dyn Topics, names: &Names, job: &str, items: Format) -> Result<Self> {
        let mut newest: Option<EpochRecord> = None;
        let mut prompt_history = Semantics::default().prompt_history;
        read_whole(topics, names.of(Topic::Epochs), |record| {
            if let Some(Ok(epoch)) = record.value.as_deref().map(EpochRecord::decode)
                && epoch.job == job
            {
                if let Some(recorded) = epoch.config.as_deref().and_then(recorded_prompt_history) {
                    prompt_history = recorded;
                }
                newest = Some(epoch);
            }
        })?;
        let actives = newest
            .map(|epoch| epoch.actives)
            .ok_or_else(|| Error::fatal("explain", "the job has closed no epoch", "run it first"))?;
        let mut features = HashMap::new();
        read_whole(topics, names.of(Topic::Features), |record| {
            let Some(key) = record.key else { return };
            let epoch = record
                .headers
                .iter()
                .find(|(name, _)| name == ictflow_schemas::topic::HEADER_EPOCH)
                .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
                .unwrap_or_default();
            match record.value.as_deref().map(Feature::decode) {
                Some(Ok(feature)) => features.insert(key, (feature, epoch)),
                _ => features.remove(&key),
            };
        })?;
        let mut texts = HashMap::new();
        read_whole(topics, names.of(Topic::Items), |record| {
            let Some(Ok(key)) = record.key.map(String::from_utf8) else { return };
            match record.value.as_deref().map(|value| Item::decode_as(items, value)) {
                Some(Ok(item)) => texts.insert(key, item.text()),
                None => texts.remove(&key),
                Some(Err(_)) => None,
            };
        })?;
        let used: HashSet<&str> =
            features.values().flat_map(|(f, _)| f.demonstrations.iter().map(|d| d.id.as_str())).collect();
        let mut examples = HashMap::new();
        read_whole(topics, names.of(Topic::Examples), |record| {
            let Some(Ok(example)) = record.value.as_deref().map(ExampleRecord::decode) else { return };
            let identity = Identity {
                user: example.user_id.as_str().into(),
                event_time: example.event_time,
                event_id: example.event_id.as_str().into(),
            };
            let id = point_id(&identity, &actives.prompt_version).to_string();
            if used.contains(id.as_str()) {
                examples.insert(id, example);
            }
        })?;
        let mut cots = HashMap::new();
        read_whole(topics, names.of(Topic::Cot), |record| {
            let Some((CotStatus::Ok, key)) = record.key.as_deref().and_then(parse_topic_key) else { return };
            match record.value.as_deref().map(CotRecord::decode) {
                Some(Ok(cot)) => cots.insert(key, (record.offset, cot)),
                _ => cots.remove(&key),
            };
        })?;
        Ok(Lineage { features, texts, examples, cots, actives, prompt_history })
    }

    /// The feature of a pair.
    pub fn feature(&self, user: &str, item: &str) -> Option<&Feature> {
        self.features.get(&feature_key(user, item)).map(|(feature, _)| feature)
    }

    /// Every live pair, in order of key.
    pub fn pairs(&self) -> Vec<(&str, &str)> {
        let sorted: BTreeMap<_, _> = self.features.iter().collect();
        sorted.values().map(|(f, _)| (f.user_id.as_str(), f.item_id.as_str())).collect()
    }

    /// An item as a person knows it: its title, else its id.
    pub fn title(&self, item: &str) -> String {
        match self.texts.get(item).map(|text| ItemText::parse(text).title) {
            Some(title) if !title.is_empty() => title,
            Some(_) => item.to_owned(),
            None => format!("{item} (deleted)"),
        }
    }

    /// The example and the CoT behind a used demonstration.
    pub fn demonstration(&self, id: &str, fresh: bool) -> Option<(&ExampleRecord, Option<&CotRecord>)> {
        let example = self.examples.get(id)?;
        let cot = if fresh { self.own(example) } else { self.fallback(example) };
        Some((example, cot))
    }

    fn own(&self, example: &ExampleRecord) -> Option<&CotRecord> {
        let item_text = text_digest(self.texts.get(&example.item_id)?);
        let history: Vec<Entry> = example
            .history
            .iter()
            .map(|entry| Entry {
                event_time: entry.event_time,
                event_id: Id::from(""),
                item: entry.item_id.as_str().into(),
                kind: entry.kind.as_str().into(),
                label: label(&entry.label),
            })
            .collect();
        let decision = if example.label == 1 { Label::Positive } else { Label::Negative };
        let view = PromptView::new(
            example.user_id.as_str().into(),
            example.item_id.as_str().into(),
            item_text,
            decision,
            &history,
            self.prompt_history,
        );
        let Actives { prompt_version, llm_model, parameters, .. } = &self.actives;
        self.cots.get(&view.content_key(prompt_version, llm_model, parameters)).map(|(_, cot)| cot)
    }

    /// The newest answer on the same user, item and decision under the versions in force.
    fn fallback(&self, example: &ExampleRecord) -> Option<&CotRecord> {
        let decision = if example.label == 1 { "positive" } else { "negative" };
        self.cots
            .values()
            .filter(|(_, cot)| {
                cot.user_id == example.user_id
                    && cot.item_id == example.item_id
                    && cot.decision == decision
                    && cot.prompt_version == self.actives.prompt_version
                    && cot.llm_model == self.actives.llm_model
            })
            .max_by_key(|(offset, _)| *offset)
            .map(|(_, cot)| cot)
    }

    /// The whole lineage of a pair's vector as text, `None` where the pair has no feature.
    pub fn explain(&self, user: &str, item: &str) -> Option<String> {
        let (feature, epoch) = self.features.get(&feature_key(user, item))?;
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "user {user}, item {item}: {}", self.title(item));
        let _ = writeln!(
            out,
            "  published in epoch {epoch}, cot_status {:?}, k {}",
            feature.cot_status, feature.k
        );
        let _ = writeln!(out, "  weights {}", feature.ict_weights);
        let _ = writeln!(out, "  encoder {}", feature.encoder);
        let _ = writeln!(out, "  prompt  {}, model {}", feature.prompt_version, feature.llm_model);
        let _ = writeln!(out, "  history, oldest first:");
        for entry in &feature.history {
            let _ = writeln!(out, "    {entry:>6}  {}", self.title(entry));
        }
        let _ = writeln!(out, "  demonstrations, nearest last:");
        for used in &feature.demonstrations {
            let fresh = if used.fresh { "fresh" } else { "stale" };
            let _ = writeln!(out, "    {} score {} label {} {fresh}", used.id, used.score, used.label);
            match self.demonstration(&used.id, used.fresh) {
                None => {
                    let _ = writeln!(out, "      its example isn't on the topic any more");
                }
                Some((example, cot)) => {
                    let _ =
                        writeln!(out, "      user {} on {}", example.user_id, self.title(&example.item_id));
                    let text = cot.map_or("(its text isn't on the log any more)", |cot| cot.text.as_str());
                    let _ = writeln!(out, "      \u{201c}{text}\u{201d}");
                }
            }
        }
        let vector: Vec<String> = feature.ict.iter().map(|x| format!("{x:+.4}")).collect();
        let _ = writeln!(out, "  ict, {} components:", feature.ict.len());
        for row in vector.chunks(8) {
            let _ = writeln!(out, "    {}", row.join(" "));
        }
        Some(out)
    }
}

/// P of a recorded configuration.
fn recorded_prompt_history(config: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_str(config).ok()?;
    value.get("prompt_history")?.as_u64().map(|p| p as usize)
}

fn label(word: &str) -> Label {
    match word {
        "positive" => Label::Positive,
        "negative" => Label::Negative,
        _ => Label::None,
    }
}
