//! The figures of a job: what `summary.json` and the closing lines say.

use crate::job::Job;
use ictflow_schemas::feature::VectorKind;
use serde::Serialize;

/// The accounting of one process over one job. Counts are since the process started; `_live`, `pairs`,
/// `demonstrations`, `wanted`, `answered`, `failed` are of the last committed epoch.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Records of `interactions` read.
    pub interactions: u64,
    /// Accepted ones.
    pub accepted: u64,
    /// Items that exist.
    pub items: usize,
    /// Readable records of `items`.
    pub item_updates: u64,
    /// Live pairs, with a feature or waiting for a vector.
    pub pairs_live: usize,
    /// Features that stand.
    pub features_live: usize,
    /// Vectors published.
    pub features_published: u64,
    /// Features with all K demonstrations; none where vectors are made of neighbours.
    pub features_full_k: usize,
    /// Tombstones on `features`.
    pub retractions: u64,
    /// Distinct examples published.
    pub examples: isize,
    /// Demonstrations in the pool.
    pub demonstrations: usize,
    /// Those labelled 1.
    pub demonstrations_positive: usize,
    /// Those over `max_demonstrations`, left out of the pool.
    pub demonstrations_left_out: usize,
    /// Distinct keys in the prompt view.
    pub wanted: usize,
    /// Distinct keys asked.
    pub called: u64,
    /// Calls with attempt 1.
    pub first_calls: u64,
    /// Calls, retries included.
    pub attempts: u64,
    /// Requests retracted before their call.
    pub cancelled: u64,
    /// Wanted keys with a record, ok or failed.
    pub answered: usize,
    /// Wanted keys for which only a failure stands.
    pub failed: usize,
    /// first_calls / called; 1 where nothing was called.
    pub amplification: f64,
    /// attempts / first_calls; 1 where nothing was called.
    pub retry_ratio: f64,
    /// answered / wanted; 1 where nothing is wanted.
    pub coverage: f64,
    /// Prompt tokens.
    pub llm_tokens_in: i64,
    /// Generated tokens.
    pub llm_tokens_out: i64,
    /// Texts embedded.
    pub embeddings_computed: u64,
    /// Points written to a store of points.
    pub points_upserted: u64,
    /// Points marked as deleted there.
    pub points_deleted: u64,
    /// Pairs looked up there.
    pub lookups: u64,
    /// Of measured lookups, the share of the exactly best demonstrations that were found; null where
    /// none was measured.
    pub recall: Option<f64>,
    /// Users with a newest history.
    pub history_users: isize,
    /// Dead letters written.
    pub dead_letters: u64,
    /// Epochs committed.
    pub epochs: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// What the vectors are made of: `decoder`, of demonstrations; `attention`, of neighbours.
    pub vector_kind: VectorKind,
    /// The version of the ICT weights.
    pub ict_weights: String,
    /// The model.
    pub llm_model: String,
    /// The encoder.
    pub encoder: String,
}

impl Summary {
    /// The figures of a job as it stands.
    pub fn of(job: &Job, seconds: f64) -> Self {
        let (sink, requester, totals) = (job.sink(), job.requester(), job.totals());
        let accounting = &requester.accounting;
        let wanted = requester.wanted().len();
        let ratio = |a: f64, b: f64| if b == 0.0 { 1.0 } else { a / b };
        let points = job.points().unwrap_or_default();
        Summary {
            interactions: job.judgements().interactions,
            accepted: job.judgements().accepted,
            items: job.items(),
            item_updates: job.judgements().items,
            pairs_live: sink.pairs_live(),
            features_live: sink.features_live(),
            features_published: totals.committed.features,
            features_full_k: sink.features_full_k(),
            retractions: totals.committed.retractions,
            examples: sink.examples_published(),
            demonstrations: job.demonstrations().len(),
            demonstrations_positive: job.demonstrations().iter().filter(|c| c.positive).count(),
            demonstrations_left_out: job.demonstrations_left_out(),
            wanted,
            called: accounting.called,
            first_calls: accounting.first_calls,
            attempts: accounting.attempts,
            cancelled: accounting.cancelled,
            answered: requester.answered(),
            failed: job.failed().iter().filter(|key| requester.wanted().contains(key)).count(),
            amplification: ratio(accounting.first_calls as f64, accounting.called as f64),
            retry_ratio: ratio(accounting.attempts as f64, accounting.first_calls as f64),
            coverage: ratio(requester.answered() as f64, wanted as f64),
            llm_tokens_in: accounting.tokens_in,
            llm_tokens_out: accounting.tokens_out,
            embeddings_computed: accounting.embeddings,
            points_upserted: points.upserted,
            points_deleted: points.deleted,
            lookups: points.lookups,
            recall: (points.measured > 0).then(|| points.recalled as f64 / points.measured as f64),
            history_users: job.history_users(),
            dead_letters: totals.committed.dead_letters,
            epochs: totals.epochs,
            seconds,
            vector_kind: job.vector_kind(),
            ict_weights: job.actives().ict_weights.clone(),
            llm_model: job.actives().llm_model.clone(),
            encoder: job.actives().encoder.clone(),
        }
    }
}
