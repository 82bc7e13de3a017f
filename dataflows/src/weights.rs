//! A directory of weights: which file serves a job, and other ones by their version.
//!
//! ```text
//! DIR/active            one line, the name of a file beside it: that one serves
//! DIR/shadow            the same, optional: vectors of that one are published beside, on a topic of their own
//! DIR/NAME.safetensors  weights; every one of them is known by its version, the SHA-256 of its bytes
//! ```
//! A deployer copies the file of a version first, to every process of the job, and names it then: by writing
//! `active` anew beside it and renaming it into place, so that nobody reads half a name. Nothing is guessed from
//! names or times of files. Files of versions that epochs on record name must stay as long as these epochs are to
//! be verified; those that no epoch names may go.
//!
//! * **Delivery**: [`Watcher::look`] reads the pointer once a second and loads what it names where that changed.
//! * **Ordering**: the newest name counts; one that stood for less than a second may never have served.
//! * **Retries**: what was refused is tried again once the pointer or the file that it names changes.
//! * **Limits**: a file's bytes are in memory while it is loaded; the job waits meanwhile.
//! * **Secrets**: none.
//! * **Telemetry**: `ictflow_models_switched_total`, `ictflow_models_refused_total`; a refusal is logged once.

use crate::job::Job;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::{Find, Weights};
use ictflow_schemas::framing::hex;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The file that names the weights that serve.
pub const ACTIVE: &str = "active";

/// The file that names the weights beside them.
pub const SHADOW: &str = "shadow";

/// How a file of weights ends.
const EXTENSION: &str = ".safetensors";

/// How often the pointer is read.
const EVERY: Duration = Duration::from_secs(1);

/// Reads and checks a file of weights.
///
/// # Errors
/// `Fatal` where it can't be read, or isn't what `schemas/weights.md` says.
pub fn load(path: &Path) -> Result<Arc<Weights>> {
    let bytes = std::fs::read(path).map_err(|e| {
        Error::fatal(format!("read {}", path.display()), e, "set [ict] weights to a safetensors file")
    })?;
    of_bytes(path, &bytes)
}

/// Checks the bytes of a file of weights.
///
/// # Errors
/// `Fatal` where they aren't what `schemas/weights.md` says.
pub fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Arc<Weights>> {
    let weights = Weights::from_safetensors(bytes).map_err(|e| {
        Error::fatal(format!("load {}", path.display()), e, "schemas/weights.md says what the file must hold")
    })?;
    Ok(Arc::new(weights))
}

/// A directory of weights.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Directory(folder.into())
    }

    /// The weights that the pointer names.
    ///
    /// # Errors
    /// `Fatal` where it names none, or where they can't be loaded.
    pub fn active(&self) -> Result<Arc<Weights>> {
        load(&self.0.join(self.named(ACTIVE)?))
    }

    /// The weights beside them, `None` where the directory names none.
    ///
    /// # Errors
    /// As [`Directory::active`].
    pub fn shadow(&self) -> Result<Option<Arc<Weights>>> {
        match self.0.join(SHADOW).exists() {
            true => load(&self.0.join(self.named(SHADOW)?)).map(Some),
            false => Ok(None),
        }
    }

    /// What a pointer names.
    fn named(&self, pointer: &str) -> Result<String> {
        const HINT: &str = "it holds one line, the name of a .safetensors file beside it; write it under another \
                            name first and rename it";
        let pointer = self.0.join(pointer);
        let refused = |problem: String| Error::fatal(format!("read {}", pointer.display()), problem, HINT);
        let text = std::fs::read_to_string(&pointer).map_err(|e| refused(e.to_string()))?;
        let name = text.trim();
        let plain = name.ends_with(EXTENSION) && !name.contains(['/', '\\', '\n']);
        if !plain {
            return Err(refused(format!("{name:?} is no name of a .safetensors file in the same directory")));
        }
        Ok(name.to_owned())
    }

    /// Finds weights by their version: every file of the directory is read until one has it.
    pub fn find(&self, version: &str) -> std::result::Result<Arc<Weights>, String> {
        let unreadable = |e: std::io::Error| format!("{} can't be read: {e}", self.0.display());
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(EXTENSION)) {
                files.push(path);
            }
        }
        // Which of two files with the same bytes is read makes no difference; messages name the first.
        files.sort();
        for path in &files {
            let Ok(bytes) = std::fs::read(path) else { continue };
            let digest = hex(&Sha256::digest(&bytes));
            // Untrained weights say a part of the digest only.
            if digest != version && version != format!("untrained-{}", &digest[..16]) {
                continue;
            }
            let weights = of_bytes(path, &bytes).map_err(|e| e.to_string())?;
            if weights.version() == version {
                return Ok(weights);
            }
        }
        Err(format!("none of the {} .safetensors files in {} has it", files.len(), self.0.display()))
    }

    /// What finds the directory's weights.
    pub fn finder(&self) -> Box<Find> {
        let directory = self.clone();
        Box::new(move |version| directory.find(version))
    }
}

