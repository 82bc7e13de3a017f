//! The end of the replay, measured: each rating is predicted from the vector that stands on the topic, and only
//! then do its events reach the job.
//!
//! ```text
//! events of the batch before ─┐
//! candidate sets of a batch ──┴▶ job, one epoch ─▶ features ─▶ subscription ─▶ both rankers ─▶ predictions
//! ```
//! Measured are the ratings of the test part alone: those that neither trained the weights nor chose them. Where
//! it begins is said by the split that training made, of the same data.
//!
//! A batch holds whole seconds, so that no label of a rating's own second is known to it, as in training. Beside
//! training vectors are older here: those of a batch know nothing of one another, while training takes all labels
//! of strictly before; and the labels of the last second before a batch count for the history and not yet as
//! neighbours, which are those of before the event clock. Both rankers have the same vectors, so neither gains by
//! it.
//!
//! **Memory**: the pairs of the users of the test part, and what [`Prequential`] keeps.

use super::movielens::Rating;
use super::producer::{Producer, Replay};
use super::trained::Rankers;
use crate::job::{Job, Step};
use crate::rank::prequential::{Contender, Labelled, Prequential, Report, Row};
use crate::rank::score::Reads;
use crate::rank::subscription::Subscription;
use crate::ranking::dataset::Protocol;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::dataset::Dataset;
use serde::Serialize;
use std::time::Duration;

/// The least ratings of a batch: a second is never divided.
pub const BATCH: usize = 50;

/// Ratings between two points of the curve.
const POINT: usize = 500;

/// The contenders' names.
const WITH: &str = "with";
const WITHOUT: &str = "without";

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// When the first of them happened, milliseconds.
    pub test_from: Millis,
    /// The least ratings of a batch: vectors are that old at most, but for a second.
    pub batch: usize,
    /// Rows, users and the figures of both rankers.
    #[serde(flatten)]
    pub report: Report,
    /// What the ranker with vector and votes has more than the one without. LogLoss is better where it is less.
    pub gained: Gained,
    /// The figures on the way.
    #[serde(skip)]
    pub curve: Vec<Point>,
}

/// Differences; `None` where one of the figures is missing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gained {
    /// Of AUC.
    pub auc: Option<f64>,
    /// Of GAUC.
    pub gauc: Option<f64>,
    /// Of LogLoss.
    pub log_loss: Option<f64>,
}

/// The AUC over the first ratings of the part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// So many were predicted.
    pub predicted: u64,
    /// With vector and votes.
    pub with: f64,
    /// Without.
    pub without: f64,
}

/// When the test part begins by the split that training makes of the data.
///
/// # Errors
/// Those of the split.
pub fn test_from(data: &Dataset) -> Result<Millis> {
    let periods = Protocol::Time.split(data)?.periods;
    periods.map(|periods| periods.test_from).ok_or_else(|| {
        Error::fatal("find the test part", "the split has no periods", "this is a defect, please report it")
    })
}

/// Ratings in batches of whole seconds, each but the last of at least so many.
fn batches(mut ratings: &[Rating], least: usize) -> Vec<&[Rating]> {
    let mut batches = Vec::new();
    while let Some(last) = ratings.get(least.clamp(1, ratings.len().max(1)) - 1) {
        let (batch, rest) = ratings.split_at(ratings.partition_point(|rating| rating.time <= last.time));
        batches.push(batch);
        ratings = rest;
    }
    batches
}

/// The ratings of before the test part, and those of it. Ratings come in the order of time.
pub fn parts(ratings: &[Rating], test_from: Millis) -> (&[Rating], &[Rating]) {
    ratings.split_at(ratings.partition_point(|rating| rating.time < test_from))
}

