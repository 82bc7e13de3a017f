//! Copies of a job's outputs in files or on standard output, fed from the topics.
//!
//! The topics stay the truth: a copy is read from the log after each commit, never from the epoch in
//! memory. So a file holds just what is committed, whatever happened in between, and one that was left
//! behind catches up. What a file and its lines are: [`ictflow_connectors::files::sink`].
//!
//! Standard output gets what this run commits: everything from where the topic ended before the start.

use crate::job::Totals;
use crate::names::Names;
use crate::tail;
use ictflow_connectors::files::STDIN;
use ictflow_connectors::files::sink::{Line, Sink, Written};
use ictflow_connectors::topics::{Reader, Topics};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::{Record, Topic};
use ictflow_schemas::wire::Format;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Records that are read and written at once.
const BATCH: usize = 1_000;

/// How long a step waits for what was just committed: a broker shows it a moment later.
const STEP_PATIENCE: Duration = Duration::from_secs(1);

/// How long the end of a run waits for it, and the start for what stood on the topic.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// One wait for records.
const SLICE: Duration = Duration::from_millis(20);

/// An output and where it is copied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Features, examples or dead letters.
    pub topic: Topic,
    /// A file, or `-` for standard output.
    pub path: PathBuf,
}

/// The copies of a run.
pub struct Copies(Vec<Copy>);

struct Copy {
    topic: Topic,
    name: String,
    sink: Sink,
    reader: Option<Box<dyn Reader>>,
    /// Where the topic ended before the start: what lies beyond is this run's.
    before: Vec<i64>,
    /// Where the topic is known to end.
    target: Vec<i64>,
    /// By partition, the first offset that standard output hasn't got.
    next: Vec<i64>,
    /// Records of this run that were copied.
    copied: u64,
}

impl Copies {
    /// Refuses targets that meet each other or an input.
    ///
    /// # Errors
    /// `Fatal` where two outputs go to one file or both to standard output, or one to an input.
    pub fn check(targets: &[Target], inputs: &[PathBuf]) -> Result<()> {
        let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
            _ if a == b => true,
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        for (n, target) in targets.iter().enumerate() {
            let other = targets[..n].iter().any(|other| same(&other.path, &target.path));
            let input =
                target.path != Path::new(STDIN) && inputs.iter().any(|input| same(input, &target.path));
            if other || input {
                return Err(Error::fatal(
                    format!("copy {} to {}", target.topic.name(), target.path.display()),
                    if input { "it is an input" } else { "another output goes there" },
                    "give each output a file of its own; one may go to standard output",
                ));
            }
        }
        Ok(())
    }

    /// Opens the files, and notes where their topics end before the job starts.
    ///
    /// # Errors
    /// Those of [`Sink::file`] and of the store.
    pub fn open(targets: &[Target], topics: &mut dyn Topics, names: &Names) -> Result<Self> {
        let mut copies = Vec::new();
        for target in targets {
            let name = names.of(target.topic);
            let before = match topics.partitions(name)? {
                Some(_) => topics.ends(name)?,
                None => Vec::new(),
            };
            let sink = match target.path == Path::new(STDIN) {
                true => Sink::standard_output(name),
                false => Sink::file(&target.path, name)?,
            };
            copies.push(Copy {
                topic: target.topic,
                name: name.to_owned(),
                sink,
                reader: None,
                target: before.clone(),
                before,
                next: Vec::new(),
                copied: 0,
            });
        }
        Ok(Copies(copies))
    }

    /// Opens the readers: by now the topics exist. After a new start of the job it opens them again, and
    /// they go on where the copies end.
    ///
    /// # Errors
    /// `Fatal` where a file holds more than its topic; and those of the store.
    pub fn start(&mut self, topics: &mut dyn Topics) -> Result<()> {
        for copy in &mut self.0 {
            copy.start(topics)?;
        }
        Ok(())
    }

    /// Copies what is committed and can be read. False where nobody reads standard output any more.
    ///
    /// # Errors
    /// `Fatal` where a topic can't be read or a file can't be written.
    pub fn copy(&mut self, totals: Totals) -> Result<bool> {
        let mut open = true;
        for copy in &mut self.0 {
            open &= copy.follow(totals, STEP_PATIENCE)?;
        }
        Ok(open)
    }

