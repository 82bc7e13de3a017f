//! The store of points beside the dataflow: written before an epoch is committed, asked for candidates.
//!
//! The dataflow's pool is the truth. The first write of a process, and the first after any failure,
//! compares the whole store with the pool by digests and writes what differs; later ones write an
//! epoch's changes. So a store that lost its points, or has some of an epoch that was never committed,
//! comes right by itself.
//!
//! Order for an epoch: its points are acknowledged, its pairs are looked up, its transaction is
//! committed. A record on `features` therefore never names a point that the store doesn't have.

use ictflow_connectors::points::{Point, Points, Query, vanished};
use ictflow_connectors::{Error, Result};
use ictflow_operators::Changes;
use ictflow_operators::retrieval::{Found, Lookup};
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::framing::hex;
use ictflow_schemas::vector::SCALE;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How many epochs a point that left stays marked before it is removed: a write that is repeated by
/// the network that much later doesn't exist.
const PURGE_AFTER: i64 = 256;

/// Points written or pairs looked up in one call: about a second's work, after which the job turns.
pub const SLICE: usize = 2_048;

/// What was written and asked since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Points written.
    pub upserted: u64,
    /// Points marked as deleted.
    pub deleted: u64,
    /// Pairs looked up.
    pub lookups: u64,
    /// Of measured lookups, the exactly best demonstrations that were found.
    pub recalled: u64,
    /// How many these are.
    pub measured: u64,
    /// Writes and lookups that failed in passing.
    pub failures: u64,
    /// How long the last epoch's writes took, tries that failed included.
    pub write_took: Duration,
    /// How long its lookups took.
    pub lookup_took: Duration,
}

/// The store with what is known of it.
pub struct PointStore {
    store: Box<dyn Points>,
    over_fetch: usize,
    width: usize,
    /// Whether the store held just the pool when it was last written.
    in_step: bool,
    /// What an epoch's write has still to write and to mark.
    todo: Option<(Vec<Point>, Vec<Uuid>)>,
    /// The last epoch after which marked points were removed.
    purged: i64,
    /// Added to epochs: a collection that a backfill filled has points of the backfill's epochs, and the
    /// job's come after them.
    base: i64,
    /// Whether readers from outside are led to the collection: by the job, never by a backfill.
    leads: bool,
    /// Whether they are since the collection was last compared.
    led: bool,
    /// What was written and asked.
    pub figures: Figures,
}

impl PointStore {
    /// A store for vectors of this width; for every demonstration of a selection it gives `over_fetch`
    /// candidates of each label.
    pub fn new(store: Box<dyn Points>, over_fetch: usize, width: usize) -> Self {
        PointStore {
            store,
            over_fetch,
            width,
            in_step: false,
            todo: None,
            purged: 0,
            base: 0,
            leads: true,
            led: false,
            figures: Figures::default(),
        }
    }

    /// Goes on in this collection, or in the configured one. `base` is the greatest epoch of whoever filled
    /// it before; with `leads` readers from outside are led to it.
    pub fn place(&mut self, collection: Option<&str>, base: i64, leads: bool) {
        if let Some(collection) = collection {
            self.store.select(collection);
        }
        (self.base, self.leads, self.led, self.in_step) = (base, leads, false, false);
    }

    /// Begins an epoch.
    pub fn begin(&mut self) {
        self.todo = None;
        (self.figures.write_took, self.figures.lookup_took) = Default::default();
    }

    /// Says that the pool went on without the store.
    pub fn fall_behind(&mut self) {
        self.in_step = false;
    }

    /// Brings the store to the pool as it is after an epoch, a slice a call, so that a job goes on turning
    /// meanwhile. Says whether all is done. Doing it again is harmless.
    ///
    /// # Errors
    /// `Retry` where the store doesn't answer; `Fatal` where the collection isn't this job's.
    pub fn write(
        &mut self,
        epoch: i64,
        pool: &BTreeSet<Arc<Demonstration>>,
        changes: &Changes<Arc<Demonstration>>,
    ) -> Result<bool> {
        let begun = Instant::now();
        let written = self.try_write(epoch, pool, changes);
        self.figures.write_took += begun.elapsed();
        self.figures.failures += u64::from(written.is_err());
        written
    }

