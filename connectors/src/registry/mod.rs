//! Values framed by a schema registry with the Confluent-compatible API.
//!
//! [`Registered`] wraps a store of topics, so that the rest sees single-object Avro. On the topics a
//! value is a zero byte, the id of its schema (u32 big-endian) and the Avro datum; keys are never
//! framed, tombstones have no value.
//!
//! * What we write is framed under our newest schema, which is registered once at start.
//! * What we wrote is read back byte for byte: another header before the same datum.
//! * What others write is resolved from their schema to ours ([`resolve`]). The value as it stood stays
//!   beside it (`Record::framed`), for dead letters.
//! * A value without the framing passes as it is: single-object Avro that stood on a topic before a
//!   registry was configured still decodes, mixed with framed values. The way back is closed: without
//!   `[registry]` a framed value is unreadable.
//! * An input's value whose id the registry doesn't know, or that can't be resolved, stays as it is, and
//!   nothing decodes it: it becomes a dead letter. On our own topics an unknown id is `Fatal`.
//!
//! * **Delivery**: that of the wrapped store. A schema is registered before a record under its id is
//!   written.
//! * **Ordering**: that of the wrapped store.
//! * **Retries**: a request is tried again after a failed transport or a status 408, 425, 429 or 5xx, at
//!   most `retries` times, with pauses from `retry_pause_ms` that double up to 10 s, or longer ones that
//!   the registry asks for, within the same 10 s. Then it is `Fatal`, never a dead letter: a registry
//!   that is down says nothing about a record. An id that it doesn't know is asked once more after a
//!   pause (16 ids at a time), then taken as unknown for `unknown_id_ms`. Nobody can interrupt the waiting.
//! * **Limits**: every wait by `connect_timeout_ms` and `timeout_ms`, a schema by `max_schema_bytes`, the
//!   kept ones by `cache_schemas`, an allocation while a datum is read by 64 MiB, the registry's words in
//!   an error by 500 characters. A schema that refers to other subjects, or that contains itself, isn't
//!   read. A record that was dead-lettered for an unknown id is read on a replay if the id is known by
//!   then, which a replay may refuse as another log: producers register before they send.
//! * **Secrets**: password and token by reference, printed nowhere; credentials over http:// to another
//!   machine only where the config allows it. No value, key or answer is ever logged.
//! * **Telemetry**: [`Counts`]; a line for each schema that was taken in or can't be read.

mod cache;
mod check;
mod client;
pub mod compare;
mod config;
pub mod framing;
pub mod resolve;
mod topics;

pub use check::{Compatibility, check_compatibility};
pub use client::{Client, Found, Stored};
pub use config::Config;
pub use topics::Registered;

use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Version, versions};
use std::sync::atomic::AtomicU64;

/// What a client and the topics on it counted since they were opened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests sent, repeated ones included.
    pub requests: AtomicU64,
    /// Requests sent again.
    pub retries: AtomicU64,
    /// Ids looked up, known or not.
    pub schemas: AtomicU64,
    /// Ids that the registry didn't know.
    pub unknown_ids: AtomicU64,
    /// Values framed for writing.
    pub framed: AtomicU64,
    /// Framed values that were read.
    pub unframed: AtomicU64,
    /// Framed values that can't be read.
    pub unreadable: AtomicU64,
}

/// Whether a topic's records come from others.
fn is_input(topic: Topic) -> bool {
    matches!(topic, Topic::Interactions | Topic::Items | Topic::Candidates)
}

/// Whether a topic's records are ours.
fn written(topic: Topic) -> bool {
    !is_input(topic)
}

/// The newest schema of a topic.
fn newest(topic: Topic) -> &'static Version {
    let versions = versions(topic);
    // A topic has at least one version.
    &versions[versions.len() - 1]
}

/// The file of a topic's newest schema.
fn file_of(topic: Topic) -> String {
    format!("schemas/wire/{}.v{}.avsc", topic.name(), versions(topic).len())
}