/// What a watcher did since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Switches to other weights.
    pub switched: u64,
    /// What the pointer named and wasn't served.
    pub refused: u64,
}

/// What was looked at: a pointer's text and the state of the file that it names. A change of either asks for
/// another look; neither decides what serves.
type Mark = (String, Option<(u64, Option<SystemTime>)>);

/// Watches a directory and switches a job's weights between epochs.
pub struct Watcher {
    directory: Directory,
    every: Duration,
    looked: Option<Instant>,
    /// By pointer: active, shadow.
    marks: [Option<Mark>; 2],
    /// What it did.
    pub figures: Figures,
}

impl Watcher {
    /// A watcher that has seen nothing yet.
    pub fn new(directory: Directory) -> Self {
        Watcher { directory, every: EVERY, looked: None, marks: [None, None], figures: Figures::default() }
    }

    /// As [`Watcher::new`], looking whenever it is asked to.
    pub fn eager(directory: Directory) -> Self {
        Watcher { every: Duration::ZERO, ..Watcher::new(directory) }
    }

    /// Looks at the pointers, once a second, and takes what they name from the job's next epoch on. What can't be
    /// taken is told in the log, and the job goes on as it was.
    pub fn look(&mut self, job: &mut Job) {
        if self.looked.is_some_and(|looked| looked.elapsed() < self.every) {
            return;
        }
        self.looked = Some(Instant::now());
        if self.has_changed(0, ACTIVE) {
            let served = self.directory.active().and_then(|weights| job.serve(weights));
            self.note(ACTIVE, served, &job.actives().ict_weights);
        }
        if self.has_changed(1, SHADOW) {
            let beside = self.directory.shadow().and_then(|weights| job.stand_beside(weights));
            self.note(SHADOW, beside, &job.actives().ict_weights);
        }
    }

    fn has_changed(&mut self, place: usize, pointer: &str) -> bool {
        let text = std::fs::read_to_string(self.directory.0.join(pointer)).unwrap_or_default();
        let named = self.directory.named(pointer).ok();
        let state = named.and_then(|name| std::fs::metadata(self.directory.0.join(name)).ok());
        let mark = Some((text, state.map(|state| (state.len(), state.modified().ok()))));
        std::mem::replace(&mut self.marks[place], mark.clone()) != mark
    }

    fn note(&mut self, pointer: &str, taken: Result<bool>, serving: &str) {
        match taken {
            Ok(false) => {}
            Ok(true) => {
                self.figures.switched += u64::from(pointer == ACTIVE);
                tracing::info!(pointer, serving, "other ICT weights from the next epoch on");
            }
            Err(error) => {
                self.figures.refused += 1;
                tracing::error!(%error, pointer, serving, "ICT weights are refused, what was before goes on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_operators::ict::{Kind, Shape, untrained_of};

    fn bytes(seed: u64) -> Vec<u8> {
        let shape = Shape { d: 8, text: 16, user_rows: 4, item_rows: 4, creator_rows: 4, category_rows: 4 };
        untrained_of(Kind::Decoder, seed, shape).unwrap()
    }

    #[test]
    fn the_pointer_names_a_file_and_versions_are_found_whatever_the_files_are_called() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("a.safetensors", &bytes(1));
        write("b.safetensors", &bytes(2));
        write("half.safetensors", &bytes(3)[..100]);
        write("c.part", &bytes(4));
        let version = |seed| Weights::from_safetensors(&bytes(seed)).unwrap().version().to_owned();
        write(ACTIVE, b"b.safetensors\n");
        assert_eq!(directory.active().unwrap().version(), version(2));
        assert_eq!(directory.find(&version(1)).unwrap().version(), version(1));
        let told = directory.find(&version(4)).unwrap_err();
        assert!(told.contains("none of the 3"), "{told}");
        for (text, problem) in [
            ("half.safetensors", "not a safetensors file"),
            ("gone.safetensors", "read "),
            ("../b.safetensors", "is no name"),
            ("a.safetensors\nb.safetensors", "is no name"),
            ("c.part", "is no name"),
            ("", "is no name"),
        ] {
            write(ACTIVE, text.as_bytes());
            let told = directory.active().unwrap_err().to_string();
            assert!(told.contains(problem), "{text}: {told}");
        }
        std::fs::remove_file(folder.path().join(ACTIVE)).unwrap();
        assert!(directory.active().unwrap_err().to_string().contains("rename it"));
        assert!(directory.shadow().unwrap().is_none());
        write(SHADOW, b"a.safetensors");
        assert_eq!(directory.shadow().unwrap().unwrap().version(), version(1));
        write(SHADOW, b"half.safetensors");
        assert!(directory.shadow().is_err());
    }
}
