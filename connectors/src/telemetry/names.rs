//! The name and the help text of every metric, in one place: dashboards and alerts use no other.
//!
//! Units are base units and stand last; counters end in `_total`. Times of the wall clock are
//! exported as timestamps, so that an age is `time() - x` and stays right where nothing moves.
//! Labels come from closed sets: topics by their role, queues, reasons, outcomes. Counts are since
//! the process started.

/// A metric: its name and its help text.
pub type Named = (&'static str, &'static str);

/// Always 1, with the version as label.
pub const BUILD_INFO: Named =
    ("ictflow_build_info", "Always 1; the labels name the version and the revision of the program.");
/// Whether the job is ready.
pub const READY: Named =
    ("ictflow_ready", "Whether the job has caught up and publishes (1), as /readyz says it.");

/// Whether the job is stalled.
pub const STALLED: Named = (
    "ictflow_stalled",
    "Whether the job was dropped after a failure that may pass and waits to be started anew (1).",
);
/// Restarts.
pub const RESTARTS: Named =
    ("ictflow_job_restarts_total", "Times that the process dropped its job and began to start it anew.");

/// Records read.
pub const SOURCE_RECORDS: Named =
    ("ictflow_source_records_total", "Records read from an input topic, those of a replay included.");
/// Bytes read.
pub const SOURCE_BYTES: Named = (
    "ictflow_source_bytes_total",
    "Bytes of keys and values read from an input topic, those of a replay included.",
);
/// Offset lag.
pub const SOURCE_LAG: Named = (
    "ictflow_source_lag_records",
    "Offsets between the end of a partition and the last closed epoch, at least 0; on Kafka control records count.",
);
/// Event age.
pub const EVENT_AGE: Named = (
    "ictflow_feature_event_age_seconds",
    "Age of the newest event that an epoch brought a user when a feature of that user was committed; one observation a feature.",
);
/// Frontiers.
pub const FRONTIER: Named = (
    "ictflow_frontier_timestamp_seconds",
    "Wall-clock time up to which all is done: input read, cot answered, output committed and published. Absent until known.",
);

/// Dead letters.
pub const DEAD_LETTERS: Named =
    ("ictflow_dead_letters_total", "Dead letters committed, by the stage and the reason of the refusal.");
/// Epochs.
pub const EPOCHS: Named = ("ictflow_epochs_committed_total", "Epochs committed.");
/// The newest epoch.
pub const EPOCH: Named = ("ictflow_epoch", "Number of the last committed epoch.");
/// Time of the last commit.
pub const COMMIT_LAST: Named = (
    "ictflow_commit_last_success_timestamp_seconds",
    "Wall-clock time of the last commit. Absent before the first.",
);
/// Commit duration.
pub const COMMIT_DURATION: Named =
    ("ictflow_commit_duration_seconds", "Time that the transaction of an epoch took.");
/// Epoch duration.
pub const EPOCH_DURATION: Named =
    ("ictflow_epoch_duration_seconds", "Time from an epoch's bounds to its commit.");
/// Recovery duration.
pub const RECOVERY_DURATION: Named = (
    "ictflow_recovery_duration_seconds",
    "Time that the start took, replay included; one observation a start.",
);

/// Features published.
pub const FEATURES_PUBLISHED: Named =
    ("ictflow_features_published_total", "Feature vectors published, without tombstones.");
/// Tombstones.
pub const FEATURES_RETRACTED: Named = ("ictflow_features_retracted_total", "Tombstones on features.");
/// Examples.
pub const EXAMPLES_PUBLISHED: Named =
    ("ictflow_examples_published_total", "Examples published, tombstones among them.");
/// What stands.
pub const LIVE: Named = (
    "ictflow_live_records",
    "What stands at the last committed epoch, by kind; features_full have all K demonstrations, demonstrations_left_out are over max_demonstrations.",
);

/// Queue depth.
pub const QUEUE_DEPTH: Named = ("ictflow_queue_depth", "Entries that wait in a queue.");
/// Queue limit.
pub const QUEUE_LIMIT: Named = (
    "ictflow_queue_limit",
    "The most entries that a queue takes. Absent for generate and embed, which hold one entry a wanted key or text.",
);

/// Wanted keys.
pub const COT_WANTED: Named = (
    "ictflow_cot_wanted",
    "Distinct content keys that eligible examples want: answered, queued or in flight.",
);
/// Answered keys.
pub const COT_ANSWERED: Named =
    ("ictflow_cot_answered", "Wanted keys with a record on the log, ok or failed.");
/// Queued keys.
pub const COT_QUEUED: Named = ("ictflow_cot_queued", "Wanted keys that wait for a call.");
/// Keys in flight.
pub const COT_IN_FLIGHT: Named =
    ("ictflow_cot_in_flight", "Wanted keys that are called or whose answer isn't read back yet.");
/// Failed keys.
pub const COT_FAILED: Named = ("ictflow_cot_failed", "Wanted keys for which only a failure stands.");
/// Keys called.
pub const COT_CALLED: Named = ("ictflow_cot_called_total", "Distinct keys called.");
/// First calls.
pub const COT_FIRST_CALLS: Named = (
    "ictflow_cot_first_calls_total",
    "Calls with attempt 1; divided by called keys they are the amplification, which must be 1.",
);
/// Attempts.
pub const COT_ATTEMPTS: Named = ("ictflow_cot_attempts_total", "Calls, retries included.");
/// Cancelled requests.
pub const COT_CANCELLED: Named = ("ictflow_cot_cancelled_total", "Requests retracted before their call.");
/// Answers that stood.
pub const LLM_CACHE_HITS: Named =
    ("ictflow_llm_cache_hits_total", "Keys whose answer stood on the log when they came to be wanted.");
