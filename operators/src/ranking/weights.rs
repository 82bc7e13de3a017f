//! The file of a ranker: one safetensors file with its tables, its `backbone.*` and whatever else its set of
//! variables holds, and in its metadata what is needed to build the model anew.
//!
//! Under the key `ictflow` stands one JSON text: `backbone` (the kind), `settings`, `rows` (of the tables), `notes`
//! and, in a file that ranks what stands on a feature topic, `serving`. Tensors are F32 and little-endian, sorted by name, with one metadata key, so the same variables give
//! the same bytes. To read a file: [`describe`] it, build tables and backbone in a set of variables, [`read`].

use super::RankingError;
use super::backbones::{Kind, Settings};
use super::scalars::LABEL_SCALARS;
use super::tables::Rows;
use super::variables::{Role, Variables, values};
use candle_core::{Device, Tensor};
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::neighbour::VOTES;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The key of the metadata.
const METADATA: &str = "ictflow";

/// What a file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The kind of backbone.
    pub backbone: Kind,
    /// Its sizes.
    pub settings: Settings,
    /// The rows of its tables.
    pub rows: Rows,
    /// What training notes: data, seed, versions.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
    /// How a consumer of `features` makes the model's inputs. `None` in a file that only goes on with the data
    /// set that it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
}

/// How the inputs of a ranker are made of a record of `features`, of `items` and of `embeddings`.
///
/// Its tables are hashed: the row of an id is [`ictflow_schemas::framing::hashed_row`] of the table's name and
/// rows. Scalars are those of `labels`, then those of `votes`. The vector enters as it stands on the record. The
/// file holds the tables, `field_text.*` where texts are read, and `backbone.*`; nothing that makes a vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serving {
    /// The user's own labels over the history: [`LABEL_SCALARS`].
    pub labels: bool,
    /// The votes of neighbours: [`VOTES`] scalars.
    pub votes: bool,
    /// What all scalars are multiplied by.
    pub scalar_scale: f64,
    /// The most history entries that are read: the newest.
    pub history: usize,
    /// The texts of item and history; there where the backbone reads them.
    pub text: Option<TextInput>,
    /// The vector; there where the backbone reads it.
    pub vector: Option<VectorInput>,
}

/// Which text vectors a ranker was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// The encoder's id, as `features` name it.
    pub encoder: String,
    /// D: the width of its vectors.
    pub width: usize,
}

/// Which vectors a ranker was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorInput {
    /// Their kind.
    pub kind: VectorKind,
    /// The version of the ICT weights that made them, as `features` name it.
    pub ict_weights: String,
}

impl Description {
    /// How the model's inputs are made, checked against what the backbone reads.
    ///
    /// # Errors
    /// [`RankingError::Unreadable`] where the file doesn't say, or contradicts itself.
    pub fn serving(&self) -> Result<&Serving, RankingError> {
        let Some(serving) = &self.serving else {
            return Err(unreadable(&"it doesn't say how inputs are made of features (`serving`)"));
        };
        let scalars = LABEL_SCALARS * usize::from(serving.labels) + VOTES * usize::from(serving.votes);
        let Settings { text, scalars: read, vector, .. } = self.settings;
        let problem = if scalars != read {
            format!("its inputs are {scalars} scalars, its backbone reads {read}")
        } else if serving.text.is_some() != text {
            format!("its inputs and its backbone don't agree on texts, which the backbone says are {text}")
        } else if serving.vector.is_some() != vector {
            format!(
                "its inputs and its backbone don't agree on the vector, which the backbone says is {vector}"
            )
        } else if serving.text.as_ref().is_some_and(|text| text.width == 0) || serving.history == 0 {
            "texts of no width, or a history of no entry".to_owned()
        } else if !serving.scalar_scale.is_finite() {
            "the scale of its scalars isn't a number".to_owned()
        } else {
            return Ok(serving);
        };
        Err(unreadable(&problem))
    }
}

