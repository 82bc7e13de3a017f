//! Features: the ICT vector, the votes and the lineage of every touched pair, encoded as the record that is
//! published.
//!
//! **Computes**: for a pair with a feature the record of `features` under the versions in force: ICT of its
//! query and of what its kind of weights reads ([`crate::ict`]), demonstrations or neighbours; the votes and
//! ids of its neighbours; the history, the status. A pure function of what [`crate::retrieval`] and
//! [`crate::neighbours`] give; bits don't depend on batch or worker count.
//!
//! **Maintained**: a change of the neighbours leaves the vector of a decoder as it is, and is encoded anew
//! with it. With attention an item's change touches the pairs that have it among their neighbours. Where the
//! clock names other versions than before, every pair with a feature is touched; other weights drop all that was
//! made with the ones before.
//!
//! **Memory**: for a pair its selections, shared, and its vector; the tokens of the demonstrations in the
//! pool, computed once each; rows and part, about 700 B, of every item that a pair or a history of one had
//! since it last changed. With attention also every item's state, shared, and 256 B a user and an item met
//! as a neighbour.

use crate::clock::Clock;
use crate::ict::{
    DemonstrationTokens, ItemPart, ItemRows, Kind, Prefix, Sample, UserPart, Versions, Weights,
};
use crate::neighbours::NeighbourUpdate;
use crate::retrieval::neighbours::{Neighbour, Sources};
use crate::retrieval::{PairUpdate, Retrieved, UserView};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::Verdict;
use ictflow_schemas::feature::{CotStatus, Feature, NeighbourSource, UsedDemonstration, UsedNeighbour};
use ictflow_schemas::history::Label;
use ictflow_schemas::invariants;
use ictflow_schemas::wire::Wire;
use pooled::Pooled;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

mod pooled;
#[cfg(test)]
mod tests;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A touched pair.
    Pair(PairUpdate),
    /// A pair whose neighbours changed.
    Neighbours(NeighbourUpdate),
    /// An item's state, for the worker named; only for weights that read neighbours.
    Item(u64, (Id, Item)),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
}

/// What became of a touched pair, ready for the sink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FeatureUpdate {
    /// The user.
    pub user: Id,
    /// The item.
    pub item: Id,
    /// Whether the pair is live.
    pub live: bool,
    /// How many demonstrations the feature has.
    pub k: usize,
    /// The encoded record; `None` where the pair has no feature.
    pub value: Option<Arc<[u8]>>,
}

/// A pair as it stands.
#[derive(Debug, Default)]
struct Pair {
    live: bool,
    retrieved: Option<Retrieved>,
    sources: Option<Arc<Sources>>,
    /// The vector of the retrieved, where it stands.
    ict: Option<Arc<[f32]>>,
}

/// The state of the operator.
pub struct Features {
    versions: Versions,
    /// Those of the versions in force; before anything was published, those that will serve.
    weights: Arc<Weights>,
    /// The versions in force, once anything was published.
    actives: Option<Arc<Actives>>,
    /// K, and M of each source.
    k: usize,
    neighbours: usize,
    pairs: BTreeMap<(Id, Id), Pair>,
    tokens: HashMap<Uuid, (Arc<Demonstration>, Arc<DemonstrationTokens>)>,
    /// What the ICT reads of an item in this state.
    items: HashMap<Id, Parts>,
    /// The size of `tokens` and `items` at which what left is looked for.
    sweep_at: usize,
    /// For weights that read neighbours.
    pooled: Option<Pooled>,
}

/// What is kept of an item's state.
struct Parts {
    item: Item,
    rows: Arc<ItemRows>,
    /// Made for the first pair on the item.
    part: Option<Arc<ItemPart>>,
}

/// Pairs whose vectors are computed together. Only speed and memory depend on it.
const BATCH: usize = 256;

/// Prefixes kept at most within an epoch, 6 KiB each at K = 4: an epoch may touch a million pairs,
/// and lists are shared by pairs that come one after the other.
const PREFIXES: usize = 4_096;

/// Parts shared by the pairs of one epoch.
#[derive(Default)]
struct Shared {
    users: HashMap<Id, (Arc<UserView>, Arc<UserPart>)>,
    prefixes: HashMap<Vec<Uuid>, Arc<Prefix>>,
}

