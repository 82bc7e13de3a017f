//! A batch recomputation of a job's outputs at one of its epochs, from the logs alone.
//!
//! It reads every input log from its start to the epoch's recorded ends, in a few coarse epochs of its own,
//! never from a snapshot, and writes nothing. Since every operator is a function of the set of inputs, the
//! result is what the live job must have published, however it cut its epochs. The engine is the same as
//! the job's: the independent program in `tests/oracle` is what proves the engine.
//!
//! With a store of points (`search = stored`) the selections are what the store gave. Then the ids on the
//! standing features are taken, as a restart does, and the vectors recomputed from them: a feature whose ids
//! aren't all demonstrations of the epoch comes out without a value.

use crate::cluster::Cluster;
use crate::engine::Engine;
use crate::names::Names;
use crate::pipeline::{EpochInput, EpochOutput};
use crate::sources::{Harvest, Judge, Source};
use crate::texts::Texts;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_operators::clock::Clock;
use ictflow_operators::ict::Versions;
use ictflow_operators::retrieval::Found;
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::feature::{Feature, feature_key};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Millis, NO_TIME};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a recomputation is made of.
#[derive(Clone)]
pub struct Plan<'a> {
    /// The topics' names.
    pub names: &'a Names,
    /// The semantics, which must be those on record.
    pub semantics: Arc<Semantics>,
    /// How inputs are written, where not as Avro.
    pub formats: BTreeMap<Topic, Format>,
    /// The encoder's id and width.
    pub encoder: (String, usize),
    /// The weights: those that serve, or among them, must be those of the epoch.
    pub weights: Versions,
    /// Timely workers.
    pub workers: usize,
    /// Interactions of one coarse epoch; not read where the recorded epochs are run again.
    pub chunk: usize,
}

/// By key, the partition and the value.
pub type Values = BTreeMap<Vec<u8>, (u32, Vec<u8>)>;

/// The outputs at an epoch.
#[derive(Debug, Default)]
pub struct Recomputed {
    /// Live features.
    pub features: Values,
    /// Examples, final ones too.
    pub examples: Values,
    /// Dead letters.
    pub dead_letters: Values,
    /// Partition maxima at the epoch.
    pub maxima: Vec<Millis>,
    /// Interactions read.
    pub interactions: u64,
    /// Records of `items` and `candidates` that weren't readable and whose good predecessor compaction may
    /// have taken: what follows from them can't be recomputed.
    pub unreadable_views: u64,
    /// Live pairs that wait for a vector.
    pub waiting: u64,
    /// Partitions of `interactions` that no longer begin where the job began.
    pub truncated: usize,
}

