//! A process that hosts workers, and nothing else.

use super::control::{Line, Order, connect, listen};
use super::loss::{Loss, lost};
use super::{Config, Identity, mesh};
use crate::engine;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Versions;
use ictflow_schemas::config::Semantics;
use std::sync::Arc;
use std::time::Instant;

/// Hosts workers of a job as process `process`, from 1, until the coordinator says that the job has
/// ended.
///
/// `exits`: whether the loss of another process ends this one with code 1, as in the binary.
///
/// # Errors
/// `Fatal` where the number is none of `processes`; where the coordinator doesn't answer in time, or
/// refuses this process; where another process is lost.
pub fn host(
    config: &Config,
    process: usize,
    job: &str,
    workers: usize,
    semantics: Arc<Semantics>,
    versions: impl Into<Versions>,
    exits: bool,
) -> Result<()> {
    let count = config.processes.len();
    let own = (process > 0).then(|| config.processes.get(process)).flatten();
    let Some(own) = own else {
        return Err(Error::fatal(
            "host workers",
            format!(
                "there is no host {process}: [cluster] processes names {count} addresses, and 0 is the coordinator's"
            ),
            "give --process a number of [cluster] processes",
        ));
    };
    let versions = versions.into();
    let identity = Identity::of(config, job, workers, &semantics, &versions)?;
    let listener = listen(own)?;
    let deadline = Instant::now() + config.start_timeout();
    let stream = connect("process 0", &config.processes[0], &identity.hello(process), deadline)?;
    let loss = Arc::new(Loss::new(exits));
    let peer = format!("process 0 at {}", config.processes[0]);
    let (sender, orders) = crossbeam_channel::unbounded();
    let line = Line::watch(stream, peer.clone(), config.lost_after(), &loss, Some(sender))?;
    loop {
        match orders.recv() {
            Ok(Order::Session(session)) => {
                tracing::info!(process, workers, "hosting workers");
                let session = mesh::open(config, &listener, process, session, workers, &loss)?;
                engine::host(session, workers, semantics.clone(), versions.clone())?;
            }
            Ok(Order::Done) => {
                loss.end();
                drop(line);
                return Ok(());
            }
            Err(_) => return Err(lost(&peer, "its connection closed")),
        }
    }
}
