//! An epoch from its bounds to its commit, once; or run again where it is committed already.

use super::{Commit, Edge, Job, Uncommitted};
use crate::epochs;
use crate::pipeline::{EpochInput, EpochOutput};
use crate::points::SLICE;
use crate::queue::Activity;
use crate::sink::Committed;
use crate::sources::Harvest;
use ictflow_connectors::{Disposition, Result, clock};
use ictflow_operators::clock::Clock;
use ictflow_operators::ict::Weights;
use ictflow_operators::recovery::{Extent, Part, Recovery, Saved};
use ictflow_schemas::config::Search;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::Topic;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest pause between two tries of a commit while recorded epochs are run again.
pub(super) const STORE_PAUSE: Duration = Duration::from_millis(200);

/// The dataflow's times of one epoch: [`GROUPS`] for its logs and for states that are put back, one for
/// rings that are filled again, one for what the store of points answers, one for saving.
const TIMES: u64 = 32;

/// Groups of shards in which users' states are put back, to bound memory.
pub(super) const GROUPS: usize = 16;

/// The dataflow's time for what an epoch's logs bring, and for the first group of states.
fn first_time(epoch: i64) -> u64 {
    TIMES * epoch as u64
}

/// The dataflow's time for rings that an erasure left with too few labels.
fn refill_time(epoch: i64) -> u64 {
    first_time(epoch) + GROUPS as u64
}

/// The dataflow's time for what the store of points answers.
fn found_time(epoch: i64) -> u64 {
    refill_time(epoch) + 1
}

/// The dataflow's time for saving users' states.
fn save_time(epoch: i64) -> u64 {
    found_time(epoch) + 1
}

fn clock_of(record: &EpochRecord, publish: bool, beside: Option<&Arc<Weights>>) -> Clock {
    Clock {
        maxima: record.maxima.as_slice().into(),
        now: record.clock,
        publish,
        actives: Arc::new(record.actives.clone()),
        shadow: beside.map(|weights| weights.version().into()),
    }
}

/// Refuses an epoch that holds a record with which a partition has more dead letters than it may.
fn within_ratio(record: &EpochRecord, harvest: &Harvest) -> Result<()> {
    harvest.crossed.as_ref().map_or(Ok(()), |crossed| Err(crossed.stop(record.epoch)))
}

impl Job {
    /// Commits the bounds of a new epoch, runs it and commits its outputs.
    ///
    /// An epoch with too many dead letters is refused before its bounds are: once the cause is mended, its
    /// records may be judged otherwise, and bounds on record say how they were.
    pub(super) fn commit(
        &mut self,
        record: EpochRecord,
        harvest: Harvest,
    ) -> Result<Option<(i64, Committed)>> {
        within_ratio(&record, &harvest)?;
        epochs::commit(&mut *self.bounds, self.options.names.of(Topic::Epochs), &record)?;
        self.options.edges.pass(Edge::BoundsRecorded, record.epoch);
        self.run_and_commit(record, harvest)
    }

    fn run_and_commit(
        &mut self,
        record: EpochRecord,
        mut harvest: Harvest,
    ) -> Result<Option<(i64, Committed)>> {
        let begun = Instant::now();
        self.last = Some(record.clone());
        self.look_caught_up();
        self.publish |= self.caught_up;
        // An epoch that a predecessor recorded under versions that aren't there any more publishes nothing: its
        // vectors would be made with today's weights under yesterday's name. The next epoch publishes all.
        let weights = self.weights_of(&record);
        let publish = self.publish && weights.is_some();
        self.beside = self.shadow();
        let activity = Activity::of(&harvest.input, record.clock);
        let strays = self.answers_of_erased(&harvest.input);
        let output = self.run(&record, std::mem::take(&mut harvest.input), publish);
        // The workers hold them by now.
        drop(weights);
        if let Some(points) = &mut self.points {
            points.begin();
        }
        self.uncommitted = Some(Uncommitted {
            begun,
            record,
            publish,
            harvest,
            activity,
            output,
            strays,
            written: false,
            found: Vec::new(),
            looked_up: false,
            stalled: None,
        });
        self.finish(Duration::ZERO)
    }

