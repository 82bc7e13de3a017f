//! Vectors of attention: what they read of neighbours, and whom an item's change touches.

use crate::ict::{
    ItemRows, MAX_NEIGHBOURS, NeighbourInput, NeighbourItemPart, NeighbourUserPart, SOURCES, Weights,
    age_units,
};
use crate::index::{set, unlink};
use crate::retrieval::neighbours::{Neighbour, Sources};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::neighbour::RATE_ONE;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Parts kept at most from one epoch to the next, of users and of items; 256 B each.
const KEPT: usize = 1 << 18;

/// What attention reads beside the query.
pub(super) struct Pooled {
    weights: Arc<Weights>,
    items: HashMap<Id, Item>,
    /// By item, the pairs that have it among their neighbours of `same_user`.
    readers: HashMap<Id, HashSet<(Id, Id)>>,
    users: HashMap<Id, NeighbourUserPart>,
    parts: HashMap<Id, NeighbourItemPart>,
}

/// The nearest of a selection: those that a vector reads.
fn nearest(selected: &[Neighbour]) -> &[Neighbour] {
    &selected[selected.len().saturating_sub(MAX_NEIGHBOURS)..]
}

impl Pooled {
    pub fn new(weights: Arc<Weights>) -> Self {
        Pooled {
            weights,
            items: HashMap::new(),
            readers: HashMap::new(),
            users: HashMap::new(),
            parts: HashMap::new(),
        }
    }

    /// The same items with other weights, and no pair that reads any.
    pub fn beside(&self, weights: Arc<Weights>) -> Self {
        Pooled { items: self.items.clone(), ..Pooled::new(weights) }
    }

    /// Takes other weights: what was made with those before is dropped.
    pub fn follow(&mut self, weights: Arc<Weights>) {
        self.weights = weights;
        self.users.clear();
        self.parts.clear();
    }

    /// Takes a change of an item's state.
    pub fn item(&mut self, id: &Id, item: Item, diff: isize) {
        set(&mut self.items, id.clone(), item, diff);
        self.parts.remove(id);
    }

    /// The pairs that read any of these items as a neighbour's. The item of a pair itself is retrieval's to
    /// tell, and its neighbours of `same_item` are all on it.
    pub fn changed(&self, items: &BTreeSet<Id>) -> BTreeSet<(Id, Id)> {
        items.iter().filter_map(|item| self.readers.get(item)).flatten().cloned().collect()
    }

    /// Notes what a pair reads now.
    pub fn reads(&mut self, pair: &(Id, Id), old: Option<&Sources>, new: Option<&Sources>) {
        let of = |sources: Option<&Sources>| -> BTreeSet<Id> {
            let nearest = sources.map_or(&[][..], |sources| nearest(&sources.same_user));
            nearest.iter().map(|neighbour| neighbour.example.item.clone()).collect()
        };
        let (old, new) = (of(old), of(new));
        for item in old.difference(&new) {
            unlink(&mut self.readers, item, pair);
        }
        for item in new.difference(&old) {
            self.readers.entry(item.clone()).or_default().insert(pair.clone());
        }
    }

    /// The vectors of queries with what their sources selected; one flat array.
    pub fn attend(&mut self, queries: &[(&[f32], &Sources)]) -> Vec<f32> {
        for (_, sources) in queries {
            for Neighbour { example, .. } in
                nearest(&sources.same_item).iter().chain(nearest(&sources.same_user))
            {
                self.make_parts(&example.user, &example.item);
            }
        }
        let inputs: Vec<[Vec<NeighbourInput<'_>>; SOURCES]> = queries
            .iter()
            .map(|(_, sources)| [self.inputs(&sources.same_item), self.inputs(&sources.same_user)])
            .collect();
        let rows: Vec<(&[f32], [&[NeighbourInput<'_>]; SOURCES])> = queries
            .iter()
            .zip(&inputs)
            .map(|((query, _), [same_item, same_user])| {
                (*query, [same_item.as_slice(), same_user.as_slice()])
            })
            .collect();
        let vectors = self.weights.attend_all(&rows);
        if self.users.len() > KEPT {
            self.users.clear();
        }
        if self.parts.len() > KEPT {
            self.parts.clear();
        }
        vectors
    }

    fn make_parts(&mut self, user: &Id, item: &Id) {
        if !self.users.contains_key(user) {
            self.users.insert(user.clone(), self.weights.neighbour_user_part(user));
        }
        if !self.parts.contains_key(item) {
            let state = self.items.get(item);
            let rows: ItemRows = self.weights.item_rows(item, state.map(|state| &**state));
            let vector = state.and_then(|state| state.vector.as_ref()).map(|vector| &*vector.vector);
            self.parts.insert(item.clone(), self.weights.neighbour_item_part(&rows, vector));
        }
    }

    /// The inputs of one source. Ages count from the newest of all that it selected.
    fn inputs(&self, selected: &[Neighbour]) -> Vec<NeighbourInput<'_>> {
        let newest = selected.iter().map(|neighbour| neighbour.example.label_time).max().unwrap_or_default();
        let input = |Neighbour { score, example }: &Neighbour| {
            Some(NeighbourInput {
                user: self.users.get(&example.user)?,
                item: self.parts.get(&example.item)?,
                positive: example.label() == 1,
                score: *score,
                age: age_units(newest, example.label_time),
                residual: RATE_ONE * example.label() - example.rate,
            })
        };
        nearest(selected).iter().filter_map(input).collect()
    }
}
