//! The outside world of ictflow: one folder a protocol, small traits, typed failures.
//!
//! # The component spec
//! Every connector's module doc answers six headings, in this order:
//! * **Delivery**: what "done" means; what may be lost or doubled, and when.
//! * **Ordering**: which order is kept.
//! * **Retries**: what is tried again, how often, with what pause.
//! * **Limits**: every queue, size and wait that it bounds.
//! * **Secrets**: what it must never print.
//! * **Telemetry**: what it counts.
//!
//! Connectors know `schemas` and never `operators`; both meet in `dataflows`.

pub mod atomic;
pub mod clock;
pub mod encoder;
pub mod files;
pub mod http;
pub mod kafka;
pub mod llm;
pub mod local;
pub mod parquet;
pub mod points;
pub mod qdrant;
pub mod registry;
pub mod secret;
pub mod snapshots;
pub mod telemetry;
pub mod topics;

use std::time::Duration;

/// What a failure asks for, decided where it is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It may succeed later: try again after the pause.
    Retry {
        /// How long to wait first.
        after: Duration,
    },
    /// This record can never succeed: dead-letter it and go on.
    Poison,
    /// What was under way may have happened or not, or its means are gone: drop everything, and start
    /// anew from what is on record. The same call on the same writer can't help any more.
    Restart,
    /// The job must stop, until a person has acted.
    Fatal,
}

/// A failure of a connector: what happened, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {detail} ({hint})")]
pub struct Error {
    /// What it asks for.
    pub disposition: Disposition,
    /// What was attempted, lowercase.
    pub context: String,
    /// What came back.
    pub detail: String,
    /// What a person can do.
    pub hint: &'static str,
}

impl Error {
    /// A failure that stops the job.
    pub fn fatal(context: impl Into<String>, detail: impl ToString, hint: &'static str) -> Self {
        Error { disposition: Disposition::Fatal, context: context.into(), detail: detail.to_string(), hint }
    }

    /// A failure after which only a new start knows where things stand.
    pub fn restart(context: impl Into<String>, detail: impl ToString, hint: &'static str) -> Self {
        Error { disposition: Disposition::Restart, context: context.into(), detail: detail.to_string(), hint }
    }

    /// Whether a new start of the job may help, without a person.
    pub fn starts_anew(&self) -> bool {
        matches!(self.disposition, Disposition::Retry { .. } | Disposition::Restart)
    }

    /// A failure that may pass.
    pub fn retry(
        after: Duration,
        context: impl Into<String>,
        detail: impl ToString,
        hint: &'static str,
    ) -> Self {
        Error {
            disposition: Disposition::Retry { after },
            context: context.into(),
            detail: detail.to_string(),
            hint,
        }
    }

    /// A failure of one input for good.
    pub fn poison(context: impl Into<String>, detail: impl ToString, hint: &'static str) -> Self {
        Error { disposition: Disposition::Poison, context: context.into(), detail: detail.to_string(), hint }
    }
}

/// A connector's result.
pub type Result<T> = std::result::Result<T, Error>;
