//! Attention over neighbours, with gradients. The formula stands in `ict::attention`; keys and values
//! are folded into the query and the pooled values here too, which saves most of the work.

use super::super::{SOURCES, count_scalar};
use super::layers::{linear, softmax};
use super::{Module, TrainingError};
use crate::ranking::embedding_bag::mean;
use crate::ranking::frozen::linear_of_frozen;
use crate::ranking::ids::{Tables, rows};
use candle_core::{D, DType, Result, Tensor};

/// The users and items that the neighbours of a batch have, each once: of the batch, or of the whole
/// data set where it is small. Their parts are computed once and gathered.
#[derive(Clone, Debug)]
pub struct Parties {
    /// Rows of the user table [U], u32.
    pub users: Tensor,
    /// Rows of the item table [I], u32.
    pub items: Tensor,
    /// The items' creators [I].
    pub creators: Tensor,
    /// The items' categories [I, C].
    pub categories: Tensor,
    /// The items' text vectors [I, D], in the unit of [`Samples`](super::Samples).
    pub text: Tensor,
}

/// The neighbours of one source for a batch of B queries, M a query: data that nobody trains, so the
/// pass takes most of it for constants. Scalars are f32, as [`score_scalar`](crate::ict::score_scalar),
/// [`age_scalar`](crate::ict::age_scalar) and [`residual_scalar`](crate::ict::residual_scalar) make them.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// Which of the [`Parties`]' users [B, M], u32; any where absent.
    pub user: Tensor,
    /// Which of their items [B, M], u32; any where absent.
    pub item: Tensor,
    /// Labels [B, M], u32: 0 negative, 1 positive.
    pub label: Tensor,
    /// Scores [B, M].
    pub score: Tensor,
    /// Ages [B, M].
    pub age: Tensor,
    /// Residuals [B, M].
    pub residual: Tensor,
    /// [B, M], f32: 1 where there is one, 0 where it is absent.
    pub there: Tensor,
}

/// A logit that softmax makes 0 of. Finite: a row without any neighbour must not be NaN.
const NEVER: f64 = 1e30;

impl Module {
    /// The vectors [B, d] of query tokens [B, d] and their neighbours, `same_item` first.
    ///
    /// # Errors
    /// For another architecture than `Attention`; where an id is beyond its table or shapes don't fit.
    pub fn attend(
        &self,
        tables: &Tables,
        query: &Tensor,
        parties: &Parties,
        sources: [&Neighbours; SOURCES],
    ) -> std::result::Result<Tensor, TrainingError> {
        let users = rows(&tables.user, &parties.users)?;
        let bias = self.tensor("attention.bias")?;
        let users = linear(&users, self.tensor("attention.user.weight")?, Some(bias))?;
        let items = Tensor::cat(
            &[
                rows(&tables.item, &parties.items)?,
                self.text_token(&parties.text)?,
                rows(&tables.creator, &parties.creators)?,
                mean(&tables.category, &parties.categories)?,
            ],
            D::Minus1,
        )?;
        let items = linear(&items, self.tensor("attention.item.weight")?, None)?;
        let turned = linear(query, self.tensor("attention.query.weight")?, None)?;
        let folded = turned.matmul(self.tensor("attention.key.weight")?)?;
        let folded = (folded / (self.shape().d as f64).sqrt())?;
        let mut joined = Vec::with_capacity(SOURCES);
        for (s, neighbours) in sources.into_iter().enumerate() {
            joined.push(self.pool(s, &folded, &users, &items, neighbours)?);
        }
        let joined = Tensor::cat(&joined, D::Minus1)?;
        let bias = self.tensor("attention.out.bias")?;
        Ok(linear(&joined, self.tensor("attention.out.weight")?, Some(bias))?)
    }

    /// What one source gives: [B, d + 4].
    fn pool(
        &self,
        source: usize,
        query: &Tensor,
        users: &Tensor,
        items: &Tensor,
        neighbours: &Neighbours,
    ) -> std::result::Result<Tensor, TrainingError> {
        let Neighbours { user, item, label, score, age, residual, there } = neighbours;
        let of_source = |name: &str| self.tensor(name)?.narrow(0, source, 1).map_err(TrainingError::from);
        // One product of constants with [C | Y1 − Y0 | Y0 + S] instead of gathering rows of labels.
        let labels = self.tensor("attention.label.weight")?;
        let (negative, positive) = (labels.narrow(0, 0, 1)?, labels.narrow(0, 1, 1)?);
        let columns = [
            self.tensor("attention.scalars.weight")?.clone(),
            (positive - &negative)?.t()?,
            (negative + of_source("attention.source.weight")?)?.t()?,
        ];
        let label = label.to_dtype(DType::F32)?;
        let constants = Tensor::stack(&[score, age, residual, &label, &label.ones_like()?], 2)?;
        let (batch, most, width) = constants.dims3()?;
        let constants = constants.reshape((batch * most, width))?;
        let own = linear_of_frozen(&constants, &Tensor::cat(&columns, 1)?, None)?;
        let own = own.reshape((batch, most, ()))?;
        let hidden = ((rows(users, user)? + rows(items, item)?)? + own)?.relu()?;

        let fit = hidden.matmul(&query.unsqueeze(2)?)?.squeeze(2)?;
        let near = score.broadcast_mul(&of_source("attention.theta")?)?;
        let old = age.broadcast_mul(&of_source("attention.phi")?)?;
        let logits = ((fit + near)? - old)?.add(&there.affine(NEVER, -NEVER)?)?;
        let weights = softmax(&logits)?.mul(there)?;

        let pooled = weights.unsqueeze(1)?.matmul(&hidden)?.squeeze(1)?;
        let weighted = |values: &Tensor| weights.mul(values)?.sum_keepdim(1);
        let any = there.max_keepdim(1)?;
        Ok(Tensor::cat(
            &[
                linear(&pooled, self.tensor("attention.value.weight")?, None)?,
                weighted(residual)?,
                (weighted(&label)? - (any * 0.5)?)?,
                counts(there)?,
                weights.sqr()?.sum_keepdim(1)?,
            ],
            D::Minus1,
        )?)
    }
}

/// How many neighbours a row has, as serving tells the model: L2(1 + n) / 8, [B, 1].
fn counts(there: &Tensor) -> Result<Tensor> {
    let scalars: Vec<f32> = (0..=there.dim(1)? as u64).map(count_scalar).collect();
    let scalars = Tensor::new(scalars, there.device())?;
    scalars.index_select(&there.sum(1)?.to_dtype(DType::U32)?, 0)?.unsqueeze(1)
}
