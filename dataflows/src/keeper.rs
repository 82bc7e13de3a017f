//! The keeper of snapshots: writes them beside the running job, and finds the one to start from.
//!
//! A snapshot is taken between two epochs, after a commit: the users' states are copied then, and a
//! thread writes them while the job goes on. One is under way at a time. The first of a process, and the
//! first after a failure, holds every user or builds on the one that the process started from; later
//! ones hold the users that changed since.
//!
//! A key of the store is a user with a letter before it for the operator that the state belongs to, so
//! that an operator whose part didn't change isn't written. What the sources refused is by partition, with
//! a letter of its own; a program that doesn't know it passes it over.
//!
//! By hand, without the thread, the copied states are written when the next snapshot is looked for.
//!
//! Memory: the copied states until they are written.

use crossbeam_channel::{Receiver, Sender, bounded};
use ictflow_connectors::snapshots::{Manifest, Meta, Snapshots};
use ictflow_connectors::{Disposition, Error, Result};
use ictflow_operators::recovery::{Extent, Part, Saved, shard};
use ictflow_schemas::epoch::{EpochRecord, WRITER_VERSION};
use ictflow_schemas::framing::hex;
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The format of the states: another one isn't read, and a snapshot of it counts as none.
pub const STATE_FORMAT: u32 = 2;

/// Snapshots that are kept: one may turn out damaged.
pub const KEEP: usize = 2;

/// Tries of a write that fails in passing.
const TRIES: u32 = 5;

/// By shard, the states under their keys; `None` where there is none any more.
type Shards = BTreeMap<u8, BTreeMap<String, Option<Vec<u8>>>>;

struct Work {
    meta: Meta,
    base: Option<Manifest>,
    shards: Shards,
}

/// What was kept since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Snapshots written.
    pub written: u64,
    /// Snapshots that couldn't be.
    pub failures: u64,
    /// The epoch of the newest good one.
    pub epoch: Option<i64>,
    /// Its bytes, those of the snapshots that it builds on included.
    pub bytes: u64,
    /// How long the job stood still for the last one.
    pub pause: Duration,
}

/// Who writes the copied states.
enum Writer {
    /// A thread of its own.
    Thread { work: Option<Sender<Work>>, done: Receiver<Result<Manifest>>, thread: Option<JoinHandle<()>> },
    /// Whoever looks next; until then they wait here.
    Hand(Option<Work>),
}

/// The keeper.
pub struct Keeper {
    store: Arc<Mutex<Snapshots>>,
    job: String,
    interval: Duration,
    taken: Instant,
    base: Option<Manifest>,
    writer: Writer,
    under_way: bool,
    /// Users who were erased: not even their removal is written.
    erased: BTreeSet<String>,
    /// What was kept.
    pub figures: Figures,
}

impl Keeper {
    /// A keeper of a job's snapshots in this store, one an interval.
    pub fn new(store: Snapshots, job: &str, interval: Duration, by_hand: bool) -> Self {
        let store = Arc::new(Mutex::new(store));
        Keeper {
            writer: if by_hand { Writer::Hand(None) } else { thread(store.clone()) },
            store,
            job: job.to_owned(),
            interval,
            taken: Instant::now(),
            base: None,
            under_way: false,
            erased: BTreeSet::new(),
            figures: Figures::default(),
        }
    }

    /// Takes users whose erasure is on record out of kept snapshots that are older: the erasure may have been
    /// cut short before it rewrote them, or a predecessor that was fenced have written one afterwards.
    ///
    /// # Errors
    /// What the store says.
    pub fn mend(&mut self, records: &[EpochRecord]) -> Result<()> {
        let erasures =
            || records.iter().flat_map(|r| r.erasures.iter().map(move |erasure| (r.epoch, erasure)));
        self.erased.extend(erasures().map(|(_, erasure)| erasure.user.clone()));
        if self.erased.is_empty() {
            return Ok(());
        }
        let kept = self.store.lock().unwrap_or_else(PoisonError::into_inner).list(&self.job)?;
        let Some(oldest) = kept.iter().map(|manifest| manifest.meta.epoch).min() else { return Ok(()) };
        let users: BTreeSet<&str> = erasures()
            .filter(|(epoch, _)| *epoch > oldest)
            .map(|(_, erasure)| erasure.user.as_str())
            .collect();
        users.into_iter().try_for_each(|user| self.rewrite_without(user).map(|_| ()))
    }

