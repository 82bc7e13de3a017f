//! Features: the ICT vector and lineage of every touched pair, encoded as the record that is published.
//!
//! **Computes**: for a pair with a feature the record of `features` under the versions in force: ICT
//! of its query and demonstrations ([`crate::ict`]), their ids and scores, the history, the status.
//! A pure function of what [`crate::retrieval`] gives; bits don't depend on batch or worker count.
//!
//! **Memory**: the tokens of the demonstrations in the pool, computed once each; rows and part, about
//! 700 B, of every item that a pair or a history of one had since it last changed.

use crate::clock::Clock;
use crate::ict::{DemonstrationTokens, ItemPart, ItemRows, Prefix, Sample, UserPart, Weights};
use crate::retrieval::{PairUpdate, Retrieved, UserView};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::Verdict;
use ictflow_schemas::feature::{CotStatus, Feature, UsedDemonstration};
use ictflow_schemas::invariants;
use ictflow_schemas::wire::Wire;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A touched pair.
    Pair(PairUpdate),
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

/// The state of the operator.
pub struct Features {
    weights: Arc<Weights>,
    k: usize,
    tokens: HashMap<Uuid, (Arc<Demonstration>, Arc<DemonstrationTokens>)>,
    /// What the ICT reads of an item in this state.
    items: HashMap<Id, Parts>,
    /// The size of `tokens` and `items` at which what left is looked for.
    sweep_at: usize,
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
    pub fn new(weights: Arc<Weights>, k: usize) -> Self {
        Features { weights, k, tokens: HashMap::new(), items: HashMap::new(), sweep_at: 1024 }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<FeatureUpdate>) {
        let mut actives = None;
        let mut pairs = Vec::new();
        for (input, _) in changes {
            match input {
                Input::Pair(pair) => pairs.push(pair),
                Input::Clock(_, clock) => actives = Some(clock.actives),
            }
        }
        let Some(actives) = actives else { return };
        let mut shared = Shared::default();
        for pairs in pairs.chunks(BATCH) {
            if shared.prefixes.len() > PREFIXES {
                shared.prefixes.clear();
            }
            let retrieved = pairs.iter().filter_map(|pair| Some((pair, pair.retrieved.as_ref()?)));
            let queries: Vec<(Arc<Prefix>, Vec<f32>)> = retrieved
                .map(|(pair, r)| (self.prefix(&r.used, &mut shared), self.query(pair, r, &mut shared)))
                .collect();
            let queries: Vec<(&Prefix, &[f32])> =
                queries.iter().map(|(prefix, query)| (&**prefix, query.as_slice())).collect();
            let vectors = self.weights.forward(&queries);
            // As many vectors, in their order, as there are pairs with a query.
            let mut vectors = vectors.chunks_exact(vectors.len().div_ceil(queries.len().max(1)).max(1));
            for pair in pairs {
                let made = pair.retrieved.as_ref().and_then(|r| Some((r, vectors.next()?)));
                let feature = made.map(|(r, ict)| self.feature(pair, r, ict, &actives));
                let k = feature.as_ref().map_or(0, |feature| feature.demonstrations.len());
                let value = feature.map(|feature| feature.encode().into());
                let (user, item, live) = (pair.user.clone(), pair.item.clone(), pair.live);
                out.push((FeatureUpdate { user, item, live, k, value }, 1));
            }
        }
        self.sweep();
    }

    /// The query token of a pair.
    fn query(&mut self, pair: &PairUpdate, retrieved: &Retrieved, shared: &mut Shared) -> Vec<f32> {
        let user = self.user_part(&pair.user, &retrieved.view, shared);
        let item = self.item_part(&pair.item, &retrieved.item);
        self.weights.join(&user, &item)
    }

