//! The replay against the formulas over the whole set, and against leaks.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::retrieval::neighbours::tests::labelled;
use ictflow_schemas::example::Verdict;
use ictflow_schemas::neighbour::{ItemVotes, SKETCH_WIDTH, UserVotes, signs};
use proptest::prelude::*;

/// A small world: examples at few times, of few users and items, and some texts.
#[derive(Clone, Debug)]
struct World {
    examples: Vec<LabelledExample>,
    vectors: HashMap<Id, Quantised>,
    centre: Vec<i16>,
}

impl World {
    fn texts(&self) -> Texts {
        Texts::new(&self.vectors, &self.centre).unwrap()
    }

    fn rows(&self, options: &Options) -> Vec<Row> {
        Replay::new(self.examples.iter().cloned(), &self.texts(), options.clone()).unwrap().collect()
    }
}

fn worlds(most: usize) -> impl Strategy<Value = World> {
    let example = (0..4u8, 0..5u8, 0..40i64, prop_oneof![3 => Just(0i64), 1 => 0..12i64]);
    let vector = prop::collection::vec(-300..300i16, 3);
    (
        prop::collection::vec(example, 1..most),
        prop::collection::vec(prop::option::weighted(0.8, vector.clone()), 5),
        prop_oneof![Just(vec![]), vector],
    )
        .prop_map(|(raw, texts, centre)| World {
            examples: raw
                .into_iter()
                .enumerate()
                .map(|(id, (user, item, event_time, delay))| {
                    let (user, item) = (format!("u{user}"), format!("i{item}"));
                    (*labelled(&user, &item, event_time, event_time + delay, id)).clone()
                })
                .collect(),
            vectors: texts
                .into_iter()
                .enumerate()
                .filter_map(|(item, vector)| Some((format!("i{item}").into(), vector?.into())))
                .collect(),
            centre,
        })
}

fn options() -> impl Strategy<Value = Options> {
    let period = prop_oneof![Just(0i64), Just(1), Just(10), Just(1_000)];
    let delay = prop_oneof![Just(0i64), 0..15i64];
    (1..6usize, 0..4usize, period, 0..1_025i32, delay, any::<bool>()).prop_map(
        |(ring, selected, sketch_period_ms, label_centre, label_delay_ms, most_recent)| Options {
            neighbourhood: Neighbourhood { ring, selected, sketch_period_ms, label_centre },
            label_delay_ms,
            most_recent,
            ..Options::default()
        },
    )
}

/// The formulas, literally: everything anew for each example, with other arithmetic than the program's.
struct Naive<'w> {
    world: &'w World,
    options: &'w Options,
}

