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
//! made with the ones before. Where it names a shadow, weights beside those that serve, each update has its record
//! too, which differs in vector and version only.
//!
//! **Served**: an impression is answered with what stood for its pair before the epoch ([`served`]).
//!
//! **Memory**: for a pair its selections, shared, and its vector; the tokens of the demonstrations in the
//! pool, computed once each; rows and part, about 700 B, of every item that a pair or a history of one had
//! since it last changed; all of it twice with a shadow. With attention also every item's state, shared, and
//! 256 B a user and an item met as a neighbour.

use crate::clock::Clock;
use crate::ict::{Kind, Versions};
use crate::neighbours::NeighbourUpdate;
use crate::retrieval::neighbours::{Neighbour, Sources};
use crate::retrieval::{PairUpdate, Retrieved};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::feature::{CotStatus, Feature, NeighbourSource, UsedDemonstration, UsedNeighbour};
use ictflow_schemas::invariants;
use ictflow_schemas::wire::Wire;
use maker::{Maker, Shared, Wanted};
use serde::{Deserialize, Serialize};
use served::{ServedUpdate, Shown};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod maker;
mod pooled;
pub mod served;
#[cfg(test)]
mod tests;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A touched pair.
    Pair(PairUpdate),
    /// A pair whose neighbours changed.
    Neighbours(NeighbourUpdate),
    /// An impression of a pair.
    Shown(Shown),
    /// An item's state, for the worker named; only for weights that read neighbours.
    Item(u64, (Id, Item)),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
}

/// What the operator gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A touched pair.
    Update(FeatureUpdate),
    /// What stood for an impression's pair before the epoch.
    Served(ServedUpdate),
}

impl Output {
    /// The touched pair.
    pub fn update(self) -> Option<FeatureUpdate> {
        match self {
            Output::Update(update) => Some(update),
            _ => None,
        }
    }

    /// What stood for an impression.
    pub fn served(self) -> Option<ServedUpdate> {
        match self {
            Output::Served(served) => Some(served),
            _ => None,
        }
    }
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
    /// The same of the weights that stand beside those that serve; `None` without such.
    pub shadow: Option<Shadowed>,
}

/// What the weights beside those that serve make of a feature.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shadowed {
    /// The encoded record.
    pub value: Arc<[u8]>,
    /// The cosine of its vector and the one that serves, in millionths; 0 where either is zeros.
    pub cosine: i32,
}

/// A pair as it stands.
#[derive(Debug, Default)]
struct Pair {
    live: bool,
    retrieved: Option<Retrieved>,
    sources: Option<Arc<Sources>>,
    /// The vector of the retrieved, where it stands.
    ict: Option<Arc<[f32]>>,
    /// The same of the shadow.
    shadow: Option<Arc<[f32]>>,
}

impl Pair {
    /// What its vectors are made of has changed.
    fn changed(&mut self) {
        (self.ict, self.shadow) = (None, None);
    }
}

/// The state of the operator.
pub struct Features {
    versions: Versions,
    /// The versions in force, once anything was published.
    actives: Option<Arc<Actives>>,
    /// K, and M of each source.
    k: usize,
    neighbours: usize,
    pairs: BTreeMap<(Id, Id), Pair>,
    /// Of the weights in force; before anything was published, of those that will serve.
    live: Maker,
    /// Of those beside them.
    shadow: Option<Maker>,
}

/// Pairs whose vectors are computed together. Only speed and memory depend on it.
const BATCH: usize = 256;

