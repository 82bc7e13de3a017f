//! A ring: the newest labelled examples of one item, or of one user.
//!
//! **Computes**, over the accumulated examples of its key: [`Ring::before`], the newest R with
//! label_time strictly before a time. A function of the set: examples come in any order, late ones too,
//! and may be taken back.
//!
//! **What may be forgotten.** An example that isn't final ([`crate::examples::is_final`]) may be taken
//! back or come again with another label; a final one goes only when its user is erased. So
//! [`Ring::forget`] keeps the newest examples down to the `keep`-th newest *final* one (R + a spare) and
//! lets go of what is older: whatever happens to those that aren't final, the newest R are among the
//! kept. For the same reason an example that comes late and is older than something forgotten isn't
//! taken in, and taking back a forgotten one does nothing.
//!
//! **Erasure** takes final examples too. The spare covers as many of them as it is long. Beyond that the
//! ring knows that it [lacks](Ring::lacks) older ones: whoever erases reads the user's final examples off
//! the topic `examples`, where they stand, and gives such rings what stands there of their key
//! ([`Ring::refill`]). A user's own ring goes as a whole, so only rings of items can lack any.
//!
//! **Memory**: `keep` shared examples, and those of the key that aren't final, which `history` holds too.

use ictflow_schemas::Millis;
use ictflow_schemas::neighbour::LabelledExample;
use std::sync::Arc;

/// The newest labelled examples of one key. See the module for what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// All examples of the key newer than `forgotten`, oldest first.
    kept: Vec<Arc<LabelledExample>>,
    /// The newest one that was let go of.
    forgotten: Option<Arc<LabelledExample>>,
}

impl Ring {
    /// Takes an example in; gives whether it is kept and new. Changes of one example at one time must be
    /// netted first: the two forms of a corrected one may be equal.
    pub fn insert(&mut self, example: Arc<LabelledExample>) -> bool {
        if self.forgotten.as_ref().is_some_and(|forgotten| example <= *forgotten) {
            return false;
        }
        match self.kept.binary_search(&example) {
            Ok(_) => false,
            Err(place) => {
                self.kept.insert(place, example);
                true
            }
        }
    }

    /// Takes an example out; gives whether it was kept.
    pub fn remove(&mut self, example: &LabelledExample) -> bool {
        let place = self.kept.binary_search_by(|kept| (**kept).cmp(example));
        place.map(|place| self.kept.remove(place)).is_ok()
    }

    /// The newest `length` with label_time strictly before `time`, oldest first.
    pub fn before(&self, time: Millis, length: usize) -> &[Arc<LabelledExample>] {
        let end = self.kept.partition_point(|example| example.label_time < time);
        &self.kept[end.saturating_sub(length)..end]
    }

    /// Lets go of all that is older than the `keep`-th newest final example; one is kept in any case. Gives
    /// what was let go of, oldest first.
    pub fn forget(
        &mut self,
        keep: usize,
        is_final: impl Fn(&LabelledExample) -> bool,
    ) -> Vec<Arc<LabelledExample>> {
        if self.kept.len() <= keep {
            return Vec::new();
        }
        let mut finals = self.kept.iter().enumerate().rev().filter(|(_, example)| is_final(example));
        let oldest = finals.nth(keep.saturating_sub(1)).map_or(0, |(place, _)| place);
        let gone: Vec<_> = self.kept.drain(..oldest).collect();
        if let Some(last) = gone.last() {
            self.forgotten = Some(last.clone());
        }
        gone
    }

    /// Whether [`Ring::before`] may come to miss examples that were let go of: there are some, and fewer
    /// than `length` final ones are kept, so what isn't final makes up the number and may be taken back.
    pub fn lacks(&self, length: usize, is_final: impl Fn(&LabelledExample) -> bool) -> bool {
        self.forgotten.is_some() && self.kept.iter().filter(|example| is_final(example)).count() < length
    }

    /// Takes all examples of the key that stand, so that nothing is forgotten any more.
    pub fn refill(&mut self, examples: impl IntoIterator<Item = Arc<LabelledExample>>) {
        self.kept.extend(examples);
        self.kept.sort_unstable();
        self.kept.dedup();
        self.forgotten = None;
    }

    /// All that is kept, oldest first.
    pub fn kept(&self) -> &[Arc<LabelledExample>] {
        &self.kept
    }

