//! Committed records as JSON Lines: the copy of a topic in a file, or on standard output.
//!
//! A line is one record as one JSON object, its members sorted by name:
//! ```json
//! {"headers":{"ictflow-epoch":"7"},"key":["ann","m3"],"offset":12,"partition":0,"timestamp":1,"topic":"features","value":{}}
//! ```
//! The topic stays the truth. A file holds every record of it that was there to be read, in offset order
//! within each partition, and nothing else: whoever opens it again learns from its lines where each
//! partition goes on.
//!
//! # Delivery
//! [`Sink::append`] returns when its lines are written, in a file also synchronised to the disk. After a
//! death at any moment the file ends in whole lines and at most one torn one, which the next
//! [`Sink::file`] cuts off; so no line is lost or doubled, provided the caller goes on at
//! [`Sink::next`]. Standard output gets each line once, and what it lost can't be had again from there.
//!
//! # Ordering
//! The caller's. Within a partition offsets must rise, else the append is `Fatal`.
//!
//! # Retries
//! None. A reader that closed standard output isn't an error but [`Written::Closed`].
//!
//! # Limits
//! * Regular files only, one process each (an advisory lock that the system frees with the process).
//! * Opening reads the file once. A line of more than [`LINE_BYTES`] isn't written, and isn't ours.
//! * Files only grow. One that was removed is written anew from the topic's first record.
//!
//! # Secrets
//! None. Lines never stand in errors; paths and topics do.
//!
//! # Telemetry
//! A trace at info level where a torn line is cut.

use super::STDIN;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The longest line of a copy, its newline not counted: a record's bytes twice over as hex, and room for
/// its frame.
pub const LINE_BYTES: usize = 256 << 20;

/// How every line of ours begins.
const BEGIN: &[u8] = b"{\"headers\":{";

/// Whether an append reached its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It did.
    Done,
    /// Standard output was closed by whoever read it.
    Closed,
}

/// What a copy holds of a record, as far as a check needs it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Place {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: i64,
    /// The record's timestamp.
    pub timestamp: Option<i64>,
    /// The key in its readable form.
    pub key: Value,
    /// The headers.
    pub headers: Value,
}

/// One line to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The record's partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// The JSON object, without a newline.
    pub json: String,
}

enum Out {
    File(File),
    Pipe(Box<dyn Write + Send>),
}

/// A copy of one topic.
pub struct Sink {
    out: Out,
    path: PathBuf,
    topic: String,
    /// By partition the last whole line that was found at opening.
    last: BTreeMap<u32, Place>,
    /// By partition the next offset.
    next: BTreeMap<u32, i64>,
    /// The longest line.
    limit: usize,
}

const NOT_OURS: &str =
    "name a new file, or remove this one: a copy is written anew from the topic's first record";

