//! Tokens of a GGUF model with a GPT-2 style vocabulary.
//!
//! Text is data: [`Tokens::encode`] never makes a control token of it, whatever it says. Control
//! tokens enter a prompt only by id, as the [`ChatMl`] frame of a message.

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

/// What failed, in words.
type Result<T> = std::result::Result<T, String>;

/// The tokens that frame a chat message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatMl {
    /// `<|im_start|>`.
    pub start: u32,
    /// `<|im_end|>`.
    pub end: u32,
}

/// A tokenizer and the control tokens of its chat template.
pub struct Tokens {
    tokenizer: Tokenizer,
    chat: ChatMl,
}

impl Tokens {
    /// The tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// A file without a GPT-2 style vocabulary, or whose chat template isn't ChatML.
    pub fn from_gguf(content: &Content) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_gguf(content).map_err(|e| e.to_string())?;
        let text = |key: &str| content.metadata.get(key).and_then(|v| v.to_string().ok());
        if text("tokenizer.ggml.pre").is_some_and(|pre| pre == "smollm") {
            // candle knows no SmolLM and falls back to GPT-2 with a prefix space, which puts a
            // blank after every control token. SmolLM also splits numbers into digits.
            let bytes = ByteLevel::new(false, true, true);
            tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), bytes.into()])));
        }
        tokenizer.set_encode_special_tokens(true);
        let template = text("tokenizer.chat_template").map(String::as_str).unwrap_or_default();
        if !template.contains("<|im_start|>") || !template.contains("<|im_end|>") {
            return Err("the file's chat template isn't ChatML".into());
        }
        let id = |token: &str| tokenizer.token_to_id(token).ok_or(format!("the vocabulary has no {token}"));
        let chat = ChatMl { start: id("<|im_start|>")?, end: id("<|im_end|>")? };
        Ok(Tokens { tokenizer, chat })
    }

    /// The control tokens of the chat template.
    pub fn chat(&self) -> ChatMl {
        self.chat
    }

    /// The tokens of a text, all of it taken as plain text.
    ///
    /// # Errors
    /// A tokenizer that fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// One whole message of the chat template.
    ///
    /// # Errors
    /// As [`Tokens::encode`].
    pub fn message(&self, role: &str, content: &str) -> Result<Vec<u32>> {
        let mut tokens = self.open(role, content)?;
        tokens.push(self.chat.end);
        tokens.extend(self.encode("\n")?);
        Ok(tokens)
    }

    /// A message that is still being written: its role and the beginning of its content.
    ///
    /// # Errors
    /// As [`Tokens::encode`].
    pub fn open(&self, role: &str, content: &str) -> Result<Vec<u32>> {
        let mut tokens = vec![self.chat.start];
        tokens.extend(self.encode(&format!("{role}\n{content}"))?);
        Ok(tokens)
    }

    /// The text of one token, `None` for a control token or a part of a character.
    pub fn piece(&self, token: u32) -> Option<String> {
        let text = self.tokenizer.decode(&[token], true).ok()?;
        (!text.is_empty() && !text.contains('\u{fffd}')).then_some(text)
    }
}
