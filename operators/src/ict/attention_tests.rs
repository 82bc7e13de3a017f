//! The kind `attention` against `golden/attention.json` (an independent program in double precision),
//! its bits, and files of either kind that are wrong.
#![allow(clippy::unwrap_used)]

use super::tests::{GoldenItem, GoldenShape, World, at, bits, file, number, tiny, within_1e_5};
use super::*;
use ictflow_schemas::framing::{Domain, Frame, digest};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    shapes: BTreeMap<String, GoldenShape>,
    items: BTreeMap<String, GoldenItem>,
    cases: Vec<Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    shape: String,
    user: String,
    item: String,
    history: Vec<String>,
    same_item: Vec<CaseNeighbour>,
    same_user: Vec<CaseNeighbour>,
    x: Vec<f64>,
    vector: Vec<f64>,
}

#[derive(Clone, Deserialize)]
struct CaseNeighbour {
    user: String,
    item: String,
    positive: bool,
    score: i64,
    age: u64,
    residual: i32,
}

fn golden() -> (Vec<Case>, BTreeMap<String, World>) {
    let golden: Golden = serde_json::from_str(include_str!("../../golden/attention.json")).unwrap();
    let world = |shape| World::new(Kind::Attention, shape, &golden.items);
    let worlds = golden.shapes.into_iter().map(|(name, shape)| (name, world(shape))).collect();
    (golden.cases, worlds)
}

/// A neighbour with what it borrows.
struct Owned {
    user: NeighbourUserPart,
    item: NeighbourItemPart,
    case: CaseNeighbour,
}

impl Owned {
    fn new(world: &World, case: &CaseNeighbour) -> Self {
        let item = world.items.get(&case.item);
        let rows = world.weights.item_rows(&case.item, item.map(|item| &**item));
        let vector = item.and_then(|item| item.vector.as_ref()).map(|v| &*v.vector);
        let user = world.weights.neighbour_user_part(&case.user);
        Owned { user, item: world.weights.neighbour_item_part(&rows, vector), case: case.clone() }
    }

    fn input(&self) -> NeighbourInput<'_> {
        let CaseNeighbour { positive, score, age, residual, .. } = self.case;
        NeighbourInput { user: &self.user, item: &self.item, positive, score, age, residual }
    }
}

fn x(world: &World, case: &Case) -> Vec<f32> {
    world.token(&case.user, &case.item, &case.history)
}

fn run(world: &World, case: &Case) -> Vec<f32> {
    let owned = |cases: &[CaseNeighbour]| cases.iter().map(|c| Owned::new(world, c)).collect::<Vec<_>>();
    let sources = [owned(&case.same_item), owned(&case.same_user)];
    let [a, b] = sources.each_ref().map(|s| s.iter().map(Owned::input).collect::<Vec<_>>());
    world.weights.attend(&x(world, case), [&a, &b])
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn case<'a>(cases: &'a [Case], name: &str) -> &'a Case {
    cases.iter().find(|c| c.name == name).unwrap()
}

#[test]
fn golden_numbers_within_1e_5() {
    let (cases, worlds) = golden();
    let mut worst = 0.0f64;
    for case in &cases {
        let world = &worlds[&case.shape];
        for (what, found, expected) in
            [("x", x(world, case), &case.x), ("vector", run(world, case), &case.vector)]
        {
            worst = worst.max(within_1e_5(&format!("{what} of {:?}", case.name), &found, expected));
        }
    }
    println!("largest error over {} cases: {worst:.2e}", cases.len());
}

/// A change of an order of additions changes these bits, and with them every published vector: that
/// must be a decision.
#[test]
fn golden_bits_are_pinned() {
    let (cases, worlds) = golden();
    let vectors = cases.iter().flat_map(|case| run(&worlds[&case.shape], case));
    let all: Vec<u8> = vectors.flat_map(f32::to_le_bytes).collect();
    let digest = digest(Domain::Text, &Frame::new().bytes(&all));
    assert_eq!(digest.hex(), "ee68b5d4320133d75bc982e059a878ebf160e2309f352cd967e870e0bf0844c5");
}

