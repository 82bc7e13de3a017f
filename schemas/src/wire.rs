//! Values on topics: single-object Avro with the schemas of `schemas/wire`.
//!
//! A value is the marker `C3 01`, the writer schema's CRC-64-AVRO fingerprint (little-endian) and
//! the Avro datum. Every version of every schema stays in `schemas/wire` and its golden bytes must
//! decode for ever. Lines of `files` carry the same records as JSON.

use crate::candidates::Candidates;
use crate::cot::CotRecord;
use crate::dead_letter::DeadLetter;
use crate::embedding::Embedding;
use crate::epoch::{EpochRecord, Progress};
use crate::example::ExampleRecord;
use crate::feature::Feature;
use crate::interaction::Interaction;
use crate::item::Item;
use crate::topic::Topic;
use apache_avro::Schema;
use apache_avro::rabin::Rabin;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::OnceLock;

/// Optional bytes of a record: Avro `bytes`, and in JSON an array of numbers.
pub use apache_avro::serde::bytes_opt as optional_bytes;

const MARKER: [u8; 2] = [0xC3, 0x01];
const HEADER: usize = 10;

/// The CRC-64-AVRO fingerprint of a schema's canonical form, little-endian. Schemas with the same
/// fingerprint write the same bytes: docs, defaults and logical types don't count.
pub fn fingerprint(schema: &Schema) -> [u8; 8] {
    let print = schema.fingerprint::<Rabin>();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&print.bytes);
    bytes
}

/// Every version of a topic's schema, newest last; there is at least one.
pub fn versions(topic: Topic) -> &'static [Version] {
    &codec(topic).versions
}

/// Puts the single-object header before a datum.
pub fn single_object(fingerprint: [u8; 8], datum: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + datum.len());
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&fingerprint);
    out.extend_from_slice(datum);
    out
}

/// The fingerprint and the datum of a single-object value; `None` where it has no such header.
pub fn split_single_object(value: &[u8]) -> Option<([u8; 8], &[u8])> {
    let (header, datum) = value.split_at_checked(HEADER)?;
    let fingerprint = header.strip_prefix(&MARKER)?.try_into().ok()?;
    Some((fingerprint, datum))
}

/// Why a value could not be read. It is poison: the record can never be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not single-object Avro.
    #[error("value does not start with the single-object marker C3 01: is it written with another framing?")]
    Marker,
    /// An unknown writer schema.
    #[error("value has the schema fingerprint {0}, which no version of this topic has")]
    Fingerprint(String),
    /// Not a datum of its schema, or bytes follow it.
    #[error("value is no datum of its schema: {0}")]
    Datum(String),
}

/// One version of a topic's schema.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// The CRC-64-AVRO fingerprint, little-endian, as values carry it.
    pub fingerprint: [u8; 8],
    /// The schema.
    pub schema: &'static Schema,
    /// The text of its file in `schemas/wire`.
    pub source: &'static str,
}

/// The schemas of one kind of record: every version, newest last.
pub(crate) struct Codec {
    versions: Vec<Version>,
}

impl Codec {
    /// The codec of these schemas, of which there is at least one.
    pub(crate) fn new(sources: &[&'static str]) -> Self {
        // A damaged length in a small value must not ask for more memory than any record has. It is a
        // setting of the process; the first call counts.
        apache_avro::util::max_allocation_bytes(crate::limits::RECORD_BYTES);
        let versions = sources
            .iter()
            .map(|source| {
                // The schemas are compiled in, and a test parses each: this cannot fail at run time.
                let schema = Schema::parse_str(source).expect("a schema of schemas/wire parses");
                let fingerprint = fingerprint(&schema);
                Version { fingerprint, schema: &*Box::leak(Box::new(schema)), source }
            })
            .collect();
        Codec { versions }
    }

    fn newest(&self) -> &Version {
        self.versions.last().expect("a topic has at least one schema")
    }

    /// A record as single-object Avro under the newest schema.
    pub(crate) fn encode(&self, record: &impl Serialize) -> Vec<u8> {
        let Version { fingerprint, schema, .. } = self.newest();
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&MARKER);
        out.extend_from_slice(fingerprint);
        // Both can only fail where type and schema differ, which the golden test of each type rules out.
        GenericDatumWriter::builder(schema)
            .build()
            .and_then(|writer| writer.write_ser(&mut out, record))
            .expect("a record is a datum of its own schema");
        out
    }

