//! The decoder over demonstrations, with gradients.
//!
//! Rows with fewer than K demonstrations have the absent ones first. Attention leaves them out, and
//! rotary angles see differences of positions only, so such a row gives what a list of its own length
//! gives at positions from 0 on, as serving computes it.

use super::super::{HEADS, LAYERS};
use super::layers::{linear, rms_norm, softmax};
use super::{Architecture, Module, Samples, TrainingError};
use crate::ranking::ids::{Tables, rows};
use candle_core::{DType, Device, Result, Tensor};

/// The demonstrations of a batch of B queries: N distinct ones, and up to K of them for each query.
#[derive(Clone, Debug)]
pub struct Demonstrations {
    /// The samples of the N demonstrations.
    pub samples: Samples,
    /// Their CoTs' vectors [N, D], in the unit of [`Samples`].
    pub cot: Tensor,
    /// Their labels [N], u32: 0 negative, 1 positive.
    pub label: Tensor,
    /// Which a query has [B, K], u32 rows of the above, nearest last. Absent ones come first and may
    /// name any row. K may be 0.
    pub picks: Tensor,
    /// [B, K], f32: 1 where there is one, 0 where it is absent.
    pub there: Tensor,
}

/// What came of a batch.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The vectors [B, d].
    pub vector: Tensor,
    /// The hidden values at the positions of x_k [B, K, d], for the reconstruction; `None` where the
    /// architecture has none or K is 0.
    pub before_cot: Option<Tensor>,
}

/// A logit that softmax makes 0 of. Finite, so that no gradient is NaN.
const NEVER: f64 = 1e30;

impl Module {
    /// The vectors of query tokens [B, d] after their demonstrations.
    ///
    /// # Errors
    /// For the architecture `Attention`; where an id is beyond its table or shapes don't fit.
    pub fn decode(
        &self,
        tables: &Tables,
        query: &Tensor,
        demonstrations: &Demonstrations,
    ) -> std::result::Result<Decoded, TrainingError> {
        let (batch, k) = demonstrations.picks.dims2()?;
        let query = query.unsqueeze(1)?;
        let own = Tensor::ones((batch, 1), DType::F32, query.device())?;
        // Tokens of a demonstration; 1 where there is none, so that a step is never 0.
        let (tokens, there, width) = if k == 0 {
            (query, own, 1)
        } else {
            let each = self.demonstration_tokens(tables, demonstrations)?;
            let (_, width, d) = each.dims3()?;
            let picked = rows(&each.flatten_from(1)?, &demonstrations.picks)?;
            let there = demonstrations.there.unsqueeze(2)?.broadcast_as((batch, k, width))?;
            let there = Tensor::cat(&[&there.reshape((batch, k * width))?, &own], 1)?;
            (Tensor::cat(&[&picked.reshape((batch, k * width, d))?, &query], 1)?, there, width)
        };
        if self.architecture() == Architecture::Mean {
            let there = there.unsqueeze(2)?;
            let sum = tokens.broadcast_mul(&there)?.sum(1)?;
            return Ok(Decoded { vector: sum.broadcast_div(&there.sum(1)?)?, before_cot: None });
        }
        let reconstructs = self.architecture() == Architecture::Decoder && k > 0;
        let length = tokens.dim(1)?;
        // The last layer is computed where it is read: at the query, and at each x_k.
        let read: Vec<u32> = match reconstructs {
            true => (0..length as u32).step_by(width).collect(),
            false => vec![length as u32 - 1],
        };
        let hidden = self.layers(&tokens, &there, &read)?;
        let vector = hidden.narrow(1, read.len() - 1, 1)?.squeeze(1)?;
        let before_cot = if reconstructs { Some(hidden.narrow(1, 0, k)?) } else { None };
        Ok(Decoded { vector, before_cot })
    }

    /// The tokens of each demonstration: [N, 3, d], x, c and y; [N, 2, d] without CoTs.
    fn demonstration_tokens(
        &self,
        tables: &Tables,
        demonstrations: &Demonstrations,
    ) -> std::result::Result<Tensor, TrainingError> {
        let y = rows(self.tensor("label.weight")?, &demonstrations.label)?;
        let x = self.sample_token(tables, &demonstrations.samples)?;
        Ok(match self.architecture() {
            Architecture::DecoderWithoutCot => Tensor::stack(&[x, y], 1)?,
            _ => Tensor::stack(&[x, self.text_token(&demonstrations.cot)?, y], 1)?,
        })
    }

