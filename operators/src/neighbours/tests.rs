//! The maintained view against the replay for training: after every epoch of a random history of
//! changes each pair stands as [`crate::as_of`] has it for an example of the pair at the event clock.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::as_of::{Options, Replay, Texts};
use crate::retrieval::neighbours::tests::labelled;
use crate::sketches::{self, EffectiveSketches};
use ictflow_schemas::catalog::{ItemState, ItemVector};
use ictflow_schemas::framing::text_digest;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn user(&mut self) -> Id {
        format!("u{}", self.below(4)).into()
    }

    fn item(&mut self) -> Id {
        format!("i{}", self.below(5)).into()
    }
}

/// The accumulated input, and both operators.
struct World {
    random: Random,
    made: usize,
    now: Millis,
    labels: BTreeSet<Arc<LabelledExample>>,
    pairs: BTreeSet<(Id, Id)>,
    items: BTreeMap<Id, Item>,
    neighbourhood: Neighbourhood,
    effective: EffectiveSketches,
    neighbours: Neighbours,
    seen: BTreeMap<(Id, Id), Arc<Sources>>,
    lacking: BTreeSet<Id>,
}

const CENTRE: [i16; 3] = [5, -5, 0];

impl World {
    fn new(seed: u64, sketch_period_ms: Millis) -> Self {
        let neighbourhood = Neighbourhood { ring: 4, selected: 3, sketch_period_ms, label_centre: 400 };
        let semantics = Arc::new(Semantics {
            lateness_ms: 10,
            attribution_window_ms: 10,
            neighbours: neighbourhood,
            ..Semantics::default()
        });
        World {
            random: Random(seed),
            made: 0,
            now: 0,
            labels: BTreeSet::new(),
            pairs: BTreeSet::new(),
            items: BTreeMap::new(),
            neighbourhood,
            effective: EffectiveSketches::new(neighbourhood),
            neighbours: Neighbours::new(semantics, Box::new(|_| CENTRE.into())),
            seen: BTreeMap::new(),
            lacking: BTreeSet::new(),
        }
    }

    /// One epoch: these labels come or go, the clock is at `now`. Gives how many pairs were computed.
    fn epoch(&mut self, labels: &[(Arc<LabelledExample>, isize)], mut inputs: Changes<Input>) -> usize {
        let clock = Clock {
            maxima: [self.now].into(),
            now: self.now,
            publish: true,
            actives: Arc::default(),
            shadow: None,
        };
        let mut sketched = Changes::new();
        for (label, diff) in labels {
            inputs.push((Input::OfUser(label.clone()), *diff));
            inputs.push((Input::OfItem(0, label.clone()), *diff));
            for side in [Side::User, Side::Item] {
                sketched.push((sketches::Input::Label(side, label.clone()), *diff));
            }
        }
        sketched.push((sketches::Input::Clock(0, clock.clone()), 1));
        let mut effective = Changes::new();
        self.effective.step(sketched, &mut effective);
        inputs.extend(effective.into_iter().map(|(unit, diff)| (Input::Sketch(0, unit), diff)));
        inputs.push((Input::Clock(0, clock), 1));
        let mut out = Changes::new();
        let computed = self.neighbours.step(inputs, &mut out);
        for (output, diff) in out {
            let Some(NeighbourUpdate { user, item, sources }) = output.clone().pair() else {
                self.lacking.extend(output.lacks());
                continue;
            };
            assert_eq!(diff, 1);
            let before = match sources.clone() {
                Some(sources) => self.seen.insert((user, item), sources),
                None => self.seen.remove(&(user, item)),
            };
            assert_ne!(before, sources, "what is emitted stands otherwise than before");
        }
        computed
    }

