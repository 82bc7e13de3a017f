//! The registry: a job's snapshot as Prometheus metrics.
//!
//! Counters and gauges are set from a [`Status`]; only durations and ages are observed one by one.
//! Every label set of the closed sets is there at 0 from the start, so that a rate is right from the
//! first event on. What isn't known yet is absent, never a sentinel.

use super::names::{self, Named};
use super::status::{Phase, Status};
use crate::llm::health::Outcome;
use ictflow_schemas::dead_letter::Reason;
use ictflow_schemas::topic::Topic;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use std::time::Duration;

/// Bounds of durations, seconds: from a small epoch to a long recovery.
const DURATIONS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// Bounds of ages, seconds: around the freshness that readers want, then up to a day of replay.
const AGES: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 86_400.0];

/// The queues.
pub const QUEUES: [&str; 9] = [
    "generate",
    "calls",
    "embed",
    "unjournaled",
    "read_ahead_items",
    "read_ahead_candidates",
    "read_ahead_embeddings",
    "read_ahead_cot",
    "read_ahead_interactions",
];

/// The kinds of what stands.
pub const KINDS: [&str; 7] =
    ["items", "users", "pairs", "features", "features_full", "demonstrations", "demonstrations_left_out"];

/// The failures that don't end a job: component, stage, type.
pub const ERRORS: [(&str, &str, &str); 4] = [
    ("llm", "call", "retry"),
    ("journal", "append", "retry"),
    ("telemetry", "lag", "retry"),
    ("points", "write", "retry"),
];

/// The metrics of a process.
pub struct Metrics {
    registry: Registry,
    ready: IntGauge,
    stalled: IntGauge,
    restarts: IntCounter,
    source_records: IntCounterVec,
    source_bytes: IntCounterVec,
    source_lag: IntGaugeVec,
    event_age: Histogram,
    frontier: GaugeVec,
    dead_letters: IntCounterVec,
    epochs: IntCounter,
    epoch: IntGauge,
    commit_last: GaugeVec,
    commit_duration: Histogram,
    epoch_duration: Histogram,
    recovery_duration: Histogram,
    features: IntCounter,
    retractions: IntCounter,
    examples: IntCounter,
    live: IntGaugeVec,
    depth: IntGaugeVec,
    limit: IntGaugeVec,
    wanted: IntGauge,
    answered: IntGauge,
    queued: IntGauge,
    in_flight: IntGauge,
    failed: IntGauge,
    called: IntCounter,
    first_calls: IntCounter,
    attempts: IntCounter,
    cancelled: IntCounter,
    cache_hits: IntCounter,
    requests: IntCounterVec,
    tokens: IntCounterVec,
    llm_duration: Histogram,
    oldest: GaugeVec,
    embeddings: IntCounter,
    embed_duration: Histogram,
    seen: IntCounter,
    service: IntCounterVec,
    breaker: IntGaugeVec,
    budget: GaugeVec,
    upserted: IntCounter,
    deleted: IntCounter,
    lookups: IntCounter,
    recall: GaugeVec,
    upsert_duration: Histogram,
    lookup_duration: Histogram,
    models_switched: IntCounter,
    models_refused: IntCounter,
    shadow_cosine: GaugeVec,
    shadow_pairs: GaugeVec,
    errors: IntCounterVec,
    retries: IntCounterVec,
}

/// Registers a metric. The names are constants, each used once, so that it can't be refused.
fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("the names and labels are valid constants");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn counter(registry: &Registry, (name, help): Named) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, (name, help): Named, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, (name, help): Named) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, (name, help): Named, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

/// Gauges of fractions; with no labels it is one that may be absent.
fn fractions(registry: &Registry, (name, help): Named, labels: &[&str]) -> GaugeVec {
    register(registry, GaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, (name, help): Named, bounds: &[f64]) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())))
}

/// Raises a counter to a total.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Sets a gauge of a wall-clock time, or takes it away.
fn set_time(gauges: &GaugeVec, labels: &[&str], ms: Option<i64>) {
    set_fraction(gauges, labels, ms.map(|ms| ms as f64 / 1_000.0));
}

/// Sets a gauge, or takes it away.
fn set_fraction(gauges: &GaugeVec, labels: &[&str], value: Option<f64>) {
    match value {
        Some(value) => gauges.with_label_values(labels).set(value),
        // It may never have been there.
        None => drop(gauges.remove_label_values(labels)),
    }
}

