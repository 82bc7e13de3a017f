//! The semantic configuration: every value that decides an output.
//!
//! It is part of the first record of `epochs`; a job that is started with another one is refused,
//! since its outputs would no longer be one function of the logs.

use crate::Millis;
use crate::cot::canonical_json;
use crate::framing::Partitioner;
use crate::interaction::{KindTable, default_kinds};
use crate::limits;
use crate::neighbour::{Neighbourhood, RATE_ONE};
use serde::{Deserialize, Serialize};

/// How many of the eligible examples get a CoT: those whose hash mod stride is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CotStride {
    /// For positives.
    pub positive: u64,
    /// For explicit negatives.
    pub explicit_negative: u64,
    /// For implicit negatives.
    pub implicit_negative: u64,
}

impl Default for CotStride {
    /// The paper's one in ten for each.
    fn default() -> Self {
        CotStride { positive: 10, explicit_negative: 10, implicit_negative: 10 }
    }
}

/// How the demonstrations of a pair are searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Search {
    /// By exact scores over all of them, inside the dataflow: features are an exactly maintained view.
    #[default]
    Exact,
    /// By a store of points outside: candidates are over-fetched there and scored exactly here. Every
    /// vector equals the ICT of the ids in its record; which ids they are is the store's recall.
    Stored,
}

/// Everything that decides an output beside the actives. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Semantics {
    /// L: entries of a history.
    pub history_length: usize,
    /// P: entries of a prompt's history.
    pub prompt_history: usize,
    /// K: demonstrations of a feature; even.
    pub demonstrations: usize,
    /// One CoT in so many examples, by class.
    pub cot_stride: CotStride,
    /// How late an event may be, against its partition's maximum.
    pub lateness_ms: Millis,
    /// How far an event may be ahead of its record's timestamp.
    pub max_future_skew_ms: Millis,
    /// How long after an impression an outcome belongs to it.
    pub attribution_window_ms: Millis,
    /// How long a pair stays live.
    pub pair_ttl_ms: Millis,
    /// How long an example may serve as a demonstration.
    pub demonstration_ttl_ms: Millis,
    /// Accepted events of one user within the lateness window.
    pub max_window_events: usize,
    /// How producers partition what is keyed by user, and so how the job does.
    pub partitioner: Partitioner,
    /// Bytes of an input record, key and value together; more is `oversized`.
    pub max_record_bytes: usize,
    /// Bytes of a user, item, event or impression id; more is `oversized`.
    pub max_id_bytes: usize,
    /// Items of one candidate set.
    pub max_candidates: usize,
    /// Live pairs; more stop the job.
    pub max_live_pairs: usize,
    /// Demonstrations kept, the newest by (label_time, point id).
    pub max_demonstrations: usize,
    /// How demonstrations are searched for.
    pub search: Search,
    /// What each kind means.
    pub kinds: KindTable,
    /// How neighbours are taken. Left out of the canonical text where it is the default, so that a job of
    /// before it existed goes on under its digest.
    #[serde(skip_serializing_if = "is_default")]
    pub neighbours: Neighbourhood,
}

fn is_default(neighbours: &Neighbourhood) -> bool {
    *neighbours == Neighbourhood::default()
}

const MINUTE: Millis = 60_000;
const DAY: Millis = 24 * 60 * MINUTE;

impl Default for Semantics {
    fn default() -> Self {
        Semantics {
            history_length: 20,
            prompt_history: 10,
            demonstrations: 4,
            cot_stride: CotStride::default(),
            lateness_ms: 10 * MINUTE,
            max_future_skew_ms: 5 * MINUTE,
            attribution_window_ms: 30 * MINUTE,
            pair_ttl_ms: DAY,
            demonstration_ttl_ms: 30 * DAY,
            max_window_events: 10_000,
            partitioner: Partitioner::default(),
            max_record_bytes: 262_144,
            max_id_bytes: 256,
            max_candidates: 1_000,
            max_live_pairs: 1_000_000,
            max_demonstrations: 100_000,
            search: Search::default(),
            kinds: default_kinds(),
            neighbours: Neighbourhood::default(),
        }
    }
}

/// The longest time that a window may span: one century, so that sums of times never overflow.
const LONGEST: Millis = 100 * 365 * DAY;