    /// Copies the rest at the end of a run: returns when everything that it committed is in the copies.
    ///
    /// # Errors
    /// Those of [`Copies::copy`], and `Fatal` where the rest doesn't come within a minute.
    pub fn finish(&mut self, topics: &mut dyn Topics, totals: Totals) -> Result<bool> {
        let mut open = true;
        for copy in &mut self.0 {
            copy.target = topics.ends(&copy.name)?;
            let reads = copy.follow(totals, END_PATIENCE)?;
            open &= reads;
            if reads && copy.behind(totals) {
                copy.target = topics.ends(&copy.name)?;
                if !copy.reached() {
                    return Err(Error::fatal(
                        format!("copy topic {} to {}", copy.name, copy.sink.path().display()),
                        "what was committed last can't be read yet",
                        "start again: the copy goes on where it ended",
                    ));
                }
                // The log is read to its end, so the rest was compacted away since.
                tracing::warn!(topic = copy.name, "some records were compacted before they were copied");
            }
        }
        Ok(open)
    }
}

impl Copy {
    fn start(&mut self, topics: &mut dyn Topics) -> Result<()> {
        let ends = topics.ends(&self.name)?;
        self.before.resize(ends.len(), 0);
        self.target.clone_from(&ends);
        if self.sink.is_pipe() {
            if self.next.is_empty() {
                self.next.clone_from(&self.before);
            }
            self.reader = Some(topics.reader(&self.name, &self.next)?);
            return Ok(());
        }
        let mut from = Vec::new();
        for (partition, end) in (0..).zip(&ends) {
            // The last line's record is read once more, to see that it is this log's.
            let last = self.sink.last(partition).map(|place| place.offset);
            if last.is_some_and(|last| last >= *end) {
                return Err(self.foreign(format!(
                    "it holds offset {} of partition {partition}, and the topic ends at {end}",
                    last.unwrap_or_default()
                )));
            }
            from.push(last.unwrap_or(0));
        }
        self.reader = Some(topics.reader(&self.name, &from)?);
        Ok(())
    }

    fn foreign(&self, detail: String) -> Error {
        Error::fatal(
            format!("go on with the copy {} of topic {}", self.sink.path().display(), self.name),
            detail,
            "it is the copy of another log: name a new file, or remove this one",
        )
    }

    /// Records that this process committed to the topic.
    fn committed(&self, totals: Totals) -> u64 {
        match self.topic {
            Topic::Features => totals.committed.features + totals.committed.retractions,
            Topic::Examples => totals.committed.examples,
            _ => totals.committed.dead_letters,
        }
    }

    /// Whether something that is known to stand on the topic isn't copied yet.
    fn behind(&self, totals: Totals) -> bool {
        self.copied < self.committed(totals) || !self.reached()
    }

    /// Whether everything below the known end of the topic was read.
    fn reached(&self) -> bool {
        let positions = self.reader.as_ref().map(|reader| reader.positions()).unwrap_or_default();
        positions.iter().zip(&self.target).all(|(at, end)| at >= end)
    }

    /// Copies until nothing is left, waiting at most so long while something is known to be missing.
    fn follow(&mut self, totals: Totals, patience: Duration) -> Result<bool> {
        let mut waited = Instant::now();
        while self.behind(totals) {
            let Some(reader) = &mut self.reader else { return Ok(true) };
            let records = reader.poll(BATCH, SLICE)?;
            if records.is_empty() {
                if waited.elapsed() >= patience {
                    break;
                }
                continue;
            }
            waited = Instant::now();
            let mut lines = Vec::with_capacity(records.len());
            for record in records {
                let partition = record.partition as usize;
                let line = tail::line(self.topic, &self.name, &record, Format::Avro, false);
                if record.offset < self.sink.next(record.partition) && !self.sink.is_pipe() {
                    self.compare(&record, &line)?;
                    continue;
                }
                self.copied += u64::from(self.before.get(partition).is_none_or(|end| record.offset >= *end));
                lines.push(Line {
                    partition: record.partition,
                    offset: record.offset,
                    json: line.to_string(),
                });
            }
            if self.sink.append(&lines)? == Written::Closed {
                return Ok(false);
            }
            for line in &lines {
                if let Some(next) = self.next.get_mut(line.partition as usize) {
                    *next = line.offset + 1;
                }
            }
        }
        Ok(true)
    }

    /// Refuses a file whose last line isn't what stands on the log there.
    fn compare(&self, record: &Record, line: &serde_json::Value) -> Result<()> {
        let Some(place) = self.sink.last(record.partition).filter(|place| place.offset == record.offset)
        else {
            return Ok(());
        };
        if line["key"] == place.key && line["headers"] == place.headers && record.timestamp == place.timestamp
        {
            return Ok(());
        }
        Err(self.foreign(format!(
            "offset {} of partition {} is another record there",
            record.offset, record.partition
        )))
    }
}