impl Features {
    /// An empty state.
    pub fn new(versions: impl Into<Versions>, semantics: &Semantics) -> Self {
        let versions = versions.into();
        let weights = versions.serving();
        let pooled = (weights.kind() == Kind::Attention).then(|| Pooled::new(weights.clone()));
        Features {
            versions,
            weights,
            actives: None,
            k: semantics.demonstrations,
            neighbours: semantics.neighbours.selected,
            pairs: BTreeMap::new(),
            tokens: HashMap::new(),
            items: HashMap::new(),
            sweep_at: 1024,
            pooled,
        }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<FeatureUpdate>) {
        let mut clock = None;
        let mut touched: BTreeSet<(Id, Id)> = BTreeSet::new();
        let mut items: BTreeSet<Id> = BTreeSet::new();
        for (input, diff) in changes {
            match input {
                Input::Pair(PairUpdate { user, item, retrieved, live }) => {
                    let key = (user, item);
                    let pair = self.pairs.entry(key.clone()).or_default();
                    (pair.live, pair.retrieved, pair.ict) = (live, retrieved, None);
                    touched.insert(key);
                }
                Input::Neighbours(NeighbourUpdate { user, item, sources }) => {
                    let key = (user, item);
                    let pair = self.pairs.entry(key.clone()).or_default();
                    if let Some(pooled) = &mut self.pooled {
                        pooled.reads(&key, pair.sources.as_deref(), sources.as_deref());
                        pair.ict = None;
                    }
                    pair.sources = sources;
                    // One that waits for a vector, or goes, is what retrieval says of it.
                    if pair.retrieved.is_some() {
                        touched.insert(key);
                    } else if pair.sources.is_none() && !pair.live {
                        self.pairs.remove(&key);
                    }
                }
                Input::Item(_, (id, item)) => {
                    if let Some(pooled) = &mut self.pooled {
                        pooled.item(&id, item, diff);
                        items.insert(id);
                    }
                }
                Input::Clock(_, now) => clock = Some(now),
            }
        }
        let Some(Clock { publish, actives, .. }) = clock else { return };
        if publish && self.actives.as_ref() != Some(&actives) {
            self.follow(actives.clone());
            let standing = self.pairs.iter().filter(|(_, pair)| pair.retrieved.is_some());
            touched.extend(standing.map(|(key, _)| key.clone()));
        }
        for key in self.pooled.as_ref().map(|pooled| pooled.changed(&items)).unwrap_or_default() {
            if let Some(pair) = self.pairs.get_mut(&key).filter(|pair| pair.retrieved.is_some()) {
                pair.ict = None;
                touched.insert(key);
            }
        }
        let touched: Vec<(Id, Id)> = touched.into_iter().collect();
        let mut shared = Shared::default();
        for keys in touched.chunks(BATCH) {
            if shared.prefixes.len() > PREFIXES {
                shared.prefixes.clear();
            }
            self.make_vectors(keys, &mut shared);
            for key in keys {
                // A pair that went may have been let go of already.
                let nothing = Pair::default();
                let pair = self.pairs.get(key).unwrap_or(&nothing);
                let feature = self.feature(key, pair, &actives);
                let k = feature.as_ref().map_or(0, |feature| feature.demonstrations.len());
                let value = feature.map(|feature| feature.encode().into());
                let ((user, item), live) = (key.clone(), pair.live);
                if !live && value.is_none() && pair.sources.is_none() {
                    self.pairs.remove(key);
                }
                out.push((FeatureUpdate { user, item, live, k, value }, 1));
            }
        }
        self.sweep();
    }

    /// Takes other versions; with other weights nothing that was made stands.
    fn follow(&mut self, actives: Arc<Actives>) {
        if self.weights.version() != actives.ict_weights {
            self.weights = self.versions.in_force(&actives.ict_weights);
            self.tokens.clear();
            self.items.clear();
            if let Some(pooled) = &mut self.pooled {
                pooled.follow(self.weights.clone());
            }
            for pair in self.pairs.values_mut() {
                pair.ict = None;
            }
        }
        self.actives = Some(actives);
    }

