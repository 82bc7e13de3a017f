//! The module against `golden/ict.json` (an independent program in double precision), against a
//! plain loop over the whole sequence (to the bit), and against files that are wrong.
#![allow(clippy::unwrap_used)]

use super::file::{Description, write};
use super::kernel::{EPSILON, dot, exp};
use super::shape::Fill;
use super::*;
use crate::splitmix::{STEP, mix};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::{Item, ItemState, ItemVector};
use ictflow_schemas::example::Verdict;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::vector::VectorSum;
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    shapes: BTreeMap<String, GoldenShape>,
    items: BTreeMap<String, GoldenItem>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(super) struct GoldenShape {
    pub(super) seed: u64,
    pub(super) d: usize,
    text: usize,
    amplitude: u64,
    user_rows: usize,
    item_rows: usize,
    creator_rows: usize,
    category_rows: usize,
}

#[derive(Deserialize)]
pub(super) struct GoldenItem {
    creator: Option<String>,
    categories: Vec<String>,
    vector: Option<u64>,
}

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    shape: String,
    user: String,
    item: String,
    history: Vec<String>,
    demonstrations: Vec<CaseDemonstration>,
    x: Vec<f64>,
    vector: Vec<f64>,
}

#[derive(Clone, Deserialize)]
struct CaseDemonstration {
    user: String,
    item: String,
    history: Vec<String>,
    cot: u64,
    positive: bool,
}

/// The formula of `golden/ict.py`.
pub(super) fn number(stream: u64, i: usize) -> u64 {
    mix(stream.wrapping_mul(STEP).wrapping_add(i as u64))
}

/// A number of the formula in [-1, 1).
pub(super) fn unit(stream: u64, i: usize) -> f32 {
    let int = (number(stream, i) >> 44) as i64 - (1 << 19);
    int as f32 / (1 << 19) as f32
}

/// A tensor's values by the formula; the scales stand in the lists `tensors` of `golden/*.py`.
pub(super) fn golden_values(seed: u64, index: usize, tensor: &super::shape::Tensor) -> Vec<f32> {
    let name = tensor.name.as_str();
    let starts = |parts: &[&str]| parts.iter().any(|part| name.starts_with(part));
    let scale = match tensor.fill {
        Fill::Bias if name == "attention.phi" => 0.5,
        Fill::Hashed | Fill::Table | Fill::Norm => 0.25,
        Fill::Bias => 0.0625,
        Fill::Xavier if starts(&["text.0.weight", "attention.item", "attention.out"]) => 0.25,
        Fill::Xavier if [".w1.", ".w2.", ".w3."].iter().any(|w| name.contains(w)) => 0.25,
        Fill::Xavier if starts(&["decoder", "attention"]) => 0.5,
        Fill::Xavier => 0.125,
    };
    let width = *tensor.shape.last().unwrap();
    let value = |i| {
        let value = unit(seed * 1000 + index as u64, i) * scale;
        match tensor.fill {
            Fill::Norm => 1.0 + value,
            Fill::Hashed if i < width => 0.0,
            _ => value,
        }
    };
    (0..tensor.shape.iter().product()).map(value).collect()
}

impl GoldenShape {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            d: self.d,
            text: self.text,
            user_rows: self.user_rows,
            item_rows: self.item_rows,
            creator_rows: self.creator_rows,
            category_rows: self.category_rows,
        }
    }

    /// The formula's tensors.
    pub(super) fn tensors(&self, kind: Kind) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let tensors = self.shape().tensors(kind).into_iter().enumerate();
        tensors
            .map(|(index, tensor)| {
                let values = golden_values(self.seed, index, &tensor);
                (tensor.name, tensor.shape, values)
            })
            .collect()
    }

    pub(super) fn vector(&self, v: u64) -> Vec<i16> {
        let a = self.amplitude;
        let component = |i| ((number(5000 + v, i) >> 48) % (2 * a + 1)) as i64 - a as i64;
        (0..self.text).map(|i| component(i) as i16).collect()
    }
}

pub(super) fn file(kind: Kind, tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let kind = kind.name().to_owned();
    let description = Description { encoder: Some("e".into()), kind, seed: None, trained: true };
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors: Vec<_> = tensors.iter().map(|(n, s, v)| (n.clone(), s.clone(), bytes(v))).collect();
    write(&tensors, &description).unwrap()
}

