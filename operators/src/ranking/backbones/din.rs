//! DIN: logit = deep net(item, pooled history, user, w, texts, scalars).
//!
//! An item is q = [E_item, E_creator, mean E_category], a history entry k likewise. The pooled history is
//! Σ_t a(q, k_t) k_t over the entries that exist, with a = net([q, k, q − k, q ⊙ k]), two hidden layers with ReLU
//! and a linear one. There is no softmax: the sum keeps how much the history has of what the item asks for. An
//! empty history gives zeros.

use super::fields::{check, join, side_width};
use super::{Backbone, Inputs, Kind, RankingError, Settings};
use crate::ranking::embedding_bag::mean;
use crate::ranking::ids::rows;
use crate::ranking::layers::{Linear, Maker, Phase, Tower};
use candle_core::{DType, Tensor};

/// Vectors of an item: its own, its creator's, its categories'.
const PARTS: usize = 3;

#[derive(Debug)]
pub(super) struct Din {
    settings: Settings,
    /// `backbone.attention.0`, `.1` and `.out`.
    attention: [Linear; 3],
    deep: Tower,
}

impl Din {
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        let item = PARTS * settings.d;
        let [first, second] = settings.entry_hidden;
        let attention = [
            Linear::new(maker, "backbone.attention.0", 4 * item, first, true)?,
            Linear::new(maker, "backbone.attention.1", first, second, true)?,
            Linear::new(maker, "backbone.attention.out", second, 1, true)?,
        ];
        let vector = settings.d * usize::from(settings.vector);
        let width = 2 * item + settings.d + vector + side_width(settings);
        Ok(Din {
            attention,
            deep: Tower::new(maker, "backbone.deep", width, &settings.hidden, settings.dropout)?,
            settings: settings.clone(),
        })
    }

    /// Σ_t a(q, k_t) k_t: [B, n], from q [B, n], k [B, T, n] and 1 where an entry exists [B, T].
    fn pool(&self, query: &Tensor, keys: &Tensor, there: &Tensor) -> Result<Tensor, RankingError> {
        let (batch, entries, n) = keys.dims3()?;
        let [first, second, out] = &self.attention;
        // W [q, k, q − k, q ⊙ k] = (W_0 + W_2) q + (W_1 − W_2) k + W_3 (q ⊙ k): the first product is one a
        // sample and not one an entry, and the differences need not be written down.
        let part = |i: usize| first.weight().narrow(1, i * n, n);
        let of_query = query.matmul(&(part(0)? + part(2)?)?.t()?)?;
        let of_query = match first.bias() {
            Some(bias) => of_query.broadcast_add(bias)?,
            None => of_query,
        };
        let products = keys.broadcast_mul(&query.unsqueeze(1)?)?;
        let pair = Tensor::cat(&[keys, &products], 2)?.reshape((batch * entries, 2 * n))?;
        let weight = Tensor::cat(&[(part(1)? - part(2)?)?, part(3)?], 1)?;
        let of_entry = pair.matmul(&weight.t()?)?.reshape((batch, entries, ()))?;
        let hidden = of_entry.broadcast_add(&of_query.unsqueeze(1)?)?.relu()?;
        let scores = out.forward(&second.forward(&hidden)?.relu()?)?.squeeze(2)?;
        let scores = (scores * there)?.unsqueeze(1)?;
        Ok(scores.matmul(keys)?.squeeze(1)?)
    }
}

impl Backbone for Din {
    fn kind(&self) -> Kind {
        Kind::Din
    }

    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError> {
        check(inputs, &self.settings)?;
        let (ids, tables) = (&inputs.ids, &inputs.tables);
        let query = Tensor::cat(
            &[
                rows(&tables.item, &ids.item)?,
                rows(&tables.creator, &ids.creator)?,
                mean(&tables.category, &ids.categories)?,
            ],
            1,
        )?;
        let (batch, entries, categories) = ids.history_categories.dims3()?;
        let of_entries = ids.history_categories.reshape((batch * entries, categories))?;
        let keys = Tensor::cat(
            &[
                rows(&tables.item, &ids.history_items)?,
                rows(&tables.creator, &ids.history_creators)?,
                mean(&tables.category, &of_entries)?.reshape((batch, entries, ()))?,
            ],
            2,
        )?;
        let there = ids.history_items.ne(0u32)?.to_dtype(DType::F32)?;
        let pooled = self.pool(&query, &keys, &there)?;
        let user = rows(&tables.user, &ids.user)?;
        let x = join(&[query, pooled, user], inputs.vector.as_ref(), inputs)?;
        Ok(self.deep.forward(&x, phase)?.squeeze(1)?)
    }
}
