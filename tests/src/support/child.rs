//! A job in a child process, so that it can be killed: the test binary run again.
//!
//! A test named to [`Life::spawn`] calls [`obey`], which does nothing unless an environment variable
//! holds a plan. Then it runs a job on Kafka until it is killed or told to stop by a file, and
//! writes a line for its start and for each commit. A child whose parent is gone ends by itself.

use super::qdrant;
use super::transactions::Watch;
use super::world::{self, Hooked, Store, World, hashed, template};
use ictflow_connectors::clock;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::kafka::Config;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::llm::{Draft, Generate};
use ictflow_dataflows::job::{Edge, Edges};
use ictflow_dataflows::requester::IDLE;
use ictflow_schemas::cot::CotRequest;
use ictflow_schemas::topic::Topic;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Holds the plan of a child.
const PLAN: &str = "ICTFLOW_TEST_CHILD";

/// How long a child may take to do what it is waited for: only to end a hang.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where a child kills itself with SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// At the n-th time that it passes an edge, from 1.
    Edge(Edge, u64),
    /// In the n-th transaction that it begins, once records of it stand on the broker.
    Transaction(u64),
}

/// What a child does.
#[derive(Clone)]
pub struct Plan {
    /// The world, on Kafka.
    pub world: World,
    /// Where the store of points is, if there is one: a child makes a client of its own.
    pub points: Option<String>,
    /// Generator threads.
    pub threads: usize,
    /// How long a call takes.
    pub call: Duration,
    /// How long input is gathered for an epoch.
    pub pause: Duration,
    /// Once this file exists, the child ends as soon as it is idle.
    pub stop: PathBuf,
    /// Where it kills itself, if it does.
    pub fault: Option<Fault>,
}

impl Plan {
    fn json(&self) -> Value {
        let World {
            prefix, job, partitions, workers, epoch, semantics, calls_file, snapshots, store, ..
        } = &self.world;
        let Store::Kafka(config) = store else { panic!("a child's job runs on kafka") };
        let fault = match self.fault {
            None => Value::Null,
            Some(Fault::Edge(edge, pass)) => json!([format!("{edge:?}"), pass]),
            Some(Fault::Transaction(pass)) => json!(["Transaction", pass]),
        };
        json!({
            "bootstrap": config.bootstrap_servers, "prefix": prefix, "job": job, "partitions": partitions,
            "workers": workers, "epoch": epoch, "semantics": semantics, "calls_file": calls_file,
            "points": self.points, "threads": self.threads, "call_ms": self.call.as_millis() as u64,
            "snapshots": snapshots.as_ref().map(|(folder, interval)| json!([folder, interval.as_millis() as u64])),
            "pause_ms": self.pause.as_millis() as u64, "stop": self.stop, "fault": fault,
        })
    }

    fn read(plan: &Value) -> Plan {
        let text = |key: &str| plan[key].as_str().expect("a text of the plan").to_owned();
        let number = |key: &str| plan[key].as_u64().expect("a number of the plan");
        let folder = Path::new("");
        let semantics = serde_json::from_value(plan["semantics"].clone()).expect("semantics");
        let servers = serde_json::from_value(plan["bootstrap"].clone()).expect("brokers");
        let mut world = World::new(folder, &text("job"), semantics, world::weights(384));
        world.store = Store::Kafka(Box::new(Config { bootstrap_servers: servers, ..Config::default() }));
        world.prefix = text("prefix");
        world.partitions = number("partitions") as u32;
        world.workers = number("workers") as usize;
        world.epoch = number("epoch") as usize;
        world.calls_file = plan["calls_file"].as_str().map(PathBuf::from);
        world.snapshots = plan["snapshots"].as_array().map(|kept| {
            let (folder, interval) =
                (kept[0].as_str().expect("a folder"), kept[1].as_u64().expect("an interval"));
            (PathBuf::from(folder), Duration::from_millis(interval))
        });
        let points = plan["points"].as_str().map(str::to_owned);
        world.points = points.as_deref().map(qdrant::clients_of);
        let fault = plan["fault"].as_array().map(|fault| {
            let (name, pass) = (fault[0].as_str().expect("a name"), fault[1].as_u64().expect("a pass"));
            match Edge::ALL.into_iter().find(|edge| format!("{edge:?}") == name) {
                Some(edge) => Fault::Edge(edge, pass),
                None => Fault::Transaction(pass),
            }
        });
        Plan {
            world,
            points,
            threads: number("threads") as usize,
            call: Duration::from_millis(number("call_ms")),
            pause: Duration::from_millis(number("pause_ms")),
            stop: PathBuf::from(text("stop")),
            fault,
        }
    }
}

/// A line of a child's log: what, the epoch, milliseconds of the wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `replayed` after the start, `stepped` after the first step, `commit` after each epoch's commit.
    pub what: String,
    /// The last committed epoch.
    pub epoch: i64,
    /// When.
    pub at: i64,
}

/// A child's life.
pub struct Life {
    process: Child,
    log: PathBuf,
    said: PathBuf,
    /// When it was started, milliseconds of the wall clock.
    pub born: i64,
}

