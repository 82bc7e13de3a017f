//! The newest records of a topic of examples in the order of events, whatever their number: sorted runs, merged.
//!
//! **Computes** of each key the record that was added last, in the order (event_time, user, event_id by bytes); a
//! key whose last record is a tombstone is left out. A key stands on one partition, so whoever adds records in
//! the order of their offsets gets what compaction would leave.
//!
//! **Memory**: the records of one run, [`RUN_BYTES`], and [`READ_BYTES`] for each further run while they are
//! merged: a thousandth of what was added. Those further runs stand in one file without a name, in the folder that
//! is given: it takes what the records take, and is gone with the process, however that ends.

use ictflow_connectors::{Error, Result};
use ictflow_schemas::framing::{Frame, unframe};
use ictflow_schemas::history::Identity;
use ictflow_schemas::{Id, Millis};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// The bytes of records that are sorted together.
pub const RUN_BYTES: usize = 64 << 20;

/// The bytes that are read of a run at once.
pub const READ_BYTES: usize = 64 << 10;

/// What an entry takes beside its ids and its value.
const ENTRY_BYTES: usize = 128;

/// A record of `examples`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its key says.
    pub identity: Identity,
    /// Its partition and offset.
    pub place: (u32, i64),
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
}

/// What decides the order.
type Key = (Millis, Id, Id);

impl Entry {
    fn key(&self) -> Key {
        let Identity { user, event_time, event_id } = &self.identity;
        (*event_time, user.clone(), event_id.clone())
    }

    fn bytes(&self) -> usize {
        let Identity { user, event_id, .. } = &self.identity;
        ENTRY_BYTES + user.len() + event_id.len() + self.value.as_ref().map_or(0, Vec::len)
    }

    /// Its bytes in a run: the length of a frame, and the frame.
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let (partition, offset) = self.place;
        let mut frame = self.identity.frame().int(partition.into()).int(offset);
        if let Some(value) = &self.value {
            frame = frame.bytes(value);
        }
        out.write_all(&Frame::new().bytes(&frame.into_bytes()).into_bytes())
    }

    /// The entry of a frame that [`Entry::write`] made.
    fn of(frame: &[u8]) -> Option<Self> {
        let parts = unframe(frame)?;
        let (head, value) = match parts[..] {
            [user, time, event, partition, offset] => ([user, time, event, partition, offset], None),
            [user, time, event, partition, offset, value] => {
                ([user, time, event, partition, offset], Some(value.to_vec()))
            }
            _ => return None,
        };
        let [user, time, event, partition, offset] = head;
        let key = Frame::new().bytes(user).bytes(time).bytes(event).into_bytes();
        let number = |part: &[u8]| part.try_into().ok().map(i64::from_be_bytes);
        let place = (u32::try_from(number(partition)?).ok()?, number(offset)?);
        Some(Entry { identity: Identity::of_key(&key)?, place, value })
    }
}

/// Records that are being sorted.
#[derive(Debug)]
pub struct Runs {
    folder: PathBuf,
    most: usize,
    held: Vec<Entry>,
    bytes: usize,
    /// The file of the runs that aren't held.
    file: Option<File>,
    /// Where each of them ends; the next one begins there.
    ends: Vec<u64>,
}

impl Runs {
    /// None yet. Runs of `most` bytes; further ones in a file in this folder.
    pub fn new(folder: PathBuf, most: usize) -> Self {
        Runs { folder, most, held: Vec::new(), bytes: 0, file: None, ends: Vec::new() }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// `Fatal` where the folder takes no file, or is full.
    pub fn add(&mut self, entry: Entry) -> Result<()> {
        self.bytes += entry.bytes();
        self.held.push(entry);
        if self.bytes < self.most {
            return Ok(());
        }
        self.sort();
        self.put_aside().map_err(|error| self.failed(error))
    }

    /// All that was added, merged. May be called again, and more be added in between.
    ///
    /// # Errors
    /// Those of [`Runs::add`]; the merging itself ends with `Fatal` where a run can't be read.
    pub fn merged(&mut self) -> Result<Merged<'_>> {
        self.sort();
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let parts = begins.zip(&self.ends).filter_map(|(at, end)| {
            let part = Part { file: self.file.as_ref()?, at, end: *end };
            Some(Run::Aside(BufReader::with_capacity(READ_BYTES, part)))
        });
        let runs = parts.chain([Run::Held(self.held.iter())]).collect();
        let mut merged = Merged { of: self, runs, heads: Vec::new(), order: BinaryHeap::new() };
        merged.heads.resize(merged.runs.len(), None);
        for run in 0..merged.runs.len() {
            merged.advance(run)?;
        }
        Ok(merged)
    }

    /// Puts what is held in order, of each key the last one.
    fn sort(&mut self) {
        // Stable, so that of one key the last one stays behind the others.
        self.held.sort_by_cached_key(Entry::key);
        self.held.reverse();
        self.held.dedup_by(|a, b| a.identity == b.identity);
        self.held.reverse();
    }

