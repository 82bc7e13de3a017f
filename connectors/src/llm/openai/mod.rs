//! `openai`: CoTs by any service that speaks OpenAI's `POST {base_url}/chat/completions`, such as vLLM,
//! llama.cpp's server, Ollama, or OpenAI itself.
//!
//! Clones share the connections, the breaker, the budget and the counters: one for each thread.
//!
//! * **Delivery**: an answer is returned or it isn't; nothing is kept. A call that ended without an answer
//!   may have been paid for all the same: the service alone knows.
//! * **Ordering**: none; a body depends on its request and attempt alone.
//! * **Retries**: none here: one call is one exchange, and its end says how long the key has to wait. 429
//!   (`Retry-After` heeded up to `retry_max_ms`), 5xx, timeouts, broken connections and unreadable answers
//!   ask for another call with the very same body, after a pause that doubles with each failed call of the
//!   key and is drawn between nothing and its bound. 400, 413 and 422 are the end of their key. A draft
//!   that doesn't pass, or that the service's filter refused, is the schedule's matter: the first attempt
//!   is greedy, the n-th draws with seed n.
//!   After `breaker_failures` failures in a row no call is started for `breaker_open_ms`; then one call
//!   probes. 401, 403, 404 and other signs of a wrong configuration open the breaker at once, and so do
//!   `breaker_failures` requests in a row refused as such, so that a setting that the service can't take
//!   spends few keys. Data never waits for any of this.
//! * **Limits**: all in the [`Config`]: time and size of a call, calls at once, tokens a minute, attempts,
//!   pauses. Redirects aren't followed, proxies of the environment aren't used, answers aren't streamed.
//! * **Secrets**: the key, by reference, printed nowhere. Prompts and answers are persons' data: neither
//!   is ever logged, nor is any part of an answer in an error. They leave this machine for `base_url`.
//! * **Telemetry**: [`Health`]: requests by outcome, durations, retries, tokens, breaker, budget. An
//!   opening breaker is logged, for a wrong configuration as an error that names the key to look at.

mod breaker;
mod budget;
mod chat;
mod config;
pub mod prompt;

pub use config::Config;

use super::answer::Progress;
use super::health::{Health, Outcome};
use super::{Draft, Generate};
use crate::http::{Http, Limits};
use crate::{Error, Result, clock};
use breaker::{Breaker, Leave, Verdict};
use budget::Budget;
use ictflow_schemas::cot::CotRequest;
use prompt::ChatPrompt;
use serde::Deserialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a prompt that are reckoned as one token before the service has counted.
const BYTES_A_TOKEN: u64 = 4;

/// Model names of a service that an error lists at most.
const NAMED_MODELS: usize = 8;

/// What the clones share.
struct Shared {
    http: Http,
    config: Config,
    prompt: ChatPrompt,
    parameters: String,
    gate: Mutex<Gate>,
    health: Arc<Health>,
}

/// What decides whether a call may be started.
struct Gate {
    breaker: Breaker,
    budget: Option<Budget>,
    /// Requests in a row that were refused as such.
    refused: u32,
}

/// A leave for one call, with what the call sends.
struct Ready {
    leave: Leave,
    reserved: f64,
    /// Calls of the key that failed before.
    failures: u32,
    body: Vec<u8>,
}

/// A generator on a service.
pub struct OpenAi {
    shared: Arc<Shared>,
    ready: Option<Ready>,
}

impl Clone for OpenAi {
    fn clone(&self) -> Self {
        OpenAi { shared: self.shared.clone(), ready: None }
    }
}

/// How a call ended.
struct End {
    outcome: Outcome,
    verdict: Verdict,
    /// What it took of the budget; `None`: what was reserved.
    taken: Option<f64>,
    result: Result<Draft>,
}

