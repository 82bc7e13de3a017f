//! The contract of a file of weights: the kinds of vector, the sizes, and the tensors of each kind.

use super::error::WeightsError;
pub use ictflow_schemas::feature::VectorKind as Kind;

/// Decoder layers.
pub const LAYERS: usize = 2;
/// Attention heads of the decoder.
pub const HEADS: usize = 2;
/// Hidden width of the text net G.
pub const TEXT_HIDDEN: usize = 256;
/// Hidden width of the sample net H.
pub const SAMPLE_HIDDEN: usize = 128;
/// Parts of a sample: the input of H has 9 d values.
pub const FIELDS: usize = 9;
/// Blocks of a sample's 9 d values that depend on the user and the history.
pub(super) const USER_FIELDS: [usize; 5] = [0, 5, 6, 7, 8];
/// Blocks that depend on the item alone.
pub(super) const ITEM_FIELDS: [usize; 4] = [1, 2, 3, 4];
/// The most demonstrations that one vector of the kind `decoder` may stand on.
pub const MAX_DEMONSTRATIONS: usize = 64;

/// Sources of neighbours that a vector of the kind `attention` reads: `same_item`, `same_user`.
pub const SOURCES: usize = 2;
/// The most neighbours that it reads of each source.
pub const MAX_NEIGHBOURS: usize = 16;
/// Hidden width of a neighbour.
pub const NEIGHBOUR_HIDDEN: usize = 64;
/// Scalars of a neighbour: score, age, residual.
pub(super) const NEIGHBOUR_SCALARS: usize = 3;
/// What a source gives beside its d values: the weighted residual, the weighted label, the count,
/// the sum of squared weights.
pub(super) const SOURCE_SCALARS: usize = 4;

/// Widths and rows beyond these are taken for a mistake.
const LARGEST_WIDTH: usize = 4096;
const MOST_ROWS: usize = 1 << 28;

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

/// How a tensor is filled before anybody trained it.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    /// A hashed table: row 0 zeros, else uniform with variance 1 / width.
    Hashed,
    /// Uniform with variance 1 / width.
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

/// Collects tensors in the order in which they are drawn.
#[derive(Default)]
pub(super) struct Tensors(pub(super) Vec<Tensor>);

impl Tensors {
    pub(super) fn add(&mut self, name: &str, shape: &[usize], fill: Fill) {
        self.0.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), fill });
    }
}

impl Shape {
    /// F: the hidden width of the feed-forward net, ⌊4 d / 3⌋ rounded up to a multiple of 32.
    pub fn ffn(&self) -> usize {
        (4 * self.d / 3).div_ceil(32) * 32
    }

    /// Checks the widths: d a multiple of 4 (two heads of even width).
    pub(super) fn check_widths(&self) -> Result<(), WeightsError> {
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
        Ok(())
    }

    /// Checks the limits: the widths, and rows with an absent one.
    ///
    /// # Errors
    /// [`WeightsError::Limit`] for the first size out of range.
    pub fn check(&self) -> Result<(), WeightsError> {
        self.check_widths()?;
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

    /// Every tensor that a kind needs, in the order in which untrained weights are drawn.
    pub(super) fn tensors(&self, kind: Kind) -> Vec<Tensor> {
        let mut tensors = Tensors::default();
        self.table_tensors(&mut tensors);
        match kind {
            Kind::Decoder => {
                tensors.add("label.weight", &[2, self.d], Fill::Table);
                self.sample_tensors(&mut tensors);
                self.decoder_tensors(&mut tensors);
            }
            Kind::Attention => {
                self.sample_tensors(&mut tensors);
                self.attention_tensors(&mut tensors);
            }
        }
        tensors.0
    }

    /// The hashed tables.
    pub(super) fn table_tensors(&self, tensors: &mut Tensors) {
        tensors.add("user.weight", &[self.user_rows, self.d], Fill::Hashed);
        tensors.add("item.weight", &[self.item_rows, self.d], Fill::Hashed);
        tensors.add("creator.weight", &[self.creator_rows, self.d], Fill::Hashed);
        tensors.add("category.weight", &[self.category_rows, self.d], Fill::Hashed);
    }

    /// G and H.
    pub(super) fn sample_tensors(&self, tensors: &mut Tensors) {
        let Shape { d, text, .. } = *self;
        tensors.add("text.0.weight", &[TEXT_HIDDEN, text], Fill::Xavier);
        tensors.add("text.0.bias", &[TEXT_HIDDEN], Fill::Bias);
        tensors.add("text.2.weight", &[d, TEXT_HIDDEN], Fill::Xavier);
        tensors.add("text.2.bias", &[d], Fill::Bias);
        tensors.add("sample.0.weight", &[SAMPLE_HIDDEN, FIELDS * d], Fill::Xavier);
        tensors.add("sample.0.bias", &[SAMPLE_HIDDEN], Fill::Bias);
        tensors.add("sample.2.weight", &[d, SAMPLE_HIDDEN], Fill::Xavier);
        tensors.add("sample.2.bias", &[d], Fill::Bias);
    }

    /// The layers of the decoder.
    pub(super) fn decoder_tensors(&self, tensors: &mut Tensors) {
        let d = self.d;
        let ffn = self.ffn();
        for l in 0..LAYERS {
            let mut layer = |name: &str, shape: &[usize], fill| {
                tensors.add(&format!("decoder.layers.{l}.{name}.weight"), shape, fill);
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
        tensors.add("decoder.norm.weight", &[d], Fill::Norm);
    }

    /// Attention over neighbours.
    pub(super) fn attention_tensors(&self, tensors: &mut Tensors) {
        let d = self.d;
        let hidden = NEIGHBOUR_HIDDEN;
        tensors.add("attention.user.weight", &[hidden, d], Fill::Xavier);
        tensors.add("attention.item.weight", &[hidden, ITEM_FIELDS.len() * d], Fill::Xavier);
        tensors.add("attention.label.weight", &[2, hidden], Fill::Table);
        tensors.add("attention.scalars.weight", &[hidden, NEIGHBOUR_SCALARS], Fill::Xavier);
        tensors.add("attention.bias", &[hidden], Fill::Bias);
        tensors.add("attention.source.weight", &[SOURCES, hidden], Fill::Table);
        tensors.add("attention.key.weight", &[d, hidden], Fill::Xavier);
        tensors.add("attention.value.weight", &[d, hidden], Fill::Xavier);
        tensors.add("attention.query.weight", &[d, d], Fill::Xavier);
        tensors.add("attention.theta", &[SOURCES], Fill::Norm);
        tensors.add("attention.phi", &[SOURCES], Fill::Bias);
        tensors.add("attention.out.weight", &[d, SOURCES * (d + SOURCE_SCALARS)], Fill::Xavier);
        tensors.add("attention.out.bias", &[d], Fill::Bias);
    }
}
