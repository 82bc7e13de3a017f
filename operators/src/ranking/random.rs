//! Random numbers that a seed and a name decide, and nothing else.

use crate::splitmix::{SplitMix64, mix};

/// A stream of splitmix64. Streams are opened by name, so a variable keeps its first values when another one is added before it.
#[derive(Clone, Debug)]
pub struct Stream(SplitMix64);

impl Stream {
    /// The stream of a seed and a name (64-bit FNV-1a, mixed with the seed).
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Stream(SplitMix64(mix(seed) ^ mix(name)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1, by Box and Muller from two uniform numbers.
    pub fn normal(&mut self) -> f64 {
        // 1 − u is above 0, so its logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_moments_that_they_claim() {
        let mut stream = Stream::new(7, "moments");
        let count = 200_000;
        let moments = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, variance)
        };
        let units: Vec<f64> = (0..count).map(|_| stream.unit()).collect();
        let (mean, variance) = moments(&units);
        assert!((mean - 0.5).abs() < 0.003 && (variance - 1.0 / 12.0).abs() < 0.001, "{mean} {variance}");
        assert!(units.iter().all(|u| (0.0..1.0).contains(u)));
        let normals: Vec<f64> = (0..count).map(|_| stream.normal()).collect();
        let (mean, variance) = moments(&normals);
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let within = normals.iter().filter(|x| x.abs() < 1.0).count() as f64 / f64::from(count);
        assert!((within - 0.6827).abs() < 0.005, "{within}");
    }

    #[test]
    fn seed_and_name_decide() {
        let first = |seed, name| Stream::new(seed, name).bits();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }
}
