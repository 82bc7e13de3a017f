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

/// By pair whether it is live, and what its vector is made of.
type Seen = BTreeMap<(Id, Id), (bool, Option<Retrieved>)>;

/// Runs one time, and gives what was emitted and who asks the store of points.
fn run(retrieval: &mut Retrieval, mut changes: Changes<Input>) -> (Vec<PairUpdate>, Vec<Lookup>) {
    let clock = Clock { maxima: [].into(), now: 0, publish: true, actives: Arc::default(), shadow: None };
    changes.push((Input::Clock(0, clock), 1));
    let mut out = Vec::new();
    retrieval.step(changes, &mut out);
    let lookups = out.iter().filter_map(|(output, _)| output.clone().lookup()).collect();
    (out.into_iter().filter_map(|(output, _)| output.pair()).collect(), lookups)
}

fn see(updates: Vec<PairUpdate>, seen: &mut Seen) {
    for PairUpdate { user, item, retrieved, live } in updates {
        match live {
            true => seen.insert((user, item), (live, retrieved)),
            false => seen.remove(&(user, item)),
        };
    }
}

/// What a new operator gives for the whole state.
fn fresh(world: &World) -> Seen {
    let mut seen = Seen::new();
    see(run(&mut Retrieval::new(Search::Exact, K), world.whole()).0, &mut seen);
    seen
}

#[test]
fn the_maintained_view_equals_a_fresh_one_and_only_changes_are_emitted() {
    let (mut full, mut emitted, mut stood) = (0, 0, 0);
    for seed in 1..=40 {
        let (mut random, mut world, mut made) = (Random(seed), World::default(), 0);
        let (mut retrieval, mut seen) = (Retrieval::new(Search::Exact, K), Seen::new());
        for epoch in 0..60 {
            let before = fresh(&world);
            let changes = world.change(&mut random, &mut made);
            let updates = run(&mut retrieval, changes).0;
            let after = fresh(&world);
            // Each pair whose value a recomputation before and after tells apart, once, and no other.
            let pairs: BTreeSet<_> = before.keys().chain(after.keys()).cloned().collect();
            let changed: Vec<_> =
                pairs.into_iter().filter(|pair| before.get(pair) != after.get(pair)).collect();
            let told: Vec<_> =
                updates.iter().map(|update| (update.user.clone(), update.item.clone())).collect();
            assert_eq!(told, changed, "seed {seed}, epoch {epoch}");
            emitted += told.len();
            stood += after.len() - changed.iter().filter(|pair| after.contains_key(*pair)).count();
            see(updates, &mut seen);
            assert_eq!(seen, after, "seed {seed}, epoch {epoch}");
            full += seen.values().filter(|(_, r)| r.as_ref().is_some_and(|r| r.used.len() == K)).count();
        }
    }
    assert!(full > 1_000, "only {full} full selections were compared");
    assert!(emitted > 1_000 && stood > 1_000, "{emitted} were emitted, {stood} stood");
}

#[test]
fn of_pairs_that_ask_a_store_only_changes_are_emitted_too() {
    let (mut emitted, mut asked) = (0, 0);
    for seed in 1..=40 {
        let (mut random, mut world, mut made) = (Random(seed), World::default(), 0);
        let (mut retrieval, mut seen) = (Retrieval::new(Search::Stored, K), Seen::new());
        for epoch in 0..60 {
            let changes = world.change(&mut random, &mut made);
            let (first, lookups) = run(&mut retrieval, changes);
            asked += lookups.len();
            // The store knows every demonstration.
            let ids: Vec<Uuid> = world.demonstrations.values().map(|c| c.id).collect();
            let found = lookups.into_iter().map(|lookup| {
                let Lookup { user, item, .. } = lookup;
                (Input::Found(Found { user, item, ids: ids.clone(), standing: false }), 1)
            });
            let (second, again) = run(&mut retrieval, found.collect());
            assert!(again.is_empty());
            for update in first.iter().chain(&second) {
                let pair = (update.user.clone(), update.item.clone());
                let before = seen.get(&pair).cloned().unwrap_or_default();
                let after = (update.live, update.retrieved.clone());
                assert_ne!(before, after, "seed {seed}, epoch {epoch}: {pair:?} stands as it did");
                emitted += 1;
            }
            see(first, &mut seen);
            see(second, &mut seen);
            // The same pairs are live, with the same query, and none uses what left the pool.
            let fresh = fresh(&world);
            assert_eq!(seen.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
            for (pair, (_, retrieved)) in &seen {
                let (_, other) = &fresh[pair];
                let query = |r: &Option<Retrieved>| r.as_ref().map(|r| (r.view.clone(), r.item.clone()));
                assert_eq!(query(retrieved), query(other), "seed {seed}, epoch {epoch}: {pair:?}");
                let used = retrieved.iter().flat_map(|r| &r.used);
                let pool = &world.demonstrations;
                assert!(used.into_iter().all(|(c, _)| pool.values().any(|other| other == c)));
            }
        }
    }
    assert!(emitted > 1_000 && asked > 1_000, "{emitted} were emitted, {asked} asked");
}
