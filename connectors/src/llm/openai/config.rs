//! The section `generator.openai` of the config: typed, bounded, secrets by reference.

use crate::http::url_problem;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};

/// How to reach a service, and every limit on the way. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The URL before `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
    pub base_url: String,
    /// The service's name of the model. It enters every content key.
    pub model: String,
    /// The key, sent as `Authorization: Bearer`; none where unset.
    pub api_key: Option<Secret>,
    /// The longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// The longest time for a whole call, from the first byte sent to the last one read.
    pub timeout_ms: u64,
    /// The largest answer that is read, bytes.
    pub max_answer_bytes: u64,
    /// Calls under way at once.
    pub concurrency: usize,
    /// Tokens of prompts and answers in a minute; 0: no budget.
    pub tokens_per_minute: u64,
    /// Tokens of an answer at most. It enters every content key.
    pub max_tokens: u32,
    /// The temperature from the second attempt of the schedule on, a decimal as text; the first is
    /// greedy, the n-th has seed n. It enters every content key.
    pub temperature: String,
    /// Attempts of the schedule, for answers that don't pass. It enters every content key.
    pub attempts: u32,
    /// The pause after the first failed call of a key is at most this; it doubles with each.
    pub retry_base_ms: u64,
    /// The longest pause, also of those that the service asks for.
    pub retry_max_ms: u64,
    /// Failed calls in a row after which the breaker opens.
    pub breaker_failures: u32,
    /// How long it stays open before one call probes the service.
    pub breaker_open_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            base_url: String::new(),
            model: String::new(),
            api_key: None,
            connect_timeout_ms: 5_000,
            timeout_ms: 60_000,
            max_answer_bytes: 1_000_000,
            concurrency: 4,
            tokens_per_minute: 0,
            max_tokens: 400,
            temperature: "0.7".into(),
            attempts: 3,
            retry_base_ms: 1_000,
            retry_max_ms: 60_000,
            breaker_failures: 5,
            breaker_open_ms: 30_000,
        }
    }
}

/// The longest of every time: an hour.
const LONGEST_MS: u64 = 60 * 60 * 1_000;

/// Tokens that a budget must hold beside an answer: those of a prompt of usual length.
const PROMPT_TOKENS: u64 = 1_000;

impl Config {
    /// Every problem of the values, each with its key and what to do.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        if let Some(problem) = url_problem(&self.base_url) {
            // The URL itself isn't repeated: it may hold credentials.
            let hint =
                "give the URL before /chat/completions, as http://127.0.0.1:8000/v1, and the key by api_key";
            require(false, format!("generator.openai.base_url: {problem}; {hint}"));
        }
        require(
            !self.model.is_empty() && self.model.len() <= 256 && !self.model.contains(char::is_control),
            "generator.openai.model must be 1 to 256 bytes: the service lists its models at /models".into(),
        );
        let range = |name: &str, value: u64, low: u64, high: u64| {
            let problem = format!("generator.openai.{name} must be {low} to {high}, is {value}");
            ((low..=high).contains(&value), problem)
        };
        for (holds, problem) in [
            range("connect_timeout_ms", self.connect_timeout_ms, 10, 60_000),
            range("timeout_ms", self.timeout_ms, 10, LONGEST_MS),
            range("max_answer_bytes", self.max_answer_bytes, 1_000, 64 << 20),
            range("concurrency", self.concurrency as u64, 1, 256),
            range("max_tokens", u64::from(self.max_tokens), 16, 8_192),
            range("attempts", u64::from(self.attempts), 1, 16),
            range("retry_base_ms", self.retry_base_ms, 1, 60_000),
            range("retry_max_ms", self.retry_max_ms, 1, LONGEST_MS),
            range("breaker_failures", u64::from(self.breaker_failures), 1, 1_000),
            range("breaker_open_ms", self.breaker_open_ms, 1, LONGEST_MS),
        ] {
            require(holds, problem);
        }
        require(
            self.connect_timeout_ms <= self.timeout_ms,
            "generator.openai.connect_timeout_ms must not exceed timeout_ms, which holds for the whole call"
                .into(),
        );
        require(
            self.retry_base_ms <= self.retry_max_ms,
            "generator.openai.retry_base_ms must not exceed retry_max_ms".into(),
        );
        let least = u64::from(self.max_tokens) + PROMPT_TOKENS;
        require(
            self.tokens_per_minute == 0 || (least..=1_000_000_000).contains(&self.tokens_per_minute),
            format!(
                "generator.openai.tokens_per_minute must be 0 or {least} to 1000000000: one call takes max_tokens and its prompt"
            ),
        );
        require(
            temperature(&self.temperature).is_some(),
            "generator.openai.temperature must be a decimal as text, \"0.05\" to \"2\": equal answers would fail alike".into(),
        );
        problems
    }
}

