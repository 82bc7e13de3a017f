//! What an explanation reads of the topics: up to the committed epoch, and only what it needs.

use crate::epochs::{read_range, read_whole};
use crate::job::read_progress;
use crate::names::Names;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::epoch::{Actives, EpochRecord, Progress};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::{Feature, point_id};
use ictflow_schemas::framing::unframe;
use ictflow_schemas::history::Identity;
use ictflow_schemas::neighbour::neighbour_id;
use ictflow_schemas::topic::{HEADER_EPOCH, Record, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// How a job stood at the epoch that is explained.
pub(super) struct Standing {
    pub(super) committed: i64,
    pub(super) ends: BTreeMap<String, Vec<i64>>,
    pub(super) actives: Actives,
    pub(super) prompt_history: usize,
}

/// The live features by key with the epochs that published them: all, or those of some keys.
pub(super) fn features(
    topics: &mut dyn Topics,
    names: &Names,
    only: Option<&HashSet<Vec<u8>>>,
) -> Result<HashMap<Vec<u8>, (Feature, i64)>> {
    let mut features = HashMap::new();
    if topics.partitions(names.of(Topic::Features))?.is_none() {
        return Ok(features);
    }
    read_whole(topics, names.of(Topic::Features), |record| {
        let epoch = epoch_of(&record);
        let Some(key) = record.key else { return };
        if only.is_some_and(|only| !only.contains(&key)) {
            return;
        }
        match record.value.as_deref().map(Feature::decode) {
            Some(Ok(feature)) => features.insert(key, (feature, epoch)),
            _ => features.remove(&key),
        };
    })?;
    Ok(features)
}

/// The epoch of an output record's header; 0 without one.
fn epoch_of(record: &Record) -> i64 {
    record.number(HEADER_EPOCH).unwrap_or(0)
}

/// The bounds and versions of the job's committed epoch, which is at least `published`.
pub(super) fn standing(
    topics: &mut dyn Topics,
    names: &Names,
    job: &str,
    published: i64,
) -> Result<Standing> {
    let mut committed = published;
    read_whole(topics, names.of(Topic::Progress), |record| {
        if let Some(Ok(progress)) = record.value.as_deref().map(Progress::decode)
            && progress.job == job
        {
            committed = committed.max(progress.epoch);
        }
    })?;
    let mut newest: Option<EpochRecord> = None;
    let mut prompt_history = Semantics::default().prompt_history;
    read_whole(topics, names.of(Topic::Epochs), |record| {
        let Some(Ok(epoch)) = record.value.as_deref().map(EpochRecord::decode) else { return };
        // For an equal epoch the lowest offset wins.
        if epoch.job == job
            && epoch.epoch <= committed
            && newest.as_ref().is_none_or(|newest| newest.epoch < epoch.epoch)
        {
            if let Some(recorded) = epoch.config.as_deref().and_then(recorded_prompt_history) {
                prompt_history = recorded;
            }
            newest = Some(epoch);
        }
    })?;
    let newest = newest.ok_or_else(|| {
        Error::fatal("explain", format!("job {job} has committed no epoch"), "run it first")
    })?;
    Ok(Standing { committed, ends: newest.ends, actives: newest.actives, prompt_history })
}

/// The examples that the features used, by point id, and, where asked for, their neighbours by their ids: they are
/// many.
pub(super) fn examples(
    topics: &mut dyn Topics,
    names: &Names,
    features: &HashMap<Vec<u8>, (Feature, i64)>,
    with_neighbours: bool,
) -> Result<HashMap<String, ExampleRecord>> {
    let mut used: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for (feature, _) in features.values() {
        let ids = feature.demonstrations.iter().map(|used| used.id.as_str());
        used.entry(&feature.prompt_version).or_default().extend(ids);
    }
    used.retain(|_, ids| !ids.is_empty());
    let neighbours: HashSet<&str> = match with_neighbours {
        true => {
            features.values().flat_map(|(feature, _)| &feature.neighbours).map(|n| n.id.as_str()).collect()
        }
        false => HashSet::new(),
    };
    let mut examples = HashMap::new();
    if used.is_empty() && neighbours.is_empty() {
        return Ok(examples);
    }
    read_whole(topics, names.of(Topic::Examples), |record| {
        let Some(identity) = record.key.as_deref().and_then(Identity::of_key) else { return };
        let mut note = |id: String| {
            match record.value.as_deref().map(ExampleRecord::decode) {
                Some(Ok(example)) => examples.insert(id, example),
                _ => examples.remove(&id),
            };
        };
        for (prompt_version, ids) in &used {
            let id = point_id(&identity, prompt_version).to_string();
            if ids.contains(id.as_str()) {
                note(id);
            }
        }
        if !neighbours.is_empty() {
            let id = neighbour_id(&identity).to_string();
            if neighbours.contains(id.as_str()) {
                note(id);
            }
        }
    })?;
    Ok(examples)
}

/// Reads an input log up to the bounds of an epoch.
pub(super) fn read_bounded(
    topics: &mut dyn Topics,
    names: &Names,
    topic: Topic,
    ends: &BTreeMap<String, Vec<i64>>,
    mut keep: impl FnMut(Record),
) -> Result<()> {
    let name = names.of(topic);
    let now = topics.ends(name)?;
    let bounds = ends.get(topic.name()).filter(|bounds| bounds.len() == now.len());
    let Some(bounds) = bounds else {
        return Err(Error::fatal(
            format!("read topic {name}"),
            "the recorded bounds have another number of partitions",
            "was the topic made anew? explain reads the logs that the job ran on",
        ));
    };
    let to: Vec<i64> = bounds.iter().zip(&now).map(|(bound, now)| *bound.min(now)).collect();
    read_range(topics, name, &vec![0; to.len()], &to, |record| {
        keep(record);
        true
    })
}

/// P of a recorded configuration.
fn recorded_prompt_history(config: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_str(config).ok()?;
    value.get("prompt_history")?.as_u64().map(|p| p as usize)
}

/// The job whose outputs stand on these topics; `None` where it isn't one.
///
/// # Errors
/// Those of the store, and `Fatal` where the progress was written by a newer version.
pub fn job_of_outputs(topics: &mut dyn Topics, names: &Names) -> Result<Option<String>> {
    let progress = names.of(Topic::Progress);
    if topics.partitions(progress)?.is_none() {
        return Ok(None);
    }
    let mut jobs: Vec<String> =
        read_progress(topics, progress, None)?.into_iter().map(|one| one.job).collect();
    Ok(if jobs.len() == 1 { jobs.pop() } else { None })
}

/// The live pairs of a job in order of key, without their vectors.
///
/// # Errors
/// Those of the store.
pub fn live_pairs(topics: &mut dyn Topics, names: &Names) -> Result<BTreeSet<(String, String)>> {
    let mut pairs = BTreeSet::new();
    read_whole(topics, names.of(Topic::Features), |record| {
        let parts = record.key.as_deref().and_then(unframe).unwrap_or_default();
        let [user, item] = parts[..] else { return };
        let (Ok(user), Ok(item)) = (std::str::from_utf8(user), std::str::from_utf8(item)) else { return };
        let pair = (user.to_owned(), item.to_owned());
        if record.value.is_some() {
            pairs.insert(pair)
        } else {
            pairs.remove(&pair)
        };
    })?;
    Ok(pairs)
}
