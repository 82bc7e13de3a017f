//! Trains one model: batches in a drawn order; the weights with the best validation AUC are kept.
//!
//! The order of an epoch is drawn from (seed, epoch), dropout from (seed, step): neither depends on what was
//! drawn before. Several times an epoch the validation part is scored, since rankers are at their best early;
//! where its AUC didn't rise for `patience` such checks the training ends, and the weights of the best one are
//! put back. The test part is never touched here.

use super::arms::Arm;
use super::dataset::Part;
use super::model::{Model, ModelError, forget_unknown};
use super::progress::Progress;
use super::tensors::{Batch, Columns, Retrieved, scores};
use candle_core::Tensor;
use ictflow_operators::ranking::RankingError;
use ictflow_operators::ranking::adam::{self, Adam};
use ictflow_operators::ranking::checkpoint;
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::layers::{Masks, Phase};
use ictflow_operators::ranking::loss::probability;
use ictflow_operators::ranking::metrics::{auc, gauc, log_loss};
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
    let mut fitting = Fitting::new(model, material, training, seed, name);
    while fitting.advance()?.is_some() {}
    fitting.finish()
}

/// Where a training stands at a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Standing {
    /// The epoch of the next step, from 0.
    epoch: usize,
    /// Steps taken of it.
    batches: usize,
    /// Steps taken of all.
    step: u64,
    /// Checks since the best one.
    waited: usize,
    /// The validation AUC of the best one.
    best: Option<f64>,
    curve: Curve,
}

/// What a checkpoint notes beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    /// What the training is, by whoever saved it.
    key: Value,
    standing: Standing,
}

/// A training, check by check. At a check everything that decides the rest is in [`Fitting::save`].
pub struct Fitting<'a> {
    model: &'a Model,
    material: &'a Material<'a>,
    training: Training,
    seed: u64,
    name: String,
    adam: Adam,
    /// The weights of the best check.
    kept: Option<Vec<Tensor>>,
    standing: Standing,
    /// What is shown of an epoch under way.
    pass: Option<Pass>,
}

/// An epoch, for whoever watches it.
struct Pass {
    progress: Progress,
    began: Instant,
    samples: usize,
}

impl<'a> Fitting<'a> {
    /// A training from the model's first values.
    pub fn new(
        model: &'a Model,
        material: &'a Material<'a>,
        training: &Training,
        seed: u64,
        name: &str,
    ) -> Self {
        let settings = adam::Settings {
            learning_rate: training.learning_rate,
            weight_decay: training.weight_decay,
            table_decay: training.table_decay,
            ..adam::Settings::default()
        };
        let curve = Curve { checks: Vec::new(), best: 0 };
        Fitting {
            model,
            material,
            training: *training,
            seed,
            name: name.to_owned(),
            adam: Adam::new(settings),
            kept: None,
            standing: Standing { epoch: 0, batches: 0, step: 0, waited: 0, best: None, curve },
            pass: None,
        }
    }

    /// Trains up to the next check and gives it; `None` where the training has ended.
    ///
    /// # Errors
    /// [`ModelError::Diverged`] where the loss isn't finite, and those of the model.
    pub fn advance(&mut self) -> Result<Option<Check>, ModelError> {
        if self.has_ended() {
            return Ok(None);
        }
        let (model, material, training, seed) = (self.model, self.material, self.training, self.seed);
        let order = order(material.columns, seed, self.standing.epoch);
        // A last batch of one sample has no variance, which batch normalisation needs.
        let batches: Vec<&[u32]> =
            order.chunks(training.batch.max(2)).filter(|samples| samples.len() > 1).collect();
        let checks = |place: usize| place * training.checks.max(1) / batches.len();
        let mut pass = self.pass.take().unwrap_or_else(|| Pass {
            progress: Progress::new(format!("{}, epoch {}", self.name, self.standing.epoch + 1), order.len()),
            began: Instant::now(),
            samples: 0,
        });
        let mut sum = Sum::default();
        let mut done: usize =
            batches[..self.standing.batches.min(batches.len())].iter().map(|b| b.len()).sum();
        for samples in batches.iter().skip(self.standing.batches) {
            self.standing.batches += 1;
            self.standing.step += 1;
            let (place, step) = (self.standing.batches, self.standing.step);
            let loss = take_step(model, material, samples, &training, &mut self.adam, (seed, step))?;
            sum.add(loss, samples.len());
            pass.samples += samples.len();
            done += samples.len();
            if checks(place) == checks(place - 1) {
                pass.progress.at(done, &format!("loss {:.4}", sum.mean()));
                continue;
            }
            let check = Check {
                step,
                epoch: self.standing.epoch as f64 + place as f64 / batches.len() as f64,
                loss: sum.mean(),
                ..validate(model, material)?
            };
            if !check.loss.is_finite() {
                return Err(ModelError::Diverged { step });
            }
            pass.progress.at(done, &format!("validation AUC {:.4}", check.auc));
            self.take(check)?;
            if place < batches.len() {
                self.pass = Some(pass);
            } else {
                // An epoch ends with a check.
                self.standing.epoch += 1;
                self.standing.batches = 0;
                let speed = pass.samples as f64 / pass.began.elapsed().as_secs_f64();
                let Check { loss, auc, .. } = check;
                pass.progress
                    .finish(&format!("loss {loss:.4}, validation AUC {auc:.4}, {speed:.0} samples/s"));
            }
            return Ok(Some(check));
        }
        Ok(None)
    }