    /// Commits the epoch that has run, once its points are acknowledged. Gives the epoch, or nothing
    /// where it has to be tried again; then it waits at most `wait` before it tries.
    pub(super) fn finish(&mut self, wait: Duration) -> Result<Option<(i64, Committed)>> {
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
            Ok(true) => {}
            Ok(false) => {
                waiting.stalled = None;
                self.uncommitted = Some(waiting);
                return Ok(None);
            }
            Err(error) => {
                let Disposition::Retry { after } = error.disposition else { return Err(error) };
                tracing::warn!(%error, epoch = waiting.record.epoch, "the epoch waits for the store of points");
                waiting.stalled = Some((error.to_string(), Instant::now() + after));
                self.uncommitted = Some(waiting);
                return Ok(None);
            }
        }
        self.options.edges.pass(Edge::PointsAcknowledged, waiting.record.epoch);
        let Uncommitted { begun, record, publish, harvest, activity, output, strays, .. } = waiting;
        let erased = self.purge(&record)?;
        let offsets: Vec<(String, u32, i64)> = self
            .sources
            .iter()
            .flat_map(|source| {
                let name = self.options.names.of(source.topic()).to_owned();
                source.ends().iter().enumerate().map(move |(p, end)| (name.clone(), p as u32, *end))
            })
            .collect();
        self.options.edges.pass(Edge::BeforeCommit, record.epoch);
        let transaction = Instant::now();
        let committed =
            self.sink.commit(&record, publish, &output, &harvest.dead_letters, &erased, &offsets)?;
        let now = clock::now_ms();
        let ages = self.sink.published().iter().filter_map(|(user, vectors)| {
            activity.users.get(user).map(|time| (now.saturating_sub(*time).max(0), *vectors))
        });
        self.commit =
            Commit { took: begun.elapsed(), transaction: transaction.elapsed(), ages: ages.collect() };
        for letter in &harvest.dead_letters {
            *self.dead_letters.entry((letter.stage.clone(), letter.reason.clone())).or_default() += 1;
        }
        self.options.edges.pass(Edge::Committed, record.epoch);
        self.committed = record.epoch;
        self.left_behind.clear();
        // A predecessor's bounds, committed now, don't say what this start has accepted.
        if !record.starts.is_empty() {
            self.truncation.to_record = None;
        }
        if let Some(epoch) = self.keeper.as_ref().and_then(|keeper| keeper.figures.epoch) {
            self.sink.note_snapshot(epoch);
        }
        self.requester.apply(&output, &harvest.answered, &harvest.embedded, &activity);
        self.retract_strays(strays);
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

    /// Writes a slice of an epoch's points or looks up one of its pairs, and says whether all is done.
    /// What was done stays done when it is tried again.
    fn write_points(&mut self, waiting: &mut Uncommitted) -> Result<bool> {
        let Some(points) = &mut self.points else { return Ok(true) };
        if !waiting.publish {
            // While the job catches up nobody reads: the first epoch that publishes writes them all.
            points.fall_behind();
            return Ok(true);
        }
        let epoch = waiting.record.epoch;
        if !waiting.written {
            waiting.written = points.write(epoch, &self.demonstrations, &waiting.output.demonstrations)?;
            if !waiting.written {
                return Ok(false);
            }
        }
        if self.semantics.search == Search::Exact || waiting.looked_up {
            return Ok(true);
        }
        let left = &waiting.output.lookups[waiting.found.len()..];
        let slice = &left[..left.len().min(SLICE)];
        match points.find(slice, self.semantics.demonstrations) {
            Ok(found) => waiting.found.extend(found),
            Err(error) => {
                // A store that lost its points has to have them again first.
                waiting.written &= points.in_step();
                return Err(error);
            }
        }
        if waiting.found.len() < waiting.output.lookups.len() {
            return Ok(false);
        }
        let input = EpochInput { found: std::mem::take(&mut waiting.found), ..EpochInput::default() };
        let second =
            self.engine.run(found_time(epoch), clock_of(&waiting.record, true, self.beside.as_ref()), input);
        points.figures.recalled += second.recall.0;
        points.figures.measured += second.recall.1;
        waiting.output.follow(second);
        waiting.looked_up = true;
        Ok(true)
    }

