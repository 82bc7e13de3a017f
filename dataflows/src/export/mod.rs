//! `ictflow export`: a point-in-time training set in Parquet from a job's topics `examples` and `items`.
//!
//! **Computes** of each key of `examples` the newest committed record as the topic stands when the export begins,
//! tombstones left out, each with what `items` says of its item: a row of [`ictflow_connectors::parquet`]. A late
//! outcome has corrected its example; an erased user has none; what the topic's retention has taken is in no row.
//!
//! **Order**: (event_time, user, event_id by bytes), so that the same records give the same bytes, whatever
//! their partitions and the order in which they came.
//!
//! **Point in time**: a row's history is of strictly before its event, by event times; what was served stood on
//! `features` before the impression came, so of one that came late it may know events between the two. The label
//! became known at `label_time`; a late outcome that changed it is in it. Item texts are those of now: `items` is
//! compacted, so what an item's text was then can't be had from it.
//!
//! **Memory**: sorted runs and their buffers (`runs.rs`), a row group, the ids of the rows' users and items, and the
//! texts of those items. On the disk the topic's records stand once beside the file while it is made, where they
//! are more than a run.

pub mod runs;
pub mod settled;

use crate::epochs::read_range;
use crate::names::Names;
use crate::ranking::examples::{exist, items_named};
use ictflow_connectors::parquet::{Row, Writer};
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::history::Identity;
use ictflow_schemas::topic::{Record, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Id, Millis};
use runs::{Entry, RUN_BYTES, Runs};
use serde::Serialize;
use settled::Settled;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// The topics that are read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Their names, with the outputs in force.
    pub names: &'a Names,
    /// The job; `None` for the only one on them.
    pub job: Option<&'a str>,
    /// The format of `items`.
    pub items_as: Format,
    /// By which a record of `items` counts or not.
    pub semantics: &'a Semantics,
}

/// Which examples are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The first event time.
    pub from: Option<Millis>,
    /// The event time before which they end.
    pub until: Option<Millis>,
    /// Their users; empty for all.
    pub users: BTreeSet<String>,
}

impl Selection {
    fn wants(&self, identity: &Identity) -> bool {
        self.from.is_none_or(|from| identity.event_time >= from)
            && self.until.is_none_or(|until| identity.event_time < until)
            && (self.users.is_empty() || self.users.contains(&*identity.user))
    }
}

/// What an export is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Records of `examples` are read.
    Reading,
    /// Rows are written.
    Writing,
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Rows.
    pub rows: u64,
    /// Of them those with the label 1.
    pub positive: u64,
    /// Those whose 0 is for want of any outcome.
    pub implicit: u64,
    /// Those that say what was served.
    pub served: u64,
    /// Users.
    pub users: u64,
    /// Items with rows.
    pub items: u64,
    /// Of them those without a record on `items`.
    pub items_without_text: u64,
    /// Items that stand in histories and have no row: their texts are in no row either.
    pub items_of_histories_only: u64,
    /// The first row's event time.
    pub first: Millis,
    /// The last row's event time.
    pub last: Millis,
    /// Up to where labels are known; `None` where the job's records don't say.
    pub settled: Option<Settled>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Exports. `told` hears how many records are read and rows written, and of how many.
///
/// # Errors
/// Those of the store and of the file; `Fatal` where a topic isn't there, a record can't be read, or no example is
/// wanted. Then the file is what it was before.
pub fn export(
    topics: &mut dyn Topics,
    source: Source<'_>,
    selection: &Selection,
    out: &Path,
    mut told: impl FnMut(Stage, u64, u64),
) -> Result<Report> {
    exist(topics, source.names)?;
    // Before anything is read, so that a name that can't be written costs no time.
    let mut writer = Writer::create(out)?;
    // Before the examples: what this epoch committed stands on the topic then.
    let settled = Settled::read(topics, source.names, source.job)?;
    let name = source.names.of(Topic::Examples);
    let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut runs =
        read(topics, name, selection, folder.to_owned(), |done, of| told(Stage::Reading, done, of))?;
    let Survey { mut report, items, .. } = Survey::of(name, &mut runs)?;
    if report.rows == 0 {
        let (detail, hint) = match *selection == Selection::default() {
            true => ("there is no example", "has the job run, and did labels become known?"),
            false => ("no example is selected", "widen --from, --until or --user"),
        };
        return Err(Error::fatal(format!("export topic {name}"), detail, hint));
    }
    let texts =
        items_named(topics, source.names, source.items_as, source.semantics, |id| items.contains(id))?;
    report.items_without_text = report.items - texts.len() as u64;
    for (done, entry) in runs.merged()?.enumerate() {
        let example = example(name, entry?)?;
        told(Stage::Writing, done as u64, report.rows);
        let item = texts.get(&example.item_id).cloned();
        writer.write(Row { example, item })?;
    }
    writer.finish()?;
    let bytes = std::fs::metadata(out).map(|file| file.len());
    let bytes =
        bytes.map_err(|error| Error::fatal(format!("look at {}", out.display()), error, "was it moved?"))?;
    Ok(Report { settled, bytes, ..report })
}

