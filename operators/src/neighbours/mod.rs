//! Neighbours: for every pair what the sources `same_item` and `same_user` say of it.
//!
//! ```text
//! examples ─ labelled ─┬─ sketches ─▶ effective (broadcast) ─┐
//!                      ├─ to the user's worker ──────────────┼─▶ neighbours ─▶ touched pairs
//!                      └─ to every worker ───────────────────┤
//! pairs, item states (broadcast), clock ─────────────────────┘
//! ```
//! **Computes**, for each pair of [`crate::pairs`], the selections of [`crate::retrieval::same_item`] and
//! [`crate::retrieval::same_user`] as of the event clock t: the newest R labels strictly before t, compared
//! by the effective sketches and the centred texts.
//!
//! **Maintained**: a label that comes, goes or becomes known, because the clock passes its time, touches
//! just the pairs of its item and those of its user. A sketch or text that changes touches the pairs of
//! its owner and those whose ring has it, which an index finds: a new item that nobody has labelled touches
//! its own pairs alone. Sketches change together, once a sketch period; besides, a label that comes late, from
//! before the last period, changes those of its user and its item at once. Of the touched pairs those are
//! emitted that stand otherwise than before. While the clock says not to publish
//! only rings, sketches and items are kept; the first epoch that publishes computes every pair once. So does one
//! whose clock names weights with another text centre.
//!
//! **Late changes, erasure**: [`crate::retrieval::ring`]. An erased user's final examples are retracted here
//! too ([`crate::labels`]); an item whose ring was left with too few is named, and gets what stands of it in
//! a later time of the epoch.
//!
//! **Memory**: rings of the worker's users and of all items, of shared examples; unit forms of all sketches
//! and texts, shared; an id for every example in a ring, to find the rings that a user or an item is in; for a
//! pair its two selections, a shared example and a score a neighbour.

#[cfg(test)]
mod tests;

use crate::clock::{Clock, Wheel};
use crate::index::set;
use crate::labels::finality;
use crate::retrieval::neighbours::{Neighbourhood, SPARE, Sources};
use crate::retrieval::ring::Ring;
use crate::retrieval::same_item::same_item;
use crate::retrieval::same_user::{self, same_user};
use crate::retrieval::sketch::Side;
use crate::retrieval::unit::centred;
use crate::retrieval::votes::{item_votes, user_votes};
use crate::sketches::Effective;
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::neighbour::{LabelledExample, Votes, rate_of};
use ictflow_schemas::vector::Quantised;
use ictflow_schemas::{Id, Millis, NO_TIME};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A pair, as far as the user's side says.
    Pair((Id, Id)),
    /// A labelled example, for the ring of its user.
    OfUser(Arc<LabelledExample>),
    /// A labelled example, for the ring of its item, for the worker named.
    OfItem(u64, Arc<LabelledExample>),
    /// One that stands, for the ring of its item that lacked some, for the worker named.
    Again(u64, Arc<LabelledExample>),
    /// An effective sketch, for the worker named.
    Sketch(u64, Effective),
    /// An item's state, for the worker named.
    Item(u64, (Id, Item)),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
}

/// What the operator gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A pair that stands otherwise than before.
    Pair(NeighbourUpdate),
    /// An item whose ring an erasure left with too few ([`Ring::lacks`]): it has to be filled again within the
    /// epoch. Every worker says it.
    Lacks(Id),
}

impl Output {
    /// The changed pair.
    pub fn pair(self) -> Option<NeighbourUpdate> {
        match self {
            Output::Pair(pair) => Some(pair),
            _ => None,
        }
    }

    /// The item whose ring lacks some.
    pub fn lacks(self) -> Option<Id> {
        match self {
            Output::Lacks(item) => Some(item),
            _ => None,
        }
    }
}

/// A pair that stands otherwise than before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NeighbourUpdate {
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// `None`: it is no pair any more.
    pub sources: Option<Arc<Sources>>,
}

