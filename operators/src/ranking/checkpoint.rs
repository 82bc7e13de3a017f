//! Checkpoints: all that a training needs to go on to the bit.
//!
//! One safetensors file: `value.NAME` of every variable, `best.NAME` of the values to come back to where there
//! are some, the optimiser's `adam.NAME.*`, and under the metadata key `ictflow` a text of the caller's. The same
//! state gives the same bytes.
//!
//! A checkpoint takes 16 bytes a trained value.

use super::RankingError;
use super::adam::Adam;
use super::variables::{Variables, values};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use std::collections::HashMap;

/// The key of the metadata.
const METADATA: &str = "ictflow";

/// What names of values begin with.
const VALUE: &str = "value.";

/// What names of the values to come back to begin with.
const BEST: &str = "best.";

/// The bytes of a checkpoint. `best` is a [`Variables::snapshot`].
///
/// # Errors
/// Where a tensor isn't f32 on the CPU, or the snapshot is of other variables.
pub fn write(
    variables: &Variables,
    best: Option<&[Tensor]>,
    adam: &Adam,
    notes: &str,
) -> Result<Vec<u8>, RankingError> {
    let mut tensors: Vec<(String, Tensor)> =
        variables.iter().map(|v| (format!("{VALUE}{}", v.name), v.var.as_tensor().clone())).collect();
    if let Some(best) = best {
        if best.len() != tensors.len() {
            return Err(RankingError::Size {
                what: "the number of tensors of a snapshot",
                found: best.len(),
                expected: "that of the variables",
            });
        }
        let named = variables.iter().zip(best);
        tensors.extend(named.map(|(v, tensor)| (format!("{BEST}{}", v.name), tensor.clone())));
    }
    tensors.extend(adam.state(variables)?);
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let (kind, bytes): (Dtype, Vec<u8>) = match tensor.dtype() {
            DType::I64 => {
                let all: Vec<i64> = tensor.flatten_all()?.to_vec1()?;
                (Dtype::I64, all.iter().flat_map(|x| x.to_le_bytes()).collect())
            }
            _ => (Dtype::F32, values(&tensor)?.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        parts.push((name, kind, tensor.dims().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(parts.len());
    for (name, kind, shape, bytes) in &parts {
        views.push((name, TensorView::new(*kind, shape.clone(), bytes).map_err(|e| unreadable(&e))?));
    }
    serialize(views, Some(HashMap::from([(METADATA.to_owned(), notes.to_owned())])))
        .map_err(|e| unreadable(&e))
}

/// The caller's text.
///
/// # Errors
/// [`RankingError::Unreadable`] where it isn't a checkpoint.
pub fn notes(bytes: &[u8]) -> Result<String, RankingError> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| unreadable(&e))?;
    let text = header.metadata().as_ref().and_then(|m| m.get(METADATA)).cloned();
    text.ok_or_else(|| unreadable(&"it has no metadata `ictflow`"))
}

/// Puts a checkpoint's values and moments back; gives the values to come back to. On an error neither variables
/// nor optimiser are changed.
///
/// # Errors
/// [`RankingError::File`] for the first tensor that is missing, of another shape or type, or of no variable;
/// [`RankingError::Unreadable`] where it isn't a checkpoint.
pub fn read(
    bytes: &[u8],
    variables: &Variables,
    adam: &mut Adam,
) -> Result<Option<Vec<Tensor>>, RankingError> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| unreadable(&e))?;
    let mut all = HashMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let tensor = match view.dtype() {
            Dtype::I64 => {
                let all: Vec<i64> = data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
                Tensor::from_vec(all, view.shape(), &Device::Cpu)?
            }
            Dtype::F32 => {
                let all: Vec<f32> = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                Tensor::from_vec(all, view.shape(), &Device::Cpu)?
            }
            other => {
                return Err(RankingError::File { name, problem: format!("has the type {other}") });
            }
        };
        all.insert(name, tensor);
    }
    let mut take = |prefix: &str| -> Result<Vec<Tensor>, RankingError> {
        let of_variable = |variable: &super::variables::Variable| {
            let name = format!("{prefix}{}", variable.name);
            let problem = |problem: String| RankingError::File { name: name.clone(), problem };
            let tensor = all.remove(&name).ok_or_else(|| problem("is missing".to_owned()))?;
            let expected = variable.var.dims();
            if tensor.dims() != expected || tensor.dtype() != DType::F32 {
                return Err(problem(format!("has the shape {:?}, expected {expected:?}", tensor.dims())));
            }
            Ok(tensor)
        };
        variables.iter().map(of_variable).collect()
    };
    let current = take(VALUE)?;
    let has_best = file.names().iter().any(|name| name.starts_with(BEST));
    let best = if has_best { Some(take(BEST)?) } else { None };
    if let Some(name) = all.keys().filter(|name| name.starts_with(VALUE) || name.starts_with(BEST)).min() {
        return Err(RankingError::File { name: name.clone(), problem: "isn't part of the model".to_owned() });
    }
    adam.restore(variables, &all)?;
    variables.restore(&current)?;
    Ok(best)
}

