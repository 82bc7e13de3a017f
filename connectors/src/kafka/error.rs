//! What a Kafka error asks for, decided in one place.

use crate::{Disposition, Error};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use std::time::Duration;

/// The pause before an attempt that follows a passing failure. librdkafka has its own, shorter
/// back-off below it; this one paces whole calls.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// What an error of librdkafka asks for.
///
/// A transaction's error carries librdkafka's own verdict (fatal, abortable, retriable), which
/// wins over its code: the same code may be either. Everything unknown is fatal, since a failure
/// that nobody understands must not be retried for ever.
pub fn classify(error: &KafkaError) -> Disposition {
    let KafkaError::Transaction(transaction) = error else {
        return match code(error) {
            Some(code) => of_code(code),
            // Nothing came back before the client went away.
            None if matches!(error, KafkaError::Canceled) => Disposition::Retry { after: PAUSE },
            None => Disposition::Fatal,
        };
    };
    of_transaction(
        transaction.code(),
        transaction.is_fatal(),
        transaction.txn_requires_abort(),
        transaction.is_retriable(),
    )
}

/// The verdict on a transaction's error, from its code and librdkafka's three flags.
fn of_transaction(code: Code, fatal: bool, abortable: bool, retriable: bool) -> Disposition {
    if fatal {
        return Disposition::Fatal;
    }
    match of_code(code) {
        // An aborted transaction may be tried again, unless its cause stays.
        Disposition::Fatal if (abortable || retriable) && !lasting(code) => {
            Disposition::Retry { after: PAUSE }
        }
        verdict => verdict,
    }
}

/// Codes whose cause stays until a person acts, even where librdkafka only asks for an abort.
fn lasting(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::SSL
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicOrPartition
            | Code::Fenced
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
    )
}

/// The verdict on a bare code.
fn of_code(code: Code) -> Disposition {
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::TimedOutQueue
        | Code::RequestTimedOut
        | Code::NetworkException
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::PreferredLeaderNotAvailable
        | Code::EligibleLeadersNotAvailable
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::StaleBrokerEpoch
        | Code::StaleControllerEpoch
        | Code::NotController
        | Code::KafkaStorageError
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::WaitingForCoordinator
        | Code::ConcurrentTransactions
        | Code::UnstableOffsetCommit
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ISRInsufficient
        | Code::ThrottlingQuotaExceeded
        | Code::ReassignmentInProgress
        | Code::RebootstrapRequired
        | Code::QueueFull
        | Code::PurgeQueue
        | Code::PurgeInflight
        | Code::WaitCache
        | Code::Retry
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::UnknownBroker
        | Code::DestroyBroker => Disposition::Retry { after: PAUSE },
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidTimestamp
        | Code::InvalidRecord => Disposition::Poison,
        _ => Disposition::Fatal,
    }
}

/// The error code within an error, where it has one.
pub(super) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code)
        | KafkaError::ConsumerCommit(code)
        | KafkaError::ConsumerQueueClose(code)
        | KafkaError::Flush(code)
        | KafkaError::Global(code)
        | KafkaError::GroupListFetch(code)
        | KafkaError::MessageConsumption(code)
        | KafkaError::MessageConsumptionFatal(code)
        | KafkaError::MessageProduction(code)
        | KafkaError::MetadataFetch(code)
        | KafkaError::OffsetFetch(code)
        | KafkaError::Rebalance(code)
        | KafkaError::SetPartitionOffset(code)
        | KafkaError::StoreOffset(code)
        | KafkaError::MockCluster(code) => Some(*code),
        KafkaError::Transaction(error) => Some(error.code()),
        _ => None,
    }
}

/// What a person can do about an error.
fn hint(error: &KafkaError) -> &'static str {
    let Some(code) = code(error) else {
        return match error {
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => {
                "check the section kafka of the config"
            }
            _ => "look at the broker's log and at the lines of target librdkafka",
        };
    };
    match code {
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TransactionCoordinatorFenced => FENCED,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => {
            "check security.mechanism, username and password against the broker's listener"
        }
        Code::SSL => {
            "check security.ca_file, certificate_file and key_file, and the host names in bootstrap_servers"
        }
        Code::TopicAuthorizationFailed => {
            "grant Read, Write, Create, Describe and DescribeConfigs on the job's topics to its principal"
        }
        Code::GroupAuthorizationFailed => {
            "grant Read on the job's groups (group_id and its transactional ids)"
        }
        Code::TransactionalIdAuthorizationFailed => "grant Write and Describe on the job's transactional ids",
        Code::ClusterAuthorizationFailed => {
            "grant IdempotentWrite and Create on the cluster to the job's principal"
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            "create the topic, or check its configured name; was it deleted while the job ran?"
        }
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation | Code::NoOffset => {
            "records went before they were read: raise the topic's retention, or start with --accept-truncated"
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            "raise message_max_bytes and the topic's max.message.bytes together"
        }
        Code::InvalidTimestamp => {
            "the broker refuses the timestamp: see message.timestamp.after.max.ms of the topic"
        }
        Code::NotImplemented | Code::UnsupportedCompressionType | Code::UnsupportedFeature => {
            "the broker or a record uses what this build lacks: see the cargo features of the connectors"
        }
        Code::UnsupportedVersion => "the broker is too old: version 2.5 or newer is needed",
        Code::InvalidTransactionTimeout => {
            "lower transaction_timeout_ms, or raise the broker's transaction.max.timeout.ms"
        }
        Code::InvalidReplicationFactor => "set replication to at most the number of brokers",
        Code::InvalidTopic | Code::InvalidPartitions | Code::InvalidConfig | Code::PolicyViolation => {
            "the broker refuses the topic's settings: create it by hand as the README's table of topics says"
        }
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend | Code::ISRInsufficient => {
            "fewer replicas are in sync than min.insync.replicas asks for: look at the brokers"
        }
        _ => match of_code(code) {
            Disposition::Retry { .. } => UNREACHABLE,
            _ => "look at the broker's log and at the lines of target librdkafka",
        },
    }
}

