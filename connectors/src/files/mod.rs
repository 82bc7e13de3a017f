//! Topics read from JSON Lines; everything else in a [`Local`] store in the state folder.
//!
//! An input topic is one file and has one partition. A record is a line, its offset the line's
//! number from 0:
//! ```json
//! {"key": "user-1", "value": {"event_id": "e1", "kind": "click"}, "timestamp": 1700000000000}
//! ```
//! `key` is a text or null, `value` any JSON or null (a tombstone), both required; `timestamp` is
//! whole milliseconds, and may be missing, null or −1 for none. A record's key is the key's UTF-8
//! text, its value the bytes of `value` exactly as they stand in the line.
//!
//! No line is skipped, so that offsets are line numbers. A line of another form (no JSON, not
//! UTF-8, blank, a field missing, repeated or not known) is a record without key whose value is the
//! raw line without its end, and so ends as a dead letter, `unreadable`. A line longer than
//! [`LINE_BYTES`] is such a record with the line's first [`TRUNCATED_BYTES`]. Lines end with `\n` or
//! `\r\n`; a byte order mark in front of the first is dropped.
//!
//! # Delivery
//! Without `follow` a file is taken as it is when the store is opened: a last line without newline
//! counts, later appends aren't seen. With `follow` appended lines are seen, each once its newline
//! is there. The file is the log: it may only grow. One that shrank below what was read is `Fatal`,
//! as is a reader from an offset beyond its end; other changes aren't noticed, and give a replay
//! other data. A last line without newline must not be continued once it was read.
//! Standard input (path `-`, for one topic) is copied to its end into the state folder, synchronised
//! to the disk, and then read as a file that isn't growing. A restart may give nothing, the same
//! input, or the same with more lines; any other input is refused.
//! Writing to an input topic is `Fatal`. All other topics are as [`Local`] says.
//!
//! # Ordering
//! The order of the lines.
//!
//! # Retries
//! None: a file that can't be read is `Fatal`.
//!
//! # Limits
//! * [`LINE_BYTES`] a line; a poll returns at most `max` records and stops once it holds
//!   [`POLL_BYTES`].
//! * The place of every 1,024th line is held in memory (8 bytes each).
//! * A followed file is looked at every [`IDLE_PAUSE`] while a reader waits.
//! * Regular, uncompressed files only. Standard input must end before the job starts.
//! * Outputs stand in the local store; [`sink`] copies them to JSON Lines.
//!
//! # Secrets
//! None. Lines never stand in errors or traces; paths do.
//!
//! # Telemetry
//! That of [`Local`]; a warning where a partial copy of standard input stays behind.

mod line;
pub mod sink;
mod source;
mod stdin;
#[cfg(test)]
mod tests;

use crate::local::{self, Local};
use crate::topics::{self, Topics};
use crate::{Error, Result};
use ictflow_schemas::topic::{NewRecord, Policy};
use source::{Reader, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The longest line, in bytes, its `\n` not counted.
pub const LINE_BYTES: usize = 16 << 20;

/// What is kept of a line that is longer.
pub const TRUNCATED_BYTES: usize = 64 << 10;

/// A poll stops once its records hold this many bytes, whatever its `max`.
pub const POLL_BYTES: usize = 64 << 20;

/// The pause between two looks at a file while a reader waits.
pub const IDLE_PAUSE: Duration = Duration::from_millis(10);

/// The path that stands for standard input.
pub const STDIN: &str = "-";

/// An input topic and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The topic's name.
    pub topic: String,
    /// The file, or [`STDIN`].
    pub path: PathBuf,
}

/// Input topics from files, all others in a [`Local`] store.
pub struct Files {
    inputs: BTreeMap<String, Arc<Source>>,
    inner: Local,
}

impl Files {
    /// Opens the files, and the store `state/`[`local::FILE_NAME`] for reading and writing. Standard
    /// input, where named, is copied first: this returns after its end.
    ///
    /// # Errors
    /// `Fatal` where a file isn't there or isn't a regular one, a topic or standard input is named
    /// twice, or standard input doesn't continue its earlier copy; and those of [`Local::open`].
    pub fn open(inputs: &[Input], state: &Path, follow: bool) -> Result<Files> {
        let inner = Local::open(state.join(local::FILE_NAME))?;
        Files::build(inputs, state, follow, inner, |target| stdin::copy(std::io::stdin().lock(), target))
    }

    /// Opens the files, and the store for reading only, beside a job that runs or after it. Standard
    /// input isn't read: its copy is.
    ///
    /// # Errors
    /// Those of [`Files::open`] and [`Local::open_read_only`].
    pub fn open_read_only(inputs: &[Input], state: &Path, follow: bool) -> Result<Files> {
        let inner = Local::open_read_only(state.join(local::FILE_NAME))?;
        Files::build(inputs, state, follow, inner, |_| Ok(()))
    }

