//! What a producer's schema means to ours, by Avro's rules of resolution. Pure: no request here.
//!
//! * Fields go by name (or an alias of ours), in any order; fields of theirs that we don't have are
//!   skipped, fields of ours that they don't have take our default. Names and namespaces of records
//!   don't matter.
//! * int is read as long, float or double, long as float or double, float as double; bytes and string
//!   are one where the bytes are UTF-8.
//! * A union of theirs is read by the branch that was written.
//!
//! Three things are stricter than Avro, since they would be read as something else in silence: a time
//! that isn't in milliseconds by its logical type, a schema that has none of our fields, and a schema
//! that contains itself, whose nesting has no bound.

use super::compare::{examine, place};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{fingerprint, single_object, versions};
use serde_json::Value as Json;
use std::collections::HashMap;

/// How the values of one writer schema are read as records of a topic.
pub enum Reading {
    /// It writes the bytes of one of our own versions.
    Ours([u8; 8]),
    /// Each datum is resolved.
    Resolved(Box<Resolved>),
    /// No value of it can be read; why.
    Never(String),
}

/// A writer schema that is resolved to our newest one.
pub struct Resolved {
    writer: Schema,
    topic: Topic,
}

impl Reading {
    /// How values of a schema are read as records of a topic.
    pub fn new(topic: Topic, text: &str) -> Self {
        match Self::of(topic, text) {
            Ok(reading) => reading,
            Err(problem) => Reading::Never(problem),
        }
    }

    fn of(topic: Topic, text: &str) -> Result<Self, String> {
        let (writer, findings) = examine(topic, text)?;
        if !findings.problems.is_empty() {
            return Err(findings.problems.join("; "));
        }
        let print = fingerprint(&writer);
        if versions(topic).iter().any(|version| version.fingerprint == print) {
            return Ok(Reading::Ours(print));
        }
        Ok(Reading::Resolved(Box::new(Resolved { writer, topic })))
    }

    /// A datum as single-object Avro.
    ///
    /// # Errors
    /// Why this datum can't be read; nothing of its content is repeated.
    pub fn read(&self, datum: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Reading::Ours(print) => Ok(single_object(*print, datum)),
            Reading::Never(problem) => Err(problem.clone()),
            Reading::Resolved(resolved) => resolved.read(datum),
        }
    }
}

impl Resolved {
    fn read(&self, mut datum: &[u8]) -> Result<Vec<u8>, String> {
        // The library's errors may repeat values, which are a person's data.
        let value = GenericDatumReader::builder(&self.writer)
            .build()
            .and_then(|reader| reader.read_value(&mut datum))
            .map_err(|_| "the bytes are no datum of their schema".to_owned())?;
        if !datum.is_empty() {
            return Err(format!("{} bytes follow the datum", datum.len()));
        }
        let Some(newest) = versions(self.topic).last() else { return Err("no schema of ours".into()) };
        let value = convert(value, newest.schema, "")?;
        let mut out = single_object(newest.fingerprint, &[]);
        GenericDatumWriter::builder(newest.schema)
            .build()
            .and_then(|writer| writer.write_value(&mut out, value))
            .map_err(|_| "it is no value of our schema".to_owned())?;
        Ok(out)
    }
}

