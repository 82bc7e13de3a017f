//! The file of weights: what stands in it, how it is checked, how it is written.
//!
//! The contract is `schemas/weights.md`. Reading checks every name, type, shape and value before
//! anything is computed, so a wrong file is a named error at start and never a wrong vector.

use super::error::WeightsError;
use super::shape::{Fill, Kind, Shape, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The key under which the file's metadata describes the weights.
const METADATA: &str = "ictflow";
/// The catalog's mean text vector, which either kind may have.
pub(super) const CENTRE: &str = "text.centre";

/// What the file says about itself, one JSON text under `ictflow` in the metadata. Fields that
/// aren't named here are left alone: training may note what it likes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Description {
    /// The encoder whose vectors the weights were trained on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) encoder: Option<String>,
    /// The kind of vector.
    pub(super) kind: String,
    /// The seed of untrained weights.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) seed: Option<u64>,
    /// Whether anybody trained them.
    pub(super) trained: bool,
}

/// A file that has passed every check.
pub(super) struct Checked {
    pub(super) kind: Kind,
    pub(super) shape: Shape,
    /// `None` where the file doesn't describe itself: then it counts as trained.
    pub(super) description: Option<Description>,
    /// Every tensor of the kind by name, row by row.
    pub(super) values: HashMap<String, Vec<f32>>,
    /// `text.centre`, where the file has it.
    pub(super) centre: Option<Vec<i16>>,
}

/// Reads and checks a file of any kind.
pub(super) fn read(bytes: &[u8]) -> Result<Checked, WeightsError> {
    let unreadable = |e: &dyn std::fmt::Display| WeightsError::Unreadable { detail: e.to_string() };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| unreadable(&e))?;
    let description = description(header.metadata().as_ref())?;
    let kind = match &description {
        Some(d) => Kind::of(&d.kind).ok_or_else(|| WeightsError::Kind { found: d.kind.clone() })?,
        None => Kind::Decoder,
    };
    let file = SafeTensors::deserialize(bytes).map_err(|e| unreadable(&e))?;
    let shape = shape_of(&file)?;
    let mut values = HashMap::new();
    for Tensor { name, shape: expected, fill } in shape.tensors(kind) {
        let read = values_of(&file, &name, &expected)?;
        if matches!(fill, Fill::Hashed) && read[..shape.d].iter().any(|x| *x != 0.0) {
            return Err(WeightsError::AbsentRow { name });
        }
        values.insert(name, read);
    }
    let has_centre = file.names().contains(&CENTRE);
    let centre = if has_centre { Some(centre_of(&file, shape.text)?) } else { None };
    let mut unexpected: Vec<&str> = file.names();
    unexpected.retain(|name| !values.contains_key(*name) && *name != CENTRE);
    unexpected.sort_unstable();
    match unexpected.first() {
        Some(name) => Err(WeightsError::Unexpected { name: (*name).to_owned() }),
        None => Ok(Checked { kind, shape, description, values, centre }),
    }
}

/// The description in the metadata.
fn description(metadata: Option<&HashMap<String, String>>) -> Result<Option<Description>, WeightsError> {
    let Some(text) = metadata.and_then(|m| m.get(METADATA)) else {
        return Ok(None);
    };
    serde_json::from_str(text).map(Some).map_err(|e| WeightsError::Metadata { detail: e.to_string() })
}

/// The free sizes, from the tables and `text.0.weight`.
fn shape_of(file: &SafeTensors<'_>) -> Result<Shape, WeightsError> {
    let matrix = |name: &str, expected: &str| -> Result<[usize; 2], WeightsError> {
        let tensor = file.tensor(name).map_err(|_| WeightsError::Missing { name: name.to_owned() })?;
        <[usize; 2]>::try_from(tensor.shape()).map_err(|_| WeightsError::Shape {
            name: name.to_owned(),
            expected: expected.to_owned(),
            found: tensor.shape().to_vec(),
        })
    };
    let [user_rows, d] = matrix("user.weight", "[rows, d]")?;
    let [item_rows, _] = matrix("item.weight", "[rows, d]")?;
    let [creator_rows, _] = matrix("creator.weight", "[rows, d]")?;
    let [category_rows, _] = matrix("category.weight", "[rows, d]")?;
    let [_, text] = matrix("text.0.weight", "[256, text width]")?;
    let shape = Shape { d, text, user_rows, item_rows, creator_rows, category_rows };
    shape.check()?;
    Ok(shape)
}

/// The values of a tensor of a known shape: f32 and finite.
fn values_of(file: &SafeTensors<'_>, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightsError> {
    let tensor = file.tensor(name).map_err(|_| WeightsError::Missing { name: name.to_owned() })?;
    if tensor.shape() != expected {
        return Err(WeightsError::Shape {
            name: name.to_owned(),
            expected: format!("{expected:?}"),
            found: tensor.shape().to_vec(),
        });
    }
    if tensor.dtype() != Dtype::F32 {
        return Err(WeightsError::Type { name: name.to_owned(), found: tensor.dtype().to_string() });
    }
    let read: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    match read.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(WeightsError::NotFinite { name: name.to_owned(), index }),
        None => Ok(read),
    }
}

/// `text.centre`: integers of 16 bits, kept as f32 like all tensors of the file.
fn centre_of(file: &SafeTensors<'_>, text: usize) -> Result<Vec<i16>, WeightsError> {
    let values = values_of(file, CENTRE, &[text])?;
    let component = |(index, found): (usize, &f32)| {
        let component = *found as i16;
        match f32::from(component) == *found {
            true => Ok(component),
            false => Err(WeightsError::NotQuantised { name: CENTRE.to_owned(), index, found: *found }),
        }
    };
    values.iter().enumerate().map(component).collect()
}

/// Writes a file. One entry of metadata only: the library keeps it in a hash map, and the order of
/// several would change from run to run.
pub(super) fn write(
    tensors: &[(String, Vec<usize>, Vec<u8>)],
    description: &Description,
) -> Result<Vec<u8>, WeightsError> {
    let unreadable = |e: &dyn std::fmt::Display| WeightsError::Unreadable { detail: e.to_string() };
    let text = serde_json::to_string(description).map_err(|e| unreadable(&e))?;
    let mut views = Vec::with_capacity(tensors.len());
    for (name, shape, bytes) in tensors {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| unreadable(&e))?;
        views.push((name.as_str(), view));
    }
    serialize(views, Some(HashMap::from([(METADATA.to_owned(), text)]))).map_err(|e| unreadable(&e))
}
