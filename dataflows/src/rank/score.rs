//! From vectors and catalog to a ranker's logits: the inputs that it was trained on, made of what stands on topics.
//!
//! | input | from |
//! | --- | --- |
//! | ids | user and item of the key; creator and categories by `items`; the newest entries of `history` |
//! | texts | the item's vector, and the mean of the history's over the entries that have one |
//! | the user's labels | `history_labels` of these entries: the shrunk rate less one half, L2(1 + n) / 8 |
//! | votes | `votes`, the two counts n as L2(1 + n) / 8 |
//! | vector | `ict` |
//!
//! An id that training didn't know counts as absent. An item that doesn't exist has no creator, categories or text. Votes and labels that a record lacks count as
//! of nobody; [`super::shortfalls`] counts them.

use super::catalog::Catalog;
use super::ranker::Ranker;
use super::view::Vector;
use candle_core::{Device, Result as Made, Tensor};
use ictflow_connectors::{Error, Result};
use ictflow_operators::ranking::backbones::Inputs;
use ictflow_operators::ranking::ids::Ids;
use ictflow_operators::ranking::layers::Phase;
use ictflow_operators::ranking::scalars::{LABEL_SCALARS, label_scalars, vote_scalars};
use ictflow_operators::ranking::variables::values;
use ictflow_schemas::Id;
use ictflow_schemas::neighbour::VOTES;
use ictflow_schemas::vector::{SCALE, VectorSum};

/// Pairs that are scored together.
const SCORED_AT_ONCE: usize = 512;

/// A pair to be scored.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The user.
    pub user: &'a str,
    /// The item.
    pub item: &'a str,
    /// The newest of its feature.
    pub vector: &'a Vector,
}

/// What is read of a feature. What isn't counts as zeros: to see what it is worth to a ranker that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The vector.
    pub vector: bool,
    /// The votes.
    pub votes: bool,
}

impl Reads {
    /// All that the ranker was trained on.
    pub const ALL: Reads = Reads { vector: true, votes: true };
    /// Neither vector nor votes.
    pub const NEITHER: Reads = Reads { vector: false, votes: false };
}

/// p = 1 / (1 + e^−z).
pub fn probability(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}

impl Ranker {
    /// The logits of a positive label, in the order of the candidates.
    ///
    /// # Errors
    /// `Fatal` where vectors aren't of the width that the ranker reads.
    pub fn logits(&self, candidates: &[Candidate<'_>], catalog: &Catalog, reads: Reads) -> Result<Vec<f32>> {
        if let Some(width) = self.vector_width()
            && let Some(other) = candidates.iter().find(|candidate| candidate.vector.ict.len() != width)
        {
            let found = other.vector.ict.len();
            return Err(Error::fatal(
                "score vectors",
                format!("the vector of a pair has {found} numbers, the ranker reads {width}"),
                "the job and the ranker were trained apart: use the ict.safetensors written beside the ranker",
            ));
        }
        let mut logits = Vec::with_capacity(candidates.len());
        for candidates in candidates.chunks(SCORED_AT_ONCE) {
            let scored = self
                .inputs(candidates, catalog, reads)
                .map_err(Into::into)
                .and_then(|inputs| self.backbone.logits(&inputs, &mut Phase::Serving))
                .and_then(|logits| values(&logits));
            logits.extend(scored.map_err(|error| {
                Error::fatal("score vectors", error, "this is a defect, please report it")
            })?);
        }
        Ok(logits)
    }

    /// The inputs of a batch.
    fn inputs(&self, candidates: &[Candidate<'_>], catalog: &Catalog, reads: Reads) -> Made<Inputs> {
        let texts = match (&self.text, &self.serving.text) {
            (Some(net), Some(text)) => {
                let [item, history] = self.texts(candidates, catalog, text.width)?;
                let projected = |x: &Tensor| net.forward(x).map_err(candle_core::Error::wrap);
                Some([projected(&item)?, projected(&history)?])
            }
            _ => None,
        };
        let width = self.settings.scalars;
        let scalars = match width {
            0 => None,
            _ => {
                let all = candidates.iter().flat_map(|candidate| self.scalars(candidate.vector, reads));
                let all = Tensor::from_iter(all, &Device::Cpu)?.reshape((candidates.len(), width))?;
                Some(all.affine(self.serving.scalar_scale, 0.0)?)
            }
        };
        let vector = match self.vector_width() {
            None => None,
            Some(width) if reads.vector => {
                let all = candidates.iter().flat_map(|candidate| candidate.vector.ict.iter().copied());
                Some(Tensor::from_iter(all, &Device::Cpu)?.reshape((candidates.len(), width))?)
            }
            Some(width) => {
                Some(Tensor::zeros((candidates.len(), width), candle_core::DType::F32, &Device::Cpu)?)
            }
        };
        let ids = self.ids(candidates, catalog)?;
        Ok(Inputs { ids, tables: self.tables.clone(), text: texts, scalars, vector })
    }

    /// The entries of a history that are read: the newest.
    fn history<'a>(&self, vector: &'a Vector) -> &'a [Id] {
        let items = &vector.history.items;
        &items[items.len().saturating_sub(self.serving.history)..]
    }