/// Replays the ratings of the test part, which come after all that was written, in batches of at least so many, and
/// measures both rankers on them. The events of the last batch are written and enter with the job's next epoch. Each
/// step of the job is shown to `watch`.
///
/// # Errors
/// Those of the job, of the topics and of [`Prequential::predict`].
pub fn measure(
    (job, producer, replay): (&mut Job, &mut Producer, &mut Replay),
    subscription: &mut Subscription,
    rankers: &Rankers,
    (ratings, least): (&[Rating], usize),
    mut watch: impl FnMut(&mut Job, &Step),
) -> Result<Measured> {
    let contender = |name: &str, ranker| Contender { name: name.to_owned(), ranker, reads: Reads::ALL };
    let mut measured =
        Prequential::new(vec![contender(WITH, &rankers.with), contender(WITHOUT, &rankers.without)]);
    let mut curve = Vec::new();
    let mut next_point = POINT;
    let mut predicted = 0;
    for batch in batches(ratings, least) {
        producer.offer(replay, batch)?;
        producer.edit(replay, job)?;
        epoch(job, &mut watch)?;
        subscription.catch_up()?;
        let (_, view, catalog) = subscription.parts();
        let events: Vec<Labelled<'_>> = batch.iter().map(labelled).collect();
        measured.predict(view, catalog, &events)?;
        // The labels: only now.
        producer.rate(replay, batch)?;
        predicted += batch.len();
        if predicted >= next_point || predicted == ratings.len() {
            next_point = predicted + POINT;
            curve.extend(point(&measured.report()));
        }
    }
    let report = measured.report();
    let test_from = ratings.first().map_or(0, |rating| rating.time);
    Ok(Measured { test_from, batch: least, gained: gained(&report), report, curve })
}

/// Steps until an epoch has closed: with all that was written before.
pub fn epoch(job: &mut Job, mut watch: impl FnMut(&mut Job, &Step)) -> Result<()> {
    loop {
        let step = job.step(Duration::from_millis(50))?;
        watch(job, &step);
        if step.epoch.is_some() {
            return Ok(());
        }
    }
}

fn labelled(rating: &Rating) -> Labelled<'_> {
    Labelled { user: &rating.user, item: &rating.item, time: rating.time, positive: rating.positive }
}

/// A point of the curve; `None` while the labels are of one class.
fn point(report: &Report) -> Option<Point> {
    let [with, without] = &report.rows[..] else { return None };
    Some(Point { predicted: report.predicted, with: with.auc?, without: without.auc? })
}