impl Semantics {
    /// The canonical JSON that `epochs` carries: sorted keys, no blanks, decimals as strings.
    pub fn canonical(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or(serde_json::Value::Null);
        decimals_as_text(&mut value);
        canonical_json(&value)
    }

    /// Every problem of the values, each with its key and a hint.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        require(
            self.demonstrations.is_multiple_of(2),
            "semantics.demonstrations must be even: half are positive, half negative",
        );
        require((2..=64).contains(&self.demonstrations), "semantics.demonstrations must be 2 to 64");
        require((1..=1_000).contains(&self.history_length), "semantics.history_length must be 1 to 1000");
        require(
            self.prompt_history <= self.history_length,
            "semantics.prompt_history must not exceed history_length",
        );
        let strides =
            [self.cot_stride.positive, self.cot_stride.explicit_negative, self.cot_stride.implicit_negative];
        require(
            strides.iter().all(|s| (1..=limits::STRIDE).contains(s)),
            "semantics.cot_stride values must be 1 to 1000000000: 1 asks for every example",
        );
        require(
            self.max_future_skew_ms <= self.lateness_ms,
            "semantics.max_future_skew_ms must not exceed lateness_ms: one event ahead of time would make others late",
        );
        let times = [
            self.lateness_ms,
            self.max_future_skew_ms,
            self.attribution_window_ms,
            self.pair_ttl_ms,
            self.demonstration_ttl_ms,
        ];
        require(
            times.iter().all(|t| (0..=LONGEST).contains(t)),
            "semantics: times must be 0 to one century in milliseconds",
        );
        let Neighbourhood { ring, selected, sketch_period_ms, label_centre } = self.neighbours;
        require(
            (1..=limits::RING).contains(&ring) && (1..=ring.min(limits::NEIGHBOURS)).contains(&selected),
            "semantics.neighbours: ring must be 1 to 4096, selected 1 to ring and at most 128",
        );
        require(
            (0..=LONGEST).contains(&sketch_period_ms),
            "semantics.neighbours.sketch_period_ms must be 0 to one century in milliseconds: 0 lets every label count at once",
        );
        require(
            (0..=RATE_ONE).contains(&label_centre),
            "semantics.neighbours.label_centre must be 0 to 1024: the share of positive labels in 1/1024",
        );
        require(
            (1..=limits::WINDOW_EVENTS).contains(&self.max_window_events),
            "semantics.max_window_events must be 1 to 1000000",
        );
        require(
            (1..=limits::CANDIDATES).contains(&self.max_candidates),
            "semantics.max_candidates must be 1 to 100000",
        );
        require(
            (1..=limits::LIVE_PAIRS).contains(&self.max_live_pairs),
            "semantics.max_live_pairs must be 1 to 100000000",
        );
        require(
            self.max_demonstrations <= limits::DEMONSTRATIONS,
            "semantics.max_demonstrations must be at most 10000000",
        );
        require(
            (limits::LEAST_RECORD_BYTES..=limits::RECORD_BYTES).contains(&self.max_record_bytes),
            "semantics.max_record_bytes must be 1024 to 67108864",
        );
        require(
            (1..=limits::ID_BYTES).contains(&self.max_id_bytes),
            "semantics.max_id_bytes must be 1 to 1024: ids stand in every history that names them",
        );
        require(
            self.kinds.len() <= limits::KINDS
                && self.kinds.keys().all(|kind| (1..=limits::KIND_BYTES).contains(&kind.len())),
            "semantics.kinds must be at most 64, each named by 1 to 64 bytes",
        );
        require(
            self.kinds.values().any(|rule| rule.engagement != crate::interaction::When::Never),
            "semantics.kinds must name at least one engagement: without one no history ever fills",
        );
        require(
            self.kinds.values().all(|rule| {
                use crate::interaction::When::Never;
                !rule.impression || [rule.engagement, rule.positive, rule.negative] == [Never; 3]
            }),
            "semantics.kinds: an impression is no engagement and has no label",
        );
        problems
    }
}

/// Writes decimals as strings, so that the text does not depend on a float printer.
fn decimals_as_text(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Number(number) if number.is_f64() => {
            *value = serde_json::Value::String(number.to_string())
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(decimals_as_text),
        serde_json::Value::Object(map) => map.values_mut().for_each(decimals_as_text),
        _ => {}
    }
}
