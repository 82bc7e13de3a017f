//! The file of weights: what stands in it, how it is checked, and weights that nobody trained.
//!
//! The contract is `schemas/weights.md`. Loading checks every name, type, shape and value before
//! anything is computed, so a wrong file is a named error at start and never a wrong vector.

use super::decoder::{Decoder, Layer};
use super::kernel::Linear;
use ictflow_schemas::framing::{hashed_row, hex};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Decoder layers.
pub const LAYERS: usize = 2;
/// Attention heads.
pub const HEADS: usize = 2;
/// Hidden width of the text net G.
pub const TEXT_HIDDEN: usize = 256;
/// Hidden width of the sample net H.
pub const SAMPLE_HIDDEN: usize = 128;
/// Parts of a sample: the input of H has 9 d values.
pub const FIELDS: usize = 9;
/// The most demonstrations that one vector may stand on.
pub const MAX_DEMONSTRATIONS: usize = 64;

/// The key under which the file's metadata describes the weights.
const METADATA: &str = "ictflow";
/// The only kind of vector that these weights make.
const KIND: &str = "decoder";
/// Widths and rows beyond these are taken for a mistake.
const LARGEST_WIDTH: usize = 4096;
const MOST_ROWS: usize = 1 << 28;

/// Why weights are refused.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The bytes aren't a safetensors file.
    #[error(
        "the weights are not a safetensors file: {detail} (hint: the file may be cut or of another format)"
    )]
    Unreadable {
        /// What the reader found.
        detail: String,
    },
    /// The metadata under `ictflow` doesn't read.
    #[error(
        "the weights' metadata `ictflow` doesn't read: {detail} (hint: schemas/weights.md has its fields)"
    )]
    Metadata {
        /// What the reader found.
        detail: String,
    },
    /// The weights make another kind of vector.
    #[error(
        "the weights make vectors of the kind `{found}`, this build makes `decoder` (hint: use weights of that kind or a newer build)"
    )]
    Kind {
        /// The kind that the file names.
        found: String,
    },
    /// A tensor isn't there.
    #[error("tensor `{name}` is missing (hint: schemas/weights.md lists all names)")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor that the contract doesn't know.
    #[error(
        "tensor `{name}` is not part of the contract (hint: export the serving tensors of schemas/weights.md only)"
    )]
    Unexpected {
        /// Its name.
        name: String,
    },
    /// A tensor isn't f32.
    #[error("tensor `{name}` has the type {found}, expected F32 (hint: convert before exporting)")]
    Type {
        /// Its name.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor has another shape.
    #[error(
        "tensor `{name}` has the shape {found:?}, expected {expected} (hint: d and the text width come from `user.weight` and `text.0.weight`)"
    )]
    Shape {
        /// Its name.
        name: String,
        /// The shape that the other tensors ask for.
        expected: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A value is NaN or infinite.
    #[error("tensor `{name}` is not finite at element {index} (hint: the training diverged)")]
    NotFinite {
        /// Its name.
        name: String,
        /// The element, counted row by row.
        index: usize,
    },
    /// Row 0 of a hashed table holds something.
    #[error("row 0 of `{name}` is not all zeros (hint: it stands for an absent id; keep it out of training)")]
    AbsentRow {
        /// The tensor's name.
        name: String,
    },
    /// A width or a number of rows is out of range.
    #[error("{what} is {found}, expected {expected} (hint: see the limits in schemas/weights.md)")]
    Limit {
        /// Which.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The range.
        expected: &'static str,
    },
}

/// The free sizes of the weights; all other sizes follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// d: the width of every token and of the vector.
    pub d: usize,
    /// D: the encoder's width.
    pub text: usize,
    /// Rows of the user table, row 0 included.
    pub user_rows: usize,
    /// Rows of the item table, row 0 included.
    pub item_rows: usize,
    /// Rows of the creator table, row 0 included.
    pub creator_rows: usize,
    /// Rows of the category table, row 0 included.
    pub category_rows: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            d: 32,
            text: 384,
            user_rows: 1 << 16,
            item_rows: 1 << 16,
            creator_rows: 1 << 13,
            category_rows: 1 << 10,
        }
    }
}

