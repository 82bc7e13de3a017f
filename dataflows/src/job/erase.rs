//! Erasure of a user: an epoch whose bounds record names the user.
//!
//! From that record on the sources drop the user's records below its offsets for ever. Within the epoch
//! the dataflow retracts what it holds of the user, features, examples and points; final examples, which
//! it holds no more, are found on their topic. *Before* the epoch is committed the user's records on
//! `cot` and the embeddings of their texts are tombstoned and kept snapshots rewritten: a kill in between
//! leaves the epoch uncommitted, and whoever starts next does all of it again, which changes nothing.
//!
//! An embedding whose text another record has, too, survives.
//!
//! A replay of dead letters that read the bounds before the erasure's stood there could append a record of
//! the user behind its offsets. So the erasure holds the replays' writer meanwhile: one that was under way
//! is fenced, and where one began the writer tells, and the erasure is made again.

use super::Job;
use crate::dead_letters::replay::writer_id;
use crate::epochs;
use crate::pipeline::EpochInput;
use crate::sources::Harvest;
use ictflow_connectors::{Disposition, Error, Result, clock};
use ictflow_schemas::Millis;
use ictflow_schemas::cot::CotRecord;
use ictflow_schemas::epoch::{EpochRecord, Erasure};
use ictflow_schemas::framing::{Digest, text_digest, unframe};
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::{Format, Wire};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Erasures in a row, where dead letters are replayed meanwhile.
const TRIES: usize = 3;

/// What an erasure did, and what it couldn't.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The user.
    pub user: String,
    /// The job, and the outputs from which the user went.
    pub job: String,
    /// Its features and examples.
    pub outputs: [String; 2],
    /// When, in ms.
    pub erased_at: Millis,
    /// The epoch that carries it.
    pub epoch: i64,
    /// Records of `interactions` in the user's partition below this offset are dropped if they are the
    /// user's.
    pub interactions_below: i64,
    /// The same on `candidates`.
    pub candidates_below: i64,
    /// Vectors retracted.
    pub features: usize,
    /// Examples retracted.
    pub examples: usize,
    /// Demonstrations, and points where there is a store of them, removed.
    pub demonstrations: usize,
    /// Keys of `cot` tombstoned.
    pub cots: usize,
    /// Keys of `embeddings` tombstoned.
    pub embeddings: usize,
    /// Embeddings that stay, since another record has the same text.
    pub embeddings_kept: usize,
    /// Objects of snapshots written anew without the user.
    pub snapshot_objects: usize,
    /// What still holds data of the user, and whose it is to purge.
    pub not_erased: Vec<String>,
}

impl Receipt {
    /// This receipt and that of an earlier erasure of the same user in one.
    fn after(mut self, earlier: &Receipt) -> Self {
        self.features += earlier.features;
        self.examples += earlier.examples;
        self.demonstrations += earlier.demonstrations;
        self.cots += earlier.cots;
        self.embeddings += earlier.embeddings;
        self.embeddings_kept = self.embeddings_kept.max(earlier.embeddings_kept);
        self.snapshot_objects += earlier.snapshot_objects;
        self
    }
}

/// An answer of an erased user that came afterwards.
pub(super) struct Stray {
    key: Digest,
    record: NewRecord,
}