    /// Computes the vectors of some pairs that lack theirs.
    fn make_vectors(&mut self, keys: &[(Id, Id)], shared: &mut Shared) {
        let lacking = |key: &&(Id, Id)| {
            self.pairs.get(key).is_some_and(|pair| pair.ict.is_none() && pair.retrieved.is_some())
        };
        let keys: Vec<&(Id, Id)> = keys.iter().filter(lacking).collect();
        let mut queries: Vec<(&(Id, Id), Retrieved, Arc<Sources>, Vec<f32>)> = Vec::new();
        for key in keys {
            let Some(pair) = self.pairs.get(key) else { continue };
            let Some(retrieved) = pair.retrieved.clone() else { continue };
            let sources = pair.sources.clone().unwrap_or_default();
            let query = self.query(key, &retrieved, shared);
            queries.push((key, retrieved, sources, query));
        }
        let vectors = match self.pooled.take() {
            None => {
                let prefixes: Vec<Arc<Prefix>> =
                    queries.iter().map(|(_, retrieved, ..)| self.prefix(&retrieved.used, shared)).collect();
                let rows: Vec<(&Prefix, &[f32])> =
                    prefixes.iter().zip(&queries).map(|(prefix, query)| (&**prefix, &*query.3)).collect();
                self.weights.forward(&rows)
            }
            Some(mut pooled) => {
                let rows: Vec<(&[f32], &Sources)> =
                    queries.iter().map(|(_, _, sources, query)| (query.as_slice(), &**sources)).collect();
                let vectors = pooled.attend(&rows);
                self.pooled = Some(pooled);
                vectors
            }
        };
        // As many vectors, in their order, as there are queries.
        let d = vectors.len().div_ceil(queries.len().max(1)).max(1);
        for ((key, ..), vector) in queries.iter().zip(vectors.chunks_exact(d)) {
            if let Some(pair) = self.pairs.get_mut(*key) {
                pair.ict = Some(vector.into());
            }
        }
    }

    /// The query token of a pair.
    fn query(&mut self, (user, item): &(Id, Id), retrieved: &Retrieved, shared: &mut Shared) -> Vec<f32> {
        let user = self.user_part(user, &retrieved.view, shared);
        let item = self.item_part(item, &retrieved.item);
        self.weights.join(&user, &item)
    }

    /// The record of a pair that has a vector.
    fn feature(&self, (user, item): &(Id, Id), pair: &Pair, actives: &Actives) -> Option<Feature> {
        let (retrieved, ict) = pair.retrieved.as_ref().zip(pair.ict.as_ref())?;
        let nothing = Arc::default();
        let sources = pair.sources.as_ref().unwrap_or(&nothing);
        let history = &retrieved.view.history;
        // A vector of attention stands on neighbours.
        let used: &[_] = if self.pooled.is_some() { &[] } else { &retrieved.used };
        let neighbours = |source, selected: &[Neighbour]| -> Vec<UsedNeighbour> {
            let used = |Neighbour { score, example }: &Neighbour| UsedNeighbour {
                source,
                id: example.id.to_string(),
                score: *score,
                label: example.label(),
            };
            selected.iter().map(used).collect()
        };
        let feature = Feature {
            user_id: user.to_string(),
            item_id: item.to_string(),
            ict: ict.to_vec(),
            demonstrations: used
                .iter()
                .map(|(demonstration, score)| UsedDemonstration {
                    id: demonstration.id.to_string(),
                    score: *score,
                    label: i32::from(demonstration.positive),
                    fresh: demonstration.fresh,
                })
                .collect(),
            k: used.len() as i32,
            history: history.iter().map(|entry| entry.item.to_string()).collect(),
            cot_status: CotStatus::of(used.len(), self.k, used.iter().any(|(c, _)| !c.fresh)),
            cot_created_at: used.iter().map(|(c, _)| c.cot_created_at).min(),
            ict_weights: actives.ict_weights.clone(),
            encoder: actives.encoder.clone(),
            prompt_version: actives.prompt_version.clone(),
            llm_model: actives.llm_model.clone(),
            event_time: history.last().map(|entry| entry.event_time),
            votes: sources.votes.numbers().to_vec(),
            neighbours: [
                neighbours(NeighbourSource::SameItem, &sources.same_item),
                neighbours(NeighbourSource::SameUser, &sources.same_user),
            ]
            .concat(),
            vector_kind: self.weights.kind(),
            history_labels: history.iter().map(|entry| label_number(entry.label)).collect(),
        };
        // A feature that contradicts itself must not reach a ranker.
        if let Err(violation) = invariants::feature(&feature, self.k, self.neighbours) {
            panic!("feature of an epoch breaks an invariant: {}", violation.0);
        }
        Some(feature)
    }

    /// The decoder's state after a list of demonstrations; pairs of one epoch often share it.
    fn prefix(&mut self, used: &[(Arc<Demonstration>, i64)], shared: &mut Shared) -> Arc<Prefix> {
        let ids: Vec<Uuid> = used.iter().map(|(demonstration, _)| demonstration.id).collect();
        if let Some(prefix) = shared.prefixes.get(&ids) {
            return prefix.clone();
        }
        let tokens: Vec<Arc<DemonstrationTokens>> = used.iter().map(|(c, _)| self.demonstration(c)).collect();
        let tokens: Vec<&DemonstrationTokens> = tokens.iter().map(|tokens| &**tokens).collect();
        let prefix = Arc::new(self.weights.prefix(&tokens));
        shared.prefixes.insert(ids, prefix.clone());
        prefix
    }

