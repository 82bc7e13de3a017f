//! Demonstrations: eligible examples that have an item vector and a text with a known embedding.
//!
//! **Computes**, for each eligible example whose item has a vector: its own CoT if that stands and its
//! text has a vector (*fresh*); else the *fallback*, among standing ok records of the same user, item,
//! decision, prompt_version and llm_model whose text has a vector the one with the greatest offset
//! (*stale*); with neither, nothing. So a text is served while its successor is being written, and
//! never one that argues against the label.
//!
//! Also the texts that want a vector: those of the eligible examples' own CoTs.
//!
//! [`newest`] keeps the `max_demonstrations` newest by (label_time, point id), and counts those that it
//! leaves out: they stand ready for when a newer one goes.
//!
//! **Memory**: the demonstrations and the answers of their users; the broadcast catalog and vectors.

use crate::answers::Answer;
use crate::catalog::states_of;
use crate::clock::Clock;
use crate::eligible::Eligible;
use crate::index::{set, unlink};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::example::Verdict;
use ictflow_schemas::feature::point_id;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::{Identity, Label};
use ictflow_schemas::vector::Quantised;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// An eligible example.
    Eligible(Eligible),
    /// A standing ok answer.
    Answer(Arc<Answer>),
    /// An item's state, for the worker named.
    Item(u64, (Id, Item)),
    /// A text's vector, for the worker named.
    Vector(u64, (Digest, Quantised)),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// A demonstration.
    Demonstration(Arc<Demonstration>),
    /// A CoT text that wants a vector.
    Wanted(Digest),
}

impl Output {
    /// The demonstration.
    pub fn demonstration(self) -> Option<Arc<Demonstration>> {
        match self {
            Output::Demonstration(demonstration) => Some(demonstration),
            _ => None,
        }
    }

    /// The CoT text that wants a vector.
    pub fn wanted(self) -> Option<Digest> {
        match self {
            Output::Wanted(text) => Some(text),
            _ => None,
        }
    }
}

/// What a fallback must share with an example, beside the versions.
type Group = (Id, Id, Label);

#[derive(Debug)]
struct Held {
    eligible: Eligible,
    emitted: Option<Arc<Demonstration>>,
    wanted: Option<Digest>,
}

impl Held {
    fn group(&self) -> Group {
        let example = &self.eligible.example;
        (example.identity.user.clone(), example.item.clone(), example.verdict.decision())
    }
}

/// The state of the operator.
#[derive(Debug, Default)]
pub struct Demonstrations {
    held: HashMap<Identity, Held>,
    /// By item, the examples on it or with it in their history.
    by_item: HashMap<Id, HashSet<Identity>>,
    by_group: HashMap<Group, HashSet<Identity>>,
    /// By group, the standing answers by (offset, key): the last usable one is the fallback.
    answers: HashMap<Group, BTreeMap<(i64, Digest), Arc<Answer>>>,
    /// By text, the groups that have an answer with it.
    by_text: HashMap<Digest, HashSet<Group>>,
    items: HashMap<Id, Item>,
    vectors: HashMap<Digest, Quantised>,
    /// The versions in force.
    actives: Arc<Actives>,
}

