//! One pure function that holds the records of an output topic against what must stand there. What was
//! served with an example is no function of the logs, and isn't compared.

use crate::recompute::Values;
use ictflow_schemas::example::comparable;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::framing::unframe;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

/// Where in the job's commits a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch.
    pub epoch: i64,
    /// Its number within the epoch's transaction.
    pub substep: i64,
}

/// A record of an output topic.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Its position; `None` where its headers don't say.
    pub position: Option<Position>,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
}

/// How a record or a key differs from what must stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What must stand doesn't.
    Lost,
    /// What stands must not.
    Leftover,
    /// The lineage is right and the value isn't.
    Wrong,
    /// The value is of another lineage: an older history, other demonstrations or versions.
    Stale,
    /// A position stands on two records.
    Duplicate,
    /// A record stands behind one of a later position of its partition.
    Reordered,
    /// A position that the job hasn't committed.
    Uncommitted,
    /// The headers, or the value, can't be read.
    Unreadable,
    /// On another partition than its user's.
    Misplaced,
}

impl Kind {
    /// What a person can make of it.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Lost => "must stand and doesn't: a record was lost or retracted by another writer",
            Kind::Leftover => "stands and must not: a retraction was lost, or another writer wrote it",
            Kind::Wrong => {
                "the lineage is right, the value isn't: it was changed, or made on another CPU level"
            }
            Kind::Stale => "an older lineage than the logs give: an update was lost",
            Kind::Duplicate => "one position on two records: a commit was written twice",
            Kind::Reordered => "behind a record of a later position",
            Kind::Uncommitted => "of an epoch that isn't committed",
            Kind::Unreadable => "no record of this job: its headers or value can't be read",
            Kind::Misplaced => "on another partition than its user's",
        }
    }
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// How it differs.
    pub kind: Kind,
    /// The topic.
    pub topic: &'static str,
    /// The parts of the key, those that are text as text.
    pub key: Vec<String>,
    /// The record's partition, where it is about a record.
    pub partition: Option<u32>,
    /// The record's offset.
    pub offset: Option<i64>,
}

/// What stands at an epoch: by key the value of the greatest position not above it. Positions decide, not
/// offsets, as they do for a reader who drops duplicates.
pub fn standing(seen: &[Seen], epoch: i64) -> Values {
    newest(seen, epoch)
        .into_iter()
        .filter_map(|(key, record)| Some((key.to_vec(), (record.partition, record.value.clone()?))))
        .collect()
}

fn newest(seen: &[Seen], epoch: i64) -> BTreeMap<&[u8], &Seen> {
    let mut newest: BTreeMap<&[u8], &Seen> = BTreeMap::new();
    for record in seen.iter().filter(|record| record.position.is_some_and(|p| p.epoch <= epoch)) {
        let place = newest.entry(&record.key).or_insert(record);
        if record.position > place.position {
            *place = record;
        }
    }
    newest
}

/// Which epochs may stand on a topic.
#[derive(Clone, Debug)]
pub struct Epochs {
    /// The epoch that is judged.
    pub judged: i64,
    /// The epoch that the job had committed once the records were read.
    pub committed: i64,
    /// Those in the headers of the backfill that filled the topic, before the job wrote to it.
    pub filled: Range<i64>,
    /// Whether the topic still has its first record: of dead letters none may lack then.
    pub whole: bool,
}

