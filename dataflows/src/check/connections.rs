//! What a job meets on its topics: the refusals of its start, without starting or fencing anything.

use super::{Finding, Subject};
use crate::epochs;
use crate::job::{bounds_at, check_encoder, check_semantics, own_progress};
use ictflow_connectors::Result;
use ictflow_connectors::kafka::{Kafka, cleanup, forgets_as};
use ictflow_connectors::topics::Topics;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::Topic;

/// The topics with the partitions of `interactions`.
const BY_USER: [Topic; 3] = [Topic::Cot, Topic::Features, Topic::Examples];

/// The topics with one partition.
const SINGLE: [Topic; 4] = [Topic::Embeddings, Topic::Epochs, Topic::Progress, Topic::DeadLetters];

/// Whether there is no store yet: the first start makes one of `local` or files.
fn not_made(subject: &Subject) -> bool {
    let config = &subject.config;
    let file = match config.files() {
        Some(_) => config.state().join(ictflow_connectors::local::FILE_NAME),
        None => config.local_file(),
    };
    config.raw().topics.kafka.is_none() && !file.exists()
}

/// The store of the topics can be reached.
pub(super) fn store(subject: &mut Subject) -> Vec<Finding> {
    if not_made(subject) {
        return Vec::new();
    }
    match subject.config.topics(true) {
        Ok(topics) => {
            subject.topics = Some(topics);
            Vec::new()
        }
        Err(error) => {
            let kafka = subject.config.raw().topics.kafka.is_some();
            vec![Finding::of(if kafka { "topics.kafka.bootstrap_servers" } else { "topics" }, error)]
        }
    }
}

/// Runs a look at the store; a failure of it is a finding.
fn look(
    subject: &mut Subject,
    look: impl FnOnce(&mut dyn Topics, &mut Vec<Finding>, &crate::config::checked::Config) -> Result<()>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(topics) = &mut subject.topics else { return findings };
    if let Err(error) = look(&mut **topics, &mut findings, &subject.config) {
        findings.push(Finding::of("topics", error));
    }
    findings
}

/// The inputs that a job doesn't make exist.
pub(super) fn inputs(subject: &mut Subject) -> Vec<Finding> {
    look(subject, |topics, findings, config| {
        if config.options.create_inputs.is_some() {
            return Ok(());
        }
        for topic in [Topic::Interactions, Topic::Items] {
            let name = config.options.names.of(topic);
            if topics.partitions(name)?.is_none() {
                findings.push(Finding::new(
                    format!("topic {name}"),
                    "it doesn't exist",
                    "create it with the partition count that its producers use, or set [topics.names]",
                ));
            }
        }
        Ok(())
    })
}

/// Topics that exist have the partition counts that a job needs.
pub(super) fn partitions(subject: &mut Subject) -> Vec<Finding> {
    look(subject, |topics, findings, config| {
        let names = &config.options.names;
        let interactions = topics.partitions(names.of(Topic::Interactions))?;
        let wanted = BY_USER.map(|topic| (topic, interactions)).into_iter();
        for (topic, wanted) in wanted.chain(SINGLE.map(|topic| (topic, Some(1)))) {
            let (name, Some(wanted)) = (names.of(topic), wanted) else { continue };
            if let Some(found) = topics.partitions(name)?
                && found != wanted
            {
                findings.push(Finding::new(
                    format!("topic {name}"),
                    format!("it has {found} partitions, and {wanted} are needed"),
                    "every user stands on the partition of its key, in all topics alike: make it anew, or name another",
                ));
            }
        }
        Ok(())
    })
}