    fn try_write(
        &mut self,
        epoch: i64,
        pool: &BTreeSet<Arc<Demonstration>>,
        changes: &Changes<Arc<Demonstration>>,
    ) -> Result<bool> {
        let (mut points, mut deleted) = if let Some(todo) = self.todo.take() {
            todo
        } else if self.in_step {
            let net = net(changes);
            let gone = net.iter().filter(|(_, now)| now.is_none()).map(|(id, _)| *id).collect();
            (net.into_values().flatten().map(|c| point(c)).collect(), gone)
        } else {
            self.difference(epoch, pool)?
        };
        // A failure leaves nothing to go on with: the next call compares the whole store again.
        self.in_step = false;
        let later = (points.split_off(points.len().min(SLICE)), deleted.split_off(deleted.len().min(SLICE)));
        if !points.is_empty() || !deleted.is_empty() {
            self.store.write(self.base + epoch, &points, &deleted)?;
            self.figures.upserted += points.len() as u64;
            self.figures.deleted += deleted.len() as u64;
        }
        let done = later.0.is_empty() && later.1.is_empty();
        if done {
            self.in_step = true;
        } else {
            self.todo = Some(later);
        }
        Ok(done)
    }

    /// What has to be written so that the store holds just the pool.
    fn difference(
        &mut self,
        epoch: i64,
        pool: &BTreeSet<Arc<Demonstration>>,
    ) -> Result<(Vec<Point>, Vec<Uuid>)> {
        self.led = false;
        self.store.prepare(self.width)?;
        let standing = self.store.list()?;
        if let Some(later) =
            standing.values().map(|point| point.epoch).filter(|e| *e > self.base + epoch).max()
        {
            return Err(Error::fatal(
                format!("write the points of epoch {epoch}"),
                format!("the collection has points of epoch {later}"),
                "it belongs to another job, or to an earlier life of this one: name a collection of its own, or delete it",
            ));
        }
        let mut points = Vec::new();
        let mut live = BTreeSet::new();
        for demonstration in pool {
            live.insert(demonstration.id);
            let point = point(demonstration);
            let stands = standing
                .get(&point.id)
                .is_some_and(|standing| !standing.deleted && standing.digest == point.digest);
            if !stands {
                points.push(point);
            }
        }
        let gone = |(id, point): (&Uuid, &ictflow_connectors::points::Standing)| {
            (!point.deleted && !live.contains(id)).then_some(*id)
        };
        Ok((points, standing.iter().filter_map(gone).collect()))
    }

    /// Whether the store held the whole pool when it last answered.
    pub fn in_step(&self) -> bool {
        self.in_step
    }

    /// The candidates of these lookups, for K demonstrations each. A caller asks for at most [`SLICE`]
    /// pairs at a time.
    ///
    /// # Errors
    /// `Retry` where the store doesn't answer.
    pub fn find(&mut self, lookups: &[Lookup], k: usize) -> Result<Vec<Found>> {
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        let queries: Vec<Query> = lookups.iter().map(|lookup| query(lookup, self.width)).collect();
        let begun = Instant::now();
        let answers = self.store.nearest(&queries, k * self.over_fetch);
        self.figures.lookup_took += begun.elapsed();
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                // The points stand, unless the store lost them.
                self.in_step &= !vanished(&error);
                self.figures.failures += 1;
                return Err(error);
            }
        };
        if answers.len() != lookups.len() {
            return Err(Error::fatal(
                "look pairs up",
                format!("{} answers to {} lookups", answers.len(), lookups.len()),
                "this is a defect of the store's connector",
            ));
        }
        self.figures.lookups += lookups.len() as u64;
        let found = |(lookup, ids): (&Lookup, Vec<Uuid>)| Found {
            user: lookup.user.clone(),
            item: lookup.item.clone(),
            ids,
            standing: false,
        };
        Ok(lookups.iter().zip(answers).map(found).collect())
    }

    /// After a commit: leads readers from outside here, where they aren't yet, and removes, now and then, what
    /// was marked as deleted long ago. A failure leaves either for the next time: marks are in nobody's way, and
    /// readers find what they had.
    pub fn tidy(&mut self, epoch: i64) {
        if self.leads && self.in_step && !self.led {
            match self.store.activate() {
                Ok(()) => self.led = true,
                Err(error) => {
                    tracing::warn!(%error, "readers from outside aren't led to the collection yet, trying again after the next epoch");
                }
            }
        }
        if epoch < self.purged + PURGE_AFTER {
            return;
        }
        match self.store.purge(self.base + epoch - PURGE_AFTER) {
            Ok(()) => self.purged = epoch,
            Err(error) => {
                tracing::warn!(%error, "points marked as deleted couldn't be removed, trying again after the next epoch");
            }
        }
    }
}

