//! The demonstrations of the paper's vector that an evaluation may use, and the texts that explain them.
//!
//! **The pool** are training samples with a history and an item of which a text is known. Where a CoT log is
//! given, those of them that the LLM explained: with the label, and without it where the log has texts of that
//! kind. Without a log it is one in ten, as a job with the default strides chooses. The pool is the same for all
//! arms, whatever text they read: so arms differ in texts alone.
//!
//! **Texts.** The template's are written here. The LLM's stand in the log under content keys that hold user,
//! item, text, label, history, prompt and model: what fits no more is never found. Shuffled ones change places
//! within the pool by a fixed seed. An empty text, or one that the encoder refuses, has the vector 0.

use super::arms::{Arm, Cot};
use super::dataset::Prepared;
use super::embeddings::Embeddings;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::{Error, Result};
use ictflow_operators::eligible::selected;
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::histories::{example, item_state};
use ictflow_operators::ranking::split::Sample;
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRecord, CotRequest, CotStatus, PromptEntry, PromptView, parse_topic_key};
use ictflow_schemas::example::Example;
use ictflow_schemas::framing::{Digest, text_digest};
use ictflow_schemas::history::Label;
use ictflow_schemas::item::ItemText;
use ictflow_schemas::vector::Quantised;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// The seed by which texts change places.
const SHUFFLED: u64 = 1;

/// What the pool is, for reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PoolFigures {
    /// Demonstrations.
    pub demonstrations: usize,
    /// Those of them that an LLM explained with the label.
    pub explained: usize,
    /// Tokens that the LLM read for these.
    pub tokens_in: i64,
    /// Tokens that it wrote for these.
    pub tokens_out: i64,
}

/// The vectors of one kind of texts.
#[derive(Clone, Debug, Default)]
pub struct CotVectors {
    /// By training sample, its row: from 1 on where it has a vector, else 0.
    pub row: Vec<u32>,
    /// By row less 1.
    pub vectors: Vec<Quantised>,
    /// What decided them: the texts of the pool.
    pub digest: String,
}

/// The pool and the vectors of its texts.
#[derive(Clone, Debug, Default)]
pub struct Cots {
    /// By training sample, whether it is in the pool.
    pub pool: Vec<bool>,
    /// What the pool is.
    pub figures: PoolFigures,
    vectors: BTreeMap<Cot, CotVectors>,
    digest: String,
}

/// What is known of one training sample.
struct Eligible {
    example: Example,
    item: u32,
}

impl Cots {
    /// The pool, and the texts that some arms read. Where no arm has demonstrations it is empty, and nothing is
    /// done. The log is a file of JSON Lines, each a key and a record of the topic
    /// `cot`; vectors are kept in `cache`.
    ///
    /// # Errors
    /// `Fatal` where an arm reads texts that nobody wrote, no sample can be a demonstration, or a file can't be
    /// read or written; those of the encoder.
    pub fn of(
        prepared: &Prepared,
        arms: &[Arm],
        log: Option<&Path>,
        encoder: &mut dyn Embed,
        cache: &Path,
    ) -> Result<Self> {
        let wanted: BTreeSet<Option<Cot>> = arms.iter().filter_map(Arm::demonstrations).collect();
        if wanted.is_empty() {
            return Ok(Cots::default());
        }
        let log = log.map(Log::read).transpose()?;
        let semantics = Semantics::default();
        let eligible = eligible(prepared);
        let written = log.as_ref().map(|log| log.texts(prepared, &eligible, true));
        let free =
            log.as_ref().filter(|log| log.label_free()).map(|log| log.texts(prepared, &eligible, false));
        let pool: Vec<bool> = eligible
            .iter()
            .enumerate()
            .map(|(place, eligible)| match (eligible, &written) {
                (None, _) => false,
                (Some(_), Some(written)) => {
                    written[place].is_some() && free.as_ref().is_none_or(|free| free[place].is_some())
                }
                (Some(eligible), None) => selected(&eligible.example, &semantics),
            })
            .collect();
        let demonstrations = pool.iter().filter(|pooled| **pooled).count();
        if demonstrations == 0 {
            return Err(Error::fatal(
                "choose demonstrations",
                "no training sample with a history has a CoT",
                "name the log that `ictflow cots` made of this data set with this split, by --cots",
            ));
        }
        let mut cots =
            Cots { figures: PoolFigures { demonstrations, ..PoolFigures::default() }, ..Cots::default() };
        cots.digest = digest(prepared, &pool, None);
        let pooled = |place: usize| pool[place];
        for cot in wanted.into_iter().flatten() {
            let texts: Vec<Option<String>> = match cot {
                Cot::Template => template(prepared, &eligible, pooled),
                Cot::Llm => of_log(cot, written.as_ref(), pooled)?,
                Cot::Shuffled => shuffled(of_log(cot, written.as_ref(), pooled)?),
                Cot::LabelFree => of_log(cot, free.as_ref(), pooled)?,
            };
            cots.vectors.insert(cot, CotVectors::of(prepared, &pool, &texts, encoder, cache)?);
        }
        if let Some(written) = &written {
            for (answer, _) in written.iter().zip(&pool).filter(|(_, pooled)| **pooled) {
                let Some(answer) = answer else { continue };
                cots.figures.explained += 1;
                cots.figures.tokens_in += answer.tokens_in;
                cots.figures.tokens_out += answer.tokens_out;
            }
        }
        cots.pool = pool;
        Ok(cots)
    }