    /// Random changes of an epoch, in a mixed order.
    fn change(&mut self) {
        let (mut labels, mut inputs) = (Vec::new(), Changes::new());
        self.now += self.random.below(12) as i64;
        for _ in 0..self.random.below(5) {
            match self.random.below(9) {
                0 | 1 => {
                    let pair = (self.random.user(), self.random.item());
                    let diff = if self.pairs.remove(&pair) { -1 } else { 1 };
                    if diff > 0 {
                        self.pairs.insert(pair.clone());
                    }
                    inputs.push((Input::Pair(pair), diff));
                }
                2 => {
                    let id = self.random.item();
                    let vector: Vec<i16> = (0..3).map(|_| self.random.below(40) as i16 - 20).collect();
                    let text = text_digest("t");
                    let vector =
                        (self.random.below(4) > 0).then(|| ItemVector { text, vector: vector.into() });
                    let new: Item = Arc::new(ItemState { text, creator: None, categories: vec![], vector });
                    let old = self.items.insert(id.clone(), new.clone());
                    inputs.push((Input::Item(0, (id.clone(), new)), 1));
                    inputs.extend(old.map(|old| (Input::Item(0, (id, old)), -1)));
                }
                3 => {
                    // Only what isn't final is taken back or corrected.
                    let open: Vec<_> =
                        self.labels.iter().filter(|l| l.event_time + 20 >= self.now).cloned().collect();
                    if let Some(old) = open.get(self.random.below(open.len().max(1) as u64) as usize) {
                        if self.random.below(2) == 0 {
                            let label_time = old.label_time + 1;
                            let new = Arc::new(LabelledExample { label_time, ..(**old).clone() });
                            self.labels.insert(new.clone());
                            labels.push((new, 1));
                        }
                        self.labels.remove(old);
                        labels.push((old.clone(), -1));
                    }
                }
                _ => {
                    self.made += 1;
                    let (user, item) = (self.random.user(), self.random.item());
                    let event_time = self.now - self.random.below(14) as i64;
                    let label_time = event_time + self.random.below(10) as i64;
                    let new = labelled(&user, &item, event_time, label_time, self.made);
                    self.labels.insert(new.clone());
                    labels.push((new, 1));
                }
            }
        }
        let first = self.random.below(labels.len().max(1) as u64) as usize;
        labels.rotate_left(first);
        self.epoch(&labels, inputs);
    }

    /// By the side of the ring's owner, in whose rings each item and each user is.
    fn held(&self) -> [HashMap<Id, BTreeSet<Id>>; 2] {
        [Side::User, Side::Item].map(|side| {
            let mut held: HashMap<Id, BTreeSet<Id>> = HashMap::new();
            for (owner, ring) in &self.neighbours.rings[side as usize] {
                for label in ring.kept() {
                    held.entry(side.opposite().owner(label).clone()).or_default().insert(owner.clone());
                }
            }
            held
        })
    }

    /// Every pair as training would see it now.
    fn replayed(&self) -> BTreeMap<(Id, Id), Arc<Sources>> {
        let vector = |(id, item): (&Id, &Item)| Some((id.clone(), item.vector.as_ref()?.vector.clone()));
        let texts = Texts::new(&self.items.iter().filter_map(vector).collect(), &CENTRE).unwrap();
        let options = Options { neighbourhood: self.neighbourhood, ..Options::default() };
        let sources = |(user, item): &(Id, Id)| {
            let query = labelled(user, item, self.now, Millis::MAX, usize::MAX / 1_000);
            let examples = self.labels.iter().chain([&query]).map(|label| (**label).clone());
            let rows = Replay::new(examples, &texts, options.clone()).unwrap();
            let row = rows.into_iter().find(|row| row.example == query).unwrap();
            Arc::new(row.sources)
        };
        self.pairs.iter().map(|pair| (pair.clone(), sources(pair))).collect()
    }
}

