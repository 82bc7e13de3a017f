//! `ictflow consistency`: how far what was served was from what training sees.
//!
//! An example of `examples` says what stood on `features` when its impression came (`served`). Training makes
//! the pair's votes and vector anew as of the impression's event time t, with the operators of
//! `operators/src/as_of`, from the logs. Here both are held against each other, example by example.
//!
//! **What "equal" can mean.** As of t the labels with label_time < t count, whenever they came. A ranker that
//! served the impression had read what epochs before had published, by *their* event clock. So the two agree
//! where every label before t had come, and been counted, in an earlier epoch whose clock was beyond it, where
//! nothing of t or later had, and where sketches, CoTs and weights were the same. Votes are then equal to the
//! bit, and a vector is made of the same numbers by the same operators: the most that a component may differ
//! is [`TOLERANCE`]. Whatever isn't so is a cause ([`Cause`]), and an example may have several.
//!
//! **The catalog** isn't replayed: items, their vectors and the CoTs' texts are as they are now, as training
//! has them. For weights of the kind `decoder` demonstrations are those of the as-of replay of `global`, of
//! which no text ever came those are left out.
//!
//! **Cost**: the recorded epochs are run again, and one vector is made for each example that was served.
//! Memory: `replay.rs`. Calls nothing, writes nothing, fences nobody.

mod causes;
mod making;
mod replay;

pub use causes::Cause;

use crate::epochs::read_compacted;
use crate::job::outputs;
use crate::job::{Recorded, check_encoder, check_semantics, gone, starts};
use crate::recompute::Plan;
use causes::{Asked, Labels};
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_operators::as_of::global::{GlobalOptions, GlobalReplay};
use ictflow_operators::as_of::{Options, Replay, Row, Texts};
use ictflow_operators::ict::Kind;
use ictflow_schemas::Id;
use ictflow_schemas::example::{Example, ExampleRecord, Served};
use ictflow_schemas::feature::Feature;
use ictflow_schemas::neighbour::LabelledExample;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::vector::Quantised;
use ictflow_schemas::wire::Wire;
use making::{Making, Wanted};
use replay::Replayed;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// The most that a component of two equal vectors differs.
pub const TOLERANCE: f32 = 1e-6;

/// Differences that are told one by one.
pub const TOLD: usize = 20;

/// Mean and 95th percentile (nearest rank) of a distance over the compared examples, equal ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Drift {
    /// The mean.
    pub mean: f64,
    /// The 95th percentile.
    pub p95: f64,
}

impl Drift {
    fn of(mut distances: Vec<f64>) -> Self {
        if distances.is_empty() {
            return Drift::default();
        }
        distances.sort_by(f64::total_cmp);
        let rank = (distances.len() * 95).div_ceil(100).max(1);
        Drift { mean: distances.iter().sum::<f64>() / distances.len() as f64, p95: distances[rank - 1] }
    }
}

/// An example whose served values differ from those as of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The user.
    pub user: String,
    /// The item.
    pub item: String,
    /// The impression's event id.
    pub event_id: String,
    /// When it happened.
    pub event_time: i64,
    /// The epoch that published what was served.
    pub epoch: i64,
    /// The Euclidean distance of the vectors; `None` where their widths differ.
    pub vector: Option<f64>,
    /// The mean distance of the nine votes.
    pub votes: f64,
    /// Why.
    pub causes: BTreeSet<Cause>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The epoch up to which the logs were read.
    pub epoch: i64,
    /// The weights that made the as-of vectors.
    pub ict_weights: String,
    /// Labelled examples on the topic.
    pub examples: u64,
    /// Of them those that were served nothing, or of which it isn't known.
    pub unserved: u64,
    /// Of those served, those that can't be made as of then: the item is gone or has no vector, the logs have
    /// no such example (any more), or it came after the epoch.
    pub unmade: u64,
    /// Those compared.
    pub compared: u64,
    /// Of them those with equal votes and an equal vector.
    pub equal: u64,
    /// Those with equal votes.
    pub equal_votes: u64,
    /// Those with an equal vector.
    pub equal_vectors: u64,
    /// Those whose vectors have two widths, which are no part of the drift.
    pub other_width: u64,
    /// The Euclidean distance of vectors.
    pub vectors: Drift,
    /// The mean distance of the nine votes.
    pub votes: Drift,
    /// How many examples that differ have each cause; one may have several.
    pub causes: BTreeMap<Cause, u64>,
    /// The first differences in order of event time.
    pub differences: Vec<Difference>,
}