impl Naive<'_> {
    /// Examples whose label counts before `until`, oldest first.
    fn known(&self, until: i64) -> Vec<&LabelledExample> {
        let delay = self.options.label_delay_ms;
        let known = self.world.examples.iter().filter(|e| e.label_time + delay < until);
        let mut known: Vec<_> = known.collect();
        known.sort_by_key(|e| (e.label_time, e.event_time, e.user.clone(), e.event_id.clone()));
        known
    }

    /// A vector scaled to norm 2^14: the root by halving, the rounding by comparing.
    fn scaled(x: &[i128]) -> Vec<i128> {
        let target: i128 = x.iter().map(|x| x * x).sum::<i128>() << 28;
        let (mut low, mut high) = (0i128, 1i128 << 62);
        while low + 1 < high {
            let middle = (low + high) / 2;
            if middle * middle <= target { low = middle } else { high = middle }
        }
        let component = |x: &i128| {
            if low == 0 {
                return 0;
            }
            let (exact, below) = ((x << 28), (x << 28).div_euclid(low));
            if 2 * (exact - below * low) >= low { below + 1 } else { below }
        };
        x.iter().map(component).collect()
    }

    /// Where sketches at a time end.
    fn until(&self, t: i64) -> i64 {
        let period = self.options.neighbourhood.sketch_period_ms;
        if period == 0 { t } else { t.div_euclid(period) * period }
    }

    fn rate(&self, item: &str, t: i64) -> i64 {
        let of_item = self.known(self.until(t)).into_iter().filter(|e| *e.item == *item);
        let labels: Vec<bool> = of_item.map(|e| e.verdict == Verdict::Positive).collect();
        let positives = labels.iter().filter(|positive| **positive).count() as i64;
        1_024 * (positives + 1) / (labels.len() as i64 + 2)
    }

    fn sketch(&self, of_user: bool, id: &str, t: i64) -> Vec<i128> {
        let until = self.until(t);
        let mut sum = vec![0i128; SKETCH_WIDTH];
        for e in self.known(until) {
            let (owner, bits) =
                if of_user { (&e.user, signs("item", &e.item)) } else { (&e.item, signs("user", &e.user)) };
            if **owner == *id {
                for (k, sum) in sum.iter_mut().enumerate() {
                    let bit = (bits[k / 8] >> (k % 8)) & 1;
                    let y = if e.verdict == Verdict::Positive { 1_024 } else { 0 };
                    let residual = y - i128::from(self.options.neighbourhood.label_centre);
                    *sum += residual * (2 * i128::from(bit) - 1);
                }
            }
        }
        Self::scaled(&sum)
    }

    fn text(&self, item: &str) -> Vec<i128> {
        let Some(vector) = self.world.vectors.get(item) else { return vec![0; 3] };
        let centre = |k: usize| self.world.centre.get(k).copied().unwrap_or(0);
        let x: Vec<i128> =
            vector.iter().enumerate().map(|(k, x)| i128::from(*x) - i128::from(centre(k))).collect();
        Self::scaled(&x)
    }

    fn cosine(a: &[i128], b: &[i128]) -> i128 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// The ring, and of it the selected with scores.
    #[allow(clippy::type_complexity)]
    fn source(
        &self,
        e: &LabelledExample,
        by_item: bool,
    ) -> (Vec<&LabelledExample>, Vec<(i128, &LabelledExample)>) {
        let t = e.event_time;
        let Neighbourhood { ring, selected, .. } = self.options.neighbourhood;
        let mut of_key = self.known(t);
        of_key.retain(|other| if by_item { other.item == e.item } else { other.user == e.user });
        let mut newest = of_key.split_off(of_key.len().saturating_sub(ring));
        newest.retain(|o| if by_item { o.user != e.user } else { o.item != e.item });
        let score = |other: &LabelledExample| {
            if self.options.most_recent {
                0
            } else if by_item {
                Self::cosine(&self.sketch(true, &e.user, t), &self.sketch(true, &other.user, t))
            } else {
                let sketches =
                    Self::cosine(&self.sketch(false, &e.item, t), &self.sketch(false, &other.item, t));
                let texts = Self::cosine(&self.text(&e.item), &self.text(&other.item));
                (2 * sketches + texts).div_euclid(2)
            }
        };
        let mut scored: Vec<_> = newest.iter().map(|other| (score(other), *other)).collect();
        // Stable, and already from old to new.
        scored.sort_by_key(|(score, _)| *score);
        let best = scored.split_off(scored.len().saturating_sub(selected));
        (newest, best)
    }

    fn weight(score: i128) -> i64 {
        let x = (16_384 + score.div_euclid(16_384)).clamp(0, 32_768);
        let fourth = (x * x / 32_768).pow(2) / 32_768;
        (fourth * fourth) as i64
    }

    /// (score, event id) of the selected of both sources, and the votes.
    fn sources(&self, e: &LabelledExample) -> Named {
        let y = |e: &LabelledExample| i64::from(e.verdict == Verdict::Positive);
        let (ring, by_item) = self.source(e, true);
        let (_, by_user) = self.source(e, false);
        let mut votes = Votes::default();
        votes.same_item.ring = ring.len() as i64;
        votes.same_item.ring_positives = ring.iter().map(|e| y(e)).sum();
        for (score, other) in &by_item {
            let (ItemVotes { selected, positives, weights, weighted_labels, .. }, w) =
                (&mut votes.same_item, Self::weight(*score));
            *selected += 1;
            *positives += y(other);
            *weights += w;
            *weighted_labels += if y(other) == 1 { w } else { -w };
        }
        for (score, other) in &by_user {
            let (votes, w) = (&mut votes.same_user, Self::weight(*score));
            let d = 1_024 * y(other) - self.rate(&other.item, e.event_time);
            *votes = UserVotes {
                selected: votes.selected + 1,
                positives: votes.positives + y(other),
                weights: votes.weights + w,
                weighted_labels: votes.weighted_labels + w * (2 * y(other) - 1),
                deviations: votes.deviations + d,
                weighted_deviations: votes.weighted_deviations + w * d,
            };
        }
        let named = |selected: Vec<(i128, &LabelledExample)>| {
            selected.into_iter().map(|(score, e)| (score as i64, e.event_id.clone())).collect()
        };
        (named(by_item), named(by_user), votes)
    }
}

