//! Topics in memory, with the faults that a broker has and with defects that none may have.
//!
//! All handles share the records. A fault is set before the operation that it befalls and is gone
//! after it. Kafka's control records are gaps of one offset behind each transaction.

use ictflow_connectors::topics::{Reader, Topics, Writer};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::{NewRecord, Policy, Record};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What is planted to see whether it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A reader of `interactions` passes over every 40th record.
    LostRecord,
    /// Every tenth transaction of outputs is written twice.
    DoubledCommit,
    /// A transaction of outputs whose end isn't known may have left a part of its records.
    TornCommit,
    /// A writer goes on after it was fenced.
    NoFence,
    /// Every third append of answers is acknowledged and not written.
    LostAnswer,
    /// Every tenth record of bounds is acknowledged and not written.
    LostBounds,
    /// The store of points acknowledges every other write before it did it.
    EarlyAcknowledgement,
}

impl Defect {
    /// All of them.
    pub const ALL: [Defect; 7] = [
        Defect::LostRecord,
        Defect::DoubledCommit,
        Defect::TornCommit,
        Defect::NoFence,
        Defect::LostAnswer,
        Defect::LostBounds,
        Defect::EarlyAcknowledgement,
    ];
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The next append by a job fails in passing, after so many records.
    pub append: Option<usize>,
    /// Of the next commits the one after so many ends in doubt, done or not.
    pub commit: Option<(u32, bool)>,
    /// Records that a poll gives at most.
    pub poll: Option<usize>,
}

#[derive(Default)]
struct Partition {
    records: Vec<Record>,
    /// The next offset.
    next: i64,
}

#[derive(Default)]
struct Inner {
    topics: BTreeMap<String, Vec<Partition>>,
    /// By transactional id, the generation of the writer that stands.
    writers: BTreeMap<String, u64>,
    faults: Faults,
    /// Whether transactions leave control records.
    control: bool,
    defect: Option<Defect>,
    /// Operations that a defect may befall.
    operations: u64,
}

/// A handle on the topics.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Inner>>);

