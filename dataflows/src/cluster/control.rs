//! What processes say to each other beside timely's messages: a greeting on each new connection, then, on
//! the control connection of a host, beats, sessions and the end.

use super::Identity;
use super::loss::Loss;
use crossbeam_channel::Sender;
use ictflow_connectors::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a greeting begins with: a stranger's doesn't. Another form of greetings gets another number.
const MAGIC: &[u8; 16] = b"ictflow-cluster1";

/// The most bytes of a greeting or its answer.
const MAX_GREETING: usize = 64 * 1024;

/// How long an accepted connection may take to greet: it is a stranger, or it has sent its greeting with
/// the connection.
const GREETING: Duration = Duration::from_secs(2);

/// The pause between two looks at a listener, and between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// Beats in the time after which a silent process is lost.
const BEATS: u32 = 5;

/// The first words on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Hello {
    /// From a host to the coordinator.
    Control {
        /// The host's number.
        process: usize,
        /// Its [`Identity`].
        identity: BTreeMap<String, String>,
    },
    /// From a process to one with a smaller number.
    Mesh {
        /// The session that the coordinator named.
        session: u64,
        /// The number of the process that connects.
        process: usize,
    },
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Go on.
    Welcome,
    /// The host doesn't belong to this job, for this reason.
    Refused(String),
}

/// What the coordinator tells a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Connect to the others and run workers.
    Session(u64),
    /// The job has ended well.
    Done,
}

/// Writes a greeting or its answer.
pub(super) fn send(stream: &mut TcpStream, words: &impl Serialize) -> io::Result<()> {
    let body = postcard::to_stdvec(words).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&MAGIC[..], &length.to_be_bytes(), &body].concat())
}

/// Reads a greeting or its answer, and waits so long for it.
pub(super) fn receive<T: DeserializeOwned>(stream: &mut TcpStream, wait: Duration) -> io::Result<T> {
    let deadline = Instant::now() + wait;
    let mut read = |bytes: &mut [u8]| {
        let mut at = 0;
        while at < bytes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut bytes[at..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    };
    let mut head = [0; MAGIC.len() + 4];
    read(&mut head)?;
    let (magic, length) = head.split_at(MAGIC.len());
    let length = length.iter().fold(0_usize, |n, byte| n << 8 | usize::from(*byte));
    if magic != MAGIC || length > MAX_GREETING {
        return Err(io::Error::new(ErrorKind::InvalidData, "these aren't the words of a process of a job"));
    }
    let mut body = vec![0; length];
    read(&mut body)?;
    postcard::from_bytes(&body).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
}

/// Listens at a process's own address.
pub(super) fn listen(address: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|e| {
        Error::fatal(
            format!("listen on {address}"),
            e,
            "an address of [cluster] processes must be this machine's, and its port free: does this process run already?",
        )
    })
}