impl OpenAi {
    /// A generator of a checked configuration; makes no call.
    ///
    /// # Errors
    /// `Fatal` where a value is out of its bounds, or the key can't be read or sent.
    pub fn open(config: Config, prompt: ChatPrompt) -> Result<Self> {
        let http = client(&config)?;
        let now = Instant::now();
        let budget = config.tokens_per_minute;
        let gate = Gate {
            breaker: Breaker::new(config.breaker_failures, Duration::from_millis(config.breaker_open_ms)),
            budget: Budget::new(budget, now),
            refused: 0,
        };
        let shared = Shared {
            http,
            parameters: chat::parameters(&config),
            prompt,
            gate: Mutex::new(gate),
            health: Arc::new(Health::new((budget > 0).then_some(budget))),
            config,
        };
        Ok(OpenAi { shared: Arc::new(shared), ready: None })
    }

    fn body(&self, request: &CotRequest, attempt: u32) -> Vec<u8> {
        chat::body(&self.shared.config, &self.shared.prompt.messages(request), attempt)
    }

    /// Gives a leave back that no call followed.
    fn give_back(&mut self) {
        if let Some(ready) = self.ready.take() {
            self.shared.end(&ready, Verdict::Unknown, Some(0.0));
        }
    }
}

impl Drop for OpenAi {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A client of a checked configuration.
fn client(config: &Config) -> Result<Http> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::fatal(
            "check generator.openai",
            problems.join("; "),
            "fix all of them, then try again",
        ));
    }
    const KEY: &str = "generator.openai.api_key";
    let key = config.api_key.as_ref().map(|secret| secret.resolve(KEY)).transpose()?;
    if key.as_ref().is_some_and(|key| !key.expose().bytes().all(|b| (0x21..=0x7e).contains(&b))) {
        return Err(Error::fatal(
            format!("read the secret {KEY}"),
            "it holds a blank, a line end or another character that no HTTP header can carry",
            "put the key there and nothing else",
        ));
    }
    if key.is_some() && config.base_url.starts_with("http://") && !is_loopback(&config.base_url) {
        tracing::warn!("generator.openai.api_key crosses the network in the open: base_url isn't https://");
    }
    let limits = Limits {
        connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        timeout: Duration::from_millis(config.timeout_ms),
        max_answer_bytes: config.max_answer_bytes,
    };
    Http::new(&config.base_url, key.map(|key| key.bearer_authorization()), limits)
}

