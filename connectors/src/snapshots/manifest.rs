//! Manifests: what a snapshot consists of. One line with the checksum, then JSON.

use super::{MAX_MANIFEST, MAX_SEGMENTS};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The format of manifests and segments. A newer one is refused; older ones are read.
pub const FORMAT: u32 = 1;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The format of the entries, the caller's.
    pub state_format: u32,
    /// The job.
    pub job: String,
    /// The epoch after which the state stood.
    pub epoch: i64,
    /// The digest of the epoch's bounds record.
    pub bounds: String,
    /// The version of the program that wrote it.
    pub writer_version: String,
}

/// A snapshot: what it is of, and its segments, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it is of.
    pub meta: Meta,
    pub(super) segments: Vec<SegmentRef>,
}

/// A segment with the index of its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentRef {
    pub name: String,
    pub bytes: u64,
    pub blocks: Vec<Block>,
}

/// A block of entries of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    pub shard: u8,
    pub offset: u64,
    pub length: u64,
    pub checksum: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    format: u32,
    #[serde(flatten)]
    meta: Meta,
    segments: Vec<SegmentRef>,
}

/// Whether an object's name is that of a manifest.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with("epoch-") && name.ends_with(".manifest.json")
}

impl Manifest {
    pub(super) fn name(&self) -> String {
        format!("epoch-{:020}.manifest.json", self.meta.epoch)
    }

    /// Bytes of all its segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Segments: one where it is full.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Whether the next snapshot should be full: the deltas are as large as what they change, or many.
    pub fn wants_full(&self) -> bool {
        let full = self.segments.first().map_or(0, |segment| segment.bytes);
        self.bytes() > 2 * full || self.segments.len() >= MAX_SEGMENTS
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let body = Body { format: FORMAT, meta: self.meta.clone(), segments: self.segments.clone() };
        // Plain data always has a JSON text.
        let json = serde_json::to_vec(&body).expect("a manifest is plain data");
        let mut text = super::segment::checksum(&json).into_bytes();
        text.push(b'\n');
        text.extend(json);
        text
    }

    pub(super) fn read(name: &str, bytes: &[u8]) -> Result<Self> {
        let poison = |what: &str| {
            Error::poison(format!("read {name}"), what, "an older snapshot or a replay takes its place")
        };
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(poison("it is larger than any manifest"));
        }
        let cut = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| poison("it is damaged"))?;
        let (checksum, json) = (&bytes[..cut], &bytes[cut + 1..]);
        if super::segment::checksum(json).as_bytes() != checksum {
            return Err(poison("its checksum doesn't fit"));
        }
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json).map_err(|_| poison("it is no manifest"))?;
        if format > FORMAT {
            return Err(Error::fatal(
                format!("read {name}"),
                format!("it has the format {format}, this program reads up to {FORMAT}"),
                "a newer version wrote it: run that one",
            ));
        }
        let Body { meta, segments, .. } =
            serde_json::from_slice(json).map_err(|_| poison("it is no manifest"))?;
        let manifest = Manifest { meta, segments };
        if manifest.name() != name {
            return Err(poison("it stands under another epoch's name"));
        }
        Ok(manifest)
    }
}