    fn ids(&self, candidates: &[Candidate<'_>], catalog: &Catalog) -> Made<Ids> {
        let creator_of = |item: &str| {
            let creator = catalog.get(item).and_then(|facts| facts.creator.as_deref());
            creator.map_or(0, |creator| self.creator.row(creator))
        };
        let categories_of = |item: &str| catalog.get(item).map_or(&[][..], |facts| &*facts.categories);
        let length = self.serving.history;
        let named = candidates.iter().flat_map(|candidate| {
            let history = self.history(candidate.vector).iter().map(|item| &**item);
            history.chain(std::iter::once(candidate.item))
        });
        let most = named.map(|item| categories_of(item).len()).max().unwrap_or_default().max(1);
        let extend = |all: &mut Vec<u32>, item: &str| {
            let own = categories_of(item);
            all.extend(own.iter().map(|id| self.category.row(id)));
            all.extend(std::iter::repeat_n(0, most - own.len()));
        };
        let batch = candidates.len();
        let mut categories = Vec::with_capacity(batch * most);
        let mut history_items = Vec::with_capacity(batch * length);
        let mut history_creators = Vec::with_capacity(batch * length);
        let mut history_categories = Vec::with_capacity(batch * length * most);
        for candidate in candidates {
            extend(&mut categories, candidate.item);
            let history = self.history(candidate.vector);
            for entry in history {
                history_items.push(self.item.row(entry));
                history_creators.push(creator_of(entry));
                extend(&mut history_categories, entry);
            }
            let absent = length - history.len();
            history_items.extend(std::iter::repeat_n(0, absent));
            history_creators.extend(std::iter::repeat_n(0, absent));
            history_categories.extend(std::iter::repeat_n(0, absent * most));
        }
        let of_each =
            |id: &dyn Fn(&Candidate<'_>) -> u32| Tensor::from_iter(candidates.iter().map(id), &Device::Cpu);
        let device = &Device::Cpu;
        Ok(Ids {
            user: of_each(&|candidate| self.user.row(candidate.user))?,
            item: of_each(&|candidate| self.item.row(candidate.item))?,
            creator: of_each(&|candidate| creator_of(candidate.item))?,
            categories: Tensor::from_vec(categories, (batch, most), device)?,
            history_items: Tensor::from_vec(history_items, (batch, length), device)?,
            history_creators: Tensor::from_vec(history_creators, (batch, length), device)?,
            history_categories: Tensor::from_vec(history_categories, (batch, length, most), device)?,
        })
    }

    /// The items' texts [B, D] and the means of the histories'.
    fn texts(&self, candidates: &[Candidate<'_>], catalog: &Catalog, width: usize) -> Made<[Tensor; 2]> {
        let mut item = Vec::with_capacity(candidates.len() * width);
        let mut history = Vec::with_capacity(candidates.len() * width);
        for candidate in candidates {
            match catalog.text(candidate.item) {
                Some(vector) => item.extend(vector.iter().map(|x| f32::from(*x) / SCALE)),
                None => item.extend(std::iter::repeat_n(0.0, width)),
            }
            let entries = self.history(candidate.vector).iter();
            let vectors = entries.filter_map(|entry| catalog.text(entry)).map(|vector| &**vector);
            history.extend(VectorSum::over(vectors).mean_f32(width));
        }
        let shape = (candidates.len(), width);
        Ok([Tensor::from_vec(item, shape, &Device::Cpu)?, Tensor::from_vec(history, shape, &Device::Cpu)?])
    }

    /// The scalars of a pair, unscaled.
    fn scalars(&self, vector: &Vector, reads: Reads) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.settings.scalars);
        if self.serving.labels {
            let labels = &vector.history.labels;
            all.extend(own_labels(&labels[labels.len().saturating_sub(self.serving.history)..]));
        }
        if self.serving.votes {
            // Zeros where a record has none.
            let votes = <[f32; VOTES]>::try_from(&*vector.votes).ok().filter(|_| reads.votes);
            all.extend(votes.map_or([0.0; VOTES], vote_scalars));
        }
        all
    }
}

/// What a user's own labels say, of the numbers that a record has.
fn own_labels(labels: &[i32]) -> [f32; LABEL_SCALARS] {
    let count = |label: i32| labels.iter().filter(|other| **other == label).count() as i64;
    let (positive, negative) = (count(1), count(0));
    label_scalars(positive, positive + negative)
}