fn is_loopback(url: &str) -> bool {
    ["http://127.", "http://localhost", "http://[::1]"].iter().any(|host| url.starts_with(host))
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Its state is whole between two statements, so a thread that died left nothing half done.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the end of a call at the gate. Returns whether the breaker opened by it.
    fn end(&self, ready: &Ready, verdict: Verdict, taken: Option<f64>) -> bool {
        let now = Instant::now();
        let mut gate = self.gate();
        let opened = gate.breaker.end(ready.leave, verdict, now);
        if let Some(budget) = &mut gate.budget {
            budget.settle(ready.reserved, taken.unwrap_or(ready.reserved), now);
        }
        self.show(&gate);
        opened
    }

    fn show(&self, gate: &Gate) {
        self.health.set_breaker_open(gate.breaker.is_open());
        self.health.set_budget_left(gate.budget.as_ref().map(Budget::left));
    }

    /// The pause after a key's failed call: drawn between nothing and a bound that doubles.
    fn pause(&self, failures: u32) -> Duration {
        let (base, max) = (self.config.retry_base_ms, self.config.retry_max_ms);
        let bound = base.saturating_mul(1 << failures.min(32)).min(max);
        Duration::from_millis(fastrand::u64(1..=bound.max(1)))
    }

    /// The pause that the service asks for, up to the limit.
    fn asked_pause(&self, header: Option<&str>) -> Option<Duration> {
        let pause = chat::retry_after(header?, clock::now_ms())?;
        Some(pause.min(Duration::from_millis(self.config.retry_max_ms)))
    }

    /// Makes the call and says how it ended.
    fn call(&self, ready: &Ready) -> End {
        const CONTEXT: &str = "ask the LLM";
        let pause = self.pause(ready.failures);
        let failed = |outcome, taken, pause, detail: &str| End {
            outcome,
            verdict: Verdict::Failed,
            taken,
            result: Err(Error::retry(
                pause,
                CONTEXT,
                detail,
                "the key is asked again later: is the service well?",
            )),
        };
        let denied = |detail: &str, hint| End {
            outcome: Outcome::Denied,
            verdict: Verdict::Denied,
            taken: Some(0.0),
            result: Err(Error::retry(
                Duration::from_millis(self.config.breaker_open_ms),
                CONTEXT,
                detail,
                hint,
            )),
        };
        let answer = match self.http.post("chat/completions", "application/json", &ready.body) {
            Ok(answer) => answer,
            Err(error) => match chat::transport(&error) {
                (Outcome::Denied, detail) => return denied(detail, hint(300)),
                // Nothing says what a broken call took, so the reservation stands.
                (outcome, detail) => return failed(outcome, None, pause, detail),
            },
        };
        let detail = format!("status {}", answer.status);
        match chat::outcome(answer.status) {
            Outcome::Ok | Outcome::Garbage => match chat::read(&answer.body, &self.prompt) {
                Some(read) if answer.status == 200 => {
                    let (tokens_in, tokens_out) = read.usage.unwrap_or_default();
                    self.health.tokens(tokens_in, tokens_out);
                    let taken = read.usage.map(|_| tokens_in as f64 + tokens_out as f64);
                    End { outcome: Outcome::Ok, verdict: Verdict::Works, taken, result: Ok(read.draft) }
                }
                _ => failed(Outcome::Garbage, None, pause, "the answer isn't a chat completion"),
            },
            Outcome::RateLimited => {
                let pause = self.asked_pause(answer.retry_after.as_deref()).unwrap_or(pause);
                End {
                    verdict: Verdict::Limited { pause },
                    ..failed(Outcome::RateLimited, Some(0.0), pause, &detail)
                }
            }
            outcome @ (Outcome::ServerError | Outcome::Timeout | Outcome::Transport) => {
                let pause =
                    self.asked_pause(answer.retry_after.as_deref()).map_or(pause, |asked| asked.max(pause));
                failed(outcome, Some(0.0), pause, &detail)
            }
            Outcome::Refused => End {
                outcome: Outcome::Refused,
                verdict: Verdict::Works,
                taken: Some(0.0),
                result: Err(Error::poison(CONTEXT, detail, hint(answer.status))),
            },
            Outcome::Denied => denied(&detail, hint(answer.status)),
        }
    }
}

/// What a person looks at for a status.
fn hint(status: u16) -> &'static str {
    match status {
        400 | 413 | 422 => {
            "the service refuses the request: are generator.openai.model and max_tokens what it takes, and is its context long enough?"
        }
        401 | 403 => "the service refuses the caller: look at generator.openai.api_key",
        404 => "the service has no such route or model: look at generator.openai.base_url and model",
        300..=399 => "redirects aren't followed: give the final URL as generator.openai.base_url",
        _ => "the service takes no such request: look at generator.openai.base_url",
    }
}

impl Generate for OpenAi {
    fn model(&self) -> &str {
        &self.shared.config.model
    }

    fn prompt_version(&self) -> &str {
        self.shared.prompt.version()
    }

    fn parameters(&self) -> &str {
        &self.shared.parameters
    }

    fn attempts(&self) -> u32 {
        self.shared.config.attempts
    }

    fn health(&self) -> Option<Arc<Health>> {
        Some(self.shared.health.clone())
    }

