//! `ictflow cots`: asked, killed, gone on with, judged, without a model.

use crate::evaluate::{folder, ratings};
use crate::support::{ictflow, parsed, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const BASE: [&str; 11] = [
    "cots",
    "--data",
    "d",
    "--encoder",
    "hashed",
    "--title",
    "title",
    "--categories",
    "class",
    "--generator",
    "template",
];

/// What a command said, with a cache of its own.
fn cots(folder: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let arguments = [&BASE[..], more].concat();
    let output = ictflow(folder, &arguments).env("ICTFLOW_MODELS", folder.join("cache")).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    (output.status.code(), out, err)
}

fn good(folder: &Path, more: &[&str]) -> String {
    let (code, out, err) = cots(folder, more);
    assert_eq!(code, Some(0), "{err}");
    out
}

fn log(folder: &Path) -> PathBuf {
    folder.join("cache/cots/d.jsonl")
}

fn keys(path: &Path) -> Vec<String> {
    parsed(&text(path)).iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_run_that_was_killed_goes_on_where_it_stood() {
    let folder = folder(&ratings());
    let out = good(folder.path(), &["--count", "12"]);
    assert!(out.starts_with("the first 12 of 460 examples by template with guided-"), "{out}");
    assert!(out.contains("made 12, failed 0; before this run made 0, failed 0; left by a budget 0"), "{out}");
    for part in ["12 calls, 0 tokens read", "the quality of 12 texts", "relevance", "shuffled  template"] {
        assert!(out.contains(part), "{part:?} isn't in {out}");
    }
    let whole = text(&log(folder.path()));
    let lines: Vec<Value> = parsed(&whole);
    assert_eq!(lines.len(), 12);
    for line in &lines {
        let record = &line["value"];
        assert_eq!((record["status"].as_str(), record["llm_model"].as_str()), (Some("ok"), Some("template")));
        assert!(["positive", "negative"].contains(&record["decision"].as_str().unwrap()), "{record}");
        // No part of a text is printed.
        assert!(!out.contains(record["text"].as_str().unwrap().lines().next().unwrap()));
    }

    // As a kill leaves it: five lines and a half. The next run writes the very answers that are missing.
    let half: usize = whole.lines().take(5).map(|line| line.len() + 1).sum();
    fs::write(log(folder.path()), &whole[..half + 60]).unwrap();
    let (code, out, err) = cots(folder.path(), &["--count", "12"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("the log ended in a torn line of 60 bytes, which was dropped"), "{err}");
    assert!(out.contains("made 7, failed 0; before this run made 5, failed 0"), "{out}");
    let again: Vec<Value> = parsed(&text(&log(folder.path())));
    let told = |lines: &[Value]| -> Vec<(Value, Value)> {
        lines.iter().map(|line| (line["key"].clone(), line["value"]["text"].clone())).collect()
    };
    assert_eq!(told(&again), told(&lines));

    // More are added to these; the same ones aren't asked again.
    let out = good(folder.path(), &["--count", "20", "--judge", "0"]);
    assert!(out.contains("made 8, failed 0; before this run made 12"), "{out}");
    assert!(!out.contains("quality"), "{out}");
    assert_eq!(keys(&log(folder.path()))[..12], keys_of(&lines)[..]);
    let out = good(folder.path(), &["--count", "20"]);
    assert!(out.contains("made 0, failed 0; before this run made 20") && out.contains("20 texts"), "{out}");
}

fn keys_of(lines: &[Value]) -> Vec<String> {
    lines.iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn budgets_hold_and_threads_make_the_same_texts() {
    let folder = folder(&ratings());
    for budget in ["--max-tokens", "--max-seconds"] {
        let out = good(folder.path(), &["--count", "9", budget, "0"]);
        assert!(out.contains("made 0, failed 0;") && out.contains("left by a budget 9"), "{budget}: {out}");
    }
    assert_eq!(text(&log(folder.path())), "");
    good(folder.path(), &["--count", "40", "--log", "one.jsonl"]);
    good(folder.path(), &["--count", "40", "--threads", "3", "--log", "three.jsonl"]);
    let sorted = |file: &str| {
        let mut keys = keys(&folder.path().join(file));
        keys.sort_unstable();
        keys
    };
    assert_eq!(sorted("one.jsonl").len(), 40);
    assert_eq!(sorted("one.jsonl"), sorted("three.jsonl"));
    // All that may be asked, where more are wanted.
    let out = good(folder.path(), &["--count", "1000", "--judge", "5"]);
    assert!(
        out.contains("the first 460 of 460") && out.contains("made 460") && out.contains("5 texts"),
        "{out}"
    );
}

#[test]
fn a_label_free_text_says_nothing_of_the_label_and_stands_beside_the_other() {
    let folder = folder(&ratings());
    good(folder.path(), &["--count", "10"]);
    let out = good(folder.path(), &["--count", "10", "--label-free"]);
    assert!(out.contains("guided-free-") && out.contains("no decision stated"), "{out}");
    assert!(out.contains("made 10, failed 0; before this run made 0"), "{out}");
    let lines = parsed(&text(&log(folder.path())));
    let (own, free) = lines.split_at(10);
    for (own, free) in own.iter().zip(free) {
        let (own, free) = (&own["value"], &free["value"]);
        assert_eq!(
            (&own["user_id"], &own["item_id"]),
            (&free["user_id"], &free["item_id"]),
            "the same examples"
        );
        assert_eq!(free["decision"], "none");
        let liked = |text: &Value| text.as_str().unwrap().contains("The viewer ");
        assert!(liked(&own["text"]) && !liked(&free["text"]), "{free}");
    }
    let out = good(folder.path(), &["--count", "10"]);
    assert!(out.contains("before this run made 10"), "{out}");
}

#[test]
fn what_is_wrong_reaches_the_user_with_a_hint() {
    let folder = folder(&ratings());
    fs::write(folder.path().join("bad.jsonl"), "{\"key\": \"x\"}\n").unwrap();
    fs::write(folder.path().join("job.toml"), "[generator]\nkind = 'openai'\n").unwrap();
    for (more, parts) in [
        (vec!["--log", "bad.jsonl"], vec!["line 1 isn't a record of cot", "--log"]),
        (vec!["--config", "job.toml"], vec!["[generator.openai] is missing"]),
        (vec!["--config", "none.toml"], vec!["none.toml", "--config"]),
        (vec!["--log", "d"], vec!["open the CoT log d", "--log"]),
    ] {
        let (code, _, err) = cots(folder.path(), &more);
        let last = err.lines().last().unwrap_or_default();
        assert_eq!(code, Some(1), "{more:?}: {err}");
        assert!(last.starts_with("ictflow: ") && last.ends_with(')'), "{more:?}: {err}");
        for part in parts {
            assert!(last.contains(part), "{more:?}: {part:?} isn't in {last:?}");
        }
    }
    let arguments = ["cots", "--data", "d", "--encoder", "hashed", "--generator"];
    for (generator, part) in [("openai", "--config"), ("local", "make models")] {
        let mut command = ictflow(folder.path(), &[&arguments[..], &[generator]].concat());
        let output = command.env("ICTFLOW_MODELS", folder.path().join("cache")).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.lines().last().unwrap_or_default().contains(part), "{err}");
    }
}
