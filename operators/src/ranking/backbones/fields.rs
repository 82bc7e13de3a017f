//! From a batch to the vectors that backbones read.

use super::{Inputs, RankingError, Settings};
use crate::ranking::embedding_bag::mean;
use crate::ranking::ids::rows;
use candle_core::Tensor;

/// The number of id fields.
pub(super) const FIELDS: usize = 7;

/// The width of all fields and inputs beside each other.
pub(super) fn width(settings: &Settings) -> usize {
    (FIELDS + usize::from(settings.vector)) * settings.d + side_width(settings)
}

/// The width of texts and scalars.
pub(super) fn side_width(settings: &Settings) -> usize {
    2 * settings.d * usize::from(settings.text) + settings.scalars
}

/// The seven field vectors, each [B, d]: user, item, creator, category, and the history's means.
pub(super) fn fields(inputs: &Inputs) -> Result<Vec<Tensor>, RankingError> {
    let (ids, tables) = (&inputs.ids, &inputs.tables);
    Ok(vec![
        rows(&tables.user, &ids.user)?,
        rows(&tables.item, &ids.item)?,
        rows(&tables.creator, &ids.creator)?,
        mean(&tables.category, &ids.categories)?,
        mean(&tables.item, &ids.history_items)?,
        mean(&tables.creator, &ids.history_creators)?,
        mean(&tables.category, &ids.history_categories.flatten_from(1)?)?,
    ])
}

/// Checks that the batch has the inputs that the settings name, and no others.
pub(super) fn check(inputs: &Inputs, settings: &Settings) -> Result<(), RankingError> {
    let rows = inputs.ids.user.dim(0)?;
    let one = |input: &'static str, found: Option<&Tensor>, width: Option<usize>| {
        let found = found.map_or(Vec::new(), |t| t.dims().to_vec());
        let expected = width.map_or(Vec::new(), |w| vec![rows, w]);
        if found == expected { Ok(()) } else { Err(RankingError::Input { input, found, expected }) }
    };
    let [item, history] = match &inputs.text {
        Some([item, history]) => [Some(item), Some(history)],
        None => [None, None],
    };
    one("vector", inputs.vector.as_ref(), settings.vector.then_some(settings.d))?;
    one("item text", item, settings.text.then_some(settings.d))?;
    one("history text", history, settings.text.then_some(settings.d))?;
    one("scalars", inputs.scalars.as_ref(), (settings.scalars > 0).then_some(settings.scalars))?;
    for (input, table) in [
        ("user table", &inputs.tables.user),
        ("item table", &inputs.tables.item),
        ("creator table", &inputs.tables.creator),
        ("category table", &inputs.tables.category),
    ] {
        let (rows, width) = table.dims2()?;
        if width != settings.d {
            return Err(RankingError::Input {
                input,
                found: vec![rows, width],
                expected: vec![rows, settings.d],
            });
        }
    }
    Ok(())
}

/// Texts and scalars, where the batch brings them: the item's text, the history's, the scalars.
pub(super) fn side(inputs: &Inputs) -> Vec<Tensor> {
    inputs.text.iter().flatten().chain(&inputs.scalars).cloned().collect()
}

/// All of it beside each other [B, width]: fields, the vector in the form given, texts, scalars.
pub(super) fn join(
    fields: &[Tensor],
    vector: Option<&Tensor>,
    inputs: &Inputs,
) -> Result<Tensor, RankingError> {
    let parts: Vec<Tensor> = fields.iter().chain(vector).cloned().chain(side(inputs)).collect();
    Ok(Tensor::cat(&parts, 1)?)
}
