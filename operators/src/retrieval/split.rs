//! A history's sum in two halves of 16 bits, so that its products are those of plain vectors.
//!
//! A component of a sum needs more than 16 bits, and products of 32 with 16 bits cost several times
//! those of 16 with 16. With s = 4096 · high + low, −2048 ≤ low < 2048, the product is
//! ⟨s, a⟩ = 4096 · ⟨high, a⟩ + ⟨low, a⟩, exact: no rounding anywhere.

use ictflow_schemas::vector::{VectorSum, dot, history_term};

/// The bits of the low half.
const BITS: u32 = 12;

/// The widest vectors for which ⟨low, a⟩ fits 32 bits: by Cauchy-Schwarz it is at most
/// 2^11 · sqrt(width) · 1.002 · 2^14.
const WIDEST: usize = 4_000;

/// The longest history of which every high half fits 16 bits.
const LONGEST: i64 = 8_000;

/// The sum of the vectors of a history, made for products.
#[derive(Debug, Default)]
pub struct SplitSum {
    high: Vec<i16>,
    low: Vec<i16>,
    n: i64,
    /// The sum itself where it is too wide or too long to split; then the halves are empty.
    whole: Option<VectorSum>,
}

impl SplitSum {
    /// Splits a sum of vectors of norm 1 within 1e-3.
    pub fn new(sum: &VectorSum) -> Self {
        if sum.sum.len() > WIDEST || sum.n > LONGEST {
            return SplitSum { n: sum.n, whole: Some(sum.clone()), ..SplitSum::default() };
        }
        let high = |s: &i32| (s + (1 << (BITS - 1))) >> BITS;
        SplitSum {
            high: sum.sum.iter().map(|s| high(s) as i16).collect(),
            low: sum.sum.iter().map(|s| (s - (high(s) << BITS)) as i16).collect(),
            n: sum.n,
            whole: None,
        }
    }

    /// The history term of a score: ⌊Σ_j ⟨e_hj, a⟩ / n⌋, 0 for an empty history.
    pub fn term(&self, a: &[i16]) -> i64 {
        if self.n == 0 {
            return 0;
        }
        let sum = match &self.whole {
            Some(whole) => whole.dot(a),
            None => (i64::from(dot(&self.high, a)) << BITS) + i64::from(dot(&self.low, a)),
        };
        history_term(sum, self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::vector::quantise;

    fn check(vectors: &[Vec<i16>]) {
        let sum = VectorSum::over(vectors.iter().map(Vec::as_slice));
        let split = SplitSum::new(&sum);
        let mean = sum.mean(vectors[0].len());
        for a in vectors.iter().map(Vec::as_slice).chain([&*mean]) {
            assert_eq!(split.term(a), history_term(sum.dot(a), sum.n));
        }
    }

    /// Unit vectors: one component, even ones, one sign or alternating, and in between.
    fn units(width: usize) -> Vec<Vec<i16>> {
        let even = 1.0 / (width as f32).sqrt();
        let mut all = vec![vec![0.0; width], vec![even; width], vec![-even; width]];
        all[0][width - 1] = -1.0;
        all.push((0..width).map(|i| if i % 2 == 0 { even } else { -even }).collect());
        let ramp: Vec<f32> = (0..width).map(|i| ((i * 7919) % 1009) as f32 - 504.0).collect();
        let norm = ramp.iter().map(|x| x * x).sum::<f32>().sqrt();
        all.push(ramp.iter().map(|x| x / norm).collect());
        all.iter().map(|vector| quantise(vector).to_vec()).collect()
    }

    #[test]
    fn halves_give_the_whole_product_at_every_width_and_length() {
        for width in [1, 2, 7, 384, 768, WIDEST, WIDEST + 1] {
            for vector in units(width) {
                check(std::slice::from_ref(&vector));
                check(&vec![vector.clone(); 20]);
                check(&vec![vector; 1_000]);
            }
            check(&units(width));
        }
        for length in [LONGEST, LONGEST + 1] {
            check(&vec![units(2).remove(0); length as usize]);
        }
        assert_eq!(SplitSum::new(&VectorSum::default()).term(&[1, 2]), 0);
    }
}
