//! Schema registries for the tests: a real one, and a double whose failures a test decides.
//!
//! [`Apicurio`] is a process of its own that never outlives its test: a small shell owns it and kills
//! it when the pipe from the test process closes. [`Double`] answers the Confluent routes from memory,
//! and refuses a schema that couldn't read what the one before wrote.

use super::kafka::root;
use ictflow_connectors::registry::{Client, Config};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long the real registry may take to answer after its start; a busy machine takes a while.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The shell that owns the process: its end of input is the end.
const OWNER: &str = r#"
trap '' INT HUP
folder=$1; shift
cd "$folder"
"$@" >registry.log 2>&1 </dev/null & pid=$!
read -r _
kill -9 "$pid"; wait "$pid" 2>/dev/null
cd / && rm -rf "$folder"
"#;

/// A config for a registry on this machine, with limits that suit a test.
pub fn config(url: &str) -> Config {
    Config { url: url.to_owned(), retries: 2, retry_pause_ms: 20, ..Config::default() }
}

/// A client of a registry.
///
/// # Panics
/// Where the config has problems.
pub fn client(config: &Config) -> Client {
    Client::new(config.clone()).unwrap_or_else(|error| panic!("{error}"))
}

/// The real registry: Apicurio with its Confluent-compatible API, in memory.
pub struct Apicurio {
    owner: Child,
    orders: Option<ChildStdin>,
    url: String,
}

impl Apicurio {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// Where it can't be started, with one line that says why.
    pub fn start() -> Apicurio {
        let mut failure = String::new();
        // A port that was free may be taken before the registry binds it: then others are tried.
        for _ in 0..3 {
            match Apicurio::try_start() {
                Ok(registry) => return registry,
                Err(problem) => failure = problem,
            }
        }
        panic!("no schema registry could be started: {failure}");
    }

