//! The linear part of DeepFM and xDeepFM.

use super::fields::FIELDS;
use super::{Inputs, RankingError, Settings};
use crate::ranking::layers::{Linear, Maker};
use candle_core::Tensor;

/// b + Σ_f ⟨a_f, field f⟩ + ⟨a_w, w⟩ + ⟨a_s, scalars⟩.
///
/// The weight of an id in field f is ⟨a_f, its row⟩: a first-order term without tables of its own, in which an
/// item weighs differently as the candidate and in a history.
#[derive(Clone, Debug)]
pub(super) struct Wide {
    fields: Linear,
    vector: Option<Linear>,
    scalars: Option<Linear>,
}

impl Wide {
    /// Makes `backbone.wide.fields`, and without biases `backbone.wide.vector` and `backbone.wide.scalars` where
    /// there are such inputs.
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        let d = settings.d;
        let mut linear =
            |name: &str, inputs, bias| Linear::new(maker, &format!("backbone.wide.{name}"), inputs, 1, bias);
        Ok(Wide {
            fields: linear("fields", FIELDS * d, true)?,
            vector: settings.vector.then(|| linear("vector", d, false)).transpose()?,
            scalars: (settings.scalars > 0)
                .then(|| linear("scalars", settings.scalars, false))
                .transpose()?,
        })
    }

    /// [B, 1], from the fields beside each other [B, 7 d].
    pub(super) fn forward(&self, fields: &Tensor, inputs: &Inputs) -> Result<Tensor, RankingError> {
        let mut sum = self.fields.forward(fields)?;
        for (linear, input) in [(&self.vector, &inputs.vector), (&self.scalars, &inputs.scalars)] {
            if let (Some(linear), Some(input)) = (linear, input) {
                sum = (sum + linear.forward(input)?)?;
            }
        }
        Ok(sum)
    }
}
