//! A job: polls the sources, closes an epoch, runs it through the workers, commits it.
//!
//! The order for an epoch: its bounds are committed on `epochs`; its records are judged and enter the
//! dataflow; its points are acknowledged by their store, where there is one; its outputs and progress
//! are committed in one transaction. An epoch that waits for the store is kept and tried again, and
//! nothing later begins meanwhile. Answers of the LLM and the
//! encoder are journaled between epochs and come back as records of a later one.
//!
//! At start: fence both writers, *then* read progress and bounds, replay every recorded epoch from the
//! earliest offsets, and go on. Replayed epochs commit nothing; the first new one publishes the
//! difference ([`crate::sink`]).

use crate::engine::Engine;
use crate::epochs;
use crate::names::Names;
use crate::pipeline::{EpochInput, EpochOutput};
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
use ictflow_connectors::topics::{Topics, Writer};
use ictflow_connectors::{Disposition, Error, Result, clock};
use ictflow_operators::clock::Clock;
use ictflow_operators::ict::Weights;
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::{Actives, EpochRecord, Progress, WRITER_VERSION, config_digest};
use ictflow_schemas::framing::Digest;
use ictflow_schemas::topic::{NewRecord, Record, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Id, Millis, NO_TIME};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    /// The ICT weights.
    pub weights: Arc<Weights>,
    /// The store of points, and how many candidates it gives for a demonstration.
    pub points: Option<(Box<dyn Points>, usize)>,
}

/// How a job runs. Nothing here decides a value.
#[derive(Clone, Debug)]
pub struct Options {
    /// The job's name: it names the writers and the records of `epochs` and `progress`.
    pub job: String,
    /// The topics' names.
    pub names: Names,
    /// Worker threads.
    pub workers: usize,
    /// Records of `interactions` in one epoch at most.
    pub epoch_max_events: usize,
    /// Partitions of `interactions`, `items` and `candidates` where the store creates them; `None`:
    /// they must exist.
    pub create_inputs: Option<u32>,
    /// Whether the LLM and the encoder may be called.
    pub generate: bool,
    /// Where each call's key and attempt is appended.
    pub calls_file: Option<PathBuf>,
}

/// Totals since start, for the accounting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Epochs committed by this process.
    pub epochs: u64,
    /// What their commits wrote.
    pub committed: Committed,
}

/// A running job.
pub struct Job {
    topics: Box<dyn Topics>,
    bounds: Box<dyn Writer>,
    sink: Sink,
    sources: Vec<Source>,
    judge: Judge,
    texts: Texts,
    engine: Engine,
    requester: Requester,
    points: Option<PointStore>,
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
    /// By user, the time of the newest event that it brought.
    newest: HashMap<Id, Millis>,
    record: EpochRecord,
    publish: bool,
    harvest: Harvest,
    activity: Activity,
    output: EpochOutput,
    /// Whether its pairs were looked up.
    found: bool,
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
    /// Starts a job: fences its predecessors, replays its recorded epochs.
    ///
    /// # Errors
    /// `Fatal` with a hint where the topics, the recorded bounds or the configuration don't fit.
    pub fn start(parts: Parts, semantics: Arc<Semantics>, options: Options) -> Result<Self> {
        Job::start_observed(parts, semantics, options, |_| {})
    }

    /// [`Job::start`] that lets `observe` look at the job before the replay and after each replayed
    /// epoch.
    ///
    /// # Errors
    /// Those of [`Job::start`].
    pub fn start_observed(
        parts: Parts,
        semantics: Arc<Semantics>,
        options: Options,
        observe: impl FnMut(&Job),
    ) -> Result<Self> {
        let (mut job, records) = Job::open(parts, semantics, options)?;
        job.replay_all(records, &AtomicBool::new(false), observe)?;
        Ok(job)
    }

    /// As [`Job::start_observed`], but looks at `stop` before each replayed epoch and gives up once it
    /// is set.
    ///
    /// # Errors
    /// Those of [`Job::start`].
    pub fn start_unless(
        parts: Parts,
        semantics: Arc<Semantics>,
        options: Options,
        stop: &AtomicBool,
        observe: impl FnMut(&Job),
    ) -> Result<Started> {
        let (mut job, records) = Job::open(parts, semantics, options)?;
        let recorded = records.len();
        let replayed = job.replay_all(records, stop, observe)?;
        Ok(match replayed == recorded {
            true => Started::Running(Box::new(job)),
            false => Started::Stopped { replayed, recorded },
        })
    }

