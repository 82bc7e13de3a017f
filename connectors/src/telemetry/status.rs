//! What a job says of itself: a snapshot of numbers, without any user, item, title or text.
//!
//! The job fills it between its steps; the server only reads it. Its JSON form is `/status.json`.
//! Times are milliseconds of the wall clock unless the name says otherwise.

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// How far the process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Models are loaded, topics opened.
    #[default]
    Starting,
    /// Recorded epochs are run again.
    Replaying,
    /// Epochs are closed and committed.
    Running,
    /// A failure that may pass ended the job; it waits to be started anew.
    Stalled,
    /// The job has ended.
    Stopped,
}

/// A snapshot of a job.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// The job's name.
    pub job: String,
    /// How far the process has come.
    pub phase: Phase,
    /// What a stalled job waits for; `None` where it isn't stalled.
    pub stalled: Option<Stalled>,
    /// Times that the process began to start its job anew.
    pub restarts: u64,
    /// The last epoch that went through the dataflow; while replaying below `committed`.
    pub epoch: i64,
    /// The last committed epoch.
    pub committed: i64,
    /// Whether the input ends seen at start are passed.
    pub caught_up: bool,
    /// Whether features are published.
    pub publishing: bool,
    /// When the process started.
    pub started_at: i64,
    /// When this snapshot was taken.
    pub taken_at: i64,
    /// When the last epoch was committed.
    pub committed_at: Option<i64>,
    /// Since when input waits without any commit, for [`Status::reasons`].
    #[serde(skip)]
    pub behind_since: Option<Instant>,
    /// The versions in force, by role.
    pub versions: BTreeMap<&'static str, String>,
    /// The input topics.
    pub sources: Vec<SourceStatus>,
    /// Up to when all input was read into the job.
    pub frontier_input: Option<i64>,
    /// Up to when every wanted key was answered.
    pub frontier_cot: Option<i64>,
    /// Up to when all input is in committed and published epochs.
    pub frontier_output: Option<i64>,
    /// The age of the newest event at the last commit that published some, milliseconds.
    pub event_age_ms: Option<i64>,
    /// The queues.
    pub queues: Vec<Queue>,
    /// What stands, by kind.
    pub live: BTreeMap<&'static str, u64>,
    /// Features published, tombstones, examples, epochs and the like since start.
    pub totals: Totals,
    /// The accounting of CoTs.
    pub cot: Cot,
    /// Dead letters by (stage, reason).
    #[serde(skip)]
    pub dead_letters: BTreeMap<(String, String), u64>,
    /// How long the last epoch took, milliseconds.
    pub epoch_ms: f64,
    /// How long its transaction took, milliseconds.
    pub commit_ms: f64,
    /// How long the start took, milliseconds; `None` until the job runs.
    pub recovery_ms: Option<f64>,
    /// The service behind the generator, where there is one.
    pub service: Option<Service>,
    /// The store of points, where there is one.
    pub points: Option<PointsStatus>,
    /// Switches of the ICT weights.
    pub models: Models,
    /// Failures that didn't end the job.
    pub errors: Vec<Failures>,
}

/// What became of ICT weights that were named while the process ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Models {
    /// Switches to other weights.
    pub switched: u64,
    /// What was refused: those from before went on serving.
    pub refused: u64,
    /// The weights that stand beside those that serve, where any do.
    pub shadow: Option<Shadow>,
}

/// How near two models' vectors are, over the pairs that the last epoch touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shadow {
    /// Pairs.
    pub pairs: u64,
    /// The mean of their cosines.
    pub mean: f64,
    /// The least of them.
    pub least: f64,
}

/// A job between a failure that may pass and its new start. Words of the program only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stalled {
    /// Since when it makes no progress.
    pub since: i64,
    /// What a person can do.
    pub hint: &'static str,
    /// Starts in a row that committed nothing, this one among them.
    pub attempt: u32,
}

/// An input topic.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceStatus {
    /// Its role.
    pub topic: &'static str,
    /// Records read since start.
    pub records: u64,
    /// Bytes read since start.
    pub bytes: u64,
    /// By partition, offsets between the end and the last closed epoch; empty until measured.
    pub lag: Vec<u64>,
}

/// A queue with its limit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Queue {
    /// Its name.
    pub queue: &'static str,
    /// Entries in it.
    pub depth: u64,
    /// The most that it takes; `None` where it holds one entry a wanted key or text.
    pub limit: Option<u64>,
}

/// Counts since the process started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Epochs committed.
    pub epochs: u64,
    /// Features published.
    pub features: u64,
    /// Tombstones on `features`.
    pub retractions: u64,
    /// Examples published, tombstones among them.
    pub examples: u64,
    /// Dead letters committed.
    pub dead_letters: u64,
    /// Interactions dropped as exact duplicates.
    pub seen: u64,
    /// Texts embedded.
    pub embeddings: u64,
}

