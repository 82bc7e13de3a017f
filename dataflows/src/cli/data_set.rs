//! The options of commands that read a data set: its folder, what its columns mean, the split, the encoder.

use crate::config::checked::models;
use crate::demo::movielens;
use crate::ranking::dataset::{Protocol, Source};
use clap::{Args, ValueEnum};
use ictflow_connectors::atomic::{Columns, Folder, Labels, TimeUnit};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_connectors::encoder::minilm::MiniLm;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Shape;
use std::path::{Path, PathBuf};

/// Which data set, and how it is read.
#[derive(Debug, Args)]
pub(super) struct DataSetOptions {
    /// The folder of the data set: RecBole's atomic files NAME.inter and, for texts, NAME.item.
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    reading: ReadingOptions,
}

/// How a data set is read.
#[derive(Debug, Args)]
pub(super) struct ReadingOptions {
    /// NAME, where the folder has several data sets and none of its own name.
    #[arg(long)]
    name: Option<String>,
    /// The label: a rule 'COLUMN>=NUMBER', a column of 0 and 1, or 'implicit', where every row is positive
    /// (only for the protocol leave-one-out).
    #[arg(long, default_value = "rating>=4")]
    label: String,
    /// Rows whose label column is 0 are engagements too: they stand in histories.
    #[arg(long)]
    negatives_engage: bool,
    /// Which rows train, which choose, which test.
    #[arg(long, default_value = "time")]
    protocol: Protocol,
    /// A fixed cut of so many users, by a hash of their ids, and the rows of these alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    users: Option<u64>,
    /// What makes text vectors: the MiniLM model of the cache, or vectors without meaning, for tests.
    #[arg(long, default_value = "minilm")]
    encoder: Encoder,
    #[command(flatten)]
    columns: ColumnOptions,
}

/// The encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Encoder {
    Minilm,
    Hashed,
}

/// Which column means what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Columns")]
struct ColumnOptions {
    /// The user, in NAME.inter.
    #[arg(long, value_name = "COLUMN", default_value = "user_id")]
    user: String,
    /// The item, in both files.
    #[arg(long, value_name = "COLUMN", default_value = "item_id")]
    item: String,
    /// The time, in NAME.inter.
    #[arg(long, value_name = "COLUMN", default_value = "timestamp")]
    time: String,
    /// Its unit: seconds, milliseconds or microseconds.
    #[arg(long, value_name = "UNIT", default_value = "seconds", value_parser = time_unit)]
    time_unit: TimeUnit,
    /// The title, in NAME.item, as are those below. Where none of them is given and the file has MovieLens's
    /// columns movie_title, release_year and class, these are taken.
    #[arg(long, value_name = "COLUMN")]
    title: Option<String>,
    /// The year, in brackets behind the title.
    #[arg(long, value_name = "COLUMN")]
    year: Option<String>,
    /// Who made it.
    #[arg(long, value_name = "COLUMN")]
    creator: Option<String>,
    /// Its categories.
    #[arg(long, value_name = "COLUMN")]
    categories: Option<String>,
    /// Its tags.
    #[arg(long, value_name = "COLUMN")]
    tags: Option<String>,
    /// Its description.
    #[arg(long, value_name = "COLUMN")]
    description: Option<String>,
}

fn time_unit(name: &str) -> std::result::Result<TimeUnit, String> {
    let all = [TimeUnit::Seconds, TimeUnit::Milliseconds, TimeUnit::Microseconds];
    let found = all.into_iter().find(|unit| unit.to_string() == name);
    found.ok_or_else(|| "choose seconds, milliseconds or microseconds".to_owned())
}

impl DataSetOptions {
    /// Where it comes from and how it is read.
    ///
    /// # Errors
    /// `Fatal` where the label rule isn't one, or the folder can't be read.
    pub(super) fn source(&self) -> Result<Source> {
        self.reading.source(&self.data)
    }

    /// The encoder.
    ///
    /// # Errors
    /// `Fatal` where its files are missing.
    pub(super) fn encoder(&self) -> Result<Box<dyn Embed>> {
        self.reading.encoder()
    }
}

impl ReadingOptions {
    /// A folder and how it is read.
    ///
    /// # Errors
    /// `Fatal` where the label rule isn't one, or the folder can't be read.
    pub(super) fn source(&self, data: &Path) -> Result<Source> {
        Ok(Source {
            folder: data.to_owned(),
            name: self.name.clone(),
            columns: self.columns(data)?,
            protocol: self.protocol,
            users: self.users.map(|users| usize::try_from(users).unwrap_or(usize::MAX)),
        })
    }

    /// Whether a cut of users is asked for.
    pub(super) fn cuts(&self) -> bool {
        self.users.is_some()
    }

    /// The split.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The encoder.
    ///
    /// # Errors
    /// `Fatal` where its files are missing.
    pub(super) fn encoder(&self) -> Result<Box<dyn Embed>> {
        Ok(match self.encoder {
            Encoder::Minilm => Box::new(MiniLm::load(&models().join("encoder"))?),
            Encoder::Hashed => Box::new(Hashed::new(Shape::default().text)),
        })
    }

    /// What the columns mean.
    fn columns(&self, data: &Path) -> Result<Columns> {
        let labels: Labels = self
            .label
            .parse()
            .map_err(|error: String| Error::fatal("read --label", error, "the default is 'rating>=4'"))?;
        let given = &self.columns;
        let columns = Columns {
            user: given.user.clone(),
            item: given.item.clone(),
            time: given.time.clone(),
            time_unit: given.time_unit,
            labels,
            negatives_engage: self.negatives_engage,
            title: given.title.clone(),
            year: given.year.clone(),
            creator: given.creator.clone(),
            categories: given.categories.clone(),
            tags: given.tags.clone(),
            description: given.description.clone(),
            ..Columns::default()
        };
        let none =
            [&given.title, &given.year, &given.creator, &given.categories, &given.tags, &given.description]
                .iter()
                .all(|column| column.is_none());
        if none {
            let usual = movielens::columns();
            let taken = Columns {
                title: usual.title,
                year: usual.year,
                categories: usual.categories,
                ..columns.clone()
            };
            let folder = Folder::open(data, self.name.as_deref())?;
            if folder.items(&taken).is_ok_and(|items| items.is_some()) {
                return Ok(taken);
            }
        }
        Ok(columns)
    }
}
