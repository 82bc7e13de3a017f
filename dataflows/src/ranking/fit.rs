//! Trains one model: batches in a drawn order; the weights with the best validation AUC are kept.
//!
//! The order of an epoch is drawn from (seed, epoch), dropout from (seed, step): neither depends on what was
//! drawn before. Several times an epoch the validation part is scored, since rankers are at their best early;
//! where its AUC didn't rise for `patience` such checks the training ends, and the weights of the best one are
//! put back. The test part is never touched here.

use super::arms::Arm;
use super::dataset::Part;
use super::model::{Model, ModelError};
use super::progress::Progress;
use super::tensors::{Batch, Columns, Retrieved, scores};
use ictflow_operators::ranking::adam::{self, Adam};
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::layers::{Masks, Phase};
use ictflow_operators::ranking::loss::probability;
use ictflow_operators::ranking::metrics::{auc, gauc, log_loss};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::time::Instant;

/// Samples that are scored together.
const SCORED_AT_ONCE: usize = 1_024;

/// How a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Training {
    /// Samples of a step.
    pub batch: usize,
    /// The most epochs.
    pub epochs: usize,
    /// How often an epoch the validation part is scored.
    pub checks: usize,
    /// Checks without a better validation AUC after which it ends.
    pub patience: usize,
    /// Adam's step.
    pub learning_rate: f64,
    /// Adam's coupled weight decay.
    pub weight_decay: f64,
    /// That of the tables of ids, where it is another.
    pub table_decay: Option<f64>,
    /// α: how much the reconstruction of CoTs counts beside the cross entropy.
    pub reconstruction: f64,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            batch: 512,
            epochs: 30,
            checks: 2,
            patience: 3,
            learning_rate: 5e-4,
            weight_decay: 1e-3,
            table_decay: None,
            reconstruction: 1.0,
        }
    }
}

/// One look at the validation part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Steps taken.
    pub step: u64,
    /// Epochs gone through.
    pub epoch: f64,
    /// The mean training loss since the check before.
    pub loss: f64,
    /// Validation AUC.
    pub auc: f64,
    /// Validation GAUC; `None` where no user has both classes.
    pub gauc: Option<f64>,
    /// Validation LogLoss.
    pub log_loss: f64,
}

/// What came of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// All checks.
    pub checks: Vec<Check>,
    /// The steps of the one whose weights were kept.
    pub best: u64,
}

impl Curve {
    /// The curve as CSV.
    pub fn csv(&self) -> String {
        let mut text = String::from("step,epoch,loss,valid_auc,valid_gauc,valid_log_loss\n");
        for check in &self.checks {
            let Check { step, epoch, loss, auc, gauc, log_loss } = check;
            let gauc = gauc.map(|gauc| gauc.to_string()).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{step},{epoch},{loss},{auc},{gauc},{log_loss}");
        }
        text
    }

    /// The check whose weights were kept.
    pub fn best(&self) -> Option<&Check> {
        self.checks.iter().find(|check| check.step == self.best)
    }
}

/// What a training reads.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// The samples.
    pub columns: &'a Columns,
    /// What was retrieved for them.
    pub retrieved: Retrieved<'a>,
    /// The users of validation samples, by number.
    pub valid_users: &'a [u32],
    /// The labels of validation samples.
    pub valid_labels: &'a [bool],
}

impl Material<'_> {
    /// The batch of some samples, as an arm needs it.
    ///
    /// # Errors
    /// Where the material isn't of the arm.
    pub fn batch(&self, samples: &[u32], arm: &Arm) -> Result<Batch, ModelError> {
        Ok(self.columns.batch(samples, arm, self.retrieved)?)
    }
}

/// The probabilities of a part's samples, in their order.
///
/// # Errors
/// Where the material isn't of the model's arm.
pub fn predict(model: &Model, material: &Material<'_>, part: Part) -> Result<Vec<f32>, ModelError> {
    let range = material.columns.range(part);
    let samples: Vec<u32> = range.map(|sample| sample as u32).collect();
    let mut all = Vec::with_capacity(samples.len());
    for samples in samples.chunks(SCORED_AT_ONCE) {
        let batch = material.batch(samples, model.arm())?;
        let logits = model.logits(&batch, &mut Phase::Serving)?;
        all.extend(scores(&probability(&logits.detach())?)?);
    }
    Ok(all)
}

/// Probabilities as metrics take them.
pub fn widened(scores: &[f32]) -> Vec<f64> {
    scores.iter().map(|score| f64::from(*score)).collect()
}

