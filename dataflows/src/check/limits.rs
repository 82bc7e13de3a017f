//! Limits against each other: what no single value shows.

use super::{Finding, Subject};
use ictflow_connectors::kafka::wire_size;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::CotRecord;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::epoch::{Actives, EpochRecord, config_digest};
use ictflow_schemas::feature::{
    CotStatus, Feature, NeighbourSource, UsedDemonstration, UsedNeighbour, VectorKind, feature_key,
};
use ictflow_schemas::neighbour::VOTES;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_PUBLISHED_AT, HEADER_SUBSTEP};
use ictflow_schemas::wire::Wire;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Records that a transaction is taken to write in a second, to judge whether a limit can fit its timeout.
/// Two shared cores with a broker beside them wrote 90,000 small ones and more; a vector with its lineage is
/// about five times as large.
pub const RECORDS_A_SECOND: u64 = 20_000;

/// Bytes of an id where records are sized: a UUID as text.
const ID: usize = 36;

/// The largest transactions fit the timeout: an epoch of `max_events` that are all refused or each make an
/// example, and the first one that publishes, with all of `max_live_pairs`.
pub(super) fn limits(subject: &mut Subject) -> Vec<Finding> {
    let raw = subject.config.raw();
    let Some(kafka) = &raw.topics.kafka else { return Vec::new() };
    let fits = (kafka.transaction_timeout_ms as u128 * u128::from(RECORDS_A_SECOND)) / 1_000;
    let mut findings = Vec::new();
    for (key, records, hint) in [
        (
            "epochs.max_events",
            raw.epochs.max_events,
            "lower it, or raise topics.kafka.transaction_timeout_ms and the broker's transaction.max.timeout.ms",
        ),
        (
            "semantics.max_live_pairs",
            raw.semantics.max_live_pairs,
            "lower it, or raise topics.kafka.transaction_timeout_ms and the broker's transaction.max.timeout.ms",
        ),
    ] {
        if records as u128 > fits {
            let problem = format!(
                "{records} records in one transaction don't fit topics.kafka.transaction_timeout_ms {} at {RECORDS_A_SECOND} a second",
                kafka.transaction_timeout_ms
            );
            findings.push(Finding::new(key, problem, hint));
        }
    }
    findings
}

/// The records that this job writes whatever its input fit `message_max_bytes`.
pub(super) fn record_sizes(subject: &mut Subject) -> Vec<Finding> {
    let raw = subject.config.raw();
    let Some(kafka) = &raw.topics.kafka else { return Vec::new() };
    let mut sizes = vec![
        ("epochs, with the semantics of this file", bounds(subject)),
        ("cot, with a text of 4 KiB", cot()),
        (
            "features, with the longest history, all demonstrations and ids of 36 bytes",
            feature(subject.vector.unwrap_or(32), &raw.semantics),
        ),
    ];
    sizes.extend(subject.encoder.as_ref().map(|(id, width)| ("embeddings", embedding(id, *width))));
    let too_large = sizes.into_iter().filter(|(_, size)| *size > kafka.message_max_bytes);
    too_large
        .map(|(what, size)| {
            let problem =
                format!("{} is below the {size} bytes of a record of {what}", kafka.message_max_bytes);
            let hint = "raise it, and the topics' max.message.bytes with it";
            Finding::new("topics.kafka.message_max_bytes", problem, hint)
        })
        .collect()
}

fn actives() -> Actives {
    Actives {
        llm_model: "0".repeat(64),
        prompt_version: "0".repeat(32),
        parameters: "0".repeat(512),
        encoder: "0".repeat(73),
        ict_weights: "0".repeat(64),
    }
}

fn bounds(subject: &Subject) -> usize {
    let config = subject.config.semantics.canonical();
    let record = EpochRecord {
        job: subject.config.options.job.clone(),
        epoch: i64::MAX,
        ends: BTreeMap::new(),
        maxima: Vec::new(),
        clock: i64::MAX,
        actives: actives(),
        config_digest: config_digest(&config).hex(),
        config: Some(config),
        starts: BTreeMap::new(),
        erasures: Vec::new(),
        outputs: None,
    };
    wire_size(&record.key(), Some(&record.encode()), &[])
}

fn embedding(encoder: &str, width: usize) -> usize {
    let (encoder, digest) = (encoder.to_owned(), "0".repeat(64));
    let record = Embedding { encoder, digest, status: EmbeddingStatus::Ok, vector: vec![1.0; width] };
    wire_size(&record.key(), Some(&record.encode()), &[])
}

fn cot() -> usize {
    let Actives { llm_model, prompt_version, parameters, .. } = actives();
    let record = CotRecord {
        status: ictflow_schemas::cot::CotStatus::Ok,
        user_id: "0".repeat(ID),
        item_id: "0".repeat(ID),
        decision: "negative".to_owned(),
        prompt_version,
        llm_model,
        parameters,
        text: "0".repeat(4 << 10),
        attempts: i32::MAX,
        tokens_in: i64::MAX,
        tokens_out: i64::MAX,
        finish_reason: "length".to_owned(),
        quality: 1.0,
        created_at: i64::MAX,
    };
    wire_size(&[0; 64], Some(&record.encode()), &[])
}

fn feature(width: usize, semantics: &Semantics) -> usize {
    let (history, demonstrations) = (semantics.history_length, semantics.demonstrations);
    let id = "0".repeat(ID);
    let Actives { llm_model, prompt_version, encoder, ict_weights, .. } = actives();
    let used = UsedDemonstration { id: id.clone(), score: i64::MAX, label: 1, fresh: true };
    let point = Uuid::max().to_string();
    let neighbour = UsedNeighbour { source: NeighbourSource::SameUser, id: point, score: i64::MAX, label: 1 };
    let record = Feature {
        user_id: id.clone(),
        item_id: id.clone(),
        ict: vec![1.0; width],
        demonstrations: vec![used; demonstrations],
        k: i32::MAX,
        history: vec![id.clone(); history],
        cot_status: CotStatus::Full,
        cot_created_at: Some(i64::MAX),
        ict_weights,
        encoder,
        prompt_version,
        llm_model,
        event_time: Some(i64::MAX),
        votes: vec![1.0; VOTES],
        neighbours: vec![neighbour; 2 * semantics.neighbours.selected],
        vector_kind: VectorKind::Decoder,
        history_labels: vec![-1; history],
    };
    let headers =
        [HEADER_EPOCH, HEADER_SUBSTEP, HEADER_PUBLISHED_AT].map(|name| (name.to_owned(), vec![0; 19]));
    wire_size(&feature_key(&id, &id), Some(&record.encode()), &headers)
}
