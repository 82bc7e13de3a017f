//! The layers that backbones are built of, all of them differentiable.
//!
//! The tensor library's fused softmax, norms and rotary embeddings have no backward pass: gradients stop there
//! without a word. Only plain operations are used here, and that of `frozen`, which has a
//! backward pass of its own; a test asks every variable for its gradient.

use super::RankingError;
use super::frozen::linear_of_frozen;
use super::random::Stream;
use super::variables::{Fill, Init, Role, Variables};
use candle_core::{Tensor, Var};

/// Where layers make their variables, and how they are drawn.
#[derive(Debug)]
pub struct Maker<'a> {
    /// The set that they go into.
    pub variables: &'a mut Variables,
    /// The rule for first values.
    pub init: Init,
}

impl Maker<'_> {
    /// A weight of any shape that maps `inputs` to `outputs`.
    ///
    /// # Errors
    /// Where the name is taken.
    pub fn weight(
        &mut self,
        name: &str,
        shape: &[usize],
        inputs: usize,
        outputs: usize,
    ) -> Result<Tensor, RankingError> {
        let fill = match self.init {
            Init::Torch => Fill::Uniform(1.0 / (inputs as f64).sqrt()),
            Init::XavierNormal => Fill::Normal((2.0 / (inputs + outputs) as f64).sqrt()),
        };
        self.variables.create(name, shape, Role::Weight, fill)
    }

    /// A bias `[outputs]`.
    ///
    /// # Errors
    /// Where the name is taken.
    pub fn bias(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Tensor, RankingError> {
        let fill = match self.init {
            Init::Torch => Fill::Uniform(1.0 / (inputs as f64).sqrt()),
            Init::XavierNormal => Fill::Constant(0.0),
        };
        self.variables.create(name, &[outputs], Role::Weight, fill)
    }
}

/// Whether a forward pass trains: drops values and moves running statistics.
#[derive(Clone, Debug)]
pub enum Phase {
    /// It does, with these masks.
    Training(Masks),
    /// It is a pure function of weights and inputs.
    Serving,
}

/// The dropout masks of one training step. A step's masks don't depend on the steps before it, so a training
/// that is resumed finds the same ones.
#[derive(Clone, Debug)]
pub struct Masks(Stream);

impl Masks {
    /// Those of a seed and a step. Layers draw from them in the order of the forward pass.
    #[must_use]
    pub fn new(seed: u64, step: u64) -> Self {
        Masks(Stream::new(seed, &format!("dropout {step}")))
    }
}

impl Phase {
    /// In training sets each value to 0 with probability `rate` and scales the others by 1 / (1 − rate).
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn dropout(&mut self, x: &Tensor, rate: f64) -> Result<Tensor, RankingError> {
        match self {
            Phase::Training(Masks(stream)) if rate > 0.0 => {
                let kept = (1.0 / (1.0 - rate)) as f32;
                let mask: Vec<f32> =
                    (0..x.elem_count()).map(|_| if stream.unit() < rate { 0.0 } else { kept }).collect();
                Ok((x * Tensor::from_vec(mask, x.dims(), x.device())?)?)
            }
            _ => Ok(x.clone()),
        }
    }
}