impl Report {
    /// The share of compared examples that are equal; `None` where none was compared.
    pub fn share(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.equal as f64 / self.compared as f64)
    }
}

/// Compares what a job served with what its examples say as of their impressions, up to its committed epoch.
/// `progress` is told how many epochs are replayed, and of how many.
///
/// # Errors
/// Those of the store; `Fatal` where the plan's semantics or encoder aren't the recorded ones, or needed
/// records are gone.
pub fn consistency(
    topics: &mut dyn Topics,
    plan: &Plan<'_>,
    job: &str,
    progress: impl FnMut(u64, u64),
) -> Result<Report> {
    let recorded = Recorded::of_committed(topics, plan.names, job)?;
    let (records, epoch) = (recorded.up_to_commit(), recorded.committed);
    check_semantics(records, &plan.semantics.canonical())?;
    check_encoder(records, &plan.encoder.0)?;
    let gone = gone(&starts(topics, plan.names)?, plan.names, records, None);
    if !gone.is_empty() {
        return Err(Error::fatal(
            format!("compare what was served up to epoch {epoch}"),
            format!("needed offsets are gone: {}", gone.join(", ")),
            "what was known when is read from the whole logs: run it while they stand, or restore them",
        ));
    }
    let mut report =
        Report { epoch, ict_weights: plan.weights.serving().version().to_owned(), ..Report::default() };
    // Read first: of what is committed meanwhile the topic has no example then.
    let names = outputs::at(plan.names, records, epoch);
    let served = served(topics, names.of(Topic::Examples), &mut report)?;
    let replayed = Replayed::read(topics, plan, records, progress)?;
    let prompt_version = records.last().map_or("", |record| &record.actives.prompt_version);
    compare(plan, &replayed, served, prompt_version, &mut report)?;
    Ok(report)
}

/// By key, what labelled examples were served.
fn served(topics: &mut dyn Topics, topic: &str, report: &mut Report) -> Result<HashMap<Vec<u8>, Served>> {
    let mut served = HashMap::new();
    for (key, (_, value)) in read_compacted(topics, topic)? {
        let Ok(record) = ExampleRecord::decode(&value) else { continue };
        report.examples += 1;
        match record.served {
            Some(stood) => drop(served.insert(key, stood)),
            None => report.unserved += 1,
        }
    }
    Ok(served)
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::fatal("replay examples as of their time", error, "this is a defect: please report it")
}

fn compare(
    plan: &Plan<'_>,
    replayed: &Replayed,
    mut served: HashMap<Vec<u8>, Served>,
    prompt_version: &str,
    report: &mut Report,
) -> Result<()> {
    let examples: Vec<Arc<Example>> = replayed.examples.values().map(|known| known.example.clone()).collect();
    let vectors: HashMap<Id, Quantised> = (replayed.items.iter())
        .filter_map(|(id, item)| Some((id.clone(), item.vector.as_ref()?.vector.clone())))
        .collect();
    let weights = plan.weights.serving();
    let texts = Texts::new(&vectors, weights.text_centre()).map_err(failed)?;
    let neighbourhood = plan.semantics.neighbours;
    let options = Options { neighbourhood, ..Options::default() };
    let rows = Replay::new(examples.iter().map(|example| LabelledExample::of(example)), &texts, options)
        .map_err(failed)?;
    let options = GlobalOptions {
        pool: None,
        semantics: &plan.semantics,
        prompt_version,
        label_delay_ms: 0,
        paper_compat: false,
    };
    let read: &[Arc<Example>] = if weights.kind() == Kind::Decoder { &examples } else { &[] };
    // In the order of the rows, where the weights read demonstrations.
    let mut global = GlobalReplay::new(read, &vectors, options).map_err(failed)?;
    let mut making = Making::new(weights.clone(), &plan.semantics, &replayed.items);
    let mut comparison = Comparison {
        labels: Labels::new(replayed, neighbourhood),
        version: weights.version(),
        report: &mut *report,
        vectors: Vec::new(),
        votes: Vec::new(),
    };
    let mut batch: Vec<(Row, Served, Vec<Uuid>)> = Vec::new();
    for row in rows {
        let used = global.next().map(|row| row.used).unwrap_or_default();
        let example = &examples[row.place];
        let key = example.identity.frame().into_bytes();
        let Some(stood) = served.remove(&key) else { continue };
        let ids = used.iter().map(|(demonstration, _)| demonstration.id).collect();
        // With their texts, as far as those ever came.
        let used = used.iter().filter_map(|(demonstration, score)| {
            Some((replayed.demonstrations.get(&demonstration.id)?.demonstration.clone(), *score))
        });
        let wanted = Wanted { example, sources: Arc::new(row.sources.clone()), used: used.collect() };
        if !making.takes(&wanted) {
            comparison.take(&examples, std::mem::take(&mut batch), making.make()?);
        }
        making.add(wanted);
        batch.push((row, stood, ids));
    }
    comparison.take(&examples, batch, making.make()?);
    comparison.finish();
    report.unmade += served.len() as u64;
    Ok(())
}

