//! What a ranker doesn't find in the vectors as it was trained on them: told with counts, never silent.

use super::catalog::Catalog;
use super::ranker::Ranker;
use super::view::View;
use std::collections::{BTreeMap, HashSet};

/// Live vectors by what is amiss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortfalls {
    /// All live vectors.
    pub live: usize,
    /// Of other ICT weights than those that the ranker was trained with, by version.
    pub other_weights: BTreeMap<String, usize>,
    /// Of another kind.
    pub other_kind: usize,
    /// Of pairs whose texts another encoder reads, by encoder.
    pub other_encoder: BTreeMap<String, usize>,
    /// Without votes, which the ranker reads.
    pub no_votes: usize,
    /// Without the labels of their history, which the ranker reads.
    pub no_labels: usize,
    /// Items of them that have no text vector, which the ranker reads.
    pub no_text: usize,
    /// Items of them that don't stand in the catalog.
    pub no_item: usize,
}

impl Shortfalls {
    /// Counts what is amiss in all live vectors.
    pub fn of(ranker: &Ranker, view: &View, catalog: &Catalog) -> Self {
        let serving = &ranker.serving;
        let mut found = Shortfalls { live: view.len(), ..Shortfalls::default() };
        let mut items = HashSet::new();
        for user in view.users() {
            for (item, vector) in view.of_user(&user) {
                items.insert(item);
                let lineage = &vector.lineage;
                if let Some(trained) = &serving.vector {
                    if lineage.ict_weights != trained.ict_weights {
                        *found.other_weights.entry(lineage.ict_weights.clone()).or_default() += 1;
                    }
                    found.other_kind += usize::from(lineage.kind != trained.kind);
                }
                if serving.text.as_ref().is_some_and(|text| text.encoder != lineage.encoder) {
                    *found.other_encoder.entry(lineage.encoder.clone()).or_default() += 1;
                }
                found.no_votes += usize::from(serving.votes && vector.votes.is_empty());
                let history = &vector.history;
                let unlabelled = history.labels.len() != history.items.len();
                found.no_labels += usize::from(serving.labels && unlabelled);
            }
        }
        found.no_item = items.iter().filter(|item| catalog.get(item).is_none()).count();
        let wordless =
            |item: &&&ictflow_schemas::Id| catalog.get(item).is_some() && catalog.text(item).is_none();
        found.no_text = if serving.text.is_some() { items.iter().filter(wordless).count() } else { 0 };
        found
    }

    /// A warning for each, under a name that stays the same while its count changes.
    pub fn warnings(&self, ranker: &Ranker) -> Vec<(String, String)> {
        let live = self.live;
        let mut all = Vec::new();
        let mut warn = |name: String, text: String| all.push((name, text));
        if let Some(trained) = &ranker.serving.vector {
            for (version, n) in &self.other_weights {
                let text = format!(
                    "{n} of {live} live vectors are of the ICT weights {version}, the ranker was trained with {}: \
                     their part in its scores means nothing (serve the ict.safetensors written beside the ranker, \
                     or train a ranker on these)",
                    trained.ict_weights
                );
                warn(format!("weights {version}"), text);
            }
            if self.other_kind > 0 {
                let (n, kind) = (self.other_kind, trained.kind);
                warn(
                    "kind".to_owned(),
                    format!(
                        "{n} of {live} live vectors aren't of the kind {kind}, which the ranker was trained with"
                    ),
                );
            }
        }
        if let Some(text) = &ranker.serving.text {
            for (encoder, n) in &self.other_encoder {
                let trained = &text.encoder;
                warn(
                    format!("encoder {encoder}"),
                    format!(
                        "{n} of {live} live vectors were made with the encoder {encoder}, the ranker reads texts by {trained}"
                    ),
                );
            }
        }
        let counted = [
            (
                "votes",
                self.no_votes,
                "live vectors have no votes, which the ranker reads: they count as votes of nobody (is the job older than its ranker?)",
            ),
            (
                "labels",
                self.no_labels,
                "live vectors don't say the labels of their history, which the ranker reads: they count as none (is the job older than its ranker?)",
            ),
            (
                "items",
                self.no_item,
                "items of live pairs don't stand in the catalog: creator, categories and text are missing",
            ),
            ("texts", self.no_text, "items of live pairs have no text vector of the ranker's encoder yet"),
        ];
        for (name, n, text) in counted {
            if n > 0 {
                warn(name.to_owned(), format!("{n} {text}"));
            }
        }
        all
    }
}
