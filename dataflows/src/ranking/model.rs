//! A ranker: tables, a backbone, and what its arm brings beside the ids.
//!
//! The tables are the backbone's own, drawn by its rule; the vector's module reads the same ones. Texts enter
//! the backbone through a net of their own (`field_text`); the module has another.

use super::arms::{Arm, Vector};
use super::tensors::{Batch, Columns};
use candle_core::Tensor;
use ictflow_operators::ict::training::{Architecture, Decoded, Module, TrainingError};
use ictflow_operators::ict::{Shape, TEXT_HIDDEN};
use ictflow_operators::ranking::RankingError;
use ictflow_operators::ranking::backbones::{Backbone, Inputs, Kind, Settings};
use ictflow_operators::ranking::ids::Tables;
use ictflow_operators::ranking::layers::{Maker, Phase, Projection};
use ictflow_operators::ranking::loss::cross_entropy;
use ictflow_operators::ranking::variables::{Role, Variables};
use serde::Serialize;

/// Why a model can't be made or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The backbone or its layers.
    #[error(transparent)]
    Ranking(#[from] RankingError),
    /// The module that makes the vector.
    #[error(transparent)]
    Vector(#[from] TrainingError),
    /// The library of tensors.
    #[error("the tensors of a batch don't fit: {0} (hint: this is a defect, please report it)")]
    Tensor(#[from] candle_core::Error),
    /// The loss left the numbers.
    #[error("the loss isn't finite after {step} steps: the training diverged, lower --learning-rate")]
    Diverged {
        /// Steps that were taken.
        step: u64,
    },
    /// A metric has no value.
    #[error("validation has no {metric}: {why}")]
    Metric {
        /// Which.
        metric: &'static str,
        /// Why.
        why: ictflow_operators::ranking::metrics::Error,
    },
}

/// A ranker.
#[derive(Debug)]
pub struct Model {
    /// All that is trained.
    pub variables: Variables,
    arm: Arm,
    tables: Tables,
    backbone: Box<dyn Backbone>,
    text: Option<Projection>,
    module: Option<Module>,
    scalar_scale: f64,
}

/// The sizes of a ranker that are free. All else is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// d: the width of tables, vector and projected texts.
    pub width: usize,
    /// Hidden widths of the deep net.
    pub hidden: Vec<usize>,
    /// The share of values that dropout takes before each of them.
    pub dropout: f64,
    /// The deviation that the tables' first values are scaled to; `None` leaves the backbone's own rule.
    pub deviation: Option<f64>,
    /// What scalars are multiplied by: they are small, and weight decay holds small inputs down.
    pub scalar_scale: f64,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { width: 32, hidden: vec![64, 32], dropout: 0.0, deviation: Some(0.05), scalar_scale: 4.0 }
    }
}

/// The backbone's settings for an arm.
pub fn settings(arm: &Arm, sizes: &Sizes) -> Settings {
    Settings {
        d: sizes.width,
        hidden: sizes.hidden.clone(),
        dropout: sizes.dropout,
        text: arm.text,
        scalars: arm.scalars(),
        vector: arm.vector.is_some(),
        ..Settings::default()
    }
}

impl Model {
    /// A model with first values that the seed decides.
    ///
    /// # Errors
    /// Where sizes are out of range.
    pub fn new(
        kind: Kind,
        arm: Arm,
        sizes: &Sizes,
        columns: &Columns,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let settings = settings(&arm, sizes);
        let mut variables = Variables::new(seed);
        let tables = columns.rows.create(settings.d, kind.init(), &mut variables)?;
        if let Some(deviation) = sizes.deviation {
            rescale(&variables, deviation)?;
        }
        forget_unknown(&variables)?;
        let text = match arm.text {
            true => {
                let maker = &mut Maker { variables: &mut variables, init: kind.init() };
                Some(Projection::new(maker, "field_text", columns.text_width, TEXT_HIDDEN, settings.d)?)
            }
            false => None,
        };
        let module = match arm.vector {
            Some(vector) => Some(module(vector, settings.d, columns.text_width, seed, &mut variables)?),
            None => None,
        };
        let backbone = kind.build(&settings, &mut variables)?;
        Ok(Model { variables, arm, tables, backbone, text, module, scalar_scale: sizes.scalar_scale })
    }

    /// The logits [B] of a batch of the model's arm.
    ///
    /// # Errors
    /// Where the batch is of another arm.
    pub fn logits(&self, batch: &Batch, phase: &mut Phase) -> Result<Tensor, ModelError> {
        Ok(self.forward(batch, phase)?.0)
    }

