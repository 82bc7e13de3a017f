//! Appends the records of dead letters to their inputs once more, after a fix.
//!
//! **What is appended** is the refused record as it stands at its source position: key, bytes, headers and
//! timestamp, on its own partition; one that was misrouted goes to its key's partition, where it belongs.
//! One header more, `ictflow-replay-of`, names that position.
//!
//! **Twice is once.** A position that such a header on the topic names is never appended again, so the log
//! itself is the memory: a run that was cut short, or whose outcome wasn't known, is simply made again. Runs
//! don't overlap: each takes the transactional writer `<job>.replay` before it reads, which fences the one
//! before. A replay that is refused again is a dead letter of its own, with its own position.
//!
//! **What is refused**, each by its name ([`Refusal`]): what would be refused again, since it is judged
//! here as the job will judge it; what would undo something newer, an item or a candidate set whose owner
//! has written it again; and whoever was erased. An erasure asks the writer whether a replay began
//! meanwhile (`job/erase.rs`), so none slips past it.
//!
//! A new job over the same topics needs no replay: it judges every record where it stands.
//!
//! Memory: a line for each letter that is meant, and at most [`MAX_BYTES`] of records.

use super::{Selection, read};
use crate::epochs::read_range;
use crate::job::{Recorded, check_semantics};
use crate::names::Names;
use ictflow_connectors::topics::{Topics, Writer};
use ictflow_connectors::{Error, Result};
use ictflow_operators::accept::{self, Accept, Judged};
use ictflow_schemas::Millis;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::dead_letter::{DeadLetter, Position, Reason};
use ictflow_schemas::epoch::{EpochRecord, Erasure};
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::topic::{HEADER_REPLAY_OF, NewRecord, Record, Topic};
use ictflow_schemas::wire::{Format, Wire};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The most bytes of records that one run appends to a topic; the rest is left for another run.
pub const MAX_BYTES: usize = 256 << 20;

/// Records and bytes of one transaction.
const BATCH: (usize, usize) = (1_000, 16 << 20);

/// The inputs in the order in which they are appended to.
const INPUTS: [Topic; 3] = [Topic::Items, Topic::Candidates, Topic::Interactions];

/// The transactional writer of a job's replays.
pub fn writer_id(job: &str) -> String {
    format!("{job}.replay")
}

/// Why a dead letter isn't replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It came late.
    Late,
    /// Its time is ahead of its record's timestamp.
    Future,
    /// Its identity was accepted with other fields.
    Conflict,
    /// It is over a limit that is part of the job's semantics.
    Limit,
    /// Its user was erased after it.
    Erased,
    /// Its key was written again after it.
    Newer,
    /// Its partition has moved on by more than `lateness`.
    TooLateNow,
    /// It would be refused again as it was, or for something else.
    Still(Reason),
    /// It stands on another partition than its user's other sets.
    StrayedSet,
    /// Its source is gone.
    Gone,
    /// Other bytes stand at its source.
    Changed,
    /// Its key is null.
    NoKey,
    /// Its topic is no input of the job.
    NoInput,
    /// A newer version gave it a reason that this one doesn't know.
    UnknownReason,
}

