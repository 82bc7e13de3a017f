//! Cells of an evaluation: one backbone, one arm, one seed. Each is a file, so that an evaluation that was
//! killed goes on where it stood, and a longer one takes over what a shorter one did.
//!
//! A cell's file holds its key, everything that decides its figures, the machine that it was trained on, the
//! curve of its training and the scores of the test part. It is read back where the key is the same to the letter; its name has the key's digest, so
//! cells of other data or settings stay beside it. Files come under their name only when whole.

use super::arms::Arm;
use super::cots::Cots;
use super::dataset::{HISTORY, Prepared};
use super::delay::Delay;
use super::demonstrations::DEMONSTRATIONS;
use super::fit::{Curve, Training};
use super::model::{Sizes, settings};
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::MAX_NEIGHBOURS;
use ictflow_operators::ranking::backbones::{Kind, Settings};
use ictflow_operators::retrieval::neighbours::Neighbourhood;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Rises with every change of the code that moves a figure: cells of before are then made anew.
const FIGURES: u32 = 4;

/// What decides a cell's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Key {
    figures: u32,
    data: String,
    protocol: &'static str,
    encoder: Option<String>,
    history: usize,
    /// The backbone.
    pub backbone: Kind,
    settings: Settings,
    sizes: Sizes,
    /// The arm.
    pub arm: Arm,
    neighbourhood: Option<(Neighbourhood, usize)>,
    /// K, and the digest of the pool and its texts.
    demonstrations: Option<(usize, String)>,
    training: Training,
    /// How much later than its event a label is known; none for an arm that reads no labels.
    pub label_delay: Delay,
    /// The seed.
    pub seed: u64,
}

impl Key {
    /// The key of a cell.
    pub fn of(
        (prepared, cots): (&Prepared, &Cots),
        backbone: Kind,
        arm: Arm,
        (sizes, training): (&Sizes, Training),
        (label_delay, seed): (Delay, u64),
    ) -> Self {
        // Neighbours are near by their texts too, so the encoder decides them.
        let reads_texts = arm.reads_texts() || arm.neighbours();
        Key {
            figures: FIGURES,
            data: prepared.digest.hex(),
            protocol: prepared.protocol.name(),
            encoder: reads_texts.then(|| prepared.encoder.clone()),
            history: HISTORY,
            backbone,
            settings: settings(&arm, sizes),
            sizes: sizes.clone(),
            arm,
            neighbourhood: arm.neighbours().then(|| (Neighbourhood::default(), MAX_NEIGHBOURS)),
            demonstrations: cots.digest(&arm).map(|digest| (DEMONSTRATIONS, digest)),
            training,
            label_delay: if arm.reads_labels() { label_delay } else { Delay::NONE },
            seed,
        }
    }

    /// The cell's name in files and messages.
    pub fn name(&self) -> String {
        let (backbone, arm, seed) = (self.backbone.name(), self.arm.name, self.seed);
        match self.label_delay {
            Delay::NONE => format!("{backbone}-{arm}-{seed}"),
            delay => format!("{backbone}-{arm}-after-{delay}-{seed}"),
        }
    }

    /// The key as JSON.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub(super) fn value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(defect)
    }

    /// The cell's file in the folder of an evaluation.
    fn path(&self, out: &Path) -> Result<PathBuf> {
        let digest = blake3::hash(self.value()?.to_string().as_bytes()).to_hex();
        Ok(out.join("cells").join(format!("{}-{}.json", self.name(), &digest[..12])))
    }
}

/// A finished cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    key: Value,
    /// What it was trained on: another machine may give other last bits.
    pub machine: String,
    /// Its training.
    pub curve: Curve,
    /// The probabilities of the test part's samples, in their order.
    pub scores: Vec<f32>,
}

impl Cell {
    /// A finished cell.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn new(key: &Key, machine: String, curve: Curve, scores: Vec<f32>) -> Result<Self> {
        Ok(Cell { key: key.value()?, machine, curve, scores })
    }

    /// The cell of a key that was finished before, with as many scores as the test part has samples. A file
    /// that can't be read counts as none, and is said on standard error.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn read(out: &Path, key: &Key, samples: usize) -> Result<Option<Cell>> {
        let path = key.path(out)?;
        let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
        let expected = key.value()?;
        match serde_json::from_slice::<Cell>(&bytes) {
            Ok(cell) if cell.key == expected && cell.scores.len() == samples => Ok(Some(cell)),
            _ => {
                eprintln!("{} isn't the cell that it should be, so it is made anew", path.display());
                Ok(None)
            }
        }
    }

    /// Writes the cell, and its curve as CSV.
    ///
    /// # Errors
    /// `Fatal` where a file can't be written.
    pub fn write(&self, out: &Path, key: &Key) -> Result<()> {
        let text = serde_json::to_string(self).map_err(defect)?;
        write(&out.join("curves").join(format!("{}.csv", key.name())), &self.curve.csv())?;
        write(&key.path(out)?, &text)
    }
}

/// Writes a file under its name only when it is whole. Its folder is made where it doesn't exist.
///
/// # Errors
/// `Fatal` where it can't be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error| Error::fatal(format!("write {}", path.display()), error, "name a folder by --out");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    std::fs::write(&name, text).map_err(failed)?;
    std::fs::rename(&name, path).map_err(failed)
}

fn defect(error: impl ToString) -> Error {
    Error::fatal("write a cell", error, "this is a defect: please report it")
}