    /// Whether the key has no example at all.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.forgotten.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieval::neighbours::tests::labelled;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const R: usize = 3;
    const SPARE: usize = 2;

    /// What happens to the ring of an item: an example comes (early, late, at equal times), one that isn't
    /// final is taken back, the time of what is final moves on, a user is erased.
    #[derive(Clone, Debug)]
    enum Step {
        Come { user: u8, event_time: i64, delay: i64 },
        TakeBack(prop::sample::Index),
        Settle(i64),
        Erase(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let come = (0..4u8, 0..40i64, 0..4i64).prop_map(|(user, event_time, delay)| Step::Come {
            user,
            event_time,
            delay,
        });
        let step = prop_oneof![
            6 => come,
            2 => any::<prop::sample::Index>().prop_map(Step::TakeBack),
            2 => (0..6i64).prop_map(Step::Settle),
            1 => (0..4u8).prop_map(Step::Erase),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 400, failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn a_ring_is_the_newest_of_the_set(steps in steps()) {
            let (mut ring, mut all) = (Ring::default(), BTreeSet::new());
            let mut settled = 0i64;
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Come { user, event_time, delay } => {
                        let example = labelled(&format!("u{user}"), "i", event_time, event_time + delay, id);
                        all.insert(example.clone());
                        ring.insert(example);
                    }
                    Step::TakeBack(at) => {
                        let open: Vec<_> = all.iter().filter(|e| e.event_time >= settled).cloned().collect();
                        if !open.is_empty() {
                            let gone = at.get(&open);
                            all.remove(gone);
                            ring.remove(gone);
                        }
                    }
                    Step::Settle(more) => settled += more,
                    Step::Erase(user) => {
                        let user = format!("u{user}");
                        for gone in all.iter().filter(|e| *e.user == *user) {
                            ring.remove(gone);
                        }
                        all.retain(|e| *e.user != *user);
                        // Beyond the spare the ring says so, and is given what stands.
                        if ring.lacks(R, |e| e.event_time < settled) {
                            ring.refill(all.iter().cloned());
                        }
                    }
                }
                ring.forget(R + SPARE, |e| e.event_time < settled);
                for time in [0, 5, 10, 20, 43, i64::MAX] {
                    // What is asked is at or after what is final: a label of then may have been forgotten.
                    if time < settled + 4 && time != i64::MAX {
                        continue;
                    }
                    let naive: Vec<_> = all.iter().filter(|e| e.label_time < time).cloned().collect();
                    let newest = &naive[naive.len().saturating_sub(R)..];
                    prop_assert_eq!(ring.before(time, R), newest);
                }
                let open = all.iter().filter(|e| e.event_time >= settled).count();
                prop_assert!(ring.kept().len() <= R + SPARE + open);
            }
        }
    }

    #[test]
    fn the_spare_covers_an_erasure_and_beyond_it_the_ring_lacks() {
        let mut ring = Ring::default();
        let all: Vec<_> = (0..20).map(|n| labelled(&format!("u{}", n % 10), "i", n, n, n as usize)).collect();
        for example in all.iter().rev() {
            ring.insert(example.clone());
        }
        ring.forget(R + SPARE, |_| true);
        assert_eq!(ring.kept(), &all[15..]);
        assert!(ring.remove(&all[19]) && ring.remove(&all[18]));
        assert!(!ring.lacks(R, |_| true));
        assert_eq!(ring.before(i64::MAX, R), &all[15..18]);
        assert!(ring.remove(&all[17]));
        assert!(ring.lacks(R, |_| true));
        // Forgotten ones are neither taken in late nor taken back.
        assert!(!ring.insert(all[3].clone()) && !ring.remove(&all[3]));
        ring.refill(all[..17].iter().cloned());
        assert!(!ring.lacks(R, |_| true));
        assert_eq!(ring.before(i64::MAX, R), &all[14..17]);
    }

    #[test]
    fn nothing_is_forgotten_while_nothing_is_final() {
        let mut ring = Ring::default();
        for n in 0..50 {
            ring.insert(labelled("u", "i", n, n, n as usize));
        }
        ring.forget(R, |_| false);
        assert_eq!(ring.kept().len(), 50);
        ring.forget(R, |e| e.event_time < 30);
        assert_eq!(ring.kept().len(), 20 + R);
    }
}
