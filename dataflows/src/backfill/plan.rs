//! What a backfill was asked to do and how it ended, on record.
//!
//! Both stand on the backfill's own log of bounds, as records of a job whose name ends in `.plan`: epoch 0
//! is what was asked (the lowest offset wins, so a second start goes on with the first one's bounds),
//! epoch 1 how it ended (the greatest offset wins). `tail epochs` shows them like any other record.

use crate::epochs::{new_record, read_whole};
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::epoch::{Actives, EpochRecord, Erasure};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use ictflow_schemas::{Millis, NO_TIME};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::parity::Report;

/// The longest name of a backfill: it ends the names of its topics, of which Kafka takes 249 characters.
pub const MAX_NAME: usize = 64;

/// What a backfill does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// By input, the offsets from which nothing is taken.
    pub until: BTreeMap<Topic, Vec<i64>>,
    /// By partition of `interactions`, the least event time of examples that are published; empty for all.
    pub from: Vec<Millis>,
    /// The live job's erasures when it began: it never had these users.
    pub erasures: Vec<Erasure>,
    /// The rest.
    pub details: Details,
}

/// What of a plan no field of a bounds record is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// The `--from` that was given.
    pub from: Option<String>,
    /// The `--to` that was given.
    pub to: Option<String>,
    /// The live job's epoch that the outputs are held against.
    pub live_epoch: i64,
    /// Whether the bounds are just that epoch's: then the outputs must be equal.
    pub exact: bool,
    /// Records of `interactions` in one epoch at most.
    pub epoch_events: usize,
    /// Whether what has no answer is asked.
    pub generate: bool,
    /// The collection of its points, where there is a store of points.
    pub collection: Option<String>,
}

/// How a backfill ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its last epoch.
    pub epoch: i64,
    /// Keys asked by the process that ended it.
    pub called: u64,
    /// Texts that it embedded.
    pub embedded: u64,
    /// How its outputs compare with the live ones, once that was looked at.
    pub parity: Option<Report>,
}

/// Checks the name of a backfill.
///
/// # Errors
/// `Fatal` where no topic and collection could be named by it.
pub fn check_name(name: &str) -> Result<()> {
    let legal = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    // `active` would name the collection as the alias is named.
    if (1..=MAX_NAME).contains(&name.len()) && legal && name != "active" {
        return Ok(());
    }
    Err(Error::fatal(
        "name the backfill",
        format!("{name:?} is no name for one"),
        "give 1 to 64 letters, digits, dashes or underscores, and not the word active",
    ))
}

fn plan_job(job: &str) -> String {
    format!("{job}.plan")
}

fn record(job: &str, epoch: i64, text: String) -> EpochRecord {
    EpochRecord {
        job: plan_job(job),
        epoch,
        ends: BTreeMap::new(),
        maxima: Vec::new(),
        clock: NO_TIME,
        actives: Actives::default(),
        config_digest: if epoch == 0 { "plan" } else { "outcome" }.to_owned(),
        config: Some(text),
        starts: BTreeMap::new(),
        erasures: Vec::new(),
        outputs: None,
    }
}

impl Plan {
    fn to_record(&self, job: &str) -> Result<EpochRecord> {
        let ends = self.until.iter().map(|(topic, ends)| (topic.name().to_owned(), ends.clone()));
        Ok(EpochRecord {
            ends: ends.collect(),
            maxima: self.from.clone(),
            erasures: self.erasures.clone(),
            ..record(job, 0, json(&self.details)?)
        })
    }

    fn of_record(name: &str, record: EpochRecord) -> Option<Self> {
        let ends = record.ends.into_iter().filter_map(|(name, ends)| Some((Topic::from_name(&name)?, ends)));
        Some(Plan {
            name: name.to_owned(),
            until: ends.collect(),
            from: record.maxima,
            erasures: record.erasures,
            details: serde_json::from_str(&record.config?).ok()?,
        })
    }
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::fatal("write the plan of the backfill", e, "this is a defect: please report it"))
}

