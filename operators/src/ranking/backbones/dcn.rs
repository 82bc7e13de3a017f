//! DCN: logit = linear(cross net, deep net).
//!
//! Both nets read x⁰: fields, GELU(linear(w)), texts and scalars. A cross layer is
//! x^{l+1} = x⁰ ⟨a_l, x^l⟩ + b_l + x^l. The deep net has batch normalisation.

use super::fields::{check, fields, join, width};
use super::{Backbone, Inputs, Kind, RankingError, Settings};
use crate::ranking::layers::{Linear, Maker, Mlp, Phase};
use candle_core::Tensor;

#[derive(Debug)]
pub(super) struct Dcn {
    settings: Settings,
    /// `backbone.vector`.
    vector: Option<Linear>,
    /// `backbone.cross.L.weight` [1, width] and `.bias`, `[width]`.
    cross: Vec<(Linear, Tensor)>,
    deep: Mlp,
    /// `backbone.out`.
    out: Linear,
}

impl Dcn {
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        let (d, width) = (settings.d, width(settings));
        let vector =
            settings.vector.then(|| Linear::new(maker, "backbone.vector", d, d, true)).transpose()?;
        let mut cross = Vec::with_capacity(settings.cross_layers);
        for l in 0..settings.cross_layers {
            let name = format!("backbone.cross.{l}");
            let weight = Linear::new(maker, &name, width, 1, false)?;
            cross.push((weight, maker.bias(&format!("{name}.bias"), width, width)?));
        }
        let deep = Mlp::new(maker, "backbone.deep", width, &settings.hidden, settings.dropout, true)?;
        let last = settings.hidden.last().copied().unwrap_or(width);
        Ok(Dcn {
            vector,
            cross,
            deep,
            out: Linear::new(maker, "backbone.out", width + last, 1, true)?,
            settings: settings.clone(),
        })
    }
}

impl Backbone for Dcn {
    fn kind(&self) -> Kind {
        Kind::Dcn
    }

    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError> {
        check(inputs, &self.settings)?;
        let vector = match (&self.vector, &inputs.vector) {
            (Some(linear), Some(vector)) => Some(linear.forward(vector)?.gelu_erf()?),
            _ => None,
        };
        let first = join(&fields(inputs)?, vector.as_ref(), inputs)?;
        let mut x = first.clone();
        for (weight, bias) in &self.cross {
            x = (first.broadcast_mul(&weight.forward(&x)?)?.broadcast_add(bias)? + x)?;
        }
        let deep = self.deep.forward(&first, phase)?;
        Ok(self.out.forward(&Tensor::cat(&[x, deep], 1)?)?.squeeze(1)?)
    }
}
