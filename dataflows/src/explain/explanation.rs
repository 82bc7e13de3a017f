//! What is told of a vector: one value, as text for people and as JSON for programs.

use super::{Lineage, decision};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::{
    CotStatus, NeighbourSource, UsedDemonstration, UsedNeighbour, VectorKind, feature_key,
};
use serde::Serialize;
use std::fmt;

/// The lineage of one vector.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The user.
    pub user: String,
    /// The item.
    pub item: String,
    /// The item's title, or its id.
    pub title: String,
    /// The epoch that published the vector.
    pub published_epoch: i64,
    /// The job's committed epoch: the logs are read up to its bounds.
    pub committed_epoch: i64,
    /// How complete the demonstrations are.
    pub cot_status: CotStatus,
    /// How many demonstrations there are.
    pub k: i32,
    /// When the oldest used CoT was written, milliseconds.
    pub cot_created_at: Option<i64>,
    /// The newest history entry's time, milliseconds.
    pub event_time: Option<i64>,
    /// The ICT weights.
    pub ict_weights: String,
    /// The encoder.
    pub encoder: String,
    /// The prompt version in force.
    pub prompt_version: String,
    /// The model in force.
    pub llm_model: String,
    /// The user's newest history, oldest first.
    pub history: Vec<HistoryItem>,
    /// The demonstrations in ascending order of score, the nearest last.
    pub demonstrations: Vec<Demonstration>,
    /// What kind of vector it is.
    pub vector_kind: VectorKind,
    /// The vector.
    pub ict: Vec<f32>,
    /// The nine votes of the neighbours; empty on a record of before there were any.
    pub votes: Vec<f32>,
    /// The neighbours that vote: those of `same_item`, then those of `same_user`, nearest last each.
    pub neighbours: Vec<Neighbour>,
}

/// A labelled example that votes.
#[derive(Clone, Debug, Serialize)]
pub struct Neighbour {
    /// Who selected it.
    pub source: NeighbourSource,
    /// Its id.
    pub id: String,
    /// The cosine that its score stands for.
    pub similarity: f64,
    /// 1 or 0.
    pub label: i32,
    /// The example; `None` where it isn't on the topic any more.
    pub example: Option<Example>,
}

/// An entry of a history.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryItem {
    /// The item.
    pub item: String,
    /// Its title, or its id.
    pub title: String,
    /// The kind of interaction; absent in a feature's history, which holds items alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its label; absent likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its time, milliseconds; absent likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<i64>,
}

/// A demonstration that a vector used.
#[derive(Clone, Debug, Serialize)]
pub struct Demonstration {
    /// The point id.
    pub id: String,
    /// The exact score.
    pub score: i64,
    /// 1 or 0.
    pub label: i32,
    /// Whether its text is its own CoT; else an older one on the same user, item and decision served.
    pub fresh: bool,
    /// The example; `None` where it isn't on the topic any more.
    pub example: Option<Example>,
    /// The content key that the example wants now, hex; `None` where its item is gone.
    pub content_key: Option<String>,
    /// The CoT that was used; `None` where it isn't on the log any more.
    pub cot: Option<Cot>,
    /// The prompt that asked for that CoT.
    pub prompt: Option<Prompted>,
}

/// A labelled example.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The user.
    pub user: String,
    /// The item.
    pub item: String,
    /// The item's title, or its id.
    pub title: String,
    /// When it was shown, milliseconds.
    pub event_time: i64,
    /// The event.
    pub event_id: String,
    /// 1 or 0.
    pub label: i32,
    /// Whether the 0 is for want of any outcome.
    pub implicit: bool,
    /// When the label was known, milliseconds.
    pub label_time: i64,
    /// The history strictly before, oldest first.
    pub history: Vec<HistoryItem>,
}

/// A record of `cot`.
#[derive(Clone, Debug, Serialize)]
pub struct Cot {
    /// Its content key, hex.
    pub key: String,
    /// Its offset in its user's partition.
    pub offset: i64,
    /// The text.
    pub text: String,
    /// The model that wrote it.
    pub llm_model: String,
    /// The decoding parameters, canonical JSON.
    pub parameters: String,
    /// Calls made, retries included.
    pub attempts: i32,
    /// Prompt tokens over all attempts.
    pub tokens_in: i64,
    /// Generated tokens over all attempts.
    pub tokens_out: i64,
    /// Why the last attempt ended.
    pub finish_reason: String,
    /// Share of distinct words among those the model wrote.
    pub quality: f64,
    /// When it was written, milliseconds.
    pub created_at: i64,
}

