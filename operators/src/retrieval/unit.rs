//! Unit forms: integer vectors of norm 2^14, whose inner products are cosines in units of 2^28.
//!
//! Sketches and text vectors of any size come to the same form, exactly: an integer square root and one
//! rounded division a component. So a cosine is the same at any batch, on any machine, in any language.

use super::neighbours::UNIT_BITS;
use ictflow_schemas::vector::{Quantised, dot};

/// The unit form of an integer vector x: with n = ⌊√(2^28 Σx²)⌋ each component is 2^28 x / n, rounded
/// half up. Zeros where all of x are.
///
/// n is at least 2^14 |x| for every component, so none exceeds 2^14 in size.
pub fn unit(vector: &[i32]) -> Quantised {
    let squares: u128 = vector.iter().map(|x| u128::from(x.unsigned_abs()).pow(2)).sum();
    if squares == 0 {
        return vec![0; vector.len()].into();
    }
    // Below 2^(28 + 62) times the width: the root fits i64.
    let n = (squares << (2 * UNIT_BITS)).isqrt() as i64;
    let component = |x: &i32| ((i64::from(*x) << (2 * UNIT_BITS + 1)) + n).div_euclid(2 * n) as i16;
    vector.iter().map(component).collect()
}

/// The cosine of two vectors by their unit forms, in units of 2^28; 0 where one has none.
#[inline]
pub fn cosine(a: Option<&[i16]>, b: Option<&[i16]>) -> i64 {
    a.zip(b).map_or(0, |(a, b)| i64::from(dot(a, b)))
}

/// The unit form of a text vector less the centre of all texts: what is left says how texts differ, not
/// what they share. An empty centre is zeros.
pub fn centred(vector: &[i16], centre: &[i16]) -> Quantised {
    let centre = centre.iter().copied().chain(std::iter::repeat(0));
    let difference: Vec<i32> = vector.iter().zip(centre).map(|(x, m)| i32::from(*x) - i32::from(m)).collect();
    unit(&difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_their_norm_and_direction() {
        assert_eq!(*unit(&[3, 4]), [9_830, 13_107]);
        assert_eq!(*unit(&[-3, 4]), [-9_830, 13_107]);
        assert_eq!(*unit(&[0, 0]), [0, 0]);
        assert_eq!(*unit(&[i32::MIN, 0]), [-16_384, 0]);
        assert_eq!(*unit(&[i32::MAX, i32::MIN]), [11_585, -11_585]);
        assert_eq!(*unit(&[-5; 1_024]), [-512; 1_024]);
        assert_eq!(unit(&[]).len(), 0);
    }

    #[test]
    fn a_cosine_with_nothing_is_zero() {
        let a = unit(&[1, 0]);
        assert_eq!(cosine(Some(&a), Some(&a)), 1 << 28);
        assert_eq!(cosine(Some(&a), None), 0);
        assert_eq!(cosine(None, Some(&a)), 0);
    }

    #[test]
    fn centring_takes_what_texts_share() {
        assert_eq!(*centred(&[10, 7], &[10, 0]), [0, 16_384]);
        assert_eq!(*centred(&[10, 0], &[]), [16_384, 0]);
        assert_eq!(*centred(&[i16::MIN, 0], &[i16::MAX, 0]), [-16_384, 0]);
    }
}