    /// Runs the recorded epochs again, and says how many it did before `stop` was set.
    fn replay_all(
        &mut self,
        records: Vec<EpochRecord>,
        stop: &AtomicBool,
        mut observe: impl FnMut(&Job),
    ) -> Result<usize> {
        let recorded = records.len();
        observe(self);
        for (replayed, record) in records.into_iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(replayed);
            }
            self.replay(record)?;
            // The last recorded epoch may not be committed: then it waits for its points like any other.
            while self.uncommitted.is_some() {
                if stop.load(Ordering::Relaxed) {
                    return Ok(replayed);
                }
                observe(self);
                self.finish(STORE_PAUSE)?;
            }
            observe(self);
        }
        self.look_caught_up();
        Ok(recorded)
    }

    /// A job that has fenced its predecessors, and the recorded epochs that it must replay first.
    fn open(parts: Parts, semantics: Arc<Semantics>, options: Options) -> Result<(Self, Vec<EpochRecord>)> {
        let Parts { mut topics, formats, generators, validator, encoder, weights, points } = parts;
        if semantics.search == Search::Stored && points.is_none() {
            return Err(Error::fatal(
                "start the job",
                "semantics.search is stored and there is no store of points",
                "add the section [qdrant]",
            ));
        }
        let points = points.map(|(store, over_fetch)| PointStore::new(store, over_fetch, encoder.width()));
        let names = options.names.clone();
        let partitions = prepare(&mut *topics, &options)?;
        // Fence first: what is read after this can't change under us.
        let bounds = topics.writer(&format!("{}.epochs", options.job))?;
        let writer = topics.writer(&options.job)?;
        let progress = read_progress(&mut *topics, names.of(Topic::Progress))?;
        let progress = own_progress(progress, names.of(Topic::Progress), &options.job)?;
        let records = epochs::load(&mut *topics, names.of(Topic::Epochs), &options.job)?;
        let committed = progress.as_ref().map_or(0, |progress| progress.epoch);
        let at_commit = bounds_at(&records, committed)?;
        let config = semantics.canonical();
        let generator = one_of(&generators)?;
        let actives = Arc::new(Actives {
            llm_model: generator.model().to_owned(),
            prompt_version: generator.prompt_version().to_owned(),
            parameters: generator.parameters().to_owned(),
            encoder: encoder.id().to_owned(),
            ict_weights: weights.version().to_owned(),
        });
        check_fit(&records, &config, &actives)?;
        let maxima = at_commit.map(|record| record.maxima.clone());
        let sink = Sink::open(
            &mut *topics,
            writer,
            names.clone(),
            &options.job,
            partitions,
            semantics.clone(),
            maxima,
        )?;
        let mut sources = Vec::new();
        let mut ends_at_start = BTreeMap::new();
        for topic in Topic::INPUTS {
            let name = names.of(topic);
            let count = topics.partitions(name)?.unwrap_or(1);
            ends_at_start.insert(topic, topics.ends(name)?);
            sources.push(Source::open(&mut *topics, topic, name, count)?);
        }
        let candidate_partitions = topics.partitions(names.of(Topic::Candidates))?.unwrap_or(1);
        let judge = Judge::new(
            semantics.clone(),
            formats,
            partitions,
            candidate_partitions,
            (encoder.id(), encoder.width()),
        );
        let requester = Requester::start(
            names,
            (semantics.partitioner, partitions),
            semantics.pair_ttl_ms,
            generators,
            validator,
            encoder,
            options.calls_file.as_deref(),
        )?;
        let engine = Engine::start(options.workers, semantics.clone(), weights)
            .map_err(|e| Error::fatal("start the timely workers", e, "is the limit of threads reached?"))?;
        let job = Job {
            topics,
            bounds,
            sink,
            sources,
            judge,
            texts: Texts::default(),
            engine,
            requester,
            points,
            uncommitted: None,
            semantics,
            options,
            actives,
            config,
            last: None,
            committed,
            publish: progress.is_some_and(|progress| progress.publishing),
            caught_up: false,
            ends_at_start,
            unjournaled: Vec::new(),
            demonstrations: BTreeSet::new(),
            failed: BTreeSet::new(),
            history_users: 0,
            totals: Totals::default(),
            dead_letters: BTreeMap::new(),
            journal_retries: 0,
            commit: Commit::default(),
        };
        Ok((job, records))
    }

    /// Journals the answers that came, and closes one epoch if any input waits for it. Waits at most
    /// `wait` for input.
    ///
    /// # Errors
    /// `Fatal`: the job must be dropped and started anew. Nothing of the epoch is visible then.
    pub fn step(&mut self, wait: Duration) -> Result<Step> {
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
                    // epoch publishes what is live.
                    if !self.caught_up || self.sink.publishing() {
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
            Ok(()) => Ok(std::mem::take(&mut self.unjournaled).len()),
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
        let limit = READ_AHEAD.max(self.options.epoch_max_events);
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
        }
    }

    /// Commits the bounds of a new epoch, runs it and commits its outputs.
    fn commit(&mut self, record: EpochRecord, harvest: Harvest) -> Result<Option<(i64, Committed)>> {
        epochs::commit(&mut *self.bounds, self.options.names.of(Topic::Epochs), &record)?;
        self.run_and_commit(record, harvest)
    }

    fn run_and_commit(
        &mut self,
        record: EpochRecord,
        mut harvest: Harvest,
    ) -> Result<Option<(i64, Committed)>> {
        let begun = Instant::now();
        let mut newest: HashMap<Id, Millis> = HashMap::new();
        for event in &harvest.input.events {
            let time = newest.entry(event.user.clone()).or_insert(NO_TIME);
            *time = (*time).max(event.entry.event_time);
        }
        self.last = Some(record.clone());
        self.look_caught_up();
        self.publish |= self.caught_up;
        // An epoch that a predecessor recorded under other versions publishes nothing: its vectors would
        // be made with today's weights under yesterday's name. The next epoch publishes all.
        let publish = self.publish && record.actives == *self.actives;
        let activity = Activity::of(&harvest.input, record.clock);
        let output = self.run(&record, std::mem::take(&mut harvest.input), publish);
        if let Some(points) = &mut self.points {
            points.begin();
        }
        self.uncommitted = Some(Uncommitted {
            begun,
            newest,
            record,
            publish,
            harvest,
            activity,
            output,
            found: false,
            stalled: None,
        });
        self.finish(Duration::ZERO)
    }

    /// Commits the epoch that has run, once its points are acknowledged. Gives the epoch, or nothing
    /// where it has to be tried again; then it waits at most `wait` before it tries.
    fn finish(&mut self, wait: Duration) -> Result<Option<(i64, Committed)>> {
        let Some(mut waiting) = self.uncommitted.take() else { return Ok(None) };
        if let Some((_, until)) = &waiting.stalled {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(wait));
            if left > wait {
                self.uncommitted = Some(waiting);
                return Ok(None);
            }
        }
        match self.write_points(&mut waiting) {
            Ok(()) => {}
            Err(error) => {
                let Disposition::Retry { after } = error.disposition else { return Err(error) };
                tracing::warn!(%error, epoch = waiting.record.epoch, "the epoch waits for the store of points");
                waiting.stalled = Some((error.to_string(), Instant::now() + after));
                self.uncommitted = Some(waiting);
                return Ok(None);
            }
        }
        let Uncommitted { begun, newest, record, publish, harvest, activity, output, .. } = waiting;
        let offsets: Vec<(String, u32, i64)> = self
            .sources
            .iter()
            .flat_map(|source| {
                let name = self.options.names.of(source.topic()).to_owned();
                source.ends().iter().enumerate().map(move |(p, end)| (name.clone(), p as u32, *end))
            })
            .collect();
        let transaction = Instant::now();
        let committed = self.sink.commit(
            record.epoch,
            publish,
            &output.features,
            &output.examples,
            &harvest.dead_letters,
            &offsets,
        )?;
        let now = clock::now_ms();
        let ages = self.sink.published().iter().filter_map(|(user, vectors)| {
            newest.get(user).map(|time| (now.saturating_sub(*time).max(0), *vectors))
        });
        self.commit =
            Commit { took: begun.elapsed(), transaction: transaction.elapsed(), ages: ages.collect() };
        for letter in &harvest.dead_letters {
            *self.dead_letters.entry((letter.stage.clone(), letter.reason.clone())).or_default() += 1;
        }
        self.committed = record.epoch;
        self.requester.apply(&output, &harvest.answered, &harvest.embedded, &activity);
        self.totals.epochs += 1;
        self.totals.committed.features += committed.features;
        self.totals.committed.retractions += committed.retractions;
        self.totals.committed.examples += committed.examples;
        self.totals.committed.dead_letters += committed.dead_letters;
        if let Some(points) = &mut self.points {
            points.tidy(record.epoch);
        }
        Ok(Some((record.epoch, committed)))
    }

    /// Writes an epoch's points, and looks its pairs up. What was done stays done when it is tried again.
    fn write_points(&mut self, waiting: &mut Uncommitted) -> Result<()> {
        let Some(points) = &mut self.points else { return Ok(()) };
        if !waiting.publish {
            // While the job catches up nobody reads: the first epoch that publishes writes them all.
            points.fall_behind();
            return Ok(());
        }
        let epoch = waiting.record.epoch;
        points.write(epoch, &self.demonstrations, &waiting.output.demonstrations)?;
        if self.semantics.search == Search::Stored && !waiting.found {
            let found = points.find(&waiting.output.lookups, self.semantics.demonstrations)?;
            let input = EpochInput { found, ..EpochInput::default() };
            let second = self.engine.run(second_time(epoch), clock_of(&waiting.record, true), input);
            if let Some(points) = &mut self.points {
                points.figures.recalled += second.recall.0;
                points.figures.measured += second.recall.1;
            }
            waiting.output.merge(second);
            waiting.found = true;
        }
        Ok(())
    }

    /// Runs a recorded epoch again. One that is committed commits nothing; one that isn't is
    /// committed now.
    fn replay(&mut self, record: EpochRecord) -> Result<()> {
        let nothing = Vec::new();
        let mut harvest = self
            .harvest(|source| source.take_to(record.ends.get(source.topic().name()).unwrap_or(&nothing)))?;
        if self.judge.maxima() != record.maxima {
            return Err(Error::fatal(
                format!("replay epoch {}", record.epoch),
                "the interactions give other partition maxima than the epoch recorded",
                "the log was truncated or changed below a committed bound: start a new job on what is left",
            ));
        }
        if record.epoch > self.committed {
            self.run_and_commit(record, harvest)?;
            return Ok(());
        }
        let activity = Activity::of(&harvest.input, record.clock);
        let output = self.run(&record, std::mem::take(&mut harvest.input), false);
        if record.epoch == self.committed && self.semantics.search == Search::Stored {
            // The state is now just what the standing features were made of.
            let input = EpochInput { found: self.sink.take_used(), ..EpochInput::default() };
            self.engine.run(second_time(record.epoch), clock_of(&record, false), input);
        }
        self.sink.replay(&output.examples);
        self.requester.apply(&output, &harvest.answered, &harvest.embedded, &activity);
        self.last = Some(record);
        Ok(())
    }

    fn run(&mut self, record: &EpochRecord, input: EpochInput, publish: bool) -> EpochOutput {
        let output = self.engine.run(first_time(record.epoch), clock_of(record, publish), input);
        for (demonstration, diff) in &output.demonstrations {
            if *diff > 0 {
                self.demonstrations.insert(demonstration.clone());
            } else {
                self.demonstrations.remove(demonstration);
            }
        }
        for (key, diff) in &output.failed {
            if *diff > 0 {
                self.failed.insert(*key)
            } else {
                self.failed.remove(key)
            };
        }
        self.history_users += output.history_users;
        output
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
            || self.uncommitted.is_some()
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

/// The longest pause between two tries of a commit while recorded epochs are run again.
const STORE_PAUSE: Duration = Duration::from_millis(200);

/// The dataflow's time for what an epoch's logs bring.
fn first_time(epoch: i64) -> u64 {
    2 * epoch as u64
}

/// The dataflow's time for what the store of points answers.
fn second_time(epoch: i64) -> u64 {
    first_time(epoch) + 1
}

fn clock_of(record: &EpochRecord, publish: bool) -> Clock {
    Clock {
        maxima: record.maxima.as_slice().into(),
        now: record.clock,
        publish,
        actives: Arc::new(record.actives.clone()),
    }
}

/// Makes or finds the topics, and gives the partition count of `interactions`.
fn prepare(topics: &mut dyn Topics, options: &Options) -> Result<u32> {
    let name = |topic| options.names.of(topic);
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        if topics.partitions(name(topic))?.is_some() {
            continue;
        }
        match options.create_inputs {
            Some(count) => topics.ensure(name(topic), count, topic.policy())?,
            // A job without a recall stage has no candidates: an empty topic stands for it.
            None if topic == Topic::Candidates => {
                let count = topics.partitions(name(Topic::Interactions))?.unwrap_or(1);
                topics.ensure(name(topic), count, topic.policy())?;
            }
            None => {
                return Err(Error::fatal(
                    format!("find the input topic {}", name(topic)),
                    "it doesn't exist",
                    "create it with the partition count that its producers use, or set [topics.names]",
                ));
            }
        }
    }
    let count = topics.partitions(name(Topic::Interactions))?.unwrap_or(1);
    for topic in [Topic::Cot, Topic::Features, Topic::Examples] {
        topics.ensure(name(topic), count, topic.policy())?;
    }
    for topic in [Topic::Embeddings, Topic::Epochs, Topic::Progress, Topic::DeadLetters] {
        topics.ensure(name(topic), 1, topic.policy())?;
    }
    Ok(count)
}

