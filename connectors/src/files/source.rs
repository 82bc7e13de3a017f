//! A file of lines: where its lines are, and reading them.

use super::{IDLE_PAUSE, LINE_BYTES, POLL_BYTES, TRUNCATED_BYTES, line};
use crate::{Error, Result, topics};
use ictflow_schemas::topic::Record;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one read.
const CHUNK_BYTES: usize = 256 << 10;

/// The index keeps the place of every so many lines.
const MARK_LINES: usize = 1024;

/// A byte order mark, which some editors put in front.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// One open file, shared by the store and its readers. It is read at positions, so that they
/// don't share a cursor.
pub(super) struct Source {
    topic: String,
    path: PathBuf,
    file: File,
    /// The length that counts where the file isn't followed.
    fixed: Option<u64>,
    index: Mutex<Index>,
}

/// What is known of a file's lines.
#[derive(Default)]
struct Index {
    /// Everything below was looked at.
    scanned: u64,
    /// The end of the last line with a newline.
    complete: u64,
    /// The number of lines with a newline.
    lines: usize,
    /// Where lines 0, `MARK_LINES`, twice that ... begin.
    marks: Vec<u64>,
}

/// What may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    lines: i64,
    bytes: u64,
}

impl Source {
    /// Opens a file. Unless it is followed, what is appended later isn't seen.
    pub(super) fn open(topic: &str, path: &Path, follow: bool) -> Result<Source> {
        let context = || format!("opening {} for topic {topic}", path.display());
        let failed =
            |error| Error::fatal(context(), error, "check the path and that this user may read the file");
        // Looked at before it is opened: opening a pipe would wait for its writer.
        let regular = std::fs::metadata(path).map_err(failed)?.is_file();
        if !regular {
            let hint = "name a regular file, or - for standard input";
            return Err(Error::fatal(context(), "it isn't a regular file", hint));
        }
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Source {
            topic: topic.to_owned(),
            path: path.to_owned(),
            file,
            fixed: (!follow).then_some(length),
            index: Mutex::new(Index { marks: vec![0], ..Index::default() }),
        })
    }

    fn failed(&self, error: impl ToString) -> Error {
        Error::fatal(
            format!("reading {} for topic {}", self.path.display(), self.topic),
            error,
            "check the disk, and that nothing but appends changes the file",
        )
    }

    fn shrunk(&self, length: u64) -> Error {
        self.failed(format!("the file shrank to {length} bytes after more was read"))
    }

    /// Reads at a position where bytes must be.
    fn read(&self, into: &mut [u8], at: u64) -> Result<usize> {
        loop {
            match self.file.read_at(into, at) {
                Ok(0) => return Err(self.shrunk(at)),
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// The number of lines that may be read now.
    pub(super) fn lines(&self) -> Result<i64> {
        Ok(self.bounds()?.lines)
    }

    /// Looks at what was appended since the last call.
    fn bounds(&self) -> Result<Bounds> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let length = match self.fixed {
            Some(length) => length,
            None => self.file.metadata().map_err(|error| self.failed(error))?.len(),
        };
        if length < index.scanned {
            return Err(self.shrunk(length));
        }
        if length > index.scanned {
            let mut chunk = vec![0; CHUNK_BYTES];
            while index.scanned < length {
                let want = usize::try_from(length - index.scanned).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                let read = self.read(&mut chunk[..want], index.scanned)?;
                index.note(&chunk[..read]);
            }
        }
        let lines = |count: usize| i64::try_from(count).map_err(|error| self.failed(error));
        // A last line without newline is still being written, unless the file is taken as it is.
        Ok(if self.fixed.is_some() && length > index.complete {
            Bounds { lines: lines(index.lines + 1)?, bytes: length }
        } else {
            Bounds { lines: lines(index.lines)?, bytes: index.complete }
        })
    }

    /// The nearest known place at or before a line: its number, its position.
    fn mark(&self, line: i64) -> (i64, u64) {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (usize::try_from(line).unwrap_or(0) / MARK_LINES).min(index.marks.len() - 1);
        ((at * MARK_LINES) as i64, index.marks[at])
    }
}

impl Index {
    fn note(&mut self, chunk: &[u8]) {
        for (at, _) in chunk.iter().enumerate().filter(|&(_, &byte)| byte == b'\n') {
            self.complete = self.scanned + at as u64 + 1;
            self.lines += 1;
            if self.lines.is_multiple_of(MARK_LINES) {
                self.marks.push(self.complete);
            }
        }
        self.scanned += chunk.len() as u64;
    }
}

/// The first line whose timestamp is at or after a time; the number of lines where none is.
pub(super) fn offset_at(source: &Arc<Source>, time_ms: i64) -> Result<i64> {
    let end = source.lines()?;
    let mut reader = Reader::new(source.clone(), 0)?;
    while reader.next < end {
        let found = topics::Reader::poll(&mut reader, MARK_LINES, Duration::ZERO)?.into_iter();
        let mut found = found.filter(|record| record.timestamp.is_some_and(|at| at >= time_ms));
        if let Some(record) = found.next() {
            return Ok(record.offset.min(end));
        }
    }
    Ok(end)
}

/// A reader of one file.
pub(super) struct Reader {
    source: Arc<Source>,
    /// The number of the next line.
    next: i64,
    /// The position behind the bytes in the buffer.
    position: u64,
    buffer: Vec<u8>,
    /// Where the buffer's unread bytes begin.
    start: usize,
    /// The line at hand, its first `LINE_BYTES` at most.
    line: Vec<u8>,
}

impl Reader {
    /// A reader from a line that exists or is the next to come.
    pub(super) fn new(source: Arc<Source>, from: i64) -> Result<Reader> {
        let bounds = source.bounds()?;
        let (next, position) = source.mark(from);
        let mut reader = Reader { source, next, position, buffer: Vec::new(), start: 0, line: Vec::new() };
        while reader.next < from {
            reader.take(bounds.bytes)?;
        }
        Ok(reader)
    }

    /// Moves the next line, without its newline, to `self.line`, and gives its length. The bytes
    /// below `end` must hold it.
    fn take(&mut self, end: u64) -> Result<usize> {
        self.line.clear();
        let mut length = 0;
        loop {
            if self.start == self.buffer.len() {
                let want = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                self.start = 0;
                self.buffer.clear();
                if want == 0 {
                    break;
                }
                self.buffer.resize(want, 0);
                let read = match self.source.read(&mut self.buffer, self.position) {
                    Ok(read) => read,
                    Err(error) => {
                        self.buffer.clear();
                        return Err(error);
                    }
                };
                self.buffer.truncate(read);
                self.position += read as u64;
            }
            let unread = &self.buffer[self.start..];
            let newline = unread.iter().position(|&byte| byte == b'\n');
            let part = &unread[..newline.unwrap_or(unread.len())];
            let room = LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            length += part.len();
            self.start += part.len();
            if newline.is_some() {
                self.start += 1;
                break;
            }
        }
        self.next += 1;
        Ok(length)
    }

    /// The record of the next line.
    fn record(&mut self, end: u64) -> Result<Record> {
        let offset = self.next;
        let length = self.take(end)?;
        if length > LINE_BYTES {
            let record = line::raw(offset, &self.line[..TRUNCATED_BYTES]);
            self.line = Vec::new();
            return Ok(record);
        }
        let mut line = self.line.as_slice();
        if let Some(without) = line.strip_suffix(b"\r") {
            line = without;
        }
        if offset == 0 {
            line = line.strip_prefix(MARK).unwrap_or(line);
        }
        Ok(line::record(offset, line))
    }
}

impl topics::Reader for Reader {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Record>> {
        let start = Instant::now();
        loop {
            let bounds = self.source.bounds()?;
            let mut out = Vec::new();
            let mut bytes = 0;
            while out.len() < max && bytes < POLL_BYTES && self.next < bounds.lines {
                let record = self.record(bounds.bytes)?;
                bytes += record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len);
                out.push(record);
            }
            let left = wait.saturating_sub(start.elapsed());
            if !out.is_empty() || max == 0 || left.is_zero() {
                return Ok(out);
            }
            // Also at the end of a file that isn't followed: who polls in a loop must not spin.
            std::thread::sleep(IDLE_PAUSE.min(left));
        }
    }

    fn positions(&self) -> Vec<i64> {
        vec![self.next]
    }
}