/// How untrained weights fill a tensor.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    /// A hashed table: row 0 zeros, else uniform with variance 1 / d.
    Hashed,
    /// Uniform with variance 1 / d.
    Table,
    /// Uniform in ± sqrt(6 / (inputs + outputs)).
    Xavier,
    /// Zeros.
    Bias,
    /// Ones.
    Norm,
}

/// One tensor of the contract.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) fill: Fill,
}

impl Shape {
    /// F: the hidden width of the feed-forward net, ⌊4 d / 3⌋ rounded up to a multiple of 32.
    pub fn ffn(&self) -> usize {
        (4 * self.d / 3).div_ceil(32) * 32
    }

    /// Checks the limits: d a multiple of 4 (two heads of even width), rows with an absent one.
    ///
    /// # Errors
    /// [`WeightsError::Limit`] for the first size out of range.
    pub fn check(&self) -> Result<(), WeightsError> {
        let width = "1 to 4096";
        let limits = [
            (
                "d",
                self.d,
                self.d.is_multiple_of(2 * HEADS) && (4..=1024).contains(&self.d),
                "a multiple of 4 up to 1024",
            ),
            ("the text width", self.text, (1..=LARGEST_WIDTH).contains(&self.text), width),
        ];
        for (what, found, holds, expected) in limits {
            if !holds {
                return Err(WeightsError::Limit { what, found, expected });
            }
        }
        let rows = [
            ("the number of user rows", self.user_rows),
            ("the number of item rows", self.item_rows),
            ("the number of creator rows", self.creator_rows),
            ("the number of category rows", self.category_rows),
        ];
        for (what, found) in rows {
            if !(2..=MOST_ROWS).contains(&found) {
                return Err(WeightsError::Limit { what, found, expected: "2 to 2^28" });
            }
        }
        Ok(())
    }

    /// Every tensor of the contract, in the order in which untrained weights are drawn.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let Shape { d, text, .. } = *self;
        let ffn = self.ffn();
        let mut tensors = Vec::new();
        let mut tensor = |name: &str, shape: &[usize], fill| {
            tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), fill });
        };
        tensor("user.weight", &[self.user_rows, d], Fill::Hashed);
        tensor("item.weight", &[self.item_rows, d], Fill::Hashed);
        tensor("creator.weight", &[self.creator_rows, d], Fill::Hashed);
        tensor("category.weight", &[self.category_rows, d], Fill::Hashed);
        tensor("label.weight", &[2, d], Fill::Table);
        tensor("text.0.weight", &[TEXT_HIDDEN, text], Fill::Xavier);
        tensor("text.0.bias", &[TEXT_HIDDEN], Fill::Bias);
        tensor("text.2.weight", &[d, TEXT_HIDDEN], Fill::Xavier);
        tensor("text.2.bias", &[d], Fill::Bias);
        tensor("sample.0.weight", &[SAMPLE_HIDDEN, FIELDS * d], Fill::Xavier);
        tensor("sample.0.bias", &[SAMPLE_HIDDEN], Fill::Bias);
        tensor("sample.2.weight", &[d, SAMPLE_HIDDEN], Fill::Xavier);
        tensor("sample.2.bias", &[d], Fill::Bias);
        for l in 0..LAYERS {
            let mut layer = |name: &str, shape: &[usize], fill| {
                tensor(&format!("decoder.layers.{l}.{name}.weight"), shape, fill);
            };
            layer("attention_norm", &[d], Fill::Norm);
            for name in ["q", "k", "v", "o"] {
                layer(name, &[d, d], Fill::Xavier);
            }
            layer("ffn_norm", &[d], Fill::Norm);
            layer("w1", &[ffn, d], Fill::Xavier);
            layer("w3", &[ffn, d], Fill::Xavier);
            layer("w2", &[d, ffn], Fill::Xavier);
        }
        tensor("decoder.norm.weight", &[d], Fill::Norm);
        tensors
    }
}

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

/// A hashed embedding table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    name: &'static str,
    rows: u32,
    d: usize,
    values: Vec<f32>,
}

impl Table {
    /// The row of an id.
    pub(super) fn row_of(&self, id: &str) -> u32 {
        hashed_row(self.name, id, self.rows)
    }

    /// A row's values.
    pub(super) fn row(&self, row: u32) -> &[f32] {
        let start = row as usize * self.d;
        &self.values[start..start + self.d]
    }
}

