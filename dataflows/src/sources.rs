//! The sources: readers of the input logs, cut at epoch bounds, and what their records mean.
//!
//! A source holds records that were read and belong to a later epoch, a bounded
//! number. Records are judged when their epoch is closed, in offset order.

use crate::dead_letters::ratio::{Crossing, Ratio, Refusals};
use crate::pipeline::EpochInput;
use crate::texts::Texts;
use ictflow_connectors::topics::{Reader, Topics};
use ictflow_connectors::{Error, Result};
use ictflow_operators::accept::{self, Accept, Judged};
use ictflow_operators::answers::{Answer, AnswerChange};
use ictflow_operators::catalog::{ItemChange, ItemFacts};
use ictflow_operators::pairs::CandidateChange;
use ictflow_operators::recovery::{Extent, Part, Saved};
use ictflow_operators::vectors::EmbeddingChange;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRecord, CotStatus, parse_topic_key};
use ictflow_schemas::dead_letter::{DeadLetter, Reason};
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::epoch::Erasure;
use ictflow_schemas::framing::{Digest, unframe};
use ictflow_schemas::history::Label;
use ictflow_schemas::topic::{Record, Topic};
use ictflow_schemas::vector::quantise;
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Records that a source reads ahead of an epoch, where the epoch itself isn't larger.
pub const READ_AHEAD: usize = 20_000;

/// How long a bound that the log must reach is waited for, before the job says that it can't.
const BOUND_PATIENCE: Duration = Duration::from_secs(60);

/// One input log.
pub struct Source {
    topic: Topic,
    name: String,
    reader: Box<dyn Reader>,
    /// By partition, records read and not yet in an epoch.
    waiting: Vec<VecDeque<Record>>,
    /// By partition, the end offset of the last closed epoch.
    ends: Vec<i64>,
    /// By partition, the offset from which nothing is taken; `None` where the log is read on and on.
    until: Option<Vec<i64>>,
    /// Records and bytes of keys and values read so far.
    read: (u64, u64),
}

impl Source {
    /// A source that starts at these offsets, one a partition; 0 is the earliest record.
    pub fn open(topics: &mut dyn Topics, topic: Topic, name: &str, from: &[i64]) -> Result<Self> {
        let ends = from.to_vec();
        let reader = topics.reader(name, &ends)?;
        Ok(Source {
            topic,
            name: name.to_owned(),
            reader,
            waiting: vec![VecDeque::new(); ends.len()],
            ends,
            until: None,
            read: (0, 0),
        })
    }

    /// Takes nothing from these offsets on, one a partition.
    pub fn bound(&mut self, until: Vec<i64>) {
        self.until = Some(until);
    }

    /// By partition, the offset from which nothing is taken, where there is one.
    pub fn until(&self) -> Option<&[i64]> {
        self.until.as_deref()
    }

    /// The topic's role.
    pub fn topic(&self) -> Topic {
        self.topic
    }

    /// The partition count.
    pub fn partitions(&self) -> u32 {
        self.ends.len() as u32
    }

    /// By partition, the end offset of the last closed epoch.
    pub fn ends(&self) -> &[i64] {
        &self.ends
    }

    /// By partition, the offset below which everything is in an epoch or doesn't exist.
    pub fn reached(&self) -> Vec<i64> {
        let positions = self.reader.positions();
        let next = |p: usize| self.waiting[p].front().map_or(positions[p], |record| record.offset);
        let bound =
            |p: usize| self.until.as_ref().and_then(|until| until.get(p)).copied().unwrap_or(i64::MAX);
        self.ends.iter().enumerate().map(|(p, end)| (*end).max(next(p)).min(bound(p))).collect()
    }

    /// By partition, the offset below which everything was read.
    pub fn positions(&self) -> Vec<i64> {
        self.reader.positions()
    }

    /// Records, and bytes of keys and values, read since start.
    pub fn read(&self) -> (u64, u64) {
        self.read
    }

    /// How many records wait for an epoch.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    /// Reads on, unless `limit` records wait already.
    pub fn fill(&mut self, limit: usize, wait: Duration) -> Result<()> {
        let room = limit.saturating_sub(self.waiting());
        if room > 0 && !self.at_bound() {
            for record in self.reader.poll(room, wait)? {
                self.keep(record)?;
            }
        }
        Ok(())
    }

    /// Whether everything below the bounds was read.
    pub fn at_bound(&self) -> bool {
        let positions = self.reader.positions();
        self.until.as_ref().is_some_and(|until| positions.iter().zip(until).all(|(at, bound)| at >= bound))
    }

