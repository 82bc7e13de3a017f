//! The examples that may be asked, in the order of asking, and what a prompt is made of for each.
//!
//! **Which**: samples of the training part with a history and an item of which a text is known.
//!
//! **Order**: first those that a job with the default strides selects (one in ten, by the example's hash), by
//! that hash; then all others by it. The hash has nothing to do with time, user, item or label, so the first
//! N examples are a fair sample for any N, and the same ones whenever and wherever they are asked. Those of
//! a larger N hold those of a smaller one.
//!
//! **Memory**: 4 B a training sample; 36 B while the order is made.

use crate::ranking::dataset::Prepared;
use ictflow_operators::eligible::selected;
use ictflow_operators::ranking::histories::{example, item_state};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRequest, PromptEntry, PromptView};
use ictflow_schemas::framing::{Digest, text_digest};
use ictflow_schemas::history::Label;
use ictflow_schemas::item::ItemText;

/// The examples of a data set in the order of asking.
#[derive(Clone, Debug)]
pub struct Examples<'p> {
    prepared: &'p Prepared,
    semantics: Semantics,
    /// Places in the training part.
    order: Vec<u32>,
}

impl<'p> Examples<'p> {
    /// The examples of a data set.
    pub fn of(prepared: &'p Prepared) -> Self {
        let semantics = Semantics::default();
        let mut places: Vec<(bool, Digest, u32)> = Vec::new();
        for (place, &sample) in (0..).zip(&prepared.split.train) {
            let example = example(&prepared.data, &prepared.histories, sample);
            let known = !prepared.data.catalog().text(sample.item).is_empty();
            if known && !example.history.is_empty() {
                places.push((!selected(&example, &semantics), example.identity.digest(), place));
            }
        }
        places.sort_unstable();
        let order = places.into_iter().map(|(_, _, place)| place).collect();
        Examples { prepared, semantics, order }
    }

    /// The data set.
    pub fn prepared(&self) -> &'p Prepared {
        self.prepared
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Their places in the training part, in the order of asking.
    pub fn places(&self) -> &[u32] {
        &self.order
    }

    /// What is asked of the training sample at a place. With `label_free` no decision is stated, and none is in
    /// the content key.
    pub fn view(&self, place: u32, label_free: bool) -> PromptView {
        let sample = self.prepared.split.train[place as usize];
        let data = &self.prepared.data;
        let example = example(data, &self.prepared.histories, sample);
        // Only items with a record are asked.
        let text = item_state(data, sample.item).map_or_else(|| text_digest(""), |state| state.text);
        let decision = if label_free { Label::None } else { example.verdict.decision() };
        let length = self.semantics.prompt_history;
        PromptView::new(example.identity.user, example.item, text, decision, &example.history, length)
    }

    /// The request of a view, with the texts that the data set has.
    pub fn request(&self, key: Digest, view: &PromptView) -> CotRequest {
        let data = &self.prepared.data;
        let text = |item: &str| {
            let item = data.items().find(item).filter(|&item| data.catalog().exists(item));
            item.map(|item| ItemText::parse(data.catalog().text(item)))
        };
        CotRequest {
            key,
            item: text(&view.item).unwrap_or_default(),
            decision: view.decision,
            history: view
                .history
                .iter()
                .map(|(item, kind, label)| PromptEntry {
                    item: text(item),
                    kind: kind.to_string(),
                    label: *label,
                })
                .collect(),
        }
    }
}
