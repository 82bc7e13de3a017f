//! `ictflow rank` on the features of a dry run: lists, what is missing, what is refused.

use crate::support::{Ran, dry, parsed, run, tail, world};
use ictflow_operators::ict::TEXT_HIDDEN;
use ictflow_operators::ranking::backbones::{Kind, Settings};
use ictflow_operators::ranking::layers::{Maker, Projection};
use ictflow_operators::ranking::tables::Rows;
use ictflow_operators::ranking::variables::Variables;
use ictflow_operators::ranking::weights::{self, Description, Serving, TextInput, VectorInput};
use ictflow_schemas::feature::VectorKind;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Writes a ranker with drawn weights for vectors of these ICT weights.
fn ranker(path: &Path, d: usize, ict_weights: &str) {
    let text = TextInput { encoder: "hashed:384".to_owned(), width: 384 };
    let rows = Rows { user: 64, item: 64, creator: 16, category: 16 };
    let settings =
        Settings { d, text: true, scalars: 11, vector: true, hidden: vec![16], ..Settings::default() };
    let kind = Kind::DeepFm;
    let mut variables = Variables::new(7);
    rows.create(d, kind.init(), &mut variables).unwrap();
    let maker = &mut Maker { variables: &mut variables, init: kind.init() };
    Projection::new(maker, "field_text", text.width, TEXT_HIDDEN, d).unwrap();
    kind.build(&settings, &mut variables).unwrap();
    let vector = VectorInput { kind: VectorKind::Decoder, ict_weights: ict_weights.to_owned() };
    let serving = Serving {
        labels: true,
        votes: true,
        scalar_scale: 4.0,
        history: 20,
        text: Some(text),
        vector: Some(vector),
    };
    let notes = BTreeMap::new();
    let description = Description { backbone: kind, settings, rows, notes, serving: Some(serving) };
    std::fs::write(path, weights::write(&variables, &description).unwrap()).unwrap();
}

/// The live pairs by user, as `tail` has them.
fn live(features: &[Value]) -> BTreeMap<String, BTreeSet<String>> {
    let mut pairs = BTreeMap::new();
    for line in features {
        let text = |n: usize| line["key"][n].as_str().unwrap().to_owned();
        pairs.insert((text(0), text(1)), line["value"].clone());
    }
    let mut live: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ((user, item), _) in pairs.into_iter().filter(|(_, value)| !value.is_null()) {
        live.entry(user).or_default().insert(item);
    }
    live
}

#[test]
fn live_pairs_are_ranked_with_ages_and_status() {
    let world = world(60);
    let path = world.path();
    run(path, &dry(&[])).good();
    let features = parsed(&tail(path, &["features"]));
    let version = features.iter().find_map(|line| line["value"]["ict_weights"].as_str()).unwrap();
    ranker(&path.join("ranker.safetensors"), 32, version);
    let rank = |more: &[&str]| -> Ran {
        let first = ["rank", "--state", "look", "--model", "ranker.safetensors"];
        run(path, &[&first[..], more].concat())
    };

    let ran = rank(&["--all", "--json", "--top", "100"]);
    assert!(!ran.err.contains("ICT weights"), "{}", ran.err);
    let lists = parsed(&ran.good());
    let live = live(&features);
    assert!(live.len() > 3);
    assert_eq!(lists.len(), live.len());
    for list in &lists {
        let ranked = list["ranked"].as_array().unwrap();
        let items: BTreeSet<String> =
            ranked.iter().map(|one| one["item"].as_str().unwrap().to_owned()).collect();
        assert_eq!(items, live[list["user"].as_str().unwrap()]);
        assert_eq!(list["live"], items.len());
        let scores: Vec<f64> = ranked.iter().map(|one| one["score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| (0.0..=1.0).contains(score)));
        for one in ranked {
            assert!(one["vector_age_ms"].as_i64().unwrap() >= 0, "{one}");
            assert!(one["title"].as_str().unwrap().starts_with("Film "), "{one}");
            let newest = features
                .iter()
                .rfind(|line| line["key"] == serde_json::json!([list["user"], one["item"]]))
                .unwrap();
            assert_eq!(one["cot_status"], newest["value"]["cot_status"]);
            assert_eq!(one["epoch"].to_string(), newest["headers"]["ictflow-epoch"].as_str().unwrap());
        }
    }

    let (user, items) = live.first_key_value().unwrap();
    let table = rank(&["--user", user, "--user", "zz", "--top", "2"]).good();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], format!("user {user}: 2 of {} live pairs", items.len()));
    assert!(lines[1].contains("vector age") && lines[2].trim_start().starts_with('1'), "{table}");
    assert_eq!((lines.len(), lines[4]), (5, "user zz: no live pair"));
}

#[test]
fn what_a_ranker_was_not_trained_with_is_told_and_what_it_cannot_read_refused() {
    let world = world(30);
    let path = world.path();
    run(path, &dry(&[])).good();
    let model = path.join("ranker.safetensors");
    let rank = |more: &[&str]| -> Ran {
        let first = ["rank", "--state", "look", "--model", "ranker.safetensors"];
        run(path, &[&first[..], more].concat())
    };
    let missing = rank(&["--all"]).refused();
    assert!(
        missing.contains("read the ranker ranker.safetensors") && missing.contains("ictflow train"),
        "{missing}"
    );

    ranker(&model, 32, "other");
    let ran = rank(&["--all", "--json"]);
    assert!(ran.err.contains("live vectors are of the ICT weights untrained-"), "{}", ran.err);
    assert!(ran.err.contains("the ranker was trained with other"), "{}", ran.err);
    let pairs: u64 = parsed(&ran.good()).iter().map(|list| list["live"].as_u64().unwrap()).sum();
    let few = rank(&["--all", "--max-pairs", &(pairs - 1).to_string()]).refused();
    assert!(few.contains(&format!("more than {} pairs are live", pairs - 1)), "{few}");

    let files = rank(&["--all", "--publish", "lists"]).refused();
    assert!(files.contains("the job reads files"), "{files}");
    let own = rank(&["--all", "--publish", "features"]).refused();
    assert!(own.contains("features is a topic of the job"), "{own}");
    assert_eq!(rank(&[]).code, Some(2), "whom?");

    ranker(&model, 16, "other");
    let wide = rank(&["--all"]).refused();
    assert!(wide.contains("has 32 numbers, the ranker reads 16"), "{wide}");
    std::fs::write(&model, b"no weights").unwrap();
    let damaged = rank(&["--all"]).refused();
    assert!(damaged.contains("doesn't read"), "{damaged}");
}
