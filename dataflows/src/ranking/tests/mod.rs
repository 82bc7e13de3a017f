#![allow(clippy::unwrap_used)]

mod batches;
mod leaks;
mod paper;

use super::arms::Arm;
use super::cots::Cots;
use super::dataset::{Prepared, Protocol};
use super::delay::Delay;
use super::evaluate::{Options, evaluate};
use super::fit::Training;
use super::model::Sizes;
use super::neighbours::{Neighbours, Selecting};
use super::report::Report;
use super::tensors::{Columns, NeighbourColumns, Vocabularies};
use super::{table, world};
use ictflow_operators::ranking::backbones::Kind;
use std::path::Path;

const TRAINING: Training = Training {
    batch: 64,
    epochs: 20,
    checks: 1,
    patience: 5,
    learning_rate: 0.01,
    weight_decay: 1e-4,
    table_decay: None,
    reconstruction: 1.0,
};

fn options_of_tests() -> Options {
    options(Path::new(""), &[], 1)
}

fn options(out: &Path, arms: &[&str], seeds: u64) -> Options {
    Options {
        arms: arms.iter().map(|name| Arm::named(name).unwrap()).collect(),
        backbones: vec![Kind::DeepFm],
        delays: vec![Delay::NONE],
        seeds,
        sizes: Sizes { width: 8, hidden: vec![16], ..Sizes::default() },
        training: TRAINING,
        jobs: 1,
        out: out.to_owned(),
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            all.push((name, std::fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

fn run(prepared: &Prepared, options: &Options) -> Report {
    let report = evaluate(prepared, &Cots::default(), options).unwrap();
    table::write_all(&report, &options.out, "table").unwrap();
    report
}

#[test]
fn votes_win_where_neighbours_know_more_and_finished_cells_are_read_back() {
    let prepared = world::prepared(Protocol::Time);
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let arms = ["ids", "strong", "votes"];
    let report = run(&prepared, &options(first.path(), &arms, 2));
    let auc = |report: &Report, arm: &str| report.rows.iter().find(|row| row.arm == arm).unwrap().auc.mean;
    assert!(auc(&report, "votes") > auc(&report, "strong") + 0.1, "{}", table::text(&report));
    let votes = &report.rows[2];
    assert!(votes.gains.unwrap().auc.low > 0.0, "{}", table::text(&report));
    // The fair baseline knows next to nothing here; of one below a half there is no improvement in percent.
    let skill = auc(&report, "strong") - 0.5;
    let rela_impr = (skill > 0.0).then(|| 100.0 * ((auc(&report, "votes") - 0.5) / skill - 1.0));
    assert_eq!(votes.rela_impr, rela_impr, "{}", table::text(&report));
    assert!(report.rows[1].gains.is_none(), "the reference isn't compared with itself");
    assert_eq!(votes.segments[0].auc, Some(votes.auc.mean), "the first segment is all");

    run(&prepared, &Options { jobs: 3, ..options(second.path(), &arms, 2) });
    let made = files(first.path());
    assert!(made == files(second.path()), "the same seeds give the same bytes, however many train at once");
    assert_eq!(made.len(), 5 + 2 * arms.len() * 2, "tables, a picture, cells and curves");

    // A cell that stands is read: what is put in its place shows in the table.
    let (name, bytes) = made.iter().find(|(name, _)| name.starts_with("cells/deepfm-votes-1")).unwrap();
    let cell = first.path().join(name);
    let mut other: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    for score in other["scores"].as_array_mut().unwrap() {
        *score = serde_json::json!(1.0 - score.as_f64().unwrap() as f32);
    }
    std::fs::write(&cell, other.to_string()).unwrap();
    let worse = run(&prepared, &options(first.path(), &arms, 2));
    assert!(auc(&worse, "votes") < 0.6, "{}", table::text(&worse));
    // One that is damaged, of other samples or of another key is made anew.
    for damage in ["{", "[]"] {
        std::fs::write(&cell, damage).unwrap();
        run(&prepared, &options(first.path(), &arms, 2));
        assert!(made == files(first.path()), "after {damage}");
    }
    other["scores"].as_array_mut().unwrap().pop();
    std::fs::write(&cell, other.to_string()).unwrap();
    run(&prepared, &options(first.path(), &arms, 2));
    assert!(made == files(first.path()), "after a lost score");
    let training = Training { batch: 32, ..TRAINING };
    run(&prepared, &Options { training, ..options(first.path(), &["strong"], 1) });
    assert_eq!(files(first.path()).len(), made.len() + 1, "another training is another cell");
}

#[test]
fn the_control_loses_what_votes_gain() {
    let prepared = world::prepared(Protocol::Time);
    let out = tempfile::tempdir().unwrap();
    let report = run(&prepared, &options(out.path(), &["strong+rate", "votes", "votes-permuted"], 1));
    let [rate, votes, permuted] = [0, 1, 2].map(|row| report.rows[row].auc.mean);
    assert!(votes > permuted + 0.1, "{}", table::text(&report));
    // Half of the users like what the other half doesn't, so the plain rate of an item says nothing.
    assert!(votes > rate + 0.1, "{}", table::text(&report));
    assert_eq!(report.reference, "strong+rate", "the first one, where strong isn't there");
}

#[test]
fn every_protocol_and_the_vector_run() {
    for protocol in [Protocol::NewItems, Protocol::LeaveOneOut] {
        let prepared = world::prepared(protocol);
        let out = tempfile::tempdir().unwrap();
        let training = Training { epochs: 1, ..TRAINING };
        let report =
            run(&prepared, &Options { training, ..options(out.path(), &["ids", "attention+votes"], 1) });
        assert_eq!((report.rows.len(), report.reference), (2, "ids"), "{}", protocol.name());
    }
}

fn tensors(prepared: &Prepared) -> (Columns, NeighbourColumns) {
    let vocabularies = Vocabularies::of(prepared);
    let neighbours = Neighbours::of(prepared, Selecting::Similar.options(Delay::NONE)).unwrap();
    let columns = Columns::of(prepared, &vocabularies).unwrap();
    (columns, NeighbourColumns::of(neighbours, &vocabularies).unwrap())
}

#[test]
fn arms_that_read_texts_are_refused_where_there_are_none() {
    let mut prepared = world::prepared(Protocol::Time);
    prepared.texts.fill(None);
    let out = tempfile::tempdir().unwrap();
    let error = evaluate(&prepared, &Cots::default(), &options(out.path(), &["ids", "strong"], 1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("arm strong") && error.contains("no item has one"), "{error}");
}