/// Finds every difference between what must stand on a topic at an epoch and the topic's records, in the
/// order of each partition. Gives the differences, and how many keys were written again after the epoch,
/// which aren't judged.
///
/// Dead letters are kept by time and written once each: where the topic has let go of any, one that is gone
/// isn't lost.
pub fn check(topic: Topic, expected: &Values, seen: &[Seen], epochs: &Epochs) -> (Vec<Violation>, usize) {
    let Epochs { judged: epoch, committed, .. } = *epochs;
    let mut found = Vec::new();
    let about = |kind: Kind, record: &Seen| Violation {
        kind,
        topic: topic.name(),
        key: readable(&record.key),
        partition: Some(record.partition),
        offset: Some(record.offset),
    };
    let mut positions: HashSet<Position> = HashSet::new();
    let mut last: BTreeMap<u32, Position> = BTreeMap::new();
    let mut later: BTreeSet<&[u8]> = BTreeSet::new();
    for record in seen {
        // A dead letter that was replayed is marked outside any epoch.
        if topic == Topic::DeadLetters && record.value.is_none() {
            later.insert(&record.key);
            continue;
        }
        let Some(position) = record.position else {
            found.push(about(Kind::Unreadable, record));
            continue;
        };
        if !positions.insert(position) {
            found.push(about(Kind::Duplicate, record));
            continue;
        }
        if position.epoch < 1 && !epochs.filled.contains(&position.epoch) {
            found.push(about(Kind::Uncommitted, record));
            continue;
        }
        if last.get(&record.partition).is_some_and(|last| *last > position) {
            found.push(about(Kind::Reordered, record));
        } else {
            last.insert(record.partition, position);
        }
        if position.epoch > epoch {
            later.insert(&record.key);
            if position.epoch > committed {
                found.push(about(Kind::Uncommitted, record));
            }
        }
    }
    let newest = newest(seen, epoch);
    let keys: BTreeSet<&[u8]> = expected.keys().map(Vec::as_slice).chain(newest.keys().copied()).collect();
    let mut superseded = 0;
    for key in keys {
        let must = expected.get(key);
        let record = newest.get(key);
        let kind = match (must, record.and_then(|record| record.value.as_ref())) {
            (Some((partition, must)), Some(value)) => {
                if record.is_some_and(|record| record.partition != *partition) {
                    Some(Kind::Misplaced)
                } else {
                    (comparable(topic, must) != comparable(topic, value)).then(|| differ(topic, must, value))
                }
            }
            (Some(_), None) if later.contains(key) && record.is_none() => {
                superseded += 1;
                None
            }
            (Some(_), None) => (topic != Topic::DeadLetters || epochs.whole).then_some(Kind::Lost),
            (None, Some(_)) => Some(Kind::Leftover),
            (None, None) => None,
        };
        if let Some(kind) = kind {
            found.push(Violation {
                kind,
                topic: topic.name(),
                key: readable(key),
                partition: record.map(|record| record.partition),
                offset: record.map(|record| record.offset),
            });
        }
    }
    (found, superseded)
}

/// How a standing value differs from the one that must stand.
fn differ(topic: Topic, must: &[u8], value: &[u8]) -> Kind {
    if topic != Topic::Features {
        return Kind::Wrong;
    }
    let (Ok(must), Ok(value)) = (Feature::decode(must), Feature::decode(value)) else {
        return Kind::Unreadable;
    };
    if (Feature { ict: Vec::new(), ..must }) == (Feature { ict: Vec::new(), ..value }) {
        Kind::Wrong
    } else {
        Kind::Stale
    }
}