impl Metrics {
    /// A registry with every label set at 0.
    #[expect(clippy::new_without_default, reason = "it registers a collector of this process")]
    pub fn new() -> Self {
        let r = &Registry::new();
        let version: Gauge = register(
            r,
            Gauge::with_opts(
                Opts::new(names::BUILD_INFO.0, names::BUILD_INFO.1)
                    .const_label("version", env!("CARGO_PKG_VERSION"))
                    .const_label("revision", option_env!("ICTFLOW_REVISION").unwrap_or("unknown")),
            ),
        );
        version.set(1.0);
        // Another process collector may not exist: this registry is new.
        r.register(Box::new(ProcessCollector::for_self())).expect("a new registry takes it");
        let metrics = Metrics {
            ready: gauge(r, names::READY),
            stalled: gauge(r, names::STALLED),
            restarts: counter(r, names::RESTARTS),
            source_records: counters(r, names::SOURCE_RECORDS, &["topic"]),
            source_bytes: counters(r, names::SOURCE_BYTES, &["topic"]),
            source_lag: gauges(r, names::SOURCE_LAG, &["topic", "partition"]),
            event_age: histogram(r, names::EVENT_AGE, &AGES),
            frontier: fractions(r, names::FRONTIER, &["frontier"]),
            dead_letters: counters(r, names::DEAD_LETTERS, &["stage", "reason"]),
            epochs: counter(r, names::EPOCHS),
            epoch: gauge(r, names::EPOCH),
            commit_last: fractions(r, names::COMMIT_LAST, &[]),
            commit_duration: histogram(r, names::COMMIT_DURATION, &DURATIONS),
            epoch_duration: histogram(r, names::EPOCH_DURATION, &DURATIONS),
            recovery_duration: histogram(r, names::RECOVERY_DURATION, &DURATIONS),
            features: counter(r, names::FEATURES_PUBLISHED),
            retractions: counter(r, names::FEATURES_RETRACTED),
            examples: counter(r, names::EXAMPLES_PUBLISHED),
            live: gauges(r, names::LIVE, &["kind"]),
            depth: gauges(r, names::QUEUE_DEPTH, &["queue"]),
            limit: gauges(r, names::QUEUE_LIMIT, &["queue"]),
            wanted: gauge(r, names::COT_WANTED),
            answered: gauge(r, names::COT_ANSWERED),
            queued: gauge(r, names::COT_QUEUED),
            in_flight: gauge(r, names::COT_IN_FLIGHT),
            failed: gauge(r, names::COT_FAILED),
            called: counter(r, names::COT_CALLED),
            first_calls: counter(r, names::COT_FIRST_CALLS),
            attempts: counter(r, names::COT_ATTEMPTS),
            cancelled: counter(r, names::COT_CANCELLED),
            cache_hits: counter(r, names::LLM_CACHE_HITS),
            requests: counters(r, names::LLM_REQUESTS, &["outcome"]),
            tokens: counters(r, names::LLM_TOKENS, &["direction"]),
            llm_duration: histogram(r, names::LLM_DURATION, &DURATIONS),
            oldest: fractions(r, names::LLM_OLDEST, &[]),
            embeddings: counter(r, names::EMBEDDINGS),
            embed_duration: histogram(r, names::EMBED_DURATION, &DURATIONS),
            seen: counter(r, names::SOURCE_SEEN),
            service: counters(r, names::LLM_SERVICE_REQUESTS, &["outcome"]),
            breaker: gauges(r, names::BREAKER_OPEN, &["target"]),
            budget: fractions(r, names::LLM_BUDGET, &[]),
            upserted: counter(r, names::VECTORS_UPSERTED),
            deleted: counter(r, names::VECTORS_DELETED),
            lookups: counter(r, names::LOOKUPS),
            recall: fractions(r, names::RECALL, &[]),
            upsert_duration: histogram(r, names::UPSERT_DURATION, &DURATIONS),
            lookup_duration: histogram(r, names::LOOKUP_DURATION, &DURATIONS),
            models_switched: counter(r, names::MODELS_SWITCHED),
            models_refused: counter(r, names::MODELS_REFUSED),
            shadow_cosine: fractions(r, names::SHADOW_COSINE, &["of"]),
            shadow_pairs: fractions(r, names::SHADOW_PAIRS, &[]),
            errors: counters(r, names::ERRORS, &["component", "stage", "error_type"]),
            retries: counters(r, names::RETRIES, &["component"]),
            registry: r.clone(),
        };
        metrics.at_zero();
        metrics
    }

