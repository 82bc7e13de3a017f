//! Quantised vectors and the integer arithmetic of retrieval.
//!
//! A logged f32 vector is quantised once to i16: x · 2^14, rounded half to even, saturated. All
//! scores are exact integers, so a full scan, the incremental path, any batch shape, any CPU and
//! the oracle agree to the bit.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A quantised vector: the logged one times 2^14.
pub type Quantised = Arc<[i16]>;

/// The scale of quantised vectors.
pub const SCALE: f32 = 16384.0;

/// Quantises a logged vector: x · 2^14, half to even, saturated to i16.
///
/// The product with a power of two is exact in f32, so the only rounding is the named one.
pub fn quantise(vector: &[f32]) -> Quantised {
    vector.iter().map(|x| (x * SCALE).round_ties_even() as i16).collect()
}

/// The integer inner product of two quantised vectors.
///
/// i32 cannot overflow: |x| ≤ 2^15 and unit norm within 1e-3 bound the sum far below 2^31 by
/// Cauchy-Schwarz; vectors of other norms are refused before they are quantised.
#[inline]
pub fn dot(a: &[i16], b: &[i16]) -> i32 {
    debug_assert_eq!(a.len(), b.len(), "vectors of one encoder have one width");
    let mut sum = 0i32;
    for (x, y) in a.iter().zip(b) {
        sum = sum.wrapping_add(i32::from(*x) * i32::from(*y));
    }
    sum
}

/// The sum of vectors with their count: exact, so entries can be added and taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VectorSum {
    /// Component sums; empty while nothing was ever added.
    pub sum: Vec<i32>,
    /// How many vectors are in it, repeats included.
    pub n: i64,
}

impl VectorSum {
    /// The sum over some vectors.
    pub fn over<'a>(vectors: impl IntoIterator<Item = &'a [i16]>) -> Self {
        let mut sum = VectorSum::default();
        for vector in vectors {
            sum.add(vector);
        }
        sum
    }

    /// Adds a vector.
    pub fn add(&mut self, vector: &[i16]) {
        if self.sum.is_empty() {
            self.sum = vec![0; vector.len()];
        }
        for (s, x) in self.sum.iter_mut().zip(vector) {
            *s += i32::from(*x);
        }
        self.n += 1;
    }

    /// The rounded mean ⌊(2Σ + n) / 2n⌋ by component, `width` zeros where n = 0. It is the a_c of
    /// a demonstration. Not re-normalised.
    pub fn mean(&self, width: usize) -> Quantised {
        if self.n == 0 {
            return vec![0; width].into();
        }
        self.sum.iter().map(|s| (2 * i64::from(*s) + self.n).div_euclid(2 * self.n) as i16).collect()
    }

    /// Σ_j ⟨e_hj, a⟩ = ⟨Σ_j e_hj, a⟩, exact in i64.
    pub fn dot(&self, a: &[i16]) -> i64 {
        self.sum.iter().zip(a).map(|(s, x)| i64::from(*s) * i64::from(*x)).sum()
    }

    /// The mean as the ICT sees it: the exact integer sum over n · 2^14, `width` zeros where n = 0.
    pub fn mean_f32(&self, width: usize) -> Vec<f32> {
        if self.n == 0 {
            return vec![0.0; width];
        }
        let scale = self.n as f64 * f64::from(SCALE);
        self.sum.iter().map(|s| (f64::from(*s) / scale) as f32).collect()
    }
}

/// The history term of a score: ⌊Σ_j ⟨e_hj, a_c⟩ / n⌋, 0 where n = 0.
#[inline]
pub fn history_term(sum: i64, n: i64) -> i64 {
    if n == 0 { 0 } else { sum.div_euclid(n) }
}
