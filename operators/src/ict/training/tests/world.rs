//! A small data set, as serving reads it (ids, states) and as training does (rows, tensors).

use super::super::{Demonstrations, HashedRows, Parties, Samples};
use super::{Row, padded, picked};
use crate::ict::tests::number;
use crate::ict::{
    DemonstrationTokens, NeighbourInput, NeighbourItemPart, NeighbourUserPart, Sample, Shape, Weights,
};
use crate::ranking::ids::Ids;
use candle_core::{Device, Tensor};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::{Item, ItemState, ItemVector};
use ictflow_schemas::example::Verdict;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::vector::{SCALE, VectorSum};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A user, an item and the items of the history.
pub(super) struct Plain {
    pub(super) user: &'static str,
    pub(super) item: &'static str,
    pub(super) history: Vec<&'static str>,
}

pub(super) fn plain(user: &'static str, item: &'static str, history: &[&'static str]) -> Plain {
    Plain { user, item, history: history.to_vec() }
}

/// Tables so small that ids share rows.
pub(super) fn crowded(d: usize, text: usize) -> Shape {
    Shape { d, text, user_rows: 5, item_rows: 6, creator_rows: 4, category_rows: 4 }
}

pub(super) struct World {
    pub(super) file: Shape,
    pub(super) rows: HashedRows,
    items: BTreeMap<&'static str, Item>,
}

const CATEGORIES: usize = 3;

impl World {
    pub(super) fn new(file: Shape) -> Self {
        let text = file.text;
        let item = |creator: Option<&str>, categories: &[&str], vector: Option<u64>| {
            let vector =
                vector.map(|v| ItemVector { text: text_digest("item"), vector: vector_of(v, text).into() });
            Arc::new(ItemState {
                text: text_digest("item"),
                creator: creator.map(Id::from),
                categories: categories.iter().map(|c| Id::from(*c)).collect(),
                vector,
            })
        };
        let items = BTreeMap::from([
            ("i1", item(Some("ann"), &["drama", "war"], Some(1))),
            ("i2", item(None, &["drama"], Some(2))),
            ("i3", item(Some("bob"), &[], Some(3))),
            ("i4", item(Some("cy"), &["war", "kids", "short"], None)),
            ("i5", item(None, &[], Some(5))),
            ("i6", item(Some("di"), &["kids"], Some(6))),
            ("i7", item(Some("ann"), &["short", "talk"], Some(7))),
        ]);
        World { rows: HashedRows::new(&file), file, items }
    }

    /// The sizes of the module: the file's, with the rows that the data set has.
    pub(super) fn compact(&self) -> Shape {
        Shape {
            user_rows: self.rows.user.len(),
            item_rows: self.rows.item.len(),
            creator_rows: self.rows.creator.len(),
            category_rows: self.rows.category.len(),
            ..self.file
        }
    }

    fn item(&mut self, id: &str) -> u32 {
        self.rows.item.add(id)
    }

    fn creator(&mut self, id: &str) -> u32 {
        let creator = self.items.get(id).and_then(|item| item.creator.clone());
        creator.map_or(0, |creator| self.rows.creator.add(&creator))
    }

    fn categories(&mut self, id: &str) -> Vec<u32> {
        let item = self.items.get(id).cloned();
        let mut row: Vec<u32> = item
            .map(|item| item.categories.iter().map(|c| self.rows.category.add(c)).collect())
            .unwrap_or_default();
        row.resize(CATEGORIES, 0);
        row
    }

    fn text(&self, id: &str) -> Vec<f32> {
        match self.items.get(id).and_then(|item| item.vector.as_ref()) {
            Some(vector) => vector.vector.iter().map(|x| f32::from(*x) / SCALE).collect(),
            None => vec![0.0; self.file.text],
        }
    }

    fn sum(&self, history: &[&str]) -> VectorSum {
        let vectors = history.iter().filter_map(|id| self.items.get(id)?.vector.as_ref());
        VectorSum::over(vectors.map(|v| &*v.vector))
    }

    /// Samples as training reads them.
    pub(super) fn samples(&mut self, samples: &[Plain]) -> Samples {
        let longest = samples.iter().map(|s| s.history.len()).max().unwrap_or(0).max(1);
        let user: Vec<u32> = samples.iter().map(|s| self.rows.user.add(s.user)).collect();
        let item: Vec<u32> = samples.iter().map(|s| self.item(s.item)).collect();
        let creator: Vec<u32> = samples.iter().map(|s| self.creator(s.item)).collect();
        let categories: Vec<Vec<u32>> = samples.iter().map(|s| self.categories(s.item)).collect();
        let mut of = |f: fn(&mut Self, &str) -> Vec<u32>, width: usize| {
            let rows: Vec<Vec<u32>> =
                samples.iter().map(|s| s.history.iter().flat_map(|id| f(self, id)).collect()).collect();
            padded(&rows, longest * width)
        };
        let history_items = of(|w, id| vec![w.item(id)], 1);
        let history_creators = of(|w, id| vec![w.creator(id)], 1);
        let history_categories = of(World::categories, CATEGORIES);
        let texts: Vec<f32> = samples.iter().flat_map(|s| self.text(s.item)).collect();
        let width = self.file.text;
        let means: Vec<f32> = samples.iter().flat_map(|s| self.sum(&s.history).mean_f32(width)).collect();
        let (count, device) = (samples.len(), &Device::Cpu);
        Samples {
            ids: Ids {
                user: Tensor::new(user, device).unwrap(),
                item: Tensor::new(item, device).unwrap(),
                creator: Tensor::new(creator, device).unwrap(),
                categories: padded(&categories, CATEGORIES),
                history_items,
                history_creators,
                history_categories: history_categories.reshape((count, longest, CATEGORIES)).unwrap(),
            },
            item_text: Tensor::from_vec(texts, (count, width), device).unwrap(),
            history_text: Tensor::from_vec(means, (count, width), device).unwrap(),
        }
    }

    /// Demonstrations as training reads them: `cots` are numbers of vectors, `picks` by query.
    pub(super) fn demonstrations(
        &mut self,
        samples: &[Plain],
        cots: &[u64],
        labels: &[u32],
        picks: &[Vec<u32>],
        k: usize,
    ) -> Demonstrations {
        let text = self.file.text;
        let cot: Vec<f32> =
            cots.iter().flat_map(|v| vector_of(*v, text)).map(|x| f32::from(x) / SCALE).collect();
        let (picks, there) = picked(picks, k);
        Demonstrations {
            samples: self.samples(samples),
            cot: Tensor::from_vec(cot, (cots.len(), text), &Device::Cpu).unwrap(),
            label: Tensor::new(labels, &Device::Cpu).unwrap(),
            picks,
            there,
        }
    }

    /// Users and items of neighbours as training reads them.
    pub(super) fn parties(&mut self, users: &[&str], items: &[&str]) -> Parties {
        let device = &Device::Cpu;
        let user: Vec<u32> = users.iter().map(|id| self.rows.user.add(id)).collect();
        let item: Vec<u32> = items.iter().map(|id| self.item(id)).collect();
        let creator: Vec<u32> = items.iter().map(|id| self.creator(id)).collect();
        let categories: Vec<Vec<u32>> = items.iter().map(|id| self.categories(id)).collect();
        let text: Vec<f32> = items.iter().flat_map(|id| self.text(id)).collect();
        Parties {
            users: Tensor::new(user, device).unwrap(),
            items: Tensor::new(item, device).unwrap(),
            creators: Tensor::new(creator, device).unwrap(),
            categories: padded(&categories, CATEGORIES),
            text: Tensor::from_vec(text, (items.len(), self.file.text), device).unwrap(),
        }
    }

    /// The token of a sample, by serving.
    pub(super) fn served_token(&self, weights: &Weights, sample: &Plain) -> Vec<f32> {
        self.with(sample, |sample| weights.sample_token(&sample))
    }

    /// The tokens of a demonstration, by serving.
    pub(super) fn served_demonstration(
        &self,
        weights: &Weights,
        sample: &Plain,
        cot: u64,
        label: u32,
    ) -> DemonstrationTokens {
        let verdict = if label == 1 { Verdict::Positive } else { Verdict::Negative };
        let cot = vector_of(cot, self.file.text);
        self.with(sample, |sample| weights.demonstration(&sample, &cot, verdict))
    }

    fn with<T>(&self, sample: &Plain, f: impl FnOnce(Sample<'_>) -> T) -> T {
        let history: Vec<(Id, Option<Item>)> =
            sample.history.iter().map(|id| (Id::from(*id), self.items.get(id).cloned())).collect();
        f(Sample {
            user: sample.user,
            item_id: sample.item,
            item: &self.items[sample.item],
            history: &history,
            text: &self.sum(&sample.history),
        })
    }

    /// The parts of users and items, by serving.
    pub(super) fn served_parts(
        &self,
        weights: &Weights,
        users: &[&str],
        items: &[&str],
    ) -> (Vec<NeighbourUserPart>, Vec<NeighbourItemPart>) {
        let item = |id: &&str| {
            let item = self.items.get(*id);
            let vector = item.and_then(|item| item.vector.as_ref()).map(|v| &*v.vector);
            weights.neighbour_item_part(&weights.item_rows(id, item.map(|item| &**item)), vector)
        };
        let users = users.iter().map(|id| weights.neighbour_user_part(id)).collect();
        (users, items.iter().map(item).collect())
    }
}

/// A neighbour as serving reads it.
pub(super) fn served<'a>(
    (users, items): &'a (Vec<NeighbourUserPart>, Vec<NeighbourItemPart>),
    &(user, item, label, score, age, residual): &Row,
) -> NeighbourInput<'a> {
    let (user, item) = (&users[user as usize], &items[item as usize]);
    NeighbourInput { user, item, positive: label == 1, score, age, residual }
}

/// The quantised vector of a number.
pub(super) fn vector_of(v: u64, width: usize) -> Vec<i16> {
    (0..width).map(|i| ((number(5000 + v, i) >> 48) % 4001) as i16 - 2000).collect()
}
