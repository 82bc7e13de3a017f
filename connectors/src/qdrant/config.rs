//! The section `qdrant` of the config: typed, bounded, the key by reference.

use crate::http::url_problem;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How to reach Qdrant, and every limit on the way. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The gRPC endpoint, `http://host:6334` or `https://`. TLS trusts the system's authorities, or
    /// those of the variable `SSL_CERT_FILE`.
    pub url: String,
    /// The collection. It belongs to one job: epochs of two jobs don't compare.
    pub collection: String,
    /// The API key.
    pub api_key: Option<Secret>,
    /// Allows the API key without TLS to another machine, where it crosses the network in the open.
    pub allow_plaintext_api_key: bool,
    /// The longest wait for one answer. The client library tries once more on a new connection
    /// before a failure counts, so that a call may take twice as long.
    pub timeout_ms: u64,
    /// The longest wait for a connection.
    pub connect_timeout_ms: u64,
    /// Points in one request.
    pub batch: usize,
    /// Requests at a time. Writes of one point always take the same one of these streams.
    pub streams: usize,
    /// Pairs in one lookup request; each is two searches, one a label.
    pub query_batch: usize,
    /// How many times K candidates a lookup asks of each label; the exact scores choose among them.
    pub over_fetch: usize,
    /// Attempts after the first one of a call that fails in passing.
    pub retries: u32,
    /// The pause before the second attempt; it doubles from attempt to attempt.
    pub retry_base_ms: u64,
    /// The longest pause.
    pub retry_max_ms: u64,
    /// Points in one page of the listing.
    pub page_points: u32,
    /// Points that the listing holds at most, those marked as deleted included; more stop the job.
    pub max_points: usize,
    /// Candidates that a search of the graph keeps; the collection's own value where unset.
    pub hnsw_ef: Option<u64>,
    /// Searches by full scan: exact candidates, at a cost that grows with the collection.
    pub exact: bool,
    /// Copies of each shard, where the collection is made; the server's default where unset.
    pub replication: Option<u32>,
    /// Copies that must acknowledge a write, where the collection is made. With fewer than
    /// `replication` a lookup on another copy may miss a point that was just written.
    pub write_consistency: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            url: String::new(),
            collection: "ictflow".into(),
            api_key: None,
            allow_plaintext_api_key: false,
            timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
            // Qdrant advises batches of 64 to 256 points on two to four streams.
            batch: 128,
            streams: 2,
            query_batch: 32,
            over_fetch: 4,
            retries: 5,
            retry_base_ms: 100,
            retry_max_ms: 5_000,
            page_points: 1_000,
            max_points: 1_000_000,
            hnsw_ef: None,
            exact: false,
            replication: None,
            write_consistency: None,
        }
    }
}

impl Config {
    /// Every problem of the values, each with its key and what to do. Neither the URL nor the key
    /// is repeated.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        match url_problem(&self.url) {
            Some(problem) => require(
                false,
                format!("qdrant.url must be the gRPC endpoint, http://host:6334 or https://: {problem}"),
            ),
            None => {
                let (encrypted, authority, path) = parts(&self.url);
                require(
                    path.is_empty(),
                    "qdrant.url must end after the port: gRPC has no path before its own".into(),
                );
                require(
                    self.api_key.is_none() || encrypted || loopback(authority) || self.allow_plaintext_api_key,
                    "qdrant.api_key would cross the network in the open: use https, or set allow_plaintext_api_key"
                        .into(),
                );
            }
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        require(
            (1..=200).contains(&self.collection.len()) && self.collection.chars().all(legal),
            "qdrant.collection must be 1 to 200 letters, digits, dots, dashes or underscores".into(),
        );
        let range = |name: &str, value: u64, low: u64, high: u64| {
            ((low..=high).contains(&value), format!("qdrant.{name} must be {low} to {high}, is {value}"))
        };
        for (holds, problem) in [
            range("timeout_ms", self.timeout_ms, 100, 300_000),
            range("connect_timeout_ms", self.connect_timeout_ms, 100, 60_000),
            range("batch", self.batch as u64, 64, 256),
            range("streams", self.streams as u64, 1, 16),
            range("query_batch", self.query_batch as u64, 1, 256),
            range("over_fetch", self.over_fetch as u64, 1, 64),
            range("retries", u64::from(self.retries), 0, 20),
            range("retry_base_ms", self.retry_base_ms, 1, 10_000),
            range("retry_max_ms", self.retry_max_ms, 1, 300_000),
            range("page_points", u64::from(self.page_points), 1, 10_000),
            range("max_points", self.max_points as u64, 1, 100_000_000),
            range("hnsw_ef", self.hnsw_ef.unwrap_or(1), 1, 10_000),
            range("replication", u64::from(self.replication.unwrap_or(1)), 1, 64),
            range("write_consistency", u64::from(self.write_consistency.unwrap_or(1)), 1, 64),
        ] {
            require(holds, problem);
        }
        require(
            self.retry_base_ms <= self.retry_max_ms,
            "qdrant.retry_base_ms must not exceed retry_max_ms: the pause grows from one to the other".into(),
        );
        require(
            !self.exact || self.hnsw_ef.is_none(),
            "qdrant.hnsw_ef must not be set with exact: a full scan has no graph".into(),
        );
        require(
            self.write_consistency.unwrap_or(1) <= self.replication.unwrap_or(64),
            "qdrant.write_consistency must not exceed replication: no write could be acknowledged".into(),
        );
        problems
    }

    /// The longest wait for one answer.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How long the server itself waits until a write is applied, in whole seconds, at least one:
    /// a little less than the client does, so that its answer still arrives.
    pub(super) fn server_timeout_s(&self) -> u64 {
        (self.timeout_ms.saturating_sub(500) / 1_000).max(1)
    }

    /// The longest pause.
    pub(super) fn longest_pause(&self) -> Duration {
        Duration::from_millis(self.retry_max_ms)
    }
}

