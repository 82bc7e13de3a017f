//! Backfills, promote and rollback with the binary.

use crate::support::{append, dry, events, parsed, recall, run, said, spawn, tail, until, world};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// A command on the job of the small world.
fn on<'a>(command: &[&'a str]) -> Vec<&'a str> {
    [command, &["--state", "look"]].concat()
}

fn topics(lines: &str) -> Vec<String> {
    let mut names: Vec<String> =
        parsed(lines).iter().map(|line| line["topic"].as_str().unwrap().to_owned()).collect();
    names.dedup();
    names
}

/// The live pairs that the subscriber's recipe finds in what `tail` prints.
fn read(folder: &Path, lines: &str) -> u64 {
    std::fs::write(folder.join("lines.jsonl"), lines).unwrap();
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/reader.py");
    let out = Command::new("python3")
        .arg(reader)
        .args(["--stdin", "--quiet"])
        .stdin(std::fs::File::open(folder.join("lines.jsonl")).unwrap())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice::<Value>(&out.stdout).unwrap()["live"].as_u64().unwrap()
}

/// By key, the newest values of printed lines, without tombstones.
fn newest(lines: &str) -> std::collections::BTreeMap<String, Value> {
    let mut values = std::collections::BTreeMap::new();
    for line in parsed(lines) {
        match line["value"].is_null() {
            true => values.remove(&line["key"].to_string()),
            false => values.insert(line["key"].to_string(), line["value"].clone()),
        };
    }
    values
}

