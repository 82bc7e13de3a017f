//! The optimiser Adam with coupled weight decay, as PyTorch's `Adam(weight_decay)` has it:
//!
//! ```text
//! g ← g + λ θ        m ← m + (1 − β1) (g − m)        v ← β2 v + (1 − β2) g²
//! θ ← θ − lr / (1 − β1^t) · m / (√v / √(1 − β2^t) + ε)
//! ```
//!
//! Tables of ids may have a λ of their own. The decay goes through the moments: also rows of a table that a batch doesn't hold shrink by nearly a whole
//! learning rate a step. Decoupled decay would hardly move them, and rankers come out differently.
//!
//! It costs 8 bytes a trained value, and one pass over them a step.

use super::RankingError;
use super::variables::{Role, Variable, Variables, values};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;

/// The settings of [`Adam`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// lr.
    pub learning_rate: f64,
    /// λ.
    pub weight_decay: f64,
    /// λ of tables of ids, where it is another: an id is in few batches, and decay is what holds it small.
    pub table_decay: Option<f64>,
    /// β1.
    pub beta1: f64,
    /// β2.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            learning_rate: 0.01,
            weight_decay: 1e-4,
            table_decay: None,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        }
    }
}

/// The moments of one variable.
#[derive(Clone, Debug, Default)]
struct Moments {
    /// t: the steps that it took.
    steps: u64,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The optimiser with its state. Variables are known by their names.
#[derive(Clone, Debug)]
pub struct Adam {
    settings: Settings,
    moments: HashMap<String, Moments>,
}

/// What the names of its tensors begin with.
const PREFIX: &str = "adam.";

impl Adam {
    /// Without any step taken.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Adam { settings, moments: HashMap::new() }
    }

    /// Moves every trained variable that has a gradient; one without stays as it is, as in PyTorch. Row 0 of
    /// tables stays zeros.
    ///
    /// # Errors
    /// Where a gradient isn't f32 on the CPU.
    pub fn step(&mut self, variables: &Variables, gradients: &GradStore) -> Result<(), RankingError> {
        for variable in variables.trained() {
            let Some(gradient) = gradients.get(&variable.var) else { continue };
            let moments = self.moments.entry(variable.name.clone()).or_default();
            update(variable, &gradient.contiguous()?, moments, &self.settings)?;
        }
        Ok(())
    }

    /// The state: `adam.NAME.first` and `adam.NAME.second` in the variable's shape and `adam.NAME.steps`
    /// (one i64), in the order of the variables; those that took no step have none.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn state(&self, variables: &Variables) -> Result<Vec<(String, Tensor)>, RankingError> {
        let mut state = Vec::new();
        for variable in variables.trained() {
            let (name, shape) = (&variable.name, variable.var.dims());
            let Some(moments) = self.moments.get(name) else { continue };
            let steps = i64::try_from(moments.steps).unwrap_or(i64::MAX);
            for (part, moments) in [("first", &moments.first), ("second", &moments.second)] {
                let tensor = Tensor::from_slice(moments, shape, &Device::Cpu)?;
                state.push((format!("{PREFIX}{name}.{part}"), tensor));
            }
            state.push((format!("{PREFIX}{name}.steps"), Tensor::new(&[steps], &Device::Cpu)?));
        }
        Ok(state)
    }

    /// Takes a state back: a training that is resumed goes on to the bit. Tensors of other names are left alone.
    ///
    /// # Errors
    /// [`RankingError::File`] where a variable has a part of its state only, or one of another shape.
    pub fn restore(
        &mut self,
        variables: &Variables,
        state: &HashMap<String, Tensor>,
    ) -> Result<(), RankingError> {
        let mut all = HashMap::new();
        for variable in variables.trained() {
            let part = |part: &str, shape: &[usize]| {
                let name = format!("{PREFIX}{}.{part}", variable.name);
                let problem = |problem: String| RankingError::File { name: name.clone(), problem };
                let tensor = state.get(&name).ok_or_else(|| problem("is missing".to_owned()))?;
                if tensor.dims() != shape {
                    return Err(problem(format!("has the shape {:?}, expected {shape:?}", tensor.dims())));
                }
                Ok(tensor)
            };
            let names = ["first", "second", "steps"];
            if names.iter().all(|p| !state.contains_key(&format!("{PREFIX}{}.{p}", variable.name))) {
                continue;
            }
            let shape = variable.var.dims();
            let moments = Moments {
                first: values(part("first", shape)?)?,
                second: values(part("second", shape)?)?,
                steps: part("steps", &[1])?.to_vec1::<i64>()?[0].max(0).unsigned_abs(),
            };
            all.insert(variable.name.clone(), moments);
        }
        self.moments = all;
        Ok(())
    }
}

