//! The server: `/metrics`, `/livez`, `/readyz`, `/status.json` and the page `/`.
//!
//! It runs on a thread of its own and only reads what the job published. A connection serves one
//! request: a client that sends its head slowly, or reads its answer slowly, is cut off in time.

use super::Telemetry;
use super::page::Page;
use super::status::Reason;
use crate::{Error, Result, clock};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// The largest head of a request, bytes.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The pause after a failed accept: where file descriptors have run out it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running server; it ends when this is dropped.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    telemetry: Arc<Telemetry>,
    page: Page,
}

impl Server {
    /// Starts a server, or none where the configuration says `off`.
    ///
    /// # Errors
    /// `Fatal` where the address isn't one, or can't be bound.
    pub fn start(telemetry: Arc<Telemetry>) -> Result<Option<Server>> {
        let address = telemetry.config().address().map_err(|problem| {
            Error::fatal("read [telemetry] listen", problem, "set it to off or to host:port")
        })?;
        let Some(address) = address else { return Ok(None) };
        let failed = |e: std::io::Error| {
            Error::fatal(
                format!("listen on {address} for telemetry"),
                e,
                "is another job there? set [telemetry] listen or --listen to a free port or to off",
            )
        };
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "telemetry listens beyond this machine: whoever reaches it may read it");
        }
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = serve(listener, telemetry) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(failed)?;
        Ok(Some(Server { address, stop: Some(stop), thread: Some(thread) }))
    }

    /// Where it listens; a configured port 0 is a free one here.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once: whatever is under way is dropped with the runtime.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, telemetry: Arc<Telemetry>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "telemetry can't be served");
            return;
        }
    };
    let config = telemetry.config().clone();
    let router = router(telemetry);
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let header_timeout = Duration::from_millis(config.header_timeout_ms);
    let request_timeout = Duration::from_millis(config.request_timeout_ms);
    // A free slot first: what isn't served yet waits in the kernel's bounded backlog.
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection couldn't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let exchange = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .max_buf_size(MAX_HEAD_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whichever way it ends, the client sees; nobody else is told.
            let _ = tokio::time::timeout(request_timeout, exchange).await;
            drop(slot);
        });
    }
}

fn router(telemetry: Arc<Telemetry>) -> Router {
    let shared = Arc::new(Shared { telemetry, page: Page::new() });
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/status.json", get(status))
        .fallback(|| async { answer(StatusCode::NOT_FOUND, TEXT, "there is no such page\n") })
        .layer(axum::middleware::from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Lets only GET without a body through, and says to every answer how it may be used.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let length = headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
    let body = headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != b"0");
    let mut response = if request.method() != Method::GET {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is served\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        response
    } else if body {
        answer(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "no body is read\n")
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("x-frame-options", "DENY"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(shared.page.policy()) {
        headers.insert(HeaderName::from_static("content-security-policy"), policy);
    }
    response
}

fn answer(status: StatusCode, media: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, JSON, body),
        Err(error) => {
            tracing::error!(%error, "a status couldn't be written as JSON");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "it couldn't be written\n")
        }
    }
}

async fn page(State(shared): State<Arc<Shared>>) -> Response {
    answer(StatusCode::OK, "text/html; charset=utf-8", shared.page.html().to_owned())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.telemetry.scrape() {
        Ok(text) => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => {
            tracing::error!(%error, "the metrics couldn't be written");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "they couldn't be written\n")
        }
    }
}

/// The answer of a probe.
#[derive(Serialize)]
struct Probe {
    ok: bool,
    reasons: Vec<Reason>,
}

fn probe(reasons: Vec<Reason>) -> Response {
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &Probe { ok: reasons.is_empty(), reasons })
}

async fn live(State(shared): State<Arc<Shared>>) -> Response {
    probe(shared.telemetry.live_reasons())
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    probe(shared.telemetry.ready_reasons())
}

