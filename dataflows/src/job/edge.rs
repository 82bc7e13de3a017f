//! The edges of a commit: the points between which a crash must make no difference.
//!
//! A test hangs a hook on them and ends the process there. In production there is none.

use std::fmt;
use std::sync::Arc;

/// A point on an epoch's way from its bounds to its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// A recorded epoch was run again while the state is rebuilt.
    Rebuilding,
    /// Answers were appended to their log.
    Journaled,
    /// The bounds record is committed.
    BoundsRecorded,
    /// The store of points has acknowledged the epoch's points; also where there is none.
    PointsAcknowledged,
    /// All is ready for the transaction.
    BeforeCommit,
    /// The transaction is committed.
    Committed,
}

impl Edge {
    /// All edges.
    pub const ALL: [Edge; 6] = [
        Edge::Rebuilding,
        Edge::Journaled,
        Edge::BoundsRecorded,
        Edge::PointsAcknowledged,
        Edge::BeforeCommit,
        Edge::Committed,
    ];
}

/// What is called at each edge, with the epoch.
#[derive(Clone, Default)]
pub struct Edges(Option<Arc<dyn Fn(Edge, i64) + Send + Sync>>);

impl Edges {
    /// Calls this at every edge.
    pub fn new(hook: impl Fn(Edge, i64) + Send + Sync + 'static) -> Self {
        Edges(Some(Arc::new(hook)))
    }

    /// Passes an edge.
    pub(super) fn pass(&self, edge: Edge, epoch: i64) {
        if let Some(hook) = &self.0 {
            hook(edge, epoch);
        }
    }
}

impl fmt::Debug for Edges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Edges(a hook)" } else { "Edges(none)" })
    }
}
