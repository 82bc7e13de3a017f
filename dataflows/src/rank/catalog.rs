//! What a ranker reads of items: creator, categories, and one text vector.
//!
//! **Computes** what the dataflow's catalog does: of each item whose newest readable record isn't a tombstone its
//! creator and categories, and the vector of the newest text, among those since the item's last tombstone, that
//! has one. So an edit keeps the vector before it until the new text is embedded.
//!
//! **Embeddings** are kept for texts of items only; the log also has those of CoTs, which are many more. So the
//! log is read from its beginning where items name texts that weren't asked for before ([`Catalog::restarts`]),
//! and on from there while one of them has no answer ([`Catalog::waits`]).
//!
//! **Memory**: about 250 B an item, and 2 B a component of each of its texts since its last tombstone.

use ictflow_operators::accept;
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::framing::{Digest, text_digest, unframe};
use ictflow_schemas::item::normalise;
use ictflow_schemas::topic::Record;
use ictflow_schemas::vector::{Quantised, quantise};
use ictflow_schemas::wire::{Format, Wire};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Characters of a title that are kept: it is for people.
const TITLE: usize = 60;

/// What is known of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The title, normalised and cut; empty where it has none.
    pub title: Box<str>,
    /// The normalised creator.
    pub creator: Option<Id>,
    /// The normalised categories, each once.
    pub categories: Box<[Id]>,
    /// Digests of its texts since the last tombstone, newest first, each once.
    texts: Vec<Digest>,
}

/// The view of items and of their texts' vectors.
#[derive(Debug)]
pub struct Catalog {
    format: Format,
    semantics: Arc<Semantics>,
    /// The encoder and the width of its vectors; `None` where no texts are read.
    encoder: Option<(String, usize)>,
    items: HashMap<Id, Facts>,
    /// How many items list a text.
    listed: HashMap<Digest, usize>,
    vectors: HashMap<Digest, Quantised>,
    failed: HashSet<Digest>,
    /// Listed texts without an answer.
    pending: HashSet<Digest>,
    /// Whether some of them weren't asked for before.
    new_ones: bool,
}

impl Catalog {
    /// An empty catalog. Values of `items` have this format; texts are read where there is an encoder.
    pub fn new(format: Format, semantics: Arc<Semantics>, encoder: Option<(String, usize)>) -> Self {
        Catalog {
            format,
            semantics,
            encoder,
            items: HashMap::new(),
            listed: HashMap::new(),
            vectors: HashMap::new(),
            failed: HashSet::new(),
            pending: HashSet::new(),
            new_ones: false,
        }
    }

    /// Takes a record of `items`; one that a job would refuse changes nothing. True where something a ranker
    /// reads changed.
    pub fn take_item(&mut self, record: &Record) -> bool {
        let Ok((id, item)) = accept::item(record, self.format, &self.semantics) else { return false };
        let Some(item) = item else {
            let Some(facts) = self.items.remove(&id) else { return false };
            facts.texts.iter().for_each(|text| self.unlist(text));
            return true;
        };
        let title = normalise(item.title.as_deref().unwrap_or_default());
        let mut facts = Facts {
            title: title.chars().take(TITLE).collect::<String>().into(),
            creator: item.creator_id().map(Id::from),
            categories: item.category_ids().into_iter().map(Id::from).collect(),
            texts: self.items.get(&id).map(|facts| facts.texts.clone()).unwrap_or_default(),
        };
        if self.encoder.is_some() {
            let text = text_digest(&item.text());
            let before = facts.texts.len();
            facts.texts.retain(|other| *other != text);
            if facts.texts.len() == before {
                self.list(text);
            }
            facts.texts.insert(0, text);
        }
        let before = self.items.insert(id.clone(), facts);
        before.as_ref() != self.items.get(&id)
    }

    /// Takes a record of `embeddings`; true where a text of an item gained or lost its vector.
    pub fn take_embedding(&mut self, record: &Record) -> bool {
        let Some((encoder, width)) = &self.encoder else { return false };
        let parts = record.key.as_deref().and_then(unframe).unwrap_or_default();
        let [of, text] = parts[..] else { return false };
        let Ok(text) = std::str::from_utf8(text) else { return false };
        let (failure, hex) = text.strip_prefix("failed:").map_or((false, text), |hex| (true, hex));
        let Some(digest) = Digest::from_hex(hex).filter(|digest| self.listed.contains_key(digest)) else {
            return false;
        };
        if of != encoder.as_bytes() {
            return false;
        }
        let value = record.value.as_deref().and_then(|value| Embedding::decode(value).ok());
        let fits =
            |value: &Embedding| value.status == EmbeddingStatus::Failed || value.vector.len() == *width;
        let value = value.filter(|value| Some(value.key()) == record.key && fits(value));
        // A record that isn't usable counts as a tombstone of its key.
        let vector = value.as_ref().and_then(Embedding::usable).map(|(_, vector)| vector.map(quantise));
        let before = self.vectors.get(&digest).cloned();
        match (failure, vector) {
            (false, Some(Some(vector))) => drop(self.vectors.insert(digest, vector)),
            (false, _) => drop(self.vectors.remove(&digest)),
            (true, Some(_)) => drop(self.failed.insert(digest)),
            (true, None) => drop(self.failed.remove(&digest)),
        }
        let now = self.vectors.get(&digest);
        if now.is_some() || self.failed.contains(&digest) {
            self.pending.remove(&digest);
        } else {
            self.pending.insert(digest);
        }
        before.as_ref() != now
    }