    /// Keeps what a check found.
    fn take(&mut self, check: Check) -> Result<(), ModelError> {
        let standing = &mut self.standing;
        standing.waited += 1;
        if standing.best.is_none_or(|best| check.auc > best) {
            self.kept = Some(self.model.variables.snapshot()?);
            standing.best = Some(check.auc);
            standing.curve.best = check.step;
            standing.waited = 0;
        }
        standing.curve.checks.push(check);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        let Standing { epoch, waited, .. } = self.standing;
        epoch >= self.training.epochs || waited >= self.training.patience.max(1)
    }

    /// Ends the training where it stands: the model gets the weights of the best check.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn finish(self) -> Result<Curve, ModelError> {
        let Standing { step, best, curve, .. } = self.standing;
        if let (Some(weights), Some(auc)) = (&self.kept, best) {
            self.model.variables.restore(weights)?;
            eprintln!("{}: {step} steps, best validation AUC {auc:.4} after {}", self.name, curve.best);
        }
        Ok(curve)
    }

    /// A checkpoint: what [`Fitting::resume`] goes on from to the bit, with a key that says what training it is.
    /// The same training gives the same bytes at the same check.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn save(&self, key: &Value) -> Result<Vec<u8>, ModelError> {
        let notes = Notes { key: key.clone(), standing: self.standing.clone() };
        let notes = serde_json::to_string(&notes).map_err(unreadable)?;
        Ok(checkpoint::write(&self.model.variables, self.kept.as_deref(), &self.adam, &notes)?)
    }

    /// Goes to where a checkpoint was saved: of this model, material and training.
    ///
    /// # Errors
    /// Where it is of another model, or damaged.
    pub fn resume(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        let notes: Notes = serde_json::from_str(&checkpoint::notes(bytes)?).map_err(unreadable)?;
        self.kept = checkpoint::read(bytes, &self.model.variables, &mut self.adam)?;
        self.standing = notes.standing;
        self.pass = None;
        Ok(())
    }

    /// The steps that were taken.
    pub fn steps(&self) -> u64 {
        self.standing.step
    }
}

/// The key that a checkpoint was saved with.
///
/// # Errors
/// Where it isn't a checkpoint.
pub fn key_of(bytes: &[u8]) -> Result<Value, ModelError> {
    let notes: Notes = serde_json::from_str(&checkpoint::notes(bytes)?).map_err(unreadable)?;
    Ok(notes.key)
}

fn unreadable(error: serde_json::Error) -> RankingError {
    RankingError::Unreadable { detail: error.to_string() }
}

/// Takes some steps and nothing else, for measuring; gives how many samples they had. Each call is a training of
/// its own, with moments of zeros.
///
/// # Errors
/// Those of the model.
pub fn run_steps(
    model: &Model,
    material: &Material<'_>,
    training: &Training,
    seed: u64,
    steps: usize,
) -> Result<usize, ModelError> {
    let mut adam = Adam::new(adam::Settings::default());
    let order = order(material.columns, seed, 0);
    let batches = order.chunks_exact(training.batch.clamp(2, order.len().max(2))).cycle().take(steps);
    let mut samples = 0;
    for (step, batch) in (1..).zip(batches) {
        take_step(model, material, batch, training, &mut adam, (seed, step))?;
        samples += batch.len();
    }
    Ok(samples)
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
    forget_unknown(&model.variables)?;
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