/// Takes the next connection that greets as a process of a job does; `None` once the deadline is over.
/// Strangers are dropped.
pub(super) fn accept(listener: &TcpListener, deadline: Instant) -> Result<Option<(TcpStream, Hello)>> {
    loop {
        match listener.accept() {
            Ok((mut stream, from)) => {
                let greeted = stream
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_nodelay(true))
                    .and_then(|()| receive(&mut stream, GREETING));
                match greeted {
                    Ok(hello) => return Ok(Some((stream, hello))),
                    Err(error) => {
                        tracing::warn!(%from, %error, "a connection that isn't of this job was closed");
                    }
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            // The connection was gone before it was taken.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
            Err(e) => {
                return Err(Error::fatal(
                    "accept a process of the job",
                    e,
                    "is the limit of open files reached?",
                ));
            }
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// Connects to another process, greets it and takes its answer; tries again until the deadline is over.
pub(super) fn connect(peer: &str, address: &str, hello: &Hello, deadline: Instant) -> Result<TcpStream> {
    let attempt = || -> io::Result<(TcpStream, Reply)> {
        let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for resolved in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&resolved, left) {
                Ok(mut stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_write_timeout(Some(left))?;
                    send(&mut stream, hello)?;
                    let reply = receive(&mut stream, left)?;
                    return Ok((stream, reply));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    loop {
        match attempt() {
            Ok((stream, Reply::Welcome)) => return Ok(stream),
            Ok((_, Reply::Refused(why))) => {
                return Err(Error::fatal(
                    format!("join {peer} at {address}"),
                    why,
                    "all processes of a job need one program, one configuration and one kind of machine",
                ));
            }
            Err(error) if Instant::now() + PAUSE >= deadline => {
                return Err(Error::fatal(
                    format!("connect to {peer} at {address}"),
                    format!("it didn't answer within cluster.start_timeout_ms: {error}"),
                    "start all processes of the job together; does a process of this number run already?",
                ));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

const BEAT: u8 = b'.';
const SESSION: u8 = b's';
const DONE: u8 = b'd';

/// A control connection after its greeting. A thread beats on it and listens; it ends with the connection.
#[derive(Debug)]
pub(super) struct Line {
    peer: String,
    writer: Arc<Mutex<TcpStream>>,
    loss: Arc<Loss>,
}

impl Line {
    /// Watches a connection. What a coordinator orders goes to `orders`.
    pub(super) fn watch(
        stream: TcpStream,
        peer: String,
        lost_after: Duration,
        loss: &Arc<Loss>,
        orders: Option<Sender<Order>>,
    ) -> Result<Self> {
        let failed =
            |e: io::Error| Error::fatal(format!("watch {peer}"), e, "is a limit of the system reached?");
        let beat = lost_after / BEATS;
        stream.set_read_timeout(Some(beat)).map_err(failed)?;
        stream.set_write_timeout(Some(lost_after)).map_err(failed)?;
        let writer = Arc::new(Mutex::new(stream.try_clone().map_err(failed)?));
        let line = Line { peer: peer.clone(), writer: writer.clone(), loss: loss.clone() };
        let loss = loss.clone();
        let run = move || {
            if let Err(why) = attend(stream, &writer, beat, lost_after, orders.as_ref()) {
                loss.tell(&peer, why);
            }
        };
        let failed = |e: io::Error| Error::fatal("start a thread", e, "is the limit of threads reached?");
        std::thread::Builder::new().name("cluster-control".to_owned()).spawn(run).map_err(failed)?;
        Ok(line)
    }

    /// Tells the host.
    pub(super) fn order(&self, order: Order) {
        let bytes = match order {
            Order::Session(session) => [&[SESSION][..], &session.to_be_bytes()].concat(),
            Order::Done => vec![DONE],
        };
        let written = self.writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes);
        if let Err(error) = written {
            self.loss.tell(&self.peer, error);
        }
    }
}

/// Beats and listens until the other end is gone, or says that it is done.
fn attend(
    mut stream: TcpStream,
    writer: &Mutex<TcpStream>,
    beat: Duration,
    lost_after: Duration,
    orders: Option<&Sender<Order>>,
) -> std::result::Result<(), String> {
    let (mut heard, mut beaten) = (Instant::now(), None::<Instant>);
    let (mut unread, mut chunk) = (Vec::new(), [0; 256]);
    loop {
        if beaten.is_none_or(|at| at.elapsed() >= beat) {
            let written = writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&[BEAT]);
            written.map_err(|e| e.to_string())?;
            beaten = Some(Instant::now());
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Err("its connection closed".to_owned()),
            Ok(n) => {
                heard = Instant::now();
                unread.extend_from_slice(&chunk[..n]);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e.to_string()),
        }
        while let Some((order, length)) = parse(&unread)? {
            unread.drain(..length);
            let (Some(order), Some(orders)) = (order, orders) else { continue };
            // Where nobody takes orders any more, this process is about to end.
            let _ = orders.send(order);
            if order == Order::Done {
                return Ok(());
            }
        }
        if heard.elapsed() >= lost_after {
            return Err(format!("it wasn't heard of for {} ms", heard.elapsed().as_millis()));
        }
    }
}

/// The first word of what was read, and its length: a beat is no order. `None` where it isn't whole yet.
fn parse(bytes: &[u8]) -> std::result::Result<Option<(Option<Order>, usize)>, String> {
    Ok(match bytes {
        [] => None,
        [BEAT, ..] => Some((None, 1)),
        [DONE, ..] => Some((Some(Order::Done), 1)),
        [SESSION, rest @ ..] => {
            rest.first_chunk::<8>().map(|number| (Some(Order::Session(u64::from_be_bytes(*number))), 9))
        }
        [other, ..] => return Err(format!("it said {other}, which means nothing")),
    })
}

impl Identity {
    pub(super) fn hello(&self, process: usize) -> Hello {
        Hello::Control { process, identity: self.0.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_greeting_comes_as_it_was_sent_and_strangers_are_told_apart() {
        let wait = Duration::from_secs(30);
        let (mut near, mut far) = pair();
        let hello = Hello::Mesh { session: u64::MAX, process: 3 };
        send(&mut near, &hello).unwrap();
        assert_eq!(receive::<Hello>(&mut far, wait).unwrap(), hello);
        let garbage: [&[u8]; 3] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            &[&MAGIC[..], &[0xff; 4]].concat(),
            &[&MAGIC[..], &[0, 0, 0, 1, 9]].concat(),
        ];
        for garbage in garbage {
            let (mut near, mut far) = pair();
            near.write_all(garbage).unwrap();
            drop(near);
            assert_eq!(receive::<Hello>(&mut far, wait).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        let (near, mut far) = pair();
        assert!(receive::<Hello>(&mut far, Duration::from_millis(50)).is_err(), "it waited for a silent one");
        drop(near);
        assert_eq!(receive::<Hello>(&mut far, wait).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn words_are_parsed_however_they_are_cut() {
        let session = [&[BEAT, SESSION][..], &7_u64.to_be_bytes(), &[BEAT, DONE]].concat();
        let (mut unread, mut orders) = (Vec::new(), Vec::new());
        for byte in session {
            unread.push(byte);
            while let Some((order, length)) = parse(&unread).unwrap() {
                unread.drain(..length);
                orders.extend(order);
            }
        }
        assert_eq!(orders, [Order::Session(7), Order::Done]);
        assert!(unread.is_empty());
        assert!(parse(b"x").is_err());
    }

    #[test]
    fn orders_go_over_a_watched_line_and_a_silent_or_gone_peer_is_lost() {
        let lost_after = Duration::from_millis(1_000);
        let (near, far) = pair();
        let (sender, orders) = crossbeam_channel::unbounded();
        let loss = || Arc::new(Loss::new(false));
        let host = Line::watch(far, "process 0".to_owned(), lost_after, &loss(), Some(sender)).unwrap();
        let coordinator = Line::watch(near, "process 1".to_owned(), lost_after, &loss(), None).unwrap();
        coordinator.order(Order::Session(5));
        assert_eq!(orders.recv().unwrap(), Order::Session(5));
        // Longer than the limit: the beats keep it alive.
        std::thread::sleep(2 * lost_after);
        coordinator.order(Order::Done);
        assert_eq!(orders.recv().unwrap(), Order::Done);
        assert!(orders.recv().is_err(), "the thread ended");
        drop((host, coordinator));

        for silent in [true, false] {
            let (near, far) = pair();
            let (cut, watched) = pair();
            let loss = loss();
            loss.keep(vec![cut]);
            let line = Line::watch(near, "process 1".to_owned(), lost_after, &loss, None).unwrap();
            let kept = silent.then_some(far);
            let mut byte = [0];
            assert_eq!((&watched).read(&mut byte).unwrap(), 0, "what waited for the lost one was cut");
            drop((line, kept));
        }
    }
}