    fn list(&mut self, text: Digest) {
        let count = self.listed.entry(text).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.pending.insert(text);
            self.new_ones = true;
        }
    }

    fn unlist(&mut self, text: &Digest) {
        let Some(count) = self.listed.get_mut(text) else { return };
        *count -= 1;
        if *count == 0 {
            self.listed.remove(text);
            self.vectors.remove(text);
            self.failed.remove(text);
            self.pending.remove(text);
        }
    }

    /// Whether the embeddings must be read from their beginning: once after items named new texts.
    pub fn restarts(&mut self) -> bool {
        std::mem::take(&mut self.new_ones) && self.waits()
    }

    /// Whether a text of an item has no answer yet.
    pub fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What is known of an item; `None` where it doesn't exist.
    pub fn get(&self, item: &str) -> Option<&Facts> {
        self.items.get(item)
    }

    /// An item's text vector.
    pub fn text(&self, item: &str) -> Option<&Quantised> {
        self.get(item)?.texts.iter().find_map(|text| self.vectors.get(text))
    }

    /// How many items exist.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ictflow_schemas::item::Item;

    /// A record of an item; `None` deletes it.
    pub fn item(id: &str, item: Option<&Item>) -> Record {
        Record {
            partition: 0,
            offset: 0,
            timestamp: None,
            key: Some(id.as_bytes().to_vec()),
            value: item.map(Wire::encode),
            framed: None,
            headers: vec![],
        }
    }

    /// An embedding by the encoder `e`, of width 2; `None` is a failure.
    pub fn embedding(text: &str, vector: Option<[f32; 2]>) -> Record {
        let value = Embedding {
            encoder: "e".to_owned(),
            digest: text_digest(text).hex(),
            status: if vector.is_some() { EmbeddingStatus::Ok } else { EmbeddingStatus::Failed },
            vector: vector.map(|vector| vector.to_vec()).unwrap_or_default(),
        };
        Record { key: Some(value.key()), value: Some(value.encode()), ..item("", None) }
    }

    /// A catalog that reads texts of the encoder `e`.
    pub fn catalog() -> Catalog {
        Catalog::new(Format::Avro, Arc::new(Semantics::default()), Some(("e".to_owned(), 2)))
    }

    /// An item of this title.
    pub fn titled(title: &str) -> Item {
        Item { title: Some(title.to_owned()), ..Item::default() }
    }

    const X: [f32; 2] = [1.0, 0.0];
    const Y: [f32; 2] = [0.0, 1.0];

    #[test]
    fn an_edit_keeps_the_vector_before_it_until_the_new_text_has_one() {
        let mut catalog = catalog();
        let text = |title: &str| titled(title).text();
        assert!(catalog.take_item(&item("i", Some(&titled("one")))));
        assert!(catalog.restarts() && !catalog.restarts() && catalog.waits());
        assert!(!catalog.take_embedding(&embedding("another text", Some(X))));
        assert!(catalog.take_embedding(&embedding(&text("one"), Some(X))));
        assert!(!catalog.waits() && !catalog.take_embedding(&embedding(&text("one"), Some(X))));
        assert!(catalog.take_item(&item("i", Some(&titled("two")))));
        assert_eq!(catalog.text("i"), Some(&quantise(&X)));
        assert!(catalog.restarts());
        assert!(catalog.take_embedding(&embedding(&text("two"), Some(Y))));
        assert_eq!(catalog.text("i"), Some(&quantise(&Y)));
        // A text that comes back is the newest again, and its vector is still known.
        assert!(catalog.take_item(&item("i", Some(&titled("one")))));
        assert!(!catalog.restarts());
        assert_eq!(catalog.text("i"), Some(&quantise(&X)));
        assert!(catalog.take_item(&item("i", None)) && catalog.is_empty());
        assert!(catalog.vectors.is_empty() && catalog.listed.is_empty() && !catalog.waits());
    }

    #[test]
    fn what_a_ranker_does_not_read_changes_nothing() {
        let mut catalog = catalog();
        let mut film = titled("one");
        film.categories = vec!["Drama".to_owned(), " drama".to_owned(), "Drama".to_owned()];
        film.creator = Some(" A\tB ".to_owned());
        assert!(catalog.take_item(&item("i", Some(&film))));
        film.attributes.insert("price".to_owned(), "1".to_owned());
        assert!(!catalog.take_item(&item("i", Some(&film))));
        assert!(!catalog.take_item(&Record { value: Some(vec![0]), ..item("i", None) }));
        let facts = catalog.get("i").unwrap();
        assert_eq!((&*facts.title, facts.creator.as_deref()), ("one", Some("A B")));
        assert_eq!(*facts.categories, [Id::from("Drama"), Id::from("drama")]);
        assert!(!catalog.take_item(&item("other", None)));
    }

    #[test]
    fn failures_of_other_encoders_and_widths_are_no_vectors() {
        let mut catalog = catalog();
        catalog.take_item(&item("i", Some(&titled("one"))));
        let text = titled("one").text();
        let mut wide = Embedding {
            encoder: "e".to_owned(),
            digest: text_digest(&text).hex(),
            status: EmbeddingStatus::Ok,
            vector: vec![1.0, 0.0, 0.0],
        };
        let as_record = |value: &Embedding| Record {
            key: Some(value.key()),
            value: Some(value.encode()),
            ..item("", None)
        };
        assert!(!catalog.take_embedding(&as_record(&wide)));
        wide.encoder = "f".to_owned();
        wide.vector.pop();
        assert!(!catalog.take_embedding(&as_record(&wide)) && catalog.waits());
        assert!(!catalog.take_embedding(&embedding(&text, None)));
        assert!(!catalog.waits() && catalog.text("i").is_none(), "it was answered");
        assert!(catalog.take_embedding(&embedding(&text, Some(X))));
        let gone = Record { value: None, ..embedding(&text, Some(X)) };
        assert!(catalog.take_embedding(&gone) && catalog.text("i").is_none());
    }
}
