//! A backfill's outputs against the live ones, as they stood at an epoch of the live job.
//!
//! Compared is the newest value of each key: of the live topic the newest that this epoch or an earlier one
//! published. A key of which only later epochs' records are left (compaction took the earlier ones) can't be
//! compared and is counted apart, as are examples older than `--from`, users who were erased, and examples
//! that the live topic's retention has taken. What was served with an example isn't compared.
//!
//! Memory: a digest of each key's value on both topics.

use super::plan::Plan;
use crate::epochs::read_whole;
use crate::names::Names;
use crate::sink::time_of_example;
use crate::tail;
use ictflow_connectors::Result;
use ictflow_connectors::topics::Topics;
use ictflow_schemas::example::comparable;
use ictflow_schemas::framing::unframe;
use ictflow_schemas::topic::{HEADER_EPOCH, Record, Topic};
use ictflow_schemas::wire::Format;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// How many differences are told one by one.
pub const TOLD: usize = 10;

/// How the keys of a topic compare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Keys with the same bytes on both.
    pub equal: u64,
    /// Keys with other bytes.
    pub differ: u64,
    /// Keys that only the backfill has.
    pub only_here: u64,
    /// Keys that only the live job has.
    pub only_live: u64,
    /// Keys that later live epochs wrote and of whose earlier records none is left.
    pub superseded: u64,
    /// Live examples older than `--from`.
    pub before_from: u64,
    /// Live keys of users who were erased.
    pub erased: u64,
    /// Examples without any live record, in partitions where the live topic's retention has taken records.
    #[serde(default)]
    pub expired: u64,
}

impl Compared {
    /// Whether no key differs or is missing.
    pub fn equal(&self) -> bool {
        (self.differ, self.only_here, self.only_live) == (0, 0, 0)
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `features` or `examples`.
    pub topic: String,
    /// The key as `tail` prints it.
    pub key: String,
    /// What differs, and why as far as the records tell.
    pub reason: String,
}

/// The parity report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The live job's epoch that was compared with.
    pub live_epoch: i64,
    /// Whether that epoch holds just what the backfill read: only then must the outputs be equal.
    pub exact: bool,
    /// Epochs that the live job has committed since.
    pub later_epochs: i64,
    /// Features.
    pub features: Compared,
    /// Examples.
    pub examples: Compared,
    /// The first differences.
    pub differences: Vec<Difference>,
}

impl Report {
    /// Whether the outputs are equal. Where the bounds are no live epoch's, keys that later epochs wrote again
    /// tell nothing: then there is no such thing to say.
    pub fn equal(&self) -> bool {
        let told = self.exact || self.features.superseded + self.examples.superseded == 0;
        told && self.features.equal() && self.examples.equal()
    }
}

/// What stands under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark([u8; 16]);

impl Mark {
    fn of(topic: Topic, value: &[u8]) -> Self {
        let mut mark = [0; 16];
        mark.copy_from_slice(&blake3::hash(&comparable(topic, value)).as_bytes()[..16]);
        Mark(mark)
    }
}

/// Compares a backfill's outputs with the live ones. `here` are the backfill's names, `live` those that the
/// live job had at the plan's epoch; `committed` is its committed epoch now.
///
/// # Errors
/// What the store says.
pub fn compare(
    topics: &mut dyn Topics,
    here: &Names,
    live: &Names,
    plan: &Plan,
    committed: i64,
) -> Result<Report> {
    let mut report = Report {
        live_epoch: plan.details.live_epoch,
        exact: plan.details.exact,
        later_epochs: (committed - plan.details.live_epoch).max(0),
        ..Report::default()
    };
    for topic in [Topic::Features, Topic::Examples] {
        let compared =
            compare_topic(topics, topic, here.of(topic), live.of(topic), plan, &mut report.differences)?;
        match topic {
            Topic::Features => report.features = compared,
            _ => report.examples = compared,
        }
    }
    Ok(report)
}

fn compare_topic(
    topics: &mut dyn Topics,
    topic: Topic,
    here: &str,
    live: &str,
    plan: &Plan,
    differences: &mut Vec<Difference>,
) -> Result<Compared> {
    let mut compared = Compared::default();
    let mut own: HashMap<Vec<u8>, (u32, Mark)> = HashMap::new();
    read_whole(topics, here, |record| keep(topic, &mut own, record))?;
    let erased: HashSet<&str> = plan.erasures.iter().map(|erasure| erasure.user.as_str()).collect();
    let starts = topics.starts(live)?;
    let moved = |partition: u32| starts.get(partition as usize).is_some_and(|start| *start > 0);
    let mut theirs: HashMap<Vec<u8>, (u32, Mark)> = HashMap::new();
    let mut later: HashSet<Vec<u8>> = HashSet::new();
    let mut before_from: HashSet<Vec<u8>> = HashSet::new();
    read_whole(topics, live, |record| {
        let Some(key) = &record.key else { return };
        let least = plan.from.get(record.partition as usize).copied().unwrap_or(i64::MIN);
        let early = topic == Topic::Examples && time_of_example(key).is_some_and(|time| time < least);
        if record.number(HEADER_EPOCH).is_some_and(|epoch| epoch > plan.details.live_epoch) {
            later.insert(key.clone());
        } else if early {
            match record.value {
                Some(_) => before_from.insert(key.clone()),
                None => before_from.remove(key),
            };
        } else {
            keep(topic, &mut theirs, record);
        }
    })?;
    compared.before_from = before_from.len() as u64;
    let mut different: BTreeSet<Vec<u8>> = BTreeSet::new();
    for (key, (partition, mark)) in &own {
        match theirs.get(key) {
            Some((_, live)) if live == mark => compared.equal += 1,
            Some(_) => {
                compared.differ += 1;
                different.insert(key.clone());
            }
            None if later.contains(key) => compared.superseded += 1,
            None if topic == Topic::Examples && moved(*partition) => compared.expired += 1,
            None => {
                compared.only_here += 1;
                different.insert(key.clone());
            }
        }
        // The first ones in order of key, whatever the topics' size.
        if different.len() > TOLD {
            different.pop_last();
        }
    }
    for key in theirs.keys().filter(|key| !own.contains_key(*key)) {
        let user = unframe(key).and_then(|parts| std::str::from_utf8(parts.first()?).ok());
        if user.is_some_and(|user| erased.contains(user)) {
            compared.erased += 1;
            continue;
        }
        compared.only_live += 1;
        different.insert(key.clone());
        if different.len() > TOLD {
            different.pop_last();
        }
    }
    let left = TOLD.saturating_sub(differences.len());
    let told: BTreeSet<Vec<u8>> = different.into_iter().take(left).collect();
    differences.extend(explain(topics, topic, here, live, plan, told)?);
    Ok(compared)
}