/// The plan of a backfill and how it ended, as far as they are on record. `names` are the backfill's.
///
/// # Errors
/// What the store says, or `Fatal` where the plan can't be read.
pub fn read(
    topics: &mut dyn Topics,
    names: &Names,
    job: &str,
    name: &str,
) -> Result<(Option<Plan>, Option<Outcome>)> {
    let topic = names.of(Topic::Epochs);
    if topics.partitions(topic)?.is_none() {
        return Ok((None, None));
    }
    let (mut plan, mut outcome) = (None, None);
    let of = plan_job(job);
    read_whole(topics, topic, |record| {
        let Some(Ok(record)) = record.value.as_deref().map(EpochRecord::decode) else { return };
        match record.epoch {
            0 if record.job == of => {
                plan.get_or_insert(record);
            }
            1 if record.job == of => outcome = Some(record),
            _ => {}
        }
    })?;
    let unreadable = || {
        Error::fatal(
            format!("read the plan of backfill {name}"),
            format!("its record on {topic} can't be read"),
            "was it written by a newer version? run that one",
        )
    };
    let plan = plan.map(|record| Plan::of_record(name, record).ok_or_else(unreadable)).transpose()?;
    let outcome = outcome
        .map(|record| serde_json::from_str(record.config.as_deref().unwrap_or_default()))
        .transpose()
        .map_err(|_| unreadable())?;
    Ok((plan, outcome))
}

/// Puts a plan on record.
///
/// # Errors
/// What the store says.
pub fn write_plan(topics: &mut dyn Topics, names: &Names, job: &str, plan: &Plan) -> Result<()> {
    append(topics, names, plan.to_record(job)?)
}

/// Puts on record how a backfill ended.
///
/// # Errors
/// What the store says.
pub fn write_outcome(topics: &mut dyn Topics, names: &Names, job: &str, outcome: &Outcome) -> Result<()> {
    append(topics, names, record(job, 1, json(outcome)?))
}

fn append(topics: &mut dyn Topics, names: &Names, record: EpochRecord) -> Result<()> {
    let topic = names.of(Topic::Epochs);
    topics.ensure(topic, 1, Topic::Epochs.policy())?;
    topics.append(&[new_record(topic, &record)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_connectors::local::Local;

    #[test]
    fn names_end_where_topics_do() {
        for (name, fits) in [
            ("a", true),
            ("2026-11-24_b", true),
            (&*"n".repeat(64), true),
            (&*"n".repeat(65), false),
            ("", false),
            ("a.b", false),
            ("a b", false),
            ("ä", false),
            ("active", false),
        ] {
            assert_eq!(check_name(name).is_ok(), fits, "{name}");
        }
    }

    #[test]
    fn the_first_plan_and_the_last_outcome_stand() {
        let folder = tempfile::tempdir().unwrap();
        let mut topics = Local::open(folder.path().join("t.sqlite")).unwrap();
        let names = Names::new(&BTreeMap::new(), "").of_backfill("b");
        let job = "j.backfill.b";
        assert_eq!(read(&mut topics, &names, job, "b").unwrap(), (None, None));
        let plan = |events| Plan {
            name: "b".to_owned(),
            until: BTreeMap::from([(Topic::Interactions, vec![7, 0]), (Topic::Cot, vec![1])]),
            from: vec![5, NO_TIME],
            erasures: vec![Erasure { user: "u".into(), interactions: 3, candidates: 0 }],
            details: Details { epoch_events: events, to: Some("epoch:4".into()), ..Details::default() },
        };
        write_plan(&mut topics, &names, job, &plan(1)).unwrap();
        write_plan(&mut topics, &names, job, &plan(2)).unwrap();
        for epoch in [3, 4] {
            write_outcome(&mut topics, &names, job, &Outcome { epoch, ..Outcome::default() }).unwrap();
        }
        let (found, outcome) = read(&mut topics, &names, job, "b").unwrap();
        assert_eq!((found, outcome.map(|outcome| outcome.epoch)), (Some(plan(1)), Some(4)));
        // No job sees them as bounds of its own.
        assert!(crate::epochs::load(&mut topics, names.of(Topic::Epochs), job).unwrap().is_empty());
    }
}