impl Demonstrations {
    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let mut touched: BTreeSet<Identity> = BTreeSet::new();
        let mut examples: HashMap<Identity, Option<Eligible>> = HashMap::new();
        let mut groups: HashSet<Group> = HashSet::new();
        let mut switched = false;
        for (input, diff) in changes {
            match input {
                Input::Eligible(eligible) => {
                    let newest = examples.entry(eligible.example.identity.clone()).or_default();
                    if diff > 0 {
                        *newest = Some(eligible);
                    }
                }
                Input::Clock(_, clock) => {
                    switched = self.actives != clock.actives;
                    self.actives = clock.actives;
                }
                Input::Answer(answer) => {
                    groups.insert(self.answer(answer, diff));
                }
                Input::Item(_, (id, item)) => {
                    set(&mut self.items, id.clone(), item, diff);
                    touched.extend(self.by_item.get(&id).into_iter().flatten().cloned());
                }
                Input::Vector(_, (text, vector)) => {
                    set(&mut self.vectors, text, vector, diff);
                    groups.extend(self.by_text.get(&text).into_iter().flatten().cloned());
                }
            }
        }
        let mut gone = Vec::new();
        for (identity, eligible) in examples {
            gone.extend(self.replace(&identity, eligible));
            touched.insert(identity);
        }
        for held in gone {
            out.extend(held.emitted.map(|old| (Output::Demonstration(old), -1)));
            out.extend(held.wanted.map(|text| (Output::Wanted(text), -1)));
        }
        if switched {
            touched.extend(self.held.keys().cloned());
        }
        for group in groups {
            touched.extend(self.by_group.get(&group).into_iter().flatten().cloned());
        }
        for identity in touched {
            self.emit(&identity, out);
        }
    }

    fn answer(&mut self, answer: Arc<Answer>, diff: isize) -> Group {
        let group: Group = (answer.user.clone(), answer.item.clone(), answer.decision);
        let place = (answer.offset, answer.key);
        let answers = self.answers.entry(group.clone()).or_default();
        if diff > 0 {
            self.by_text.entry(answer.text).or_default().insert(group.clone());
            answers.insert(place, answer);
            return group;
        }
        answers.remove(&place);
        if !answers.values().any(|other| other.text == answer.text) {
            unlink(&mut self.by_text, &answer.text, &group);
        }
        if answers.is_empty() {
            self.answers.remove(&group);
        }
        group
    }

    /// Takes the new value of an example and gives the old one where it is no longer eligible.
    fn replace(&mut self, identity: &Identity, eligible: Option<Eligible>) -> Option<Held> {
        let old = self.held.remove(identity);
        if let Some(old) = &old {
            for item in items_of(&old.eligible) {
                unlink(&mut self.by_item, item, identity);
            }
            unlink(&mut self.by_group, &old.group(), identity);
        }
        let Some(eligible) = eligible else { return old };
        for item in items_of(&eligible) {
            self.by_item.entry(item.clone()).or_default().insert(identity.clone());
        }
        let (emitted, wanted) = old.map_or((None, None), |old| (old.emitted, old.wanted));
        let held = Held { eligible, emitted, wanted };
        self.by_group.entry(held.group()).or_default().insert(identity.clone());
        self.held.insert(identity.clone(), held);
        None
    }

    fn emit(&mut self, identity: &Identity, out: &mut Changes<Output>) {
        let Some(held) = self.held.get(identity) else { return };
        let own = self
            .answers
            .get(&held.group())
            .and_then(|answers| answers.values().find(|answer| answer.key == held.eligible.key));
        let wanted = own.map(|answer| answer.text);
        let demonstration = self.demonstration(held, own).map(Arc::new);
        let Some(held) = self.held.get_mut(identity) else { return };
        if wanted != held.wanted {
            out.extend(held.wanted.map(|text| (Output::Wanted(text), -1)));
            out.extend(wanted.map(|text| (Output::Wanted(text), 1)));
            held.wanted = wanted;
        }
        if demonstration != held.emitted {
            out.extend(held.emitted.take().map(|old| (Output::Demonstration(old), -1)));
            out.extend(demonstration.clone().map(|new| (Output::Demonstration(new), 1)));
            held.emitted = demonstration;
        }
    }

    fn demonstration(&self, held: &Held, own: Option<&Arc<Answer>>) -> Option<Demonstration> {
        let example = &held.eligible.example;
        let item_state = self.items.get(&example.item)?.clone();
        let width = item_state.vector.as_ref()?.vector.len();
        let own = own.filter(|answer| self.vectors.contains_key(&answer.text));
        let answer = match own {
            Some(answer) => answer,
            None => self.fallback(held)?,
        };
        let (history, text) = states_of(&example.history, &self.items);
        Some(Demonstration {
            label_time: example.label_time,
            id: point_id(&example.identity, &answer.prompt_version),
            identity: example.identity.clone(),
            item: example.item.clone(),
            item_state,
            positive: example.verdict == Verdict::Positive,
            history,
            mean: text.mean(width),
            text,
            cot: self.vectors.get(&answer.text)?.clone(),
            cot_key: answer.key,
            fresh: own.is_some(),
            cot_created_at: answer.created_at,
        })
    }

    /// The usable answer of the versions in force with the greatest offset.
    fn fallback(&self, held: &Held) -> Option<&Arc<Answer>> {
        let answers = self.answers.get(&held.group())?;
        answers.values().rev().find(|answer| {
            self.vectors.contains_key(&answer.text)
                && *answer.prompt_version == *self.actives.prompt_version
                && *answer.llm_model == *self.actives.llm_model
        })
    }
}

