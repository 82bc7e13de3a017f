//! The scheduler: draws what happens next from one seed, and makes it happen.

use super::answers::{Encoder, Llm, Plan, Reply, WIDTH};
use super::ledger::{Figures, Ledger};
use super::log::{Defect, Faults, Log};
use super::points::{Fault, Store};
use super::workload::{LATENESS, Workload, doubled_answer, gone_embedding};
use fastrand::Rng;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::points::Points;
use ictflow_connectors::snapshots::Snapshots;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Disposition, Error};
use ictflow_dataflows::cluster::Cluster;
use ictflow_dataflows::dead_letters::ratio::Ratio;
use ictflow_dataflows::job::{Edge, Edges, Job, Options, Parts};
use ictflow_dataflows::names::Names;
use ictflow_operators::ict::{Shape, Weights, untrained};
use ictflow_schemas::config::{CotStride, Search, Semantics};
use ictflow_schemas::invariants::Violation;
use ictflow_schemas::topic::Topic;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The simulated job's name.
pub(super) const JOB: &str = "job";
/// Generators: so many calls are under way at once.
const CALLERS: usize = 3;
/// Actions that are told when a run fails.
const TOLD: usize = 25;

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// Everything held.
    Well {
        /// What was seen.
        figures: Figures,
        /// A digest of every topic: the same for the same seed.
        digest: String,
    },
    /// Something didn't hold.
    Badly {
        /// What.
        why: String,
        /// The last actions.
        after: Vec<String>,
    },
}

/// Runs a seed. With `defect` something is planted; with `dump` the topics of the job at rest are written into
/// that folder, for the oracle.
pub fn simulate(seed: u64, defect: Option<Defect>, dump: Option<&Path>) -> Ended {
    let mut simulation = Simulation::new(seed, defect);
    // What the job itself holds to be impossible is found by its panic.
    match catch_unwind(AssertUnwindSafe(|| simulation.run(dump))) {
        Ok(Ok(digest)) => Ended::Well { figures: simulation.ledger.figures, digest },
        Ok(Err(Violation(why))) => Ended::Badly { why, after: simulation.told.into() },
        Err(panic) => Ended::Badly { why: said(&*panic), after: simulation.told.into() },
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

/// What unwinds a job at an edge: the crash.
struct Crashed;

/// The edge at which the job crashes next, if at any.
type Armed = Arc<Mutex<Option<Edge>>>;

fn crash_at(armed: &Armed, edge: Edge) {
    let crashes = {
        let mut armed = armed.lock().unwrap();
        let here = *armed == Some(edge);
        if here {
            *armed = None;
        }
        here
    };
    if crashes {
        // No panic: nothing is printed, and nothing runs but destructors.
        resume_unwind(Box::new(Crashed));
    }
}

/// When snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshotting {
    Never,
    Drawn,
    Always,
}

pub(super) struct Simulation {
    pub rng: Rng,
    pub log: Log,
    pub store: Option<Store>,
    pub plan: Plan,
    pub names: Names,
    pub semantics: Arc<Semantics>,
    pub job: Option<Job>,
    pub ledger: Ledger,
    pub workload: Workload,
    partitions: u32,
    /// Events of an epoch at most, drawn for each life.
    cut: usize,
    /// Paused predecessors.
    zombies: Vec<Job>,
    snapshots: Snapshots,
    snapshotting: Snapshotting,
    armed: Armed,
    folder: tempfile::TempDir,
    told: VecDeque<String>,
    defect: Option<Defect>,
}

/// The weights' file, and what it says; shared by all runs.
pub(super) fn weights() -> &'static (Vec<u8>, Arc<Weights>) {
    static WEIGHTS: OnceLock<(Vec<u8>, Arc<Weights>)> = OnceLock::new();
    WEIGHTS.get_or_init(|| {
        let shape =
            Shape { d: 8, text: WIDTH, user_rows: 64, item_rows: 64, creator_rows: 16, category_rows: 16 };
        let file = untrained(7, shape).unwrap();
        let weights = Arc::new(Weights::from_safetensors(&file).unwrap());
        (file, weights)
    })
}

