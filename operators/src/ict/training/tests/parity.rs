//! Training computes what serving does, and a file carries a module there and back.

use super::super::{
    Architecture, HashedRows, Module, Neighbours, Parties, Samples, TableRows, TrainingError, cosine_loss,
};
use super::world::{Plain, World, crowded, plain, served};
use super::{Row, farthest, floats, formula_module, neighbours};
use crate::ict::{Kind, MAX_NEIGHBOURS, NeighbourInput, Shape, Weights, WeightsError};
use candle_core::{Device, Tensor};

const HISTORY: [&str; 4] = ["i1", "i2", "i2", "gone"];

fn queries() -> Vec<Plain> {
    vec![
        plain("u1", "i1", &["i2", "i3"]),
        plain("u2", "i4", &[]),
        plain("u3", "i7", &HISTORY),
        plain("u1", "i5", &["gone"]),
        plain("u5", "i2", &["i4", "i7", "i6"]),
        plain("u6", "i6", &["i1"]),
    ]
}

fn samples() -> Vec<Plain> {
    vec![
        plain("u7", "i2", &["i1", "i3"]),
        plain("u8", "i3", &["i6"]),
        plain("u9", "i7", &HISTORY),
        plain("u7", "i4", &["gone"]),
    ]
}

const COTS: [u64; 4] = [101, 102, 103, 104];
const LABELS: [u32; 4] = [1, 0, 1, 0];
const K: usize = 4;

/// Lists of every length, and one twice.
fn picks() -> Vec<Vec<u32>> {
    vec![vec![], vec![2], vec![1, 0], vec![3, 0, 2], vec![0, 1, 2, 3], vec![1, 1]]
}

#[test]
fn the_decoder_of_training_is_the_one_of_serving() {
    for (d, text) in [(8, 12), (32, 48)] {
        let mut world = World::new(crowded(d, text));
        let batch = world.samples(&queries());
        let demonstrations = world.demonstrations(&samples(), &COTS, &LABELS, &picks(), K);
        let module = formula_module(Architecture::Decoder, world.compact(), 3);
        let tables = module.tables().unwrap();
        let x = module.sample_token(&tables, &batch).unwrap();
        let vectors = floats(&module.decode(&tables, &x, &demonstrations).unwrap().vector);
        let bytes = module.to_weights(&world.rows, Some("e"), None).unwrap();
        let weights = Weights::from_safetensors(&bytes).unwrap();
        assert_eq!((weights.kind(), weights.encoder()), (Kind::Decoder, Some("e")));
        assert!(!weights.version().starts_with("untrained"));
        let tokens: Vec<_> = samples()
            .iter()
            .zip(COTS)
            .zip(LABELS)
            .map(|((sample, cot), label)| world.served_demonstration(&weights, sample, cot, label))
            .collect();
        for (row, (query, picks)) in queries().iter().zip(picks()).enumerate() {
            let served = world.served_token(&weights, query);
            assert!(farthest(&served, &floats(&x)[row * d..][..d]) < 1e-5, "token {row}");
            let list: Vec<_> = picks.iter().map(|p| &tokens[*p as usize]).collect();
            let error = farthest(&weights.decode(&list, &served), &vectors[row * d..][..d]);
            assert!(error < 1e-5, "vector {row} with {} demonstrations: {error:e}", picks.len());
        }
        // A batch without any demonstration.
        let none = world.demonstrations(&samples(), &COTS, &LABELS, &vec![vec![]; 6], 0);
        let alone = module.decode(&tables, &x, &none).unwrap();
        assert!(farthest(&floats(&alone.vector)[..d], &vectors[..d]) < 1e-5);
        let loss = module.reconstruction_loss(&alone, &none).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    }
}

const USERS: [&str; 6] = ["u1", "u2", "u7", "u8", "u9", "stranger"];
const ITEMS: [&str; 8] = ["i1", "i2", "i3", "i4", "i5", "i6", "i7", "gone"];

