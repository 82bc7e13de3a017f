//! A data set replayed as a stream: what a ranker reaches from the feature topic, beside what it reached offline.
//!
//! ```text
//! rows before the test ─▶ interactions ─┐
//! a second of the test: impressions ────┼─▶ job ─▶ features ─▶ subscription ─▶ ranker ─▶ prediction
//! then its outcomes ────────────────────┘                                                then the outcomes
//! ```
//! Every test sample is an impression at its time. Its second is an epoch of its own: when it closes the event
//! clock stands there, so the vector that is published sees just what training let the sample see, the labels
//! of strictly before. The outcomes enter with the next second. So the two differ only by a defect, or where an
//! item's text has no vector.
//!
//! **Memory**: the data set, and a job's.

use crate::cluster::Cluster;
use crate::dead_letters::ratio::Ratio;
use crate::job::{Edges, Job, Options as JobOptions, Parts};
use crate::names::Names;
use crate::rank::prequential::{Contender, Labelled, Prequential, Report};
use crate::rank::ranker::Ranker;
use crate::rank::subscription::{Options, Subscription};
use crate::ranking::dataset::{HISTORY, Part, Prepared};
use crate::ranking::progress::Progress;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::local::{FILE_NAME, Local};
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::{Kind, Weights};
use ictflow_operators::ranking::split::Sample;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::dataset::{Dataset, Row};
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::history::Label;
use ictflow_schemas::interaction::{Interaction, KindRule, When};
use ictflow_schemas::item::{Item, ItemText};
use ictflow_schemas::limits;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// The job's name.
const JOB: &str = "streamed";

/// Interactions of an epoch before the test.
const EPOCH: usize = 10_000;

/// Partitions of the topics.
const PARTITIONS: u32 = 4;

/// The kind of an impression.
const SHOWN: &str = "impression";

/// Replays a data set through a job with the ICT weights of a folder that [`crate::ranking::train`] wrote, and
/// predicts the test part by its ranker, each sample from the newest vector of before its outcome. Of the test
/// at most `most` samples, the first ones. `state` gets the topics and must be empty.
///
/// # Errors
/// `Fatal` where the weights read demonstrations, which need CoTs, the data set has no test period, a row of it is
/// no sample or has a label that became known later than it happened, or a file can't be read or written.
pub fn streamed(
    prepared: &Prepared,
    encoder: Box<dyn Embed>,
    folder: &Path,
    state: &Path,
    most: usize,
) -> Result<Report> {
    let ranker = Ranker::read(&folder.join("ranker.safetensors"))?;
    let weights = weights(&folder.join("ict.safetensors"))?;
    std::fs::create_dir_all(state).map_err(|error| {
        Error::fatal(format!("make {}", state.display()), error, "name a folder that can be written")
    })?;
    let file = state.join(FILE_NAME);
    let semantics = Arc::new(semantics());
    let names = Names::new(&BTreeMap::new(), "");
    let encoder_of = (encoder.id().to_owned(), encoder.width());
    let parts = Parts {
        topics: Box::new(Local::open(&file)?),
        formats: BTreeMap::new(),
        generators: vec![Box::new(Template::new(Prompt::builtin()))],
        validator: Validator::new(&Prompt::builtin()),
        encoder,
        weights: weights.into(),
        points: None,
        snapshots: None,
    };
    let mut producer = Producer { topics: Box::new(Local::open(&file)?), names: names.clone() };
    producer.ensure()?;
    producer.items(&prepared.data)?;
    let mut job = Job::start(parts, semantics.clone(), options(&names))?;
    let (before, test) = parts_of(prepared, most)?;
    let rows = prepared.data.rows();
    for rows in before.chunks(EPOCH) {
        producer.append(rows.iter().map(|row| outcome(&prepared.data, row, None)).collect())?;
    }
    job.run_until_idle(|_| {})?;

    let mut subscription = Subscription::open(
        Box::new(Local::open(&file)?),
        Options {
            job: Some(JOB.to_owned()),
            names,
            items: Format::Avro,
            semantics,
            encoder: ranker.encoder().is_some().then_some(encoder_of),
            users: None,
            most: limits::LIVE_PAIRS,
        },
    )?;
    let mut measured = Prequential::new(Contender::with_and_without(&ranker));
    let mut progress = Progress::new("replaying the test as a stream".to_owned(), test.len());
    let mut outcomes = Vec::new();
    let mut done = 0;
    for second in test.chunk_by(|a, b| time(rows, a) == time(rows, b)) {
        let mut records = std::mem::take(&mut outcomes);
        records.extend(second.iter().map(|sample| shown(&prepared.data, &rows[sample.row as usize])));
        producer.append(records)?;
        // A moment with more events than an epoch takes has several.
        job.run_until_idle(|_| {})?;
        subscription.catch_up()?;
        let ids = (prepared.data.users().ids(), prepared.data.items().ids());
        let events: Vec<Labelled<'_>> = second
            .iter()
            .map(|sample| {
                let row = &rows[sample.row as usize];
                Labelled {
                    user: &ids.0[row.user as usize],
                    item: &ids.1[row.item as usize],
                    time: row.time,
                    positive: sample.positive,
                }
            })
            .collect();
        let (_, view, catalog) = subscription.parts();
        measured.predict(view, catalog, &events)?;
        let of = |sample: &Sample| {
            let row = &rows[sample.row as usize];
            outcome(&prepared.data, row, Some(&row.event_id()))
        };
        outcomes.extend(second.iter().map(of));
        done += second.len();
        progress.at(done, "");
    }
    progress.finish("");
    Ok(measured.report())
}