fn keep(topic: Topic, marks: &mut HashMap<Vec<u8>, (u32, Mark)>, record: Record) {
    let Some(key) = record.key else { return };
    match record.value {
        Some(value) => marks.insert(key, (record.partition, Mark::of(topic, &value))),
        None => marks.remove(&key),
    };
}

/// Says why the values of these keys differ.
fn explain(
    topics: &mut dyn Topics,
    topic: Topic,
    here: &str,
    live: &str,
    plan: &Plan,
    keys: BTreeSet<Vec<u8>>,
) -> Result<Vec<Difference>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    type Lines = BTreeMap<Vec<u8>, (Value, Option<i64>)>;
    let mut lines: [Lines; 2] = [Lines::new(), Lines::new()];
    for (side, name) in [here, live].into_iter().enumerate() {
        read_whole(topics, name, |record| {
            let Some(key) = record.key.clone().filter(|key| keys.contains(key)) else { return };
            let epoch = record.number(HEADER_EPOCH);
            if side == 1 && epoch.is_some_and(|epoch| epoch > plan.details.live_epoch) {
                return;
            }
            lines[side].insert(key, (tail::line(topic, name, &record, Format::Avro, false), epoch));
        })?;
    }
    let [own, theirs] = lines;
    let reason = |key: &Vec<u8>| match (own.get(key), theirs.get(key)) {
        (Some((own, _)), Some((live, epoch))) if own["value"].is_object() && live["value"].is_object() => {
            format!("{} differ; live epoch {}", fields(&own["value"], &live["value"]), said(*epoch))
        }
        (Some((own, _)), Some((live, epoch))) if own["value"].is_object() && live["value"].is_null() => {
            format!("only here; live epoch {} retracted it", said(*epoch))
        }
        (Some((own, _)), None) if own["value"].is_object() => {
            "only here; the live topic has no record of it up to that epoch".to_owned()
        }
        (_, Some((_, epoch))) => format!("only live; published by epoch {}", said(*epoch)),
        _ => "the topics went on meanwhile".to_owned(),
    };
    let key_of = |key: &Vec<u8>| {
        let line = own.get(key).or_else(|| theirs.get(key));
        line.map(|(line, _)| line["key"].to_string()).unwrap_or_default()
    };
    let told = keys.iter().map(|key| Difference {
        topic: topic.name().to_owned(),
        key: key_of(key),
        reason: reason(key),
    });
    Ok(told.collect())
}

fn said(epoch: Option<i64>) -> String {
    epoch.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string())
}

/// The fields in which two values differ.
fn fields(own: &Value, live: &Value) -> String {
    let names: BTreeSet<&String> =
        [own, live].into_iter().filter_map(Value::as_object).flat_map(|fields| fields.keys()).collect();
    let differ: Vec<&str> = names
        .into_iter()
        .filter(|name| *name != "served" && own[*name] != live[*name])
        .map(String::as_str)
        .collect();
    match differ.is_empty() {
        true => "bytes".to_owned(),
        false => differ.join(", "),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "parity with the live job's epoch {} ({} later ones)",
            self.live_epoch, self.later_epochs
        )?;
        if !self.exact {
            writeln!(
                f,
                "  the bounds are no live epoch's: the nearest one before them is shown, and differences are expected"
            )?;
        }
        writeln!(
            f,
            "  {:<9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11} {:>7} {:>8}",
            "", "equal", "differ", "only here", "only live", "superseded", "before from", "erased", "expired"
        )?;
        for (name, c) in [("features", &self.features), ("examples", &self.examples)] {
            writeln!(
                f,
                "  {name:<9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11} {:>7} {:>8}",
                c.equal, c.differ, c.only_here, c.only_live, c.superseded, c.before_from, c.erased, c.expired
            )?;
        }
        for difference in &self.differences {
            writeln!(f, "  {} {}: {}", difference.topic, difference.key, difference.reason)?;
        }
        write!(f, "  {}", if self.equal() { "equal" } else { "not equal" })
    }
}
