//! What must hold on the output topics of a job, whatever happened to its processes: one pure function
//! over the records that a reader of committed transactions sees.
//!
//! It holds each record against what names it (epoch and substep) and the compacted topics against
//! what an undisturbed job made of the same logs. It knows nothing of processes, kills or logs of
//! theirs.

use ictflow_schemas::epoch::{EpochRecord, Progress};
use ictflow_schemas::example::comparable;
use ictflow_schemas::invariants;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_SUBSTEP, Record, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};

/// The topics whose records an epoch's transaction holds.
pub const COMMITTED: [Topic; 4] = [Topic::Features, Topic::Examples, Topic::DeadLetters, Topic::Progress];

/// The outputs that are compared.
pub const COMPARED: [Topic; 3] = [Topic::Features, Topic::Examples, Topic::DeadLetters];

/// A topic compacted: by key the newest value.
pub type Compacted = BTreeMap<Vec<u8>, Vec<u8>>;

/// Something that mustn't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A record doesn't say of which epoch and substep it is, or its key is null.
    Unnamed(Topic, u32, i64),
    /// Two records of one epoch have the same substep.
    Duplicate(Topic, i64, i64),
    /// A substep of a committed epoch is nowhere.
    MissingRecord(i64, i64),
    /// An epoch's last record isn't its progress, or names another epoch.
    Progress(i64, String),
    /// A record of a partition comes before one of an earlier epoch or substep.
    Reordered(Topic, u32, i64),
    /// An epoch between the first and the last is nowhere.
    MissingEpoch(i64),
    /// The log of bounds contradicts itself.
    Bounds(String),
    /// An epoch is committed whose bounds aren't recorded, or recorded and not committed.
    Uncommitted(i64),
    /// A dead letter was written more than once.
    DeadLetterTwice(Vec<u8>),
    /// A key that must stand doesn't.
    Lost(Topic, Vec<u8>),
    /// A key stands that mustn't.
    Leftover(Topic, Vec<u8>),
    /// A key has another value.
    Wrong(Topic, Vec<u8>),
}

/// By topic, the committed records of a job, in the order of each partition.
pub type Outputs = BTreeMap<Topic, Vec<Record>>;

/// Everything that is wrong with the outputs of a job. `outputs` are the records of [`COMMITTED`] and of
/// `epochs`, `expected` what the topics of [`COMPARED`] must come to. The job must be at rest: its last
/// recorded epoch committed.
pub fn check(job: &str, outputs: &Outputs, expected: &BTreeMap<Topic, Compacted>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let epochs = records(outputs, &mut violations);
    contiguous(&epochs, &mut violations);
    bounds(job, outputs, &epochs, &mut violations);
    for topic in COMPARED {
        let standing = compacted(outputs.get(&topic).map_or(&[], Vec::as_slice));
        let nothing = Compacted::new();
        compare(topic, &standing, expected.get(&topic).unwrap_or(&nothing), &mut violations);
    }
    let mut letters = BTreeSet::new();
    for record in outputs.get(&Topic::DeadLetters).into_iter().flatten() {
        let key = record.key.clone().unwrap_or_default();
        if !letters.insert(key.clone()) {
            violations.push(Violation::DeadLetterTwice(key));
        }
    }
    violations
}

/// By epoch, the substeps with their topics and, for progress, what it says.
type Epochs = BTreeMap<i64, BTreeMap<i64, (Topic, Option<i64>)>>;

fn records(outputs: &Outputs, violations: &mut Vec<Violation>) -> Epochs {
    let mut epochs = Epochs::new();
    for topic in COMMITTED {
        let mut newest: BTreeMap<u32, (i64, i64)> = BTreeMap::new();
        for record in outputs.get(&topic).into_iter().flatten() {
            let place = record.number(HEADER_EPOCH).zip(record.number(HEADER_SUBSTEP));
            let (Some((epoch, substep)), true) = (place, record.key.is_some()) else {
                violations.push(Violation::Unnamed(topic, record.partition, record.offset));
                continue;
            };
            let before = newest.insert(record.partition, (epoch, substep));
            if before.is_some_and(|before| before > (epoch, substep)) {
                violations.push(Violation::Reordered(topic, record.partition, record.offset));
            }
            let progress = (topic == Topic::Progress).then(|| {
                let value = record.value.as_deref().and_then(|value| Progress::decode(value).ok());
                value.map_or(i64::MIN, |progress| progress.epoch)
            });
            if epochs.entry(epoch).or_default().insert(substep, (topic, progress)).is_some() {
                violations.push(Violation::Duplicate(topic, epoch, substep));
            }
        }
    }
    epochs
}

