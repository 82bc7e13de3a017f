//! Process 0: it gathers the hosts, opens sessions with them, and lets them go.

use super::control::{Hello, Line, Order, Reply, accept, listen, send};
use super::loss::Loss;
use super::mesh::{self, Session};
use super::{Config, Identity};
use ictflow_connectors::clock::now_ms;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Versions;
use ictflow_schemas::config::Semantics;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The other processes of a job, as its coordinator holds them. A clone is the same cluster; the default
/// is none: the job is one process.
///
/// Dropped without [`Cluster::finish`], it leaves hosts that end with an error.
#[derive(Clone, Debug, Default)]
pub struct Cluster(Option<Arc<Coordinator>>);

#[derive(Debug)]
struct Coordinator {
    config: Config,
    loss: Arc<Loss>,
    hosts: Mutex<Option<Hosts>>,
}

/// The hosts that have come.
#[derive(Debug)]
struct Hosts {
    identity: Identity,
    listener: TcpListener,
    lines: Vec<Line>,
    sessions: u64,
}

impl Cluster {
    /// The cluster of a configuration; one process where it names none. Nothing is connected yet.
    ///
    /// `exits`: whether the loss of a host ends this process with code 1, as in the binary. Else its
    /// engine panics.
    pub fn new(config: &Config, exits: bool) -> Self {
        if config.processes.is_empty() {
            return Cluster(None);
        }
        let (config, loss) = (config.clone(), Arc::new(Loss::new(exits)));
        Cluster(Some(Arc::new(Coordinator { config, loss, hosts: Mutex::new(None) })))
    }

    /// How many processes the job has.
    pub fn processes(&self) -> usize {
        self.0.as_ref().map_or(1, |coordinator| coordinator.config.processes.len())
    }

    /// Waits until every host has come and was found to be of this job; at once where they have.
    ///
    /// # Errors
    /// `Fatal` where one doesn't come in time, or differs; where this process's address can't be had; or
    /// where they were gathered as something else.
    pub fn gather(
        &self,
        job: &str,
        workers: usize,
        semantics: &Semantics,
        versions: &Versions,
    ) -> Result<()> {
        let Some(coordinator) = &self.0 else { return Ok(()) };
        let identity = Identity::of(&coordinator.config, job, workers, semantics, versions)?;
        let mut hosts = coordinator.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        match &*hosts {
            None => *hosts = Some(coordinator.gather(identity)?),
            Some(hosts) => {
                if let Some(difference) = hosts.identity.difference(&identity) {
                    return Err(Error::fatal(
                        "start a job again with its hosts",
                        difference,
                        "end all processes of the job first",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Opens a session with the hosts, which must have been gathered; `None` for one process.
    pub(crate) fn session(&self, workers: usize) -> Result<Option<Session>> {
        let Some(coordinator) = &self.0 else { return Ok(None) };
        let mut hosts = coordinator.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hosts) = &mut *hosts else {
            return Err(Error::fatal("open a session", "no host was gathered", "gather the hosts first"));
        };
        hosts.sessions += 1;
        let session = number(hosts.sessions);
        for line in &hosts.lines {
            line.order(Order::Session(session));
        }
        mesh::open(&coordinator.config, &hosts.listener, 0, session, workers, &coordinator.loss).map(Some)
    }

    /// Lets the hosts end well. The engine must have been dropped.
    pub fn finish(&self) {
        let Some(coordinator) = &self.0 else { return };
        coordinator.loss.end();
        let hosts = coordinator.hosts.lock().unwrap_or_else(PoisonError::into_inner).take();
        for line in hosts.iter().flat_map(|hosts| &hosts.lines) {
            line.order(Order::Done);
        }
    }
}

impl Coordinator {
    fn gather(&self, identity: Identity) -> Result<Hosts> {
        let config = &self.config;
        let listener = listen(&config.processes[0])?;
        let deadline = Instant::now() + config.start_timeout();
        let count = config.processes.len();
        let mut lines: Vec<Option<Line>> = (1..count).map(|_| None).collect();
        while let Some(missing) = lines.iter().position(Option::is_none) {
            let Some((mut stream, hello)) = accept(&listener, deadline)? else {
                let missing: Vec<String> = (missing..count - 1)
                    .filter(|at| lines[*at].is_none())
                    .map(|at| format!("{} at {}", at + 1, config.processes[at + 1]))
                    .collect();
                return Err(Error::fatal(
                    format!("wait for process {}", missing.join(", ")),
                    "not there within cluster.start_timeout_ms",
                    "start every process of the job: ictflow run --process N with the same configuration",
                ));
            };
            let Hello::Control { process, identity: theirs } = hello else { continue };
            let refusal = match process.checked_sub(1).and_then(|at| lines.get(at)) {
                None => Some(format!("it is process {process}, and the job has 0 to {}", count - 1)),
                Some(Some(_)) => Some(format!("process {process} is there already")),
                Some(None) => identity.difference(&Identity(theirs)),
            };
            if let Some(refusal) = refusal {
                // It may have gone meanwhile; the refusal is told here too.
                let _ = send(&mut stream, &Reply::Refused(refusal.clone()));
                return Err(Error::fatal(
                    format!("let process {process} join the job"),
                    refusal,
                    "all processes of a job need one program, one configuration and one kind of machine",
                ));
            }
            if send(&mut stream, &Reply::Welcome).is_ok() {
                let peer = format!("process {process} at {}", config.processes[process]);
                let line = Line::watch(stream, peer, config.lost_after(), &self.loss, None)?;
                lines[process - 1] = Some(line);
            }
        }
        Ok(Hosts { identity, listener, lines: lines.into_iter().flatten().collect(), sessions: 0 })
    }
}

/// A number that no other session has: processes of an earlier one, or of another job, don't fit.
fn number(session: u64) -> u64 {
    let text = format!("{session} {} {}", std::process::id(), now_ms());
    let digest = blake3::hash(text.as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}
