//! The maintained view against a fresh one: after every epoch of a random history of changes each
//! pair stands as a new operator that is given the whole state at once would have it.

use super::*;
use crate::Changes;
use ictflow_schemas::catalog::{ItemState, ItemVector};
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::{Entry, Identity, Label};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

const K: usize = 2;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Small numbers, so that scores tie often.
    fn vector(&mut self) -> Vec<i16> {
        (0..4).map(|_| self.below(5) as i16 - 2).collect()
    }

    fn user(&mut self) -> Id {
        format!("u{}", self.below(4)).into()
    }

    fn item_id(&mut self) -> Id {
        format!("i{}", self.below(6)).into()
    }

    /// An item's state; one in five has no vector yet.
    fn item(&mut self) -> Item {
        let text = text_digest("t");
        let vector = (self.below(5) > 0).then(|| ItemVector { text, vector: self.vector().into() });
        Arc::new(ItemState { text, creator: None, categories: vec![], vector })
    }

    fn demonstration(&mut self, id: u64) -> Arc<Demonstration> {
        let (text, vector) = (text_digest("t"), self.vector().into());
        let vector = Some(ItemVector { text, vector });
        Arc::new(Demonstration {
            label_time: self.below(3) as i64,
            id: Uuid::from_u128(u128::from(id)),
            identity: Identity { user: self.user(), event_time: 0, event_id: format!("{id}").into() },
            item: self.item_id(),
            item_state: Arc::new(ItemState { text, creator: None, categories: vec![], vector }),
            positive: self.below(2) == 0,
            history: vec![],
            text: VectorSum::default(),
            mean: self.vector().into(),
            cot: vec![0; 4].into(),
            cot_key: text,
            fresh: true,
            cot_created_at: 0,
        })
    }
}

/// The accumulated input.
#[derive(Default)]
struct World {
    items: BTreeMap<Id, Item>,
    histories: BTreeMap<Id, History>,
    pairs: BTreeSet<(Id, Id)>,
    demonstrations: BTreeMap<u64, Arc<Demonstration>>,
}

impl World {
    fn whole(&self) -> Changes<Input> {
        let items = self.items.iter().map(|(id, item)| Input::Item(0, (id.clone(), item.clone())));
        let histories = self.histories.iter().map(|(user, h)| Input::Newest(user.clone(), h.clone()));
        let demonstrations = self.demonstrations.values().map(|c| Input::Demonstration(0, c.clone()));
        let pairs = self.pairs.iter().cloned().map(Input::Pair);
        items.chain(histories).chain(demonstrations).chain(pairs).map(|input| (input, 1)).collect()
    }

    /// Some changes at once, in a mixed order.
    fn change(&mut self, random: &mut Random, made: &mut u64) -> Changes<Input> {
        let mut changes = Vec::new();
        for _ in 0..1 + random.below(6) {
            match random.below(8) {
                0 => {
                    let (id, new) = (random.item_id(), random.item());
                    let old = self.items.insert(id.clone(), new.clone());
                    changes.push((Input::Item(0, (id.clone(), new)), 1));
                    changes.extend(old.map(|old| (Input::Item(0, (id, old)), -1)));
                }
                1 => {
                    let id = random.item_id();
                    let old = self.items.remove(&id);
                    changes.extend(old.map(|old| (Input::Item(0, (id, old)), -1)));
                }
                2 => {
                    let user = random.user();
                    let entry = |n| Entry {
                        event_time: n,
                        event_id: "e".into(),
                        item: random.item_id(),
                        kind: "click".into(),
                        label: Label::Positive,
                    };
                    let new: History = (0..3).map(entry).collect();
                    let old = self.histories.insert(user.clone(), new.clone());
                    changes.push((Input::Newest(user.clone(), new), 1));
                    changes.extend(old.map(|old| (Input::Newest(user, old), -1)));
                }
                3 | 4 => {
                    let pair = (random.user(), random.item_id());
                    let live = !self.pairs.remove(&pair);
                    if live {
                        self.pairs.insert(pair.clone());
                    }
                    changes.push((Input::Pair(pair), if live { 1 } else { -1 }));
                }
                5 => {
                    let at = random.below(self.demonstrations.len().max(1) as u64) as usize;
                    let id = self.demonstrations.keys().nth(at).copied();
                    let gone = id.and_then(|id| self.demonstrations.remove(&id));
                    changes.extend(gone.map(|c| (Input::Demonstration(0, c), -1)));
                }
                _ => {
                    *made += 1;
                    let new = random.demonstration(*made);
                    self.demonstrations.insert(*made, new.clone());
                    changes.push((Input::Demonstration(0, new), 1));
                }
            }
        }
        // The net of an epoch, as an operator upstream emits it.
        let mut net: BTreeMap<Input, isize> = BTreeMap::new();
        for (input, diff) in changes {
            *net.entry(input).or_default() += diff;
        }
        let mut changes: Changes<Input> = net.into_iter().filter(|(_, diff)| *diff != 0).collect();
        for i in (1..changes.len()).rev() {
            changes.swap(i, random.below(i as u64 + 1) as usize);
        }
        changes
    }
}

/// A pair's state without its addresses: (live, demonstrations with scores).
type Seen = BTreeMap<(Id, Id), (bool, Option<Vec<(Uuid, i64)>>)>;

fn step(retrieval: &mut Retrieval, mut changes: Changes<Input>, seen: &mut Seen) {
    let clock = Clock { maxima: [].into(), now: 0, publish: true, actives: Arc::default() };
    changes.push((Input::Clock(0, clock), 1));
    let mut out = Vec::new();
    retrieval.step(changes, &mut out);
    for update in out.into_iter().filter_map(|(output, _)| output.pair()) {
        let used = update.retrieved.map(|r| r.used.iter().map(|(c, score)| (c.id, *score)).collect());
        let pair = (update.user, update.item);
        if update.live || used.is_some() {
            seen.insert(pair, (update.live, used));
        } else {
            seen.remove(&pair);
        }
    }
}

#[test]
fn the_maintained_view_equals_a_fresh_one() {
    let mut full = 0;
    for seed in 1..=40 {
        let (mut random, mut world, mut made) = (Random(seed), World::default(), 0);
        let (mut retrieval, mut seen) = (Retrieval::new(Search::Exact, K), Seen::new());
        for epoch in 0..60 {
            let changes = world.change(&mut random, &mut made);
            step(&mut retrieval, changes, &mut seen);
            let mut fresh = Seen::new();
            step(&mut Retrieval::new(Search::Exact, K), world.whole(), &mut fresh);
            assert_eq!(seen, fresh, "seed {seed}, epoch {epoch}");
            full += seen.values().filter(|(_, used)| used.as_ref().is_some_and(|u| u.len() == K)).count();
        }
    }
    assert!(full > 1_000, "only {full} full selections were compared");
}