/// The selected of both sources by score and event id, and the votes.
type Named = (Vec<(i64, Id)>, Vec<(i64, Id)>, Votes);

fn names(row: &Row) -> Named {
    let named = |selected: &[Neighbour]| {
        selected.iter().map(|n| (n.score, n.example.event_id.clone())).collect::<Vec<_>>()
    };
    (named(&row.sources.same_item), named(&row.sources.same_user), row.sources.votes)
}

fn without_place(rows: Vec<Row>) -> Vec<Row> {
    rows.into_iter().map(|row| Row { place: 0, ..row }).collect()
}

/// Examples whose rows differ when labels that they can't know, of their time or later, are other ones.
/// Sees what [`leak`] can't: what has come into a sketch.
fn seeing_later(world: &World, options: &Options) -> Vec<Id> {
    let rows = world.rows(options);
    let mut seeing = Vec::new();
    for row in &rows {
        let t = row.example.event_time;
        let mut other = world.clone();
        for example in &mut other.examples {
            if example.label_time + options.label_delay_ms >= t {
                example.verdict = if example.label() == 1 { Verdict::Negative } else { Verdict::Positive };
            }
        }
        let again = other.rows(options).swap_remove(rows.iter().position(|r| r == row).unwrap());
        if names(row) != names(&again) {
            seeing.push(row.example.event_id.clone());
        }
    }
    seeing
}

/// How many rows have a leak among what was selected.
fn leaks(rows: &[Row], options: &Options) -> usize {
    rows.iter().filter(|row| leak(row, options.label_delay_ms).is_some()).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_the_formulas_over_the_whole_set(world in worlds(26), options in options()) {
        let naive = Naive { world: &world, options: &options };
        let rows = world.rows(&options);
        prop_assert_eq!(rows.len(), world.examples.len());
        prop_assert!(rows.is_sorted_by(|a, b| key(&a.example) < key(&b.example)));
        for row in &rows {
            prop_assert_eq!(&*row.example, &world.examples[row.place]);
            prop_assert_eq!(names(row), naive.sources(&row.example));
        }
    }

    #[test]
    fn nothing_leaks(world in worlds(20), options in options()) {
        let rows = world.rows(&options);
        prop_assert_eq!(leaks(&rows, &options), 0);
        prop_assert_eq!(seeing_later(&world, &options), Vec::<Id>::new());
    }

    #[test]
    fn the_order_of_what_is_given_never_shows(
        world in worlds(40),
        options in options(),
        seed in prop::option::of(any::<u64>()),
        shuffled in any::<prop::sample::Index>(),
    ) {
        let options = Options { permuted_labels: seed, ..options };
        let rows = world.rows(&options);
        let mut other = world.clone();
        other.examples.reverse();
        let at = shuffled.index(other.examples.len());
        other.examples.rotate_left(at);
        prop_assert_eq!(without_place(rows), without_place(other.rows(&options)));
    }

    #[test]
    fn permuted_labels_are_the_same_labels_elsewhere(world in worlds(40), seed in any::<u64>()) {
        let mut labels: Vec<_> = world.examples.iter().cloned().map(Arc::new).collect();
        labels.sort_unstable();
        let before = labels.clone();
        permute(&mut labels, seed);
        let said = |labels: &[Arc<LabelledExample>]| {
            let mut said: Vec<_> = labels.iter().map(|l| (l.verdict, l.rate)).collect();
            said.sort_unstable();
            said
        };
        prop_assert_eq!(said(&labels), said(&before));
        prop_assert!(labels.is_sorted());
        prop_assert!(labels.iter().zip(&before).all(|(a, b)| key(a) == key(b) && a.item == b.item));
    }
}

