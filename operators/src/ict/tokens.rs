//! Tokens: what the decoder reads of a sample, a CoT and a label.
//!
//! A sample's 9 d values, in this order: E_user(user); E_item(item); G(item vector);
//! E_creator(creator); mean of E_category over the item's categories; mean of E_item over *all*
//! history entries; G(mean of the history's vectors); mean of E_creator over the entries whose item
//! exists and has one; mean of E_category over all categories of all entries whose item exists.
//! x = H(these). G maps a vector of the encoder's width to d, H maps 9 d to d; both have one hidden
//! layer with ReLU. A mean is a plain sum in the order of the entries, divided by the count; zeros
//! where there is nothing to count. For a demonstration the same, with its own user, item and
//! history.
//!
//! **Parts.** The first layer of H is linear, so its sum is split once and for all: the user's
//! blocks (0, 5, 6, 7, 8) with the bias, plus the item's blocks (1 to 4). A caller keeps the first
//! part per user and the second per item; a pair then costs one addition of 128 values and H's
//! second layer. [`Weights::sample_token`] goes the same way, so the bits never depend on what was
//! kept.

use super::decoder::{DemonstrationTokens, Prefix};
use super::kernel::{add, relu};
use super::shape::{FIELDS, ITEM_FIELDS, SAMPLE_HIDDEN, TEXT_HIDDEN, USER_FIELDS};
use super::weights::Weights;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::{Item, ItemState};
use ictflow_schemas::example::Verdict;
use ictflow_schemas::vector::{SCALE, VectorSum};
use std::borrow::Borrow;

const _: () = assert!(USER_FIELDS.len() + ITEM_FIELDS.len() == FIELDS);

/// A user, an item and a history: a pair that wants a vector, or a demonstration.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The user's id.
    pub user: &'a str,
    /// The item's id.
    pub item_id: &'a str,
    /// The item's state. Where it has no vector, G reads zeros.
    pub item: &'a ItemState,
    /// The history, oldest first: each entry's item id, and its state where it exists now.
    pub history: &'a [(Id, Option<Item>)],
    /// The exact sum over the history's entries whose item exists and has a vector, repeats
    /// included.
    pub text: &'a VectorSum,
}

/// The table rows of an item as a history entry or as the item of a sample. Hashing its ids costs
/// more than using them, so keep this per item; it depends on the tables' sizes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemRows {
    item: u32,
    creator: Option<u32>,
    categories: Box<[u32]>,
}

/// What the first layer of H gets from a user and a history: 128 values.
#[derive(Clone, Debug, PartialEq)]
pub struct UserPart(Box<[f32]>);

/// What the first layer of H gets from an item: 128 values.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemPart(Box<[f32]>);

impl Weights {
    /// G: a text vector of the encoder's width as a token of width d. Where a vector has another
    /// width, components that are missing count as 0 and those beyond are not read; a job checks
    /// the encoder's width against the weights at start.
    pub fn text_token(&self, vector: &[f32]) -> Vec<f32> {
        let width = self.shape.text;
        let mut hidden = [0.0; TEXT_HIDDEN];
        if vector.len() == width {
            self.text[0].apply(vector, &mut hidden);
        } else {
            let mut fitted = vector.to_vec();
            fitted.resize(width, 0.0);
            self.text[0].apply(&fitted, &mut hidden);
        }
        relu(&mut hidden);
        let mut token = vec![0.0; self.shape.d];
        self.text[1].apply(&hidden, &mut token);
        token
    }

    /// c: the token of a CoT, from the quantised vector of its text.
    pub fn cot_token(&self, vector: &[i16]) -> Vec<f32> {
        self.text_token(&plain(vector))
    }

    /// y: the token of a label.
    ///
    /// # Panics
    /// With weights of the kind `attention`, as all that reads demonstrations.
    pub fn label_token(&self, positive: bool) -> &[f32] {
        let start = usize::from(positive) * self.shape.d;
        &self.decoder().0[start..start + self.shape.d]
    }

    /// The rows of an item, `None` for one that doesn't exist (now): then only its id counts.
    pub fn item_rows(&self, item_id: &str, item: Option<&ItemState>) -> ItemRows {
        ItemRows {
            item: self.item.row_of(item_id),
            creator: item.and_then(|i| i.creator.as_deref()).map(|c| self.creator.row_of(c)),
            categories: item
                .map(|i| i.categories.iter().map(|c| self.category.row_of(c)).collect())
                .unwrap_or_default(),
        }
    }

    /// What a user and a history give to a sample. `history` is oldest first; `text` as in
    /// [`Sample`].
    pub fn user_part<T: Borrow<ItemRows>>(&self, user: &str, history: &[T], text: &VectorSum) -> UserPart {
        let d = self.shape.d;
        let mut fields = vec![0.0; USER_FIELDS.len() * d];
        let mut blocks = fields.chunks_exact_mut(d);
        let mut block = |values: &[f32]| {
            if let Some(block) = blocks.next() {
                block.copy_from_slice(values);
            }
        };
        let rows = || history.iter().map(Borrow::borrow);
        block(self.user.row(self.user.row_of(user)));
        block(&mean(d, rows().map(|r| self.item.row(r.item))));
        block(&self.text_token(&text.mean_f32(self.shape.text)));
        block(&mean(d, rows().filter_map(|r| r.creator).map(|c| self.creator.row(c))));
        block(&mean(d, rows().flat_map(|r| r.categories.iter()).map(|c| self.category.row(*c))));
        let mut part = vec![0.0; SAMPLE_HIDDEN];
        self.sample_user.apply(&fields, &mut part);
        UserPart(part.into())
    }