    /// The layers and the final norm, at the positions `read` of the sequences [B, L, d].
    fn layers(
        &self,
        tokens: &Tensor,
        there: &Tensor,
        read: &[u32],
    ) -> std::result::Result<Tensor, TrainingError> {
        let (batch, length, d) = tokens.dims3()?;
        let device = tokens.device();
        let width = d / HEADS;
        let mask = mask(there)?;
        let turns = Turns::new(d, width, length, device)?;
        let at = Tensor::from_slice(read, read.len(), device)?;
        let heads = |x: &Tensor| x.reshape((batch, (), HEADS, width))?.transpose(1, 2)?.contiguous();
        let mut rows = tokens.clone();
        for l in 0..LAYERS {
            let weight = |part: &str| self.tensor(&format!("decoder.layers.{l}.{part}.weight"));
            let normed = rms_norm(&rows, weight("attention_norm")?)?;
            let keys = heads(&turns.turn(&linear(&normed, weight("k")?, None)?, None)?)?;
            let values = heads(&linear(&normed, weight("v")?, None)?)?;
            let last = l + 1 == LAYERS;
            let (normed, seen) = match last {
                true => (normed.index_select(&at, 1)?, mask.index_select(&at, 2)?),
                false => (normed, mask.clone()),
            };
            if last {
                rows = rows.index_select(&at, 1)?;
            }
            let queries = linear(&normed, weight("q")?, None)?;
            let queries = heads(&turns.turn(&queries, last.then_some(&at))?)?;
            let logits = (queries.matmul(&keys.transpose(2, 3)?)? / (width as f64).sqrt())?;
            let mixed = softmax(&logits.broadcast_add(&seen)?)?.matmul(&values)?;
            let mixed = mixed.transpose(1, 2)?.reshape((batch, (), d))?;
            rows = (rows + linear(&mixed, weight("o")?, None)?)?;
            let normed = rms_norm(&rows, weight("ffn_norm")?)?;
            let gate = linear(&normed, weight("w1")?, None)?.silu()?;
            let up = linear(&normed, weight("w3")?, None)?;
            rows = (rows + linear(&(gate * up)?, weight("w2")?, None)?)?;
        }
        Ok(rms_norm(&rows, self.tensor("decoder.norm.weight")?)?)
    }
}

/// What is added to logits [B, 1, L, L]: 0 where a position may see another, else a number that
/// softmax makes 0 of. A position sees what is there up to itself; an absent one sees itself, so that
/// no sum is empty.
fn mask(there: &Tensor) -> Result<Tensor> {
    let (batch, length) = there.dims2()?;
    let square = |holds: fn(usize, usize) -> bool| {
        let cells = (0..length * length).map(|n| f32::from(u8::from(holds(n / length, n % length))));
        Tensor::from_vec(cells.collect::<Vec<f32>>(), (1, length, length), there.device())
    };
    let (before, own) = (square(|i, j| j < i)?, square(|i, j| j == i)?);
    let seen = before.broadcast_mul(&there.reshape((batch, 1, length))?)?.broadcast_add(&own)?;
    seen.affine(NEVER, -NEVER)?.unsqueeze(1)
}

/// Rotary angles: pairs (2i, 2i + 1) of a head are turned by position · 10000^(−2i / width).
struct Turns {
    /// [L, d] each, all heads alike.
    cos: Tensor,
    sin: Tensor,
    /// [d, d]: takes a pair (a, b) to (−b, a).
    quarter: Tensor,
}

impl Turns {
    fn new(d: usize, width: usize, length: usize, device: &Device) -> Result<Self> {
        let angle = |n: usize| {
            let pair = n % d % width / 2;
            (n / d) as f64 * 10_000f64.powf(-((2 * pair) as f64) / width as f64)
        };
        let table = |f: fn(f64) -> f64| {
            let values = (0..length * d).map(|n| f(angle(n)) as f32).collect::<Vec<f32>>();
            Tensor::from_vec(values, (length, d), device)
        };
        let mut quarter = vec![0.0f32; d * d];
        for pair in 0..d / 2 {
            quarter[2 * pair * d + 2 * pair + 1] = -1.0;
            quarter[(2 * pair + 1) * d + 2 * pair] = 1.0;
        }
        let quarter = Tensor::from_vec(quarter, (d, d), device)?;
        Ok(Turns { cos: table(f64::cos)?, sin: table(f64::sin)?, quarter })
    }

    /// Turns rows [B, positions, d]; `at` are the positions where not all of them.
    fn turn(&self, x: &Tensor, at: Option<&Tensor>) -> Result<Tensor> {
        let table = |table: &Tensor| match at {
            Some(at) => table.index_select(at, 0),
            None => Ok(table.clone()),
        };
        let across = linear(x, &self.quarter, None)?;
        x.broadcast_mul(&table(&self.cos)?)?.add(&across.broadcast_mul(&table(&self.sin)?)?)
    }
}
