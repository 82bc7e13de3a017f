//! `ictflow export` of a dry run: rows, what is said, an erased user, what is refused. That `train` learns the
//! same of it: `train.rs`.

use crate::support::{T0, USERS, append, dry, events, parsed, run, tail, world};
use ictflow_connectors::parquet::{Reader, Row};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::item::Item;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const STEPS: usize = 60;

fn export(folder: &Path, more: &[&str]) -> crate::support::Ran {
    run(folder, &[&["export", "--state", "look"][..], more].concat())
}

fn rows(path: &Path) -> Vec<Row> {
    let mut reader = Reader::open(path).unwrap();
    reader.rows().unwrap()
}

/// The examples that stand on the topic, in the order of events.
fn standing(folder: &Path) -> Vec<ExampleRecord> {
    let mut newest = BTreeMap::new();
    for line in parsed(&tail(folder, &["examples"])) {
        let value: Option<ExampleRecord> = serde_json::from_value(line["value"].clone()).unwrap();
        newest.insert(line["key"].to_string(), value);
    }
    let mut examples: Vec<ExampleRecord> = newest.into_values().flatten().collect();
    examples.sort_by_key(|example| {
        (example.event_time, example.user_id.clone().into_bytes(), example.event_id.clone().into_bytes())
    });
    examples
}

/// What the catalog of the small world says of an item.
fn film(item: &str) -> Item {
    let lines = crate::support::items();
    let line = lines.iter().find(|line| line["key"] == item).unwrap();
    serde_json::from_value(line["value"].clone()).unwrap()
}

#[test]
fn a_jobs_examples_are_rows_with_their_items_and_what_it_says_of_them_is_true() {
    let world = world(STEPS);
    let path = world.path();
    // An impression without an outcome: nobody knows its label yet.
    append(
        &path.join("clicks.jsonl"),
        &events(STEPS..STEPS + 1)
            .into_iter()
            .filter(|line| line["value"]["kind"] == "impression")
            .collect::<Vec<_>>(),
    );
    run(path, &dry(&[])).good();
    let examples = standing(path);
    assert_eq!(examples.len(), STEPS);
    let told = export(path, &["--out", "set.parquet"]).good();
    let found = rows(&path.join("set.parquet"));
    let expected: Vec<Row> =
        examples.into_iter().map(|example| Row { item: Some(film(&example.item_id)), example }).collect();
    assert_eq!(found, expected);
    for row in &found {
        let Row { example, .. } = row;
        assert!(example.history.iter().all(|entry| entry.event_time < example.event_time), "{example:?}");
        assert_eq!(example.label_time, example.event_time + 1_000);
    }
    let bytes = std::fs::read(path.join("set.parquet")).unwrap();
    let line = format!(
        "set.parquet: 60 rows, 30 positive, 0 implicit negatives; {USERS} users, 8 items; \
         2023-11-14T22:13:20.000Z to 2023-11-14T23:12:20.000Z; {} bytes\n",
        bytes.len()
    );
    assert!(told.starts_with(&line), "{told}");
    // An attribution window of 30 minutes and a lateness of 10 before the newest event.
    let known = "labels of all impressions before 2023-11-14T22:43:20.000Z are known, \
                 those before 2023-11-14T22:33:20.000Z final: of later ones";
    assert!(told.contains("\n0 rows say what was served with their impression\n"), "{told}");
    assert!(told.contains(known), "{told}");

    let known = T0 + 30 * 60_000;
    let until = known.to_string();
    let part = export(
        path,
        &["--out", "part.parquet", "--json", "--until", &until, "--from", "2023-11-14T22:23:20Z"],
    );
    let part: Value = serde_json::from_str(&part.good()).unwrap();
    assert_eq!((&part["rows"], &part["first"]), (&json!(20), &json!(T0 + 600_000)), "{part}");
    assert_eq!(part["last"], json!(known - 60_000));
    assert_eq!(part["settled"], json!({"known_before": known, "final_before": known - 600_000}));
    assert_eq!(part["bytes"], json!(std::fs::metadata(path.join("part.parquet")).unwrap().len()));
    let whole = export(path, &["--out", "part.parquet", "--until", &until]).good();
    assert!(whole.contains("are known") && !whole.contains("of later ones"), "{whole}");
    let two = export(path, &["--out", "part.parquet", "--user", "u1", "--user", "u4"]).good();
    assert!(two.contains("20 rows") && two.contains("2 users"), "{two}");
    let only = |user: &str| found.iter().filter(|row| row.example.user_id == user).count();
    assert_eq!(rows(&path.join("part.parquet")).len(), only("u1") + only("u4"));

    // The same topics, the same bytes.
    export(path, &["--out", "again.parquet"]).good();
    assert!(std::fs::read(path.join("again.parquet")).unwrap() == bytes);
}

#[test]
fn an_erased_user_is_in_no_later_file() {
    let world = world(STEPS);
    let path = world.path();
    run(path, &dry(&[])).good();
    export(path, &["--out", "set.parquet"]).good();
    let before = rows(&path.join("set.parquet"));
    assert!(before.iter().any(|row| row.example.user_id == "u1"));
    run(path, &["erase", "u1", "--state", "look"]).good();
    let told = export(path, &["--out", "set.parquet"]).good();
    assert!(told.contains(&format!("{} users", USERS - 1)), "{told}");
    let others: Vec<Row> = before.into_iter().filter(|row| row.example.user_id != "u1").collect();
    assert!(rows(&path.join("set.parquet")) == others);
    let refused = export(path, &["--out", "one.parquet", "--user", "u1"]).refused();
    assert!(refused.contains("no example is selected"), "{refused}");
    assert!(!path.join("one.parquet").exists() && !path.join("one.parquet.part").exists());
}

#[test]
fn what_is_asked_is_checked_first() {
    let world = world(6);
    let path = world.path();
    let refused = export(path, &["--out", "set.parquet"]).refused();
    assert!(refused.contains("look"), "{refused}");
    let refused = run(path, &["export", "--out", "set.parquet"]).refused();
    assert!(refused.contains("give --config FILE or --state DIR"), "{refused}");
    run(path, &dry(&[])).good();
    for (arguments, says) in [
        (&["--out", "clicks.jsonl"][..], "isn't Parquet"),
        (&["--out", "look"], "it is a folder"),
        (&["--out", "none/set.parquet"], "name a file in a folder"),
        (&["--out", "set.parquet", "--from", "5", "--until", "5"], "isn't before --until"),
        (&["--out", "set.parquet", "--until", "5"], "no example is selected"),
    ] {
        let refused = export(path, arguments).refused();
        assert!(refused.contains(says), "{arguments:?}: {refused}");
    }
    for wrong in [&["--out", "set.parquet", "--from", "yesterday"][..], &[]] {
        assert_eq!(export(path, wrong).code, Some(2), "{wrong:?}");
    }
    assert!(!path.join("set.parquet").exists() && !path.join("set.parquet.part").exists());
    assert_eq!(parsed(&crate::support::text(&path.join("clicks.jsonl"))).len(), 12);
}
