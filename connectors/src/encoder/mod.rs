//! Text encoders behind one trait.

pub mod hashed;
pub mod minilm;

use crate::Result;

/// An encoder of texts into unit vectors.
pub trait Embed: Send {
    /// The encoder's id: the weights' SHA-256, pooling and tokens.
    fn id(&self) -> &str;

    /// The width of its vectors.
    fn width(&self) -> usize;

    /// The vectors of some texts, in their order, each of unit norm. A text's vector does not
    /// depend on the others of the call.
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>>;
}

/// A file of the model folder, for tests: missing files are a failure, never a skipped test.
#[cfg(test)]
pub(crate) fn model_file(name: &str) -> std::path::PathBuf {
    let folder = match std::env::var_os("ICTFLOW_MODELS") {
        Some(folder) => folder.into(),
        None => std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/ictflow"),
    };
    let path = folder.join(name);
    assert!(path.is_file(), "{} is missing: run `make models`", path.display());
    path
}