    fn try_start() -> Result<Apicurio, String> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| format!("no free port: {error}"))?
            .port();
        let folder = tempfile::Builder::new()
            .prefix("ictflow-registry-")
            .tempdir()
            .map_err(|error| format!("no temporary folder: {error}"))?
            .keep();
        let mut owner = Command::new("sh")
            .args(["-c", OWNER, "owner"])
            .arg(&folder)
            .args(["java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"])
            .arg(jar())
            .env("QUARKUS_HTTP_HOST", "127.0.0.1")
            .env("QUARKUS_HTTP_PORT", port.to_string())
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|error| format!("run sh: {error}"))?;
        let orders = owner.stdin.take();
        let url = format!("http://127.0.0.1:{port}/apis/ccompat/v7");
        let registry = Apicurio { owner, orders, url };
        let probe = client(&Config { retries: 0, ..config(&registry.url) });
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if probe.probe().is_ok() {
                return Ok(registry);
            }
            let log = std::fs::read_to_string(folder.join("registry.log")).unwrap_or_default();
            if log.contains("Failed to start application") {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let log = std::fs::read_to_string(folder.join("registry.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Err(format!("it didn't answer: {}", lines[lines.len().saturating_sub(5)..].join(" | ")))
    }

    /// The base of its Confluent-compatible API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets the compatibility that every subject is held to, as `BACKWARD`.
    ///
    /// # Panics
    /// Where the registry refuses.
    pub fn set_compatibility(&self, level: &str) {
        let (host, path) = self.url.trim_start_matches("http://").split_once('/').unwrap_or_default();
        let body = json!({ "compatibility": level }).to_string();
        let mut stream = TcpStream::connect(host).unwrap_or_else(|error| panic!("{host}: {error}"));
        let request = format!(
            "PUT /{path}/config HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        let done = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        assert!(done.is_ok() && answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for Apicurio {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.owner.wait();
    }
}

/// The registry's program, brought by `deploy/registry-app.sh`.
fn jar() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let output = Command::new(root().join("deploy/registry-app.sh"))
            .output()
            .unwrap_or_else(|error| panic!("run deploy/registry-app.sh: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("app")
    });
    let files = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files
        .flatten()
        .map(|file| file.path())
        .find(|path| path.to_string_lossy().ends_with("-runner.jar"))
        .unwrap_or_else(|| panic!("no runner in {}", folder.display()))
}

/// A registry in this process.
pub struct Double {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    schemas: Mutex<Schemas>,
    /// Connections are closed without an answer.
    down: AtomicBool,
    /// So many requests are answered by 503 first.
    busy: AtomicUsize,
    /// Everything is answered as a proxy does that finds no server.
    astray: AtomicBool,
    requests: Mutex<Vec<String>>,
    authorization: Mutex<Option<String>>,
    ended: AtomicBool,
}

/// Schemas by id from 1, and the ids of each subject in their order.
#[derive(Default)]
struct Schemas {
    by_id: Vec<String>,
    subjects: std::collections::BTreeMap<String, Vec<usize>>,
}

impl Double {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// Where no port can be had.
    pub fn start() -> Double {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("no port: {error}"));
        let url = format!("http://{}", listener.local_addr().unwrap_or_else(|error| panic!("{error}")));
        let shared = Arc::new(Shared::default());
        let answering = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if answering.ended.load(Ordering::SeqCst) {
                    return;
                }
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                // A client that goes away is its own affair.
                let _ = answering.serve(stream);
            }
        });
        Double { url, shared }
    }

    /// The base of its API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops answering, or answers again.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// Answers the next requests by 503.
    pub fn set_busy(&self, requests: usize) {
        self.shared.busy.store(requests, Ordering::SeqCst);
    }

    /// Answers as a proxy without a server behind it, or as a registry again.
    pub fn set_astray(&self, astray: bool) {
        self.shared.astray.store(astray, Ordering::SeqCst);
    }

    /// Wants this header of every request.
    pub fn set_authorization(&self, value: &str) {
        *self.shared.authorization.lock().unwrap_or_else(|e| e.into_inner()) = Some(value.to_owned());
    }

    /// Puts a schema under a subject without asking whether it fits; gives its id.
    pub fn put(&self, subject: &str, schema: &str) -> u32 {
        self.shared.schemas.lock().unwrap_or_else(|e| e.into_inner()).put(subject, schema) as u32
    }

    /// Forgets every schema.
    pub fn forget(&self) {
        *self.shared.schemas.lock().unwrap_or_else(|e| e.into_inner()) = Schemas::default();
    }

    /// The requests since the last call, each as `METHOD PATH`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.requests.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread, which ends then.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (mut length, mut authorization) = (0, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap_or(0),
                "authorization" => authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        self.requests.lock().unwrap_or_else(|e| e.into_inner()).push(format!("{method} {path}"));
        let (status, kind, text) = self.answer(method, path, &body, authorization.as_deref());
        write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        )
    }

    fn answer(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        authorization: Option<&str>,
    ) -> (u16, &'static str, String) {
        let kind = "application/vnd.schemaregistry.v1+json";
        let json = |status: u16, value: Value| (status, kind, value.to_string());
        if self.astray.load(Ordering::SeqCst) {
            return (404, "text/html", "<html>404 Not Found</html>".into());
        }
        let busy = self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if busy.is_ok() {
            return json(503, json!({"error_code": 50302, "message": "busy"}));
        }
        let wanted = self.authorization.lock().unwrap_or_else(|e| e.into_inner()).clone();
        if wanted.is_some() && wanted.as_deref() != authorization {
            return json(401, json!({"error_code": 40101, "message": "who are you?"}));
        }
        let path = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let schema = || {
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            body["schema"].as_str().unwrap_or_default().to_owned()
        };
        let mut schemas = self.schemas.lock().unwrap_or_else(|e| e.into_inner());
        let no_subject = || json(404, json!({"error_code": 40401, "message": "Subject not found."}));
        match (method, parts.as_slice()) {
            ("GET", ["schemas", "types"]) => json(200, json!(["AVRO"])),
            ("GET", ["schemas", "ids", id]) => match id.parse().ok().and_then(|id| schemas.schema(id)) {
                Some(schema) => json(200, json!({"schema": schema})),
                None => json(404, json!({"error_code": 40403, "message": "Schema not found"})),
            },
            ("GET", ["subjects", subject, "versions", "latest"]) => match schemas.latest(subject) {
                Some(id) => json(200, json!({"subject": subject, "id": id, "schema": schemas.schema(id)})),
                None => no_subject(),
            },
            ("POST", ["subjects", subject]) => match schemas.of(subject, &schema()) {
                Some(id) => json(200, json!({"subject": subject, "id": id, "schema": schema()})),
                None if schemas.subjects.contains_key(*subject) => {
                    json(404, json!({"error_code": 40403, "message": "Schema not found"}))
                }
                None => no_subject(),
            },
            ("POST", ["subjects", subject, "versions"]) => match schemas.against(subject, &schema()) {
                Some(reason) => json(409, json!({"error_code": 409, "message": reason})),
                None => json(200, json!({"id": schemas.put(subject, &schema())})),
            },
            ("POST", ["compatibility", "subjects", subject, "versions", "latest"]) => {
                if schemas.latest(subject).is_none() {
                    return no_subject();
                }
                let reason = schemas.against(subject, &schema());
                json(
                    200,
                    json!({"is_compatible": reason.is_none(), "messages": reason.into_iter().collect::<Vec<_>>()}),
                )
            }
            _ => json(404, json!({"error_code": 404, "message": "HTTP 404 Not Found"})),
        }
    }
}

