//! `ictflow train`: one ranker, and the ICT weights that it reads vectors of, trained and written to be served.

use super::data_set::ReadingOptions;
use super::training::{TrainingOptions, backbone};
use crate::config::checked::{Config, models};
use crate::job::outputs;
use crate::ranking::arms::{ARMS, Arm};
use crate::ranking::dataset::Prepared;
use crate::ranking::examples;
use crate::ranking::train::{Figures, Options, Told, train};
use crate::streamed::streamed;
use clap::Args;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Shape;
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::tables::Rows;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `train`.
#[derive(Debug, Args)]
#[command(after_help = "--out gets:\n  \
        ranker.safetensors   the backbone with its tables\n  \
        ict.safetensors      the ICT weights, for [ict] weights of a job, where the arm has a vector\n  \
        card.md              data, split, figures, sizes, the command; written last\n  \
        curves.csv, .svg     every check of the training\n  \
        checkpoint/          the newest check: the same command goes on from it after a kill\n\n\
        The same command on the same data gives the same bytes, killed or not. Arms are those of evaluate but for\n\
        decoder-CoT and paper-CoT: their demonstrations are training samples, which no job could serve, so\n\
        --reconstruction has no part here.\n\
        The test part is scored once, by the weights that the validation part chose.")]
pub(super) struct Arguments {
    #[command(flatten)]
    origin: Origin,
    #[command(flatten)]
    reading: ReadingOptions,
    /// The backbone: deepfm, xdeepfm, autoint, dcn, dcnv2 or din.
    #[arg(long, default_value = "deepfm", value_parser = backbone)]
    backbone: Kind,
    /// What it is given: an arm of evaluate.
    #[arg(long, default_value = "attention+votes")]
    arm: String,
    /// What first values, the order of samples and dropout are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The folder of all that comes of it.
    #[arg(long, default_value = "target/train")]
    out: PathBuf,
    /// Throw away a checkpoint that is there, and begin anew.
    #[arg(long)]
    restart: bool,
    /// Afterwards replay the data as a stream through a job with these weights, in OUT/stream, and predict the
    /// test from what stands on its feature topic: beside what was measured offline. Of the test at most so many
    /// samples, the first ones.
    #[arg(long, value_name = "SAMPLES", num_args = 0..=1, default_missing_value = "4294967295")]
    streamed: Option<usize>,
    /// A date for the card; without it the card has none.
    #[arg(long, value_name = "TEXT")]
    date: Option<String>,
    #[command(flatten)]
    rows: RowOptions,
    #[command(flatten)]
    training: TrainingOptions,
}

/// Where the data comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Origin {
    /// The folder of a data set: RecBole's atomic files NAME.inter and, for texts, NAME.item.
    #[arg(long)]
    data: Option<PathBuf>,
    /// An exported training set in Parquet, as `ictflow export` writes it: the columns user_id, item_id,
    /// event_time and label, and for more than ids and votes history, title, creator and categories. The options
    /// of columns don't apply.
    #[arg(long, value_name = "FILE")]
    parquet: Option<PathBuf>,
    /// The configuration of a job: its topics examples and items, as they stand. The options of columns don't
    /// apply.
    #[arg(long, value_name = "CONFIG")]
    examples: Option<PathBuf>,
}

/// The rows of the hashed tables.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tables")]
struct RowOptions {
    /// Rows of the user table. An id's row is its hash's: fewer rows are a smaller file, and more ids share one.
    #[arg(long, value_name = "N", default_value_t = Shape::default().user_rows as u64)]
    user_rows: u64,
    /// Rows of the item table.
    #[arg(long, value_name = "N", default_value_t = Shape::default().item_rows as u64)]
    item_rows: u64,
    /// Rows of the creator table.
    #[arg(long, value_name = "N", default_value_t = Shape::default().creator_rows as u64)]
    creator_rows: u64,
    /// Rows of the category table.
    #[arg(long, value_name = "N", default_value_t = Shape::default().category_rows as u64)]
    category_rows: u64,
}

/// Trains, writes all files and prints the figures.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let arm = arm(&arguments.arm)?;
    let mut encoder = arguments.reading.encoder()?;
    let (data, source, label) = arguments.data_set()?;
    let prepared =
        Prepared::of(data, arguments.reading.protocol(), &mut *encoder, &models().join("vectors"))?;
    drop(encoder);
    let rows = &arguments.rows;
    let rows = Rows {
        user: rows.user_rows as usize,
        item: rows.item_rows as usize,
        creator: rows.creator_rows as usize,
        category: rows.category_rows as usize,
    };
    let options = Options {
        backbone: arguments.backbone,
        arm,
        sizes: arguments.training.sizes(),
        training: arguments.training.training(),
        seed: arguments.seed,
        rows,
        out: arguments.out.clone(),
        restart: arguments.restart,
        told: Told { source, label, command: command(), date: arguments.date.clone() },
    };
    let trained = train(&prepared, &options)?;
    let line = |part: &str, Figures { auc, gauc, log_loss }: Figures| {
        let gauc = gauc.map_or("-".to_owned(), |gauc| format!("{gauc:.4}"));
        format!("{part}: AUC {auc:.4}, GAUC {gauc}, LogLoss {log_loss:.4}\n")
    };
    let lines = line("validation", trained.valid) + &line("test", trained.test);
    // A reader that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
    eprintln!("weights, card and curves: {}", options.out.display());
    match arguments.streamed {
        Some(most) => replay(&prepared, arguments.reading.encoder()?, &options.out, most),
        None => Ok(()),
    }
}