#[test]
fn the_view_is_what_training_sees_at_the_event_clock() {
    let mut neighbours = 0;
    for seed in 1..=12 {
        let mut world = World::new(seed, [0, 1, 10, 25][seed as usize % 4]);
        for epoch in 0..60 {
            world.change();
            let replayed = world.replayed();
            assert_eq!(world.seen, replayed, "seed {seed}, epoch {epoch}");
            assert_eq!(world.neighbours.holders, world.held(), "seed {seed}, epoch {epoch}");
            neighbours += replayed.values().map(|s| s.same_item.len() as i64).sum::<i64>();
        }
    }
    assert!(neighbours > 1_000, "only {neighbours} neighbours were compared");
}

/// Ten users with the same ten items each.
fn hundred_pairs() -> Changes<Input> {
    let pair = |n: usize| (format!("u{}", n / 10).into(), format!("i{}", n % 10).into());
    (0..100).map(|n| (Input::Pair(pair(n)), 1)).collect()
}

#[test]
fn a_label_touches_only_the_pairs_of_its_item_and_its_user() {
    let mut world = World::new(1, 1_000);
    world.now = 10;
    assert_eq!(world.epoch(&[], hundred_pairs()), 100);
    // Known now.
    world.now = 20;
    assert_eq!(world.epoch(&[(labelled("u3", "i4", 12, 12, 0), 1)], Changes::new()), 19);
    // Of a user and an item without pairs.
    assert_eq!(world.epoch(&[(labelled("u3", "new", 13, 13, 1), 1)], Changes::new()), 10);
    assert_eq!(world.epoch(&[(labelled("new", "i4", 13, 13, 2), 1)], Changes::new()), 10);
    assert_eq!(world.epoch(&[(labelled("new", "new", 13, 13, 3), 1)], Changes::new()), 0);
    // Known only when the clock passes its label time.
    assert_eq!(world.epoch(&[(labelled("u5", "i5", 20, 20, 4), 1)], Changes::new()), 0);
    world.now = 21;
    assert_eq!(world.epoch(&[], Changes::new()), 19);
    assert_eq!(world.epoch(&[], Changes::new()), 0);
    // The sketches of three users and three items change with the period: their pairs, and those with one
    // of them in the ring.
    world.now = 1_000;
    assert_eq!(world.epoch(&[], Changes::new()), 36);
    // A label of before the period, come late: 19 of its own, and as its sketches change at once those of the
    // rings with its user or its item, here none but its own.
    assert_eq!(world.epoch(&[(labelled("u7", "i8", 30, 30, 5), 1)], Changes::new()), 19);
    // The user stands in the ring of i4 by now, so what is compared there changes too.
    assert_eq!(world.epoch(&[(labelled("u3", "i9", 31, 31, 6), 1)], Changes::new()), 28);
}

/// What a catalog with many new items is like: their texts come while others' pairs stand.
#[test]
fn a_text_touches_the_pairs_of_its_item_and_of_those_who_have_it_in_the_ring() {
    let mut world = World::new(1, 1_000);
    world.now = 20;
    world.epoch(
        &[(labelled("u3", "i4", 12, 12, 0), 1), (labelled("u3", "new", 13, 13, 1), 1)],
        hundred_pairs(),
    );
    let text = |id: &str| -> Changes<Input> {
        let text = text_digest(id);
        let vector = Some(ItemVector { text, vector: [9, 2, 1].into() });
        let state = ItemState { text, creator: None, categories: vec![], vector };
        vec![(Input::Item(0, (id.into(), Arc::new(state))), 1)]
    };
    assert_eq!(world.epoch(&[], text("unknown")), 0);
    assert_eq!(world.epoch(&[], text("i5")), 10);
    assert_eq!(world.epoch(&[], text("i4")), 19);
    assert_eq!(world.epoch(&[], text("new")), 10);
}

