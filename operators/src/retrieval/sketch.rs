//! Sketches: what a user likes, and who likes an item, as sums of signed hashes.
//!
//! **Computes**, over the accumulated labelled examples e with r = 1024 · label − label centre:
//! S_u = Σ over e of u of r · h(`item`, item of e), and S_i = Σ over e on i of r · h(`user`, user of e), with
//! h the [`signs`] of an id; and of the same examples the [`rate_of`] their labels. Sums are integers
//! modulo 2^32, so they add and take back exactly, in any order.
//! *Effective* at a time are just the examples with label_time strictly before B, the
//! [`super::neighbours::boundary`] of the time: users who said alike of the same items are near.
//!
//! **Late events**: a change with label_time before B counts at once, every other when B passes it. So
//! the effective sums are a function of the set of examples and of B, however the examples came.
//!
//! **Erasure**: the examples of the erased user are taken back like any others. A sum can't be taken
//! apart, so all of them have to be named, final ones too: they stand on the topic `examples`.
//!
//! **Memory**: 4 KiB of sums a user and an item with an effective label, 2 KiB more once its unit form
//! was asked for; the examples not yet effective, which are those of one period.

use super::unit::unit;
use ictflow_schemas::neighbour::{LabelledExample, RATE_ONE, SKETCH_WIDTH, rate_of, signs};
use ictflow_schemas::vector::Quantised;
use ictflow_schemas::{Id, Millis, NO_TIME};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Whose sketches they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Side {
    /// Of users, over the items of their labels.
    User,
    /// Of items, over the users of their labels.
    Item,
}

impl Side {
    /// Whose sketch an example counts in.
    pub fn owner(self, example: &LabelledExample) -> &Id {
        match self {
            Side::User => &example.user,
            Side::Item => &example.item,
        }
    }

    /// The other side.
    pub fn opposite(self) -> Self {
        match self {
            Side::User => Side::Item,
            Side::Item => Side::User,
        }
    }

    /// The table of those signs.
    fn other_table(self) -> &'static str {
        match self {
            Side::User => "item",
            Side::Item => "user",
        }
    }
}

/// Some labels: how many, and how many positive ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Labels {
    count: i64,
    positives: i64,
}

impl Labels {
    fn add(&mut self, other: Labels) {
        self.count += other.count;
        self.positives += other.positives;
    }
}

/// The sum of one owner.
#[derive(Clone, Debug)]
struct Sketch {
    /// What is in it: with the last example it goes.
    labels: Labels,
    sum: Box<[i32]>,
    /// Its unit form, since it was last asked for.
    unit: OnceCell<Quantised>,
}

impl Default for Sketch {
    fn default() -> Self {
        Sketch { labels: Labels::default(), sum: vec![0; SKETCH_WIDTH].into(), unit: OnceCell::new() }
    }
}

impl Sketch {
    fn add(&mut self, signs: &[u8; SKETCH_WIDTH / 8], labels: Labels, label_centre: i32) {
        self.unit.take();
        self.labels.add(labels);
        // Modulo 2^32, as the sums are.
        let residuals =
            (i64::from(RATE_ONE) * labels.positives - i64::from(label_centre) * labels.count) as i32;
        for (sums, byte) in self.sum.chunks_exact_mut(8).zip(signs) {
            for (bit, sum) in sums.iter_mut().enumerate() {
                // 0 where the sign is +1; all ones, and the complement is the negative, where it is −1.
                let minus = i32::from((byte >> bit) & 1) - 1;
                *sum = sum.wrapping_add((residuals ^ minus).wrapping_sub(minus));
            }
        }
    }
}

/// The sketches of one side.
#[derive(Clone, Debug)]
pub struct Sketches {
    side: Side,
    label_centre: i32,
    /// B.
    boundary: Millis,
    effective: HashMap<Id, Sketch>,
    /// By (label_time, owner, other) the labels that aren't effective yet.
    pending: BTreeMap<(Millis, Id, Id), Labels>,
}

impl Sketches {
    /// No sketches, and nothing effective yet. The label centre is in 1/1024.
    pub fn new(side: Side, label_centre: i32) -> Self {
        let (effective, pending) = (HashMap::new(), BTreeMap::new());
        Sketches { side, label_centre, boundary: NO_TIME, effective, pending }
    }

