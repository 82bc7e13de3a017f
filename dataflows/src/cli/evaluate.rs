//! `ictflow evaluate`: what neighbours are worth to a ranker, measured on a data set.

use super::data_set::DataSetOptions;
use super::training::{TrainingOptions, backbone};
use crate::config::checked::models;
use crate::ranking::arms::{ARMS, Arm, USUAL};
use crate::ranking::dataset::Prepared;
use crate::ranking::evaluate::{Options, evaluate};
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

/// Trains and measures, and prints the table.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let arms = arms(&arguments.arms)?;
    let data_set = &arguments.data_set;
    let mut encoder = data_set.encoder()?;
    let prepared = Prepared::read(&data_set.source()?, &mut *encoder, &models().join("vectors"))?;
    drop(encoder);
    let options = Options {
        arms,
        backbones: distinct(&arguments.backbone),
        seeds: arguments.seeds,
        sizes: arguments.training.sizes(),
        training: arguments.training.training(),
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
