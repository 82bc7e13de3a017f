//! xDeepFM: logit = linear part + linear(CIN) + deep net.
//!
//! The compressed interaction network works on each of the d components by itself. With x⁰ the F fields (w is
//! the last of them), layer k has the maps xᵏ_h = ReLU(Σ_{f, j} Wᵏ_{h, f, j} x⁰_f x^{k−1}_j). The first half of
//! an inner layer's maps goes on to the next layer, the second half to the output, all maps of the last layer to
//! the output, each summed over its d components.

use super::fields::{FIELDS, check, fields, join, width};
use super::wide::Wide;
use super::{Backbone, Inputs, Kind, RankingError, Settings};
use crate::ranking::layers::{Linear, Maker, Phase, Tower};
use candle_core::Tensor;

#[derive(Debug)]
pub(super) struct XDeepFm {
    settings: Settings,
    wide: Wide,
    /// `backbone.cin.K` [maps, F · maps before].
    layers: Vec<Linear>,
    /// `backbone.cin.out`.
    out: Linear,
    deep: Tower,
}

impl XDeepFm {
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        let wide = Wide::new(settings, maker)?;
        let fields = FIELDS + usize::from(settings.vector);
        let (mut before, mut outputs) = (fields, 0);
        let mut layers = Vec::with_capacity(settings.cin.len());
        for (k, maps) in settings.cin.iter().enumerate() {
            layers.push(Linear::new(maker, &format!("backbone.cin.{k}"), fields * before, *maps, false)?);
            let last = k + 1 == settings.cin.len();
            before = if last { 0 } else { maps / 2 };
            outputs += maps - before;
        }
        Ok(XDeepFm {
            wide,
            layers,
            out: Linear::new(maker, "backbone.cin.out", outputs, 1, true)?,
            deep: Tower::new(maker, "backbone.deep", width(settings), &settings.hidden, settings.dropout)?,
            settings: settings.clone(),
        })
    }

    /// [B, 1] from the fields, each [B, d]. Maps stand last in memory, so a layer is one matrix product over
    /// B · d rows.
    fn interactions(&self, fields: &[Tensor]) -> Result<Tensor, RankingError> {
        let (batch, d) = fields[0].dims2()?;
        let first = Tensor::stack(fields, 2)?.reshape((batch * d, fields.len(), 1))?;
        let mut maps = first.reshape((batch * d, fields.len()))?;
        let mut outputs = Vec::with_capacity(self.layers.len());
        for (k, layer) in self.layers.iter().enumerate() {
            // An outer product. As a broadcast one the backward pass took about 1.8 times the CPU time, in one run each
            // on a busy machine.
            let products = first.matmul(&maps.unsqueeze(1)?)?.flatten_from(1)?;
            let next = layer.forward(&products)?.relu()?;
            let count = next.dim(1)?;
            let (inner, output) = if k + 1 == self.layers.len() {
                (None, next)
            } else {
                (
                    Some(next.narrow(1, 0, count / 2)?.contiguous()?),
                    next.narrow(1, count / 2, count - count / 2)?,
                )
            };
            outputs.push(output.reshape((batch, d, ()))?.sum(1)?);
            let Some(inner) = inner else { break };
            maps = inner;
        }
        self.out.forward(&Tensor::cat(&outputs, 1)?)
    }
}

impl Backbone for XDeepFm {
    fn kind(&self) -> Kind {
        Kind::XDeepFm
    }

    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError> {
        check(inputs, &self.settings)?;
        let mut fields = fields(inputs)?;
        let wide = self.wide.forward(&Tensor::cat(&fields, 1)?, inputs)?;
        fields.extend(inputs.vector.clone());
        let interactions = self.interactions(&fields)?;
        let deep = self.deep.forward(&join(&fields, None, inputs)?, phase)?;
        Ok(((wide + interactions)? + deep)?.squeeze(1)?)
    }
}
