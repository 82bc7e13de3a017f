//! The circuit breaker of one service, shared by all threads that call it.
//!
//! Closed: calls are made. After so many failures in a row, or one refusal of the caller, it is open:
//! no call is made for a while. Then it is half open: one call, the probe, is made, and its end closes
//! the breaker or opens it again. Apart from that a service that asks for a pause (429) gets it, from
//! every thread.
//!
//! Pure state: the caller brings the clock.

use std::time::{Duration, Instant};

/// How long a call waits before it asks again while another one probes.
const PROBE_POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Calls are made; so many in a row have failed.
    Closed { failures: u32 },
    /// None is made before this.
    Open { until: Instant },
    /// The probe is under way.
    Probing,
}

/// A leave to make one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// Calls are made freely.
    Normal,
    /// This call is the probe.
    Probe,
}

/// What the end of a call says of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It works.
    Works,
    /// It failed.
    Failed,
    /// It works and wants no call for a while.
    Limited {
        /// The while.
        pause: Duration,
    },
    /// It refuses this caller.
    Denied,
    /// Nothing was learned: the call wasn't made.
    Unknown,
}

/// The breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures in a row that open it.
    limit: u32,
    /// How long it stays open.
    open: Duration,
    state: State,
    /// A pause that the service asked for.
    paused_until: Option<Instant>,
}

impl Breaker {
    pub(super) fn new(limit: u32, open: Duration) -> Self {
        Breaker { limit, open, state: State::Closed { failures: 0 }, paused_until: None }
    }

    /// Leave for a call, or how long to wait before asking again. A leave must come back in
    /// [`Breaker::end`].
    pub(super) fn ask(&mut self, now: Instant) -> Result<Leave, Duration> {
        if let Some(wait) = self.paused_until.and_then(|until| until.checked_duration_since(now))
            && !wait.is_zero()
        {
            return Err(wait);
        }
        match self.state {
            State::Closed { .. } => Ok(Leave::Normal),
            State::Open { until } if now < until => Err(until - now),
            State::Open { .. } => {
                self.state = State::Probing;
                Ok(Leave::Probe)
            }
            State::Probing => Err(PROBE_POLL),
        }
    }

    /// Takes the end of a call. Returns whether the breaker opened by it.
    pub(super) fn end(&mut self, leave: Leave, verdict: Verdict, now: Instant) -> bool {
        if let Verdict::Limited { pause } = verdict {
            let until = now + pause;
            self.paused_until = Some(self.paused_until.map_or(until, |before| before.max(until)));
        }
        let probe = leave == Leave::Probe;
        let failures = match self.state {
            State::Closed { failures } => failures,
            // A call from before it opened: only its probe decides.
            _ if !probe => return false,
            _ => 0,
        };
        self.state = match verdict {
            Verdict::Works => State::Closed { failures: 0 },
            Verdict::Denied => State::Open { until: now + self.open },
            Verdict::Failed if probe || failures + 1 >= self.limit => State::Open { until: now + self.open },
            Verdict::Failed => State::Closed { failures: failures + 1 },
            // A service that limits us is up; the pause holds all calls back.
            Verdict::Limited { .. } => State::Closed { failures },
            // The probe is still to be made, by the next that asks.
            Verdict::Unknown if probe => State::Open { until: now },
            Verdict::Unknown => State::Closed { failures },
        };
        matches!(self.state, State::Open { .. }) && verdict != Verdict::Unknown
    }

    /// Whether it keeps calls from being made, its probe apart.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Denied, Failed, Limited, Unknown, Works};

    const OPEN: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn call(breaker: &mut Breaker, verdict: Verdict, now: Instant) -> bool {
        let leave = breaker.ask(now);
        assert!(leave.is_ok(), "{leave:?}");
        leave.is_ok_and(|leave| breaker.end(leave, verdict, now))
    }

