//! A job: polls the sources, closes an epoch, runs it through the workers, commits it.
//!
//! The order for an epoch: its bounds are committed on `epochs`; its records are judged and enter the
//! dataflow; its points are acknowledged by their store, where there is one; its outputs and progress
//! are committed in one transaction. An epoch that waits for the store is kept and tried again, and
//! nothing later begins meanwhile. Answers of the LLM and the encoder are journaled between epochs and
//! come back as records of a later one.
//!
//! At start: fence both writers, *then* read progress and bounds, load the newest good snapshot, replay the
//! recorded epochs after it (all of them without one), and go on. Replayed epochs commit nothing; the first
//! new one publishes the difference ([`crate::sink`]).
//!
//! Between two epochs the ICT weights may be switched: the next epoch's record names the new ones, and all
//! live features are published anew with it.
//!
//! `start.rs` starts a job, `commit.rs` brings an epoch from its bounds to its commit; here is the loop
//! around them and what a job shows.

mod bounded;
mod commit;
mod edge;
mod erase;
pub mod outputs;
mod recorded;
mod recover;
mod standing;
mod start;
mod switch;
mod truncation;

use crate::callers::Hands;
use crate::cluster::Cluster;
use crate::dead_letters::ratio::Ratio;
use crate::engine::Engine;
use crate::keeper::Keeper;
use crate::names::Names;
use crate::pipeline::EpochOutput;
use crate::points::PointStore;
use crate::queue::Activity;
use crate::requester::Requester;
use crate::sink::{Committed, Sink};
use crate::sources::{Harvest, Judge, READ_AHEAD, Source};
use crate::texts::Texts;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::points::Points;
use ictflow_connectors::snapshots::Snapshots;
use ictflow_connectors::topics::{Topics, Writer};
use ictflow_connectors::{Disposition, Error, Result};
use ictflow_operators::ict::{Kind, Versions, Weights};
use ictflow_operators::retrieval::Found;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::{Actives, EpochRecord, Outputs, config_digest};
use ictflow_schemas::framing::Digest;
use ictflow_schemas::topic::{NewRecord, Record, Topic};
use ictflow_schemas::wire::Format;
use ictflow_schemas::{Millis, NO_TIME};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use bounded::{Bounded, Extent};
pub use edge::{Edge, Edges};
pub use erase::Receipt;
use erase::Stray;
pub(crate) use recorded::Recorded;
use truncation::Truncation;
pub(crate) use truncation::{gone, starts};

pub(crate) use start::{bounds_at, check_encoder, check_semantics, own_progress, read_progress};

/// Answers that wait to be journaled before no more are taken: where the log can't be written, the
/// LLM isn't asked on and on.
pub const MAX_UNJOURNALED: usize = 1_000;

/// What a job is made of.
pub struct Parts {
    /// The store of the topics.
    pub topics: Box<dyn Topics>,
    /// How the records of the inputs are written, where not as Avro.
    pub formats: BTreeMap<Topic, Format>,
    /// Generators of CoTs, one for each call that may be under way: equals in all that they say.
    pub generators: Vec<Box<dyn Generate>>,
    /// What judges the generator's drafts.
    pub validator: Validator,
    /// The encoder of texts.
    pub encoder: Box<dyn Embed>,
    /// The ICT weights: those that serve, and what finds others by their version.
    pub weights: Versions,
    /// The store of points, and how many candidates it gives for a demonstration.
    pub points: Option<(Box<dyn Points>, usize)>,
    /// Where snapshots are kept, and how often one is taken. Without it a start replays from the
    /// earliest offsets.
    pub snapshots: Option<(Snapshots, Duration)>,
}

