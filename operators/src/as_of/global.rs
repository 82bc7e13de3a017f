//! The source `global` as of each example's time: the paper's demonstrations, for training.
//!
//! **Computes**, for every example at t = its event_time: the selection of [`crate::retrieval::global`]
//! for its user's history then and its item, among the eligible examples ([`selected`], and
//! [`GlobalOptions::pool`]) whose item has a vector, whose label was known strictly before t and whose event_time isn't older than
//! `demonstration_ttl` at t. An example whose item has no vector has no selection.
//!
//! Scores need no CoT, so none is asked for: a demonstration's CoT fields are empty, and who wants CoTs
//! looks them up by the identity. Vectors are those given, of all times: catalogs aren't replayed.
//! `max_demonstrations` isn't applied.
//!
//! **Cost**: for each example one product a demonstration for its history, two halves wide; for each item
//! one product a demonstration, once. Memory: the demonstrations that are known, one i32 an (item,
//! demonstration), 8 B for every demonstration that ever was.

use super::{Error, Leak, key};
use crate::eligible::selected;
use crate::retrieval::global::{Best, ItemRow, Pool, UserRow, score};
use crate::retrieval::split::SplitSum;
use ictflow_schemas::catalog::{ItemState, ItemVector};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::feature::point_id;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::Entry;
use ictflow_schemas::neighbour::LabelledExample;
use ictflow_schemas::vector::{Quantised, VectorSum};
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// An example with its demonstrations as of its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalRow {
    /// The place of the example in what was given.
    pub place: usize,
    /// The example.
    pub example: Arc<Example>,
    /// The selection with scores, ascending, nearest last.
    pub used: Vec<(Arc<Demonstration>, i64)>,
}

/// How the source is replayed.
#[derive(Clone, Copy, Debug)]
pub struct GlobalOptions<'o> {
    /// By place, which of the examples may be demonstrations beside what the strides say, such as those that
    /// have a CoT; all where `None`, and none beyond its end.
    pub pool: Option<&'o [bool]>,
    /// K, the strides, the time to live.
    pub semantics: &'o Semantics,
    /// Names the points, which decide ties.
    pub prompt_version: &'o str,
    /// How much later than at label_time a label is known, milliseconds.
    pub label_delay_ms: Millis,
    /// The published rule in the place of the strict one, for comparisons with the paper: all of the pool may be
    /// chosen, the example itself and later ones of other users included, but for what the example's own user
    /// did after it. No time to live and no delay of labels apply. Each of its rows may be a [`Leak`].
    pub paper_compat: bool,
}

/// The replay: an iterator over [`GlobalRow`]s by (event_time, user, event_id).
#[derive(Debug)]
pub struct GlobalReplay<'o> {
    vectors: &'o HashMap<Id, Quantised>,
    options: GlobalOptions<'o>,
    queries: std::vec::IntoIter<(Arc<Example>, usize)>,
    /// Eligible examples by label time, from the next one to be known on.
    waiting: std::iter::Peekable<std::vec::IntoIter<Arc<Example>>>,
    pool: Pool,
    /// What is in the pool, by event_time.
    by_age: BTreeMap<(Millis, Uuid), Arc<Demonstration>>,
    /// Slots in the order in which they were filled.
    filled: Vec<usize>,
    /// By item its products, and how many of `filled` they know.
    rows: HashMap<Id, (ItemRow, usize)>,
}

