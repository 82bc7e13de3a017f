//! A store of points in memory: guarded by epochs, and it may fail before or after it did what it was asked.

use super::log::Defect;
use ictflow_connectors::points::{Point, Points, Query, Standing};
use ictflow_connectors::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use uuid::Uuid;

/// How the next operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    Before,
    /// It is done, and its acknowledgement is lost.
    After,
}

struct Stored {
    standing: Standing,
    point: Point,
}

#[derive(Default)]
struct Inner {
    points: BTreeMap<Uuid, Stored>,
    fault: Option<Fault>,
    defect: Option<Defect>,
    writes: u64,
}

/// A handle on the store.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Inner>>);

impl Store {
    /// An empty store.
    pub fn new(defect: Option<Defect>) -> Self {
        Store(Arc::new(Mutex::new(Inner { defect, ..Inner::default() })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Sets how the next operation fails.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.inner().fault = fault;
    }

    /// Takes the defect away.
    pub fn mend(&self) {
        self.inner().defect = None;
    }

    /// Whether a point stands.
    pub fn stands(&self, id: &Uuid) -> bool {
        self.inner().points.get(id).is_some_and(|stored| !stored.standing.deleted)
    }

    /// The points that stand.
    pub fn standing(&self) -> Vec<Uuid> {
        let inner = self.inner();
        let live = inner.points.iter().filter(|(_, stored)| !stored.standing.deleted);
        live.map(|(id, _)| *id).collect()
    }
}

fn away() -> Error {
    Error::retry(Duration::ZERO, "ask the store of points", "it is away", "it comes back")
}

impl Inner {
    fn before(&mut self) -> Result<()> {
        match self.fault {
            Some(Fault::Before) => {
                self.fault = None;
                Err(away())
            }
            _ => Ok(()),
        }
    }

    fn after(&mut self) -> Result<()> {
        match self.fault.take() {
            Some(_) => Err(away()),
            None => Ok(()),
        }
    }
}

impl Points for Store {
    fn prepare(&mut self, _width: usize) -> Result<()> {
        self.inner().before()
    }

    fn list(&mut self) -> Result<BTreeMap<Uuid, Standing>> {
        let mut inner = self.inner();
        inner.before()?;
        Ok(inner.points.iter().map(|(id, stored)| (*id, stored.standing.clone())).collect())
    }

    fn write(&mut self, epoch: i64, points: &[Point], deleted: &[Uuid]) -> Result<()> {
        let mut inner = self.inner();
        inner.before()?;
        inner.writes += 1;
        if inner.defect == Some(Defect::EarlyAcknowledgement) && inner.writes.is_multiple_of(2) {
            return Ok(());
        }
        for point in points {
            let later = inner.points.get(&point.id).is_some_and(|stored| stored.standing.epoch > epoch);
            if !later {
                let standing = Standing { epoch, deleted: false, digest: point.digest.clone() };
                inner.points.insert(point.id, Stored { standing, point: point.clone() });
            }
        }
        for id in deleted {
            if let Some(stored) = inner.points.get_mut(id)
                && stored.standing.epoch <= epoch
            {
                (stored.standing.deleted, stored.standing.epoch) = (true, epoch);
            }
        }
        inner.after()
    }

    fn nearest(&mut self, queries: &[Query], limit: usize) -> Result<Vec<Vec<Uuid>>> {
        let mut inner = self.inner();
        inner.before()?;
        let nearest = |query: &Query| {
            let side = |positive: bool| {
                let mut scored: Vec<(f32, Uuid)> = inner
                    .points
                    .values()
                    .filter(|s| !s.standing.deleted && s.point.positive == positive)
                    .filter(|s| (&s.point.user, &s.point.item) != (&query.user, &query.item))
                    .map(|s| (s.point.sample.iter().zip(&query.sample).map(|(a, b)| a * b).sum(), s.point.id))
                    .collect();
                scored.sort_by(|a, b| b.0.total_cmp(&a.0));
                scored.into_iter().take(limit).map(|(_, id)| id).collect::<Vec<Uuid>>()
            };
            [side(true), side(false)].concat()
        };
        Ok(queries.iter().map(nearest).collect())
    }

    fn purge(&mut self, epoch: i64) -> Result<()> {
        let mut inner = self.inner();
        inner.before()?;
        inner.points.retain(|_, stored| !(stored.standing.deleted && stored.standing.epoch <= epoch));
        Ok(())
    }
}