/// A shape with its weights and the golden items in it.
pub(super) struct World {
    pub(super) weights: Weights,
    pub(super) bytes: Vec<u8>,
    pub(super) items: BTreeMap<String, Item>,
    pub(super) vectors: GoldenShape,
}

fn golden() -> (Vec<Case>, BTreeMap<String, World>) {
    let golden: Golden = serde_json::from_str(include_str!("../../golden/ict.json")).unwrap();
    let world = |shape| World::new(Kind::Decoder, shape, &golden.items);
    let worlds = golden.shapes.into_iter().map(|(name, shape)| (name, world(shape))).collect();
    (golden.cases, worlds)
}

/// What a [`Sample`] borrows.
struct Owned {
    user: String,
    item_id: String,
    item: Item,
    history: Vec<(Id, Option<Item>)>,
    text: VectorSum,
}

impl Owned {
    fn sample(&self) -> Sample<'_> {
        let Owned { user, item_id, item, history, text } = self;
        Sample { user, item_id, item, history, text }
    }
}

impl World {
    pub(super) fn new(kind: Kind, shape: GoldenShape, items: &BTreeMap<String, GoldenItem>) -> Self {
        let bytes = file(kind, &shape.tensors(kind));
        let weights = Weights::from_safetensors(&bytes).unwrap();
        let item = |item: &GoldenItem| {
            Arc::new(ItemState {
                text: text_digest("golden"),
                creator: item.creator.as_deref().map(Id::from),
                categories: item.categories.iter().map(|c| Id::from(c.as_str())).collect(),
                vector: item
                    .vector
                    .map(|v| ItemVector { text: text_digest("golden"), vector: shape.vector(v).into() }),
            })
        };
        let items = items.iter().map(|(id, i)| (id.clone(), item(i))).collect();
        World { weights, bytes, items, vectors: shape }
    }

    fn owned(&self, user: &str, item: &str, history: &[String]) -> Owned {
        let history: Vec<(Id, Option<Item>)> =
            history.iter().map(|id| (Id::from(id.as_str()), self.items.get(id).cloned())).collect();
        let vectors = history.iter().filter_map(|(_, item)| item.as_ref()?.vector.as_ref());
        let text = VectorSum::over(vectors.map(|v| &*v.vector));
        Owned { user: user.into(), item_id: item.into(), item: self.items[item].clone(), history, text }
    }

    fn x(&self, case: &Case) -> Vec<f32> {
        self.token(&case.user, &case.item, &case.history)
    }

    pub(super) fn token(&self, user: &str, item: &str, history: &[String]) -> Vec<f32> {
        self.weights.sample_token(&self.owned(user, item, history).sample())
    }

    fn demonstrations(&self, case: &Case) -> Vec<DemonstrationTokens> {
        let tokens = |d: &CaseDemonstration| {
            let owned = self.owned(&d.user, &d.item, &d.history);
            let verdict = if d.positive { Verdict::Positive } else { Verdict::ImplicitNegative };
            self.weights.demonstration(&owned.sample(), &self.vectors.vector(d.cot), verdict)
        };
        case.demonstrations.iter().map(tokens).collect()
    }

    fn run(&self, case: &Case) -> Vec<f32> {
        self.weights.decode(&self.demonstrations(case), &self.x(case))
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn case<'a>(cases: &'a [Case], name: &str) -> &'a Case {
    cases.iter().find(|c| c.name == name).unwrap()
}

/// The largest error of what was found.
pub(super) fn within_1e_5(what: &str, found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0f64;
    for (found, expected) in found.iter().zip(expected) {
        let error = (f64::from(*found) - expected).abs();
        assert!(error < 1e-5, "{what}: {found} instead of {expected}");
        worst = worst.max(error);
    }
    worst
}

#[test]
fn golden_numbers_within_1e_5() {
    let (cases, worlds) = golden();
    let mut worst = 0.0f64;
    for case in &cases {
        let world = &worlds[&case.shape];
        for (what, found, expected) in
            [("x", world.x(case), &case.x), ("vector", world.run(case), &case.vector)]
        {
            worst = worst.max(within_1e_5(&format!("{what} of {:?}", case.name), &found, expected));
        }
    }
    println!("largest error over {} cases: {worst:.2e}", cases.len());
}