impl Features {
    /// An empty state.
    pub fn new(versions: impl Into<Versions>, semantics: &Semantics) -> Self {
        let versions = versions.into();
        Features {
            actives: None,
            k: semantics.demonstrations,
            neighbours: semantics.neighbours.selected,
            pairs: BTreeMap::new(),
            live: Maker::new(versions.serving()),
            shadow: None,
            versions,
        }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let changes = self.answer(changes, out);
        let mut clock = None;
        let mut touched: BTreeSet<(Id, Id)> = BTreeSet::new();
        let mut items: BTreeSet<Id> = BTreeSet::new();
        for (input, diff) in changes {
            match input {
                Input::Pair(PairUpdate { user, item, retrieved, live }) => {
                    let key = (user, item);
                    let pair = self.pairs.entry(key.clone()).or_default();
                    (pair.live, pair.retrieved) = (live, retrieved);
                    pair.changed();
                    touched.insert(key);
                }
                Input::Neighbours(NeighbourUpdate { user, item, sources }) => {
                    let key = (user, item);
                    let pair = self.pairs.entry(key.clone()).or_default();
                    if let Some(pooled) = &mut self.live.pooled {
                        pooled.reads(&key, pair.sources.as_deref(), sources.as_deref());
                        pair.changed();
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
                    let makers = [Some(&mut self.live), self.shadow.as_mut()];
                    for pooled in makers.into_iter().flatten().filter_map(|maker| maker.pooled.as_mut()) {
                        pooled.item(&id, item.clone(), diff);
                    }
                    items.insert(id);
                }
                Input::Clock(_, now) => clock = Some(now),
                // Answered before.
                Input::Shown(_) => {}
            }
        }
        let Some(clock) = clock else { return };
        if clock.publish && self.follow(&clock) {
            let standing = self.pairs.iter().filter(|(_, pair)| pair.retrieved.is_some());
            touched.extend(standing.map(|(key, _)| key.clone()));
        }
        for key in self.live.pooled.as_ref().map(|pooled| pooled.changed(&items)).unwrap_or_default() {
            if let Some(pair) = self.pairs.get_mut(&key).filter(|pair| pair.retrieved.is_some()) {
                pair.changed();
                touched.insert(key);
            }
        }
        let touched: Vec<(Id, Id)> = touched.into_iter().collect();
        let mut shared = <[Shared; 2]>::default();
        for keys in touched.chunks(BATCH) {
            self.make_vectors(keys, &mut shared);
            for key in keys {
                // A pair that went may have been let go of already.
                let nothing = Pair::default();
                let pair = self.pairs.get(key).unwrap_or(&nothing);
                let feature = self.feature(key, pair, &clock.actives);
                let k = feature.as_ref().map_or(0, |feature| feature.demonstrations.len());
                let shadow = feature.as_ref().and_then(|feature| self.shadowed(feature, pair));
                let value = feature.map(|feature| feature.encode().into());
                let ((user, item), live) = (key.clone(), pair.live);
                if !live && value.is_none() && pair.sources.is_none() {
                    self.pairs.remove(key);
                }
                out.push((Output::Update(FeatureUpdate { user, item, live, k, value, shadow }), 1));
            }
        }
        let caches = 1 + usize::from(self.shadow.is_some());
        self.live.sweep(caches);
        self.shadow.iter_mut().for_each(|shadow| shadow.sweep(caches));
    }

    /// Takes other versions, of the weights that serve and of those beside them. Says whether they are others.
    fn follow(&mut self, clock: &Clock) -> bool {
        let beside = self.shadow.as_ref().map(Maker::version);
        let other_shadow = beside != clock.shadow.as_deref();
        if self.actives.as_ref() == Some(&clock.actives) && !other_shadow {
            return false;
        }
        let named = &clock.actives.ict_weights;
        if self.live.version() != named {
            self.live.follow(self.versions.in_force(named));
            self.pairs.values_mut().for_each(|pair| pair.ict = None);
        }
        if other_shadow {
            let weights = clock.shadow.as_deref().map(|version| self.versions.in_force(version));
            self.shadow = weights.map(|weights| self.live.beside(weights));
            self.pairs.values_mut().for_each(|pair| pair.shadow = None);
        }
        self.actives = Some(clock.actives.clone());
        true
    }

    /// Answers the impressions by what stands before the epoch's changes, and gives the rest.
    fn answer(&self, changes: Changes<Input>, out: &mut Changes<Output>) -> Changes<Input> {
        let mut rest = Changes::with_capacity(changes.len());
        for (input, diff) in changes {
            match input {
                Input::Shown(shown) => {
                    out.extend(self.stood(shown).map(|served| (Output::Served(served), diff)));
                }
                other => rest.push((other, diff)),
            }
        }
        rest
    }

    /// Computes the vectors of some pairs that lack theirs.
    fn make_vectors(&mut self, keys: &[(Id, Id)], shared: &mut [Shared; 2]) {
        let [of_live, of_shadow] = shared;
        fill(&mut self.pairs, keys, &mut self.live, of_live, |pair| &mut pair.ict);
        if let Some(shadow) = &mut self.shadow {
            fill(&mut self.pairs, keys, shadow, of_shadow, |pair| &mut pair.shadow);
        }
    }

    /// The same record with the vector of the weights beside those that serve.
    fn shadowed(&self, feature: &Feature, pair: &Pair) -> Option<Shadowed> {
        let (shadow, vector) = self.shadow.as_ref().zip(pair.shadow.as_ref())?;
        let ict_weights = shadow.version().to_owned();
        let beside = Feature { ict: vector.to_vec(), ict_weights, ..feature.clone() };
        Some(Shadowed { value: beside.encode().into(), cosine: millionths(&feature.ict, vector) })
    }

    /// The record of a pair that has a vector.
    fn feature(&self, (user, item): &(Id, Id), pair: &Pair, actives: &Actives) -> Option<Feature> {
        let (retrieved, ict) = pair.retrieved.as_ref().zip(pair.ict.as_ref())?;
        let nothing = Arc::default();
        let sources = pair.sources.as_ref().unwrap_or(&nothing);
        let history = &retrieved.view.history;
        // A vector of attention stands on neighbours.
        let used: &[_] = if self.live.pooled.is_some() { &[] } else { &retrieved.used };
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
            vector_kind: self.live.kind(),
            history_labels: history.iter().map(|entry| entry.label.number()).collect(),
        };
        // A feature that contradicts itself must not reach a ranker.
        if let Err(violation) = invariants::feature(&feature, self.k, self.neighbours) {
            panic!("feature of an epoch breaks an invariant: {}", violation.0);
        }
        Some(feature)
    }
}

