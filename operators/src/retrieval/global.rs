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
//! **Memory**: for each slot of the pool one i32 a live user and one i32 a live item. Both fit: a vector
//! has norm 1 within 1e-3, so a product or a mean of products is below 2^28.1 in size.

use super::split::SplitSum;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::vector::{VectorSum, dot, history_term};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// The demonstrations by slot; a slot that was left is used again.
#[derive(Debug, Default)]
pub struct Pool {
    slots: Vec<Option<Arc<Demonstration>>>,
    /// By slot 1 for a positive, 0 for a negative, [`EMPTY`]: what a scan reads of most slots.
    labels: Vec<u8>,
    free: Vec<usize>,
    by_id: HashMap<Uuid, usize>,
}

/// The label of an empty slot.
const EMPTY: u8 = 2;

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
        self.labels[slot] = EMPTY;
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
            self.labels.push(EMPTY);
            self.slots.len() - 1
        });
        self.labels[slot] = u8::from(demonstration.positive);
        self.by_id.insert(demonstration.id, slot);
        self.slots[slot] = Some(demonstration);
        slot
    }
}

/// A user's history terms by slot.
#[derive(Debug, Default)]
pub struct UserRow(Vec<i32>);

impl UserRow {
    /// All terms of a history.
    pub fn new(history: &SplitSum, pool: &Pool) -> Self {
        let mut row = UserRow::default();
        for (slot, _) in pool.occupied() {
            row.update(history, pool, slot);
        }
        row
    }