/// A world of two tastes in which everybody labels everything, one a minute.
fn two_tastes() -> World {
    let mut examples = Vec::new();
    for round in 0..6 {
        for user in 0..6 {
            let (item, t) = ((user + round) % 6, examples.len() as i64 * 60_000);
            let liked = user % 2 == item % 2;
            let verdict = if liked { Verdict::Positive } else { Verdict::Negative };
            let example = labelled(&format!("u{user}"), &format!("i{item}"), t, t, examples.len());
            examples.push(LabelledExample { verdict, ..(*example).clone() });
        }
    }
    World { examples, vectors: HashMap::new(), centre: vec![] }
}

#[test]
fn a_planted_leak_is_noticed() {
    let world = two_tastes();
    let own = Options {
        neighbourhood: Neighbourhood { sketch_period_ms: 0, ..Neighbourhood::default() },
        ..Options::default()
    };
    assert_eq!(leaks(&world.rows(&own), &own), 0);
    assert!(seeing_later(&world, &own).is_empty());
    for planted in [
        Options { allow_self: true, ..own.clone() },
        Options { allow_future: true, ..own.clone() },
        Options { allow_self: true, allow_future: true, ..own.clone() },
    ] {
        assert!(leaks(&world.rows(&planted), &planted) >= 30, "{planted:?}");
        assert!(seeing_later(&world, &planted).len() >= 30, "{planted:?}");
    }
    let planted = Options { allow_self: true, ..own };
    for row in world.rows(&planted) {
        assert_eq!(leak(&row, 0), Some(Leak::Itself));
        assert!(row.sources.same_item.iter().any(|n| n.example == row.example));
        assert!(row.sources.same_user.iter().any(|n| n.example == row.example));
    }
}

#[test]
fn similar_users_and_items_are_found_and_permuting_loses_them() {
    // Of the later rows the votes say the label; of permuted ones they don't.
    let world = two_tastes();
    let right = |options: &Options| {
        let rows = world.rows(options);
        let hits = rows[18..].iter().filter(|row| {
            let votes = row.sources.votes.numbers();
            (votes[3] + votes[6] > 0.0) == (row.example.label() == 1)
        });
        hits.count()
    };
    let own = Options {
        neighbourhood: Neighbourhood { sketch_period_ms: 0, ..Neighbourhood::default() },
        ..Options::default()
    };
    assert!(right(&own) >= 16, "{} of 18", right(&own));
    let permuted: usize =
        (0..20).map(|seed| right(&Options { permuted_labels: Some(seed), ..own.clone() })).sum();
    assert!((120..240).contains(&permuted), "{permuted} of 360");
}

#[test]
fn what_could_leak_or_mix_is_refused() {
    let (texts, example) = (Texts::default(), (*labelled("u", "i", 5, 5, 0)).clone());
    let early = LabelledExample { label_time: 4, ..example.clone() };
    let error = Replay::new([early], &texts, Options::default()).unwrap_err();
    assert!(matches!(error, Error::LabelBeforeEvent { label_time: 4, event_time: 5, .. }));
    let twice = LabelledExample { item: "j".into(), label_time: 9, ..example.clone() };
    let error = Replay::new([example, twice], &texts, Options::default()).unwrap_err();
    assert!(matches!(error, Error::Duplicate { event_time: 5, .. }));
    let vectors: HashMap<Id, Quantised> =
        [("a".into(), vec![1, 2].into()), ("b".into(), vec![1].into())].into();
    let error = Texts::new(&vectors, &[]).unwrap_err();
    assert_eq!(error, Error::Width { item: "b".into(), found: 1, expected: 2 });
    let error = Texts::new(&vectors, &[0, 0, 0]).unwrap_err();
    assert_eq!(error, Error::Width { item: "a".into(), found: 2, expected: 3 });
}

#[test]
fn nobody_has_neighbours_in_an_empty_world() {
    let texts = Texts::default();
    assert_eq!(Replay::new([], &texts, Options::default()).unwrap().count(), 0);
    let one = (*labelled("u", "i", 5, 5, 0)).clone();
    let rows: Vec<Row> = Replay::new([one], &texts, Options::default()).unwrap().collect();
    assert_eq!(rows[0].sources, Sources::default());
}
