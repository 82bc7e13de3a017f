//! Retrieval: for every live pair the demonstrations that its vector is made of.
//!
//! **Computes**: for each pair of [`crate::pairs`] whose item exists and has a vector, the selection
//! of the source ([`global`]) from the pool of demonstrations, with the query: the user's newest
//! history with the states of the items that exist, and the exact sum of their vectors.
//!
//! **Maintained**: an epoch touches a pair where its user's history, its item's state, the state of
//! an item in the history, or a demonstration among its best changed. Everything else stays.
//! While the clock says not to publish only the pools are kept; the first epoch that publishes
//! computes every live pair once.
//!
//! **Memory**: the broadcast catalog and pool; vectors and rows by live user and live item, never by
//! pair; 2K ranks a pair.
//!
//! A source is one file here with one contract: (pair, pool) → scored demonstrations in order, exact
//! and a pure function of the logs.

pub mod global;
mod split;

#[cfg(test)]
mod tests;

use crate::catalog::states_of;
use crate::clock::Clock;
use crate::index::{set, unlink};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use global::{Best, ItemRow, Pool, UserRow};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::history::History;
use ictflow_schemas::vector::VectorSum;
use serde::{Deserialize, Serialize};
use split::SplitSum;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

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
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
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

/// What became of a touched pair: what it is made of now, or that it has no feature.
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

#[derive(Debug, Default)]
struct User {
    history: History,
    /// The pairs of the user with their best demonstrations, `None` where not computed.
    pairs: HashMap<Id, Option<Best>>,
    view: Arc<UserView>,
    /// The view's text, as rows are computed from it.
    text: SplitSum,
    row: UserRow,
    /// Whether `view` and `row` stand.
    ready: bool,
}

#[derive(Debug, Default)]
struct Target {
    users: HashSet<Id>,
    row: Option<ItemRow>,
}

/// The state of the operator.
#[derive(Debug)]
pub struct Retrieval {
    k: usize,
    items: HashMap<Id, Item>,
    pool: Pool,
    users: HashMap<Id, User>,
    /// By item, the users who have a pair with it.
    targets: HashMap<Id, Target>,
    /// By item, the users with pairs whose history has it.
    readers: HashMap<Id, HashSet<Id>>,
    /// By slot, the pairs that hold it among their best.
    holders: HashMap<usize, HashSet<(Id, Id)>>,
    publishing: bool,
}

/// What an epoch touches.
#[derive(Default)]
struct Touched {
    /// Users whose view has to be made anew.
    views: BTreeSet<Id>,
    /// Items whose state changed.
    items: BTreeSet<Id>,
    /// Pairs to emit.
    pairs: BTreeSet<(Id, Id)>,
    /// Pairs whose best has to be scanned for.
    stale: BTreeSet<(Id, Id)>,
    /// Slots emptied.
    removed: BTreeSet<usize>,
    /// Slots filled.
    added: BTreeSet<usize>,
}

impl Retrieval {
    /// An empty state for K demonstrations.
    pub fn new(k: usize) -> Self {
        Retrieval {
            k,
            items: HashMap::new(),
            pool: Pool::default(),
            users: HashMap::new(),
            targets: HashMap::new(),
            readers: HashMap::new(),
            holders: HashMap::new(),
            publishing: false,
        }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<PairUpdate>) {
        let mut touched = Touched::default();
        let mut arrived = Vec::new();
        let mut histories: HashMap<Id, Option<History>> = HashMap::new();
        let mut publish = self.publishing;
        for (input, diff) in changes {
            match input {
                Input::Clock(_, clock) => publish |= clock.publish,
                Input::Item(_, (id, item)) => {
                    set(&mut self.items, id.clone(), item, diff);
                    touched.items.insert(id);
                }
                Input::Demonstration(_, demonstration) if diff > 0 => arrived.push(demonstration),
                Input::Demonstration(_, demonstration) => {
                    touched.removed.extend(self.pool.remove(&demonstration))
                }
                Input::Newest(user, history) => {
                    let newest = histories.entry(user).or_default();
                    if diff > 0 {
                        *newest = Some(history);
                    }
                }
                Input::Pair((user, item)) => {
                    if diff > 0 {
                        self.users.entry(user.clone()).or_default().pairs.insert(item.clone(), None);
                        self.targets.entry(item.clone()).or_default().users.insert(user.clone());
                    } else {
                        self.drop_pair(&user, &item);
                        // With the last pair the view goes too.
                        if self.users.get(&user).is_some_and(|state| state.pairs.is_empty()) {
                            touched.views.insert(user.clone());
                        }
                    }
                    touched.pairs.insert((user, item));
                }
            }
        }
        // Slots are numbered in an order that doesn't depend on the workers.
        arrived.sort();
        touched.added.extend(arrived.into_iter().map(|demonstration| self.pool.insert(demonstration)));
        for (user, history) in histories {
            self.users.entry(user.clone()).or_default().history = history.unwrap_or_default();
            touched.views.insert(user);
        }
        if publish {
            if !self.publishing {
                self.publishing = true;
                touched.views.extend(self.users.keys().cloned());
                let all = self.users.iter();
                touched.pairs.extend(
                    all.flat_map(|(user, state)| state.pairs.keys().map(|item| (user.clone(), item.clone()))),
                );
            }
            self.refresh(&mut touched);
            self.emit(touched.pairs, out);
        }
        self.pool.reuse(touched.removed);
    }