/// A value that was read by a writer schema, as a value of ours. By value and not by the library's own
/// resolution, which takes more than Avro allows: a map for a record, a double for a float.
fn convert(value: Value, ours: &Schema, path: &str) -> Result<Value, String> {
    let value = match value {
        Value::Union(_, inner) => *inner,
        value => value,
    };
    Ok(match (value, ours) {
        (value, Schema::Union(union)) => {
            // Of the branches that take it the first one of its own type, else the first.
            let branches = || union.variants().iter().enumerate();
            let same = branches().find(|(_, branch)| own_type(&value, branch));
            for (at, branch) in same.into_iter().chain(branches()) {
                if let Ok(value) = convert(value.clone(), branch, path) {
                    return Ok(Value::Union(at as u32, Box::new(value)));
                }
            }
            return Err(misfit(path));
        }
        (Value::Record(fields), Schema::Record(ours)) => {
            let mut fields: HashMap<String, Value> = fields.into_iter().collect();
            let mut out = Vec::with_capacity(ours.fields.len());
            for field in &ours.fields {
                let path = place(path, &field.name);
                let found = std::iter::once(&field.name).chain(&field.aliases).find_map(|n| fields.remove(n));
                let value = match (found, &field.default) {
                    (Some(value), _) => convert(value, &field.schema, &path)?,
                    (None, Some(default)) => default_of(default, &field.schema, &path)?,
                    (None, None) => return Err(format!("field {path} is missing and has no default")),
                };
                out.push((field.name.clone(), value));
            }
            Value::Record(out)
        }
        (Value::Array(items), Schema::Array(ours)) => Value::Array(
            items.into_iter().map(|item| convert(item, &ours.items, path)).collect::<Result<_, _>>()?,
        ),
        (Value::Map(items), Schema::Map(ours)) => Value::Map(
            items
                .into_iter()
                .map(|(key, item)| Ok((key, convert(item, &ours.types, path)?)))
                .collect::<Result<_, String>>()?,
        ),
        (Value::Enum(_, symbol), Schema::Enum(ours)) => {
            let known = ours.symbols.iter().position(|ours| *ours == symbol);
            let fallback = || ours.symbols.iter().position(|symbol| Some(symbol) == ours.default.as_ref());
            let at = known.or_else(fallback).ok_or_else(|| misfit(path))?;
            Value::Enum(at as u32, ours.symbols[at].clone())
        }
        (Value::Null, Schema::Null) => Value::Null,
        (value @ Value::Boolean(_), Schema::Boolean)
        | (value @ Value::Int(_), Schema::Int)
        | (value @ Value::Long(_), Schema::Long)
        | (value @ Value::Float(_), Schema::Float)
        | (value @ Value::Double(_), Schema::Double)
        | (value @ Value::Bytes(_), Schema::Bytes)
        | (value @ Value::String(_), Schema::String) => value,
        (Value::Int(n), Schema::Long) => Value::Long(n.into()),
        (Value::Int(n), Schema::Float) => Value::Float(n as f32),
        (Value::Int(n), Schema::Double) => Value::Double(n.into()),
        (Value::Long(n), Schema::Float) => Value::Float(n as f32),
        (Value::Long(n), Schema::Double) => Value::Double(n as f64),
        (Value::Float(x), Schema::Double) => Value::Double(x.into()),
        (Value::Bytes(bytes), Schema::String) => {
            Value::String(String::from_utf8(bytes).map_err(|_| format!("field {path} isn't UTF-8"))?)
        }
        (Value::String(text), Schema::Bytes) => Value::Bytes(text.into_bytes()),
        _ => return Err(misfit(path)),
    })
}

fn misfit(path: &str) -> String {
    if path.is_empty() { "its type isn't ours".into() } else { format!("field {path}: its type isn't ours") }
}

/// Whether a value is of just this type, without a promotion.
fn own_type(value: &Value, schema: &Schema) -> bool {
    matches!(
        (value, schema),
        (Value::Null, Schema::Null)
            | (Value::Boolean(_), Schema::Boolean)
            | (Value::Int(_), Schema::Int)
            | (Value::Long(_), Schema::Long)
            | (Value::Float(_), Schema::Float)
            | (Value::Double(_), Schema::Double)
            | (Value::Bytes(_), Schema::Bytes)
            | (Value::String(_), Schema::String)
            | (Value::Array(_), Schema::Array(_))
            | (Value::Map(_), Schema::Map(_))
            | (Value::Enum(..), Schema::Enum(_))
            | (Value::Record(_), Schema::Record(_))
    )
}