/// Checked weights, laid out for serving. Read-only: share them between threads by reference.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(super) shape: Shape,
    version: String,
    encoder: Option<String>,
    pub(super) user: Table,
    pub(super) item: Table,
    pub(super) creator: Table,
    pub(super) category: Table,
    /// [2, d]: negative, positive.
    pub(super) label: Vec<f32>,
    /// G: D to 256 to d.
    pub(super) text: [Linear; 2],
    /// The columns of H's first layer that depend on the user and the history, with its bias.
    pub(super) sample_user: Linear,
    /// Those that depend on the item alone.
    pub(super) sample_item: Linear,
    /// H's second layer.
    pub(super) sample_out: Linear,
    pub(super) decoder: Decoder,
}

/// Blocks of a sample's 9 d values that depend on the user and the history.
pub(super) const USER_FIELDS: [usize; 5] = [0, 5, 6, 7, 8];
/// Blocks that depend on the item alone.
pub(super) const ITEM_FIELDS: [usize; 4] = [1, 2, 3, 4];

impl Weights {
    /// Reads and checks a safetensors file.
    ///
    /// # Errors
    /// The first thing that is wrong with it, by name.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, WeightsError> {
        let unreadable = |e: &dyn std::fmt::Display| WeightsError::Unreadable { detail: e.to_string() };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| unreadable(&e))?;
        let description = description(header.metadata().as_ref())?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| unreadable(&e))?;
        let shape = shape_of(&file)?;
        let mut values = read_all(&file, &shape)?;
        let sha256 = hex(&Sha256::digest(bytes));
        let version = match &description {
            Some(description) if !description.trained => format!("untrained-{}", &sha256[..16]),
            _ => sha256,
        };
        Ok(assemble(shape, version, description.and_then(|d| d.encoder), &mut values))
    }

    /// The version as `features` names it: the file's SHA-256 in hex, or `untrained-` and its
    /// first 16 digits where nobody trained the weights.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The encoder that the weights were trained for, where the file names one. Vectors of another
    /// encoder of the same width would pass unnoticed, so a job compares it at start.
    pub fn encoder(&self) -> Option<&str> {
        self.encoder.as_deref()
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }
}