/// The hint where no broker answers. One that wants TLS, or a certificate, just hangs up.
pub(super) const UNREACHABLE: &str =
    "check that the brokers of bootstrap_servers are up and reachable, and that security fits their listener";

/// The hint of every fenced writer.
pub(super) const FENCED: &str =
    "another writer of this transactional id has started: only one job of a name may run, stop the older one";

/// The hint of a transaction whose outcome isn't known.
pub(super) const UNKNOWN_OUTCOME: &str =
    "it isn't known whether the transaction was committed: drop the writer, fence again, read progress again";

/// The hint of a fence after the transaction's timeout.
const TIMED_OUT: &str = "the broker may have ended the transaction for its time: raise transaction_timeout_ms, or lower [epochs] \
     max_events, where this comes again";

/// A failure that ended a writer within a transaction or at its commit, so that it must be dropped.
///
/// A fence stops the job for good: a successor runs. But the broker also fences a writer whose
/// transaction exceeded its timeout, and its answers to both are the same; `overdue` says that this
/// writer's did, and then a new start finds out. What only a person can mend stops the job as well.
/// In every other case it isn't known what was committed.
pub(super) fn ended(context: impl Into<String>, code: Code, detail: impl ToString, overdue: bool) -> Error {
    let detail = format!("{code}: {}", detail.to_string());
    match code {
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TransactionCoordinatorFenced => match overdue {
            true => Error::restart(context, detail, TIMED_OUT),
            false => Error::fatal(context, detail, FENCED),
        },
        code if lasting(code) => Error::fatal(context, detail, hint(&KafkaError::Global(code))),
        _ => Error::restart(context, detail, UNKNOWN_OUTCOME),
    }
}

/// A connector's error from one of librdkafka's.
pub(super) fn failure(context: impl Into<String>, error: &KafkaError) -> Error {
    Error { disposition: classify(error), context: context.into(), detail: detail(error), hint: hint(error) }
}