    fn at_zero(&self) {
        for topic in Topic::INPUTS {
            self.source_records.with_label_values(&[topic.name()]);
            self.source_bytes.with_label_values(&[topic.name()]);
        }
        for reason in Reason::ALL {
            self.dead_letters.with_label_values(&["accept", reason.word()]);
        }
        for queue in QUEUES {
            self.depth.with_label_values(&[queue]);
        }
        for kind in KINDS {
            self.live.with_label_values(&[kind]);
        }
        for outcome in ["answered", "refused", "interrupted"] {
            self.requests.with_label_values(&[outcome]);
        }
        for outcome in Outcome::ALL {
            self.service.with_label_values(&[outcome.word()]);
        }
        self.breaker.with_label_values(&["llm"]);
        for direction in ["in", "out"] {
            self.tokens.with_label_values(&[direction]);
        }
        for (component, stage, kind) in ERRORS {
            self.errors.with_label_values(&[component, stage, kind]);
        }
        for component in ["llm", "journal", "points"] {
            self.retries.with_label_values(&[component]);
        }
    }

    /// Takes a snapshot of the job.
    pub fn take(&self, status: &Status) {
        self.stalled.set(i64::from(status.phase == Phase::Stalled));
        raise(&self.restarts, status.restarts);
        for source in &status.sources {
            raise(&self.source_records.with_label_values(&[source.topic]), source.records);
            raise(&self.source_bytes.with_label_values(&[source.topic]), source.bytes);
            for (partition, lag) in source.lag.iter().enumerate() {
                set(&self.source_lag.with_label_values(&[source.topic, &partition.to_string()]), *lag);
            }
        }
        set_time(&self.frontier, &["input"], status.frontier_input);
        set_time(&self.frontier, &["cot"], status.frontier_cot);
        set_time(&self.frontier, &["output"], status.frontier_output);
        for ((stage, reason), count) in &status.dead_letters {
            raise(&self.dead_letters.with_label_values(&[stage, reason]), *count);
        }
        let totals = &status.totals;
        raise(&self.epochs, totals.epochs);
        self.epoch.set(status.committed);
        set_time(&self.commit_last, &[], status.committed_at);
        raise(&self.features, totals.features);
        raise(&self.retractions, totals.retractions);
        raise(&self.examples, totals.examples);
        raise(&self.embeddings, totals.embeddings);
        raise(&self.seen, totals.seen);
        for (kind, count) in &status.live {
            set(&self.live.with_label_values(&[kind]), *count);
        }
        for queue in &status.queues {
            set(&self.depth.with_label_values(&[queue.queue]), queue.depth);
            if let Some(limit) = queue.limit {
                set(&self.limit.with_label_values(&[queue.queue]), limit);
            }
        }
        raise(&self.models_switched, status.models.switched);
        raise(&self.models_refused, status.models.refused);
        let shadow = status.models.shadow;
        set_fraction(&self.shadow_cosine, &["mean"], shadow.map(|shadow| shadow.mean));
        set_fraction(&self.shadow_cosine, &["least"], shadow.map(|shadow| shadow.least));
        set_fraction(&self.shadow_pairs, &[], shadow.map(|shadow| shadow.pairs as f64));
        self.take_cots(status);
        if let Some(service) = &status.service {
            for (outcome, count) in &service.requests {
                raise(&self.service.with_label_values(&[*outcome]), *count);
            }
            self.breaker.with_label_values(&["llm"]).set(i64::from(service.breaker_open));
            if let Some(left) = service.budget_left {
                self.budget.with_label_values::<&str>(&[]).set(left as f64);
            }
        }
        if let Some(points) = &status.points {
            raise(&self.upserted, points.upserted);
            raise(&self.deleted, points.deleted);
            raise(&self.lookups, points.lookups);
            if points.measured > 0 {
                self.recall
                    .with_label_values::<&str>(&[])
                    .set(points.recalled as f64 / points.measured as f64);
            }
        }
        for failures in &status.errors {
            let labels = [failures.component, failures.stage, failures.error_type];
            raise(&self.errors.with_label_values(&labels), failures.count);
            if failures.component == "journal" || failures.component == "points" {
                raise(&self.retries.with_label_values(&[failures.component]), failures.count);
            }
        }
    }

    fn take_cots(&self, status: &Status) {
        let cot = &status.cot;
        // Before the replay is over the accounting says nothing yet, and 0 is no sentinel for it.
        if status.phase != Phase::Starting {
            set(&self.wanted, cot.wanted);
            set(&self.answered, cot.answered);
            set(&self.queued, cot.queued);
            set(&self.in_flight, cot.in_flight);
            set(&self.failed, cot.failed);
        }
        raise(&self.called, cot.called);
        raise(&self.first_calls, cot.first_calls);
        raise(&self.attempts, cot.attempts);
        raise(&self.cancelled, cot.cancelled);
        raise(&self.cache_hits, cot.cache_hits);
        raise(&self.requests.with_label_values(&["answered"]), cot.ok);
        raise(&self.requests.with_label_values(&["refused"]), cot.refused);
        raise(&self.requests.with_label_values(&["interrupted"]), cot.interrupted);
        raise(&self.tokens.with_label_values(&["in"]), cot.tokens_in);
        raise(&self.tokens.with_label_values(&["out"]), cot.tokens_out);
        raise(&self.retries.with_label_values(&["llm"]), cot.attempts.saturating_sub(cot.first_calls));
        set_time(&self.oldest, &[], cot.oldest_pending);
    }