/// Sources of every length, empty ones among them, by query.
fn sources() -> [Vec<Vec<Row>>; 2] {
    let row = |n: usize| {
        let (user, item) = ((n * 5 % USERS.len()) as u32, (n * 3 % ITEMS.len()) as u32);
        let score = (n as i64 * 2_654_435_761) % (1 << 28) - (1 << 27);
        (user, item, u32::from(n.is_multiple_of(3)), score, (n * n * 7) as u64, n as i32 * 71 % 2048 - 1024)
    };
    let list = |from: usize, n: usize| (from..from + n).map(row).collect::<Vec<Row>>();
    [
        vec![list(0, 0), list(1, 1), list(2, 0), list(3, 5), list(4, 16), list(5, 2)],
        vec![list(9, 0), list(8, 0), list(7, 3), list(6, 1), list(5, 16), list(40, 9)],
    ]
}

struct Attending {
    world: World,
    batch: Samples,
    parties: Parties,
    module: Module,
}

fn attending(d: usize, text: usize) -> Attending {
    let mut world = World::new(crowded(d, text));
    let batch = world.samples(&queries());
    let parties = world.parties(&USERS, &ITEMS);
    let module = formula_module(Architecture::Attention, world.compact(), 4);
    Attending { world, batch, parties, module }
}

impl Attending {
    fn vectors(&self, [a, b]: [&Neighbours; 2]) -> Vec<f32> {
        let tables = self.module.tables().unwrap();
        let x = self.module.sample_token(&tables, &self.batch).unwrap();
        floats(&self.module.attend(&tables, &x, &self.parties, [a, b]).unwrap())
    }
}