#[test]
fn rings_that_erasures_emptied_are_filled_again_within_the_epoch() {
    let mut world = World::new(5, 10);
    let mut inputs = Changes::new();
    for item in 0..2 {
        let pair: (Id, Id) = ("u0".into(), format!("i{item}").into());
        world.pairs.insert(pair.clone());
        inputs.push((Input::Pair(pair), 1));
    }
    // More than a ring keeps beyond its length, each by a user of its own.
    let users = SPARE + 12;
    let labels: Vec<(Arc<LabelledExample>, isize)> = (0..2 * users)
        .map(|n| (labelled(&format!("v{}", n / 2), &format!("i{}", n % 2), n as i64, n as i64, n), 1))
        .collect();
    world.labels.extend(labels.iter().map(|(label, _)| label.clone()));
    world.now = 1_000;
    world.epoch(&labels, inputs);
    assert_eq!(world.seen, world.replayed());
    let mut refilled = 0;
    for erased in (2..users).rev() {
        let user = format!("v{erased}");
        let gone: Vec<_> = world.labels.iter().filter(|label| *label.user == *user).cloned().collect();
        world.labels.retain(|label| *label.user != *user);
        let gone: Vec<_> = gone.into_iter().map(|label| (label, -1)).collect();
        world.epoch(&gone, Changes::new());
        let lacking = std::mem::take(&mut world.lacking);
        let on_them = world.labels.iter().filter(|label| lacking.contains(&label.item));
        let again: Changes<Input> = on_them.map(|label| (Input::Again(0, label.clone()), 1)).collect();
        refilled += lacking.len();
        world.epoch(&[], again);
        assert!(world.lacking.is_empty(), "a filled ring lacks nothing");
        assert_eq!(world.seen, world.replayed(), "after the erasure of {user}");
    }
    assert!(refilled >= 2, "no ring came to lack any");
}

/// Weights with another text centre: every text is centred anew, and each pair stands as in an operator that
/// never knew the one before.
#[test]
fn another_text_centre_is_as_if_it_had_always_been_that_one() {
    let item = |n: i16| -> Item {
        let text = text_digest(&n.to_string());
        let vector = ItemVector { text, vector: [20 * n, 7 - n, 5].into() };
        Arc::new(ItemState { text, creator: None, categories: vec![], vector: Some(vector) })
    };
    let inputs = || -> Changes<Input> {
        let mut inputs: Changes<Input> = (0..4)
            .map(|n| (Input::Item(0, (format!("i{n}").into(), item(n))), 1))
            .chain([(Input::Pair(("u".into(), "i0".into())), 1)])
            .collect();
        for n in 1..4 {
            inputs.push((Input::OfUser(labelled("u", &format!("i{n}"), 1, n as i64, n)), 1));
        }
        inputs
    };
    let operator = || {
        let centre_of = |version: &str| -> Quantised {
            match version {
                "a" | "a again" => [5, -5, 0].into(),
                _ => [0, 0, 60].into(),
            }
        };
        Neighbours::new(Arc::new(Semantics::default()), Box::new(centre_of))
    };
    let step = |operator: &mut Neighbours, version: &str, mut inputs: Changes<Input>| {
        let actives = Arc::new(ictflow_schemas::epoch::Actives {
            ict_weights: version.into(),
            ..ictflow_schemas::epoch::Actives::default()
        });
        inputs.push((
            Input::Clock(0, Clock { maxima: [9].into(), now: 9, publish: true, actives, shadow: None }),
            1,
        ));
        let mut out = Changes::new();
        let computed = operator.step(inputs, &mut out);
        let sources: Vec<Arc<Sources>> = out.into_iter().filter_map(|(o, _)| o.pair()?.sources).collect();
        (computed, sources)
    };
    let mut switched = operator();
    let (_, first) = step(&mut switched, "a", inputs());
    assert_eq!(step(&mut switched, "a again", vec![]), (0, vec![]), "the same centre touches nothing");
    let (computed, second) = step(&mut switched, "b", vec![]);
    let (_, fresh) = step(&mut operator(), "b", inputs());
    assert_eq!((computed, &second), (1, &fresh));
    assert_ne!(first, second, "the centre counts");
}
