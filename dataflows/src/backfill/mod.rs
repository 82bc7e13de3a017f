//! Backfills: a job's outputs once more, from its logs, beside it.
//!
//! A backfill NAME of a job J is a job of its own, `J.backfill.NAME`, over the same inputs, `cot` and
//! `embeddings`, with topics of its own (J's names with `.NAME` behind) and a collection of its own
//! (`COLLECTION-NAME`). It goes in coarse epochs up to bounds (`bounds.rs`), publishes, compares what it has
//! with the live outputs (`parity.rs`) and ends. Nothing is asked of the LLM or the encoder unless that is
//! wanted: then answers past the bounds count, its own among them.
//!
//! What it was asked to do stands on record (`plan.rs`), so a second start goes on with it, and replays its
//! own epochs first. It takes no snapshots: an erasure in J wouldn't reach them. Users that J has erased it
//! never has; one that J erases meanwhile ends it, since what it has published holds them.
//!
//! `promote.rs` makes its outputs J's own, and takes that back.

mod bounds;
mod parity;
mod plan;
mod progress;
mod promote;

pub use bounds::{Bound, End, Until, parse};
pub use parity::{Compared, Difference, Report};
pub(crate) use plan::read as read_plan;
pub use plan::{Details, Outcome, Plan, check_name};
pub use progress::Progress;
pub use promote::{Demands, MAX_BEHIND, Switched, promote, rollback};

use crate::dead_letters::ratio::Ratio;
use crate::job::outputs::{self, backfill_job};
use crate::job::{Bounded, Job, Options, Recorded, gone, starts};
use crate::names::Names;
use crate::requester::IDLE;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::sync::atomic::{AtomicBool, Ordering};

/// The default of `--epoch-events`.
pub const EPOCH_EVENTS: usize = 100_000;

/// What is asked of a backfill.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Its name.
    pub name: String,
    /// Where it begins to publish, with the words it was given in.
    pub from: Option<(String, Bound)>,
    /// Where it ends, likewise.
    pub to: Option<(String, Bound)>,
    /// Records of `interactions` in one epoch at most; [`EPOCH_EVENTS`] where unset.
    pub epoch_events: Option<usize>,
    /// Whether what has no answer is asked.
    pub generate: bool,
    /// The collection of its points, where there is a store of points.
    pub collection: Option<String>,
    /// Whether it goes on although inputs have forgotten records that the live job's state rests on.
    pub accept_truncated: bool,
}

/// Finds the plan of a backfill of a live job, or makes it. `live` are the live job's options.
///
/// # Errors
/// `Fatal` where the name or a bound doesn't fit, the live job has committed nothing, the backfill was begun
/// with other bounds or was promoted, a user was erased since it began, or inputs have forgotten what the live
/// job rests on; and what the store says.
pub fn prepare(topics: &mut dyn Topics, live: &Options, order: &Order, interactions: Format) -> Result<Plan> {
    check_name(&order.name)?;
    let (names, job) = (live.names.of_backfill(&order.name), backfill_job(&live.job, &order.name));
    let recorded = Recorded::read(topics, &live.names, &live.job)?;
    let was_active = |record: &EpochRecord| {
        record.outputs.as_ref().is_some_and(|outputs| outputs.features == names.of(Topic::Features))
    };
    if recorded.records.iter().any(was_active) {
        return Err(Error::fatal(
            format!("start backfill {}", order.name),
            "it was promoted: its topics are the live job's",
            "give another backfill another name",
        ));
    }
    if let (Some(plan), _) = plan::read(topics, &names, &job, &order.name)? {
        check_erasures(&plan, &recorded)?;
        check_order(&plan, order)?;
        return Ok(plan);
    }
    let records = recorded.up_to_commit();
    let end = bounds::end(topics, &live.names, records, order.to.as_ref().map(|(_, bound)| bound))?;
    check_starts(topics, &live.names, records, order.accept_truncated)?;
    if !recorded.publishing {
        tracing::warn!("the live job publishes no features yet: they can't be equal");
    }
    let mut until = end.until;
    if order.generate {
        // Answers that are asked now come after every bound.
        until.retain(|topic, _| !matches!(topic, Topic::Cot | Topic::Embeddings));
    }
    let from = order.from.as_ref().map(|(_, bound)| bound);
    let plan = Plan {
        name: order.name.clone(),
        until,
        from: bounds::least(topics, &live.names, interactions, from)?,
        erasures: recorded.erasures(),
        details: Details {
            from: order.from.as_ref().map(|(text, _)| text.clone()),
            to: order.to.as_ref().map(|(text, _)| text.clone()),
            live_epoch: end.live_epoch,
            exact: end.exact && !order.generate,
            epoch_events: order.epoch_events.unwrap_or(EPOCH_EVENTS),
            generate: order.generate,
            collection: order.collection.clone(),
        },
    };
    plan::write_plan(topics, &names, &job, &plan)?;
    // Whoever was first, if two begin at once, has the lowest offset.
    let (first, _) = plan::read(topics, &names, &job, &order.name)?;
    let first = first.unwrap_or(plan);
    check_order(&first, order)?;
    Ok(first)
}

