//! `ictflow verify`: what stands on the outputs at a committed epoch, held against a recomputation.
//!
//! The outputs are those in force at the epoch: after a `promote` the backfill's topics, whose first records
//! are the backfill's own. Before the job's first publication features aren't judged; dead letters of users
//! who were erased since stay where they are, and aren't judged either.
//!
//! Memory: the records of the three topics as they stand, compacted or not.
//!
//! [`read`] takes the records of the output topics as they stand, [`crate::recompute`] gives what must
//! stand there, [`compare::check`] finds every difference. Nothing is written and nobody is fenced, so it
//! may run beside the job: what the job commits meanwhile is of later epochs and left out.

pub mod compare;

use crate::backfill;
use crate::epochs::read_whole;
use crate::job::outputs::{self, backfill_job};
use crate::job::{Recorded, gone, starts};
use crate::names::Names;
use crate::recompute::{Plan, Values, bounds_of, recompute, used};
use crate::sink::{BACKFILL_HEADERS, time_of_example};
use compare::{Epochs, Position, Seen, Violation, check};
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_operators::examples::is_final;
use ictflow_schemas::Millis;
use ictflow_schemas::dead_letter::{self, DeadLetter};
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_SUBSTEP, Record, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// The epoch.
    pub epoch: i64,
    /// Features that must stand.
    pub features: usize,
    /// Examples that must stand.
    pub examples: usize,
    /// Dead letters that must stand.
    pub dead_letters: usize,
    /// Interactions read.
    pub interactions: u64,
    /// The differences.
    pub violations: Vec<Violation>,
    /// Keys that the job wrote again after the epoch: what stood there may be compacted away.
    pub superseded: usize,
    /// Unreadable records of `items` and `candidates`: compaction may have taken their good predecessors.
    pub unreadable_views: u64,
    /// Live pairs that wait for a vector.
    pub waiting: u64,
    /// Partitions of `interactions` that lost records since the job began.
    pub truncated: usize,
    /// Examples that the backfill which filled the topic left out by its `--from`.
    pub before_from: usize,
    /// Dead letters of users who were erased.
    pub erased: usize,
    /// Final examples that the topic's retention may have taken.
    pub expired: usize,
    /// Dead letters of records that compaction took from `items` or `candidates`.
    pub compacted: usize,
    /// Whether the job had not published features yet: they aren't judged.
    pub unpublished: bool,
}

/// Verifies the outputs of a job at an epoch, the committed one by default.
///
/// # Errors
/// Those of the store and of [`recompute`]; `Fatal` where the plan's semantics, encoder or weights aren't
/// those of the epoch.
pub fn verify(
    topics: &mut dyn Topics,
    plan: &Plan<'_>,
    job: &str,
    epoch: Option<i64>,
    progress: impl FnMut(u64, u64),
) -> Result<Report> {
    let Recorded { records, committed, publishing } = Recorded::of_committed(topics, plan.names, job)?;
    let epoch = epoch.unwrap_or(committed);
    let until = bounds_of(&records, epoch)?;
    crate::job::check_semantics(&records, &plan.semantics.canonical())?;
    crate::job::check_encoder(&records, &plan.encoder.0)?;
    let gone = gone(&starts(topics, plan.names)?, plan.names, &records, None);
    if !gone.is_empty() {
        return Err(Error::fatal(
            format!("verify epoch {epoch}"),
            format!("needed offsets are gone: {}", gone.join(", ")),
            "a job goes on from its snapshot, and this reads the whole logs: verify while they stand, or restore them",
        ));
    }
    let plan = &with_weights_of(plan, until)?;
    let names = outputs::at(plan.names, &records, epoch);
    let origin = Origin::find(topics, plan.names, &names, job)?;
    let mut seen = BTreeMap::new();
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters] {
        seen.insert(topic, read(topics, &names, topic)?);
    }
    // Beside a running job there are newer commits; what is beyond this wasn't committed when it was read.
    let committed = Recorded::read(topics, plan.names, job)?.committed;
    let standing: Values = compare::standing(&seen[&Topic::Features], epoch);
    let mut found = recompute(topics, plan, &records, until, used(&standing), progress)?;
    let mut report = Report {
        epoch,
        features: found.features.len(),
        examples: found.examples.len(),
        dead_letters: found.dead_letters.len(),
        interactions: found.interactions,
        unreadable_views: found.unreadable_views,
        waiting: found.waiting,
        truncated: found.truncated,
        unpublished: !publishing,
        ..Report::default()
    };
    if report.unpublished {
        found.features.clear();
    }
    let standing = standing_keys(&seen[&Topic::Examples]);
    report.before_from = origin.leave_out(&mut found.examples, &standing);
    let examples = topics.starts(names.of(Topic::Examples))?;
    let before = found.examples.len();
    found.examples.retain(|key, (partition, _)| {
        let p = *partition as usize;
        let moved = examples.get(p).is_some_and(|start| *start > 0);
        let maximum = until.maxima.get(p).copied().unwrap_or(Millis::MIN);
        let last = time_of_example(key).is_some_and(|time| is_final(time, maximum, &plan.semantics));
        !(moved && last) || standing.contains(key)
    });
    report.expired = before - found.examples.len();
    let erased = erased(&records, epoch);
    if let Some(letters) = seen.get_mut(&Topic::DeadLetters) {
        (report.erased, report.compacted) =
            excuse(topics, plan.names, letters, &found.dead_letters, &erased)?;
    }
    let whole = topics.starts(names.of(Topic::DeadLetters))?.iter().all(|start| *start == 0);
    for (topic, expected) in [
        (Topic::Features, &found.features),
        (Topic::Examples, &found.examples),
        (Topic::DeadLetters, &found.dead_letters),
    ] {
        let filled = if topic == Topic::DeadLetters { 0..0 } else { origin.epochs.clone() };
        let epochs = Epochs { judged: epoch, committed, filled, whole };
        let (violations, superseded) = check(topic, expected, &seen[&topic], &epochs);
        report.violations.extend(violations);
        report.superseded += superseded;
    }
    Ok(report)
}