    fn put_aside(&mut self) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.folder)?),
        };
        let begin = self.ends.last().copied().unwrap_or(0);
        file.seek(SeekFrom::Start(begin))?;
        let mut out = BufWriter::new(&mut *file);
        for entry in self.held.drain(..) {
            entry.write(&mut out)?;
        }
        out.flush()?;
        drop(out);
        self.ends.push(file.stream_position()?);
        self.bytes = 0;
        Ok(())
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        Error::fatal(
            format!("sort examples in {}", self.folder.display()),
            error,
            "records that don't fit into memory stand beside the file: it takes room for all of them",
        )
    }
}

/// A run of the file.
#[derive(Debug)]
struct Part<'r> {
    file: &'r File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        // The runs share the file's position.
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.at))?;
        let read = file.read(&mut buffer[..most])?;
        self.at += read as u64;
        Ok(read)
    }
}

#[derive(Debug)]
enum Run<'r> {
    Aside(BufReader<Part<'r>>),
    Held(std::slice::Iter<'r, Entry>),
}

impl Run<'_> {
    fn next(&mut self) -> std::io::Result<Option<Entry>> {
        let reader = match self {
            Run::Held(entries) => return Ok(entries.next().cloned()),
            Run::Aside(reader) => reader,
        };
        let mut length = [0; 4];
        if reader.read(&mut length[..1])? == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut length[1..])?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        reader.read_exact(&mut frame)?;
        let entry = Entry::of(&frame).ok_or_else(|| std::io::Error::from(ErrorKind::InvalidData))?;
        Ok(Some(entry))
    }
}

/// Records in the order of events.
#[derive(Debug)]
pub struct Merged<'r> {
    of: &'r Runs,
    /// In the order in which they were added.
    runs: Vec<Run<'r>>,
    /// The next entry of each.
    heads: Vec<Option<Entry>>,
    order: BinaryHeap<Reverse<(Key, usize)>>,
}

impl Merged<'_> {
    fn advance(&mut self, run: usize) -> Result<()> {
        self.heads[run] = self.runs[run].next().map_err(|error| self.of.failed(error))?;
        if let Some(entry) = &self.heads[run] {
            self.order.push(Reverse((entry.key(), run)));
        }
        Ok(())
    }

    /// The next key's last record.
    fn last(&mut self) -> Result<Option<Entry>> {
        let Some(Reverse((key, run))) = self.order.pop() else { return Ok(None) };
        let mut last = self.heads[run].take();
        self.advance(run)?;
        // Of one key the runs come in their order.
        while let Some(Reverse((next, run))) = self.order.peek()
            && *next == key
        {
            let run = *run;
            self.order.pop();
            last = self.heads[run].take();
            self.advance(run)?;
        }
        Ok(last)
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            match self.last().transpose()? {
                Ok(entry) if entry.value.is_none() => {}
                entry => return Some(entry),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    /// Records of a few keys, a fifth of them tombstones, as a log has them.
    fn log(count: usize) -> Vec<Entry> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut id = |prefix: &str, of: usize| format!("{prefix}{}", random.usize(0..of));
        let entry = |offset: usize| {
            let (user, event_id) = (id("u", 5), id("e", 12));
            // Ids decide where times are equal; some times are before 1970.
            let event_time = id("", 4).parse::<i64>().unwrap() - 2;
            let value = (id("", 5) != "0").then(|| format!("{offset}").repeat(offset % 9).into_bytes());
            let identity = Identity { user: user.into(), event_time, event_id: event_id.into() };
            Entry { identity, place: (offset as u32 % 3, offset as i64), value }
        };
        (0..count).map(entry).collect()
    }

    fn newest(log: &[Entry]) -> Vec<Entry> {
        let mut newest: BTreeMap<(Millis, Vec<u8>, Vec<u8>), Entry> = BTreeMap::new();
        for entry in log {
            let Identity { user, event_time, event_id } = &entry.identity;
            newest.insert((*event_time, user.as_bytes().into(), event_id.as_bytes().into()), entry.clone());
        }
        newest.into_values().filter(|entry| entry.value.is_some()).collect()
    }

    #[test]
    fn any_cut_into_runs_gives_the_newest_records_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for count in [0, 1, 40, 700] {
            let log = log(count);
            let expected = newest(&log);
            assert!(count < 700 || (expected.len() > 100 && expected.len() < 240), "{}", expected.len());
            // Each in a run of its own, some together, all in one.
            for most in [1, 1_000, 20_000, RUN_BYTES] {
                let mut runs = Runs::new(folder.path().to_owned(), most);
                for (n, entry) in log.iter().enumerate() {
                    runs.add(entry.clone()).unwrap();
                    if n == count / 2 {
                        let half: Vec<Entry> = runs.merged().unwrap().map(Result::unwrap).collect();
                        assert_eq!(half, newest(&log[..=n]), "{count} in runs of {most}, half of them");
                    }
                }
                assert!(most != 1 || runs.ends.len() == count, "{}", runs.ends.len());
                assert!(most != 1_000 || count < 700 || runs.ends.len() > 20, "{}", runs.ends.len());
                assert_eq!(runs.file.is_some(), !runs.ends.is_empty());
                for _ in 0..2 {
                    let found: Vec<Entry> = runs.merged().unwrap().map(Result::unwrap).collect();
                    assert_eq!(found, expected, "{count} in runs of {most}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn a_folder_that_takes_no_file_is_named() {
        let mut runs = Runs::new("/nowhere/at/all".into(), 1);
        let error = runs.add(log(1).remove(0)).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all") && error.contains("room"), "{error}");
    }
}