impl Refusal {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Refusal::Late => "late",
            Refusal::Future => "future",
            Refusal::Conflict => "conflict",
            Refusal::Limit => "limit",
            Refusal::Erased => "erased",
            Refusal::Newer => "newer",
            Refusal::TooLateNow => "too_late_now",
            Refusal::Still(_) => "still_refused",
            Refusal::StrayedSet => "strayed_set",
            Refusal::Gone => "gone",
            Refusal::Changed => "changed",
            Refusal::NoKey => "no_key",
            Refusal::NoInput => "no_input",
            Refusal::UnknownReason => "unknown_reason",
        }
    }

    /// Why, for a person.
    pub fn why(self) -> String {
        let why = match self {
            Refusal::Late => "it would be late again: its partition only moves on",
            Refusal::Future => "with its own timestamp it would be ahead of it again",
            Refusal::Conflict => "an event of its identity was accepted, and stands",
            Refusal::Limit => {
                "a job's limits never change: a new job with a raised one judges it where it stands"
            }
            Refusal::Erased => "its user was erased",
            Refusal::Newer => "its key was written again after it: the newer record stands",
            Refusal::TooLateNow => {
                "its partition has moved on by more than lateness_ms: it would be late; a new job over these topics judges it where it stands"
            }
            Refusal::Still(reason) => return format!("it would be refused again as {}", reason.word()),
            Refusal::StrayedSet => {
                "between sets of a user on two partitions no one is the newer: let the recall stage write it again"
            }
            Refusal::Gone => "its source record is gone from the topic",
            Refusal::Changed => "another record stands at its source position: was the topic made anew?",
            Refusal::NoKey => "its key is null, and every input needs one",
            Refusal::NoInput => "its topic isn't an input of this job any more",
            Refusal::UnknownReason => "a newer version refused it: run that one",
        };
        why.to_owned()
    }

    /// The refusal of every letter with this reason, where there is one.
    pub fn of_reason(reason: Reason) -> Option<Refusal> {
        match reason {
            Reason::Late => Some(Refusal::Late),
            Reason::Future => Some(Refusal::Future),
            Reason::Conflict => Some(Refusal::Conflict),
            Reason::Oversized | Reason::TooManyCandidates => Some(Refusal::Limit),
            Reason::Unreadable | Reason::Misrouted | Reason::WindowFull => None,
        }
    }

    /// Whether no fix will ever let it through, so that nobody waits for it.
    pub fn is_settled(self) -> bool {
        matches!(
            self,
            Refusal::Late
                | Refusal::Future
                | Refusal::Conflict
                | Refusal::Limit
                | Refusal::Erased
                | Refusal::Newer
        )
    }
}

/// What became of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was appended, or would be, to this partition.
    Replayed(u32),
    /// It was appended by an earlier run, or its event is accepted by now.
    Before,
    /// It isn't appended.
    Refused(Refusal),
    /// It is left for another run.
    Left,
}

/// A dead letter and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where the refused record stands.
    pub source: Position,
    /// What it was refused for.
    pub reason: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// Counts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Appended now, or to be.
    pub replayed: u64,
    /// Appended or accepted before.
    pub before: u64,
    /// Refused.
    pub refused: BTreeMap<Refusal, u64>,
    /// Left for another run.
    pub left: u64,
}

/// Whose dead letters they are.
#[derive(Clone, Debug)]
pub struct Of<'a> {
    /// The job's name.
    pub job: &'a str,
    /// Its topics' names.
    pub names: &'a Names,
    /// Its semantics, which must be those on record.
    pub semantics: Arc<Semantics>,
}

/// A letter without its payload.
struct Asked {
    source: Position,
    reason: Option<Reason>,
    word: String,
    /// The epoch that refused it: every replay of it comes after that.
    epoch: i64,
    key: Option<Vec<u8>>,
    digest: [u8; 32],
    bytes: usize,
}

impl Asked {
    fn line(&self, outcome: Outcome) -> Line {
        Line { source: self.source.clone(), reason: self.word.clone(), outcome }
    }
}

/// Replays the dead letters that are meant, or with `dry` only says what would become of each. `observe` is
/// told of each letter, of an appended one once it is durable. The topics must give the headers of the
/// inputs.
///
/// # Errors
/// `Fatal` where the job has committed nothing or ran with other semantics, or where another replay began;
/// and what the store says. What was appended before stays, and isn't appended again by another run.
pub fn replay(
    topics: &mut dyn Topics,
    of: &Of<'_>,
    selection: &Selection,
    dry: bool,
    observe: impl FnMut(&Line),
) -> Result<Report> {
    // Fenced first: from here on no other run appends what isn't read below.
    let writer = if dry { None } else { Some(topics.writer(&writer_id(of.job))?) };
    let records = Recorded::of_committed(topics, of.names, of.job)?.records;
    check_semantics(&records, &of.semantics.canonical())?;
    let mut letters: BTreeMap<Topic, Vec<Asked>> = BTreeMap::new();
    let mut run =
        Run { of, records: &records, writer, report: Report::default(), observe, lines: Vec::new() };
    let mut foreign = Vec::new();
    read(topics, of.names, selection, |standing| {
        let (letter, epoch) = (standing.letter, standing.epoch);
        let role = INPUTS.into_iter().find(|topic| of.names.of(*topic) == letter.topic);
        let asked = Asked {
            source: letter.source(),
            reason: Reason::from_word(&letter.reason),
            epoch,
            digest: digest(&letter),
            bytes: letter.key.as_ref().map_or(0, Vec::len) + letter.payload.as_ref().map_or(0, Vec::len),
            word: letter.reason,
            key: letter.key,
        };
        match role {
            Some(role) => letters.entry(role).or_default().push(asked),
            None => foreign.push(asked),
        }
    })?;
    for asked in foreign {
        run.tell(asked.line(Outcome::Refused(Refusal::NoInput)));
    }
    for topic in INPUTS {
        if let Some(mut letters) = letters.remove(&topic) {
            letters.sort_by(|a, b| a.source.cmp(&b.source));
            run.topic(topics, topic, letters)?;
        }
    }
    Ok(run.report)
}