    /// The newest snapshot of the job that isn't past an epoch, fits the bounds on record and is whole.
    /// One that is damaged is passed over, loudly.
    ///
    /// # Errors
    /// `Fatal` where one was written by a newer version, or the store can't be read.
    pub fn find(&mut self, records: &[EpochRecord], committed: i64) -> Result<Option<EpochRecord>> {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        for manifest in store.list(&self.job)? {
            let record = records.iter().find(|record| record.epoch == manifest.meta.epoch);
            let Some(record) = record.filter(|record| record.epoch <= committed) else { continue };
            if manifest.meta.bounds != digest(record) || manifest.meta.state_format != STATE_FORMAT {
                tracing::warn!(
                    epoch = record.epoch,
                    "a snapshot doesn't belong to the recorded bounds, it is passed over"
                );
                continue;
            }
            match store.load(&manifest, |_, _| Ok(())) {
                Ok(()) => {
                    self.figures.epoch = Some(record.epoch);
                    self.figures.bytes = manifest.bytes();
                    self.base = Some(manifest);
                    return Ok(Some(record.clone()));
                }
                Err(error) if error.disposition == Disposition::Poison => {
                    tracing::warn!(%error, epoch = record.epoch, "a snapshot is damaged, an older one is taken");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Gives the states of the snapshot that was found, shard by shard.
    ///
    /// # Errors
    /// `Fatal` where it was damaged since it was found.
    pub fn load(&mut self, mut put: impl FnMut(u8, Vec<Saved>) -> Result<()>) -> Result<()> {
        let Some(manifest) = &self.base else { return Ok(()) };
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.load(manifest, |shard, entries| {
            put(shard, entries.into_iter().filter_map(|(key, state)| saved(&key, state)).collect())
        })
    }

    /// Whom the next snapshot saves, where one is due: an interval after the last one and none under way.
    pub fn due(&mut self) -> Option<Extent> {
        self.collect();
        (!self.under_way && self.taken.elapsed() >= self.interval).then(|| self.extent())
    }

    /// Whom a snapshot saves that is taken now.
    pub fn extent(&self) -> Extent {
        match &self.base {
            Some(base) if !base.wants_full() => Extent::Changed,
            _ => Extent::All,
        }
    }

    /// Writes the states after an epoch, beside the job.
    pub fn write(&mut self, record: &EpochRecord, extent: Extent, states: Vec<Saved>, pause: Duration) {
        let mut shards = Shards::new();
        for saved in states {
            if saved.state.is_none() && self.erased.contains(&*saved.user) {
                continue;
            }
            let key = format!("{}{}", letter(saved.part), saved.user);
            let state = saved.state.map(|state| state.to_vec());
            shards.entry(shard(&saved.user)).or_default().insert(key, state);
        }
        let meta = Meta {
            state_format: STATE_FORMAT,
            job: self.job.clone(),
            epoch: record.epoch,
            bounds: digest(record),
            writer_version: WRITER_VERSION.to_owned(),
        };
        let base = self.base.clone().filter(|_| extent == Extent::Changed);
        self.figures.pause = pause;
        self.taken = Instant::now();
        let todo = Work { meta, base, shards };
        self.under_way = match &mut self.writer {
            Writer::Thread { work, .. } => work.as_ref().is_some_and(|work| work.send(todo).is_ok()),
            Writer::Hand(waiting) => {
                *waiting = Some(todo);
                true
            }
        };
    }

    /// Waits for the one that is under way.
    pub fn settle(&mut self) {
        self.look(|done| done.recv().ok());
    }

    fn collect(&mut self) {
        self.look(|done| done.try_recv().ok());
    }

    fn look(&mut self, done: impl FnOnce(&Receiver<Result<Manifest>>) -> Option<Result<Manifest>>) {
        if !self.under_way {
            return;
        }
        let done = match &mut self.writer {
            Writer::Thread { done: written, .. } => done(written),
            Writer::Hand(waiting) => waiting.take().map(|work| write(&self.store, &work)),
        };
        if let Some(done) = done {
            self.note(done);
        }
    }

    fn note(&mut self, done: Result<Manifest>) {
        self.under_way = false;
        match done {
            Ok(manifest) => {
                self.figures.written += 1;
                self.figures.epoch = Some(manifest.meta.epoch);
                self.figures.bytes = manifest.bytes();
                self.base = Some(manifest);
            }
            Err(error) => {
                // The users that changed were handed over: the next one has to hold every user.
                tracing::warn!(%error, "a snapshot couldn't be written, the job goes on without it");
                self.figures.failures += 1;
                self.base = None;
            }
        }
    }

    /// Writes every kept snapshot anew without a user, and says how many objects that were.
    ///
    /// # Errors
    /// What the store says.
    pub fn rewrite_without(&mut self, user: &str) -> Result<usize> {
        self.settle();
        self.erased.insert(user.to_owned());
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = [Part::Accept, Part::History, Part::Pairs, Part::Eligible]
            .map(|p| format!("{}{user}", letter(p)));
        let rewritten = store.rewrite_without(&self.job, &keys, shard(user))?;
        let epoch = self.base.as_ref().map(|base| base.meta.epoch);
        self.base = store.list(&self.job)?.into_iter().find(|manifest| Some(manifest.meta.epoch) == epoch);
        Ok(rewritten)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Writer::Thread { work, thread, .. } = &mut self.writer else { return };
        *work = None;
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

fn thread(store: Arc<Mutex<Snapshots>>) -> Writer {
    let ((work, to_do), (report, done)) = (bounded::<Work>(1), bounded(1));
    let thread = std::thread::spawn(move || {
        for work in to_do {
            let written = write(&store, &work);
            if report.send(written).is_err() {
                break;
            }
        }
    });
    Writer::Thread { work: Some(work), done, thread: Some(thread) }
}

fn write(store: &Mutex<Snapshots>, work: &Work) -> Result<Manifest> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let written = try_write(&mut store, work);
        drop(store);
        match written {
            Err(Error { disposition: Disposition::Retry { after }, .. }) if tries < TRIES => {
                std::thread::sleep(after);
            }
            other => return other,
        }
    }
}

fn try_write(store: &mut Snapshots, work: &Work) -> Result<Manifest> {
    let mut writing = store.write_begin(work.meta.clone(), work.base.as_ref())?;
    for (shard, entries) in &work.shards {
        let entries = entries.iter().map(|(key, state)| (key.as_str(), state.as_deref()));
        writing.block(*shard, entries)?;
    }
    let manifest = writing.finish()?;
    store.prune(&work.meta.job, KEEP)?;
    Ok(manifest)
}

fn letter(part: Part) -> char {
    match part {
        Part::Accept => 'a',
        Part::History => 'h',
        Part::Pairs => 'p',
        Part::Eligible => 'e',
        Part::Labels => 'l',
        Part::Refusals => 'r',
    }
}

fn saved(key: &str, state: Vec<u8>) -> Option<Saved> {
    let part = match key.chars().next()? {
        'a' => Part::Accept,
        'h' => Part::History,
        'p' => Part::Pairs,
        'e' => Part::Eligible,
        'l' => Part::Labels,
        'r' => Part::Refusals,
        _ => return None,
    };
    Some(Saved { user: key[1..].into(), part, state: Some(state.into()) })
}

/// The digest of a bounds record: a snapshot belongs to just these bounds.
fn digest(record: &EpochRecord) -> String {
    hex(blake3::hash(&record.encode()).as_bytes())
}
