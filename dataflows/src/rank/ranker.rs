//! A trained ranker, read from its file.

use candle_core::Tensor;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::TEXT_HIDDEN;
use ictflow_operators::ranking::RankingError;
use ictflow_operators::ranking::backbones::{Backbone, Kind, Settings};
use ictflow_operators::ranking::ids::Tables;
use ictflow_operators::ranking::layers::{Maker, Projection};
use ictflow_operators::ranking::variables::{Variables, values};
use ictflow_operators::ranking::weights::{self, Serving};
use ictflow_schemas::framing::{hashed_row, hex};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The rows of a hashed table that training gave a value.
#[derive(Debug)]
pub(super) struct Hashed {
    table: &'static str,
    known: Box<[bool]>,
}

impl Hashed {
    fn of(table: &'static str, weights: &Tensor) -> std::result::Result<Self, RankingError> {
        let width = weights.dim(1)?;
        let known = values(weights)?.chunks_exact(width).map(|row| row.iter().any(|x| *x != 0.0)).collect();
        Ok(Hashed { table, known })
    }

    /// The row of an id; 0, as for an absent one, where no id of training has it: so was an unknown id
    /// evaluated, and what is a mean over ids doesn't count it.
    pub(super) fn row(&self, id: &str) -> u32 {
        // A table that was read has less rows than that.
        let row = hashed_row(self.table, id, u32::try_from(self.known.len()).unwrap_or(u32::MAX));
        if self.known.get(row as usize).copied().unwrap_or_default() { row } else { 0 }
    }
}

/// A backbone with its tables and its net for texts, as a file holds them.
///
/// **Memory**: the file's bytes, once, and 1 B a row of the tables.
#[derive(Debug)]
pub struct Ranker {
    pub(super) backbone: Box<dyn Backbone>,
    pub(super) tables: Tables,
    pub(super) text: Option<Projection>,
    pub(super) settings: Settings,
    pub(super) user: Hashed,
    pub(super) item: Hashed,
    pub(super) creator: Hashed,
    pub(super) category: Hashed,
    /// How its inputs are made.
    pub serving: Serving,
    /// What its training noted: data, protocol, seed and the like.
    pub notes: BTreeMap<String, String>,
    /// The SHA-256 of the file, lower-case hex.
    pub version: String,
}

impl Ranker {
    /// Reads a file.
    ///
    /// # Errors
    /// `Fatal` where it can't be read, or isn't a ranker's for serving.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| {
            let hint = "name the file that `ictflow train` wrote: ranker.safetensors";
            Error::fatal(format!("read the ranker {}", path.display()), error, hint)
        })?;
        Ranker::from_bytes(&bytes).map_err(|error| {
            let hint = "give a ranker.safetensors of `ictflow train`, made by a version that fits this one";
            Error::fatal(format!("read the ranker {}", path.display()), error, hint)
        })
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// [`RankingError::Unreadable`] and [`RankingError::File`] where it isn't a ranker's for serving.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, RankingError> {
        let description = weights::describe(bytes)?;
        let serving = description.serving()?.clone();
        let (settings, rows) = (description.settings.clone(), description.rows);
        settings.check()?;
        // What the description claims is made before the file is looked at: it must be in there.
        let held = [rows.user, rows.item, rows.creator, rows.category]
            .into_iter()
            .try_fold(0_usize, |sum, rows| sum.checked_add(rows))
            .and_then(|rows| rows.checked_mul(settings.d)?.checked_mul(size_of::<f32>()))
            .is_some_and(|tables| tables <= bytes.len());
        let text_held = serving.text.as_ref().is_none_or(|text| text.width <= bytes.len());
        if !held || !text_held {
            let detail = "it is smaller than the tables that it describes".to_owned();
            return Err(RankingError::Unreadable { detail });
        }
        let kind = description.backbone;
        let mut variables = Variables::new(0);
        let tables = rows.create(settings.d, kind.init(), &mut variables)?;
        let text = match &serving.text {
            Some(text) => {
                let maker = &mut Maker { variables: &mut variables, init: kind.init() };
                Some(Projection::new(maker, "field_text", text.width, TEXT_HIDDEN, settings.d)?)
            }
            None => None,
        };
        let backbone = kind.build(&settings, &mut variables)?;
        weights::read(bytes, &variables)?;
        let version = hex(&Sha256::digest(bytes));
        Ok(Ranker {
            user: Hashed::of("user", &tables.user)?,
            item: Hashed::of("item", &tables.item)?,
            creator: Hashed::of("creator", &tables.creator)?,
            category: Hashed::of("category", &tables.category)?,
            backbone,
            tables,
            text,
            settings,
            serving,
            notes: description.notes,
            version,
        })
    }

    /// The kind of its backbone.
    pub fn kind(&self) -> Kind {
        self.backbone.kind()
    }

    /// The encoder whose texts it reads, and the width of its vectors.
    pub fn encoder(&self) -> Option<(String, usize)> {
        self.serving.text.as_ref().map(|text| (text.encoder.clone(), text.width))
    }

    /// The width of the vectors that it reads; `None` where it reads none.
    pub fn vector_width(&self) -> Option<usize> {
        self.serving.vector.as_ref().map(|_| self.settings.d)
    }
}
