#![allow(clippy::unwrap_used)]

use super::super::dataset::Protocol;
use super::super::neighbours::Selecting;
use super::super::world;
use super::*;
use crate::rank::ranker::Ranker;
use ictflow_operators::ict::Weights;
use ictflow_operators::ranking::weights;
use ictflow_schemas::framing::hashed_row;
use std::collections::BTreeMap;

fn options(out: &Path, arm: &str) -> Options {
    Options {
        backbone: Kind::DeepFm,
        arm: Arm::named(arm).unwrap(),
        sizes: Sizes { width: 8, hidden: vec![16], dropout: 0.1, ..Sizes::default() },
        training: Training {
            batch: 64,
            epochs: 4,
            checks: 2,
            patience: 3,
            learning_rate: 0.01,
            weight_decay: 1e-4,
            ..Training::default()
        },
        seed: 1,
        rows: Rows { user: 64, item: 64, creator: 8, category: 8 },
        out: out.to_owned(),
        restart: false,
        told: Told { source: "a | world".into(), label: "it is".into(), ..Told::default() },
    }
}

/// All files of a folder by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            all.insert(name, std::fs::read(&path).unwrap());
        }
    }
    all
}

/// What `train` lays out, for a model beside its own.
struct Laid {
    columns: Columns,
    neighbours: NeighbourColumns,
    users: Vec<u32>,
    labels: Vec<bool>,
}

impl Laid {
    fn of(prepared: &Prepared, vocabularies: &Vocabularies) -> Self {
        let neighbours = Neighbours::of(prepared, Selecting::Similar.options(Delay::NONE)).unwrap();
        Laid {
            columns: Columns::of(prepared, vocabularies).unwrap(),
            neighbours: NeighbourColumns::of(neighbours, vocabularies).unwrap(),
            users: prepared.users(Part::Valid),
            labels: prepared.labels(Part::Valid),
        }
    }

    fn material(&self) -> Material<'_> {
        Material {
            columns: &self.columns,
            retrieved: Retrieved { neighbours: Some(&self.neighbours), demonstrations: None },
            valid_users: &self.users,
            valid_labels: &self.labels,
        }
    }
}

fn hashed(prepared: &Prepared, options: &Options) -> (Vocabularies, HashedRows) {
    let mut rows = HashedRows::new(&shape(prepared, options).unwrap());
    (Vocabularies::of(prepared).hashed(&prepared.data, &mut rows), rows)
}

#[test]
fn a_training_that_goes_on_ends_with_the_bytes_of_an_undisturbed_one() {
    let prepared = world::prepared(Protocol::Time);
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = options(whole.path(), "attention+votes");
    let trained = train(&prepared, &first).unwrap();
    let expected = files(whole.path());
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "card.md",
            "checkpoint/state.safetensors",
            "curves.csv",
            "curves.svg",
            "ict.safetensors",
            "ranker.safetensors"
        ]
    );
    let checks = trained.curve.checks.len();
    assert!(checks > 3 && trained.curve.best > 0);
    assert_eq!(train(&prepared, &first).unwrap(), trained, "one that has ended trains nothing");
    assert!(files(whole.path()) == expected);

    let laid = Laid::of(&prepared, &hashed(&prepared, &first).0);
    let material = laid.material();
    let second = options(cut.path(), "attention+votes");
    let key = |options: &Options| {
        let trained = (&options.sizes, options.training);
        let cots = &Cots::default();
        Key::of((&prepared, cots), options.backbone, options.arm, trained, (Delay::NONE, options.seed))
    };
    let checkpoints = Checkpoints::of(cut.path(), &key(&second), second.rows).unwrap();
    for killed_after in [1, 2, checks] {
        let model = Model::new(second.backbone, second.arm, &second.sizes, &laid.columns, 1).unwrap();
        let mut fitting = Fitting::new(&model, &material, &second.training, 1, "killed");
        for _ in 0..killed_after {
            fitting.advance().unwrap().unwrap();
        }
        checkpoints.write(&fitting.save(checkpoints.key()).unwrap()).unwrap();
        assert_eq!(train(&prepared, &second).unwrap(), trained);
        assert!(files(cut.path()) == expected, "killed after {killed_after} checks");
    }

    // Another seed is another training: refused, until the old one is thrown away.
    let mut other = options(cut.path(), "attention+votes");
    other.seed = 2;
    let error = train(&prepared, &other).unwrap_err().to_string();
    assert!(error.contains("seed is 1 there and 2 here") && error.contains("--restart"), "{error}");
    other.rows.user = 32;
    let error = train(&prepared, &other).unwrap_err().to_string();
    assert!(error.contains("rows.user is 64 there and 32 here"), "{error}");
    assert!(files(cut.path()) == expected, "nothing was touched");
    other.restart = true;
    train(&prepared, &other).unwrap();
    let ranker = |files: &BTreeMap<String, Vec<u8>>| files["ranker.safetensors"].clone();
    assert_ne!(ranker(&files(cut.path())), ranker(&expected));

    // A damaged checkpoint isn't gone on from in silence.
    let state = cut.path().join("checkpoint/state.safetensors");
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    other.restart = false;
    let error = train(&prepared, &other).unwrap_err().to_string();
    assert!(error.contains("doesn't read") && error.contains("--restart"), "{error}");
}