    /// What an item gives to a sample: its rows (of an existing item) and its quantised vector.
    pub fn item_part(&self, rows: &ItemRows, vector: Option<&[i16]>) -> ItemPart {
        let mut part = vec![0.0; SAMPLE_HIDDEN];
        self.sample_item.apply(&self.item_fields(rows, vector), &mut part);
        ItemPart(part.into())
    }

    /// p: the item's blocks of a sample, [E_item; G(vector); E_creator; mean E_category], 4 d values.
    pub(super) fn item_fields(&self, rows: &ItemRows, vector: Option<&[i16]>) -> Vec<f32> {
        let d = self.shape.d;
        let text = match vector {
            Some(vector) => self.cot_token(vector),
            None => self.text_token(&vec![0.0; self.shape.text]),
        };
        let mut fields = Vec::with_capacity(ITEM_FIELDS.len() * d);
        fields.extend_from_slice(self.item.row(rows.item));
        fields.extend_from_slice(&text);
        fields.extend_from_slice(self.creator.row(rows.creator.unwrap_or(0)));
        fields.extend_from_slice(&mean(d, rows.categories.iter().map(|c| self.category.row(*c))));
        fields
    }

    /// x: the token of a sample, from its two parts.
    pub fn join(&self, user: &UserPart, item: &ItemPart) -> Vec<f32> {
        let mut hidden = [0.0; SAMPLE_HIDDEN];
        hidden.copy_from_slice(&user.0);
        add(&mut hidden, &item.0);
        relu(&mut hidden);
        let mut token = vec![0.0; self.shape.d];
        self.sample_out.apply(&hidden, &mut token);
        token
    }

    /// x: the token of a sample, computed whole. The same bits as [`Weights::join`] of its parts.
    pub fn sample_token(&self, sample: &Sample<'_>) -> Vec<f32> {
        let history: Vec<ItemRows> =
            sample.history.iter().map(|(id, item)| self.item_rows(id, item.as_deref())).collect();
        let user = self.user_part(sample.user, &history, sample.text);
        let rows = self.item_rows(sample.item_id, Some(sample.item));
        let vector = sample.item.vector.as_ref().map(|v| &*v.vector);
        self.join(&user, &self.item_part(&rows, vector))
    }

    /// The tokens (x, c, y) of a demonstration: its sample, the quantised vector of its CoT, its
    /// verdict.
    pub fn demonstration(&self, sample: &Sample<'_>, cot: &[i16], verdict: Verdict) -> DemonstrationTokens {
        let positive = verdict == Verdict::Positive;
        DemonstrationTokens::new(&self.sample_token(sample), &self.cot_token(cot), self.label_token(positive))
    }

    /// Keys and values of an ordered list of demonstrations (nearest last), for
    /// [`Weights::decode_after`].
    ///
    /// # Panics
    /// With more than [`MAX_DEMONSTRATIONS`](super::MAX_DEMONSTRATIONS), tokens of weights of
    /// another width, or weights of the kind `attention`.
    pub fn prefix<T: Borrow<DemonstrationTokens>>(&self, demonstrations: &[T]) -> Prefix {
        self.decoder().1.prefix(demonstrations)
    }

    /// The vector of a query token after demonstrations: d values.
    ///
    /// # Panics
    /// Where the token has another width than the weights, or the kind is `attention`.
    pub fn decode_after(&self, prefix: &Prefix, x_q: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.d];
        self.decoder().1.decode(&[(prefix, x_q)], &mut out);
        out
    }

    /// The vector of a query token with its demonstrations, k from 0 on.
    ///
    /// # Panics
    /// As [`Weights::prefix`] and [`Weights::decode_after`].
    pub fn decode<T: Borrow<DemonstrationTokens>>(&self, demonstrations: &[T], x_q: &[f32]) -> Vec<f32> {
        self.decode_after(&self.prefix(demonstrations), x_q)
    }

    /// The vectors of many queries, each after its own prefix; one flat array [queries, d]. Faster
    /// than one by one, with the same bits for any number of them.
    ///
    /// # Panics
    /// As [`Weights::decode_after`].
    pub fn forward<Q: AsRef<[f32]>>(&self, queries: &[(&Prefix, Q)]) -> Vec<f32> {
        let mut out = vec![0.0; queries.len() * self.shape.d];
        self.decoder().1.decode(queries, &mut out);
        out
    }
}

/// A quantised vector as the ICT reads it: divided by 2^14, exactly.
fn plain(vector: &[i16]) -> Vec<f32> {
    vector.iter().map(|x| f32::from(*x) / SCALE).collect()
}

/// The mean of rows of width d, zeros where there are none.
fn mean<'a>(d: usize, rows: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut sum = vec![0.0; d];
    let mut count = 0u32;
    for row in rows {
        add(&mut sum, row);
        count += 1;
    }
    if count > 0 {
        for value in &mut sum {
            *value /= count as f32;
        }
    }
    sum
}