/// The bits of all golden outputs. Nothing here depends on the CPU or on a maths library, so they
/// hold everywhere. A change of an order of additions changes them, and with them every published
/// vector: that must be a decision.
#[test]
fn golden_bits_are_pinned() {
    let (cases, worlds) = golden();
    let mut all = Vec::new();
    for case in &cases {
        let world = &worlds[&case.shape];
        all.extend(world.x(case).into_iter().chain(world.run(case)).flat_map(f32::to_le_bytes));
    }
    let digest = ictflow_schemas::framing::digest(
        ictflow_schemas::framing::Domain::Text,
        &ictflow_schemas::framing::Frame::new().bytes(&all),
    );
    assert_eq!(digest.hex(), "47cb987dfc92e260189091d76aca89cac424a6c3789206bbbaa1836d93cce26a");
}

/// The whole sequence through both layers, position by position, in plain loops over the tensors
/// as the file has them.
struct Plain {
    d: usize,
    tensors: HashMap<String, Vec<f32>>,
}

impl Plain {
    fn new(bytes: &[u8], d: usize) -> Self {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let floats = |b: &[u8]| b.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Plain { d, tensors: file.iter().map(|(name, t)| (name.to_owned(), floats(t.data()))).collect() }
    }

    fn linear(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let outputs = self.tensors[name].chunks_exact(x.len());
        outputs.map(|w| x.iter().zip(w).fold(0.0, |sum, (x, w)| sum + x * w)).collect()
    }

    fn norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let inverse = 1.0 / (dot(x, x) / self.d as f32 + EPSILON).sqrt();
        x.iter().zip(&self.tensors[name]).map(|(x, w)| x * inverse * w).collect()
    }

    fn turn(&self, x: &[f32], position: usize) -> Vec<f32> {
        let width = self.d / HEADS;
        let mut x = x.to_vec();
        super::kernel::Rotary::new(width, position + 1).turn(&mut x, position);
        x
    }

    /// The vector, and each layer's keys of all positions but the last.
    fn decode(&self, tokens: &[Vec<f32>]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut rows = tokens.to_vec();
        let mut keys = Vec::new();
        for l in 0..LAYERS {
            let name = |part: &str| format!("decoder.layers.{l}.{part}.weight");
            let normed: Vec<_> = rows.iter().map(|x| self.norm(&name("attention_norm"), x)).collect();
            let project = |part: &str| normed.iter().map(|n| self.linear(&name(part), n)).collect::<Vec<_>>();
            let turn = |rows: Vec<Vec<f32>>| {
                rows.iter().enumerate().map(|(p, x)| self.turn(x, p)).collect::<Vec<_>>()
            };
            let (q, k, v) = (turn(project("q")), turn(project("k")), project("v"));
            keys.push(k[..k.len() - 1].concat());
            for position in 0..rows.len() {
                let mixed = self.attend(&q[position], &k[..=position], &v[..=position]);
                for (x, o) in rows[position].iter_mut().zip(self.linear(&name("o"), &mixed)) {
                    *x += o;
                }
                let m = self.norm(&name("ffn_norm"), &rows[position]);
                let gate = self.linear(&name("w1"), &m);
                let up = self.linear(&name("w3"), &m);
                let hidden: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + exp(-g)) * u).collect();
                for (x, o) in rows[position].iter_mut().zip(self.linear(&name("w2"), &hidden)) {
                    *x += o;
                }
            }
        }
        (self.norm("decoder.norm.weight", rows.last().unwrap()), keys)
    }

    fn attend(&self, q: &[f32], k: &[Vec<f32>], v: &[Vec<f32>]) -> Vec<f32> {
        let width = self.d / HEADS;
        let mut mixed = vec![0.0; self.d];
        for head in 0..HEADS {
            let part = head * width..(head + 1) * width;
            let scale = 1.0 / (width as f32).sqrt();
            let logits: Vec<f32> =
                k.iter().map(|k| dot(&q[part.clone()], &k[part.clone()]) * scale).collect();
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f32> = logits.iter().map(|x| exp(x - largest)).collect();
            let total = weights.iter().fold(0.0, |sum, w| sum + w);
            for (weight, v) in weights.iter().zip(v) {
                for j in part.clone() {
                    mixed[j] += weight / total * v[j];
                }
            }
        }
        mixed
    }
}

