//! `ictflow evaluate`: what neighbours are worth to a ranker, measured on a data set.

use super::data_set::DataSetOptions;
use super::training::{TrainingOptions, backbone};
use crate::config::checked::models;
use crate::cots::log::CotLog;
use crate::ranking::arms::{ARMS, Arm, USUAL};
use crate::ranking::cots::Cots;
use crate::ranking::dataset::Prepared;
use crate::ranking::delay::Delay;
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
        strong+rate      strong, and the item's plain like-rate and count of labels, without similarity\n  \
        votes            strong, and the votes of neighbours on the same item and of the same user\n  \
        votes-recent     as votes, of the most recent neighbours in the place of the most similar\n  \
        votes-permuted   as votes, with labels that changed places (counts stay): a control, it must lose the gain\n  \
        attention        strong, and the attention vector over neighbours\n  \
        attention+votes  strong, votes and the attention vector\n  \
        decoder-CoT      strong, and the paper's decoder over demonstrations, with one of these CoTs\n  \
        paper-CoT        ids, and the same vector: texts and labels are met in it alone\n\n\
        CoT is one of nocot, template (fixed words), llm, shuffled (the LLM's, each at another demonstration)\n\
        and label-free (the LLM's, written without the label). Demonstrations are training samples: those that\n\
        the log of --cots explains, for all of these arms alike; without a log one in ten.\n\n\
        Every neighbour's label was known strictly before the sample; a leak ends the command in an error.\n\
        Weights are chosen by the validation part; the test part is scored once a cell, at its end.\n\
        A finished cell (backbone, arm, seed) is read back from --out, so the same command goes on after a kill.\n\
        --out gets table.txt, table.json, table.csv, table-segments.csv, the gains as a picture (table.svg), and in\n\
        curves/ the epochs of each training. --table gives the table another name than that.")]
pub(super) struct Arguments {
    #[command(flatten)]
    data_set: DataSetOptions,
    /// Backbones, with commas between them: deepfm, xdeepfm, autoint, dcn, dcnv2, din.
    #[arg(long, value_delimiter = ',', default_value = "deepfm", value_parser = backbone)]
    backbone: Vec<Kind>,
    /// Arms, with commas between them; listed below. 'all' are all of them.
    #[arg(long, value_delimiter = ',', default_values_t = USUAL.map(str::to_owned))]
    arms: Vec<String>,
    /// How much later than its event a label is known, with commas between them, such as 0,10m,1h,1d: all
    /// arms at each. Labels of neighbours, of demonstrations and of the user alike; what a user engaged with
    /// is known at once.
    #[arg(long, value_name = "DELAY", value_delimiter = ',', default_value = "0")]
    label_delay: Vec<Delay>,
    /// Train each with the seeds 1 to this.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Train so many models at once; it decides no figure. Each takes one core, and more where
    /// RAYON_NUM_THREADS isn't 1.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
    /// The log of CoTs that `ictflow cots` made: JSON Lines of a key and a record of the topic cot.
    #[arg(long, value_name = "FILE")]
    cots: Option<PathBuf>,
    /// The LLM whose texts of that log count, or the beginning of its name; needed where it has those of several.
    #[arg(long, value_name = "NAME", requires = "cots")]
    cots_model: Option<String>,
    /// Choose demonstrations by the published rule, to compare with the paper: an example may be its own, and those
    /// of other users may be later. Figures of decoder-CoT and paper-CoT then look into the future.
    #[arg(long)]
    paper_compat: bool,
    /// The name of the table's files in --out: several tables share its finished cells.
    #[arg(long, value_name = "NAME", default_value = "table", value_parser = file_name)]
    table: String,
    /// The folder of tables, curves and finished cells.
    #[arg(long, default_value = "target/evaluate")]
    out: PathBuf,
    #[command(flatten)]
    training: TrainingOptions,
}

fn file_name(text: &str) -> std::result::Result<String, String> {
    match !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
        true => Ok(text.to_owned()),
        false => Err("give letters, digits, - and _".to_owned()),
    }
}

/// Trains and measures, and prints the table.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let arms = arms(&arguments.arms)?;
    let data_set = &arguments.data_set;
    // What is wrong with the data is told before a model is asked for.
    let source = data_set.source()?;
    let mut encoder = data_set.encoder()?;
    let vectors = models().join("vectors");
    let prepared = Prepared::read(&source, &mut *encoder, &vectors)?;
    let of_model = |log: CotLog| log.of_model(arguments.cots_model.as_deref());
    let log = arguments.cots.as_deref().map(|path| CotLog::read(path).and_then(of_model)).transpose()?;
    let cache = vectors.join("cots");
    let cots = Cots::of(&prepared, &arms, log.as_ref(), arguments.paper_compat, (&mut *encoder, &cache))?;
    drop(encoder);
    let options = Options {
        arms,
        backbones: distinct(&arguments.backbone),
        delays: distinct(&arguments.label_delay),
        seeds: arguments.seeds,
        sizes: arguments.training.sizes(),
        training: arguments.training.training(),
        jobs: arguments.jobs as usize,
        out: arguments.out.clone(),
    };
    let report = evaluate(&prepared, &cots, &options)?;
    table::write_all(&report, &options.out, &arguments.table)?;
    // A reader that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(table::text(&report).as_bytes()).and_then(|()| out.flush());
    eprintln!("the table as files, and the curves: {}", options.out.display());
    Ok(())
}

/// The name of all arms.
const ALL: &str = "all";

/// The arms of some names, each once.
fn arms(names: &[String]) -> Result<Vec<Arm>> {
    if names == [ALL] {
        return Ok(ARMS.to_vec());
    }
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
