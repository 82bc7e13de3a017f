//! Labelled examples of every user: what the sources of neighbours and the sketches stand on.
//!
//! **Computes**: of every example ([`crate::examples`]) its compact form, as it comes, is corrected and is
//! taken back. A final example leaves `history` in silence and stays here: sketches are sums over all labels
//! that ever were, so a label can only be taken out of them by one who still knows it.
//!
//! **Erasure**: all labels of the user are taken back, final ones too. A ring that was left with too few is
//! filled again ([`Output::Again`]) from what all other users said of its item.
//!
//! **Saved**: a user's final labels; the others follow from `history`, which emits them again.
//!
//! **Memory**: about 40 B a final label, packed by user, besides ids longer than a few bytes; a shared
//! example for each that isn't final.

use crate::clock::{Clock, Wheel};
use crate::examples::{final_after, is_final};
use crate::recovery::{Orders, Part, Recovery, Saved, Unsaved};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::history::Identity;
use ictflow_schemas::neighbour::{LabelledExample, neighbour_id};
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// An example.
    Example(Arc<Example>),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
    /// States to put back, to forget, to save; rings to fill again.
    Recovery(Recovery),
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A labelled example.
    Label(Arc<LabelledExample>),
    /// One that stands, for the ring of its item: it is named once more, and no change.
    Again(Arc<LabelledExample>),
    /// A user's state.
    Saved(Saved),
}

impl Output {
    /// The labelled example.
    pub fn label(self) -> Option<Arc<LabelledExample>> {
        match self {
            Output::Label(label) => Some(label),
            _ => None,
        }
    }

    /// The one that is named once more.
    pub fn again(self) -> Option<Arc<LabelledExample>> {
        match self {
            Output::Again(label) => Some(label),
            _ => None,
        }
    }

    /// The saved state.
    pub fn saved(self) -> Option<Saved> {
        match self {
            Output::Saved(saved) => Some(saved),
            _ => None,
        }
    }
}

/// A final label as it is kept: the rest is the user's, or follows.
#[derive(Debug, Serialize, Deserialize)]
struct Packed {
    label_time: Millis,
    event_time: Millis,
    event_id: Id,
    item: Id,
    verdict: Verdict,
    rate: i32,
    partition: u32,
}

/// The labels of one user.
#[derive(Clone, Debug, Default)]
struct Ledger {
    /// Those that may change.
    open: BTreeSet<Arc<LabelledExample>>,
    /// Those that are final, one [`Packed`] after the other.
    finals: Vec<u8>,
}

impl Ledger {
    fn keep(&mut self, label: &LabelledExample) {
        let packed = Packed {
            label_time: label.label_time,
            event_time: label.event_time,
            event_id: label.event_id.clone(),
            item: label.item.clone(),
            verdict: label.verdict,
            rate: label.rate,
            partition: label.partition,
        };
        // Writing plain data to memory can't fail.
        let finals = std::mem::take(&mut self.finals);
        self.finals = postcard::to_extend(&packed, finals).expect("a label is plain data");
    }

    /// The final labels, in the order in which they became it.
    ///
    /// # Panics
    /// Where the bytes are none: whoever restores has verified their checksum and format.
    fn finals(&self, user: &Id) -> impl Iterator<Item = Arc<LabelledExample>> + use<'_> {
        let (user, mut rest) = (user.clone(), self.finals.as_slice());
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (packed, after): (Packed, &[u8]) =
                postcard::take_from_bytes(rest).expect("saved labels have a verified checksum and format");
            rest = after;
            let Packed { label_time, event_time, event_id, item, verdict, rate, partition } = packed;
            let identity = Identity { user: user.clone(), event_time, event_id };
            let id = neighbour_id(&identity);
            let Identity { user, event_time, event_id } = identity;
            let label = LabelledExample {
                label_time,
                event_time,
                user,
                event_id,
                item,
                verdict,
                rate,
                partition,
                id,
            };
            Some(Arc::new(label))
        })
    }
}

/// Says which labels are final by a clock.
pub(crate) fn finality(semantics: &Semantics, clock: &Clock) -> impl Fn(&LabelledExample) -> bool {
    |label| is_final(label.event_time, clock.maximum(label.partition), semantics)
}

/// The state of the operator.
#[derive(Debug)]
pub struct Labels {
    semantics: Arc<Semantics>,
    users: HashMap<Id, Ledger>,
    /// By partition, the users with a label that becomes final.
    wheels: BTreeMap<u32, Wheel<Id>>,
    unsaved: Unsaved,
}

