//! Refuses to start a new job on a broker that doesn't keep its transactions.
//!
//! A job that has progress on the broker was tried when it was new; it isn't tried again, so that a
//! restart neither waits nor writes.

use crate::config::checked::Config;
use crate::job::read_progress;
use ictflow_connectors::Result;
use ictflow_connectors::kafka::Kafka;
use ictflow_connectors::kafka::conformance::Report;
use ictflow_connectors::topics::Topics;
use ictflow_schemas::topic::Topic;

/// The value of `topics.kafka.conformance_topic` that leaves it out.
pub const OFF: &str = "off";

/// Tries the broker, on the topic that the configuration names. `None` where the topics aren't on Kafka, or
/// the configuration leaves it out.
///
/// # Errors
/// Those of [`Kafka::connect`] and [`Kafka::prove`].
pub fn prove(config: &Config) -> Result<Option<Report>> {
    let Some(kafka) = &config.raw().topics.kafka else { return Ok(None) };
    if kafka.conformance_topic == OFF {
        return Ok(None);
    }
    let id = format!("{}.conformance", config.options.job);
    Kafka::connect(kafka.clone())?.prove(&kafka.conformance_topic, &id).map(Some)
}

/// Tries the broker where the job has no progress yet.
///
/// # Errors
/// `Fatal` where something doesn't hold, each named; those of [`prove`].
pub fn before_a_new_job(config: &Config, topics: &mut dyn Topics) -> Result<()> {
    if config.raw().topics.kafka.is_none() {
        return Ok(());
    }
    let name = config.options.names.of(Topic::Progress);
    if topics.partitions(name)?.is_some()
        && read_progress(topics, name, Some(&config.options.job))?
            .iter()
            .any(|progress| progress.job == config.options.job)
    {
        return Ok(());
    }
    match prove(config)?.and_then(|report| report.refusal()) {
        Some(refusal) => Err(refusal),
        None => Ok(()),
    }
}