/// What a letter says of its record's bytes.
fn digest(letter: &DeadLetter) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [&letter.key, &letter.payload] {
        hasher.update(&[u8::from(part.is_some())]);
        let part = part.as_deref().unwrap_or_default();
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

struct Run<'a, F> {
    of: &'a Of<'a>,
    records: &'a [EpochRecord],
    writer: Option<Box<dyn Writer>>,
    report: Report,
    observe: F,
    /// What is told once the batch at hand is durable.
    lines: Vec<Line>,
}

/// What a topic says of the letters that came from it.
struct Read {
    /// Positions whose replay stands on the topic.
    replayed: HashSet<Position>,
    /// By key of a letter, the partition and offset of its newest record.
    newest: HashMap<Vec<u8>, (u32, i64)>,
    /// By partition of `interactions`, the judge as it stands at the end.
    judges: Vec<Accept>,
}

impl<F: FnMut(&Line)> Run<'_, F> {
    fn tell(&mut self, line: Line) {
        match line.outcome {
            Outcome::Replayed(_) => self.report.replayed += 1,
            Outcome::Before => self.report.before += 1,
            Outcome::Refused(refusal) => *self.report.refused.entry(refusal).or_default() += 1,
            Outcome::Left => self.report.left += 1,
        }
        (self.observe)(&line);
    }

    /// Replays the letters of one input, which are in the order of their positions.
    fn topic(&mut self, topics: &mut dyn Topics, topic: Topic, letters: Vec<Asked>) -> Result<()> {
        let name = self.of.names.of(topic);
        let mut open = Vec::new();
        for asked in letters {
            let refusal = match asked.reason {
                Some(Reason::Misrouted) if topic == Topic::Candidates => Some(Refusal::StrayedSet),
                Some(reason) => Refusal::of_reason(reason),
                None => Some(Refusal::UnknownReason),
            };
            match refusal {
                Some(refusal) => self.tell(asked.line(Outcome::Refused(refusal))),
                None => open.push(asked),
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let ends = topics.ends(name)?;
        let mut read = self.read(topics, topic, &open, &ends)?;
        let (mut todo, mut bytes) = (Vec::new(), 0);
        for asked in open {
            if read.replayed.contains(&asked.source) {
                self.tell(asked.line(Outcome::Before));
            } else if bytes > MAX_BYTES {
                self.tell(asked.line(Outcome::Left));
            } else {
                bytes += asked.bytes;
                todo.push(asked);
            }
        }
        let mut originals = originals(topics, name, &todo, &ends)?;
        let mut batch: Vec<NewRecord> = Vec::new();
        let mut size = 0;
        for asked in todo {
            let original = originals.remove(&(asked.source.partition, asked.source.offset));
            match self.verdict(topic, &asked, original, &mut read, ends.len() as u32) {
                Ok(Some(record)) => {
                    size += record.value.as_ref().map_or(0, Vec::len);
                    self.lines.push(asked.line(Outcome::Replayed(record.partition)));
                    batch.push(record);
                    if batch.len() >= BATCH.0 || size >= BATCH.1 {
                        self.append(&std::mem::take(&mut batch))?;
                        size = 0;
                    }
                }
                Ok(None) => self.tell(asked.line(Outcome::Before)),
                Err(refusal) => self.tell(asked.line(Outcome::Refused(refusal))),
            }
        }
        self.append(&batch)
    }

    /// Appends records in one transaction.
    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        if let Some(writer) = self.writer.as_mut().filter(|_| !records.is_empty()) {
            let done = self.report.replayed;
            writer.commit(records, &[]).map_err(|error| Error {
                context: format!(
                    "{}, after {done} dead letters were replayed: another run goes on with the rest",
                    error.context
                ),
                ..error
            })?;
        }
        for line in std::mem::take(&mut self.lines) {
            self.tell(line);
        }
        Ok(())
    }

    /// Reads what came after the letters: their replays, newer records of their keys, and of `interactions`
    /// what no recorded epoch holds, which is judged before whatever is appended now.
    fn read(&self, topics: &mut dyn Topics, topic: Topic, letters: &[Asked], ends: &[i64]) -> Result<Read> {
        let (name, count) = (self.of.names.of(topic), ends.len() as u32);
        let ends_of = |record: &EpochRecord, partition: usize| {
            let ends = record.ends.get(topic.name()).and_then(|ends| ends.get(partition));
            ends.copied().unwrap_or(0)
        };
        let last = self.records.last();
        let first = letters.iter().map(|asked| asked.epoch).min().unwrap_or(0);
        let refused_in = self.records.iter().find(|record| record.epoch == first);
        let recorded: Vec<i64> =
            (0..ends.len()).map(|p| last.map_or(0, |record| ends_of(record, p))).collect();
        let mut from: Vec<i64> = (0..ends.len())
            .map(|p| refused_in.map_or(0, |record| ends_of(record, p)).min(recorded[p]).min(ends[p]))
            .collect();
        for asked in letters {
            if let Some(from) = from.get_mut(asked.source.partition as usize) {
                *from = (*from).min(asked.source.offset);
            }
        }
        let judges = match topic {
            Topic::Interactions => (0..count).map(|p| self.judge(p, count)).collect(),
            _ => Vec::new(),
        };
        let keys = letters.iter().filter_map(|asked| asked.key.clone().map(|key| (key, (0, -1))));
        let mut read = Read { replayed: HashSet::new(), newest: keys.collect(), judges };
        read_range(topics, name, &from, ends, |record| {
            let replay_of = record.headers.iter().filter(|(header, _)| header == HEADER_REPLAY_OF);
            let positions = replay_of.filter_map(|(_, value)| std::str::from_utf8(value).ok());
            read.replayed.extend(positions.filter_map(Position::parse));
            if let Some(newest) = record.key.as_ref().and_then(|key| read.newest.get_mut(key)) {
                *newest = (record.partition, record.offset);
            }
            let partition = record.partition as usize;
            if let Some(judge) = read.judges.get_mut(partition)
                && record.offset >= recorded[partition]
            {
                judge.judge(&record, Format::Avro);
            }
            true
        })?;
        Ok(read)
    }

    /// The judge of a partition of `interactions` after the last recorded epoch. It doesn't know the
    /// identities of then: what it takes for new may be seen, which changes nothing.
    fn judge(&self, partition: u32, count: u32) -> Accept {
        let mut judge = Accept::new(self.of.semantics.clone(), partition, count);
        let maxima = self.records.last().map(|record| record.maxima.as_slice()).unwrap_or_default();
        if let Some(maximum) = maxima.get(partition as usize) {
            judge.raise(*maximum);
        }
        for erasure in self.erasures() {
            judge.erase(&erasure.user.as_str().into(), erasure.interactions);
        }
        judge
    }

    fn erasures(&self) -> impl Iterator<Item = &Erasure> {
        self.records.iter().flat_map(|record| &record.erasures)
    }

    /// Whether a user was erased after the record at a position. Of one on another partition than the
    /// user's it can't be told, so it counts as before.
    fn is_erased(&self, topic: Topic, user: &[u8], source: &Position, count: u32) -> bool {
        let home = self.of.semantics.partitioner.partition(user, count);
        self.erasures().filter(|erasure| erasure.user.as_bytes() == user).any(|erasure| {
            let below = if topic == Topic::Interactions { erasure.interactions } else { erasure.candidates };
            source.partition != home || source.offset < below
        })
    }

    /// The record to append; `None` where its event is accepted already.
    fn verdict(
        &self,
        topic: Topic,
        asked: &Asked,
        original: Option<Record>,
        read: &mut Read,
        count: u32,
    ) -> std::result::Result<Option<NewRecord>, Refusal> {
        let semantics = &self.of.semantics;
        let original = original.ok_or(Refusal::Gone)?;
        let mut there = DeadLetter {
            topic: String::new(),
            partition: 0,
            offset: 0,
            stage: String::new(),
            reason: String::new(),
            payload: original.raw().map(<[u8]>::to_vec),
            key: original.key.clone(),
        };
        there.cut(semantics.max_record_bytes);
        if digest(&there) != asked.digest {
            return Err(Refusal::Changed);
        }
        let key = original.key.clone().ok_or(Refusal::NoKey)?;
        let mut users = Vec::new();
        if topic != Topic::Items {
            users.push(key.clone());
        }
        if topic == Topic::Interactions {
            let decoded = original.value.as_deref().and_then(|value| Interaction::decode(value).ok());
            users.extend(decoded.map(|event| event.user_id.into_bytes()));
        }
        if users.iter().any(|user| self.is_erased(topic, user, &asked.source, count)) {
            return Err(Refusal::Erased);
        }
        let own = (asked.source.partition, asked.source.offset);
        if topic != Topic::Interactions
            && read.newest.get(&key).is_some_and(|newest| newest.0 == own.0 && newest.1 > own.1)
        {
            return Err(Refusal::Newer);
        }
        let partition = match asked.reason {
            Some(Reason::Misrouted) => semantics.partitioner.partition(&key, count),
            _ => original.partition,
        };
        // It is judged as it will be: behind all that stands on its partition now.
        let record = Record { partition, offset: i64::MAX, ..original };
        match topic {
            Topic::Items => drop(accept::item(&record, Format::Avro, semantics).map_err(Refusal::Still)?),
            Topic::Candidates => {
                drop(accept::candidates(&record, Format::Avro, count, semantics).map_err(Refusal::Still)?);
            }
            _ => {
                let judge = read.judges.get_mut(partition as usize).ok_or(Refusal::Gone)?;
                match judge.judge(&record, Format::Avro) {
                    Judged::Accepted(_) => {}
                    Judged::Seen => return Ok(None),
                    Judged::Erased => return Err(Refusal::Erased),
                    Judged::Refused(Reason::Late) => return Err(Refusal::TooLateNow),
                    Judged::Refused(reason) => return Err(Refusal::Still(reason)),
                }
            }
        }
        let value = record.raw().map(<[u8]>::to_vec);
        let mut headers = record.headers;
        headers.retain(|(header, _)| header != HEADER_REPLAY_OF);
        headers.push((HEADER_REPLAY_OF.to_owned(), asked.source.to_string().into_bytes()));
        Ok(Some(NewRecord {
            topic: self.of.names.of(topic).to_owned(),
            partition,
            timestamp: record.timestamp.filter(|at: &Millis| *at > 0),
            key: Some(key),
            value,
            headers,
        }))
    }
}

/// The records at the source positions of letters, by partition and offset, as far as they are there.
fn originals(
    topics: &mut dyn Topics,
    name: &str,
    letters: &[Asked],
    ends: &[i64],
) -> Result<HashMap<(u32, i64), Record>> {
    let wanted: HashSet<(u32, i64)> =
        letters.iter().map(|asked| (asked.source.partition, asked.source.offset)).collect();
    let mut from = ends.to_vec();
    let mut to = ends.to_vec();
    for (partition, (from, to)) in from.iter_mut().zip(&mut to).enumerate() {
        let offsets = || wanted.iter().filter(|(p, _)| *p as usize == partition).map(|(_, offset)| *offset);
        *from = offsets().min().unwrap_or(*from).min(*from);
        *to = offsets().max().map_or(*from, |last| (last + 1).min(*to));
    }
    let mut found = HashMap::new();
    read_range(topics, name, &from, &to, |record| {
        let place = (record.partition, record.offset);
        if wanted.contains(&place) {
            found.insert(place, record);
        }
        true
    })?;
    Ok(found)
}
