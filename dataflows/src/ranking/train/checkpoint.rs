//! The checkpoint of a training in its folder: one file, written after every check, replaced as a whole.
//!
//! It says of which training it is: all that decides the weights. Another one is refused, naming what differs, so
//! that a mistyped option never throws hours away.

use super::super::cell::Key;
use super::super::fit::key_of;
use super::super::model::ModelError;
use super::{remove, write};
use ictflow_connectors::{Error, Result};
use ictflow_operators::ranking::tables::Rows;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What to do about one that is of no use.
const HINT: &str = "give the options it was begun with, another --out, or --restart to throw it away";

/// The checkpoint of one training.
pub(super) struct Checkpoints {
    path: PathBuf,
    key: Value,
}

impl Checkpoints {
    /// In the folder of a training.
    pub(super) fn of(out: &Path, key: &Key, rows: Rows) -> Result<Self> {
        let rows = serde_json::to_value(rows).map_err(|error| {
            Error::fatal("write a checkpoint", error, "this is a defect: please report it")
        })?;
        let mut key = key.value()?;
        if let Value::Object(key) = &mut key {
            key.insert("rows".to_owned(), rows);
        }
        Ok(Checkpoints { path: out.join("checkpoint").join("state.safetensors"), key })
    }

    /// What says of which training one is.
    pub(super) fn key(&self) -> &Value {
        &self.key
    }

    /// The bytes of the one that is there.
    ///
    /// # Errors
    /// `Fatal` where it can't be read or is of another training.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::fatal(self.context(), error, HINT)),
        };
        let found = key_of(&bytes).map_err(|error| self.unusable(&error))?;
        match differences(&found, &self.key) {
            differences if differences.is_empty() => Ok(Some(bytes)),
            differences => {
                let detail = format!("it is of another training: {}", differences.join(", "));
                Err(Error::fatal(self.context(), detail, HINT))
            }
        }
    }

    /// Replaces it.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        write(&self.path, bytes)
    }

    /// Throws it away.
    pub(super) fn remove(&self) -> Result<()> {
        remove(&self.path)
    }

    /// The error of one that is damaged.
    pub(super) fn unusable(&self, error: &ModelError) -> Error {
        Error::fatal(self.context(), error, HINT)
    }

    fn context(&self) -> String {
        format!("go on from the checkpoint {}", self.path.display())
    }
}

/// What differs between two keys, each with both values, theirs first.
fn differences(theirs: &Value, ours: &Value) -> Vec<String> {
    let mut all = Vec::new();
    differ("", theirs, ours, &mut all);
    all
}

fn differ(name: &str, theirs: &Value, ours: &Value, all: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let mut names: Vec<&String> = theirs.keys().chain(ours.keys()).collect();
            names.sort_unstable();
            names.dedup();
            let null = json!(null);
            for part in names {
                let full = if name.is_empty() { part.clone() } else { format!("{name}.{part}") };
                let of = |values: &serde_json::Map<String, Value>| values.get(part).cloned();
                let (theirs, ours) = (of(theirs), of(ours));
                differ(&full, theirs.as_ref().unwrap_or(&null), ours.as_ref().unwrap_or(&null), all);
            }
        }
        (theirs, ours) if theirs != ours => all.push(format!("{name} is {theirs} there and {ours} here")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_with_both_values() {
        let theirs = json!({"seed": 1, "training": {"batch": 64, "epochs": 2}, "old": true});
        let ours = json!({"seed": 2, "training": {"batch": 64, "epochs": 3}});
        assert_eq!(
            differences(&theirs, &ours),
            [
                "old is true there and null here",
                "seed is 1 there and 2 here",
                "training.epochs is 2 there and 3 here"
            ]
        );
        assert!(differences(&ours, &ours).is_empty());
    }
}