fn gained(report: &Report) -> Gained {
    let difference = |figure: fn(&Row) -> Option<f64>| {
        let [with, without] = &report.rows[..] else { return None };
        Some(figure(with)? - figure(without)?)
    };
    Gained {
        auc: difference(|row| row.auc),
        gauc: difference(|row| row.gauc),
        log_loss: difference(|row| row.log_loss),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::movielens::columns;
    use super::super::producer::PARTITIONS;
    use super::super::trained::Files;
    use super::*;
    use crate::dead_letters::ratio::Ratio;
    use crate::job::{Options as JobOptions, Parts};
    use crate::names::Names;
    use crate::rank::subscription::Options;
    use crate::ranking::dataset::{Part, Prepared};
    use crate::ranking::train::{ICT, RANKER, train};
    use crate::ranking::world;
    use ictflow_connectors::atomic::Labels;
    use ictflow_connectors::encoder::hashed::Hashed;
    use ictflow_connectors::llm::prompt::Prompt;
    use ictflow_connectors::llm::template::Template;
    use ictflow_connectors::llm::validate::Validator;
    use ictflow_connectors::local::Local;
    use ictflow_operators::ict::Weights;
    use ictflow_schemas::config::Semantics;
    use ictflow_schemas::interaction::default_kinds;
    use ictflow_schemas::limits;
    use ictflow_schemas::wire::Format;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;

    fn rating(time: Millis) -> Rating {
        Rating { user: "u".to_owned(), item: "i".to_owned(), stars: 5.0, time, positive: true }
    }

    #[test]
    fn batches_hold_whole_seconds() {
        let times = |times: &[Millis], least: usize| -> Vec<Vec<Millis>> {
            let ratings: Vec<Rating> = times.iter().map(|time| rating(*time)).collect();
            batches(&ratings, least).iter().map(|batch| batch.iter().map(|one| one.time).collect()).collect()
        };
        assert_eq!(times(&[1, 2, 2, 2, 3, 4], 2), [vec![1, 2, 2, 2], vec![3, 4]]);
        assert_eq!(times(&[1, 1, 1, 5], 3), [vec![1, 1, 1], vec![5]]);
        assert_eq!(times(&[1, 2], 50), [vec![1, 2]]);
        assert!(times(&[], 50).is_empty());
    }

    /// What a rating says to a job is what it says to training.
    #[test]
    fn a_rating_is_judged_as_in_training() {
        let Labels::Value { column, rule } = columns().labels else { panic!("a rule") };
        assert_eq!((column.as_str(), rule), ("rating", default_kinds()["rate"]));
    }

    /// Weights of both rankers, trained on the small world.
    fn trained(prepared: &Prepared, folder: &Path) -> Files {
        for (arm, out) in [("attention+votes", folder.to_owned()), ("strong", folder.join("strong"))] {
            train(prepared, &world::training(arm, 128, out)).unwrap();
        }
        Files::read(folder).unwrap()
    }

    fn job(file: &Path, folder: &Path, semantics: &Arc<Semantics>, names: &Names) -> Job {
        let weights = Weights::from_safetensors(&std::fs::read(folder.join(ICT)).unwrap()).unwrap();
        let parts = Parts {
            topics: Box::new(Local::open(file).unwrap()),
            formats: BTreeMap::new(),
            generators: vec![Box::new(Template::new(Prompt::builtin()))],
            validator: Validator::new(&Prompt::builtin()),
            encoder: Box::new(Hashed::new(16)),
            weights: Arc::new(weights).into(),
            points: None,
            snapshots: None,
        };
        let options = JobOptions {
            job: "demo".to_owned(),
            names: names.clone(),
            workers: 1,
            cluster: Default::default(),
            epoch_max_events: 10_000,
            create_inputs: Some(PARTITIONS),
            generate: true,
            calls_file: None,
            dead_letters: Ratio::default(),
            accept_truncated: false,
            edges: Default::default(),
            by_hand: false,
            bounded: None,
            switch: None,
        };
        Job::start(parts, semantics.clone(), options).unwrap()
    }

    fn world_ratings() -> Vec<Rating> {
        let rating = |(user, item, time, positive): (u32, u32, i64, bool)| Rating {
            user: format!("u{user}"),
            item: format!("i{item}"),
            stars: if positive { 5.0 } else { 1.0 },
            time,
            positive,
        };
        world::ratings().into_iter().map(rating).collect()
    }

    #[test]
    fn the_test_part_alone_is_predicted_and_each_batch_before_the_job_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let prepared = world::prepared(Protocol::Time);
        let files = trained(&prepared, folder.path());
        let rankers = files.rankers(&prepared.data).unwrap();
        let ratings = world_ratings();
        let from = test_from(&prepared.data).unwrap();
        let (before, test) = parts(&ratings, from);
        assert_eq!(test.len(), prepared.part(Part::Test).len());
        let labels: Vec<bool> = test.iter().map(|rating| rating.positive).collect();
        assert_eq!(labels, prepared.labels(Part::Test), "the same rows in the same order");

        let file = folder.path().join("topics.sqlite");
        let stride = limits::STRIDE;
        let stride = ictflow_schemas::config::CotStride {
            positive: stride,
            explicit_negative: stride,
            implicit_negative: stride,
        };
        let semantics = Arc::new(Semantics { cot_stride: stride, ..Semantics::default() });
        let names = Names::new(&BTreeMap::new(), "");
        let mut producer = Producer::new(Box::new(Local::open(&file).unwrap()), names.clone());
        let items = world::items().collect();
        producer.catalog(&items).unwrap();
        let mut job = job(&file, folder.path(), &semantics, &names);
        let mut replay = Replay::new(&items, ratings.len());
        producer.offer(&mut replay, before).unwrap();
        producer.rate(&mut replay, before).unwrap();
        job.run_until_idle(|_| {}).unwrap();
        let options = Options {
            job: Some("demo".to_owned()),
            names,
            items: Format::Avro,
            semantics,
            encoder: rankers.with.encoder(),
            users: None,
            most: limits::LIVE_PAIRS,
        };
        let mut subscription = Subscription::open(Box::new(Local::open(&file).unwrap()), options).unwrap();

        let mut read = Vec::new();
        let measured = measure(
            (&mut job, &mut producer, &mut replay),
            &mut subscription,
            &rankers,
            (test, 2),
            |job, step| read.extend(step.epoch.map(|_| job.judgements().interactions)),
        )
        .unwrap();
        // Of each rating two events: the job had read those of the batches before, and no other.
        let expected: Vec<u64> =
            (0..test.len().div_ceil(2)).map(|batch| 2 * (before.len() + 2 * batch) as u64).collect();
        assert_eq!(read, expected);
        assert_eq!((measured.report.predicted, measured.report.without_vector), (test.len() as u64, 0));
        assert_eq!((measured.test_from, measured.batch), (from, 2));
        let gained = measured.gained.auc.unwrap();
        assert!(gained > 0.05, "neighbours say what ids can't: {measured:?}");
        let last = *measured.curve.last().unwrap();
        assert_eq!(last.predicted, test.len() as u64);
        assert!((last.with - last.without - gained).abs() < 1e-12);

        let told = serde_json::to_value(&measured).unwrap();
        assert_eq!(told["predicted"], test.len());
        assert_eq!((&told["rows"][0]["name"], &told["rows"][1]["name"]), (&"with".into(), &"without".into()));
        assert!(told["gained"]["gauc"].is_f64() && told["rows"][1]["log_loss"].is_f64(), "{told}");
    }

    #[test]
    fn weights_that_would_measure_something_else_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let prepared = world::prepared(Protocol::Time);
        let files = trained(&prepared, folder.path());
        let mut other = world::data();
        other.add_row("u0", "i0", 0, ictflow_schemas::history::Label::Positive, true).unwrap();
        other.sort();
        let refused = |files: &Files, data: &Dataset| files.rankers(data).err().unwrap().to_string();
        let told = refused(&files, &other);
        assert!(told.contains("notes as its data"), "{told}");
        let swap = |from: &Path, to: &Path| std::fs::copy(from, to).unwrap();
        let (with, without) = (folder.path().join(RANKER), folder.path().join("strong").join(RANKER));
        swap(&with, &without);
        let told = refused(&Files::read(folder.path()).unwrap(), &prepared.data);
        assert!(told.contains("the ranker in strong reads vectors or votes"), "{told}");
        let shape = ictflow_operators::ict::Shape {
            d: 8,
            text: 16,
            user_rows: 4,
            item_rows: 4,
            creator_rows: 4,
            category_rows: 4,
        };
        let kind = ictflow_operators::ict::Kind::Attention;
        let others = ictflow_operators::ict::untrained_of(kind, 1, shape).unwrap();
        std::fs::write(folder.path().join(ICT), others).unwrap();
        let told = refused(&Files::read(folder.path()).unwrap(), &prepared.data);
        assert!(told.contains("must read votes and the vectors of untrained-"), "{told}");
        std::fs::remove_file(folder.path().join(ICT)).unwrap();
        let told = Files::read(folder.path()).err().unwrap().to_string();
        assert!(told.contains("ict.safetensors") && told.contains("make weights"), "{told}");
    }
}