#[test]
fn the_attention_of_training_is_the_one_of_serving() {
    for (d, text) in [(8, 12), (32, 48)] {
        let attending = attending(d, text);
        let [a, b] = sources().map(|rows| neighbours(&rows, MAX_NEIGHBOURS));
        let vectors = attending.vectors([&a, &b]);
        let Attending { world, module, .. } = &attending;
        let centre: Vec<i16> = (0..text as i16).map(|i| 7 - i).collect();
        let bytes = module.to_weights(&world.rows, None, Some(&centre)).unwrap();
        let weights = Weights::from_safetensors(&bytes).unwrap();
        assert_eq!((weights.kind(), weights.text_centre()), (Kind::Attention, &centre[..]));
        let parts = world.served_parts(&weights, &USERS, &ITEMS);
        let [a, b] = sources();
        for (row, query) in queries().iter().enumerate() {
            let x = world.served_token(&weights, query);
            let [a, b] = [&a[row], &b[row]]
                .map(|s| s.iter().map(|n| served(&parts, n)).collect::<Vec<NeighbourInput<'_>>>());
            let error = farthest(&weights.attend(&x, [&a, &b]), &vectors[row * d..][..d]);
            assert!(error < 1e-5, "vector {row} with {} and {} neighbours: {error:e}", a.len(), b.len());
        }
    }
}

#[test]
fn the_order_of_neighbours_and_what_is_absent_do_not_count() {
    let attending = attending(8, 12);
    let [a, b] = sources();
    let [sa, sb] = [&a, &b].map(|rows| neighbours(rows, MAX_NEIGHBOURS));
    let vectors = attending.vectors([&sa, &sb]);
    let turned = |rows: &[Vec<Row>]| {
        let turn = |row: &Vec<Row>| row.iter().rev().copied().collect();
        neighbours(&rows.iter().map(turn).collect::<Vec<_>>(), MAX_NEIGHBOURS)
    };
    assert!(farthest(&vectors, &attending.vectors([&turned(&a), &turned(&b)])) < 1e-6);
    // Room for more, and another filling of it.
    let mut roomy = neighbours(&a, MAX_NEIGHBOURS + 5);
    let absent = (1.0 - &roomy.there).unwrap();
    roomy.score = (roomy.score + absent.affine(3.0, 0.0).unwrap()).unwrap();
    roomy.user = roomy.user.add(&absent.to_dtype(candle_core::DType::U32).unwrap()).unwrap();
    assert!(farthest(&vectors, &attending.vectors([&roomy, &sb])) < 1e-6);
    let swapped = attending.vectors([&sb, &sa]);
    assert!(farthest(&vectors, &swapped) > 1e-3, "sources are not alike");
}

#[test]
fn a_file_brings_the_variables_back() {
    for architecture in [Architecture::Decoder, Architecture::Attention] {
        let mut world = World::new(crowded(8, 12));
        world.samples(&queries());
        world.parties(&USERS, &ITEMS);
        let module = formula_module(architecture, world.compact(), 6);
        let bytes = module.to_weights(&world.rows, None, None).unwrap();
        assert_eq!(bytes, module.to_weights(&world.rows, None, None).unwrap());
        let back = Module::from_weights(&bytes, architecture, &world.rows, 9).unwrap();
        assert_eq!((back.shape(), back.architecture()), (module.shape(), architecture));
        for (name, variable) in module.variables() {
            let same = floats(variable) == floats(&back.variables()[name]);
            // No file holds the head that only training needs.
            assert_eq!(same, !name.starts_with("reconstruction"), "{name}");
        }
        assert_eq!(bytes, back.to_weights(&world.rows, None, None).unwrap());
    }
}

#[test]
fn files_and_modules_that_do_not_fit_are_refused() {
    let mut world = World::new(crowded(8, 12));
    world.samples(&queries());
    let module = formula_module(Architecture::Attention, world.compact(), 6);
    let bytes = module.to_weights(&world.rows, None, None).unwrap();
    let error = Module::from_weights(&bytes, Architecture::Decoder, &world.rows, 1).unwrap_err();
    assert!(matches!(error, TrainingError::Weights(WeightsError::OtherKind { .. })), "{error}");
    for architecture in [Architecture::Mean, Architecture::DecoderWithoutCot] {
        let error = Module::from_weights(&bytes, architecture, &world.rows, 1).unwrap_err();
        assert!(matches!(error, TrainingError::NotServed { .. }), "{error}");
        let module = Module::untrained(architecture, world.compact(), 1).unwrap();
        let error = module.to_weights(&world.rows, None, None).unwrap_err();
        assert!(matches!(error, TrainingError::NotServed { .. }), "{error}");
    }
    let other = HashedRows { user: TableRows::new("user", 77), ..world.rows.clone() };
    let error = Module::from_weights(&bytes, Architecture::Attention, &other, 1).unwrap_err().to_string();
    assert!(error.contains("`user` are for 77 hashed rows, the file has 5"), "{error}");
    let error = module.to_weights(&other, None, None).unwrap_err().to_string();
    assert!(error.contains("`user` are 1, the variable has"), "{error}");
    // What diverged, and an absent id that was trained, never reach a file.
    let bias = &module.variables()["attention.bias"];
    let (bad, good) = (Tensor::full(f32::NAN, 64, &Device::Cpu).unwrap(), bias.as_tensor().copy().unwrap());
    bias.set(&bad).unwrap();
    let error = module.to_weights(&world.rows, None, None).unwrap_err().to_string();
    assert!(error.contains("`attention.bias` is not finite at element 0"), "{error}");
    bias.set(&good).unwrap();
    let table = &module.variables()["user.weight"];
    table.set(&(table.as_tensor() + 1.0).unwrap()).unwrap();
    let error = module.to_weights(&world.rows, None, None).unwrap_err();
    assert!(matches!(error, TrainingError::Weights(WeightsError::AbsentRow { .. })), "{error}");
    // A pass of the other kind.
    let tables = module.tables().unwrap();
    let x = Tensor::zeros((6, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let demonstrations = world.demonstrations(&samples(), &COTS, &LABELS, &picks(), K);
    let error = module.decode(&tables, &x, &demonstrations).unwrap_err();
    assert!(matches!(&error, TrainingError::Variable { .. }), "{error}");
    // Sizes.
    let shape = Shape { d: 6, ..world.compact() };
    assert!(Module::untrained(Architecture::Attention, shape, 1).is_err());
    let shape = Shape { user_rows: 0, ..world.compact() };
    assert!(Module::untrained(Architecture::Attention, shape, 1).is_err());
}

#[test]
fn the_same_seed_gives_the_same_variables() {
    let world = World::new(crowded(8, 12));
    let made = |seed| Module::untrained(Architecture::Decoder, world.compact(), seed).unwrap();
    let values = |module: &Module| module.variables().values().flat_map(|v| floats(v)).collect::<Vec<f32>>();
    assert_eq!(values(&made(1)), values(&made(1)));
    assert_ne!(values(&made(1)), values(&made(2)));
}

/// The decoder sees what comes before and nothing that comes after.
#[test]
fn labels_and_cots_count_and_the_query_stays_unseen() {
    let mut world = World::new(crowded(8, 12));
    let batch = world.samples(&queries());
    let full: Vec<Vec<u32>> = vec![vec![0, 1, 2, 3]; 6];
    let base = world.demonstrations(&samples(), &COTS, &LABELS, &full, K);
    let module = formula_module(Architecture::Decoder, world.compact(), 3);
    let tables = module.tables().unwrap();
    let x = module.sample_token(&tables, &batch).unwrap();
    let run = |x: &Tensor, demonstrations| {
        let decoded = module.decode(&tables, x, demonstrations).unwrap();
        let r = module.reconstruct(decoded.before_cot.as_ref().unwrap()).unwrap();
        (floats(&decoded.vector), r)
    };
    let (vector, r) = run(&x, &base);
    let other_label = world.demonstrations(&samples(), &COTS, &[1, 0, 1, 1], &full, K);
    let other_cot = world.demonstrations(&samples(), &[101, 102, 103, 999], &LABELS, &full, K);
    for changed in [&other_label, &other_cot] {
        let (other, other_r) = run(&x, changed);
        assert!(farthest(&vector, &other) > 1e-3);
        // The last demonstration's label and CoT come after every r.
        assert_eq!(floats(&r), floats(&other_r));
    }
    let (other, other_r) = run(&(1.0 - &x).unwrap(), &base);
    assert!(farthest(&vector, &other) > 1e-3);
    assert_eq!(floats(&r), floats(&other_r));
    // The first CoT counts for all r but the first.
    let other_cot = world.demonstrations(&samples(), &[999, 102, 103, 104], &LABELS, &full, K);
    let (_, other_r) = run(&x, &other_cot);
    let at = |r: &Tensor, k: usize| floats(&r.narrow(1, k, 1).unwrap());
    assert_eq!(at(&r, 0), at(&other_r, 0));
    assert!((1..K).all(|k| farthest(&at(&r, k), &at(&other_r, k)) > 1e-4));
    // Another order is another list.
    let turned = world.demonstrations(&samples(), &COTS, &LABELS, &vec![vec![1, 0, 2, 3]; 6], K);
    assert!(farthest(&vector, &run(&x, &turned).0) > 1e-3);
}

#[test]
fn the_reconstruction_of_the_target_itself_costs_nothing() {
    let values: Vec<f32> = (0..2 * 3 * 5).map(|i| (i as f32 * 0.7).sin()).collect();
    let r = Tensor::from_vec(values, (2, 3, 5), &Device::Cpu).unwrap();
    let there = Tensor::new(&[[1.0f32, 1.0, 1.0], [0.0, 1.0, 1.0]], &Device::Cpu).unwrap();
    let loss = |r: &Tensor, target: &Tensor, there: &Tensor| {
        cosine_loss(r, target, there).unwrap().to_scalar::<f32>().unwrap()
    };
    assert!(loss(&r, &r, &there).abs() < 1e-6);
    assert!(loss(&(&r * 3.0).unwrap(), &r, &there).abs() < 1e-6);
    assert!((loss(&r.neg().unwrap(), &r, &there) - 2.0).abs() < 1e-6);
    assert_eq!(loss(&r, &r.zeros_like().unwrap(), &there), 1.0);
    // Only what is there counts.
    let mut other = r.to_vec3::<f32>().unwrap();
    other[1][0] = vec![9.0, -9.0, 0.0, 1.0, 0.0];
    assert!(loss(&Tensor::new(other, &Device::Cpu).unwrap(), &r, &there).abs() < 1e-6);
    assert_eq!(loss(&r.neg().unwrap(), &r, &there.zeros_like().unwrap()), 0.0);
}