/// The prompt that asked for a CoT.
#[derive(Clone, Debug, Serialize)]
pub struct Prompted {
    /// The prompt version that the record names.
    pub version: String,
    /// The messages in their order; empty where they can't be told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Said>,
    /// Why they can't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

/// One message of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Lineage {
    /// The whole lineage of a pair's vector, `None` where the pair has no feature.
    pub fn explanation(&self, user: &str, item: &str) -> Option<Explanation> {
        let (feature, epoch) = self.features.get(&feature_key(user, item))?;
        let prompt = Prompt::builtin();
        let plain = |item: &String| HistoryItem {
            item: item.clone(),
            title: self.title(item),
            kind: None,
            label: None,
            event_time: None,
        };
        Some(Explanation {
            user: user.to_owned(),
            item: item.to_owned(),
            title: self.title(item),
            published_epoch: *epoch,
            committed_epoch: self.committed,
            cot_status: feature.cot_status,
            k: feature.k,
            cot_created_at: feature.cot_created_at,
            event_time: feature.event_time,
            ict_weights: feature.ict_weights.clone(),
            encoder: feature.encoder.clone(),
            prompt_version: feature.prompt_version.clone(),
            llm_model: feature.llm_model.clone(),
            history: feature.history.iter().map(plain).collect(),
            demonstrations: feature.demonstrations.iter().map(|used| self.used(&prompt, used)).collect(),
            vector_kind: feature.vector_kind,
            ict: feature.ict.clone(),
            votes: feature.votes.clone(),
            neighbours: feature.neighbours.iter().map(|used| self.neighbour(used)).collect(),
        })
    }

    fn neighbour(&self, used: &UsedNeighbour) -> Neighbour {
        Neighbour {
            source: used.source,
            id: used.id.clone(),
            similarity: used.score as f64 / f64::from(1 << 28),
            label: used.label,
            example: self.examples.get(&used.id).map(|example| self.example(example)),
        }
    }

    fn used(&self, prompt: &Prompt, used: &UsedDemonstration) -> Demonstration {
        let example = self.examples.get(&used.id);
        let cot = example.and_then(|example| Some((example, self.cot(example, used.fresh)?)));
        Demonstration {
            id: used.id.clone(),
            score: used.score,
            label: used.label,
            fresh: used.fresh,
            example: example.map(|example| self.example(example)),
            content_key: example.and_then(|example| self.own_key(example)).map(|key| key.hex()),
            prompt: cot.as_ref().map(|(example, (key, _, cot))| self.prompted(prompt, key, cot, example)),
            cot: cot.map(|(_, (key, offset, cot))| Cot {
                key: key.hex(),
                offset,
                text: cot.text.clone(),
                llm_model: cot.llm_model.clone(),
                parameters: cot.parameters.clone(),
                attempts: cot.attempts,
                tokens_in: cot.tokens_in,
                tokens_out: cot.tokens_out,
                finish_reason: cot.finish_reason.clone(),
                quality: cot.quality,
                created_at: cot.created_at,
            }),
        }
    }

    fn example(&self, example: &ExampleRecord) -> Example {
        let history = example.history.iter().map(|entry| HistoryItem {
            item: entry.item_id.clone(),
            title: self.title(&entry.item_id),
            kind: Some(entry.kind.clone()),
            label: Some(entry.label.clone()),
            event_time: Some(entry.event_time),
        });
        Example {
            user: example.user_id.clone(),
            item: example.item_id.clone(),
            title: self.title(&example.item_id),
            event_time: example.event_time,
            event_id: example.event_id.clone(),
            label: i32::from(decision(example) == ictflow_schemas::history::Label::Positive),
            implicit: example.implicit,
            label_time: example.label_time,
            history: history.collect(),
        }
    }
}

/// Writes a text's lines behind a margin.
fn block(f: &mut fmt::Formatter<'_>, margin: &str, text: &str) -> fmt::Result {
    text.lines().try_for_each(|line| writeln!(f, "{margin}{line}"))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = serde_json::to_value(self.cot_status).unwrap_or_default();
        let status = status.as_str().unwrap_or_default();
        writeln!(f, "user {}, item {}: {}", self.user, self.item, self.title)?;
        writeln!(
            f,
            "  published in epoch {} (committed by now: {}), cot_status {status}, k {}",
            self.published_epoch, self.committed_epoch, self.k
        )?;
        writeln!(f, "  weights {}", self.ict_weights)?;
        writeln!(f, "  encoder {}", self.encoder)?;
        writeln!(f, "  prompt  {}, model {}", self.prompt_version, self.llm_model)?;
        writeln!(f, "  history, oldest first:")?;
        for entry in &self.history {
            writeln!(f, "    {:>6}  {}", entry.item, entry.title)?;
        }
        if !self.demonstrations.is_empty() {
            writeln!(f, "  demonstrations, nearest last:")?;
        }
        for used in &self.demonstrations {
            used.fmt(f)?;
        }
        self.instructions(f)?;
        self.voted(f)?;
        writeln!(f, "  ict by {}, {} components:", self.vector_kind, self.ict.len())?;
        let vector: Vec<String> = self.ict.iter().map(|x| format!("{x:+.4}")).collect();
        vector.chunks(8).try_for_each(|row| writeln!(f, "    {}", row.join(" ")))
    }
}

