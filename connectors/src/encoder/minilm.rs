//! all-MiniLM-L6-v2 on the CPU, inside this process.

use super::Embed;
use super::bert::{self, Bert, Config};
use crate::{Error, Result};
use ictflow_schemas::framing::hex;
use sha2::{Digest, Sha256};
use std::path::Path;
use tokenizers::{Tokenizer, TruncationParams};

/// The most tokens of a text that count, [CLS] and [SEP] among them; the rest is cut off.
pub const MAX_TOKENS: usize = 256;

/// The most token rows of one forward pass. More rows spread the cost of reading the weights, but
/// leave the processor's cache: 256 was the fastest of 64 to 2,048.
const PASS_ROWS: usize = 256;

const MODELS: &str = "run `make models`";

/// The sentence encoder all-MiniLM-L6-v2, or another BERT with the same layout: mean pooling over
/// the tokens, unit norm.
pub struct MiniLm {
    id: String,
    width: usize,
    tokenizer: Tokenizer,
    bert: Bert,
}

impl std::fmt::Debug for MiniLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MiniLm").field("id", &self.id).field("width", &self.width).finish_non_exhaustive()
    }
}

impl MiniLm {
    /// Loads `model.safetensors`, `tokenizer.json` and `config.json` of a folder; the weights take
    /// their file's size in memory, twice that while loading.
    ///
    /// # Errors
    /// `Fatal` on a file that is missing or not what it should be, with how to get the right one.
    pub fn load(folder: &Path) -> Result<MiniLm> {
        let config = read(folder, "config.json")?;
        let config: Config =
            serde_json::from_slice(&config).map_err(|e| damaged("read the encoder's config.json", e))?;
        if let Some(reason) = config.unsupported() {
            return Err(Error::fatal("read the encoder's config.json", reason, "use all-MiniLM-L6-v2"));
        }
        if config.max_position_embeddings < MAX_TOKENS {
            return Err(Error::fatal(
                "read the encoder's config.json",
                format!("it takes {} tokens, not {MAX_TOKENS}", config.max_position_embeddings),
                "use all-MiniLM-L6-v2",
            ));
        }

        let tokenizer = tokenizer(&read(folder, "tokenizer.json")?)?;
        let known = tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1);
        if known > config.vocab_size {
            return Err(damaged(
                "load the encoder",
                format!("the tokenizer knows {known} tokens, the model {}", config.vocab_size),
            ));
        }

        let file = read(folder, "model.safetensors")?;
        let id = format!("{}:mean:{MAX_TOKENS}", hex(&Sha256::digest(&file)));
        let bert = bert::weights(file)
            .and_then(|weights| Bert::new(&config, &weights))
            .map_err(|e| damaged("read the encoder's model.safetensors", e))?;
        tracing::debug!(encoder = id, width = config.hidden_size, "encoder loaded");
        Ok(MiniLm { id, width: config.hidden_size, tokenizer, bert })
    }

    /// A text as token ids, cut, with its special tokens.
    pub(super) fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|e| {
            Error::poison("split a text into tokens", e, "this text cannot be embedded; leave it out")
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// One forward pass over texts given as tokens.
    fn pass(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let tokens: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let rows = self
            .bert
            .forward(&tokens)
            .and_then(|rows| rows.to_vec2::<f32>())
            .map_err(|e| Error::fatal("run the encoder", e, "the model's files may be damaged"))?;
        let mut rows = rows.as_slice();
        texts
            .iter()
            .map(|text| {
                let (own, rest) = rows.split_at(text.len());
                rows = rest;
                unit_mean(own).ok_or_else(|| damaged("run the encoder", "a vector is not finite"))
            })
            .collect()
    }
}

impl Embed for MiniLm {
    fn id(&self) -> &str {
        &self.id
    }

    fn width(&self) -> usize {
        self.width
    }

    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let start = std::time::Instant::now();
        let tokens = texts.iter().map(|text| self.tokens(text)).collect::<Result<Vec<_>>>()?;
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            let (pass, later) = rest.split_at(texts_of_a_pass(rest));
            vectors.extend(self.pass(pass)?);
            rest = later;
        }
        tracing::debug!(
            texts = texts.len(),
            tokens = tokens.iter().map(Vec::len).sum::<usize>(),
            seconds = start.elapsed().as_secs_f64(),
            "texts embedded"
        );
        Ok(vectors)
    }
}

/// How many of some texts run together: at least one, then as many as [`PASS_ROWS`] has room for.
fn texts_of_a_pass(texts: &[Vec<u32>]) -> usize {
    let mut rows = 0;
    let fitting = texts.iter().take_while(|text| {
        rows += text.len();
        rows <= PASS_ROWS
    });
    fitting.count().max(1)
}

/// The mean of some rows at unit norm, summed in f64; `None` if it has no direction.
fn unit_mean(rows: &[Vec<f32>]) -> Option<Vec<f32>> {
    let mut sum = vec![0.0_f64; rows.first()?.len()];
    for row in rows {
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    // The count of rows cancels out.
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    (norm.is_finite() && norm > 0.0).then(|| sum.iter().map(|x| (x / norm) as f32).collect())
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    std::fs::read(&path)
        .map_err(|e| Error::fatal(format!("read the encoder's {}", path.display()), e, MODELS))
}

fn damaged(context: &str, detail: impl ToString) -> Error {
    Error::fatal(context, detail, "the model's files may be damaged: delete them and run `make models`")
}

/// The tokenizer with our cut and no padding, whatever its file says.
fn tokenizer(file: &[u8]) -> Result<Tokenizer> {
    const CONTEXT: &str = "read the encoder's tokenizer.json";
    let mut tokenizer = Tokenizer::from_bytes(file).map_err(|e| damaged(CONTEXT, e))?;
    tokenizer.with_padding(None);
    // The file's own cut would hide how many special tokens there are.
    tokenizer.with_truncation(None).map_err(|e| damaged(CONTEXT, e))?;
    let special = tokenizer.encode_fast("", true).map_err(|e| damaged(CONTEXT, e))?.len();
    if !(1..MAX_TOKENS).contains(&special) {
        // Without them an empty text would have no row to take the mean of.
        return Err(damaged(CONTEXT, format!("it puts {special} special tokens around a text")));
    }
    let cut = TruncationParams { max_length: MAX_TOKENS, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(cut)).map_err(|e| damaged(CONTEXT, e))?;
    Ok(tokenizer)
}
