//! The catalog: what is known of each item, and which texts want a vector.
//!
//! **Computes**, for each item whose newest record isn't a tombstone: the newest record's text digest,
//! creator and categories; and the vector of the newest text, among those since the item's last
//! tombstone, that has one.
//!
//! **Ties**: records of one item are taken in (partition, offset) order, also within an epoch, so the
//! result doesn't depend on the cut into epochs. A record that changes attributes only changes
//! nothing.
//!
//! **Kept**: every text since the last tombstone, once, also behind one that has a vector: a standing
//! embedding may be tombstoned or become unusable, and then the next older text serves, as it would in a
//! recomputation from the logs.
//!
//! **Memory**: about 150 B an item; for each distinct text that an item had since its last tombstone 32 B,
//! and about 150 B for finding the item by it; one shared vector a known text. So it grows with edits, as
//! the log does before compaction, and a restart over a compacted log lets go of what compaction took.

use crate::index::{set, unlink};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::{Item, ItemState, ItemVector};
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::Entry;
use ictflow_schemas::vector::{Quantised, VectorSum};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What a readable record of `items` says, without its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemFacts {
    /// The digest of the text.
    pub text: Digest,
    /// The normalised creator.
    pub creator: Option<Id>,
    /// The normalised categories.
    pub categories: Vec<Id>,
}

/// A readable record of `items`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ItemChange {
    /// The item.
    pub item: Id,
    /// (partition, offset): the order of records.
    pub position: (u32, i64),
    /// The facts; `None` deletes.
    pub facts: Option<ItemFacts>,
}

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A record of `items`.
    Item(ItemChange),
    /// A text has (or, retracted, no longer has) this vector; for the worker named.
    Vector(u64, (Digest, Quantised)),
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// An existing item's state.
    Item(Id, Item),
    /// A text that wants a vector: an existing item's newest.
    Wanted(Digest),
}

impl Output {
    /// The item and its state.
    pub fn item(self) -> Option<(Id, Item)> {
        match self {
            Output::Item(id, item) => Some((id, item)),
            _ => None,
        }
    }