/// The plan with the weights that an epoch was made with.
fn with_weights_of<'a>(plan: &Plan<'a>, until: &EpochRecord) -> Result<Plan<'a>> {
    const HINT: &str = "set [ict] weights to that file, or directory to the folder that has it";
    let refused = |problem: String| Error::fatal(format!("verify epoch {}", until.epoch), problem, HINT);
    let named = &until.actives.ict_weights;
    let weights = plan.weights.serving_version(named).map_err(|e| refused(e.to_string()))?;
    let (found, width) = (weights.serving().shape().text, plan.encoder.1);
    if found != width {
        return Err(refused(format!(
            "its weights {named} take texts of width {found}, the encoder gives {width}"
        )));
    }
    Ok(Plan { weights, ..plan.clone() })
}

/// Who filled the outputs before the job wrote to them.
#[derive(Default)]
struct Origin {
    /// The epochs in the headers of a backfill's records; empty where the topics are the job's own.
    epochs: Range<i64>,
    /// By partition, the least event time of examples that the backfill published.
    from: Vec<Millis>,
}

impl Origin {
    fn find(topics: &mut dyn Topics, own: &Names, names: &Names, job: &str) -> Result<Self> {
        let Some(name) = own.backfill_of(names.of(Topic::Features)) else { return Ok(Origin::default()) };
        let (names, job) = (own.of_backfill(name), backfill_job(job, name));
        let last = Recorded::read(topics, &names, &job)?.committed;
        let (plan, _) = backfill::read_plan(topics, &names, &job, name)?;
        Ok(Origin {
            epochs: BACKFILL_HEADERS + 1..BACKFILL_HEADERS + last + 1,
            from: plan.map_or_else(Vec::new, |plan| plan.from),
        })
    }

    /// Takes out the examples that the backfill left out, unless they stand all the same. Gives their count.
    fn leave_out(&self, examples: &mut Values, standing: &HashSet<Vec<u8>>) -> usize {
        let before = examples.len();
        examples.retain(|key, (partition, _)| {
            let least = self.from.get(*partition as usize).copied().unwrap_or(Millis::MIN);
            time_of_example(key).is_none_or(|time| time >= least) || standing.contains(key)
        });
        before - examples.len()
    }
}

fn standing_keys(seen: &[Seen]) -> HashSet<Vec<u8>> {
    seen.iter().map(|record| record.key.clone()).collect()
}

/// The keys of interactions of users who were erased up to an epoch.
fn erased(records: &[EpochRecord], epoch: i64) -> HashSet<Vec<u8>> {
    let until = records.iter().filter(|record| record.epoch <= epoch);
    until.flat_map(|record| &record.erasures).map(|erasure| erasure.user.clone().into_bytes()).collect()
}

/// Takes out the dead letters that a recomputation doesn't give although the job wrote them rightly: of users
/// who were erased since, whose records it drops in silence, and of records that compaction has taken from
/// `items` or `candidates` since. Gives how many of each.
fn excuse(
    topics: &mut dyn Topics,
    names: &Names,
    letters: &mut Vec<Seen>,
    expected: &Values,
    erased: &HashSet<Vec<u8>>,
) -> Result<(usize, usize)> {
    let unexpected = |letter: &Seen| {
        let value = letter.value.as_deref().filter(|_| !expected.contains_key(&letter.key));
        value.and_then(|value| DeadLetter::decode(value).ok())
    };
    let all = letters.len();
    letters.retain(|letter| {
        let user = unexpected(letter).and_then(|letter| letter.key);
        !user.is_some_and(|user| erased.contains(&user))
    });
    let of_erased = all - letters.len();
    let views = [names.of(Topic::Items), names.of(Topic::Candidates)];
    let source = |letter: &Seen| {
        let source = unexpected(letter)?.source();
        views.contains(&source.topic.as_str()).then_some(source)
    };
    if !letters.iter().any(|letter| source(letter).is_some()) {
        return Ok((of_erased, 0));
    }
    let mut there = HashSet::new();
    for topic in views {
        read_whole(topics, topic, |Record { partition, offset, .. }| {
            there.insert(dead_letter::Position { topic: topic.to_owned(), partition, offset });
        })?;
    }
    let before = letters.len();
    letters.retain(|letter| source(letter).is_none_or(|source| there.contains(&source)));
    Ok((of_erased, before - letters.len()))
}

/// The records of an output topic with their positions.
///
/// # Errors
/// Those of the store.
pub fn read(topics: &mut dyn Topics, names: &Names, topic: Topic) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    read_whole(topics, names.of(topic), |record| seen.push(of(record)))?;
    Ok(seen)
}

fn of(record: Record) -> Seen {
    let position = record.number(HEADER_EPOCH).zip(record.number(HEADER_SUBSTEP));
    Seen {
        partition: record.partition,
        offset: record.offset,
        position: position.map(|(epoch, substep)| Position { epoch, substep }),
        key: record.key.unwrap_or_default(),
        value: record.value,
    }
}
