//! Selections by a store of points: who asks, and what becomes of the answers.
//!
//! The store is asked between two times of one epoch, so a pair that asks is emitted with its answer.
//! What the store answers decides which demonstrations are considered, never a score or an order.

use super::global::{Best, score_of};
use super::maintain::{Retrieval, Touched};
use super::{Found, Lookup, MEASURED, Output};
use crate::Changes;
use crate::staged::route;
use ictflow_schemas::Id;
use std::collections::BTreeSet;
use uuid::Uuid;

impl Retrieval {
    /// Takes the answers, then lets the touched pairs ask that have to. A pair that asks isn't emitted
    /// at this time.
    pub(super) fn find_stored(
        &mut self,
        touched: &mut Touched,
        found: Vec<Found>,
        out: &mut Changes<Output>,
    ) {
        if !touched.added.is_empty() {
            touched.stale.extend(self.short.iter().cloned());
            touched.pairs.extend(self.short.iter().cloned());
        }
        // What is stale and can't ask yet, before the job publishes, asks when it can.
        for pair in &touched.stale {
            self.set_best(pair, None);
        }
        for answer in found {
            let pair = (answer.user, answer.item);
            if !self.lacks_best(&pair) {
                continue;
            }
            let best = self.among(&pair, &answer.ids);
            // A published feature whose demonstrations aren't all there any more asks again.
            let whole = best.as_ref().is_some_and(|best| best.slots().count() == answer.ids.len());
            if answer.standing && !whole {
                continue;
            }
            if !answer.standing && route(&pair.0).wrapping_add(route(&pair.1)).is_multiple_of(MEASURED) {
                out.extend(self.recall(&pair, best.as_ref()).map(|recall| (recall, 1)));
            }
            self.set_best(&pair, best);
            touched.pairs.insert(pair);
        }
        if !self.publishes() {
            return;
        }
        let asking: Vec<Lookup> = touched.pairs.iter().filter_map(|pair| self.lookup(pair)).collect();
        for lookup in asking {
            touched.pairs.remove(&(lookup.user.clone(), lookup.item.clone()));
            out.push((Output::Lookup(lookup), 1));
        }
    }

    /// The query of a pair that has no best; `None` where the pair has one or can't have any.
    fn lookup(&self, pair: &(Id, Id)) -> Option<Lookup> {
        let (user, item) = pair;
        let vector = self.items.get(item)?.vector.as_ref()?;
        let state = self.users.get(user)?;
        let asks = matches!(state.pairs.get(item), Some(None));
        asks.then(|| Lookup {
            user: user.clone(),
            item: item.clone(),
            history: state.view.text.clone(),
            vector: vector.vector.clone(),
        })
    }

    /// The selection of a pair among these points; ids that the pool doesn't have are dropped.
    fn among(&self, pair: &(Id, Id), ids: &[Uuid]) -> Option<Best> {
        let distinct: BTreeSet<usize> = ids.iter().filter_map(|id| self.pool.slot(id)).collect();
        self.selection_of(pair, distinct.into_iter())
    }

    fn selection_of(&self, (user, item): &(Id, Id), slots: impl Iterator<Item = usize>) -> Option<Best> {
        let vector = self.items.get(item)?.vector.as_ref()?;
        let state = self.users.get(user).filter(|state| state.pairs.contains_key(item))?;
        let mut best = Best::default();
        for slot in slots {
            if let Some(demonstration) = self.pool.get(slot) {
                let score = score_of(&state.view.text, &vector.vector, demonstration);
                best.offer(user, item, score, slot, demonstration, self.k);
            }
        }
        Some(best.without_reserve(self.k))
    }

    /// How many of the exactly best demonstrations of a pair are in its selection.
    fn recall(&self, pair: &(Id, Id), best: Option<&Best>) -> Option<Output> {
        let exact = self.selection_of(pair, self.pool.occupied().map(|(slot, _)| slot))?;
        let found: BTreeSet<usize> = best?.slots().collect();
        let hits = exact.slots().filter(|slot| found.contains(slot)).count();
        Some(Output::Recall(hits as u32, exact.slots().count() as u32))
    }
}
