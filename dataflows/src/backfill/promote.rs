//! Making a backfill's outputs the live job's own, and taking that back.
//!
//! Either takes the live job over, which fences a `run` of it (its supervisor starts it again), and commits
//! one epoch whose bounds record names the outputs from then on. Where one is cut short after that record,
//! whoever starts the job next finishes it. Doing either again changes nothing.

use super::plan::{self, Plan};
use super::{Outcome, check_erasures, check_name};
use crate::job::outputs::{self, backfill_job};
use crate::job::{Job, Options, Parts, Recorded, Started};
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::epoch::Outputs;
use ictflow_schemas::topic::Topic;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// By how many records of `interactions` a backfill may be behind the live job by default: what it lacks is
/// published in one epoch.
pub const MAX_BEHIND: u64 = 1_000_000;

/// How often a switch tries again where the live job recorded an epoch meanwhile.
const TRIES: u32 = 3;

/// What is demanded of a backfill before it is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// Promotes one that hasn't ended, isn't equal or is far behind.
    pub force: bool,
    /// By how many records of `interactions` it may be behind.
    pub max_behind: u64,
}

impl Default for Demands {
    fn default() -> Self {
        Demands { force: false, max_behind: MAX_BEHIND }
    }
}

/// What a promote or a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The outputs in force.
    pub outputs: Outputs,
    /// The epoch that switched to them; `None` where they were in force already.
    pub epoch: Option<i64>,
}

/// Makes a backfill's outputs the live job's. `parts` makes what the live job is made of, `live` are its
/// options, `collection` is the configured one.
///
/// # Errors
/// `Fatal` where there is no such backfill, or it doesn't meet the demands; where the job was fenced in turn;
/// and those of [`Job::start`].
pub fn promote(
    parts: impl Fn() -> Result<Parts>,
    semantics: &Arc<Semantics>,
    live: &Options,
    collection: Option<&str>,
    (name, demands): (&str, Demands),
    stop: &AtomicBool,
) -> Result<Switched> {
    check_name(name)?;
    let (names, job) = (live.names.of_backfill(name), backfill_job(&live.job, name));
    let mut made = parts()?;
    let topics = &mut *made.topics;
    let (plan, ended) = plan::read(topics, &names, &job, name)?;
    let Some(plan) = plan else {
        return Err(refused(name, "there is no backfill of that name", "run `ictflow backfill` first"));
    };
    let features = names.of(Topic::Features).to_owned();
    let outputs = Outputs {
        features,
        examples: names.of(Topic::Examples).to_owned(),
        collection: plan.details.collection.clone(),
    };
    let recorded = Recorded::read(topics, &live.names, &live.job)?;
    let configured = outputs::configured(&live.names, collection);
    if outputs::standing(&recorded.records, configured).active.features == outputs.features {
        return settle(made, semantics, live, &recorded, outputs, stop);
    }
    // Whoever still writes these topics, does so no more.
    let fences = [topics.writer(&format!("{job}.epochs"))?, topics.writer(&job)?];
    let filled = Recorded::read(topics, &names, &job)?;
    check(topics, live, &recorded, &plan, ended.as_ref(), &filled, demands)?;
    drop(fences);
    switch(made, parts, semantics, live, outputs, stop)
}

/// Goes back to the outputs before the last promote.
///
/// # Errors
/// `Fatal` where nothing was promoted; and those of [`promote`].
pub fn rollback(
    parts: impl Fn() -> Result<Parts>,
    semantics: &Arc<Semantics>,
    live: &Options,
    collection: Option<&str>,
    stop: &AtomicBool,
) -> Result<Switched> {
    let mut made = parts()?;
    let recorded = Recorded::read(&mut *made.topics, &live.names, &live.job)?;
    let standing = outputs::standing(&recorded.records, outputs::configured(&live.names, collection));
    let Some(before) = standing.before else {
        return Err(Error::fatal(
            "roll back",
            format!("job {} never promoted a backfill", live.job),
            "there is nothing to go back to",
        ));
    };
    if before.features == standing.active.features {
        return settle(made, semantics, live, &recorded, before, stop);
    }
    switch(made, parts, semantics, live, before, stop)
}

fn refused(name: &str, detail: impl ToString, hint: &'static str) -> Error {
    Error::fatal(format!("promote backfill {name}"), detail, hint)
}