    /// Reads single-object Avro of any version.
    pub(crate) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, WireError> {
        let (fingerprint, mut datum) = split_single_object(bytes).ok_or(WireError::Marker)?;
        let version = self
            .versions
            .iter()
            .find(|version| version.fingerprint == fingerprint)
            .ok_or_else(|| WireError::Fingerprint(crate::framing::hex(&fingerprint)))?;
        let record = GenericDatumReader::builder(version.schema)
            .build()
            .and_then(|reader| reader.read_deser(&mut datum))
            .map_err(|e| WireError::Datum(e.to_string()))?;
        if !datum.is_empty() {
            return Err(WireError::Datum(format!("{} bytes follow the datum", datum.len())));
        }
        Ok(record)
    }
}

macro_rules! codecs {
    ($($topic:ident => [$($file:literal),+]),+ $(,)?) => {
        fn codec(topic: Topic) -> &'static Codec {
            match topic {
                $(Topic::$topic => {
                    static CODEC: OnceLock<Codec> = OnceLock::new();
                    CODEC.get_or_init(|| Codec::new(&[$(include_str!(concat!("../wire/", $file))),+]))
                })+
            }
        }
    };
}

codecs! {
    Interactions => ["interactions.v1.avsc"],
    Items => ["items.v1.avsc"],
    Candidates => ["candidates.v1.avsc"],
    Cot => ["cot.v1.avsc"],
    Embeddings => ["embeddings.v1.avsc"],
    Epochs => ["epochs.v1.avsc", "epochs.v2.avsc"],
    Progress => ["progress.v1.avsc", "progress.v2.avsc"],
    Features => ["features.v1.avsc", "features.v2.avsc"],
    Examples => ["examples.v1.avsc", "examples.v2.avsc"],
    DeadLetters => ["dead_letters.v1.avsc"],
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Single-object Avro: `local` and `kafka` without a registry.
    Avro,
    /// The record as one JSON object: lines of `files`.
    Json,
}

/// A record type with its topic.
pub trait Wire: Serialize + DeserializeOwned {
    /// The topic whose values are of this type.
    const TOPIC: Topic;

    /// The value as single-object Avro under the newest schema.
    fn encode(&self) -> Vec<u8> {
        codec(Self::TOPIC).encode(self)
    }

    /// Reads single-object Avro of any version of the topic's schema.
    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        codec(Self::TOPIC).decode(bytes)
    }

    /// Reads a value of a format.
    fn decode_as(format: Format, bytes: &[u8]) -> Result<Self, WireError> {
        match format {
            Format::Avro => Self::decode(bytes),
            Format::Json => serde_json::from_slice(bytes).map_err(|e| WireError::Datum(e.to_string())),
        }
    }
}

impl Wire for Interaction {
    const TOPIC: Topic = Topic::Interactions;
}
impl Wire for Item {
    const TOPIC: Topic = Topic::Items;
}
impl Wire for Candidates {
    const TOPIC: Topic = Topic::Candidates;
}
impl Wire for CotRecord {
    const TOPIC: Topic = Topic::Cot;
}
impl Wire for Embedding {
    const TOPIC: Topic = Topic::Embeddings;
}
impl Wire for EpochRecord {
    const TOPIC: Topic = Topic::Epochs;
}
impl Wire for Progress {
    const TOPIC: Topic = Topic::Progress;
}
impl Wire for Feature {
    const TOPIC: Topic = Topic::Features;
}
impl Wire for ExampleRecord {
    const TOPIC: Topic = Topic::Examples;
}
impl Wire for DeadLetter {
    const TOPIC: Topic = Topic::DeadLetters;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interaction() -> Interaction {
        Interaction {
            event_id: "e".into(),
            user_id: "u".into(),
            item_id: "i".into(),
            kind: "rate".into(),
            value: Some(4.5),
            impression_id: None,
            event_time: -7,
        }
    }

    #[test]
    fn every_schema_parses_and_values_come_back() {
        for topic in Topic::ALL {
            assert!(!codec(topic).versions.is_empty());
        }
        let value = interaction();
        assert_eq!(Interaction::decode(&value.encode()), Ok(value));
    }

    #[test]
    fn damaged_values_are_refused_not_misread() {
        let bytes = interaction().encode();
        for cut in 0..bytes.len() {
            assert!(Interaction::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(Interaction::decode(&longer), Err(WireError::Datum(_))));
        // A length that claims far more than follows, and negative and endless ones.
        for length in [&[0xfe, 0xff, 0xff, 0xff, 0x0f][..], &[0xff; 9], &[0x01], &[0xff; 12]] {
            let lying = [&bytes[..HEADER], length, b"rest"].concat();
            assert!(matches!(Interaction::decode(&lying), Err(WireError::Datum(_))), "{length:?}");
        }
        let mut other = bytes;
        other[2] ^= 1;
        assert!(matches!(Interaction::decode(&other), Err(WireError::Fingerprint(_))));
    }
}
