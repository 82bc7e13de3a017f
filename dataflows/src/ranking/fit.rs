//! Trains one model: batches in a drawn order, the epoch of the best validation AUC is kept.
//!
//! The order of an epoch is drawn from (seed, epoch), dropout from (seed, step): neither depends on what was
//! drawn before. After each epoch the validation part is scored; where its AUC didn't rise for `patience`
//! epochs the training ends, and the best epoch's weights are put back. The test part is never touched here.

use super::dataset::Part;
use super::model::{Model, ModelError};
use super::progress::Progress;
use super::tensors::{Columns, NeighbourColumns, scores};
use ictflow_operators::ranking::adam::{self, Adam};
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::layers::{Masks, Phase};
use ictflow_operators::ranking::loss::{cross_entropy, probability};
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
    /// Epochs without a better validation AUC after which it ends.
    pub patience: usize,
    /// Adam's step.
    pub learning_rate: f64,
    /// Adam's coupled weight decay.
    pub weight_decay: f64,
}

impl Default for Training {
    fn default() -> Self {
        let adam::Settings { learning_rate, weight_decay, .. } = adam::Settings::default();
        Training { batch: 128, epochs: 30, patience: 2, learning_rate, weight_decay }
    }
}

/// One epoch of a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Which, from 1.
    pub epoch: usize,
    /// The mean training loss.
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
    /// All epochs.
    pub epochs: Vec<Epoch>,
    /// The one whose weights were kept, from 1.
    pub best: usize,
}

impl Curve {
    /// The curve as CSV: epoch, loss, valid_auc, valid_gauc, valid_log_loss.
    pub fn csv(&self) -> String {
        let mut text = String::from("epoch,loss,valid_auc,valid_gauc,valid_log_loss\n");
        for epoch in &self.epochs {
            let gauc = epoch.gauc.map(|gauc| gauc.to_string()).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{},{},{},{gauc},{}",
                epoch.epoch, epoch.loss, epoch.auc, epoch.log_loss
            );
        }
        text
    }

    /// The epoch that was kept.
    pub fn best(&self) -> Option<&Epoch> {
        self.epochs.iter().find(|epoch| epoch.epoch == self.best)
    }
}

/// What a training reads.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// The samples.
    pub columns: &'a Columns,
    /// Their neighbours, where the arm needs them.
    pub neighbours: Option<&'a NeighbourColumns>,
    /// The users of validation samples, by number.
    pub valid_users: &'a [u32],
    /// The labels of validation samples.
    pub valid_labels: &'a [bool],
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
        let batch = material.columns.batch(samples, model.arm(), material.neighbours)?;
        let logits = model.logits(&batch, &mut Phase::Serving)?;
        all.extend(scores(&probability(&logits.detach())?)?);
    }
    Ok(all)
}

/// Probabilities as metrics take them.
pub fn widened(scores: &[f32]) -> Vec<f64> {
    scores.iter().map(|score| f64::from(*score)).collect()
}

/// Trains a model. Afterwards it has the weights of the best epoch.
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
        ..adam::Settings::default()
    };
    let mut adam = Adam::new(settings);
    let mut curve = Curve { epochs: Vec::new(), best: 0 };
    let mut kept: Option<(f64, Vec<candle_core::Tensor>)> = None;
    let mut step = 0;
    for epoch in 1..=training.epochs {
        let began = Instant::now();
        let mut order: Vec<u32> = material.columns.range(Part::Train).map(|sample| sample as u32).collect();
        Draws::stream(seed, epoch as u64).shuffle(&mut order);
        let mut progress = Progress::new(format!("{name}, epoch {epoch}"), order.len());
        let (mut sum, mut done) = (0.0, 0);
        // A last batch of one sample has no variance, which batch normalisation needs.
        for samples in order.chunks(training.batch.max(2)).filter(|samples| samples.len() > 1) {
            step += 1;
            let batch = material.columns.batch(samples, model.arm(), material.neighbours)?;
            let logits = model.logits(&batch, &mut Phase::Training(Masks::new(seed, step)))?;
            let loss = cross_entropy(&logits, &batch.label)?;
            adam.step(&model.variables, &loss.backward()?)?;
            sum += f64::from(loss.to_scalar::<f32>()?) * samples.len() as f64;
            done += samples.len();
            progress.at(done, &format!("loss {:.4}", sum / done as f64));
        }
        let loss = sum / done as f64;
        if !loss.is_finite() {
            return Err(ModelError::Diverged { epoch });
        }
        let figures = validate(model, material, epoch, loss)?;
        let seconds = began.elapsed().as_secs_f64();
        progress.finish(&format!(
            "loss {loss:.4}, validation AUC {:.4}, LogLoss {:.4}; {:.0} samples/s",
            figures.auc,
            figures.log_loss,
            done as f64 / seconds
        ));
        if kept.as_ref().is_none_or(|(auc, _)| figures.auc > *auc) {
            kept = Some((figures.auc, model.variables.snapshot()?));
            curve.best = epoch;
        }
        curve.epochs.push(figures);
        if epoch >= curve.best + training.patience {
            break;
        }
    }
    if let Some((_, weights)) = kept {
        model.variables.restore(&weights)?;
    }
    Ok(curve)
}

/// The figures of the validation part.
fn validate(model: &Model, material: &Material<'_>, epoch: usize, loss: f64) -> Result<Epoch, ModelError> {
    let scores = widened(&predict(model, material, Part::Valid)?);
    let (users, labels) = (material.valid_users, material.valid_labels);
    let metric = |metric| move |why| ModelError::Metric { metric, why };
    Ok(Epoch {
        epoch,
        loss,
        auc: auc(labels, &scores).map_err(metric("AUC"))?,
        gauc: gauc(users, labels, &scores).ok().map(|gauc| gauc.value),
        log_loss: log_loss(labels, &scores).map_err(metric("LogLoss"))?,
    })
}