/// The number of a temperature, written plainly: digits, and a point with digits after it.
pub(super) fn temperature(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.len() <= 8;
    let ends = text.starts_with(|c: char| c.is_ascii_digit()) && text.ends_with(|c: char| c.is_ascii_digit());
    let value: f64 = text.parse().ok()?;
    (plain && ends && (0.05..=2.0).contains(&value)).then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn good() -> Config {
        Config { base_url: "http://127.0.0.1:8000/v1".into(), model: "m".into(), ..Config::default() }
    }

    #[test]
    fn the_defaults_lack_only_what_is_required() {
        assert_eq!(good().problems(), Vec::<String>::new());
        let problems = Config::default().problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("base_url") && problems[1].contains("model"));
    }

    #[test]
    fn every_limit_is_checked_at_its_edge_and_one_beyond() {
        type Set = fn(&mut Config, u64);
        let table: [(&str, u64, u64, Set); 10] = [
            ("connect_timeout_ms", 10, 60_000, |c, v| c.connect_timeout_ms = v),
            ("timeout_ms", 5_000, LONGEST_MS, |c, v| c.timeout_ms = v),
            ("max_answer_bytes", 1_000, 64 << 20, |c, v| c.max_answer_bytes = v),
            ("concurrency", 1, 256, |c, v| c.concurrency = v as usize),
            ("max_tokens", 16, 8_192, |c, v| c.max_tokens = v as u32),
            ("attempts", 1, 16, |c, v| c.attempts = v as u32),
            ("retry_base_ms", 1, 60_000, |c, v| c.retry_base_ms = v),
            ("retry_max_ms", 1_000, LONGEST_MS, |c, v| c.retry_max_ms = v),
            ("breaker_failures", 1, 1_000, |c, v| c.breaker_failures = v as u32),
            ("breaker_open_ms", 1, LONGEST_MS, |c, v| c.breaker_open_ms = v),
        ];
        for (name, low, high, set) in table {
            for (value, holds) in [(low, true), (low - 1, false), (high, true), (high + 1, false)] {
                let mut config = Config { timeout_ms: LONGEST_MS, ..good() };
                set(&mut config, value);
                let problems = config.problems();
                assert_eq!(problems.is_empty(), holds, "{name} {value}: {problems:?}");
                assert!(problems.iter().all(|problem| problem.contains(name)), "{problems:?}");
            }
        }
        for (tokens, holds) in [(0, true), (1_400, true), (1_399, false), (1, false)] {
            let config = Config { tokens_per_minute: tokens, ..good() };
            assert_eq!(config.problems().is_empty(), holds, "{tokens}");
        }
        for (text, holds) in
            [("0.05", true), ("2", true), ("0.04", false), ("2.01", false), ("7e-1", false), (".5", false)]
        {
            let config = Config { temperature: text.into(), ..good() };
            assert_eq!(config.problems().is_empty(), holds, "{text}");
        }
    }

    #[test]
    fn a_key_is_given_by_reference_only_and_never_repeated() {
        let text = "base_url = 'http://h/v1'\nmodel = 'm'\napi_key = 'sk-canary'";
        let error = toml::from_str::<Config>(text).unwrap_err();
        assert!(error.message().contains("by reference") && !error.message().contains("canary"), "{error}");
        let config: Config = toml::from_str("api_key = { env = 'LLM_KEY' }").unwrap();
        assert_eq!(config.api_key, Some(Secret::Env { env: "LLM_KEY".into() }));
        let config = Config { base_url: "http://me:canary@h/v1".into(), ..good() };
        let problems = config.problems().join("; ");
        assert!(problems.contains("credentials") && !problems.contains("canary"), "{problems}");
    }
}
