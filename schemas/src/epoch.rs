//! Epochs: bounded sets of input offsets, recorded before their data enters the dataflow.

use crate::Millis;
use crate::framing::{Digest, Domain, Frame, digest, unframe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The versions in force. A record switches them from its epoch on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actives {
    /// SHA-256 of the model file, or the service's model name.
    pub llm_model: String,
    /// name@BLAKE3 of the prompt file, 16 hex digits.
    pub prompt_version: String,
    /// The decoding parameters as one canonical JSON text.
    pub parameters: String,
    /// SHA-256 of the encoder's weights with pooling and tokens.
    pub encoder: String,
    /// The ICT weights: SHA-256, or `untrained-…`.
    pub ict_weights: String,
}

/// A record of the internal log `epochs`: what the epoch holds and under which versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The job.
    pub job: String,
    /// The epoch, from 1, contiguous.
    pub epoch: i64,
    /// End offsets (exclusive) by partition of every input log. Their number is the partition
    /// count; a changed count is refused.
    pub ends: BTreeMap<String, Vec<i64>>,
    /// The partition maxima of `interactions` at the epoch's end.
    pub maxima: Vec<Millis>,
    /// The largest partition maximum.
    pub clock: Millis,
    /// The versions in force.
    pub actives: Actives,
    /// The digest of the semantic configuration, hex.
    pub config_digest: String,
    /// The semantic configuration itself, where it changed (always on the first record).
    pub config: Option<String>,
    /// By input log, the first offset of each partition that the job's state rests on: on the first
    /// record where the logs began, later where a truncation was accepted. Empty elsewhere, and on
    /// records of before this field.
    #[serde(default)]
    pub starts: BTreeMap<String, Vec<i64>>,
    /// Users who are erased with this epoch.
    #[serde(default)]
    pub erasures: Vec<Erasure>,
    /// Where the outputs go from this epoch on; `None` leaves them where they went.
    #[serde(default)]
    pub outputs: Option<Outputs>,
}

/// A user whose records below these offsets, of the user's partitions, are dropped for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Erasure {
    /// The user.
    pub user: String,
    /// The first offset of `interactions` that counts again.
    pub interactions: i64,
    /// The first offset of `candidates` that counts again.
    pub candidates: i64,
}

/// The outputs that a job writes, as `promote` and `rollback` switch them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// The topic of the features.
    pub features: String,
    /// The topic of the examples.
    pub examples: String,
    /// The collection of points, where the job has a store of points.
    pub collection: Option<String>,
}

impl EpochRecord {
    /// The key: framed (job, epoch).
    pub fn key(&self) -> Vec<u8> {
        Frame::new().text(&self.job).int(self.epoch).into_bytes()
    }
}

/// The digest of a semantic configuration's canonical JSON.
pub fn config_digest(config: &str) -> Digest {
    digest(Domain::Config, &Frame::new().text(config))
}

/// A record of the internal topic `progress`: how far a job has committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: String,
    /// The committed epoch.
    pub epoch: i64,
    /// Whether features were being published by then.
    pub publishing: bool,
    /// The version of the program that wrote it.
    pub writer_version: String,
    /// The epoch of the newest snapshot that was good by then; a hint for people, a start looks itself.
    #[serde(default)]
    pub snapshot: Option<i64>,
}

impl Progress {
    /// The key: framed (job).
    pub fn key(&self) -> Vec<u8> {
        Frame::new().text(&self.job).into_bytes()
    }

    /// The job that a key names; `None` for a key that no job writes.
    pub fn job_of(key: &[u8]) -> Option<String> {
        match unframe(key)?.as_slice() {
            [job] if !job.is_empty() => String::from_utf8(job.to_vec()).ok(),
            _ => None,
        }
    }
}

/// The version of the state and records that this program writes; a newer one is refused.
pub const WRITER_VERSION: &str = "2";
