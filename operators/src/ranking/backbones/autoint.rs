//! AutoInt: logit = linear(attention over the fields) + deep net.
//!
//! A layer gives each field ReLU(Σ_g α_g V x_g + R x), by heads: α = softmax over the fields of ⟨Q x, K x_g⟩ / √
//! (a head's width). w is the last field. The output layer reads all fields of the last layer beside each other.

use super::fields::{FIELDS, check, fields, join, width};
use super::{Backbone, Inputs, Kind, RankingError, Settings};
use crate::ranking::layers::{Linear, Maker, Phase, Tower};
use candle_core::{D, Tensor};

#[derive(Debug)]
pub(super) struct AutoInt {
    settings: Settings,
    layers: Vec<Layer>,
    /// `backbone.attention.out`.
    out: Linear,
    deep: Tower,
}

/// `backbone.attention.L.q`, `.k`, `.v` and `.residual`, without biases.
#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    residual: Linear,
}

impl AutoInt {
    pub(super) fn new(settings: &Settings, maker: &mut Maker<'_>) -> Result<Self, RankingError> {
        let outputs = settings.attention_width;
        let mut layers = Vec::with_capacity(settings.attention_layers);
        for l in 0..settings.attention_layers {
            let inputs = if l == 0 { settings.d } else { outputs };
            let mut part = |name: &str| {
                Linear::new(maker, &format!("backbone.attention.{l}.{name}"), inputs, outputs, false)
            };
            layers.push(Layer {
                query: part("q")?,
                key: part("k")?,
                value: part("v")?,
                residual: part("residual")?,
            });
        }
        let fields = FIELDS + usize::from(settings.vector);
        Ok(AutoInt {
            layers,
            out: Linear::new(maker, "backbone.attention.out", fields * outputs, 1, true)?,
            deep: Tower::new(maker, "backbone.deep", width(settings), &settings.hidden, settings.dropout)?,
            settings: settings.clone(),
        })
    }
}

impl Layer {
    /// [B, F, inputs] to [B, F, outputs].
    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor, RankingError> {
        let (batch, fields, _) = x.dims3()?;
        let split = |linear: &Linear| -> Result<Tensor, RankingError> {
            let x = linear.forward(x)?.reshape((batch, fields, heads, ()))?;
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let scale = 1.0 / (query.dim(3)? as f64).sqrt();
        let scores = query.affine(scale, 0.0)?.matmul(&key.t()?.contiguous()?)?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((batch, fields, ()))?;
        Ok((mixed + self.residual.forward(x)?)?.relu()?)
    }
}

impl Backbone for AutoInt {
    fn kind(&self) -> Kind {
        Kind::AutoInt
    }

    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError> {
        check(inputs, &self.settings)?;
        let mut fields = fields(inputs)?;
        fields.extend(inputs.vector.clone());
        let mut x = Tensor::stack(&fields, 1)?;
        for layer in &self.layers {
            x = layer.forward(&x, self.settings.attention_heads)?;
        }
        let attention = self.out.forward(&x.flatten_from(1)?)?;
        let deep = self.deep.forward(&join(&fields, None, inputs)?, phase)?;
        Ok((attention + deep)?.squeeze(1)?)
    }
}
