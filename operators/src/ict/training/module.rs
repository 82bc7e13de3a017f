//! The variables of a module: made from a seed, read from a file of weights, written to one.

use super::super::file::{self, CENTRE, Description};
use super::super::shape::{Fill, Tensors};
use super::super::untrained::fill;
use super::super::{Kind, Shape, TEXT_HIDDEN, WeightsError};
use super::{HashedRows, TrainingError};
use crate::ranking::ids::Tables;
use crate::splitmix::SplitMix64;
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeMap;

/// What makes the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Attention over the neighbours of two sources: the kind `attention`.
    Attention,
    /// The causal decoder over x, c, y of each demonstration, with the reconstruction head: the kind
    /// `decoder`.
    Decoder,
    /// The decoder without c tokens, and so without reconstruction. For comparison only.
    DecoderWithoutCot,
    /// The mean of all tokens instead of the decoder's layers. For comparison only.
    Mean,
}

impl Architecture {
    /// The kind of the file that serves it, where there is one.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Architecture::Attention => Some(Kind::Attention),
            Architecture::Decoder => Some(Kind::Decoder),
            Architecture::DecoderWithoutCot | Architecture::Mean => None,
        }
    }

    /// Every variable, in the order in which they are drawn: those of the file, then the
    /// reconstruction head.
    pub(super) fn tensors(self, shape: &Shape) -> Tensors {
        let mut tensors = Tensors::default();
        if let Some(kind) = self.kind() {
            tensors.0 = shape.tensors(kind);
        } else {
            shape.table_tensors(&mut tensors);
            tensors.add("label.weight", &[2, shape.d], Fill::Table);
            shape.sample_tensors(&mut tensors);
        }
        if self == Architecture::DecoderWithoutCot {
            shape.decoder_tensors(&mut tensors);
        }
        if self == Architecture::Decoder {
            tensors.add("reconstruction.0.weight", &[TEXT_HIDDEN, shape.d], Fill::Xavier);
            tensors.add("reconstruction.0.bias", &[TEXT_HIDDEN], Fill::Bias);
            tensors.add("reconstruction.2.weight", &[shape.text, TEXT_HIDDEN], Fill::Xavier);
            tensors.add("reconstruction.2.bias", &[shape.text], Fill::Bias);
        }
        tensors
    }
}

/// A trainable ICT module. Clones share their variables.
#[derive(Clone, Debug)]
pub struct Module {
    architecture: Architecture,
    shape: Shape,
    variables: BTreeMap<String, Var>,
}

impl Module {
    /// First values from a seed, by the rules for untrained weights in `schemas/weights.md`. The rows
    /// of `shape` are those of the compact tables, row 0 included, 1 or more.
    ///
    /// # Errors
    /// [`WeightsError::Limit`] for a width out of range or a table without a row.
    pub fn untrained(architecture: Architecture, shape: Shape, seed: u64) -> Result<Self, TrainingError> {
        shape.check_widths()?;
        for rows in [shape.user_rows, shape.item_rows, shape.creator_rows, shape.category_rows] {
            if rows == 0 {
                let (what, expected) = ("the number of rows of a table", "1 or more");
                return Err(WeightsError::Limit { what, found: rows, expected }.into());
            }
        }
        let mut stream = SplitMix64(seed);
        let mut variables = BTreeMap::new();
        for tensor in architecture.tensors(&shape).0 {
            let values = fill(&tensor, &mut stream);
            variables.insert(tensor.name, Var::from_vec(values, tensor.shape, &Device::Cpu)?);
        }
        Ok(Module { architecture, shape, variables })
    }

    /// The values of a file of weights, to train on from there or to evaluate. The reconstruction
    /// head, which no file holds, is drawn from the seed.
    ///
    /// # Errors
    /// Where the file is refused, is of another kind, or its tables have other rows than `rows` says.
    pub fn from_weights(
        bytes: &[u8],
        architecture: Architecture,
        rows: &HashedRows,
        seed: u64,
    ) -> Result<Self, TrainingError> {
        let expected = architecture.kind().ok_or(TrainingError::NotServed { architecture })?;
        let file = file::read(bytes)?;
        if file.kind != expected {
            return Err(WeightsError::OtherKind { found: file.kind, expected }.into());
        }
        let module = Module::untrained(architecture, compact(&file.shape, rows), seed)?;
        let d = file.shape.d;
        for (name, values) in &file.values {
            let values = match rows.of_tensor(name) {
                Some(table) if table.hashed_rows() * d == values.len() => table.gather(values, d),
                Some(table) => {
                    return Err(TrainingError::Rows {
                        table: table.name(),
                        problem: format!(
                            "are for {} hashed rows, the file has {}",
                            table.hashed_rows(),
                            values.len() / d
                        ),
                    });
                }
                None => values.clone(),
            };
            let variable = module.variable(name)?;
            variable.set(&Tensor::from_vec(values, variable.shape().clone(), &Device::Cpu)?)?;
        }
        Ok(module)
    }