/// How a job runs. Nothing here decides a value.
#[derive(Clone, Debug)]
pub struct Options {
    /// The job's name: it names the writers and the records of `epochs` and `progress`.
    pub job: String,
    /// The topics' names.
    pub names: Names,
    /// Worker threads of each process.
    pub workers: usize,
    /// The other processes: none by default.
    pub cluster: Cluster,
    /// Records of `interactions` in one epoch at most.
    pub epoch_max_events: usize,
    /// Partitions of `interactions`, `items` and `candidates` where the store creates them; `None`:
    /// they must exist.
    pub create_inputs: Option<u32>,
    /// Whether the LLM and the encoder may be called.
    pub generate: bool,
    /// Where each call's key and attempt is appended.
    pub calls_file: Option<PathBuf>,
    /// How many records of a partition may be dead letters before the job stops.
    pub dead_letters: Ratio,
    /// Whether a start goes on without needed records that are gone, and puts the loss on record.
    pub accept_truncated: bool,
    /// What is called at the edges of a commit: none but in tests.
    pub edges: Edges,
    /// Whether no thread is started, for simulations: one worker runs within [`Job::step`], calls are made by
    /// [`Job::hands`], a snapshot is written when the next one is looked for.
    pub by_hand: bool,
    /// What bounds a backfill; `None` for a job that runs on.
    pub bounded: Option<Bounded>,
    /// The outputs that [`Job::switch_outputs`] switches to; `None` follows those on record.
    pub switch: Option<Outputs>,
}

/// Totals since start, for the accounting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Epochs committed by this process.
    pub epochs: u64,
    /// What their commits wrote.
    pub committed: Committed,
}

impl Totals {
    /// The totals of this job and of an earlier one together.
    pub fn plus(self, earlier: Totals) -> Totals {
        let (now, before) = (self.committed, earlier.committed);
        Totals {
            epochs: self.epochs + earlier.epochs,
            committed: Committed {
                features: now.features + before.features,
                retractions: now.retractions + before.retractions,
                examples: now.examples + before.examples,
                dead_letters: now.dead_letters + before.dead_letters,
            },
        }
    }
}

/// A running job.
pub struct Job {
    topics: Box<dyn Topics>,
    bounds: Box<dyn Writer>,
    sink: Sink,
    sources: Vec<Source>,
    judge: Judge,
    texts: Texts,
    versions: Versions,
    /// The weights beside those that serve, in the last epoch.
    beside: Option<Arc<Weights>>,
    engine: Engine,
    requester: Requester,
    points: Option<PointStore>,
    keeper: Option<Keeper>,
    truncation: Truncation,
    /// Of the erasure under way.
    receipt: Receipt,
    /// The epoch that has run and isn't committed yet.
    uncommitted: Option<Uncommitted>,
    semantics: Arc<Semantics>,
    options: Options,
    actives: Arc<Actives>,
    config: String,
    last: Option<EpochRecord>,
    committed: i64,
    publish: bool,
    caught_up: bool,
    ends_at_start: BTreeMap<Topic, Vec<i64>>,
    /// Answers that came and aren't on their logs yet: they were paid for, so none is dropped.
    unjournaled: Vec<NewRecord>,
    demonstrations: BTreeSet<Arc<Demonstration>>,
    failed: BTreeSet<Digest>,
    history_users: isize,
    /// Demonstrations over `max_demonstrations`.
    left_out: isize,
    /// Users who were erased while the outputs in force weren't; until the first commit.
    left_behind: BTreeSet<String>,
    totals: Totals,
    /// Dead letters committed, by stage and reason.
    dead_letters: BTreeMap<(String, String), u64>,
    journal_retries: u64,
    /// The last commit's times.
    commit: Commit,
}

/// How long the last commit took, and how old the events were that it published.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// From the epoch's bounds to its commit.
    pub took: Duration,
    /// The transaction.
    pub transaction: Duration,
    /// For each user that the epoch brought events and the commit published vectors of: the age of
    /// the newest of these events at the commit, milliseconds, and the number of vectors.
    pub ages: Vec<(Millis, u64)>,
}

