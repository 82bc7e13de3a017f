//! The demo on a few ratings, with the real LLM and the real encoder.

use crate::support::run;
use ictflow_dataflows::config::checked::models;
use ictflow_dataflows::demo::movielens::MovieLens;
use ictflow_dataflows::demo::prequential::{parts, test_from};
use ictflow_dataflows::demo::trained::Files;
use ictflow_dataflows::ranking::dataset::Protocol;
use serde_json::{Value, json};

/// A command that the demo shows, as arguments, and what it printed below.
fn shown<'a>(told: &'a str, command: &str) -> (Vec<&'a str>, &'a str) {
    let start = format!("\nictflow {command} ");
    let at = told.find(&start).unwrap_or_else(|| panic!("no {command} in {told}"));
    let (line, below) = told[at + 1..].split_once('\n').unwrap();
    (line.split(' ').skip(1).collect(), below)
}

/// The weights of the program were trained on the data that the demo replays, and what is measured is just what
/// they were tested on.
#[test]
fn the_weights_are_of_the_data_and_the_test_part_is_that_of_training() {
    let folder = models().join("data/ml-100k");
    assert!(folder.join("ml-100k.inter").is_file(), "{} is missing: run `make models`", folder.display());
    let data = MovieLens::dataset(&folder).unwrap();
    Files::built_in().rankers(&data).unwrap();
    let split = Protocol::Time.split(&data).unwrap();
    let ratings = MovieLens::read(&folder).unwrap().ratings;
    let (before, test) = parts(&ratings, test_from(&data).unwrap());
    assert_eq!(before.len(), split.train.len() + split.valid.len());
    let (users, items) = (data.users().ids(), data.items().ids());
    let trained: Vec<(&str, &str, bool)> = split
        .test
        .iter()
        .map(|sample| {
            let user = data.rows()[sample.row as usize].user as usize;
            (&*users[user], &*items[sample.item as usize], sample.positive)
        })
        .collect();
    let replayed: Vec<(&str, &str, bool)> =
        test.iter().map(|one| (one.user.as_str(), one.item.as_str(), one.positive)).collect();
    assert_eq!(replayed, trained);
}

#[test]
fn a_short_demo_meets_its_thresholds_and_its_repetition_calls_nothing() {
    for file in ["llm/model.gguf", "encoder/model.safetensors", "data/ml-100k/ml-100k.inter"] {
        let path = models().join(file);
        assert!(path.is_file(), "{} is missing: run `make models`", path.display());
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let out = out.to_str().unwrap();
    let told = run(folder.path(), &["demo", "--ratings", "1000", "--out", out]).good();
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(format!("{out}/{name}")).unwrap()).unwrap()
    };
    let summary = read("summary.json");
    assert_eq!(summary["amplification"], json!(1.0), "{summary}");
    assert_eq!(summary["coverage"], json!(1.0), "{summary}");
    assert!(summary["features_live"].as_u64().unwrap() > 0, "{summary}");
    // Vectors of trained weights, made of neighbours: they have no demonstrations, and CoTs are asked for all the same.
    assert_eq!(summary["vector_kind"], json!("attention"), "{summary}");
    assert_eq!(summary["features_full_k"], json!(0), "{summary}");
    let weights = summary["ict_weights"].as_str().unwrap();
    assert!(!weights.contains("untrained"), "{weights}");
    assert!(summary["called"].as_u64().unwrap() >= 4, "{summary}");
    // The demo explains one vector at its end; the command says the same of it, as the README has it.
    let (command, explained) = shown(&told, "explain");
    let lineage = run(folder.path(), &command).good();
    assert!(explained.starts_with(&lineage), "{lineage}\n{explained}");
    assert!(
        lineage.contains("ict by attention") && lineage.contains("this user on other items"),
        "{lineage}"
    );
    assert!(told.contains("what the LLM wrote of labelled examples"), "{told}");
    // It ranks as the command does. Ages are by the clock; places, scores and users aren't.
    let (command, ranked) = shown(&told, "rank");
    let ran = run(folder.path(), &command);
    assert!(!ran.err.contains("warning"), "{}", ran.err);
    let listed = ran.good();
    let lists = |text: &str| -> Vec<String> {
        text.lines()
            .take(listed.lines().count())
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                if line.starts_with("user ") { line.to_owned() } else { words[..2].join(" ") }
            })
            .collect()
    };
    assert_eq!(lists(ranked), lists(&listed));
    assert_eq!(listed.matches("user ").count(), 2, "{listed}");
    // What judges a job by its configuration finds it in the demo's state.
    let config = format!("{out}/job.toml");
    for command in ["verify", "consistency"] {
        let judged = run(folder.path(), &[command, "--config", &config]);
        assert_eq!(judged.code, Some(0), "{command}: {}{}", judged.out, judged.err);
    }
    // The replay ended before the ratings that trained the rankers did.
    assert_eq!(summary["prequential"], Value::Null);
    assert!(told.contains("no ranker was measured"), "{told}");
    let again = run(folder.path(), &["demo", "--again", "--out", out]).good();
    assert!(again.contains("every live vector is equal byte for byte"), "{again}");
    let repeated = read("summary-again.json");
    for none in ["called", "first_calls", "attempts", "embeddings_computed"] {
        assert_eq!(repeated[none], json!(0), "{none}");
    }
    assert_eq!(repeated["features_live"], summary["features_live"]);
}