    /// The vectors of a kind of texts; `None` where no arm asked for them.
    pub fn vectors(&self, cot: Cot) -> Option<&CotVectors> {
        self.vectors.get(&cot)
    }

    /// What decides the demonstrations of an arm; `None` for one that has none.
    pub fn digest(&self, arm: &Arm) -> Option<&str> {
        match arm.demonstrations()? {
            None => Some(&self.digest),
            Some(cot) => self.vectors.get(&cot).map(|vectors| vectors.digest.as_str()),
        }
    }
}

/// By training sample, what may be explained: a sample with a history and an item with a text vector.
fn eligible(prepared: &Prepared) -> Vec<Option<Eligible>> {
    let Prepared { data, split, histories, texts, .. } = prepared;
    let of = |sample: &Sample| {
        texts[sample.item as usize].as_ref()?;
        let example = example(data, histories, *sample);
        (!example.history.is_empty()).then_some(Eligible { example, item: sample.item })
    };
    split.train.iter().map(of).collect()
}

impl Eligible {
    fn view(&self, prepared: &Prepared, with_label: bool) -> PromptView {
        let Example { identity, item, verdict, history, .. } = &self.example;
        let text = item_state(&prepared.data, self.item).map_or_else(|| text_digest(""), |state| state.text);
        let decision = if with_label { verdict.decision() } else { Label::None };
        let length = Semantics::default().prompt_history;
        PromptView::new(identity.user.clone(), item.clone(), text, decision, history, length)
    }

    fn request(&self, prepared: &Prepared, template: &Template) -> CotRequest {
        let (data, view) = (&prepared.data, self.view(prepared, true));
        let text = |item: &str| {
            let item = data.items().find(item).filter(|item| data.catalog().exists(*item));
            item.map(|item| ItemText::parse(data.catalog().text(item)))
        };
        let key = view.content_key(template.prompt_version(), template.model(), template.parameters());
        let entry = |(item, kind, label): &(Id, Id, Label)| PromptEntry {
            item: text(item),
            kind: kind.to_string(),
            label: *label,
        };
        CotRequest {
            key,
            item: text(&view.item).unwrap_or_default(),
            decision: view.decision,
            history: view.history.iter().map(entry).collect(),
        }
    }
}

/// The template's texts of the pool.
fn template(
    prepared: &Prepared,
    eligible: &[Option<Eligible>],
    pooled: impl Fn(usize) -> bool,
) -> Vec<Option<String>> {
    let mut template = Template::new(Prompt::builtin());
    let mut write = |(place, eligible): (usize, &Option<Eligible>)| {
        let request = eligible.as_ref().filter(|_| pooled(place))?.request(prepared, &template);
        // It is a pure function without a failure.
        template.generate(&request, 1).ok().map(|draft| draft.text)
    };
    eligible.iter().enumerate().map(&mut write).collect()
}

/// The texts of the pool that a log has.
fn of_log(
    cot: Cot,
    answers: Option<&Vec<Option<Answer>>>,
    pooled: impl Fn(usize) -> bool,
) -> Result<Vec<Option<String>>> {
    let Some(answers) = answers else {
        let what = match cot {
            Cot::LabelFree => "it reads CoTs that an LLM wrote without the label, and the log has none",
            _ => "it reads CoTs of an LLM, and no log of them is given",
        };
        let hint = "name a log by --cots, make one by `ictflow cots`, or leave the arm out by --arms";
        return Err(Error::fatal(format!("train arms -{}", cot.name()), what, hint));
    };
    let of = |(place, answer): (usize, &Option<Answer>)| {
        answer.as_ref().filter(|_| pooled(place)).map(|answer| answer.text.clone())
    };
    Ok(answers.iter().enumerate().map(of).collect())
}

/// The texts that are there change places.
fn shuffled(mut texts: Vec<Option<String>>) -> Vec<Option<String>> {
    let mut there: Vec<String> = texts.iter().flatten().cloned().collect();
    Draws::new(SHUFFLED).shuffle(&mut there);
    for (text, other) in texts.iter_mut().filter(|text| text.is_some()).zip(there) {
        *text = Some(other);
    }
    texts
}