fn unreadable(error: &dyn std::fmt::Display) -> RankingError {
    RankingError::Unreadable { detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::adam::Settings;
    use super::super::variables::{Fill, Role};
    use super::*;

    fn variables(seed: u64) -> Variables {
        let mut variables = Variables::new(seed);
        variables.create("x", &[3, 2], Role::Weight, Fill::Normal(1.0)).unwrap();
        variables.create("t", &[4, 2], Role::Table, Fill::Normal(1.0)).unwrap();
        variables.create("s", &[2], Role::Statistic, Fill::Constant(1.0)).unwrap();
        variables
    }

    fn step(variables: &Variables, adam: &mut Adam) {
        let part =
            |name: &str| variables.get(name).unwrap().var.as_tensor().sqr().unwrap().sum_all().unwrap();
        let gradients = (part("x") + part("t")).unwrap().backward().unwrap();
        adam.step(variables, &gradients).unwrap();
    }

    fn all(variables: &Variables) -> Vec<Vec<f32>> {
        variables.iter().map(|v| values(&v.var).unwrap()).collect()
    }

    #[test]
    fn what_was_written_goes_on_to_the_bit() {
        let (first, mut adam) = (variables(1), Adam::new(Settings::default()));
        step(&first, &mut adam);
        let best = first.snapshot().unwrap();
        step(&first, &mut adam);
        let bytes = write(&first, Some(&best), &adam, "two steps").unwrap();
        assert_eq!(bytes, write(&first, Some(&best), &adam, "two steps").unwrap());
        assert_eq!(notes(&bytes).unwrap(), "two steps");

        let (second, mut other) = (variables(2), Adam::new(Settings::default()));
        let back = read(&bytes, &second, &mut other).unwrap().unwrap();
        assert_eq!(all(&first), all(&second));
        for (a, b) in best.iter().zip(&back) {
            assert_eq!(values(a).unwrap(), values(b).unwrap());
        }
        step(&first, &mut adam);
        step(&second, &mut other);
        assert_eq!(all(&first), all(&second));

        let without = write(&first, None, &adam, "").unwrap();
        assert!(read(&without, &second, &mut other).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_is_named_and_changes_nothing() {
        let (first, mut adam) = (variables(1), Adam::new(Settings::default()));
        step(&first, &mut adam);
        let bytes = write(&first, None, &adam, "").unwrap();
        assert!(write(&first, Some(&[]), &adam, "").is_err());

        let mut more = variables(2);
        more.create("y", &[1], Role::Weight, Fill::Constant(1.0)).unwrap();
        let before = all(&more);
        let refused = |bytes: &[u8], variables: &Variables| {
            let error = read(bytes, variables, &mut Adam::new(Settings::default())).unwrap_err();
            error.to_string()
        };
        let missing = refused(&bytes, &more);
        assert!(missing.contains("`value.y` is missing"), "{missing}");
        assert_eq!(all(&more), before);
        let unexpected = refused(&write(&more, None, &adam, "").unwrap(), &first);
        assert!(unexpected.contains("`value.y` isn't part of the model"), "{unexpected}");

        let mut wider = Variables::new(1);
        wider.create("x", &[3, 3], Role::Weight, Fill::Constant(1.0)).unwrap();
        wider.create("t", &[4, 2], Role::Table, Fill::Constant(1.0)).unwrap();
        wider.create("s", &[2], Role::Statistic, Fill::Constant(1.0)).unwrap();
        let shape = refused(&bytes, &wider);
        assert!(shape.contains("`value.x` has the shape [3, 2], expected [3, 3]"), "{shape}");
        assert!(refused(&bytes[..bytes.len() - 1], &first).contains("doesn't read"));
        assert!(notes(&bytes[..4]).is_err());
    }
}
