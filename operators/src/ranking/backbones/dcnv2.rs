//! DCNv2, mixed and parallel: logit = linear(cross net, deep net).
//!
//! Both nets read x⁰: fields, w, texts and scalars. A cross layer mixes experts of low rank,
//!
//! ```text
//! x^{l+1} = x^l + Σ_e G_e(x^l) · x⁰ ⊙ (U_e tanh(C_e tanh(V_eᵀ x^l)) + b)      G = softmax(gate · x^l + gate bias)
//! ```
//!
//! with one b a layer. As the gates sum to 1, that is x^l + x⁰ ⊙ (Σ_e U_e (G_e tanh(..)) + b): the experts'
//! outputs, weighted, beside each other, and one matrix product for all U_e.

use super::fields::{check, fields, join, width};
use super::{Backbone, Inputs, Kind, RankingError, Settings};
use crate::ranking::layers::{Linear, Maker, Mlp, Phase};
use candle_core::{D, Tensor};

#[derive(Debug)]
pub(super) struct DcnV2 {
    settings: Settings,
    cross: Vec<Cross>,
    deep: Mlp,
    /// `backbone.out`.
    out: Linear,
}

/// `backbone.cross.L.*`, with E experts of rank r.
#[derive(Debug)]
struct Cross {
    /// `v.weight` [E r, width]: the rows of V_eᵀ, expert by expert.
    v: Tensor,
    /// `c.weight` [E, r, r], C_e with its outputs first.
    c: Tensor,
    /// `u.weight` [width, E r]: the columns of U_e, expert by expert.
    u: Tensor,
    /// `bias`, `[width]`.
    bias: Tensor,
    /// `gate` [E, width], with a bias.
    gate: Linear,
}

impl DcnV2 {
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        let (experts, rank, width) = (settings.experts, settings.rank, width(settings));
        let mut cross = Vec::with_capacity(settings.mixed_layers);
        for l in 0..settings.mixed_layers {
            let name = |part: &str| format!("backbone.cross.{l}.{part}");
            cross.push(Cross {
                v: maker.weight(&name("v.weight"), &[experts * rank, width], width, rank)?,
                c: maker.weight(&name("c.weight"), &[experts, rank, rank], rank, rank)?,
                u: maker.weight(&name("u.weight"), &[width, experts * rank], rank, width)?,
                bias: maker.bias(&name("bias"), width, width)?,
                gate: Linear::new(maker, &name("gate"), width, experts, true)?,
            });
        }
        let deep = Mlp::new(maker, "backbone.deep", width, &settings.hidden, settings.dropout, false)?;
        let last = settings.hidden.last().copied().unwrap_or(width);
        Ok(DcnV2 {
            cross,
            deep,
            out: Linear::new(maker, "backbone.out", width + last, 1, true)?,
            settings: settings.clone(),
        })
    }
}

impl Cross {
    /// [B, width] to [B, width].
    fn forward(&self, first: &Tensor, x: &Tensor) -> Result<Tensor, RankingError> {
        let (experts, rank, _) = self.c.dims3()?;
        let batch = x.dim(0)?;
        let low = x.matmul(&self.v.t()?)?.tanh()?;
        let low = low.reshape((batch, experts, rank))?.transpose(0, 1)?.contiguous()?;
        let low = low.matmul(&self.c.t()?.contiguous()?)?.tanh()?.transpose(0, 1)?.contiguous()?;
        let gates = candle_nn::ops::softmax(&self.gate.forward(x)?, D::Minus1)?;
        let low = low.broadcast_mul(&gates.unsqueeze(2)?)?.reshape((batch, experts * rank))?;
        let mixed = low.matmul(&self.u.t()?)?.broadcast_add(&self.bias)?;
        Ok(((first * mixed)? + x)?)
    }
}

impl Backbone for DcnV2 {
    fn kind(&self) -> Kind {
        Kind::DcnV2
    }

    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError> {
        check(inputs, &self.settings)?;
        let first = join(&fields(inputs)?, inputs.vector.as_ref(), inputs)?;
        let mut x = first.clone();
        for cross in &self.cross {
            x = cross.forward(&first, &x)?;
        }
        let deep = self.deep.forward(&first, phase)?;
        Ok(self.out.forward(&Tensor::cat(&[x, deep], 1)?)?.squeeze(1)?)
    }
}