    /// The file of weights that serves this module: the rows of compact tables go to their hashed
    /// rows, all other hashed rows are zeros, the reconstruction head stays out. `encoder` is the one
    /// whose vectors were read, `centre` their mean over the catalog in units of 2^-14.
    ///
    /// # Errors
    /// [`TrainingError::NotServed`] for an architecture that is for comparison only; where row 0 of a
    /// table isn't zeros, a value isn't finite, or the tables have other rows than `rows` says.
    pub fn to_weights(
        &self,
        rows: &HashedRows,
        encoder: Option<&str>,
        centre: Option<&[i16]>,
    ) -> Result<Vec<u8>, TrainingError> {
        let architecture = self.architecture;
        let kind = architecture.kind().ok_or(TrainingError::NotServed { architecture })?;
        let file = Shape {
            user_rows: rows.user.hashed_rows(),
            item_rows: rows.item.hashed_rows(),
            creator_rows: rows.creator.hashed_rows(),
            category_rows: rows.category.hashed_rows(),
            ..self.shape
        };
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
        let mut tensors = Vec::new();
        for tensor in file.tensors(kind) {
            let variable = self.variable(&tensor.name)?;
            let mut values: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            if let Some(table) = rows.of_tensor(&tensor.name) {
                if table.len() != variable.dim(0)? {
                    return Err(TrainingError::Rows {
                        table: table.name(),
                        problem: format!("are {}, the variable has {}", table.len(), variable.dim(0)?),
                    });
                }
                values = table.scatter(&values, self.shape.d);
            }
            tensors.push((tensor.name, tensor.shape, bytes(&values)));
        }
        if let Some(centre) = centre {
            let values: Vec<f32> = centre.iter().map(|x| f32::from(*x)).collect();
            tensors.push((CENTRE.to_owned(), vec![centre.len()], bytes(&values)));
        }
        let (encoder, kind) = (encoder.map(str::to_owned), kind.name().to_owned());
        let written = file::write(&tensors, &Description { encoder, kind, seed: None, trained: true })?;
        // What can't be read must not be written: a divergence, a row 0 that was trained.
        file::read(&written)?;
        Ok(written)
    }

    /// The architecture.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The sizes, with the rows of the compact tables.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Every variable by name: those of the file, and `reconstruction.*`.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// Whether a variable is an embedding table, whose row 0 must stay zeros.
    pub fn is_table(name: &str) -> bool {
        ["user.weight", "item.weight", "creator.weight", "category.weight"].contains(&name)
    }

    /// The embedding tables, for this module's passes and for a backbone.
    ///
    /// # Errors
    /// None: every architecture has them.
    pub fn tables(&self) -> Result<Tables, TrainingError> {
        let table = |name: &str| self.tensor(name).cloned();
        Ok(Tables {
            user: table("user.weight")?,
            item: table("item.weight")?,
            creator: table("creator.weight")?,
            category: table("category.weight")?,
        })
    }

    /// A variable's value, as a pass reads it.
    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor, TrainingError> {
        Ok(self.variable(name)?.as_tensor())
    }

    fn variable(&self, name: &str) -> Result<&Var, TrainingError> {
        self.variables
            .get(name)
            .ok_or_else(|| TrainingError::Variable { architecture: self.architecture, name: name.to_owned() })
    }
}

/// The sizes of compact tables.
fn compact(file: &Shape, rows: &HashedRows) -> Shape {
    Shape {
        user_rows: rows.user.len(),
        item_rows: rows.item.len(),
        creator_rows: rows.creator.len(),
        category_rows: rows.category.len(),
        ..*file
    }
}