    fn build(
        inputs: &[Input],
        state: &Path,
        follow: bool,
        inner: Local,
        copy: impl Fn(&Path) -> Result<()>,
    ) -> Result<Files> {
        let twice = |what: String| {
            Error::fatal("opening the input files", what, "name one file for each input topic")
        };
        let mut names = BTreeSet::new();
        for input in inputs {
            if !names.insert(&input.topic) {
                return Err(twice(format!("topic {} is named twice", input.topic)));
            }
        }
        if inputs.iter().filter(|input| input.path == Path::new(STDIN)).count() > 1 {
            return Err(twice("standard input is named for two topics".to_owned()));
        }
        let mut sources = BTreeMap::new();
        for input in inputs {
            let source = if input.path == Path::new(STDIN) {
                let target = copy_path(state, &input.topic)?;
                copy(&target)?;
                Source::open(&input.topic, &target, false)?
            } else {
                Source::open(&input.topic, &input.path, follow)?
            };
            sources.insert(input.topic.clone(), Arc::new(source));
        }
        Ok(Files { inputs: sources, inner })
    }

    /// The store of all topics but the inputs.
    pub fn local(&self) -> &Local {
        &self.inner
    }
}

/// Where standard input is copied to.
fn copy_path(state: &Path, topic: &str) -> Result<PathBuf> {
    // The name goes into a file's name: what leads elsewhere is refused.
    if topic.is_empty() || topic.contains(['/', '\0']) {
        return Err(Error::fatal(
            "opening the input files",
            format!("topic {topic:?} can't name the copy of standard input"),
            "use letters, digits, dots, dashes and underscores in topic names",
        ));
    }
    Ok(state.join(format!("stdin-{topic}.jsonl")))
}

/// The refusal of records for an input topic.
fn refuse(records: &[NewRecord], context: &str, is_input: impl Fn(&str) -> bool) -> Result<()> {
    match records.iter().find(|record| is_input(&record.topic)) {
        None => Ok(()),
        Some(record) => Err(Error::fatal(
            context,
            format!("topic {} is read from a file and can't be written", record.topic),
            "append to the file itself, or use the local or kafka store",
        )),
    }
}

impl Topics for Files {
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>> {
        if self.inputs.contains_key(topic) { Ok(Some(1)) } else { self.inner.partitions(topic) }
    }

    fn ensure(&mut self, topic: &str, partitions: u32, policy: Policy) -> Result<()> {
        if !self.inputs.contains_key(topic) {
            return self.inner.ensure(topic, partitions, policy);
        }
        match partitions {
            1 => Ok(()),
            _ => Err(local::count_mismatch(&format!("ensuring topic {topic}"), topic, 1, partitions)),
        }
    }

    fn ends(&mut self, topic: &str) -> Result<Vec<i64>> {
        match self.inputs.get(topic) {
            Some(source) => Ok(vec![source.lines()?]),
            None => self.inner.ends(topic),
        }
    }

    /// A file keeps all of its lines.
    fn starts(&mut self, topic: &str) -> Result<Vec<i64>> {
        if self.inputs.contains_key(topic) { Ok(vec![0]) } else { self.inner.starts(topic) }
    }

    /// As the trait says; reads the file up to the line found. Only lines with a `timestamp` have one.
    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        match self.inputs.get(topic) {
            Some(source) => Ok(vec![source::offset_at(source, time_ms)?]),
            None => self.inner.offsets_at(topic, time_ms),
        }
    }

    /// As the trait says. An offset beyond the end is a `Fatal` error: the file was replaced.
    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn topics::Reader>> {
        let Some(source) = self.inputs.get(topic) else { return self.inner.reader(topic, from) };
        let context = format!("opening a reader of topic {topic}");
        let next = local::starts(&context, topic, from, &[source.lines()?])?;
        Ok(Box::new(Reader::new(source.clone(), next[0])?))
    }

    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        let context = format!("appending {} records", records.len());
        refuse(records, &context, |topic| self.inputs.contains_key(topic))?;
        self.inner.append(records)
    }

    fn writer(&mut self, transactional_id: &str) -> Result<Box<dyn topics::Writer>> {
        let inner = self.inner.writer(transactional_id)?;
        Ok(Box::new(Writer { inner, inputs: self.inputs.keys().cloned().collect() }))
    }
}

/// A writer of the inner store that refuses input topics.
struct Writer {
    inner: Box<dyn topics::Writer>,
    inputs: BTreeSet<String>,
}

impl topics::Writer for Writer {
    fn commit(&mut self, records: &[NewRecord], offsets: &[(String, u32, i64)]) -> Result<()> {
        let context = format!("committing {} records", records.len());
        refuse(records, &context, |topic| self.inputs.contains(topic))?;
        self.inner.commit(records, offsets)
    }

    fn standing(&mut self, topic: &str) -> Result<()> {
        self.inner.standing(topic)
    }
}