/// `/status.json`: the snapshot, with what only holds now.
#[derive(Serialize)]
struct Now<'a> {
    now: i64,
    version: &'static str,
    live: bool,
    ready: bool,
    reasons: Vec<Reason>,
    dead_letters: Vec<(&'a str, &'a str, u64)>,
    status: &'a super::status::Status,
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.telemetry.status();
    let reasons = shared.telemetry.ready_reasons();
    let now = Now {
        now: clock::now_ms(),
        version: env!("CARGO_PKG_VERSION"),
        live: shared.telemetry.live_reasons().is_empty(),
        ready: reasons.is_empty(),
        reasons,
        dead_letters: status.dead_letters.iter().map(|((s, r), n)| (s.as_str(), r.as_str(), *n)).collect(),
        status: &status,
    };
    json(StatusCode::OK, &now)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Config;
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// Ends a hang; no test waits for so long.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn server(config: Config) -> (Server, Arc<Telemetry>) {
        let telemetry = Telemetry::new(Config { listen: "127.0.0.1:0".into(), ..config });
        (Server::start(telemetry.clone()).unwrap().unwrap(), telemetry)
    }

    fn connect(server: &Server) -> TcpStream {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(server: &Server, request: &str) -> String {
        let mut stream = connect(server);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        // A server that refuses a body closes before it is read, which may come as a reset.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn only_get_without_a_body_is_served() {
        let (server, _) = server(Config::default());
        let status = |request: &str| ask(&server, request).lines().next().unwrap_or_default().to_owned();
        assert!(status("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").contains("200"));
        assert!(status("GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").contains("503"));
        for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"] {
            let line = status(&format!("{method} / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"));
            assert!(line.contains("405"), "{method}: {line}");
        }
        for head in ["content-length: 3\r\n\r\nabc", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"] {
            assert!(status(&format!("GET / HTTP/1.1\r\nhost: x\r\n{head}")).contains("413"), "{head}");
        }
        for path in ["/debug/pprof", "/config", "/../etc/passwd", "/metrics/"] {
            assert!(status(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).contains("404"), "{path}");
        }
        assert!(status("nonsense\r\n\r\n").contains("400"));
    }

    #[test]
    fn a_head_at_the_limit_passes_and_a_larger_one_is_refused() {
        let (server, _) = server(Config::default());
        let status = |bytes: usize| {
            let frame = "GET /livez HTTP/1.1\r\nhost: x\r\nx: \r\n\r\n";
            let filler = "y".repeat(bytes - frame.len());
            let answer = ask(&server, &frame.replace("x: ", &format!("x: {filler}")));
            answer.lines().next().unwrap_or_default().to_owned()
        };
        assert!(status(MAX_HEAD_BYTES / 2).contains("200"));
        assert!(status(2 * MAX_HEAD_BYTES).contains("431"));
    }

    #[test]
    fn clients_that_send_slowly_are_cut_off_and_the_next_one_is_served() {
        let (server, _) = server(Config { max_connections: 2, header_timeout_ms: 200, ..Config::default() });
        // Each takes a slot and never ends its head.
        let mut slow: Vec<TcpStream> = (0..2).map(|_| connect(&server)).collect();
        for stream in &mut slow {
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: ").unwrap();
        }
        assert!(ask(&server, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").contains("200 OK"));
        for stream in &mut slow {
            let mut rest = Vec::new();
            // It ends: with an answer that says so, by a close, or by a reset.
            let _ = stream.read_to_end(&mut rest);
            assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
        }
    }

    #[test]
    fn a_client_that_sends_a_byte_now_and_then_is_cut_off_too() {
        let (server, _) = server(Config { max_connections: 1, header_timeout_ms: 200, ..Config::default() });
        let mut slow = connect(&server);
        let drip = std::thread::spawn(move || {
            let begun = std::time::Instant::now();
            while begun.elapsed() < PATIENCE && slow.write_all(b"G").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
            begun.elapsed() < PATIENCE
        });
        assert!(ask(&server, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").contains("200 OK"));
        assert!(drip.join().unwrap(), "the slow client was never cut off");
    }

    #[test]
    fn a_port_in_use_is_named_with_a_hint() {
        let (server, _) = server(Config::default());
        let listen = server.address().to_string();
        let second = Telemetry::new(Config { listen: listen.clone(), ..Config::default() });
        let error = Server::start(second).err().unwrap().to_string();
        assert!(error.contains(&listen) && error.contains("--listen"), "{error}");
        drop(server);
        let again = Telemetry::new(Config { listen, ..Config::default() });
        assert!(Server::start(again).unwrap().is_some(), "the port is free once the server is dropped");
        assert!(Server::start(Telemetry::new(Config::off())).unwrap().is_none());
    }

    #[test]
    fn every_answer_says_how_it_may_be_used() {
        let (server, _) = server(Config::default());
        for path in ["/", "/metrics", "/status.json", "/livez", "/nowhere"] {
            let answer = ask(&server, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
            let head = answer.split("\r\n\r\n").next().unwrap().to_lowercase();
            for header in
                ["content-security-policy: default-src 'none'", "cache-control: no-store", "nosniff"]
            {
                assert!(head.contains(header), "{path}: {head}");
            }
        }
        // What isn't answered by the job's own router says nothing of it either.
        assert!(!ask(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").contains("unsafe"));
    }
}
