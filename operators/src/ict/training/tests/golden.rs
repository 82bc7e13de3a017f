//! The forward and backward passes against PyTorch: `golden/ict_training.json`, by the script beside it.

use super::super::{Architecture, Demonstrations, Module, Parties, Samples};
use super::{Row, floats, formula_module, neighbours, padded, picked};
use crate::ict::tests::{GoldenShape, unit};
use crate::ranking::ids::Ids;
use candle_core::{DType, Device, Tensor};
use ictflow_schemas::vector::SCALE;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    shape: GoldenShape,
    queries: Vec<GoldenSample>,
    demonstrations: Vec<GoldenDemonstration>,
    picks: Vec<Vec<u32>>,
    neighbours: Vec<[Vec<Row>; 2]>,
    /// Creator, categories, text by row of the item table.
    items: BTreeMap<u32, (u32, Vec<u32>, Option<u64>)>,
    runs: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
struct GoldenSample {
    user: u32,
    item: u32,
    creator: u32,
    categories: Vec<u32>,
    /// Item, creator, categories.
    history: Vec<(u32, u32, Vec<u32>)>,
    text: Option<u64>,
    history_text: Option<u64>,
}

#[derive(Deserialize)]
struct GoldenDemonstration {
    #[serde(flatten)]
    sample: GoldenSample,
    cot: u64,
    label: u32,
}

#[derive(Deserialize)]
struct Run {
    vectors: Vec<Vec<f64>>,
    reconstruction: f64,
    loss: f64,
    /// Sum, norm, product with the formula's numbers.
    gradients: BTreeMap<String, [f64; 3]>,
}

const CATEGORIES: usize = 3;
const HISTORY: usize = 4;

impl Golden {
    fn read() -> Self {
        serde_json::from_str(include_str!("../../../../golden/ict_training.json")).unwrap()
    }

    fn texts(&self, numbers: impl Iterator<Item = Option<u64>>) -> Tensor {
        let width = self.shape.shape().text;
        let vector = |number: Option<u64>| match number {
            Some(v) => self.shape.vector(v).iter().map(|x| f32::from(*x) / SCALE).collect(),
            None => vec![0.0; width],
        };
        let flat: Vec<f32> = numbers.flat_map(vector).collect();
        let count = flat.len() / width;
        Tensor::from_vec(flat, (count, width), &Device::Cpu).unwrap()
    }

    fn samples(&self, samples: &[&GoldenSample]) -> Samples {
        let ids = |f: fn(&GoldenSample) -> u32| {
            Tensor::from_iter(samples.iter().map(|s| f(s)), &Device::Cpu).unwrap()
        };
        let lists = |width: usize, f: fn(&GoldenSample) -> Vec<u32>| {
            padded(&samples.iter().map(|s| f(s)).collect::<Vec<_>>(), width)
        };
        let categories = |s: &GoldenSample| {
            let row = |(_, _, c): &(u32, u32, Vec<u32>)| {
                c.iter().copied().chain(std::iter::repeat(0)).take(CATEGORIES).collect::<Vec<u32>>()
            };
            s.history.iter().flat_map(row).collect()
        };
        Samples {
            ids: Ids {
                user: ids(|s| s.user),
                item: ids(|s| s.item),
                creator: ids(|s| s.creator),
                categories: lists(CATEGORIES, |s| s.categories.clone()),
                history_items: lists(HISTORY, |s| s.history.iter().map(|h| h.0).collect()),
                history_creators: lists(HISTORY, |s| s.history.iter().map(|h| h.1).collect()),
                history_categories: lists(HISTORY * CATEGORIES, categories)
                    .reshape((samples.len(), HISTORY, CATEGORIES))
                    .unwrap(),
            },
            item_text: self.texts(samples.iter().map(|s| s.text)),
            history_text: self.texts(samples.iter().map(|s| s.history_text)),
        }
    }

    fn demonstrations(&self) -> Demonstrations {
        let all = &self.demonstrations;
        let (picks, there) = picked(&self.picks, 3);
        Demonstrations {
            samples: self.samples(&all.iter().map(|d| &d.sample).collect::<Vec<_>>()),
            cot: self.texts(all.iter().map(|d| Some(d.cot))),
            label: Tensor::from_iter(all.iter().map(|d| d.label), &Device::Cpu).unwrap(),
            picks,
            there,
        }
    }

