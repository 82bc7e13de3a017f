//! `minilm`: sentence vectors by a BERT encoder in this process (all-MiniLM-L6-v2).
//!
//! Tokens cut at 256, post-norm BERT blocks in f32, mean over all tokens, unit norm.
//!
//! * **Delivery**: all vectors of a call or an error.
//! * **Ordering**: as the texts. Only texts of one length in tokens run together, so nothing is
//!   padded and a text's vector is the same to the bit whatever else is in the call (measured: a
//!   product's row doesn't depend on how many rows it has, once there are two; a test compares).
//! * **Retries**: none.
//! * **Limits**: 256 tokens a text, 128 a batch of several. One call runs on the calling thread (see `llm::local` on
//!   threads).
//! * **Secrets**: it logs no text.
//! * **Telemetry**: none of its own.
//!
//! Bits hold for one binary and CPU feature level; across them vectors agree to about 1e-6.

use super::Embed;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use ictflow_schemas::framing::hex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use tokenizers::{Tokenizer, TruncationParams};

/// Tokens of a text at most, the two marks at its ends included.
pub const MAX_TOKENS: usize = 256;

/// Tokens of a batch of several texts at most. Measured on one thread: batches gain 3.5x at 8
/// tokens a text, 1.7x at 16 to 24, and lose from 64 on.
const BATCH_TOKENS: usize = 128;

const HINT: &str = "fetch the encoder again with `make models`";

/// The part of `config.json` that decides the computation.
#[derive(Deserialize)]
struct Config {
    hidden_act: String,
    hidden_size: usize,
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".into()
}

/// A matrix, transposed once, and its bias.
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    /// `[rows, in]` to `[rows, out]`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// A layer norm's scale and shift.
struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

/// One block.
struct Block {
    query: Dense,
    key: Dense,
    value: Dense,
    output: Dense,
    attention_norm: Norm,
    inner: Dense,
    outer: Dense,
    norm: Norm,
}

/// The weights, shared by threads.
struct Bert {
    words: Tensor,
    /// Position embeddings with the first token type's added, `[positions, width]`.
    positions: Tensor,
    norm: Norm,
    blocks: Vec<Block>,
    heads: usize,
    width: usize,
}

impl Bert {
    fn new(config: &Config, mut tensors: HashMap<String, Tensor>) -> candle_core::Result<Self> {
        if config.hidden_act != "gelu" || config.position_embedding_type != "absolute" {
            candle_core::bail!(
                "the activation `{}` with `{}` positions is not implemented",
                config.hidden_act,
                config.position_embedding_type
            );
        }
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || !width.is_multiple_of(heads) || config.max_position_embeddings < MAX_TOKENS {
            candle_core::bail!(
                "{heads} heads on a width of {width}, {} positions",
                config.max_position_embeddings
            );
        }
        let mut take = |name: String| match tensors.remove(&name) {
            Some(tensor) => tensor.to_dtype(candle_core::DType::F32),
            None => candle_core::bail!("the file has no tensor `{name}`"),
        };
        let epsilon = config.layer_norm_eps as f32;
        let words = take("embeddings.word_embeddings.weight".into())?;
        let types = take("embeddings.token_type_embeddings.weight".into())?.narrow(0, 0, 1)?;
        let positions = take("embeddings.position_embeddings.weight".into())?.broadcast_add(&types)?;
        let mut norm = |name: &str| -> candle_core::Result<Norm> {
            let (weight, bias) = (take(format!("{name}.weight"))?, take(format!("{name}.bias"))?);
            Ok(Norm { weight, bias, epsilon })
        };
        let first = norm("embeddings.LayerNorm")?;
        let mut norms = Vec::with_capacity(config.num_hidden_layers);
        for n in 0..config.num_hidden_layers {
            let at = format!("encoder.layer.{n}");
            norms.push((
                norm(&format!("{at}.attention.output.LayerNorm"))?,
                norm(&format!("{at}.output.LayerNorm"))?,
            ));
        }
        let mut dense = |name: String| -> candle_core::Result<Dense> {
            let weight = take(format!("{name}.weight"))?.t()?.contiguous()?;
            Ok(Dense { weight, bias: take(format!("{name}.bias"))? })
        };
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for (n, (attention_norm, norm)) in norms.into_iter().enumerate() {
            let at = format!("encoder.layer.{n}");
            blocks.push(Block {
                query: dense(format!("{at}.attention.self.query"))?,
                key: dense(format!("{at}.attention.self.key"))?,
                value: dense(format!("{at}.attention.self.value"))?,
                output: dense(format!("{at}.attention.output.dense"))?,
                attention_norm,
                inner: dense(format!("{at}.intermediate.dense"))?,
                outer: dense(format!("{at}.output.dense"))?,
                norm,
            });
        }
        Ok(Bert { words, positions, norm: first, blocks, heads, width })
    }