/// By point id what an epoch's changes leave: the demonstration, or nothing.
fn net(changes: &Changes<Arc<Demonstration>>) -> BTreeMap<Uuid, Option<&Arc<Demonstration>>> {
    let mut net = BTreeMap::new();
    for (demonstration, diff) in changes {
        let place = net.entry(demonstration.id).or_insert(None);
        if *diff > 0 {
            *place = Some(demonstration);
        }
    }
    net
}

fn floats(vector: &[i16]) -> impl Iterator<Item = f32> {
    vector.iter().map(|x| f32::from(*x) / SCALE)
}

/// A demonstration as a point.
pub fn point(demonstration: &Demonstration) -> Point {
    let text = |id: &ictflow_schemas::Id| id.to_string();
    let state = &demonstration.item_state;
    let mut point = Point {
        id: demonstration.id,
        sample: floats(&demonstration.mean).chain(floats(demonstration.item_vector())).collect(),
        cot: floats(&demonstration.cot).collect(),
        user: demonstration.identity.user.to_string(),
        item: demonstration.item.to_string(),
        positive: demonstration.positive,
        label_time: demonstration.label_time,
        history: demonstration.history.iter().map(|(item, _)| item.to_string()).collect(),
        creator: state.creator.as_ref().map(text),
        categories: state.categories.iter().map(text).collect(),
        digest: String::new(),
    };
    point.digest = digest(&point);
    point
}

/// A digest of all that a point is made of. It stays inside one store, so its form is free to change:
/// then every point is written once more.
fn digest(point: &Point) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    };
    for vector in [&point.sample, &point.cot] {
        part(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    }
    part(point.user.as_bytes());
    part(point.item.as_bytes());
    part(&[u8::from(point.positive), u8::from(point.creator.is_some())]);
    part(&point.label_time.to_be_bytes());
    part(point.creator.as_deref().unwrap_or_default().as_bytes());
    for list in [&point.history, &point.categories] {
        part(&(list.len() as u64).to_be_bytes());
        list.iter().for_each(|member| part(member.as_bytes()));
    }
    hex(&hasher.finalize().as_bytes()[..16])
}

