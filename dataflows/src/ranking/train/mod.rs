//! One ranker, trained to be served: its weights, the ICT weights of its arm, a card and the curves.
//!
//! | file | what |
//! | --- | --- |
//! | `ranker.safetensors` | backbone, tables and the text field's net: `operators/src/ranking/weights.rs` |
//! | `ict.safetensors` | the ICT weights of the arm's vector, where it has one: `schemas/weights.md` |
//! | `curves.csv`, `curves.svg` | the checks of the training |
//! | `card.md` | what it is and how good, written last |
//! | `checkpoint/state.safetensors` | the newest check: what a training that was killed goes on from |
//!
//! **Tables** are the hashed ones of `schemas/weights.md`, so that weights serve any id: an id's row is its
//! hashed one, ids that share a row share it in training too, rows that nobody in training has are zeros. In
//! training they are compact.
//!
//! **Same bytes**: data, options and seed decide every file, on one machine and build. A training that was
//! killed ends with the same ones. No clock is read into any of them.

mod card;
mod checkpoint;
mod curves;
mod files;
#[cfg(test)]
mod tests;

pub use files::{DATA, ICT, PROTOCOL, RANKER};

use super::arms::Arm;
use super::cell::Key;
use super::cots::Cots;
use super::dataset::{Part, Prepared};
use super::delay::Delay;
use super::failed;
use super::fit::{Curve, Fitting, Material, Training, predict, widened};
use super::model::{Model, ModelError, Sizes};
use super::neighbours::Neighbours;
use super::tensors::{Columns, NeighbourColumns, Retrieved, Vocabularies};
use checkpoint::Checkpoints;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Shape;
use ictflow_operators::ict::training::HashedRows;
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::metrics::{auc, gauc, log_loss};
use ictflow_operators::ranking::tables::Rows;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What is trained.
#[derive(Clone, Debug)]
pub struct Options {
    /// The backbone.
    pub backbone: Kind,
    /// What it is given.
    pub arm: Arm,
    /// How large it is.
    pub sizes: Sizes,
    /// How it is trained.
    pub training: Training,
    /// What everything is drawn from.
    pub seed: u64,
    /// The rows of the hashed tables, row 0 included.
    pub rows: Rows,
    /// Where all files go.
    pub out: PathBuf,
    /// Whether a checkpoint that is there is thrown away.
    pub restart: bool,
    /// What the card says and the rest doesn't know.
    pub told: Told,
}

/// What only the caller knows.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Where the data comes from.
    pub source: String,
    /// What makes a row positive.
    pub label: String,
    /// The command that does it again.
    pub command: String,
    /// A date, where one is wanted.
    pub date: Option<String>,
}

/// The figures of one part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// AUC.
    pub auc: f64,
    /// GAUC; `None` where no user has both classes.
    pub gauc: Option<f64>,
    /// LogLoss.
    pub log_loss: f64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Its checks.
    pub curve: Curve,
    /// Of the validation part, by the weights that were kept.
    pub valid: Figures,
    /// Of the test part, which is scored once, at the end.
    pub test: Figures,
}

/// Trains, or goes on where a killed training stood, and writes all files.
///
/// # Errors
/// `Fatal` where sizes are out of range, the arm needs texts that aren't there, the folder has a checkpoint of
/// another training, the training diverges, or a file can't be read or written.
pub fn train(prepared: &Prepared, options: &Options) -> Result<Trained> {
    let Options { backbone, arm, sizes, training, seed, .. } = options;
    let shape = shape(prepared, options)?;
    if arm.reads_texts() {
        prepared.need_texts(arm.name)?;
    }
    let key =
        Key::of((prepared, &Cots::default()), *backbone, *arm, (sizes, *training), (Delay::NONE, *seed));
    let checkpoints = Checkpoints::of(&options.out, &key, options.rows)?;
    if options.restart {
        checkpoints.remove()?;
    }
    // Before the work of laying out the data: a checkpoint of another training ends it here.
    let found = checkpoints.read()?;
    let name = key.name();
    let context = |error: &dyn std::fmt::Display| failed(format!("train {name}"), error);

    let mut rows = HashedRows::new(&shape);
    let vocabularies = Vocabularies::of(prepared).hashed(&prepared.data, &mut rows);
    let lay_out = |error| failed("lay out the data set", error);
    let columns = Columns::of(prepared, &vocabularies).map_err(lay_out)?;
    let neighbours = match arm.neighbours() {
        true => {
            let neighbours = Neighbours::of(prepared, arm.selecting.options(Delay::NONE))?;
            Some(NeighbourColumns::of(neighbours, &vocabularies).map_err(lay_out)?)
        }
        false => None,
    };
    let material = Material {
        columns: &columns,
        retrieved: Retrieved { neighbours: neighbours.as_ref(), demonstrations: None },
        valid_users: &prepared.users(Part::Valid),
        valid_labels: &prepared.labels(Part::Valid),
    };
    let model = Model::new(*backbone, *arm, sizes, &columns, *seed).map_err(|e| context(&e))?;
    let mut fitting = Fitting::new(&model, &material, training, *seed, &name);
    if let Some(bytes) = found {
        fitting.resume(&bytes).map_err(|e| checkpoints.unusable(&e))?;
        eprintln!("{name}: goes on after {} steps", fitting.steps());
    }
    while fitting.advance().map_err(|e| context(&e))?.is_some() {
        checkpoints.write(&fitting.save(checkpoints.key()).map_err(|e| context(&e))?)?;
    }
    let curve = fitting.finish().map_err(|e| context(&e))?;
    let valid =
        curve.best().map(|check| Figures { auc: check.auc, gauc: check.gauc, log_loss: check.log_loss });
    let valid = valid.ok_or_else(|| context(&"no step was taken: there are too few training samples"))?;
    let test = figures(&model, &material, prepared).map_err(|e| context(&e))?;
    let trained = Trained { curve, valid, test };
    files::write_all(prepared, options, (&model, &rows), &trained)?;
    Ok(trained)
}

/// The sizes of the files.
fn shape(prepared: &Prepared, options: &Options) -> Result<Shape> {
    let Rows { user, item, creator, category } = options.rows;
    let shape = Shape {
        d: options.sizes.width,
        text: prepared.text_width,
        user_rows: user,
        item_rows: item,
        creator_rows: creator,
        category_rows: category,
    };
    let hint = "see --width, --user-rows, --item-rows, --creator-rows and --category-rows";
    shape.check().map_err(|error| Error::fatal("size the weights", error, hint))?;
    Ok(shape)
}

/// The figures of the test part.
fn figures(
    model: &Model,
    material: &Material<'_>,
    prepared: &Prepared,
) -> std::result::Result<Figures, ModelError> {
    let scores = widened(&predict(model, material, Part::Test)?);
    let (users, labels) = (prepared.users(Part::Test), prepared.labels(Part::Test));
    let metric = |metric| move |why| ModelError::Metric { metric, why };
    Ok(Figures {
        auc: auc(&labels, &scores).map_err(metric("AUC"))?,
        gauc: gauc(&users, &labels, &scores).ok().map(|gauc| gauc.value),
        log_loss: log_loss(&labels, &scores).map_err(metric("LogLoss"))?,
    })
}

/// Writes a file under its name only when it is whole and on the disk.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::fatal(format!("write {}", path.display()), error, "name a folder by --out");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file = File::create(&part).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&part, path).map_err(failed)
}

/// Removes a file that needn't be there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::fatal(format!("remove {}", path.display()), error, "name a folder by --out"))
        }
        _ => Ok(()),
    }
}