/// Trains a model. Afterwards it has the weights of the best check.
///
/// # Errors
/// [`ModelError::Diverged`] where the loss isn't finite, and those of the model.
pub fn fit(
    model: &Model,
    material: &Material<'_>,
    training: &Training,
    seed: u64,
    name: &str,
) -> Result<Curve, ModelError> {
    let settings = adam::Settings {
        learning_rate: training.learning_rate,
        weight_decay: training.weight_decay,
        table_decay: training.table_decay,
        ..adam::Settings::default()
    };
    let mut adam = Adam::new(settings);
    let mut curve = Curve { checks: Vec::new(), best: 0 };
    let mut kept: Option<(f64, Vec<candle_core::Tensor>)> = None;
    let mut step = 0;
    let mut sum = Sum::default();
    let mut waited = 0;
    'all: for epoch in 0..training.epochs {
        let began = Instant::now();
        let order = order(material.columns, seed, epoch);
        // A last batch of one sample has no variance, which batch normalisation needs.
        let batches: Vec<&[u32]> =
            order.chunks(training.batch.max(2)).filter(|samples| samples.len() > 1).collect();
        let mut progress = Progress::new(format!("{name}, epoch {}", epoch + 1), order.len());
        let mut done = 0;
        for (place, samples) in (1..).zip(&batches) {
            step += 1;
            let loss = take_step(model, material, samples, training, &mut adam, (seed, step))?;
            sum.add(loss, samples.len());
            done += samples.len();
            let checks = |place: usize| place * training.checks.max(1) / batches.len();
            if checks(place) == checks(place - 1) {
                progress.at(done, &format!("loss {:.4}", sum.mean()));
                continue;
            }
            let check = Check {
                step,
                epoch: epoch as f64 + place as f64 / batches.len() as f64,
                loss: std::mem::take(&mut sum).mean(),
                ..validate(model, material)?
            };
            if !check.loss.is_finite() {
                return Err(ModelError::Diverged { step });
            }
            progress.at(done, &format!("validation AUC {:.4}", check.auc));
            waited += 1;
            if kept.as_ref().is_none_or(|(auc, _)| check.auc > *auc) {
                kept = Some((check.auc, model.variables.snapshot()?));
                curve.best = step;
                waited = 0;
            }
            curve.checks.push(check);
            if waited >= training.patience {
                break 'all;
            }
        }
        let speed = done as f64 / began.elapsed().as_secs_f64();
        let last = curve.checks.last().map_or(String::new(), |check| {
            format!("loss {:.4}, validation AUC {:.4}, ", check.loss, check.auc)
        });
        progress.finish(&format!("{last}{speed:.0} samples/s"));
    }
    if let Some((auc, weights)) = kept {
        model.variables.restore(&weights)?;
        eprintln!("{name}: {} steps, best validation AUC {auc:.4} after {}", step, curve.best);
    }
    Ok(curve)
}

/// The training samples in the order of an epoch.
fn order(columns: &Columns, seed: u64, epoch: usize) -> Vec<u32> {
    let mut order: Vec<u32> = columns.range(Part::Train).map(|sample| sample as u32).collect();
    Draws::stream(seed, epoch as u64).shuffle(&mut order);
    order
}

/// One step of the optimiser; gives the mean loss of its samples.
fn take_step(
    model: &Model,
    material: &Material<'_>,
    samples: &[u32],
    training: &Training,
    adam: &mut Adam,
    (seed, step): (u64, u64),
) -> Result<f64, ModelError> {
    let batch = material.batch(samples, model.arm())?;
    let loss = model.loss(&batch, &mut Phase::Training(Masks::new(seed, step)), training.reconstruction)?;
    adam.step(&model.variables, &loss.backward()?)?;
    Ok(f64::from(loss.to_scalar::<f32>()?))
}

/// A mean over samples.
#[derive(Default)]
struct Sum {
    sum: f64,
    samples: usize,
}

impl Sum {
    fn add(&mut self, mean: f64, samples: usize) {
        self.sum += mean * samples as f64;
        self.samples += samples;
    }

    fn mean(&self) -> f64 {
        self.sum / self.samples as f64
    }
}

/// The figures of the validation part; what isn't of it is zeros.
fn validate(model: &Model, material: &Material<'_>) -> Result<Check, ModelError> {
    let scores = widened(&predict(model, material, Part::Valid)?);
    let (users, labels) = (material.valid_users, material.valid_labels);
    let metric = |metric| move |why| ModelError::Metric { metric, why };
    Ok(Check {
        step: 0,
        epoch: 0.0,
        loss: 0.0,
        auc: auc(labels, &scores).map_err(metric("AUC"))?,
        gauc: gauc(users, labels, &scores).ok().map(|gauc| gauc.value),
        log_loss: log_loss(labels, &scores).map_err(metric("LogLoss"))?,
    })
}
