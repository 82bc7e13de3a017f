//! `tail` and each of its filters, held against the unfiltered topic.

use crate::support::{T0, append, dry, parsed, run, tail, world};
use serde_json::{Value, json};
use std::path::Path;

/// The lines of a topic that hold, in the topic's order.
fn which(all: &[Value], holds: impl Fn(&Value) -> bool) -> Vec<Value> {
    all.iter().filter(|line| holds(line)).cloned().collect()
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["tail", "--state", "look"].into_iter().chain(arguments.iter().copied()).collect();
    run(folder, &all).refused()
}

#[test]
fn every_filter() {
    let world = world(90);
    let path = world.path();
    append(
        &path.join("clicks.jsonl"),
        &[
            json!({"key": "u1", "timestamp": T0, "value": {"no": "event"}}),
            json!({"key": "u1", "timestamp": T0, "value": {
                "event_id": "old", "user_id": "u1", "item_id": "m1", "kind": "click", "event_time": T0 - 3_600_000,
            }}),
        ],
    );
    append(
        &path.join("items.jsonl"),
        &[json!({"key": "m1", "value": {"no": "item"}}), json!({"key": "m2", "value": null})],
    );
    run(path, &dry(&[])).good();
    let all = |topic: &str| parsed(&tail(path, &[topic]));
    let (features, examples, dead) = (all("features"), all("examples"), all("dead_letters"));
    let (interactions, items, epochs, cots) = (all("interactions"), all("items"), all("epochs"), all("cot"));
    assert!(features.len() > 30 && dead.len() == 3 && cots.len() > 1 && epochs.len() > 2, "{}", dead.len());
    let epoch = features[0]["headers"]["ictflow-epoch"].as_str().unwrap();
    let number = epoch.parse::<i64>().unwrap();
    let cot_user = cots[0]["value"]["user_id"].as_str().unwrap();
    let since = T0 + 20 * 60_000;
    let since_text = since.to_string();
    let late = |line: &Value| line["timestamp"].as_i64().is_some_and(|at| at >= since);
    let key = |line: &Value, n: usize, is: &str| line["key"][n] == json!(is);
    let table: Vec<(Vec<&str>, Vec<Value>)> = vec![
        (vec!["features", "--user", "u3"], which(&features, |l| key(l, 0, "u3"))),
        (vec!["features", "--item", "m3"], which(&features, |l| key(l, 1, "m3"))),
        (
            vec!["features", "--user", "u3", "--item", "m3"],
            which(&features, |l| key(l, 0, "u3") && key(l, 1, "m3")),
        ),
        (
            vec!["features", "--key", r#"["u3", "m3"]"#],
            which(&features, |l| key(l, 0, "u3") && key(l, 1, "m3")),
        ),
        (
            vec!["features", "--epoch", epoch],
            which(&features, |l| l["headers"]["ictflow-epoch"] == json!(epoch)),
        ),
        (vec!["features", "--from", "5", "--partition", "0"], features[5..].to_vec()),
        (vec!["features", "--last", "3"], features[features.len() - 3..].to_vec()),
        (vec!["features", "--last", "100000"], features.clone()),
        (vec!["features", "--limit", "4"], features[..4].to_vec()),
        (
            vec!["features", "--user", "u3", "--limit", "1", "--from", "1"],
            which(&features[1..], |l| key(l, 0, "u3"))[..1].to_vec(),
        ),
        (vec!["examples", "--user", "u2"], which(&examples, |l| key(l, 0, "u2"))),
        (vec!["examples", "--item", "m4"], which(&examples, |l| l["value"]["item_id"] == json!("m4"))),
        (
            vec!["interactions", "--user", "u2", "--item", "m2"],
            which(&interactions, |l| l["key"] == json!("u2") && l["value"]["item_id"] == json!("m2")),
        ),
        (vec!["interactions", "--since", &since_text], which(&interactions, late)),
        (vec!["interactions", "--since", "2023-11-14T22:33:20Z"], which(&interactions, late)),
        (vec!["interactions", "--since", "2023-11-14T23:33:20.000+01:00"], which(&interactions, late)),
        (vec!["items", "--item", "m1"], which(&items, |l| l["key"] == json!("m1"))),
        (vec!["items", "--key", "m2"], which(&items, |l| l["key"] == json!("m2"))),
        (vec!["candidates", "--user", "u1"], which(&all("candidates"), |l| l["key"] == json!("u1"))),
        (vec!["candidates", "--item", "m7"], all("candidates")),
        (vec!["candidates", "--item", "m9"], vec![]),
        (vec!["cot", "--user", cot_user], which(&cots, |l| l["value"]["user_id"] == json!(cot_user))),
        (vec!["cot", "--key", cots[1]["key"].as_str().unwrap()], cots[1..2].to_vec()),
        (vec!["epochs", "--epoch", epoch], which(&epochs, |l| l["value"]["epoch"] == json!(number))),
        (vec!["progress", "--key", "ictflow", "--last", "1"], vec![all("progress").pop().unwrap()]),
        (vec!["dead_letters", "--reason", "late"], which(&dead, |l| l["value"]["reason"] == json!("late"))),
        (
            vec!["dead_letters", "--reason", "unreadable", "--item", "m1"],
            which(&dead, |l| l["value"]["topic"] == json!("items")),
        ),
        (
            vec!["dead_letters", "--user", "u1"],
            which(&dead, |l| l["value"]["topic"] == json!("interactions")),
        ),
        (vec!["embeddings", "--limit", "2"], all("embeddings")[..2].to_vec()),
    ];
    for (arguments, expected) in table {
        assert!(!expected.is_empty() || arguments[2] == "m9", "{arguments:?} is empty");
        assert_eq!(parsed(&tail(path, &arguments)), expected, "{arguments:?}");
    }
    let values = parsed(&tail(path, &["items", "--value"]));
    assert_eq!(values.last(), Some(&Value::Null));
    assert_eq!(values[0]["title"], json!("Film 0"));
    assert!(values.contains(&json!({"undecodable": items[8]["undecodable"]})), "{values:?}");
    // What stands there, then what comes: ended by --limit.
    let more = tail(path, &["features", "--follow", "--limit", "2"]);
    assert_eq!(parsed(&more), features[..2]);
}

#[test]
fn what_does_not_apply_is_an_error_and_not_silence() {
    let world = world(6);
    let path = world.path();
    run(path, &dry(&[])).good();
    for (arguments, says) in [
        (&["items", "--user", "u1"][..], "--user doesn't apply to items"),
        (&["embeddings", "--item", "m1"], "--item doesn't apply to embeddings"),
        (&["interactions", "--epoch", "1"], "--epoch doesn't apply to interactions"),
        (&["features", "--reason", "late"], "--reason doesn't apply to features"),
        (&["dead_letters", "--reason", "tardy"], "unknown variant `tardy`"),
        (&["features", "--partition", "1"], "has no partition 1"),
        (&["features", "--from", "100000"], "ends at offset"),
        (&["feature"], "there is no topic feature, but interactions"),
    ] {
        let message = refused(path, arguments);
        assert!(message.contains(says), "{message}");
    }
    let both = refused(path, &["items", "--user", "u", "--epoch", "1"]);
    assert!(both.contains("--user") && both.contains("--epoch"), "{both}");
    for arguments in [
        &["--since", "yesterday"][..],
        &["--limit", "0"],
        &["--last", "0"],
        &["--last", "1000001"],
        &["--last", "1", "--limit", "1"],
        &["--from", "-1"],
        &["--raw", "--value"],
    ] {
        let all = [&["tail", "--state", "look"], arguments].concat();
        let ran = run(path, &all);
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.err);
    }
    let message = run(path, &["tail", "--state", "nowhere"]).refused();
    assert!(message.contains("nowhere"), "{message}");
    assert!(run(path, &["tail"]).refused().contains("give --config FILE or --state DIR"));
    let help = run(path, &["tail", "--help"]).good();
    for option in [
        "--user",
        "--item",
        "--key",
        "--partition",
        "--from",
        "--since",
        "--epoch",
        "--reason",
        "--last",
        "--limit",
        "--value",
    ] {
        assert!(help.contains(option), "{option}");
    }
}
