//! The trained weights of the demo: the ICT weights that its job serves, and the two rankers that are measured.
//!
//! They are in the program, as `make weights` wrote them; a folder of the same form takes their place. The demo
//! lays the ones that it took into its state, so that a new job over its logs, and `ictflow rank`, find them there.
//!
//! ```text
//! ict.safetensors            what makes the vectors
//! ranker.safetensors         the ranker that reads them, and the votes
//! strong/ranker.safetensors  one of the same backbone that was trained without either
//! ```
//! Figures are worth something only where the measured ratings trained nothing. So both rankers must say that
//! they were trained on the demo's data, split by time.

use crate::rank::ranker::Ranker;
use crate::ranking::dataset::{Protocol, contents};
use crate::ranking::train::{DATA, ICT, PROTOCOL, RANKER};
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::Weights;
use ictflow_schemas::dataset::Dataset;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The folder of the ranker without vector and votes, among the others.
const WITHOUT: &str = "strong";

/// The bytes of the three files.
pub struct Files {
    ict: Cow<'static, [u8]>,
    with: Cow<'static, [u8]>,
    without: Cow<'static, [u8]>,
}

/// Where the three files stand in a folder.
fn places(folder: &Path) -> [PathBuf; 3] {
    [folder.join(ICT), folder.join(RANKER), folder.join(WITHOUT).join(RANKER)]
}

/// The folder of the weights in a demo's state.
pub fn folder(state: &Path) -> PathBuf {
    state.join("weights")
}

/// The ICT weights in a demo's state.
pub fn ict(state: &Path) -> PathBuf {
    folder(state).join(ICT)
}

/// The ranker in a demo's state that reads vectors and votes.
pub fn ranker(state: &Path) -> PathBuf {
    folder(state).join(RANKER)
}

impl Files {
    /// Those of the program.
    pub fn built_in() -> Self {
        Files {
            ict: Cow::Borrowed(include_bytes!("../../../deploy/weights/ict.safetensors")),
            with: Cow::Borrowed(include_bytes!("../../../deploy/weights/ranker.safetensors")),
            without: Cow::Borrowed(include_bytes!("../../../deploy/weights/strong/ranker.safetensors")),
        }
    }

    /// Those of a folder.
    ///
    /// # Errors
    /// `Fatal` where one is missing or can't be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |path: PathBuf| {
            std::fs::read(&path).map(Cow::Owned).map_err(|error| {
                let hint = "name a folder as `make weights` fills it: ict.safetensors, ranker.safetensors, \
                            strong/ranker.safetensors";
                Error::fatal(format!("read {}", path.display()), error, hint)
            })
        };
        let [ict, with, without] = places(folder).map(read);
        Ok(Files { ict: ict?, with: with?, without: without? })
    }

    /// Writes them into a demo's state.
    ///
    /// # Errors
    /// `Fatal` where a file can't be written.
    pub fn lay_into(&self, state: &Path) -> Result<()> {
        let folder = folder(state);
        let failed =
            |error| Error::fatal(format!("write {}", folder.display()), error, "the folder must be writable");
        std::fs::create_dir_all(folder.join(WITHOUT)).map_err(failed)?;
        for (path, bytes) in places(&folder).iter().zip([&self.ict, &self.with, &self.without]) {
            std::fs::write(path, bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// The rankers, where they and the ICT weights belong together and were trained on this data.
    ///
    /// # Errors
    /// `Fatal` where a file isn't one of its kind, or they don't.
    pub fn rankers(&self, data: &Dataset) -> Result<Rankers> {
        let refused = |problem: String| {
            let hint = "take a folder as `make weights` fills it, made on the data of `make models`";
            Error::fatal("take the demo's weights", problem, hint)
        };
        let ict = Weights::from_safetensors(&self.ict).map_err(|error| refused(error.to_string()))?;
        let ranker = |bytes: &[u8]| Ranker::from_bytes(bytes).map_err(|error| refused(error.to_string()));
        let (with, without) = (ranker(&self.with)?, ranker(&self.without)?);
        let reads = with.serving.vector.as_ref().map(|vector| vector.ict_weights.as_str());
        if reads != Some(ict.version()) || !with.serving.votes {
            let read = reads.unwrap_or("none");
            return Err(refused(format!(
                "the ranker must read votes and the vectors of {}, and reads those of {read}",
                ict.version()
            )));
        }
        if without.serving.vector.is_some() || without.serving.votes {
            return Err(refused(format!("the ranker in {WITHOUT} reads vectors or votes")));
        }
        if with.encoder() != without.encoder() || with.kind() != without.kind() {
            return Err(refused("the two rankers differ in encoder or backbone".to_owned()));
        }
        let expected = [(DATA, contents(data).hex()), (PROTOCOL, Protocol::Time.name().to_owned())];
        for ranker in [&with, &without] {
            for (note, value) in &expected {
                let found = ranker.notes.get(*note).map_or("nothing", String::as_str);
                if found != value {
                    return Err(refused(format!("a ranker notes as its {note} {found}, here it is {value}")));
                }
            }
        }
        Ok(Rankers { with, without })
    }
}

/// The rankers that are measured.
pub struct Rankers {
    /// The one that reads vectors and votes.
    pub with: Ranker,
    /// The one of the same backbone that was trained without them, on texts and the user's own labels.
    pub without: Ranker,
}