/// The comparison under way.
struct Comparison<'a> {
    labels: Labels<'a>,
    /// The version of the weights.
    version: &'a str,
    report: &'a mut Report,
    vectors: Vec<f64>,
    votes: Vec<f64>,
}

impl Comparison<'_> {
    /// Takes examples with what was made of them, in the same order.
    fn take(
        &mut self,
        examples: &[Arc<Example>],
        batch: Vec<(Row, Served, Vec<Uuid>)>,
        made: Vec<Option<Feature>>,
    ) {
        for ((row, served, used), made) in batch.into_iter().zip(made) {
            match made {
                Some(made) => self.one(&examples[row.place], &row, &served, &used, &made),
                None => self.report.unmade += 1,
            }
        }
    }

    fn one(&mut self, example: &Example, row: &Row, served: &Served, used: &[Uuid], made: &Feature) {
        let report = &mut *self.report;
        report.compared += 1;
        let bits = |votes: &[f32]| votes.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let equal_votes = bits(&served.votes) == bits(&made.votes);
        let votes = mean_distance(&served.votes, &made.votes);
        let vector = distance(&served.ict, &made.ict);
        let same_kind = served.vector_kind == made.vector_kind;
        let equal_vector = same_kind
            && served.ict.len() == made.ict.len()
            && served.ict.iter().zip(&made.ict).all(|(a, b)| (a - b).abs() <= TOLERANCE);
        report.equal_votes += u64::from(equal_votes);
        report.equal_vectors += u64::from(equal_vector);
        self.votes.push(votes);
        match vector {
            Some(vector) => self.vectors.push(vector),
            None => report.other_width += 1,
        }
        if equal_votes && equal_vector {
            report.equal += 1;
            return;
        }
        let same_weights = same_kind && served.ict_weights == self.version;
        let causes = self.labels.causes(&Asked { row, example, served, used, same_weights });
        for cause in &causes {
            *report.causes.entry(*cause).or_default() += 1;
        }
        if report.differences.len() < TOLD {
            report.differences.push(Difference {
                user: example.identity.user.to_string(),
                item: example.item.to_string(),
                event_id: example.identity.event_id.to_string(),
                event_time: example.identity.event_time,
                epoch: served.epoch,
                vector,
                votes,
                causes,
            });
        }
    }

    fn finish(self) {
        (self.report.vectors, self.report.votes) = (Drift::of(self.vectors), Drift::of(self.votes));
    }
}

/// The Euclidean distance, in f64; `None` where widths differ.
fn distance(a: &[f32], b: &[f32]) -> Option<f64> {
    let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    (a.len() == b.len()).then(|| squares.sum::<f64>().sqrt())
}

/// The mean distance of numbers at the same place; one that only one side has counts as far from 0.
fn mean_distance(a: &[f32], b: &[f32]) -> f64 {
    let count = a.len().max(b.len());
    let at = |numbers: &[f32], place: usize| f64::from(numbers.get(place).copied().unwrap_or(0.0));
    (0..count).map(|place| (at(a, place) - at(b, place)).abs()).sum::<f64>() / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_their_percentile_are_those_of_hand() {
        assert_eq!(distance(&[3.0, 0.0], &[0.0, 4.0]), Some(5.0));
        assert_eq!(distance(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(mean_distance(&[1.0, 2.0], &[2.0, 0.0]), 1.5);
        assert_eq!(mean_distance(&[], &[1.0, 3.0]), 2.0);
        assert_eq!(mean_distance(&[], &[]), 0.0);
        assert_eq!(Drift::of(vec![]), Drift::default());
        assert_eq!(Drift::of(vec![4.0]), Drift { mean: 4.0, p95: 4.0 });
        let hundred = Drift::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(hundred, Drift { mean: 50.5, p95: 95.0 });
        assert_eq!(Report::default().share(), None);
        assert_eq!(Report { compared: 4, equal: 3, ..Report::default() }.share(), Some(0.75));
    }
}
