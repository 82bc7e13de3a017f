//! The schema that is written, and where the values of a column that is read stand.

use crate::{Error, Result};
use parquet::basic::{LogicalType, Repetition, TimeUnit};
use parquet::schema::types::{SchemaDescriptor, Type};

/// The message type of a training set. Lists have the three levels that all readers know.
pub(super) const MESSAGE: &str = "
message training_set {
  required binary user_id (string);
  required binary item_id (string);
  required int64 event_time (timestamp(millis, true));
  required binary event_id (string);
  required int32 label;
  required boolean implicit;
  required int64 label_time (timestamp(millis, true));
  required group history (list) {
    repeated group list {
      required group element {
        required binary item_id (string);
        required binary kind (string);
        required binary label (string);
        required int64 event_time (timestamp(millis, true));
      }
    }
  }
  optional binary title (string);
  optional binary creator (string);
  optional group categories (list) { repeated group list { required binary element (string); } }
  optional group tags (list) { repeated group list { required binary element (string); } }
  optional binary description (string);
  optional binary language (string);
  optional int64 served_epoch;
  optional binary served_ict_weights (string);
  optional binary served_vector_kind (string);
  optional group served_ict (list) { repeated group list { required float element; } }
  optional group served_votes (list) { repeated group list { required float element; } }
  optional group served_demonstrations (list) { repeated group list { required binary element (string); } }
  optional group served_neighbours (list) { repeated group list { required binary element (string); } }
}";

/// The column of vectors: floats that hardly ever repeat.
pub(super) const VECTORS: [&str; 3] = ["served_ict", "list", "element"];

/// The key of the file's metadata, and the version of the format.
pub(super) const VERSION: (&str, &str) = ("ictflow.training_set", "1");

/// Where a column's values stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Among the file's columns.
    pub(super) column: usize,
    /// The definition level of a value that is there.
    pub(super) there: i16,
    /// The definition level from which an entry of a list is there; 0 where it is no list.
    pub(super) entry: i16,
    /// What to divide an integer by for milliseconds, times 1: 1, 1,000 or 1,000,000.
    pub(super) per_milli: i64,
}

/// The place of a column, by its first name and, for a struct in a list, the name of the field.
///
/// # Errors
/// `Fatal` where a list isn't a list, or is one of lists.
pub(super) fn place(
    schema: &SchemaDescriptor,
    file: &str,
    name: &str,
    field: Option<&str>,
) -> Result<Option<Place>> {
    let matches = |column: &usize| {
        let column = schema.column(*column);
        let parts = column.path().parts();
        parts.first().is_some_and(|part| part == name)
            && field.is_none_or(|field| parts.len() > 1 && parts.last().is_some_and(|part| part == field))
    };
    let Some(column) = (0..schema.num_columns()).find(matches) else { return Ok(None) };
    let descriptor = schema.column(column);
    if descriptor.max_rep_level() > 1 {
        return Err(Error::fatal(
            format!("reading column {name} of {file}"),
            "it is a list of lists",
            "see the format in connectors/src/parquet/mod.rs",
        ));
    }
    Ok(Some(Place {
        column,
        there: descriptor.max_def_level(),
        entry: entry(schema.get_column_root(column), descriptor.path().parts()),
        per_milli: match descriptor.logical_type_ref() {
            Some(LogicalType::Timestamp(time)) => match time.unit {
                TimeUnit::MILLIS => 1,
                TimeUnit::MICROS => 1_000,
                TimeUnit::NANOS => 1_000_000,
            },
            _ => 1,
        },
    }))
}

/// The definition level from which an entry of the list on a path is there.
fn entry(root: &Type, path: &[String]) -> i16 {
    let (mut node, mut level, mut rest) = (root, 0, &path[1..]);
    loop {
        let info = node.get_basic_info();
        match info.has_repetition().then(|| info.repetition()) {
            Some(Repetition::REPEATED) => return level + 1,
            Some(Repetition::OPTIONAL) => level += 1,
            _ => {}
        }
        let Some((name, others)) = rest.split_first() else { return 0 };
        let next = match node.is_group() {
            true => node.get_fields().iter().find(|field| field.name() == name),
            false => None,
        };
        let Some(next) = next else { return 0 };
        (node, rest) = (next, others);
    }
}