    /// Observes an epoch and its transaction.
    pub fn epoch(&self, epoch: Duration, commit: Duration) {
        self.epoch_duration.observe(epoch.as_secs_f64());
        self.commit_duration.observe(commit.as_secs_f64());
    }

    /// Observes an epoch's writes to the store of points and its lookups there.
    pub fn points(&self, write: Duration, lookup: Duration) {
        self.upsert_duration.observe(write.as_secs_f64());
        self.lookup_duration.observe(lookup.as_secs_f64());
    }

    /// Observes the age of the newest event of a user for this many features; a clock that stands
    /// behind the events counts as 0.
    pub fn event_age(&self, age_ms: i64, features: u64) {
        let seconds = age_ms.max(0) as f64 / 1_000.0;
        (0..features).for_each(|_| self.event_age.observe(seconds));
    }

    /// Observes the start.
    pub fn recovery(&self, took: Duration) {
        self.recovery_duration.observe(took.as_secs_f64());
    }

    /// Observes a call of the LLM.
    pub fn llm_call(&self, took: Duration) {
        self.llm_duration.observe(took.as_secs_f64());
    }

    /// Observes a call of the encoder.
    pub fn embed_call(&self, took: Duration) {
        self.embed_duration.observe(took.as_secs_f64());
    }

    /// Says whether the job is ready.
    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// The text form of all metrics.
    ///
    /// # Errors
    /// What the encoder says; it writes to memory.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::status::{Cot, Queue, SourceStatus};
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        String::from_utf8(metrics.text().unwrap()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn label_sets_stand_at_0_and_what_is_unknown_is_absent() {
        let metrics = Metrics::new();
        let lines = lines(&metrics);
        let has = |line: &str| lines.iter().any(|l| l == line);
        assert!(has("ictflow_dead_letters_total{reason=\"late\",stage=\"accept\"} 0"));
        assert!(has("ictflow_source_records_total{topic=\"interactions\"} 0"));
        assert!(has("ictflow_llm_requests_total{outcome=\"interrupted\"} 0"));
        for absent in [names::FRONTIER, names::LLM_OLDEST, names::COMMIT_LAST] {
            assert!(!lines.iter().any(|l| l.starts_with(absent.0)), "{}", absent.0);
        }
    }

    #[test]
    fn a_snapshot_sets_gauges_and_raises_counters_and_never_lowers_them() {
        let metrics = Metrics::new();
        let mut status = Status {
            phase: Phase::Running,
            frontier_output: Some(1_500),
            sources: vec![SourceStatus { topic: "items", records: 5, bytes: 50, lag: vec![0, 7] }],
            queues: vec![Queue { queue: "calls", depth: 1, limit: Some(2) }],
            cot: Cot { wanted: 3, oldest_pending: Some(2_000), ..Cot::default() },
            ..Status::default()
        };
        metrics.take(&status);
        metrics.take(&status);
        let text = lines(&metrics).join("\n");
        for line in [
            "ictflow_source_records_total{topic=\"items\"} 5",
            "ictflow_source_lag_records{partition=\"1\",topic=\"items\"} 7",
            "ictflow_frontier_timestamp_seconds{frontier=\"output\"} 1.5",
            "ictflow_queue_limit{queue=\"calls\"} 2",
            "ictflow_cot_wanted 3",
            "ictflow_llm_oldest_pending_timestamp_seconds 2",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        status.cot.oldest_pending = None;
        status.sources[0].records = 4;
        metrics.take(&status);
        let text = lines(&metrics).join("\n");
        assert!(text.contains("ictflow_source_records_total{topic=\"items\"} 5"));
        assert!(!text.contains("ictflow_llm_oldest"), "none is pending now");
    }

    #[test]
    fn an_age_before_the_events_counts_as_0() {
        let metrics = Metrics::new();
        metrics.event_age(-5_000, 2);
        let text = lines(&metrics).join("\n");
        assert!(text.contains("ictflow_feature_event_age_seconds_count 2"));
        assert!(text.contains("ictflow_feature_event_age_seconds_sum 0"));
    }

    #[test]
    fn names_follow_the_rules() {
        for (name, help) in names::ALL {
            assert!(name.starts_with("ictflow_") && help.ends_with('.'), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
        let distinct: std::collections::BTreeSet<_> = names::ALL.iter().map(|(name, _)| name).collect();
        assert_eq!(distinct.len(), names::ALL.len());
    }
}
