//! What must hold after every step, read from the topics as they grow.

use super::log::Log;
use super::points::Store;
use crate::support::world::calls;
use ictflow_dataflows::job::Job;
use ictflow_dataflows::names::Names;
use ictflow_schemas::cot::parse_topic_key;
use ictflow_schemas::epoch::{EpochRecord, Progress};
use ictflow_schemas::feature::Feature;
use ictflow_schemas::invariants::{self, Violation};
use ictflow_schemas::neighbour::SELECTED;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_SUBSTEP, Record, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How much a run saw, so that a test can tell that nothing was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Epochs committed.
    pub epochs: i64,
    /// Vectors published.
    pub features: u64,
    /// Of these, with a demonstration.
    pub demonstrated: u64,
    /// Tombstones published.
    pub retractions: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Crashes at an edge of a commit.
    pub crashes_at_edges: u64,
    /// Crashes between steps.
    pub crashes_between: u64,
    /// Commits that ended in doubt.
    pub doubts: u64,
    /// Starts from a snapshot.
    pub from_snapshots: u64,
    /// Predecessors that woke up and were fenced.
    pub fenced: u64,
    /// Distinct keys called.
    pub called: u64,
    /// Keys in flight at crashes.
    pub cut_off: u64,
    /// Standing embeddings that went.
    pub gone_embeddings: u64,
    /// Features held against a recomputation.
    pub compared: u64,
}

impl Figures {
    /// Every figure with its name.
    pub fn all(&self) -> [(&'static str, u64); 14] {
        [
            ("epochs", self.epochs as u64),
            ("features", self.features),
            ("demonstrated", self.demonstrated),
            ("retractions", self.retractions),
            ("dead letters", self.dead_letters),
            ("crashes at edges", self.crashes_at_edges),
            ("crashes between", self.crashes_between),
            ("doubts", self.doubts),
            ("from snapshots", self.from_snapshots),
            ("fenced", self.fenced),
            ("called", self.called),
            ("cut off", self.cut_off),
            ("gone embeddings", self.gone_embeddings),
            ("compared", self.compared),
        ]
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Figures) {
        self.epochs += other.epochs;
        self.features += other.features;
        self.demonstrated += other.demonstrated;
        self.retractions += other.retractions;
        self.dead_letters += other.dead_letters;
        self.crashes_at_edges += other.crashes_at_edges;
        self.crashes_between += other.crashes_between;
        self.doubts += other.doubts;
        self.from_snapshots += other.from_snapshots;
        self.fenced += other.fenced;
        self.called += other.called;
        self.cut_off += other.cut_off;
        self.gone_embeddings += other.gone_embeddings;
        self.compared += other.compared;
    }
}

/// The ledger of a job.
pub struct Ledger {
    job: String,
    names: Names,
    log: Log,
    store: Option<Store>,
    calls_file: PathBuf,
    /// K.
    k: usize,
    last: Option<EpochRecord>,
    committed: i64,
    /// By topic, up to where it was read.
    read: BTreeMap<Topic, Vec<i64>>,
    places: BTreeSet<(Topic, Vec<u8>, i64, i64)>,
    cut_off: usize,
    /// What was seen.
    pub figures: Figures,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(
        job: &str,
        names: Names,
        log: Log,
        store: Option<Store>,
        calls_file: PathBuf,
        k: usize,
    ) -> Self {
        Ledger {
            job: job.to_owned(),
            names,
            log,
            store,
            calls_file,
            k,
            last: None,
            committed: 0,
            read: BTreeMap::new(),
            places: BTreeSet::new(),
            cut_off: 0,
            figures: Figures::default(),
        }
    }

    fn fresh(&mut self, topic: Topic) -> Vec<Record> {
        self.log.since(self.names.of(topic), self.read.entry(topic).or_default())
    }

