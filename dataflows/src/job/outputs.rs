//! Which topics and collection a job writes: those of its configuration, until a record of `epochs` names
//! others (`promote`, `rollback`).
//!
//! The record is durable before its epoch is committed, and from then on every start follows it: a switch
//! that was cut short is finished by whoever starts next. The epoch publishes the difference between the
//! job's state and what stands on the outputs that it goes to. Examples that are final there stay as they
//! are; what "final" means is known from the epoch at which these topics were last written whole, by this
//! job or by the backfill that filled them. So a snapshot of after that epoch isn't loaded for a switch: it
//! has forgotten examples that these topics still lack. Users who were erased while these outputs weren't in
//! force go from them with that epoch: a backfill that holds one is refused before (`backfill`).

use super::start::bounds_at;
use super::{Job, Options, Recorded, read_progress};
use crate::epochs;
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::epoch::{EpochRecord, Outputs};
use ictflow_schemas::topic::Topic;
use std::collections::BTreeSet;

/// The name of a backfill's own job.
pub fn backfill_job(job: &str, backfill: &str) -> String {
    format!("{job}.backfill.{backfill}")
}

/// The outputs that a configuration names.
pub fn configured(names: &Names, collection: Option<&str>) -> Outputs {
    Outputs {
        features: names.of(Topic::Features).to_owned(),
        examples: names.of(Topic::Examples).to_owned(),
        collection: collection.map(str::to_owned),
    }
}

/// What a job's records say of its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Those in force.
    pub active: Outputs,
    /// Those before the last promote, to which a rollback goes; `None` where nothing was promoted.
    pub before: Option<Outputs>,
}

/// Follows the switches on record. A switch to the outputs before the last promote is its rollback.
pub fn standing(records: &[EpochRecord], configured: Outputs) -> Standing {
    let mut standing = Standing { active: configured, before: None };
    for outputs in records.iter().filter_map(|record| record.outputs.as_ref()) {
        let back = standing.before.as_ref().is_some_and(|before| before.features == outputs.features);
        if !back && standing.active.features != outputs.features {
            standing.before = Some(standing.active.clone());
        }
        standing.active = outputs.clone();
    }
    standing
}

/// The names that readers follow: those of the outputs in force at the job's committed epoch. The job is
/// the one named, or, without a name, the only one on these topics.
///
/// # Errors
/// What the store says, or `Fatal` where the records can't be read.
pub fn active(topics: &mut dyn Topics, names: &Names, job: Option<&str>) -> Result<Names> {
    for topic in [Topic::Epochs, Topic::Progress] {
        if topics.partitions(names.of(topic))?.is_none() {
            return Ok(names.clone());
        }
    }
    let progress = read_progress(topics, names.of(Topic::Progress), job)?;
    let found = match job {
        Some(job) => progress.iter().find(|progress| progress.job == job),
        None => progress.first().filter(|_| progress.len() == 1),
    };
    let Some(found) = found else { return Ok(names.clone()) };
    let records = epochs::load(topics, names.of(Topic::Epochs), &found.job)?;
    Ok(at(names, &records, found.epoch))
}

/// The names with the outputs in force at an epoch. `names` are the configured ones.
pub fn at(names: &Names, records: &[EpochRecord], epoch: i64) -> Names {
    let until = records.iter().filter(|record| record.epoch <= epoch);
    let newest = until.rev().find_map(|record| record.outputs.as_ref());
    newest.map_or_else(|| names.clone(), |outputs| names.with_outputs(outputs))
}

/// Where a start writes, and what it has to know of these outputs.
#[derive(Debug)]
pub(super) struct Place {
    /// The topics' names.
    pub names: Names,
    /// The collection, where it isn't the configured one.
    pub collection: Option<String>,
    /// The greatest epoch of a backfill that filled the collection.
    pub base: i64,
    /// The partition maxima when the outputs were last written whole; `None` where they never were.
    pub maxima: Option<Vec<Millis>>,
    /// The newest epoch whose snapshot still has every example that isn't final there.
    pub snapshot: i64,
    /// Users who were erased since these outputs were last written: what stands of them there goes with the
    /// first commit.
    pub left_behind: BTreeSet<String>,
}

impl Place {
    /// Reads where a job's outputs go: to those that its options ask to switch to, else to the newest on
    /// record. The job's predecessors must be fenced.
    ///
    /// # Errors
    /// `Fatal` where a switch is asked for and a recorded epoch isn't committed yet; where the backfill that
    /// filled the outputs can't be found any more; and what the store says.
    pub(super) fn find(
        topics: &mut dyn Topics,
        options: &Options,
        records: &[EpochRecord],
        committed: i64,
    ) -> Result<Self> {
        let last = records.last().map_or(0, |record| record.epoch);
        if options.switch.is_some() && last > committed {
            return Err(Error::fatal(
                "switch the outputs",
                format!("epoch {last} is recorded and not committed"),
                "try again: the next start of the job commits it first",
            ));
        }
        let own = options.names.of(Topic::Features);
        let on_record = records.iter().rev().find_map(|record| record.outputs.as_ref());
        let target = options.switch.as_ref().or(on_record);
        let features = target.map_or(own, |outputs| outputs.features.as_str());
        let mut place = Place {
            names: target.map_or_else(|| options.names.clone(), |target| options.names.with_outputs(target)),
            collection: target.and_then(|target| target.collection.clone()),
            base: 0,
            maxima: None,
            snapshot: committed,
            left_behind: BTreeSet::new(),
        };
        if let Some(bounded) = &options.bounded {
            place.collection.clone_from(&bounded.collection);
        }
        let filled = match options.names.backfill_of(features) {
            Some(backfill) => Some(filled(topics, options, backfill)?),
            None => None,
        };
        place.base = filled.as_ref().map_or(0, |filled| filled.epoch);
        let last_written = last_written(records, own, features, committed);
        if let Some(epoch) = last_written {
            let since = records.iter().filter(|record| record.epoch > epoch && record.epoch <= committed);
            let erased = since.flat_map(|record| &record.erasures);
            place.left_behind = erased.map(|erasure| erasure.user.clone()).collect();
        }
        place.maxima = match last_written {
            Some(epoch) => bounds_at(records, epoch)?.map(|record| record.maxima.clone()),
            None => filled.map(|filled| filled.maxima),
        };
        if let Some(maxima) = &place.maxima {
            let holds =
                |record: &&EpochRecord| record.maxima.iter().zip(maxima).all(|(there, here)| there <= here);
            let known = records.iter().filter(|record| record.epoch <= committed).take_while(holds).last();
            place.snapshot = known.map_or(0, |record| record.epoch);
        }
        Ok(place)
    }
}

