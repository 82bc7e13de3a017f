//! The budget of tokens of one service, shared by all threads that call it: a bucket that holds a
//! minute's tokens and fills up at that rate.
//!
//! A call reserves an estimate before it is made, and settles with what the answer says it took. A
//! bucket that an answer drew below zero holds calls back until it has filled up again.
//!
//! Pure state: the caller brings the clock.

use std::time::{Duration, Instant};

/// The longest wait that is told at once; who waited asks again.
const LONGEST: Duration = Duration::from_secs(60);

/// The bucket.
#[derive(Debug)]
pub(super) struct Budget {
    /// Tokens that it holds at most: those of a minute.
    capacity: f64,
    level: f64,
    at: Instant,
}

impl Budget {
    /// A full bucket; `None` where `tokens_per_minute` is 0: then nothing is held back.
    pub(super) fn new(tokens_per_minute: u64, now: Instant) -> Option<Self> {
        let capacity = tokens_per_minute as f64;
        (tokens_per_minute > 0).then_some(Budget { capacity, level: capacity, at: now })
    }

    fn fill(&mut self, now: Instant) {
        let gone = now.saturating_duration_since(self.at);
        self.level = (self.level + gone.as_secs_f64() * self.capacity / 60.0).min(self.capacity);
        self.at = now;
    }

    /// Reserves tokens, or says how long to wait before asking again. Gives what was reserved: an
    /// estimate above the whole bucket takes the whole bucket, or it could never be served.
    pub(super) fn reserve(&mut self, tokens: u64, now: Instant) -> Result<f64, Duration> {
        self.fill(now);
        let tokens = (tokens as f64).min(self.capacity);
        if self.level >= tokens {
            self.level -= tokens;
            return Ok(tokens);
        }
        let wait = (tokens - self.level) * 60.0 / self.capacity;
        // A millisecond more, so that rounding doesn't make the next one ask in vain.
        Err(Duration::from_secs_f64(wait.min(LONGEST.as_secs_f64())) + Duration::from_millis(1))
    }

    /// Settles a reservation with what the call took.
    pub(super) fn settle(&mut self, reserved: f64, taken: f64, now: Instant) {
        self.fill(now);
        self.level = (self.level + reserved - taken).min(self.capacity);
    }

    /// What is left; below zero where answers took more than was reserved.
    pub(super) fn left(&self) -> f64 {
        self.level
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_minutes_tokens_can_be_reserved_and_not_one_more() {
        let now = Instant::now();
        let mut budget = Budget::new(600, now).unwrap();
        assert_eq!(budget.reserve(600, now), Ok(600.0));
        let wait = budget.reserve(1, now).unwrap_err();
        assert!((wait.as_secs_f64() - 0.101).abs() < 1e-6, "a token comes in a tenth of a second: {wait:?}");
        assert_eq!(budget.reserve(1, now + wait), Ok(1.0));
        assert!(budget.reserve(10, now + wait).is_err());
        assert!(Budget::new(0, now).is_none());
    }

    #[test]
    fn it_fills_up_to_a_minutes_tokens_and_no_further() {
        let now = Instant::now();
        let mut budget = Budget::new(600, now).unwrap();
        budget.reserve(600, now).unwrap();
        let later = now + Duration::from_secs(30);
        assert_eq!(budget.reserve(300, later), Ok(300.0));
        let much_later = now + Duration::from_secs(3_600);
        assert_eq!(budget.reserve(600, much_later), Ok(600.0));
        assert!(budget.reserve(100, much_later).is_err());
    }

    #[test]
    fn what_a_call_took_is_settled() {
        let now = Instant::now();
        let mut budget = Budget::new(600, now).unwrap();
        let reserved = budget.reserve(500, now).unwrap();
        budget.settle(reserved, 100.0, now);
        assert!((budget.left() - 500.0).abs() < 1e-9);
        let reserved = budget.reserve(500, now).unwrap();
        budget.settle(reserved, 900.0, now);
        assert!((budget.left() + 400.0).abs() < 1e-9, "a debt");
        assert_eq!(budget.reserve(100, now).unwrap_err(), Duration::from_millis(50_001));
        // A call that was not made gives all back, and the bucket never holds more than a minute's.
        let mut budget = Budget::new(600, now).unwrap();
        let reserved = budget.reserve(500, now).unwrap();
        budget.settle(reserved, 0.0, now + Duration::from_secs(60));
        assert!((budget.left() - 600.0).abs() < 1e-9);
    }

    #[test]
    fn an_estimate_above_the_bucket_takes_it_whole() {
        let now = Instant::now();
        let mut budget = Budget::new(600, now).unwrap();
        assert_eq!(budget.reserve(10_000, now), Ok(600.0));
        assert!(budget.reserve(10_000, now).unwrap_err() <= LONGEST + Duration::from_millis(1));
    }
}
