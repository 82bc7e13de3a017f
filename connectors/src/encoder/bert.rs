//! A BERT encoder's forward pass on candle.
//!
//! Several texts run as one matrix of token rows without padding, so no mask is needed: the layers
//! that work row by row take all rows at once, attention takes each text's rows alone.

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, ops::softmax_last_dim};
use serde::Deserialize;

/// The part of `config.json` that decides the forward pass.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub layer_norm_eps: f64,
    pub hidden_act: String,
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".to_owned()
}

impl Config {
    /// What this forward pass cannot do of the config, if anything.
    pub fn unsupported(&self) -> Option<String> {
        if self.hidden_act != "gelu" {
            return Some(format!("hidden_act is {:?}, only the exact gelu is known", self.hidden_act));
        }
        if self.position_embedding_type != "absolute" {
            return Some(format!("position_embedding_type is {:?}", self.position_embedding_type));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Some(format!("{} heads don't divide {}", self.num_attention_heads, self.hidden_size));
        }
        let sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.type_vocab_size];
        if sizes.contains(&0) {
            return Some("a size is 0".to_owned());
        }
        None
    }
}

/// The model.
pub(super) struct Bert {
    words: Embedding,
    positions: Tensor,
    /// The embedding of token type 0: every text is a single sentence.
    kind: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    /// Query, key and value in one matrix: one product instead of three.
    qkv: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl Bert {
    /// Takes the weights by the names of the published file. Needs a supported config.
    pub fn new(config: &Config, weights: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let from = weights.pp("embeddings");
        let words = from.get((config.vocab_size, width), "word_embeddings.weight")?;
        let kinds = from.get((config.type_vocab_size, width), "token_type_embeddings.weight")?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::new(config, &weights.pp("encoder.layer").pp(i)))
            .collect::<Result<_>>()?;
        Ok(Bert {
            words: Embedding::new(words, width),
            positions: from.get((config.max_position_embeddings, width), "position_embeddings.weight")?,
            kind: kinds.i(0)?,
            norm: norm(config, &from.pp("LayerNorm"))?,
            layers,
        })
    }

    /// The last hidden states: one row of `hidden_size` a token, the texts' rows one after another.
    /// Each text has 1 to `max_position_embeddings` tokens.
    pub fn forward(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let spans: Vec<(usize, usize)> = texts
            .iter()
            .scan(0, |start, text| {
                let span = (*start, text.len());
                *start += text.len();
                Some(span)
            })
            .collect();
        let ids = Tensor::new(texts.concat(), &Device::Cpu)?;
        let place: Vec<u32> = texts.iter().flat_map(|text| 0..text.len() as u32).collect();
        let positions = self.positions.index_select(&Tensor::new(place, &Device::Cpu)?, 0)?;
        let rows = (self.words.forward(&ids)?.broadcast_add(&self.kind)? + positions)?;
        let mut rows = self.norm.forward(&rows)?;
        for layer in &self.layers {
            rows = layer.forward(&rows, &spans)?;
        }
        Ok(rows)
    }
}

impl Layer {
    fn new(config: &Config, weights: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let own = weights.pp("attention.self");
        let parts = ["query", "key", "value"]
            .map(|name| linear(width, width, &own.pp(name)))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let weight = Tensor::cat(&parts.iter().map(|(weight, _)| weight).collect::<Vec<_>>(), 0)?;
        let bias = Tensor::cat(&parts.iter().map(|(_, bias)| bias).collect::<Vec<_>>(), 0)?;
        let dense = |inputs, outputs, weights: VarBuilder| {
            linear(inputs, outputs, &weights).map(|(weight, bias)| Linear::new(weight, Some(bias)))
        };
        let wide = config.intermediate_size;
        Ok(Layer {
            qkv: Linear::new(weight, Some(bias)),
            attended: dense(width, width, weights.pp("attention.output.dense"))?,
            attended_norm: norm(config, &weights.pp("attention.output.LayerNorm"))?,
            up: dense(width, wide, weights.pp("intermediate.dense"))?,
            down: dense(wide, width, weights.pp("output.dense"))?,
            norm: norm(config, &weights.pp("output.LayerNorm"))?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, rows: &Tensor, spans: &[(usize, usize)]) -> Result<Tensor> {
        let qkv = self.qkv.forward(rows)?;
        let attended = spans
            .iter()
            .map(|&(start, length)| self.attend(&qkv.narrow(0, start, length)?))
            .collect::<Result<Vec<_>>>()?;
        let attended = self.attended.forward(&Tensor::cat(&attended, 0)?)?;
        let rows = self.attended_norm.forward(&(attended + rows)?)?;
        let wide = self.up.forward(&rows)?.gelu_erf()?;
        self.norm.forward(&(self.down.forward(&wide)? + &rows)?)
    }

    /// Attention among one text's rows: (tokens, 3 · width) to (tokens, width).
    fn attend(&self, qkv: &Tensor) -> Result<Tensor> {
        let (tokens, wide) = qkv.dims2()?;
        let depth = wide / 3 / self.heads;
        // (3, heads, tokens, depth)
        let parts = qkv.reshape((tokens, 3, self.heads, depth))?.permute((1, 2, 0, 3))?.contiguous()?;
        let query = (parts.i(0)? / (depth as f64).sqrt())?;
        let weights = softmax_last_dim(&query.matmul(&parts.i(1)?.t()?)?)?;
        weights.matmul(&parts.i(2)?)?.transpose(0, 1)?.flatten_from(D::Minus2)
    }
}

fn linear(inputs: usize, outputs: usize, weights: &VarBuilder) -> Result<(Tensor, Tensor)> {
    Ok((weights.get((outputs, inputs), "weight")?, weights.get(outputs, "bias")?))
}

fn norm(config: &Config, weights: &VarBuilder) -> Result<LayerNorm> {
    let width = config.hidden_size;
    Ok(LayerNorm::new(weights.get(width, "weight")?, weights.get(width, "bias")?, config.layer_norm_eps))
}

/// The weights as 32-bit floats from a safetensors file's bytes.
pub(super) fn weights(file: Vec<u8>) -> Result<VarBuilder<'static>> {
    VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu)
}
