//! `ictflow check`: every problem of a configuration, its files and its connections, all at once.
//!
//! `CHECKS` is the list of what is looked at: a connector with a probe of its own gets a line there.
//! Nothing is written, created or fenced, but by [`probe`], which is asked for by name. A check that needs what another one has found broken says
//! nothing, so that a problem is told once.

mod connections;
mod files;
mod limits;
mod services;

use crate::config::checked::{Config, InputFiles};
use crate::config::parse;
use crate::config::raw::Raw;
use crate::conformance;
use ictflow_connectors::kafka::conformance::Row;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Something that a person must mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The check that found it.
    pub check: &'static str,
    /// The key of the configuration, the line of the file, the path or the topic.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

/// A problem before the check's name stands on it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    key: String,
    problem: String,
    hint: String,
}

impl Finding {
    fn new(key: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Finding { key: key.into(), problem: problem.into(), hint: hint.into() }
    }

    /// A failure of a connector as a finding.
    fn of(key: impl Into<String>, error: Error) -> Self {
        Finding::new(key, format!("{}: {}", error.context, error.detail), error.hint)
    }
}

/// One named check.
struct Check {
    name: &'static str,
    /// Whether it needs a connection: left out by `--offline`.
    connects: bool,
    /// What an earlier check must have found, else this one can't be made.
    needs: Needs,
    run: fn(&mut Subject) -> Vec<Finding>,
}

/// What a check looks at that an earlier one opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    /// The configuration of the store has no problem.
    StoreConfig,
    /// The store was reached.
    Store,
    /// The encoder loaded, which gives the width of vectors.
    Encoder,
}

impl Needs {
    /// Why a check can't be made.
    fn missing(self, subject: &Subject, store_config: bool) -> Option<&'static str> {
        match self {
            Needs::StoreConfig | Needs::Store if !store_config => {
                Some("the configuration of the store has problems")
            }
            Needs::Store if subject.topics.is_none() => {
                Some("there is no store to look at: see above, or it is made by the first start")
            }
            Needs::Encoder if subject.encoder.is_none() => {
                Some("the encoder didn't load, so the width of vectors isn't known")
            }
            _ => None,
        }
    }
}

/// What is looked at once the configuration is read, in this order.
const CHECKS: &[Check] = &[
    Check { name: "limits", connects: false, needs: Needs::Nothing, run: limits::limits },
    Check { name: "state folder", connects: false, needs: Needs::Nothing, run: files::state },
    Check { name: "input files", connects: false, needs: Needs::Nothing, run: files::inputs },
    Check { name: "secrets", connects: false, needs: Needs::Nothing, run: files::secrets },
    Check { name: "certificates", connects: false, needs: Needs::Nothing, run: files::certificates },
    Check { name: "encoder", connects: false, needs: Needs::Nothing, run: files::encoder },
    Check { name: "ict weights", connects: false, needs: Needs::Encoder, run: files::weights },
    Check { name: "generator", connects: false, needs: Needs::Nothing, run: files::generator },
    Check { name: "record sizes", connects: false, needs: Needs::Nothing, run: limits::record_sizes },
    Check { name: "topics store", connects: true, needs: Needs::StoreConfig, run: connections::store },
    Check { name: "input topics", connects: true, needs: Needs::Store, run: connections::inputs },
    Check { name: "partition counts", connects: true, needs: Needs::Store, run: connections::partitions },
    Check { name: "topic settings", connects: true, needs: Needs::Store, run: connections::topic_settings },
    Check { name: "recorded job", connects: true, needs: Needs::Store, run: connections::recorded },
    Check { name: "schema registry", connects: true, needs: Needs::Nothing, run: services::registry },
    Check { name: "llm service", connects: true, needs: Needs::Nothing, run: services::llm },
    Check { name: "vector store", connects: true, needs: Needs::Encoder, run: services::points },
];

/// What the checks look at, and what the earlier ones found out for the later ones.
struct Subject {
    config: Config,
    /// The encoder's id and width, once it was loaded.
    encoder: Option<(String, usize)>,
    /// The width of a vector, once the weights were loaded.
    vector: Option<usize>,
    /// The store, once it was reached.
    topics: Option<Box<dyn Topics>>,
}

