//! Whether the schemas of a registry and ours fit, before a job starts.

use super::client::{Client, Found};
use super::{compare, file_of, is_input, newest, written};
use crate::Result;
use ictflow_schemas::topic::Topic;
use std::collections::BTreeMap;

/// What a check found. A problem names the topic, the field and the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compatibility {
    /// What would make records unreadable or the job stop.
    pub problems: Vec<String>,
    /// What may make some records unreadable.
    pub warnings: Vec<String>,
}

/// Checks the newest schema of each input's subject against ours, and ours against the subjects of
/// the topics that we write. Registers nothing.
///
/// # Errors
/// `Fatal` where the registry can't be asked within the limits: then nothing is known.
pub fn check_compatibility(client: &Client, roles: &BTreeMap<String, Topic>) -> Result<Compatibility> {
    let mut found = Compatibility::default();
    client.probe()?;
    for (name, topic) in roles {
        let subject = client.config().subject(name);
        if is_input(*topic) {
            input(client, name, &subject, *topic, &mut found)?;
        } else if written(*topic) {
            output(client, name, &subject, *topic, &mut found)?;
        }
    }
    Ok(found)
}

fn input(client: &Client, name: &str, subject: &str, topic: Topic, found: &mut Compatibility) -> Result<()> {
    let place = format!("topic {name}, subject {subject}");
    let problem = match client.latest(subject)? {
        Found::Unknown => {
            found.warnings.push(format!("{place}: no schema is registered yet"));
            return Ok(());
        }
        Found::TooLarge => "its schema is beyond registry.max_schema_bytes".to_owned(),
        Found::Schema(stored) if !stored.avro => "its schema isn't of Avro".to_owned(),
        Found::Schema(stored) if stored.references => {
            "its schema refers to other subjects, which isn't supported".to_owned()
        }
        Found::Schema(stored) => match compare::findings(topic, &stored.text) {
            Err(problem) => problem,
            Ok(findings) => {
                let told = |text: String| format!("{place}: {text}");
                found.problems.extend(findings.problems.into_iter().chain(findings.nulls_only).map(told));
                found.warnings.extend(findings.warnings.into_iter().map(told));
                return Ok(());
            }
        },
    };
    found.problems.push(format!("{place}: {problem}"));
    Ok(())
}

fn output(client: &Client, name: &str, subject: &str, topic: Topic, found: &mut Compatibility) -> Result<()> {
    let source = newest(topic).source;
    let place = format!("topic {name}, subject {subject}");
    if client.lookup(subject, source)?.is_some() {
        return Ok(());
    }
    if !client.config().register {
        let file = file_of(topic);
        found.problems.push(format!("{place}: {file} isn't registered, and registry.register is off"));
    }
    if let Some(words) = client.incompatibility(subject, source)? {
        found.problems.push(format!("{place}: the registry refuses our schema: {words}"));
    }
    Ok(())
}