#[test]
fn prefix_blocks_and_tiles_equal_the_plain_whole_to_the_bit() {
    let (cases, worlds) = golden();
    for case in &cases {
        let world = &worlds[&case.shape];
        let plain = Plain::new(&world.bytes, world.vectors.d);
        let demonstrations = world.demonstrations(case);
        let mut tokens = rows_of(&demonstrations, world.vectors.d);
        let x = world.x(case);
        tokens.push(x.clone());
        assert_eq!(tokens.len(), 3 * demonstrations.len() + 1);
        let (whole, _) = plain.decode(&tokens);
        assert_eq!(bits(&whole), bits(&world.weights.decode(&demonstrations, &x)), "{}", case.name);
        let prefix = world.weights.prefix(&demonstrations);
        assert_eq!(prefix.demonstrations(), demonstrations.len());
        assert_eq!(bits(&whole), bits(&world.weights.decode_after(&prefix, &x)), "{}", case.name);
    }
}

#[test]
fn rows_do_not_depend_on_the_batch() {
    let bytes = untrained(3, Shape { user_rows: 1000, item_rows: 1000, ..Shape::default() }).unwrap();
    let weights = Weights::from_safetensors(&bytes).unwrap();
    let vector = |s: u64| (0..384).map(|i| (number(s, i) >> 53) as i16 - 1024).collect::<Vec<i16>>();
    let token = |s: u64| weights.cot_token(&vector(s));
    let prefixes: Vec<Prefix> = (0..9u64)
        .map(|n| {
            let demonstration = |k: u64| {
                DemonstrationTokens::new(
                    &token(9 * n + k),
                    &token(500 + 9 * n + k),
                    weights.label_token(k.is_multiple_of(2)),
                )
            };
            weights.prefix(&(0..n % 5).map(demonstration).collect::<Vec<_>>())
        })
        .collect();
    let xs: Vec<Vec<f32>> = (0..1000u64).map(|i| token(10_000 + i)).collect();
    let queries: Vec<(&Prefix, &Vec<f32>)> =
        xs.iter().enumerate().map(|(i, x)| (&prefixes[i % prefixes.len()], x)).collect();
    let alone: Vec<f32> = queries.iter().flat_map(|(prefix, x)| weights.decode_after(prefix, x)).collect();
    assert!(alone.iter().all(|v| v.is_finite()));
    for size in [1, 7, 64, 1000] {
        let batched: Vec<f32> = queries.chunks(size).flat_map(|batch| weights.forward(batch)).collect();
        assert_eq!(bits(&alone), bits(&batched), "batches of {size}");
    }
    // The rows that go before and behind change nothing either.
    let turned: Vec<_> = queries.iter().rev().copied().collect();
    let turned = weights.forward(&turned);
    let back: Vec<f32> = turned.chunks_exact(32).rev().flatten().copied().collect();
    assert_eq!(bits(&alone), bits(&back));
    assert!(weights.forward::<&[f32]>(&[]).is_empty());
}

#[test]
fn parts_equal_the_whole_sample() {
    let (cases, worlds) = golden();
    for case in &cases {
        let world = &worlds[&case.shape];
        let weights = &world.weights;
        let owned = world.owned(&case.user, &case.item, &case.history);
        let history: Vec<Arc<ItemRows>> =
            owned.history.iter().map(|(id, item)| Arc::new(weights.item_rows(id, item.as_deref()))).collect();
        let user = weights.user_part(&case.user, &history, &owned.text);
        let rows = weights.item_rows(&case.item, Some(&owned.item));
        let item = weights.item_part(&rows, owned.item.vector.as_ref().map(|v| &*v.vector));
        assert_eq!(bits(&weights.join(&user, &item)), bits(&world.x(case)), "{}", case.name);
    }
}

