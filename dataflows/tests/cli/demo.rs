//! The demo on a few ratings, with the real LLM and the real encoder.

use crate::support::run;
use ictflow_dataflows::config::checked::models;
use serde_json::{Value, json};

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
    assert_eq!(summary["features_full_k"], summary["features_live"], "{summary}");
    assert!(summary["called"].as_u64().unwrap() >= 4, "{summary}");
    // The demo explains one vector at its end; the command says the same of it, as the README has it.
    let (_, explained) = told.split_once("\nictflow explain ").unwrap_or_else(|| panic!("{told}"));
    let (pair, explained) = explained.split_once('\n').unwrap();
    let (user, item) = pair.split_once(' ').unwrap();
    let lineage = run(folder.path(), &["explain", "--state", out, user, item]).good();
    assert!(explained.starts_with(&lineage), "{lineage}\n{explained}");
    assert!(lineage.contains("CoT by ") && lineage.contains("the prompt's last message:"), "{lineage}");
    let again = run(folder.path(), &["demo", "--again", "--out", out]).good();
    assert!(again.contains("every live vector is equal byte for byte"), "{again}");
    let repeated = read("summary-again.json");
    for none in ["called", "first_calls", "attempts", "embeddings_computed"] {
        assert_eq!(repeated[none], json!(0), "{none}");
    }
    assert_eq!(repeated["features_live"], summary["features_live"]);
}