impl Job {
    /// Erases a user in an epoch of its own and says what became of it. Doing it again is harmless.
    ///
    /// # Errors
    /// Those of [`Job::step`]; `Fatal` for an empty id, or where dead letters are replayed on and on.
    pub fn erase(&mut self, user: &str) -> Result<Receipt> {
        let mut earlier = Receipt::default();
        for _ in 0..TRIES {
            let mut replays = self.topics.writer(&writer_id(&self.options.job))?;
            let receipt = self.erase_once(user)?.after(&earlier);
            match replays.standing(self.options.names.of(Topic::Epochs)) {
                Ok(()) => return Ok(receipt),
                Err(error) if error.disposition == Disposition::Fatal => {
                    tracing::warn!("dead letters were replayed meanwhile, the user is erased once more");
                    earlier = receipt;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::fatal(
            "erase a user",
            "dead letters are replayed again and again meanwhile, and may bring the user back",
            "wait until dead-letters replay has ended, then erase again",
        ))
    }

    fn erase_once(&mut self, user: &str) -> Result<Receipt> {
        if user.is_empty() {
            return Err(Error::fatal(
                "erase a user",
                "the id is empty",
                "name the user by the key of interactions",
            ));
        }
        self.finish_whole()?;
        if self.last.is_none() {
            let (record, harvest) = self.first_bounds()?;
            self.commit(record, harvest)?;
            self.finish_whole()?;
        }
        let mut record = self.record();
        let below = |job: &mut Job, topic: Topic| -> Result<i64> {
            let ends = job.topics.ends(job.options.names.of(topic))?;
            let partition = job.semantics.partitioner.partition(user.as_bytes(), ends.len() as u32);
            Ok(ends.get(partition as usize).copied().unwrap_or(0))
        };
        let erasure = Erasure {
            user: user.to_owned(),
            interactions: below(self, Topic::Interactions)?,
            candidates: below(self, Topic::Candidates)?,
        };
        let not_erased = self.not_erased(&erasure)?;
        record.erasures = vec![erasure.clone()];
        let epoch = record.epoch;
        let features = self.sink.features_of(user);
        let demonstrations = self.demonstrations.iter().filter(|c| &*c.identity.user == user).count();
        self.receipt = Receipt {
            user: user.to_owned(),
            job: self.options.job.clone(),
            outputs: [Topic::Features, Topic::Examples].map(|topic| self.options.names.of(topic).to_owned()),
            erased_at: clock::now_ms(),
            epoch,
            interactions_below: erasure.interactions,
            candidates_below: erasure.candidates,
            features,
            demonstrations,
            not_erased,
            ..Receipt::default()
        };
        self.commit(record, Harvest::default())?;
        self.finish_whole()?;
        Ok(std::mem::take(&mut self.receipt))
    }

    pub(super) fn finish_whole(&mut self) -> Result<()> {
        while self.uncommitted.is_some() {
            self.finish(Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// Does what an epoch's erasures ask beside the dataflow, and gives the keys of examples that stand on
    /// the topic, with their partitions: of the users that it erases, and of those that were erased while
    /// these outputs weren't in force.
    pub(super) fn purge(&mut self, record: &EpochRecord) -> Result<Vec<(Vec<u8>, u32)>> {
        for erasure in &record.erasures {
            let user = erasure.user.as_str();
            self.purge_answers(user)?;
            self.receipt.snapshot_objects += self.rewrite_snapshots(user)?;
        }
        let users = record.erasures.iter().map(|erasure| &erasure.user).chain(&self.left_behind);
        let users: BTreeSet<&[u8]> = users.map(|user| user.as_bytes()).collect();
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let mut standing = BTreeMap::new();
        epochs::read_whole(&mut *self.topics, self.sink.examples_topic(), |record| {
            let Some(key) = record.key else { return };
            let user = unframe(&key).and_then(|parts| parts.first().copied());
            if user.is_some_and(|user| users.contains(user)) {
                match record.value {
                    Some(_) => standing.insert(key, record.partition),
                    None => standing.remove(&key),
                };
            }
        })?;
        self.receipt.examples += standing.len();
        Ok(standing.into_iter().collect())
    }

    /// Tombstones a user's answers and the embeddings of their texts, unless another record has the text.
    fn purge_answers(&mut self, user: &str) -> Result<()> {
        let (cot, embeddings) = (
            self.options.names.of(Topic::Cot).to_owned(),
            self.options.names.of(Topic::Embeddings).to_owned(),
        );
        // By key, what stands: the text's digest, and whether it is the user's.
        let mut standing: BTreeMap<Vec<u8>, (u32, Digest, bool)> = BTreeMap::new();
        let mut texts = BTreeSet::new();
        epochs::read_whole(&mut *self.topics, &cot, |record| {
            let Some(key) = record.key else { return };
            let value = record.value.as_deref().and_then(|value| CotRecord::decode(value).ok());
            match value {
                Some(value) => {
                    let (digest, own) = (text_digest(&value.text), value.user_id == user);
                    if own && !value.text.is_empty() {
                        texts.insert(digest);
                    }
                    standing.insert(key, (record.partition, digest, own));
                }
                None => {
                    standing.remove(&key);
                }
            }
        })?;
        let others: BTreeSet<Digest> =
            standing.values().filter(|(_, _, own)| !own).map(|(_, digest, _)| *digest).collect();
        let own: Vec<(Vec<u8>, u32)> =
            standing.into_iter().filter(|(_, (_, _, own))| *own).map(|(key, (p, ..))| (key, p)).collect();
        let (kept, gone): (BTreeSet<Digest>, BTreeSet<Digest>) =
            texts.into_iter().partition(|text| others.contains(text) || self.texts.is_of_item(text));
        let mut vectors: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        epochs::read_whole(&mut *self.topics, &embeddings, |record| {
            let Some(key) = record.key else { return };
            let parts = unframe(&key).unwrap_or_default();
            let [_, text] = parts[..] else { return };
            let text = std::str::from_utf8(text).unwrap_or_default();
            let digest = Digest::from_hex(text.strip_prefix("failed:").unwrap_or(text));
            if digest.is_some_and(|digest| gone.contains(&digest)) {
                match record.value {
                    Some(_) => vectors.insert(key, record.partition),
                    None => vectors.remove(&key),
                };
            }
        })?;
        self.receipt.cots += own.len();
        self.receipt.embeddings += vectors.len();
        self.receipt.embeddings_kept += kept.len();
        let mut tombstones: Vec<NewRecord> =
            own.into_iter().map(|(key, partition)| tombstone(&cot, partition, key)).collect();
        tombstones.extend(vectors.into_iter().map(|(key, partition)| tombstone(&embeddings, partition, key)));
        if tombstones.is_empty() {
            return Ok(());
        }
        self.topics.append(&tombstones)
    }

    /// Answers of erased users among an epoch's records.
    pub(super) fn answers_of_erased(&self, input: &EpochInput) -> Vec<Stray> {
        let topic = self.options.names.of(Topic::Cot);
        let answers = input.answers.iter().filter_map(|change| change.answer.as_ref().map(|a| (change, a)));
        let of_erased = answers.filter(|(_, answer)| self.judge.is_erased(&answer.user));
        let stray = of_erased.map(|(change, _)| Stray {
            key: change.key,
            record: tombstone(topic, change.position.0, change.key.hex().into_bytes()),
        });
        stray.collect()
    }

    /// Tombstones those that nobody wants: they were under way when their user was erased.
    pub(super) fn retract_strays(&mut self, strays: Vec<Stray>) {
        let wanted = self.requester.wanted();
        let unwanted = strays.into_iter().filter(|stray| !wanted.contains(&stray.key));
        self.unjournaled.extend(unwanted.map(|stray| stray.record));
    }

    /// What holds data of the user and isn't this job's to purge.
    fn not_erased(&mut self, erasure: &Erasure) -> Result<Vec<String>> {
        let names = self.options.names.clone();
        let (mut events, mut sets, mut letters) = (0_u64, 0_u64, 0_u64);
        let user = erasure.user.as_bytes();
        epochs::read_whole(&mut *self.topics, names.of(Topic::Interactions), |record| {
            events += u64::from(record.key.as_deref() == Some(user));
        })?;
        epochs::read_whole(&mut *self.topics, names.of(Topic::Candidates), |record| {
            sets += u64::from(record.key.as_deref() == Some(user));
        })?;
        epochs::read_whole(&mut *self.topics, names.of(Topic::DeadLetters), |record| {
            use ictflow_schemas::dead_letter::DeadLetter;
            let letter = record.value.as_deref().and_then(|value| DeadLetter::decode(value).ok());
            let names_user = |letter: DeadLetter| {
                let payload = letter.payload.unwrap_or_default();
                let decoded = |format| Interaction::decode_as(format, &payload).ok();
                letter.key.as_deref() == Some(user)
                    || decoded(Format::Avro)
                        .or_else(|| decoded(Format::Json))
                        .is_some_and(|event| event.user_id.as_bytes() == user)
            };
            letters += u64::from(letter.is_some_and(names_user));
        })?;
        let list = [
            format!("{events} records of {}, which their owner purges", names.of(Topic::Interactions)),
            format!("{sets} records of {}, which their owner purges", names.of(Topic::Candidates)),
            format!("{letters} dead letters on {}, until its retention takes them; none is replayed", names.of(Topic::DeadLetters)),
            "records below the tombstones on cot, embeddings, features and examples, until compaction takes them"
                .to_owned(),
            "records of the user that are delivered again or come new from now on".to_owned(),
            "outputs that aren't in force: those before a promote or a rollback lose the user when they are in force again, those of backfills are their owner's to delete"
                .to_owned(),
            "copies in files, and what consumers of the outputs keep".to_owned(),
        ];
        Ok(list.into())
    }
}

fn tombstone(topic: &str, partition: u32, key: Vec<u8>) -> NewRecord {
    NewRecord {
        topic: topic.to_owned(),
        partition,
        timestamp: None,
        key: Some(key),
        value: None,
        headers: Vec::new(),
    }
}