#[test]
fn everything_that_counts_changes_the_vector() {
    let (cases, worlds) = golden();
    let base = case(&cases, "four demonstrations");
    let world = &worlds[&base.shape];
    let vector = world.run(base);
    let distance = |changed: &Case| {
        let other = world.run(changed);
        vector.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let mut changes: Vec<(String, Case)> = Vec::new();
    let mut change = |what: String, edit: &dyn Fn(&mut Case)| {
        let mut changed = base.clone();
        edit(&mut changed);
        changes.push((what, changed));
    };
    for n in 0..4 {
        change(format!("CoT of {n}"), &|c| c.demonstrations[n].cot = 200);
        change(format!("label of {n}"), &|c| c.demonstrations[n].positive ^= true);
        change(format!("user of {n}"), &|c| c.demonstrations[n].user = "other".into());
        change(format!("item of {n}"), &|c| c.demonstrations[n].item = "m6".into());
        change(format!("history of {n}"), &|c| c.demonstrations[n].history[0] = "клип".into());
        change(format!("without {n}"), &|c| drop(c.demonstrations.remove(n)));
    }
    for (a, b) in [(0, 1), (1, 2), (2, 3), (0, 3)] {
        change(format!("order of {a} and {b}"), &|c| c.demonstrations.swap(a, b));
    }
    change("user".into(), &|c| c.user = "u2".into());
    change("item".into(), &|c| c.item = "m6".into());
    change("history entry".into(), &|c| c.history[1] = "m6".into());
    change("history entry without a state".into(), &|c| c.history[1] = "gone".into());
    change("history repeats".into(), &|c| c.history.push("m2".into()));
    for (what, changed) in &changes {
        let distance = distance(changed);
        assert!(distance > 1e-4, "{what} moves the vector by {distance:e} only");
    }
    // What doesn't count: the order of a history moves sums of floats in their last bits only.
    let mut turned = base.clone();
    turned.history.reverse();
    assert!(distance(&turned) < 1e-5);
    assert_eq!(bits(&vector), bits(&world.run(base)));
}

fn rows_of(demonstrations: &[DemonstrationTokens], d: usize) -> Vec<Vec<f32>> {
    demonstrations.iter().flat_map(|t| t.flat().chunks_exact(d).map(<[f32]>::to_vec)).collect()
}

#[test]
fn demonstrations_never_see_what_comes_later() {
    let (cases, worlds) = golden();
    let world = &worlds["usual"];
    let base = case(&cases, "four demonstrations");
    let demonstrations = world.demonstrations(base);
    let prefix = world.weights.prefix(&demonstrations);
    // The plain whole computation with two queries: other vectors, the same keys, the prefix's.
    let plain = Plain::new(&world.bytes, world.vectors.d);
    let x = world.x(base);
    let other: Vec<f32> = x.iter().map(|v| 1.0 - v).collect();
    let with = |x: &[f32]| {
        let mut tokens = rows_of(&demonstrations, world.vectors.d);
        tokens.push(x.to_vec());
        plain.decode(&tokens)
    };
    let (vector, keys) = with(&x);
    let (other_vector, other_keys) = with(&other);
    assert_ne!(bits(&vector), bits(&other_vector));
    for l in 0..LAYERS {
        assert_eq!(bits(&keys[l]), bits(&other_keys[l]));
        assert_eq!(bits(&keys[l]), bits(prefix.keys(l)));
        // A list is the beginning of every longer one.
        for k in 0..4 {
            let shorter = world.weights.prefix(&demonstrations[..k]);
            assert!(prefix.keys(l).starts_with(shorter.keys(l)));
        }
    }
    // Decoding leaves the prefix as it was.
    let before = prefix.clone();
    assert_eq!(bits(&vector), bits(&world.weights.decode_after(&prefix, &x)));
    assert_eq!(bits(&other_vector), bits(&world.weights.decode_after(&prefix, &other)));
    assert_eq!(prefix, before);
}

#[test]
fn a_vector_of_another_width_is_fitted() {
    let weights = Weights::from_safetensors(&untrained(1, tiny()).unwrap()).unwrap();
    let vector = |n: i16| (1..=n).map(|i| 1000 * i).collect::<Vec<i16>>();
    let mut short = vector(9);
    let fitted = weights.cot_token(&short);
    short.resize(12, 0);
    assert_eq!(bits(&fitted), bits(&weights.cot_token(&short)));
    assert_eq!(bits(&weights.cot_token(&vector(30))), bits(&weights.cot_token(&vector(12))));
    assert_eq!(bits(&weights.cot_token(&[])), bits(&weights.text_token(&[0.0; 12])));
}

/// Loads the small golden weights after an edit.
fn edited(edit: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<f32>)>)) -> Result<Weights, WeightsError> {
    let golden: Golden = serde_json::from_str(include_str!("../../golden/ict.json")).unwrap();
    let mut tensors = golden.shapes["small"].tensors(Kind::Decoder);
    edit(&mut tensors);
    Weights::from_safetensors(&file(Kind::Decoder, &tensors))
}