/// The items whose state a demonstration depends on.
fn items_of(eligible: &Eligible) -> impl Iterator<Item = &Id> {
    std::iter::once(&eligible.example.item).chain(eligible.example.history.iter().map(|entry| &entry.item))
}

/// The operator `demonstrations`. `items` and `vectors` are broadcast.
pub fn demonstrations<'s>(
    eligible: VecCollection<'s, Epoch, Eligible, isize>,
    answers: VecCollection<'s, Epoch, Arc<Answer>, isize>,
    items: VecCollection<'s, Epoch, (u64, (Id, Item)), isize>,
    vectors: VecCollection<'s, Epoch, (u64, (Digest, Quantised)), isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Demonstrations::default();
    let input = eligible
        .map(Input::Eligible)
        .concat(answers.map(Input::Answer))
        .concat(items.map(|(worker, item)| Input::Item(worker, item)))
        .concat(vectors.map(|(worker, known)| Input::Vector(worker, known)))
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Eligible(eligible) => route(&eligible.example.identity.user),
        Input::Answer(answer) => route(&answer.user),
        Input::Item(worker, _) | Input::Vector(worker, _) | Input::Clock(worker, _) => *worker,
    };
    staged(input, "demonstrations", by, move |_, changes, out| state.step(changes, out))
}

/// What [`newest`] gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Pooled {
    /// A demonstration that is kept.
    Kept(Arc<Demonstration>),
    /// One that is left out.
    LeftOut,
}

impl Pooled {
    /// The demonstration that is kept.
    pub fn kept(self) -> Option<Arc<Demonstration>> {
        match self {
            Pooled::Kept(demonstration) => Some(demonstration),
            Pooled::LeftOut => None,
        }
    }

    /// One that is left out.
    pub fn left_out(self) -> Option<()> {
        (self == Pooled::LeftOut).then_some(())
    }
}

/// The operator `newest`: of all demonstrations the `limit` newest by (label_time, point id). One
/// worker decides, since the rule is global.
pub fn newest<'s>(
    demonstrations: VecCollection<'s, Epoch, Arc<Demonstration>, isize>,
    limit: usize,
) -> VecCollection<'s, Epoch, Pooled, isize> {
    let mut state = Newest { limit, kept: BTreeSet::new(), surplus: BTreeSet::new() };
    staged(demonstrations, "newest", |_| 0, move |_, changes, out| state.step(changes, out))
}

/// The state of [`newest`]: what is kept and what is over the limit. Every kept one is newer than
/// every surplus one.
#[derive(Debug)]
struct Newest {
    limit: usize,
    kept: BTreeSet<Arc<Demonstration>>,
    surplus: BTreeSet<Arc<Demonstration>>,
}