    fn feature(&self, pair: &PairUpdate, retrieved: &Retrieved, ict: &[f32], actives: &Actives) -> Feature {
        let used = &retrieved.used;
        let feature = Feature {
            user_id: pair.user.to_string(),
            item_id: pair.item.to_string(),
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
            history: retrieved.view.history.iter().map(|entry| entry.item.to_string()).collect(),
            cot_status: CotStatus::of(used.len(), self.k, used.iter().any(|(c, _)| !c.fresh)),
            cot_created_at: used.iter().map(|(c, _)| c.cot_created_at).min(),
            ict_weights: actives.ict_weights.clone(),
            encoder: actives.encoder.clone(),
            prompt_version: actives.prompt_version.clone(),
            llm_model: actives.llm_model.clone(),
            event_time: retrieved.view.history.last().map(|entry| entry.event_time),
        };
        // A feature that contradicts itself must not reach a ranker.
        if let Err(violation) = invariants::feature(&feature, self.k, self.neighbours) {
            panic!("feature of an epoch breaks an invariant: {}", violation.0);
        }
        feature
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

/// The operator `features`.
pub fn features<'s>(
    pairs: VecCollection<'s, Epoch, PairUpdate, isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    weights: Arc<Weights>,
    k: usize,
) -> VecCollection<'s, Epoch, FeatureUpdate, isize> {
    let mut state = Features::new(weights, k);
    let input = pairs.map(Input::Pair).concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Pair(pair) => route(&pair.user),
        Input::Clock(worker, _) => *worker,
    };
    staged(input, "features", by, move |_, changes, out| state.step(changes, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ict::{Shape, untrained};
    use ictflow_schemas::catalog::{ItemState, ItemVector};
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::vector::{VectorSum, quantise};

    fn item(n: usize, creator: &str) -> Item {
        let text = text_digest(&format!("{n}"));
        let mut vector = vec![0.0; 384];
        vector[n % 384] = 1.0;
        Arc::new(ItemState {
            text,
            creator: Some(creator.into()),
            categories: vec!["c".into()],
            vector: Some(ItemVector { text, vector: quantise(&vector) }),
        })
    }

    fn values(features: &mut Features, pairs: Vec<PairUpdate>) -> Vec<Option<Arc<[u8]>>> {
        let clock = Clock { maxima: [].into(), now: 0, publish: true, actives: Arc::default() };
        let mut changes: Changes<Input> = pairs.into_iter().map(|pair| (Input::Pair(pair), 1)).collect();
        changes.push((Input::Clock(0, clock), 1));
        let mut out = Changes::new();
        features.step(changes, &mut out);
        out.into_iter().map(|(update, _)| update.value).collect()
    }

    /// More pairs than one batch holds, some without a feature; then items that changed.
    #[test]
    fn what_is_kept_and_batched_changes_no_byte() {
        let weights = Arc::new(
            Weights::from_safetensors(&untrained(7, Shape::default()).expect("a shape")).expect("weights"),
        );
        let view = |user: usize, creator: &str| {
            let items = [3, 5, 3].map(|n| (format!("i{n}").into(), Some(item(n, creator))));
            let vectors = [3, 5, 3].map(|n| item(n, creator).vector.clone().expect("it has one").vector);
            let text = VectorSum::over(vectors.iter().map(|vector| &**vector));
            let items = items.into_iter().chain([(format!("gone{user}").into(), None)]).collect();
            Arc::new(UserView { history: [].into(), items, text })
        };
        let pairs = |creator: &str| -> Vec<PairUpdate> {
            let views: Vec<_> = (0..3).map(|user| view(user, creator)).collect();
            let pair = |n: usize| PairUpdate {
                user: format!("u{}", n % 3).into(),
                item: format!("i{}", n / 3).into(),
                retrieved: (!n.is_multiple_of(7)).then(|| Retrieved {
                    view: views[n % 3].clone(),
                    item: item(n / 3, creator),
                    used: vec![],
                }),
                live: true,
            };
            (0..2 * BATCH + 5).map(pair).collect()
        };
        let mut kept = Features::new(weights.clone(), 4);
        let mut made = Vec::new();
        for creator in ["a", "b", "a"] {
            let together = values(&mut kept, pairs(creator));
            let alone: Vec<_> = pairs(creator)
                .into_iter()
                .flat_map(|pair| values(&mut Features::new(weights.clone(), 4), vec![pair]))
                .collect();
            assert_eq!(together, alone);
            assert_eq!(together.iter().filter(|value| value.is_none()).count(), (2 * BATCH + 5).div_ceil(7));
            made.push(together);
        }
        assert_eq!(made[0], made[2]);
        assert!(made[0].iter().zip(&made[1]).all(|(a, b)| a.is_none() || a != b), "the creator counts");
    }
}