pub(super) fn at<'a>(
    tensors: &'a mut [(String, Vec<usize>, Vec<f32>)],
    name: &str,
) -> &'a mut (String, Vec<usize>, Vec<f32>) {
    tensors.iter_mut().find(|t| t.0 == name).unwrap()
}

fn names() -> Vec<String> {
    let golden: Golden = serde_json::from_str(include_str!("../../golden/ict.json")).unwrap();
    golden.shapes["small"].tensors(Kind::Decoder).into_iter().map(|t| t.0).collect()
}

#[test]
fn every_missing_tensor_is_named() {
    assert!(edited(|_| ()).is_ok());
    for name in names() {
        let error = edited(|t| t.retain(|t| t.0 != name)).unwrap_err();
        assert!(matches!(&error, WeightsError::Missing { name: n } if *n == name), "{name}: {error}");
        assert!(error.to_string().contains(&name));
    }
}

#[test]
fn every_wrong_shape_is_named() {
    for name in names() {
        // One more column (or element), so that no size can be derived from it.
        let error = edited(|t| {
            let (_, shape, values) = at(t, &name);
            shape.push(1);
            assert_eq!(shape.iter().product::<usize>(), values.len());
        })
        .unwrap_err();
        match &error {
            WeightsError::Shape { name: n, found, .. } => {
                assert_eq!(*n, name);
                assert_eq!(found.last(), Some(&1));
            }
            _ => panic!("{name}: {error}"),
        }
    }
    let error = edited(|t| {
        let (_, shape, values) = at(t, "decoder.layers.1.w2.weight");
        shape[1] -= 1;
        values.truncate(shape.iter().product());
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `decoder.layers.1.w2.weight` has the shape [8, 31], expected [8, 32] \
         (hint: d and the text width come from `user.weight` and `text.0.weight`)"
    );
}

#[test]
fn every_value_that_is_not_finite_is_named() {
    for (name, bad) in
        names().into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().cycle())
    {
        let mut last = 0;
        let error = edited(|t| {
            let values = &mut at(t, &name).2;
            last = values.len() - 1;
            values[last] = bad;
        })
        .unwrap_err();
        assert!(
            matches!(&error, WeightsError::NotFinite { name: n, index } if *n == name && *index == last),
            "{name}: {error}"
        );
    }
}

#[test]
fn row_0_of_hashed_tables_must_be_zeros() {
    for name in ["user.weight", "item.weight", "creator.weight", "category.weight"] {
        let error = edited(|t| at(t, name).2[7] = 1e-30).unwrap_err();
        assert!(matches!(&error, WeightsError::AbsentRow { name: n } if n == name), "{name}: {error}");
    }
    // A label's row 0 is a label.
    assert!(edited(|t| at(t, "label.weight").2[7] = 1.0).is_ok());
}