/// One step of one variable.
fn update(
    variable: &Variable,
    gradient: &Tensor,
    moments: &mut Moments,
    settings: &Settings,
) -> Result<(), RankingError> {
    let count = variable.var.elem_count();
    moments.first.resize(count, 0.0);
    moments.second.resize(count, 0.0);
    moments.steps += 1;
    let (absent, decay) = match variable.role {
        Role::Table => {
            let absent = variable.var.dims().iter().skip(1).product();
            (absent, settings.table_decay.unwrap_or(settings.weight_decay))
        }
        Role::Weight | Role::Statistic => (0, settings.weight_decay),
    };
    let correction = |beta: f64| 1.0 - power(beta, moments.steps);
    let rates = Rates {
        decay: decay as f32,
        first: (1.0 - settings.beta1) as f32,
        second: settings.beta2 as f32,
        square: (1.0 - settings.beta2) as f32,
        root: correction(settings.beta2).sqrt() as f32,
        step: (settings.learning_rate / correction(settings.beta1)) as f32,
        epsilon: settings.epsilon as f32,
    };
    let update = Update { rates, absent, moments: RefCell::new(moments) };
    Ok(variable.var.inplace_op2(gradient, &update)?)
}

/// base^n by squaring, so that it doesn't hang on a maths library.
fn power(base: f64, mut n: u64) -> f64 {
    let (mut square, mut product) = (base, 1.0);
    while n > 0 {
        if n & 1 == 1 {
            product *= square;
        }
        square *= square;
        n >>= 1;
    }
    product
}

/// The numbers of a step, rounded once.
#[derive(Clone, Copy)]
struct Rates {
    decay: f32,
    first: f32,
    second: f32,
    square: f32,
    root: f32,
    step: f32,
    epsilon: f32,
}