    /// The text that wants a vector.
    pub fn wanted(self) -> Option<Digest> {
        match self {
            Output::Wanted(text) => Some(text),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    facts: Option<ItemFacts>,
    /// Digests of all texts since the last tombstone, newest first, each once.
    texts: Vec<Digest>,
    emitted: Option<Item>,
}

/// The state of the operator.
#[derive(Debug, Default)]
pub struct Catalog {
    items: HashMap<Id, Known>,
    vectors: HashMap<Digest, Quantised>,
    /// By text, the items that list it.
    listed: HashMap<Digest, HashSet<Id>>,
}

impl Catalog {
    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Output>) {
        let mut records = Vec::new();
        let mut touched = BTreeSet::new();
        for (input, diff) in changes {
            match input {
                Input::Item(change) => records.push(change),
                Input::Vector(_, (text, vector)) => {
                    set(&mut self.vectors, text, vector, diff);
                    touched.extend(self.listed.get(&text).into_iter().flatten().cloned());
                }
            }
        }
        records.sort();
        for record in records {
            touched.insert(record.item.clone());
            self.record(record);
        }
        for id in touched {
            self.emit(id, out);
        }
    }

    fn record(&mut self, record: ItemChange) {
        let entry = self.items.entry(record.item.clone()).or_default();
        match &record.facts {
            Some(facts) => {
                // A text that comes back is the newest again.
                entry.texts.retain(|text| *text != facts.text);
                entry.texts.insert(0, facts.text);
                self.listed.entry(facts.text).or_default().insert(record.item);
            }
            None => {
                for text in entry.texts.drain(..) {
                    unlink(&mut self.listed, &text, &record.item);
                }
            }
        }
        entry.facts = record.facts;
    }

    fn emit(&mut self, id: Id, out: &mut Changes<Output>) {
        let Some(entry) = self.items.get_mut(&id) else { return };
        let first = entry.texts.iter().position(|text| self.vectors.contains_key(text));
        let state = entry.facts.as_ref().map(|facts| {
            Arc::new(ItemState {
                text: facts.text,
                creator: facts.creator.clone(),
                categories: facts.categories.clone(),
                vector: first.map(|i| ItemVector {
                    text: entry.texts[i],
                    vector: self.vectors[&entry.texts[i]].clone(),
                }),
            })
        });
        if state != entry.emitted {
            if let Some(old) = entry.emitted.take() {
                out.push((Output::Wanted(old.text), -1));
                out.push((Output::Item(id.clone(), old), -1));
            }
            if let Some(new) = &state {
                out.push((Output::Wanted(new.text), 1));
                out.push((Output::Item(id.clone(), new.clone()), 1));
            }
            entry.emitted = state;
        }
        if entry.facts.is_none() {
            self.items.remove(&id);
        }
    }
}

/// A history's items with the states of those that exist, in its order, and the exact sum of the
/// vectors of those that have one, repeats included.
pub fn states_of(history: &[Entry], items: &HashMap<Id, Item>) -> (Vec<(Id, Option<Item>)>, VectorSum) {
    let states: Vec<(Id, Option<Item>)> =
        history.iter().map(|entry| (entry.item.clone(), items.get(&entry.item).cloned())).collect();
    let vectors = states.iter().filter_map(|(_, item)| Some(&*item.as_ref()?.vector.as_ref()?.vector));
    let sum = VectorSum::over(vectors);
    (states, sum)
}

/// The operator `catalog`. `vectors` are broadcast.
pub fn catalog<'s>(
    items: VecCollection<'s, Epoch, ItemChange, isize>,
    vectors: VecCollection<'s, Epoch, (u64, (Digest, Quantised)), isize>,
) -> VecCollection<'s, Epoch, Output, isize> {
    let mut state = Catalog::default();
    let input = items.map(Input::Item).concat(vectors.map(|(worker, known)| Input::Vector(worker, known)));
    let by = |input: &Input| match input {
        Input::Item(change) => route(&change.item),
        Input::Vector(worker, _) => *worker,
    };
    staged(input, "catalog", by, move |_, changes, out| state.step(changes, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::framing::text_digest;
    use std::collections::BTreeMap;

    fn record(offset: i64, text: Option<&str>) -> Input {
        let facts = text.map(|text| ItemFacts { text: text_digest(text), creator: None, categories: vec![] });
        Input::Item(ItemChange { item: "i".into(), position: (0, offset), facts })
    }

    fn vector(text: &str) -> Input {
        Input::Vector(0, (text_digest(text), vec![text.len() as i16].into()))
    }

    /// The item as the changes of several epochs leave it: the text of its vector, or none; and the texts
    /// that want a vector.
    fn after(epochs: &[Vec<(Input, isize)>]) -> (Option<Option<Digest>>, Vec<Digest>) {
        let (mut catalog, mut out) = (Catalog::default(), Changes::new());
        for changes in epochs {
            catalog.step(changes.clone(), &mut out);
        }
        let mut net: BTreeMap<Output, isize> = BTreeMap::new();
        for (output, diff) in out {
            *net.entry(output).or_default() += diff;
        }
        net.retain(|_, diff| *diff != 0);
        assert!(net.values().all(|diff| *diff == 1), "{net:?}");
        let item = net.keys().find_map(|output| output.clone().item());
        let wanted = net.keys().filter_map(|output| output.clone().wanted()).collect();
        (item.map(|(_, item)| item.vector.as_ref().map(|vector| vector.text)), wanted)
    }

    #[test]
    fn an_older_text_serves_again_when_a_newer_ones_vector_goes() {
        let [one, two, three] = ["one", "to two", "and three"];
        let edits = |offset| {
            vec![
                (record(offset, Some(one)), 1),
                (record(offset + 1, Some(two)), 1),
                (record(offset + 2, Some(three)), 1),
            ]
        };
        let known = |texts: &[&str], diff| texts.iter().map(|text| (vector(text), diff)).collect::<Vec<_>>();
        let serves = |epochs: &[Vec<(Input, isize)>]| after(epochs).0;
        let digest = text_digest;
        let all = [edits(0), known(&[one, two, three], 1)];
        assert_eq!(serves(&all), Some(Some(digest(three))));
        let [edited, embedded] = all;
        for (gone, left) in
            [(vec![three], Some(two)), (vec![three, two], Some(one)), (vec![three, two, one], None)]
        {
            // At once, one after the other, and as a recomputation sees it, where they never stood.
            let together = [edited.clone(), embedded.clone(), known(&gone, -1)];
            let mut apart = vec![edited.clone(), embedded.clone()];
            apart.extend(gone.iter().map(|text| known(&[text], -1)));
            let stand: Vec<&str> =
                [one, two, three].into_iter().filter(|text| !gone.contains(text)).collect();
            let fresh = [edited.clone(), known(&stand, 1)];
            for epochs in [&together[..], &apart, &fresh] {
                let (vector, wanted) = after(epochs);
                assert_eq!(vector, Some(left.map(digest)), "{gone:?}");
                assert_eq!(wanted, [digest(three)], "only the newest text wants a vector");
            }
        }
        // One that comes back serves again; a text that comes back is the newest again.
        let back = [edited.clone(), embedded.clone(), known(&[three], -1), known(&[three], 1)];
        assert_eq!(serves(&back), Some(Some(digest(three))));
        let again = [edited.clone(), embedded.clone(), vec![(record(9, Some(one)), 1)], known(&[one], -1)];
        assert_eq!(serves(&again), Some(Some(digest(three))));
    }

    #[test]
    fn no_text_from_before_a_tombstone_serves() {
        let known = |text: &str, diff| vec![(vector(text), diff)];
        let reborn = vec![(record(1, None), 1), (record(2, Some("new")), 1)];
        let epochs = [vec![(record(0, Some("old")), 1)], known("old", 1), reborn, known("new", 1)];
        assert_eq!(after(&epochs).0, Some(Some(text_digest("new"))));
        let mut gone = epochs.to_vec();
        gone.push(known("new", -1));
        assert_eq!(after(&gone).0, Some(None));
        gone.push(vec![(record(3, None), 1)]);
        assert_eq!(after(&gone), (None, vec![]));
    }
}