/// What an epoch's changes touch.
#[derive(Debug, Default)]
struct Touched {
    /// Pairs that came.
    pairs: BTreeSet<(Id, Id)>,
    /// Users and items whose ring shows something else.
    rings: BTreeSet<(Side, Id)>,
    /// Users and items that are compared by something else.
    likeness: BTreeSet<(Side, Id)>,
}

/// The text centre of the weights of a version.
pub type CentreOf = Box<dyn Fn(&str) -> Quantised>;

/// The state of the operator.
pub struct Neighbours {
    semantics: Arc<Semantics>,
    neighbourhood: Neighbourhood,
    centre_of: CentreOf,
    /// The weights in force, once anything was published, and what the centre of item vectors is taken for.
    centre: Option<(String, Quantised)>,
    /// By side: of users, of items.
    rings: [HashMap<Id, Ring>; 2],
    /// By the side of the ring's owner: in whose rings an item is, in whose a user is.
    holders: [HashMap<Id, BTreeSet<Id>>; 2],
    /// Rings with a label that isn't known yet.
    hidden: Wheel<(Side, Id)>,
    /// By side: of users, of items.
    sketches: [HashMap<Id, (Quantised, i32)>; 2],
    items: HashMap<Id, Item>,
    texts: HashMap<Id, Quantised>,
    /// By user and item, what was emitted.
    pairs: BTreeMap<Id, BTreeMap<Id, Option<Arc<Sources>>>>,
    users_of: HashMap<Id, BTreeSet<Id>>,
    now: Millis,
    published: bool,
}

impl Neighbours {
    /// An empty state. `centre_of` says what the centre of item vectors is taken for.
    pub fn new(semantics: Arc<Semantics>, centre_of: CentreOf) -> Self {
        Neighbours {
            neighbourhood: semantics.neighbours,
            semantics,
            centre_of,
            centre: None,
            rings: Default::default(),
            holders: Default::default(),
            hidden: Wheel::default(),
            sketches: Default::default(),
            items: HashMap::new(),
            texts: HashMap::new(),
            pairs: BTreeMap::new(),
            users_of: HashMap::new(),
            now: NO_TIME,
            published: false,
        }
    }

