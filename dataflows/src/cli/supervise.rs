//! When a job that failed is started anew in the process, and when the process gives it up.
//!
//! A failure that may pass ends the job, not the process: the broker is away, or it isn't known what a
//! commit did. The job is dropped, its writers with it; after a pause everything is opened again: fence,
//! read progress, replay. So the models stay loaded, the status page goes on, and says why it waits.
//!
//! * A writer that a successor fenced stops the process for good, as does whatever only a person can mend.
//! * The pause doubles with each start that committed nothing, up to a longest one; a commit sets it back.
//! * After `run.max_restarts` such starts in a row the process ends and leaves it to its supervisor.
//! * Answers that came meanwhile are journaled before the job is dropped, as soon as the store answers.

use crate::job::Job;
use crate::status::Observer;
use ictflow_connectors::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long answers under way are waited for before a job is dropped: they were paid for, but features
/// wait meanwhile.
const DRAIN: Duration = Duration::from_secs(2);

/// How long one wait lasts before it looks for a signal.
const SLICE: Duration = Duration::from_millis(20);

/// `[run]`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    /// Starts in a row without a committed epoch before the process ends; 0: it ends at the first failure.
    pub max: u32,
    /// The first pause.
    pub pause: Duration,
    /// The longest one.
    pub longest: Duration,
}

/// Counts the starts that committed nothing, and gives their pauses.
#[derive(Debug)]
struct Backoff {
    restarts: Restarts,
    in_a_row: u32,
    committed: i64,
}

impl Backoff {
    /// The pause after a failure of a job that has committed so far, and the number of the start that
    /// follows; `None` where no more is made.
    fn next(&mut self, committed: Option<i64>) -> Option<(u32, Duration)> {
        if committed.is_some_and(|committed| committed > self.committed) {
            (self.in_a_row, self.committed) = (0, committed.unwrap_or(self.committed));
        }
        if self.in_a_row >= self.restarts.max {
            return None;
        }
        let pause = self.restarts.pause.saturating_mul(1 << self.in_a_row.min(20));
        self.in_a_row += 1;
        Some((self.in_a_row, pause.min(self.restarts.longest)))
    }
}

/// Decides over a run's failures.
pub(super) struct Supervisor<'a> {
    backoff: Backoff,
    stop: &'a AtomicBool,
}

impl<'a> Supervisor<'a> {
    /// A supervisor of a job that commits for the first time in this process after `committed`.
    pub(super) fn new(restarts: Restarts, stop: &'a AtomicBool) -> Self {
        Supervisor { backoff: Backoff { restarts, in_a_row: 0, committed: 0 }, stop }
    }

    /// Waits after a failure until the job may be started anew, and drops it. False where a signal came.
    ///
    /// # Errors
    /// `Fatal` where the failure stays, a successor runs, or too many starts committed nothing.
    pub(super) fn wait(
        &mut self,
        mut error: Error,
        mut job: Option<Job>,
        observer: &mut Observer,
    ) -> Result<bool> {
        loop {
            if !error.starts_anew() {
                return Err(error);
            }
            let Some((attempt, pause)) = self.backoff.next(job.as_ref().map(Job::committed)) else {
                return Err(Error {
                    disposition: ictflow_connectors::Disposition::Fatal,
                    context: format!(
                        "{} (given up after {} new starts)",
                        error.context, self.backoff.in_a_row
                    ),
                    ..error
                });
            };
            eprintln!(
                "run: {error}; new start {attempt} of {} in {:.1} s",
                self.backoff.restarts.max,
                pause.as_secs_f64()
            );
            observer.stalled(&error, attempt);
            let begun = Instant::now();
            while begun.elapsed() < pause {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                observer.turn();
                std::thread::sleep(SLICE.min(pause));
            }
            let Some(failed) = &mut job else { break };
            match failed.standing() {
                Ok(()) => {
                    if let Err(error) = failed.drain(DRAIN) {
                        tracing::warn!(%error, "some answers weren't journaled and are asked again");
                    }
                    break;
                }
                Err(still) => error = still,
            }
        }
        observer.restarting();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(max: u32) -> Backoff {
        let (pause, longest) = (Duration::from_millis(500), Duration::from_secs(30));
        Backoff { restarts: Restarts { max, pause, longest }, in_a_row: 0, committed: 0 }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_a_commit_sets_them_back() {
        let mut backoff = backoff(9);
        let mut pauses = Vec::new();
        while let Some((attempt, pause)) = backoff.next(Some(7)) {
            assert_eq!(attempt as usize, pauses.len() + 1);
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff.next(None), None, "a start that failed commits nothing");
        assert_eq!(backoff.next(Some(7)), None);
        assert_eq!(backoff.next(Some(8)), Some((1, Duration::from_millis(500))));
    }

    #[test]
    fn without_restarts_the_first_failure_is_the_last() {
        assert_eq!(backoff(0).next(Some(3)), None);
        let mut one = backoff(1);
        assert!(one.next(None).is_some());
        assert_eq!(one.next(None), None);
    }

    #[test]
    fn many_restarts_overflow_nothing() {
        let mut backoff = backoff(1_000);
        backoff.restarts.longest = Duration::MAX;
        let pauses: Vec<Duration> =
            std::iter::from_fn(|| backoff.next(None)).map(|(_, pause)| pause).collect();
        assert_eq!(pauses.len(), 1_000);
        assert!(pauses.is_sorted());
    }
}