    /// All rows of the user table, and of the item table those that are described.
    fn parties(&self) -> Parties {
        let items = self.items.values();
        let categories: Vec<Vec<u32>> = items.clone().map(|i| i.1.clone()).collect();
        Parties {
            users: Tensor::arange(0u32, self.shape.shape().user_rows as u32, &Device::Cpu).unwrap(),
            items: Tensor::from_iter(self.items.keys().copied(), &Device::Cpu).unwrap(),
            creators: Tensor::from_iter(items.clone().map(|i| i.0), &Device::Cpu).unwrap(),
            categories: padded(&categories, CATEGORIES),
            text: self.texts(items.map(|i| i.2)),
        }
    }

    /// One source, with rows of the parties instead of the table's.
    fn source(&self, source: usize) -> super::Neighbours {
        let place = |item: u32| self.items.keys().position(|i| *i == item).unwrap() as u32;
        let row = |n: &Row| (n.0, place(n.1), n.2, n.3, n.4, n.5);
        let rows: Vec<Vec<Row>> =
            self.neighbours.iter().map(|both| both[source].iter().map(row).collect()).collect();
        neighbours(&rows, 4)
    }

    /// The vectors, the reconstruction loss and the loss of a module.
    fn run(&self, module: &Module) -> (Tensor, Tensor, Tensor) {
        let tables = module.tables().unwrap();
        let batch = self.samples(&self.queries.iter().collect::<Vec<_>>());
        let x = module.sample_token(&tables, &batch).unwrap();
        let (vectors, reconstruction) = if module.architecture() == Architecture::Attention {
            let [a, b] = [0, 1].map(|s| self.source(s));
            let vectors = module.attend(&tables, &x, &self.parties(), [&a, &b]).unwrap();
            (vectors, Tensor::zeros((), DType::F32, &Device::Cpu).unwrap())
        } else {
            let demonstrations = self.demonstrations();
            let decoded = module.decode(&tables, &x, &demonstrations).unwrap();
            let loss = module.reconstruction_loss(&decoded, &demonstrations).unwrap();
            (decoded.vector, loss)
        };
        let (rows, d) = vectors.dims2().unwrap();
        let numbers: Vec<f32> = (0..rows * d).map(|n| unit(9000 + (n / d) as u64, n % d)).collect();
        let numbers = Tensor::from_vec(numbers, (rows, d), &Device::Cpu).unwrap();
        let loss = ((&vectors * numbers).unwrap().sum_all().unwrap() + &reconstruction).unwrap();
        (vectors, reconstruction, loss)
    }
}

#[test]
fn passes_agree_with_pytorch() {
    let golden = Golden::read();
    for (name, run) in &golden.runs {
        let architecture = match name.as_str() {
            "attention" => Architecture::Attention,
            "decoder" => Architecture::Decoder,
            "decoder_without_cot" => Architecture::DecoderWithoutCot,
            "mean" => Architecture::Mean,
            other => panic!("what is {other}?"),
        };
        let shape = golden.shape.shape();
        let module = formula_module(architecture, shape, golden.shape.seed);
        let (vectors, reconstruction, loss) = golden.run(&module);
        let expected = run.vectors.iter().flatten();
        for (n, (found, expected)) in floats(&vectors).iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{name} {n}: {found} for {expected}");
        }
        let scalar = |x: &Tensor| f64::from(x.to_scalar::<f32>().unwrap());
        assert!((scalar(&reconstruction) - run.reconstruction).abs() < 1e-5, "{name}");
        assert!((scalar(&loss) - run.loss).abs() < 1e-5 * (1.0 + run.loss.abs()), "{name}");

        let gradients = loss.backward().unwrap();
        assert_eq!(run.gradients.len(), module.variables().len(), "{name}");
        for (index, tensor) in architecture.tensors(&shape).0.iter().enumerate() {
            let variable = &module.variables()[&tensor.name];
            let mut gradient = floats(gradients.get(variable.as_tensor()).unwrap());
            if Module::is_table(&tensor.name) {
                gradient[..shape.d].fill(0.0);
            }
            let [sum, norm, product] = run.gradients[&tensor.name];
            let wide = || gradient.iter().map(|g| f64::from(*g));
            let numbers = (0..).map(|i| f64::from(unit(7000 + index as u64, i)));
            let found = [
                wide().sum(),
                wide().map(|g| g * g).sum::<f64>().sqrt(),
                wide().zip(numbers).map(|(g, n)| g * n).sum(),
            ];
            // A sum of n terms may gather the rounding of all of them.
            let allowed = 2e-5 * norm * (gradient.len() as f64).sqrt() + 1e-6;
            for (found, expected) in found.into_iter().zip([sum, norm, product]) {
                assert!(
                    (found - expected).abs() < allowed,
                    "{name} {}: {found} instead of {expected}, norm {norm}",
                    tensor.name
                );
            }
        }
    }
}