/// The description in the metadata; a file without one counts as trained.
fn description(metadata: Option<&HashMap<String, String>>) -> Result<Option<Description>, WeightsError> {
    let Some(text) = metadata.and_then(|m| m.get(METADATA)) else {
        return Ok(None);
    };
    let description: Description =
        serde_json::from_str(text).map_err(|e| WeightsError::Metadata { detail: e.to_string() })?;
    if description.kind != KIND {
        return Err(WeightsError::Kind { found: description.kind });
    }
    Ok(Some(description))
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

/// Every tensor's values, checked.
fn read_all(file: &SafeTensors<'_>, shape: &Shape) -> Result<HashMap<String, Vec<f32>>, WeightsError> {
    let mut values = HashMap::new();
    for Tensor { name, shape: expected, fill } in shape.tensors() {
        let tensor = file.tensor(&name).map_err(|_| WeightsError::Missing { name: name.clone() })?;
        if tensor.shape() != expected {
            return Err(WeightsError::Shape {
                name,
                expected: format!("{expected:?}"),
                found: tensor.shape().to_vec(),
            });
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(WeightsError::Type { name, found: tensor.dtype().to_string() });
        }
        let read: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(index) = read.iter().position(|x| !x.is_finite()) {
            return Err(WeightsError::NotFinite { name, index });
        }
        if matches!(fill, Fill::Hashed) && read[..shape.d].iter().any(|x| *x != 0.0) {
            return Err(WeightsError::AbsentRow { name });
        }
        values.insert(name, read);
    }
    let mut unexpected: Vec<&str> =
        file.names().into_iter().filter(|name| !values.contains_key(*name)).collect();
    unexpected.sort_unstable();
    match unexpected.first() {
        Some(name) => Err(WeightsError::Unexpected { name: (*name).to_owned() }),
        None => Ok(values),
    }
}

/// Lays checked values out for serving.
fn assemble(
    shape: Shape,
    version: String,
    encoder: Option<String>,
    values: &mut HashMap<String, Vec<f32>>,
) -> Weights {
    let Shape { d, text, .. } = shape;
    let ffn = shape.ffn();
    // `read_all` has put every name of the contract in; each is taken once.
    let mut take = |name: &str| values.remove(name).unwrap_or_default();
    let table = |name, rows: usize, values| Table { name, rows: rows as u32, d, values };
    let first = take("sample.0.weight");
    let columns = |fields: &'static [usize], bias: Option<&[f32]>| {
        Linear::new(fields.len() * d, SAMPLE_HIDDEN, bias, |o, i| {
            first[o * FIELDS * d + fields[i / d] * d + i % d]
        })
    };
    Weights {
        version,
        encoder,
        user: table("user", shape.user_rows, take("user.weight")),
        item: table("item", shape.item_rows, take("item.weight")),
        creator: table("creator", shape.creator_rows, take("creator.weight")),
        category: table("category", shape.category_rows, take("category.weight")),
        label: take("label.weight"),
        text: [
            Linear::from_rows(&take("text.0.weight"), text, TEXT_HIDDEN, Some(&take("text.0.bias"))),
            Linear::from_rows(&take("text.2.weight"), TEXT_HIDDEN, d, Some(&take("text.2.bias"))),
        ],
        sample_user: columns(&USER_FIELDS, Some(&take("sample.0.bias"))),
        sample_item: columns(&ITEM_FIELDS, None),
        sample_out: Linear::from_rows(
            &take("sample.2.weight"),
            SAMPLE_HIDDEN,
            d,
            Some(&take("sample.2.bias")),
        ),
        decoder: {
            let layers = std::array::from_fn(|l| {
                let mut part = |name: &str| take(&format!("decoder.layers.{l}.{name}.weight"));
                Layer {
                    attention_norm: part("attention_norm"),
                    q: Linear::from_rows(&part("q"), d, d, None),
                    k: Linear::from_rows(&part("k"), d, d, None),
                    v: Linear::from_rows(&part("v"), d, d, None),
                    o: Linear::from_rows(&part("o"), d, d, None),
                    ffn_norm: part("ffn_norm"),
                    w1: Linear::from_rows(&part("w1"), d, ffn, None),
                    w3: Linear::from_rows(&part("w3"), d, ffn, None),
                    w2: Linear::from_rows(&part("w2"), ffn, d, None),
                }
            });
            Decoder::new(d, layers, take("decoder.norm.weight"))
        },
        shape,
    }
}

/// A safetensors file of weights that nobody trained: the same bytes for the same seed and shape,
/// on every machine. A job without a trained file serves these, and its vectors say so.
///
/// Tensors are drawn one after the other in the order of `schemas/weights.md`, element by element,
/// from one splitmix64 stream that starts at the seed. An element is (2 u - 1) · limit with
/// u = (the number's top 24 bits) / 2^24.
///
/// # Errors
/// [`WeightsError::Limit`] for a shape out of range.
pub fn untrained(seed: u64, shape: Shape) -> Result<Vec<u8>, WeightsError> {
    shape.check()?;
    let mut stream = SplitMix64(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shape
        .tensors()
        .into_iter()
        .map(|tensor| {
            let values = fill(&tensor, &mut stream);
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (tensor.name, tensor.shape, bytes)
        })
        .collect();
    let description = Description { encoder: None, kind: KIND.to_owned(), seed: Some(seed), trained: false };
    write(&tensors, &description)
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

/// The values of an untrained tensor.
fn fill(tensor: &Tensor, stream: &mut SplitMix64) -> Vec<f32> {
    let count: usize = tensor.shape.iter().product();
    let width = *tensor.shape.last().unwrap_or(&1);
    let limit = match tensor.fill {
        Fill::Hashed | Fill::Table => (3.0 / width as f64).sqrt(),
        Fill::Xavier => (6.0 / (width + tensor.shape[0]) as f64).sqrt(),
        Fill::Bias => return vec![0.0; count],
        Fill::Norm => return vec![1.0; count],
    };
    let mut values: Vec<f32> = (0..count)
        .map(|_| {
            let unit = (stream.next() >> 40) as f64 / (1u64 << 24) as f64;
            ((2.0 * unit - 1.0) * limit) as f32
        })
        .collect();
    if matches!(tensor.fill, Fill::Hashed) {
        values[..width].fill(0.0);
    }
    values
}

/// The generator splitmix64: the state grows by a constant, the output is a mix of it.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// The mix of splitmix64.
pub(super) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
