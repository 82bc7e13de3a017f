//! Layers with gradients. Each is built of operations that candle can run backwards.

pub(super) use crate::ranking::layers::linear;
use candle_core::{D, Result, Tensor};

/// Softmax over the last dimension. The largest logit only shifts them, so it needs no gradient.
pub(super) fn softmax(logits: &Tensor) -> Result<Tensor> {
    let exponentials = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// x / sqrt(mean x² + 1e-5) · scale over the last dimension.
pub(super) fn rms_norm(x: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / scale.dim(0)? as f64)?;
    x.broadcast_div(&(mean + 1e-5)?.sqrt()?)?.broadcast_mul(scale)
}
