//! `ictflow evaluate`: what neighbours are worth to a ranker, measured on a data set.

use super::data_set::DataSetOptions;
use crate::config::checked::models;
use crate::ranking::arms::{ARMS, Arm, USUAL};
use crate::ranking::dataset::Prepared;
use crate::ranking::evaluate::{Options, evaluate};
use crate::ranking::fit::Training;
use crate::ranking::model::Sizes;
use crate::ranking::table;
use clap::Args;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ranking::backbones::Kind;
use std::io::Write;
use std::path::PathBuf;

/// Options of `evaluate`.
#[derive(Debug, Args)]
#[command(after_help = "Arms, each with what a ranker is given:\n  \
        ids              user, item, creator, categories and history, as ids\n  \
        text             ids, and the text vectors of item and history\n  \
        strong           text, and the user's own like-rate and count of labels: the fair baseline\n  \
        votes            strong, and the votes of neighbours on the same item and of the same user\n  \
        votes-recent     as votes, of the most recent neighbours in the place of the most similar\n  \
        votes-permuted   as votes, with labels that changed places: a control, it must gain nothing\n  \
        attention        strong, and the attention vector over neighbours\n  \
        attention+votes  strong, votes and the attention vector\n\n\
        Every neighbour's label was known strictly before the sample; a leak ends the command in an error.\n\
        Weights are chosen by the validation part; the test part is scored once a cell, at its end.\n\
        A finished cell (backbone, arm, seed) is read back from --out, so the same command goes on after a kill.\n\
        --out gets table.txt, table.json, table.csv, segments.csv, and in curves/ the epochs of each training.")]
pub(super) struct Arguments {
    #[command(flatten)]
    data_set: DataSetOptions,
    /// Backbones, with commas between them: deepfm, xdeepfm, autoint, dcn, dcnv2, din.
    #[arg(long, value_delimiter = ',', default_value = "deepfm", value_parser = backbone)]
    backbone: Vec<Kind>,
    /// Arms, with commas between them; listed below.
    #[arg(long, value_delimiter = ',', default_values_t = USUAL.map(str::to_owned))]
    arms: Vec<String>,
    /// Train each with the seeds 1 to this.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// The folder of tables, curves and finished cells.
    #[arg(long, default_value = "target/evaluate")]
    out: PathBuf,
    #[command(flatten)]
    training: TrainingOptions,
}

/// How models are trained.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
struct TrainingOptions {
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

fn backbone(name: &str) -> std::result::Result<Kind, String> {
    let names = Kind::ALL.map(Kind::name).join(", ");
    Kind::named(name).ok_or_else(|| format!("there is no backbone of this name: choose among {names}"))
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        _ => Err("give a number within 0 to 1".to_owned()),
    }
}

/// Trains and measures, and prints the table.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let arms = arms(&arguments.arms)?;
    let data_set = &arguments.data_set;
    let mut encoder = data_set.encoder()?;
    let prepared = Prepared::read(&data_set.source()?, &mut *encoder, &models().join("vectors"))?;
    drop(encoder);
    let training = &arguments.training;
    let options = Options {
        arms,
        backbones: distinct(&arguments.backbone),
        seeds: arguments.seeds,
        sizes: Sizes {
            width: training.width as usize,
            hidden: training.hidden.clone(),
            dropout: training.dropout,
            deviation: Some(training.deviation).filter(|deviation| *deviation > 0.0),
            scalar_scale: training.scalar_scale,
        },
        training: Training {
            batch: training.batch as usize,
            epochs: training.epochs as usize,
            checks: training.checks as usize,
            patience: training.patience as usize,
            learning_rate: training.learning_rate,
            weight_decay: training.weight_decay,
        },
        out: arguments.out.clone(),
    };
    let report = evaluate(&prepared, &options)?;
    table::write_all(&report, &options.out)?;
    // A reader that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(table::text(&report).as_bytes()).and_then(|()| out.flush());
    eprintln!("the table as files, and the curves: {}", options.out.display());
    Ok(())
}

/// The arms of some names, each once.
fn arms(names: &[String]) -> Result<Vec<Arm>> {
    let named = |name: &String| {
        Arm::named(name).ok_or_else(|| {
            let all = ARMS.map(|arm| arm.name).join(", ");
            Error::fatal("choose arms", format!("there is no arm {name:?} among {all}"), "see --help")
        })
    };
    Ok(distinct(&names.iter().map(named).collect::<Result<Vec<_>>>()?))
}

/// Each once, in the order of the first.
fn distinct<T: Copy + PartialEq>(all: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for one in all {
        if !once.contains(one) {
            once.push(*one);
        }
    }
    once
}
