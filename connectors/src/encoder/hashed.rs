//! `hashed`: vectors from a text's digest, without a model.
//!
//! Equal texts have equal vectors, all others unrelated ones: for fast tests, and as the ablation of
//! what an encoder adds. Never a default.

use super::Embed;
use crate::{Error, Result};
use ictflow_schemas::framing::text_digest;

/// The encoder without a model.
pub struct Hashed {
    width: usize,
    id: String,
}

impl Hashed {
    /// An encoder of this width; its id is `hashed:WIDTH`.
    ///
    /// # Errors
    /// Fatal: a width of 0 or beyond 4,096.
    pub fn new(width: usize) -> Result<Self> {
        match width {
            1..=4096 => Ok(Hashed { width, id: format!("hashed:{width}") }),
            _ => Err(Error::fatal(
                "cannot make the encoder `hashed`",
                format!("its width is {width}"),
                "give 1 to 4096",
            )),
        }
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
        Ok(texts.iter().map(|text| vector(text, self.width)).collect())
    }
}

/// BLAKE3's extended output over the text's digest, 4 bytes a component, scaled to unit norm.
fn vector(text: &str, width: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * width];
    blake3::Hasher::new().update(&text_digest(text).0).finalize_xof().fill(&mut bytes);
    let component = |b: &[u8]| f64::from(i32::from_be_bytes([b[0], b[1], b[2], b[3]])) + 0.5;
    let values: Vec<f64> = bytes.chunks_exact(4).map(component).collect();
    // Never 0: each component is half an integer at least.
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    values.iter().map(|v| (v / norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn vectors_are_of_unit_norm_and_follow_the_text() {
        let mut encoder = Hashed::new(384).unwrap();
        let texts: Vec<String> = ["a", "b", "", "a"].map(String::from).to_vec();
        let vectors = encoder.embed(&texts).unwrap();
        for vector in &vectors {
            assert_eq!(vector.len(), 384);
            let norm: f64 = vector.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((norm - 1.0).abs() < 1e-6, "{norm}");
        }
        assert_eq!(vectors[0], vectors[3]);
        let dot: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
        assert!(dot.abs() < 0.3, "{dot}");
        assert_eq!(encoder.embed(&texts[1..2]).unwrap()[0], vectors[1]);
        assert_eq!((encoder.id(), encoder.width()), ("hashed:384", 384));
        assert!(Hashed::new(0).is_err());
    }
}
