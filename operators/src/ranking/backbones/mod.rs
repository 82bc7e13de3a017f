//! The backbones: models that score a sample by its ids, and by whatever else it brings.
//!
//! ```text
//! ids ── tables ── 7 field vectors [B, d] ─┐
//! vector w [B, d] ─────────────────────────┤
//! texts 2 × [B, d] ────────────────────────┼─ backbone ── logit [B]
//! scalars [B, S] ──────────────────────────┘
//! ```
//!
//! The fields: user, item, creator, mean category, and of the history mean item, mean creator and mean category
//! (over all categories of all entries). The tables belong to the caller: they are shared with the module that
//! makes w, and gradients reach them.
//!
//! | backbone | where w goes | texts and scalars | first values |
//! | --- | --- | --- | --- |
//! | `deepfm` | linear term, deep net; not in the FM term | deep net; scalars in the linear part too | PyTorch's |
//! | `xdeepfm` | linear term, 8th field of the CIN, deep net | as `deepfm` | xavier-normal |
//! | `autoint` | 8th field of the attention, deep net | deep net | xavier-normal |
//! | `dcn` | GELU(linear(w)) to both nets | both nets | xavier-normal |
//! | `dcnv2` | both nets | both nets | xavier-normal |
//! | `din` | last net | last net | xavier-normal |
//!
//! Variables are named `backbone.*`, files hold them by these names.

mod autoint;
mod dcn;
mod dcnv2;
mod deepfm;
mod din;
mod fields;
mod wide;
mod xdeepfm;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use super::RankingError;
use super::ids::{Ids, Tables};
use super::layers::{Maker, Phase};
use super::variables::{Init, Variables};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// The inputs of a batch of B samples. All tensors are on the CPU, ids u32, all else f32.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The ids.
    pub ids: Ids,
    /// The tables that they index, of width d.
    pub tables: Tables,
    /// The item's text and the history's pooled text, both projected to [B, d].
    pub text: Option<[Tensor; 2]>,
    /// Scalars [B, S]: votes, like-rates, counts.
    pub scalars: Option<Tensor>,
    /// w [B, d].
    pub vector: Option<Tensor>,
}

/// A model from a batch to its logits. What it reads of a sample's tables and inputs stands in its file's doc.
///
/// In [`Phase::Serving`] it is a pure function of variables and inputs. In [`Phase::Training`] dropout draws from
/// the step's masks, and batch normalisation moves its running statistics.
pub trait Backbone: std::fmt::Debug + Send + Sync {
    /// Which backbone this is.
    fn kind(&self) -> Kind;

    /// The logits `[B]` of a positive label.
    ///
    /// # Errors
    /// [`RankingError::Input`] where the batch hasn't the inputs that the settings name,
    /// [`RankingError::Tensor`] where an id is beyond its table, [`RankingError::Batch`] where batch
    /// normalisation has one row to learn from.
    fn logits(&self, inputs: &Inputs, phase: &mut Phase) -> Result<Tensor, RankingError>;
}

/// The backbones by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Factorisation machine and deep net.
    DeepFm,
    /// Compressed interaction network and deep net.
    XDeepFm,
    /// Self-attention over fields and deep net.
    AutoInt,
    /// Cross network and deep net.
    Dcn,
    /// Cross network of low-rank experts and deep net.
    DcnV2,
    /// Attention of the item over the history.
    Din,
}

impl Kind {
    /// All of them, in the order of tables in reports.
    pub const ALL: [Kind; 6] =
        [Kind::DeepFm, Kind::XDeepFm, Kind::AutoInt, Kind::Dcn, Kind::DcnV2, Kind::Din];

    /// The name in files, options and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::DeepFm => "deepfm",
            Kind::XDeepFm => "xdeepfm",
            Kind::AutoInt => "autoint",
            Kind::Dcn => "dcn",
            Kind::DcnV2 => "dcnv2",
            Kind::Din => "din",
        }
    }

    /// The backbone of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// How its variables, and the tables that it is trained with, are drawn.
    #[must_use]
    pub fn init(self) -> Init {
        match self {
            Kind::DeepFm => Init::Torch,
            Kind::XDeepFm | Kind::AutoInt | Kind::Dcn | Kind::DcnV2 | Kind::Din => Init::XavierNormal,
        }
    }

    /// Makes its variables in the set and gives the model.
    ///
    /// # Errors
    /// [`RankingError::Size`] for settings that it can't have, [`RankingError::Twice`] where the set already
    /// holds a backbone.
    pub fn build(
        self,
        settings: &Settings,
        variables: &mut Variables,
    ) -> Result<Box<dyn Backbone>, RankingError> {
        settings.check()?;
        let maker = &mut Maker { variables, init: self.init() };
        Ok(match self {
            Kind::DeepFm => Box::new(deepfm::DeepFm::new(settings, maker)?),
            Kind::XDeepFm => Box::new(xdeepfm::XDeepFm::new(settings, maker)?),
            Kind::AutoInt => Box::new(autoint::AutoInt::new(settings, maker)?),
            Kind::Dcn => Box::new(dcn::Dcn::new(settings, maker)?),
            Kind::DcnV2 => Box::new(dcnv2::DcnV2::new(settings, maker)?),
            Kind::Din => Box::new(din::Din::new(settings, maker)?),
        })
    }
}

