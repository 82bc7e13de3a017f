//! The source `global`, the paper's: of all demonstrations the nearest by history and item.
//!
//! **Computes**, for a pair of user u and item i and a demonstration c with item b:
//! score = ⌊Σ_j ⟨e_hj, a_c⟩ / n⌋ + ⟨e_i, b_c⟩, exact integers ([`ictflow_schemas::vector`]). K/2
//! positives and K/2 negatives; a short side is filled from the other. Order: ascending score,
//! nearest last; of equal scores the greater (label_time, point id) is the nearer. Never the pair's
//! own (user, item).
//!
//! **Maintained**: a pair keeps its best K of each label, which decide quota and fill. A demonstration
//! that arrives is compared with the worst of them; one that leaves makes only the pairs rescan that
//! hold it among them.
//!
//! **Memory**: for each slot of the pool one i64 a live user and one i32 a live item.

use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::vector::{VectorSum, dot, history_term};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// The demonstrations by slot; a slot that was left is used again.
#[derive(Debug, Default)]
pub struct Pool {
    slots: Vec<Option<Arc<Demonstration>>>,
    free: Vec<usize>,
    by_id: HashMap<Uuid, usize>,
}

impl Pool {
    /// The demonstration in a slot.
    pub fn get(&self, slot: usize) -> Option<&Arc<Demonstration>> {
        self.slots.get(slot)?.as_ref()
    }

    /// The slot of a demonstration.
    pub fn slot(&self, id: &Uuid) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// How many slots there are, free ones included.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The occupied slots.
    pub fn occupied(&self) -> impl Iterator<Item = (usize, &Arc<Demonstration>)> {
        self.slots.iter().enumerate().filter_map(|(slot, c)| Some((slot, c.as_ref()?)))
    }

    /// Takes a demonstration out; its slot stays empty until [`Pool::reuse`].
    pub fn remove(&mut self, demonstration: &Arc<Demonstration>) -> Option<usize> {
        let slot = self.by_id.remove(&demonstration.id)?;
        self.slots[slot] = None;
        Some(slot)
    }

    /// Makes emptied slots available, once nothing refers to them any more.
    pub fn reuse(&mut self, slots: impl IntoIterator<Item = usize>) {
        self.free.extend(slots);
    }

    /// Puts a demonstration in and gives its slot.
    pub fn insert(&mut self, demonstration: Arc<Demonstration>) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.by_id.insert(demonstration.id, slot);
        self.slots[slot] = Some(demonstration);
        slot
    }
}

/// A user's history terms by slot.
#[derive(Debug, Default)]
pub struct UserRow(Vec<i64>);

impl UserRow {
    /// All terms of a history.
    pub fn new(history: &VectorSum, pool: &Pool) -> Self {
        let mut row = UserRow::default();
        for (slot, _) in pool.occupied() {
            row.update(history, pool, slot);
        }
        row
    }

    /// The term of one slot, after its demonstration changed.
    pub fn update(&mut self, history: &VectorSum, pool: &Pool, slot: usize) {
        self.0.resize(pool.slots(), 0);
        if let Some(demonstration) = pool.get(slot) {
            self.0[slot] = history_term(history.dot(&demonstration.mean), history.n);
        }
    }
}

/// An item's products by slot.
#[derive(Debug, Default)]
pub struct ItemRow(Vec<i32>);

impl ItemRow {
    /// All products of an item's vector.
    pub fn new(vector: &[i16], pool: &Pool) -> Self {
        let mut row = ItemRow::default();
        for (slot, _) in pool.occupied() {
            row.update(vector, pool, slot);
        }
        row
    }

    /// The product of one slot, after its demonstration changed.
    pub fn update(&mut self, vector: &[i16], pool: &Pool, slot: usize) {
        self.0.resize(pool.slots(), 0);
        if let Some(demonstration) = pool.get(slot) {
            self.0[slot] = dot(vector, demonstration.item_vector());
        }
    }
}

/// The score of a slot by the terms of its two rows.
pub fn score((user, item): (&UserRow, &ItemRow), slot: usize) -> i64 {
    user.0[slot] + i64::from(item.0[slot])
}

/// The score of one demonstration without rows.
pub fn score_of(history: &VectorSum, item: &[i16], demonstration: &Demonstration) -> i64 {
    history_term(history.dot(&demonstration.mean), history.n)
        + i64::from(dot(item, demonstration.item_vector()))
}

/// How near a demonstration is, then which slot it has. Greater is nearer.
type Rank = (i64, i64, Uuid, usize);

/// The best K of each label for one pair, nearest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Best {
    sides: [Vec<Rank>; 2],
}

impl Best {
    /// Scans the whole pool with the terms of two rows.
    pub fn scan(user: &str, item: &str, rows: (&UserRow, &ItemRow), pool: &Pool, k: usize) -> Self {
        let mut best = Best::default();
        for (slot, demonstration) in pool.occupied() {
            best.offer(user, item, score(rows, slot), slot, demonstration, k);
        }
        best
    }