/// Whether a URL is encrypted, its authority, and what stands behind that.
fn parts(url: &str) -> (bool, &str, &str) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    (scheme.eq_ignore_ascii_case("https"), authority, path)
}

/// Whether an authority names this machine.
fn loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => authority.split(':').next().unwrap_or(""),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        Config { url: "http://127.0.0.1:6334".into(), ..Config::default() }
    }

    #[test]
    fn the_defaults_need_only_a_url() {
        assert_eq!(good().problems(), Vec::<String>::new());
        assert_eq!(Config::default().problems().len(), 1);
    }

    #[test]
    fn limits_hold_to_the_last_value_and_not_beyond() {
        type Change = fn(&mut Config, u64);
        let table: [(&str, u64, u64, Change); 14] = [
            ("timeout_ms", 100, 300_000, |c, n| c.timeout_ms = n),
            ("connect_timeout_ms", 100, 60_000, |c, n| c.connect_timeout_ms = n),
            ("batch", 64, 256, |c, n| c.batch = n as usize),
            ("streams", 1, 16, |c, n| c.streams = n as usize),
            ("query_batch", 1, 256, |c, n| c.query_batch = n as usize),
            ("over_fetch", 1, 64, |c, n| c.over_fetch = n as usize),
            ("retries", 0, 20, |c, n| c.retries = n as u32),
            ("retry_base_ms", 1, 5_000, |c, n| c.retry_base_ms = n),
            ("retry_max_ms", 100, 300_000, |c, n| c.retry_max_ms = n),
            ("page_points", 1, 10_000, |c, n| c.page_points = n as u32),
            ("max_points", 1, 100_000_000, |c, n| c.max_points = n as usize),
            ("hnsw_ef", 1, 10_000, |c, n| c.hnsw_ef = Some(n)),
            ("replication", 1, 64, |c, n| c.replication = Some(n as u32)),
            ("write_consistency", 1, 64, |c, n| c.write_consistency = Some(n as u32)),
        ];
        for (key, low, high, change) in table {
            for (value, fits) in [(low, true), (high, true), (high + 1, false)] {
                let mut config = good();
                change(&mut config, value);
                let problems = config.problems();
                assert_eq!(problems.is_empty(), fits, "{key} = {value}: {problems:?}");
                assert!(fits || problems.iter().all(|problem| problem.contains(key)), "{key}: {problems:?}");
            }
            if low > 0 {
                let mut config = good();
                change(&mut config, low - 1);
                assert!(config.problems().iter().any(|problem| problem.contains(key)), "{key} = {}", low - 1);
            }
        }
    }

    #[test]
    fn each_problem_is_named_by_its_key_and_repeats_no_secret() {
        type Change = fn(&mut Config);
        let table: [(&str, Change); 10] = [
            ("url", |c| c.url.clear()),
            ("url", |c| c.url = "http://user:canary@host:6334".into()),
            ("url", |c| c.url = "http://host:6334/canary".into()),
            ("url", |c| c.url = "grpc://host:6334".into()),
            ("collection", |c| c.collection = "a/b".into()),
            ("collection", |c| c.collection = "c".repeat(201)),
            ("exact", |c| (c.exact, c.hnsw_ef) = (true, Some(64))),
            ("replication", |c| (c.replication, c.write_consistency) = (Some(2), Some(3))),
            ("allow_plaintext_api_key", |c| {
                c.url = "http://qdrant.example.org:6334".into();
                c.api_key = Some(Secret::Env { env: "K".into() });
            }),
            ("allow_plaintext_api_key", |c| {
                c.url = "http://localhost.example.org:6334".into();
                c.api_key = Some(Secret::Env { env: "K".into() });
            }),
        ];
        for (key, change) in table {
            let mut config = good();
            change(&mut config);
            let problems = config.problems();
            assert!(problems.iter().any(|problem| problem.contains(key)), "{key}: {problems:?}");
            assert!(problems.iter().all(|problem| !problem.contains("canary")), "{problems:?}");
        }
    }

    #[test]
    fn a_key_needs_tls_except_on_this_machine() {
        for url in [
            "https://qdrant.example.org:6334",
            "http://localhost:6334",
            "http://[::1]:6334",
            "http://127.9.9.9:1/",
        ] {
            let config = Config {
                url: url.into(),
                api_key: Some(Secret::Env { env: "K".into() }),
                ..Config::default()
            };
            assert_eq!(config.problems(), Vec::<String>::new(), "{url}");
        }
    }

    #[test]
    fn unknown_fields_and_inline_keys_are_refused_without_being_repeated() {
        let unknown = toml::from_str::<Config>("uri = 'http://a:1'").unwrap_err().to_string();
        assert!(unknown.contains("uri"), "{unknown}");
        // The parser shows the line it stopped at, so only the message itself is safe to print.
        let inline = toml::from_str::<Config>("api_key = 'canary'").unwrap_err();
        assert!(
            inline.message().contains("by reference") && !inline.message().contains("canary"),
            "{inline}"
        );
        let config = toml::from_str::<Config>("url = 'https://a:1'\napi_key = { env = 'K' }").unwrap();
        assert_eq!(config.api_key, Some(Secret::Env { env: "K".into() }));
    }

    #[test]
    fn the_server_gives_up_before_the_client_does() {
        for (timeout_ms, expected) in [(100, 1), (1_500, 1), (2_499, 1), (2_500, 2), (10_000, 9)] {
            assert_eq!(Config { timeout_ms, ..good() }.server_timeout_s(), expected);
        }
    }
}
