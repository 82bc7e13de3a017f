//! Every variable has a gradient, and it is the slope that finite differences see.

use super::super::{Architecture, Demonstrations, Module, Neighbours, Parties, Samples};
use super::world::{World, crowded, plain};
use super::{Row, floats, formula_module, neighbours};
use crate::ict::tests::unit;
use candle_core::{DType, Device, Tensor, Var};

const ALL: [Architecture; 4] =
    [Architecture::Attention, Architecture::Decoder, Architecture::DecoderWithoutCot, Architecture::Mean];

struct Problem {
    module: Module,
    batch: Samples,
    demonstrations: Demonstrations,
    parties: Parties,
    sources: [Neighbours; 2],
    /// What the vectors are multiplied with, so that the loss has a slope everywhere.
    direction: Tensor,
}

impl Problem {
    fn new(architecture: Architecture) -> Self {
        let d = 8;
        let mut world = World::new(crowded(d, 12));
        let batch = world.samples(&[
            plain("u1", "i1", &["i2", "i3"]),
            plain("u2", "i4", &[]),
            plain("u3", "i7", &["i1", "i6", "i4"]),
            plain("u4", "i5", &["gone"]),
        ]);
        let samples = [
            plain("u7", "i2", &["i1", "i3"]),
            plain("u8", "i3", &["i6"]),
            plain("u9", "i7", &["i2", "i4", "gone"]),
        ];
        let picks = [vec![0, 1, 2], vec![], vec![2], vec![1, 0]];
        let demonstrations = world.demonstrations(&samples, &[101, 102, 103], &[1, 0, 1], &picks, 3);
        let parties = world.parties(&["u1", "u7", "u8", "u9"], &["i1", "i2", "i4", "i6"]);
        let row = |n: i64| -> Row {
            let label = u32::from(n % 3 == 0);
            (n as u32 % 4, (n * 3 % 4) as u32, label, (n - 4) << 25, 20 * n as u64, n as i32 * 99 - 500)
        };
        let list = |from: i64, n: i64| (from..from + n).map(row).collect::<Vec<Row>>();
        let sources = [
            [list(0, 5), list(2, 0), list(5, 2), list(1, 1)],
            [list(3, 1), list(1, 0), list(0, 6), list(2, 3)],
        ]
        .map(|rows| neighbours(&rows, 6));
        let direction: Vec<f32> = (0..4 * d).map(|i| unit(77, i)).collect();
        let direction = Tensor::from_vec(direction, (4, d), &Device::Cpu).unwrap();
        let module = formula_module(architecture, world.compact(), 5);
        Problem { module, batch, demonstrations, parties, sources, direction }
    }

    /// The loss in f64: its last sum must not cost the digits that a difference needs.
    fn loss(&self) -> Tensor {
        let module = &self.module;
        let tables = module.tables().unwrap();
        let x = module.sample_token(&tables, &self.batch).unwrap();
        let [a, b] = &self.sources;
        let (vector, reconstruction) = match module.architecture() {
            Architecture::Attention => (module.attend(&tables, &x, &self.parties, [a, b]).unwrap(), None),
            _ => {
                let decoded = module.decode(&tables, &x, &self.demonstrations).unwrap();
                let loss = module.reconstruction_loss(&decoded, &self.demonstrations).unwrap();
                (decoded.vector, Some(loss))
            }
        };
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let loss = (wide(&vector) * wide(&self.direction)).unwrap().sum_all().unwrap();
        match reconstruction {
            Some(reconstruction) => (loss + wide(&reconstruction)).unwrap(),
            None => loss,
        }
    }

    /// Each variable's gradient, in the order of names.
    fn gradients(&self) -> Vec<(&str, &Var, Vec<f32>)> {
        let gradients = self.loss().backward().unwrap();
        let gradient = |name: &str, variable: &Var| {
            let gradient = gradients.get(variable.as_tensor());
            floats(gradient.unwrap_or_else(|| panic!("{name} has no gradient")))
        };
        let variables = self.module.variables().iter();
        variables.map(|(name, variable)| (name.as_str(), variable, gradient(name, variable))).collect()
    }