    fn keep(&mut self, record: Record) -> Result<()> {
        let partition = record.partition as usize;
        let bound = self.until.as_ref().and_then(|until| until.get(partition));
        if bound.is_some_and(|bound| record.offset >= *bound) {
            return Ok(());
        }
        let Some(waiting) = self.waiting.get_mut(partition) else {
            return Err(Error::fatal(
                format!("read topic {}", self.name),
                format!("partition {partition} appeared while the job ran"),
                "a changed partition count moves users to other partitions: start a new job",
            ));
        };
        let bytes = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len) as u64;
        self.read = (self.read.0 + 1, self.read.1 + bytes(&record.key) + bytes(&record.value));
        waiting.push_back(record);
        Ok(())
    }

    /// Takes up to `max` waiting records, partition by partition in turn, and moves the ends.
    pub fn take(&mut self, max: usize) -> Vec<Record> {
        let mut taken = Vec::new();
        while taken.len() < max && self.waiting() > 0 {
            for waiting in &mut self.waiting {
                if taken.len() < max {
                    taken.extend(waiting.pop_front());
                }
            }
        }
        // Everything below the first waiting record is in an epoch, and so are the gaps that compaction
        // and control records leave.
        self.ends = self.reached();
        taken
    }

    /// Takes just the records below the bounds, reading on until all of them are there.
    pub fn take_to(&mut self, bounds: &[i64]) -> Result<Vec<Record>> {
        if bounds.len() != self.ends.len() {
            return Err(Error::fatal(
                format!("replay topic {}", self.name),
                format!(
                    "the recorded bounds have {} partitions, the topic {}",
                    bounds.len(),
                    self.ends.len()
                ),
                "a changed partition count moves users to other partitions: start a new job",
            ));
        }
        let mut waited = Duration::ZERO;
        while self.reader.positions().iter().zip(bounds).any(|(position, bound)| position < bound) {
            let step = Duration::from_millis(100);
            let records = self.reader.poll(READ_AHEAD, step)?;
            waited = if records.is_empty() { waited + step } else { Duration::ZERO };
            if waited > BOUND_PATIENCE {
                return Err(Error::fatal(
                    format!("replay topic {}", self.name),
                    "the log ends before a recorded bound",
                    "records that an epoch holds are gone: was the topic made anew?",
                ));
            }
            for record in records {
                self.keep(record)?;
            }
        }
        let mut taken = Vec::new();
        for (waiting, bound) in self.waiting.iter_mut().zip(bounds) {
            while waiting.front().is_some_and(|record| record.offset < *bound) {
                taken.extend(waiting.pop_front());
            }
        }
        for (end, bound) in self.ends.iter_mut().zip(bounds) {
            *end = (*end).max(*bound);
        }
        Ok(taken)
    }
}

/// How the records of the inputs were judged, in total.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgements {
    /// Records of `interactions`.
    pub interactions: u64,
    /// Accepted ones.
    pub accepted: u64,
    /// Dropped as seen.
    pub seen: u64,
    /// Dropped because their user was erased after them.
    pub erased: u64,
    /// Records of `items` that count.
    pub items: u64,
    /// Records of `candidates` that count.
    pub candidates: u64,
    /// Dead letters by reason word.
    pub dead_letters: BTreeMap<&'static str, u64>,
}

/// Turns records into an epoch's input.
pub struct Judge {
    semantics: Arc<Semantics>,
    formats: BTreeMap<Topic, Format>,
    partitions: Vec<Accept>,
    candidate_partitions: u32,
    /// By erased user, the offset from which records of `candidates` count again.
    erased: HashMap<Id, i64>,
    encoder: String,
    width: usize,
    refusals: Refusals,
    /// Totals since start.
    pub judgements: Judgements,
}

/// What an epoch's records came to.
#[derive(Default)]
pub struct Harvest {
    /// What enters the dataflow.
    pub input: EpochInput,
    /// What was refused.
    pub dead_letters: Vec<DeadLetter>,
    /// The first record with which a partition has more dead letters than it may.
    pub crossed: Option<Crossing>,
    /// Content keys whose record was read: no longer in flight.
    pub answered: Vec<Digest>,
    /// Texts whose embedding was read.
    pub embedded: Vec<Digest>,
}

impl Judge {
    /// A judge that has seen nothing.
    pub fn new(
        semantics: Arc<Semantics>,
        formats: BTreeMap<Topic, Format>,
        partitions: u32,
        candidate_partitions: u32,
        (encoder, width): (&str, usize),
    ) -> Self {
        let judges = (0..partitions).map(|p| Accept::new(semantics.clone(), p, partitions)).collect();
        Judge {
            semantics,
            formats,
            partitions: judges,
            candidate_partitions,
            erased: HashMap::new(),
            encoder: encoder.to_owned(),
            width,
            refusals: Refusals::new(Ratio::OFF),
            judgements: Judgements::default(),
        }
    }