impl<'o> GlobalReplay<'o> {
    /// Prepares the replay of examples in any order; vectors by item.
    ///
    /// # Errors
    /// As [`super::Replay::new`].
    pub fn new(
        examples: &[Arc<Example>],
        vectors: &'o HashMap<Id, Quantised>,
        options: GlobalOptions<'o>,
    ) -> Result<Self, Error> {
        let mut sorted: Vec<(Arc<LabelledExample>, usize)> =
            examples.iter().map(|example| Arc::new(LabelledExample::of(example))).zip(0..).collect();
        sorted.sort_unstable_by(|(a, _), (b, _)| key(a).cmp(&key(b)));
        super::check(&sorted)?;
        let queries: Vec<(Arc<Example>, usize)> =
            sorted.iter().map(|(_, place)| (examples[*place].clone(), *place)).collect();
        let pooled = |place: usize| options.pool.is_none_or(|pool| pool.get(place) == Some(&true));
        sorted.retain(|(label, place)| {
            pooled(*place)
                && vectors.contains_key(&label.item)
                && selected(&examples[*place], options.semantics)
        });
        sorted.sort_unstable();
        let waiting: Vec<Arc<Example>> =
            sorted.into_iter().map(|(_, place)| examples[place].clone()).collect();
        let mut replay = GlobalReplay {
            vectors,
            options,
            queries: queries.into_iter(),
            waiting: waiting.into_iter().peekable(),
            pool: Pool::default(),
            by_age: BTreeMap::new(),
            filled: Vec::new(),
            rows: HashMap::new(),
        };
        if options.paper_compat {
            while let Some(example) = replay.waiting.next() {
                replay.know(&example);
            }
        }
        Ok(replay)
    }

    fn history(&self, history: &[Entry]) -> VectorSum {
        VectorSum::over(history.iter().filter_map(|entry| self.vectors.get(&entry.item)).map(|v| &**v))
    }

    fn demonstration(&self, example: &Example) -> Option<Demonstration> {
        let vector = self.vectors.get(&example.item)?.clone();
        let text = self.history(&example.history);
        let none = Digest([0; 32]);
        Some(Demonstration {
            label_time: example.label_time,
            id: point_id(&example.identity, self.options.prompt_version),
            identity: example.identity.clone(),
            item: example.item.clone(),
            mean: text.mean(vector.len()),
            item_state: Arc::new(ItemState {
                text: none,
                creator: None,
                categories: vec![],
                vector: Some(ItemVector { text: none, vector }),
            }),
            positive: example.verdict == Verdict::Positive,
            history: example.history.iter().map(|entry| (entry.item.clone(), None)).collect(),
            text,
            cot: Arc::new([]),
            cot_key: none,
            fresh: false,
            cot_created_at: 0,
        })
    }

    /// Takes in what is known before `time`, and lets go of what is too old at it.
    fn advance(&mut self, time: Millis) {
        let oldest = time.saturating_sub(self.options.semantics.demonstration_ttl_ms);
        let shown = time.saturating_sub(self.options.label_delay_ms);
        while let Some(entry) = self.by_age.first_entry()
            && entry.key().0 < oldest
        {
            let slot = self.pool.remove(&entry.remove());
            self.pool.reuse(slot);
        }
        while let Some(example) = self.waiting.next_if(|example| example.label_time < shown) {
            if example.identity.event_time >= oldest {
                self.know(&example);
            }
        }
    }

    fn know(&mut self, example: &Example) {
        let Some(demonstration) = self.demonstration(example).map(Arc::new) else { return };
        self.by_age.insert((example.identity.event_time, demonstration.id), demonstration.clone());
        self.filled.push(self.pool.insert(demonstration));
    }

    fn used(&mut self, example: &Example) -> Vec<(Arc<Demonstration>, i64)> {
        let Some(vector) = self.vectors.get(&example.item) else { return Vec::new() };
        let history = SplitSum::new(&self.history(&example.history));
        let GlobalReplay { pool, rows, filled, options, .. } = self;
        let k = options.semantics.demonstrations;
        let (row, known) = rows.entry(example.item.clone()).or_default();
        for slot in &filled[*known..] {
            row.update(vector, pool, *slot);
        }
        *known = filled.len();
        let user = UserRow::new(&history, pool);
        let best = match options.paper_compat {
            false => Best::scan(&example.identity.user, &example.item, (&user, row), pool, k),
            true => {
                let mut best = Best::default();
                let asked = &example.identity;
                for slot in filled.iter().copied() {
                    let Some(other) = pool.get(slot) else { continue };
                    let later =
                        other.identity.user == asked.user && other.identity.event_time > asked.event_time;
                    if !later {
                        // No user and no item has an empty id: its own pair isn't left out.
                        best.offer("", "", score((&user, row), slot), slot, other, k);
                    }
                }
                best
            }
        };
        let used = best.selection(k).into_iter();
        used.filter_map(|(slot, score)| Some((pool.get(slot)?.clone(), score))).collect()
    }
}