/// Recomputes the outputs at the epoch `until`. `records` are the job's recorded epochs; `used` what the
/// standing features were made of, for `search = stored`. `progress` is told interactions read and to read.
///
/// # Errors
/// `Fatal` where a log can't be read to the epoch's ends, or gives other maxima than recorded.
pub fn recompute(
    topics: &mut dyn Topics,
    plan: &Plan<'_>,
    records: &[EpochRecord],
    until: &EpochRecord,
    used: Vec<Found>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Recomputed> {
    let Plan { names, semantics, .. } = plan;
    let count = |topic: Topic| until.ends.get(topic.name()).map_or(1, Vec::len);
    let partitions = count(Topic::Interactions) as u32;
    let mut judge = Judge::new(
        semantics.clone(),
        plan.formats.clone(),
        partitions,
        count(Topic::Candidates) as u32,
        (&plan.encoder.0, plan.encoder.1),
    );
    let recorded = records.iter().filter(|record| record.epoch <= until.epoch);
    for erasure in recorded.clone().flat_map(|record| &record.erasures) {
        judge.erase(erasure);
    }
    let erased = recorded.clone().any(|record| !record.erasures.is_empty());
    let mut engine =
        Engine::start_in(&Cluster::default(), plan.workers, semantics.clone(), plan.weights.clone())?;
    let (mut texts, mut out, mut time) = (Texts::default(), Recomputed::default(), 0);
    let begun = records.first().and_then(|record| record.starts.get(Topic::Interactions.name()));
    let starts = topics.starts(names.of(Topic::Interactions))?;
    let moved = |(p, start): &(usize, &i64)| **start > begun.and_then(|b| b.get(*p)).copied().unwrap_or(0);
    out.truncated = starts.iter().enumerate().filter(moved).count();

    // The compacted logs first, whole.
    let mut harvest = Harvest::default();
    let mut events = None;
    for topic in Topic::INPUTS {
        let name = names.of(topic);
        let ends = until.ends.get(topic.name()).cloned().unwrap_or_default();
        let mut source = Source::open(topics, topic, name, &vec![0; ends.len()])?;
        if topic == Topic::Interactions {
            events = Some((source, ends));
            continue;
        }
        let letters = harvest.dead_letters.len();
        judge.judge(topic, name, source.take_to(&ends)?, &mut texts, &mut harvest);
        out.unreadable_views += (harvest.dead_letters.len() - letters) as u64;
    }
    // `interactions` is one of the inputs.
    let Some((mut events, ends)) = events else { return Ok(out) };
    let total: i64 = ends.iter().zip(&starts).map(|(end, start)| (end - start).max(0)).sum();
    let steps = (total as usize).div_ceil(plan.chunk.max(1)).max(1) as i64;
    for step in 1..=steps {
        let bound = |(end, start): (&i64, &i64)| {
            let span = i128::from((end - start).max(0)) * i128::from(step) / i128::from(steps);
            (*start).min(*end) + i64::try_from(span).unwrap_or(i64::MAX)
        };
        let bounds: Vec<i64> = ends.iter().zip(&starts).map(bound).collect();
        let read = events.take_to(&bounds)?;
        out.interactions += read.len() as u64;
        judge.judge(Topic::Interactions, names.of(Topic::Interactions), read, &mut texts, &mut harvest);
        let last = step == steps;
        if last {
            fits(&judge.maxima(), until, out.truncated > 0 || erased)?;
            judge.raise(&until.maxima);
        }
        time += 1;
        let clock = clock_of(&judge.maxima(), until, last);
        let output = engine.run(time, clock, std::mem::take(&mut harvest.input));
        take(&mut out, output, semantics, partitions, last && semantics.search == Search::Exact);
        progress(out.interactions, total as u64);
    }
    if semantics.search == Search::Stored {
        // At the last time the pairs asked; now they have what stands.
        let clock = clock_of(&judge.maxima(), until, true);
        let input = EpochInput { found: used, ..EpochInput::default() };
        let output = engine.run(time + 1, clock, input);
        take(&mut out, output, semantics, partitions, true);
    }
    out.maxima = judge.maxima();
    for letter in harvest.dead_letters {
        out.dead_letters.insert(letter.key(), (0, letter.encode()));
    }
    Ok(out)
}

fn clock_of(maxima: &[Millis], until: &EpochRecord, last: bool) -> Clock {
    Clock {
        maxima: maxima.into(),
        now: if last { until.clock } else { maxima.iter().copied().max().unwrap_or(NO_TIME) },
        publish: last,
        actives: Arc::new(until.actives.clone()),
        shadow: None,
    }
}

/// Holds the computed maxima against the recorded ones, which are higher only where records are gone.
fn fits(maxima: &[Millis], until: &EpochRecord, gone: bool) -> Result<()> {
    let pairs = || maxima.iter().zip(&until.maxima);
    if maxima.len() == until.maxima.len() && pairs().all(|(c, r)| c == r || (gone && c < r)) {
        return Ok(());
    }
    Err(Error::fatal(
        format!("recompute epoch {}", until.epoch),
        "the interactions give other partition maxima than the epoch recorded",
        "the log was changed below a committed bound",
    ))
}

fn take(out: &mut Recomputed, output: EpochOutput, semantics: &Semantics, partitions: u32, features: bool) {
    for (example, diff) in &output.examples {
        let key = example.identity.frame().into_bytes();
        if *diff > 0 {
            out.examples.insert(key, (example.partition, example.record().encode()));
        } else if out.examples.get(&key).is_some_and(|(_, value)| *value == example.record().encode()) {
            out.examples.remove(&key);
        }
    }
    if !features {
        return;
    }
    for (update, _) in output.features {
        let key = feature_key(&update.user, &update.item);
        let partition = semantics.partitioner.partition(update.user.as_bytes(), partitions);
        match update.value {
            Some(value) => {
                out.features.insert(key, (partition, value.to_vec()));
            }
            None => {
                out.waiting += u64::from(update.live);
                out.features.remove(&key);
            }
        }
    }
}

/// What standing features were made of, for [`recompute`] with `search = stored`.
pub fn used(features: &Values) -> Vec<Found> {
    let decoded = features.values().filter_map(|(_, value)| Feature::decode(value).ok());
    decoded.map(|feature| crate::sink::standing_of(&feature)).collect()
}

/// The recorded bounds of an epoch.
///
/// # Errors
/// `Fatal` where it isn't on record.
pub fn bounds_of(records: &[EpochRecord], epoch: i64) -> Result<&EpochRecord> {
    records.iter().find(|record| record.epoch == epoch).ok_or_else(|| {
        Error::fatal(
            format!("find epoch {epoch}"),
            "its bounds aren't on record",
            "epochs begin at 1 and end at the committed one, which the status page and `tail progress` show",
        )
    })
}