    fn demonstration(&mut self, demonstration: &Arc<Demonstration>) -> Arc<DemonstrationTokens> {
        if let Some((known, tokens)) = self.tokens.get(&demonstration.id)
            && known == demonstration
        {
            return tokens.clone();
        }
        let sample = Sample {
            user: &demonstration.identity.user,
            item_id: &demonstration.item,
            item: &demonstration.item_state,
            history: &demonstration.history,
            text: &demonstration.text,
        };
        let verdict = if demonstration.positive { Verdict::Positive } else { Verdict::Negative };
        let tokens = Arc::new(self.weights.demonstration(&sample, &demonstration.cot, verdict));
        self.tokens.insert(demonstration.id, (demonstration.clone(), tokens.clone()));
        tokens
    }

    fn user_part(&mut self, user: &Id, view: &Arc<UserView>, shared: &mut Shared) -> Arc<UserPart> {
        if let Some((known, part)) = shared.users.get(user)
            && Arc::ptr_eq(known, view)
        {
            return part.clone();
        }
        let rows: Vec<Arc<ItemRows>> = view
            .items
            .iter()
            .map(|(id, item)| match item {
                Some(item) => self.parts(id, item).rows.clone(),
                None => Arc::new(self.weights.item_rows(id, None)),
            })
            .collect();
        let part = Arc::new(self.weights.user_part(user, &rows, &view.text));
        shared.users.insert(user.clone(), (view.clone(), part.clone()));
        part
    }

    fn item_part(&mut self, id: &Id, item: &Item) -> Arc<ItemPart> {
        let weights = self.weights.clone();
        let parts = self.parts(id, item);
        let make = || {
            let vector = parts.item.vector.as_ref().map(|vector| &*vector.vector);
            Arc::new(weights.item_part(&parts.rows, vector))
        };
        parts.part.get_or_insert_with(make).clone()
    }

    /// What is kept of an item, made anew where its state changed.
    fn parts(&mut self, id: &Id, item: &Item) -> &mut Parts {
        let make = || Parts {
            item: item.clone(),
            rows: Arc::new(self.weights.item_rows(id, Some(item))),
            part: None,
        };
        let parts = self.items.entry(id.clone()).or_insert_with(make);
        if parts.item != *item {
            *parts = make();
        }
        parts
    }

    /// Drops what belongs to demonstrations and items that only this cache still knows.
    fn sweep(&mut self) {
        if self.tokens.len() + self.items.len() > self.sweep_at {
            self.tokens.retain(|_, (demonstration, _)| Arc::strong_count(demonstration) > 1);
            self.items.retain(|_, parts| Arc::strong_count(&parts.item) > 1);
            self.sweep_at = 1024.max(2 * (self.tokens.len() + self.items.len()));
        }
    }
}

/// A label as `history_labels` has it.
fn label_number(label: Label) -> i32 {
    match label {
        Label::Positive => 1,
        Label::Negative => 0,
        Label::None => -1,
    }
}

/// The operator's inputs. `items` is broadcast.
pub struct Inputs<'s> {
    /// Touched pairs.
    pub pairs: VecCollection<'s, Epoch, PairUpdate, isize>,
    /// Pairs whose neighbours changed.
    pub neighbours: VecCollection<'s, Epoch, NeighbourUpdate, isize>,
    /// Items' states.
    pub items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    /// The clock.
    pub clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
}

/// The operator `features`.
pub fn features<'s>(
    inputs: Inputs<'s>,
    versions: Versions,
    semantics: &Semantics,
) -> VecCollection<'s, Epoch, FeatureUpdate, isize> {
    let reads_items = versions.kind() == Kind::Attention;
    let mut state = Features::new(versions, semantics);
    let Inputs { pairs, neighbours, items, clock } = inputs;
    let mut input = pairs
        .map(Input::Pair)
        .concat(neighbours.map(Input::Neighbours))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    if reads_items {
        input = input.concat(items.map(|(worker, item)| Input::Item(worker, item)));
    }
    let by = |input: &Input| match input {
        Input::Pair(PairUpdate { user, .. }) | Input::Neighbours(NeighbourUpdate { user, .. }) => route(user),
        Input::Item(worker, _) | Input::Clock(worker, _) => *worker,
    };
    staged(input, "features", by, move |_, changes, out| state.step(changes, out))
}