/// What each vote is, in their order.
const VOTES: [&str; 9] = [
    "of the item: labels",
    "their rate, less one half",
    "mean of the nearest, less one half",
    "the same, by similarity",
    "of the user: labels",
    "mean of the nearest, less one half",
    "the same, by similarity",
    "mean less the items' rates",
    "the same, by similarity",
];

impl Explanation {
    /// The votes, and who votes.
    fn voted(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  votes:")?;
        for (vote, what) in self.votes.iter().zip(VOTES) {
            writeln!(f, "    {vote:+8.4}  {what}")?;
        }
        for (source, what) in [
            (NeighbourSource::SameItem, "others on this item"),
            (NeighbourSource::SameUser, "this user on other items"),
        ] {
            writeln!(f, "  {what}, nearest last:")?;
            for neighbour in self.neighbours.iter().filter(|neighbour| neighbour.source == source) {
                let Neighbour { similarity, label, id, .. } = neighbour;
                match &neighbour.example {
                    Some(Example { user, item, title, label_time, .. }) => writeln!(
                        f,
                        "    {similarity:+.3}  label {label}  user {user} on {item} {title}, since {label_time}"
                    )?,
                    None => {
                        writeln!(f, "    {similarity:+.3}  label {label}  {id}, not on the topic any more")?
                    }
                }
            }
        }
        Ok(())
    }
}

impl Explanation {
    /// The messages before the last of each prompt: the same for all of one label, so told once each.
    fn instructions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in [1, 0] {
            let of = |used: &&Demonstration| used.label == label;
            let prompts = self.demonstrations.iter().filter(of).filter_map(|used| used.prompt.as_ref());
            let Some((_, head)) = prompts.filter_map(|prompt| prompt.messages.split_last()).next() else {
                continue;
            };
            writeln!(f, "  before the prompts of label {label}, for each the same:")?;
            for said in head {
                writeln!(f, "    {}:", said.role)?;
                block(f, "      ", &said.content)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Demonstration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fresh = if self.fresh { "fresh" } else { "stale" };
        writeln!(f, "    {} score {} label {} {fresh}", self.id, self.score, self.label)?;
        let Some(example) = &self.example else {
            return writeln!(f, "      its example isn't on the topic any more");
        };
        let implicit = if example.implicit { ", implicit" } else { "" };
        writeln!(
            f,
            "      user {} on {} {}: label {}{implicit} since {}, event {} at {}",
            example.user,
            example.item,
            example.title,
            example.label,
            example.label_time,
            example.event_id,
            example.event_time
        )?;
        writeln!(f, "      its history, oldest first:")?;
        for entry in &example.history {
            let (kind, label) = (entry.kind.as_deref(), entry.label.as_deref());
            let (kind, label) = (kind.unwrap_or_default(), label.unwrap_or_default());
            writeln!(f, "        {:>6}  {} ({kind}, {label})", entry.item, entry.title)?;
        }
        if let Some(key) = &self.content_key {
            writeln!(f, "      content key {key}")?;
        }
        let Some(cot) = &self.cot else {
            return writeln!(f, "      (its text isn't on the log any more)");
        };
        if self.content_key.as_ref() != Some(&cot.key) {
            writeln!(f, "      in its place the CoT of key {}", cot.key)?;
        }
        match self.prompt.as_ref().map(|prompt| (prompt.messages.last(), &prompt.unavailable)) {
            Some((Some(ask), _)) => {
                writeln!(f, "      the prompt's last message:")?;
                block(f, "        ", &ask.content)?;
            }
            Some((None, Some(reason))) => writeln!(f, "      its prompt can't be shown: {reason}")?,
            _ => {}
        }
        writeln!(
            f,
            "      CoT by {} in {} attempts, {} tokens in, {} out, written at {}:",
            cot.llm_model, cot.attempts, cot.tokens_in, cot.tokens_out, cot.created_at
        )?;
        block(f, "        ", &format!("\u{201c}{}\u{201d}", cot.text))
    }
}