    /// The loss where a variable is moved.
    fn moved(&self, variable: &Var, direction: &[f32], step: f32) -> f64 {
        let before = variable.as_tensor().copy().unwrap();
        let values: Vec<f32> = floats(&before).iter().zip(direction).map(|(x, d)| x + step * d).collect();
        variable.set(&Tensor::from_vec(values, before.shape().clone(), &Device::Cpu).unwrap()).unwrap();
        let loss = self.loss().to_scalar::<f64>().unwrap();
        variable.set(&before).unwrap();
        loss
    }
}

#[test]
fn every_variable_has_a_gradient() {
    for architecture in ALL {
        let problem = Problem::new(architecture);
        for (name, _, gradient) in problem.gradients() {
            assert!(gradient.iter().all(|g| g.is_finite()), "{architecture:?} {name}");
            assert!(gradient.iter().any(|g| g.abs() > 1e-6), "{architecture:?} {name} is never moved");
        }
    }
}

/// Along the gradient itself, and along two directions that know nothing of it. A long step meets
/// bends, a short one the rounding of f32: one of them has to agree.
#[test]
fn gradients_are_the_slopes_of_central_differences() {
    const STEPS: [f32; 4] = [1.6e-2, 4e-3, 1e-3, 2.5e-4];
    for architecture in ALL {
        let problem = Problem::new(architecture);
        for (index, (name, variable, gradient)) in problem.gradients().into_iter().enumerate() {
            let drawn = |stream: u64| (0..gradient.len()).map(|i| unit(stream + index as u64, i)).collect();
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let directions: [Vec<f32>; 3] = [gradient.clone(), drawn(300), drawn(600)];
            for (which, direction) in directions.into_iter().enumerate() {
                let length = norm(&direction);
                let unit: Vec<f32> = direction.iter().map(|x| (f64::from(*x) / length) as f32).collect();
                let slope =
                    gradient.iter().zip(&unit).map(|(g, u)| f64::from(*g) * f64::from(*u)).sum::<f64>();
                let mut seen = Vec::new();
                let agrees = STEPS.iter().any(|step| {
                    let [up, down] = [*step, -step].map(|step| problem.moved(variable, &unit, step));
                    let step = f64::from(*step);
                    let difference = (up - down) / (2.0 * step);
                    seen.push(difference);
                    (difference - slope).abs() < 0.005 * norm(&gradient) + 1e-6 / step
                });
                assert!(
                    agrees,
                    "{architecture:?} {name} direction {which}: {slope} by gradient, {seen:?} by difference"
                );
            }
        }
    }
}

/// An absent neighbour or demonstration has no say, and gets none.
#[test]
fn what_is_absent_moves_nothing() {
    let problem = Problem::new(Architecture::Attention);
    let [a, _] = &problem.sources;
    let tables = problem.module.tables().unwrap();
    let x = problem.module.sample_token(&tables, &problem.batch).unwrap();
    let score = Var::from_tensor(&a.score).unwrap();
    let source = Neighbours { score: score.as_tensor().clone(), ..a.clone() };
    let [_, b] = &problem.sources;
    let vector = problem.module.attend(&tables, &x, &problem.parties, [&source, b]).unwrap();
    let gradients = (vector * &problem.direction).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = floats(gradients.get(score.as_tensor()).unwrap());
    for (n, (gradient, there)) in gradient.iter().zip(floats(&a.there)).enumerate() {
        // The only neighbour of the fourth query has the weight 1 whatever its score.
        let counts = there == 1.0 && n / 6 != 3;
        assert_eq!(*gradient != 0.0, counts, "neighbour {n}: {gradient}");
    }
}