impl Newest {
    fn step(&mut self, changes: Changes<Arc<Demonstration>>, out: &mut Changes<Pooled>) {
        let before = self.surplus.len() as isize;
        let mut net: BTreeMap<Arc<Demonstration>, isize> = BTreeMap::new();
        for (demonstration, diff) in changes {
            if diff < 0 {
                if self.kept.remove(&demonstration) {
                    *net.entry(demonstration).or_default() -= 1;
                } else {
                    self.surplus.remove(&demonstration);
                }
            } else {
                self.surplus.insert(demonstration);
            }
        }
        // All new ones wait in the surplus: raise the newest, then let the oldest kept go.
        while let Some(candidate) = self.surplus.last()
            && (self.kept.len() < self.limit || self.kept.first().is_some_and(|oldest| oldest < candidate))
        {
            let Some(raised) = self.surplus.pop_last() else { break };
            *net.entry(raised.clone()).or_default() += 1;
            self.kept.insert(raised);
            if self.kept.len() > self.limit
                && let Some(oldest) = self.kept.pop_first()
            {
                *net.entry(oldest.clone()).or_default() -= 1;
                self.surplus.insert(oldest);
            }
        }
        let net = net.into_iter().filter(|(_, diff)| *diff != 0);
        out.extend(net.map(|(demonstration, diff)| (Pooled::Kept(demonstration), diff)));
        let more = self.surplus.len() as isize - before;
        out.extend((more != 0).then_some((Pooled::LeftOut, more)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::catalog::ItemState;
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::vector::VectorSum;
    use uuid::Uuid;

    fn demonstration(label_time: i64) -> Arc<Demonstration> {
        let text = text_digest("t");
        Arc::new(Demonstration {
            label_time,
            id: Uuid::from_u128(label_time as u128),
            identity: Identity { user: "u".into(), event_time: label_time, event_id: "e".into() },
            item: "i".into(),
            item_state: Arc::new(ItemState { text, creator: None, categories: vec![], vector: None }),
            positive: true,
            history: vec![],
            text: VectorSum::default(),
            mean: vec![0].into(),
            cot: vec![0].into(),
            cot_key: text,
            fresh: true,
            cot_created_at: 0,
        })
    }

    /// What is kept, by label time, and how many are left out, after each of these epochs.
    fn after(limit: usize, epochs: &[&[(i64, isize)]]) -> Vec<(Vec<i64>, isize)> {
        let mut state = Newest { limit, kept: BTreeSet::new(), surplus: BTreeSet::new() };
        let (mut kept, mut left_out) = (BTreeSet::new(), 0);
        let step = |changes: &&[(i64, isize)]| {
            let changes = changes.iter().map(|(time, diff)| (demonstration(*time), *diff)).collect();
            let mut out = Changes::new();
            state.step(changes, &mut out);
            for (pooled, diff) in out {
                match pooled {
                    Pooled::Kept(c) if diff == 1 => assert!(kept.insert(c.label_time)),
                    Pooled::Kept(c) => assert!(diff == -1 && kept.remove(&c.label_time)),
                    Pooled::LeftOut => left_out += diff,
                }
            }
            (kept.iter().copied().collect(), left_out)
        };
        epochs.iter().map(step).collect()
    }

    #[test]
    fn the_newest_are_kept_up_to_the_limit_and_the_rest_is_counted() {
        let come: &[(i64, isize)] = &[(2, 1), (1, 1), (3, 1)];
        assert_eq!(after(4, &[come]), [(vec![1, 2, 3], 0)], "one under");
        assert_eq!(after(3, &[come]), [(vec![1, 2, 3], 0)], "at it");
        assert_eq!(after(2, &[come]), [(vec![2, 3], 1)], "one over");
        assert_eq!(after(0, &[come]), [(vec![], 3)], "none");
        // At the limit, one comes as another goes; then one goes that was left out; then a kept one.
        let epochs: &[&[(i64, isize)]] = &[come, &[(4, 1), (1, -1)], &[(5, 1)], &[(2, -1)], &[(5, -1)]];
        let stand =
            [(vec![1, 2, 3], 0), (vec![2, 3, 4], 0), (vec![3, 4, 5], 1), (vec![3, 4, 5], 0), (vec![3, 4], 0)];
        assert_eq!(after(3, epochs), stand);
        // One that goes makes room for the newest of those left out.
        let epochs: &[&[(i64, isize)]] = &[&[(1, 1), (2, 1), (3, 1), (4, 1)], &[(4, -1)], &[(4, 1), (3, -1)]];
        assert_eq!(after(2, epochs), [(vec![3, 4], 2), (vec![2, 3], 1), (vec![2, 4], 1)]);
    }
}
