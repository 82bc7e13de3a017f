//! Segments: entries in blocks by shard. A block is, for each entry, the key's length and bytes, one byte
//! that says whether a value follows, and its length and bytes; lengths are u32, big-endian.

use super::manifest::{Block, Manifest, SegmentRef};
use super::{Snapshots, failed};
use crate::{Error, Result};
use object_store::path::Path;
use object_store::{ObjectStoreExt, WriteMultipart};

const MAGIC: &[u8] = b"ictflow segment 1\n";

/// The checksum of a block or a manifest: BLAKE3, hex.
pub(super) fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Whether an object's name is that of a segment.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with("segment-") && name.ends_with(".bin")
}

/// The name of a segment after it was written anew: segment-EPOCH-COUNT.bin.
pub(super) fn next_name(name: &str) -> String {
    let stem = name.trim_end_matches(".bin");
    let (stem, count) = match stem.rsplit_once("-r") {
        Some((stem, count)) => (stem, count.parse().unwrap_or(0_u64)),
        None => (stem, 0),
    };
    format!("{stem}-r{}.bin", count + 1)
}

/// Builds a segment block by block.
pub(super) struct Builder {
    segment: SegmentRef,
}

impl Builder {
    pub fn new(name: String) -> Self {
        Builder { segment: SegmentRef { name, bytes: 0, blocks: Vec::new() } }
    }

    /// The bytes before the first block.
    pub fn header(&mut self) -> Vec<u8> {
        self.segment.bytes = MAGIC.len() as u64;
        MAGIC.to_vec()
    }

    /// The bytes of the next block; none where it has no entries.
    pub fn block<'a>(
        &mut self,
        shard: u8,
        entries: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (key, value) in entries {
            part(&mut bytes, key.as_bytes())?;
            bytes.push(u8::from(value.is_some()));
            if let Some(value) = value {
                part(&mut bytes, value)?;
            }
        }
        if !bytes.is_empty() {
            let (offset, length) = (self.segment.bytes, bytes.len() as u64);
            self.segment.blocks.push(Block { shard, offset, length, checksum: checksum(&bytes) });
            self.segment.bytes += length;
        }
        Ok(bytes)
    }

    pub fn finish(self) -> SegmentRef {
        self.segment
    }
}

fn part(bytes: &mut Vec<u8>, part: &[u8]) -> Result<()> {
    let length = u32::try_from(part.len()).map_err(|e| {
        Error::fatal("write a snapshot", e, "an entry of 4 GiB: lower max_window_events or history_length")
    })?;
    bytes.extend(length.to_be_bytes());
    bytes.extend(part);
    Ok(())
}

/// An entry: its key, and its value or that there is none any more.
pub(super) type Entry = (String, Option<Vec<u8>>);

/// The entries of a block; `None` where it isn't one.
pub(super) fn entries(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let key = std::str::from_utf8(take(&mut bytes)?).ok()?.to_owned();
        let (flag, rest) = bytes.split_first()?;
        bytes = rest;
        let value = match flag {
            0 => None,
            1 => Some(take(&mut bytes)?.to_vec()),
            _ => return None,
        };
        entries.push((key, value));
    }
    Some(entries)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *bytes = rest;
    Some(part)
}

/// A snapshot that is being written. Dropped before [`Writing::finish`] it leaves no snapshot.
pub struct Writing<'a> {
    store: &'a Snapshots,
    manifest: Manifest,
    builder: Builder,
    upload: WriteMultipart,
    path: Path,
    last: Option<u8>,
}

impl<'a> Writing<'a> {
    pub(super) fn begin(store: &'a Snapshots, manifest: Manifest) -> Result<Self> {
        let meta = &manifest.meta;
        let mut builder = Builder::new(format!("segment-{:020}.bin", meta.epoch));
        let path = store.path(&meta.job, &builder.segment.name);
        let upload = store
            .runtime
            .block_on(store.store.put_multipart(&path))
            .map_err(|e| failed("write", &path, e))?;
        let mut upload = WriteMultipart::new(upload);
        store.runtime.block_on(async { upload.write(&builder.header()) });
        Ok(Writing { store, manifest, builder, upload, path, last: None })
    }

    /// Writes the entries of a shard, keys ascending. Shards come in ascending order, each once.
    ///
    /// # Errors
    /// What the store says; `Fatal` for another order.
    pub fn block<'e>(
        &mut self,
        shard: u8,
        entries: impl Iterator<Item = (&'e str, Option<&'e [u8]>)>,
    ) -> Result<()> {
        if self.last.is_some_and(|last| last >= shard) {
            return Err(Error::fatal(
                "write a snapshot",
                format!("shard {shard} comes after {:?}", self.last),
                "this is a defect: please report it",
            ));
        }
        self.last = Some(shard);
        let bytes = self.builder.block(shard, entries)?;
        let (upload, path) = (&mut self.upload, &self.path);
        self.store
            .runtime
            .block_on(async {
                // Bounds the parts on their way.
                upload.wait_for_capacity(4).await?;
                upload.write(&bytes);
                Ok(())
            })
            .map_err(|e| failed("write", path, e))
    }

    /// Ends the segment, then writes the manifest: from now on the snapshot exists.
    ///
    /// # Errors
    /// What the store says; then there is no snapshot.
    pub fn finish(self) -> Result<Manifest> {
        let Writing { store, mut manifest, builder, upload, path, .. } = self;
        store.runtime.block_on(upload.finish()).map_err(|e| failed("write", &path, e))?;
        manifest.segments.push(builder.finish());
        store.put(&store.path(&manifest.meta.job, &manifest.name()), manifest.write())?;
        Ok(manifest)
    }
}
