#![allow(clippy::unwrap_used)]
use super::*;
use crate::epochs::read_compacted;
use ictflow_connectors::local::Local;
use ictflow_operators::features::served::{ServedUpdate, Shown, Stood};
use ictflow_schemas::epoch::{Actives, Erasure};
use ictflow_schemas::example::{Served, Verdict};
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::history::Identity;
use std::path::Path;

const MINUTE: Millis = 60_000;

/// A sink over topics in a folder, as a start with these maxima opens it.
fn sink(folder: &Path, maxima: Option<Millis>) -> Sink {
    let mut topics = Local::open(folder.join("topics.sqlite")).unwrap();
    let names = Names::new(&BTreeMap::new(), "");
    for topic in [Topic::Features, Topic::Examples, Topic::DeadLetters, Topic::Progress] {
        topics.ensure(names.of(topic), 1, topic.policy()).unwrap();
    }
    let writer = topics.writer("job").unwrap();
    let maxima = maxima.map(|maximum| vec![maximum]);
    Sink::open(&mut topics, writer, names, "job", 1, Arc::new(Semantics::default()), maxima).unwrap()
}

fn bounds(epoch: i64, maximum: Millis) -> EpochRecord {
    EpochRecord {
        job: "job".into(),
        epoch,
        ends: BTreeMap::new(),
        maxima: vec![maximum],
        clock: maximum,
        actives: Actives::default(),
        config_digest: String::new(),
        config: None,
        starts: BTreeMap::new(),
        erasures: Vec::new(),
        outputs: None,
    }
}

/// An epoch's commit, and how many records of `examples` it wrote.
fn commit(sink: &mut Sink, bounds: &EpochRecord, output: &EpochOutput) -> u64 {
    sink.commit(bounds, true, output, &[], &[], &[]).unwrap().examples
}

/// The vector of the pair of `u` and an item.
fn feature(item: &str, value: &str) -> (FeatureUpdate, isize) {
    let value = Some(value.as_bytes().into());
    (FeatureUpdate { user: "u".into(), item: item.into(), live: true, k: 0, value, shadow: None }, 1)
}

fn identity(id: &str) -> Identity {
    Identity { user: "u".into(), event_time: 0, event_id: id.into() }
}

fn stood(item: &str, id: &str) -> ServedUpdate {
    let stood = Stood {
        ict_weights: "w".into(),
        vector_kind: VectorKind::Decoder,
        demonstrations: [].into(),
        neighbours: [uuid::Uuid::from_u128(7)].into(),
        votes: [1_f32.to_bits()].into(),
        ict: [0.5_f32.to_bits()].into(),
    };
    ServedUpdate { shown: Shown { identity: identity(id), item: item.into() }, stood }
}

fn example(id: &str, item: &str, verdict: Verdict) -> Arc<Example> {
    let history = [].into();
    Arc::new(Example {
        identity: identity(id),
        partition: 0,
        item: item.into(),
        verdict,
        label_time: 1,
        history,
    })
}

/// What stands under an example's key.
fn standing(folder: &Path, id: &str) -> Option<ExampleRecord> {
    let mut topics = Local::open(folder.join("topics.sqlite")).unwrap();
    let values = read_compacted(&mut topics, "examples").unwrap();
    let (_, value) = values.get(&identity(id).frame().into_bytes())?;
    Some(ExampleRecord::decode(value).unwrap())
}

fn served(folder: &Path, id: &str) -> Option<Served> {
    standing(folder, id).unwrap().served
}

/// A sink that published the pairs of `a` in epochs 1 and 3 and of `b` in epoch 1, and was told in epoch 3 what
/// stood for the impressions `on-a` and `on-b`.
fn told(folder: &Path) -> Sink {
    let mut sink = sink(folder, None);
    let made = EpochOutput { features: vec![feature("a", "1"), feature("b", "1")], ..Default::default() };
    commit(&mut sink, &bounds(1, 0), &made);
    // Computed again, the same: the record of epoch 1 still stands.
    commit(
        &mut sink,
        &bounds(2, 0),
        &EpochOutput { features: vec![feature("b", "1")], ..Default::default() },
    );
    let shown = EpochOutput {
        features: vec![feature("a", "2")],
        served: vec![stood("a", "on-a"), stood("b", "on-b"), stood("unpublished", "on-none")],
        ..Default::default()
    };
    commit(&mut sink, &bounds(3, 0), &shown);
    assert_eq!(sink.served_kept(), 2);
    sink
}

