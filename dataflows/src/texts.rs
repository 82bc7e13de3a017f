//! The texts beside the dataflow: content-addressed, rebuilt from `items` and `cot` at start.
//!
//! Inside the dataflow there are digests only. A text is read when a call is made with it.
//!
//! Memory: the newest text of every item, once a distinct text, and every CoT text that was read.

use ictflow_schemas::Id;
use ictflow_schemas::framing::{Digest, text_digest};
use std::collections::HashMap;
use std::sync::Arc;

/// Texts by digest, and each item's newest.
#[derive(Debug, Default)]
pub struct Texts {
    /// The text with the number of items whose newest it is.
    items_by_text: HashMap<Digest, (Arc<str>, usize)>,
    items: HashMap<Id, Digest>,
    cots: HashMap<Digest, Arc<str>>,
}

impl Texts {
    /// Takes an item's newest text, `None` where it is deleted, and gives the digest.
    pub fn set_item(&mut self, item: &Id, text: Option<&str>) -> Option<Digest> {
        let old = self.items.remove(item);
        let new = text.map(|text| {
            let digest = text_digest(text);
            self.items_by_text.entry(digest).or_insert_with(|| (text.into(), 0)).1 += 1;
            self.items.insert(item.clone(), digest);
            digest
        });
        if let Some(old) = old
            && let Some((_, users)) = self.items_by_text.get_mut(&old)
        {
            *users -= 1;
            if *users == 0 {
                self.items_by_text.remove(&old);
            }
        }
        new
    }

    /// Takes the text of a CoT and gives the digest.
    pub fn add_cot(&mut self, text: &str) -> Digest {
        let digest = text_digest(text);
        self.cots.entry(digest).or_insert_with(|| text.into());
        digest
    }

    /// Whether it is the newest text of an item.
    pub fn is_of_item(&self, digest: &Digest) -> bool {
        self.items_by_text.contains_key(digest)
    }

    /// The newest text of an item.
    pub fn of_item(&self, item: &str) -> Option<&Arc<str>> {
        self.items.get(item).and_then(|digest| self.get(digest))
    }

    /// A text of an item or a CoT.
    pub fn get(&self, digest: &Digest) -> Option<&Arc<str>> {
        self.items_by_text.get(digest).map(|(text, _)| text).or_else(|| self.cots.get(digest))
    }

    /// How many items exist.
    pub fn items(&self) -> usize {
        self.items.len()
    }
}
