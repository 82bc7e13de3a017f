//! Retrieval: for every live pair the demonstrations that its vector is made of.
//!
//! **Computes**: for each pair of [`crate::pairs`] whose item exists and has a vector, the selection
//! of the source ([`global`]) from the pool of demonstrations, with the query: the user's newest
//! history with the states of the items that exist, and the exact sum of their vectors.
//!
//! **Maintained**: an epoch touches a pair where its user's history, its item's state, the state of
//! an item in the history, or a demonstration among its best changed. Everything else stays. Of the touched
//! pairs just those are emitted that stand otherwise than before: live or not, the view, the item, the
//! selection with its scores. A demonstration that only was in reserve goes unseen.
//! While the clock says not to publish only the pools are kept; the first epoch that publishes
//! computes every live pair once.
//!
//! **Two searches** ([`Search`]) with one contract, a batch of pairs in and scored demonstrations out:
//! * `Exact` scans the pool here, and the selections are an exactly maintained view: a demonstration
//!   that arrives, changes or leaves touches just the pairs whose best it changes.
//! * `Stored` asks a store of points outside timely. An epoch then has two times: at the first the
//!   touched pairs ask ([`Lookup`]), at the second the candidates come back ([`Input::Found`]), ids that
//!   aren't in the pool are dropped and the rest is scored with the same exact integers. A pair is
//!   looked up when its query changed, a demonstration that it uses left or changed, or it has fewer
//!   than K and a new one came; so a new demonstration alone doesn't reach a pair that has K.
//!
//! **Memory**: the broadcast catalog and pool; vectors by live user and live item, never by pair; 2K
//! ranks a pair, K of them for `Stored`; for `Exact` rows of scores by live user and live item. Within an
//! epoch what the touched pairs stood on, K shared demonstrations each.
//!
//! A source is one file here with one contract: (pair, pool) → scored demonstrations in order, exact
//! and a pure function of the logs.

pub mod global;
mod maintain;
pub mod neighbours;
pub mod ring;
pub mod same_item;
pub mod same_user;
pub mod sketch;
pub(crate) mod split;
mod stored;
#[cfg(test)]
mod tests;
pub mod unit;
pub mod votes;

use crate::Epoch;
use crate::clock::Clock;
use crate::staged::{route, staged};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::history::History;
use ictflow_schemas::vector::{Quantised, VectorSum};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

pub use ictflow_schemas::config::Search;
pub use maintain::Retrieval;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A pair, as far as the user's side says.
    Pair((Id, Id)),
    /// A user's newest history.
    Newest(Id, History),
    /// An item's state, for the worker named.
    Item(u64, (Id, Item)),
    /// A demonstration, for the worker named.
    Demonstration(u64, Arc<Demonstration>),
    /// Candidates of a pair from the store of points.
    Found(Found),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
}

/// What is known of a pair from outside the dataflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Found {
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// Ids of points: candidates, or what the published feature uses.
    pub ids: Vec<Uuid>,
    /// Whether the ids are those of the feature that stood when the job was started: then the pair
    /// keeps them until something changes.
    pub standing: bool,
}

/// What the operator gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A pair that stands otherwise than before.
    Pair(PairUpdate),
    /// A pair that asks for candidates.
    Lookup(Lookup),
    /// Of a pair looked up: how many of the exactly best demonstrations were found, and how many these
    /// are. One pair in [`MEASURED`] is measured, by a hash of its ids.
    Recall(u32, u32),
}

impl Output {
    /// The changed pair.
    pub fn pair(self) -> Option<PairUpdate> {
        match self {
            Output::Pair(pair) => Some(pair),
            _ => None,
        }
    }

    /// The lookup.
    pub fn lookup(self) -> Option<Lookup> {
        match self {
            Output::Lookup(lookup) => Some(lookup),
            _ => None,
        }
    }

    /// The measured recall: found, of so many.
    pub fn recall(self) -> Option<(u32, u32)> {
        match self {
            Output::Recall(found, of) => Some((found, of)),
            _ => None,
        }
    }
}

/// One pair looked up in so many is also scanned for exactly, to report recall: at 100,000
/// demonstrations a scan takes about 10 ms.
pub const MEASURED: u64 = 64;

/// A pair that asks for candidates, with its query.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lookup {
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// The sum of the vectors of the user's history.
    pub history: VectorSum,
    /// The item's vector.
    pub vector: Quantised,
}

/// The user's side of a query, shared by all pairs of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserView {
    /// The newest history.
    pub history: History,
    /// Its items with the states of those that exist, in the same order.
    pub items: Vec<(Id, Option<Item>)>,
    /// The sum of the vectors of those that have one.
    pub text: VectorSum,
}

/// A live pair with its selection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Retrieved {
    /// The user's side.
    pub view: Arc<UserView>,
    /// The item's state; it has a vector.
    pub item: Item,
    /// The selection with scores, ascending, nearest last.
    pub used: Vec<(Arc<Demonstration>, i64)>,
}

/// What became of a changed pair: what it is made of now, or that it has no feature.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PairUpdate {
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// `None`: the pair isn't live, or its item has no vector.
    pub retrieved: Option<Retrieved>,
    /// Whether the pair is live; a live one without a feature waits for a vector.
    pub live: bool,
}

/// The operator's inputs. `items` and `demonstrations` are broadcast.
pub struct Inputs<'s> {
    /// Pairs, as far as the user's side says.
    pub pairs: VecCollection<'s, Epoch, (Id, Id), isize>,
    /// Users' newest histories.
    pub newest: VecCollection<'s, Epoch, (Id, History), isize>,
    /// Items' states.
    pub items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    /// The pool.
    pub demonstrations: VecCollection<'s, Epoch, (u64, Arc<Demonstration>), isize>,
    /// Candidates from the store of points; empty for `Exact`.
    pub found: VecCollection<'s, Epoch, Found, isize>,
    /// The clock.
    pub clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
}

/// The operator `retrieval` for K demonstrations.
pub fn retrieval<'s>(
    inputs: Inputs<'s>,
    search: Search,
    k: usize,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Retrieval::new(search, k);
    let Inputs { pairs, newest, items, demonstrations, found, clock } = inputs;
    let input = pairs
        .map(Input::Pair)
        .concat(newest.map(|(user, history)| Input::Newest(user, history)))
        .concat(items.map(|(worker, item)| Input::Item(worker, item)))
        .concat(demonstrations.map(|(worker, c)| Input::Demonstration(worker, c)))
        .concat(found.map(Input::Found))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Pair((user, _)) | Input::Newest(user, _) => route(user),
        Input::Found(found) => route(&found.user),
        Input::Item(worker, _) | Input::Demonstration(worker, _) | Input::Clock(worker, _) => *worker,
    };
    staged(input, "retrieval", by, move |_, changes, out| state.step(changes, out))
}
