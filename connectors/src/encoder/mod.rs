//! Text encoders behind one trait.

mod bert;
pub mod hashed;
pub mod minilm;
#[cfg(test)]
mod tests;

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