/// Replays the data as a stream and prints what the ranker reached from the topic.
fn replay(prepared: &Prepared, encoder: Box<dyn Embed>, out: &Path, most: usize) -> Result<()> {
    let state = out.join("stream");
    if state.exists() {
        std::fs::remove_dir_all(&state).map_err(|error| {
            Error::fatal(format!("empty {}", state.display()), error, "name another folder by --out")
        })?;
    }
    let report = streamed(prepared, encoder, out, &state, most)?;
    let mut lines = format!("{} samples predicted from the topic", report.predicted);
    if report.without_vector > 0 {
        lines += &format!(", {} had no vector", report.without_vector);
    }
    lines.push('\n');
    let figure = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.4}"));
    for row in &report.rows {
        let name = match row.name.as_str() {
            "with" => "with vector and votes",
            _ => "the same ranker with zeros in their place, which is no baseline",
        };
        let [auc, gauc, log_loss] = [row.auc, row.gauc, row.log_loss].map(figure);
        lines += &format!("{name}: AUC {auc}, GAUC {gauc}, LogLoss {log_loss}\n");
    }
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
    Ok(())
}

impl Arguments {
    /// The data set, where it comes from, and what makes a row of it positive.
    fn data_set(&self) -> Result<(Dataset, String, String)> {
        let label = "of the examples".to_owned();
        if self.origin.data.is_none() && self.reading.cuts() {
            return Err(Error::fatal(
                "cut the data",
                "--users cuts the folders of --data alone",
                "leave it out",
            ));
        }
        match (&self.origin.data, &self.origin.parquet, &self.origin.examples) {
            (Some(folder), ..) => {
                let source = self.reading.source(folder)?;
                let data = source.read()?;
                let mut shown = format!("atomic files of `{}`", shown(folder));
                if let Some(users) = source.users {
                    shown += &format!(", a cut of {users} users");
                }
                Ok((data, shown, source.columns.labels.to_string()))
            }
            (_, Some(file), _) => {
                Ok((examples::of_parquet(file)?, format!("training set `{}`", shown(file)), label))
            }
            (.., Some(path)) => {
                let config = Config::read_with_inputs(path)?;
                let mut topics = config.topics(true)?;
                let (options, formats) = (&config.options, config.formats());
                let names = outputs::active(&mut *topics, &options.names, Some(&options.job))?;
                let items = formats.get(&Topic::Items).copied().unwrap_or(Format::Avro);
                let data = examples::of_topics(&mut *topics, &names, items, &config.semantics)?;
                Ok((data, format!("topics of the job `{}`", options.job), label))
            }
            _ => Err(Error::fatal("find the data", "none is named", "give --data, --parquet or --examples")),
        }
    }
}

/// A path in the cache of models and data, which is another on each machine; `None` for one that isn't in it.
fn in_cache(path: &Path) -> Option<String> {
    let inner = path.strip_prefix(models()).ok()?;
    Some(format!("$ICTFLOW_MODELS/{}", inner.display()))
}

/// A path as a card shows it.
fn shown(path: &Path) -> String {
    in_cache(path).unwrap_or_else(|| path.display().to_string())
}

/// The arm of a name.
fn arm(name: &str) -> Result<Arm> {
    // Demonstrations are of the training part: nothing a job could serve comes of them.
    let served = |arm: &Arm| arm.demonstrations().is_none();
    Arm::named(name).filter(served).ok_or_else(|| {
        let all: Vec<&str> = ARMS.iter().filter(|arm| served(arm)).map(|arm| arm.name).collect();
        let detail = format!("there is no arm {name:?} among {}", all.join(", "));
        Error::fatal("choose the arm", detail, "see evaluate --help")
    })
}

/// The command as a shell takes it again. The program's own path is no part of it.
fn command() -> String {
    let quoted = |argument: std::ffi::OsString| {
        let text = argument.to_string_lossy().into_owned();
        if let Some(inner) = in_cache(Path::new(&text)) {
            return format!("\"{inner}\"");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,+=:@".contains(c);
        match !text.is_empty() && text.chars().all(plain) {
            true => text,
            false => format!("'{}'", text.replace('\'', "'\\''")),
        }
    };
    let arguments: Vec<String> = std::env::args_os().skip(1).map(quoted).collect();
    format!("ictflow {}", arguments.join(" "))
}
