//! Tokens of samples and texts: G, H and the embedding tables.

use super::layers::linear;
use super::{Module, TrainingError};
use crate::ranking::embedding_bag::mean;
use crate::ranking::frozen::linear_of_frozen;
use crate::ranking::ids::{Ids, Tables, rows};
use candle_core::{D, Tensor};

/// A batch of B samples: queries or demonstrations. Text vectors are f32 [B, D], their quantised
/// components divided by 2^14; zeros where there is no text.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Their ids.
    pub ids: Ids,
    /// The items' vectors [B, D].
    pub item_text: Tensor,
    /// The means of the histories' vectors [B, D].
    pub history_text: Tensor,
}

impl Module {
    /// Two layers with ReLU between them: `name.0` and `name.2`.
    pub(super) fn net(&self, name: &str, x: &Tensor) -> Result<Tensor, TrainingError> {
        let part = |part: &str| self.tensor(&format!("{name}.{part}"));
        let hidden = linear(x, part("0.weight")?, Some(part("0.bias")?))?.relu()?;
        Ok(linear(&hidden, part("2.weight")?, Some(part("2.bias")?))?)
    }

    /// G: text vectors [N, D] to tokens [N, d]. No gradient goes to the vectors.
    ///
    /// # Errors
    /// Where the width isn't D.
    pub fn text_token(&self, text: &Tensor) -> Result<Tensor, TrainingError> {
        let part = |part: &str| self.tensor(&format!("text.{part}"));
        let hidden = linear_of_frozen(text, part("0.weight")?, Some(part("0.bias")?))?.relu()?;
        Ok(linear(&hidden, part("2.weight")?, Some(part("2.bias")?))?)
    }

    /// x: the tokens of samples, [B, d].
    ///
    /// # Errors
    /// Where an id is beyond its table or shapes don't fit.
    pub fn sample_token(&self, tables: &Tables, samples: &Samples) -> Result<Tensor, TrainingError> {
        let Samples { ids, item_text, history_text } = samples;
        let count = ids.user.dim(0)?;
        let texts = self.text_token(&Tensor::cat(&[item_text, history_text], 0)?)?;
        let fields = [
            rows(&tables.user, &ids.user)?,
            rows(&tables.item, &ids.item)?,
            texts.narrow(0, 0, count)?,
            rows(&tables.creator, &ids.creator)?,
            mean(&tables.category, &ids.categories)?,
            mean(&tables.item, &ids.history_items)?,
            texts.narrow(0, count, count)?,
            mean(&tables.creator, &ids.history_creators)?,
            mean(&tables.category, &ids.history_categories.flatten_from(1)?)?,
        ];
        self.net("sample", &Tensor::cat(&fields, D::Minus1)?)
    }
}