/// One of generators that say the same of themselves.
fn one_of(generators: &[Box<dyn Generate>]) -> Result<&dyn Generate> {
    const HINT: &str = "a generator for each thread, all of one configuration";
    let Some((first, others)) = generators.split_first() else {
        return Err(Error::fatal("start the generators", "there is none", HINT));
    };
    let says = |generator: &dyn Generate| {
        [generator.model(), generator.prompt_version(), generator.parameters()].map(str::to_owned)
    };
    match others.iter().all(|other| says(&**other) == says(&**first)) {
        true => Ok(&**first),
        false => Err(Error::fatal("start the generators", "they differ", HINT)),
    }
}

/// The bounds of the committed epoch; `None` for a job that hasn't committed any.
pub(crate) fn bounds_at(records: &[EpochRecord], committed: i64) -> Result<Option<&EpochRecord>> {
    let found = records.iter().find(|record| record.epoch == committed);
    if committed > 0 && found.is_none() {
        return Err(Error::fatal(
            "recover",
            format!("epoch {committed} is committed and its bounds are gone"),
            "the log of bounds must be kept as long as the inputs: start a new job on the same inputs",
        ));
    }
    Ok(found)
}

/// The job's own progress. Another job's on the same topic means that it owns the outputs too: both
/// would take the other's records for leftovers.
pub(crate) fn own_progress(all: Vec<Progress>, topic: &str, job: &str) -> Result<Option<Progress>> {
    match all.iter().find(|progress| progress.job != job) {
        Some(other) if !all.iter().any(|progress| progress.job == job) => Err(Error::fatal(
            "start the job",
            format!("the outputs on {topic} belong to job {}", other.job),
            "a new job needs its own outputs: set [topics] suffix, or another state folder",
        )),
        _ => Ok(all.into_iter().find(|progress| progress.job == job)),
    }
}

