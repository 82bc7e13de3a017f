//! What a job says of itself while it runs: metrics, probes, a status page.
//!
//! * **Delivery**: the newest snapshot, or the one before; a scrape never waits for the job and the job
//!   never waits for a scrape.
//! * **Ordering**: snapshots in the order in which the job took them.
//! * **Retries**: none.
//! * **Limits**: all in [`Config`]: connections at a time, the time for a request's head and for the
//!   whole exchange, one request a connection, [`server::MAX_HEAD_BYTES`]; only GET, no body is read. At
//!   most [`MAX_REQUEST_TIMES`] durations of calls wait for the next snapshot.
//! * **Secrets**: it has none and asks for none, so it listens on loopback unless told otherwise. It
//!   shows numbers, the names of job, topics and versions; never a user, an item, a title or a text.
//! * **Telemetry**: it is it. Its names stand in [`names`].

pub mod chart;
pub mod graph;
pub mod metrics;
pub mod names;
pub mod page;
pub mod server;
pub mod status;

use crate::clock;
use metrics::Metrics;
use serde::{Deserialize, Serialize};
use status::{Reason, Status, reason};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The most durations of calls that the job keeps until it takes a snapshot.
pub const MAX_REQUEST_TIMES: usize = 10_000;

/// The section `telemetry` of the config. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The address to listen on, `host:port` with a numeric host; `off` for none. Whoever reaches it
    /// may read it.
    pub listen: String,
    /// Connections served at a time; more wait.
    pub max_connections: usize,
    /// The time that a client has to send the head of its request.
    pub header_timeout_ms: u64,
    /// The time for a whole exchange; at least `header_timeout_ms`.
    pub request_timeout_ms: u64,
    /// `/livez` fails where the job's loop hasn't turned for so long. A commit and the wait for a
    /// replayed bound take up to a minute each.
    pub live_within_ms: u64,
    /// `/readyz` fails where input has waited for a commit for so long.
    pub commit_within_ms: u64,
    /// How often the ends of the input logs are asked for the lag.
    pub lag_every_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: "127.0.0.1:9464".into(),
            max_connections: 32,
            header_timeout_ms: 5_000,
            request_timeout_ms: 10_000,
            live_within_ms: 180_000,
            commit_within_ms: 60_000,
            lag_every_ms: 2_000,
        }
    }
}

impl Config {
    /// The default limits, without a server.
    pub fn off() -> Self {
        Config { listen: "off".into(), ..Config::default() }
    }

    /// Where to listen, `None` for `off`.
    ///
    /// # Errors
    /// What is wrong with `listen`.
    pub fn address(&self) -> Result<Option<SocketAddr>, String> {
        if self.listen == "off" {
            return Ok(None);
        }
        self.listen.parse().map(Some).map_err(|_| {
            "telemetry.listen must be off or a numeric host:port, like 127.0.0.1:9464 or [::1]:9464"
                .to_owned()
        })
    }

    /// All that is wrong with it, each with its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.address().err().into_iter().collect();
        let mut within = |key: &str, value: u64, least: u64, most: u64| {
            if !(least..=most).contains(&value) {
                problems.push(format!("telemetry.{key} must be {least} to {most}"));
            }
        };
        within("max_connections", self.max_connections as u64, 1, 1_024);
        within("header_timeout_ms", self.header_timeout_ms, 10, 60_000);
        within("request_timeout_ms", self.request_timeout_ms, self.header_timeout_ms.max(10), 60_000);
        within("live_within_ms", self.live_within_ms, 1_000, 3_600_000);
        within("commit_within_ms", self.commit_within_ms, 1_000, 3_600_000);
        within("lag_every_ms", self.lag_every_ms, 100, 600_000);
        problems
    }
}

/// What the job and the server share: the newest snapshot, the metrics, the job's last turn.
pub struct Telemetry {
    config: Config,
    metrics: Metrics,
    status: Mutex<Arc<Status>>,
    origin: Instant,
    /// When the job's loop last turned, milliseconds after `origin`.
    turned: AtomicU64,
}

impl Telemetry {
    /// Telemetry of a process that starts now.
    pub fn new(config: Config) -> Arc<Self> {
        let now = clock::now_ms();
        let status = Status { started_at: now, taken_at: now, ..Status::default() };
        Arc::new(Telemetry {
            config,
            metrics: Metrics::new(),
            status: Mutex::new(Arc::new(status)),
            origin: Instant::now(),
            turned: AtomicU64::new(0),
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metrics, for what is observed one by one.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Says that the job's loop turned.
    pub fn turn(&self) {
        let after = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned.store(after, Ordering::Relaxed);
    }

    /// Puts a snapshot in the place of the one before.
    pub fn publish(&self, status: Status) {
        self.metrics.take(&status);
        *self.lock() = Arc::new(status);
    }

    /// The newest snapshot.
    pub fn status(&self) -> Arc<Status> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Status>> {
        // Only a pointer is exchanged under the lock: it is whole even after a panic.
        self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Why the job isn't live: its loop hasn't turned within the limit. Empty where it is.
    pub fn live_reasons(&self) -> Vec<Reason> {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        let ago = self.origin.elapsed().saturating_sub(turned);
        if ago > Duration::from_millis(self.config.live_within_ms) {
            vec![reason("loop_stalled", format!("the job's loop hasn't turned for {} s", ago.as_secs()))]
        } else {
            Vec::new()
        }
    }

    /// Why the job isn't ready; empty where it is.
    pub fn ready_reasons(&self) -> Vec<Reason> {
        let mut reasons = self.live_reasons();
        reasons.extend(self.status().reasons(self.config.commit_within_ms));
        reasons
    }

    /// `/metrics`.
    ///
    /// # Errors
    /// What the text encoder says.
    pub fn scrape(&self) -> prometheus::Result<Vec<u8>> {
        self.metrics.ready(self.ready_reasons().is_empty());
        self.metrics.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_by_its_key_at_the_limit_and_one_above() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
        assert_eq!(Config::off().address(), Ok(None));
        type Change = fn(&mut Config, u64);
        let table: [(&str, u64, u64, Change); 6] = [
            ("max_connections", 1, 1_024, |c, n| c.max_connections = n as usize),
            ("header_timeout_ms", 10, 10_000, |c, n| c.header_timeout_ms = n),
            ("request_timeout_ms", 5_000, 60_000, |c, n| c.request_timeout_ms = n),
            ("live_within_ms", 1_000, 3_600_000, |c, n| c.live_within_ms = n),
            ("commit_within_ms", 1_000, 3_600_000, |c, n| c.commit_within_ms = n),
            ("lag_every_ms", 100, 600_000, |c, n| c.lag_every_ms = n),
        ];
        for (key, least, most, change) in table {
            for (value, fits) in [(least, true), (most, true), (least - 1, false), (most + 1, false)] {
                let mut config = Config::default();
                change(&mut config, value);
                assert_eq!(config.problems().is_empty(), fits, "{key} = {value}");
            }
        }
        for listen in ["localhost:9464", "127.0.0.1", "", "0.0.0.0:70000"] {
            let config = Config { listen: listen.into(), ..Config::default() };
            assert!(config.problems()[0].contains("telemetry.listen"), "{listen}");
        }
    }

    #[test]
    fn a_loop_that_does_not_turn_is_not_live() {
        let telemetry = Telemetry::new(Config { live_within_ms: 1, ..Config::default() });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(telemetry.live_reasons()[0].code, "loop_stalled");
        let telemetry = Telemetry::new(Config::default());
        telemetry.turn();
        assert!(telemetry.live_reasons().is_empty());
    }
}