    /// Says from now on where a partition has more dead letters than it may. A new judge has no limit.
    pub fn limit(&mut self, ratio: Ratio) {
        self.refusals = Refusals::new(ratio);
    }

    /// Passes the bounds of a committed epoch: dead letters beyond the limit that it was let through with
    /// stop nothing after it.
    pub fn pass(&mut self) {
        self.refusals.pass();
    }

    /// The partition maxima.
    pub fn maxima(&self) -> Vec<Millis> {
        self.partitions.iter().map(Accept::maximum).collect()
    }

    /// Raises partition maxima to those on record.
    pub fn raise(&mut self, maxima: &[Millis]) {
        for (partition, maximum) in self.partitions.iter_mut().zip(maxima) {
            partition.raise(*maximum);
        }
    }

    /// Drops an erased user's records below the erasure's offsets from now on.
    pub fn erase(&mut self, erasure: &Erasure) {
        let user = Id::from(erasure.user.as_str());
        self.home(&user).erase(&user, erasure.interactions);
        let from = self.erased.entry(user).or_insert(erasure.candidates);
        *from = (*from).max(erasure.candidates);
    }

    /// Whether a user was ever erased.
    pub fn is_erased(&self, user: &str) -> bool {
        self.erased.contains_key(user)
    }

    /// Users' windows and the partitions' refusals, to be saved.
    pub fn save(&mut self, extent: Extent) -> Vec<Saved> {
        let mut saved: Vec<Saved> =
            self.partitions.iter_mut().flat_map(|partition| partition.save(extent)).collect();
        saved.extend(self.refusals.save());
        saved
    }

    /// Puts a user's window or a partition's refusals back.
    pub fn restore(&mut self, saved: Saved) {
        match saved.part {
            Part::Refusals => self.refusals.restore(&saved),
            _ => self.home(&saved.user).restore(saved),
        }
    }

    /// The judge of a user's partition.
    fn home(&mut self, user: &str) -> &mut Accept {
        let count = self.partitions.len() as u32;
        &mut self.partitions[self.semantics.partitioner.partition(user.as_bytes(), count) as usize]
    }

    /// Judges the records of one log.
    pub fn judge(
        &mut self,
        topic: Topic,
        name: &str,
        records: Vec<Record>,
        texts: &mut Texts,
        out: &mut Harvest,
    ) {
        for record in records {
            let judged = matches!(topic, Topic::Interactions | Topic::Items | Topic::Candidates);
            let refused = match topic {
                Topic::Interactions => self.interaction(&record, out),
                Topic::Items => self.item(&record, texts, out),
                Topic::Candidates => self.candidates(&record, out),
                Topic::Cot => {
                    cot(&record, texts, out);
                    None
                }
                _ => {
                    self.embedding(&record, out);
                    None
                }
            };
            if judged && self.refusals.take(topic, record.partition, refused) && out.crossed.is_none() {
                out.crossed = self.refusals.crossing(topic, name, record.partition, record.offset);
            }
            if let Some(reason) = refused {
                let count = self.judgements.dead_letters.entry(reason.word()).or_default();
                if *count == 0 {
                    let hint = reason.hint();
                    tracing::warn!(
                        topic = name,
                        reason = reason.word(),
                        hint,
                        "first dead letter of its kind"
                    );
                }
                *count += 1;
                let mut letter = DeadLetter {
                    topic: name.to_owned(),
                    partition: record.partition as i32,
                    offset: record.offset,
                    stage: "accept".to_owned(),
                    reason: reason.word().to_owned(),
                    payload: record.raw().map(<[u8]>::to_vec),
                    key: record.key,
                };
                // A dead letter always fits the store; what is cut off stands at its position.
                letter.cut(self.semantics.max_record_bytes);
                out.dead_letters.push(letter);
            }
        }
    }

    fn format(&self, topic: Topic) -> Format {
        self.formats.get(&topic).copied().unwrap_or(Format::Avro)
    }

    fn interaction(&mut self, record: &Record, out: &mut Harvest) -> Option<Reason> {
        let format = self.format(Topic::Interactions);
        self.judgements.interactions += 1;
        match self.partitions[record.partition as usize].judge(record, format) {
            Judged::Accepted(event) => {
                self.judgements.accepted += 1;
                out.input.events.push(event);
                None
            }
            Judged::Seen => {
                self.judgements.seen += 1;
                None
            }
            Judged::Erased => {
                self.judgements.erased += 1;
                None
            }
            Judged::Refused(reason) => Some(reason),
        }
    }