impl CotVectors {
    fn of(
        prepared: &Prepared,
        pool: &[bool],
        texts: &[Option<String>],
        encoder: &mut dyn Embed,
        cache: &Path,
    ) -> Result<Self> {
        let digests: Vec<Option<Digest>> = texts
            .iter()
            .map(|text| text.as_deref().filter(|text| !text.is_empty()).map(text_digest))
            .collect();
        let wanted: HashSet<Digest> = digests.iter().flatten().copied().collect();
        let mut embeddings = Embeddings::open(cache, encoder, |digest| wanted.contains(digest))?;
        let given: Vec<(Digest, &str)> = digests
            .iter()
            .zip(texts)
            .filter_map(|(digest, text)| Some(((*digest)?, text.as_deref()?)))
            .collect();
        embeddings.fill("CoTs", &given, encoder)?;
        let mut cots = CotVectors { digest: digest(prepared, pool, Some(&digests)), ..CotVectors::default() };
        let mut rows: HashMap<Digest, u32> = HashMap::new();
        for digest in digests {
            let vector = digest.and_then(|digest| Some((digest, embeddings.get(&digest)?)));
            let row = vector.map_or(0, |(digest, vector)| {
                *rows.entry(digest).or_insert_with(|| {
                    cots.vectors.push(vector.clone());
                    cots.vectors.len() as u32
                })
            });
            cots.row.push(row);
        }
        Ok(cots)
    }
}

/// The digest of the pool and its texts.
fn digest(prepared: &Prepared, pool: &[bool], texts: Option<&[Option<Digest>]>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (place, sample) in prepared.split.train.iter().enumerate().filter(|(place, _)| pool[*place]) {
        hasher.update(&sample.row.to_le_bytes());
        hasher.update(&sample.item.to_le_bytes());
        let text = texts.and_then(|texts| texts[place]);
        hasher.update(&text.map_or([0; 32], |digest| digest.0));
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// A log of CoTs: records of the topic `cot` as JSON Lines.
#[derive(Debug, Default)]
struct Log {
    answers: HashMap<Digest, Answer>,
    /// Prompt version, model and parameters, and whether the label was told.
    versions: BTreeSet<(bool, String, String, String)>,
}

/// What an LLM wrote.
#[derive(Clone, Debug)]
struct Answer {
    text: String,
    tokens_in: i64,
    tokens_out: i64,
}

/// A line of the log: the key of `cot`, and its record.
#[derive(Deserialize)]
struct Line {
    key: String,
    value: CotRecord,
}

impl Log {
    /// Reads a log: a line is `{"key": KEY, "value": RECORD}`. Failures are passed over; of several texts of a
    /// key the last one holds; a torn last line counts as none.
    ///
    /// # Errors
    /// `Fatal` where the file can't be read, or a line but the last isn't a record. What it holds isn't said.
    fn read(path: &Path) -> Result<Self> {
        let failed = |detail: String| {
            let context = format!("read the CoT log {}", path.display());
            Error::fatal(context, detail, "name the log that `ictflow cots` made, by --cots")
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let mut log = Log::default();
        for (number, line) in (1..).zip(text.split_inclusive('\n')) {
            let parsed = serde_json::from_str::<Line>(line).ok();
            let parsed = parsed.and_then(|line| Some((parse_topic_key(line.key.as_bytes())?, line.value)));
            let Some(((status, key), record)) = parsed else {
                if line.ends_with('\n') {
                    return Err(failed(format!("line {number} isn't a record of cot")));
                }
                break;
            };
            if status == CotStatus::Ok {
                let CotRecord { text, tokens_in, tokens_out, prompt_version, llm_model, parameters, .. } =
                    record;
                let told = record.decision != Label::None.word();
                log.versions.insert((told, prompt_version, llm_model, parameters));
                log.answers.insert(key, Answer { text, tokens_in, tokens_out });
            }
        }
        Ok(log)
    }

    /// Whether any text was written without the label.
    fn label_free(&self) -> bool {
        self.versions.iter().any(|(told, ..)| !told)
    }

    /// By training sample its text; of several versions' the first by the order of their names.
    fn texts(
        &self,
        prepared: &Prepared,
        eligible: &[Option<Eligible>],
        with_label: bool,
    ) -> Vec<Option<Answer>> {
        let text = |eligible: &Option<Eligible>| {
            let view = eligible.as_ref()?.view(prepared, with_label);
            let versions = self.versions.iter().filter(|(told, ..)| *told == with_label);
            let mut keys =
                versions.map(|(_, prompt, model, parameters)| view.content_key(prompt, model, parameters));
            keys.find_map(|key| self.answers.get(&key)).cloned()
        };
        eligible.iter().map(text).collect()
    }
}
