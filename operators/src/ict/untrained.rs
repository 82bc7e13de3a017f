//! Weights that nobody trained: a job without a trained file serves these, and its vectors say so. Training starts
//! from the same draws.

use super::error::WeightsError;
use super::file::{Description, write};
use super::shape::{Fill, Kind, Shape, Tensor};
use crate::splitmix::SplitMix64;

/// [`untrained_of`] the kind `decoder`.
///
/// # Errors
/// [`WeightsError::Limit`] for a shape out of range.
pub fn untrained(seed: u64, shape: Shape) -> Result<Vec<u8>, WeightsError> {
    untrained_of(Kind::Decoder, seed, shape)
}

/// A safetensors file of untrained weights of a kind: the same bytes for the same seed and shape,
/// on every machine.
///
/// Tensors are drawn one after the other in the order of `schemas/weights.md`, element by element,
/// from one splitmix64 stream that starts at the seed. An element is (2 u - 1) · limit with
/// u = (the number's top 24 bits) / 2^24.
///
/// # Errors
/// [`WeightsError::Limit`] for a shape out of range.
pub fn untrained_of(kind: Kind, seed: u64, shape: Shape) -> Result<Vec<u8>, WeightsError> {
    shape.check()?;
    let mut stream = SplitMix64(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shape
        .tensors(kind)
        .into_iter()
        .map(|tensor| {
            let values = fill(&tensor, &mut stream);
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (tensor.name, tensor.shape, bytes)
        })
        .collect();
    let kind = kind.name().to_owned();
    write(&tensors, &Description { encoder: None, kind, seed: Some(seed), trained: false })
}

/// The values of an untrained tensor.
pub(super) fn fill(tensor: &Tensor, stream: &mut SplitMix64) -> Vec<f32> {
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
            let unit = (stream.bits() >> 40) as f64 / (1u64 << 24) as f64;
            ((2.0 * unit - 1.0) * limit) as f32
        })
        .collect();
    if matches!(tensor.fill, Fill::Hashed) {
        values[..width].fill(0.0);
    }
    values
}