/// The bytes of a file.
///
/// # Errors
/// Where a variable isn't f32.
pub fn write(variables: &Variables, description: &Description) -> Result<Vec<u8>, RankingError> {
    let text = serde_json::to_string(description).map_err(|e| unreadable(&e))?;
    let mut tensors = Vec::new();
    for variable in variables.iter() {
        let bytes: Vec<u8> = values(&variable.var)?.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((variable.name.as_str(), variable.var.dims().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, shape, bytes) in &tensors {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| unreadable(&e))?;
        views.push((*name, view));
    }
    serialize(views, Some(HashMap::from([(METADATA.to_owned(), text)]))).map_err(|e| unreadable(&e))
}

/// What a file says about itself.
///
/// # Errors
/// [`RankingError::Unreadable`] where it isn't such a file.
pub fn describe(bytes: &[u8]) -> Result<Description, RankingError> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| unreadable(&e))?;
    let Some(text) = header.metadata().as_ref().and_then(|m| m.get(METADATA)) else {
        return Err(unreadable(&"it has no metadata `ictflow`"));
    };
    serde_json::from_str(text).map_err(|e| unreadable(&e))
}

/// Sets all variables to a file's values. On an error none is changed.
///
/// # Errors
/// [`RankingError::File`] for the first tensor that is missing, not of a variable, of another shape or type, not
/// finite, or a table whose row 0 isn't zeros; [`RankingError::Unreadable`] where it isn't such a file.
pub fn read(bytes: &[u8], variables: &Variables) -> Result<(), RankingError> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| unreadable(&e))?;
    let mut read = Vec::new();
    for variable in variables.iter() {
        let name = &variable.name;
        let problem = |problem: String| RankingError::File { name: name.clone(), problem };
        let tensor = file.tensor(name).map_err(|_| problem("is missing".to_owned()))?;
        let shape = variable.var.dims();
        if tensor.shape() != shape {
            return Err(problem(format!("has the shape {:?}, expected {shape:?}", tensor.shape())));
        }
        if tensor.dtype() != Dtype::F32 {
            return Err(problem(format!("has the type {}, expected F32", tensor.dtype())));
        }
        let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(problem(format!("is not finite at element {index}")));
        }
        let width: usize = shape.iter().skip(1).product();
        if variable.role == Role::Table && values.iter().take(width).any(|x| *x != 0.0) {
            return Err(problem("has something in row 0, which stands for an absent id".to_owned()));
        }
        read.push((variable, Tensor::from_vec(values, shape, &Device::Cpu)?));
    }
    let mut unexpected: Vec<&str> =
        file.names().into_iter().filter(|name| variables.get(name).is_none()).collect();
    unexpected.sort_unstable();
    if let Some(name) = unexpected.first() {
        return Err(RankingError::File {
            name: (*name).to_owned(),
            problem: "isn't part of the model".to_owned(),
        });
    }
    for (variable, value) in read {
        variable.var.set(&value)?;
    }
    Ok(())
}