impl Log {
    /// Empty topics. With `control`, transactions leave control records.
    pub fn new(control: bool, defect: Option<Defect>) -> Self {
        Log(Arc::new(Mutex::new(Inner { control, defect, ..Inner::default() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Sets what fails next.
    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// Takes the defect away.
    pub fn mend(&self) {
        self.inner().defect = None;
    }

    /// Appends without a fault, as producers do.
    pub fn produce(&self, records: &[NewRecord]) {
        let mut inner = self.inner();
        inner.insert(records);
        if inner.control {
            inner.mark(records);
        }
    }

    /// The records of a topic from these offsets on, and where they end.
    pub fn since(&self, topic: &str, from: &mut Vec<i64>) -> Vec<Record> {
        let inner = self.inner();
        let Some(partitions) = inner.topics.get(topic) else { return Vec::new() };
        from.resize(partitions.len(), 0);
        let mut records = Vec::new();
        for (partition, from) in partitions.iter().zip(from) {
            let first = partition.records.partition_point(|record| record.offset < *from);
            records.extend(partition.records[first..].iter().cloned());
            *from = partition.next;
        }
        records
    }

    /// All records of a topic.
    pub fn whole(&self, topic: &str) -> Vec<Record> {
        self.since(topic, &mut Vec::new())
    }
}

impl Inner {
    fn insert(&mut self, records: &[NewRecord]) {
        for record in records {
            let partitions = self.topics.get_mut(&record.topic).expect("the topic was made");
            let partition = &mut partitions[record.partition as usize];
            partition.records.push(Record {
                partition: record.partition,
                offset: partition.next,
                timestamp: record.timestamp,
                key: record.key.clone(),
                value: record.value.clone(),
                framed: None,
                headers: record.headers.clone(),
            });
            partition.next += 1;
        }
    }

    /// Leaves a control record in every partition that records went to.
    fn mark(&mut self, records: &[NewRecord]) {
        let mut places: Vec<(&str, u32)> = records.iter().map(|r| (r.topic.as_str(), r.partition)).collect();
        places.sort_unstable();
        places.dedup();
        for (topic, partition) in places {
            if let Some(partition) =
                self.topics.get_mut(topic).and_then(|all| all.get_mut(partition as usize))
            {
                partition.next += 1;
            }
        }
    }

    /// Whether a defect befalls this operation, one in so many.
    fn befalls(&mut self, defect: Defect, of: u64) -> bool {
        if self.defect != Some(defect) {
            return false;
        }
        self.operations += 1;
        self.operations.is_multiple_of(of)
    }
}

fn no_topic(topic: &str) -> Error {
    Error::fatal(format!("find topic {topic}"), "it doesn't exist", "the job makes it at start")
}

impl Topics for Log {
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>> {
        Ok(self.inner().topics.get(topic).map(|partitions| partitions.len() as u32))
    }

    fn ensure(&mut self, topic: &str, partitions: u32, _policy: Policy) -> Result<()> {
        let mut inner = self.inner();
        let made = inner
            .topics
            .entry(topic.to_owned())
            .or_insert_with(|| (0..partitions).map(|_| Partition::default()).collect());
        match made.len() as u32 == partitions {
            true => Ok(()),
            false => Err(Error::fatal(format!("make topic {topic}"), "another count", "use one count")),
        }
    }

    fn ends(&mut self, topic: &str) -> Result<Vec<i64>> {
        let inner = self.inner();
        let partitions = inner.topics.get(topic).ok_or_else(|| no_topic(topic))?;
        Ok(partitions.iter().map(|partition| partition.next).collect())
    }

    fn starts(&mut self, topic: &str) -> Result<Vec<i64>> {
        let inner = self.inner();
        let partitions = inner.topics.get(topic).ok_or_else(|| no_topic(topic))?;
        Ok(vec![0; partitions.len()])
    }

    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        let inner = self.inner();
        let partitions = inner.topics.get(topic).ok_or_else(|| no_topic(topic))?;
        let first = |partition: &Partition| {
            let found = partition.records.iter().find(|r| r.timestamp.is_some_and(|at| at >= time_ms));
            found.map_or(partition.next, |record| record.offset)
        };
        Ok(partitions.iter().map(first).collect())
    }

    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn Reader>> {
        let log = self.clone();
        Ok(Box::new(Reading { log, topic: topic.to_owned(), positions: from.to_vec(), read: 0 }))
    }

    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        let mut inner = self.inner();
        if let Some(written) = inner.faults.append.take() {
            inner.insert(&records[..written.min(records.len())]);
            return Err(Error::retry(Duration::ZERO, "append", "the broker is away", "it comes back"));
        }
        if !inner.befalls(Defect::LostAnswer, 3) {
            inner.insert(records);
        }
        Ok(())
    }

    fn writer(&mut self, transactional_id: &str) -> Result<Box<dyn Writer>> {
        let mut inner = self.inner();
        let generation = inner.writers.entry(transactional_id.to_owned()).or_default();
        *generation += 1;
        let generation = *generation;
        drop(inner);
        Ok(Box::new(Writing { log: self.clone(), id: transactional_id.to_owned(), generation, lost: false }))
    }
}

struct Reading {
    log: Log,
    topic: String,
    positions: Vec<i64>,
    read: u64,
}

impl Reader for Reading {
    fn poll(&mut self, max: usize, _wait: Duration) -> Result<Vec<Record>> {
        let inner = self.log.inner();
        let partitions = inner.topics.get(&self.topic).ok_or_else(|| no_topic(&self.topic))?;
        // A cut that gives nothing would say that all was read.
        let max = max.min(inner.faults.poll.unwrap_or(usize::MAX)).max(1);
        let loses = inner.defect == Some(Defect::LostRecord) && self.topic.starts_with("interactions");
        let mut records = Vec::new();
        for (partition, position) in partitions.iter().zip(&mut self.positions) {
            let first = partition.records.partition_point(|record| record.offset < *position);
            for record in &partition.records[first..] {
                if records.len() == max {
                    break;
                }
                *position = record.offset + 1;
                self.read += 1;
                if !(loses && self.read.is_multiple_of(40)) {
                    records.push(record.clone());
                }
            }
            if partition.records.last().is_none_or(|last| last.offset < *position) {
                *position = partition.next;
            }
        }
        Ok(records)
    }

    fn positions(&self) -> Vec<i64> {
        self.positions.clone()
    }
}

struct Writing {
    log: Log,
    id: String,
    generation: u64,
    /// Whether its last transaction's end isn't known.
    lost: bool,
}

impl Writer for Writing {
    fn commit(&mut self, records: &[NewRecord], _offsets: &[(String, u32, i64)]) -> Result<()> {
        let mut inner = self.log.inner();
        let doubt = |id: &str| {
            Error::restart(
                format!("commit as {id}"),
                "its end isn't known",
                "fence again, read progress again",
            )
        };
        if self.lost {
            return Err(doubt(&self.id));
        }
        let fenced = inner.writers.get(&self.id) != Some(&self.generation);
        if fenced && inner.defect != Some(Defect::NoFence) {
            let what = format!("commit as {}", self.id);
            return Err(Error::fatal(what, "a later writer fenced this one", "it does the work"));
        }
        let bounds = self.id.ends_with(".epochs");
        match inner.faults.commit {
            Some((0, done)) => {
                inner.faults.commit = None;
                self.lost = true;
                if done {
                    inner.write(records);
                } else if !bounds && inner.defect == Some(Defect::TornCommit) {
                    inner.insert(&records[..records.len() / 2]);
                }
                return Err(doubt(&self.id));
            }
            Some((later, done)) => inner.faults.commit = Some((later - 1, done)),
            None => {}
        }
        if bounds && inner.befalls(Defect::LostBounds, 10) {
            return Ok(());
        }
        inner.write(records);
        if !bounds && inner.befalls(Defect::DoubledCommit, 10) {
            inner.write(records);
        }
        Ok(())
    }

    /// Told without a doubt: whatever befalls the question shows at the next commit.
    fn standing(&mut self, _topic: &str) -> Result<()> {
        let inner = self.log.inner();
        let fenced = inner.writers.get(&self.id) != Some(&self.generation);
        if fenced && inner.defect != Some(Defect::NoFence) {
            let what = format!("ask whether {} stands", self.id);
            return Err(Error::fatal(what, "a later writer fenced this one", "it does the work"));
        }
        Ok(())
    }
}

impl Inner {
    fn write(&mut self, records: &[NewRecord]) {
        self.insert(records);
        if self.control {
            self.mark(records);
        }
    }
}