fn contiguous(epochs: &Epochs, violations: &mut Vec<Violation>) {
    let last = epochs.last_key_value().map_or(0, |(epoch, _)| *epoch);
    violations.extend((1..=last).filter(|epoch| !epochs.contains_key(epoch)).map(Violation::MissingEpoch));
    for (epoch, substeps) in epochs {
        let Some((last, (_, progress))) = substeps.last_key_value() else { continue };
        let missing = (0..*last).filter(|substep| !substeps.contains_key(substep));
        violations.extend(missing.map(|substep| Violation::MissingRecord(*epoch, substep)));
        if *progress != Some(*epoch) {
            violations.push(Violation::Progress(*epoch, format!("substep {last} says {progress:?}")));
        }
        let more = substeps.values().filter(|(topic, _)| *topic == Topic::Progress).count();
        if more > 1 {
            violations.push(Violation::Progress(*epoch, format!("{more} records of progress")));
        }
    }
}

fn bounds(job: &str, outputs: &Outputs, epochs: &Epochs, violations: &mut Vec<Violation>) {
    let mut recorded: BTreeMap<i64, EpochRecord> = BTreeMap::new();
    for record in outputs.get(&Topic::Epochs).into_iter().flatten() {
        match record.value.as_deref().map(EpochRecord::decode) {
            Some(Ok(epoch)) if epoch.job == job => {
                if let Some(before) = recorded.insert(epoch.epoch, epoch) {
                    violations.push(Violation::Bounds(format!("epoch {} is recorded twice", before.epoch)));
                }
            }
            Some(Ok(_)) => {}
            _ => violations.push(Violation::Bounds(format!("offset {} can't be read", record.offset))),
        }
    }
    let all: Vec<&EpochRecord> = recorded.values().collect();
    for pair in all.windows(2) {
        if let Err(violation) = invariants::epoch_follows(pair[0], pair[1]) {
            violations.push(Violation::Bounds(violation.0));
        }
    }
    let both = recorded.keys().chain(epochs.keys()).copied().collect::<BTreeSet<i64>>();
    let one = both.into_iter().filter(|epoch| recorded.contains_key(epoch) != epochs.contains_key(epoch));
    violations.extend(one.map(Violation::Uncommitted));
}

fn compacted(records: &[Record]) -> Compacted {
    let mut standing = Compacted::new();
    for record in records {
        let Some(key) = &record.key else { continue };
        match &record.value {
            Some(value) => standing.insert(key.clone(), value.clone()),
            None => standing.remove(key),
        };
    }
    standing
}