/// y = W x + b over the last dimension; W is [outputs, inputs] as in a file.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> candle_core::Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    // One product of two matrices: a batch of small ones is slower.
    let y = x.reshape(((), inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    y.reshape(shape)
}

/// A layer of [`linear`].
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Makes `NAME.weight` and, where `bias` says so, `NAME.bias`.
    ///
    /// # Errors
    /// Where a name is taken.
    pub fn new(
        maker: &mut Maker<'_>,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Self, RankingError> {
        let weight = maker.weight(&format!("{name}.weight"), &[outputs, inputs], inputs, outputs)?;
        let bias = bias.then(|| maker.bias(&format!("{name}.bias"), inputs, outputs)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// [.., inputs] to [.., outputs].
    ///
    /// # Errors
    /// Where the last dimension isn't `inputs`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, RankingError> {
        Ok(linear(x, &self.weight, self.bias.as_ref())?)
    }

    /// W [outputs, inputs].
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// b `[outputs]`, where there is one.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// What keeps a variance of 0 from being divided by.
const NORM_EPSILON: f64 = 1e-5;
/// The weight of a batch in the running statistics.
const NORM_MOMENTUM: f64 = 0.1;

/// Batch normalisation of columns, as PyTorch has it: in training by the batch's mean and its variance over B,
/// which move the running ones (there the variance is over B − 1); in serving by the running ones.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_variance: Var,
}

impl BatchNorm {
    /// Makes `NAME.weight` (ones), `NAME.bias` (zeros), `NAME.running_mean` (zeros), `NAME.running_var` (ones).
    ///
    /// # Errors
    /// Where a name is taken.
    pub fn new(maker: &mut Maker<'_>, name: &str, width: usize) -> Result<Self, RankingError> {
        let mut constant = |part: &str, value: f32, role| {
            maker.variables.create(&format!("{name}.{part}"), &[width], role, Fill::Constant(value))
        };
        Ok(BatchNorm {
            weight: constant("weight", 1.0, Role::Weight)?,
            bias: constant("bias", 0.0, Role::Weight)?,
            running_mean: Var::from_tensor(&constant("running_mean", 0.0, Role::Statistic)?)?,
            running_variance: Var::from_tensor(&constant("running_var", 1.0, Role::Statistic)?)?,
        })
    }

    /// [B, width] to the same shape.
    ///
    /// # Errors
    /// [`RankingError::Batch`] in training on fewer than 2 rows.
    pub fn forward(&self, x: &Tensor, phase: &Phase) -> Result<Tensor, RankingError> {
        let (centred, variance) = match phase {
            Phase::Training(_) => {
                let rows = x.dim(0)?;
                if rows < 2 {
                    return Err(RankingError::Batch { rows });
                }
                let mean = x.mean_keepdim(0)?;
                let centred = x.broadcast_sub(&mean)?;
                let variance = centred.sqr()?.mean_keepdim(0)?;
                let unbiased = rows as f64 / (rows - 1) as f64;
                follow(&self.running_mean, &mean, 1.0)?;
                follow(&self.running_variance, &variance, unbiased)?;
                (centred, variance)
            }
            Phase::Serving => {
                let centred = x.broadcast_sub(&self.running_mean.as_detached_tensor())?;
                (centred, self.running_variance.as_detached_tensor().unsqueeze(0)?)
            }
        };
        let deviation = variance.affine(1.0, NORM_EPSILON)?.sqrt()?;
        Ok(centred.broadcast_div(&deviation)?.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

/// Moves a running statistic towards that of the batch, times a factor.
fn follow(running: &Var, batch: &Tensor, factor: f64) -> Result<(), RankingError> {
    let batch = batch.detach().squeeze(0)?.affine(NORM_MOMENTUM * factor, 0.0)?;
    Ok(running.set(&(running.as_detached_tensor().affine(1.0 - NORM_MOMENTUM, 0.0)? + batch)?)?)
}

/// Hidden layers, each dropout → linear → (batch normalisation) → ReLU.
#[derive(Clone, Debug)]
pub struct Mlp {
    layers: Vec<(Linear, Option<BatchNorm>)>,
    dropout: f64,
}

impl Mlp {
    /// Makes `NAME.L` for each hidden layer, and `NAME.L.norm` where `norm` says so. A layer that is normalised
    /// has no bias of its own: the mean would take it away again.
    ///
    /// # Errors
    /// Where a name is taken.
    pub fn new(
        maker: &mut Maker<'_>,
        name: &str,
        inputs: usize,
        hidden: &[usize],
        dropout: f64,
        norm: bool,
    ) -> Result<Self, RankingError> {
        let mut layers = Vec::with_capacity(hidden.len());
        let mut width = inputs;
        for (l, outputs) in hidden.iter().enumerate() {
            let name = format!("{name}.{l}");
            let linear = Linear::new(maker, &name, width, *outputs, !norm)?;
            let norm = norm.then(|| BatchNorm::new(maker, &format!("{name}.norm"), *outputs)).transpose()?;
            layers.push((linear, norm));
            width = *outputs;
        }
        Ok(Mlp { layers, dropout })
    }

    /// [B, inputs] to [B, the last hidden width].
    ///
    /// # Errors
    /// As its layers have them.
    pub fn forward(&self, x: &Tensor, phase: &mut Phase) -> Result<Tensor, RankingError> {
        let mut x = x.clone();
        for (linear, norm) in &self.layers {
            x = linear.forward(&phase.dropout(&x, self.dropout)?)?;
            if let Some(norm) = norm {
                x = norm.forward(&x, phase)?;
            }
            x = x.relu()?;
        }
        Ok(x)
    }
}

/// Hidden layers and a linear one to a logit.
#[derive(Clone, Debug)]
pub struct Tower {
    hidden: Mlp,
    out: Linear,
}

impl Tower {
    /// Makes `NAME.L` and `NAME.out`.
    ///
    /// # Errors
    /// Where a name is taken.
    pub fn new(
        maker: &mut Maker<'_>,
        name: &str,
        inputs: usize,
        hidden: &[usize],
        dropout: f64,
    ) -> Result<Self, RankingError> {
        let last = hidden.last().copied().unwrap_or(inputs);
        Ok(Tower {
            hidden: Mlp::new(maker, name, inputs, hidden, dropout, false)?,
            out: Linear::new(maker, &format!("{name}.out"), last, 1, true)?,
        })
    }

    /// [B, inputs] to [B, 1].
    ///
    /// # Errors
    /// As its layers have them.
    pub fn forward(&self, x: &Tensor, phase: &mut Phase) -> Result<Tensor, RankingError> {
        self.out.forward(&self.hidden.forward(x, phase)?)
    }
}

/// Linear → ReLU → linear: how a text vector [B, D] becomes a field vector [B, d]. Texts are data: no gradient
/// reaches them.
#[derive(Clone, Debug)]
pub struct Projection {
    first: Linear,
    second: Linear,
}

impl Projection {
    /// Makes `NAME.0` and `NAME.2`, the names of `schemas/weights.md`.
    ///
    /// # Errors
    /// Where a name is taken.
    pub fn new(
        maker: &mut Maker<'_>,
        name: &str,
        inputs: usize,
        hidden: usize,
        outputs: usize,
    ) -> Result<Self, RankingError> {
        Ok(Projection {
            first: Linear::new(maker, &format!("{name}.0"), inputs, hidden, true)?,
            second: Linear::new(maker, &format!("{name}.2"), hidden, outputs, true)?,
        })
    }

    /// [B, inputs] to [B, outputs].
    ///
    /// # Errors
    /// Where the last dimension isn't `inputs`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, RankingError> {
        let hidden = linear_of_frozen(x, self.first.weight(), self.first.bias())?;
        self.second.forward(&hidden.relu()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranking::variables::values;
    use candle_core::Device;

    fn sequence(shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn dropout_is_the_steps_own_and_keeps_the_mean() {
        let x = Tensor::ones((200, 50), candle_core::DType::F32, &Device::Cpu).unwrap();
        let drop =
            |seed, step| values(&Phase::Training(Masks::new(seed, step)).dropout(&x, 0.1).unwrap()).unwrap();
        assert_eq!(drop(1, 5), drop(1, 5));
        assert_ne!(drop(1, 5), drop(1, 6));
        assert_ne!(drop(1, 5), drop(2, 5));
        let dropped = drop(1, 5).iter().filter(|x| **x == 0.0).count() as f64 / 10_000.0;
        let mean = drop(1, 5).iter().sum::<f32>() / 10_000.0;
        assert!((dropped - 0.1).abs() < 0.01 && (mean - 1.0).abs() < 0.02, "{dropped} {mean}");
        assert_eq!(values(&Phase::Serving.dropout(&x, 0.1).unwrap()).unwrap(), values(&x).unwrap());
        let mut phase = Phase::Training(Masks::new(1, 5));
        let first = values(&phase.dropout(&x, 0.1).unwrap()).unwrap();
        assert_ne!(first, values(&phase.dropout(&x, 0.1).unwrap()).unwrap(), "each layer draws its own");
    }

    #[test]
    fn first_values_follow_their_rule() {
        for (init, bias) in [(Init::Torch, true), (Init::XavierNormal, false)] {
            let mut variables = Variables::new(11);
            let mut maker = Maker { variables: &mut variables, init };
            let linear = Linear::new(&mut maker, "l", 300, 100, true).unwrap();
            let weights = values(linear.weight()).unwrap();
            let variance = weights.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / weights.len() as f64;
            let expected = match init {
                Init::Torch => 1.0 / 300.0 / 3.0,
                Init::XavierNormal => 2.0 / 400.0,
            };
            assert!((variance / expected - 1.0).abs() < 0.03, "{init:?} {variance} {expected}");
            assert_eq!(values(linear.bias().unwrap()).unwrap().iter().any(|b| *b != 0.0), bias);
        }
    }

    #[test]
    fn linear_layers_take_any_rank() {
        let mut variables = Variables::new(11);
        let mut maker = Maker { variables: &mut variables, init: Init::Torch };
        let linear = Linear::new(&mut maker, "l", 4, 3, true).unwrap();
        let x = sequence(&[2, 5, 4]);
        let flat = linear.forward(&x.reshape((10, 4)).unwrap()).unwrap();
        let deep = linear.forward(&x).unwrap();
        assert_eq!(deep.dims(), [2, 5, 3]);
        assert_eq!(values(&flat).unwrap(), values(&deep).unwrap());
    }

    #[test]
    fn batch_normalisation_learns_what_it_serves_with() {
        let mut variables = Variables::new(11);
        let mut maker = Maker { variables: &mut variables, init: Init::Torch };
        let norm = BatchNorm::new(&mut maker, "n", 3).unwrap();
        let x = sequence(&[8, 3]);
        let mut training = Phase::Training(Masks::new(1, 1));
        let y = values(&norm.forward(&x, &training).unwrap()).unwrap();
        for column in 0..3 {
            let column: Vec<f32> = y.iter().skip(column).step_by(3).copied().collect();
            let mean = column.iter().sum::<f32>() / 8.0;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 8.0;
            assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
        }
        let one = x.narrow(0, 0, 1).unwrap();
        assert!(matches!(norm.forward(&one, &training), Err(RankingError::Batch { rows: 1 })));
        let before = values(&norm.forward(&x, &Phase::Serving).unwrap()).unwrap();
        assert!(before.iter().zip(&y).any(|(a, b)| (a - b).abs() > 0.1), "statistics have hardly moved");
        for step in 0..200 {
            training = Phase::Training(Masks::new(1, step));
            norm.forward(&x, &training).unwrap();
        }
        // Running variances are over B − 1, a batch's own over B.
        let served = values(&norm.forward(&x, &Phase::Serving).unwrap()).unwrap();
        for (served, trained) in served.iter().zip(&y) {
            assert!((served - trained * (7.0f32 / 8.0).sqrt()).abs() < 1e-4, "{served} {trained}");
        }
        assert_eq!(variables.trained().count(), 2);
        assert_eq!(variables.iter().count(), 4);
    }
}