    fn item(&mut self, record: &Record, texts: &mut Texts, out: &mut Harvest) -> Option<Reason> {
        let (item, value) = match accept::item(record, self.format(Topic::Items), &self.semantics) {
            Ok(readable) => readable,
            Err(reason) => return Some(reason),
        };
        self.judgements.items += 1;
        let text = value.as_ref().map(|item| item.text());
        let digest = texts.set_item(&item, text.as_deref());
        let facts = value.zip(digest).map(|(value, text)| ItemFacts {
            text,
            creator: value.creator_id().map(Id::from),
            categories: value.category_ids().into_iter().map(Id::from).collect(),
        });
        out.input.items.push(ItemChange { item, position: (record.partition, record.offset), facts });
        None
    }

    fn candidates(&mut self, record: &Record, out: &mut Harvest) -> Option<Reason> {
        let format = self.format(Topic::Candidates);
        match accept::candidates(record, format, self.candidate_partitions, &self.semantics) {
            Ok((user, _)) if self.erased.get(&user).is_some_and(|from| record.offset < *from) => {
                self.judgements.erased += 1;
                None
            }
            Ok((user, set)) => {
                self.judgements.candidates += 1;
                let set = set.map(|set| (set.computed_at, set.items.into_iter().map(Id::from).collect()));
                out.input.candidates.push(CandidateChange { user, offset: record.offset, set });
                None
            }
            Err(reason) => Some(reason),
        }
    }

    fn embedding(&self, record: &Record, out: &mut Harvest) {
        let parts = record.key.as_deref().and_then(unframe).unwrap_or_default();
        let [encoder, text] = parts[..] else { return };
        let Ok(text) = std::str::from_utf8(text) else { return };
        let (failure, hex) = match text.strip_prefix("failed:") {
            Some(hex) => (true, hex),
            None => (false, text),
        };
        let Some(digest) = Digest::from_hex(hex) else { return };
        if encoder != self.encoder.as_bytes() {
            return;
        }
        let value = record.value.as_deref().and_then(|value| Embedding::decode(value).ok());
        // A vector of another width would not compare with the others: its record isn't usable.
        let fits =
            |value: &Embedding| value.status == EmbeddingStatus::Failed || value.vector.len() == self.width;
        let value = value.filter(|value| Some(value.key()) == record.key && fits(value));
        let usable = value.as_ref().and_then(Embedding::usable);
        let vector = usable.and_then(|(_, vector)| vector).map(quantise);
        out.embedded.push(digest);
        let change = EmbeddingChange {
            text: digest,
            failure,
            offset: record.offset,
            usable: usable.is_some(),
            vector,
        };
        out.input.embeddings.push(change);
    }
}

/// A record of `cot`. One that isn't usable counts as a tombstone of its key; one whose key can't be
/// read is nobody's.
fn cot(record: &Record, texts: &mut Texts, out: &mut Harvest) {
    let Some((status, key)) = record.key.as_deref().and_then(parse_topic_key) else { return };
    let value = record.value.as_deref().and_then(|value| CotRecord::decode(value).ok());
    let usable = value.filter(|value| usable(value, status));
    let answer = usable.as_ref().filter(|value| value.status == CotStatus::Ok).map(|value| {
        Arc::new(Answer {
            key,
            offset: record.offset,
            user: value.user_id.as_str().into(),
            item: value.item_id.as_str().into(),
            decision: decision(&value.decision).unwrap_or(Label::None),
            prompt_version: value.prompt_version.as_str().into(),
            llm_model: value.llm_model.as_str().into(),
            text: texts.add_cot(&value.text),
            created_at: value.created_at,
        })
    });
    out.answered.push(key);
    out.input.answers.push(AnswerChange {
        position: (record.partition, record.offset),
        key,
        failure: status == CotStatus::Failed,
        usable: usable.is_some(),
        answer,
    });
}

/// Whether a record may stand on `cot` under a key of this form.
pub fn usable(record: &CotRecord, status: CotStatus) -> bool {
    record.status == status
        && decision(&record.decision).is_some()
        && !record.user_id.is_empty()
        && !record.item_id.is_empty()
        && (status == CotStatus::Failed || !record.text.is_empty())
}

fn decision(word: &str) -> Option<Label> {
    match word {
        "positive" => Some(Label::Positive),
        "negative" => Some(Label::Negative),
        _ => None,
    }
}