    #[test]
    fn it_opens_at_the_limit_and_not_one_before() {
        let (mut breaker, now) = (Breaker::new(3, OPEN), Instant::now());
        assert!(!call(&mut breaker, Failed, now) && !call(&mut breaker, Failed, now));
        assert!(!call(&mut breaker, Works, now), "a success starts the count anew");
        assert!(!call(&mut breaker, Failed, now) && !call(&mut breaker, Failed, now));
        assert!(!breaker.is_open());
        assert!(call(&mut breaker, Failed, now) && breaker.is_open());
        assert_eq!(breaker.ask(now + SECOND), Err(OPEN - SECOND));
    }

    #[test]
    fn one_probe_decides() {
        let (mut breaker, now) = (Breaker::new(1, OPEN), Instant::now());
        assert!(call(&mut breaker, Failed, now));
        let later = now + OPEN;
        assert_eq!(breaker.ask(later), Ok(Leave::Probe));
        assert_eq!(breaker.ask(later), Err(PROBE_POLL), "one and no other");
        assert!(breaker.is_open());
        assert!(breaker.end(Leave::Probe, Failed, later), "open again");
        assert_eq!(breaker.ask(later), Err(OPEN));
        let again = later + OPEN;
        assert_eq!(breaker.ask(again), Ok(Leave::Probe));
        assert!(!breaker.end(Leave::Probe, Works, again));
        assert_eq!(breaker.ask(again), Ok(Leave::Normal));
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_probe_that_was_not_made_is_made_by_the_next() {
        let (mut breaker, now) = (Breaker::new(1, OPEN), Instant::now());
        call(&mut breaker, Failed, now);
        assert_eq!(breaker.ask(now + OPEN), Ok(Leave::Probe));
        assert!(!breaker.end(Leave::Probe, Unknown, now + OPEN));
        assert_eq!(breaker.ask(now + OPEN), Ok(Leave::Probe));
    }

    #[test]
    fn a_late_end_of_an_old_call_decides_nothing() {
        let (mut breaker, now) = (Breaker::new(1, OPEN), Instant::now());
        assert_eq!((breaker.ask(now), breaker.ask(now)), (Ok(Leave::Normal), Ok(Leave::Normal)));
        assert!(breaker.end(Leave::Normal, Denied, now));
        assert!(!breaker.end(Leave::Normal, Works, now) && breaker.is_open());
        assert!(!breaker.end(Leave::Normal, Failed, now + SECOND));
        assert_eq!(breaker.ask(now + SECOND), Err(OPEN - SECOND), "nor does it stay open longer");
    }

    #[test]
    fn a_refusal_of_the_caller_opens_it_at_once() {
        let (mut breaker, now) = (Breaker::new(100, OPEN), Instant::now());
        assert!(call(&mut breaker, Denied, now) && breaker.is_open());
    }

    #[test]
    fn a_pause_holds_all_calls_back_and_is_no_failure() {
        let (mut breaker, now) = (Breaker::new(1, OPEN), Instant::now());
        assert!(!call(&mut breaker, Limited { pause: 5 * SECOND }, now) && !breaker.is_open());
        assert_eq!(breaker.ask(now + SECOND), Err(4 * SECOND));
        assert_eq!(breaker.ask(now + 5 * SECOND), Ok(Leave::Normal));
        // The longest of several pauses holds.
        breaker.end(Leave::Normal, Limited { pause: 9 * SECOND }, now);
        breaker.end(Leave::Normal, Limited { pause: SECOND }, now);
        assert_eq!(breaker.ask(now), Err(9 * SECOND));
        // A probe that is told to wait has found the service up.
        let mut breaker = Breaker::new(1, OPEN);
        call(&mut breaker, Failed, now);
        assert_eq!(breaker.ask(now + OPEN), Ok(Leave::Probe));
        assert!(!breaker.end(Leave::Probe, Limited { pause: SECOND }, now + OPEN) && !breaker.is_open());
    }
}