#[test]
fn what_is_served_scores_as_what_was_trained() {
    let prepared = world::prepared(Protocol::Time);
    let out = tempfile::tempdir().unwrap();
    let options = options(out.path(), "attention+votes");
    let trained = train(&prepared, &options).unwrap();
    let files = files(out.path());

    // The ranker's own file fits a model over the whole hashed tables, but for the vector's module.
    let ranker = &files["ranker.safetensors"];
    let described = weights::describe(ranker).unwrap();
    assert_eq!((described.backbone, described.rows), (options.backbone, options.rows));
    assert_eq!(described.notes["arm"], "attention+votes");
    // A consumer of features reads it, and asks for the vectors of these ICT weights.
    let read = Ranker::from_bytes(ranker).unwrap();
    assert_eq!((read.kind(), read.vector_width()), (Kind::DeepFm, Some(8)));
    let vector = read.serving.vector.as_ref().unwrap();

    let ict = Weights::from_safetensors(&files["ict.safetensors"]).unwrap();
    assert_eq!(ict.kind().name(), "attention");
    assert_eq!(ict.encoder(), Some(prepared.encoder.as_str()));
    assert!(!ict.version().starts_with("untrained"), "{}", ict.version());
    assert_eq!(vector.ict_weights, ict.version());
    let shape = ict.shape();
    assert_eq!((shape.user_rows, shape.category_rows, shape.d), (64, 8, 8));
    assert!(ict.text_centre().iter().any(|x| *x != 0));
    let card = String::from_utf8(files["card.md"].clone()).unwrap();
    let auc = format!("| test | {:.4} |", trained.test.auc);
    for part in [auc.as_str(), ict.version(), &prepared.digest.hex(), "a \\| world", "user 64, item 64"] {
        assert!(card.contains(part), "{part:?} isn't in {card}");
    }
    assert!(!card.contains("Date"), "no date unless one is given");

    // An arm without a vector: the file alone is the model.
    let mut plain = options.clone();
    plain.arm = Arm::named("votes").unwrap();
    plain.restart = true;
    let trained = train(&prepared, &plain).unwrap();
    assert!(!out.path().join("ict.safetensors").exists(), "what another arm left is gone");
    let whole = Vocabularies::whole(&prepared.data, &hashed(&prepared, &plain).1);
    let laid = Laid::of(&prepared, &whole);
    let model = Model::new(plain.backbone, plain.arm, &plain.sizes, &laid.columns, 9).unwrap();
    weights::read(&std::fs::read(out.path().join("ranker.safetensors")).unwrap(), &model.variables).unwrap();
    let served = figures(&model, &laid.material(), &prepared).unwrap();
    assert!((served.auc - trained.test.auc).abs() < 1e-4, "{served:?} {:?}", trained.test);
    assert!((served.log_loss - trained.test.log_loss).abs() < 1e-5, "{served:?} {:?}", trained.test);
}

#[test]
fn hashed_rows_are_those_of_serving_and_new_ids_may_share_them() {
    let prepared = world::prepared(Protocol::Time);
    let mut options = options(Path::new("nowhere"), "ids");
    // So few rows that users share some.
    options.rows.user = 9;
    let (vocabularies, _) = hashed(&prepared, &options);
    let ids = prepared.data.users().ids();
    let row = |number: usize| vocabularies.user.row(number as u32);
    for (a, first) in ids.iter().enumerate() {
        assert!(row(a) > 0 && !vocabularies.user.is_unknown(a as u32), "every user trains");
        for (b, second) in ids.iter().enumerate() {
            let shared = hashed_row("user", first, 9) == hashed_row("user", second, 9);
            assert_eq!(row(a) == row(b), shared, "{first} {second}");
        }
    }
    assert!(vocabularies.rows().user <= 9 + 1);
    // The test's items are new: a row of their own they don't have.
    let by_id = Vocabularies::of(&prepared);
    let mut rows = HashedRows::new(&shape(&prepared, &options).unwrap());
    let hashed = by_id.hashed(&prepared.data, &mut rows);
    let mut shared = 0;
    let new = (0..prepared.data.items().len() as u32).filter(|item| by_id.item.is_unknown(*item));
    for item in new {
        let row = rows.item.row_of(&prepared.data.items().ids()[item as usize]);
        assert_eq!(hashed.item.is_unknown(item), row == 0);
        assert!(row == 0 || hashed.item.row(item) == row);
        shared += usize::from(row > 0);
    }
    assert!(shared > 0, "some of them share a row with one that trains");
}

#[test]
fn sizes_out_of_range_are_refused_before_any_work() {
    let prepared = world::prepared(Protocol::Time);
    let out = tempfile::tempdir().unwrap();
    for (change, part) in [
        (Box::new(|o: &mut Options| o.rows.item = 1) as Box<dyn Fn(&mut Options)>, "item rows is 1"),
        (Box::new(|o: &mut Options| o.sizes.width = 6), "multiple of 4"),
    ] {
        let mut options = options(out.path(), "ids");
        change(&mut options);
        let error = train(&prepared, &options).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("--item-rows"), "{error}");
    }
    assert!(std::fs::read_dir(out.path()).unwrap().next().is_none());
}