/// The last epoch up to the committed one that a job wrote to these features.
fn last_written(records: &[EpochRecord], own: &str, features: &str, committed: i64) -> Option<i64> {
    let mut to = own;
    let mut written = None;
    for record in records.iter().filter(|record| record.epoch <= committed) {
        if let Some(outputs) = &record.outputs {
            to = &outputs.features;
        }
        if to == features {
            written = Some(record.epoch);
        }
    }
    written
}

/// The last committed bounds of a backfill of this job.
fn filled(topics: &mut dyn Topics, options: &Options, backfill: &str) -> Result<EpochRecord> {
    let (names, job) = (options.names.of_backfill(backfill), backfill_job(&options.job, backfill));
    let gone = || {
        Error::fatal(
            format!("go on with the outputs of backfill {backfill}"),
            "no committed epoch of it is on record",
            "keep the backfill's own topics while its outputs are in use",
        )
    };
    let mut filled = Recorded::read(topics, &names, &job)?;
    filled.records.retain(|record| record.epoch <= filled.committed);
    filled.records.pop().ok_or_else(gone)
}

impl Job {
    /// Switches to the outputs that the job was opened with, in an epoch of its own, and says which epoch
    /// that is.
    ///
    /// # Errors
    /// Those of [`Job::step`]; `Fatal` where the job wasn't opened for a switch.
    pub fn switch_outputs(&mut self) -> Result<i64> {
        let Some(outputs) = self.options.switch.clone() else {
            return Err(Error::fatal(
                "switch the outputs",
                "the job wasn't opened for it",
                "this is a defect: please report it",
            ));
        };
        let mut record = self.record();
        record.outputs = Some(outputs);
        let epoch = record.epoch;
        self.commit(record, crate::sources::Harvest::default())?;
        self.finish_whole()?;
        Ok(epoch)
    }

    /// The job's name.
    pub fn job_name(&self) -> &str {
        &self.options.job
    }

    /// The topics' names with the outputs in force.
    pub fn names(&self) -> &Names {
        &self.options.names
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_schemas::epoch::Actives;
    use std::collections::BTreeMap;

    fn outputs(features: &str) -> Outputs {
        Outputs { features: features.to_owned(), examples: format!("{features}-e"), collection: None }
    }

    fn record(epoch: i64, to: Option<&str>) -> EpochRecord {
        EpochRecord {
            job: "j".to_owned(),
            epoch,
            ends: BTreeMap::new(),
            maxima: vec![epoch],
            clock: epoch,
            actives: Actives::default(),
            config_digest: String::new(),
            config: None,
            starts: BTreeMap::new(),
            erasures: Vec::new(),
            outputs: to.map(outputs),
        }
    }

    fn records(switches: &[Option<&str>]) -> Vec<EpochRecord> {
        (1..).zip(switches).map(|(epoch, to)| record(epoch, *to)).collect()
    }

    #[test]
    fn a_rollback_goes_to_what_was_before_the_last_promote_however_often() {
        let own = || outputs("f");
        type Case<'a> = (&'a [Option<&'a str>], &'a str, Option<&'a str>);
        let table: [Case; 6] = [
            (&[None, None], "f", None),
            (&[None, Some("f.a")], "f.a", Some("f")),
            (&[None, Some("f.a"), Some("f")], "f", Some("f")),
            (&[None, Some("f.a"), Some("f"), Some("f.a")], "f.a", Some("f")),
            (&[None, Some("f.a"), None, Some("f.b")], "f.b", Some("f.a")),
            (&[None, Some("f.a"), Some("f.b"), Some("f.a")], "f.a", Some("f.a")),
        ];
        for (switches, active, before) in table {
            let found = standing(&records(switches), own());
            assert_eq!(found.active.features, active, "{switches:?}");
            assert_eq!(found.before.map(|before| before.features).as_deref(), before, "{switches:?}");
        }
    }

    #[test]
    fn the_last_epoch_that_wrote_somewhere_is_found() {
        let records = records(&[None, None, Some("f.a"), None, Some("f"), Some("f.b")]);
        for (features, committed, found) in [
            ("f", 2, Some(2)),
            ("f", 4, Some(2)),
            ("f", 6, Some(5)),
            ("f.a", 2, None),
            ("f.a", 6, Some(4)),
            ("f.b", 5, None),
            ("f.b", 6, Some(6)),
        ] {
            assert_eq!(last_written(&records, "f", features, committed), found, "{features} at {committed}");
        }
    }
}