#[test]
fn a_backfill_is_compared_promoted_followed_and_rolled_back() {
    let world = world(60);
    let path = world.path();
    run(path, &dry(&["--features", "live.jsonl"])).good();
    let ran = run(path, &on(&["backfill", "again", "--epoch-events", "50"]));
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("parity with the live job's epoch") && ran.out.ends_with("  equal\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.err.contains("120 interactions in") && ran.err.contains("0 keys asked, 0 texts embedded"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("ictflow promote again"), "{}", ran.err);
    let ran = run(path, &on(&["backfill", "again", "--json"]));
    assert!(ran.err.contains("it has ended with epoch"), "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&report["exact"], &report["features"]["differ"]), (&json!(true), &json!(0)));
    assert_eq!(report["features"]["equal"], json!(newest(&tail(path, &[])).len()));
    assert_eq!(topics(&tail(path, &[])), ["features"]);

    let told = run(path, &on(&["promote", "again"])).good();
    assert!(told.contains("on the job writes features.again and examples.again\n"), "{told}");
    assert!(run(path, &on(&["promote", "again"])).good().contains("already"));
    let before = newest(&tail(path, &[]));
    assert_eq!(
        (topics(&tail(path, &[])), topics(&tail(path, &["examples"]))),
        (vec!["features.again".to_owned()], vec!["examples.again".to_owned()])
    );
    // The job goes on there; a copy of the topic before isn't mixed with it.
    append(&path.join("clicks.jsonl"), &events(60..72));
    append(&path.join("recall.jsonl"), &recall(72));
    let refused = run(path, &dry(&["--features", "live.jsonl"])).refused();
    assert!(refused.contains("features"), "{refused}");
    let out = run(path, &dry(&["--features", "-"])).good();
    assert_eq!(topics(&out), ["features.again"]);
    let after = newest(&tail(path, &[]));
    assert_ne!(after, before);
    assert_eq!(
        read(path, &tail(path, &[])),
        after.len() as u64,
        "a reader takes what the job wrote after the backfill"
    );
    let exported = run(path, &on(&["export", "--out", "set.parquet", "--json"])).good();
    let exported: Value = serde_json::from_str(&exported).unwrap();
    // What the job writes now, and nothing of the topic before.
    assert_eq!(exported["rows"], json!(newest(&tail(path, &["examples"])).len()));
    assert_eq!(exported["last"], parsed(&tail(path, &["examples", "--last", "1"]))[0]["value"]["event_time"]);
    let pair: Vec<String> = serde_json::from_str(after.keys().next().unwrap()).unwrap();
    let explained = run(path, &on(&["explain", &pair[0], &pair[1], "--json"])).good();
    assert!(explained.contains(&pair[1]));

    let told = run(path, &on(&["rollback"])).good();
    assert!(told.contains("on the job writes features and examples\n"), "{told}");
    assert!(run(path, &on(&["rollback"])).good().contains("already"));
    assert_eq!(newest(&tail(path, &[])), after);
    run(path, &dry(&["--features", "live.jsonl"])).good();
    let refused = run(path, &on(&["backfill", "again"])).refused();
    assert!(refused.contains("it was promoted"), "{refused}");
}

#[test]
fn what_is_asked_of_a_backfill_is_checked_first() {
    let world = world(30);
    let path = world.path();
    // A mistyped place has no receipt.
    let refused = run(path, &["erase", "u1", "--state", "nowhere"]).refused();
    assert!(refused.contains("there is none") || refused.contains("nowhere"), "{refused}");
    let refused = run(path, &on(&["backfill", "early"])).refused();
    assert!(refused.contains("committed no epoch") || refused.contains("has the job run"), "{refused}");
    run(path, &dry(&[])).good();
    for (arguments, says) in [
        (&["backfill", "a.b"][..], "is no name"),
        (&["backfill", "a", "--to", "tomorrow"], "expected milliseconds"),
        (&["backfill", "a", "--to", "epoch:0"], "expected epoch:N"),
        (&["backfill", "a", "--to", "epoch:9999"], "has committed epoch"),
        (&["backfill", "a", "--from", "epoch:1"], "takes no epoch"),
        (&["backfill", "a", "--from", "offset:items/0=1"], "not of items"),
        (&["backfill", "a", "--collection", "c"], "no store of points"),
        (&["promote", "a"], "there is no backfill"),
        (&["rollback"], "never promoted"),
    ] {
        let refused = run(path, &on(arguments)).refused();
        assert!(refused.contains(says), "{arguments:?}: {refused}");
    }
    for wrong in ["0", "1000001", "many"] {
        assert_eq!(run(path, &on(&["backfill", "a", "--epoch-events", wrong])).code, Some(2), "{wrong}");
    }
    // Not equal: shorter than what the job has.
    let ran = run(path, &on(&["backfill", "short", "--to", "offset:interactions/0=20"]));
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.out.contains("differences are expected") && ran.out.ends_with("  not equal\n"),
        "{}",
        ran.out
    );
    assert!(run(path, &on(&["promote", "short"])).refused().contains("aren't equal"));
    assert!(run(path, &on(&["backfill", "short", "--to", "epoch:1"])).refused().contains("another --to"));
}

#[test]
fn a_run_beside_it_is_fenced_by_a_promote_and_follows_when_it_starts_again() {
    let world = world(30);
    let path = world.path();
    let mut child = spawn(path, &dry(&["--follow"]), Stdio::null());
    until(path, "a feature", || {
        path.join("look/topics.db").exists()
            && run(path, &on(&["tail", "features", "--last", "1"])).code == Some(0)
            && !tail(path, &["--last", "1"]).is_empty()
    });
    let ran = run(path, &on(&["backfill", "beside"]));
    assert!(ran.out.contains("parity with the live job's epoch"), "{}{}", ran.out, ran.err);
    run(path, &on(&["promote", "beside", "--force"])).good();
    // Nothing comes: an idle run learns of its successor all the same.
    let status = crate::support::ended(path, &mut child);
    assert_eq!(status.code(), Some(1), "{}", said(path));
    assert!(said(path).contains("fenced"), "{}", said(path));
    append(&path.join("clicks.jsonl"), &events(30..36));
    let out = run(path, &dry(&["--examples", "-"])).good();
    assert_eq!(topics(&out), ["examples.beside"]);
}
