//! A run's figures over time, in a bounded number of samples.

use crate::job::Job;
use std::time::Instant;

/// The most samples kept; then every second one goes, and later ones are taken half as often.
const MAX_SAMPLES: usize = 1_000;

/// The figures at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds since the replay began.
    pub seconds: f64,
    /// Live features.
    pub features: u64,
    /// Those with all K demonstrations.
    pub full: u64,
    /// Distinct wanted keys.
    pub wanted: u64,
    /// Those with a record.
    pub answered: u64,
    /// Calls with attempt 1.
    pub calls: u64,
    /// Calls of a pipeline that asks for every wanted key at every epoch that brings input.
    pub recomputed: u64,
    /// How many such epochs there were.
    pub refreshes: u64,
}

/// Samples of a run.
pub struct Samples {
    begun: Instant,
    kept: Vec<Sample>,
    newest: Sample,
    epoch: i64,
    /// Records of the inputs up to the last epoch that brought any.
    read: u64,
    every: usize,
    since: usize,
}

impl Samples {
    /// Samples of a run that begins now.
    pub fn begin() -> Self {
        Samples {
            begun: Instant::now(),
            kept: Vec::new(),
            newest: Sample::default(),
            epoch: 0,
            read: 0,
            every: 1,
            since: 0,
        }
    }

    /// Looks at the job after a step.
    pub fn look(&mut self, job: &Job) {
        let (sink, requester) = (job.sink(), job.requester());
        let wanted = requester.wanted().len() as u64;
        // An epoch of answers alone is none of the input's: how many of these there are depends on the
        // machine.
        let judged = job.judgements();
        let read = judged.interactions + judged.items + judged.candidates;
        let closed = job.committed() > self.epoch && read > self.read;
        if closed {
            self.read = read;
        }
        self.epoch = job.committed();
        self.take(Sample {
            seconds: self.begun.elapsed().as_secs_f64(),
            features: sink.features_live() as u64,
            full: sink.features_full_k() as u64,
            wanted,
            answered: requester.answered() as u64,
            calls: requester.accounting.first_calls,
            recomputed: self.newest.recomputed + if closed { wanted } else { 0 },
            refreshes: self.newest.refreshes + u64::from(closed),
        });
    }

    fn take(&mut self, sample: Sample) {
        self.newest = sample;
        self.since += 1;
        if self.since < self.every {
            return;
        }
        self.since = 0;
        if self.kept.len() == MAX_SAMPLES {
            let mut at = 0;
            self.kept.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.every *= 2;
        }
        self.kept.push(sample);
    }

    /// The samples in order, the newest at the end.
    pub fn all(&self) -> Vec<Sample> {
        let mut all = self.kept.clone();
        if all.last() != Some(&self.newest) {
            all.push(self.newest);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_is_kept_and_the_newest_is_there() {
        let mut samples = Samples::begin();
        for n in 0..=10 * MAX_SAMPLES {
            samples.take(Sample { seconds: n as f64, ..Sample::default() });
        }
        let all = samples.all();
        assert!(all.len() <= MAX_SAMPLES + 1 && all.len() >= MAX_SAMPLES / 2, "{}", all.len());
        assert_eq!(all[0].seconds, 0.0);
        assert_eq!(all[all.len() - 1].seconds, (10 * MAX_SAMPLES) as f64);
        assert!(all.windows(2).all(|pair| pair[0].seconds < pair[1].seconds));
        let mut few = Samples::begin();
        (0..MAX_SAMPLES).for_each(|n| few.take(Sample { seconds: n as f64, ..Sample::default() }));
        assert_eq!(few.all().len(), MAX_SAMPLES, "at the limit none is gone");
    }
}