/// The sizes of a backbone. The defaults are the paper's, for ids alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// d: the width of the tables, of w and of the projected texts.
    pub d: usize,
    /// Whether batches bring two text vectors.
    pub text: bool,
    /// S: how many scalars batches bring.
    pub scalars: usize,
    /// Whether batches bring w.
    pub vector: bool,
    /// Hidden widths of the deep net.
    pub hidden: Vec<usize>,
    /// The share of values that dropout takes before each hidden layer of the deep net.
    pub dropout: f64,
    /// xDeepFM: maps of each layer of the CIN, even but for the last.
    pub cin: Vec<usize>,
    /// AutoInt: layers of attention.
    pub attention_layers: usize,
    /// AutoInt: heads of a layer.
    pub attention_heads: usize,
    /// AutoInt: width of a layer, all heads together.
    pub attention_width: usize,
    /// DCN: cross layers.
    pub cross_layers: usize,
    /// DCNv2: cross layers.
    pub mixed_layers: usize,
    /// DCNv2: experts of a layer.
    pub experts: usize,
    /// DCNv2: rank of an expert.
    pub rank: usize,
    /// DIN: hidden widths of the net that weighs a history entry.
    pub entry_hidden: [usize; 2],
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            d: 32,
            text: false,
            scalars: 0,
            vector: false,
            hidden: vec![200, 80],
            dropout: 0.1,
            cin: vec![100, 100, 100],
            attention_layers: 1,
            attention_heads: 2,
            attention_width: 64,
            cross_layers: 3,
            mixed_layers: 2,
            experts: 4,
            rank: 4,
            entry_hidden: [64, 16],
        }
    }
}

/// Widths and numbers of layers beyond this are taken for a mistake.
const LARGEST: usize = 1 << 16;

impl Settings {
    /// Checks what every backbone asks for.
    ///
    /// # Errors
    /// [`RankingError::Size`] for the first size out of range.
    pub fn check(&self) -> Result<(), RankingError> {
        let mut sizes = vec![
            ("the width d", self.d),
            ("the number of attention layers", self.attention_layers),
            ("the number of attention heads", self.attention_heads),
            ("the width of attention", self.attention_width),
            ("the number of cross layers", self.cross_layers),
            ("the number of mixed cross layers", self.mixed_layers),
            ("the number of experts", self.experts),
            ("the rank of an expert", self.rank),
            ("the number of hidden layers", self.hidden.len()),
            ("the number of layers of the interaction network", self.cin.len()),
        ];
        sizes.extend(self.hidden.iter().map(|w| ("a hidden width", *w)));
        sizes.extend(self.cin.iter().map(|w| ("a width of the interaction network", *w)));
        sizes.extend(self.entry_hidden.iter().map(|w| ("a hidden width of the history's net", *w)));
        for (what, found) in sizes {
            if !(1..=LARGEST).contains(&found) {
                return Err(RankingError::Size { what, found, expected: "1 to 65,536" });
            }
        }
        let size = |what, found, expected| Err(RankingError::Size { what, found, expected });
        if self.scalars > LARGEST {
            return size("the number of scalars", self.scalars, "0 to 65,536");
        }
        if !self.attention_width.is_multiple_of(self.attention_heads) {
            return size("the width of attention", self.attention_width, "a multiple of the heads");
        }
        let inner = self.cin.split_last().map_or(&[][..], |(_, inner)| inner);
        if let Some(odd) = inner.iter().find(|w| !w.is_multiple_of(2)) {
            return size("a width of the interaction network", *odd, "even but for the last");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let percent = (self.dropout * 100.0) as usize;
            return size("dropout in percent", percent, "0 or more and below 100");
        }
        Ok(())
    }
}