fn compare(topic: Topic, standing: &Compacted, expected: &Compacted, violations: &mut Vec<Violation>) {
    for (key, value) in expected {
        match standing.get(key) {
            None => violations.push(Violation::Lost(topic, key.clone())),
            Some(other) if comparable(topic, other) != comparable(topic, value) => {
                violations.push(Violation::Wrong(topic, key.clone()))
            }
            Some(_) => {}
        }
    }
    let left = standing.keys().filter(|key| !expected.contains_key(*key));
    violations.extend(left.map(|key| Violation::Leftover(topic, key.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::epoch::WRITER_VERSION;
    use std::mem::discriminant;

    const JOB: &str = "job";

    fn record(key: &str, value: Option<Vec<u8>>, epoch: i64, substep: i64) -> Record {
        let header = |name: &str, value: i64| (name.to_owned(), value.to_string().into_bytes());
        Record {
            partition: 0,
            offset: 100 * epoch + substep,
            timestamp: None,
            key: Some(key.as_bytes().to_vec()),
            value,
            framed: None,
            headers: vec![header(HEADER_EPOCH, epoch), header(HEADER_SUBSTEP, substep)],
        }
    }

    fn progress(epoch: i64, substep: i64) -> Record {
        let progress = Progress {
            job: JOB.into(),
            epoch,
            publishing: true,
            writer_version: WRITER_VERSION.into(),
            snapshot: None,
        };
        record("progress", Some(progress.encode()), epoch, substep)
    }

    fn bound(epoch: i64) -> Record {
        let bound = EpochRecord {
            job: JOB.into(),
            epoch,
            ends: BTreeMap::from([("interactions".to_owned(), vec![10 * epoch])]),
            maxima: vec![epoch],
            clock: epoch,
            actives: Default::default(),
            config_digest: String::new(),
            config: None,
            starts: BTreeMap::new(),
            erasures: Vec::new(),
            outputs: None,
        };
        record("bound", Some(bound.encode()), epoch, 0)
    }

    /// Three epochs: a comes, a changes and b comes, b goes and d stays behind as a letter.
    fn good() -> (Outputs, BTreeMap<Topic, Compacted>) {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let outputs = BTreeMap::from([
            (
                Topic::Features,
                vec![
                    record("a", text("1"), 1, 0),
                    record("a", text("2"), 2, 0),
                    record("b", text("1"), 2, 1),
                    record("b", None, 3, 0),
                ],
            ),
            (Topic::Examples, vec![record("x", text("1"), 2, 2)]),
            (Topic::DeadLetters, vec![record("d", text("1"), 3, 1)]),
            (Topic::Progress, vec![progress(1, 1), progress(2, 3), progress(3, 2)]),
            (Topic::Epochs, vec![bound(1), bound(2), bound(3)]),
        ]);
        let one =
            |key: &str, value: &str| Compacted::from([(key.as_bytes().into(), value.as_bytes().into())]);
        let expected = BTreeMap::from([
            (Topic::Features, one("a", "2")),
            (Topic::Examples, one("x", "1")),
            (Topic::DeadLetters, one("d", "1")),
        ]);
        (outputs, expected)
    }

    type Plant = fn(&mut Outputs);

    fn of(outputs: &mut Outputs, topic: Topic) -> &mut Vec<Record> {
        outputs.get_mut(&topic).expect("all topics are there")
    }

    #[test]
    fn good_outputs_have_no_violation() {
        let (outputs, expected) = good();
        assert_eq!(check(JOB, &outputs, &expected), []);
    }

    #[test]
    fn every_planted_fault_is_found_by_its_name() {
        let key = Vec::new;
        let faults: [(&str, Plant, Violation); 20] = [
            ("an update is lost", |o| drop(of(o, Topic::Features).remove(1)), Violation::MissingRecord(2, 0)),
            (
                "an update is lost, by what stands",
                |o| drop(of(o, Topic::Features).remove(1)),
                Violation::Wrong(Topic::Features, key()),
            ),
            (
                "an example is lost",
                |o| of(o, Topic::Examples).clear(),
                Violation::Lost(Topic::Examples, key()),
            ),
            (
                "a dead letter is lost",
                |o| of(o, Topic::DeadLetters).clear(),
                Violation::Lost(Topic::DeadLetters, key()),
            ),
            (
                "a record comes twice",
                |o| {
                    let again = of(o, Topic::Features)[1].clone();
                    of(o, Topic::Features).insert(2, again);
                },
                Violation::Duplicate(Topic::Features, 2, 0),
            ),
            (
                "a whole epoch comes twice",
                |o| {
                    let again = of(o, Topic::Progress)[2].clone();
                    of(o, Topic::Progress).push(again);
                },
                Violation::Duplicate(Topic::Progress, 3, 2),
            ),
            (
                "the epoch of a dead process is committed beside its successor's",
                |o| of(o, Topic::Progress).push(progress(3, 3)),
                Violation::Progress(3, String::new()),
            ),
            (
                "two records change places",
                |o| of(o, Topic::Features).swap(0, 1),
                Violation::Reordered(Topic::Features, 0, 0),
            ),
            (
                "a tombstone is lost and its pair left over",
                |o| drop(of(o, Topic::Features).pop()),
                Violation::Leftover(Topic::Features, key()),
            ),
            (
                "an aborted record shows",
                |o| of(o, Topic::Examples).push(record("ghost", Some(Vec::new()), 3, 7)),
                Violation::Leftover(Topic::Examples, key()),
            ),
            (
                "an aborted record shows, by its epoch",
                |o| of(o, Topic::Examples).push(record("ghost", Some(Vec::new()), 4, 0)),
                Violation::Uncommitted(4),
            ),
            (
                "a vector is wrong",
                |o| of(o, Topic::Features)[1].value = Some(b"3".to_vec()),
                Violation::Wrong(Topic::Features, key()),
            ),
            (
                "a vector is stale",
                |o| of(o, Topic::Features)[1].value = Some(b"1".to_vec()),
                Violation::Wrong(Topic::Features, key()),
            ),
            (
                "an epoch is nowhere",
                |o| {
                    for records in o.values_mut() {
                        records.retain(|record| record.number(HEADER_EPOCH) != Some(2));
                    }
                },
                Violation::MissingEpoch(2),
            ),
            (
                "an epoch has no progress",
                |o| drop(of(o, Topic::Progress).remove(1)),
                Violation::Progress(2, String::new()),
            ),
            (
                "progress names another epoch",
                |o| of(o, Topic::Progress)[1].value = progress(1, 0).value,
                Violation::Progress(2, String::new()),
            ),
            (
                "bounds are recorded twice",
                |o| of(o, Topic::Epochs).push(bound(3)),
                Violation::Bounds(String::new()),
            ),
            (
                "an epoch is recorded and not committed",
                |o| of(o, Topic::Epochs).push(bound(4)),
                Violation::Uncommitted(4),
            ),
            (
                "a dead letter comes twice",
                |o| of(o, Topic::DeadLetters).push(record("d", Some(b"1".to_vec()), 3, 3)),
                Violation::DeadLetterTwice(key()),
            ),
            (
                "a record has no headers",
                |o| of(o, Topic::Features)[0].headers.clear(),
                Violation::Unnamed(Topic::Features, 0, 0),
            ),
        ];
        for (name, plant, wanted) in faults {
            let (mut outputs, expected) = good();
            plant(&mut outputs);
            let found = check(JOB, &outputs, &expected);
            // Numbers are what the fault is about; keys and texts are for people.
            let exact = matches!(
                wanted,
                Violation::MissingRecord(..)
                    | Violation::MissingEpoch(_)
                    | Violation::Uncommitted(_)
                    | Violation::Duplicate(..)
            );
            let same = |violation: &Violation| {
                if exact { *violation == wanted } else { discriminant(violation) == discriminant(&wanted) }
            };
            assert!(found.iter().any(same), "{name}: {found:?}");
        }
    }
}