impl Labels {
    /// An empty state.
    pub fn new(semantics: Arc<Semantics>) -> Self {
        Labels { semantics, users: HashMap::new(), wheels: BTreeMap::new(), unsaved: Unsaved::default() }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let mut labels: BTreeMap<Arc<LabelledExample>, isize> = BTreeMap::new();
        let (mut clock, mut orders) = (None, Orders::default());
        for (input, diff) in changes {
            match input {
                Input::Example(example) => {
                    *labels.entry(Arc::new(LabelledExample::of(&example))).or_default() += diff;
                }
                Input::Clock(_, now) => clock = Some(now),
                Input::Recovery(recovery) => orders.take(recovery),
            }
        }
        let Some(clock) = clock else { return };
        for saved in orders.restore {
            let Some(state) = saved.state else { continue };
            let ledger = Ledger { finals: state.to_vec(), ..Ledger::default() };
            out.extend(ledger.finals(&saved.user).map(|label| (Output::Label(label), 1)));
            self.users.insert(saved.user, ledger);
        }
        for (label, diff) in labels.into_iter().filter(|(_, diff)| *diff != 0) {
            self.change(label, diff, out);
        }
        // What `history` held of them has been taken back by itself.
        for user in &orders.erase {
            if let Some(ledger) = self.users.remove(user) {
                self.unsaved.insert(user);
                let all = ledger.finals(user).chain(ledger.open.iter().cloned());
                out.extend(all.map(|label| (Output::Label(label), -1)));
            }
        }
        self.settle(&clock);
        if !orders.refill.is_empty() {
            self.name_again(&orders.refill, out);
        }
        if let Some(extent) = orders.save {
            let users = self.unsaved.take(extent, self.users.keys().cloned());
            out.extend(users.into_iter().map(|user| {
                let finals = self.users.get(&user).map(|ledger| ledger.finals.as_slice());
                let state = finals.filter(|finals| !finals.is_empty()).map(Arc::from);
                (Output::Saved(Saved { user, part: Part::Labels, state }), 1)
            }));
        }
    }

    fn change(&mut self, label: Arc<LabelledExample>, diff: isize, out: &mut Changes<Output>) {
        let ledger = self.users.entry(label.user.clone()).or_default();
        if diff > 0 {
            let due = final_after(label.event_time, &self.semantics);
            self.wheels.entry(label.partition).or_default().register(due, label.user.clone());
            ledger.open.insert(label.clone());
        } else {
            ledger.open.remove(&label);
        }
        out.push((Output::Label(label), diff));
    }

    /// Packs what became final.
    fn settle(&mut self, clock: &Clock) {
        let mut due: BTreeSet<Id> = BTreeSet::new();
        for (partition, wheel) in &mut self.wheels {
            due.extend(wheel.pop(clock.maximum(*partition)));
        }
        for user in due {
            let Some(ledger) = self.users.get_mut(&user) else { continue };
            let is_final = finality(&self.semantics, clock);
            let finals: Vec<_> = ledger.open.extract_if(.., |label| is_final(label)).collect();
            for label in &finals {
                ledger.keep(label);
            }
            if !finals.is_empty() {
                self.unsaved.insert(&user);
            }
        }
    }

    /// Names every label on some items once more.
    fn name_again(&self, items: &BTreeSet<Id>, out: &mut Changes<Output>) {
        for (user, ledger) in &self.users {
            let all = ledger.finals(user).chain(ledger.open.iter().cloned());
            let on_them = all.filter(|label| items.contains(&label.item));
            out.extend(on_them.map(|label| (Output::Again(label), 1)));
        }
    }
}

