//! Dead letters: how many stop a job (`ratio.rs`), which stand on the topic, and appending them to their
//! inputs again after a fix (`replay.rs`).
//!
//! A dead letter stands on the topic once the epoch that refused its record is committed, and holds the
//! record's payload, which may be personal: nothing here prints it unless it is asked for.

pub mod ratio;
pub mod replay;

use crate::epochs::read_whole;
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::dead_letter::{DeadLetter, Reason};
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_PUBLISHED_AT, Topic};
use ictflow_schemas::wire::Wire;
use std::ops::Range;

/// A dead letter as it stands on the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The letter.
    pub letter: DeadLetter,
    /// The epoch that refused its record; 0 where no header says it.
    pub epoch: i64,
    /// When it was committed, in milliseconds.
    pub committed_at: Option<Millis>,
}

/// Which dead letters are meant. An absent value means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Where they were refused.
    pub stage: Option<String>,
    /// Why.
    pub reason: Option<Reason>,
    /// The input that they came from, by its name on the store.
    pub topic: Option<String>,
    /// Its partition.
    pub partition: Option<u32>,
    /// Their offsets on it.
    pub offsets: Option<Range<i64>>,
}

impl Selection {
    /// Whether a letter is meant.
    pub fn has(&self, letter: &DeadLetter) -> bool {
        let source = letter.source();
        self.stage.as_ref().is_none_or(|stage| *stage == letter.stage)
            && self.reason.is_none_or(|reason| reason.word() == letter.reason)
            && self.topic.as_ref().is_none_or(|topic| *topic == source.topic)
            && self.partition.is_none_or(|partition| partition == source.partition)
            && self.offsets.as_ref().is_none_or(|offsets| offsets.contains(&source.offset))
    }
}

/// The name on the store of an input, given by its role or by that name.
///
/// # Errors
/// `Fatal` where it isn't an input that has dead letters.
pub fn input_named(names: &Names, given: &str) -> Result<String> {
    const JUDGED: [Topic; 3] = [Topic::Interactions, Topic::Items, Topic::Candidates];
    let found = JUDGED.into_iter().find(|topic| topic.name() == given || names.of(*topic) == given);
    found.map(|topic| names.of(topic).to_owned()).ok_or_else(|| {
        Error::fatal(
            "find the dead letters of a topic",
            format!("{given} is no input that has any, but interactions, items and candidates are"),
            "name its role, or the name that [topics.names] gives it",
        )
    })
}

/// Gives every dead letter of a job that is meant, in the order of the topic.
///
/// # Errors
/// `Fatal` where the topic doesn't exist, or a record of it can't be read; and what the store says.
pub fn read(
    topics: &mut dyn Topics,
    names: &Names,
    selection: &Selection,
    mut keep: impl FnMut(Standing),
) -> Result<()> {
    let name = names.of(Topic::DeadLetters);
    if topics.partitions(name)?.is_none() {
        return Err(Error::fatal(
            "read the dead letters",
            format!("topic {name} doesn't exist"),
            "has the job run yet? does the suffix fit?",
        ));
    }
    let mut unreadable = None;
    read_whole(topics, name, |record| {
        let (epoch, published_at) =
            (record.number(HEADER_EPOCH).unwrap_or(0), record.number(HEADER_PUBLISHED_AT));
        let Some(value) = &record.value else { return };
        match DeadLetter::decode(value) {
            Ok(letter) if selection.has(&letter) => {
                keep(Standing { letter, epoch, committed_at: published_at.or(record.timestamp) });
            }
            Ok(_) => {}
            Err(error) => {
                unreadable.get_or_insert_with(|| format!("offset {}: {error}", record.offset));
            }
        }
    })?;
    match unreadable {
        None => Ok(()),
        Some(detail) => Err(Error::fatal(
            format!("read topic {name}"),
            detail,
            "was it written by a newer version? run that one",
        )),
    }
}
