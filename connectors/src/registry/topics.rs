//! A store of topics whose values are framed by the registry, seen as one of single-object Avro.

use super::cache::Schemas;
use super::client::Client;
use super::resolve::Reading;
use super::{Config, framing, is_input, newest, written};
use crate::topics::{Reader, Topics, Writer};
use crate::{Error, Result};
use ictflow_schemas::topic::{NewRecord, Policy, Record, Topic};
use ictflow_schemas::wire::split_single_object;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The most that reading one datum may allocate at once, in bytes: a length in a damaged or hostile
/// datum is only a claim.
const MAX_ALLOCATION: usize = 64 << 20;

/// Topics behind the registry's framing. See [`crate::registry`].
pub struct Registered {
    inner: Box<dyn Topics>,
    shared: Arc<Shared>,
}

/// What the store, its readers and its writers share.
struct Shared {
    schemas: Schemas,
    /// The role of each topic by its name on the store. A name that has more behind a dot is that of a
    /// backfill's topic, if it is one of ours. Topics of other names pass as they are.
    roles: BTreeMap<String, Topic>,
    /// The id of our newest schema, by role, for the topics that we write; empty where nothing is
    /// written.
    ids: BTreeMap<Topic, u32>,
}

impl Registered {
    /// Wraps a store. `roles` names the topics; with `read_only` the registry is asked for ids of
    /// records only, and writing is refused.
    ///
    /// # Errors
    /// `Fatal` where the config has problems, the registry can't be asked within the limits, or it
    /// refuses one of our schemas.
    pub fn open(
        inner: Box<dyn Topics>,
        config: Config,
        roles: BTreeMap<String, Topic>,
        read_only: bool,
    ) -> Result<Self> {
        // The first caller in the process decides; nobody else sets it.
        apache_avro::util::max_allocation_bytes(MAX_ALLOCATION);
        let client = Client::new(config)?;
        let mut ids = BTreeMap::new();
        if !read_only {
            // A wrong URL is told at start, not by the first record.
            client.probe()?;
            for (name, topic) in roles.iter().filter(|(_, topic)| written(**topic)) {
                ids.insert(*topic, id_of_ours(&client, name, *topic)?);
            }
        }
        Ok(Registered { inner, shared: Arc::new(Shared { schemas: Schemas::new(client), roles, ids }) })
    }
}

/// The id of our newest schema under a topic's subject, registered where that is allowed.
fn id_of_ours(client: &Client, name: &str, topic: Topic) -> Result<u32> {
    let subject = client.config().subject(name);
    let version = newest(topic);
    if let Some(id) = client.lookup(&subject, version.source)? {
        return Ok(id);
    }
    if !client.config().register {
        return Err(Error::fatal(
            format!("find our schema under subject {subject}"),
            format!("{} isn't registered there", super::file_of(topic)),
            "register that file, or set registry.register",
        ));
    }
    client.register(&subject, version.source)
}

impl Shared {
    /// The role of a topic.
    fn role(&self, name: &str) -> Option<Topic> {
        let of_backfill = || {
            let (live, _) = name.rsplit_once('.')?;
            self.roles.get(live).filter(|topic| written(**topic))
        };
        self.roles.get(name).or_else(of_backfill).copied()
    }

    /// A record as it is written to the topic.
    fn frame(&self, record: &NewRecord) -> Result<NewRecord> {
        let mut record = record.clone();
        let topic = self.role(&record.topic).filter(|topic| written(*topic));
        let (Some(topic), Some(value)) = (topic, &record.value) else { return Ok(record) };
        let context = || format!("frame a record of topic {}", record.topic);
        let hint = "this is a defect of ictflow: report it";
        let Some(id) = self.ids.get(&topic) else {
            return Err(Error::fatal(context(), "the store was opened for reading only", hint));
        };
        match split_single_object(value) {
            Some((print, datum)) if print == newest(topic).fingerprint => {
                record.value = Some(framing::join(*id, datum));
                self.schemas.client().counts().framed.fetch_add(1, Ordering::Relaxed);
                Ok(record)
            }
            _ => Err(Error::fatal(context(), "its value isn't of our newest schema", hint)),
        }
    }