#[test]
fn rows_do_not_depend_on_the_batch() {
    let bytes =
        untrained_of(Kind::Attention, 3, Shape { user_rows: 1000, item_rows: 1000, ..Shape::default() });
    let weights = Weights::from_safetensors(&bytes.unwrap()).unwrap();
    let vector = |s: u64| (0..384).map(|i| (number(s, i) >> 53) as i16 - 1024).collect::<Vec<i16>>();
    let users: Vec<_> = (0..40).map(|u| weights.neighbour_user_part(&format!("u{u}"))).collect();
    let part = |i: u64| {
        let rows = weights.item_rows(&format!("i{i}"), None);
        weights.neighbour_item_part(&rows, i.is_multiple_of(2).then(|| vector(i)).as_deref())
    };
    let items: Vec<_> = (0..30).map(part).collect();
    let neighbours: Vec<NeighbourInput<'_>> = (0..400)
        .map(|n| NeighbourInput {
            user: &users[n * 7 % 40],
            item: &items[n * 11 % 30],
            positive: n % 3 == 0,
            score: (n as i64 - 200) << 20,
            age: n as u64 * 37,
            residual: n as i32 * 5 - 1000,
        })
        .collect();
    let queries: Vec<(Vec<f32>, [&[NeighbourInput<'_>]; 2])> = (0..500usize)
        .map(|q| {
            let slice = |from: usize, n: usize| &neighbours[from % 380..][..n];
            let x = weights.text_token(&vec![q as f32 / 500.0; 384]);
            (x, [slice(q * 3, q % 17), slice(q * 5, (q / 17) % 17)])
        })
        .collect();
    let alone: Vec<f32> = queries.iter().flat_map(|(x, sources)| weights.attend(x, *sources)).collect();
    assert!(alone.iter().all(|v| v.is_finite()));
    for size in [1, 7, 64, 500] {
        let batched: Vec<f32> = queries.chunks(size).flat_map(|batch| weights.attend_all(batch)).collect();
        assert_eq!(bits(&alone), bits(&batched), "batches of {size}");
    }
    let turned: Vec<_> = queries.iter().rev().cloned().collect();
    let back: Vec<f32> = weights.attend_all(&turned).chunks_exact(32).rev().flatten().copied().collect();
    assert_eq!(bits(&alone), bits(&back));
    assert!(weights.attend_all::<&[f32]>(&[]).is_empty());
}

#[test]
fn the_order_of_neighbours_moves_last_bits_only() {
    let (cases, worlds) = golden();
    for name in ["three and four", "full", "wide"] {
        let base = case(&cases, name);
        let world = &worlds[&base.shape];
        let vector = run(world, base);
        let mut turned = base.clone();
        turned.same_item.reverse();
        turned.same_user.rotate_left(2);
        assert!(farthest(&vector, &run(world, &turned)) < 1e-6, "{name}");
        std::mem::swap(&mut turned.same_item, &mut turned.same_user);
        assert!(farthest(&vector, &run(world, &turned)) > 1e-3, "{name}: sources are not alike");
    }
}

#[test]
fn everything_that_counts_changes_the_vector() {
    let (cases, worlds) = golden();
    let base = case(&cases, "three and four");
    let world = &worlds[&base.shape];
    let vector = run(world, base);
    let mut changes: Vec<(String, Case)> = Vec::new();
    let mut change = |what: String, edit: &dyn Fn(&mut Case)| {
        let mut changed = base.clone();
        edit(&mut changed);
        changes.push((what, changed));
    };
    for n in 0..3 {
        change(format!("user of {n}"), &|c| c.same_item[n].user = "other".into());
        change(format!("item of {n}"), &|c| c.same_item[n].item = "m6".into());
        change(format!("label of {n}"), &|c| c.same_item[n].positive ^= true);
        change(format!("score of {n}"), &|c| c.same_user[n].score -= 1 << 26);
        change(format!("age of {n}"), &|c| c.same_user[n].age = c.same_user[n].age / 2 + 512);
        change(format!("residual of {n}"), &|c| c.same_item[n].residual -= 200);
        change(format!("without {n}"), &|c| drop(c.same_item.remove(n)));
    }
    change("user".into(), &|c| c.user = "u2".into());
    change("item".into(), &|c| c.item = "m6".into());
    change("history".into(), &|c| c.history[1] = "m6".into());
    for (what, changed) in &changes {
        let distance = farthest(&vector, &run(world, changed));
        assert!(distance > 1e-4, "{what} moves the vector by {distance:e} only");
    }
}

/// Loads the small golden weights of a kind after an edit.
fn edited(
    kind: Kind,
    edit: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<f32>)>),
) -> Result<Weights, WeightsError> {
    let golden: Golden = serde_json::from_str(include_str!("../../golden/attention.json")).unwrap();
    let mut tensors = golden.shapes["small"].tensors(kind);
    edit(&mut tensors);
    Weights::from_safetensors(&file(kind, &tensors))
}

fn names(kind: Kind) -> Vec<String> {
    tiny().tensors(kind).into_iter().map(|t| t.name).collect()
}

#[test]
fn every_tensor_that_is_wrong_is_named() {
    for name in names(Kind::Attention) {
        let error = edited(Kind::Attention, |t| t.retain(|t| t.0 != name)).unwrap_err();
        assert!(matches!(&error, WeightsError::Missing { name: n } if *n == name), "{name}: {error}");
        let error = edited(Kind::Attention, |t| at(t, &name).1.push(1)).unwrap_err();
        assert!(matches!(&error, WeightsError::Shape { name: n, .. } if *n == name), "{name}: {error}");
        assert!(error.to_string().contains(&name));
        let error = edited(Kind::Attention, |t| at(t, &name).2[0] = f32::NAN).unwrap_err();
        assert!(
            matches!(&error, WeightsError::NotFinite { name: n, index: 0 } if *n == name),
            "{name}: {error}"
        );
    }
    // A width too many, for each that doesn't decide a size itself.
    for name in names(Kind::Attention).iter().filter(|name| name.starts_with("attention.")) {
        let error = edited(Kind::Attention, |t| {
            let (_, shape, values) = at(t, name);
            *shape.last_mut().unwrap() += 1;
            values.resize(shape.iter().product(), 0.0);
        });
        assert!(matches!(&error, Err(WeightsError::Shape { name: n, .. }) if n == name), "{name}");
    }
}

#[test]
fn a_file_has_the_tensors_of_its_kind_only() {
    let shared = names(Kind::Attention);
    for (kind, other) in [(Kind::Attention, Kind::Decoder), (Kind::Decoder, Kind::Attention)] {
        let weights = edited(kind, |_| ()).unwrap();
        assert_eq!(weights.kind(), kind);
        let extra = names(other).into_iter().find(|name| !names(kind).contains(name)).unwrap();
        let error = edited(kind, |t| t.push((extra.clone(), vec![1], vec![0.0]))).unwrap_err();
        assert!(matches!(&error, WeightsError::Unexpected { name } if *name == extra), "{error}");
    }
    assert!(shared.iter().all(|name| !name.starts_with("decoder") && name != "label.weight"));
}

#[test]
fn the_centre_of_texts_is_read_where_it_is() {
    for kind in [Kind::Attention, Kind::Decoder] {
        assert_eq!(edited(kind, |_| ()).unwrap().text_centre(), [0; 21]);
        let with =
            |values: Vec<f32>| edited(kind, |t| t.push(("text.centre".into(), vec![values.len()], values)));
        let centre: Vec<f32> = (0..21).map(|i| [-32768.0, 32767.0, -3.0][i % 3]).collect();
        let weights = with(centre).unwrap();
        assert_eq!(weights.text_centre()[..4], [-32768, 32767, -3, -32768]);
        let error = with(vec![0.0; 20]).unwrap_err();
        assert!(matches!(&error, WeightsError::Shape { name, .. } if name == "text.centre"), "{error}");
        for bad in [0.5, 32768.0, -32769.0] {
            let mut values = vec![0.0; 21];
            values[5] = bad;
            let error = with(values).unwrap_err();
            assert!(matches!(&error, WeightsError::NotQuantised { index: 5, .. }), "{error}");
            assert!(error.to_string().contains("`text.centre`"), "{error}");
        }
    }
}

#[test]
fn untrained_weights_are_a_function_of_the_seed() {
    let made = |seed| untrained_of(Kind::Attention, seed, Shape::default()).unwrap();
    let bytes = made(7);
    assert_eq!(bytes, made(7));
    assert_ne!(bytes, made(8));
    let weights = Weights::from_safetensors(&bytes).unwrap();
    assert_eq!((weights.kind(), weights.shape()), (Kind::Attention, Shape::default()));
    assert_eq!(weights.version(), "untrained-bcbbca653ca346dd");
}

#[test]
#[should_panic(expected = "at most 16 neighbours of a source")]
fn more_neighbours_than_a_source_may_have_are_refused() {
    let bytes = untrained_of(Kind::Attention, 1, tiny()).unwrap();
    let weights = Weights::from_safetensors(&bytes).unwrap();
    let user = weights.neighbour_user_part("u");
    let item = weights.neighbour_item_part(&weights.item_rows("i", None), None);
    let neighbour =
        NeighbourInput { user: &user, item: &item, positive: true, score: 0, age: 0, residual: 0 };
    let most = weights.attend(&[0.0; 8], [&[neighbour; MAX_NEIGHBOURS], &[]]);
    assert!(most.iter().all(|v| v.is_finite()));
    weights.attend(&[0.0; 8], [&[], &[neighbour; MAX_NEIGHBOURS + 1]]);
}

#[test]
#[should_panic(expected = "`attention` read no demonstrations")]
fn demonstrations_are_for_the_other_kind() {
    let bytes = untrained_of(Kind::Attention, 1, tiny()).unwrap();
    Weights::from_safetensors(&bytes).unwrap().label_token(true);
}
