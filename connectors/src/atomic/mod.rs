//! Data sets in RecBole's atomic files: a folder with `NAME.inter`, and perhaps `NAME.item` and
//! `NAME.user`.
//!
//! A file's first line names its columns, `name:type`, with the types `token`, `token_seq`, `float` and
//! `float_seq`; the others are its rows. Fields are divided by a tab, the parts of a sequence by a blank.
//! Which column means what is said by [`Columns`]; columns that none of them names are passed over.
//!
//! ```text
//! user_id:token⇥item_id:token⇥rating:float⇥timestamp:float
//! 196⇥242⇥3⇥881250949
//! ```
//! A row of `NAME.inter` is one interaction; its label is a column or a rule over a value
//! ([`Labels`]). A row of `NAME.item` is what is known of one item; of several rows of one item the last
//! counts, and an item that only interactions name has no text. Of `NAME.user` nothing is used: rankers
//! here know a user by the id and by what the user did.
//!
//! Lines end with `\n` or `\r\n`, a byte order mark in front of the first is dropped, empty lines are
//! passed over. Numbers may have blanks around them, ids are taken as they stand.
//!
//! # Delivery
//! Each row once. The first fault ends the reading: a data set that isn't wholly understood gives
//! figures that nobody can use.
//!
//! # Ordering
//! [`Interactions`] and [`Items`] give the file's order; [`Folder::read`] that of events, (time, row).
//!
//! # Retries
//! None: every failure is `Fatal`, names the file and its line, and what would help.
//!
//! # Limits
//! * [`LINE_BYTES`] a line; one line is held at a time.
//! * [`Folder::read`] holds 24 B a row, each id once (about 100 B with its place in the index), and
//!   each item's text once.
//! * Fewer than 2^32 − 1 rows, users and items.
//! * Regular, uncompressed files.
//!
//! # Secrets
//! None. Values stand in errors where they aren't numbers; texts never do.
//!
//! # Telemetry
//! None.

mod columns;
mod table;
#[cfg(test)]
mod tests;

pub use columns::{Columns, Labels, TimeUnit};
pub use table::LINE_BYTES;

use crate::{Error, Result};
use ictflow_schemas::dataset::{Dataset, TooMany};
use ictflow_schemas::history::Label;
use ictflow_schemas::item::Item;
use ictflow_schemas::{LATEST, Millis};
use std::path::{Path, PathBuf};
use table::{Line, Table};

/// A folder with a data set.
#[derive(Clone, Debug)]
pub struct Folder {
    interactions: PathBuf,
    items: Option<PathBuf>,
}

/// One row of `NAME.inter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Interaction<'a> {
    /// The user.
    pub user: &'a str,
    /// The item.
    pub item: &'a str,
    /// When, in milliseconds.
    pub time: Millis,
    /// The value that the label rule reads.
    pub value: Option<f64>,
    /// What it says.
    pub label: Label,
    /// Whether it enters the history.
    pub engagement: bool,
}