/// Reads the wanted records of `examples` up to its end.
fn read(
    topics: &mut dyn Topics,
    name: &str,
    selection: &Selection,
    folder: PathBuf,
    mut told: impl FnMut(u64, u64),
) -> Result<Runs> {
    let (starts, ends) = (topics.starts(name)?, topics.ends(name)?);
    let all: i64 = ends.iter().zip(&starts).map(|(end, start)| (end - start).max(0)).sum();
    let (mut runs, mut done, mut failed) = (Runs::new(folder, RUN_BYTES), 0, None);
    read_range(topics, name, &starts, &ends, |record| {
        done += 1;
        told(done, all as u64);
        let Record { partition, offset, key, value, .. } = record;
        let place = (partition, offset);
        let added = match key.as_deref().and_then(Identity::of_key) {
            None => Err(unreadable(name, place, "its key names no example")),
            Some(identity) if selection.wants(&identity) => runs.add(Entry { identity, place, value }),
            Some(_) => Ok(()),
        };
        failed = added.err();
        failed.is_none()
    })?;
    failed.map_or(Ok(runs), Err)
}

/// What is known of the rows before they are written.
#[derive(Default)]
struct Survey {
    report: Report,
    users: HashSet<Id>,
    /// Items with rows.
    items: HashSet<String>,
    /// Items of histories.
    others: HashSet<String>,
}

impl Survey {
    fn of(name: &str, runs: &mut Runs) -> Result<Self> {
        let mut survey = Survey::default();
        for entry in runs.merged()? {
            let entry = entry?;
            let user = entry.identity.user.clone();
            survey.add(user, example(name, entry)?);
        }
        let Survey { report, users, items, others } = &mut survey;
        (report.users, report.items) = (users.len() as u64, items.len() as u64);
        report.items_of_histories_only = others.difference(items).count() as u64;
        Ok(survey)
    }

    fn add(&mut self, user: Id, example: ExampleRecord) {
        let report = &mut self.report;
        if report.rows == 0 {
            report.first = example.event_time;
        }
        report.last = example.event_time;
        report.rows += 1;
        report.positive += u64::from(example.label == 1);
        report.implicit += u64::from(example.implicit);
        report.served += u64::from(example.served.is_some());
        self.users.insert(user);
        for entry in example.history {
            self.others.insert(entry.item_id);
        }
        self.items.insert(example.item_id);
    }
}

/// The example of an entry, which its key has to name.
fn example(name: &str, entry: Entry) -> Result<ExampleRecord> {
    let Entry { identity, place, value } = entry;
    let example = ExampleRecord::decode(&value.unwrap_or_default())
        .map_err(|error| unreadable(name, place, &error.to_string()))?;
    let named = (&*identity.user, identity.event_time, &*identity.event_id);
    match named == (&*example.user_id, example.event_time, &*example.event_id) {
        true => Ok(example),
        false => Err(unreadable(name, place, "its key names another example")),
    }
}

fn unreadable(name: &str, (partition, offset): (u32, i64), detail: &str) -> Error {
    Error::fatal(
        format!("export topic {name}"),
        format!("partition {partition}, offset {offset}: {detail}"),
        "is the topic another program's? our records are written by the job alone",
    )
}

#[cfg(test)]
mod tests;