    /// Takes an epoch's changes; gives how many pairs were computed.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) -> usize {
        let mut touched = Touched::default();
        let mut labels: BTreeMap<(Side, Arc<LabelledExample>), isize> = BTreeMap::new();
        let mut pairs: BTreeMap<(Id, Id), isize> = BTreeMap::new();
        let (mut items, mut clock) = (BTreeSet::new(), None);
        let mut again: BTreeMap<Id, Vec<Arc<LabelledExample>>> = BTreeMap::new();
        for (input, diff) in changes {
            match input {
                Input::Pair(pair) => *pairs.entry(pair).or_default() += diff,
                Input::OfUser(label) => *labels.entry((Side::User, label)).or_default() += diff,
                Input::OfItem(_, label) => *labels.entry((Side::Item, label)).or_default() += diff,
                Input::Again(_, label) => again.entry(label.item.clone()).or_default().push(label),
                Input::Clock(_, now) => clock = Some(now),
                Input::Item(_, (id, item)) => {
                    items.insert(id.clone());
                    set(&mut self.items, id, item, diff);
                }
                Input::Sketch(_, Effective { side, id, unit, rate }) => {
                    touched.likeness.insert((side, id.clone()));
                    set(&mut self.sketches[side as usize], id, (unit, rate), diff);
                }
            }
        }
        let Some(clock) = clock else { return 0 };
        self.now = clock.now;
        let recentred = clock.publish && self.follow(&clock.actives.ict_weights);
        touched.rings.extend(self.hidden.pop(self.now));
        let mut shrunk = BTreeSet::new();
        for ((side, label), diff) in labels.into_iter().filter(|(_, diff)| *diff != 0) {
            if side == Side::Item && diff < 0 {
                shrunk.insert(label.item.clone());
            }
            self.label(side, label, diff, &clock, &mut touched);
        }
        for (item, labels) in again {
            self.refill(item, labels, &clock, &mut touched);
        }
        out.extend(
            shrunk.into_iter().filter(|item| self.lacks(item, &clock)).map(|id| (Output::Lacks(id), 1)),
        );
        for id in items {
            self.centre_text(id, &mut touched);
        }
        for ((user, item), diff) in pairs.into_iter().filter(|(_, diff)| *diff != 0) {
            self.pair(user, item, diff, &mut touched, out);
        }
        if !clock.publish {
            return 0;
        }
        let stale = if std::mem::replace(&mut self.published, true) && !recentred {
            self.pairs_of(touched)
        } else {
            self.pairs.iter().flat_map(|(u, items)| items.keys().map(|i| (u.clone(), i.clone()))).collect()
        };
        let computed = stale.len();
        for (user, item) in stale {
            self.emit(user, item, out);
        }
        computed
    }

    /// Follows the weights in force. Says whether they have another centre than those before: then all texts
    /// are centred anew.
    fn follow(&mut self, version: &str) -> bool {
        if self.centre.as_ref().is_some_and(|(known, _)| known == version) {
            return false;
        }
        let centre = (self.centre_of)(version);
        let same = self.centre.as_ref().is_some_and(|(_, before)| *before == centre);
        let vectors = self.items.iter().filter_map(|(id, item)| Some((id, item.vector.as_ref()?)));
        if !same {
            self.texts = vectors.map(|(id, vector)| (id.clone(), centred(&vector.vector, &centre))).collect();
        }
        self.centre = Some((version.to_owned(), centre));
        !same
    }

    fn label(
        &mut self,
        side: Side,
        label: Arc<LabelledExample>,
        diff: isize,
        clock: &Clock,
        touched: &mut Touched,
    ) {
        let (owner, time) = (side.owner(&label).clone(), label.label_time);
        let ring = self.rings[side as usize].entry(owner.clone()).or_default();
        let holders = &mut self.holders[side as usize];
        let changed = if diff > 0 {
            let changed = ring.insert(label.clone());
            if changed {
                hold(holders, side, &label);
            }
            changed
        } else {
            let changed = ring.remove(&label);
            release(holders, side, ring, [label]);
            changed
        };
        let gone = ring.forget(self.neighbourhood.ring + SPARE, finality(&self.semantics, clock));
        release(holders, side, ring, gone);
        if ring.is_empty() {
            self.rings[side as usize].remove(&owner);
        }
        if changed && time >= self.now {
            self.hidden.register(time, (side, owner));
        } else if changed {
            touched.rings.insert((side, owner));
        }
    }

    /// Whether the ring of an item may come to miss examples that were let go of.
    fn lacks(&self, item: &Id, clock: &Clock) -> bool {
        let ring = self.rings[Side::Item as usize].get(item);
        ring.is_some_and(|ring| ring.lacks(self.neighbourhood.ring, finality(&self.semantics, clock)))
    }

    /// Gives the ring of an item all that stands of it.
    fn refill(&mut self, item: Id, labels: Vec<Arc<LabelledExample>>, clock: &Clock, touched: &mut Touched) {
        for label in labels.iter().filter(|label| label.label_time >= self.now) {
            self.hidden.register(label.label_time, (Side::Item, item.clone()));
        }
        let ring = self.rings[Side::Item as usize].entry(item.clone()).or_default();
        let holders = &mut self.holders[Side::Item as usize];
        for label in &labels {
            hold(holders, Side::Item, label);
        }
        ring.refill(labels);
        let gone = ring.forget(self.neighbourhood.ring + SPARE, finality(&self.semantics, clock));
        release(holders, Side::Item, ring, gone);
        touched.rings.insert((Side::Item, item));
    }

    /// Centres the text of an item; one that is the same as before touches nothing. Without a centre yet none
    /// is wanted.
    fn centre_text(&mut self, item: Id, touched: &mut Touched) {
        let Some((_, centre)) = &self.centre else { return };
        let vector = self.items.get(&item).and_then(|item| item.vector.as_ref());
        let text = vector.map(|vector| centred(&vector.vector, centre));
        let old = match &text {
            Some(text) => self.texts.insert(item.clone(), text.clone()),
            None => self.texts.remove(&item),
        };
        if old != text {
            touched.likeness.insert((Side::Item, item));
        }
    }

    fn pair(&mut self, user: Id, item: Id, diff: isize, touched: &mut Touched, out: &mut Changes<Output>) {
        if diff > 0 {
            self.pairs.entry(user.clone()).or_default().insert(item.clone(), None);
            self.users_of.entry(item.clone()).or_default().insert(user.clone());
            touched.pairs.insert((user, item));
            return;
        }
        let Some(items) = self.pairs.get_mut(&user) else { return };
        let emitted = items.remove(&item).flatten();
        if items.is_empty() {
            self.pairs.remove(&user);
        }
        if let Some(users) = self.users_of.get_mut(&item) {
            users.remove(&user);
            if users.is_empty() {
                self.users_of.remove(&item);
            }
        }
        if emitted.is_some() {
            out.push((Output::Pair(NeighbourUpdate { user, item, sources: None }), 1));
        }
    }

    /// The pairs that are touched.
    fn pairs_of(&self, touched: Touched) -> BTreeSet<(Id, Id)> {
        let Touched { mut pairs, rings, likeness } = touched;
        let mut keys = rings;
        for side in [Side::User, Side::Item] {
            let compared = |label: &Arc<LabelledExample>| {
                likeness.contains(&(side.opposite(), side.opposite().owner(label).clone()))
            };
            // What is in the ring may not be seen yet, or not any more.
            let has = |id: &&Id| self.has_pairs(side, id) && self.seen(side, id).iter().any(compared);
            keys.extend(
                self.holders_of(side, &likeness).into_iter().filter(has).map(|id| (side, id.clone())),
            );
        }
        keys.extend(likeness);
        for (side, id) in keys {
            match side {
                Side::User => {
                    let items = self.pairs.get(&id).into_iter().flatten();
                    pairs.extend(items.map(|(item, _)| (id.clone(), item.clone())));
                }
                Side::Item => {
                    let users = self.users_of.get(&id).into_iter().flatten();
                    pairs.extend(users.map(|user| (user.clone(), id.clone())));
                }
            }
        }
        pairs.retain(|(user, item)| self.pairs.get(user).is_some_and(|items| items.contains_key(item)));
        pairs
    }

    /// The owners on a side in whose rings any of those stand that are compared by something else.
    fn holders_of(&self, side: Side, likeness: &BTreeSet<(Side, Id)>) -> HashSet<&Id> {
        let held = likeness.iter().filter(|(of, _)| *of == side.opposite());
        held.filter_map(|(_, id)| self.holders[side as usize].get(id)).flatten().collect()
    }

    fn has_pairs(&self, side: Side, id: &Id) -> bool {
        match side {
            Side::User => self.pairs.contains_key(id),
            Side::Item => self.users_of.contains_key(id),
        }
    }

    /// What the ring of a key shows now.
    fn seen(&self, side: Side, id: &Id) -> &[Arc<LabelledExample>] {
        let ring = self.rings[side as usize].get(id);
        ring.map_or(&[], |ring| ring.before(self.now, self.neighbourhood.ring))
    }

    fn sources(&self, user: &Id, item: &Id) -> Sources {
        let selected = self.neighbourhood.selected;
        let sketch = |side: Side, id: &str| self.sketches[side as usize].get(id).map(|(unit, _)| &**unit);
        let known = |item: &str| same_user::Item {
            sketch: sketch(Side::Item, item),
            text: self.texts.get(item).map(|text| &**text),
        };
        let rate =
            |item: &str| self.sketches[Side::Item as usize].get(item).map_or(rate_of(0, 0), |known| known.1);
        let of_item = self.seen(Side::Item, item);
        let same_item = same_item(user, of_item, |user| sketch(Side::User, user), selected);
        let same_user = same_user(item, self.seen(Side::User, user), known, selected);
        let others = of_item.iter().filter(|other| other.user != *user);
        let votes = Votes {
            same_item: item_votes(others.map(|other| &**other), &same_item),
            same_user: user_votes(&same_user, rate),
        };
        Sources { same_item, same_user, votes }
    }

    /// Computes a pair and emits it where it stands otherwise than before.
    fn emit(&mut self, user: Id, item: Id, out: &mut Changes<Output>) {
        let sources = self.sources(&user, &item);
        let Some(emitted) = self.pairs.get_mut(&user).and_then(|items| items.get_mut(&item)) else { return };
        if emitted.as_deref() != Some(&sources) {
            let sources = Arc::new(sources);
            *emitted = Some(sources.clone());
            out.push((Output::Pair(NeighbourUpdate { user, item, sources: Some(sources) }), 1));
        }
    }
}