impl Schemas {
    fn schema(&self, id: usize) -> Option<&str> {
        self.by_id.get(id.checked_sub(1)?).map(String::as_str)
    }

    fn latest(&self, subject: &str) -> Option<usize> {
        self.subjects.get(subject)?.last().copied()
    }

    /// The id of a schema that stands under a subject; blanks don't count.
    fn of(&self, subject: &str, schema: &str) -> Option<usize> {
        let wanted = parsed(schema);
        let ids = self.subjects.get(subject)?;
        ids.iter().copied().find(|id| self.schema(*id).map(parsed) == Some(wanted.clone()))
    }

    fn put(&mut self, subject: &str, schema: &str) -> usize {
        if let Some(id) = self.of(subject, schema) {
            return id;
        }
        self.by_id.push(schema.to_owned());
        let id = self.by_id.len();
        self.subjects.entry(subject.to_owned()).or_default().push(id);
        id
    }

    /// Why a schema can't follow the newest of its subject: it must read what that one wrote.
    fn against(&self, subject: &str, schema: &str) -> Option<String> {
        let before = self.schema(self.latest(subject)?)?;
        unreadable(&parsed(schema), &parsed(before))
    }
}

fn parsed(schema: &str) -> Value {
    serde_json::from_str(schema).unwrap_or_default()
}

/// Why a reader schema can't read what a writer schema writes, by Avro's rules for records of plain
/// fields, arrays, maps and unions.
fn unreadable(reader: &Value, writer: &Value) -> Option<String> {
    if reader == writer {
        return None;
    }
    if let Value::Array(branches) = writer {
        return branches.iter().find_map(|branch| unreadable(reader, branch));
    }
    if let Value::Array(branches) = reader {
        let readable = branches.iter().any(|branch| unreadable(branch, writer).is_none());
        return (!readable).then(|| format!("no branch of {reader} reads {writer}"));
    }
    let kind = |schema: &Value| schema["type"].as_str().or(schema.as_str()).unwrap_or_default().to_owned();
    let (ours, theirs) = (kind(reader), kind(writer));
    let promoted = matches!(
        (theirs.as_str(), ours.as_str()),
        ("int", "long" | "float" | "double") | ("long", "float" | "double") | ("float", "double")
    );
    match (theirs.as_str(), ours.as_str()) {
        _ if promoted => None,
        (theirs, ours) if theirs != ours => Some(format!("reader type {ours} doesn't read {theirs}")),
        ("record", _) => {
            if reader["name"] != writer["name"] {
                return Some(format!("record {} isn't {}", reader["name"], writer["name"]));
            }
            let none = Vec::new();
            let fields = |schema: &Value| schema["fields"].as_array().unwrap_or(&none).clone();
            let old = fields(writer);
            fields(reader).iter().find_map(|field| match old.iter().find(|f| f["name"] == field["name"]) {
                Some(found) => unreadable(&field["type"], &found["type"])
                    .map(|reason| format!("field {}: {reason}", field["name"])),
                None if field.get("default").is_some() => None,
                None => Some(format!("READER_FIELD_MISSING_DEFAULT_VALUE {}", field["name"])),
            })
        }
        ("array", _) => unreadable(&reader["items"], &writer["items"]),
        ("map", _) => unreadable(&reader["values"], &writer["values"]),
        _ => None,
    }
}
