//! The demonstrations of the paper's vector that an evaluation may use, and the vectors of their CoTs.
//!
//! **The pool** are training samples with a history and an item of which a text is known. Where a CoT log is
//! given, those of them that the LLM explained: with the label, and without it too where an arm reads texts of
//! that kind and the log has some. Without a log it is one in ten, as a job with the default strides chooses. The pool is the same
//! for all arms, whatever text they read: so arms differ in texts alone.
//!
//! **Texts** are those of [`crate::cots::texts`]; shuffled ones change places within the pool. A text that the
//! encoder refuses has the vector 0.

use super::arms::{Arm, Cot};
use super::dataset::Prepared;
use super::embeddings::Embeddings;
use crate::cots::examples::Examples;
use crate::cots::log::CotLog;
use crate::cots::report::beginning;
use crate::cots::texts::{shuffled, template, texts_of, version_of};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::{Error, Result};
use ictflow_operators::eligible::selected;
use ictflow_operators::ranking::histories::example;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::framing::{Digest, text_digest};
use ictflow_schemas::vector::Quantised;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// What the pool is, for reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PoolFigures {
    /// Demonstrations.
    pub demonstrations: usize,
    /// Those of them that an LLM explained with the label.
    pub explained: usize,
    /// Which LLM and prompt; none where no text is of an LLM.
    pub explained_by: Option<String>,
    /// Tokens that the LLM read for these.
    pub tokens_in: i64,
    /// Tokens that it wrote for these.
    pub tokens_out: i64,
    /// Whether the published rule chose of them, which looks into the future.
    pub paper_compat: bool,
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

/// By training sample its text.
type Texts = Vec<Option<String>>;

impl Cots {
    /// The pool, and the texts that some arms read. Where no arm has demonstrations it is empty, and nothing is
    /// done. Vectors are kept in `cache`. `paper_compat` lets the published rule choose demonstrations.
    ///
    /// # Errors
    /// `Fatal` where an arm reads texts that nobody wrote, no sample can be a demonstration, or a file can't be
    /// read or written; those of the encoder.
    pub fn of(
        prepared: &Prepared,
        arms: &[Arm],
        log: Option<&CotLog>,
        paper_compat: bool,
        (encoder, cache): (&mut dyn Embed, &Path),
    ) -> Result<Self> {
        let wanted: BTreeSet<Option<Cot>> = arms.iter().filter_map(Arm::demonstrations).collect();
        if wanted.is_empty() {
            return Ok(Cots::default());
        }
        let examples = Examples::of(prepared);
        let written = log.map(|log| texts_of(log, prepared, Cot::Llm)).transpose()?;
        let free = match wanted.contains(&Some(Cot::LabelFree)) {
            true => log.map(|log| texts_of(log, prepared, Cot::LabelFree)).transpose()?,
            false => None,
        };
        let free = free.filter(|texts| texts.iter().any(Option::is_some));
        let pool = pool(&examples, written.as_ref(), free.as_ref());
        let demonstrations = pool.iter().filter(|pooled| **pooled).count();
        if demonstrations == 0 {
            let which = log.map_or(String::new(), |log| format!(" in {}", log.path().display()));
            return Err(Error::fatal(
                "choose demonstrations",
                format!("no training sample with a history has a CoT of an LLM{which}"),
                "name the log that `ictflow cots` made of this data set with this split, by --cots; texts of the \
                 template don't count, and label-free ones only beside texts of the same samples with the label",
            ));
        }
        let pooled = |texts: Texts| -> Texts {
            texts.into_iter().zip(&pool).map(|(text, pooled)| text.filter(|_| *pooled)).collect()
        };
        let mut vectors = BTreeMap::new();
        for cot in wanted.into_iter().flatten() {
            let texts = match cot {
                Cot::Template => pooled(template(&examples)?),
                Cot::Llm => pooled(there(cot, written.clone())?),
                Cot::LabelFree => pooled(there(cot, free.clone())?),
                Cot::Shuffled => shuffled(&examples, pooled(there(cot, written.clone())?)),
            };
            vectors.insert(cot, CotVectors::of(prepared, &pool, &texts, encoder, cache)?);
        }
        let mut figures = PoolFigures { demonstrations, paper_compat, ..PoolFigures::default() };
        if let Some((log, version)) = log.and_then(|log| Some((log, version_of(log, false)?))) {
            figures.explained_by =
                Some(format!("{}, prompt {}", beginning(&version.llm_model), version.prompt_version));
            for place in (0..).zip(&pool).filter_map(|(place, pooled)| pooled.then_some(place)) {
                let Some(answer) = log.get(&version.key(&examples.view(place, false))) else { continue };
                figures.explained += 1;
                figures.tokens_in += answer.tokens_in;
                figures.tokens_out += answer.tokens_out;
            }
        }
        let digest = digest(prepared, &pool, None);
        Ok(Cots { digest, pool, figures, vectors })
    }

    /// The vectors of a kind of texts; `None` where no arm asked for them.
    pub fn vectors(&self, cot: Cot) -> Option<&CotVectors> {
        self.vectors.get(&cot)
    }

    /// What decides the demonstrations of an arm; `None` for one that has none.
    pub fn digest(&self, arm: &Arm) -> Option<String> {
        let digest = match arm.demonstrations()? {
            None => &self.digest,
            Some(cot) => &self.vectors.get(&cot)?.digest,
        };
        Some(if self.figures.paper_compat {
            format!("{digest} by the published rule")
        } else {
            digest.clone()
        })
    }
}

/// By training sample, whether it may be a demonstration.
fn pool(examples: &Examples<'_>, written: Option<&Texts>, free: Option<&Texts>) -> Vec<bool> {
    let prepared = examples.prepared();
    let semantics = Semantics::default();
    let mut pool = vec![false; prepared.split.train.len()];
    for place in examples.places().iter().map(|place| *place as usize) {
        pool[place] = match written {
            Some(written) => written[place].is_some() && free.is_none_or(|free| free[place].is_some()),
            None => {
                let sample = prepared.split.train[place];
                selected(&example(&prepared.data, &prepared.histories, sample), &semantics)
            }
        };
    }
    pool
}

/// Texts that an arm needs.
fn there(cot: Cot, texts: Option<Texts>) -> Result<Texts> {
    texts.ok_or_else(|| {
        let what = match cot {
            Cot::LabelFree => "it reads CoTs that an LLM wrote without the label, and there are none",
            _ => "it reads CoTs of an LLM, and no log of them is given",
        };
        let hint = "name a log by --cots, make one by `ictflow cots`, or leave the arm out by --arms";
        Error::fatal(format!("train an arm -{}", cot.name()), what, hint)
    })
}

impl CotVectors {
    fn of(
        prepared: &Prepared,
        pool: &[bool],
        texts: &[Option<String>],
        encoder: &mut dyn Embed,
        cache: &Path,
    ) -> Result<Self> {
        let digests: Vec<Option<Digest>> =
            texts.iter().map(|text| text.as_deref().map(text_digest)).collect();
        let wanted: HashSet<Digest> = digests.iter().flatten().copied().collect();
        let mut embeddings = Embeddings::open(cache, encoder, |digest| wanted.contains(digest))?;
        let given: Vec<(Digest, &str)> = (digests.iter().zip(texts))
            .filter_map(|(digest, text)| Some(((*digest)?, text.as_deref()?)))
            .collect();
        embeddings.fill(&given, encoder)?;
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
