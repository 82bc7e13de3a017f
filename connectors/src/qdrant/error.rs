//! What a failure of Qdrant asks for, decided in one place.

use crate::points::VANISHED;
use crate::{Disposition, Error};
use qdrant_client::QdrantError;
use qdrant_client::qdrant::UpdateStatus;
use std::time::Duration;
use tonic::{Code, Status};

/// The longest text of a server that an error repeats, in characters.
const MESSAGE_CHARS: usize = 300;

/// How one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client or the server refused it.
    Call(QdrantError),
    /// The server took a write without saying that it is applied.
    Unconfirmed(i32),
}

impl From<QdrantError> for Failure {
    fn from(error: QdrantError) -> Self {
        Failure::Call(error)
    }
}

/// What a failed attempt asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another attempt, not before this pause.
    Again(Duration),
    /// The collection to be made and filled anew.
    Vanished,
    /// A person, who gets this hint.
    Stop(&'static str),
}

impl Failure {
    /// What it asks for.
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Failure::Unconfirmed(_) => Verdict::Again(Duration::ZERO),
            Failure::Call(QdrantError::ResponseError { status }) => of_code(status.code()),
            Failure::Call(QdrantError::ResourceExhaustedError { retry_after_seconds, .. }) => {
                Verdict::Again(Duration::from_secs(*retry_after_seconds))
            }
            Failure::Call(_) => Verdict::Stop("correct qdrant.url"),
        }
    }

    /// What came back: the code and the server's own words. Metadata is left out, which a proxy may
    /// have filled with what it was sent.
    fn detail(&self) -> String {
        let answer = |status: &Status| format!("{:?}: {}", status.code(), status.message());
        match self {
            Failure::Call(
                QdrantError::ResponseError { status } | QdrantError::ResourceExhaustedError { status, .. },
            ) => answer(status),
            Failure::Call(error) => error.to_string(),
            Failure::Unconfirmed(status) => match UpdateStatus::try_from(*status) {
                Ok(status) => format!("the write came back as {}, not as completed", status.as_str_name()),
                Err(_) => format!("the write came back with the unknown status {status}"),
            },
        }
    }

    /// The error of a call that isn't tried again. `key` is the API key: a server that repeats it
    /// isn't repeated.
    pub(super) fn error(&self, context: String, longest_pause: Duration, key: Option<&str>) -> Error {
        let mut detail: String =
            self.detail().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if let Some(key) = key {
            detail = detail.replace(key, "[redacted]");
        }
        // Cut after the replacement, so that no part of a key is left at the end.
        let detail: String = detail.chars().take(MESSAGE_CHARS).collect();
        match self.verdict() {
            Verdict::Again(pause) => Error {
                disposition: Disposition::Retry {
                    after: pause.clamp(Duration::ZERO, LONGEST_ASKED).max(longest_pause),
                },
                context,
                detail,
                hint: "check that the server runs, that qdrant.url names its gRPC port (6334), and its load",
            },
            Verdict::Vanished => Error::retry(longest_pause, context, detail, VANISHED),
            Verdict::Stop(hint) => Error::fatal(context, detail, hint),
        }
    }
}

/// The longest pause that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// The verdict on a gRPC code. A new code of a later library is fatal: a failure that nobody
/// understands must not be retried for ever.
fn of_code(code: Code) -> Verdict {
    match code {
        // Internal covers broken connections and a server's own faults, Cancelled the client's
        // timeout, FailedPrecondition a shard that is moving or starting, Unknown a connection that
        // was closed in the middle of an answer.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::FailedPrecondition
        | Code::Internal
        | Code::Unknown => Verdict::Again(Duration::ZERO),
        Code::NotFound => Verdict::Vanished,
        Code::Unauthenticated => Verdict::Stop("set qdrant.api_key to a key that this server knows"),
        Code::PermissionDenied => {
            Verdict::Stop("give qdrant.api_key the right to read, write and manage the collection")
        }
        Code::Unimplemented => Verdict::Stop("use a Qdrant server of version 1.16 or newer on its gRPC port"),
        Code::InvalidArgument => Verdict::Stop(
            "the server refuses the request itself: compare the encoder's width and qdrant.collection with it",
        ),
        Code::OutOfRange => Verdict::Stop("lower qdrant.batch, query_batch or page_points"),
        _ => Verdict::Stop("look into the server's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(status: Status) -> Failure {
        Failure::Call(status.into())
    }

    #[test]
    fn every_code_has_a_verdict() {
        use Code::*;
        let again = [
            Cancelled,
            Unknown,
            DeadlineExceeded,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            Internal,
            Unavailable,
        ];
        let stop = [
            Ok,
            InvalidArgument,
            AlreadyExists,
            PermissionDenied,
            OutOfRange,
            Unimplemented,
            DataLoss,
            Unauthenticated,
        ];
        for code in again {
            assert_eq!(call(Status::new(code, "")).verdict(), Verdict::Again(Duration::ZERO), "{code:?}");
        }
        for code in stop {
            assert!(matches!(call(Status::new(code, "")).verdict(), Verdict::Stop(_)), "{code:?}");
        }
        assert_eq!(call(Status::new(NotFound, "")).verdict(), Verdict::Vanished);
        // All 17 codes that gRPC has.
        assert_eq!(again.len() + stop.len() + 1, 17);
    }

    #[test]
    fn a_write_counts_only_when_completed() {
        for (status, word) in [
            (UpdateStatus::Acknowledged as i32, "Acknowledged"),
            (UpdateStatus::WaitTimeout as i32, "WaitTimeout"),
            (UpdateStatus::ClockRejected as i32, "ClockRejected"),
            (77, "unknown status 77"),
        ] {
            let failure = Failure::Unconfirmed(status);
            assert_eq!(failure.verdict(), Verdict::Again(Duration::ZERO));
            let error = failure.error("write".into(), Duration::from_secs(1), None).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_it_within_a_limit() {
        for (asked, expected) in [("7", 7), ("1", 5), ("86400", 300)] {
            let mut status = Status::resource_exhausted("slow down");
            status.metadata_mut().insert("retry-after", asked.parse().unwrap());
            let error = call(status).error("write".into(), Duration::from_secs(5), None);
            assert_eq!(error.disposition, Disposition::Retry { after: Duration::from_secs(expected) });
        }
    }

    #[test]
    fn an_error_repeats_neither_the_key_nor_metadata_nor_a_long_text() {
        let mut status = Status::unauthenticated(format!("no such key:\ncanary {}", "x".repeat(1_000)));
        status.metadata_mut().insert("api-key", "canary".parse().unwrap());
        let error = call(status).error("reach it".into(), Duration::ZERO, Some("canary"));
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary") && shown.contains("[redacted]"), "{shown}");
        assert_eq!(error.detail.chars().count(), MESSAGE_CHARS);
        assert!(!error.detail.contains('\n'));
    }

    #[test]
    fn a_vanished_collection_is_told_apart() {
        let gone =
            call(Status::not_found("Collection `c` doesn't exist!")).error("w".into(), Duration::ZERO, None);
        let down = call(Status::unavailable("")).error("w".into(), Duration::ZERO, None);
        assert!(crate::points::vanished(&gone) && !crate::points::vanished(&down));
        assert!(matches!(gone.disposition, Disposition::Retry { .. }));
    }
}
