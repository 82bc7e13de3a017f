//! One job over several processes, by timely's own cluster mode.
//!
//! Process 0 is the coordinator: it alone reads topics, judges, fences, asks and writes. The other
//! processes are hosts: they hold workers and their share of the state, and nothing else. Which process
//! a user's state stands in decides no value: the outputs are those of one process, byte for byte.
//!
//! ```text
//! host 1 ──┐ control: who are you, sessions, beats, done
//! host 2 ──┴─▶ process 0            mesh: one connection for each two processes, timely's
//! ```
//! A host connects to the coordinator and says what it is ([`Identity`]); what differs is refused by
//! name. An [`crate::engine::Engine`] opens a *session*: every process connects to every other one, and
//! timely runs over these connections until the engine is dropped. A coordinator that starts its job
//! again in the same process opens another session over the same control connections.
//!
//! * **Delivery**: TCP. There is no partial recovery: once a process is lost, the others can't go on, and
//!   end. A supervisor starts all processes of a job again together; what was committed stands, and
//!   the rest is replayed.
//! * **Ordering**: none is relied on: epochs are complete when timely's progress says so.
//! * **Retries**: only of connecting, until `start_timeout_ms` is over. After that each loss is final.
//! * **Limits**: `processes`, `start_timeout_ms`, `lost_after_ms` in [`Config`]. Messages between workers
//!   have no limit of their own: one epoch is under way at a time, and `epochs.max_events` bounds it.
//!   Every process has the same number of workers, fixed while it runs. The state of a job must fit its
//!   processes together; a command that opens the job in one process needs the room there.
//! * **Secrets**: none. The connections are *neither encrypted nor authenticated*, and carry users,
//!   titles and texts: whoever reaches an address can read and change them. They are for loopback, or
//!   for a network that only this job's machines are on; anything but loopback must be allowed by
//!   `private_network`.
//! * **Telemetry**: the coordinator's is the job's; its figures by worker are of its own workers. Hosts
//!   serve none: that a host lives shows in the coordinator, which ends without it.

mod control;
mod coordinator;
mod host;
mod identity;
mod loss;
mod mesh;

pub use coordinator::Cluster;
pub use host::host;
pub use identity::Identity;
pub(crate) use mesh::Session;

use serde::Deserialize;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// The most processes of a job: each two of them have a connection, with two threads at each end.
const MAX_PROCESSES: usize = 64;

/// `[cluster]`: the processes of a job.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The address of each process, `host:port`, process 0 first: there it listens, and there the others
    /// find it. Empty: one process.
    pub processes: Vec<String>,
    /// Whether addresses beyond loopback may be named: the connections are neither encrypted nor
    /// authenticated.
    pub private_network: bool,
    /// How long a process waits for the others at its start, milliseconds.
    pub start_timeout_ms: u64,
    /// How long a silent process isn't taken for lost, milliseconds. One that died is seen at once.
    pub lost_after_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            processes: Vec::new(),
            private_network: false,
            start_timeout_ms: 60_000,
            lost_after_ms: 15_000,
        }
    }
}

impl Config {
    /// Every problem of the values, each beginning with its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let count = self.processes.len();
        if count == 1 || count > MAX_PROCESSES {
            problems.push(format!(
                "cluster.processes must be empty, for one process, or name the addresses of 2 to {MAX_PROCESSES}"
            ));
        }
        let mut seen = BTreeSet::new();
        for address in &self.processes {
            match split(address) {
                None => problems.push(format!(
                    "cluster.processes must name each process as host:port with a port from 1, not {address:?}"
                )),
                Some((host, _)) if !self.private_network && !loopback(host) => problems.push(format!(
                    "cluster.processes names {address}, and its connections are neither encrypted nor authenticated: \
                     set cluster.private_network where only this job's machines reach it"
                )),
                Some(_) => {}
            }
            if !seen.insert(address) {
                problems.push(format!("cluster.processes names {address} twice"));
            }
        }
        if !(1_000..=3_600_000).contains(&self.start_timeout_ms) {
            problems.push("cluster.start_timeout_ms must be 1000 to 3600000".to_owned());
        }
        if !(1_000..=600_000).contains(&self.lost_after_ms) {
            problems.push("cluster.lost_after_ms must be 1000 to 600000".to_owned());
        }
        problems
    }

    fn start_timeout(&self) -> Duration {
        Duration::from_millis(self.start_timeout_ms)
    }

    fn lost_after(&self) -> Duration {
        Duration::from_millis(self.lost_after_ms)
    }
}

/// Host and port of an address; `None` where it isn't one.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.is_empty() && !host.contains([':', '[', ']']) && !host.contains(char::is_whitespace);
    (port > 0 && (plain || bracketed)).then_some((host, port))
}

fn loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(processes: &[&str], private_network: bool) -> String {
        let processes = processes.iter().map(|address| (*address).to_owned()).collect();
        Config { processes, private_network, ..Config::default() }.problems().join("; ")
    }

    #[test]
    fn addresses_are_checked_by_name() {
        assert_eq!(problems(&[], false), "");
        assert_eq!(problems(&["127.0.0.1:7101", "localhost:7102", "[::1]:7103"], false), "");
        assert!(problems(&["127.0.0.1:7101"], false).contains("2 to 64"));
        let many = |count: usize| (0..count).map(|n| format!("127.0.0.1:{}", 7_000 + n)).collect::<Vec<_>>();
        let of = |count: usize| Config { processes: many(count), ..Config::default() }.problems().join("; ");
        assert_eq!(of(64), "");
        assert!(of(65).contains("2 to 64"));
        assert!(problems(&["127.0.0.1:1", "127.0.0.1:1"], false).contains("twice"));
        for wrong in
            ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", ":7", "::1:7", "a b:7", "127.0.0.1:x", ""]
        {
            assert!(problems(&["127.0.0.1:1", wrong], true).contains("host:port"), "{wrong}");
        }
        for wide in ["10.0.0.2:7102", "node-2:7102", "[fe80::1]:7102", "localhost.example.org:7"] {
            let found = problems(&["127.0.0.1:7101", wide], false);
            assert!(found.contains("neither encrypted nor authenticated") && found.contains(wide), "{found}");
            assert_eq!(problems(&["127.0.0.1:7101", wide], true), "");
        }
    }

    #[test]
    fn times_have_limits() {
        let with = |start_timeout_ms, lost_after_ms| {
            Config { start_timeout_ms, lost_after_ms, ..Config::default() }.problems().join("; ")
        };
        assert_eq!(with(1_000, 1_000), "");
        assert_eq!(with(3_600_000, 600_000), "");
        assert!(with(999, 1_000).contains("cluster.start_timeout_ms"));
        assert!(with(3_600_001, 1_000).contains("cluster.start_timeout_ms"));
        assert!(with(1_000, 999).contains("cluster.lost_after_ms"));
        assert!(with(1_000, 600_001).contains("cluster.lost_after_ms"));
    }
}