    /// Runs a recorded epoch again. One that is committed commits nothing; one that isn't is
    /// committed now.
    pub(super) fn replay(&mut self, record: EpochRecord) -> Result<()> {
        let nothing = Vec::new();
        let mut harvest = self
            .harvest(|source| source.take_to(record.ends.get(source.topic().name()).unwrap_or(&nothing)))?;
        self.truncation.check(&record, self.last.as_ref(), &self.judge.maxima())?;
        self.judge.raise(&record.maxima);
        if record.epoch > self.committed {
            // A predecessor's bounds, under another limit.
            within_ratio(&record, &harvest)?;
            self.run_and_commit(record, harvest)?;
            return Ok(());
        }
        // Committed, perhaps under a higher limit.
        self.judge.pass();
        let activity = Activity::of(&harvest.input, record.clock);
        let output = self.run(&record, std::mem::take(&mut harvest.input), false);
        self.restore_used(&record);
        self.options.edges.pass(Edge::Rebuilding, record.epoch);
        self.sink.replay(&output.examples);
        self.requester.apply(&output, &harvest.answered, &harvest.embedded, &activity);
        self.last = Some(record);
        Ok(())
    }

    /// Saves users' states as they are after the last epoch.
    pub(super) fn save_states(&mut self, extent: Extent) -> Vec<Saved> {
        let Some(record) = &self.last else { return Vec::new() };
        let recovery = (0..self.engine.peers() as u64).map(|worker| Recovery::Save(worker, extent)).collect();
        let input = EpochInput { recovery, ..EpochInput::default() };
        let clock = clock_of(record, self.sink.publishing(), self.beside.as_ref());
        let output = self.engine.run(save_time(record.epoch), clock, input);
        let mut saved = output.saved;
        saved.extend(self.judge.save(extent));
        saved
    }

    /// Runs one of an epoch's first [`GROUPS`] times over states that are put back; with the first one the
    /// epoch's logs.
    pub(super) fn restore_group(
        &mut self,
        record: &EpochRecord,
        group: usize,
        states: Vec<Saved>,
        input: EpochInput,
    ) -> EpochOutput {
        let (windows, states): (Vec<Saved>, Vec<Saved>) =
            states.into_iter().partition(|saved| matches!(saved.part, Part::Accept | Part::Refusals));
        for saved in windows {
            self.judge.restore(saved);
        }
        let recovery = states.into_iter().map(Recovery::Restore).collect();
        let input = EpochInput { recovery, ..input };
        self.run_at(first_time(record.epoch) + group as u64, record, input, false)
    }

    /// Feeds what the standing features were made of, once the state is that of the committed epoch.
    pub(super) fn restore_used(&mut self, record: &EpochRecord) {
        if record.epoch == self.committed && self.semantics.search == Search::Stored {
            let input = EpochInput { found: self.sink.take_used(), ..EpochInput::default() };
            self.engine.run(found_time(record.epoch), clock_of(record, false, None), input);
        }
    }

    fn run(&mut self, record: &EpochRecord, mut input: EpochInput, publish: bool) -> EpochOutput {
        for erasure in &record.erasures {
            self.judge.erase(erasure);
            input.recovery.push(Recovery::Erase(erasure.user.as_str().into()));
        }
        let mut output = self.run_at(first_time(record.epoch), record, input, publish);
        let lacking = std::mem::take(&mut output.lacking);
        if !lacking.is_empty() {
            let workers = 0..self.engine.peers() as u64;
            let orders = workers
                .flat_map(|worker| lacking.iter().map(move |item| Recovery::Refill(worker, item.clone())));
            let input = EpochInput { recovery: orders.collect(), ..EpochInput::default() };
            output.follow(self.run_at(refill_time(record.epoch), record, input, publish));
        }
        output
    }

    fn run_at(&mut self, time: u64, record: &EpochRecord, input: EpochInput, publish: bool) -> EpochOutput {
        let output = self.engine.run(time, clock_of(record, publish, self.beside.as_ref()), input);
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
        self.left_out += output.left_out;
        output
    }
}