    /// Holds what came since the last look against the invariants.
    pub fn look(&mut self, job: Option<&Job>) -> Result<(), Violation> {
        for record in self.fresh(Topic::Epochs) {
            let bounds = decode::<EpochRecord>(&record)?;
            match &self.last {
                Some(last) => invariants::epoch_follows(last, &bounds)?,
                None => invariants::commit_follows(0, bounds.epoch)?,
            }
            self.last = Some(bounds);
        }
        // By epoch, its last substep: that of its progress.
        let mut ends: BTreeMap<i64, i64> = BTreeMap::new();
        let before = self.committed;
        let progress = self.fresh(Topic::Progress);
        for record in &progress {
            let said = decode::<Progress>(record)?;
            if said.job != self.job {
                return Err(Violation(format!("progress of {}", said.job)));
            }
            invariants::commit_follows(self.committed, said.epoch)?;
            self.committed = said.epoch;
        }
        let recorded = self.last.as_ref().map_or(0, |last| last.epoch);
        let mut substeps: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
        let mut place = |topic: Topic, record: &Record, places: &mut BTreeSet<_>, committed: i64| {
            let named = record.number(HEADER_EPOCH).zip(record.number(HEADER_SUBSTEP));
            let (Some((epoch, substep)), Some(key)) = (named, record.key.clone()) else {
                return Err(Violation(format!("{topic:?} at {} is unnamed", record.offset)));
            };
            invariants::published(epoch, recorded, committed)?;
            substeps.entry(epoch).or_default().insert(substep);
            if !places.insert((topic, key, epoch, substep)) {
                return Err(Violation(format!("{topic:?}: epoch {epoch}, substep {substep} twice")));
            }
            Ok((epoch, substep))
        };
        for record in &progress {
            let (epoch, substep) = place(Topic::Progress, record, &mut self.places, self.committed)?;
            ends.insert(epoch, substep);
        }
        for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
            for record in self.log.since(self.names.of(topic), self.read.entry(topic).or_default()) {
                place(topic, &record, &mut self.places, self.committed)?;
                match topic {
                    Topic::Features => self.feature(&record)?,
                    Topic::DeadLetters => self.figures.dead_letters += 1,
                    _ => {}
                }
            }
        }
        for epoch in before + 1..=self.committed {
            let all = ends.get(&epoch).map_or(0, |last| last + 1);
            if substeps.get(&epoch).map_or(0, |found| found.len() as i64) != all {
                return Err(Violation(format!("epoch {epoch} was committed without all of its records")));
            }
        }
        if let Some(epoch) = substeps.keys().find(|epoch| **epoch <= before) {
            return Err(Violation(format!("epoch {epoch} was added to after its commit")));
        }
        self.figures.epochs = self.committed;
        match job {
            Some(job) => self.asked(job),
            None => Ok(()),
        }
    }

    fn feature(&mut self, record: &Record) -> Result<(), Violation> {
        if record.value.is_none() {
            self.figures.retractions += 1;
            return Ok(());
        }
        let feature = decode::<Feature>(record)?;
        self.figures.features += 1;
        self.figures.demonstrated += u64::from(feature.k > 0);
        invariants::feature(&feature, self.k, SELECTED)?;
        match &self.store {
            Some(store) => {
                invariants::demonstrations_stand(&feature, |id| id.parse().is_ok_and(|id| store.stands(&id)))
            }
            None => Ok(()),
        }
    }

    /// Holds a job's account against itself and against the calls that were made.
    fn asked(&mut self, job: &Job) -> Result<(), Violation> {
        let requester = job.requester();
        invariants::accounting(
            requester.wanted().len(),
            requester.answered(),
            requester.queued(),
            requester.in_flight(),
        )?;
        let calls = calls(&self.calls_file);
        let first = calls.iter().filter(|(_, attempt)| *attempt == 1).count();
        let distinct = calls.iter().map(|(key, _)| key).collect::<BTreeSet<_>>().len();
        self.figures.called = distinct as u64;
        invariants::first_calls(first, distinct, self.cut_off)
    }

    /// Counts the keys whose answer a crash takes: called, and not on the log.
    pub fn crashed(&mut self) {
        let answered: BTreeSet<String> = self
            .log
            .whole(self.names.of(Topic::Cot))
            .iter()
            .filter_map(|record| parse_topic_key(record.key.as_deref()?))
            .map(|(_, key)| key.hex())
            .collect();
        let called: BTreeSet<String> = calls(&self.calls_file).into_iter().map(|(key, _)| key).collect();
        self.cut_off += called.difference(&answered).count();
        self.figures.cut_off = self.cut_off as u64;
    }
}

fn decode<W: Wire>(record: &Record) -> Result<W, Violation> {
    let value = record.value.as_deref().unwrap_or_default();
    W::decode(value).map_err(|error| Violation(format!("offset {} can't be read: {error}", record.offset)))
}