/// The accounting of CoTs: wanted = answered + queued + in flight at each committed epoch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cot {
    /// Distinct wanted keys.
    pub wanted: u64,
    /// Those with a record.
    pub answered: u64,
    /// Those that wait for a call.
    pub queued: u64,
    /// Those that are called or not read back yet.
    pub in_flight: u64,
    /// Those for which only a failure stands.
    pub failed: u64,
    /// Distinct keys called since start.
    pub called: u64,
    /// Calls with attempt 1.
    pub first_calls: u64,
    /// Calls, retries included.
    pub attempts: u64,
    /// Requests retracted before their call.
    pub cancelled: u64,
    /// Requests answered by a text.
    pub ok: u64,
    /// Requests that the rules refused for good.
    pub refused: u64,
    /// Requests interrupted and queued again.
    pub interrupted: u64,
    /// Keys whose answer stood when they came to be wanted.
    pub cache_hits: u64,
    /// Prompt tokens.
    pub tokens_in: u64,
    /// Generated tokens.
    pub tokens_out: u64,
    /// Since when the oldest unanswered key is wanted.
    pub oldest_pending: Option<i64>,
}

/// The service behind a generator.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Service {
    /// Requests by outcome, in a fixed order.
    pub requests: Vec<(&'static str, u64)>,
    /// Whether the breaker keeps calls from being made.
    pub breaker_open: bool,
    /// Tokens that may be spent now; `None` without a budget.
    pub budget_left: Option<u64>,
}

/// The store of points.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PointsStatus {
    /// Points written since start.
    pub upserted: u64,
    /// Points marked as deleted since start.
    pub deleted: u64,
    /// Pairs looked up since start.
    pub lookups: u64,
    /// Of measured lookups, the exactly best demonstrations that were found.
    pub recalled: u64,
    /// How many these are.
    pub measured: u64,
    /// Whether an epoch waits for the store.
    pub stalled: bool,
}

/// Failures of one kind. Words of closed sets only: a message might repeat what a user wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// What failed.
    pub component: &'static str,
    /// At what.
    pub stage: &'static str,
    /// `retry`, `poison` or `fatal`.
    pub error_type: &'static str,
    /// How often.
    pub count: u64,
    /// When last.
    pub last_at: i64,
    /// What a person can do.
    pub hint: &'static str,
}

/// Why a job isn't ready, or isn't live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A word of a closed set.
    pub code: &'static str,
    /// The same for a person.
    pub detail: String,
}

/// A reason.
pub(super) fn reason(code: &'static str, detail: impl Into<String>) -> Reason {
    Reason { code, detail: detail.into() }
}

impl Status {
    /// Adds the counts of the jobs that this process ran before, so that they are since it started.
    pub fn add_counts(&mut self, before: &Status) {
        for source in &mut self.sources {
            if let Some(earlier) = before.sources.iter().find(|earlier| earlier.topic == source.topic) {
                source.records += earlier.records;
                source.bytes += earlier.bytes;
            }
        }
        for (place, count) in &before.dead_letters {
            *self.dead_letters.entry(place.clone()).or_default() += count;
        }
        let (totals, earlier) = (&mut self.totals, &before.totals);
        for (count, earlier) in [
            (&mut totals.epochs, earlier.epochs),
            (&mut totals.features, earlier.features),
            (&mut totals.retractions, earlier.retractions),
            (&mut totals.examples, earlier.examples),
            (&mut totals.dead_letters, earlier.dead_letters),
            (&mut totals.seen, earlier.seen),
            (&mut totals.embeddings, earlier.embeddings),
        ] {
            *count += earlier;
        }
        let (cot, earlier) = (&mut self.cot, &before.cot);
        for (count, earlier) in [
            (&mut cot.called, earlier.called),
            (&mut cot.first_calls, earlier.first_calls),
            (&mut cot.attempts, earlier.attempts),
            (&mut cot.cancelled, earlier.cancelled),
            (&mut cot.ok, earlier.ok),
            (&mut cot.refused, earlier.refused),
            (&mut cot.interrupted, earlier.interrupted),
            (&mut cot.cache_hits, earlier.cache_hits),
            (&mut cot.tokens_in, earlier.tokens_in),
            (&mut cot.tokens_out, earlier.tokens_out),
        ] {
            *count += earlier;
        }
        if let (Some(points), Some(earlier)) = (&mut self.points, &before.points) {
            points.upserted += earlier.upserted;
            points.deleted += earlier.deleted;
            points.lookups += earlier.lookups;
            points.recalled += earlier.recalled;
            points.measured += earlier.measured;
        }
    }

