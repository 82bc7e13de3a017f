//! The connections of a session, one for each two processes, and timely on them.

use super::Config;
use super::control::{Hello, Reply, accept, connect, send};
use super::loss::Loss;
use ictflow_connectors::{Error, Result};
use std::any::Any;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::zero_copy::stream::Stream;
use timely::communication::{AllocatorBuilder, Hooks};

/// What timely needs to run a process's workers over a session's connections.
pub(crate) struct Session {
    pub(crate) builders: Vec<AllocatorBuilder>,
    pub(crate) others: Box<dyn Any + Send>,
}

/// Connects this process to every other one. Smaller numbers are called, greater ones call.
pub(super) fn open(
    config: &Config,
    listener: &TcpListener,
    process: usize,
    session: u64,
    workers: usize,
    loss: &Arc<Loss>,
) -> Result<Session> {
    let deadline = Instant::now() + config.start_timeout();
    let count = config.processes.len();
    let mut sockets: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    let hello = Hello::Mesh { session, process };
    for (other, address) in config.processes.iter().enumerate().take(process) {
        sockets[other] = Some(connect(&format!("process {other}"), address, &hello, deadline)?);
    }
    while let Some(missing) = (process + 1..count).find(|other| sockets[*other].is_none()) {
        let Some((mut stream, hello)) = accept(listener, deadline)? else {
            return Err(Error::fatal(
                format!("wait for process {missing} at {}", config.processes[missing]),
                "it didn't connect within cluster.start_timeout_ms",
                "does every process reach every address of [cluster] processes?",
            ));
        };
        // What an earlier session left in the queue is dropped: its process has gone, or calls again.
        let Hello::Mesh { session: of, process: from } = hello else { continue };
        let expected = of == session && from > process && from < count;
        if expected && send(&mut stream, &Reply::Welcome).is_ok() {
            sockets[from] = Some(stream);
        }
    }
    over(sockets, config, process, workers, loss).map_err(|e| {
        Error::fatal("run timely over the connections", e, "is a limit of threads or open files reached?")
    })
}

fn over(
    sockets: Vec<Option<TcpStream>>,
    config: &Config,
    process: usize,
    workers: usize,
    loss: &Arc<Loss>,
) -> io::Result<Session> {
    let (mut kept, mut links) = (Vec::new(), Vec::new());
    for (other, socket) in sockets.into_iter().enumerate() {
        let Some(stream) = socket else {
            links.push(None);
            continue;
        };
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        kept.push(stream.try_clone()?);
        let peer = format!("process {other} at {}", config.processes[other]).into();
        links.push(Some(Link { stream, peer, loss: loss.clone(), zeros: 0 }));
    }
    loss.keep(kept);
    let hooks = Hooks::default();
    let locals = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(locals, links, process, workers, hooks)?;
    Ok(Session {
        builders: builders.into_iter().map(AllocatorBuilder::Tcp).collect(),
        others: Box::new(guard),
    })
}

/// The bytes of timely's last message on a connection, all zeros, by which an end is told from a loss.
const LAST: usize = 48;

/// A connection that tells the loss of its peer by name before timely panics about it.
struct Link {
    stream: TcpStream,
    peer: Arc<str>,
    loss: Arc<Loss>,
    /// Zeros at the end of what was read.
    zeros: usize,
}

impl Link {
    fn told<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.loss.tell(&self.peer, error);
        }
        result
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.stream.read(buffer);
        let read = self.told(result)?;
        if read == 0 && !buffer.is_empty() && self.zeros < LAST {
            self.loss.tell(&self.peer, "its connection closed");
        }
        let bytes = &buffer[..read];
        let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == read { (self.zeros + zeros).min(LAST) } else { zeros };
        Ok(read)
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.stream.write(bytes);
        self.told(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stream.flush();
        self.told(result)
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        let stream = self.stream.try_clone()?;
        Ok(Link { stream, peer: self.peer.clone(), loss: self.loss.clone(), zeros: 0 })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // A peer that has ended already is as good.
        match self.stream.shutdown(how) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }
}