fn semantics(rng: &mut Rng) -> Semantics {
    Semantics {
        history_length: rng.usize(2..6),
        prompt_history: 2,
        demonstrations: 2 * rng.usize(1..3),
        cot_stride: CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 + rng.u64(..2) },
        lateness_ms: LATENESS,
        max_future_skew_ms: LATENESS / 2,
        attribution_window_ms: 2 * LATENESS,
        pair_ttl_ms: 30 * LATENESS,
        demonstration_ttl_ms: 60 * LATENESS,
        max_window_events: rng.usize(3..12),
        max_demonstrations: rng.usize(3..12),
        search: if rng.u32(..8) == 0 { Search::Stored } else { Search::Exact },
        ..Semantics::default()
    }
}

impl Simulation {
    fn new(seed: u64, defect: Option<Defect>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let semantics = semantics(&mut rng);
        assert_eq!(semantics.problems(), Vec::<String>::new());
        let partitions = rng.u32(1..4);
        let with_points = semantics.search == Search::Stored
            || defect == Some(Defect::EarlyAcknowledgement)
            || rng.u32(..4) > 0;
        let log = Log::new(rng.bool(), defect);
        let store = with_points.then(|| Store::new(defect));
        let names = Names::new(&BTreeMap::new(), &format!(".{JOB}"));
        let folder = tempfile::tempdir().unwrap();
        let calls_file = folder.path().join("calls");
        let k = semantics.demonstrations;
        let snapshotting = [Snapshotting::Never, Snapshotting::Drawn, Snapshotting::Always][rng.usize(..3)];
        Simulation {
            ledger: Ledger::new(JOB, names.clone(), log.clone(), store.clone(), calls_file, k),
            workload: Workload::new(partitions),
            rng,
            log,
            store,
            plan: Plan::default(),
            names,
            semantics: Arc::new(semantics),
            job: None,
            partitions,
            cut: 1,
            zombies: Vec::new(),
            snapshots: Snapshots::open("memory:///").unwrap(),
            snapshotting,
            armed: Armed::default(),
            folder,
            told: VecDeque::new(),
            defect,
        }
    }

    fn tell(&mut self, what: impl Into<String>) {
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(what.into());
    }