    /// Takes an example in, or back where `diff` is negative. Notes the owner in `changed` where the
    /// effective sum may differ.
    pub fn change(&mut self, example: &LabelledExample, diff: isize, changed: &mut BTreeSet<Id>) {
        let (owner, other) = (self.side.owner(example), self.side.opposite().owner(example));
        let count = diff as i64;
        let labels = Labels { count, positives: count * i64::from(example.label()) };
        if example.label_time < self.boundary {
            self.apply(owner, other, labels);
            changed.insert(owner.clone());
            return;
        }
        let key = (example.label_time, owner.clone(), other.clone());
        self.pending.entry(key).or_default().add(labels);
    }

    /// Moves B on; it never goes back. Notes in `changed` the owners whose effective sum may differ.
    pub fn advance(&mut self, boundary: Millis, changed: &mut BTreeSet<Id>) {
        self.boundary = self.boundary.max(boundary);
        while let Some(entry) = self.pending.first_entry()
            && entry.key().0 < self.boundary
        {
            let ((_, owner, other), labels) = entry.remove_entry();
            if labels != Labels::default() {
                self.apply(&owner, &other, labels);
                changed.insert(owner);
            }
        }
    }

    fn apply(&mut self, owner: &Id, other: &Id, labels: Labels) {
        let sketch = self.effective.entry(owner.clone()).or_default();
        sketch.add(&signs(self.side.other_table(), other), labels, self.label_centre);
        // Within one time a correction may be taken back before its first form has come.
        if sketch.labels == Labels::default() && sketch.sum.iter().all(|sum| *sum == 0) {
            self.effective.remove(owner);
        }
    }

    /// The rate of the owner's effective labels, in 1/1024; one half where there is none.
    pub fn rate(&self, owner: &str) -> i32 {
        let labels = self.effective.get(owner).map(|sketch| sketch.labels).unwrap_or_default();
        rate_of(labels.positives, labels.count)
    }

    /// The unit form of the effective sketch; `None` where there is no effective label.
    pub fn unit(&self, owner: &str) -> Option<&[i16]> {
        self.shared_unit(owner).map(|unit| &**unit)
    }

    /// The same, to be kept.
    pub fn shared_unit(&self, owner: &str) -> Option<&Quantised> {
        let sketch = self.effective.get(owner)?;
        Some(sketch.unit.get_or_init(|| unit(&sketch.sum)))
    }

    /// The effective sum; `None` where there is no effective label.
    pub fn sum(&self, owner: &str) -> Option<&[i32]> {
        self.effective.get(owner).map(|sketch| &*sketch.sum)
    }