    /// Takes a demonstration that isn't held where it belongs to the best K of its label; the worst of
    /// K + 1 leaves. Says whether it did.
    pub fn offer(
        &mut self,
        user: &str,
        item: &str,
        score: i64,
        slot: usize,
        demonstration: &Demonstration,
        k: usize,
    ) -> bool {
        let accepted = self.accepts(user, item, score, slot, demonstration, k);
        if accepted {
            let side = &mut self.sides[usize::from(demonstration.positive)];
            let rank = (score, demonstration.label_time, demonstration.id, slot);
            let place = side.partition_point(|better| *better > rank);
            side.insert(place, rank);
            side.truncate(k);
        }
        accepted
    }

    /// Whether a demonstration that isn't held belongs to the best K of its label.
    pub fn accepts(
        &self,
        user: &str,
        item: &str,
        score: i64,
        slot: usize,
        demonstration: &Demonstration,
        k: usize,
    ) -> bool {
        let side = &self.sides[usize::from(demonstration.positive)];
        let rank = (score, demonstration.label_time, demonstration.id, slot);
        let room = side.len() < k || side.last().is_some_and(|worst| *worst < rank);
        let own = &*demonstration.identity.user == user && &*demonstration.item == item;
        room && !own
    }

    /// Lets go of what the selection doesn't use.
    pub fn without_reserve(self, k: usize) -> Self {
        let used: HashSet<usize> = self.selection(k).into_iter().map(|(slot, _)| slot).collect();
        Best {
            sides: self.sides.map(|side| side.into_iter().filter(|rank| used.contains(&rank.3)).collect()),
        }
    }

    /// The slots held for either label, used or in reserve.
    pub fn slots(&self) -> impl Iterator<Item = usize> {
        self.sides.iter().flatten().map(|rank| rank.3)
    }

    /// The selection: (slot, score), ascending, nearest last.
    pub fn selection(&self, k: usize) -> Vec<(usize, i64)> {
        let [negative, positive] = &self.sides;
        let half = k / 2;
        let take_positive = positive.len().min(half.max(k.saturating_sub(negative.len())));
        let take_negative = negative.len().min(k - take_positive);
        let mut chosen: Vec<&Rank> =
            positive[..take_positive].iter().chain(&negative[..take_negative]).collect();
        chosen.sort_unstable();
        chosen.into_iter().map(|rank| (rank.3, rank.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::catalog::{ItemState, ItemVector};
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::history::Identity;

    /// A demonstration whose score is chosen by its item vector: the query's is 1 in the one component.
    fn demonstration(
        id: u8,
        score: i16,
        positive: bool,
        label_time: i64,
        user: &str,
        item: &str,
    ) -> Arc<Demonstration> {
        let text = text_digest("t");
        let vector = Some(ItemVector { text, vector: vec![score].into() });
        Arc::new(Demonstration {
            label_time,
            id: Uuid::from_u128(u128::from(id)),
            identity: Identity { user: user.into(), event_time: 0, event_id: "e".into() },
            item: item.into(),
            item_state: Arc::new(ItemState { text, creator: None, categories: vec![], vector }),
            positive,
            history: vec![],
            text: VectorSum::default(),
            mean: vec![0].into(),
            cot: vec![0].into(),
            cot_key: text,
            fresh: true,
            cot_created_at: 0,
        })
    }

    #[test]
    fn the_golden_selection_is_met() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../schemas/golden/keys.json"))
                .expect("golden keys are JSON");
        let case = golden["cases"]
            .as_array()
            .and_then(|cases| {
                cases.iter().find(|case| case["name"].as_str().is_some_and(|n| n.starts_with("top-K")))
            })
            .expect("the golden keys have a top-K case");
        let input = &case["input"];
        let mut pool = Pool::default();
        for c in input["demonstrations"].as_array().expect("a list") {
            let id = u8::from_str_radix(c["id"].as_str().expect("an id"), 16).expect("hex");
            let number = |name: &str| c[name].as_i64().expect("a number");
            let text = |name: &str| c[name].as_str().expect("a text");
            pool.insert(demonstration(
                id,
                number("score") as i16,
                number("label") == 1,
                number("label_time"),
                text("user"),
                text("item"),
            ));
        }
        let rows = (&UserRow::new(&VectorSum::default(), &pool), &ItemRow::new(&[1], &pool));
        let k = input["K"].as_u64().expect("K") as usize;
        let user = input["user"].as_str().expect("a user");
        let item = input["item"].as_str().expect("an item");
        let best = Best::scan(user, item, rows, &pool, k);
        let ids: Vec<String> = best
            .selection(k)
            .into_iter()
            .filter_map(|(slot, _)| pool.get(slot).map(|c| format!("{:02x}", c.id.as_u128())))
            .collect();
        let expected: Vec<&str> =
            case["expected"]["ids"].as_array().expect("ids").iter().filter_map(|id| id.as_str()).collect();
        assert_eq!(ids, expected);
    }
}
