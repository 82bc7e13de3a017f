//! Where a backfill begins to publish and where it ends: what `--from` and `--to` mean.
//!
//! | form | `--from` | `--to` |
//! | --- | --- | --- |
//! | milliseconds, RFC 3339 | examples from this event time on | records of `interactions`, `items` and `candidates` whose timestamp is earlier |
//! | `offset:TOPIC/PARTITION=N,...` | examples from the timestamp of that record of `interactions` on, in its partition | records below these offsets, of any input |
//! | `epoch:N` | | what the live job's epoch N holds |
//! | nothing | all examples | what the live job's committed epoch holds |
//!
//! TOPIC is the role of an input, not its name on the store. Whatever a form doesn't name ends where the live
//! job's committed epoch does: answers too, which are no event of any time. An epoch of the live job is the
//! one bound at which the outputs must be equal.

use crate::epochs::read_range;
use crate::filter::time;
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Format, Wire};
use std::collections::BTreeMap;

/// By input, the offsets from which nothing is taken.
pub type Until = BTreeMap<Topic, Vec<i64>>;

/// A bound as it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A time in milliseconds.
    Time(Millis),
    /// Offsets by topic and partition.
    Offsets(BTreeMap<(Topic, usize), i64>),
    /// An epoch of the live job.
    Epoch(i64),
}

/// Reads a bound of the command line.
///
/// # Errors
/// What the forms are.
pub fn parse(text: &str) -> std::result::Result<Bound, String> {
    if let Some(offsets) = text.strip_prefix("offset:") {
        return offsets.split(',').map(offset).collect::<std::result::Result<_, _>>().map(Bound::Offsets);
    }
    if let Some(epoch) = text.strip_prefix("epoch:") {
        return match epoch.parse::<i64>() {
            Ok(epoch) if epoch > 0 => Ok(Bound::Epoch(epoch)),
            _ => Err("expected epoch:N, an epoch of the live job from 1 on".to_owned()),
        };
    }
    time(text).map(Bound::Time)
}

fn offset(text: &str) -> std::result::Result<((Topic, usize), i64), String> {
    let read = || {
        let (place, offset) = text.split_once('=')?;
        let (topic, partition) = place.split_once('/')?;
        let topic = Topic::from_name(topic).filter(|topic| Topic::INPUTS.contains(topic))?;
        let offset = offset.parse::<i64>().ok().filter(|offset| *offset >= 0)?;
        Some(((topic, partition.parse().ok()?), offset))
    };
    read().ok_or_else(|| {
        let inputs: Vec<&str> = Topic::INPUTS.iter().map(|topic| topic.name()).collect();
        format!(
            "expected offset:TOPIC/PARTITION=N,... with TOPIC of {}; {text:?} isn't that",
            inputs.join(", ")
        )
    })
}

/// Where a backfill ends, and with which live epoch its outputs are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// By input, the offsets from which nothing is taken.
    pub until: Until,
    /// The live epoch.
    pub live_epoch: i64,
    /// Whether that epoch holds just what lies below these offsets.
    pub exact: bool,
}

/// Finds where a backfill ends. `records` are the live job's up to its committed epoch, which is the last.
///
/// # Errors
/// `Fatal` where the bound doesn't exist: an epoch that isn't committed, a partition that isn't there, an
/// offset past a log's end.
pub fn end(
    topics: &mut dyn Topics,
    names: &Names,
    records: &[EpochRecord],
    to: Option<&Bound>,
) -> Result<End> {
    let refuse =
        |detail: String, hint: &'static str| Err(Error::fatal("find where the backfill ends", detail, hint));
    let Some(committed) = records.last() else {
        return refuse("the live job has committed no epoch".to_owned(), "run it first");
    };
    if let Some(Bound::Epoch(epoch)) = to {
        return match records.iter().find(|record| record.epoch == *epoch) {
            Some(record) => Ok(End { until: ends_of(record), live_epoch: *epoch, exact: true }),
            None => refuse(
                format!("the live job has committed epoch {}, not {epoch}", committed.epoch),
                "name an epoch that it has committed: tail progress shows the last one",
            ),
        };
    }
    let mut until = ends_of(committed);
    match to {
        Some(Bound::Time(time)) => {
            for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
                let at = topics.offsets_at(names.of(topic), *time)?;
                if let Some(until) = until.get_mut(&topic) {
                    // Never past what the live job has: else there is nothing to compare with.
                    until.iter_mut().zip(at).for_each(|(until, at)| *until = at.min(*until));
                }
            }
        }
        Some(Bound::Offsets(offsets)) => {
            for ((topic, partition), offset) in offsets {
                let log = topics.ends(names.of(*topic))?;
                let bound = until.get_mut(topic).and_then(|until| until.get_mut(*partition));
                let (Some(bound), Some(end)) = (bound, log.get(*partition)) else {
                    return refuse(
                        format!("{} has no partition {partition}, but {}", topic.name(), log.len()),
                        "partitions count from 0",
                    );
                };
                if offset > end {
                    return refuse(
                        format!("{}/{partition} ends at {end}, before {offset}", topic.name()),
                        "name an offset that exists, or the end itself",
                    );
                }
                *bound = *offset;
            }
        }
        _ => {}
    }
    let within = |record: &&EpochRecord| {
        let of = |ends: &Until| ends.get(&Topic::Interactions).cloned().unwrap_or_default();
        of(&ends_of(record)).iter().zip(of(&until)).all(|(end, bound)| *end <= bound)
    };
    let nearest = records.iter().rev().find(within);
    let exact = nearest.is_some_and(|record| ends_of(record) == until);
    let live_epoch = nearest.map_or(0, |record| record.epoch);
    Ok(End { until, live_epoch, exact })
}

