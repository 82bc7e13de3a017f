//! Processes that host workers of a job which runs in the test's own process: the test binary again.

use ictflow_dataflows::cluster::{Cluster, Config, host};
use ictflow_operators::ict::Weights;
use ictflow_schemas::config::Semantics;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::Arc;

/// Set in a process that is a host.
const HOST: &str = "ICTFLOW_TEST_HOST";

/// Hosts of a job.
pub struct Hosts {
    /// The job's processes, for its world.
    pub cluster: Cluster,
    children: Vec<Child>,
}

fn config(processes: Vec<String>) -> Config {
    // Tests share a busy machine: a host that lives must not be taken for lost.
    Config { processes, start_timeout_ms: 300_000, lost_after_ms: 120_000, ..Config::default() }
}

impl Hosts {
    /// Starts so many hosts of a job, with so many workers each. They run `test`, which must begin with
    /// [`hosted`].
    ///
    /// # Panics
    /// Where a process can't be started.
    pub fn start(count: usize, test: &str, job: &str, workers: usize) -> Self {
        let held: Vec<TcpListener> =
            (0..=count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let processes: Vec<String> =
            held.iter().map(|port| port.local_addr().expect("its address").to_string()).collect();
        drop(held);
        let child = |process: usize| {
            let told = json!({"processes": processes, "process": process, "job": job, "workers": workers});
            Command::new(std::env::current_exe().expect("this binary"))
                .args(["--exact", test, "--nocapture"])
                .env(HOST, told.to_string())
                .spawn()
                .expect("a host")
        };
        let children = (1..=count).map(child).collect();
        Hosts { cluster: Cluster::new(&config(processes), false), children }
    }

    /// Kills a host, by its place.
    ///
    /// # Panics
    /// Where it has ended by itself.
    pub fn kill(&mut self, at: usize) {
        let child = &mut self.children[at];
        assert!(child.try_wait().expect("its state").is_none(), "the host has ended");
        child.kill().expect("killed");
        child.wait().expect("its end");
    }

    /// Lets the hosts go, once the job was dropped, and waits until they have ended well.
    ///
    /// # Panics
    /// Where one didn't.
    pub fn finish(mut self) {
        self.cluster.finish();
        for mut child in self.children.drain(..) {
            assert!(child.wait().expect("its end").success(), "a host ended badly");
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether this process is a host: then it has hosted until its job ended, and the test has no more to
/// do.
///
/// # Panics
/// Where the hosting fails.
pub fn hosted(semantics: &Semantics, weights: &[u8]) -> bool {
    let Ok(told) = std::env::var(HOST) else { return false };
    let told: Value = serde_json::from_str(&told).expect("what Hosts::start wrote");
    let processes: Vec<String> =
        serde_json::from_value(told["processes"].clone()).expect("a list of addresses");
    let number = |name: &str| told[name].as_u64().expect("a number") as usize;
    host(
        &config(processes),
        number("process"),
        told["job"].as_str().expect("a name"),
        number("workers"),
        Arc::new(semantics.clone()),
        Arc::new(Weights::from_safetensors(weights).expect("weights")),
        false,
    )
    .unwrap_or_else(|error| panic!("{error}"));
    true
}
