//! Reconstruction: what the decoder knows before a CoT is read must tell what the CoT says.
//!
//! r_k = R(hidden values at the position of x_k), R from d over 256 to D with ReLU; attention is
//! causal, so neither c_k nor the query is in it. The loss is 1 − the mean cosine of r_k and the CoT's
//! vector over all demonstrations that are there. R is for training only and in no file.

use super::{Decoded, Demonstrations, Module, TrainingError};
use candle_core::{D, Result, Tensor};

/// Squared norms below this count as this: a zero vector has the cosine 0, and a gradient.
const SMALLEST_SQUARED_NORM: f64 = 1e-16;

impl Module {
    /// r: [B, K, D] from the hidden values at the positions of x_k, [B, K, d].
    ///
    /// # Errors
    /// Where the architecture has no reconstruction head.
    pub fn reconstruct(&self, hidden: &Tensor) -> std::result::Result<Tensor, TrainingError> {
        self.net("reconstruction", hidden)
    }

    /// The loss of what was decoded, a scalar; 0 where there is no demonstration.
    ///
    /// # Errors
    /// Where the architecture has no reconstruction head.
    pub fn reconstruction_loss(
        &self,
        decoded: &Decoded,
        demonstrations: &Demonstrations,
    ) -> std::result::Result<Tensor, TrainingError> {
        let Some(hidden) = &decoded.before_cot else {
            return Ok(Tensor::zeros((), decoded.vector.dtype(), decoded.vector.device())?);
        };
        let r = self.reconstruct(hidden)?;
        let picks = demonstrations.picks.flatten_all()?;
        let target = demonstrations.cot.index_select(&picks, 0)?.reshape(r.dims())?;
        Ok(cosine_loss(&r, &target, &demonstrations.there)?)
    }
}

/// 1 − the mean cosine of `r` and `target` [B, K, D] over the places where `there` [B, K] is 1; 0
/// where it is nowhere 1. No gradient goes to the target.
///
/// # Errors
/// Where shapes don't fit.
pub fn cosine_loss(r: &Tensor, target: &Tensor, there: &Tensor) -> Result<Tensor> {
    let target = target.detach();
    let norm = |x: &Tensor| x.sqr()?.sum(D::Minus1)?.maximum(SMALLEST_SQUARED_NORM)?.sqrt();
    let cosine = (r.mul(&target)?.sum(D::Minus1)? / (norm(r)? * norm(&target)?)?)?;
    let far = (1.0 - cosine)?.mul(there)?.sum_all()?;
    far / there.sum_all()?.maximum(1.0)?
}
