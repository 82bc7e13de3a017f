//! `local`: CoTs by a LLaMA-family model in this process, from a GGUF file.
//!
//! A small model can't write a whole CoT, so it fills the gaps of a skeleton ([`super::prompt`]):
//! what it adds is garnish, and some of it is false.
//!
//! * **Delivery**: an answer is returned or it isn't; nothing is kept.
//! * **Ordering**: none; an answer depends on its request and attempt alone, not on earlier ones.
//! * **Retries**: none here. The schedule's attempts differ: the first takes the likeliest token,
//!   the n-th draws with seed n.
//! * **Limits**: a sequence has at most 512 tokens; a gap at most `max_gap_tokens`. One call runs on
//!   the calling thread; set `RAYON_NUM_THREADS=1` and `CANDLE_NUM_THREADS=1`, or small products
//!   lose more by waiting for each other than they gain.
//! * **Secrets**: prompts and texts are persons' data: none is logged.
//! * **Telemetry**: token counts stand in the drafts.
//!
//! The same file gives the same text on one SIMD level only: another rounds products differently.

mod gap;
mod llama;
mod tokens;

use super::prompt::{Message, Part, Piece, Prompt, Step, write};
use super::{Draft, Generate};
use crate::{Error, Result};
use candle_core::quantized::gguf_file::Content;
use gap::{Choice, Next, Random, Roles, Writer};
use ictflow_schemas::cot::{CotRequest, canonical_json};
use ictflow_schemas::framing::hex;
use llama::{Cache, Llama, Prefix, Weights};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokens::Tokens;

/// Tokens of a sequence at most: head, request, forced words and gaps.
pub const MAX_TOKENS: usize = 512;

/// How tokens are chosen. Decimals are text, as the config writes them: they enter content keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// Attempts of the schedule.
    pub attempts: u32,
    /// Tokens of a gap at most.
    pub max_gap_tokens: u32,
    /// Divides the logits of tokens that the answer's gaps already hold.
    pub penalty: String,
    /// The temperature from the second attempt on.
    pub temperature: String,
    /// The share of likeliest tokens from the second attempt on.
    pub top_p: String,
}

impl Default for Decoding {
    fn default() -> Self {
        Decoding {
            attempts: 3,
            max_gap_tokens: 26,
            penalty: "1.2".into(),
            temperature: "0.7".into(),
            top_p: "0.9".into(),
        }
    }
}

impl Decoding {
    /// The numbers: penalty, temperature, top_p.
    fn numbers(&self) -> Result<(f32, f32, f32)> {
        let number = |name: &str, text: &str, range: std::ops::RangeInclusive<f32>| match text.parse::<f32>()
        {
            Ok(value) if range.contains(&value) => Ok(value),
            _ => Err(Error::fatal(
                "cannot use the decoding parameters",
                format!("{name} is `{text}`"),
                "write a decimal: penalty 1 to 4, temperature 0.05 to 4, top_p 0.05 to 1",
            )),
        };
        if !(1..=16).contains(&self.attempts) || !(4..=64).contains(&self.max_gap_tokens) {
            return Err(Error::fatal(
                "cannot use the decoding parameters",
                format!("{} attempts, {} tokens a gap", self.attempts, self.max_gap_tokens),
                "give 1 to 16 attempts and 4 to 64 tokens a gap",
            ));
        }
        Ok((
            number("penalty", &self.penalty, 1.0..=4.0)?,
            number("temperature", &self.temperature, 0.05..=4.0)?,
            number("top_p", &self.top_p, 0.05..=1.0)?,
        ))
    }

    /// The canonical JSON of these parameters.
    fn json(&self, requantised: bool) -> String {
        let schedule: Vec<_> = (1..=self.attempts)
            .map(|attempt| match attempt {
                1 => serde_json::json!({"choice": "greedy"}),
                _ => serde_json::json!({
                    "choice": "sampled",
                    "seed": attempt,
                    "temperature": self.temperature,
                    "top_p": self.top_p,
                }),
            })
            .collect();
        canonical_json(&serde_json::json!({
            "guided": true,
            "max_gap_tokens": self.max_gap_tokens,
            "min_gap_words": gap::MIN_WORDS,
            "penalty": self.penalty,
            "requantised": if requantised { "q4_1 to q8_0" } else { "no" },
            "schedule": schedule,
        }))
    }
}

/// What threads share: all but the cache of the sequence being written.
struct Shared {
    llama: Llama,
    tokens: Tokens,
    roles: Roles,
    prompt: Prompt,
    model: String,
    parameters: String,
    attempts: u32,
    max_gap_tokens: u32,
    numbers: (f32, f32, f32),
    /// Heads by step, computed at first use: the same for all requests.
    heads: Mutex<BTreeMap<Step, Head>>,
}

#[derive(Clone)]
struct Head {
    prefix: Prefix,
}

/// A generator on a GGUF file.
pub struct Local {
    shared: Arc<Shared>,
    cache: Cache,
}

const HINT: &str = "fetch the model again with `make models`";

fn failed(detail: impl ToString) -> Error {
    Error::fatal("the local model failed", detail, HINT)
}

impl Local {
    /// Loads a GGUF file.
    ///
    /// # Errors
    /// Fatal: a file that can't be read or isn't a LLaMA-family GGUF with a ChatML template, or
    /// decoding parameters out of range.
    pub fn open(path: &Path, prompt: Prompt, decoding: &Decoding) -> Result<Self> {
        let name = format!("cannot load the model {}", path.display());
        let bytes = std::fs::read(path).map_err(|e| Error::fatal(&name, e, HINT))?;
        Self::from_bytes(&bytes, prompt, decoding).map_err(|e| Error { context: name, ..e })
    }