    fn run(&mut self, dump: Option<&Path>) -> Result<String, Violation> {
        for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
            self.log.ensure(self.names.of(topic), self.partitions, topic.policy()).map_err(unexpected)?;
        }
        let opening = self.workload.opening(&mut self.rng);
        self.log.produce(&opening);
        self.start()?;
        for _ in 0..self.rng.usize(60..130) {
            self.act()?;
            self.ledger.look(self.job.as_ref())?;
        }
        // From here on nothing fails any more.
        self.tell("the faults end");
        self.log.set_faults(Faults::default());
        self.log.mend();
        if let Some(store) = &self.store {
            store.set_fault(None);
            store.mend();
        }
        self.plan.set(Reply::Good);
        *self.armed.lock().unwrap() = None;
        while let Some(zombie) = self.zombies.pop() {
            self.wake(zombie, true)?;
        }
        let closing = self.workload.closing(&mut self.rng);
        self.log.produce(&closing);
        self.come_to_rest(dump)
    }

    /// One action.
    fn act(&mut self) -> Result<(), Violation> {
        match self.rng.u32(..100) {
            0..=19 => {
                let batch = self.workload.batch(&mut self.rng);
                self.tell(format!("{} records arrive", batch.len()));
                self.log.produce(&batch);
            }
            20..=46 => self.step()?,
            47..=48 => {
                self.draw_faults();
                self.tell("answers are journaled");
                self.with(|job| job.journal().map(drop))?;
            }
            49..=60 => {
                let reply = match self.rng.u32(..20) {
                    0 => Reply::Bad,
                    1..=2 => Reply::Failed,
                    3 => Reply::HeldBack,
                    _ => Reply::Good,
                };
                self.plan.set(reply);
                self.workload.now += 1;
                let now = self.workload.now;
                let begun = self.hands(|hands| hands.call(now));
                self.tell(format!("a call is begun: {begun}, {reply:?}"));
            }
            61..=72 => {
                let calls = self.hands(|hands| hands.calls());
                if calls > 0 {
                    let which = self.rng.usize(..calls);
                    self.tell(format!("call {which} of {calls} ends"));
                    self.hands(|hands| hands.end_call(which));
                }
            }
            73..=80 => {
                let reply = if self.rng.u32(..20) == 0 { Reply::NoVector } else { Reply::Good };
                self.plan.set(reply);
                let begun = self.hands(|hands| hands.embed());
                self.tell(format!("texts are embedded: {begun}, {reply:?}"));
            }
            81..=88 => {
                let ended = self.hands(|hands| hands.end_embed());
                self.tell(format!("vectors come: {ended}"));
            }
            89..=90 => {
                let doubled = doubled_answer(&mut self.rng, &self.log, &self.names);
                self.tell(format!("an answer comes again: {}", doubled.is_some()));
                self.log.produce(doubled.as_slice());
            }
            91..=93 => {
                let gone = gone_embedding(&mut self.rng, &self.log, &self.names);
                self.tell(format!("an embedding goes, by {} records", gone.len()));
                self.ledger.figures.gone_embeddings += u64::from(!gone.is_empty());
                self.log.produce(&gone);
            }
            94 => {
                if self.snapshotting == Snapshotting::Drawn
                    && let Some(job) = &mut self.job
                {
                    job.snapshot();
                    self.tell("a snapshot is taken");
                }
            }
            95..=96 => {
                let paused = self.rng.u32(..2) == 0;
                self.tell(if paused { "the job is paused, another starts" } else { "the job crashes" });
                self.ledger.figures.crashes_between += 1;
                self.ledger.crashed();
                let old = self.job.take();
                self.zombies.extend(old.filter(|_| paused));
                self.start()?;
            }
            _ => {
                if !self.zombies.is_empty() {
                    let which = self.rng.usize(..self.zombies.len());
                    let zombie = self.zombies.swap_remove(which);
                    self.wake(zombie, false)?;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Violation> {
        let commit = self.draw_faults();
        if self.rng.u32(..12) == 0 {
            let edge = Edge::ALL[self.rng.usize(1..Edge::ALL.len())];
            *self.armed.lock().unwrap() = Some(edge);
        }
        let armed = *self.armed.lock().unwrap();
        self.tell(format!("a step, to crash at {armed:?}, commit in doubt {commit:?}"));
        self.with(|job| job.step(Duration::ZERO).map(drop))?;
        *self.armed.lock().unwrap() = None;
        Ok(())
    }

    /// Draws what fails in the next operation of the job.
    fn draw_faults(&mut self) -> Option<(u32, bool)> {
        let rng = &mut self.rng;
        let torn = self.defect == Some(Defect::TornCommit);
        let faults = Faults {
            append: (rng.u32(..12) == 0).then(|| rng.usize(..4)),
            commit: (rng.u32(..15) == 0).then(|| (rng.u32(..2), rng.bool() && !torn)),
            poll: (rng.u32(..3) == 0).then(|| rng.usize(1..8)),
        };
        self.log.set_faults(faults);
        if let Some(store) = &self.store {
            let fault = [Fault::Before, Fault::After][rng.usize(..2)];
            store.set_fault((rng.u32(..6) == 0).then_some(fault));
        }
        faults.commit
    }

    fn hands<T: Default>(&mut self, what: impl FnOnce(&mut ictflow_dataflows::callers::Hands) -> T) -> T {
        self.job.as_mut().and_then(Job::hands).map(what).unwrap_or_default()
    }

    /// Lets the job do something; where it crashes or its commit ends in doubt, another starts.
    pub fn with(
        &mut self,
        what: impl FnOnce(&mut Job) -> ictflow_connectors::Result<()>,
    ) -> Result<(), Violation> {
        let Some(mut job) = self.job.take() else { return Ok(()) };
        match catch_unwind(AssertUnwindSafe(|| what(&mut job))) {
            Ok(Ok(())) => {
                self.job = Some(job);
                self.log.set_faults(Faults::default());
                return Ok(());
            }
            Ok(Err(error)) if error.disposition == Disposition::Restart => {
                self.tell(format!("the job starts anew: {error}"));
                self.ledger.figures.doubts += 1;
            }
            Ok(Err(error)) => return Err(unexpected(error)),
            Err(panic) if panic.is::<Crashed>() => {
                self.tell("it crashed");
                self.ledger.figures.crashes_at_edges += 1;
            }
            Err(panic) => resume_unwind(panic),
        }
        drop(job);
        self.ledger.crashed();
        self.ledger.look(None)?;
        self.start()
    }

    /// Starts the job, again where it crashes at that.
    fn start(&mut self) -> Result<(), Violation> {
        loop {
            self.log.set_faults(Faults::default());
            let crashes = self.rng.u32(..6) == 0;
            *self.armed.lock().unwrap() = crashes.then_some(Edge::Rebuilding);
            let doubt = self.rng.u32(..10) == 0;
            let poll = (self.rng.u32(..3) == 0).then(|| self.rng.usize(1..20));
            let commit = doubt.then(|| (0, self.rng.bool() && self.defect != Some(Defect::TornCommit)));
            self.log.set_faults(Faults { append: None, commit, poll });
            self.cut = self.rng.usize(1..20);
            let started = catch_unwind(AssertUnwindSafe(|| self.try_start(JOB, self.store.clone(), true)));
            *self.armed.lock().unwrap() = None;
            self.log.set_faults(Faults::default());
            match started {
                Ok(Ok(job)) => {
                    let from = job.snapshots().and_then(|figures| figures.epoch);
                    self.ledger.figures.from_snapshots += u64::from(from.is_some());
                    self.tell(format!("it stands at epoch {}, from snapshot {from:?}", job.committed()));
                    self.job = Some(job);
                    return self.ledger.look(self.job.as_ref());
                }
                Ok(Err(error)) if error.disposition == Disposition::Restart => {
                    self.tell(format!("the start ends in doubt: {error}"));
                    self.ledger.figures.doubts += 1;
                }
                Ok(Err(error)) => return Err(unexpected(error)),
                Err(panic) if panic.is::<Crashed>() => {
                    self.tell("it crashes while it rebuilds");
                    self.ledger.figures.crashes_at_edges += 1;
                }
                Err(panic) => resume_unwind(panic),
            }
            self.ledger.look(None)?;
        }
    }

    /// A paused predecessor wakes up and goes on. At `last` it is let go.
    fn wake(&mut self, mut zombie: Job, last: bool) -> Result<(), Violation> {
        self.log.set_faults(Faults::default());
        if let Some(hands) = zombie.hands()
            && hands.calls() > 0
        {
            hands.end_call(0);
        }
        match zombie.step(Duration::ZERO) {
            Ok(step) if step.epoch.is_none() => {
                self.tell("a predecessor wakes up and does nothing that counts");
                if !last {
                    self.zombies.push(zombie);
                }
                Ok(())
            }
            Ok(step) => Err(Violation(format!("a predecessor committed epoch {:?}", step.epoch))),
            Err(error) if error.disposition == Disposition::Fatal => {
                self.tell(format!("a predecessor wakes up and is stopped: {error}"));
                self.ledger.figures.fenced += 1;
                Ok(())
            }
            Err(error) => Err(unexpected(error)),
        }
    }

    /// Starts a job over the topics; `generate` is false for a recomputation.
    pub fn try_start(
        &self,
        name: &str,
        store: Option<Store>,
        generate: bool,
    ) -> ictflow_connectors::Result<Job> {
        let armed = self.armed.clone();
        let interval = match self.snapshotting {
            Snapshotting::Always => Duration::ZERO,
            _ => Duration::MAX,
        };
        let keeps = generate && self.snapshotting != Snapshotting::Never;
        let generator = || Box::new(Llm::new(self.plan.clone())) as Box<dyn Generate>;
        let parts = Parts {
            topics: Box::new(self.log.clone()),
            formats: BTreeMap::new(),
            generators: (0..CALLERS).map(|_| generator()).collect(),
            validator: Validator::new(&Prompt::builtin()),
            encoder: Box::new(Encoder::new(self.plan.clone())),
            weights: weights().1.clone().into(),
            points: store.map(|store| (Box::new(store) as Box<dyn Points>, 4)),
            snapshots: if keeps { Some((self.snapshots.another()?, interval)) } else { None },
        };
        let options = Options {
            job: name.to_owned(),
            names: Names::new(&BTreeMap::new(), &format!(".{name}")),
            workers: 1,
            cluster: Cluster::default(),
            epoch_max_events: if generate { self.cut } else { 10_000 },
            create_inputs: Some(self.partitions),
            generate,
            calls_file: generate.then(|| self.folder.path().join("calls")),
            accept_truncated: false,
            edges: match generate {
                true => Edges::new(move |edge, _| crash_at(&armed, edge)),
                false => Edges::default(),
            },
            by_hand: true,
            bounded: None,
            switch: None,
            dead_letters: Ratio::OFF,
        };
        Job::start(parts, self.semantics.clone(), options)
    }
}

pub(super) fn unexpected(error: Error) -> Violation {
    Violation(format!("unexpected: {error}"))
}
