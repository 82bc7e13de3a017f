//! Starting a job: predecessors are fenced, *then* progress and bounds are read, recorded epochs are
//! replayed. What doesn't fit is refused by name.

use super::commit::STORE_PAUSE;
use super::outputs::Place;
use super::truncation::Truncation;
use super::{Commit, Job, Options, Parts, Receipt, Started, Totals};
use crate::engine::Engine;
use crate::epochs;
use crate::keeper::Keeper;
use crate::points::PointStore;
use crate::requester::Requester;
use crate::sink::Sink;
use crate::sources::{Judge, Source};
use crate::texts::Texts;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::epoch::{Actives, EpochRecord, Progress, WRITER_VERSION, config_digest};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
        let Parts { mut topics, formats, generators, validator, encoder, weights, points, snapshots } = parts;
        if semantics.search == Search::Stored && points.is_none() {
            return Err(Error::fatal(
                "start the job",
                "semantics.search is stored and there is no store of points",
                "add the section [qdrant]",
            ));
        }
        // A job that isn't whole fences nobody.
        options.cluster.gather(&options.job, options.workers, &semantics, &weights)?;
        let mut points =
            points.map(|(store, over_fetch)| PointStore::new(store, over_fetch, encoder.width()));
        let names = options.names.clone();
        let partitions = prepare(&mut *topics, &options)?;
        // Fence first: what is read after this can't change under us.
        let bounds = topics.writer(&format!("{}.epochs", options.job))?;
        let writer = topics.writer(&options.job)?;
        let progress = own_progress(&mut *topics, names.of(Topic::Progress), &options.job)?;
        let records = epochs::load(&mut *topics, names.of(Topic::Epochs), &options.job)?;
        let committed = progress.as_ref().map_or(0, |progress| progress.epoch);
        bounds_at(&records, committed)?;
        let place = Place::find(&mut *topics, &options, &records, committed)?;
        if let Some(points) = &mut points {
            points.place(place.collection.as_deref(), place.base, options.bounded.is_none());
        }
        let names = place.names.clone();
        let config = semantics.canonical();
        let generator = one_of(&generators)?;
        let actives = Arc::new(Actives {
            llm_model: generator.model().to_owned(),
            prompt_version: generator.prompt_version().to_owned(),
            parameters: generator.parameters().to_owned(),
            encoder: encoder.id().to_owned(),
            ict_weights: weights.serving().version().to_owned(),
        });
        check_fit(&records, &config, &actives)?;
        let by_hand = options.by_hand;
        let mut keeper =
            snapshots.map(|(store, interval)| Keeper::new(store, &options.job, interval, by_hand));
        let snapshot = match &mut keeper {
            Some(keeper) if committed > 0 => keeper.find(&records, place.snapshot)?,
            _ => None,
        };
        if let Some(keeper) = &mut keeper {
            keeper.mend(&records)?;
        }
        let truncation =
            Truncation::look(&mut *topics, &names, &records, snapshot.as_ref(), options.accept_truncated)?;
        let mut sink = Sink::open(
            &mut *topics,
            writer,
            names.clone(),
            &options.job,
            partitions,
            semantics.clone(),
            place.maxima,
        )?;
        let bounded = options.bounded.clone().unwrap_or_default();
        if options.bounded.is_some() {
            sink.of_backfill(bounded.from);
        }
        let mut sources = Vec::new();
        let mut ends_at_start = BTreeMap::new();
        for topic in Topic::INPUTS {
            let name = names.of(topic);
            let count = topics.partitions(name)?.unwrap_or(1);
            ends_at_start.insert(topic, topics.ends(name)?);
            let ends = snapshot.as_ref().filter(|_| topic == Topic::Interactions);
            let from = ends.and_then(|record| record.ends.get(topic.name()).cloned());
            let from = from.unwrap_or_else(|| vec![0; count as usize]);
            let mut source = Source::open(&mut *topics, topic, name, &from)?;
            if let Some(until) = bounded.until.get(&topic) {
                ends_at_start.insert(topic, until.clone());
                source.bound(until.clone());
            }
            sources.push(source);
        }
        let candidate_partitions = topics.partitions(names.of(Topic::Candidates))?.unwrap_or(1);
        let mut judge = Judge::new(
            semantics.clone(),
            formats,
            partitions,
            candidate_partitions,
            (encoder.id(), encoder.width()),
        );
        judge.limit(options.dead_letters);
        for erasure in records.iter().flat_map(|record| &record.erasures).chain(&bounded.erasures) {
            judge.erase(erasure);
        }
        let options = Options { names: names.clone(), ..options };
        let requester = Requester::start(
            names,
            (semantics.partitioner, partitions),
            semantics.pair_ttl_ms,
            generators,
            validator,
            encoder,
            (options.calls_file.as_deref(), by_hand),
        )?;
        let engine = if by_hand {
            Engine::here(&semantics, &weights)
        } else {
            Engine::start_in(&options.cluster, options.workers, semantics.clone(), weights.clone())?
        };
        let mut job = Job {
            topics,
            bounds,
            sink,
            sources,
            judge,
            texts: Texts::default(),
            versions: weights,
            beside: None,
            engine,
            requester,
            points,
            keeper,
            truncation,
            receipt: Receipt::default(),
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
            left_out: 0,
            left_behind: place.left_behind,
            totals: Totals::default(),
            dead_letters: BTreeMap::new(),
            journal_retries: 0,
            commit: Commit::default(),
        };
        match snapshot {
            None => Ok((job, records)),
            Some(snapshot) => {
                job.restore(&snapshot)?;
                let later = records.into_iter().filter(|record| record.epoch > snapshot.epoch).collect();
                Ok((job, later))
            }
        }
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
        if let Some(found) = topics.partitions(name(topic))?.filter(|found| *found != count) {
            return Err(Error::fatal(
                format!("start a job on {}", name(Topic::Interactions)),
                format!("it has {count} partitions, and {} has {found}", name(topic)),
                "a changed partition count moves users to other partitions: start a new job on topics of one count",
            ));
        }
        topics.ensure(name(topic), count, topic.policy())?;
    }
    if let Some(shadow) = options.names.shadow() {
        topics.ensure(shadow, count, Topic::Features.policy())?;
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

/// The job's own progress. Another job's on the same topic means that it owns the outputs too, readable or
/// not: both would take the other's records for leftovers.
///
/// # Errors
/// Those of [`read_progress`]; `Fatal` where the outputs are another job's.
pub(crate) fn own_progress(topics: &mut dyn Topics, topic: &str, job: &str) -> Result<Option<Progress>> {
    let mut standing = Standing::read(topics, topic)?;
    standing.judge(topic, Some(job))?;
    let own = standing.readable.remove(job);
    match standing.readable.keys().chain(standing.unreadable.keys()).next() {
        Some(other) if own.is_none() => Err(Error::fatal(
            "start the job",
            format!("the outputs on {topic} belong to job {other}"),
            "a new job needs its own outputs: set [topics] suffix, or another state folder",
        )),
        _ => Ok(own),
    }
}

/// The newest progress of every job on the topic that can be read.
///
/// # Errors
/// `Fatal` where this job's can't be read or is a newer version's; where no job is named, where any can't.
pub(crate) fn read_progress(
    topics: &mut dyn Topics,
    topic: &str,
    job: Option<&str>,
) -> Result<Vec<Progress>> {
    let standing = Standing::read(topics, topic)?;
    standing.judge(topic, job)?;
    Ok(standing.readable.into_values().collect())
}

/// What stands on `progress`, by job: what compaction would leave, whether it has run or not.
#[derive(Default)]
struct Standing {
    readable: BTreeMap<String, Progress>,
    /// Jobs whose newest record can't be read, and why.
    unreadable: BTreeMap<String, String>,
}

impl Standing {
    fn read(topics: &mut dyn Topics, topic: &str) -> Result<Self> {
        let mut standing = Standing::default();
        let mut strays = 0;
        epochs::read_whole(topics, topic, |record| {
            let named = record.key.as_deref().and_then(Progress::job_of);
            match (record.value.as_deref().map(Progress::decode), named) {
                (Some(Ok(read)), _) => {
                    standing.unreadable.remove(&read.job);
                    standing.readable.insert(read.job.clone(), read);
                }
                (Some(Err(error)), Some(job)) => {
                    standing.readable.remove(&job);
                    standing.unreadable.insert(job, error.to_string());
                }
                // No job writes such a key: it says nothing about any.
                (Some(Err(_)), None) => strays += 1,
                // What can't be read may be taken away; what can stays, since only its loss could follow.
                (None, Some(job)) => drop(standing.unreadable.remove(&job)),
                (None, None) => {}
            }
        })?;
        if strays > 0 {
            tracing::warn!(topic, strays, "passed over records that no job has written");
        }
        Ok(standing)
    }

    /// Refuses what this job, or any where none is named, can't go on from. Other jobs' are no concern of it.
    fn judge(&self, topic: &str, job: Option<&str>) -> Result<()> {
        let concerns = |of: &str| job.is_none_or(|job| job == of);
        if let Some((of, error)) = self.unreadable.iter().find(|(of, _)| concerns(of)) {
            return Err(Error::fatal(
                format!("read the progress of job {of} on {topic}"),
                error,
                "was it written by a newer version? run that one",
            ));
        }
        for (of, error) in &self.unreadable {
            tracing::warn!(topic, job = of, error, "another job's progress can't be read");
        }
        let newer = |version: &str| {
            version.parse::<u32>().unwrap_or(u32::MAX) > WRITER_VERSION.parse::<u32>().unwrap_or_default()
        };
        let taken = |read: &&Progress| concerns(&read.job) && newer(&read.writer_version);
        match self.readable.values().find(taken) {
            None => Ok(()),
            Some(read) => Err(Error::fatal(
                format!("read the progress of job {} on {topic}", read.job),
                format!("it has the writer version {}, this program {WRITER_VERSION}", read.writer_version),
                "a newer version has taken the job over: run that one",
            )),
        }
    }
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