/// Notes that an example is in the ring of its owner.
fn hold(holders: &mut HashMap<Id, BTreeSet<Id>>, side: Side, label: &LabelledExample) {
    let held = side.opposite().owner(label).clone();
    holders.entry(held).or_default().insert(side.owner(label).clone());
}

/// Notes that examples have left the ring of their owner, which may have others of the same user and item.
fn release(
    holders: &mut HashMap<Id, BTreeSet<Id>>,
    side: Side,
    ring: &Ring,
    gone: impl IntoIterator<Item = Arc<LabelledExample>>,
) {
    for label in gone {
        let held = side.opposite().owner(&label);
        if ring.kept().iter().any(|kept| side.opposite().owner(kept) == held) {
            continue;
        }
        if let Some(owners) = holders.get_mut(held) {
            owners.remove(side.owner(&label));
            if owners.is_empty() {
                holders.remove(held);
            }
        }
    }
}

/// The operator's inputs. `sketches` and `items` are broadcast, and so are `labels` beside the copy that goes
/// to the user's worker.
pub struct Inputs<'s> {
    /// Pairs, as far as the user's side says.
    pub pairs: VecCollection<'s, Epoch, (Id, Id), isize>,
    /// Labelled examples.
    pub labels: VecCollection<'s, Epoch, Arc<LabelledExample>, isize>,
    /// Labelled examples, for every worker.
    pub everywhere: VecCollection<'s, Epoch, (u64, Arc<LabelledExample>), isize>,
    /// Labelled examples that stand, for rings that lack some, for every worker.
    pub again: VecCollection<'s, Epoch, (u64, Arc<LabelledExample>), isize>,
    /// Effective sketches.
    pub sketches: VecCollection<'s, Epoch, (u64, Effective), isize>,
    /// Items' states.
    pub items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    /// The clock.
    pub clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
}

/// The operator `neighbours`.
pub fn neighbours<'s>(
    inputs: Inputs<'s>,
    semantics: Arc<Semantics>,
    centre_of: CentreOf,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Neighbours::new(semantics, centre_of);
    let Inputs { pairs, labels, everywhere, again, sketches, items, clock } = inputs;
    let input = pairs
        .map(Input::Pair)
        .concat(labels.map(Input::OfUser))
        .concat(everywhere.map(|(worker, label)| Input::OfItem(worker, label)))
        .concat(again.map(|(worker, label)| Input::Again(worker, label)))
        .concat(sketches.map(|(worker, sketch)| Input::Sketch(worker, sketch)))
        .concat(items.map(|(worker, item)| Input::Item(worker, item)))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Pair((user, _)) => route(user),
        Input::OfUser(label) => route(&label.user),
        Input::OfItem(worker, _)
        | Input::Again(worker, _)
        | Input::Sketch(worker, _)
        | Input::Item(worker, _)
        | Input::Clock(worker, _) => *worker,
    };
    staged(input, "neighbours", by, move |_, changes, out| {
        state.step(changes, out);
    })
}