/// Refuses to go on where a user was erased since the backfill began.
fn check_erasures(plan: &Plan, live: &Recorded) -> Result<()> {
    if live.erasures() == plan.erasures {
        return Ok(());
    }
    Err(Error::fatal(
        format!("go on with backfill {}", plan.name),
        "the live job has erased a user since it began, whom its topics may hold",
        "delete its topics and collection, and begin another backfill: it never has that user",
    ))
}

/// Refuses bounds that differ from those that the backfill was begun with. What isn't given goes on as it was.
fn check_order(plan: &Plan, order: &Order) -> Result<()> {
    let details = &plan.details;
    let text = |given: &Option<(String, Bound)>| given.as_ref().map(|(text, _)| text.clone());
    let other = |given: Option<String>, begun: &Option<String>| given.is_some() && given != *begun;
    let named = [
        ("--from", other(text(&order.from), &details.from)),
        ("--to", other(text(&order.to), &details.to)),
        ("--epoch-events", order.epoch_events.is_some_and(|events| events != details.epoch_events)),
        ("--generate", order.generate && !details.generate),
        ("the collection", other(order.collection.clone(), &details.collection)),
    ];
    match named.into_iter().find(|(_, differs)| *differs) {
        None => Ok(()),
        Some((option, _)) => Err(Error::fatal(
            format!("go on with backfill {}", plan.name),
            format!("it was begun with another {option}"),
            "leave the option out to go on, or give another backfill another name",
        )),
    }
}

/// Refuses a backfill whose inputs have forgotten what the live job's state rests on: it would recompute
/// other histories.
fn check_starts(topics: &mut dyn Topics, names: &Names, records: &[EpochRecord], accept: bool) -> Result<()> {
    let gone = gone(&starts(topics, names)?, names, records, None);
    if gone.is_empty() || accept {
        return Ok(());
    }
    Err(Error::fatal(
        "start the backfill",
        format!("needed offsets are gone: {}", gone.join(", ")),
        "restore the topic; --accept-truncated goes on without them, and what rests on them will differ",
    ))
}

/// The options of a backfill's own job.
pub fn options(live: &Options, plan: &Plan) -> Options {
    let job = backfill_job(&live.job, &plan.name);
    Options {
        calls_file: live.calls_file.as_ref().map(|file| file.with_file_name(format!("{job}.calls"))),
        job,
        names: live.names.of_backfill(&plan.name),
        epoch_max_events: plan.details.epoch_events,
        generate: plan.details.generate,
        bounded: Some(Bounded {
            until: plan.until.clone(),
            from: plan.from.clone(),
            erasures: plan.erasures.clone(),
            collection: plan.details.collection.clone(),
        }),
        switch: None,
        // What the live job has taken is taken.
        dead_letters: Ratio::OFF,
        ..live.clone()
    }
}

/// How a backfill ended; `None` where it hasn't.
///
/// # Errors
/// What the store says.
pub fn outcome(topics: &mut dyn Topics, live: &Options, plan: &Plan) -> Result<Option<Outcome>> {
    let (names, job) = (live.names.of_backfill(&plan.name), backfill_job(&live.job, &plan.name));
    Ok(plan::read(topics, &names, &job, &plan.name)?.1)
}

/// Runs a backfill's job to its bounds and puts on record that it ended, or stops once `stop` is set. Says
/// whether it ended.
///
/// # Errors
/// Those of [`Job::step`].
pub fn drive(job: &mut Job, stop: &AtomicBool, mut observe: impl FnMut(&Job)) -> Result<bool> {
    while !job.done() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if job.gather(IDLE)? {
            job.step(std::time::Duration::ZERO)?;
            if job.caught_up() {
                // What is left are answers under way.
                std::thread::sleep(if job.done() { std::time::Duration::ZERO } else { IDLE });
            }
        }
        observe(job);
    }
    let accounting = &job.requester().accounting;
    let ended = Outcome {
        epoch: job.committed(),
        called: accounting.called,
        embedded: accounting.embeddings,
        parity: None,
    };
    let (names, name) = (job.names().clone(), job.job_name().to_owned());
    plan::write_outcome(job.topics(), &names, &name, &ended)?;
    Ok(true)
}

/// Compares a backfill that has ended with the live outputs, and puts the report on record.
///
/// # Errors
/// `Fatal` where it hasn't ended; and what the store says.
pub fn conclude(topics: &mut dyn Topics, live: &Options, plan: &Plan) -> Result<Outcome> {
    let (names, job) = (live.names.of_backfill(&plan.name), backfill_job(&live.job, &plan.name));
    let Some(ended) = outcome(topics, live, plan)? else {
        return Err(Error::fatal(
            format!("compare backfill {}", plan.name),
            "it hasn't ended",
            "start it again: it goes on where it was",
        ));
    };
    let recorded = Recorded::read(topics, &live.names, &live.job)?;
    let configured = outputs::configured(&live.names, None);
    let then: Vec<EpochRecord> =
        recorded.records.iter().filter(|r| r.epoch <= plan.details.live_epoch).cloned().collect();
    let active = outputs::standing(&then, configured).active;
    let report =
        parity::compare(topics, &names, &live.names.with_outputs(&active), plan, recorded.committed)?;
    let ended = Outcome { parity: Some(report), ..ended };
    plan::write_outcome(topics, &names, &job, &ended)?;
    Ok(ended)
}