/// The settings of a job's own topics that exist: each takes the largest record that is sent, and forgets
/// as its role needs.
pub(super) fn topic_settings(subject: &mut Subject) -> Vec<Finding> {
    let Some(config) = subject.config.raw().topics.kafka.clone() else { return Vec::new() };
    let limit = config.message_max_bytes;
    let names = subject.config.options.names.clone();
    // A client of its own: the store's trait knows no settings.
    let kafka = match subject.topics.is_some().then(|| Kafka::connect(config)) {
        Some(Ok(kafka)) => kafka,
        Some(Err(error)) => return vec![Finding::of("topics.kafka.bootstrap_servers", error)],
        None => return Vec::new(),
    };
    let mut findings = Vec::new();
    for topic in BY_USER.into_iter().chain(SINGLE) {
        let name = names.of(topic);
        let most =
            kafka.topic_setting(name, "max.message.bytes").and_then(|value| value.parse::<usize>().ok());
        if let Some(most) = most.filter(|most| *most < limit) {
            findings.push(Finding::new(
                format!("topic {name}"),
                format!("its max.message.bytes {most} is below topics.kafka.message_max_bytes {limit}"),
                "raise the topic's, or lower message_max_bytes",
            ));
        }
        let policy = kafka.topic_setting(name, "cleanup.policy");
        if let Some(found) = policy.filter(|found| !forgets_as(found, topic.policy())) {
            let wanted = cleanup(topic.policy());
            findings.push(Finding::new(
                format!("topic {name}"),
                format!("its cleanup.policy is {found}, and {wanted} is needed"),
                "change it before the broker deletes what is needed, or keeps what is not",
            ));
        }
    }
    findings
}

/// What the job has recorded fits this program and configuration, and the logs still hold it.
pub(super) fn recorded(subject: &mut Subject) -> Vec<Finding> {
    let encoder = subject.encoder.as_ref().map(|(id, _)| id.clone());
    look(subject, |topics, findings, config| {
        let (names, job) = (&config.options.names, &config.options.job);
        let progress = names.of(Topic::Progress);
        let mut committed = 0;
        if topics.partitions(progress)?.is_some() {
            match own_progress(topics, progress, job) {
                Ok(own) => committed = own.map_or(0, |progress| progress.epoch),
                Err(error) => findings.push(Finding::of(format!("topic {progress}"), error)),
            }
        }
        let epochs = names.of(Topic::Epochs);
        if topics.partitions(epochs)?.is_none() {
            return Ok(());
        }
        let records = match epochs::load(topics, epochs, job) {
            Ok(records) => records,
            Err(error) => {
                findings.push(Finding::of(format!("topic {epochs}"), error));
                return Ok(());
            }
        };
        let mut judge = |key: &str, judged: Result<()>| {
            findings.extend(judged.err().map(|error| Finding::of(key, error)));
        };
        judge(epochs, bounds_at(&records, committed).map(|_| ()));
        judge("semantics", check_semantics(&records, &config.semantics.canonical()));
        if let Some(encoder) = &encoder {
            judge("encoder", check_encoder(&records, encoder));
        }
        match records.last() {
            Some(last) => logs(topics, findings, config, last),
            None => Ok(()),
        }
    })
}

/// The input logs have the partitions that the newest bounds name, and reach as far.
fn logs(
    topics: &mut dyn Topics,
    findings: &mut Vec<Finding>,
    config: &crate::config::checked::Config,
    last: &EpochRecord,
) -> Result<()> {
    for topic in Topic::INPUTS {
        let name = config.options.names.of(topic);
        let Some(bounds) = last.ends.get(topic.name()) else { continue };
        let key = || format!("topic {name}");
        if topics.partitions(name)?.is_none() {
            let hint = "the job has read it: restore it, or start a new job on what is left";
            findings.push(Finding::new(key(), "it doesn't exist any more", hint));
            continue;
        }
        let ends = topics.ends(name)?;
        if ends.len() != bounds.len() {
            findings.push(Finding::new(
                key(),
                format!("the recorded bounds have {} partitions, the topic {}", bounds.len(), ends.len()),
                "a changed partition count moves users to other partitions: start a new job",
            ));
            continue;
        }
        for (partition, (bound, end)) in bounds.iter().zip(&ends).enumerate() {
            if end < bound {
                findings.push(Finding::new(
                    key(),
                    format!("partition {partition} ends at {end}, before the recorded bound {bound}"),
                    "records that an epoch holds are gone: was the topic made anew? start a new job on what is left",
                ));
            }
        }
    }
    Ok(())
}