impl Folder {
    /// Looks at a folder. The data set is the one named; without a name that of the folder's own name,
    /// else the only one.
    ///
    /// # Errors
    /// `Fatal` where there is no such `.inter` file, or several and none of the folder's name.
    pub fn open(folder: &Path, name: Option<&str>) -> Result<Folder> {
        let context = || format!("opening the data set in {}", folder.display());
        let entries = std::fs::read_dir(folder).map_err(|error| {
            Error::fatal(context(), error, "name a folder with a file NAME.inter, and perhaps NAME.item")
        })?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::fatal(context(), error, "check the disk"))?;
            let file = entry.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".inter"));
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        let own = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let own = own.file_name().and_then(|own| own.to_str()).unwrap_or_default();
        let found = match name {
            Some(name) => names.iter().find(|found| found.as_str() == name),
            None => names.iter().find(|found| found.as_str() == own).or(match names.as_slice() {
                [only] => Some(only),
                _ => None,
            }),
        };
        let Some(found) = found else {
            let detail = match (name, names.is_empty()) {
                (_, true) => "it has no .inter file".to_owned(),
                (Some(name), false) => {
                    format!("it has no {name}.inter, but {}.inter", names.join(".inter, "))
                }
                (None, false) => format!("it has several .inter files: {}", names.join(", ")),
            };
            return Err(Error::fatal(
                context(),
                detail,
                "name the data set NAME of the files NAME.inter and NAME.item",
            ));
        };
        let beside = |kind: &str| folder.join(format!("{found}.{kind}"));
        Ok(Folder { interactions: beside("inter"), items: Some(beside("item")).filter(|path| path.exists()) })
    }

    /// The data set's name: NAME of `NAME.inter`.
    pub fn name(&self) -> &str {
        self.interactions.file_stem().and_then(std::ffi::OsStr::to_str).unwrap_or_default()
    }

    /// The rows of `NAME.inter`.
    ///
    /// # Errors
    /// `Fatal` where the file is empty, isn't of the form or lacks a column.
    pub fn interactions<'c>(&self, columns: &'c Columns) -> Result<Interactions<'c>> {
        let table = Table::open(&self.interactions)?;
        let labels = match &columns.labels {
            Labels::Column(name) | Labels::Value { column: name, .. } => Some(table.number(name)?),
            Labels::Implicit => None,
        };
        Ok(Interactions {
            user: table.column(&columns.user)?,
            item: table.column(&columns.item)?,
            time: table.number(&columns.time)?,
            labels,
            columns,
            table,
        })
    }

    /// The rows of `NAME.item`; `None` where there is no such file and no column of it is named.
    ///
    /// # Errors
    /// `Fatal` where the file is missing though columns of it are named, is empty, isn't of the form or
    /// lacks a column.
    pub fn items(&self, columns: &Columns) -> Result<Option<Items>> {
        let Some(path) = &self.items else {
            return match columns.of_items().next() {
                None => Ok(None),
                Some((what, name)) => Err(Error::fatal(
                    format!("reading the items beside {}", self.interactions.display()),
                    format!("there is no .item file, and {what} is to come from its column {name}"),
                    "add the file, or name no columns of items",
                )),
            };
        };
        let table = Table::open(path)?;
        let place = |name: &Option<String>| name.as_ref().map(|name| table.column(name)).transpose();
        Ok(Some(Items {
            item: table.column(&columns.item)?,
            title: place(&columns.title)?,
            year: place(&columns.year)?,
            creator: place(&columns.creator)?,
            categories: place(&columns.categories)?,
            tags: place(&columns.tags)?,
            description: place(&columns.description)?,
            table,
        }))
    }

    /// The whole data set, its rows in the order of events. Rows that are neither engagements nor
    /// labelled are left out.
    ///
    /// # Errors
    /// Those of [`Folder::interactions`] and [`Folder::items`] and of their rows; and `Fatal` where no
    /// row is labelled or all labels are equal, unless labels are [`Labels::Implicit`].
    pub fn read(&self, columns: &Columns) -> Result<Dataset> {
        let mut data = Dataset::new(&columns.kind);
        let full = |error: TooMany| {
            let context = format!("reading {}", self.interactions.display());
            Error::fatal(context, error, "take a part of the data set")
        };
        if let Some(mut items) = self.items(columns)? {
            while let Some((id, item)) = items.row()? {
                data.add_item(id, &item).map_err(full)?;
            }
        }
        let (mut positive, mut negative) = (0_u64, 0_u64);
        let mut interactions = self.interactions(columns)?;
        while let Some(row) = interactions.row()? {
            match row.label {
                Label::Positive => positive += 1,
                Label::Negative => negative += 1,
                Label::None if !row.engagement => continue,
                Label::None => {}
            }
            data.add_row(row.user, row.item, row.time, row.label, row.engagement).map_err(full)?;
        }
        let one_class = match (positive, negative) {
            (0, 0) => Some("no row is labelled".to_owned()),
            (0, n) => Some(format!("all {n} labelled rows are negative")),
            (n, 0) if columns.labels != Labels::Implicit => {
                Some(format!("all {n} labelled rows are positive"))
            }
            _ => None,
        };
        if let Some(detail) = one_class {
            let context = format!("labelling {} by {}", self.interactions.display(), columns.labels);
            let hint = "choose another column or threshold for the label; a ranker learns from both classes";
            return Err(Error::fatal(context, detail, hint));
        }
        data.sort();
        Ok(data)
    }
}