fn readable(key: &[u8]) -> Vec<String> {
    let text = |part: &[u8]| match (std::str::from_utf8(part), <[u8; 8]>::try_from(part)) {
        (Ok(text), _) if !text.chars().any(char::is_control) => text.to_owned(),
        (_, Ok(number)) => i64::from_be_bytes(number).to_string(),
        _ => ictflow_schemas::framing::hex(part),
    };
    unframe(key).map_or_else(|| vec![text(key)], |parts| parts.into_iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(offset: i64, position: (i64, i64), key: &str, value: Option<&str>) -> Seen {
        Seen {
            partition: 0,
            offset,
            position: Some(Position { epoch: position.0, substep: position.1 }),
            key: key.into(),
            value: value.map(|value| value.as_bytes().to_vec()),
        }
    }

    fn expected() -> Values {
        [("a", "1"), ("b", "2")]
            .into_iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), (0, value.as_bytes().to_vec())))
            .collect()
    }

    fn good() -> Vec<Seen> {
        vec![
            seen(0, (1, 0), "a", Some("0")),
            seen(1, (1, 1), "c", Some("9")),
            seen(2, (2, 0), "a", Some("1")),
            seen(3, (2, 1), "b", Some("2")),
            seen(4, (3, 0), "c", None),
        ]
    }

    fn epochs(committed: i64) -> Epochs {
        Epochs { judged: 3, committed, filled: 0..0, whole: true }
    }

    fn kinds(seen: &[Seen]) -> Vec<Kind> {
        check(Topic::Examples, &expected(), seen, &epochs(3)).0.into_iter().map(|v| v.kind).collect()
    }

    #[test]
    fn what_is_right_has_no_difference_and_each_damage_is_found_as_its_kind() {
        assert_eq!(kinds(&good()), []);
        let with = |change: &dyn Fn(&mut Vec<Seen>)| {
            let mut seen = good();
            change(&mut seen);
            kinds(&seen)
        };
        assert_eq!(with(&|s| s.push(seen(5, (3, 1), "b", None))), [Kind::Lost]);
        assert_eq!(with(&|s| drop(s.remove(3))), [Kind::Lost]);
        assert_eq!(with(&|s| drop(s.remove(4))), [Kind::Leftover]);
        assert_eq!(with(&|s| s.push(seen(5, (3, 1), "d", Some("x")))), [Kind::Leftover]);
        assert_eq!(with(&|s| s.push(seen(5, (3, 1), "a", Some("x")))), [Kind::Wrong]);
        assert_eq!(with(&|s| s.push(seen(5, (2, 1), "b", Some("2")))), [Kind::Duplicate]);
        assert_eq!(with(&|s| s.swap(2, 3)), [Kind::Reordered]);
        assert_eq!(
            with(&|s| s.push(Seen { position: None, ..seen(5, (0, 0), "a", Some("1")) })),
            [Kind::Unreadable]
        );
        assert_eq!(with(&|s| s[3].partition = 1), [Kind::Misplaced]);
        assert_eq!(
            with(&|s| s.push(seen(5, (0, 0), "a", Some("1")))),
            [Kind::Reordered, Kind::Uncommitted][1..].to_vec()
        );
    }

    #[test]
    fn what_comes_after_the_epoch_is_left_out() {
        let mut later = good();
        later.push(seen(5, (4, 0), "a", Some("later")));
        assert_eq!(check(Topic::Examples, &expected(), &later, &epochs(4)), (Vec::new(), 0));
        // Compaction took what stood there: it can't be judged.
        later.retain(|record| record.key != b"a" || record.position.is_some_and(|p| p.epoch == 4));
        assert_eq!(check(Topic::Examples, &expected(), &later, &epochs(4)), (Vec::new(), 1));
    }

    #[test]
    fn what_a_backfill_wrote_stands_below_every_epoch_of_the_job() {
        let filled = vec![seen(0, (-9, 0), "a", Some("0")), seen(1, (-8, 0), "b", Some("2"))];
        let promoted = [filled, vec![seen(2, (3, 0), "a", Some("1"))]].concat();
        let by = |filled| check(Topic::Examples, &expected(), &promoted, &Epochs { filled, ..epochs(3) }).0;
        assert_eq!(by(-9..-7), []);
        let uncommitted: Vec<Kind> = by(-9..-8).into_iter().map(|v| v.kind).collect();
        assert_eq!(uncommitted, [Kind::Uncommitted]);
    }

    #[test]
    fn random_damage_of_values_and_losses_is_always_found() {
        for seed in 0..500_u64 {
            let mut seen = good();
            let at = (seed % 4 + 1) as usize;
            if seed % 2 == 0 {
                seen[at].value = Some(format!("damaged {seed}").into_bytes());
                seen[at].key = ["a", "b", "c", "d"][(seed / 4 % 4) as usize].into();
            } else {
                seen.remove(at);
            }
            let damaged = standing(&seen, 3) != expected();
            assert_eq!(damaged, !kinds(&seen).is_empty(), "seed {seed}");
        }
    }
}