    /// The unit vectors of some texts of `count` tokens each, given one after the other.
    fn embed(&self, tokens: &[u32], count: usize) -> candle_core::Result<Vec<Vec<f32>>> {
        let (rows, width, heads) = (tokens.len() / count, self.width, self.heads);
        let head_width = width / heads;
        let flat = (rows * count, width);
        let x = self.words.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        let x = x.reshape((rows, count, width))?.broadcast_add(&self.positions.narrow(0, 0, count)?)?;
        let mut x = self.norm.forward(&x.reshape(flat)?)?;
        let split = |x: Tensor| x.reshape((rows, count, heads, head_width))?.transpose(1, 2)?.contiguous();
        for block in &self.blocks {
            let query = (split(block.query.forward(&x)?)? / (head_width as f64).sqrt())?;
            let (key, value) = (split(block.key.forward(&x)?)?, split(block.value.forward(&x)?)?);
            // No mask: there is no padding, and every token sees all of its text.
            let scores = query.matmul(&key.transpose(2, 3)?)?;
            let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&value)?;
            let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape(flat)?;
            x = block.attention_norm.forward(&(x + block.output.forward(&mixed)?)?)?;
            let inner = block.inner.forward(&x)?.gelu_erf()?;
            x = block.norm.forward(&(x + block.outer.forward(&inner)?)?)?;
        }
        let means = x.reshape((rows, count, width))?.mean(1)?.to_vec2::<f32>()?;
        Ok(means.iter().map(|mean| unit(mean)).collect())
    }
}

fn unit(mean: &[f32]) -> Vec<f32> {
    let norm = mean.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    mean.iter().map(|v| (f64::from(*v) / norm) as f32).collect()
}

/// The encoder. Clones share the weights, so that each thread can have one.
#[derive(Clone)]
pub struct MiniLm {
    bert: Arc<Bert>,
    tokenizer: Arc<Tokenizer>,
    id: String,
}

impl MiniLm {
    /// Loads `config.json`, `tokenizer.json` and `model.safetensors` of a folder. The id is the
    /// weights' SHA-256, the pooling and the tokens: `SHA256:mean:256`.
    ///
    /// # Errors
    /// Fatal: a file that is missing or of another model family.
    pub fn open(folder: &Path) -> Result<Self> {
        let context = format!("cannot load the encoder {}", folder.display());
        let fail = |detail: String| Error::fatal(&context, detail, HINT);
        let read = |name: &str| std::fs::read(folder.join(name)).map_err(|e| fail(format!("{name}: {e}")));
        let config: Config =
            serde_json::from_slice(&read("config.json")?).map_err(|e| fail(format!("config.json: {e}")))?;
        let mut tokenizer = Tokenizer::from_bytes(read("tokenizer.json")?)
            .map_err(|e| fail(format!("tokenizer.json: {e}")))?;
        let truncation = TruncationParams { max_length: MAX_TOKENS, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| fail(e.to_string()))?;
        // The file pads every text to 128 tokens.
        tokenizer.with_padding(None);
        // A text that says `[SEP]` is data.
        tokenizer.set_encode_special_tokens(true);
        let weights = read("model.safetensors")?;
        let id = format!("{}:mean:{MAX_TOKENS}", hex(&Sha256::digest(&weights)));
        let tensors = candle_core::safetensors::load_buffer(&weights, &Device::Cpu)
            .map_err(|e| fail(format!("model.safetensors: {e}")))?;
        let bert = Bert::new(&config, tensors).map_err(|e| fail(e.to_string()))?;
        Ok(MiniLm { bert: Arc::new(bert), tokenizer: Arc::new(tokenizer), id })
    }