/// The step as one pass over memory: as single tensor operations it took a dozen.
struct Update<'a> {
    rates: Rates,
    /// Leading values that stay: row 0 of a table.
    absent: usize,
    moments: RefCell<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        values_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), CpuStorage::F32(gradient)) = (values, gradient) else {
            candle_core::bail!("adam trains f32 variables only")
        };
        let (Some((begin, end)), Some((from, to))) =
            (values_layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            candle_core::bail!("adam needs contiguous variables and gradients")
        };
        let mut moments = self.moments.borrow_mut();
        let Moments { first, second, .. } = &mut **moments;
        if end - begin != first.len() || to - from != first.len() {
            candle_core::bail!("a gradient has {} values, its variable {}", to - from, first.len())
        }
        let rates = self.rates;
        let values = &mut values[begin..end][self.absent..];
        let gradient = &gradient[from..to][self.absent..];
        let moments = first[self.absent..].iter_mut().zip(&mut second[self.absent..]);
        for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            let gradient = gradient + rates.decay * *value;
            *first += rates.first * (gradient - *first);
            *second = rates.second * *second + rates.square * gradient * gradient;
            *value -= rates.step * *first / (second.sqrt() / rates.root + rates.epsilon);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranking::variables::Fill;

    /// A loss whose gradient by x is 2 x − 1 over all values, and by t likewise.
    fn gradients(variables: &Variables) -> GradStore {
        let part = |name: &str| {
            let x = variables.get(name).unwrap().var.as_tensor();
            (x.sqr().unwrap() - x).unwrap().sum_all().unwrap()
        };
        (part("x") + part("t")).unwrap().backward().unwrap()
    }

    fn variables() -> Variables {
        let mut variables = Variables::new(5);
        variables.create("x", &[3, 2], Role::Weight, Fill::Normal(1.0)).unwrap();
        variables.create("t", &[4, 2], Role::Table, Fill::Normal(1.0)).unwrap();
        variables.create("idle", &[2], Role::Weight, Fill::Normal(1.0)).unwrap();
        variables.create("s", &[2], Role::Statistic, Fill::Constant(1.0)).unwrap();
        variables
    }

    fn all(variables: &Variables) -> Vec<Vec<f32>> {
        variables.iter().map(|v| values(&v.var).unwrap()).collect()
    }

    #[test]
    fn steps_follow_the_formula_in_double_precision() {
        let variables = variables();
        // By role: "x" is a weight, "t" a table.
        let decays = [0.05, 0.2];
        let settings =
            Settings { weight_decay: decays[0], table_decay: Some(decays[1]), ..Settings::default() };
        let mut adam = Adam::new(settings);
        let begin = all(&variables);
        for _ in 0..5 {
            adam.step(&variables, &gradients(&variables)).unwrap();
        }
        let end = all(&variables);
        for place in [0, 1] {
            for (i, (begin, end)) in begin[place].iter().zip(&end[place]).enumerate() {
                let (mut x, mut m, mut v) = (f64::from(*begin), 0.0, 0.0);
                for t in 1..=5 {
                    let g = 2.0 * x - 1.0 + decays[place] * x;
                    m = 0.9 * m + 0.1 * g;
                    v = 0.999 * v + 0.001 * g * g;
                    x -= 0.01 / (1.0 - 0.9f64.powi(t)) * m / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
                }
                let absent = place == 1 && i < 2;
                assert!((f64::from(*end) - if absent { 0.0 } else { x }).abs() < 1e-6, "{place} {i}");
            }
        }
        assert_eq!(begin[2..], end[2..], "no gradient, no step");
    }

    #[test]
    fn tables_decay_as_all_else_does_unless_they_are_told() {
        let end = |table_decay| {
            let variables = variables();
            let mut adam = Adam::new(Settings { weight_decay: 0.05, table_decay, ..Settings::default() });
            (0..3).for_each(|_| adam.step(&variables, &gradients(&variables)).unwrap());
            all(&variables)
        };
        assert_eq!(end(None), end(Some(0.05)));
        let other = end(Some(0.0));
        assert_eq!(end(None)[0], other[0]);
        assert_ne!(end(None)[1], other[1]);
    }

    #[test]
    fn a_restored_state_goes_on_to_the_bit() {
        let (whole, cut) = (variables(), variables());
        let mut adam = Adam::new(Settings::default());
        for _ in 0..6 {
            adam.step(&whole, &gradients(&whole)).unwrap();
        }
        let mut adam = Adam::new(Settings::default());
        for _ in 0..3 {
            adam.step(&cut, &gradients(&cut)).unwrap();
        }
        let state: HashMap<String, Tensor> = adam.state(&cut).unwrap().into_iter().collect();
        assert_eq!(state.len(), 6, "the idle one has no state");
        let mut resumed = Adam::new(Settings::default());
        resumed.restore(&cut, &state).unwrap();
        for _ in 0..3 {
            resumed.step(&cut, &gradients(&cut)).unwrap();
        }
        assert_eq!(all(&whole), all(&cut));

        let mut short = state.clone();
        short.remove("adam.x.second");
        let missing = resumed.restore(&cut, &short).unwrap_err().to_string();
        assert!(missing.contains("`adam.x.second` is missing"), "{missing}");
        let mut wrong = state;
        wrong.insert("adam.t.first".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
        let shape = resumed.restore(&cut, &wrong).unwrap_err().to_string();
        assert!(shape.contains("has the shape [1], expected [4, 2]"), "{shape}");
    }

    #[test]
    fn powers_are_right() {
        for n in [0, 1, 2, 3, 10, 999] {
            assert!((power(0.999, n) - 0.999f64.powi(n as i32)).abs() < 1e-12, "{n}");
        }
    }
}