/// Gives pairs that lack a vector theirs.
fn fill(
    pairs: &mut BTreeMap<(Id, Id), Pair>,
    keys: &[(Id, Id)],
    maker: &mut Maker,
    shared: &mut Shared,
    place: fn(&mut Pair) -> &mut Option<Arc<[f32]>>,
) {
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    for key in keys {
        let Some(pair) = pairs.get_mut(key) else { continue };
        if place(pair).is_some() {
            continue;
        }
        let sources = pair.sources.clone().unwrap_or_default();
        wanted.extend(pair.retrieved.clone().map(|retrieved| Wanted { pair: key, retrieved, sources }));
    }
    let vectors = maker.vectors(&wanted, shared);
    for (Wanted { pair: key, .. }, vector) in wanted.iter().zip(vectors) {
        if let Some(pair) = pairs.get_mut(*key) {
            *place(pair) = Some(vector);
        }
    }
}

/// The cosine of two vectors in millionths; 0 where either is zeros.
fn millionths(a: &[f32], b: &[f32]) -> i32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (1e6 * dot(a, b) / norms).round() as i32 } else { 0 }
}

/// The operator's inputs. `items` is broadcast.
pub struct Inputs<'s> {
    /// Touched pairs.
    pub pairs: VecCollection<'s, Epoch, PairUpdate, isize>,
    /// Pairs whose neighbours changed.
    pub neighbours: VecCollection<'s, Epoch, NeighbourUpdate, isize>,
    /// Impressions.
    pub shown: VecCollection<'s, Epoch, Shown, isize>,
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
) -> VecCollection<'s, Epoch, Output, isize> {
    let reads_items = versions.kind() == Kind::Attention;
    let mut state = Features::new(versions, semantics);
    let Inputs { pairs, neighbours, shown, items, clock } = inputs;
    let mut input = pairs
        .map(Input::Pair)
        .concat(neighbours.map(Input::Neighbours))
        .concat(shown.map(Input::Shown))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    if reads_items {
        input = input.concat(items.map(|(worker, item)| Input::Item(worker, item)));
    }
    let by = |input: &Input| match input {
        Input::Pair(PairUpdate { user, .. }) | Input::Neighbours(NeighbourUpdate { user, .. }) => route(user),
        Input::Shown(shown) => route(&shown.identity.user),
        Input::Item(worker, _) | Input::Clock(worker, _) => *worker,
    };
    staged(input, "features", by, move |_, changes, out| state.step(changes, out))
}
