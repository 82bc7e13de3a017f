//! The state of retrieval: whose selections an epoch touches, and how they are brought up to date.

use super::global::{Best, ItemRow, Pool, UserRow, score};
use super::split::SplitSum;
use super::{Found, Input, Output, PairUpdate, Retrieved, Search, UserView};
use crate::Changes;
use crate::catalog::states_of;
use crate::index::{set, unlink};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::history::History;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

#[derive(Debug, Default)]
pub(super) struct User {
    history: History,
    /// The pairs of the user with their best demonstrations, `None` where not known.
    pub(super) pairs: HashMap<Id, Option<Best>>,
    pub(super) view: Arc<UserView>,
    /// The view's text, as rows are computed from it.
    text: SplitSum,
    row: UserRow,
    /// Whether `view` and `row` stand.
    ready: bool,
}

#[derive(Debug, Default)]
pub(super) struct Target {
    users: HashSet<Id>,
    row: Option<ItemRow>,
}

/// The state of the operator.
#[derive(Debug)]
pub struct Retrieval {
    pub(super) search: Search,
    pub(super) k: usize,
    pub(super) items: HashMap<Id, Item>,
    pub(super) pool: Pool,
    pub(super) users: HashMap<Id, User>,
    /// By item, the users who have a pair with it.
    targets: HashMap<Id, Target>,
    /// By item, the users with pairs whose history has it.
    readers: HashMap<Id, HashSet<Id>>,
    /// By slot, the pairs that hold it among their best.
    holders: HashMap<usize, HashSet<(Id, Id)>>,
    /// Pairs whose selection has fewer than K; kept for `Stored`.
    pub(super) short: BTreeSet<(Id, Id)>,
    /// Whether selections are kept up to date: from the first epoch that publishes, or from the
    /// standing features of a job that was started again.
    pub(super) maintained: bool,
    publishing: bool,
    /// Whether it was published before this time: then pairs stand as they were emitted.
    noting: bool,
    /// How touched pairs stood when they were last emitted: noted before a change reaches them, kept while
    /// a pair waits for the store of points. Empty between epochs.
    before: HashMap<(Id, Id), Stood>,
}

/// How a pair stands: whether it is live, and what its vector is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stood {
    live: bool,
    retrieved: Option<Retrieved>,
}

/// What an epoch touches.
#[derive(Default)]
pub(super) struct Touched {
    /// Users whose view has to be made anew.
    views: BTreeSet<Id>,
    /// Items whose state changed.
    items: BTreeSet<Id>,
    /// Pairs to emit.
    pub(super) pairs: BTreeSet<(Id, Id)>,
    /// Pairs whose best has to be searched for.
    pub(super) stale: BTreeSet<(Id, Id)>,
    /// Slots emptied.
    removed: BTreeSet<usize>,
    /// Slots filled.
    pub(super) added: BTreeSet<usize>,
}

impl Retrieval {
    /// An empty state for K demonstrations.
    pub fn new(search: Search, k: usize) -> Self {
        Retrieval {
            search,
            k,
            items: HashMap::new(),
            pool: Pool::default(),
            users: HashMap::new(),
            targets: HashMap::new(),
            readers: HashMap::new(),
            holders: HashMap::new(),
            short: BTreeSet::new(),
            maintained: false,
            publishing: false,
            noting: false,
            before: HashMap::new(),
        }
    }

    /// Takes the changes of one time.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        self.noting = self.publishing;
        if self.noting {
            self.note_touched(&changes);
        }
        let mut touched = Touched::default();
        let (mut arrived, mut found) = (Vec::new(), Vec::new());
        let mut histories: HashMap<Id, Option<History>> = HashMap::new();
        let mut publish = self.publishing;
        for (input, diff) in changes {
            match input {
                Input::Clock(_, clock) => publish |= clock.publish,
                Input::Found(answer) => found.push(answer),
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
        found.sort();
        self.start(publish, found.iter().any(|found| found.standing), &mut touched);
        if self.maintained {
            self.refresh(&mut touched);
            self.find(&mut touched, found, out);
            if self.publishing {
                self.emit(touched.pairs, out);
            }
        }
        self.pool.reuse(touched.removed);
    }

    /// Notes how the pairs stand that changes will reach, before the first of them does.
    fn note_touched(&mut self, changes: &Changes<Input>) {
        for (input, _) in changes {
            let pairs: Vec<(Id, Id)> = match input {
                Input::Pair(pair) => vec![pair.clone()],
                Input::Newest(user, _) => self.pairs_of(user).collect(),
                Input::Item(_, (id, _)) => {
                    let on_it = self.targets.get(id).into_iter().flat_map(|target| &target.users);
                    let readers = self.readers.get(id).into_iter().flatten();
                    on_it
                        .map(|user| (user.clone(), id.clone()))
                        .chain(readers.flat_map(|user| self.pairs_of(user)))
                        .collect()
                }
                Input::Demonstration(_, demonstration) => {
                    let slot = self.pool.slot(&demonstration.id);
                    slot.and_then(|slot| self.holders.get(&slot)).into_iter().flatten().cloned().collect()
                }
                Input::Found(_) | Input::Clock(..) => continue,
            };
            for pair in pairs {
                self.note(&pair);
            }
        }
    }

    /// Notes how a pair stands, unless that is noted.
    fn note(&mut self, pair: &(Id, Id)) {
        if !self.before.contains_key(pair) {
            let stood = self.stands(pair);
            self.before.insert(pair.clone(), stood);
        }
    }

    fn pairs_of(&self, user: &Id) -> impl Iterator<Item = (Id, Id)> + use<'_> {
        let user = user.clone();
        let items = self.users.get(&user).into_iter().flat_map(|state| state.pairs.keys());
        items.map(move |item| (user.clone(), item.clone()))
    }

