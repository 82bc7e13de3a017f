//! What stands against reading a producer's schema as ours: each field by name, with the reason.

use apache_avro::Schema;
use apache_avro::schema::{Name, RecordField, RecordSchema, UuidSchema};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::versions;
use serde_json::Value as Json;
use std::collections::HashMap;

/// What stands against reading a writer schema as ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why no record can be read: field and reason.
    pub problems: Vec<String>,
    /// Fields that can be read only where they are null, and why.
    pub nulls_only: Vec<String>,
    /// Why some records may be unreadable: field and reason.
    pub warnings: Vec<String>,
}

impl Findings {
    fn append(&mut self, mut other: Findings) {
        self.problems.append(&mut other.problems);
        self.nulls_only.append(&mut other.nulls_only);
        self.warnings.append(&mut other.warnings);
    }
}

/// What stands against reading a schema as records of a topic.
///
/// # Errors
/// Why the text is no schema that can be looked at.
pub fn findings(topic: Topic, text: &str) -> Result<Findings, String> {
    examine(topic, text).map(|(_, findings)| findings)
}

/// The schema that data is read with, and what stands against it.
pub(super) fn examine(topic: Topic, text: &str) -> Result<(Schema, Findings), String> {
    let no_schema = |e: apache_avro::Error| format!("its schema isn't Avro's: {e}");
    let mut json: Json = serde_json::from_str(text).map_err(|e| format!("its schema isn't JSON: {e}"))?;
    let typed = Schema::parse(&json).map_err(no_schema)?;
    // Data is read by the plain types: a logical one would be changed on the way, as an upper-case UUID.
    strip_logical(&mut json);
    let writer = Schema::parse(&json).map_err(no_schema)?;
    if recursive(&writer, &mut Vec::new()) {
        return Err("its schema contains itself".into());
    }
    let Some(newest) = versions(topic).last() else { return Err("no schema of ours".into()) };
    let mut findings = Findings::default();
    let mut names = HashMap::new();
    collect(&typed, &mut names);
    compare(&typed, newest.schema, "", &names, &mut findings);
    if findings.problems.is_empty()
        && let (Some(theirs), Schema::Record(ours)) = (record(&typed), newest.schema)
        && !ours.fields.iter().any(|field| field_of(theirs, field).is_some())
    {
        findings.problems.push("it has none of our fields: every record would read as an empty one".into());
    }
    Ok((writer, findings))
}

/// The record of a schema, also where it is a union with null.
fn record(schema: &Schema) -> Option<&RecordSchema> {
    match schema {
        Schema::Record(record) => Some(record),
        Schema::Union(union) => union.variants().iter().find_map(record),
        _ => None,
    }
}

/// Their field for one of ours: by name, else by an alias of ours.
fn field_of<'a>(theirs: &'a RecordSchema, ours: &RecordField) -> Option<&'a RecordField> {
    std::iter::once(&ours.name)
        .chain(&ours.aliases)
        .find_map(|name| theirs.fields.iter().find(|field| field.name == *name))
}

/// The named types of a schema, to follow references.
fn collect<'a>(schema: &'a Schema, names: &mut HashMap<Name, &'a Schema>) {
    if let Some(name) = schema.name()
        && !matches!(schema, Schema::Ref { .. })
    {
        names.insert(name.clone(), schema);
    }
    for child in children(schema) {
        collect(child, names);
    }
}

/// The schemas that a schema holds.
fn children(schema: &Schema) -> Vec<&Schema> {
    match schema {
        Schema::Array(array) => vec![&array.items],
        Schema::Map(map) => vec![&map.types],
        Schema::Union(union) => union.variants().iter().collect(),
        Schema::Record(record) => record.fields.iter().map(|field| &field.schema).collect(),
        _ => Vec::new(),
    }
}

/// Whether a type stands within itself: then a small datum could nest without a bound.
fn recursive<'a>(schema: &'a Schema, within: &mut Vec<&'a Name>) -> bool {
    match schema {
        Schema::Ref { name } => within.contains(&name),
        Schema::Record(record) => {
            within.push(&record.name);
            let found = record.fields.iter().any(|field| recursive(&field.schema, within));
            within.pop();
            found
        }
        _ => children(schema).into_iter().any(|child| recursive(child, within)),
    }
}

