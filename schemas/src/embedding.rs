//! Records of the internal log `embeddings`.

use crate::framing::{Digest, Frame};
use serde::{Deserialize, Serialize};

/// Whether an embedding was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingStatus {
    /// `vector` holds a unit vector.
    Ok,
    /// The encoder refused the text for good; the text counts as without a vector.
    Failed,
}

/// The vector of one text under one encoder. The greatest offset of a key wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// The encoder's id: SHA-256 of the weights, pooling, tokens.
    pub encoder: String,
    /// The text's digest, 64 hex digits.
    pub digest: String,
    /// Whether it was made.
    pub status: EmbeddingStatus,
    /// The vector; norm within 1e-3 of 1, taken in f64. Empty where failed.
    pub vector: Vec<f32>,
}

/// How far the norm of a logged vector may be from 1.
pub const NORM_TOLERANCE: f64 = 1e-3;

/// Whether all components are finite and the norm, taken in f64, is within [`NORM_TOLERANCE`] of 1.
pub fn is_unit(vector: &[f32]) -> bool {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    (norm - 1.0).abs() <= NORM_TOLERANCE
}

impl Embedding {
    /// The record's key: framed (encoder, digest in hex), with `failed:` before the digest of a
    /// failure.
    pub fn key(&self) -> Vec<u8> {
        let digest = match self.status {
            EmbeddingStatus::Ok => self.digest.clone(),
            EmbeddingStatus::Failed => format!("failed:{}", self.digest),
        };
        Frame::new().text(&self.encoder).text(&digest).into_bytes()
    }

    /// The digest and vector where the record is usable: a digest of 64 hex digits, for an ok
    /// record all components finite and the norm within tolerance. Else `None`: it counts as a
    /// tombstone of its key.
    pub fn usable(&self) -> Option<(Digest, Option<&[f32]>)> {
        let digest = Digest::from_hex(&self.digest)?;
        match self.status {
            EmbeddingStatus::Failed => Some((digest, None)),
            EmbeddingStatus::Ok => is_unit(&self.vector).then_some((digest, Some(self.vector.as_slice()))),
        }
    }
}