fn unreadable(error: &dyn std::fmt::Display) -> RankingError {
    RankingError::Unreadable { detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(kind: Kind, seed: u64) -> (Variables, Description) {
        let settings = Settings { d: 8, hidden: vec![6, 4], vector: true, scalars: 3, ..Settings::default() };
        let rows = Rows { user: 5, item: 6, creator: 4, category: 3 };
        let mut variables = Variables::new(seed);
        rows.create(settings.d, kind.init(), &mut variables).unwrap();
        kind.build(&settings, &mut variables).unwrap();
        let notes = BTreeMap::from([("seed".to_owned(), seed.to_string())]);
        (variables, Description { backbone: kind, settings, rows, notes, serving: None })
    }

    fn all(variables: &Variables) -> Vec<Vec<f32>> {
        variables.iter().map(|v| values(&v.var).unwrap()).collect()
    }

    #[test]
    fn every_backbone_comes_back_from_its_file() {
        for kind in Kind::ALL {
            let (variables, description) = model(kind, 1);
            let bytes = write(&variables, &description).unwrap();
            assert_eq!(bytes, write(&variables, &description).unwrap());
            assert_eq!(describe(&bytes).unwrap(), description);
            let (other, _) = model(kind, 2);
            assert_ne!(all(&variables), all(&other));
            read(&bytes, &other).unwrap();
            assert_eq!(all(&variables), all(&other));
        }
    }

    #[test]
    fn what_a_file_says_of_its_inputs_agrees_with_its_backbone() {
        let vector = VectorInput { kind: VectorKind::Attention, ict_weights: "w".to_owned() };
        let good = Serving {
            labels: true,
            votes: true,
            scalar_scale: 4.0,
            history: 20,
            text: None,
            vector: Some(vector),
        };
        let description = |serving: Option<Serving>| {
            let (_, description) = model(Kind::Din, 1);
            let settings = Settings { scalars: 11, ..description.settings };
            Description { settings, serving, ..description }
        };
        let (variables, _) = model(Kind::Din, 1);
        let told = description(Some(good.clone()));
        let read = describe(&write(&variables, &told).unwrap()).unwrap();
        assert_eq!(read, told);
        assert_eq!(read.serving().unwrap(), &good);
        let text = Some(TextInput { encoder: "e".to_owned(), width: 4 });
        for (serving, problem) in [
            (None, "doesn't say how inputs"),
            (Some(Serving { votes: false, ..good.clone() }), "2 scalars, its backbone reads 11"),
            (Some(Serving { text, ..good.clone() }), "agree on texts"),
            (Some(Serving { vector: None, ..good.clone() }), "agree on the vector"),
            (Some(Serving { history: 0, ..good.clone() }), "a history of no entry"),
            (Some(Serving { scalar_scale: f64::NAN, ..good }), "isn't a number"),
        ] {
            let refused = description(serving).serving().unwrap_err().to_string();
            assert!(refused.contains(problem), "{refused}");
        }
    }

    #[test]
    fn wrong_files_are_named_errors() {
        let (variables, description) = model(Kind::Dcn, 1);
        let bytes = write(&variables, &description).unwrap();
        let refused = |bytes: &[u8], variables: &Variables| read(bytes, variables).unwrap_err().to_string();
        assert!(refused(&bytes[..100], &variables).contains("doesn't read"));
        assert!(describe(&bytes[..4]).is_err());

        let (other, _) = model(Kind::DeepFm, 1);
        let before = all(&other);
        let missing = refused(&bytes, &other);
        assert!(missing.contains("`backbone.wide.fields.weight` is missing"), "{missing}");
        assert_eq!(before, all(&other));

        let mut fewer = Variables::new(1);
        description.rows.create(8, Kind::Dcn.init(), &mut fewer).unwrap();
        let unexpected = refused(&bytes, &fewer);
        assert!(unexpected.contains("isn't part of the model"), "{unexpected}");

        let rows = Rows { item: 7, ..description.rows };
        let mut larger = Variables::new(1);
        rows.create(8, Kind::Dcn.init(), &mut larger).unwrap();
        let shape = refused(&bytes, &larger);
        assert!(shape.contains("`item.weight` has the shape [6, 8], expected [7, 8]"), "{shape}");

        let set = |name: &str, index: usize, value: f32| {
            let (variables, description) = model(Kind::Dcn, 1);
            let var = &variables.get(name).unwrap().var;
            let mut all = values(var).unwrap();
            all[index] = value;
            var.set(&Tensor::from_vec(all, var.dims(), &Device::Cpu).unwrap()).unwrap();
            refused(&write(&variables, &description).unwrap(), &variables)
        };
        let absent = set("user.weight", 3, 1.0);
        assert!(absent.contains("`user.weight` has something in row 0"), "{absent}");
        let diverged = set("backbone.out.bias", 0, f32::NAN);
        assert!(diverged.contains("`backbone.out.bias` is not finite at element 0"), "{diverged}");
    }
}