impl Life {
    /// Starts the test binary again for this one test, with a plan. Its files in `folder` have the
    /// number in their names.
    ///
    /// # Panics
    /// Where the process can't be started.
    pub fn spawn(test: &str, folder: &Path, number: usize, plan: &Plan) -> Life {
        let (log, said) =
            (folder.join(format!("life-{number}.log")), folder.join(format!("life-{number}.txt")));
        let mut description = plan.json();
        description["log"] = json!(log);
        let output = File::create(&said).expect("the folder is writable");
        let process = Command::new(std::env::current_exe().expect("the test binary"))
            .args(["--exact", test, "--nocapture"])
            .env(PLAN, description.to_string())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("the test binary runs");
        Life { process, log, said, born: clock::now_ms() }
    }

    /// What it logged so far.
    pub fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        // A line that a kill cut off isn't there.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let line = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, epoch, at] = words[..] else { panic!("a line of three words: {line}") };
            Line {
                what: what.to_owned(),
                epoch: epoch.parse().expect("an epoch"),
                at: at.parse().expect("a time"),
            }
        };
        whole.lines().map(line).collect()
    }

    /// Waits for a line of its log.
    ///
    /// # Panics
    /// Where the child ends before, or takes too long.
    pub fn wait_for(&mut self, what: &str) {
        let begun = Instant::now();
        while !self.lines().iter().any(|line| line.what == what) {
            self.must_live();
            assert!(begun.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// # Panics
    /// Where the child has ended, with what it said.
    pub fn must_live(&mut self) {
        let ended = self.process.try_wait().expect("its own child");
        assert!(ended.is_none(), "the child ended by itself, {ended:?}: {}", self.said());
    }

    /// Kills it with SIGKILL; gives its log.
    ///
    /// # Panics
    /// Where it had ended before.
    pub fn kill(mut self) -> Vec<Line> {
        self.must_live();
        self.process.kill().expect("its own child");
        self.process.wait().expect("its own child");
        self.lines()
    }

    /// Waits until it ends by itself; gives its log.
    ///
    /// # Panics
    /// Where it takes too long.
    pub fn end(mut self) -> (ExitStatus, Vec<Line>, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("its own child") {
                return (status, self.lines(), self.said());
            }
            assert!(begun.elapsed() < PATIENCE, "no end in {PATIENCE:?}: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.said).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the plan of the environment; without one it does nothing.
///
/// # Panics
/// Where the job fails.
pub fn obey() {
    let Ok(text) = std::env::var(PLAN) else { return };
    let description: Value = serde_json::from_str(&text).expect("the plan is JSON");
    std::thread::spawn(|| {
        // The pipe closes when the parent ends, however it does.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(3);
    });
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    let log = Path::new(description["log"].as_str().expect("a log"));
    let mut log = File::options().create(true).append(true).open(log).expect("its log is writable");
    let mut say = move |what: &str, epoch: i64| {
        let line = format!("{what} {epoch} {}\n", clock::now_ms());
        log.write_all(line.as_bytes()).expect("its log is writable");
    };
    run(Plan::read(&description), &mut say);
}

fn run(mut plan: Plan, say: &mut dyn FnMut(&str, i64)) {
    if let Some(fault) = plan.fault {
        plan.world.edges = edges(fault, &plan.world);
    }
    let mut job = plan
        .world
        .try_start_with(
            generators(plan.threads, plan.call),
            Validator::new(&Prompt::builtin()),
            encoder(),
            |_| {},
        )
        .unwrap_or_else(|error| panic!("{error}"));
    say("replayed", job.committed());
    let (mut closed, mut first) = (Instant::now(), true);
    loop {
        if plan.stop.exists() && job.idle().unwrap_or_else(|error| panic!("{error}")) {
            return;
        }
        while closed.elapsed() < plan.pause {
            job.journal().unwrap_or_else(|error| panic!("{error}"));
            std::thread::sleep(IDLE);
        }
        let step = job.step(IDLE).unwrap_or_else(|error| panic!("{error}"));
        if std::mem::take(&mut first) {
            say("stepped", job.committed());
        }
        if let Some(epoch) = step.epoch {
            closed = Instant::now();
            say("commit", epoch);
        }
    }
}

/// Generators without a model whose calls take a while.
fn generators(threads: usize, call: Duration) -> Vec<Box<dyn Generate>> {
    let slow = || -> Box<dyn Generate> {
        let hook = move |inner: &mut dyn Generate,
                         request: &CotRequest,
                         attempt: u32|
              -> ictflow_connectors::Result<Draft> {
            std::thread::sleep(call);
            inner.generate(request, attempt)
        };
        Box::new(Hooked { inner: template(), hook })
    };
    (0..threads).map(|_| slow()).collect()
}

fn encoder() -> Box<dyn Embed> {
    hashed()
}

/// A hook that kills this process where a fault says.
fn edges(fault: Fault, world: &World) -> Edges {
    let passed = AtomicU64::new(0);
    let nth = move |pass: u64| passed.fetch_add(1, Ordering::SeqCst) + 1 == pass;
    match fault {
        Fault::Edge(at, pass) => Edges::new(move |edge, _| {
            if edge == at && nth(pass) {
                die();
            }
        }),
        Fault::Transaction(pass) => {
            let Store::Kafka(config) = &world.store else { panic!("a child's job runs on kafka") };
            let watch = Watch::new(&config.bootstrap_servers.join(","), world.names().of(Topic::Progress));
            let watch = Arc::new(watch);
            Edges::new(move |edge, _| {
                if edge == Edge::BeforeCommit && nth(pass) {
                    let (watch, before) = (watch.clone(), watch.end());
                    std::thread::spawn(move || {
                        while watch.end() == before {}
                        die();
                    });
                }
            })
        }
    }
}

fn die() {
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
}