    /// Begins to maintain selections, and to publish: then every pair is emitted once.
    fn start(&mut self, publish: bool, standing: bool, touched: &mut Touched) {
        if (publish || standing) && !self.maintained {
            self.maintained = true;
            touched.views.extend(self.users.keys().cloned());
        }
        if publish && !self.publishing {
            self.publishing = true;
            let all = self.users.iter();
            touched.pairs.extend(
                all.flat_map(|(user, state)| state.pairs.keys().map(|item| (user.clone(), item.clone()))),
            );
        }
    }

    /// Brings views and rows of the touched pairs up to date, and adds to what is touched.
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
            if !self.make_view(user) {
                continue;
            }
            for item in self.users.get(user).into_iter().flat_map(|state| state.pairs.keys()) {
                touched.pairs.insert((user.clone(), item.clone()));
                touched.stale.insert((user.clone(), item.clone()));
            }
        }
        for pair in touched.removed.iter().filter_map(|slot| self.holders.get(slot)).flatten() {
            touched.pairs.insert(pair.clone());
            touched.stale.insert(pair.clone());
        }
    }

    /// Brings the best of the touched pairs up to date.
    fn find(&mut self, touched: &mut Touched, found: Vec<Found>, out: &mut Changes<Output>) {
        if self.search == Search::Stored {
            return self.find_stored(touched, found, out);
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

    /// Whether features are published by now.
    pub(super) fn publishes(&self) -> bool {
        self.publishing
    }

    /// Whether a pair is there and has no best.
    pub(super) fn lacks_best(&self, pair: &(Id, Id)) -> bool {
        self.users.get(&pair.0).and_then(|state| state.pairs.get(&pair.1)).is_some_and(Option::is_none)
    }

    fn lacks_view(&self, user: &Id) -> bool {
        self.users.get(user).is_some_and(|state| !state.ready && !state.pairs.is_empty())
    }

    /// Makes a user's view anew, and says whether it is another one.
    fn make_view(&mut self, user: &Id) -> bool {
        let Some(state) = self.users.get_mut(user) else { return false };
        let view = if state.pairs.is_empty() {
            UserView::default()
        } else {
            let (items, text) = states_of(&state.history, &self.items);
            UserView { history: state.history.clone(), items, text }
        };
        if state.ready && !state.pairs.is_empty() && *state.view == view {
            return false;
        }
        state.ready = !state.pairs.is_empty();
        (state.text, state.row) = if state.ready && self.search == Search::Exact {
            let text = SplitSum::new(&view.text);
            let row = UserRow::new(&text, &self.pool);
            (text, row)
        } else {
            Default::default()
        };
        let view = Arc::new(view);
        let old = std::mem::replace(&mut state.view, view.clone());
        for (item, _) in &old.items {
            unlink(&mut self.readers, item, user);
        }
        for (item, _) in &view.items {
            self.readers.entry(item.clone()).or_default().insert(user.clone());
        }
        true
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

    /// Sets the best of a pair and the indexes over it.
    pub(super) fn set_best(&mut self, pair: &(Id, Id), best: Option<Best>) {
        if self.noting {
            self.note(pair);
        }
        let Some(place) = self.users.get_mut(&pair.0).and_then(|state| state.pairs.get_mut(&pair.1)) else {
            return;
        };
        for slot in best.iter().flat_map(Best::slots) {
            self.holders.entry(slot).or_default().insert(pair.clone());
        }
        if self.search == Search::Stored {
            match &best {
                Some(best) if best.slots().count() < self.k => self.short.insert(pair.clone()),
                _ => self.short.remove(pair),
            };
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
                let mut better: Option<Best> = None;
                for slot in &touched.added {
                    if best.refuses(rows, *slot, &self.pool) {
                        continue;
                    }
                    let Some(demonstration) = self.pool.get(*slot) else { continue };
                    let (score, k) = (score(rows, *slot), self.k);
                    let held = better.as_ref().unwrap_or(best);
                    if held.accepts(user, item, score, *slot, demonstration, k) {
                        let better = better.get_or_insert_with(|| best.clone());
                        better.offer(user, item, score, *slot, demonstration, k);
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

    /// How a pair stands now.
    fn stands(&self, (user, item): &(Id, Id)) -> Stood {
        let state = self.users.get(user).filter(|state| state.pairs.contains_key(item));
        let Some((state, target)) = state.zip(self.items.get(item)) else { return Stood::default() };
        let best = state.pairs.get(item).and_then(Option::as_ref).filter(|_| target.vector.is_some());
        let retrieved = best.map(|best| {
            let used = best
                .selection(self.k)
                .into_iter()
                .filter_map(|(slot, score)| Some((self.pool.get(slot)?.clone(), score)))
                .collect();
            Retrieved { view: state.view.clone(), item: target.clone(), used }
        });
        Stood { live: true, retrieved }
    }

    /// Emits those of the touched pairs that stand otherwise than they did.
    fn emit(&mut self, pairs: BTreeSet<(Id, Id)>, out: &mut Changes<Output>) {
        for pair in pairs {
            let before = self.before.remove(&pair).unwrap_or_default();
            let stood = self.stands(&pair);
            if stood != before {
                let ((user, item), Stood { live, retrieved }) = (pair, stood);
                out.push((Output::Pair(PairUpdate { user, item, retrieved, live }), 1));
            }
        }
        let mut before = std::mem::take(&mut self.before);
        before.retain(|pair, _| self.search == Search::Stored && self.lacks_best(pair));
        self.before = before;
    }
}
