#![allow(clippy::unwrap_used)]

use super::arms::Arm;
use super::dataset::{Part, Prepared, Protocol};
use super::delay::Delay;
use super::evaluate::{Options, evaluate};
use super::fit::{Material, Training, fit, predict, widened};
use super::model::{Model, Sizes};
use super::neighbours::{Neighbours, Selecting, checked};
use super::report::Report;
use super::tensors::{Columns, NeighbourColumns, Vocabularies};
use super::{table, world};
use ictflow_operators::as_of::{self, Row};
use ictflow_operators::ict::MAX_NEIGHBOURS;
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::layers::{Masks, Phase};
use ictflow_operators::ranking::loss::cross_entropy;
use ictflow_operators::ranking::metrics::auc;
use ictflow_operators::retrieval::neighbours::{Neighbour, Sources};
use ictflow_schemas::example::Verdict;
use ictflow_schemas::neighbour::LabelledExample;
use ictflow_schemas::vector::VectorSum;
use std::path::Path;
use std::sync::Arc;

const TRAINING: Training = Training {
    batch: 64,
    epochs: 20,
    checks: 1,
    patience: 5,
    learning_rate: 0.01,
    weight_decay: 1e-4,
    table_decay: None,
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
    let report = evaluate(prepared, options).unwrap();
    table::write_all(&report, &options.out).unwrap();
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
    assert!(votes.gains.unwrap().auc.low > 0.0 && votes.rela_impr.unwrap() > 0.0);
    assert!(report.rows[1].gains.is_none(), "the reference isn't compared with itself");
    assert_eq!(votes.segments[0].auc, Some(votes.auc.mean), "the first segment is all");

    run(&prepared, &Options { jobs: 3, ..options(second.path(), &arms, 2) });
    let made = files(first.path());
    assert!(made == files(second.path()), "the same seeds give the same bytes, however many train at once");
    assert_eq!(made.len(), 4 + 2 * arms.len() * 2, "tables, cells and curves");

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

/// The item's own rate is the beginning of the votes.
#[test]
fn the_rate_is_what_the_ring_of_the_item_says() {
    let prepared = world::prepared(Protocol::Time);
    let (columns, neighbours) = tensors(&prepared);
    let row = |arm: &str, sample: u32| -> Vec<f32> {
        let batch = columns.batch(&[sample], &Arm::named(arm).unwrap(), Some(&neighbours)).unwrap();
        batch.scalars.unwrap().get(0).unwrap().to_vec1().unwrap()
    };
    let all: Vec<_> = prepared.samples().copied().collect();
    let mut compared = 0;
    for (place, sample) in (0_u32..).zip(&all) {
        let own = &prepared.data.rows()[sample.row as usize];
        let earlier = all.iter().filter(|other| {
            let row = &prepared.data.rows()[other.row as usize];
            other.item == sample.item && row.user != own.user && row.time < own.time
        });
        let (mut n, mut p) = (0.0_f32, 0.0_f32);
        for other in earlier {
            n += 1.0;
            p += f32::from(u8::from(other.positive));
        }
        let scalars = row("strong+rate", place);
        assert_eq!(scalars[2], ictflow_operators::ict::count_scalar(n as u64), "sample {place}");
        assert!((scalars[3] - (2.0 * p - n) / (2.0 * (n + 2.0))).abs() < 1e-6, "sample {place}");
        assert_eq!(scalars, row("votes", place)[..4]);
        compared += usize::from(n > 0.0);
    }
    assert!(compared > 1_000, "only {compared} have a ring");
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

/// The gradient of one step of an arm reaches every variable.
#[test]
fn every_variable_gets_a_gradient() {
    let prepared = world::prepared(Protocol::Time);
    let (columns, neighbours) = tensors(&prepared);
    let samples: Vec<u32> = (700..764).collect();
    for name in ["ids", "text", "strong", "strong+rate", "votes", "attention", "attention+votes"] {
        let arm = Arm::named(name).unwrap();
        let model = Model::new(Kind::DeepFm, arm, &Sizes::default(), &columns, 1).unwrap();
        let batch = columns.batch(&samples, &arm, Some(&neighbours)).unwrap();
        let logits = model.logits(&batch, &mut Phase::Training(Masks::new(1, 1))).unwrap();
        let gradients = cross_entropy(&logits, &batch.label).unwrap().backward().unwrap();
        for variable in model.variables.trained() {
            let gradient = gradients.get(&variable.var);
            let size = gradient.map(|g| g.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            assert!(size.is_some_and(|size| size > 0.0), "{name}: {} has {size:?}", variable.name);
        }
    }
}

fn tensors(prepared: &Prepared) -> (Columns, NeighbourColumns) {
    let vocabularies = Vocabularies::of(prepared);
    let neighbours = Neighbours::of(prepared, Selecting::Similar.options(Delay::NONE)).unwrap();
    let columns = Columns::of(prepared, &vocabularies).unwrap();
    (columns, NeighbourColumns::of(neighbours, &vocabularies).unwrap())
}

#[test]
fn a_batch_is_what_its_samples_are() {
    let prepared = world::prepared(Protocol::Time);
    let vocabularies = Vocabularies::of(&prepared);
    let neighbours = Neighbours::of(&prepared, Selecting::Similar.options(Delay::NONE)).unwrap();
    let nearest = neighbours.nearest[0].clone();
    let (columns, neighbours) = tensors(&prepared);
    let arm = Arm::named("attention+votes").unwrap();
    let test = prepared.range(Part::Test);
    let samples: Vec<u32> = vec![0, 5, 400, test.start as u32, test.end as u32 - 1];
    let batch = columns.batch(&samples, &arm, Some(&neighbours)).unwrap();
    let all: Vec<_> = prepared.samples().copied().collect();
    let (data, catalog) = (&prepared.data, prepared.data.catalog());
    let numbers = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let [_, history_text] = batch.text.as_ref().unwrap();
    let (parties, [same_item, _]) = batch.neighbours.as_ref().unwrap();
    let width = batch.ids.history_categories.dim(2).unwrap();
    for (place, sample) in samples.iter().enumerate() {
        let sample = all[*sample as usize];
        let row = &data.rows()[sample.row as usize];
        let at = |tensor: &candle_core::Tensor| numbers(tensor)[place];
        assert_eq!(at(&batch.ids.user), vocabularies.user.row(row.user));
        assert_eq!(at(&batch.ids.item), vocabularies.item.row(sample.item));
        let creator = catalog.creator(sample.item).map_or(0, |c| vocabularies.creator.row(c));
        assert_eq!(at(&batch.ids.creator), creator);
        let before = prepared.histories.before(sample.row);
        let items: Vec<u32> = before.iter().map(|row| data.rows()[*row as usize].item).collect();
        let entries = numbers(&batch.ids.history_items.get(place).unwrap());
        let known: Vec<u32> = items.iter().map(|item| vocabularies.item.row(*item)).collect();
        assert!(entries[..known.len()] == known && entries[known.len()..].iter().all(|row| *row == 0));
        let categories = numbers(&batch.ids.history_categories.get(place).unwrap());
        for (item, found) in items.iter().zip(categories.chunks(width)) {
            let own = catalog.categories(*item);
            assert!(own.iter().zip(found).all(|(c, row)| vocabularies.category.row(*c) == *row));
            assert!(found[own.len()..].iter().all(|row| *row == 0));
        }
        let texts = items.iter().filter_map(|item| prepared.texts[*item as usize].as_deref());
        let mean = VectorSum::over(texts).mean_f32(prepared.text_width);
        assert_eq!(history_text.get(place).unwrap().to_vec1::<f32>().unwrap(), mean);
        assert_eq!(batch.label.to_vec1::<f32>().unwrap()[place], f32::from(u8::from(sample.positive)));
        // A neighbour's place among the parties leads back to its user and item.
        let begin = samples[place] as usize * MAX_NEIGHBOURS;
        let users = numbers(&parties.users);
        let party = numbers(&same_item.user.get(place).unwrap());
        for (of, place) in (begin..begin + MAX_NEIGHBOURS).zip(party) {
            let there = nearest.there[of] > 0.0;
            let expected = if there { vocabularies.user.row(nearest.users[of]) } else { 0 };
            assert_eq!(users[place as usize], expected);
        }
    }
    assert!(nearest.there.iter().any(|there| *there > 0.0));
    // The test's items are new: no row of training, but a text.
    assert_eq!(numbers(&batch.ids.item)[4], 0);
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

/// What the neighbours of a replay are worth: the test AUC of the arm `votes`.
fn worth(prepared: &Prepared, options: as_of::Options) -> f64 {
    let vocabularies = Vocabularies::of(prepared);
    let neighbours = Neighbours::replay(prepared, options, Ok).unwrap();
    let material = Material {
        columns: &Columns::of(prepared, &vocabularies).unwrap(),
        neighbours: Some(&NeighbourColumns::of(neighbours, &vocabularies).unwrap()),
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

#[test]
fn own_labels_are_known_after_their_delay() {
    let prepared = world::prepared(Protocol::Time);
    let (columns, _) = tensors(&prepared);
    let delay: Delay = "1h".parse().unwrap();
    let delayed = columns.delayed(&prepared, delay).unwrap();
    let arm = Arm::named("strong").unwrap();
    let scalars = |columns: &Columns, sample: u32| -> Vec<f32> {
        let batch = columns.batch(&[sample], &arm, None).unwrap();
        batch.scalars.unwrap().get(0).unwrap().to_vec1().unwrap()
    };
    let all: Vec<_> = prepared.samples().copied().collect();
    let mut fewer = 0;
    for (place, sample) in (0_u32..).zip(&all) {
        let rows = prepared.data.rows();
        let now = rows[sample.row as usize].time;
        let before = prepared.histories.before(sample.row);
        let known = before.iter().filter(|row| rows[**row as usize].time + 3_600_000 < now).count();
        let found = scalars(&delayed, place)[1];
        assert_eq!(found, ictflow_operators::ict::count_scalar(known as u64), "sample {place}");
        fewer += usize::from(found < scalars(&columns, place)[1]);
    }
    assert!(fewer > 100, "only {fewer} know less");
}

#[test]
fn arms_that_read_texts_are_refused_where_there_are_none() {
    let mut prepared = world::prepared(Protocol::Time);
    prepared.texts.fill(None);
    let out = tempfile::tempdir().unwrap();
    let error = evaluate(&prepared, &options(out.path(), &["ids", "strong"], 1)).unwrap_err().to_string();
    assert!(error.contains("arm strong") && error.contains("no item has one"), "{error}");
}
