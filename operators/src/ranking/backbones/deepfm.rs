//! DeepFM: logit = linear part + FM term + deep net.
//!
//! The FM term is Σ_{f < g} ⟨v_f, v_g⟩ = ½ Σ_components ((Σ_f v_f)² − Σ_f v_f²) over the seven fields; w has no
//! part in it. The deep net reads fields, w, texts and scalars.

use super::fields::{check, fields, join, width};
use super::wide::Wide;
use super::{Backbone, Inputs, Kind, RankingError, Settings};
use crate::ranking::layers::{Maker, Phase, Tower};
use candle_core::Tensor;

#[derive(Debug)]
pub(super) struct DeepFm {
    settings: Settings,
    wide: Wide,
    deep: Tower,
}

impl DeepFm {
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        Ok(DeepFm {
            wide: Wide::new(settings, maker)?,
            deep: Tower::new(maker, "backbone.deep", width(settings), &settings.hidden, settings.dropout)?,
            settings: settings.clone(),
        })
    }
}

impl Backbone for DeepFm {
    fn kind(&self) -> Kind {
        Kind::DeepFm
    }

    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError> {
        check(inputs, &self.settings)?;
        let fields = fields(inputs)?;
        let wide = self.wide.forward(&Tensor::cat(&fields, 1)?, inputs)?;
        let stacked = Tensor::stack(&fields, 1)?;
        let pairs = (stacked.sum(1)?.sqr()? - stacked.sqr()?.sum(1)?)?.sum_keepdim(1)?.affine(0.5, 0.0)?;
        let deep = self.deep.forward(&join(&fields, inputs.vector.as_ref(), inputs)?, phase)?;
        Ok(((wide + pairs)? + deep)?.squeeze(1)?)
    }
}