/// The rows of `NAME.inter`, in the file's order.
pub struct Interactions<'c> {
    table: Table,
    user: usize,
    item: usize,
    time: usize,
    labels: Option<usize>,
    columns: &'c Columns,
}

impl Interactions<'_> {
    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// `Fatal` where the line isn't of the form, an id is empty, a value isn't a finite number, a label
    /// column holds anything but 0 and 1, or a time is below 1970 or not below 2200.
    pub fn row(&mut self) -> Result<Option<Interaction<'_>>> {
        let (user, item, time, labels, columns) =
            (self.user, self.item, self.time, self.labels, self.columns);
        let Some(line) = self.table.line()? else { return Ok(None) };
        let value = labels.map(|place| line.number(place)).transpose()?;
        let (label, engagement) = match (&columns.labels, value) {
            (Labels::Column(_), Some(1.0)) => (Label::Positive, true),
            (Labels::Column(_), Some(0.0)) => (Label::Negative, columns.negatives_engage),
            (Labels::Column(name), _) => {
                let place = labels.unwrap_or_default();
                let detail = format!("label {name} is {}, neither 0 nor 1", line.shown(place));
                return Err(line.fault(detail, "name it as a value with a threshold, such as 'rating >= 4'"));
            }
            (Labels::Value { rule, .. }, value) => (rule.label(value), rule.is_engagement(value)),
            (Labels::Implicit, _) => (Label::Positive, true),
        };
        Ok(Some(Interaction {
            user: line.id(user)?,
            item: line.id(item)?,
            time: millis(&line, time, columns.time_unit)?,
            value,
            label,
            engagement,
        }))
    }
}

/// A time in milliseconds, cut off below one.
fn millis(line: &Line<'_>, place: usize, unit: TimeUnit) -> Result<Millis> {
    let (mul, div) = unit.to_millis();
    // Whole numbers first: beyond 2^53 a float has lost digits that the file still holds.
    let time = match line.text(place).trim().parse::<i64>() {
        Ok(whole) => whole.checked_mul(mul).map(|time| time.div_euclid(div)),
        Err(_) => {
            let time = (line.number(place)? * mul as f64 / div as f64).floor();
            // Far inside i64, so that the cast below is exact.
            (time.abs() < 1e18).then_some(time as Millis)
        }
    };
    match time.filter(|time| (0..LATEST).contains(time)) {
        Some(time) => Ok(time),
        None => Err(line.fault(
            format!("time {} in {unit} is not within 1970 to 2199", line.shown(place)),
            "set the unit of the time column: seconds, milliseconds or microseconds",
        )),
    }
}

/// The rows of `NAME.item`, in the file's order.
pub struct Items {
    table: Table,
    item: usize,
    title: Option<usize>,
    year: Option<usize>,
    creator: Option<usize>,
    categories: Option<usize>,
    tags: Option<usize>,
    description: Option<usize>,
}

impl Items {
    /// The next item; `None` at the end. A year stands in brackets behind the title. A column of
    /// categories or tags is a list where its type is a sequence, else one value.
    ///
    /// # Errors
    /// `Fatal` where the line isn't of the form, or the id is empty.
    pub fn row(&mut self) -> Result<Option<(&str, Item)>> {
        let (title, year, creator) = (self.title, self.year, self.creator);
        let (categories, tags, description) = (self.categories, self.tags, self.description);
        let item = self.item;
        let Some(line) = self.table.line()? else { return Ok(None) };
        let text = |place: Option<usize>| place.map(|place| line.text(place)).filter(|text| !text.is_empty());
        let list = |place: Option<usize>| {
            place.map(|place| line.list(place).map(str::to_owned).collect()).unwrap_or_default()
        };
        let title = match (text(title), text(year)) {
            (Some(title), Some(year)) => Some(format!("{title} ({year})")),
            (title, _) => title.map(str::to_owned),
        };
        let record = Item {
            title,
            creator: text(creator).map(str::to_owned),
            categories: list(categories),
            tags: list(tags),
            description: text(description).map(str::to_owned),
            ..Item::default()
        };
        Ok(Some((line.id(item)?, record)))
    }
}