impl Iterator for GlobalReplay<'_> {
    type Item = GlobalRow;

    fn next(&mut self) -> Option<GlobalRow> {
        let (example, place) = self.queries.next()?;
        if !self.options.paper_compat {
            self.advance(example.identity.event_time);
        }
        let used = self.used(&example);
        Some(GlobalRow { place, example, used })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.queries.size_hint()
    }
}

impl ExactSizeIterator for GlobalReplay<'_> {}

/// The first leak of a row, if any.
pub fn leak(row: &GlobalRow, label_delay_ms: Millis) -> Option<Leak> {
    let example = &row.example;
    row.used.iter().map(|(used, _)| used).find_map(|used| {
        if used.identity == example.identity {
            Some(Leak::Itself)
        } else if (&used.identity.user, &used.item) == (&example.identity.user, &example.item) {
            Some(Leak::OwnPair)
        } else if used.label_time.saturating_add(label_delay_ms) >= example.identity.event_time {
            Some(Leak::Later)
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieval::global::score_of;
    use ictflow_schemas::history::{Identity, Label};

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    fn example(random: &mut Random, id: usize) -> Arc<Example> {
        let event_time = random.below(60) as i64;
        let entry = |n: u64, random: &mut Random| Entry {
            event_time: event_time - 1,
            event_id: format!("{n}").into(),
            item: format!("i{}", random.below(6)).into(),
            kind: "k".into(),
            label: Label::Positive,
        };
        let length = random.below(4);
        let positive = random.below(2) == 0;
        Arc::new(Example {
            history: (0..length).map(|n| entry(n, random)).collect(),
            identity: Identity {
                user: format!("u{}", random.below(5)).into(),
                event_time,
                event_id: format!("e{id}").into(),
            },
            partition: 0,
            item: format!("i{}", random.below(6)).into(),
            verdict: if positive { Verdict::Positive } else { Verdict::ImplicitNegative },
            label_time: event_time + random.below(6) as i64,
        })
    }

    #[test]
    fn selections_are_those_of_sorting_what_was_known() {
        let (mut compared, mut leaks) = (0, 0);
        for seed in 1..=60 {
            let mut random = Random(seed);
            let examples: Vec<Arc<Example>> = (0..50).map(|id| example(&mut random, id)).collect();
            // The last item has no vector.
            let vector =
                |random: &mut Random| -> Quantised { (0..3).map(|_| random.below(9) as i16 - 4).collect() };
            let vectors: HashMap<Id, Quantised> =
                (0..5).map(|item| (format!("i{item}").into(), vector(&mut random))).collect();
            let mut semantics =
                Semantics { demonstrations: 4, demonstration_ttl_ms: 30, ..Semantics::default() };
            semantics.cot_stride.positive = 1;
            semantics.cot_stride.implicit_negative = 1 + random.below(2);
            let delay = random.below(2) as i64 * 7;
            // Of every third seed all may be demonstrations, of the others what has an even place.
            let evens: Vec<bool> = (0..examples.len()).map(|place| place % 2 == 0).collect();
            let pool = (seed % 3 > 0).then_some(evens.as_slice());
            let paper_compat = seed % 5 == 0;
            let options = GlobalOptions {
                pool,
                semantics: &semantics,
                prompt_version: "p@1",
                label_delay_ms: delay,
                paper_compat,
            };
            let replay = GlobalReplay::new(&examples, &vectors, options).expect("no example is wrong");
            for row in replay {
                let (query, t) = (&row.example, row.example.identity.event_time);
                let own = |e: &Example| (&e.identity.user, &e.item) == (&query.identity.user, &query.item);
                match leak(&row, delay) {
                    Some(_) if paper_compat => leaks += 1,
                    leak => assert_eq!(leak, None),
                }
                let pooled = examples.iter().zip(&evens).filter(|(_, even)| pool.is_none() || **even);
                let known = pooled.map(|(example, _)| example).filter(|e| {
                    let strict = e.label_time + delay < t && e.identity.event_time + 30 >= t && !own(e);
                    let published = e.identity.user != query.identity.user || e.identity.event_time <= t;
                    selected(e, &semantics) && if paper_compat { published } else { strict }
                });
                let replay = GlobalReplay::new(&[], &vectors, options).expect("nothing is wrong");
                let mut ranked: Vec<(i64, Demonstration)> = match vectors.get(&query.item) {
                    Some(vector) => {
                        let text = replay.history(&query.history);
                        let made = known.filter_map(|e| replay.demonstration(e));
                        made.map(|c| (score_of(&text, vector, &c), c)).collect()
                    }
                    None => vec![],
                };
                ranked.sort_by_key(|(score, c)| std::cmp::Reverse((*score, c.label_time, c.id)));
                let (yes, no): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(_, c)| c.positive);
                let from_yes = yes.len().min(4 - no.len().min(2));
                let from_no = no.len().min(4 - from_yes);
                let mut best: Vec<_> =
                    yes.into_iter().take(from_yes).chain(no.into_iter().take(from_no)).collect();
                best.sort_by_key(|(score, c)| (*score, c.label_time, c.id));
                let found: Vec<_> = row.used.iter().map(|(c, score)| (*score, (**c).clone())).collect();
                compared += found.len();
                assert_eq!(found, best, "seed {seed}, {:?}", query.identity);
            }
        }
        assert!(compared > 2_000, "only {compared} were compared");
        assert!(leaks > 100, "the published rule leaks: {leaks}");
    }

    #[test]
    fn a_planted_leak_is_told() {
        let (vectors, semantics) = (HashMap::new(), Semantics::default());
        let options = GlobalOptions {
            pool: None,
            semantics: &semantics,
            prompt_version: "p@1",
            label_delay_ms: 0,
            paper_compat: false,
        };
        let replay = GlobalReplay::new(&[], &vectors, options).expect("nothing is wrong");
        let example = |user: &str, item: &str, id: &str, time: Millis| Example {
            identity: Identity { user: user.into(), event_time: time, event_id: id.into() },
            partition: 0,
            item: item.into(),
            verdict: Verdict::Positive,
            label_time: time,
            history: [].into(),
        };
        let asked = example("u", "i", "asked", 1_000);
        let vector: HashMap<Id, Quantised> =
            ["i", "j"].map(|item| (Id::from(item), Quantised::from([1_i16, 2]))).into();
        let replay = GlobalReplay { vectors: &vector, ..replay };
        for (other, delay, expected) in [
            (example("v", "j", "earlier", 999), 0, None),
            (asked.clone(), 0, Some(Leak::Itself)),
            (example("u", "i", "again", 1), 0, Some(Leak::OwnPair)),
            (example("v", "i", "at once", 1_000), 0, Some(Leak::Later)),
            (example("v", "i", "delayed", 999), 1, Some(Leak::Later)),
        ] {
            let used = Arc::new(replay.demonstration(&other).expect("its item has a vector"));
            let row = GlobalRow { place: 0, example: Arc::new(asked.clone()), used: vec![(used, 0)] };
            assert_eq!(leak(&row, delay), expected, "{}", other.identity.event_id);
        }
    }
}