/// The operator `labels`.
pub fn labels<'s>(
    examples: VecCollection<'s, Epoch, Arc<Example>, isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    recovery: VecCollection<'s, Epoch, Recovery, isize>,
    semantics: Arc<Semantics>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Labels::new(semantics);
    let input = examples
        .map(Input::Example)
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)))
        .concat(recovery.filter(|recovery| recovery.concerns(Part::Labels)).map(Input::Recovery));
    let by = |input: &Input| match input {
        Input::Example(example) => route(&example.identity.user),
        Input::Recovery(recovery) => recovery.route(),
        Input::Clock(worker, _) => *worker,
    };
    staged(input, "labels", by, move |_, changes, out| state.step(changes, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::Extent;
    use ictflow_schemas::history::History;

    /// Window and lateness are 10 each, so an example of time t is final once the maximum is beyond t + 20.
    fn semantics() -> Arc<Semantics> {
        Arc::new(Semantics { lateness_ms: 10, attribution_window_ms: 10, ..Semantics::default() })
    }

    fn example(user: &str, item: &str, time: Millis) -> Arc<Example> {
        Arc::new(Example {
            identity: Identity { user: user.into(), event_time: time, event_id: format!("e{time}").into() },
            partition: 0,
            item: item.into(),
            verdict: if time % 2 == 0 { Verdict::Positive } else { Verdict::ImplicitNegative },
            label_time: time + 1,
            history: History::default(),
        })
    }

    fn label(user: &str, item: &str, time: Millis) -> Output {
        Output::Label(Arc::new(LabelledExample::of(&example(user, item, time))))
    }

    fn run(
        labels: &mut Labels,
        maximum: Millis,
        examples: &[(Arc<Example>, isize)],
        orders: Vec<Recovery>,
    ) -> Changes<Output> {
        let clock = Clock {
            maxima: [maximum].into(),
            now: maximum,
            publish: false,
            actives: Arc::default(),
            shadow: None,
        };
        let examples = examples.iter().map(|(example, diff)| (Input::Example(example.clone()), *diff));
        let orders = orders.into_iter().map(|order| (Input::Recovery(order), 1));
        let mut out = Changes::new();
        labels.step(examples.chain(orders).chain([(Input::Clock(0, clock), 1)]).collect(), &mut out);
        out.sort();
        out
    }

    fn saved(out: Changes<Output>) -> Vec<Saved> {
        out.into_iter().filter_map(|(output, _)| output.saved()).collect()
    }

    #[test]
    fn an_erasure_takes_back_what_is_final_and_leaves_what_history_takes_back() {
        let mut labels = Labels::new(semantics());
        let (old, new, other) = (example("u", "i", 0), example("u", "j", 30), example("v", "i", 1));
        let came = [(old.clone(), 1), (other, 1)];
        let out = run(&mut labels, 5, &came, vec![]);
        assert_eq!(out, [(label("u", "i", 0), 1), (label("v", "i", 1), 1)]);
        // The old one becomes final without an event of its user.
        assert_eq!(run(&mut labels, 40, &[(new.clone(), 1)], vec![]), [(label("u", "j", 30), 1)]);
        // `history` takes the open one back in the same time.
        let out = run(&mut labels, 41, &[(new, -1)], vec![Recovery::Erase("u".into())]);
        assert_eq!(out, [(label("u", "i", 0), -1), (label("u", "j", 30), -1)]);
        assert_eq!(run(&mut labels, 42, &[], vec![Recovery::Erase("u".into())]), []);
        let _ = old;
    }

    #[test]
    fn what_is_final_is_saved_and_comes_back_and_the_rest_is_left_to_history() {
        let mut labels = Labels::new(semantics());
        run(&mut labels, 5, &[(example("u", "i", 0), 1), (example("v", "i", 1), 1)], vec![]);
        let none = Saved { user: "u".into(), part: Part::Labels, state: None };
        let all = saved(run(&mut labels, 6, &[], vec![Recovery::Save(0, Extent::All)]));
        assert_eq!(all.len(), 2);
        assert!(all.contains(&none), "nothing is final yet");
        run(&mut labels, 21, &[(example("u", "j", 20), 1)], vec![]);
        let changed = saved(run(&mut labels, 21, &[], vec![Recovery::Save(0, Extent::Changed)]));
        assert_eq!(changed.len(), 1, "that of v is final beyond 21");
        let mut restored = Labels::new(semantics());
        let order = Recovery::Restore(changed[0].clone());
        assert_eq!(run(&mut restored, 21, &[], vec![order]), [(label("u", "i", 0), 1)]);
        // Unchanged since: saved no more, and whole all the same.
        assert_eq!(saved(run(&mut restored, 21, &[], vec![Recovery::Save(0, Extent::Changed)])), []);
        assert_eq!(saved(run(&mut restored, 21, &[], vec![Recovery::Save(0, Extent::All)])), changed);
        let out = run(&mut restored, 22, &[], vec![Recovery::Erase("u".into())]);
        assert_eq!(out, [(label("u", "i", 0), -1)]);
        assert_eq!(saved(run(&mut restored, 22, &[], vec![Recovery::Save(0, Extent::Changed)])), [none]);
    }

    #[test]
    fn labels_of_an_item_are_named_again_final_or_not() {
        let mut labels = Labels::new(semantics());
        let all = [example("u", "i", 0), example("v", "i", 30), example("v", "j", 1)];
        run(&mut labels, 40, &all.map(|example| (example, 1)), vec![]);
        let out = run(&mut labels, 40, &[], vec![Recovery::Refill(0, "i".into())]);
        let again = |output: Output| Output::Again(output.label().expect("a label"));
        assert_eq!(out, [(again(label("u", "i", 0)), 1), (again(label("v", "i", 30)), 1)]);
    }
}