/// What is checked.
#[derive(Clone, Debug)]
pub enum Target {
    /// A configuration file.
    Config(PathBuf),
    /// The state folder of a job on files or `local` topics.
    State(PathBuf),
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Checks that were made, good or bad.
    pub checked: Vec<&'static str>,
    /// Checks that were not, each with the reason.
    pub skipped: Vec<(&'static str, String)>,
    /// The problems.
    pub problems: Vec<Problem>,
    /// What the broker was seen to do, where it was tried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conformance: Vec<Row>,
}

impl Report {
    fn add(&mut self, check: &'static str, findings: Vec<Finding>) {
        self.checked.push(check);
        self.problems.extend(findings.into_iter().map(|Finding { key, problem, hint }| Problem {
            check,
            key,
            problem,
            hint,
        }));
    }
}

/// Checks everything that a job would need.
pub fn check(target: &Target, offline: bool) -> Report {
    let mut report = Report::default();
    let read = match target {
        Target::Config(path) => read(path),
        Target::State(state) => remembered(state),
    };
    let (raw, files, mut findings) = match read {
        Ok(read) => read,
        Err(error) => {
            report.add("configuration", vec![Finding::of("configuration", error)]);
            return report;
        }
    };
    let Some(raw) = raw else {
        report.add("configuration", findings);
        report.skipped.extend(CHECKS.iter().map(|check| (check.name, "the file isn't TOML".to_owned())));
        return report;
    };
    findings.extend(Config::problems(&raw).into_iter().map(value));
    let topics = |finding: &Finding| finding.key.contains("topics");
    let reachable = !findings.iter().any(topics);
    // A misfit has a line for a key: what it left out may have been the store.
    let whole = !findings.iter().any(|finding| finding.key.starts_with("line "));
    report.add("configuration", findings);
    let mut subject =
        Subject { config: Config::build(raw, files), encoder: None, vector: None, topics: None };
    for check in CHECKS {
        let skipped = match check.connects {
            true if offline => Some("--offline"),
            true if !whole => Some("the configuration couldn't be read whole"),
            _ => check.needs.missing(&subject, reachable),
        };
        match skipped {
            Some(why) => report.skipped.push((check.name, why.to_owned())),
            None => {
                let findings = (check.run)(&mut subject);
                report.add(check.name, findings);
            }
        }
    }
    report
}

/// The check of [`probe`].
const PROBE: &str = "broker conformance";

/// Tries whether the broker keeps its transactions, and adds what was seen. It writes to the topic that the
/// configuration names; a configuration with problems isn't tried.
pub fn probe(target: &Target, report: &mut Report) {
    let config = match target {
        Target::Config(path) => Config::read_with_inputs(path),
        Target::State(_) => {
            report.skipped.push((PROBE, "the topics of a state folder aren't on a broker".to_owned()));
            return;
        }
    };
    let key = "topics.kafka.conformance_topic";
    match config.and_then(|config| conformance::prove(&config)) {
        Ok(Some(seen)) => {
            let findings = seen.refusal().map(|refusal| Finding::of(key, refusal)).into_iter().collect();
            report.conformance = seen.rows;
            report.add(PROBE, findings);
        }
        Ok(None) => {
            let why = "the topics aren't on kafka, or topics.kafka.conformance_topic is off";
            report.skipped.push((PROBE, why.to_owned()));
        }
        Err(error) => report.add(PROBE, vec![Finding::of(key, error)]),
    }
}

type Read = (Option<Raw>, Option<InputFiles>, Vec<Finding>);

/// Reads a configuration file.
fn read(path: &Path) -> Result<Read> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::fatal(format!("read {}", path.display()), e, "name a TOML file with --config"))?;
    let (raw, misfits) = parse::parse(&text);
    let findings = misfits.into_iter().map(|misfit| {
        let key = misfit.line.map_or_else(|| path.display().to_string(), |line| format!("line {line}"));
        Finding::new(key, misfit.message, "deploy/config has commented examples with every key")
    });
    Ok((raw, None, findings.collect()))
}

/// The configuration of a job without a file: its state folder, and the inputs that are noted there.
fn remembered(state: &Path) -> Result<Read> {
    if !state.is_dir() {
        return Err(Error::fatal(
            format!("find {}", state.display()),
            "it isn't a folder",
            "name the state folder of a job that has run, or a configuration with --config",
        ));
    }
    let files = InputFiles::of_state(state)?;
    let plain = || Raw { state: Some(state.to_owned()), ..Raw::default() };
    Ok((Some(files.as_ref().map_or_else(plain, |files| files.raw(state))), files, Vec::new()))
}

/// A problem of the values, which begins with its key and may have a hint behind a colon.
fn value(problem: String) -> Finding {
    let (key, _) = problem.split_once(' ').unwrap_or((&problem, ""));
    let key = key.trim_end_matches(':').to_owned();
    let told = problem.strip_prefix(&key).unwrap_or(&problem).trim_start_matches([':', ' ']);
    let (detail, hint) =
        told.split_once(": ").unwrap_or((told, "deploy/config has commented examples with every key"));
    Finding::new(key, detail, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_of_the_values_has_its_key_and_hint() {
        let found = value("semantics.demonstrations must be even: half are positive, half negative".into());
        assert_eq!(found.key, "semantics.demonstrations");
        assert_eq!(found.problem, "must be even");
        assert_eq!(found.hint, "half are positive, half negative");
        let found = value("workers must be 1 to 256".into());
        assert_eq!((found.key.as_str(), found.problem.as_str()), ("workers", "must be 1 to 256"));
        assert!(found.hint.contains("deploy/config"));
        let found = value("semantics: times must be 0 to one century in milliseconds".into());
        assert_eq!(found.key, "semantics");
        assert_eq!(found.problem, "times must be 0 to one century in milliseconds");
    }

    #[test]
    fn the_names_of_checks_are_distinct() {
        let names: std::collections::BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