    fn frame_all(&self, records: &[NewRecord]) -> Result<Vec<NewRecord>> {
        records.iter().map(|record| self.frame(record)).collect()
    }
}

impl Topics for Registered {
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>> {
        self.inner.partitions(topic)
    }

    fn ensure(&mut self, topic: &str, partitions: u32, policy: Policy) -> Result<()> {
        self.inner.ensure(topic, partitions, policy)
    }

    fn ends(&mut self, topic: &str) -> Result<Vec<i64>> {
        self.inner.ends(topic)
    }

    fn starts(&mut self, topic: &str) -> Result<Vec<i64>> {
        self.inner.starts(topic)
    }

    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        self.inner.offsets_at(topic, time_ms)
    }

    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn Reader>> {
        let inner = self.inner.reader(topic, from)?;
        let Some(role) = self.shared.role(topic) else { return Ok(inner) };
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(RegisteredReader { inner, shared, name: topic.to_owned(), role, last: None }))
    }

    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        self.inner.append(&self.shared.frame_all(records)?)
    }

    fn writer(&mut self, transactional_id: &str) -> Result<Box<dyn Writer>> {
        let inner = self.inner.writer(transactional_id)?;
        Ok(Box::new(RegisteredWriter { inner, shared: Arc::clone(&self.shared) }))
    }
}

struct RegisteredWriter {
    inner: Box<dyn Writer>,
    shared: Arc<Shared>,
}

impl Writer for RegisteredWriter {
    fn commit(&mut self, records: &[NewRecord], offsets: &[(String, u32, i64)]) -> Result<()> {
        self.inner.commit(&self.shared.frame_all(records)?, offsets)
    }

    fn standing(&mut self, topic: &str) -> Result<()> {
        self.inner.standing(topic)
    }
}

/// A reader that has failed must be dropped: what it took from the topic meanwhile is lost with it.
struct RegisteredReader {
    inner: Box<dyn Reader>,
    shared: Arc<Shared>,
    name: String,
    role: Topic,
    /// The reading of the record before, which is mostly that of the next one.
    last: Option<(u32, Arc<Reading>)>,
}

impl Reader for RegisteredReader {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Record>> {
        let mut records = self.inner.poll(max, wait)?;
        for record in &mut records {
            self.take_in(record)?;
        }
        Ok(records)
    }

    fn positions(&self) -> Vec<i64> {
        self.inner.positions()
    }
}

impl RegisteredReader {
    /// Puts what a framed value says in its place. One that can't be read stays as it is, which no
    /// schema of ours decodes.
    fn take_in(&mut self, record: &mut Record) -> Result<()> {
        let Some((id, datum)) = record.value.as_deref().and_then(framing::split) else { return Ok(()) };
        let reading = match &self.last {
            Some((last, reading)) if *last == id => Some(Arc::clone(reading)),
            _ => self.shared.schemas.reading(self.role, id)?,
        };
        let counts = self.shared.schemas.client().counts();
        let Some(reading) = reading else {
            if is_input(self.role) {
                counts.unreadable.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            // Read as unusable, answers that were paid for would be asked again.
            return Err(Error::fatal(
                format!("read topic {}, partition {}, offset {}", self.name, record.partition, record.offset),
                format!("the schema registry doesn't know id {id}, under which we wrote"),
                "is it the registry that this job ran with? restore its schemas",
            ));
        };
        match reading.read(datum) {
            Ok(value) => {
                record.framed = record.value.replace(value);
                counts.unframed.fetch_add(1, Ordering::Relaxed);
            }
            Err(problem) => {
                counts.unreadable.fetch_add(1, Ordering::Relaxed);
                let (topic, partition, offset) = (&self.name, record.partition, record.offset);
                tracing::debug!(topic, partition, offset, id, problem, "a value can't be read");
            }
        }
        self.last = Some((id, reading));
        Ok(())
    }
}