/// How keys ended.
pub const LLM_REQUESTS: Named = (
    "ictflow_llm_requests_total",
    "Requests by how they ended: answered, refused by the rules for good, or interrupted and queued again.",
);
/// Tokens.
pub const LLM_TOKENS: Named = ("ictflow_llm_tokens_total", "Tokens of answered requests, by direction.");
/// Time of a call.
pub const LLM_DURATION: Named = ("ictflow_llm_request_duration_seconds", "Time of one call of the LLM.");
/// The oldest pending key.
pub const LLM_OLDEST: Named = (
    "ictflow_llm_oldest_pending_timestamp_seconds",
    "Wall-clock time since when the oldest unanswered key is wanted. Absent where none is.",
);
/// Texts embedded.
pub const EMBEDDINGS: Named = ("ictflow_embeddings_total", "Texts embedded.");
/// Time of an encoder call.
pub const EMBED_DURATION: Named =
    ("ictflow_embed_duration_seconds", "Time of one call of the encoder, a batch of texts.");

/// Errors that passed.
pub const ERRORS: Named =
    ("ictflow_errors_total", "Failures that didn't end the job, by component, stage and type.");
/// Retries.
pub const RETRIES: Named = ("ictflow_retries_total", "What was tried again, by component.");

/// Switches of the weights.
pub const MODELS_SWITCHED: Named =
    ("ictflow_models_switched_total", "Switches to other ICT weights while the job ran.");
/// Refused weights.
pub const MODELS_REFUSED: Named = (
    "ictflow_models_refused_total",
    "ICT weights that were named and couldn't be loaded or don't fit: those from before went on serving.",
);

/// Agreement of the shadow.
pub const SHADOW_COSINE: Named = (
    "ictflow_shadow_cosine_ratio",
    "Cosine of the vectors that serve and those of the shadow, mean and least over the pairs that the last epoch touched. Absent without a shadow.",
);
/// Pairs compared.
pub const SHADOW_PAIRS: Named =
    ("ictflow_shadow_compared_pairs", "Pairs over which that cosine was taken. Absent without a shadow.");

// What an LLM endpoint and a store of points measure, once they are there.

/// An open breaker.
pub const BREAKER_OPEN: Named =
    ("ictflow_breaker_open", "Whether the breaker before a target is open (1): nothing is asked.");
/// What is left of a budget.
pub const LLM_BUDGET: Named =
    ("ictflow_llm_budget_tokens", "Tokens that the budget lets be spent now. Absent without a budget.");
/// Duplicates.
pub const SOURCE_SEEN: Named =
    ("ictflow_source_seen_total", "Interactions dropped as exact duplicates of accepted ones.");
/// Requests to the service.
pub const LLM_SERVICE_REQUESTS: Named = (
    "ictflow_llm_service_requests_total",
    "Requests to the LLM's service by outcome, those that are made again included.",
);
/// Points written.
pub const VECTORS_UPSERTED: Named = ("ictflow_vectors_upserted_total", "Points written to the vector store.");
/// Points deleted.
pub const VECTORS_DELETED: Named =
    ("ictflow_vectors_deleted_total", "Points marked as deleted in the vector store.");
/// Lookups.
pub const LOOKUPS: Named = ("ictflow_lookups_total", "Lookups of pairs in the vector store.");
/// Recall.
pub const RECALL: Named = (
    "ictflow_retrieval_recall_ratio",
    "Share of the exact selection that the vector store's candidates held, over the sampled lookups.",
);
/// Time of a write.
pub const UPSERT_DURATION: Named =
    ("ictflow_upsert_duration_seconds", "Time that the writes of an epoch to the vector store took.");
/// Time of lookups.
pub const LOOKUP_DURATION: Named =
    ("ictflow_lookup_duration_seconds", "Time that the lookups of an epoch in the vector store took.");

/// Every metric above, to be checked at once. `process_*` come from the registry's own collector.
pub const ALL: [Named; 54] = [
    SHADOW_COSINE,
    SHADOW_PAIRS,
    MODELS_SWITCHED,
    MODELS_REFUSED,
    BUILD_INFO,
    READY,
    STALLED,
    RESTARTS,
    SOURCE_RECORDS,
    SOURCE_BYTES,
    SOURCE_LAG,
    EVENT_AGE,
    FRONTIER,
    DEAD_LETTERS,
    EPOCHS,
    EPOCH,
    COMMIT_LAST,
    COMMIT_DURATION,
    EPOCH_DURATION,
    RECOVERY_DURATION,
    FEATURES_PUBLISHED,
    FEATURES_RETRACTED,
    EXAMPLES_PUBLISHED,
    LIVE,
    QUEUE_DEPTH,
    QUEUE_LIMIT,
    COT_WANTED,
    COT_ANSWERED,
    COT_QUEUED,
    COT_IN_FLIGHT,
    COT_FAILED,
    COT_CALLED,
    COT_FIRST_CALLS,
    COT_ATTEMPTS,
    COT_CANCELLED,
    LLM_CACHE_HITS,
    LLM_REQUESTS,
    LLM_TOKENS,
    LLM_DURATION,
    LLM_OLDEST,
    EMBEDDINGS,
    EMBED_DURATION,
    ERRORS,
    RETRIES,
    BREAKER_OPEN,
    LLM_BUDGET,
    LLM_SERVICE_REQUESTS,
    SOURCE_SEEN,
    VECTORS_UPSERTED,
    VECTORS_DELETED,
    LOOKUPS,
    RECALL,
    UPSERT_DURATION,
    LOOKUP_DURATION,
];
