//! Training against serving, against finite differences, and against PyTorch.
#![allow(clippy::unwrap_used)]

mod golden;
mod gradients;
mod parity;
mod world;

use super::super::tests::golden_values;
use super::super::{Shape, age_scalar, residual_scalar, score_scalar};
use super::{Architecture, Module, Neighbours};
use candle_core::{Device, Tensor};

/// A module whose variables have the values of the golden formula: none of them zeros or ones.
fn formula_module(architecture: Architecture, shape: Shape, seed: u64) -> Module {
    let module = Module::untrained(architecture, shape, 1).unwrap();
    for (index, tensor) in architecture.tensors(&shape).0.iter().enumerate() {
        let values = golden_values(seed, index, tensor);
        let value = Tensor::from_vec(values, tensor.shape.clone(), &Device::Cpu).unwrap();
        module.variables()[&tensor.name].set(&value).unwrap();
    }
    module
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A tensor of u32 padded with zeros at the end of each row.
fn padded(rows: &[Vec<u32>], width: usize) -> Tensor {
    let flat: Vec<u32> =
        rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat(0)).take(width)).collect();
    Tensor::from_vec(flat, (rows.len(), width), &Device::Cpu).unwrap()
}

/// Rows of picks, absent ones first: the picks, and where one is.
fn picked(rows: &[Vec<u32>], width: usize) -> (Tensor, Tensor) {
    let (mut picks, mut there) = (Vec::new(), Vec::new());
    for row in rows {
        let absent = width - row.len();
        picks.extend(std::iter::repeat_n(0, absent).chain(row.iter().copied()));
        there.extend((0..width).map(|n| if n < absent { 0.0f32 } else { 1.0 }));
    }
    let shape = (rows.len(), width);
    (
        Tensor::from_vec(picks, shape, &Device::Cpu).unwrap(),
        Tensor::from_vec(there, shape, &Device::Cpu).unwrap(),
    )
}

/// A neighbour as (user, item, label, score, age, residual): rows of the parties, then integers as
/// serving has them.
type Row = (u32, u32, u32, i64, u64, i32);

/// Neighbours of one source, absent ones at the end.
fn neighbours(rows: &[Vec<Row>], most: usize) -> Neighbours {
    let ids = |f: fn(&Row) -> u32| {
        padded(&rows.iter().map(|row| row.iter().map(f).collect()).collect::<Vec<_>>(), most)
    };
    let scalars = |f: fn(&Row) -> f32| {
        let flat: Vec<f32> =
            rows.iter().flat_map(|row| row.iter().map(f).chain(std::iter::repeat(0.0)).take(most)).collect();
        Tensor::from_vec(flat, (rows.len(), most), &Device::Cpu).unwrap()
    };
    Neighbours {
        user: ids(|n| n.0),
        item: ids(|n| n.1),
        label: ids(|n| n.2),
        score: scalars(|n| score_scalar(n.3)),
        age: scalars(|n| age_scalar(n.4)),
        residual: scalars(|n| residual_scalar(n.5)),
        there: scalars(|_| 1.0),
    }
}
