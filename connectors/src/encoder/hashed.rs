//! Vectors without meaning, for tests: the same text gives the same vector, on every machine.

use super::Embed;
use crate::Result;
use ictflow_schemas::framing::{Domain, Frame, digest, text_digest};

/// An encoder that expands a text's digest into a unit vector. Similar texts get unrelated
/// vectors, so it is never the default.
#[derive(Debug, Clone)]
pub struct Hashed {
    width: usize,
    id: String,
}

impl Hashed {
    /// An encoder of vectors of `width` numbers.
    ///
    /// # Panics
    /// On a width of 0, which has no unit vector.
    pub fn new(width: usize) -> Self {
        assert!(width > 0, "a unit vector has at least one number");
        Hashed { width, id: format!("hashed:{width}") }
    }

    /// Block `i` of the vector is the digest of (text digest, i), read as four signed 64-bit
    /// numbers, so the numbers of a vector are even over −1 to 1 before it is scaled.
    fn vector(&self, text: &str) -> Vec<f32> {
        let text = text_digest(text);
        let numbers = (0_i64..).flat_map(|block| {
            let block = digest(Domain::Text, &Frame::new().digest(&text).int(block)).0;
            let (words, _) = block.as_chunks::<8>();
            [0, 1, 2, 3].map(|i| i64::from_be_bytes(words[i]) as f64 / 2_f64.powi(63))
        });
        let vector: Vec<f64> = numbers.take(self.width).collect();
        let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            // Every number was 0. It has never been seen, and the contract is a unit vector.
            return (0..self.width).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
        }
        vector.iter().map(|x| (x / norm) as f32).collect()
    }
}

impl Embed for Hashed {
    fn id(&self) -> &str {
        &self.id
    }

    fn width(&self) -> usize {
        self.width
    }

    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        Ok(texts.iter().map(|text| self.vector(text)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_schemas::framing::hex;

    #[test]
    fn vectors_are_units_of_the_asked_width() {
        for width in [1, 2, 3, 4, 5, 383, 384, 4096] {
            let mut encoder = Hashed::new(width);
            assert_eq!(encoder.id(), format!("hashed:{width}"));
            assert_eq!(encoder.width(), width);
            let texts: Vec<String> = (0..50).map(|i| "x".repeat(i)).collect();
            for vector in encoder.embed(&texts).unwrap() {
                assert_eq!(vector.len(), width);
                assert!(vector.iter().all(|x| x.is_finite()));
                let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                assert!((norm - 1.0).abs() < 1e-6, "width {width}: norm {norm}");
            }
        }
    }

    #[test]
    fn a_text_decides_its_vector_and_others_differ() {
        let mut encoder = Hashed::new(64);
        let texts: Vec<String> = ["", "a", "b", "a "].map(String::from).to_vec();
        let together = encoder.embed(&texts).unwrap();
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(Hashed::new(64).embed(std::slice::from_ref(text)).unwrap()[0], together[i]);
            for other in &together[..i] {
                let dot: f32 = other.iter().zip(&together[i]).map(|(a, b)| a * b).sum();
                assert!(dot.abs() < 0.6, "{text:?} looks like another text: {dot}");
            }
        }
    }

    /// Logged vectors outlive the program: the expansion must never change.
    #[test]
    fn the_bits_are_fixed() {
        let vector = Hashed::new(6).embed(&["The Matrix".to_owned()]).unwrap().remove(0);
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_be_bytes()).collect();
        assert_eq!(hex(&bytes), "3e9d9de3bec8c7f53d5e3d0a3f21f362bdee20aabf141f20");
    }
}
