//! How long the calls of the LLM and the encoder took: noted on their threads, taken by the job.

use ictflow_connectors::telemetry::MAX_REQUEST_TIMES;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Durations of calls, shared between threads. At most [`MAX_REQUEST_TIMES`] of each kind wait to be
/// taken; where nobody takes them, later ones are dropped.
#[derive(Clone, Debug, Default)]
pub struct CallTimes(Arc<Mutex<Taken>>);

/// Durations since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Calls of the LLM.
    pub llm: Vec<Duration>,
    /// Calls of the encoder.
    pub encoder: Vec<Duration>,
}

impl CallTimes {
    /// Notes a call of the LLM.
    pub fn llm(&self, took: Duration) {
        self.note(|taken| &mut taken.llm, took);
    }

    /// Notes a call of the encoder.
    pub fn encoder(&self, took: Duration) {
        self.note(|taken| &mut taken.encoder, took);
    }

    fn note(&self, of: fn(&mut Taken) -> &mut Vec<Duration>, took: Duration) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = of(&mut taken);
        if times.len() < MAX_REQUEST_TIMES {
            times.push(took);
        }
    }

    /// Takes what was noted.
    pub fn take(&self) -> Taken {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_waits() {
        let times = CallTimes::default();
        (0..=MAX_REQUEST_TIMES).for_each(|_| times.clone().llm(Duration::from_secs(1)));
        times.encoder(Duration::from_secs(2));
        let taken = times.take();
        assert_eq!((taken.llm.len(), taken.encoder.len()), (MAX_REQUEST_TIMES, 1));
        assert_eq!(times.take(), Taken::default());
    }
}
