//! Generators of CoT texts behind one trait.

pub mod answer;
pub mod health;
pub mod local;
pub mod openai;
pub mod prompt;
pub mod template;
pub mod validate;

use crate::Result;
use answer::Progress;
use health::Health;
use ictflow_schemas::cot::CotRequest;
use std::sync::Arc;
use std::time::Duration;

/// One attempt at an answer, before validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The whole CoT.
    pub text: String,
    /// What the model wrote: the gaps of a guided answer, or the whole of a free one.
    pub written: Vec<String>,
    /// Prompt tokens of the attempt.
    pub tokens_in: i64,
    /// Generated tokens, forced words not counted.
    pub tokens_out: i64,
    /// Why it ended: `stop`, `length`, or a service's own word, such as `content_filter`.
    pub finish_reason: String,
}

/// A generator of CoT texts. One call is one attempt.
pub trait Generate: Send {
    /// The model's id: SHA-256 of the file as downloaded, or the service's name.
    fn model(&self) -> &str;

    /// name@BLAKE3 of the prompt file, 16 hex digits.
    fn prompt_version(&self) -> &str;

    /// The decoding parameters with the schedule of attempts, canonical JSON.
    fn parameters(&self) -> &str;

    /// How many attempts the schedule has.
    fn attempts(&self) -> u32;

    /// Takes leave for the next call of a key, or says how long no call can be started: a service is
    /// down, or a budget is spent. A leave holds for one call of [`Generate::generate`], which must
    /// follow. What isn't started isn't accounted.
    fn ready(&mut self, _request: &CotRequest, _progress: &Progress) -> Option<Duration> {
        None
    }

    /// The counters of the service behind it, where there is one; clones share them.
    fn health(&self) -> Option<Arc<Health>> {
        None
    }

    /// Makes attempt `attempt` (from 1) at an answer. Deterministic for a local model.
    fn generate(&mut self, request: &CotRequest, attempt: u32) -> Result<Draft>;

    /// How many answers grow together in [`Generate::generate_all`]: more than one where that is faster.
    fn batch(&self) -> usize {
        1
    }

    /// Makes attempts at several answers, one result a request, each as [`Generate::generate`] alone would give it.
    fn generate_all(&mut self, requests: &[(&CotRequest, u32)]) -> Vec<Result<Draft>> {
        requests.iter().map(|(request, attempt)| self.generate(request, *attempt)).collect()
    }
}