    /// Loads a GGUF file from memory: the digest is of the very bytes that are used.
    fn from_bytes(bytes: &[u8], prompt: Prompt, decoding: &Decoding) -> Result<Self> {
        let numbers = decoding.numbers()?;
        let model = hex(&Sha256::digest(bytes));
        let mut reader = Cursor::new(bytes);
        let content = Content::read(&mut reader).map_err(failed)?;
        let tokens = Tokens::from_gguf(&content).map_err(failed)?;
        let llama = Llama::load(&content, &mut reader, Weights::Quantised, MAX_TOKENS).map_err(failed)?;
        let shared = Shared {
            roles: Roles::new(&tokens, llama.vocabulary()),
            parameters: decoding.json(llama.requantised()),
            attempts: decoding.attempts,
            max_gap_tokens: decoding.max_gap_tokens,
            llama,
            tokens,
            prompt,
            model,
            numbers,
            heads: Mutex::new(BTreeMap::new()),
        };
        Local::on(Arc::new(shared))
    }

    fn on(shared: Arc<Shared>) -> Result<Self> {
        let cache = shared.llama.cache().map_err(failed)?;
        Ok(Local { shared, cache })
    }

    /// Another generator on the same weights, for another thread.
    ///
    /// # Errors
    /// Fatal, where there is no memory for its cache.
    pub fn another(&self) -> Result<Self> {
        Local::on(self.shared.clone())
    }

    /// Makes the cache hold a step's head.
    fn restore_head(&mut self, step: Step) -> Result<()> {
        let shared = self.shared.clone();
        let mut heads = shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(head) = heads.get(&step) {
            return self.cache.restore(&head.prefix).map_err(failed);
        }
        let mut tokens = Vec::new();
        for Message { role, content } in shared.prompt.head(step) {
            tokens.extend(shared.tokens.message(role, &content).map_err(failed)?);
        }
        self.cache.clear();
        shared.llama.advance(&tokens, &mut self.cache).map_err(failed)?;
        heads.insert(step, Head { prefix: self.cache.prefix().map_err(failed)? });
        Ok(())
    }

    /// Writes one part: prefills forced words, lets the model fill the gaps.
    fn part(
        &mut self,
        part: &Part,
        choice: &mut Choice,
        spent: &mut Vec<u32>,
        draft: &mut Draft,
    ) -> Result<()> {
        if !part.pieces.iter().any(|piece| matches!(piece, Piece::Gap(_))) {
            return Ok(());
        }
        let shared = self.shared.clone();
        let (penalty, limit) = (shared.numbers.0, shared.max_gap_tokens);
        self.restore_head(part.step)?;
        draft.tokens_in += self.cache.length() as i64;
        let mut pending = shared.tokens.message("user", &part.ask).map_err(failed)?;
        let mut begun = false;
        for piece in &part.pieces {
            let gap = match piece {
                Piece::Words(words) if !begun => {
                    pending.extend(shared.tokens.open("assistant", words).map_err(failed)?);
                    begun = true;
                    continue;
                }
                Piece::Words(words) => {
                    // A gap stands before it, whose full stop isn't in the cache yet.
                    pending = shared.tokens.encode(&format!(". {words}")).map_err(failed)?;
                    continue;
                }
                Piece::Gap(gap) => gap,
            };
            let needed = self.cache.length() + pending.len() + limit as usize;
            if needed > MAX_TOKENS {
                return Err(Error::poison(
                    "cannot write the prompt",
                    format!("it needs {needed} tokens of {MAX_TOKENS}"),
                    "shorten the instructions and examples of the prompt file",
                ));
            }
            draft.tokens_in += pending.len() as i64;
            let mut logits = shared.llama.logits(&pending, &mut self.cache).map_err(failed)?;
            let mut writer = Writer::new(&shared.roles, gap);
            let mut count = 0;
            let cut = loop {
                match writer.step(&mut logits, spent, penalty, choice) {
                    Some(Next::Token(token)) => {
                        draft.tokens_out += 1;
                        count += 1;
                        if !spent.contains(&token) {
                            spent.push(token);
                        }
                        if count == limit {
                            break true;
                        }
                        logits = shared.llama.logits(&[token], &mut self.cache).map_err(failed)?;
                    }
                    Some(Next::Stop) => {
                        draft.tokens_out += 1;
                        break false;
                    }
                    None => break true,
                }
            };
            if cut {
                draft.finish_reason = "length".into();
            }
            draft.written.push(writer.finish(cut));
        }
        Ok(())
    }
}

impl Generate for Local {
    fn model(&self) -> &str {
        &self.shared.model
    }

    fn prompt_version(&self) -> &str {
        self.shared.prompt.version()
    }

    fn parameters(&self) -> &str {
        &self.shared.parameters
    }

    fn attempts(&self) -> u32 {
        self.shared.attempts
    }

    fn generate(&mut self, request: &CotRequest, attempt: u32) -> Result<Draft> {
        let (_, temperature, top_p) = self.shared.numbers;
        let mut choice = match attempt {
            0 | 1 => Choice::Greedy,
            _ => Choice::Sampled { temperature, top_p, random: Random::new(u64::from(attempt)) },
        };
        let mut draft = Draft {
            text: String::new(),
            written: Vec::new(),
            tokens_in: 0,
            tokens_out: 0,
            finish_reason: "stop".into(),
        };
        let parts = self.shared.prompt.parts(request);
        let mut spent = Vec::new();
        for part in &parts {
            self.part(part, &mut choice, &mut spent, &mut draft)?;
        }
        let mut gaps = draft.written.clone().into_iter();
        let texts: Vec<String> = parts.iter().map(|part| write(part, &mut gaps)).collect();
        draft.text = texts.join("\n");
        Ok(draft)
    }
}
