//! Checked weights, laid out for serving.
//!
//! The contract is `schemas/weights.md`; `file` reads and checks it.

use super::attention::Attention;
use super::decoder::{Decoder, Layer};
use super::error::WeightsError;
use super::file::{self, Checked};
use super::kernel::Linear;
use super::shape::{
    FIELDS, ITEM_FIELDS, Kind, NEIGHBOUR_HIDDEN, SAMPLE_HIDDEN, SOURCE_SCALARS, SOURCES, Shape, TEXT_HIDDEN,
    USER_FIELDS,
};
use ictflow_schemas::framing::{hashed_row, hex};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

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
    /// [D] in units of 2^-14.
    centre: Vec<i16>,
    pub(super) user: Table,
    pub(super) item: Table,
    pub(super) creator: Table,
    pub(super) category: Table,
    /// G: D to 256 to d.
    pub(super) text: [Linear; 2],
    /// The columns of H's first layer that depend on the user and the history, with its bias.
    pub(super) sample_user: Linear,
    /// Those that depend on the item alone.
    pub(super) sample_item: Linear,
    /// H's second layer.
    pub(super) sample_out: Linear,
    reader: Reader,
}

/// What makes the vector of a query token and of what was retrieved for it.
#[derive(Clone, Debug)]
enum Reader {
    /// Demonstrations: their labels' tokens [2, d] (negative, positive), and the layers.
    Decoder(Vec<f32>, Box<Decoder>),
    /// Neighbours.
    Attention(Box<Attention>),
}

impl Weights {
    /// Reads and checks a safetensors file.
    ///
    /// # Errors
    /// The first thing that is wrong with it, by name.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, WeightsError> {
        let file = file::read(bytes)?;
        let sha256 = hex(&Sha256::digest(bytes));
        let version = match &file.description {
            Some(description) if !description.trained => format!("untrained-{}", &sha256[..16]),
            _ => sha256,
        };
        Ok(assemble(file, version))
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

    /// The kind of vector that they make.
    pub fn kind(&self) -> Kind {
        match self.reader {
            Reader::Decoder(..) => Kind::Decoder,
            Reader::Attention(_) => Kind::Attention,
        }
    }

    /// The catalog's mean text vector m, D components in units of 2^-14: centred text similarity
    /// compares e − m. Zeros where the file has none.
    pub fn text_centre(&self) -> &[i16] {
        &self.centre
    }

    /// The decoder's part: the labels' tokens and the layers.
    ///
    /// # Panics
    /// With weights of another kind: a job has compared the kind at start.
    pub(super) fn decoder(&self) -> (&[f32], &Decoder) {
        match &self.reader {
            Reader::Decoder(label, decoder) => (label, decoder),
            Reader::Attention(_) => panic!("weights of the kind `attention` read no demonstrations"),
        }
    }

    /// The part of attention over neighbours.
    ///
    /// # Panics
    /// With weights of another kind: a job has compared the kind at start.
    pub(super) fn attention(&self) -> &Attention {
        match &self.reader {
            Reader::Attention(attention) => attention,
            Reader::Decoder(..) => panic!("weights of the kind `decoder` read no neighbours"),
        }
    }
}

/// Takes each tensor of a checked file once; it has every name of its kind.
struct Take(HashMap<String, Vec<f32>>);

impl Take {
    fn values(&mut self, name: &str) -> Vec<f32> {
        self.0.remove(name).unwrap_or_default()
    }

    /// `name.weight`, without a bias.
    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Linear {
        Linear::from_rows(&self.values(&format!("{name}.weight")), inputs, outputs, None)
    }

    /// `name.weight` and `name.bias`.
    fn biased(&mut self, name: &str, inputs: usize, outputs: usize) -> Linear {
        let bias = self.values(&format!("{name}.bias"));
        Linear::from_rows(&self.values(&format!("{name}.weight")), inputs, outputs, Some(&bias))
    }
}

/// Lays checked values out for serving.
fn assemble(file: Checked, version: String) -> Weights {
    let shape = file.shape;
    let Shape { d, text, .. } = shape;
    let mut take = Take(file.values);
    let reader = match file.kind {
        Kind::Decoder => Reader::Decoder(take.values("label.weight"), Box::new(decoder(&mut take, &shape))),
        Kind::Attention => Reader::Attention(Box::new(attention(&mut take, d))),
    };
    let first = take.values("sample.0.weight");
    let columns = |fields: &'static [usize], bias: Option<&[f32]>| {
        Linear::new(fields.len() * d, SAMPLE_HIDDEN, bias, |o, i| {
            first[o * FIELDS * d + fields[i / d] * d + i % d]
        })
    };
    let table = |name, rows: usize, values| Table { name, rows: rows as u32, d, values };
    Weights {
        shape,
        version,
        encoder: file.description.and_then(|d| d.encoder),
        centre: file.centre.unwrap_or_else(|| vec![0; text]),
        user: table("user", shape.user_rows, take.values("user.weight")),
        item: table("item", shape.item_rows, take.values("item.weight")),
        creator: table("creator", shape.creator_rows, take.values("creator.weight")),
        category: table("category", shape.category_rows, take.values("category.weight")),
        text: [take.biased("text.0", text, TEXT_HIDDEN), take.biased("text.2", TEXT_HIDDEN, d)],
        sample_user: columns(&USER_FIELDS, Some(&take.values("sample.0.bias"))),
        sample_item: columns(&ITEM_FIELDS, None),
        sample_out: take.biased("sample.2", SAMPLE_HIDDEN, d),
        reader,
    }
}

fn decoder(take: &mut Take, shape: &Shape) -> Decoder {
    let d = shape.d;
    let ffn = shape.ffn();
    let layers = std::array::from_fn(|l| {
        let name = |part: &str| format!("decoder.layers.{l}.{part}");
        Layer {
            attention_norm: take.values(&name("attention_norm.weight")),
            q: take.linear(&name("q"), d, d),
            k: take.linear(&name("k"), d, d),
            v: take.linear(&name("v"), d, d),
            o: take.linear(&name("o"), d, d),
            ffn_norm: take.values(&name("ffn_norm.weight")),
            w1: take.linear(&name("w1"), d, ffn),
            w3: take.linear(&name("w3"), d, ffn),
            w2: take.linear(&name("w2"), ffn, d),
        }
    });
    Decoder::new(d, layers, take.values("decoder.norm.weight"))
}

fn attention(take: &mut Take, d: usize) -> Attention {
    let hidden = NEIGHBOUR_HIDDEN;
    let [labels, sources] = ["label", "source"].map(|name| take.values(&format!("attention.{name}.weight")));
    let key = take.values("attention.key.weight");
    let user = take.values("attention.user.weight");
    let bias = take.values("attention.bias");
    let by_source = |values: Vec<f32>| std::array::from_fn(|s| values[s]);
    Attention {
        d,
        user: Linear::from_rows(&user, d, hidden, Some(&bias)),
        item: take.linear("attention.item", ITEM_FIELDS.len() * d, hidden),
        kinds: Attention::kinds(&labels, &sources),
        scalars: Attention::scalars(&take.values("attention.scalars.weight")),
        query: take.linear("attention.query", d, d),
        key: Linear::new(d, hidden, None, |o, i| key[i * hidden + o]),
        value: take.linear("attention.value", hidden, d),
        theta: by_source(take.values("attention.theta")),
        phi: by_source(take.values("attention.phi")),
        out: take.biased("attention.out", SOURCES * (d + SOURCE_SCALARS), d),
        scale: 1.0 / (d as f32).sqrt(),
    }
}
