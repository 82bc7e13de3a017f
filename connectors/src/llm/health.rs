//! What a service behind a generator has done so far, for metrics. Every clone of a generator counts
//! into the same [`Health`]; a reader needs no lock.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A well-formed answer, whatever the validation says of it.
    Ok,
    /// 429.
    RateLimited,
    /// 500 to 599.
    ServerError,
    /// Not whole within the limit of time.
    Timeout,
    /// No connection, or one that broke.
    Transport,
    /// An answer that can't be read, or one that is too large.
    Garbage,
    /// The request itself was refused: 400, 413, 422.
    Refused,
    /// The caller was refused: 401, 403, 404 and what else is a matter of configuration.
    Denied,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 8] = [
        Outcome::Ok,
        Outcome::RateLimited,
        Outcome::ServerError,
        Outcome::Timeout,
        Outcome::Transport,
        Outcome::Garbage,
        Outcome::Refused,
        Outcome::Denied,
    ];

    /// The word for a metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::RateLimited => "rate_limited",
            Outcome::ServerError => "server_error",
            Outcome::Timeout => "timeout",
            Outcome::Transport => "transport",
            Outcome::Garbage => "garbage",
            Outcome::Refused => "refused",
            Outcome::Denied => "denied",
        }
    }
}

/// The upper bounds of the buckets of request durations, milliseconds; one more bucket has the rest.
pub const DURATION_BOUNDS_MS: [u64; 10] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000];

/// The counters of one service since the process started.
#[derive(Debug, Default)]
pub struct Health {
    requests: [AtomicU64; Outcome::ALL.len()],
    durations: [AtomicU64; DURATION_BOUNDS_MS.len() + 1],
    duration_ms: AtomicU64,
    retries: AtomicU64,
    tokens_in: AtomicU64,
    tokens_out: AtomicU64,
    breaker_open: AtomicBool,
    /// Below zero where there is no budget.
    budget_left: AtomicI64,
}

impl Health {
    /// Counters at zero; `budget` tokens left where there is a budget.
    pub fn new(budget: Option<u64>) -> Self {
        let health = Health::default();
        health.set_budget_left(budget.map(|tokens| tokens as f64));
        health
    }

    /// Counts a request that ended. `retry`: an earlier call of its key failed.
    pub fn request(&self, outcome: Outcome, took: Duration, retry: bool) {
        self.requests[outcome as usize].fetch_add(1, Ordering::Relaxed);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.durations[bucket].fetch_add(1, Ordering::Relaxed);
        self.duration_ms.fetch_add(ms, Ordering::Relaxed);
        self.retries.fetch_add(u64::from(retry), Ordering::Relaxed);
    }

    /// Counts the tokens of an answer.
    pub fn tokens(&self, tokens_in: u64, tokens_out: u64) {
        self.tokens_in.fetch_add(tokens_in, Ordering::Relaxed);
        self.tokens_out.fetch_add(tokens_out, Ordering::Relaxed);
    }

    /// Notes whether the breaker keeps calls from being made.
    pub fn set_breaker_open(&self, open: bool) {
        self.breaker_open.store(open, Ordering::Relaxed);
    }

    /// Notes what is left of the budget of tokens; `None` where there is none.
    pub fn set_budget_left(&self, left: Option<f64>) {
        // A debt reads as nothing left; below zero stands for "no budget".
        self.budget_left.store(left.map_or(-1, |left| left.max(0.0) as i64), Ordering::Relaxed);
    }

    /// Requests that ended so.
    pub fn requests(&self, outcome: Outcome) -> u64 {
        self.requests[outcome as usize].load(Ordering::Relaxed)
    }

    /// Requests by duration: one count for each of [`DURATION_BOUNDS_MS`], and one for those above.
    pub fn durations(&self) -> Vec<u64> {
        self.durations.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// The sum of all durations, milliseconds.
    pub fn duration_ms(&self) -> u64 {
        self.duration_ms.load(Ordering::Relaxed)
    }

    /// Requests after a failed call of the same key.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Prompt tokens, as the service counts them.
    pub fn tokens_in(&self) -> u64 {
        self.tokens_in.load(Ordering::Relaxed)
    }

    /// Generated tokens, as the service counts them.
    pub fn tokens_out(&self) -> u64 {
        self.tokens_out.load(Ordering::Relaxed)
    }

    /// Whether the breaker keeps calls from being made, its probe apart.
    pub fn breaker_open(&self) -> bool {
        self.breaker_open.load(Ordering::Relaxed)
    }

    /// Tokens left in the budget when a call last asked for some; `None` where there is no budget.
    pub fn budget_left(&self) -> Option<u64> {
        u64::try_from(self.budget_left.load(Ordering::Relaxed)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_outcome_and_bucket() {
        let health = Health::new(Some(10));
        for (n, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, n, "the order of ALL is that of the counters");
        }
        health.request(Outcome::Ok, Duration::from_millis(50), false);
        health.request(Outcome::Timeout, Duration::from_millis(51), true);
        health.request(Outcome::Ok, Duration::from_secs(61), false);
        health.tokens(7, 3);
        let buckets = health.durations();
        assert_eq!((buckets[0], buckets[1], buckets[10]), (1, 1, 1));
        assert_eq!((health.requests(Outcome::Ok), health.requests(Outcome::Timeout)), (2, 1));
        assert_eq!((health.retries(), health.duration_ms()), (1, 61_101));
        assert_eq!((health.tokens_in(), health.tokens_out(), health.budget_left()), (7, 3, Some(10)));
        health.set_budget_left(Some(-5.0));
        assert_eq!(health.budget_left(), Some(0));
        assert_eq!(Health::new(None).budget_left(), None);
    }
}