impl Sink {
    /// Opens or creates a file for a topic. A torn last line is cut off.
    ///
    /// # Errors
    /// `Fatal` where it isn't a regular file, can't be written, is another process's copy at the moment,
    /// or holds anything but lines of this topic with rising offsets. Such a file is left as it is.
    pub fn file(path: &Path, topic: &str) -> Result<Sink> {
        let context = || format!("open the copy {} of topic {topic}", path.display());
        let failed = |e: std::io::Error| {
            Error::fatal(context(), e, "name a file that this user may write, in a folder that exists")
        };
        // Looked at before it is opened: opening a pipe would wait for its reader.
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(Error::fatal(
                    context(),
                    "it isn't a regular file",
                    "name a regular file, or - for standard output",
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::fatal(
                    context(),
                    "another process writes it",
                    "stop the other process, or name another file",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let scanned = scan(&file, topic, LINE_BYTES).map_err(|found| match found {
            Found::Failed(error) => failed(error),
            Found::Foreign(detail) => Error::fatal(context(), detail, NOT_OURS),
        })?;
        if scanned.torn > 0 {
            tracing::info!(path = %path.display(), topic, bytes = scanned.torn, "cut a torn line off a copy");
            file.set_len(scanned.whole).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(scanned.whole)).map_err(failed)?;
        let next = scanned.last.iter().map(|(partition, place)| (*partition, place.offset + 1)).collect();
        Ok(Sink {
            out: Out::File(file),
            path: path.to_owned(),
            topic: topic.to_owned(),
            last: scanned.last,
            next,
            limit: LINE_BYTES,
        })
    }

    /// A copy on standard output.
    pub fn standard_output(topic: &str) -> Sink {
        Sink::pipe(Box::new(std::io::stdout()), topic)
    }

    fn pipe(out: Box<dyn Write + Send>, topic: &str) -> Sink {
        Sink {
            out: Out::Pipe(out),
            path: PathBuf::from(STDIN),
            topic: topic.to_owned(),
            last: BTreeMap::new(),
            next: BTreeMap::new(),
            limit: LINE_BYTES,
        }
    }

    /// Whether it is standard output.
    pub fn is_pipe(&self) -> bool {
        matches!(self.out, Out::Pipe(_))
    }

    /// The file, or `-`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The offset at which a partition goes on; 0 where the copy has nothing of it.
    pub fn next(&self, partition: u32) -> i64 {
        self.next.get(&partition).copied().unwrap_or(0)
    }

    /// The last line of a partition that stood in the file when it was opened.
    pub fn last(&self, partition: u32) -> Option<&Place> {
        self.last.get(&partition)
    }

    /// Writes lines, and returns when they are out.
    ///
    /// # Errors
    /// `Fatal` where they can't be written, a line is longer than [`LINE_BYTES`], or an offset doesn't rise.
    pub fn append(&mut self, lines: &[Line]) -> Result<Written> {
        let context = || format!("write {} of topic {}", self.path.display(), self.topic);
        let mut bytes = Vec::with_capacity(lines.iter().map(|line| line.json.len() + 1).sum());
        for line in lines {
            let next = self.next.entry(line.partition).or_insert(0);
            if line.offset < *next {
                return Err(Error::fatal(
                    context(),
                    format!("offset {} of partition {} came twice", line.offset, line.partition),
                    "this is a defect: please report it",
                ));
            }
            if line.json.len() > self.limit {
                return Err(Error::fatal(
                    context(),
                    format!("a line of {} bytes is longer than {}", line.json.len(), self.limit),
                    "run without this copy, and read the record from the topic",
                ));
            }
            *next = line.offset + 1;
            bytes.extend_from_slice(line.json.as_bytes());
            bytes.push(b'\n');
        }
        if bytes.is_empty() {
            return Ok(Written::Done);
        }
        let written = match &mut self.out {
            Out::File(file) => file.write_all(&bytes).and_then(|()| file.sync_data()),
            Out::Pipe(out) => out.write_all(&bytes).and_then(|()| out.flush()),
        };
        match written {
            Ok(()) => Ok(Written::Done),
            Err(error) if self.is_pipe() && error.kind() == ErrorKind::BrokenPipe => Ok(Written::Closed),
            Err(error) => Err(Error::fatal(
                context(),
                error,
                "check the space on the disk, then start again: the copy goes on where it ended",
            )),
        }
    }
}

/// What a file holds.
struct Scanned {
    last: BTreeMap<u32, Place>,
    /// Bytes of its whole lines.
    whole: u64,
    /// Bytes of a last line without a newline.
    torn: u64,
}

enum Found {
    Failed(std::io::Error),
    Foreign(String),
}

/// Reads a file's lines.
fn scan(file: &File, topic: &str, longest: usize) -> std::result::Result<Scanned, Found> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut scanned = Scanned { last: BTreeMap::new(), whole: 0, torn: 0 };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        // The newline counts here.
        let limit = longest as u64 + 1;
        let read = (&mut reader).take(limit).read_until(b'\n', &mut line).map_err(Found::Failed)?;
        if read == 0 {
            break;
        }
        if line.last() != Some(&b'\n') {
            let begins = line.starts_with(BEGIN) || BEGIN.starts_with(&line);
            if read as u64 == limit || !begins {
                return Err(Found::Foreign(format!("line {number} isn't one of a copy")));
            }
            scanned.torn = read as u64;
            break;
        }
        let place: Place = serde_json::from_slice(&line)
            .map_err(|_| Found::Foreign(format!("line {number} isn't one of a copy")))?;
        if place.topic != topic {
            return Err(Found::Foreign(format!("line {number} is of topic {}", place.topic)));
        }
        if let Some(before) = scanned.last.get(&place.partition)
            && before.offset >= place.offset
        {
            return Err(Found::Foreign(format!(
                "line {number} has offset {} of partition {} after {}",
                place.offset, place.partition, before.offset
            )));
        }
        scanned.last.insert(place.partition, place);
        scanned.whole += read as u64;
    }
    Ok(scanned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(partition: u32, offset: i64) -> Line {
        let json = serde_json::json!({
            "topic": "t", "partition": partition, "offset": offset, "timestamp": 5, "key": ["u"],
            "headers": {"ictflow-epoch": "1"}, "value": null,
        });
        Line { partition, offset, json: json.to_string() }
    }

    fn text(lines: &[Line]) -> String {
        lines.iter().map(|line| format!("{}\n", line.json)).collect()
    }

    #[test]
    fn a_file_goes_on_where_its_last_whole_lines_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.jsonl");
        let lines = [line(0, 0), line(1, 4), line(0, 2)];
        let mut sink = Sink::file(&path, "t").unwrap();
        assert_eq!((sink.next(0), sink.next(1)), (0, 0));
        assert_eq!(sink.append(&lines).unwrap(), Written::Done);
        assert_eq!((sink.next(0), sink.next(1)), (3, 5));
        // The lock is this process's until the sink goes.
        assert!(Sink::file(&path, "t").err().unwrap().to_string().contains("another process"));
        drop(sink);
        // Wherever a further line is torn, what stood before stays.
        let more = text(&[line(1, 5)]);
        for cut in 0..more.len() {
            std::fs::write(&path, format!("{}{}", text(&lines), &more[..cut])).unwrap();
            let sink = Sink::file(&path, "t").unwrap();
            assert_eq!((sink.next(0), sink.next(1)), (3, 5), "{cut}");
            assert_eq!(sink.last(1).unwrap().offset, 4);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text(&lines));
        }
        std::fs::write(&path, format!("{}{more}", text(&lines))).unwrap();
        let mut sink = Sink::file(&path, "t").unwrap();
        assert_eq!(sink.next(1), 6);
        assert!(sink.append(&[line(1, 5)]).unwrap_err().to_string().contains("came twice"));
        assert_eq!(sink.append(&[line(1, 6)]).unwrap(), Written::Done);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            text(&[&lines[..], &[line(1, 5), line(1, 6)]].concat())
        );
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.jsonl");
        let other = text(&[line(0, 0)]).replace("\"topic\":\"t\"", "\"topic\":\"u\"");
        for (content, says) in [
            ("notes of mine".to_owned(), "line 1 isn't"),
            ("{\"key\": \"m1\", \"value\": {}}\n".to_owned(), "line 1 isn't"),
            (format!("{}\n", text(&[line(0, 0)])), "line 2 isn't"),
            (format!("{}{}", text(&[line(0, 0)]), "\0\0\0"), "line 2 isn't"),
            (text(&[line(0, 3), line(1, 0), line(0, 3)]), "line 3 has offset 3 of partition 0 after 3"),
            (other, "line 1 is of topic u"),
        ] {
            std::fs::write(&path, &content).unwrap();
            let error = Sink::file(&path, "t").err().unwrap().to_string();
            assert!(error.contains(says) && error.contains("remove this one"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        let error = Sink::file(folder.path(), "t").err().unwrap().to_string();
        assert!(error.contains("isn't a regular file"), "{error}");
        assert!(Sink::file(&folder.path().join("no/copy"), "t").is_err());
    }

    #[test]
    fn a_line_has_a_limit_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.jsonl");
        let long = line(0, 0);
        let limit = long.json.len();
        let mut sink = Sink::file(&path, "t").unwrap();
        sink.limit = limit - 1;
        let error = sink.append(std::slice::from_ref(&long)).unwrap_err().to_string();
        assert!(error.contains("is longer than"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        sink.limit = limit;
        sink.append(std::slice::from_ref(&long)).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(scan(&file, "t", limit).ok().unwrap().last[&0].offset, 0);
        let file = File::open(&path).unwrap();
        assert!(matches!(scan(&file, "t", limit - 1), Err(Found::Foreign(_))));
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut sink = Sink::pipe(Box::new(Closed), "t");
        assert_eq!(sink.append(&[]).unwrap(), Written::Done);
        assert_eq!(sink.append(&[line(0, 7)]).unwrap(), Written::Closed);
        assert!(sink.is_pipe());
    }
}