    fn failed(detail: impl ToString) -> Error {
        Error::fatal("the encoder failed", detail, HINT)
    }
}

impl Embed for MiniLm {
    fn id(&self) -> &str {
        &self.id
    }

    fn width(&self) -> usize {
        self.bert.width
    }

    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let tokens = |text: &String| self.tokenizer.encode_fast(text.as_str(), true);
        let encodings =
            texts.iter().map(tokens).collect::<std::result::Result<Vec<_>, _>>().map_err(Self::failed)?;
        let length = |place: &usize| encodings[*place].len();
        let mut places: Vec<usize> = (0..texts.len()).collect();
        places.sort_by_key(length);
        let mut vectors = vec![Vec::new(); texts.len()];
        for same in places.chunk_by(|a, b| length(a) == length(b)) {
            let count = length(&same[0]);
            for batch in same.chunks((BATCH_TOKENS / count.max(1)).max(1)) {
                let ids: Vec<u32> =
                    batch.iter().flat_map(|place| encodings[*place].get_ids()).copied().collect();
                let batched = self.bert.embed(&ids, count).map_err(Self::failed)?;
                for (place, vector) in batch.iter().zip(batched) {
                    vectors[*place] = vector;
                }
            }
        }
        match vectors.iter().flatten().all(|v| v.is_finite()) {
            true => Ok(vectors),
            false => Err(Self::failed("a component is not finite")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::encoder::model_file;

    fn open() -> MiniLm {
        MiniLm::open(model_file("encoder/model.safetensors").parent().unwrap()).unwrap()
    }

    #[derive(Deserialize)]
    struct Golden {
        text: String,
        tokens: Vec<u32>,
        vector: Vec<f32>,
    }

    fn golden() -> Vec<Golden> {
        serde_json::from_str(include_str!("../../golden/minilm.json")).unwrap()
    }

    #[test]
    fn vectors_and_tokens_agree_with_the_independent_program() {
        let mut encoder = open();
        let golden = golden();
        assert!(golden.len() >= 8 && golden.iter().any(|g| g.tokens.len() == MAX_TOKENS));
        let texts: Vec<String> = golden.iter().map(|g| g.text.clone()).collect();
        let vectors = encoder.embed(&texts).unwrap();
        for (golden, vector) in golden.iter().zip(&vectors) {
            let encoding = encoder.tokenizer.encode(golden.text.as_str(), true).unwrap();
            assert_eq!(encoding.get_ids(), golden.tokens, "{}", golden.text);
            assert_eq!(vector.len(), golden.vector.len());
            let worst = vector.iter().zip(&golden.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{worst} on {}", golden.text);
            let norm: f64 = vector.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((norm - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_vector_does_not_depend_on_the_others_of_the_call() {
        let mut encoder = open();
        // Many of one length, and some of others.
        let genres = ["", "war ", "war crime ", "war crime drama thriller horror "];
        let text = |n: u32| {
            format!("title: film {}{}", genres[n as usize % 4], ["one", "two", "three"][n as usize % 3])
        };
        let mut texts: Vec<String> = (0..36).map(text).collect();
        texts.extend(golden().into_iter().map(|g| g.text));
        let together = encoder.embed(&texts).unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(&encoder.embed(std::slice::from_ref(text)).unwrap()[0], vector, "{text}");
        }
        texts.reverse();
        let mut reversed = encoder.clone().embed(&texts).unwrap();
        reversed.reverse();
        assert_eq!(together, reversed);
        assert!(encoder.embed(&[]).unwrap().is_empty());
    }

    #[test]
    fn the_id_names_the_weights() {
        let encoder = open();
        let id = encoder.id().split(':').collect::<Vec<_>>();
        assert_eq!((id[0].len(), id[1], id[2], encoder.width()), (64, "mean", "256", 384));
        assert!(MiniLm::open(Path::new("/nowhere")).is_err_and(|e| e.to_string().contains("config.json")));
    }
}
