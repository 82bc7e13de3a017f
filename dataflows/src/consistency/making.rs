//! Features as of examples, by the operator that makes those of a job.

use ictflow_connectors::{Error, Result};
use ictflow_operators::Changes;
use ictflow_operators::catalog::states_of;
use ictflow_operators::clock::Clock;
use ictflow_operators::features::{Features, Input, Output};
use ictflow_operators::ict::Weights;
use ictflow_operators::neighbours::NeighbourUpdate;
use ictflow_operators::retrieval::neighbours::Sources;
use ictflow_operators::retrieval::{PairUpdate, Retrieved, UserView};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::Example;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Features made together: their vectors are computed as one batch.
const BATCH: usize = 256;

/// An example whose feature is wanted.
pub(super) struct Wanted<'e> {
    /// The example: its pair, and its history for the user's.
    pub example: &'e Example,
    /// What its neighbours say.
    pub sources: Arc<Sources>,
    /// Its demonstrations with scores, nearest last.
    pub used: Vec<(Arc<Demonstration>, i64)>,
}

/// The operator with the pairs of a batch.
pub(super) struct Making<'e> {
    features: Features,
    clock: Clock,
    items: &'e HashMap<Id, Item>,
    batch: Vec<Wanted<'e>>,
    pairs: BTreeSet<(Id, Id)>,
}

impl<'e> Making<'e> {
    /// Over a catalog.
    pub fn new(weights: Arc<Weights>, semantics: &Semantics, items: &'e HashMap<Id, Item>) -> Self {
        let actives = Actives { ict_weights: weights.version().to_owned(), ..Actives::default() };
        let clock =
            Clock { maxima: [].into(), now: 0, publish: true, actives: Arc::new(actives), shadow: None };
        let mut making = Making {
            features: Features::new(weights, semantics),
            clock,
            items,
            batch: Vec::new(),
            pairs: BTreeSet::new(),
        };
        let states = items.iter().map(|(id, item)| (Input::Item(0, (id.clone(), item.clone())), 1));
        making.step(states.collect());
        making
    }

    /// Whether the batch has room for one more: a pair has one place in it.
    pub fn takes(&self, wanted: &Wanted<'_>) -> bool {
        self.batch.len() < BATCH && !self.pairs.contains(&pair(wanted.example))
    }

    /// Adds one that the batch takes.
    pub fn add(&mut self, wanted: Wanted<'e>) {
        self.pairs.insert(pair(wanted.example));
        self.batch.push(wanted);
    }

    /// Makes the batch, in the order in which it was added; `None` for an item without a vector.
    ///
    /// # Errors
    /// `Fatal` for a record that can't be read back, which is a defect.
    pub fn make(&mut self) -> Result<Vec<Option<Feature>>> {
        self.pairs.clear();
        let batch = std::mem::take(&mut self.batch);
        let mut changes = Changes::new();
        for Wanted { example, sources, used } in &batch {
            let item = self.items.get(&example.item).filter(|item| item.vector.is_some());
            let retrieved = item.map(|item| {
                let (items, text) = states_of(&example.history, self.items);
                let view = Arc::new(UserView { history: example.history.clone(), items, text });
                Retrieved { view, item: item.clone(), used: used.clone() }
            });
            changes.extend(inputs(example, retrieved, Some(sources.clone())));
        }
        let mut made: BTreeMap<(Id, Id), Feature> = BTreeMap::new();
        for output in self.step(changes) {
            let Some(update) = output.update() else { continue };
            let Some(value) = update.value else { continue };
            let feature = Feature::decode(&value).map_err(|error| {
                Error::fatal("make features as of examples", error, "this is a defect: please report it")
            })?;
            made.insert((update.user, update.item), feature);
        }
        // The pairs go again: an example after them has a history and neighbours of its own.
        let gone = batch.iter().flat_map(|wanted| inputs(wanted.example, None, None));
        self.step(gone.collect());
        Ok(batch.iter().map(|wanted| made.remove(&pair(wanted.example))).collect())
    }

    fn step(&mut self, mut changes: Changes<Input>) -> Vec<Output> {
        changes.push((Input::Clock(0, self.clock.clone()), 1));
        let mut out = Changes::new();
        self.features.step(changes, &mut out);
        out.into_iter().map(|(output, _)| output).collect()
    }
}

fn pair(example: &Example) -> (Id, Id) {
    (example.identity.user.clone(), example.item.clone())
}

/// What the operator is told of a pair.
fn inputs(
    example: &Example,
    retrieved: Option<Retrieved>,
    sources: Option<Arc<Sources>>,
) -> [(Input, isize); 2] {
    let (user, item) = pair(example);
    let live = retrieved.is_some();
    let neighbours = NeighbourUpdate { user: user.clone(), item: item.clone(), sources };
    let pair = PairUpdate { user, item, retrieved, live };
    [(Input::Pair(pair), 1), (Input::Neighbours(neighbours), 1)]
}
