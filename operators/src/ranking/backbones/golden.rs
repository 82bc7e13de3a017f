//! The backbones against `golden/backbones.json` (PyTorch in double precision) and against finite differences.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ranking::adam::{self, Adam};
use crate::ranking::layers::Masks;
use crate::ranking::loss::cross_entropy;
use crate::ranking::random::Stream;
use crate::ranking::tables::Rows;
use crate::ranking::variables::{Role, values};
use crate::splitmix::{STEP, mix};
use candle_core::backprop::GradStore;
use candle_core::{Device, Var};
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    sizes: Sizes,
    rows: Rows,
    ids: GoldenIds,
    labels: Vec<f32>,
    adam: GoldenAdam,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Sizes {
    d: usize,
    hidden: Vec<usize>,
    cin: Vec<usize>,
    attention_layers: usize,
    attention_heads: usize,
    attention_width: usize,
    cross_layers: usize,
    mixed_layers: usize,
    experts: usize,
    rank: usize,
    entry_hidden: [usize; 2],
    scalars: usize,
}

#[derive(Deserialize)]
struct GoldenAdam {
    lr: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct GoldenIds {
    user: Vec<u32>,
    item: Vec<u32>,
    creator: Vec<u32>,
    categories: Vec<Vec<u32>>,
    history_items: Vec<Vec<u32>>,
    history_creators: Vec<Vec<u32>>,
    history_categories: Vec<Vec<Vec<u32>>>,
}

#[derive(Deserialize)]
struct Case {
    kind: Kind,
    arm: String,
    variables: Vec<(String, Vec<usize>)>,
    logits: Vec<f64>,
    losses: Vec<f64>,
    gradients: BTreeMap<String, [f64; 2]>,
    input_gradients: BTreeMap<String, [f64; 2]>,
    after: BTreeMap<String, [f64; 2]>,
    served: Vec<f64>,
}

/// The formula of `golden/backbones.py`.
fn value(stream: u64, i: usize) -> f32 {
    let z = mix(stream.wrapping_mul(STEP).wrapping_add(i as u64));
    ((z >> 44) as i64 - (1 << 19)) as f32 / (1 << 19) as f32
}

pub(super) fn drawn(stream: u64, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_vec((0..count).map(|i| value(stream, i)).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// Norm, and the projection that tells places apart.
fn digest(tensor: &[f32]) -> [f64; 2] {
    let norm = tensor.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let projection = tensor.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(value(800_000, i)));
    [norm, projection.sum()]
}

impl GoldenIds {
    fn ids(&self) -> Ids {
        let two = |x: &Vec<Vec<u32>>| Tensor::new(x.clone(), &Device::Cpu).unwrap();
        Ids {
            user: Tensor::new(&self.user[..], &Device::Cpu).unwrap(),
            item: Tensor::new(&self.item[..], &Device::Cpu).unwrap(),
            creator: Tensor::new(&self.creator[..], &Device::Cpu).unwrap(),
            categories: two(&self.categories),
            history_items: two(&self.history_items),
            history_creators: two(&self.history_creators),
            history_categories: Tensor::new(self.history_categories.clone(), &Device::Cpu).unwrap(),
        }
    }
}

/// A backbone with its variables and a batch; the batch's float inputs are variables as well, for gradients.
struct World {
    settings: Settings,
    variables: Variables,
    backbone: Box<dyn Backbone>,
    inputs: Inputs,
    floats: Vec<(&'static str, Var)>,
    labels: Tensor,
}

impl World {
    fn new(golden: &Golden, kind: Kind, all: bool, dropout: f64) -> World {
        let sizes = &golden.sizes;
        let settings = Settings {
            d: sizes.d,
            text: all,
            scalars: if all { sizes.scalars } else { 0 },
            vector: all,
            hidden: sizes.hidden.clone(),
            dropout,
            cin: sizes.cin.clone(),
            attention_layers: sizes.attention_layers,
            attention_heads: sizes.attention_heads,
            attention_width: sizes.attention_width,
            cross_layers: sizes.cross_layers,
            mixed_layers: sizes.mixed_layers,
            experts: sizes.experts,
            rank: sizes.rank,
            entry_hidden: sizes.entry_hidden,
        };
        let mut variables = Variables::new(1);
        let tables = golden.rows.create(settings.d, kind.init(), &mut variables).unwrap();
        let backbone = kind.build(&settings, &mut variables).unwrap();
        let batch = golden.labels.len();
        let widths = [settings.d, settings.d, settings.d, sizes.scalars];
        let names = ["vector", "item text", "history text", "scalars"];
        let floats: Vec<(&str, Var)> = names
            .into_iter()
            .zip(widths)
            .zip(700_001..)
            .filter(|_| all)
            .map(|((name, width), stream)| (name, Var::from_tensor(&drawn(stream, &[batch, width])).unwrap()))
            .collect();
        let float = |i: usize| floats.get(i).map(|(_, var)| var.as_tensor().clone());
        let inputs = Inputs {
            ids: golden.ids.ids(),
            tables,
            text: float(1).zip(float(2)).map(|(item, history)| [item, history]),
            scalars: float(3),
            vector: float(0),
        };
        let labels = Tensor::new(&golden.labels[..], &Device::Cpu).unwrap();
        World { settings, variables, backbone, inputs, floats, labels }
    }

    /// Weights of the formula.
    fn weigh(&self, case: usize) {
        for (v, variable) in self.variables.iter().enumerate() {
            let (name, shape) = (&variable.name, variable.var.dims());
            let one = name.ends_with(".norm.weight") || name.ends_with(".running_var");
            let mut all = values(&drawn((1000 * case + v) as u64, shape)).unwrap();
            for x in &mut all {
                *x = *x / 2.0 + if one { 1.0 } else { 0.0 };
            }
            if variable.role == Role::Table {
                all[..shape[1]].fill(0.0);
            }
            variable.var.set(&Tensor::from_vec(all, shape, &Device::Cpu).unwrap()).unwrap();
        }
    }

    fn logits(&self, phase: &mut Phase) -> Tensor {
        self.backbone.logits(&self.inputs, phase).unwrap()
    }

    fn step(&self, phase: &mut Phase) -> (f64, GradStore) {
        let loss = cross_entropy(&self.logits(phase), &self.labels).unwrap();
        (f64::from(loss.to_scalar::<f32>().unwrap()), loss.backward().unwrap())
    }

    /// The loss in f64 from the logits: less rounding for finite differences.
    fn loss(&self, phase: &mut Phase) -> f64 {
        let logits = values(&self.logits(phase)).unwrap();
        let labels = values(&self.labels).unwrap();
        let rows = logits.iter().zip(&labels).map(|(z, y)| {
            let (z, y) = (f64::from(*z), f64::from(*y));
            z.max(0.0) - z * y + (-z.abs()).exp().ln_1p()
        });
        rows.sum::<f64>() / labels.len() as f64
    }

    /// Everything that gets a gradient: its name, its value, how many leading values are none of it.
    fn leaves(&self) -> Vec<(String, Var, usize)> {
        let variables = self.variables.trained().map(|v| {
            let absent = if v.role == Role::Table { self.settings.d } else { 0 };
            (v.name.clone(), v.var.clone(), absent)
        });
        let floats = self.floats.iter().map(|(name, var)| ((*name).to_owned(), var.clone(), 0));
        variables.chain(floats).collect()
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../golden/backbones.json")).unwrap()
}

/// The gradient of a leaf without the row of absent ids.
fn gradient(gradients: &GradStore, var: &Var, absent: usize) -> Vec<f32> {
    let mut all = values(gradients.get(var).unwrap()).unwrap();
    all[..absent].fill(0.0);
    all
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let scale = expected.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs();
        assert!(off <= tolerance * (scale + 1e-2), "{what}: {found} is not {expected}");
    }
}

#[test]
fn forward_gradients_and_steps_match_pytorch() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 12);
    for (number, case) in golden.cases.iter().enumerate() {
        let at = |what: &str| format!("{} {} {what}", case.kind.name(), case.arm);
        let world = World::new(&golden, case.kind, case.arm == "all", 0.0);
        let names: Vec<(String, Vec<usize>)> =
            world.variables.iter().map(|v| (v.name.clone(), v.var.dims().to_vec())).collect();
        assert_eq!(names, case.variables, "{}", at("variables"));
        world.weigh(number);

        let settings = adam::Settings {
            learning_rate: golden.adam.lr,
            weight_decay: golden.adam.weight_decay,
            ..adam::Settings::default()
        };
        let mut adam = Adam::new(settings);
        for (step, expected) in case.losses.iter().enumerate() {
            let phase = || Phase::Training(Masks::new(1, step as u64));
            if step == 0 {
                // A throw-away copy of the statistics: this pass moves them as well.
                let before = world.variables.snapshot().unwrap();
                let logits: Vec<f64> =
                    values(&world.logits(&mut phase())).unwrap().iter().map(|x| f64::from(*x)).collect();
                close(&at("logits"), &logits, &case.logits, 1e-5);
                world.variables.restore(&before).unwrap();
            }
            let (loss, gradients) = world.step(&mut phase());
            close(&at("loss"), &[loss], &[*expected], 1e-5);
            if step == 0 {
                for (name, var, absent) in world.leaves() {
                    let found = digest(&gradient(&gradients, &var, absent));
                    let expected = case.gradients.get(&name).or(case.input_gradients.get(&name)).unwrap();
                    close(&at(&format!("gradient of {name}")), &found, expected, 1e-5);
                }
            }
            adam.step(&world.variables, &gradients).unwrap();
        }
        for variable in world.variables.iter() {
            let found = digest(&values(&variable.var).unwrap());
            close(&at(&format!("{} after", variable.name)), &found, &case.after[&variable.name], 1e-5);
        }
        let served: Vec<f64> =
            values(&world.logits(&mut Phase::Serving)).unwrap().iter().map(|x| f64::from(*x)).collect();
        close(&at("served"), &served, &case.served, 2e-5);
    }
}

/// Central differences in f32: along random directions of unit length in each leaf, with a step of 2^-8. Rounding
/// costs about 1e-7 / 2^-8 and truncation the step's square, so 1e-4 + 0.5% of the slope holds both; an error of a
/// factor or a sign would be far beyond. Where a ReLU turns within a step the difference is of two slopes and
/// says nothing: the weights are of a set in which none does, even within two steps.
#[test]
fn gradients_match_finite_differences() {
    const STEP: f64 = 1.0 / 256.0;
    const WEIGHTS: usize = 69;
    let golden = golden();
    for kind in Kind::ALL {
        let world = World::new(&golden, kind, true, 0.2);
        world.weigh(WEIGHTS);
        let phase = || Phase::Training(Masks::new(3, 1));
        let (_, gradients) = world.step(&mut phase());
        for (name, var, absent) in world.leaves() {
            let base = values(&var).unwrap();
            let slopes = gradient(&gradients, &var, absent);
            for attempt in 0..3 {
                let mut stream = Stream::new(attempt, &name);
                let mut direction: Vec<f64> = base.iter().map(|_| stream.normal()).collect();
                direction[..absent].fill(0.0);
                let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
                let moved = |step: f64| {
                    let values: Vec<f32> = base
                        .iter()
                        .zip(&direction)
                        .map(|(x, v)| (f64::from(*x) + step * v / length) as f32)
                        .collect();
                    var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
                    world.loss(&mut phase())
                };
                let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                let slope: f64 = slopes.iter().zip(&direction).map(|(g, v)| f64::from(*g) * v / length).sum();
                let off = (difference - slope).abs();
                assert!(
                    off < 1e-4 + 0.005 * slope.abs(),
                    "{} {name}: {difference} is not {slope}",
                    kind.name()
                );
            }
            var.set(&Tensor::from_vec(base, var.dims(), &Device::Cpu).unwrap()).unwrap();
        }
    }
}
