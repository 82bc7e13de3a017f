//! How a run ends: the job comes to rest, twice, and its outputs are held against a recomputation.

use super::log::Log;
use super::points::Store;
use super::scheduler::{JOB, Simulation, unexpected, weights};
use crate::support::verifier::{self, COMMITTED, COMPARED, Compacted, Outputs};
use ictflow_dataflows::job::Job;
use ictflow_dataflows::names::Names;
use ictflow_dataflows::sources::Source;
use ictflow_schemas::config::Search;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::invariants::Violation;
use ictflow_schemas::topic::{HEADER_PUBLISHED_AT, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// Looks in a row at which nothing happens before a job counts as stuck: one that lost an answer never comes to
/// rest. The longest pause of a key is 1,000 looks.
const FRUITLESS: usize = 3_000;

impl Simulation {
    pub(super) fn come_to_rest(&mut self, dump: Option<&Path>) -> Result<String, Violation> {
        // At any moment the outputs are a function of the logs: so also while answers are missing.
        self.take_in()?;
        self.compare("unsettled")?;
        self.settle()?;
        let wanted = self.compare("settled")?;
        self.all_answered(wanted)?;
        self.points_are_demonstrations()?;
        // Whatever a further start reads back, it has nothing to ask and nothing to publish.
        let before = self.outputs();
        self.job = None;
        let mut job = self.try_start(JOB, self.store.clone(), true).map_err(unexpected)?;
        let ledger = &mut self.ledger;
        until_taken_in(&mut job, |job| ledger.look(Some(job)))?;
        let asked = &job.requester().accounting;
        if asked.attempts + asked.embeddings > 0 || !job.requester().idle() {
            return Err(Violation(format!("a further start asks: {asked:?}")));
        }
        self.job = Some(job);
        if COMPARED
            .iter()
            .any(|topic| compacted(&self.log, &self.names, *topic) != compacted_of(&before, *topic))
        {
            return Err(Violation("a further start publishes something else".to_owned()));
        }
        if let (Some(folder), Some(job)) = (dump, &self.job) {
            let wanted = job.requester().wanted().iter().map(|key| key.hex()).collect();
            crate::support::world::dump(&mut self.log.clone(), &self.names, wanted, &weights().0, folder);
        }
        Ok(self.digest())
    }

    /// Steps until all that stands on the logs is taken in. Answers that came before are journaled, and none is
    /// made.
    fn take_in(&mut self) -> Result<(), Violation> {
        let Some(job) = &mut self.job else { return Ok(()) };
        // After each commit: what an epoch published may go with the next.
        let ledger = &mut self.ledger;
        until_taken_in(job, |job| ledger.look(Some(job)))
    }

    /// Answers whatever is asked, until nothing is.
    fn settle(&mut self) -> Result<(), Violation> {
        let mut fruitless = 0;
        let Some(job) = &mut self.job else { return Ok(()) };
        while !job.idle().map_err(unexpected)? {
            let now = self.workload.now;
            if let Some(hands) = job.hands() {
                while hands.call(now) {}
                while hands.calls() > 0 {
                    hands.end_call(0);
                }
                hands.embed();
                hands.end_embed();
            }
            let step = job.step(Duration::ZERO).map_err(unexpected)?;
            if step.epoch.is_some() || step.journaled > 0 {
                fruitless = 0;
                self.ledger.look(Some(job))?;
            }
            fruitless += 1;
            if fruitless > FRUITLESS {
                let requester = job.requester();
                return Err(Violation(format!(
                    "it doesn't come to rest: {} queued, {} in flight, {} unembedded",
                    requester.queued(),
                    requester.in_flight(),
                    requester.unembedded()
                )));
            }
        }
        Ok(())
    }

    /// Holds the outputs against those of a new job over the same logs, which calls nothing. Gives the keys
    /// that it wants, and how many of them have an answer.
    fn compare(&mut self, suffix: &str) -> Result<(BTreeSet<String>, usize), Violation> {
        let stored = self.semantics.search == Search::Stored;
        let store = stored.then(Store::default);
        let mut fresh = self.try_start(suffix, store, false).map_err(unexpected)?;
        until_taken_in(&mut fresh, |_| Ok(()))?;
        let outputs = self.outputs();
        let mut expected: BTreeMap<Topic, Compacted> =
            COMPARED.map(|topic| (topic, compacted(&self.log, fresh.names(), topic))).into();
        if stored {
            // Which demonstrations are used is what the store answered; that they are some is held here.
            let features = compacted_of(&outputs, Topic::Features);
            let pool: BTreeSet<String> = fresh.demonstrations().iter().map(|c| c.id.to_string()).collect();
            for value in features.values() {
                let feature = Feature::decode(value).map_err(|error| Violation(error.to_string()))?;
                if let Some(used) = feature.demonstrations.iter().find(|used| !pool.contains(&used.id)) {
                    return Err(Violation(format!("{suffix}: {} is no demonstration", used.id)));
                }
            }
            let keys = |features: &Compacted| features.keys().cloned().collect::<Vec<_>>();
            if keys(&features) != keys(&expected[&Topic::Features]) {
                return Err(Violation(format!("{suffix}: other pairs have features")));
            }
            expected.insert(Topic::Features, features);
        }
        self.ledger.figures.compared += expected[&Topic::Features].len() as u64;
        let violations = verifier::check(JOB, &outputs, &expected);
        if !violations.is_empty() {
            return Err(Violation(format!("{suffix}: {violations:?}")));
        }
        let wanted = fresh.requester().wanted().iter().map(|key| key.hex()).collect();
        Ok((wanted, fresh.requester().answered()))
    }

    fn all_answered(&self, (wanted, answered): (BTreeSet<String>, usize)) -> Result<(), Violation> {
        let own: Option<BTreeSet<String>> =
            self.job.as_ref().map(|job| job.requester().wanted().iter().map(|key| key.hex()).collect());
        if own.as_ref() != Some(&wanted) || answered != wanted.len() {
            let own = own.map_or(0, |own| own.len());
            return Err(Violation(format!(
                "{own} keys are wanted; a recomputation wants {}, {answered} of them answered",
                wanted.len()
            )));
        }
        Ok(())
    }

    /// The points that stand are the demonstrations.
    fn points_are_demonstrations(&self) -> Result<(), Violation> {
        let (Some(store), Some(job)) = (&self.store, &self.job) else { return Ok(()) };
        let points: BTreeSet<_> = store.standing().into_iter().collect();
        let demonstrations: BTreeSet<_> = job.demonstrations().iter().map(|c| c.id).collect();
        match points == demonstrations {
            true => Ok(()),
            false => Err(Violation(format!(
                "{} points stand, {} demonstrations",
                points.len(),
                demonstrations.len()
            ))),
        }
    }

    fn outputs(&self) -> Outputs {
        let topics = COMMITTED.into_iter().chain([Topic::Epochs]);
        topics.map(|topic| (topic, self.log.whole(self.names.of(topic)))).collect()
    }

    /// A digest of all that stands on the topics, but for the times of publication.
    fn digest(&self) -> String {
        let mut text = String::new();
        for topic in Topic::ALL {
            for record in self.log.whole(self.names.of(topic)) {
                let headers = record.headers.iter().filter(|(name, _)| name != HEADER_PUBLISHED_AT);
                let headers: Vec<_> = headers.collect();
                text += &format!(
                    "{topic:?} {} {} {:?} {:?} {headers:?}\n",
                    record.partition, record.offset, record.key, record.value
                );
            }
        }
        text_digest(&text).hex()
    }
}

/// Steps a job until its logs are read to their ends, all of it committed and features published; `look` looks
/// at it after each step.
fn until_taken_in(
    job: &mut Job,
    mut look: impl FnMut(&Job) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let mut fruitless = 0;
    loop {
        let step = job.step(Duration::ZERO).map_err(unexpected)?;
        look(job)?;
        let ends = job.input_ends().map_err(unexpected)?;
        let at = |(source, ends): (&Source, &Vec<i64>)| {
            source.reached().iter().zip(ends).all(|(at, end)| at >= end)
        };
        let reached = job.sources().iter().zip(&ends).all(at);
        let waiting = job.sources().iter().any(|source| source.waiting() > 0);
        if step.epoch.is_none()
            && step.journaled == 0
            && reached
            && !waiting
            && job.unjournaled() == 0
            && job.caught_up()
            && job.sink().publishing()
        {
            return Ok(());
        }
        fruitless = if step.epoch.is_some() || step.journaled > 0 { 0 } else { fruitless + 1 };
        if fruitless > FRUITLESS {
            return Err(Violation("it doesn't take its inputs in".to_owned()));
        }
    }
}

fn compacted(log: &Log, names: &Names, topic: Topic) -> Compacted {
    let mut values = Compacted::new();
    for record in log.whole(names.of(topic)) {
        let Some(key) = record.key else { continue };
        match record.value {
            Some(value) => values.insert(key, value),
            None => values.remove(&key),
        };
    }
    values
}

fn compacted_of(outputs: &Outputs, topic: Topic) -> Compacted {
    let mut values = Compacted::new();
    for record in outputs.get(&topic).into_iter().flatten() {
        let Some(key) = record.key.clone() else { continue };
        match record.value.clone() {
            Some(value) => values.insert(key, value),
            None => values.remove(&key),
        };
    }
    values
}
