//! A job's snapshots: what [`crate::job`] exposes, as telemetry shows it.
//!
//! The job knows nothing of this. Its loop lets an [`Observer`] look at it between two steps; the
//! server reads what the observer published. Snapshots are taken at most every [`SNAPSHOT_EVERY`],
//! durations and ages of every commit.

use crate::job::{Job, MAX_UNJOURNALED, Step};
use crate::points::Figures;
use crate::weights;
use ictflow_connectors::llm::health::{Health, Outcome};
use ictflow_connectors::telemetry::server::Server;
use ictflow_connectors::telemetry::status::{
    Cot, Failures, Models, Phase, PointsStatus, Queue, Service, Shadow, SourceStatus, Stalled, Status, Totals,
};
use ictflow_connectors::telemetry::{Config, Telemetry};
use ictflow_connectors::{Error, Result, clock};
use ictflow_schemas::Millis;
use ictflow_schemas::topic::Topic;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The least time between two snapshots; a job without input turns a hundred times a second.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(200);

/// Input ends that were seen at a time and aren't all passed yet.
type Mark = (Millis, Vec<Vec<i64>>);

/// Looks at a job for its telemetry.
pub struct Observer {
    telemetry: Arc<Telemetry>,
    server: Option<Server>,
    status: Status,
    begun: Instant,
    snapshot: Option<Instant>,
    lag_every: Duration,
    measured: Option<Instant>,
    /// The ends at the last measurement.
    ends: Vec<Vec<i64>>,
    input: Option<Mark>,
    output: Option<Mark>,
    lag_failures: u64,
    /// The counts of the jobs that this process ran before.
    before: Status,
}

impl Observer {
    /// Starts telemetry for a job of this name, and the server unless the configuration says `off`.
    ///
    /// # Errors
    /// `Fatal` where the server can't listen.
    pub fn start(config: &Config, job: &str) -> Result<Self> {
        let telemetry = Telemetry::new(config.clone());
        let status = Status { job: job.to_owned(), ..(*telemetry.status()).clone() };
        telemetry.publish(status.clone());
        let server = Server::start(telemetry.clone())?;
        Ok(Observer {
            lag_every: Duration::from_millis(config.lag_every_ms),
            telemetry,
            server,
            status,
            begun: Instant::now(),
            snapshot: None,
            measured: None,
            ends: Vec::new(),
            input: None,
            output: None,
            lag_failures: 0,
            before: Status::default(),
        })
    }

    /// Where the server listens, `None` where it is off.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// The snapshot that was published last.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Says that the job's loop turned, without a look at the job.
    pub fn turn(&self) {
        self.telemetry.turn();
    }

    /// Looks at a job that replays.
    pub fn replayed(&mut self, job: &Job) {
        self.telemetry.turn();
        self.status.phase = Phase::Replaying;
        self.status.stalled = None;
        self.snapshot(job, false);
    }

    /// Says that a failure ended the job and that it is started anew after a pause; `attempt` counts the
    /// starts in a row that committed nothing.
    pub fn stalled(&mut self, error: &Error, attempt: u32) {
        self.telemetry.turn();
        let now = clock::now_ms();
        let since = self.status.stalled.as_ref().map_or(now, |stalled| stalled.since);
        self.status.phase = Phase::Stalled;
        self.status.stalled = Some(Stalled { since, hint: error.hint, attempt });
        self.status.behind_since = None;
        self.status.taken_at = now;
        self.telemetry.publish(self.status.clone());
    }

    /// Says that a stalled job is being started anew. What it counted before goes on counting.
    pub fn restarting(&mut self) {
        self.telemetry.turn();
        self.status.restarts += 1;
        self.before = self.status.clone();
        self.begun = Instant::now();
        self.telemetry.publish(self.status.clone());
    }

    /// Takes what the watcher of the directory of weights did.
    pub fn models(&mut self, figures: weights::Figures) {
        self.status.models =
            Models { switched: figures.switched, refused: figures.refused, ..self.status.models };
    }

    /// Looks at a job whose start is over.
    pub fn started(&mut self, job: &Job) {
        let took = self.begun.elapsed();
        self.telemetry.metrics().recovery(took);
        self.status.recovery_ms = Some(milliseconds(took));
        self.status.phase = Phase::Running;
        self.snapshot(job, true);
    }

    /// Looks at a job after a step.
    pub fn step(&mut self, job: &mut Job, step: &Step) {
        self.telemetry.turn();
        if step.epoch.is_some() {
            self.committed(job);
        }
        self.measure(job, false);
        self.snapshot(job, false);
    }

    /// Looks at a job as it stands, whenever it last looked.
    pub fn look(&mut self, job: &mut Job) {
        self.telemetry.turn();
        self.measure(job, true);
        self.snapshot(job, true);
    }

    /// Looks at a job that has ended.
    pub fn finish(&mut self, job: &mut Job) {
        self.status.phase = Phase::Stopped;
        self.look(job);
    }