    fn ready(&mut self, request: &CotRequest, progress: &Progress) -> Option<Duration> {
        self.give_back();
        let body = self.body(request, progress.drafts + 1);
        let estimate = body.len() as u64 / BYTES_A_TOKEN + u64::from(self.shared.config.max_tokens);
        let now = Instant::now();
        let mut gate = self.shared.gate();
        let leave = match gate.breaker.ask(now) {
            Ok(leave) => leave,
            Err(wait) => return Some(wait),
        };
        let reserved = gate.budget.as_mut().map_or(Ok(0.0), |budget| budget.reserve(estimate, now));
        if reserved.is_err() {
            gate.breaker.end(leave, Verdict::Unknown, now);
        }
        self.shared.show(&gate);
        drop(gate);
        match reserved {
            Ok(reserved) => {
                let failures = progress.calls.saturating_sub(progress.drafts);
                self.ready = Some(Ready { leave, reserved, failures, body });
                None
            }
            Err(wait) => Some(wait),
        }
    }

    fn generate(&mut self, request: &CotRequest, attempt: u32) -> Result<Draft> {
        let ready = self.ready.take().unwrap_or_else(|| Ready {
            leave: Leave::Normal,
            reserved: 0.0,
            failures: 0,
            body: self.body(request, attempt),
        });
        let started = Instant::now();
        let mut end = self.shared.call(&ready);
        self.shared.health.request(end.outcome, started.elapsed(), ready.failures > 0);
        {
            let mut gate = self.shared.gate();
            match end.outcome {
                Outcome::Refused => gate.refused = gate.refused.saturating_add(1),
                Outcome::Ok => gate.refused = 0,
                _ => {}
            }
            if end.outcome == Outcome::Refused && gate.refused >= self.shared.config.breaker_failures {
                end.verdict = Verdict::Denied;
            }
        }
        let opened = self.shared.end(&ready, end.verdict, end.taken);
        if let (true, Err(error)) = (opened, &end.result) {
            let wait_ms = self.shared.config.breaker_open_ms;
            let Error { detail, hint, .. } = error;
            match end.verdict {
                Verdict::Denied => {
                    tracing::error!(wait_ms, detail, hint, "the LLM can't be asked: CoTs wait, data doesn't")
                }
                _ => {
                    tracing::warn!(wait_ms, detail, "the LLM fails again and again: CoTs wait, data doesn't")
                }
            }
        }
        end.result
    }
}

/// The list of `GET {base_url}/models`.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Asks the service whether it is there and has the model; makes no completion. Gives what a person
/// should know though it stops nothing: not every service lists its models.
///
/// # Errors
/// `Fatal` where the configuration has a problem, the service can't be reached or refuses the key, or it
/// lists its models and the configured one isn't among them.
pub fn probe(config: &Config) -> Result<Vec<String>> {
    let failed = |detail: &str, hint| Error::fatal("ask the LLM service for its models", detail, hint);
    let answer = client(config)?.get("models").map_err(|error| {
        failed(chat::transport(&error).1, "is the service up, and generator.openai.base_url right?")
    })?;
    let status = format!("status {}", answer.status);
    match answer.status {
        200 => {}
        401 | 403 => return Err(failed(&status, hint(answer.status))),
        404 | 405 | 501 => {
            return Ok(vec![format!(
                "the LLM service lists no models ({status}): whether it has generator.openai.model isn't known"
            )]);
        }
        300..=399 => return Err(failed(&status, hint(answer.status))),
        _ => return Err(failed(&status, "is the service well, and generator.openai.base_url right?")),
    }
    let Ok(models) = serde_json::from_slice::<Models>(&answer.body) else {
        return Ok(vec!["the LLM service's list of models can't be read: whether it has generator.openai.model isn't known".into()]);
    };
    if models.data.iter().any(|model| model.id == config.model) {
        return Ok(Vec::new());
    }
    let named: Vec<String> = models.data.iter().take(NAMED_MODELS).map(|model| plain(&model.id)).collect();
    let detail =
        format!("it has no model {}; it lists {}: {}", config.model, models.data.len(), named.join(", "));
    Err(failed(&detail, "set generator.openai.model to one of the service's names"))
}

/// A foreign name, fit for a line on a terminal.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests;