fn time(rows: &[Row], sample: &Sample) -> Millis {
    rows[sample.row as usize].time
}

/// The ICT weights of a training. They also carry the centre by which neighbours' texts are compared, so that
/// even votes alone can't be streamed without them.
fn weights(path: &Path) -> Result<Arc<Weights>> {
    let failed = |error: &dyn std::fmt::Display| {
        let hint = "ictflow train writes it for arms that have a vector, such as attention+votes";
        Error::fatal(format!("load {}", path.display()), error, hint)
    };
    let bytes = std::fs::read(path).map_err(|e| failed(&e))?;
    let weights = Weights::from_safetensors(&bytes).map_err(|e| failed(&e))?;
    if weights.kind() == Kind::Decoder {
        return Err(failed(&"vectors of a decoder need CoTs, which no stream of a data set has"));
    }
    Ok(Arc::new(weights))
}

/// A job's values as training takes them. No example is asked for a CoT: the stride leaves none.
fn semantics() -> Semantics {
    let rule =
        |engagement, positive, negative| KindRule { impression: false, engagement, positive, negative };
    let (yes, no) = (When::Always, When::Never);
    let stride = limits::STRIDE;
    Semantics {
        history_length: HISTORY,
        cot_stride: CotStride { positive: stride, explicit_negative: stride, implicit_negative: stride },
        kinds: [
            ("engaged".to_owned(), rule(yes, no, no)),
            ("engaged_positive".to_owned(), rule(yes, yes, no)),
            ("engaged_negative".to_owned(), rule(yes, no, yes)),
            ("negative".to_owned(), rule(no, no, yes)),
            ("positive".to_owned(), rule(no, yes, no)),
            (SHOWN.to_owned(), KindRule { impression: true, ..rule(no, no, no) }),
        ]
        .into(),
        ..Semantics::default()
    }
}

/// The kind of a row that says something.
fn kind(row: &Row) -> &'static str {
    match (row.engagement, row.label) {
        (true, Label::None) => "engaged",
        (true, Label::Positive) => "engaged_positive",
        (true, Label::Negative) => "engaged_negative",
        (false, Label::Positive) => "positive",
        (false, _) => "negative",
    }
}

fn options(names: &Names) -> JobOptions {
    JobOptions {
        job: JOB.to_owned(),
        names: names.clone(),
        workers: 1,
        cluster: Cluster::default(),
        epoch_max_events: EPOCH,
        create_inputs: Some(PARTITIONS),
        generate: true,
        calls_file: None,
        dead_letters: Ratio::default(),
        accept_truncated: false,
        edges: Edges::default(),
        by_hand: false,
        bounded: None,
        switch: None,
    }
}

/// The rows of before the test in the order of time, and the test's samples in it.
fn parts_of(prepared: &Prepared, most: usize) -> Result<(Vec<Row>, Vec<Sample>)> {
    let rows = prepared.data.rows();
    let mut test: Vec<Sample> = prepared.part(Part::Test).to_vec();
    test.retain(|sample| !sample.is_drawn(&prepared.data));
    test.sort_by_key(|sample| (time(rows, sample), rows[sample.row as usize].number));
    let Some(from) = test.first().map(|sample| time(rows, sample)) else {
        return Err(Error::fatal(
            "replay the test as a stream",
            "the data set has no test sample that happened",
            "take the protocol time",
        ));
    };
    let samples: HashSet<u32> = test.iter().map(|sample| sample.row).collect();
    let unlike = |(number, row): (u32, &Row)| {
        let says = row.engagement || row.label != Label::None;
        let is_left_out = row.time >= from && says && !samples.contains(&number);
        is_left_out || prepared.data.label_time(row) != row.time
    };
    if (0..).zip(rows).any(unlike) {
        return Err(Error::fatal(
            "replay the test as a stream",
            "labels of it became known later than their events, or engagements of its period are no samples",
            "it replays data sets of atomic files, whose labels are known at once; train without --streamed",
        ));
    }
    test.truncate(most);
    let mut before: Vec<Row> = rows.iter().filter(|row| row.time < from).copied().collect();
    before.retain(|row| row.engagement || row.label != Label::None);
    before.sort_by_key(|row| (row.time, row.number));
    Ok((before, test))
}