fn query(lookup: &Lookup, width: usize) -> Query {
    let sample = lookup.history.mean_f32(width).into_iter().chain(floats(&lookup.vector)).collect();
    Query { sample, user: lookup.user.to_string(), item: lookup.item.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_connectors::points::Standing;
    use std::sync::Mutex;

    /// A store in memory that fails when told to.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Inner>>);

    #[derive(Default)]
    struct Inner {
        points: BTreeMap<Uuid, (Standing, Vec<f32>)>,
        writes: Vec<(i64, usize, usize)>,
        failures: usize,
    }

    impl Memory {
        fn gate(&self) -> Result<()> {
            let mut inner = self.0.lock().unwrap();
            if inner.failures == 0 {
                return Ok(());
            }
            inner.failures -= 1;
            Err(Error::retry(std::time::Duration::ZERO, "write", "unavailable", "wait"))
        }
    }

    impl Points for Memory {
        fn prepare(&mut self, _width: usize) -> Result<()> {
            self.gate()
        }
        fn list(&mut self) -> Result<BTreeMap<Uuid, Standing>> {
            Ok(self.0.lock().unwrap().points.iter().map(|(id, (s, _))| (*id, s.clone())).collect())
        }
        fn write(&mut self, epoch: i64, points: &[Point], deleted: &[Uuid]) -> Result<()> {
            self.gate()?;
            let mut inner = self.0.lock().unwrap();
            inner.writes.push((epoch, points.len(), deleted.len()));
            for point in points {
                let standing = Standing { epoch, deleted: false, digest: point.digest.clone() };
                inner.points.insert(point.id, (standing, point.sample.clone()));
            }
            for id in deleted {
                if let Some((standing, _)) = inner.points.get_mut(id) {
                    (standing.deleted, standing.epoch) = (true, epoch);
                }
            }
            Ok(())
        }
        fn nearest(&mut self, queries: &[Query], _limit: usize) -> Result<Vec<Vec<Uuid>>> {
            self.gate()?;
            Ok(queries.iter().map(|_| Vec::new()).collect())
        }
        fn purge(&mut self, _epoch: i64) -> Result<()> {
            Ok(())
        }
    }

    fn demonstration(n: u8, label_time: i64) -> Arc<Demonstration> {
        use ictflow_schemas::catalog::{ItemState, ItemVector};
        use ictflow_schemas::framing::text_digest;
        let text = text_digest("t");
        Arc::new(Demonstration {
            label_time,
            id: Uuid::from_u128(u128::from(n)),
            identity: ictflow_schemas::history::Identity {
                user: "u".into(),
                event_time: 0,
                event_id: "e".into(),
            },
            item: "i".into(),
            item_state: Arc::new(ItemState {
                text,
                creator: None,
                categories: vec![],
                vector: Some(ItemVector { text, vector: vec![16384, 0].into() }),
            }),
            positive: true,
            history: vec![],
            text: Default::default(),
            mean: vec![0, 8192].into(),
            cot: vec![0, 16384].into(),
            cot_key: text,
            fresh: true,
            cot_created_at: 0,
        })
    }

    #[test]
    fn a_point_holds_the_vectors_that_scores_are_made_of() {
        let point = point(&demonstration(1, 5));
        assert_eq!(point.sample, [0.0, 0.5, 1.0, 0.0]);
        assert_eq!(point.cot, [0.0, 1.0]);
        let later = super::point(&demonstration(1, 6));
        assert_ne!(point.digest, later.digest);
    }

    #[test]
    fn the_first_write_and_the_one_after_a_failure_compare_the_whole_store() {
        let memory = Memory::default();
        let mut store = PointStore::new(Box::new(memory.clone()), 4, 2);
        let [a, b, c] = [demonstration(1, 1), demonstration(2, 2), demonstration(3, 3)];
        let pool: BTreeSet<_> = [a.clone(), b.clone()].into();
        store.write(5, &pool, &vec![]).unwrap();
        assert_eq!(memory.0.lock().unwrap().writes, [(5, 2, 0)], "the pool, whatever the epoch's changes");
        // A change of one: out and in again under one id.
        let changed = demonstration(2, 9);
        let pool: BTreeSet<_> = [a.clone(), changed.clone()].into();
        store.write(6, &pool, &vec![(b, -1), (changed.clone(), 1)]).unwrap();
        assert_eq!(memory.0.lock().unwrap().writes[1], (6, 1, 0));
        // A failure: nothing is said to be written, and the next write finds out what is missing.
        memory.0.lock().unwrap().failures = 1;
        let pool: BTreeSet<_> = [changed.clone(), c.clone()].into();
        let changes = vec![(a, -1), (c.clone(), 1)];
        assert!(store.write(7, &pool, &changes).is_err());
        memory.0.lock().unwrap().points.remove(&changed.id);
        store.write(7, &pool, &changes).unwrap();
        assert_eq!(memory.0.lock().unwrap().writes[2], (7, 2, 1), "the lost one too");
        store.write(8, &pool, &vec![]).unwrap();
        assert_eq!(memory.0.lock().unwrap().writes.len(), 3, "nothing to write, nothing asked");
    }

    #[test]
    fn a_collection_that_is_ahead_belongs_to_another_job() {
        let memory = Memory::default();
        let pool: BTreeSet<_> = [demonstration(1, 1)].into();
        PointStore::new(Box::new(memory.clone()), 4, 2).write(9, &pool, &vec![]).unwrap();
        let error = PointStore::new(Box::new(memory), 4, 2).write(8, &pool, &vec![]).unwrap_err();
        assert!(error.to_string().contains("points of epoch 9"), "{error}");
    }
}
