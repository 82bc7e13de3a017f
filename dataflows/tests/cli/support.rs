//! Runs the binary, and makes small worlds of input files.

use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Ends a hang, and nothing else.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The time of the first event.
pub const T0: i64 = 1_700_000_000_000;

/// What a command did.
pub struct Ran {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran = Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran
    }

    /// Its standard output, where it went well.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Its message, where it failed: lowercase, with a hint.
    pub fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        let last = self.err.lines().last().unwrap_or_default().to_owned();
        let message = last.strip_prefix("ictflow: ").unwrap_or_else(|| panic!("{}", self.err)).to_owned();
        assert!(message.starts_with(|c: char| !c.is_uppercase()) && message.ends_with(')'), "{message}");
        message
    }
}

/// The binary in a folder.
pub fn ictflow(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ictflow"));
    command.current_dir(folder).args(arguments).env_remove("ICTFLOW_LOG").stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub fn run(folder: &Path, arguments: &[&str]) -> Ran {
    Ran::of(ictflow(folder, arguments).output().unwrap())
}

/// Runs the binary with this standard input.
pub fn run_with(folder: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut command = ictflow(folder, arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Ran::of(child.wait_with_output().unwrap())
}

/// Starts the binary in the background, its standard error in a file.
pub fn spawn(folder: &Path, arguments: &[&str], out: Stdio) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(folder.join("stderr.txt")).unwrap();
    ictflow(folder, arguments).stdout(out).stderr(log).spawn().unwrap()
}

/// What background commands said.
pub fn said(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("stderr.txt")).unwrap_or_default()
}

/// Waits until something holds.
pub fn until(folder: &Path, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "{what} didn't come: {}", said(folder));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a child.
pub fn ended(folder: &Path, child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    until(folder, "the end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Appends lines to a file.
pub fn append(path: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// The lines of a file or of an output as JSON.
pub fn parsed(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Films and users; each step of a user is an impression and its rating.
pub const ITEMS: usize = 8;
/// Users of the small world.
pub const USERS: usize = 6;

/// The catalog.
pub fn items() -> Vec<Value> {
    let film = |n: usize| {
        let genre = ["drama", "crime", "comedy"][n % 3];
        json!({"key": format!("m{n}"), "value": {"title": format!("Film {n}"), "categories": [genre]}})
    };
    (0..ITEMS).map(film).collect()
}

/// Impressions with their ratings, in order of time.
pub fn events(steps: std::ops::Range<usize>) -> Vec<Value> {
    let mut lines = Vec::new();
    for step in steps {
        let (user, item) = (format!("u{}", step % USERS), format!("m{}", (step * 5 + step / USERS) % ITEMS));
        let time = T0 + step as i64 * 60_000;
        let stars = if step % 2 == 0 { 5 } else { 2 };
        for (id, kind, value, of, at) in [
            (format!("i{step}"), "impression", Value::Null, Value::Null, time),
            (format!("r{step}"), "rate", json!(stars), json!(format!("i{step}")), time + 1_000),
        ] {
            lines.push(json!({"key": user, "timestamp": at, "value": {
                "event_id": id, "user_id": user, "item_id": item, "kind": kind, "value": value,
                "impression_id": of, "event_time": at,
            }}));
        }
    }
    lines
}

/// A candidate set of every film for every user, computed after so many steps.
pub fn recall(steps: usize) -> Vec<Value> {
    let time = T0 + steps as i64 * 60_000;
    let items: Vec<String> = (0..ITEMS).map(|n| format!("m{n}")).collect();
    let set = |n: usize| json!({"key": format!("u{n}"), "timestamp": time, "value": {"computed_at": time, "items": items}});
    (0..USERS).map(set).collect()
}

/// A folder with the input files of so many steps.
pub fn world(steps: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    append(&folder.path().join("items.jsonl"), &items());
    append(&folder.path().join("clicks.jsonl"), &events(0..steps));
    append(&folder.path().join("recall.jsonl"), &recall(steps));
    folder
}

/// The arguments that name these files.
pub const FILES: [&str; 6] =
    ["--interactions", "clicks.jsonl", "--items", "items.jsonl", "--candidates", "recall.jsonl"];

/// The arguments of a dry run on these files.
pub const DRY: [&str; 10] = [
    "run",
    "--dry",
    "--interactions",
    "clicks.jsonl",
    "--items",
    "items.jsonl",
    "--candidates",
    "recall.jsonl",
    "--state",
    "look",
];

/// A dry run with more arguments.
pub fn dry<'a>(more: &[&'a str]) -> Vec<&'a str> {
    DRY.into_iter().chain(more.iter().copied()).collect()
}

/// What `tail` prints.
pub fn tail(folder: &Path, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["tail", "--state", "look"].into_iter().chain(arguments.iter().copied()).collect();
    run(folder, &all).good()
}

/// A path in a folder as text.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every file below a folder with its bytes, but for SQLite's index of its log.
pub fn snapshot(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else if !path.to_string_lossy().ends_with("-shm") && !path.to_string_lossy().ends_with("-wal") {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}