/// A record before it has a topic's name: the topic, the key, the value, the time.
type Made = (Topic, Id, Vec<u8>, Millis);

fn event(data: &Dataset, row: &Row, event_id: String, kind: &str, impression_id: Option<&Id>) -> Made {
    let user = data.users().ids()[row.user as usize].clone();
    let event = Interaction {
        event_id,
        user_id: user.to_string(),
        item_id: data.items().ids()[row.item as usize].to_string(),
        kind: kind.to_owned(),
        value: None,
        impression_id: impression_id.map(|id| id.to_string()),
        event_time: row.time,
    };
    (Topic::Interactions, user, event.encode(), row.time)
}

/// A row as the impression that its example is.
fn shown(data: &Dataset, row: &Row) -> Made {
    event(data, row, row.event_id().to_string(), SHOWN, None)
}

/// A row as what came of it. Ids of one width keep the order of the rows.
fn outcome(data: &Dataset, row: &Row, impression: Option<&Id>) -> Made {
    let event_id = match impression {
        Some(_) => format!("{}o", row.event_id()),
        None => row.event_id().to_string(),
    };
    event(data, row, event_id, kind(row), impression)
}

struct Producer {
    topics: Box<dyn Topics>,
    names: Names,
}

impl Producer {
    fn ensure(&mut self) -> Result<()> {
        for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
            self.topics.ensure(self.names.of(topic), PARTITIONS, topic.policy())?;
        }
        Ok(())
    }

    fn append(&mut self, records: Vec<Made>) -> Result<()> {
        let records: Vec<NewRecord> = records
            .into_iter()
            .map(|(topic, key, value, time)| NewRecord {
                topic: self.names.of(topic).to_owned(),
                partition: Partitioner::Murmur2.partition(key.as_bytes(), PARTITIONS),
                timestamp: Some(time),
                key: Some(key.as_bytes().to_vec()),
                value: Some(value),
                headers: Vec::new(),
            })
            .collect();
        self.topics.append(&records)
    }

    /// The catalog, with texts, creators and categories as training has them.
    fn items(&mut self, data: &Dataset) -> Result<()> {
        let catalog = data.catalog();
        let known: HashMap<u32, &Id> = (0..).zip(data.items().ids()).collect();
        let mut records = Vec::new();
        for (number, id) in known.into_iter().filter(|(number, _)| catalog.exists(*number)) {
            let text = ItemText::parse(catalog.text(number));
            let some = |text: String| (!text.is_empty()).then_some(text);
            let of = |names: &[Id], number: u32| names[number as usize].to_string();
            let record = Item {
                title: some(text.title),
                creator: catalog.creator(number).map(|creator| of(catalog.creator_names().ids(), creator)),
                categories: (catalog.categories(number).iter())
                    .map(|category| of(catalog.category_names().ids(), *category))
                    .collect(),
                tags: some(text.tags).into_iter().collect(),
                description: some(text.description),
                language: some(text.language),
                ..Item::default()
            };
            records.push((Topic::Items, id.clone(), record.encode(), 0));
        }
        records.sort_by(|a, b| a.1.cmp(&b.1));
        self.append(records)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ranking::dataset::Protocol;
    use crate::ranking::train::train;
    use crate::ranking::world;
    use ictflow_connectors::encoder::hashed::Hashed;

    /// What stands on the topic when a sample comes is what training let it see.
    #[test]
    fn a_stream_reaches_what_the_offline_evaluation_reached() {
        for arm in ["attention", "attention+votes"] {
            let folder = tempfile::tempdir().unwrap();
            let prepared = world::prepared(Protocol::Time);
            // So many rows that new items share none with those of training.
            let options = world::training(arm, 1 << 16, folder.path().join("trained"));
            let offline = train(&prepared, &options).unwrap().test;
            let state = folder.path().join("state");
            let encoder = Box::new(Hashed::new(16));
            let report = streamed(&prepared, encoder, &options.out, &state, usize::MAX).unwrap();
            assert_eq!(report.without_vector, 0);
            assert_eq!(report.predicted as usize, prepared.part(Part::Test).len());
            let with = &report.rows[0];
            assert_eq!(with.name, "with");
            let close = |a: f64, b: f64| (a - b).abs() < 1e-4;
            assert!(close(with.auc.unwrap(), offline.auc), "{arm}: {with:?}, offline {offline:?}");
            assert!(close(with.gauc.unwrap(), offline.gauc.unwrap()), "{arm}: {with:?}, offline {offline:?}");
            assert!(close(with.log_loss.unwrap(), offline.log_loss), "{arm}: {with:?}, offline {offline:?}");
            assert!(offline.auc > report.rows[1].auc.unwrap() + 0.05, "{arm}: the vector and votes count");
        }
    }
}
