//! The LLaMA family from a GGUF file, on candle's quantised layers.
//!
//! Several sequences can be gone on with at once: their tokens are rows of one product, so the weights are
//! read once for all of them, while each attends to its own past. A row's numbers don't depend on the others.
//!
//! Pre-norm blocks: RMS norm, attention with grouped heads and interleaved rotary positions, RMS
//! norm, SwiGLU; the output head is the embedding where the file has no other. Weights stay
//! quantised (a Q4_1 tensor becomes Q8_0 first: candle has no SIMD path for Q4_1 on x86), or are
//! dequantised to f32 for the reference test.

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Result, Tensor};
use std::borrow::Cow;
use std::io::{Read, Seek};
use std::sync::Arc;

/// How the weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// As in the file, but Q4_1 as Q8_0.
    Quantised,
    /// Dequantised to f32: slow and four times larger, for comparison with a reference.
    #[cfg(test)]
    Full,
}

/// A weight matrix, `[out, in]`, its columns padded with zeros where that makes it faster.
#[derive(Clone)]
struct Matrix {
    weights: QMatMul,
    columns: usize,
    padding: usize,
}

/// candle's products with 8-bit dot instructions need rows of whole 256s. Measured with AVX-512 VNNI,
/// they halve the time of a CoT and more, though a third of the columns is then zeros. They round
/// activations by 256 columns instead of 32: against f32 the divergence (KL) is .019 instead of .006.
const FAST_COLUMNS: usize = 256;

impl Matrix {
    fn new(tensor: QTensor) -> Result<Self> {
        let (rows, columns) = tensor.shape().dims2()?;
        let padding = columns.next_multiple_of(FAST_COLUMNS) - columns;
        if padding == 0 || tensor.dtype() != GgmlDType::Q8_0 || !has_dot_instructions() {
            return Ok(Matrix { weights: QMatMul::from_qtensor(tensor)?, columns, padding: 0 });
        }
        // Whole blocks of zeros after each row: the weights stay as they are.
        let kind = tensor.dtype();
        let bytes = |columns: usize| columns / kind.block_size() * kind.type_size();
        let data = tensor.data()?;
        let mut padded = Vec::with_capacity(rows * bytes(columns + padding));
        for row in data.chunks_exact(bytes(columns)) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + bytes(padding), 0);
        }
        let storage = QStorage::from_data(Cow::Owned(padded), &Device::Cpu, kind)?;
        let tensor = QTensor::new(storage, (rows, columns + padding))?;
        Ok(Matrix { weights: QMatMul::from_qtensor(tensor)?, columns, padding })
    }

    /// The product of `[tokens, in]` with the matrix, `[tokens, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.padding {
            0 => self.weights.forward(x),
            padding => self.weights.forward(&x.pad_with_zeros(D::Minus1, 0, padding)?),
        }
    }

    /// The rows of these ids, `[ids, in]`.
    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        self.weights.embedding(&Tensor::new(ids, &Device::Cpu)?)?.narrow(1, 0, self.columns)?.contiguous()
    }
}

