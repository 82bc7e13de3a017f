//! Features: the ICT vector and lineage of every touched pair, encoded as the record that is published.
//!
//! **Computes**: for a pair with a feature the record of `features` under the versions in force: ICT
//! of its query and demonstrations ([`crate::ict`]), their ids and scores, the history, the status.
//! A pure function of what [`crate::retrieval`] gives; bits don't depend on batch or worker count.
//!
//! **Memory**: the tokens of the demonstrations in the pool, computed once each.

use crate::clock::Clock;
use crate::ict::{DemonstrationTokens, Prefix, Sample, UserPart, Weights};
use crate::retrieval::{PairUpdate, Retrieved, UserView};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
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
    /// The size of `tokens` at which demonstrations that left are looked for.
    sweep_at: usize,
}

/// Parts shared by the pairs of one epoch.
#[derive(Default)]
struct Shared {
    users: HashMap<Id, (Arc<UserView>, Arc<UserPart>)>,
    prefixes: HashMap<Vec<Uuid>, Arc<Prefix>>,
}

impl Features {
    /// An empty state.
    pub fn new(weights: Arc<Weights>, k: usize) -> Self {
        Features { weights, k, tokens: HashMap::new(), sweep_at: 1024 }
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
        for pair in pairs {
            let feature =
                pair.retrieved.map(|r| self.feature(&pair.user, &pair.item, &r, &actives, &mut shared));
            let (user, item, live) = (pair.user, pair.item, pair.live);
            let k = feature.as_ref().map_or(0, |feature| feature.demonstrations.len());
            let value = feature.map(|feature| feature.encode().into());
            out.push((FeatureUpdate { user, item, live, k, value }, 1));
        }
        self.sweep();
    }

    fn feature(
        &mut self,
        user: &Id,
        item: &Id,
        retrieved: &Retrieved,
        actives: &Actives,
        shared: &mut Shared,
    ) -> Feature {
        let used = &retrieved.used;
        let prefix = self.prefix(used, shared);
        let part = self.user_part(user, &retrieved.view, shared);
        let rows = self.weights.item_rows(item, Some(&retrieved.item));
        let vector = retrieved.item.vector.as_ref().map(|vector| &*vector.vector);
        let query = self.weights.join(&part, &self.weights.item_part(&rows, vector));
        let feature = Feature {
            user_id: user.to_string(),
            item_id: item.to_string(),
            ict: self.weights.decode_after(&prefix, &query),
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
        if let Err(violation) = invariants::feature(&feature, self.k) {
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

    fn user_part(&self, user: &Id, view: &Arc<UserView>, shared: &mut Shared) -> Arc<UserPart> {
        if let Some((known, part)) = shared.users.get(user)
            && Arc::ptr_eq(known, view)
        {
            return part.clone();
        }
        let rows: Vec<_> =
            view.items.iter().map(|(id, item)| self.weights.item_rows(id, item.as_deref())).collect();
        let part = Arc::new(self.weights.user_part(user, &rows, &view.text));
        shared.users.insert(user.clone(), (view.clone(), part.clone()));
        part
    }

    /// Drops the tokens of demonstrations that only this cache still knows.
    fn sweep(&mut self) {
        if self.tokens.len() > self.sweep_at {
            self.tokens.retain(|_, (demonstration, _)| Arc::strong_count(demonstration) > 1);
            self.sweep_at = 1024.max(2 * self.tokens.len());
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