    /// The loss of a batch: the mean cross entropy of its labels, and so many times the reconstruction of the
    /// CoTs where the arm has some.
    ///
    /// # Errors
    /// Where the batch is of another arm.
    pub fn loss(&self, batch: &Batch, phase: &mut Phase, reconstruction: f64) -> Result<Tensor, ModelError> {
        let (logits, decoded) = self.forward(batch, phase)?;
        let loss = cross_entropy(&logits, &batch.label)?;
        match (&self.module, decoded, &batch.demonstrations) {
            (Some(module), Some(decoded), Some(demonstrations))
                if module.architecture() == Architecture::Decoder && reconstruction > 0.0 =>
            {
                let apart = module.reconstruction_loss(&decoded, demonstrations)?;
                Ok((loss + (apart * reconstruction)?)?)
            }
            _ => Ok(loss),
        }
    }

    /// The logits, and what the decoder says beside.
    fn forward(&self, batch: &Batch, phase: &mut Phase) -> Result<(Tensor, Option<Decoded>), ModelError> {
        let text = match (&self.text, &batch.text) {
            (Some(net), Some([item, history])) => Some([net.forward(item)?, net.forward(history)?]),
            _ => None,
        };
        let (vector, decoded) = match (&self.module, batch.samples()) {
            (Some(module), Some(samples)) => {
                let query = module.sample_token(&self.tables, &samples)?;
                if let Some((parties, [same_item, same_user])) = &batch.neighbours {
                    let sources = [same_item, same_user];
                    (Some(module.attend(&self.tables, &query, parties, sources)?), None)
                } else if let Some(demonstrations) = &batch.demonstrations {
                    let decoded = module.decode(&self.tables, &query, demonstrations)?;
                    (Some(decoded.vector.clone()), Some(decoded))
                } else {
                    (None, None)
                }
            }
            _ => (None, None),
        };
        let inputs = Inputs {
            ids: batch.ids.clone(),
            tables: self.tables.clone(),
            text,
            scalars: batch.scalars.as_ref().map(|s| s.affine(self.scalar_scale, 0.0)).transpose()?,
            vector,
        };
        Ok((self.backbone.logits(&inputs, phase)?, decoded))
    }

    /// The arm.
    pub fn arm(&self) -> &Arm {
        &self.arm
    }
}

/// Scales every table that was just drawn to a deviation.
fn rescale(variables: &Variables, deviation: f64) -> Result<(), ModelError> {
    for table in variables.iter().filter(|variable| variable.role == Role::Table) {
        let squares = f64::from(table.var.sqr()?.sum_all()?.to_scalar::<f32>()?);
        let (rows, width) = table.var.dims2()?;
        // Row 0 is zeros, and no part of what was drawn.
        let drawn = (squares / ((rows - 1) * width) as f64).sqrt();
        table.var.set(&table.var.affine(deviation / drawn, 0.0)?)?;
    }
    Ok(())
}

/// Sets the last row of every table to zeros: that of ids which training doesn't know. No training sample names
/// it; but its neighbours may, where a part isn't later than another, and give it a gradient. So a training does
/// this after each step; where the row is zeros already nothing is copied.
pub(super) fn forget_unknown(variables: &Variables) -> Result<(), ModelError> {
    for table in variables.iter().filter(|variable| variable.role == Role::Table) {
        let last = table.var.dim(0)? - 1;
        let unknown = table.var.narrow(0, last, 1)?;
        if unknown.flatten_all()?.to_vec1::<f32>()?.iter().any(|x| *x != 0.0) {
            let known = table.var.narrow(0, 0, last)?;
            table.var.set(&Tensor::cat(&[&known, &unknown.zeros_like()?], 0)?)?;
        }
    }
    Ok(())
}

/// The module of a vector. Its own tables are left out: the ranker's are read.
fn module(
    vector: Vector,
    d: usize,
    text: usize,
    seed: u64,
    variables: &mut Variables,
) -> Result<Module, ModelError> {
    let shape = Shape { d, text, user_rows: 1, item_rows: 1, creator_rows: 1, category_rows: 1 };
    let architecture = match vector {
        Vector::Attention => Architecture::Attention,
        Vector::Decoder(Some(_)) => Architecture::Decoder,
        Vector::Decoder(None) => Architecture::DecoderWithoutCot,
    };
    let module = Module::untrained(architecture, shape, seed)?;
    for (name, var) in module.variables() {
        if !Module::is_table(name) {
            variables.adopt(name, Role::Weight, var.clone())?;
        }
    }
    Ok(module)
}