fn examples(changes: Vec<(Arc<Example>, isize)>) -> EpochOutput {
    EpochOutput { examples: changes, ..Default::default() }
}

#[test]
fn an_example_goes_out_with_what_stood_before_its_impression_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = told(folder.path());
    let first = [("on-a", "a"), ("on-b", "b"), ("own", "a")]
        .map(|(id, item)| (example(id, item, Verdict::Positive), 1))
        .to_vec();
    assert_eq!(commit(&mut sink, &bounds(4, 0), &examples(first)), 3);
    let on_a = served(folder.path(), "on-a").unwrap();
    assert_eq!(on_a, stood("a", "on-a").stood.record(1));
    assert_eq!(served(folder.path(), "on-b").unwrap().epoch, 1);
    assert_eq!(served(folder.path(), "own"), None, "an outcome of its own was served nothing");
    // A correction keeps it.
    let corrected =
        vec![(example("on-a", "a", Verdict::Positive), -1), (example("on-a", "a", Verdict::Negative), 1)];
    assert_eq!(commit(&mut sink, &bounds(5, 0), &examples(corrected)), 1);
    let now = standing(folder.path(), "on-a").unwrap();
    assert_eq!((now.label, now.served), (0, Some(on_a)));
    // Open until window and lateness are over.
    commit(&mut sink, &bounds(6, 40 * MINUTE), &EpochOutput::default());
    assert_eq!(sink.served_kept(), 2);
    commit(&mut sink, &bounds(7, 40 * MINUTE + 1), &EpochOutput::default());
    assert_eq!(sink.served_kept(), 0);
}

#[test]
fn a_restart_compares_without_it_and_loses_what_waits_for_its_label() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = told(folder.path());
    let made = vec![(example("on-a", "a", Verdict::Positive), 1)];
    commit(&mut first, &bounds(4, 0), &examples(made.clone()));
    drop(first);
    let mut second = sink(folder.path(), Some(0));
    assert_eq!(second.served_kept(), 1);
    second.replay(&made);
    assert_eq!(commit(&mut second, &bounds(5, 0), &EpochOutput::default()), 0, "nothing differs");
    // What is corrected since, and what a further start finds otherwise, keeps it.
    let corrected = vec![
        (example("on-a", "a", Verdict::Positive), -1),
        (example("on-a", "a", Verdict::Negative), 1),
        (example("on-b", "b", Verdict::Negative), 1),
    ];
    assert_eq!(commit(&mut second, &bounds(6, 0), &examples(corrected)), 2);
    assert_eq!(served(folder.path(), "on-a").unwrap().epoch, 1);
    assert_eq!(served(folder.path(), "on-b"), None, "a restart lay between");
    drop(second);
    let mut third = sink(folder.path(), Some(0));
    third.replay(&made);
    assert_eq!(
        commit(&mut third, &bounds(7, 0), &EpochOutput::default()),
        2,
        "one differs, one is left over"
    );
    let again = standing(folder.path(), "on-a").unwrap();
    assert_eq!((again.label, again.served.map(|served| served.epoch)), (1, Some(1)));
    assert_eq!(standing(folder.path(), "on-b"), None);
}

#[test]
fn nothing_is_kept_of_an_erased_user_or_while_a_backfill_fills_its_topics() {
    let folder = tempfile::tempdir().unwrap();
    let mut sink = told(folder.path());
    let erased = EpochRecord {
        erasures: vec![Erasure { user: "u".into(), interactions: 9, candidates: 0 }],
        ..bounds(4, 0)
    };
    // Also what stood for impressions that the user makes in the epoch of the erasure.
    let output = EpochOutput { served: vec![stood("a", "new")], ..Default::default() };
    commit(&mut sink, &erased, &output);
    assert_eq!(sink.served_kept(), 0);
    let other = tempfile::tempdir().unwrap();
    let mut filling = told(other.path());
    filling.of_backfill(Vec::new());
    let output = EpochOutput { served: vec![stood("a", "new")], ..Default::default() };
    commit(&mut filling, &bounds(4, 0), &output);
    assert_eq!(filling.served_kept(), 2, "those of before");
}