    /// Brings views, rows and the best of the touched pairs up to date, and adds to the touched pairs.
    fn refresh(&mut self, touched: &mut Touched) {
        for item in &touched.items {
            touched.views.extend(self.readers.get(item).into_iter().flatten().cloned());
            if let Some(target) = self.targets.get_mut(item) {
                target.row = None;
                for user in &target.users {
                    touched.pairs.insert((user.clone(), item.clone()));
                    touched.stale.insert((user.clone(), item.clone()));
                }
            }
        }
        // A user gets a view with the first pair.
        touched
            .views
            .extend(touched.pairs.iter().map(|(user, _)| user).filter(|u| self.lacks_view(u)).cloned());
        for user in &touched.views {
            self.make_view(user);
            for item in self.users.get(user).into_iter().flat_map(|state| state.pairs.keys()) {
                touched.pairs.insert((user.clone(), item.clone()));
                touched.stale.insert((user.clone(), item.clone()));
            }
        }
        for pair in touched.removed.iter().filter_map(|slot| self.holders.get(slot)).flatten() {
            touched.pairs.insert(pair.clone());
            touched.stale.insert(pair.clone());
        }
        self.update_rows(&touched.added);
        let scanned: Vec<(Id, Id)> = touched
            .pairs
            .iter()
            .filter(|pair| touched.stale.contains(*pair) || self.lacks_best(pair))
            .cloned()
            .collect();
        for pair in &scanned {
            let best = self.scan(pair);
            self.set_best(pair, best);
        }
        if !touched.added.is_empty() {
            touched.stale.extend(scanned);
            self.offer(touched);
        }
    }

    fn lacks_best(&self, pair: &(Id, Id)) -> bool {
        self.users.get(&pair.0).and_then(|state| state.pairs.get(&pair.1)).is_some_and(Option::is_none)
    }

    fn lacks_view(&self, user: &Id) -> bool {
        self.users.get(user).is_some_and(|state| !state.ready && !state.pairs.is_empty())
    }

    fn make_view(&mut self, user: &Id) {
        let Some(state) = self.users.get_mut(user) else { return };
        let view = if state.pairs.is_empty() {
            UserView::default()
        } else {
            let (items, text) = states_of(&state.history, &self.items);
            UserView { history: state.history.clone(), items, text }
        };
        state.ready = !state.pairs.is_empty();
        state.text = SplitSum::new(&view.text);
        state.row = if state.ready { UserRow::new(&state.text, &self.pool) } else { UserRow::default() };
        let view = Arc::new(view);
        let old = std::mem::replace(&mut state.view, view.clone());
        for (item, _) in &old.items {
            unlink(&mut self.readers, item, user);
        }
        for (item, _) in &view.items {
            self.readers.entry(item.clone()).or_default().insert(user.clone());
        }
    }

    /// Computes the terms of new demonstrations for every live user and every live item.
    fn update_rows(&mut self, added: &BTreeSet<usize>) {
        for slot in added {
            for state in self.users.values_mut().filter(|state| state.ready) {
                state.row.update(&state.text, &self.pool, *slot);
            }
            for (item, target) in &mut self.targets {
                if let Some(row) = &mut target.row
                    && let Some(vector) = self.items.get(item).and_then(|item| item.vector.as_ref())
                {
                    row.update(&vector.vector, &self.pool, *slot);
                }
            }
        }
    }

    /// The best of a pair by a scan of the whole pool; `None` while its item has no vector.
    fn scan(&mut self, (user, item): &(Id, Id)) -> Option<Best> {
        let Retrieval { k, items, pool, users, targets, .. } = self;
        let vector = items.get(item)?.vector.as_ref()?;
        let state = users.get(user).filter(|state| state.pairs.contains_key(item))?;
        let row = targets.get_mut(item)?.row.get_or_insert_with(|| ItemRow::new(&vector.vector, pool));
        Some(Best::scan(user, item, (&state.row, row), pool, *k))
    }

