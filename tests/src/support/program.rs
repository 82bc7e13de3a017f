//! The program, `ictflow`, in a process of its own: the test binary again. It can be stopped, resumed and
//! killed, and says of itself what the real one says.

use crate::support::http::{Answer, get};
use ictflow_connectors::clock;
use ictflow_dataflows::cli;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Set in a process that is the program.
const COMMAND: &str = "ICTFLOW_TEST_COMMAND";

/// Ends a hang, and nothing else.
const LIMIT: Duration = Duration::from_secs(300);

/// How much older than a status the ends may be that its lags are measured by, milliseconds.
const STALE_MS: i64 = 500;

/// Becomes the program where this process was started as one; a test that starts programs begins with it.
///
/// # Panics
/// Where the arguments aren't what [`Program::start`] wrote.
pub fn become_one() {
    let Ok(told) = std::env::var(COMMAND) else { return };
    std::thread::spawn(|| {
        // The pipe closes when the parent ends, however it does.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(3);
    });
    let arguments: Vec<String> = serde_json::from_str(&told).expect("what Program::start wrote");
    let code = cli::run_from(std::iter::once("ictflow".to_owned()).chain(arguments));
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}

/// The program by the name of a test that begins with [`become_one`].
fn command(test: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(COMMAND, serde_json::to_string(arguments).expect("texts"))
        .env_remove("ICTFLOW_LOG")
        .stdin(Stdio::piped());
    command
}

/// A running program.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts the program by the name of a test that begins with [`become_one`]. What it says goes to a
    /// file of this name in the folder.
    ///
    /// # Panics
    /// Where it can't be started.
    pub fn start(test: &str, folder: &Path, name: &str, arguments: &[&str]) -> Self {
        Program::start_to(test, folder, name, arguments, Stdio::null())
    }

    /// [`Program::start`], with what it prints in another file of the folder: `NAME.out`.
    ///
    /// # Panics
    /// Where it can't be started.
    pub fn start_printing(test: &str, folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let out = std::fs::File::create(folder.join(format!("{name}.out"))).expect("a file");
        Program::start_to(test, folder, name, arguments, out.into())
    }

    fn start_to(test: &str, folder: &Path, name: &str, arguments: &[&str], out: Stdio) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let child = command(test, arguments).stdout(out).stderr(file).spawn().expect("a process");
        Program { child, log }
    }

    /// Runs the program to its end by the name of a test that begins with [`become_one`].
    ///
    /// # Panics
    /// Where it can't be started.
    pub fn run(test: &str, arguments: &[&str]) -> Output {
        let mut command = command(test, arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
        // Its end would be the program's.
        let held = child.stdin.take();
        let output = child.wait_with_output().expect("its output");
        drop(held);
        output
    }

    /// The lines of JSON that a program printed, without those of the test harness.
    pub fn printed(out: &str) -> Vec<Value> {
        // A line that is still being written isn't one yet, and the harness begins one of its own.
        let whole = out.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let objects = whole.filter_map(|line| line.find("{\"").map(|begin| &line[begin..]));
        objects.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until something holds; gives it.
    ///
    /// # Panics
    /// Where it never does, with what the program said.
    pub fn until<T>(&self, what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = holds() {
                return found;
            }
            assert!(begun.elapsed() < LIMIT, "{what} didn't come: {}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Where it serves its status.
    pub fn address(&self) -> SocketAddr {
        self.until("the address", || {
            let said = self.said();
            let (_, after) = said.split_once("the status page is http://")?;
            after.split('/').next()?.parse().ok()
        })
    }

    /// What it answers for a path.
    pub fn get(&self, path: &str) -> Answer {
        get(self.address(), path)
    }

    /// Its status.
    ///
    /// # Panics
    /// Where it gives none.
    pub fn status(&self) -> Value {
        let answer = self.get("/status.json");
        serde_json::from_str::<Value>(&answer.body).unwrap_or_else(|e| panic!("{e}: {}", answer.body))
            ["status"]
            .take()
    }

    /// The last epoch that it committed.
    pub fn committed(&self) -> i64 {
        self.status()["committed"].as_i64().unwrap_or_default()
    }

    /// Waits until it is ready.
    pub fn until_ready(&self) {
        self.until("the job", || (self.get("/readyz").status == 200).then_some(()));
    }

    /// Waits until it is in a phase.
    pub fn until_phase(&self, phase: &str) {
        self.until(phase, || (self.status()["phase"] == phase).then_some(()));
    }

    /// Waits until it has committed an epoch past this one.
    pub fn until_past(&self, epoch: i64) -> i64 {
        self.until("a commit", || Some(self.committed()).filter(|committed| *committed > epoch))
    }

    /// Waits until all of its input is committed.
    pub fn until_done(&self) {
        let asked = clock::now_ms();
        self.until("the end of the input", || self.done(asked).map(drop));
    }

    /// Waits until it has nothing to do: all of its input is committed, and every answer that it asked for
    /// among it. Twice in a row, since an answer on its way may stand nowhere for a moment.
    pub fn until_idle(&self) {
        let (mut since, mut before) = (clock::now_ms(), None);
        self.until("rest", || {
            let status = self.done(since)?;
            let busy = ["queued", "in_flight"].iter().any(|key| status["cot"][key] != 0);
            let queued = status["queues"].as_array()?.iter().any(|queue| queue["depth"] != 0);
            let now = (!busy && !queued).then(|| status["committed"].clone());
            let rests = now.is_some() && now == before;
            (since, before) = (clock::now_ms(), now);
            rests.then_some(())
        });
    }

    /// Its status, where that was taken well after this time and all of its input is committed.
    fn done(&self, since: i64) -> Option<Value> {
        let status = self.status();
        let lags = status["sources"].as_array()?.iter().flat_map(|source| source["lag"].as_array());
        let mut lags = lags.flatten().peekable();
        let measured = lags.peek().is_some() && status["taken_at"].as_i64()? > since + STALE_MS;
        (status["phase"] == "running" && measured && lags.all(|lag| lag == 0)).then_some(())?;
        Some(status)
    }

    /// Sends a signal, by its name.
    ///
    /// # Panics
    /// Where it can't be sent.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "{name} wasn't sent: {}", self.said());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it doesn't end.
    pub fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status;
            }
            assert!(begun.elapsed() < LIMIT, "it doesn't end: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end, and waits until it has ended well.
    ///
    /// # Panics
    /// Where it ends badly.
    pub fn finish(mut self) {
        self.signal("TERM");
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.said());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
