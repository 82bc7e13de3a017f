//! What one version of weights makes: vectors, and of their making what is kept from one epoch to the next.

use super::pooled::Pooled;
use crate::ict::{DemonstrationTokens, ItemPart, ItemRows, Kind, Prefix, Sample, UserPart, Weights};
use crate::retrieval::neighbours::Sources;
use crate::retrieval::{Retrieved, UserView};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::example::Verdict;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Prefixes kept at most within an epoch, 6 KiB each at K = 4: an epoch may touch a million pairs,
/// and lists are shared by pairs that come one after the other.
const PREFIXES: usize = 4_096;

/// A pair that wants a vector, and what it is made of.
pub(super) struct Wanted<'k> {
    /// The user and the item.
    pub pair: &'k (Id, Id),
    pub retrieved: Retrieved,
    pub sources: Arc<Sources>,
}

/// Parts shared by the pairs of one epoch.
#[derive(Default)]
pub(super) struct Shared {
    users: HashMap<Id, (Arc<UserView>, Arc<UserPart>)>,
    prefixes: HashMap<Vec<Uuid>, Arc<Prefix>>,
}

/// What is kept of an item's state.
struct Parts {
    item: Item,
    rows: Arc<ItemRows>,
    /// Made for the first pair on the item.
    part: Option<Arc<ItemPart>>,
}

/// One version of weights with what is kept of its work.
pub(super) struct Maker {
    weights: Arc<Weights>,
    tokens: HashMap<Uuid, (Arc<Demonstration>, Arc<DemonstrationTokens>)>,
    /// What the ICT reads of an item in this state.
    items: HashMap<Id, Parts>,
    /// The size of `tokens` and `items` at which what left is looked for.
    sweep_at: usize,
    /// For weights that read neighbours.
    pub pooled: Option<Pooled>,
}

impl Maker {
    /// Nothing made yet.
    pub fn new(weights: Arc<Weights>) -> Self {
        let pooled = (weights.kind() == Kind::Attention).then(|| Pooled::new(weights.clone()));
        Maker { weights, tokens: HashMap::new(), items: HashMap::new(), sweep_at: 1024, pooled }
    }

    /// Nothing made yet with other weights of the kind, over the items that are known here.
    pub fn beside(&self, weights: Arc<Weights>) -> Self {
        let pooled = self.pooled.as_ref().map(|pooled| pooled.beside(weights.clone()));
        Maker { pooled, ..Maker::new(weights) }
    }

    /// Takes other weights: what was made with those before is dropped.
    pub fn follow(&mut self, weights: Arc<Weights>) {
        self.tokens.clear();
        self.items.clear();
        if let Some(pooled) = &mut self.pooled {
            pooled.follow(weights.clone());
        }
        self.weights = weights;
    }

    /// The version of the weights.
    pub fn version(&self) -> &str {
        self.weights.version()
    }

    /// The kind of vector.
    pub fn kind(&self) -> Kind {
        self.weights.kind()
    }

    /// The vectors of some pairs, in their order.
    pub fn vectors(&mut self, wanted: &[Wanted<'_>], shared: &mut Shared) -> Vec<Arc<[f32]>> {
        if shared.prefixes.len() > PREFIXES {
            shared.prefixes.clear();
        }
        let queries: Vec<Vec<f32>> =
            wanted.iter().map(|wanted| self.query(wanted.pair, &wanted.retrieved, shared)).collect();
        let vectors = match self.pooled.take() {
            None => {
                let prefixes: Vec<Arc<Prefix>> =
                    wanted.iter().map(|wanted| self.prefix(&wanted.retrieved.used, shared)).collect();
                let rows: Vec<(&Prefix, &[f32])> =
                    prefixes.iter().zip(&queries).map(|(prefix, query)| (&**prefix, &**query)).collect();
                self.weights.forward(&rows)
            }
            Some(mut pooled) => {
                let rows: Vec<(&[f32], &Sources)> =
                    queries.iter().zip(wanted).map(|(query, wanted)| (&**query, &*wanted.sources)).collect();
                let vectors = pooled.attend(&rows);
                self.pooled = Some(pooled);
                vectors
            }
        };
        vectors.chunks_exact(self.weights.shape().d).map(Into::into).collect()
    }

    /// The query token of a pair.
    fn query(&mut self, (user, item): &(Id, Id), retrieved: &Retrieved, shared: &mut Shared) -> Vec<f32> {
        let user = self.user_part(user, &retrieved.view, shared);
        let item = self.item_part(item, &retrieved.item);
        self.weights.join(&user, &item)
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

    /// Drops what belongs to demonstrations and items that only caches still know, of which there are so many.
    pub fn sweep(&mut self, caches: usize) {
        if self.tokens.len() + self.items.len() > self.sweep_at {
            self.tokens.retain(|_, (demonstration, _)| Arc::strong_count(demonstration) > caches);
            self.items.retain(|_, parts| Arc::strong_count(&parts.item) > caches);
            self.sweep_at = 1024.max(2 * (self.tokens.len() + self.items.len()));
        }
    }
}