    fn committed(&mut self, job: &Job) {
        let commit = job.last_commit();
        let metrics = self.telemetry.metrics();
        metrics.epoch(commit.took, commit.transaction);
        if let Some(points) = job.points() {
            metrics.points(points.write_took, points.lookup_took);
        }
        for (age, features) in &commit.ages {
            metrics.event_age(*age, *features);
        }
        if let Some(newest) = commit.ages.iter().map(|(age, _)| *age).min() {
            self.status.event_age_ms = Some(newest);
        }
        self.status.epoch_ms = milliseconds(commit.took);
        self.status.commit_ms = milliseconds(commit.transaction);
        self.status.committed_at = Some(clock::now_ms());
        self.status.behind_since = None;
    }

    /// Asks where the input logs end, now and then, and sets the frontiers that are passed.
    fn measure(&mut self, job: &mut Job, at_once: bool) {
        if at_once || self.measured.is_none_or(|measured| measured.elapsed() >= self.lag_every) {
            self.measured = Some(Instant::now());
            let now = clock::now_ms();
            match job.input_ends() {
                Ok(ends) => {
                    let mark = || Some((now, ends.clone()));
                    self.input = self.input.take().or_else(mark);
                    self.output = self.output.take().or_else(mark);
                    self.ends = ends;
                }
                // The job's own reads say whether the store is gone; a lag that isn't measured once
                // is no reason to stop.
                Err(error) => {
                    tracing::debug!(%error, "the lag couldn't be measured");
                    self.lag_failures += 1;
                }
            }
        }
        let passed = |mark: &Mark, at: &dyn Fn(usize) -> Vec<i64>| {
            mark.1
                .iter()
                .enumerate()
                .all(|(source, ends)| at(source).iter().zip(ends).all(|(at, end)| at >= end))
        };
        let sources = job.sources();
        if let Some(mark) = self.input.take_if(|mark| passed(mark, &|n| sources[n].positions())) {
            self.status.frontier_input = Some(mark.0);
        }
        if job.sink().publishing()
            && let Some(mark) = self.output.take_if(|mark| passed(mark, &|n| sources[n].reached()))
        {
            self.status.frontier_output = Some(mark.0);
        }
    }

    fn snapshot(&mut self, job: &Job, at_once: bool) {
        if !at_once && self.snapshot.is_some_and(|last| last.elapsed() < SNAPSHOT_EVERY) {
            return;
        }
        self.snapshot = Some(Instant::now());
        let times = job.requester().times().take();
        times.llm.into_iter().for_each(|took| self.telemetry.metrics().llm_call(took));
        times.encoder.into_iter().for_each(|took| self.telemetry.metrics().embed_call(took));
        let status = &mut self.status;
        status.taken_at = clock::now_ms();
        status.epoch = job.epoch();
        status.committed = job.committed();
        status.caught_up = job.caught_up();
        status.publishing = job.sink().publishing();
        status.versions = versions(job);
        status.models.shadow = job.sink().agreement().map(|agreement| Shadow {
            pairs: agreement.pairs,
            mean: agreement.mean,
            least: agreement.least,
        });
        status.sources = sources(job, &self.ends);
        status.queues = queues(job);
        status.live = live(job);
        status.totals = totals(job);
        status.cot = cots(job);
        status.dead_letters = job.dead_letters().clone();
        if status.caught_up {
            status.frontier_cot = Some(status.cot.oldest_pending.unwrap_or(status.taken_at));
        }
        let waits = job.sources().iter().any(|source| source.waiting() > 0)
            || status.sources.iter().flat_map(|source| &source.lag).any(|lag| *lag > 0);
        status.behind_since = if waits { status.behind_since.or_else(|| Some(Instant::now())) } else { None };
        status.service = job.requester().health().map(|health| service(health));
        status.points = job.points().map(|figures| points(&figures, job.stalled().is_some()));
        let counts = [
            job.requester().accounting.interrupted,
            job.journal_retries(),
            self.lag_failures,
            job.points().map_or(0, |figures| figures.failures),
        ];
        let counts = std::array::from_fn(|n| {
            counts[n]
                + if n == 2 { 0 } else { self.before.errors.get(n).map_or(0, |failures| failures.count) }
        });
        note_failures(&mut status.errors, counts, status.taken_at);
        status.add_counts(&self.before);
        self.telemetry.publish(self.status.clone());
    }
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1_000.0
}

fn versions(job: &Job) -> BTreeMap<&'static str, String> {
    let actives = job.actives();
    BTreeMap::from([
        ("encoder", actives.encoder.clone()),
        ("ict_weights", actives.ict_weights.clone()),
        ("llm_model", actives.llm_model.clone()),
        ("prompt_version", actives.prompt_version.clone()),
    ])
}

/// The sources; `ends` are where their logs ended at the last measurement, empty before the first.
fn sources(job: &Job, ends: &[Vec<i64>]) -> Vec<SourceStatus> {
    let sources = job.sources().iter().enumerate();
    sources
        .map(|(n, source)| {
            let (records, bytes) = source.read();
            let reached = source.reached();
            let lag = |(end, reached): (&i64, &i64)| u64::try_from(end - reached).unwrap_or(0);
            let lag =
                ends.get(n).map(|ends| ends.iter().zip(&reached).map(lag).collect()).unwrap_or_default();
            SourceStatus { topic: source.topic().name(), records, bytes, lag }
        })
        .collect()
}

