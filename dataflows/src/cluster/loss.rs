//! The loss of a process: it is told once, and nothing waits for the lost one.

use ictflow_connectors::Error;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a process does when it loses another one of its job.
#[derive(Debug)]
pub(super) struct Loss {
    /// Whether this process ends at once, as the binary's does. Else all connections are cut: timely's
    /// threads and workers panic, and the engine with them.
    exits: bool,
    /// Whether the end of a connection is expected.
    ended: AtomicBool,
    told: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Loss {
    pub(super) fn new(exits: bool) -> Self {
        let no = || AtomicBool::new(false);
        Loss { exits, ended: no(), told: no(), connections: Mutex::new(Vec::new()) }
    }

    /// From here on ends of connections are expected.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// The connections to cut, of this session.
    pub(super) fn keep(&self, connections: Vec<TcpStream>) {
        *self.connections.lock().unwrap_or_else(PoisonError::into_inner) = connections;
    }

    /// Tells the loss of a process, and ends what waits for it. Threads that find it at the same time
    /// tell it once.
    pub(super) fn tell(&self, peer: &str, why: impl ToString) {
        if self.ended.load(Ordering::SeqCst) || self.told.swap(true, Ordering::SeqCst) {
            // The first one is about to end this process: this thread must not panic before.
            while self.exits && !self.ended.load(Ordering::SeqCst) {
                std::thread::park();
            }
            return;
        }
        let error = lost(peer, why);
        if self.exits {
            eprintln!("ictflow: {error}");
            std::process::exit(1);
        }
        tracing::error!("{error}");
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that is closed already is as good.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

pub(super) fn lost(peer: &str, why: impl ToString) -> Error {
    Error::fatal(
        "run one job in several processes",
        format!("{peer} is lost: {}", why.to_string()),
        "start all processes of the job again together; nothing that was committed is lost",
    )
}