/// The text of an error, without the value of a setting: it may be a secret.
fn detail(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("librdkafka refuses the value of {key}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rdkafka::types::RDKafkaConfRes;

    const RETRY: Disposition = Disposition::Retry { after: PAUSE };

    #[test]
    fn every_class_of_error_has_its_disposition() {
        let config = || {
            KafkaError::ClientConfig(
                RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
                "Invalid value \"hunter2\"".into(),
                "sasl.password".into(),
                "hunter2".into(),
            )
        };
        let table = [
            // What passes by itself.
            (KafkaError::MetadataFetch(Code::BrokerTransportFailure), RETRY),
            (KafkaError::MetadataFetch(Code::OperationTimedOut), RETRY),
            (KafkaError::MetadataFetch(Code::Resolve), RETRY),
            (KafkaError::MetadataFetch(Code::LeaderNotAvailable), RETRY),
            (KafkaError::Global(Code::AllBrokersDown), RETRY),
            (KafkaError::MessageProduction(Code::MessageTimedOut), RETRY),
            (KafkaError::MessageProduction(Code::NotEnoughReplicas), RETRY),
            (KafkaError::MessageProduction(Code::QueueFull), RETRY),
            (KafkaError::MessageProduction(Code::PurgeInflight), RETRY),
            (KafkaError::MessageConsumption(Code::OffsetNotAvailable), RETRY),
            (KafkaError::AdminOp(Code::NotController), RETRY),
            (KafkaError::Canceled, RETRY),
            // What one record can never do.
            (KafkaError::MessageProduction(Code::MessageSizeTooLarge), Disposition::Poison),
            (KafkaError::MessageProduction(Code::MessageBatchTooLarge), Disposition::Poison),
            (KafkaError::MessageProduction(Code::InvalidTimestamp), Disposition::Poison),
            (KafkaError::MessageProduction(Code::InvalidRecord), Disposition::Poison),
            // What needs a person.
            (KafkaError::Global(Code::Authentication), Disposition::Fatal),
            (KafkaError::Global(Code::SaslAuthenticationFailed), Disposition::Fatal),
            (KafkaError::Global(Code::SSL), Disposition::Fatal),
            (KafkaError::MessageProduction(Code::TopicAuthorizationFailed), Disposition::Fatal),
            (KafkaError::MessageProduction(Code::UnknownTopic), Disposition::Fatal),
            (KafkaError::MessageProduction(Code::Fenced), Disposition::Fatal),
            (KafkaError::MessageProduction(Code::ProducerFenced), Disposition::Fatal),
            (KafkaError::MessageConsumption(Code::AutoOffsetReset), Disposition::Fatal),
            (KafkaError::MessageConsumption(Code::OffsetOutOfRange), Disposition::Fatal),
            (KafkaError::MessageConsumption(Code::LogTruncation), Disposition::Fatal),
            (KafkaError::MessageConsumption(Code::NotImplemented), Disposition::Fatal),
            (KafkaError::MessageConsumptionFatal(Code::Fatal), Disposition::Fatal),
            (KafkaError::AdminOp(Code::InvalidReplicationFactor), Disposition::Fatal),
            (KafkaError::AdminOp(Code::PolicyViolation), Disposition::Fatal),
            (KafkaError::ClientCreation("no group".into()), Disposition::Fatal),
            (config(), Disposition::Fatal),
            // Never heard of.
            (KafkaError::Global(Code::Unknown), Disposition::Fatal),
        ];
        for (error, expected) in table {
            assert_eq!(classify(&error), expected, "{error:?}");
            let shown = failure("read", &error).to_string();
            assert!(!shown.contains("hunter2"), "a setting's value is shown: {shown}");
            assert!(!hint(&error).is_empty());
        }
    }

    #[test]
    fn an_ended_writer_stops_for_a_successor_and_starts_anew_for_a_doubt() {
        let table = [
            (Code::Fenced, false, Disposition::Fatal),
            (Code::ProducerFenced, false, Disposition::Fatal),
            (Code::InvalidProducerEpoch, false, Disposition::Fatal),
            // The broker's own timeout looks the same.
            (Code::Fenced, true, Disposition::Restart),
            (Code::ProducerFenced, true, Disposition::Restart),
            (Code::InvalidProducerEpoch, true, Disposition::Restart),
            // Whether it was committed isn't known.
            (Code::OperationTimedOut, false, Disposition::Restart),
            (Code::RequestTimedOut, true, Disposition::Restart),
            (Code::BrokerTransportFailure, false, Disposition::Restart),
            (Code::AllBrokersDown, true, Disposition::Restart),
            (Code::CoordinatorNotAvailable, false, Disposition::Restart),
            (Code::InvalidTransactionalState, false, Disposition::Restart),
            (Code::OutOfOrderSequenceNumber, false, Disposition::Restart),
            (Code::UnknownProducerId, false, Disposition::Restart),
            (Code::Unknown, false, Disposition::Restart),
            // A new start would meet the same.
            (Code::TransactionalIdAuthorizationFailed, false, Disposition::Fatal),
            (Code::TopicAuthorizationFailed, true, Disposition::Fatal),
            (Code::SaslAuthenticationFailed, true, Disposition::Fatal),
        ];
        for (code, overdue, expected) in table {
            let error = ended("commit", code, "reason", overdue);
            assert_eq!(error.disposition, expected, "{code:?} {overdue}");
            assert_eq!(error.starts_anew(), expected == Disposition::Restart);
            assert!(error.detail.ends_with(": reason") && !error.hint.is_empty(), "{error}");
        }
    }

    #[test]
    fn a_transactions_flags_win_over_its_code() {
        let table = [
            // (code, fatal, abortable, retriable) -> verdict
            (Code::InvalidTransactionalState, true, false, false, Disposition::Fatal),
            (Code::OperationTimedOut, true, false, true, Disposition::Fatal),
            (Code::InvalidTransactionalState, false, true, false, RETRY),
            (Code::UnknownProducerId, false, true, false, RETRY),
            (Code::OperationTimedOut, false, false, true, RETRY),
            (Code::ConcurrentTransactions, false, false, true, RETRY),
            // An abort doesn't grant a right, nor create a topic, nor bring a fenced writer back.
            (Code::TopicAuthorizationFailed, false, true, false, Disposition::Fatal),
            (Code::GroupAuthorizationFailed, false, true, false, Disposition::Fatal),
            (Code::UnknownTopicOrPartition, false, true, false, Disposition::Fatal),
            (Code::ProducerFenced, false, true, false, Disposition::Fatal),
            (Code::MessageSizeTooLarge, false, true, false, Disposition::Poison),
            // Without a flag nothing speaks for another attempt.
            (Code::State, false, false, false, Disposition::Fatal),
        ];
        for (code, fatal, abortable, retriable, expected) in table {
            assert_eq!(of_transaction(code, fatal, abortable, retriable), expected, "{code:?}");
        }
    }
}