    /// The term of one slot, after its demonstration changed.
    pub fn update(&mut self, history: &SplitSum, pool: &Pool, slot: usize) {
        self.0.resize(pool.slots(), 0);
        if let Some(demonstration) = pool.get(slot) {
            self.0[slot] = i32::try_from(history.term(&demonstration.mean))
                .expect("the mean of products of unit vectors fits");
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

/// Slots that a scan judges by their highest score. Only speed depends on it.
const BLOCK: usize = 64;

/// How near a demonstration is, then which slot it has. Greater is nearer.
type Rank = (i64, i64, Uuid, usize);

/// The best K of each label for one pair, nearest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    sides: [Vec<Rank>; 2],
    /// By label the score of the worst held, once K are held: below it neither time nor id helps. So
    /// most demonstrations are refused without a look at them or at the ranks.
    least: [i32; 2],
}

impl Default for Best {
    fn default() -> Self {
        Best { sides: Default::default(), least: [i32::MIN; 2] }
    }
}

/// A score in 32 bits, without a check, so that many are added at once: two terms below 2^28.1 fit.
#[inline]
fn sum(user: i32, item: i32) -> i32 {
    user.wrapping_add(item)
}

/// The score of a slot by the terms of its two rows.
#[inline]
pub fn score((user, item): (&UserRow, &ItemRow), slot: usize) -> i64 {
    i64::from(sum(user.0[slot], item.0[slot]))
}

/// The score of one demonstration without rows.
pub fn score_of(history: &VectorSum, item: &[i16], demonstration: &Demonstration) -> i64 {
    history_term(history.dot(&demonstration.mean), history.n)
        + i64::from(dot(item, demonstration.item_vector()))
}

impl Best {
    /// Scans the whole pool with the terms of two rows.
    pub fn scan(user: &str, item: &str, rows: (&UserRow, &ItemRow), pool: &Pool, k: usize) -> Self {
        let mut best = Best::default();
        let blocks = rows.0.0.chunks(BLOCK).zip(rows.1.0.chunks(BLOCK)).zip(pool.labels.chunks(BLOCK));
        for (block, ((users, items), labels)) in blocks.enumerate() {
            let highest = users.iter().zip(items).map(|(user, item)| sum(*user, *item)).max();
            if highest.is_none_or(|highest| highest < best.least[0].min(best.least[1])) {
                continue;
            }
            for (place, ((u, i), label)) in users.iter().zip(items).zip(labels).enumerate() {
                let score = sum(*u, *i);
                if *label == EMPTY || score < best.least[usize::from(*label)] {
                    continue;
                }
                let slot = block * BLOCK + place;
                let Some(demonstration) = pool.get(slot) else { continue };
                best.offer(user, item, score.into(), slot, demonstration, k);
            }
        }
        best
    }

    /// Whether the demonstration of a slot is certain to be refused: it is too far,
    /// or it isn't there.
    #[inline]
    pub fn refuses(&self, (user, item): (&UserRow, &ItemRow), slot: usize, pool: &Pool) -> bool {
        let label = pool.labels[slot];
        label == EMPTY || sum(user.0[slot], item.0[slot]) < self.least[usize::from(label)]
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

    /// Takes a demonstration that isn't held where it [belongs](Best::accepts); the worst of K + 1
    /// leaves.
    pub fn offer(
        &mut self,
        user: &str,
        item: &str,
        score: i64,
        slot: usize,
        demonstration: &Demonstration,
        k: usize,
    ) {
        if !self.accepts(user, item, score, slot, demonstration, k) {
            return;
        }
        let label = usize::from(demonstration.positive);
        let side = &mut self.sides[label];
        let rank = (score, demonstration.label_time, demonstration.id, slot);
        let place = side.partition_point(|better| *better > rank);
        side.insert(place, rank);
        side.truncate(k);
        if let Some(worst) = side.get(k - 1) {
            // Scores fit 32 bits, as the rows do.
            self.least[label] = worst.0 as i32;
        }
    }

    /// Lets go of what the selection doesn't use. What is left is only held, never offered to.
    pub fn without_reserve(self, k: usize) -> Self {
        let used: HashSet<usize> = self.selection(k).into_iter().map(|(slot, _)| slot).collect();
        let sides = self.sides.map(|side| side.into_iter().filter(|rank| used.contains(&rank.3)).collect());
        Best { sides, ..self }
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
    use ictflow_schemas::vector::VectorSum;

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
        let rows = (&UserRow::new(&SplitSum::default(), &pool), &ItemRow::new(&[1], &pool));
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

    /// Scores with many ties, sides that fill early or late, slots that were left and used again.
    #[test]
    fn a_scan_finds_what_sorting_finds() {
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for round in 0..300 {
            let (mut pool, mut all) = (Pool::default(), Vec::new());
            let (size, spread, positives) = (next(400), 1 + next(300), next(11));
            for id in 0..size {
                let score = next(spread) as i16 - (spread / 2) as i16;
                let user = if next(20) == 0 { "u" } else { "v" };
                let c = demonstration(0, score, next(10) < positives, next(5) as i64, user, "i");
                let c = Arc::new(Demonstration { id: Uuid::from_u128(u128::from(id)), ..(*c).clone() });
                pool.insert(c.clone());
                all.push((i64::from(score), c));
                if next(4) == 0 && !all.is_empty() {
                    let (_, gone) = all.swap_remove(next(all.len() as u64) as usize);
                    let slot = pool.remove(&gone);
                    if next(2) == 0 {
                        pool.reuse(slot);
                    }
                }
            }
            let k = 2 + 2 * next(3) as usize;
            all.sort_by_key(|(score, c)| std::cmp::Reverse((*score, c.label_time, c.id)));
            let side = |positive| {
                let own = |c: &Demonstration| &*c.identity.user == "u";
                let of = all.iter().filter(move |(_, c)| c.positive == positive && !own(c));
                of.take(k).map(|(_, c)| c.id).collect::<Vec<Uuid>>()
            };
            let rows = (&UserRow::new(&SplitSum::default(), &pool), &ItemRow::new(&[1], &pool));
            let best = Best::scan("u", "i", rows, &pool, k);
            let found = best.sides.each_ref().map(|side| side.iter().map(|rank| rank.2).collect::<Vec<_>>());
            assert_eq!(found, [side(false), side(true)], "round {round}");
        }
    }
}
