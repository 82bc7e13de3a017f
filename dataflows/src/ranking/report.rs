//! What an evaluation says: rows of figures, and what they stand on.

use super::cots::PoolFigures;
use super::delay::Delay;
use super::fit::Training;
use super::model::Sizes;
use ictflow_operators::ranking::bootstrap::{Comparison, Difference};
use ictflow_operators::ranking::metrics::Spread;
use serde::Serialize;

/// Mean and deviation over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// The sample deviation; `None` for one seed.
    pub deviation: Option<f64>,
}

/// A difference to another arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// This arm's figure minus the other's.
    pub difference: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The differences to another arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gains {
    /// AUC.
    pub auc: Gain,
    /// GAUC.
    pub gauc: Gain,
    /// LogLoss: less is better.
    pub log_loss: Gain,
}

/// The figures of one segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentFigures {
    /// Its name.
    pub name: &'static str,
    /// Its test samples.
    pub samples: usize,
    /// AUC; `None` where a class is missing.
    pub auc: Option<f64>,
    /// GAUC; `None` where no user has both classes.
    pub gauc: Option<f64>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// How much later than its event a label was known.
    pub label_delay: Delay,
    /// The backbone.
    pub backbone: &'static str,
    /// The arm.
    pub arm: &'static str,
    /// Validation AUC of the weights that were kept.
    pub valid_auc: Figure,
    /// AUC.
    pub auc: Figure,
    /// GAUC; `None` where no user has both classes.
    pub gauc: Option<Figure>,
    /// LogLoss.
    pub log_loss: Figure,
    /// RelaImpr over the reference, percent.
    pub rela_impr: Option<f64>,
    /// Differences to the reference of the same backbone and delay; `None` for itself, and where a metric has
    /// no value.
    pub gains: Option<Gains>,
    /// By segment.
    pub segments: Vec<SegmentFigures>,
}

/// Two arms that differ in one thing, held against each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// How much later than its event a label was known.
    pub label_delay: Delay,
    /// The backbone.
    pub backbone: &'static str,
    /// The arm.
    pub arm: &'static str,
    /// What it is held against.
    pub against: &'static str,
    /// The differences.
    pub gains: Gains,
    /// What a thousand tokens of the LLM gained, where the other arm has the same texts shuffled.
    pub per_thousand_tokens: Option<PerTokens>,
}

/// Differences by what was paid for them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerTokens {
    /// AUC gained.
    pub auc: f64,
    /// GAUC gained.
    pub gauc: f64,
}

/// The table, with what it stands on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The digest of the data set.
    pub data: String,
    /// The protocol.
    pub protocol: &'static str,
    /// Training samples.
    pub train: usize,
    /// Validation samples.
    pub valid: usize,
    /// Test samples.
    pub test: usize,
    /// Users of the test.
    pub test_users: usize,
    /// Seeds 1 to this.
    pub seeds: u64,
    /// How large models were.
    pub sizes: Sizes,
    /// How they were trained.
    pub training: Training,
    /// The encoder of texts.
    pub encoder: String,
    /// The machines that cells were trained on.
    pub machines: Vec<String>,
    /// The demonstrations, where an arm has some.
    pub pool: Option<PoolFigures>,
    /// The arm that others are compared with.
    pub reference: &'static str,
    /// The rows.
    pub rows: Vec<Row>,
    /// Arms that differ in one thing.
    pub pairs: Vec<Pair>,
}

impl From<Spread> for Figure {
    fn from(spread: Spread) -> Self {
        Figure { mean: spread.mean, deviation: spread.deviation }
    }
}

impl From<Difference> for Gain {
    fn from(difference: Difference) -> Self {
        let Difference { difference, low, high, .. } = difference;
        Gain { difference, low, high }
    }
}

impl From<Comparison> for Gains {
    fn from(comparison: Comparison) -> Self {
        let Comparison { auc, gauc, log_loss } = comparison;
        Gains { auc: auc.into(), gauc: gauc.into(), log_loss: log_loss.into() }
    }
}