/// The newest progress of every job on the topic.
pub(crate) fn read_progress(topics: &mut dyn Topics, topic: &str) -> Result<Vec<Progress>> {
    let mut progress: BTreeMap<String, Progress> = BTreeMap::new();
    let mut unreadable = None;
    epochs::read_whole(topics, topic, |record| match record.value.as_deref().map(Progress::decode) {
        Some(Ok(read)) => {
            progress.insert(read.job.clone(), read);
        }
        Some(Err(error)) => unreadable = Some(error),
        _ => {}
    })?;
    if let Some(error) = unreadable {
        return Err(Error::fatal(
            format!("read progress on {topic}"),
            error,
            "was it written by a newer version? run that one",
        ));
    }
    let newer = |version: &str| {
        version.parse::<u32>().unwrap_or(u32::MAX) > WRITER_VERSION.parse::<u32>().unwrap_or_default()
    };
    if let Some(read) = progress.values().find(|read| newer(&read.writer_version)) {
        return Err(Error::fatal(
            format!("read progress on {topic}"),
            format!("it has the writer version {}, this program {WRITER_VERSION}", read.writer_version),
            "a newer version has taken the job over: run that one",
        ));
    }
    Ok(progress.into_values().collect())
}

/// Refuses a configuration that would give other outputs from the same logs.
fn check_fit(records: &[EpochRecord], config: &str, actives: &Actives) -> Result<()> {
    check_semantics(records, config)?;
    check_encoder(records, &actives.encoder)
}

/// Refuses other semantics than the recorded ones.
pub(crate) fn check_semantics(records: &[EpochRecord], config: &str) -> Result<()> {
    let Some(last) = records.last() else { return Ok(()) };
    if last.config_digest != config_digest(config).hex() {
        let recorded = records.iter().rev().find_map(|record| record.config.as_deref()).unwrap_or_default();
        return Err(Error::fatal(
            "start the job",
            format!("its [semantics] differ from the recorded ones: {recorded}"),
            "give the job another name and [topics] suffix, or state folder: a new job recomputes and pays no call twice",
        ));
    }
    Ok(())
}

/// Refuses another encoder than the recorded one.
pub(crate) fn check_encoder(records: &[EpochRecord], encoder: &str) -> Result<()> {
    let Some(last) = records.last() else { return Ok(()) };
    if last.actives.encoder != encoder {
        return Err(Error::fatal(
            "start the job",
            format!("its encoder {encoder} isn't the recorded {}", last.actives.encoder),
            "give the job another name and [topics] suffix, or state folder: vectors of two encoders don't compare",
        ));
    }
    Ok(())
}
