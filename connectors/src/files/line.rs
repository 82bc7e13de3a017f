//! One line as a record.

use ictflow_schemas::topic::Record;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The form of a line. What isn't of it, also a misspelt or repeated field, ends as a dead letter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<'a> {
    #[serde(borrow, deserialize_with = "key")]
    key: Option<Cow<'a, str>>,
    /// Not an `Option`: serde would let a missing value pass for a tombstone.
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(default)]
    timestamp: Option<i64>,
}

/// A text or null. With a function of its own the field may not be missing.
fn key<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Ok(Option::<Text<'de>>::deserialize(from)?.map(|text| text.0))
}

/// The record of a line without its end. A line that isn't of the form becomes a record without
/// key, its value the raw line.
pub(super) fn record(offset: i64, line: &[u8]) -> Record {
    parse(offset, line).unwrap_or_else(|| raw(offset, line))
}

/// A line as it is.
pub(super) fn raw(offset: i64, line: &[u8]) -> Record {
    Record {
        partition: 0,
        offset,
        timestamp: None,
        key: None,
        value: Some(line.to_vec()),
        framed: None,
        headers: Vec::new(),
    }
}

fn parse(offset: i64, line: &[u8]) -> Option<Record> {
    // serde would also take an array of the fields in their order.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let form: Form<'_> = serde_json::from_str(std::str::from_utf8(line).ok()?).ok()?;
    let value = form.value.get();
    Some(Record {
        partition: 0,
        offset,
        timestamp: form.timestamp.filter(|&timestamp| timestamp != -1),
        key: form.key.map(|key| key.into_owned().into_bytes()),
        value: (value != "null").then(|| value.as_bytes().to_vec()),
        framed: None,
        headers: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fields(line: &str) -> (Option<String>, Option<String>, Option<i64>) {
        let record = record(3, line.as_bytes());
        assert_eq!((record.partition, record.offset), (0, 3));
        let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| String::from_utf8(bytes).unwrap());
        (text(record.key), text(record.value), record.timestamp)
    }

    #[test]
    fn good_lines() {
        let some = |text: &str| Some(text.to_owned());
        // The bytes of the value exactly: blanks, the order of fields and the form of numbers stay.
        assert_eq!(
            fields(r#" { "timestamp" : 12 , "value" :  {"b": 1.50, "a" :[ ],"a":2} , "key": "u" } "#),
            (some("u"), some(r#"{"b": 1.50, "a" :[ ],"a":2}"#), Some(12))
        );
        assert_eq!(fields(r#"{"key":"\u00e9\n","value":null}"#), (some("é\n"), None, None));
        assert_eq!(fields(r#"{"key":null,"value":"t","timestamp":null}"#), (None, some("\"t\""), None));
        assert_eq!(fields(r#"{"key":"","value":0,"timestamp":-1}"#), (some(""), some("0"), None));
        assert_eq!(fields("{\"key\":\"k\",\"value\":[]}\r"), (some("k"), some("[]"), None));
        // Nesting is the business of whoever reads the value.
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(fields(&format!(r#"{{"key":"k","value":{deep}}}"#)), (some("k"), Some(deep), None));
    }

    #[test]
    fn other_lines_stay_raw() {
        for line in [
            "",
            " ",
            "null",
            "{",
            "text",
            r#"["k",{},5]"#,
            r#"{"key":"k"}"#,
            r#"{"value":{}}"#,
            r#"{"key":5,"value":{}}"#,
            r#"{"key":"k","value":}"#,
            r#"{"key":"k","value":{} } {}"#,
            r#"{"key":"k","value":{},"timestamp":1.5}"#,
            r#"{"key":"k","value":{},"timestamp":"1"}"#,
            r#"{"key":"k","value":{},"timestamp":9223372036854775808}"#,
            r#"{"key":"k","value":{},"timestmp":1}"#,
            r#"{"key":"k","key":"k","value":{}}"#,
            r#"{"key":"\ud800","value":{}}"#,
        ] {
            assert_eq!(fields(line), (None, Some(line.to_owned()), None), "{line}");
        }
        let line = b"{\"key\":\"k\",\"value\":\"\xff\"}";
        assert_eq!(record(0, line).value.unwrap(), line);
        assert_eq!(record(0, line).key, None);
    }
}
