//! Decoded records of any topic as JSON Lines: `ictflow tail`.
//!
//! One line: topic, partition, offset, timestamp, key, headers, value. A key is text for inputs and
//! `cot`, the array of its framed parts for the others; a value that doesn't decode is null, with its
//! bytes as hex under `undecodable`. With `--raw` the bytes of every value stand under `raw`. Both are
//! the bytes that stand on the topic, the registry's framing included.

use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::cot::CotRecord;
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::embedding::Embedding;
use ictflow_schemas::epoch::{EpochRecord, Progress};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::framing::{hex, unframe};
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{Record, Topic};
use ictflow_schemas::wire::{Format, Wire, WireError};
use serde_json::{Map, Value, json};

/// A record as one JSON object.
pub fn line(topic: Topic, name: &str, record: &Record, format: Format, raw: bool) -> Value {
    let mut line = Map::new();
    line.insert("topic".into(), json!(name));
    line.insert("partition".into(), json!(record.partition));
    line.insert("offset".into(), json!(record.offset));
    line.insert("timestamp".into(), json!(record.timestamp));
    line.insert("key".into(), key(topic, record.key.as_deref()));
    let headers: Map<String, Value> = record
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), json!(String::from_utf8_lossy(value))))
        .collect();
    line.insert("headers".into(), Value::Object(headers));
    match record.value.as_deref().map(|bytes| value(topic, bytes, format)) {
        None => line.insert("value".into(), Value::Null),
        Some(Ok(value)) => line.insert("value".into(), value),
        Some(Err(_)) => {
            line.insert("undecodable".into(), json!(record.raw().map(hex)));
            line.insert("value".into(), Value::Null)
        }
    };
    if raw {
        line.insert("raw".into(), json!(record.raw().map(hex)));
    }
    Value::Object(line)
}

/// A key in its readable form.
fn key(topic: Topic, key: Option<&[u8]>) -> Value {
    let Some(key) = key else { return Value::Null };
    let readable = match topic {
        Topic::Interactions | Topic::Items | Topic::Candidates | Topic::Cot => {
            std::str::from_utf8(key).ok().map(|text| json!(text))
        }
        // Which parts are integers is part of each topic's contract.
        Topic::Examples => parts(key, &[1]),
        Topic::Epochs => parts(key, &[1]),
        Topic::DeadLetters => parts(key, &[1, 2]),
        Topic::Features | Topic::Embeddings | Topic::Progress => parts(key, &[]),
    };
    readable.unwrap_or_else(|| json!({ "hex": hex(key) }))
}

fn parts(key: &[u8], integers: &[usize]) -> Option<Value> {
    let part = |(i, part): (usize, &[u8])| {
        if integers.contains(&i) {
            Some(json!(i64::from_be_bytes(part.try_into().ok()?)))
        } else {
            Some(json!(std::str::from_utf8(part).ok()?))
        }
    };
    unframe(key)?.into_iter().enumerate().map(part).collect::<Option<Vec<Value>>>().map(Value::Array)
}

fn value(topic: Topic, bytes: &[u8], format: Format) -> Result<Value, WireError> {
    fn read<T: Wire>(bytes: &[u8], format: Format) -> Result<Value, WireError> {
        let record = T::decode_as(format, bytes)?;
        serde_json::to_value(record).map_err(|e| WireError::Datum(e.to_string()))
    }
    match topic {
        Topic::Interactions => read::<Interaction>(bytes, format),
        Topic::Items => read::<Item>(bytes, format),
        Topic::Candidates => read::<Candidates>(bytes, format),
        Topic::Cot => read::<CotRecord>(bytes, Format::Avro),
        Topic::Embeddings => read::<Embedding>(bytes, Format::Avro),
        Topic::Epochs => read::<EpochRecord>(bytes, Format::Avro),
        Topic::Progress => read::<Progress>(bytes, Format::Avro),
        Topic::Features => read::<Feature>(bytes, Format::Avro),
        Topic::Examples => read::<ExampleRecord>(bytes, Format::Avro),
        Topic::DeadLetters => DeadLetter::decode(bytes).map(|letter| {
            json!({
                "topic": letter.topic,
                "partition": letter.partition,
                "offset": letter.offset,
                "stage": letter.stage,
                "reason": letter.reason,
                "key": letter.key.as_deref().map(hex),
                "payload": letter.payload.as_deref().map(hex),
            })
        }),
    }
}