fn queues(job: &Job) -> Vec<Queue> {
    let requester = job.requester();
    let queue = |queue, depth: usize, limit: Option<usize>| Queue {
        queue,
        depth: depth as u64,
        limit: limit.map(|limit| limit as u64),
    };
    let (handed, most) = requester.handed();
    let mut queues = vec![
        queue("generate", requester.queued(), None),
        queue("calls", handed, Some(most)),
        queue("embed", requester.embed_queued(), None),
        queue("unjournaled", job.unjournaled(), Some(MAX_UNJOURNALED)),
    ];
    queues.extend(job.sources().iter().map(|source| {
        let name = match source.topic() {
            Topic::Items => "read_ahead_items",
            Topic::Candidates => "read_ahead_candidates",
            Topic::Embeddings => "read_ahead_embeddings",
            Topic::Cot => "read_ahead_cot",
            _ => "read_ahead_interactions",
        };
        queue(name, source.waiting(), Some(job.read_ahead()))
    }));
    queues
}

fn live(job: &Job) -> BTreeMap<&'static str, u64> {
    let sink = job.sink();
    BTreeMap::from([
        ("demonstrations", job.demonstrations().len() as u64),
        ("demonstrations_left_out", job.demonstrations_left_out() as u64),
        ("features", sink.features_live() as u64),
        ("features_full", sink.features_full_k() as u64),
        ("items", job.items() as u64),
        ("pairs", sink.pairs_live() as u64),
        ("users", u64::try_from(job.history_users()).unwrap_or(0)),
    ])
}

fn service(health: &Health) -> Service {
    Service {
        requests: Outcome::ALL.map(|outcome| (outcome.word(), health.requests(outcome))).to_vec(),
        breaker_open: health.breaker_open(),
        budget_left: health.budget_left(),
    }
}

fn points(figures: &Figures, stalled: bool) -> PointsStatus {
    PointsStatus {
        upserted: figures.upserted,
        deleted: figures.deleted,
        lookups: figures.lookups,
        recalled: figures.recalled,
        measured: figures.measured,
        stalled,
    }
}

fn totals(job: &Job) -> Totals {
    let totals = job.totals();
    Totals {
        epochs: totals.epochs,
        features: totals.committed.features,
        retractions: totals.committed.retractions,
        examples: totals.committed.examples,
        dead_letters: totals.committed.dead_letters,
        seen: job.judgements().seen,
        embeddings: job.requester().accounting.embeddings,
    }
}

fn cots(job: &Job) -> Cot {
    let (requester, accounting) = (job.requester(), &job.requester().accounting);
    let failed = job.failed().iter().filter(|key| requester.wanted().contains(key)).count();
    let tokens = |count: i64| u64::try_from(count).unwrap_or(0);
    Cot {
        wanted: requester.wanted().len() as u64,
        answered: requester.answered() as u64,
        queued: requester.queued() as u64,
        in_flight: requester.in_flight() as u64,
        failed: failed as u64,
        called: accounting.called,
        first_calls: accounting.first_calls,
        attempts: accounting.attempts,
        cancelled: accounting.cancelled,
        ok: accounting.ok,
        refused: accounting.failed,
        interrupted: accounting.interrupted,
        cache_hits: job.requester().accounting.found_answered,
        tokens_in: tokens(accounting.tokens_in),
        tokens_out: tokens(accounting.tokens_out),
        oldest_pending: job.requester().oldest_pending(),
    }
}

/// Brings the failures up to these counts; those that grew did so now.
fn note_failures(failures: &mut Vec<Failures>, counts: [u64; 4], now: Millis) {
    const HINTS: [&str; 4] = [
        "the LLM's endpoint answers late or with errors; its keys are asked again",
        "answers can't be written to their log; they are kept and written again",
        "the store doesn't say where the inputs end; the lag shown is old",
        "the vector store doesn't acknowledge; its epoch waits and is tried again",
    ];
    if failures.is_empty() {
        let kinds = ictflow_connectors::telemetry::metrics::ERRORS;
        failures.extend(kinds.into_iter().zip(HINTS).map(|((component, stage, error_type), hint)| {
            Failures { component, stage, error_type, hint, ..Failures::default() }
        }));
    }
    for (failures, count) in failures.iter_mut().zip(counts) {
        if count > failures.count {
            failures.last_at = now;
        }
        failures.count = count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_keep_the_time_of_their_last_growth() {
        let mut failures = Vec::new();
        note_failures(&mut failures, [0, 2, 0, 0], 10);
        note_failures(&mut failures, [0, 2, 1, 0], 20);
        let seen: Vec<(u64, Millis)> = failures.iter().map(|f| (f.count, f.last_at)).collect();
        assert_eq!(seen, [(0, 0), (2, 10), (1, 20), (0, 0)]);
    }
}
