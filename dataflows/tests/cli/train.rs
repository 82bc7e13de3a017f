//! `ictflow train`: a small folder end to end, a kill in the middle, and folders that are malformed.

use crate::evaluate::{HEAD, folder, ratings};
use crate::support::{LIMIT, Ran, dry, ictflow, run, world};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A small training. Many epochs and no patience, so that a kill finds it at work.
const SMALL: [&str; 23] = [
    "train",
    "--data",
    "d",
    "--encoder",
    "hashed",
    "--title",
    "title",
    "--categories",
    "class",
    "--width",
    "8",
    "--hidden",
    "16",
    "--batch",
    "32",
    "--epochs",
    "40",
    "--patience",
    "1000",
    "--user-rows",
    "64",
    "--item-rows",
    "64",
];

fn small<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL[..], &["--creator-rows", "4", "--category-rows", "8", "--out", out], more].concat()
}

/// Runs with a cache of its own, so that no model is needed.
fn train(folder: &Path, arguments: &[&str]) -> Ran {
    let output = ictflow(folder, arguments).env("ICTFLOW_MODELS", folder.join("cache")).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn a_killed_training_goes_on_to_the_bytes_of_an_undisturbed_one() {
    let folder = folder(&ratings());
    let arguments = small("out", &["--date", "2026-11-29"]);
    let whole = train(folder.path(), &arguments);
    assert!(whole.err.contains("epoch 40: loss"), "plain lines off a terminal: {}", whole.err);
    let printed = whole.good();
    assert!(printed.starts_with("validation: AUC 0.") && printed.contains("\ntest: AUC 0."), "{printed}");
    let out = folder.path().join("out");
    let expected = files(&out);
    let card = String::from_utf8(expected["card.md"].clone()).unwrap();
    for part in
        ["# Ranker deepfm with attention+votes", "Date: 2026-11-29.", "rating >= 4", "ictflow train --data d"]
    {
        assert!(card.contains(part), "{part:?} isn't in {card}");
    }
    fs::remove_dir_all(&out).unwrap();

    let mut kills = 0;
    let begun = Instant::now();
    while kills < 2 {
        let mut command = ictflow(folder.path(), &arguments);
        command.env("ICTFLOW_MODELS", folder.path().join("cache"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let state = out.join("checkpoint/state.safetensors");
        let length = |path: &Path| fs::read(path).map(|bytes| blake(&bytes)).ok();
        let before = length(&state);
        while length(&state) == before {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
            assert!(begun.elapsed() < LIMIT, "no checkpoint was written");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!out.join("card.md").exists(), "it had ended");
        kills += 1;
    }
    let again = train(folder.path(), &arguments);
    assert!(again.err.contains("goes on after"), "{}", again.err);
    assert_eq!(again.good(), printed);
    let found = files(&out);
    let differ = |name: &&String| expected.get(*name) != found.get(*name);
    assert!(
        expected == found,
        "{:?}",
        expected.keys().chain(found.keys()).filter(differ).collect::<Vec<_>>()
    );

    let other = train(folder.path(), &small("out", &["--seed", "2"])).refused();
    assert!(other.contains("seed is 1 there and 2 here") && other.contains("--restart"), "{other}");
}

/// What a job published, read of its topics, and of a training set with the same examples.
#[test]
fn a_jobs_examples_and_their_export_train_the_same_ranker() {
    let world = world(300);
    let path = world.path();
    run(path, &dry(&[])).good();
    fs::write(path.join("job.toml"), "state = \"look\"\n").unwrap();
    let exported: Value = serde_json::from_str(
        &run(path, &["export", "--config", "job.toml", "--out", "set.parquet", "--json"]).good(),
    )
    .unwrap();
    assert!(exported["rows"].as_u64() > Some(200), "{exported}");
    let quick = |from: [&'static str; 2], out: &'static str| {
        let arguments = [
            &["train"][..],
            &from,
            &["--encoder", "hashed", "--width", "4", "--epochs", "1", "--checks", "1", "--user-rows", "32"],
            &["--item-rows", "32", "--creator-rows", "2", "--category-rows", "8", "--out", out],
        ];
        train(path, &arguments.concat()).good()
    };
    let printed = quick(["--examples", "job.toml"], "topics");
    assert_eq!(quick(["--parquet", "set.parquet"], "file"), printed);
    let (topics, file) = (files(&path.join("topics")), files(&path.join("file")));
    for name in ["ranker.safetensors", "ict.safetensors", "checkpoint/state.safetensors"] {
        assert!(topics[name] == file[name], "{name}");
    }
    let card = |files: &BTreeMap<String, Vec<u8>>| String::from_utf8(files["card.md"].clone()).unwrap();
    assert!(card(&topics).contains("topics of the job"), "{}", card(&topics));
    assert!(card(&file).contains("training set `set.parquet`"), "{}", card(&file));

    for (from, part) in [
        (["--parquet", "clicks.jsonl"], "clicks.jsonl"),
        (["--parquet", "none.parquet"], "none.parquet"),
        (["--examples", "none.toml"], "none.toml"),
    ] {
        let refused = train(path, &[&["train", "--encoder", "hashed"][..], &from].concat()).refused();
        assert!(refused.contains(part), "{refused}");
    }
}

/// Tells contents apart.
fn blake(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn what_is_malformed_reaches_the_user_with_a_hint() {
    let all = ratings();
    for (what, inter, parts) in [
        ("empty", String::new(), vec!["d.inter", "empty"]),
        ("no rows", HEAD.to_owned(), vec!["a header and no rows"]),
        ("no column", all.replace("rating:float", "stars:float"), vec!["rating"]),
        ("NaN", all.replacen("\t5\t", "\tNaN\t", 1), vec!["line ", "NaN"]),
        ("one class", all.replace("\t2\t", "\t5\t"), vec!["positive", "threshold"]),
        (
            "few rows",
            all.lines().take(4).map(|line| format!("{line}\n")).collect(),
            vec!["has no samples of 3 labelled rows"],
        ),
    ] {
        let folder = folder(&inter);
        let refused = train(folder.path(), &small("out", &[])).refused();
        for part in parts {
            assert!(refused.contains(part), "{what}: {part:?} isn't in {refused:?}");
        }
        assert!(!folder.path().join("out").exists(), "{what}: nothing is written");
    }
    let folder = folder(&all);
    for (more, part) in [
        (["--arm", "paper?"], "there is no arm \"paper?\" among ids"),
        (["--label", "rating>"], "label rule"),
        (["--creator", "brand"], "brand"),
        (["--creator-rows", "1"], "creator rows is 1"),
    ] {
        let mut arguments = small("out", &more);
        if more[0] == "--creator-rows" {
            arguments.retain(|argument| *argument != "4");
            let first = arguments.iter().position(|argument| *argument == "--creator-rows").unwrap();
            arguments.remove(first);
        }
        let refused = train(folder.path(), &arguments).refused();
        assert!(refused.contains(part), "{refused}");
    }
    // Where the data comes from is asked for, once.
    let none = train(folder.path(), &["train", "--out", "out"]);
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("--data"), "{}", none.err);
}