    /// Sets the best of a pair and the index of who holds which slot.
    fn set_best(&mut self, pair: &(Id, Id), best: Option<Best>) {
        let Some(place) = self.users.get_mut(&pair.0).and_then(|state| state.pairs.get_mut(&pair.1)) else {
            return;
        };
        for slot in best.iter().flat_map(Best::slots) {
            self.holders.entry(slot).or_default().insert(pair.clone());
        }
        let old = std::mem::replace(place, best);
        let kept: BTreeSet<usize> = place.iter().flat_map(Best::slots).collect();
        for slot in old.iter().flat_map(Best::slots).filter(|slot| !kept.contains(slot)) {
            unlink(&mut self.holders, &slot, pair);
        }
    }

    /// Offers new demonstrations to every pair that wasn't scanned: one addition and one comparison
    /// each; only the pairs whose best they enter are touched.
    fn offer(&mut self, touched: &mut Touched) {
        let mut improved = Vec::new();
        for (user, state) in &self.users {
            for (item, best) in &state.pairs {
                let Some(best) = best else { continue };
                let Some(row) = self.targets.get(item).and_then(|target| target.row.as_ref()) else {
                    continue;
                };
                let rows = (&state.row, row);
                let mut better = None;
                for slot in &touched.added {
                    if best.refuses(rows, *slot, &self.pool) {
                        continue;
                    }
                    let Some(demonstration) = self.pool.get(*slot) else { continue };
                    if better.as_ref().unwrap_or(best).accepts(user, item, rows, *slot, demonstration, self.k)
                    {
                        better.get_or_insert_with(|| best.clone()).offer(rows, *slot, demonstration, self.k);
                    }
                }
                // A pair that was scanned has them already; few come so far.
                if let Some(better) = better {
                    let pair = (user.clone(), item.clone());
                    if !touched.stale.contains(&pair) {
                        improved.push((pair, better));
                    }
                }
            }
        }
        for (pair, best) in improved {
            self.set_best(&pair, Some(best));
            touched.pairs.insert(pair);
        }
    }

    fn drop_pair(&mut self, user: &Id, item: &Id) {
        self.set_best(&(user.clone(), item.clone()), None);
        if let Some(state) = self.users.get_mut(user) {
            state.pairs.remove(item);
        }
        if let Some(target) = self.targets.get_mut(item) {
            target.users.remove(user);
            if target.users.is_empty() {
                self.targets.remove(item);
            }
        }
    }

    fn emit(&self, pairs: BTreeSet<(Id, Id)>, out: &mut Changes<PairUpdate>) {
        for (user, item) in pairs {
            let state = self.users.get(&user).filter(|state| state.pairs.contains_key(&item));
            let target = self.items.get(&item);
            let live = state.is_some() && target.is_some();
            let retrieved = state.zip(target).and_then(|(state, target)| {
                let best = state.pairs.get(&item)?.as_ref()?;
                target.vector.as_ref()?;
                let used = best
                    .selection(self.k)
                    .into_iter()
                    .filter_map(|(slot, score)| Some((self.pool.get(slot)?.clone(), score)))
                    .collect();
                Some(Retrieved { view: state.view.clone(), item: target.clone(), used })
            });
            out.push((PairUpdate { user, item, retrieved, live }, 1));
        }
    }
}

/// The operator `retrieval`. `items` and `demonstrations` are broadcast.
pub fn retrieval<'s>(
    pairs: VecCollection<'s, Epoch, (Id, Id), isize>,
    newest: VecCollection<'s, Epoch, (Id, History), isize>,
    items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    demonstrations: VecCollection<'s, Epoch, (u64, Arc<Demonstration>), isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    k: usize,
) -> VecCollection<'s, Epoch, PairUpdate, isize> {
    let mut state = Retrieval::new(k);
    let input = pairs
        .map(Input::Pair)
        .concat(newest.map(|(user, history)| Input::Newest(user, history)))
        .concat(items.map(|(worker, item)| Input::Item(worker, item)))
        .concat(demonstrations.map(|(worker, c)| Input::Demonstration(worker, c)))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Pair((user, _)) | Input::Newest(user, _) => route(user),
        Input::Item(worker, _) | Input::Demonstration(worker, _) | Input::Clock(worker, _) => *worker,
    };
    staged(input, "retrieval", by, move |_, changes, out| state.step(changes, out))
}