fn ends_of(record: &EpochRecord) -> Until {
    let of = |topic: Topic| record.ends.get(topic.name()).map(|ends| (topic, ends.clone()));
    Topic::INPUTS.into_iter().filter_map(of).collect()
}

/// By partition of `interactions`, the least event time of examples that are published; empty for all.
///
/// # Errors
/// `Fatal` for an epoch, for offsets of another input, and for a partition that isn't there.
pub fn least(
    topics: &mut dyn Topics,
    names: &Names,
    format: Format,
    from: Option<&Bound>,
) -> Result<Vec<Millis>> {
    let refuse = |detail: String, hint: &'static str| {
        Err(Error::fatal("find where the backfill begins to publish", detail, hint))
    };
    let name = names.of(Topic::Interactions);
    match from {
        None => Ok(Vec::new()),
        Some(Bound::Time(time)) => Ok(vec![*time; topics.ends(name)?.len()]),
        Some(Bound::Epoch(_)) => {
            refuse("--from takes no epoch".to_owned(), "give a time, or offsets of interactions")
        }
        Some(Bound::Offsets(offsets)) => {
            let ends = topics.ends(name)?;
            let mut least = vec![Millis::MIN; ends.len()];
            for ((topic, partition), offset) in offsets {
                if *topic != Topic::Interactions {
                    return refuse(
                        format!("--from takes offsets of interactions, not of {}", topic.name()),
                        "examples come of interactions alone",
                    );
                }
                let Some(place) = least.get_mut(*partition) else {
                    return refuse(
                        format!("interactions has no partition {partition}, but {}", ends.len()),
                        "partitions count from 0",
                    );
                };
                *place = time_at(topics, name, &ends, (*partition, *offset), format)?;
            }
            Ok(least)
        }
    }
}

/// The time of the first record of `interactions` at or after an offset that has one: its timestamp, else
/// its event time. Where no record follows, no time is late enough.
fn time_at(
    topics: &mut dyn Topics,
    name: &str,
    ends: &[i64],
    (partition, offset): (usize, i64),
    format: Format,
) -> Result<Millis> {
    let mut from = ends.to_vec();
    from[partition] = offset.min(ends[partition]);
    let mut found = Millis::MAX;
    read_range(topics, name, &from, ends, |record| {
        let event = || Interaction::decode_as(format, record.value.as_deref()?).ok();
        let time = record.timestamp.or_else(|| event().map(|event| event.event_time));
        if let Some(time) = time {
            found = time;
        }
        time.is_none()
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bounds_have_three_forms() {
        assert_eq!(parse("1700000000000"), Ok(Bound::Time(1_700_000_000_000)));
        assert_eq!(parse("2023-11-14T22:13:20Z"), Ok(Bound::Time(1_700_000_000_000)));
        assert_eq!(parse("epoch:12"), Ok(Bound::Epoch(12)));
        let offsets = BTreeMap::from([((Topic::Interactions, 2), 40), ((Topic::Cot, 0), 0)]);
        assert_eq!(parse("offset:interactions/2=40,cot/0=0"), Ok(Bound::Offsets(offsets)));
        for wrong in [
            "",
            "yesterday",
            "epoch:0",
            "epoch:x",
            "offset:",
            "offset:interactions=4",
            "offset:interactions/0=-1",
            "offset:features/0=1",
            "offset:interactions/0=1,",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