    /// Why the job isn't ready; empty where it is. A commit is late where input has waited for
    /// longer than `commit_within_ms`.
    pub fn reasons(&self, commit_within_ms: u64) -> Vec<Reason> {
        let mut reasons = Vec::new();
        match self.phase {
            Phase::Starting => {
                return vec![reason("starting", "the models are loaded and the topics opened")];
            }
            Phase::Replaying => {
                return vec![reason("replaying", format!("epoch {} of {}", self.epoch, self.committed))];
            }
            Phase::Stalled => {
                let stalled = self.stalled.clone().unwrap_or_default();
                let detail = format!(
                    "no progress for {} s, new start {} to come: {}",
                    (self.taken_at - stalled.since).max(0) / 1_000,
                    stalled.attempt,
                    stalled.hint
                );
                return vec![reason("stalled", detail)];
            }
            Phase::Stopped => return vec![reason("stopped", "the job has ended")],
            Phase::Running => {}
        }
        if !self.caught_up {
            let lag: u64 = self.sources.iter().flat_map(|source| &source.lag).sum();
            reasons.push(reason("catching_up", format!("{lag} records behind the input ends seen at start")));
        }
        if !self.publishing {
            reasons.push(reason("not_publishing", "no epoch has published features yet"));
        }
        if self.points.as_ref().is_some_and(|points| points.stalled) {
            reasons.push(reason(
                "points_stalled",
                "an epoch waits for the vector store to acknowledge its points",
            ));
        }
        if let Some(since) = self.behind_since
            && since.elapsed().as_millis() > u128::from(commit_within_ms)
        {
            let waited = since.elapsed().as_secs();
            reasons.push(reason("commit_stalled", format!("input waits for a commit since {waited} s")));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_job_is_ready_only_when_it_runs_has_caught_up_publishes_and_commits() {
        let codes = |status: &Status| -> Vec<&str> {
            status.reasons(1_000).into_iter().map(|reason| reason.code).collect()
        };
        let ready = Status { phase: Phase::Running, caught_up: true, publishing: true, ..Status::default() };
        assert!(codes(&ready).is_empty());
        assert_eq!(codes(&Status::default()), ["starting"]);
        assert_eq!(codes(&Status { phase: Phase::Replaying, ..ready.clone() }), ["replaying"]);
        assert_eq!(codes(&Status { phase: Phase::Stopped, ..ready.clone() }), ["stopped"]);
        let stalled = Stalled { since: 1_000, hint: "look at the broker", attempt: 3 };
        let stalled =
            Status { phase: Phase::Stalled, stalled: Some(stalled), taken_at: 8_500, ..ready.clone() };
        assert_eq!(codes(&stalled), ["stalled"]);
        assert_eq!(
            stalled.reasons(1_000)[0].detail,
            "no progress for 7 s, new start 3 to come: look at the broker"
        );
        assert_eq!(codes(&Status { caught_up: false, ..ready.clone() }), ["catching_up"]);
        assert_eq!(codes(&Status { publishing: false, ..ready.clone() }), ["not_publishing"]);
        let behind = Instant::now().checked_sub(Duration::from_millis(1_500));
        assert_eq!(codes(&Status { behind_since: behind, ..ready.clone() }), ["commit_stalled"]);
        let waits = Some(PointsStatus { stalled: true, ..PointsStatus::default() });
        assert_eq!(codes(&Status { points: waits, ..ready.clone() }), ["points_stalled"]);
        let now = Status { behind_since: Some(Instant::now()), ..ready };
        assert!(now.reasons(60_000).is_empty());
    }

    #[test]
    fn counts_go_on_over_a_new_start_and_what_stands_does_not_add_up() {
        let of = |records, features, called, wanted| Status {
            sources: vec![SourceStatus { topic: "items", records, bytes: 10 * records, lag: vec![2] }],
            totals: Totals { features, ..Totals::default() },
            cot: Cot { called, wanted, ..Cot::default() },
            dead_letters: BTreeMap::from([(("accept".to_owned(), "late".to_owned()), features)]),
            points: Some(PointsStatus { upserted: features, ..PointsStatus::default() }),
            ..Status::default()
        };
        let mut now = of(3, 1, 0, 9);
        now.add_counts(&of(5, 20, 4, 8));
        assert_eq!((now.sources[0].records, now.sources[0].bytes, now.sources[0].lag[0]), (8, 80, 2));
        assert_eq!((now.totals.features, now.cot.called, now.cot.wanted), (21, 4, 9));
        assert_eq!(now.dead_letters.values().sum::<u64>(), 21);
        assert_eq!(now.points.unwrap_or_default().upserted, 21);
    }
}