/// Removes logical types from a schema, where a schema stands and nowhere else.
fn strip_logical(json: &mut Json) {
    match json {
        Json::Array(branches) => branches.iter_mut().for_each(strip_logical),
        Json::Object(schema) => {
            schema.remove("logicalType");
            for key in ["type", "items", "values"] {
                schema.get_mut(key).map(strip_logical);
            }
            if let Some(Json::Array(fields)) = schema.get_mut("fields") {
                for field in fields {
                    field.get_mut("type").map(strip_logical);
                }
            }
        }
        _ => {}
    }
}

/// The path of a field.
pub(super) fn place(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Adds what stands against reading `theirs` as `ours` at a path.
fn compare<'a>(
    theirs: &'a Schema,
    ours: &Schema,
    path: &str,
    names: &HashMap<Name, &'a Schema>,
    findings: &mut Findings,
) {
    let subject = if path.is_empty() { "the record".to_owned() } else { format!("field {path}") };
    match (theirs, ours) {
        // A reference can't lead back to itself here: our schemas end, and each step goes down in ours.
        (Schema::Ref { name }, _) => match names.get(name) {
            Some(theirs) => compare(theirs, ours, path, names, findings),
            None => findings.problems.push(format!("{subject}: type {name} isn't defined")),
        },
        (Schema::Union(union), _) => {
            let (mut null, mut readable) = (false, 0);
            let mut against = Vec::new();
            for branch in union.variants() {
                let mut inner = Findings::default();
                compare(branch, ours, path, names, &mut inner);
                let problems = std::mem::take(&mut inner.problems);
                findings.append(inner);
                match (branch, problems.is_empty()) {
                    (Schema::Null, true) => null = true,
                    (Schema::Null, false) => {
                        findings.warnings.push(format!("{subject} may be null, and ours may not"));
                    }
                    (_, true) => readable += 1,
                    (_, false) => against.extend(problems),
                }
            }
            let list = match (readable, null) {
                (0, true) => &mut findings.nulls_only,
                (0, false) => &mut findings.problems,
                _ => &mut findings.warnings,
            };
            list.append(&mut against);
        }
        (_, Schema::Union(union)) => {
            let tried = union.variants().iter().map(|branch| {
                let mut inner = Findings::default();
                compare(theirs, branch, path, names, &mut inner);
                (branch, inner)
            });
            // Of branches that all fail the last that isn't null tells most.
            let (mut fits, mut fails) = (None, Findings::default());
            for (branch, inner) in tried {
                match (inner.problems.is_empty(), branch) {
                    (true, _) => fits = fits.or(Some(inner)),
                    (false, Schema::Null) => {}
                    (false, _) => fails = inner,
                }
            }
            findings.append(fits.unwrap_or(fails));
        }
        (Schema::Record(theirs), Schema::Record(ours)) => {
            for field in &ours.fields {
                let path = place(path, &field.name);
                match field_of(theirs, field) {
                    Some(found) => compare(&found.schema, &field.schema, &path, names, findings),
                    None if field.default.is_some() => {}
                    None => findings.problems.push(format!("field {path} is missing and has no default")),
                }
            }
        }
        (Schema::Array(theirs), Schema::Array(ours)) => {
            compare(&theirs.items, &ours.items, &format!("{path}[]"), names, findings);
        }
        (Schema::Map(theirs), Schema::Map(ours)) => {
            compare(&theirs.types, &ours.types, &format!("{path}{{}}"), names, findings);
        }
        (Schema::Enum(theirs), Schema::Enum(ours)) => {
            let lost: Vec<&str> =
                theirs.symbols.iter().filter(|s| !ours.symbols.contains(s)).map(String::as_str).collect();
            if ours.default.is_none() && !lost.is_empty() {
                findings.warnings.push(format!("{subject}: we don't know {}", lost.join(", ")));
            }
        }
        (theirs, ours) if scalar(theirs, ours) => {}
        (theirs, ours) => {
            let hint = match (theirs, ours) {
                (
                    Schema::TimestampMicros
                    | Schema::TimestampNanos
                    | Schema::LocalTimestampMicros
                    | Schema::LocalTimestampNanos
                    | Schema::TimeMicros
                    | Schema::TimeMillis
                    | Schema::Date,
                    Schema::Long,
                ) => ": ours are milliseconds",
                _ => "",
            };
            findings.problems.push(format!("{subject} is {}, ours is {}{hint}", kind(theirs), kind(ours)));
        }
    }
}

