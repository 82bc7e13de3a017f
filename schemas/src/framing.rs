//! Framed parts: the one way in which ictflow turns values into bytes, digests and partitions.
//!
//! A frame is a list of parts; each is a u32 big-endian length and its bytes. Text is UTF-8, an
//! integer is i64 big-endian, a digest its 32 raw bytes. Frames are unambiguous: no two different
//! lists of parts give the same bytes. `golden/keys.json` holds examples made by an independent
//! program; the tests of this file match them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A BLAKE3 digest over framed parts. On topics it is written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The number of a digest: its first 8 bytes, u64 big-endian.
    pub fn number(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first)
    }

    /// 64 lower-case hex digits.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// Reads 64 lower-case hex digits; anything else is `None`.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Digest(out))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", &self.hex()[..12])
    }
}

/// Lower-case hex of any bytes.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The domain word that starts every digest, so that two kinds of digest never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Examples and engagements: (user_id, event_time, event_id).
    Identity,
    /// Item and CoT texts.
    Text,
    /// Content keys.
    Key,
    /// Rows of hashed embedding tables.
    Row,
    /// The semantic configuration of a job.
    Config,
}

impl Domain {
    fn word(self) -> &'static str {
        match self {
            Domain::Identity => "identity",
            Domain::Text => "text",
            Domain::Key => "key",
            Domain::Row => "row",
            Domain::Config => "config",
        }
    }
}

/// Builds a frame part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// An empty frame.
    pub fn new() -> Self {
        Frame(Vec::new())
    }

    /// Appends raw bytes as one part.
    ///
    /// # Panics
    /// On a part of 4 GiB or more; every input is capped far below that.
    pub fn bytes(mut self, part: &[u8]) -> Self {
        let length = u32::try_from(part.len()).expect("a framed part is shorter than 4 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(part);
        self
    }

    /// Appends text as UTF-8.
    pub fn text(self, part: &str) -> Self {
        self.bytes(part.as_bytes())
    }

    /// Appends an i64, big-endian.
    pub fn int(self, part: i64) -> Self {
        self.bytes(&part.to_be_bytes())
    }

    /// Appends a digest as its 32 raw bytes.
    pub fn digest(self, part: &Digest) -> Self {
        self.bytes(&part.0)
    }

    /// The framed bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Splits framed bytes into their parts; `None` where they are not a frame.
pub fn unframe(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        if rest.len() < length {
            return None;
        }
        let (part, rest) = rest.split_at(length);
        parts.push(part);
        bytes = rest;
    }
    Some(parts)
}

/// The digest of a frame in a domain: BLAKE3(domain word ++ parts), all framed.
pub fn digest(domain: Domain, parts: &Frame) -> Digest {
    let word = Frame::new().text(domain.word());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&word.0);
    hasher.update(&parts.0);
    Digest(*hasher.finalize().as_bytes())
}

/// The digest of a text, of an item or a CoT.
pub fn text_digest(text: &str) -> Digest {
    digest(Domain::Text, &Frame::new().text(text))
}

/// The row of a hashed embedding table: 1 + number(`row`, table, id) mod (rows − 1).
///
/// Row 0 means absent and holds zeros. `rows` is at least 2.
pub fn hashed_row(table: &str, id: &str, rows: u32) -> u32 {
    debug_assert!(rows >= 2, "a hashed table has the absent row and one more");
    let number = digest(Domain::Row, &Frame::new().text(table).text(id)).number();
    1 + (number % u64::from(rows - 1)) as u32
}

/// Kafka's murmur2 as Java clients compute it (seed 0x9747b28c), for partitions.
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut h = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    for (i, byte) in tail.iter().enumerate().rev() {
        h ^= u32::from(*byte) << (8 * i);
    }
    if !tail.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    (h ^ (h >> 15)) as i32
}

/// CRC-32 as zlib computes it (reflected polynomial 0xedb88320), for partitions.
pub fn crc32(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut remainder = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                let odd = remainder & 1 == 1;
                remainder >>= 1;
                if odd {
                    remainder ^= 0xedb8_8320;
                }
                bit += 1;
            }
            table[byte] = remainder;
            byte += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    !data.iter().fold(!0, step)
}

/// How producers choose the partition of a key. The job writes what it keys by user the same way, so
/// that its outputs are co-partitioned with `interactions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// murmur2 made positive, modulo the count: Java clients, and librdkafka's `murmur2` and
    /// `murmur2_random`.
    #[default]
    Murmur2,
    /// CRC-32 modulo the count: librdkafka's `consistent` and `consistent_random`, its own default.
    Crc32,
}

impl Partitioner {
    /// The partition of a key. A count of 0 gives 0. An empty key has no partition of its own at its
    /// producers (some choose one at random), so none is judged by this.
    pub fn partition(self, key: &[u8], count: u32) -> u32 {
        if count == 0 {
            return 0;
        }
        match self {
            Partitioner::Murmur2 => (murmur2(key) & 0x7fff_ffff) as u32 % count,
            Partitioner::Crc32 => crc32(key) % count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back() {
        let frame = Frame::new().text("u1").int(-5).text("").into_bytes();
        let parts = unframe(&frame).expect("a frame");
        assert_eq!(parts, vec![b"u1".as_slice(), &(-5i64).to_be_bytes(), b""]);
        assert_eq!(unframe(&frame[..frame.len() - 1]), None);
        assert_eq!(unframe(&[0, 0]), None);
    }

    /// Numbers of Python's zlib.
    #[test]
    fn crc32_is_zlibs() {
        for (data, expected) in [
            (&b""[..], 0),
            (b"123456789", 0xcbf4_3926),
            (b"u1", 0x424f_9f76),
            ("\u{dc}n\u{ef}c\u{f6}d\u{e9}".as_bytes(), 0x41ff_281b),
            (&[0; 5], 0xc622_f71d),
            (&[0xff; 32], 0xff6c_ab0b),
        ] {
            assert_eq!(crc32(data), expected, "{data:?}");
        }
    }

    #[test]
    fn a_partition_is_within_the_count() {
        for partitioner in [Partitioner::Murmur2, Partitioner::Crc32] {
            for count in 0..9 {
                for user in 0..100 {
                    let got = partitioner.partition(format!("user-{user}").as_bytes(), count);
                    assert!(got < count.max(1), "{partitioner:?} of {count}");
                }
            }
        }
    }

    #[test]
    fn hex_is_read_back_and_strict() {
        let digest = text_digest("x");
        assert_eq!(Digest::from_hex(&digest.hex()), Some(digest));
        assert_eq!(Digest::from_hex(&digest.hex().to_uppercase()), None);
        assert_eq!(Digest::from_hex("00"), None);
    }
}