#[test]
fn other_faults_are_named() {
    let error = edited(|t| t.push(("text.1.weight".into(), vec![1], vec![0.0]))).unwrap_err();
    assert!(matches!(&error, WeightsError::Unexpected { name } if name == "text.1.weight"), "{error}");

    let error = edited(|t| {
        let (_, shape, values) = at(t, "creator.weight");
        shape[0] = 1;
        values.truncate(8);
    })
    .unwrap_err();
    assert!(
        matches!(error, WeightsError::Limit { what: "the number of creator rows", found: 1, .. }),
        "{error}"
    );

    let good = untrained(1, tiny()).unwrap();
    for cut in [0, 7, 8, 100, good.len() - 1] {
        let error = Weights::from_safetensors(&good[..cut]).unwrap_err();
        assert!(matches!(error, WeightsError::Unreadable { .. }), "{cut}: {error}");
    }

    // The same length with another type, and other metadata: edits of the header's text.
    let header = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = good.clone();
        let found = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[found..found + to.len()].copy_from_slice(to.as_bytes());
        Weights::from_safetensors(&bytes)
    };
    let error = header(r#""dtype":"F32""#, r#""dtype":"I32""#).unwrap_err();
    assert!(matches!(&error, WeightsError::Type { found, .. } if found == "I32"), "{error}");
    let error = header(r#"\"kind\":\"decoder\""#, r#"\"kind\":\"pooling\""#).unwrap_err();
    assert!(matches!(&error, WeightsError::Kind { found } if found == "pooling"), "{error}");
    let error = header(r#"\"trained\":false"#, r#"\"trained\":maybe"#).unwrap_err();
    assert!(matches!(error, WeightsError::Metadata { .. }), "{error}");

    for shape in [
        Shape { d: 0, ..tiny() },
        Shape { d: 6, ..tiny() },
        Shape { d: 2048, ..tiny() },
        Shape { text: 0, ..tiny() },
        Shape { user_rows: 1, ..tiny() },
        Shape { category_rows: 0, ..tiny() },
    ] {
        assert!(matches!(untrained(1, shape), Err(WeightsError::Limit { .. })), "{shape:?}");
    }
}

pub(super) fn tiny() -> Shape {
    Shape { d: 8, text: 12, user_rows: 4, item_rows: 4, creator_rows: 4, category_rows: 4 }
}

#[test]
fn untrained_weights_are_a_function_of_the_seed() {
    let bytes = untrained(7, Shape::default()).unwrap();
    assert_eq!(bytes, untrained(7, Shape::default()).unwrap());
    assert_ne!(bytes, untrained(8, Shape::default()).unwrap());
    let weights = Weights::from_safetensors(&bytes).unwrap();
    assert_eq!(weights.shape(), Shape::default());
    assert_eq!(weights.shape().ffn(), 64);
    assert_eq!(weights.encoder(), None);
    // The same bytes on every machine and with every build, or a job's vectors would change.
    assert_eq!(weights.version(), "untrained-fd65da05f7b26912");
    // The draws fill their range, and no other rows than row 0 are zeros.
    let plain = Plain::new(&bytes, 32);
    let table = &plain.tensors["user.weight"];
    assert!(table.chunks_exact(32).skip(1).all(|row| row.iter().any(|v| *v != 0.0)));
    let variance = table.iter().map(|v| f64::from(v * v)).sum::<f64>() / table.len() as f64;
    assert!((variance * 32.0 - 1.0).abs() < 0.01, "{variance}");
    // Vectors of untrained weights are of use to nobody, but finite and not all alike.
    let cot: Vec<i16> = (0..384).map(|i| (number(1, i) >> 53) as i16 - 1024).collect();
    let demonstration = |positive| {
        DemonstrationTokens::new(
            &weights.cot_token(&cot),
            &weights.cot_token(&cot),
            weights.label_token(positive),
        )
    };
    let x = weights.cot_token(&cot);
    let [yes, no] = [true, false].map(|positive| weights.decode(&[demonstration(positive)], &x));
    assert!(yes.iter().chain(&no).all(|v| v.is_finite()));
    assert!(yes.iter().zip(&no).any(|(a, b)| (a - b).abs() > 1e-3));
}

#[test]
fn a_trained_file_has_its_sha256_as_version() {
    use sha2::Digest;
    let (_, worlds) = golden();
    for world in worlds.values() {
        let sha256 = ictflow_schemas::framing::hex(&sha2::Sha256::digest(&world.bytes));
        assert_eq!(world.weights.version(), sha256);
        assert_eq!(world.weights.encoder(), Some("e"));
    }
}

#[test]
#[should_panic(expected = "at most 64 demonstrations")]
fn more_demonstrations_than_positions_are_refused() {
    let weights = Weights::from_safetensors(&untrained(1, tiny()).unwrap()).unwrap();
    let zeros = vec![0.0; 8];
    let token = DemonstrationTokens::new(&zeros, &zeros, &zeros);
    let most = weights.decode(&vec![&token; MAX_DEMONSTRATIONS], &zeros);
    assert!(most.iter().all(|v| v.is_finite()));
    weights.prefix(&vec![&token; MAX_DEMONSTRATIONS + 1]);
}
