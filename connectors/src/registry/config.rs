//! The section `registry` of the config: typed, bounded, secrets by reference.

use crate::http::{Http, Limits, url_problem};
use crate::secret::Secret;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What stands for the topic's name in `subject`.
const TOPIC: &str = "{topic}";

/// The longest pause between two attempts, whatever the doubling or the registry asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How to reach a schema registry with the Confluent-compatible API, and every limit on the way.
/// Times are milliseconds, sizes bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The base of the API, without credentials.
    pub url: String,
    /// The user of basic authentication.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// A bearer token, in the place of user and password.
    pub token: Option<Secret>,
    /// Allows credentials over http:// to another machine, where they cross the network in the open.
    pub allow_plaintext_credentials: bool,
    /// The subject of a topic's values; `{topic}` stands for its name.
    pub subject: String,
    /// Whether a missing schema of ours is registered; without it a person has to.
    pub register: bool,
    /// The longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// The longest wait for a whole answer.
    pub timeout_ms: u64,
    /// How often a request is tried again that failed in a way that may pass.
    pub retries: u32,
    /// The pause before the first of them; it doubles from one to the next, up to 10 s.
    pub retry_pause_ms: u64,
    /// The largest schema that is read. Records of a larger one are unreadable.
    pub max_schema_bytes: usize,
    /// Schemas that are kept, by id and topic; of more, those not used for longest are forgotten.
    pub cache_schemas: usize,
    /// How long an id that the registry doesn't know is taken as unknown before it is asked again.
    pub unknown_id_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            url: String::new(),
            username: None,
            password: None,
            token: None,
            allow_plaintext_credentials: false,
            subject: "{topic}-value".into(),
            register: true,
            connect_timeout_ms: 2_000,
            timeout_ms: 10_000,
            retries: 5,
            retry_pause_ms: 200,
            max_schema_bytes: 1_000_000,
            cache_schemas: 1_000,
            unknown_id_ms: 60_000,
        }
    }
}

impl Config {
    /// Everything that is wrong with the values, each problem with its key. Reads no secret.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let url = url_problem(&self.url);
        require(url.is_none(), format!("registry.url: {}", url.unwrap_or_default()));
        require(
            self.username.is_some() == self.password.is_some(),
            "registry.username and registry.password belong together: give both or neither".into(),
        );
        require(
            self.username.as_deref().is_none_or(|user| !user.is_empty() && !user.contains(':')),
            "registry.username must not be empty or hold a colon, which ends it in the header".into(),
        );
        require(
            self.token.is_none() || self.password.is_none(),
            "registry.token and registry.password are both given: choose one".into(),
        );
        let credentials = self.token.is_some() || self.password.is_some();
        require(
            !credentials || self.allow_plaintext_credentials || url.is_some() || stays_private(&self.url),
            "registry.url is http:// to another machine: credentials would cross the network in the open; use https:// or set registry.allow_plaintext_credentials"
                .into(),
        );
        require(
            self.subject.matches(TOPIC).count() == 1 && !self.subject.contains(char::is_control),
            "registry.subject must hold {topic} once, as in \"{topic}-value\"".into(),
        );
        for (name, value, low, high) in [
            ("connect_timeout_ms", self.connect_timeout_ms, 10, 60_000),
            ("timeout_ms", self.timeout_ms, 10, 120_000),
            ("retries", self.retries.into(), 0, 100),
            ("retry_pause_ms", self.retry_pause_ms, 1, 10_000),
            ("max_schema_bytes", self.max_schema_bytes as u64, 1_000, 64_000_000),
            ("cache_schemas", self.cache_schemas as u64, 1, 100_000),
            ("unknown_id_ms", self.unknown_id_ms, 0, 86_400_000),
        ] {
            require(
                (low..=high).contains(&value),
                format!("registry.{name} must be {low} to {high}, is {value}"),
            );
        }
        require(
            self.connect_timeout_ms <= self.timeout_ms,
            "registry.connect_timeout_ms must not exceed registry.timeout_ms, which holds the connection too"
                .into(),
        );
        problems
    }

    /// The subject of a topic's values.
    pub fn subject(&self, topic: &str) -> String {
        self.subject.replace(TOPIC, topic)
    }

    /// The HTTP client, secrets read.
    ///
    /// # Errors
    /// `Fatal` where the values have problems or a secret can't be read.
    pub(super) fn http(&self) -> Result<Http> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(Error::fatal("read the registry config", problems.join("; "), "correct the config"));
        }
        let authorization = match (&self.token, &self.username, &self.password) {
            (Some(token), _, _) => Some(token.resolve("registry.token")?.bearer_authorization()),
            (None, Some(user), Some(password)) => {
                Some(password.resolve("registry.password")?.basic_authorization(user))
            }
            _ => None,
        };
        // In the answer the schema is a JSON text: a quote or a line feed takes two bytes there.
        let max_answer_bytes = 2 * self.max_schema_bytes as u64 + 65_536;
        let limits = Limits {
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            timeout: Duration::from_millis(self.timeout_ms),
            max_answer_bytes,
        };
        Http::new(&self.url, authorization, limits)
    }

    /// The pause before the `n`th attempt after the first, `n` from 1. A registry that names a time
    /// is given it, within the same limit.
    pub(super) fn pause(&self, n: u32, retry_after: Option<Duration>) -> Duration {
        let doubled =
            Duration::from_millis(self.retry_pause_ms).saturating_mul(1 << n.saturating_sub(1).min(20));
        doubled.max(retry_after.unwrap_or_default()).min(LONGEST_PAUSE)
    }

    /// How long an unknown id stays unknown.
    pub(super) fn unknown_for(&self) -> Duration {
        Duration::from_millis(self.unknown_id_ms)
    }
}