/// An epoch that has run and isn't committed yet.
struct Uncommitted {
    begun: Instant,
    record: EpochRecord,
    publish: bool,
    harvest: Harvest,
    activity: Activity,
    output: EpochOutput,
    /// Answers of erased users among its records.
    strays: Vec<Stray>,
    /// Whether its points are acknowledged.
    written: bool,
    /// What lookups gave so far, in their order.
    found: Vec<Found>,
    /// Whether its pairs have what was found.
    looked_up: bool,
    /// What its commit waits for, and until when.
    stalled: Option<(String, Instant)>,
}

/// What a step did.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The epoch that it closed and committed.
    pub epoch: Option<i64>,
    /// What the commit wrote.
    pub committed: Committed,
    /// Answers journaled.
    pub journaled: usize,
}

/// How a start ended.
pub enum Started {
    /// The job runs, every recorded epoch replayed.
    Running(Box<Job>),
    /// It was told to stop before all recorded epochs were replayed. Nothing is lost: the next start
    /// replays them.
    Stopped {
        /// Epochs replayed.
        replayed: usize,
        /// Epochs recorded.
        recorded: usize,
    },
}

impl Job {
    /// Journals the answers that came, and closes one epoch if any input waits for it. Waits at most
    /// `wait` for input.
    ///
    /// # Errors
    /// `Fatal`: the job must be dropped and started anew. Nothing of the epoch is visible then.
    pub fn step(&mut self, wait: Duration) -> Result<Step> {
        self.keep();
        let step = Step { journaled: self.journal()?, ..Step::default() };
        if self.uncommitted.is_some() {
            return self.finish(wait).map(|done| step.with(done));
        }
        let record = match &self.last {
            None => self.first_bounds()?,
            Some(_) => {
                self.fill(if step.journaled > 0 { Duration::ZERO } else { wait })?;
                if self.sources.iter().all(|source| source.waiting() == 0) {
                    self.look_caught_up();
                    // The end of a log may be a control record, which no data follows: then an empty
                    // epoch publishes what is live. One is made also to record an accepted loss, and to
                    // switch weights.
                    let settled =
                        self.sink.publishing() && self.truncation.to_record.is_none() && !self.switching();
                    if !self.caught_up || settled {
                        return Ok(step);
                    }
                }
                self.close()?
            }
        };
        self.commit(record.0, record.1).map(|done| step.with(done))
    }

