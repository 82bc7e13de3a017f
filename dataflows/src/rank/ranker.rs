//! A trained ranker, read from its file.

use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::TEXT_HIDDEN;
use ictflow_operators::ranking::RankingError;
use ictflow_operators::ranking::backbones::{Backbone, Kind, Settings};
use ictflow_operators::ranking::ids::Tables;
use ictflow_operators::ranking::layers::{Maker, Projection};
use ictflow_operators::ranking::variables::Variables;
use ictflow_operators::ranking::weights::{self, Serving};
use ictflow_schemas::framing::{hashed_row, hex};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// A hashed table: the row of an id is its hash's. Rows that training gave no value are zeros, and what is a mean
/// over ids counts them: so were unknown ids trained and evaluated.
#[derive(Debug)]
pub(super) struct Hashed {
    table: &'static str,
    rows: u32,
}

impl Hashed {
    /// The table of a file, which is smaller than 2^32 rows.
    fn of(table: &'static str, rows: usize) -> Self {
        Hashed { table, rows: u32::try_from(rows).unwrap_or(u32::MAX) }
    }

    /// The row of an id.
    pub(super) fn row(&self, id: &str) -> u32 {
        hashed_row(self.table, id, self.rows)
    }
}

/// A backbone with its tables and its net for texts, as a file holds them.
///
/// **Memory**: the file's bytes, once.
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
            user: Hashed::of("user", rows.user),
            item: Hashed::of("item", rows.item),
            creator: Hashed::of("creator", rows.creator),
            category: Hashed::of("category", rows.category),
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