/// Refuses a backfill that isn't fit to be promoted.
fn check(
    topics: &mut dyn Topics,
    live: &Options,
    recorded: &Recorded,
    plan: &Plan,
    ended: Option<&Outcome>,
    filled: &Recorded,
    demands: Demands,
) -> Result<()> {
    let name = plan.name.as_str();
    let (Some(last), Some(now)) = (filled.up_to_commit().last(), recorded.up_to_commit().last()) else {
        return Err(refused(name, "it or the live job has committed no epoch", "run it first"));
    };
    check_erasures(plan, recorded)?;
    if last.config_digest != now.config_digest || last.actives.encoder != now.actives.encoder {
        return Err(refused(
            name,
            "it was made with other [semantics] or another encoder than the live job's",
            "the live job would overwrite all of it: make a new live job of that configuration instead",
        ));
    }
    for topic in [Topic::Features, Topic::Examples] {
        let (own, theirs) =
            (live.names.of(topic).to_owned(), live.names.of_backfill(name).of(topic).to_owned());
        if topics.partitions(&own)? != topics.partitions(&theirs)? {
            return Err(refused(
                name,
                format!("{theirs} has another partition count than {own}"),
                "make a new backfill on topics of one count",
            ));
        }
    }
    if demands.force {
        return Ok(());
    }
    let Some(ended) = ended else {
        return Err(refused(
            name,
            "it hasn't ended",
            "start it again, it goes on where it was; --force promotes it as it is, and the rest follows in one epoch",
        ));
    };
    match &ended.parity {
        None => {
            return Err(refused(
                name,
                "its parity with the live outputs wasn't looked at",
                "start it again, it compares them; --force promotes it without",
            ));
        }
        Some(report) if !report.equal() => {
            return Err(refused(
                name,
                format!(
                    "its outputs aren't equal to the live ones of epoch {}: {} features and {} examples differ or can't be compared",
                    report.live_epoch,
                    differing(&report.features, report.exact),
                    differing(&report.examples, report.exact),
                ),
                "look at its report; --force promotes it all the same, and the live job writes what differs",
            ));
        }
        Some(_) => {}
    }
    let ends = |record: &ictflow_schemas::epoch::EpochRecord| -> i64 {
        record.ends.get(Topic::Interactions.name()).map_or(0, |ends| ends.iter().sum())
    };
    let behind = ends(now).saturating_sub(ends(last)).max(0) as u64;
    if behind > demands.max_behind {
        return Err(refused(
            name,
            format!("it is {behind} interactions behind the live job, more than {}", demands.max_behind),
            "make a newer one; --max-behind or --force promotes it, and the rest follows in one epoch",
        ));
    }
    Ok(())
}

fn differing(compared: &super::Compared, exact: bool) -> u64 {
    let superseded = if exact { 0 } else { compared.superseded };
    compared.differ + compared.only_here + compared.only_live + superseded
}

/// Takes the job over and commits the epoch that switches.
fn switch(
    mut made: Parts,
    parts: impl Fn() -> Result<Parts>,
    semantics: &Arc<Semantics>,
    live: &Options,
    outputs: Outputs,
    stop: &AtomicBool,
) -> Result<Switched> {
    let mut tries = 0;
    loop {
        tries += 1;
        let recorded = Recorded::read(&mut *made.topics, &live.names, &live.job)?;
        if recorded.records.last().is_some_and(|last| last.epoch > recorded.committed) {
            // Its epoch belongs to the outputs that it had: it is committed there first.
            drop(open(made, semantics, live, None, stop)?);
            made = parts()?;
        }
        match open(made, semantics, live, Some(outputs.clone()), stop) {
            // A `run` that was restarted meanwhile may have recorded one more.
            Err(error) if tries < TRIES && error.context == "switch the outputs" => made = parts()?,
            Err(error) => return Err(error),
            Ok(mut job) => return Ok(Switched { epoch: Some(job.switch_outputs()?), outputs }),
        }
    }
}

/// The outputs are on record already: finishes their epoch, where it was cut short.
fn settle(
    made: Parts,
    semantics: &Arc<Semantics>,
    live: &Options,
    recorded: &Recorded,
    outputs: Outputs,
    stop: &AtomicBool,
) -> Result<Switched> {
    if recorded.records.last().is_some_and(|last| last.epoch > recorded.committed) {
        drop(open(made, semantics, live, None, stop)?);
    }
    Ok(Switched { outputs, epoch: None })
}

fn open(
    made: Parts,
    semantics: &Arc<Semantics>,
    live: &Options,
    switch: Option<Outputs>,
    stop: &AtomicBool,
) -> Result<Job> {
    // Nothing is asked here: the job that goes on does.
    let options = Options { generate: false, switch, ..live.clone() };
    match Job::start_unless(made, semantics.clone(), options, stop, |_| {})? {
        Started::Running(job) => Ok(*job),
        Started::Stopped { replayed, recorded } => Err(Error::fatal(
            "take the job over",
            format!("stopped after {replayed} of {recorded} recorded epochs; nothing was switched"),
            "try again",
        )),
    }
}
