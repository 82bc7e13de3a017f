//! Snapshots of a job's state in a folder or an object store.
//!
//! A snapshot is one *manifest* over a list of *segments*. A segment holds entries, a key and opaque bytes or
//! nothing, in blocks by virtual shard. A *full* segment has every key, a *delta* those that changed since
//! the snapshot before; what a later segment says of a key wins, and an entry without bytes removes it.
//!
//! **Delivery**: a snapshot exists once its manifest does, which is written last. Objects are put whole or
//! not at all. A power failure may tear one in a folder: its checksum tells.
//!
//! **Ordering**: the newest snapshot is the one of the highest epoch.
//!
//! **Retries**: those of the object store's client; what then still fails is tried again by the caller.
//!
//! **Limits**: [`SHARDS`] shards, [`MAX_SEGMENTS`] segments a snapshot, [`MAX_MANIFEST`] bytes of a manifest;
//! a load holds [`GROUP`] shards in memory, a write one block and the parts on their way.
//!
//! **Secrets**: credentials come from the store's usual environment variables and are never printed. The
//! entries hold users' histories: give the place the protection that the inputs have.
//!
//! **Telemetry**: the caller counts; a damaged object is logged by its name.
//!
//! Every block and the manifest have BLAKE3 checksums. A damaged object is an error of the disposition
//! `Poison`: that snapshot is lost and an older one has to do. A manifest of a newer format is `Fatal`.

mod manifest;
mod segment;
#[cfg(test)]
mod tests;

pub use manifest::{Manifest, Meta};
pub use segment::Writing;

use crate::{Error, Result};
use futures_util::TryStreamExt;
use manifest::SegmentRef;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Virtual shards.
pub const SHARDS: usize = 256;
/// Shards that a load reads at once.
pub const GROUP: usize = 16;
/// Segments of a snapshot, after which the next one is full.
pub const MAX_SEGMENTS: usize = 16;
/// Bytes of a manifest at most.
pub const MAX_MANIFEST: u64 = 16 << 20;

/// A place for snapshots.
pub struct Snapshots {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// The folder, where it is one.
    folder: Option<PathBuf>,
}