/// The default of a field of ours; of a union it is one of the first branch.
fn default_of(json: &Json, ours: &Schema, path: &str) -> Result<Value, String> {
    let bad = || format!("the default of our field {path} isn't of its type");
    Ok(match (json, ours) {
        (json, Schema::Union(union)) => {
            let first = union.variants().first().ok_or_else(bad)?;
            Value::Union(0, Box::new(default_of(json, first, path)?))
        }
        (Json::Null, Schema::Null) => Value::Null,
        (Json::Bool(on), Schema::Boolean) => Value::Boolean(*on),
        (Json::Number(n), Schema::Int) => {
            Value::Int(n.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(bad)?)
        }
        (Json::Number(n), Schema::Long) => Value::Long(n.as_i64().ok_or_else(bad)?),
        (Json::Number(n), Schema::Float) => Value::Float(n.as_f64().ok_or_else(bad)? as f32),
        (Json::Number(n), Schema::Double) => Value::Double(n.as_f64().ok_or_else(bad)?),
        (Json::String(text), Schema::String) => Value::String(text.clone()),
        (Json::String(text), Schema::Enum(ours)) => {
            let at = ours.symbols.iter().position(|symbol| symbol == text).ok_or_else(bad)?;
            Value::Enum(at as u32, text.clone())
        }
        (Json::Array(items), Schema::Array(ours)) => Value::Array(
            items.iter().map(|item| default_of(item, &ours.items, path)).collect::<Result<_, _>>()?,
        ),
        (Json::Object(items), Schema::Map(ours)) => Value::Map(
            items
                .iter()
                .map(|(key, item)| Ok((key.clone(), default_of(item, &ours.types, path)?)))
                .collect::<Result<_, String>>()?,
        ),
        _ => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_schemas::candidates::Candidates;
    use ictflow_schemas::interaction::Interaction;
    use ictflow_schemas::item::Item;
    use ictflow_schemas::wire::{Wire, split_single_object};

    /// A datum of a schema, by the library's own writer.
    fn datum(schema: &str, value: Value) -> Vec<u8> {
        let schema = Schema::parse_str(schema).unwrap();
        GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap()
    }

    fn record(fields: &[(&str, Value)]) -> Value {
        Value::Record(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn every_schema_of_ours_comes_back_byte_for_byte() {
        for topic in Topic::ALL {
            for version in versions(topic) {
                let reading = Reading::new(topic, version.source);
                assert!(matches!(reading, Reading::Ours(print) if print == version.fingerprint), "{topic:?}");
                assert_eq!(reading.read(b"any"), Ok(single_object(version.fingerprint, b"any")));
            }
        }
    }

    #[test]
    fn another_order_more_fields_fewer_fields_and_promotions_are_resolved() {
        let theirs = r#"{"type":"record","name":"Click","namespace":"shop.web","fields":[
            {"name":"event_time","type":{"type":"long","logicalType":"timestamp-millis"}},
            {"name":"session","type":{"type":"array","items":"int"}},
            {"name":"value","type":["null","float"],"default":null},
            {"name":"kind","type":{"type":"string","avro.java.string":"String"}},
            {"name":"item_id","type":"bytes"},
            {"name":"user_id","type":["null","string"]},
            {"name":"event_id","type":{"type":"string","logicalType":"uuid"}}]}"#;
        let reading = Reading::new(Topic::Interactions, theirs);
        assert!(matches!(reading, Reading::Resolved(_)));
        // Written by hand: the plain types of the schema above, field by field.
        let uuid = "5C0F1E2D-0000-4000-8000-00000000ABCD";
        let mut bytes = vec![13, 4, 2, 4, 0, 2];
        bytes.extend(4.5f32.to_le_bytes());
        for (prefix, field) in [(None, "rate"), (None, "i"), (Some(2), "u"), (None, uuid)] {
            bytes.extend(prefix);
            bytes.push(2 * field.len() as u8);
            bytes.extend(field.as_bytes());
        }
        let value = reading.read(&bytes).unwrap();
        let wanted = Interaction {
            event_id: uuid.into(),
            user_id: "u".into(),
            item_id: "i".into(),
            kind: "rate".into(),
            value: Some(4.5),
            impression_id: None,
            event_time: -7,
        };
        assert_eq!(Interaction::decode(&value), Ok(wanted.clone()));
        assert_eq!(value, wanted.encode(), "just the bytes that we would write");
        // A null where ours may not be, a cut datum, bytes after it: not read, and not misread.
        let at = bytes.iter().rposition(|byte| *byte == b'u').unwrap() - 2;
        let mut null = bytes.clone();
        null.splice(at..at + 3, [0]);
        assert_eq!(reading.read(&null), Err("field user_id: its type isn't ours".to_owned()));
        for cut in 0..bytes.len() {
            assert!(reading.read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(reading.read(&bytes), Err("1 bytes follow the datum".to_owned()));
    }

    #[test]
    fn missing_fields_take_our_defaults() {
        let theirs = r#"{"type":"record","name":"I","fields":[{"name":"title","type":"string"}]}"#;
        let value = Reading::new(Topic::Items, theirs).read(&datum(theirs, record(&[("title", text("T"))])));
        let wanted = Item { title: Some("T".into()), ..serde_json::from_str::<Item>("{}").unwrap() };
        assert_eq!(Item::decode(&value.unwrap()), Ok(wanted));
    }

    #[test]
    fn numbers_go_only_the_way_that_avro_allows() {
        let with = |kind: &str| {
            format!(
                r#"{{"type":"record","name":"C","fields":[{{"name":"computed_at","type":{kind}}},
                {{"name":"items","type":{{"type":"array","items":"string"}}}}]}}"#
            )
        };
        let of = |kind: &str, value: Value| {
            let schema = with(kind);
            let fields = record(&[("computed_at", value), ("items", Value::Array(vec![text("a")]))]);
            Reading::new(Topic::Candidates, &schema).read(&datum(&schema, fields))
        };
        let wanted = Candidates { computed_at: 5, items: vec!["a".into()] }.encode();
        assert_eq!(of(r#""int""#, Value::Int(5)), Ok(wanted.clone()));
        assert_eq!(of(r#""long""#, Value::Long(5)), Ok(wanted.clone()));
        let union = |at, value| Value::Union(at, Box::new(value));
        assert_eq!(of(r#"["string","int"]"#, union(1, Value::Int(5))), Ok(wanted));
        assert!(of(r#"["string","int"]"#, union(0, text("5"))).is_err());
        for (kind, value) in [(r#""double""#, Value::Double(5.0)), (r#""string""#, text("5"))] {
            assert!(of(kind, value).unwrap_err().contains("computed_at"), "{kind}");
        }
    }

    #[test]
    fn a_promotion_within_a_union_takes_our_branch() {
        let theirs = r#"{"type":"record","name":"R","fields":[
            {"name":"event_id","type":"string"},{"name":"user_id","type":"string"},
            {"name":"item_id","type":"string"},{"name":"kind","type":"string"},
            {"name":"value","type":["null","int","long","float"]},{"name":"event_time","type":"int"}]}"#;
        let reading = Reading::new(Topic::Interactions, theirs);
        for (at, value, wanted) in [
            (0, Value::Null, None),
            (1, Value::Int(3), Some(3.0)),
            (2, Value::Long(1 << 40), Some((1i64 << 40) as f64)),
            (3, Value::Float(0.1), Some(f64::from(0.1f32))),
        ] {
            let mut fields: Vec<(&str, Value)> =
                ["event_id", "user_id", "item_id", "kind"].map(|name| (name, text(name))).into();
            fields.push(("value", Value::Union(at, Box::new(value))));
            fields.push(("event_time", Value::Int(9)));
            let value = reading.read(&datum(theirs, record(&fields))).unwrap();
            assert_eq!(Interaction::decode(&value).unwrap().value, wanted);
        }
    }

    #[test]
    fn a_newer_version_of_an_own_topic_is_read_by_this_one() {
        let mut newer: Json = serde_json::from_str(versions(Topic::Progress).last().unwrap().source).unwrap();
        let more = serde_json::json!({"name": "added", "type": ["null", "string"], "default": null});
        newer["fields"].as_array_mut().unwrap().insert(0, more);
        let newer = newer.to_string();
        let fields = [
            ("added", Value::Union(1, Box::new(text("s")))),
            ("job", text("j")),
            ("epoch", Value::Long(4)),
            ("publishing", Value::Boolean(true)),
            ("writer_version", text("9")),
            ("snapshot", Value::Union(1, Box::new(Value::Long(3)))),
        ];
        let value = Reading::new(Topic::Progress, &newer).read(&datum(&newer, record(&fields))).unwrap();
        let progress = ictflow_schemas::epoch::Progress::decode(&value).unwrap();
        assert_eq!((progress.job.as_str(), progress.epoch, progress.publishing), ("j", 4, true));
        assert_eq!(progress.snapshot, Some(3));
        assert!(split_single_object(&value).is_some());
    }
}
