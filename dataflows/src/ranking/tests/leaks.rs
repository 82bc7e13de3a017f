//! Labels that come too early: planted leaks pay and are noticed, late labels are worth less.

use super::super::arms::Arm;
use super::super::dataset::{Part, Prepared, Protocol};
use super::super::delay::Delay;
use super::super::evaluate::Options;
use super::super::fit::{Material, fit, predict, widened};
use super::super::model::Model;
use super::super::neighbours::{Neighbours, Selecting, checked};
use super::super::tensors::{Columns, NeighbourColumns, Retrieved, Vocabularies};
use super::super::{table, world};
use super::{files, options, options_of_tests, run};
use ictflow_operators::as_of::{self, Row};
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::metrics::auc;
use ictflow_operators::retrieval::neighbours::{Neighbour, Sources};
use ictflow_schemas::example::Verdict;
use ictflow_schemas::neighbour::LabelledExample;
use std::sync::Arc;

/// What the neighbours of a replay are worth: the test AUC of the arm `votes`.
fn worth(prepared: &Prepared, options: as_of::Options) -> f64 {
    let vocabularies = Vocabularies::of(prepared);
    let neighbours = Neighbours::replay(prepared, options, Ok).unwrap();
    let material = Material {
        columns: &Columns::of(prepared, &vocabularies).unwrap(),
        retrieved: Retrieved {
            neighbours: Some(&NeighbourColumns::of(neighbours, &vocabularies).unwrap()),
            demonstrations: None,
        },
        valid_users: &prepared.users(Part::Valid),
        valid_labels: &prepared.labels(Part::Valid),
    };
    let Options { sizes, training, .. } = options_of_tests();
    let arm = Arm::named("votes").unwrap();
    let model = Model::new(Kind::DeepFm, arm, &sizes, material.columns, 1).unwrap();
    fit(&model, &material, &training, 1, "votes").unwrap();
    let scores = predict(&model, &material, Part::Test).unwrap();
    auc(&prepared.labels(Part::Test), &widened(&scores)).unwrap()
}

#[test]
fn a_leak_is_worth_a_lot_and_ends_the_replay() {
    let prepared = world::prepared(Protocol::Time);
    let honest = Selecting::Similar.options(Delay::NONE);
    let without = worth(&prepared, honest.clone());
    for (name, said, options) in [
        ("allow_self", "its own neighbour", as_of::Options { allow_self: true, ..honest.clone() }),
        ("allow_future", "not known before", as_of::Options { allow_future: true, ..honest.clone() }),
    ] {
        let error = Neighbours::of(&prepared, options.clone()).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("figures would be false"), "{name}: {error}");
        let with = worth(&prepared, options);
        assert!(with > without + 0.02, "{name}: {with} is no more than {without}");
    }
}

#[test]
fn a_planted_leak_ends_the_replay() {
    let example = |label_time, user: &str, item: &str, id: &str| {
        Arc::new(LabelledExample {
            label_time,
            event_time: label_time,
            user: user.into(),
            event_id: id.into(),
            item: item.into(),
            verdict: Verdict::Positive,
            rate: 512,
            partition: 0,
            id: uuid::Uuid::nil(),
        })
    };
    let asked = example(1_000, "u", "i", "asked");
    let row = |other: Arc<LabelledExample>| Row {
        place: 0,
        example: asked.clone(),
        sources: Sources { same_item: vec![Neighbour { score: 0, example: other }], ..Sources::default() },
    };
    assert!(checked(row(example(999, "v", "i", "earlier")), 0).is_ok());
    for (other, delay, said) in [
        (asked.clone(), 0, "its own neighbour"),
        (example(999, "u", "i", "again"), 0, "the example's own user and item"),
        (example(1_000, "v", "i", "at once"), 0, "not known before"),
        (example(2_000, "v", "i", "later"), 0, "not known before"),
        (example(999, "v", "i", "delayed"), 1, "not known before"),
    ] {
        let error = checked(row(other), delay).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("asked of user u"), "{error}");
    }
}

#[test]
fn labels_that_come_later_are_worth_less() {
    let prepared = world::prepared(Protocol::Time);
    let out = tempfile::tempdir().unwrap();
    // An item is rated within 200 minutes: after four hours nobody has said anything of it in time.
    let delays = vec![Delay::NONE, "4h".parse().unwrap()];
    let report = run(&prepared, &Options { delays, ..options(out.path(), &["ids", "strong", "votes"], 1) });
    let at = |delay: usize, arm: usize| &report.rows[3 * delay + arm];
    assert_eq!((at(1, 2).arm, at(1, 2).label_delay.to_string()), ("votes", "4h".to_owned()));
    assert!(at(0, 2).auc.mean > at(1, 2).auc.mean + 0.1, "{}", table::text(&report));
    assert_eq!(at(0, 0).auc, at(1, 0).auc, "ids alone read no label");
    assert!(at(1, 1).gains.is_none() && at(1, 2).gains.is_some(), "each delay has its own reference");
    assert_eq!(files(&out.path().join("cells")).len(), 5, "what reads no label is trained once");
    assert!(table::text(&report).contains("4h     deepfm"), "{}", table::text(&report));
}