/// Whether what is sent to this URL can't be read on the way: it is encrypted, or doesn't leave the
/// machine.
fn stays_private(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return url.starts_with("https://") };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn good() -> Config {
        Config { url: "http://127.0.0.1:8081".into(), ..Config::default() }
    }

    #[test]
    fn the_defaults_need_only_a_url() {
        assert_eq!(good().problems(), Vec::<String>::new());
        assert_eq!(Config::default().problems().len(), 1);
        assert_eq!(good().subject("clicks"), "clicks-value");
    }

    #[test]
    fn every_bound_holds_at_the_limit_and_is_refused_one_beyond() {
        type Set = fn(&mut Config, u64);
        let bounds: [(&str, u64, u64, Set); 7] = [
            ("connect_timeout_ms", 10, 60_000, |c, v| {
                c.connect_timeout_ms = v;
                c.timeout_ms = 120_000;
            }),
            ("timeout_ms", 10, 120_000, |c, v| {
                c.timeout_ms = v;
                c.connect_timeout_ms = 10;
            }),
            ("retries", 0, 100, |c, v| c.retries = v as u32),
            ("retry_pause_ms", 1, 10_000, |c, v| c.retry_pause_ms = v),
            ("max_schema_bytes", 1_000, 64_000_000, |c, v| c.max_schema_bytes = v as usize),
            ("cache_schemas", 1, 100_000, |c, v| c.cache_schemas = v as usize),
            ("unknown_id_ms", 0, 86_400_000, |c, v| c.unknown_id_ms = v),
        ];
        for (key, low, high, set) in bounds {
            let problems = |value: u64| {
                let mut config = good();
                set(&mut config, value);
                config.problems()
            };
            assert_eq!(problems(low), Vec::<String>::new(), "{key}");
            assert_eq!(problems(high), Vec::<String>::new(), "{key}");
            assert!(problems(high + 1).iter().any(|p| p.contains(key)), "{key}");
            if low > 0 {
                assert!(problems(low - 1).iter().any(|p| p.contains(key)), "{key}");
            }
        }
    }

    #[test]
    fn what_would_leak_or_mislead_is_refused_by_key() {
        let password = || Some(Secret::Env { env: "ICTFLOW_NOT_SET".into() });
        let with = |change: fn(&mut Config)| {
            let mut config = good();
            change(&mut config);
            config.problems().join("; ")
        };
        assert!(with(|c| c.username = Some("me".into())).contains("registry.password"));
        assert!(with(|c| c.subject = "values".into()).contains("registry.subject"));
        assert!(with(|c| c.subject = "{topic}{topic}".into()).contains("registry.subject"));
        assert!(with(|c| c.url = "http://me:word@host".into()).contains("credentials"));
        assert!(with(|c| c.connect_timeout_ms = 10_001).contains("registry.timeout_ms"));
        let both = Config { username: Some("me".into()), password: password(), token: password(), ..good() };
        assert!(both.problems().join("").contains("choose one"));
        let user = Config { username: Some("a:b".into()), password: password(), ..good() };
        assert!(user.problems().join("").contains("colon"));
        for (url, open) in [
            ("http://127.0.0.1:8081", false),
            ("http://[::1]:8081", false),
            ("http://localhost:8081/x", false),
            ("https://registry.example.org", false),
            ("http://registry.example.org", true),
            ("http://127.0.0.1.example.org", true),
        ] {
            let mut config = Config { url: url.into(), token: password(), ..good() };
            assert_eq!(config.problems().join("").contains("in the open"), open, "{url}");
            config.allow_plaintext_credentials = true;
            assert_eq!(config.problems(), Vec::<String>::new(), "{url}");
        }
        let error = Config { token: password(), ..good() }.http().unwrap_err().to_string();
        assert!(error.contains("registry.token") && error.contains("ICTFLOW_NOT_SET"), "{error}");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let config = good();
        let ms = |n, after| config.pause(n, after).as_millis();
        assert_eq!([ms(1, None), ms(2, None), ms(3, None)], [200, 400, 800]);
        assert_eq!(ms(100, None), 10_000);
        assert_eq!(ms(1, Some(Duration::from_secs(3))), 3_000);
        assert_eq!(ms(1, Some(Duration::from_secs(3_600))), 10_000);
    }
}