    /// B, as it was last moved.
    pub fn boundary(&self) -> Millis {
        self.boundary
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieval::neighbours::boundary;
    use crate::retrieval::neighbours::tests::labelled;
    use ictflow_schemas::example::Verdict;
    use proptest::prelude::*;
    use std::sync::Arc;

    const CENTRE: i32 = 300;

    /// The effective sums by the formula, over the whole set.
    fn naive(
        all: &BTreeSet<Arc<LabelledExample>>,
        side: Side,
        until: Millis,
    ) -> BTreeMap<Id, (Vec<i64>, i64, i64)> {
        let mut sums: BTreeMap<Id, (Vec<i64>, i64, i64)> = BTreeMap::new();
        for example in all.iter().filter(|example| example.label_time < until) {
            let (owner, table, other) = match side {
                Side::User => (&example.user, "item", &example.item),
                Side::Item => (&example.item, "user", &example.user),
            };
            let bits = signs(table, other);
            let (sum, positives, count) =
                sums.entry(owner.clone()).or_insert_with(|| (vec![0; SKETCH_WIDTH], 0, 0));
            let label = i64::from(example.verdict == Verdict::Positive);
            (*positives, *count) = (*positives + label, *count + 1);
            for (k, sum) in sum.iter_mut().enumerate() {
                let plus = bits[k / 8] & (1 << (k % 8)) != 0;
                *sum += (1_024 * label - i64::from(CENTRE)) * if plus { 1 } else { -1 };
            }
        }
        sums
    }

    #[derive(Clone, Debug)]
    enum Step {
        Come {
            user: u8,
            item: u8,
            label_time: i64,
        },
        TakeBack(prop::sample::Index),
        /// One example's label is corrected, its label time too; the new form may come first.
        Correct(prop::sample::Index, i64, bool),
        Tick(i64),
        Erase(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let any = any::<prop::sample::Index>;
        let come = (0..4u8, 0..4u8, -20..60i64).prop_map(|(user, item, label_time)| Step::Come {
            user,
            item,
            label_time,
        });
        let correct = (any(), 0..60i64, proptest::bool::ANY)
            .prop_map(|(at, time, first)| Step::Correct(at, time, first));
        let step = prop_oneof![
            6 => come,
            2 => any().prop_map(Step::TakeBack),
            2 => correct,
            3 => (0..9i64).prop_map(Step::Tick),
            1 => (0..4u8).prop_map(Step::Erase),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 200, failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn effective_sums_are_those_of_the_set(
            steps in steps(),
            period in prop_oneof![Just(0i64), Just(1), Just(10)],
            user_side in proptest::bool::ANY,
        ) {
            let side = if user_side { Side::User } else { Side::Item };
            let (mut sketches, mut all, mut now) = (Sketches::new(side, CENTRE), BTreeSet::new(), -25);
            let mut before = BTreeMap::new();
            for (id, step) in steps.into_iter().enumerate() {
                let mut changed = BTreeSet::new();
                let list: Vec<_> = all.iter().cloned().collect();
                match step {
                    Step::Come { user, item, label_time } => {
                        let new = labelled(&format!("u{user}"), &format!("i{item}"), -20, label_time, id);
                        sketches.change(&new, 1, &mut changed);
                        all.insert(new);
                    }
                    Step::TakeBack(at) if !list.is_empty() => {
                        let gone = at.get(&list);
                        sketches.change(gone, -1, &mut changed);
                        all.remove(gone);
                    }
                    Step::Correct(at, label_time, first) if !list.is_empty() => {
                        let old = at.get(&list);
                        let verdict =
                            if old.label() == 1 { Verdict::Negative } else { Verdict::Positive };
                        let new = LabelledExample { label_time, verdict, ..(**old).clone() };
                        let changes: [(&LabelledExample, isize); 2] =
                            if first { [(&new, 1), (old, -1)] } else { [(old, -1), (&new, 1)] };
                        for (example, diff) in changes {
                            sketches.change(example, diff, &mut changed);
                        }
                        all.remove(old);
                        all.insert(Arc::new(new));
                    }
                    Step::Tick(more) => {
                        now += more;
                        sketches.advance(boundary(now, period), &mut changed);
                    }
                    Step::Erase(user) => {
                        let user = format!("u{user}");
                        for gone in all.iter().filter(|e| *e.user == *user) {
                            sketches.change(gone, -1, &mut changed);
                        }
                        all.retain(|e| *e.user != *user);
                    }
                    _ => {}
                }
                let until = sketches.boundary();
                let after = naive(&all, side, until);
                for owner in ["u0", "u1", "u2", "u3", "i0", "i1", "i2", "i3"] {
                    let narrow =
                        |(sum, ..): &(Vec<i64>, i64, i64)| sum.iter().map(|x| *x as i32).collect::<Vec<i32>>();
                    let expected = after.get(owner).map(narrow);
                    prop_assert_eq!(sketches.sum(owner), expected.as_deref(), "{} at {}", owner, until);
                    let (positives, count) = after.get(owner).map_or((0, 0), |(_, p, n)| (*p, *n));
                    prop_assert_eq!(i64::from(sketches.rate(owner)), 1_024 * (positives + 1) / (count + 2));
                    // Whoever differs is named.
                    prop_assert!(before.get(owner) == after.get(owner) || changed.contains(owner));
                    let unit = expected.map(|sum| super::unit(&sum));
                    prop_assert_eq!(sketches.unit(owner), unit.as_deref());
                }
                before = after;
            }
        }
    }

    #[test]
    fn sums_beyond_32_bits_come_back() {
        let mut sketches = Sketches::new(Side::User, i32::MIN);
        let mut changed = BTreeSet::new();
        sketches.advance(10, &mut changed);
        let example = labelled("u", "i", 0, 0, 0);
        sketches.change(&example, 1, &mut changed);
        let once = sketches.sum("u").map(<[i32]>::to_vec);
        sketches.change(&example, 3, &mut changed);
        sketches.change(&example, -3, &mut changed);
        assert_eq!(sketches.sum("u").map(<[i32]>::to_vec), once);
        sketches.change(&example, -1, &mut changed);
        assert_eq!(sketches.sum("u"), None);
    }
}