impl Snapshots {
    /// Opens a folder, which is made where it doesn't exist, or the URL of an object store: `file://`,
    /// `s3://`, `gs://`, `az://`; or `memory:///`, for tests. Nothing is read yet.
    ///
    /// # Errors
    /// `Fatal` where the place can't be one.
    pub fn open(place: &str) -> Result<Self> {
        const HINT: &str = "snapshots.url is a folder, file://, s3://, gs:// or az://, or off";
        let fatal =
            |e: &dyn std::fmt::Display| Error::fatal(format!("open the snapshots at {place}"), e, HINT);
        if !place.contains("://") {
            std::fs::create_dir_all(place).map_err(|e| fatal(&e))?;
            let store = LocalFileSystem::new_with_prefix(place).map_err(|e| fatal(&e))?.with_fsync(true);
            let opened = Snapshots::over(Arc::new(store), Path::default())?;
            return Ok(Snapshots { folder: Some(PathBuf::from(place)), ..opened });
        }
        // A query may be a signature, so the place isn't named where it has one.
        let parsed = url::Url::parse(place);
        let secret =
            |url: &url::Url| url.password().is_some() || !url.username().is_empty() || url.query().is_some();
        if parsed.as_ref().is_ok_and(secret) {
            return Err(Error::fatal(
                "open the snapshots",
                "snapshots.url holds credentials",
                "they come from the store's usual environment variables: leave out user, password and query",
            ));
        }
        let url = parsed.map_err(|e| fatal(&e))?;
        if let Ok(folder) = url.to_file_path()
            && url.scheme() == "file"
        {
            return Snapshots::open(&folder.display().to_string());
        }
        // The client of object stores takes the process's provider of TLS; another that is set already serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ours = |name: &str| ["aws_", "google_", "azure_"].iter().any(|prefix| name.starts_with(prefix));
        let options = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, root) = object_store::parse_url_opts(&url, options.filter(|(name, _)| ours(name)))
            .map_err(|e| fatal(&e))?;
        Snapshots::over(store.into(), root)
    }

    /// Another handle on the same place.
    ///
    /// # Errors
    /// `Fatal` where its client can't be started.
    pub fn another(&self) -> Result<Self> {
        Ok(Snapshots {
            folder: self.folder.clone(),
            ..Snapshots::over(self.store.clone(), self.root.clone())?
        })
    }

    /// Snapshots in a store, under a path.
    pub(crate) fn over(store: Arc<dyn ObjectStore>, root: Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
            Error::fatal("start the client of snapshots", e, "is the limit of open files reached?")
        })?;
        Ok(Snapshots { runtime, store, root, folder: None })
    }

    fn path(&self, job: &str, name: &str) -> Path {
        self.root.clone().join(job).join(name)
    }

    /// The names of a job's objects.
    fn names(&self, job: &str) -> Result<BTreeSet<String>> {
        let folder = self.root.clone().join(job);
        let listed: Vec<_> = self
            .runtime
            .block_on(self.store.list(Some(&folder)).try_collect())
            .map_err(|e| failed("list snapshots", &folder, e))?;
        Ok(listed.into_iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect())
    }

    fn get(&self, path: &Path, range: Option<std::ops::Range<u64>>) -> Result<Vec<u8>> {
        let read = async {
            match range {
                Some(range) => self.store.get_range(path, range).await,
                None => self.store.get(path).await?.bytes().await,
            }
        };
        self.runtime.block_on(read).map(|bytes| bytes.to_vec()).map_err(|e| failed("read", path, e))
    }

    fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        let put = self.runtime.block_on(self.store.put(path, PutPayload::from(bytes)));
        put.map(|_| ()).map_err(|e| failed("write", path, e))
    }

    fn delete(&self, job: &str, name: &str) -> Result<()> {
        let path = self.path(job, name);
        match self.runtime.block_on(self.store.delete(&path)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("delete", &path, e)),
        }
    }

    /// The snapshots of a job, newest first. A damaged manifest is left out, loudly.
    ///
    /// # Errors
    /// `Fatal` where one has a newer format; else what the store says.
    pub fn list(&mut self, job: &str) -> Result<Vec<Manifest>> {
        let mut manifests = Vec::new();
        for name in self.names(job)?.into_iter().rev().filter(|name| manifest::is_name(name)) {
            match self.get(&self.path(job, &name), None).and_then(|bytes| Manifest::read(&name, &bytes)) {
                Ok(manifest) if manifest.meta.job == job => manifests.push(manifest),
                Ok(_) => tracing::warn!(name, "a manifest names another job, it is left out"),
                Err(error) if error.disposition == crate::Disposition::Poison => {
                    tracing::warn!(name, %error, "a damaged manifest is left out");
                }
                Err(error) => return Err(error),
            }
        }
        manifests.sort_by_key(|manifest| std::cmp::Reverse(manifest.meta.epoch));
        Ok(manifests)
    }

    /// Gives the merged entries of a snapshot, shard by shard in ascending order, keys ascending. Every
    /// block's checksum is verified before anything of its group of shards is given.
    ///
    /// # Errors
    /// `Poison` where an object is missing or damaged: the snapshot can't be used.
    pub fn load(
        &mut self,
        manifest: &Manifest,
        mut put: impl FnMut(u8, Vec<(String, Vec<u8>)>) -> Result<()>,
    ) -> Result<()> {
        for first in (0..SHARDS).step_by(GROUP) {
            let mut merged: BTreeMap<u8, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
            for segment in &manifest.segments {
                let path = self.path(&manifest.meta.job, &segment.name);
                let blocks = segment.blocks.iter().filter(|b| usize::from(b.shard) / GROUP == first / GROUP);
                let blocks: Vec<_> = blocks.collect();
                let Some((start, end)) = blocks.first().zip(blocks.last()) else { continue };
                let (start, end) = (start.offset, end.offset + end.length);
                let bytes = self.get(&path, Some(start..end))?;
                for block in blocks {
                    let place =
                        (block.offset - start) as usize..(block.offset - start + block.length) as usize;
                    let bytes = bytes.get(place).filter(|bytes| segment::checksum(bytes) == block.checksum);
                    let entries = bytes.and_then(segment::entries).ok_or_else(|| damaged(&path))?;
                    let shard = merged.entry(block.shard).or_default();
                    for (key, value) in entries {
                        match value {
                            Some(value) => shard.insert(key, value),
                            None => shard.remove(&key),
                        };
                    }
                }
            }
            for (shard, entries) in merged {
                put(shard, entries.into_iter().collect())?;
            }
        }
        Ok(())
    }

    /// Begins a snapshot: a delta over `base`, or a full one.
    ///
    /// # Errors
    /// What the store says.
    pub fn write_begin(&mut self, meta: Meta, base: Option<&Manifest>) -> Result<Writing<'_>> {
        let segments = base.map_or_else(Vec::new, |base| base.segments.clone());
        Writing::begin(self, Manifest { meta, segments })
    }

    /// Removes all but the newest snapshots, at least two, and segments that none of them has. In a folder
    /// also what a killed writer left half written.
    ///
    /// # Errors
    /// What the store says; what was removed stays removed.
    pub fn prune(&mut self, job: &str, keep: usize) -> Result<()> {
        self.sweep(job);
        let kept: Vec<Manifest> = self.list(job)?.into_iter().take(keep.max(2)).collect();
        let manifests: BTreeSet<String> = kept.iter().map(Manifest::name).collect();
        let segments: BTreeSet<&str> =
            kept.iter().flat_map(|m| m.segments.iter().map(|segment| segment.name.as_str())).collect();
        let names = self.names(job)?;
        // Manifests first: none may name a segment that is gone.
        for name in names.iter().filter(|name| manifest::is_name(name) && !manifests.contains(*name)) {
            self.delete(job, name)?;
        }
        for name in names.iter().filter(|name| segment::is_name(name) && !segments.contains(name.as_str())) {
            self.delete(job, name)?;
        }
        Ok(())
    }

    /// Removes half-written files, which the store's client names with a `#`.
    fn sweep(&self, job: &str) {
        let Some(folder) = &self.folder else { return };
        let Ok(entries) = std::fs::read_dir(folder.join(job)) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let staged = path.file_name().is_some_and(|name| name.to_string_lossy().contains('#'));
            if staged && let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a half-written file stays");
            }
        }
    }

    /// Writes every snapshot of a job anew without these keys of one shard; a snapshot that is damaged is
    /// removed. Says how many objects were written or removed. Doing it again is harmless.
    ///
    /// # Errors
    /// What the store says; then it has to be done again.
    pub fn rewrite_without(&mut self, job: &str, keys: &[String], shard: u8) -> Result<usize> {
        let mut objects = 0;
        let mut rewritten: BTreeMap<String, SegmentRef> = BTreeMap::new();
        for mut manifest in self.list(job)? {
            match self.rewrite(&manifest, keys, shard, &mut rewritten) {
                Ok(None) => {}
                Ok(Some(segments)) => {
                    manifest.segments = segments;
                    self.put(&self.path(job, &manifest.name()), manifest.write())?;
                    objects += 1;
                }
                Err(error) if error.disposition == crate::Disposition::Poison => {
                    tracing::warn!(%error, "a damaged snapshot is removed, since a user can't be taken out of it");
                    self.delete(job, &manifest.name())?;
                    objects += 1;
                }
                Err(error) => return Err(error),
            }
        }
        objects += rewritten.len();
        // Takes the old segments away, and manifests that couldn't be read.
        self.prune(job, usize::MAX)?;
        Ok(objects)
    }

    /// The segments of a snapshot without the keys, `None` where none has one.
    fn rewrite(
        &mut self,
        manifest: &Manifest,
        keys: &[String],
        shard: u8,
        rewritten: &mut BTreeMap<String, SegmentRef>,
    ) -> Result<Option<Vec<SegmentRef>>> {
        let (job, mut segments, mut changed) = (&manifest.meta.job, Vec::new(), false);
        for old in &manifest.segments {
            if let Some(new) = rewritten.get(&old.name) {
                segments.push(new.clone());
                changed = true;
                continue;
            }
            let path = self.path(job, &old.name);
            let block = old.blocks.iter().find(|block| block.shard == shard);
            let Some(block) = block else {
                segments.push(old.clone());
                continue;
            };
            let bytes = self.get(&path, None)?;
            let of = |block: &manifest::Block| {
                bytes
                    .get(block.offset as usize..(block.offset + block.length) as usize)
                    .filter(|bytes| segment::checksum(bytes) == block.checksum)
                    .and_then(segment::entries)
                    .ok_or_else(|| damaged(&path))
            };
            if !of(block)?.iter().any(|(key, _)| keys.contains(key)) {
                segments.push(old.clone());
                continue;
            }
            // An erasure that was cut short may have left the next name in another snapshot's use.
            let taken = self.names(job)?;
            let mut name = segment::next_name(&old.name);
            while taken.contains(&name) {
                name = segment::next_name(&name);
            }
            let mut new = segment::Builder::new(name);
            let mut contents = new.header();
            for block in &old.blocks {
                let mut entries = of(block)?;
                entries.retain(|(key, _)| !keys.contains(key));
                let entries = entries.iter().map(|(key, value)| (key.as_str(), value.as_deref()));
                contents.extend(new.block(block.shard, entries)?);
            }
            let new = new.finish();
            self.put(&self.path(job, &new.name), contents)?;
            rewritten.insert(old.name.clone(), new.clone());
            segments.push(new);
            changed = true;
        }
        Ok(changed.then_some(segments))
    }
}

/// What the store said of an object. One that is missing or too short is damaged.
fn failed(what: &str, path: &Path, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => damaged(path),
        object_store::Error::Generic { source, .. } if is_range(&*source) => damaged(path),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            Error::fatal(
                format!("{what} {path}"),
                error,
                "give the job's identity the right to list, read, write and delete there",
            )
        }
        error => Error::retry(
            Duration::from_secs(1),
            format!("{what} {path}"),
            error,
            "is the store of snapshots reachable, and has it room?",
        ),
    }
}

/// Whether a store complains of a range beyond the object.
fn is_range(source: &(dyn std::error::Error + 'static)) -> bool {
    let text = source.to_string().to_ascii_lowercase();
    text.contains("range") || text.contains("truncated") || text.contains("out of")
}

fn damaged(path: &Path) -> Error {
    Error::poison(
        format!("read {path}"),
        "it is missing, damaged or cut short",
        "an older snapshot or a replay of the logs takes its place",
    )
}