/// Whether the processor has the instructions for which candle has fast 8-bit products.
fn has_dot_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        wide || (is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("avx2"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// One block's weights.
struct Block {
    attention_norm: Tensor,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    feed_norm: Tensor,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A model: weights and rotary tables. It holds no state of a sequence, so threads can share it.
pub struct Llama {
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Matrix,
    /// Cosines of the rotary angles, `[positions, head_width / 2]`.
    cos: Tensor,
    /// Sines, of the same shape.
    sin: Tensor,
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    vocabulary: usize,
    epsilon: f32,
    positions: usize,
    requantised: bool,
}

/// The tokens by which a sequence grows, among the rows of a product.
struct Span {
    /// The first row.
    begin: usize,
    /// Rows.
    count: usize,
    /// Tokens before them.
    past: usize,
    /// The rotary angles of their positions.
    cos: Tensor,
    sin: Tensor,
    mask: Option<Tensor>,
}

/// The keys and values of a finished prefix, `[kv_heads, length, head_width]` a block. Immutable,
/// so that one prefix serves many prompts.
#[derive(Clone)]
pub struct Prefix {
    blocks: Arc<Vec<(Tensor, Tensor)>>,
    length: usize,
}

/// The keys and values of a sequence that grows: buffers of fixed capacity, written in place (a
/// concatenation would copy the whole past of every block for every token).
pub struct Cache {
    blocks: Vec<(Tensor, Tensor)>,
    length: usize,
    capacity: usize,
}

impl Cache {
    /// Tokens in it.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Makes it hold just this prefix.
    pub fn restore(&mut self, prefix: &Prefix) -> Result<()> {
        for ((key, value), (key0, value0)) in self.blocks.iter().zip(prefix.blocks.iter()) {
            key.slice_set(key0, 1, 0)?;
            value.slice_set(value0, 1, 0)?;
        }
        self.length = prefix.length;
        Ok(())
    }

    /// A copy of what it holds.
    pub fn prefix(&self) -> Result<Prefix> {
        let copy = |t: &Tensor| t.narrow(1, 0, self.length)?.force_contiguous();
        let blocks = self.blocks.iter().map(|(k, v)| Ok((copy(k)?, copy(v)?))).collect::<Result<_>>()?;
        Ok(Prefix { blocks: Arc::new(blocks), length: self.length })
    }
}

fn metadata<'a>(content: &'a Content, key: &str) -> Result<&'a Value> {
    match content.metadata.get(key) {
        Some(value) => Ok(value),
        None => candle_core::bail!("the file has no metadata `{key}`"),
    }
}

impl Llama {
    /// Reads the weights of a GGUF file. `positions` bounds the length of a sequence.
    ///
    /// # Errors
    /// A file of another architecture, or one that lacks a tensor.
    pub fn load<R: Read + Seek>(
        content: &Content,
        reader: &mut R,
        weights: Weights,
        positions: usize,
    ) -> Result<Self> {
        let architecture = metadata(content, "general.architecture")?.to_string()?;
        if architecture != "llama" {
            candle_core::bail!("the file's architecture is `{architecture}`, not `llama`");
        }
        let number = |key: &str| Ok::<_, candle_core::Error>(metadata(content, key)?.to_u32()? as usize);
        let heads = number("llama.attention.head_count")?;
        let kv_heads = number("llama.attention.head_count_kv")?;
        let width = number("llama.embedding_length")?;
        let count = number("llama.block_count")?;
        let head_width = number("llama.rope.dimension_count")?;
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || head_width * heads != width {
            candle_core::bail!("{heads} heads of {head_width} on {kv_heads} don't make a width of {width}");
        }
        let epsilon = metadata(content, "llama.attention.layer_norm_rms_epsilon")?.to_f32()?;
        let base = match content.metadata.get("llama.rope.freq_base") {
            Some(value) => value.to_f32()?,
            None => 10_000.0,
        };

        let device = Device::Cpu;
        let mut requantised = false;
        let mut tensor = |name: &str| content.tensor(reader, name, &device);
        let mut matrix = |tensor: QTensor| -> Result<Matrix> {
            match weights {
                #[cfg(test)]
                Weights::Full => {
                    let (_, columns) = tensor.shape().dims2()?;
                    Ok(Matrix { weights: QMatMul::Tensor(tensor.dequantize(&device)?), columns, padding: 0 })
                }
                Weights::Quantised if tensor.dtype() == GgmlDType::Q4_1 => {
                    requantised = true;
                    let full = tensor.dequantize(&device)?;
                    Matrix::new(QTensor::quantize(&full, GgmlDType::Q8_0)?)
                }
                Weights::Quantised => Matrix::new(tensor),
            }
        };

        let embedding = matrix(tensor("token_embd.weight")?)?;
        let vocabulary = content.tensor_infos["token_embd.weight"].shape.dims2()?.0;
        let norm = tensor("output_norm.weight")?.dequantize(&device)?;
        let head = match content.tensor_infos.contains_key("output.weight") {
            true => matrix(tensor("output.weight")?)?,
            false => embedding.clone(),
        };
        let mut blocks = Vec::with_capacity(count);
        for block in 0..count {
            let mut part = |name: &str| tensor(&format!("blk.{block}.{name}.weight"));
            blocks.push(Block {
                attention_norm: part("attn_norm")?.dequantize(&device)?,
                query: matrix(part("attn_q")?)?,
                key: matrix(part("attn_k")?)?,
                value: matrix(part("attn_v")?)?,
                output: matrix(part("attn_output")?)?,
                feed_norm: part("ffn_norm")?.dequantize(&device)?,
                gate: matrix(part("ffn_gate")?)?,
                up: matrix(part("ffn_up")?)?,
                down: matrix(part("ffn_down")?)?,
            });
        }

        let half = head_width / 2;
        let mut angles = Vec::with_capacity(positions * half);
        for position in 0..positions {
            for pair in 0..half {
                let frequency = f64::from(base).powf(-((2 * pair) as f64) / head_width as f64);
                angles.push((position as f64 * frequency) as f32);
            }
        }
        let angles = Tensor::from_vec(angles, (positions, half), &device)?;
        Ok(Llama {
            embedding,
            blocks,
            norm,
            head,
            cos: angles.cos()?,
            sin: angles.sin()?,
            heads,
            kv_heads,
            head_width,
            vocabulary,
            epsilon,
            positions,
            requantised,
        })
    }

    /// Tokens in its vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Whether a Q4_1 tensor was made Q8_0.
    pub fn requantised(&self) -> bool {
        self.requantised
    }

    /// An empty cache for a sequence of at most `positions` tokens.
    pub fn cache(&self) -> Result<Cache> {
        let shape = (self.kv_heads, self.positions, self.head_width);
        let buffer = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let blocks = self.blocks.iter().map(|_| Ok((buffer()?, buffer()?))).collect::<Result<_>>()?;
        Ok(Cache { blocks, length: 0, capacity: self.positions })
    }

    /// Appends tokens to a sequence; returns the logits after the last, `[vocabulary]`.
    ///
    /// # Errors
    /// No token, a token beyond the vocabulary, or a full cache.
    #[cfg(test)]
    pub fn logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        Ok(self.logits_of(&mut [(tokens, cache)])?.remove(0))
    }

    /// Appends tokens to several sequences; returns the logits after the last token of each, `[sequences,
    /// vocabulary]`.
    ///
    /// # Errors
    /// No sequence, or one without a token, with one beyond the vocabulary, or with a full cache.
    pub fn logits_of(&self, sequences: &mut [(&[u32], &mut Cache)]) -> Result<Vec<Vec<f32>>> {
        let hidden = self.forward(sequences)?;
        let mut end = 0;
        let mut last = Vec::with_capacity(sequences.len());
        for (tokens, _) in sequences.iter() {
            end += tokens.len();
            last.push(hidden.narrow(0, end - 1, 1)?);
        }
        self.project(&Tensor::cat(&last, 0)?.contiguous()?)?.to_vec2()
    }

    /// Appends tokens to a sequence; returns the logits after each, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`Llama::logits`].
    #[cfg(test)]
    pub fn all_logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<Vec<f32>>> {
        let hidden = self.forward(&mut [(tokens, cache)])?;
        self.project(&hidden)?.to_vec2()
    }

    /// Appends tokens to a sequence without asking for logits.
    ///
    /// # Errors
    /// As [`Llama::logits`].
    pub fn advance(&self, tokens: &[u32], cache: &mut Cache) -> Result<()> {
        self.forward(&mut [(tokens, cache)]).map(|_| ())
    }

    fn project(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(&candle_nn::ops::rms_norm(hidden, &self.norm, self.epsilon)?)
    }

    /// The hidden states of some tokens after all blocks, `[tokens, width]`, those of one sequence after those
    /// of the one before.
    fn forward(&self, sequences: &mut [(&[u32], &mut Cache)]) -> Result<Tensor> {
        let mut spans = Vec::with_capacity(sequences.len());
        let mut all = Vec::new();
        for (tokens, cache) in sequences.iter() {
            spans.push(self.span(all.len(), tokens.len(), cache)?);
            all.extend_from_slice(tokens);
        }
        let mut x = self.embedding.rows(&all)?;
        for (number, block) in self.blocks.iter().enumerate() {
            let y = candle_nn::ops::rms_norm(&x, &block.attention_norm, self.epsilon)?;
            let (query, key, value) =
                (block.query.forward(&y)?, block.key.forward(&y)?, block.value.forward(&y)?);
            let mut attended = Vec::with_capacity(spans.len());
            for (span, (_, cache)) in spans.iter().zip(sequences.iter()) {
                let Span { begin, count, past, .. } = *span;
                let query = self.rotate(&query.narrow(0, begin, count)?, self.heads, span)?;
                let key = self.rotate(&key.narrow(0, begin, count)?, self.kv_heads, span)?;
                let value = self.split(&value.narrow(0, begin, count)?, self.kv_heads)?;
                let (keys, values) = &cache.blocks[number];
                keys.slice_set(&key, 1, past)?;
                values.slice_set(&value, 1, past)?;
                let (keys, values) = (keys.narrow(1, 0, past + count)?, values.narrow(1, 0, past + count)?);
                attended.push(self.attend(&query, &keys, &values, span.mask.as_ref())?);
            }
            x = (x + block.output.forward(&Tensor::cat(&attended, 0)?)?)?;
            let y = candle_nn::ops::rms_norm(&x, &block.feed_norm, self.epsilon)?;
            let y = (candle_nn::ops::silu(&block.gate.forward(&y)?)? * block.up.forward(&y)?)?;
            x = (x + block.down.forward(&y)?)?;
        }
        for (span, (_, cache)) in spans.iter().zip(sequences) {
            cache.length = span.past + span.count;
        }
        Ok(x)
    }

    /// Where the next tokens of a sequence stand.
    fn span(&self, begin: usize, count: usize, cache: &Cache) -> Result<Span> {
        let past = cache.length;
        if count == 0 || past + count > cache.capacity {
            candle_core::bail!("{count} tokens after {past} don't fit a cache of {}", cache.capacity);
        }
        let (cos, sin) = (self.cos.narrow(0, past, count)?, self.sin.narrow(0, past, count)?);
        Ok(Span { begin, count, past, cos, sin, mask: causal_mask(past, count)? })
    }

    /// `[tokens, n * head_width]` as `[n, tokens, head_width]`.
    fn split(&self, x: &Tensor, n: usize) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        x.reshape((tokens, n, self.head_width))?.transpose(0, 1)?.contiguous()
    }

    fn rotate(&self, x: &Tensor, n: usize, span: &Span) -> Result<Tensor> {
        let x = self.split(x, n)?.unsqueeze(0)?;
        candle_nn::rotary_emb::rope_i(&x, &span.cos, &span.sin)?.squeeze(0)
    }

    /// Attention of `[heads, tokens, w]` queries over `[kv_heads, length, w]` keys and values;
    /// `[tokens, heads * w]`. A query head reads the key head `head / (heads / kv_heads)`, so the
    /// query heads of one key head are stacked as rows instead of repeating keys and values.
    fn attend(
        &self,
        query: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (tokens, length) = (query.dim(1)?, keys.dim(1)?);
        let (group, width) = (self.heads / self.kv_heads, self.head_width);
        let query = query.reshape((self.kv_heads, group * tokens, width))?;
        let scores = (query.matmul(&keys.transpose(1, 2)?)? / (width as f64).sqrt())?;
        let scores = match mask {
            Some(mask) => scores
                .reshape((self.kv_heads, group, tokens, length))?
                .broadcast_add(mask)?
                .reshape((self.kv_heads, group * tokens, length))?,
            None => scores,
        };
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(values)?;
        mixed.reshape((self.heads, tokens, width))?.transpose(0, 1)?.contiguous()?.flatten_from(D::Minus2)
    }
}

/// What is added to the scores of `count` tokens after `past`: a token doesn't see later ones.
/// `None` for a single token, which sees all.
fn causal_mask(past: usize, count: usize) -> Result<Option<Tensor>> {
    if count == 1 {
        return Ok(None);
    }
    let length = past + count;
    let mut mask = vec![0f32; count * length];
    for (token, row) in mask.chunks_exact_mut(length).enumerate() {
        row[past + token + 1..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(mask, (count, length), &Device::Cpu).map(Some)
}
