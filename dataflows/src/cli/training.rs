//! The options of commands that train: the optimiser, when it ends, how large models are.

use crate::ranking::fit::Training;
use crate::ranking::model::Sizes;
use clap::Args;
use ictflow_operators::ranking::backbones::Kind;

/// How models are trained.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
pub(super) struct TrainingOptions {
    /// Samples of a step.
    #[arg(long, value_name = "N", default_value_t = Training::default().batch as u64, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    batch: u64,
    /// The most epochs.
    #[arg(long, value_name = "N", default_value_t = Training::default().epochs as u64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    epochs: u64,
    /// How often an epoch the validation part is scored.
    #[arg(long, value_name = "N", default_value_t = Training::default().checks as u64, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    checks: u64,
    /// Checks without a better validation AUC after which a training ends.
    #[arg(long, value_name = "N", default_value_t = Training::default().patience as u64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    patience: u64,
    /// The step of the optimiser, Adam.
    #[arg(long, value_name = "RATE", default_value_t = Training::default().learning_rate, value_parser = rate)]
    learning_rate: f64,
    /// Its weight decay, coupled.
    #[arg(long, value_name = "RATE", default_value_t = Training::default().weight_decay, value_parser = rate)]
    weight_decay: f64,
    /// The weight decay of the tables of ids, where it is another.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    table_decay: Option<f64>,
    /// How much the reconstruction of CoTs counts beside the cross entropy.
    #[arg(long, value_name = "X", default_value_t = Training::default().reconstruction, value_parser = factor)]
    reconstruction: f64,
    /// d: the width of tables, vector and projected texts, a multiple of 4.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().width as u64, value_parser = clap::value_parser!(u64).range(4..=1024))]
    width: u64,
    /// Hidden widths of the deep net, with commas between them.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = Sizes::default().hidden)]
    hidden: Vec<usize>,
    /// The share of values that dropout takes before each of them.
    #[arg(long, value_name = "SHARE", default_value_t = Sizes::default().dropout, value_parser = rate)]
    dropout: f64,
    /// The deviation of the tables' first values; 0 leaves each backbone's own rule.
    #[arg(long, value_name = "D", default_value_t = Sizes::default().deviation.unwrap_or_default(), value_parser = rate)]
    deviation: f64,
    /// What like-rates, counts and votes are multiplied by.
    #[arg(long, value_name = "X", default_value_t = Sizes::default().scalar_scale)]
    scalar_scale: f64,
}

impl TrainingOptions {
    /// How large models are.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            width: self.width as usize,
            hidden: self.hidden.clone(),
            dropout: self.dropout,
            deviation: Some(self.deviation).filter(|deviation| *deviation > 0.0),
            scalar_scale: self.scalar_scale,
        }
    }

    /// How they are trained.
    pub(super) fn training(&self) -> Training {
        Training {
            batch: self.batch as usize,
            epochs: self.epochs as usize,
            checks: self.checks as usize,
            patience: self.patience as usize,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            table_decay: self.table_decay,
            reconstruction: self.reconstruction,
        }
    }
}

/// The backbone of a name.
pub(super) fn backbone(name: &str) -> std::result::Result<Kind, String> {
    let names = Kind::ALL.map(Kind::name).join(", ");
    Kind::named(name).ok_or_else(|| format!("there is no backbone of this name: choose among {names}"))
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("give a number within 0 to 1".to_owned()),
    }
}

fn factor(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.0..=1e6).contains(&factor) => Ok(factor),
        _ => Err("give a number, 0 or more".to_owned()),
    }
}