/// Whether a plain type is read as a plain type of ours.
fn scalar(theirs: &Schema, ours: &Schema) -> bool {
    use Schema as S;
    matches!(
        (theirs, ours),
        (S::Null, S::Null)
            | (S::Boolean, S::Boolean)
            | (S::Int, S::Int | S::Long | S::Float | S::Double)
            | (S::Long | S::TimestampMillis | S::LocalTimestampMillis, S::Long)
            | (S::Long, S::Float | S::Double)
            | (S::Float, S::Float | S::Double)
            | (S::Double, S::Double)
            | (S::String | S::Bytes | S::Uuid(UuidSchema::String), S::String)
            | (S::String | S::Bytes, S::Bytes)
    )
}

/// A type as a schema names it.
fn kind(schema: &Schema) -> &'static str {
    match schema {
        Schema::Null => "null",
        Schema::Boolean => "boolean",
        Schema::Int => "int",
        Schema::Long => "long",
        Schema::Float => "float",
        Schema::Double => "double",
        Schema::Bytes => "bytes",
        Schema::String => "string",
        Schema::Array(_) => "an array",
        Schema::Map(_) => "a map",
        Schema::Union(_) => "a union",
        Schema::Record(_) => "a record",
        Schema::Enum(_) => "an enum",
        Schema::Fixed(_) => "fixed",
        Schema::Decimal(_) | Schema::BigDecimal => "a decimal",
        Schema::Uuid(_) => "a uuid",
        Schema::Date => "a date",
        Schema::TimeMillis => "time-millis",
        Schema::TimeMicros => "time-micros",
        Schema::TimestampMillis => "timestamp-millis",
        Schema::TimestampMicros => "timestamp-micros",
        Schema::TimestampNanos => "timestamp-nanos",
        Schema::LocalTimestampMillis => "local-timestamp-millis",
        Schema::LocalTimestampMicros => "local-timestamp-micros",
        Schema::LocalTimestampNanos => "local-timestamp-nanos",
        Schema::Duration(_) => "a duration",
        Schema::Ref { .. } => "a reference",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The schema of an interaction with some fields replaced or left out.
    fn interaction(change: &[(&str, Option<Json>)]) -> String {
        let source = versions(Topic::Interactions).last().unwrap().source;
        let mut schema: Json = serde_json::from_str(source).unwrap();
        let fields = schema["fields"].as_array_mut().unwrap();
        for (name, kind) in change {
            match kind {
                None => fields.retain(|field| field["name"] != *name),
                Some(kind) => match fields.iter_mut().find(|field| field["name"] == *name) {
                    Some(field) => *field = serde_json::json!({"name": name, "type": kind}),
                    None => fields.push(serde_json::json!({"name": name, "type": kind})),
                },
            }
        }
        schema.to_string()
    }

    fn of(change: &[(&str, Option<Json>)]) -> Findings {
        findings(Topic::Interactions, &interaction(change)).unwrap()
    }

    #[test]
    fn what_avro_resolves_is_no_problem() {
        let nothing = Findings::default();
        for kind in [r#""int""#, r#""long""#, r#"{"type":"long","logicalType":"timestamp-millis"}"#] {
            assert_eq!(of(&[("event_time", serde_json::from_str(kind).unwrap())]), nothing, "{kind}");
        }
        for kind in [
            r#"["null","float"]"#,
            r#""int""#,
            r#"["int","null"]"#,
            r#""double""#,
            r#"["null","int","double"]"#,
        ] {
            assert_eq!(of(&[("value", serde_json::from_str(kind).unwrap())]), nothing, "{kind}");
        }
        for kind in [r#"{"type":"string","avro.java.string":"String"}"#, r#""bytes""#] {
            assert_eq!(of(&[("user_id", serde_json::from_str(kind).unwrap())]), nothing, "{kind}");
        }
        let uuid = serde_json::json!({"type": "string", "logicalType": "uuid"});
        assert_eq!(of(&[("event_id", Some(uuid))]), nothing);
        assert_eq!(
            of(&[("value", None), ("impression_id", None), ("device", Some("string".into()))]),
            nothing
        );
    }

    #[test]
    fn a_problem_names_its_field_and_its_reason() {
        let table: [(&[(&str, Option<Json>)], &str); 7] = [
            (&[("event_time", None)], "field event_time is missing and has no default"),
            (&[("event_time", Some("string".into()))], "field event_time is string, ours is long"),
            (
                &[(
                    "event_time",
                    Some(serde_json::json!({"type": "long", "logicalType": "timestamp-micros"})),
                )],
                "field event_time is timestamp-micros, ours is long: ours are milliseconds",
            ),
            (&[("user_id", Some("long".into()))], "field user_id is long, ours is string"),
            (&[("value", Some("string".into()))], "field value is string, ours is double"),
            (&[("kind", Some(serde_json::json!(["int", "long"])))], "field kind is long, ours is string"),
            (
                &[("kind", Some(serde_json::json!({"type": "enum", "name": "K", "symbols": ["click"]})))],
                "field kind is an enum, ours is string",
            ),
        ];
        for (change, wanted) in table {
            let found = of(change);
            assert!(found.problems.iter().any(|problem| problem == wanted), "{wanted}: {found:?}");
        }
        // All at once.
        assert_eq!(of(&[("event_time", None), ("item_id", None)]).problems.len(), 2);
    }

    #[test]
    fn what_some_records_can_break_is_told_apart() {
        let found = of(&[("item_id", Some(serde_json::json!(["null", "string"])))]);
        assert_eq!(found.warnings, ["field item_id may be null, and ours may not"]);
        assert!(found.problems.is_empty() && found.nulls_only.is_empty());
        let found = of(&[("impression_id", Some(serde_json::json!(["null", "long"])))]);
        assert_eq!(found.nulls_only, ["field impression_id is long, ours is string"]);
        assert!(found.problems.is_empty());
        let found = of(&[("value", Some(serde_json::json!(["null", "double", "string"])))]);
        assert_eq!(found.warnings, ["field value is string, ours is double"]);
    }

    #[test]
    fn nested_types_are_named_by_their_path() {
        let schema = |items: &str| {
            format!(
                r#"{{"type":"record","name":"C","fields":[{{"name":"computed_at","type":"long"}},
                {{"name":"items","type":{{"type":"array","items":{items}}}}}]}}"#
            )
        };
        let of = |items: &str| findings(Topic::Candidates, &schema(items)).unwrap();
        assert_eq!(of(r#""string""#), Findings::default());
        assert_eq!(of(r#""long""#).problems, ["field items[] is long, ours is string"]);
        assert_eq!(of(r#"["null","string"]"#).warnings, ["field items[] may be null, and ours may not"]);
    }

    #[test]
    fn what_would_be_read_as_something_else_is_refused() {
        let strange = r#"{"type":"record","name":"Order","fields":[{"name":"amount","type":"long"}]}"#;
        let found = findings(Topic::Items, strange).unwrap();
        assert!(found.problems[0].contains("none of our fields"), "{found:?}");
        let nested = r#"{"type":"record","name":"Item","fields":[{"name":"title","type":"string"},
            {"name":"parent","type":["null","Item"],"default":null}]}"#;
        assert_eq!(findings(Topic::Items, nested).unwrap_err(), "its schema contains itself");
        // A type that is used twice doesn't contain itself.
        let twice = r#"{"type":"record","name":"Item","fields":[{"name":"title","type":"string"},
            {"name":"a","type":{"type":"record","name":"P","fields":[{"name":"x","type":"int"}]}},
            {"name":"b","type":"P"}]}"#;
        assert_eq!(findings(Topic::Items, twice), Ok(Findings::default()));
        assert!(findings(Topic::Items, "{").unwrap_err().contains("JSON"));
        assert!(findings(Topic::Items, r#"{"type":"nothing"}"#).unwrap_err().contains("Avro"));
    }
}