    /// Appends the answers that came to their logs, and hands over what can be asked now. A step does
    /// it too; a job that gathers input for a while does it meanwhile. Never waits.
    ///
    /// # Errors
    /// Those of [`Job::step`].
    pub fn journal(&mut self) -> Result<usize> {
        if self.unjournaled.len() < MAX_UNJOURNALED {
            self.unjournaled.extend(self.requester.pump(&self.texts)?);
        }
        if self.unjournaled.is_empty() {
            return Ok(0);
        }
        match self.topics.append(&self.unjournaled) {
            Ok(()) => {
                self.options.edges.pass(Edge::Journaled, self.epoch());
                Ok(std::mem::take(&mut self.unjournaled).len())
            }
            // A record that was written all the same is written again: the greatest offset stands.
            Err(Error { disposition: Disposition::Retry { .. }, context, detail, .. }) => {
                self.journal_retries += 1;
                tracing::warn!(context, detail, "answers couldn't be journaled, trying again");
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Starts no further call, waits for those under way, and journals their answers: they are paid for,
    /// and a successor would have to ask again. Waits at most `limit`; returns whether all had ended.
    ///
    /// # Errors
    /// Those of [`Job::step`].
    pub fn drain(&mut self, limit: Duration) -> Result<bool> {
        self.requester.close();
        let started = Instant::now();
        loop {
            self.journal()?;
            let drained = self.requester.under_way() == 0 && self.unjournaled.is_empty();
            if drained || started.elapsed() >= limit {
                return Ok(drained);
            }
            std::thread::sleep(crate::requester::IDLE);
        }
    }

    /// Takes records from every source and judges them.
    fn harvest(&mut self, mut take: impl FnMut(&mut Source) -> Result<Vec<Record>>) -> Result<Harvest> {
        let mut harvest = Harvest::default();
        for source in &mut self.sources {
            let records = take(source)?;
            let name = self.options.names.of(source.topic());
            self.judge.judge(source.topic(), name, records, &mut self.texts, &mut harvest);
        }
        Ok(harvest)
    }

    /// The first epoch of a job: everything but the interactions, up to the ends at start.
    fn first_bounds(&mut self) -> Result<(EpochRecord, Harvest)> {
        let ends = self.ends_at_start.clone();
        let harvest = self.harvest(|source| match source.topic() {
            Topic::Interactions => Ok(Vec::new()),
            topic => source.take_to(&ends[&topic]),
        })?;
        Ok((self.record(), harvest))
    }

    fn fill(&mut self, wait: Duration) -> Result<()> {
        let limit = self.read_ahead();
        let mut wait = wait;
        for source in self.sources.iter_mut().rev() {
            // The interactions may wait for input; whatever comes meanwhile is found after them.
            source.fill(limit, wait)?;
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Takes what waits, and makes the record of its bounds.
    fn close(&mut self) -> Result<(EpochRecord, Harvest)> {
        let max_events = self.options.epoch_max_events;
        let harvest = self.harvest(|source| {
            Ok(source.take(if source.topic() == Topic::Interactions { max_events } else { usize::MAX }))
        })?;
        Ok((self.record(), harvest))
    }

    /// The bounds record of the next epoch, from where the sources and the judge stand.
    fn record(&self) -> EpochRecord {
        let ends = |source: &Source| (source.topic().name().to_owned(), source.ends().to_vec());
        let maxima = self.judge.maxima();
        let config_digest = config_digest(&self.config).hex();
        let known = self.last.as_ref().is_some_and(|last| last.config_digest == config_digest);
        EpochRecord {
            job: self.options.job.clone(),
            epoch: self.last.as_ref().map_or(1, |last| last.epoch + 1),
            ends: self.sources.iter().map(ends).collect(),
            clock: maxima.iter().copied().max().unwrap_or(NO_TIME),
            maxima,
            actives: (*self.actives).clone(),
            config: (!known).then(|| self.config.clone()),
            config_digest,
            starts: self.truncation.to_record.clone().unwrap_or_default(),
            erasures: Vec::new(),
            outputs: None,
        }
    }

    fn look_caught_up(&mut self) {
        let reached = |source: &Source| {
            let ends = &self.ends_at_start[&source.topic()];
            source.reached().iter().zip(ends).all(|(end, at_start)| end >= at_start)
        };
        if !self.caught_up && self.last.is_some() && self.sources.iter().all(reached) {
            self.caught_up = true;
            if self.options.generate {
                self.requester.open();
            }
        }
    }

    /// Whether all that stands on the input logs now is committed and nothing is asked.
    ///
    /// # Errors
    /// `Fatal` where the ends of the logs can't be read.
    pub fn idle(&mut self) -> Result<bool> {
        let asked = self.options.generate && (!self.requester.idle() || !self.unjournaled.is_empty());
        if asked
            || !self.caught_up
            || self.sink.outdated()
            || self.uncommitted.is_some()
            || self.switching()
            || self.truncation.to_record.is_some()
            || self.sources.iter().any(|source| source.waiting() > 0)
        {
            return Ok(false);
        }
        for source in &self.sources {
            let ends = self.topics.ends(self.options.names.of(source.topic()))?;
            if source.reached().iter().zip(&ends).any(|(end, now)| end < now) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Steps until the job is idle, and lets `observe` look at it after each step.
    ///
    /// # Errors
    /// Those of [`Job::step`].
    pub fn run_until_idle(&mut self, mut observe: impl FnMut(&Job)) -> Result<()> {
        while !self.idle()? {
            self.step(crate::requester::IDLE)?;
            observe(self);
        }
        Ok(())
    }

    /// The last committed epoch; 0 before the first.
    pub fn committed(&self) -> i64 {
        self.committed
    }

    /// What the epoch that has run waits for, where its commit can't go on.
    pub fn stalled(&self) -> Option<&str> {
        self.uncommitted.as_ref()?.stalled.as_ref().map(|(why, _)| why.as_str())
    }

    /// What was written to the store of points and asked there; `None` without one.
    pub fn points(&self) -> Option<crate::points::Figures> {
        self.points.as_ref().map(|points| points.figures)
    }

    /// The last epoch that went through the dataflow; while a start replays, at most
    /// [`Job::committed`]. 0 before the first.
    pub fn epoch(&self) -> i64 {
        self.last.as_ref().map_or(0, |last| last.epoch)
    }

    /// Whether the input ends seen at start are passed.
    pub fn caught_up(&self) -> bool {
        self.caught_up
    }

    /// The input logs.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// By source and partition, where the input logs end now.
    ///
    /// # Errors
    /// What the store says.
    pub fn input_ends(&mut self) -> Result<Vec<Vec<i64>>> {
        let names: Vec<&str> =
            self.sources.iter().map(|source| self.options.names.of(source.topic())).collect();
        names.into_iter().map(|name| self.topics.ends(name)).collect()
    }

    /// Records that a source reads ahead at most.
    pub fn read_ahead(&self) -> usize {
        READ_AHEAD.max(self.options.epoch_max_events)
    }

    /// Answers that wait to be journaled.
    pub fn unjournaled(&self) -> usize {
        self.unjournaled.len()
    }

    /// Appends of answers that failed and were tried again.
    pub fn journal_retries(&self) -> u64 {
        self.journal_retries
    }

    /// Dead letters committed, by stage and reason.
    pub fn dead_letters(&self) -> &BTreeMap<(String, String), u64> {
        &self.dead_letters
    }

    /// The last commit's times.
    pub fn last_commit(&self) -> &Commit {
        &self.commit
    }

    /// The store of the topics, to append to its inputs.
    pub fn topics(&mut self) -> &mut dyn Topics {
        &mut *self.topics
    }

    /// The requester's state.
    pub fn requester(&self) -> &Requester {
        &self.requester
    }

    /// What makes the calls of a job that runs by hand.
    pub fn hands(&mut self) -> Option<&mut Hands> {
        self.requester.hands()
    }

    /// The sink's state.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// The judge's counts.
    pub fn judgements(&self) -> &crate::sources::Judgements {
        &self.judge.judgements
    }

    /// The demonstrations in the pool.
    pub fn demonstrations(&self) -> &BTreeSet<Arc<Demonstration>> {
        &self.demonstrations
    }

    /// Demonstrations over `max_demonstrations`: they stand ready and are left out of the pool.
    pub fn demonstrations_left_out(&self) -> usize {
        usize::try_from(self.left_out).unwrap_or(0)
    }

    /// Keys for which only a failure stands.
    pub fn failed(&self) -> &BTreeSet<Digest> {
        &self.failed
    }

    /// Users with a newest history.
    pub fn history_users(&self) -> isize {
        self.history_users
    }

    /// How many items exist.
    pub fn items(&self) -> usize {
        self.texts.items()
    }

    /// By worker, the events that its `history` took.
    pub fn events_by_worker(&self) -> &[u64] {
        self.engine.events_by_worker()
    }

    /// The kind of the vectors: of demonstrations or of neighbours.
    pub fn vector_kind(&self) -> Kind {
        self.versions.kind()
    }

    /// The versions in force.
    pub fn actives(&self) -> &Actives {
        &self.actives
    }

    /// Totals since start.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

impl Step {
    fn with(mut self, done: Option<(i64, Committed)>) -> Self {
        if let Some((epoch, committed)) = done {
            (self.epoch, self.committed) = (Some(epoch), committed);
        }
        self
    }
}
