//! `dead-letters`: the table, its filters, what it keeps to itself; replay on topics and on files.

use crate::support::{T0, append, dry, parsed, run, snapshot, tail, world};
use ictflow_connectors::local::{FILE_NAME, Local};
use ictflow_connectors::topics::Topics;
use ictflow_schemas::framing::{Partitioner, hex};
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use serde_json::{Value, json};
use std::path::Path;

fn list(folder: &Path, arguments: &[&str]) -> String {
    let all: Vec<&str> =
        ["dead-letters", "list", "--state", "look"].into_iter().chain(arguments.iter().copied()).collect();
    run(folder, &all).good()
}

/// The input files of a small world with three refused lines: two of u1, one of m1.
fn damaged() -> tempfile::TempDir {
    let world = world(90);
    let path = world.path();
    append(
        &path.join("clicks.jsonl"),
        &[
            json!({"key": "u1", "timestamp": T0, "value": {"secret": "Kq7"}}),
            json!({"key": "u1", "timestamp": T0, "value": {
                "event_id": "old", "user_id": "u1", "item_id": "m1", "kind": "click", "event_time": T0 - 3_600_000,
            }}),
        ],
    );
    append(&path.join("items.jsonl"), &[json!({"key": "m1", "value": {"no": "item"}})]);
    run(path, &dry(&[])).good();
    world
}

#[test]
fn a_list_has_places_reasons_and_sizes_and_no_payload_unless_asked() {
    let world = damaged();
    let path = world.path();
    let before = snapshot(path);
    let text = list(path, &[]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("source "), "{text}");
    let row = |place: &str| -> Vec<&str> {
        let line =
            lines.iter().find(|line| line.starts_with(place)).unwrap_or_else(|| panic!("{place}: {text}"));
        line.split_whitespace().collect()
    };
    let item = row("items[0]@8 ");
    assert_eq!((item[1], item[2], item[4]), ("accept", "unreadable", "13"), "{text}");
    assert!(item[3].starts_with("20") && item[3].ends_with('Z'), "{text}");
    assert_eq!(row("interactions[0]@180 ")[2], "unreadable");
    assert_eq!(row("interactions[0]@181 ")[2], "late");
    assert!(text.contains("3 dead letters:") && text.contains("       2 unreadable "), "{text}");
    assert!(text.contains("       1 late ") && text.contains("lateness_ms"), "{text}");
    for personal in ["Kq7", "u1", "old", &hex(b"Kq7")] {
        assert!(!text.contains(personal), "{personal}: {text}");
    }
    let jsons = parsed(&list(path, &["--json"]));
    let all = parsed(&tail(path, &["dead_letters"]));
    assert_eq!(jsons.len(), all.len());
    for (line, letter) in jsons.iter().zip(&all) {
        let value = &letter["value"];
        for field in ["topic", "partition", "offset", "stage", "reason"] {
            assert_eq!(line[field], value[field], "{field}");
        }
        assert_eq!(
            line["payload_bytes"].as_u64().unwrap() as usize * 2,
            value["payload"].as_str().unwrap().len()
        );
        assert_eq!(line["epoch"].to_string(), letter["headers"]["ictflow-epoch"].as_str().unwrap());
        assert_eq!(
            line["committed_at"].to_string(),
            letter["headers"]["ictflow-published-at"].as_str().unwrap()
        );
        assert!(line.get("payload").is_none() && line.get("key").is_none(), "{line}");
    }
    let whole = parsed(&list(path, &["--json", "--payload"]));
    for (line, letter) in whole.iter().zip(&all) {
        assert_eq!((&line["payload"], &line["key"]), (&letter["value"]["payload"], &letter["value"]["key"]));
    }
    assert!(list(path, &["--payload"]).contains(r#""{\"secret\":\"Kq7\"}""#));

    let places = |arguments: &[&str]| -> Vec<i64> {
        let lines = parsed(&list(path, &[arguments, &["--json"]].concat()));
        lines.iter().map(|line| line["offset"].as_i64().unwrap()).collect()
    };
    for (arguments, offsets) in [
        (&["--reason", "unreadable"][..], vec![8, 180]),
        (&["--reason", "late"], vec![181]),
        (&["--reason", "conflict"], vec![]),
        (&["--topic", "items"], vec![8]),
        (&["--topic", "interactions"], vec![180, 181]),
        (&["--topic", "interactions", "--offset", "181.."], vec![181]),
        (&["--topic", "interactions", "--offset", "..181"], vec![180]),
        (&["--topic", "interactions", "--partition", "0", "--offset", "180"], vec![180]),
        (&["--topic", "interactions", "--partition", "1"], vec![]),
        (&["--stage", "accept"], vec![8, 180, 181]),
        (&["--stage", "sink"], vec![]),
        (&["--limit", "1"], vec![181]),
        (&["--limit", "9"], vec![8, 180, 181]),
    ] {
        assert_eq!(places(arguments), offsets, "{arguments:?}");
    }
    // What isn't shown is counted all the same.
    let short = list(path, &["--limit", "1"]);
    assert!(
        short.contains("3 dead letters:") && !short.contains("@180") && short.contains("@181"),
        "{short}"
    );
    assert!(list(path, &["--reason", "conflict"]).ends_with("no dead letters\n"));
    assert_eq!(snapshot(path), before, "a list writes nothing");
}

#[test]
fn files_are_their_owners_to_mend() {
    let world = damaged();
    let path = world.path();
    let before = snapshot(path);
    for arguments in [&["--state", "look"][..], &["--state", "look", "--dry-run"]] {
        let message = run(path, &[&["dead-letters", "replay"], arguments].concat()).refused();
        assert!(
            message.contains("the inputs are files") && message.contains("append the mended lines"),
            "{message}"
        );
    }
    assert_eq!(snapshot(path), before);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let world = damaged();
    let path = world.path();
    let command = |more: &[&str]| run(path, &[&["dead-letters"], more].concat());
    for arguments in [
        &["list", "--state", "look", "--reason", "tardy"][..],
        &["list", "--state", "look", "--offset", "3"],
        &["list", "--state", "look", "--topic", "items", "--offset", "9..3"],
        &["list", "--state", "look", "--limit", "0"],
        &["replay", "--state", "look", "--payload"],
        &["forget"],
        &[],
    ] {
        assert_eq!(command(arguments).code, Some(2), "{arguments:?}");
    }
    assert!(command(&["list", "--state", "look", "--topic", "cot"]).refused().contains("cot is no input"));
    assert!(command(&["list", "--state", "nowhere"]).refused().contains("nowhere"));
    assert!(command(&["replay", "--state", "nowhere"]).refused().contains("nowhere"));
    // A store without a job's topics: the failure stands alone, without headings.
    std::fs::create_dir(path.join("fresh")).unwrap();
    drop(Local::open(path.join("fresh").join(FILE_NAME)).unwrap());
    let fresh = command(&["list", "--state", "fresh"]);
    assert_eq!(fresh.out, "");
    assert!(fresh.refused().contains("doesn't exist"));
    assert!(!path.join("nowhere").exists());
    assert!(command(&["list"]).refused().contains("give --config FILE or --state DIR"));
}

/// A configuration of a job on `local` topics of two partitions.
const CONFIG: &str = "state = \"look\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n[telemetry]\nlisten = \"off\"\n\
     [topics]\nkind = \"local\"\npartitions = 2\n";

/// A record of a click, `astray` on the partition that isn't its user's.
fn click(user: &str, id: &str, time: i64, astray: bool) -> NewRecord {
    let home = Partitioner::Murmur2.partition(user.as_bytes(), 2);
    let value = Interaction {
        event_id: id.into(),
        user_id: user.into(),
        item_id: "m1".into(),
        kind: "click".into(),
        value: None,
        impression_id: None,
        event_time: time,
    };
    NewRecord {
        topic: "interactions".into(),
        partition: if astray { 1 - home } else { home },
        timestamp: Some(time),
        key: Some(user.into()),
        value: Some(value.encode()),
        headers: vec![("trace".into(), b"t-1".to_vec())],
    }
}

#[test]
fn a_replay_is_done_once_and_says_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::write(path.join("job.toml"), CONFIG).unwrap();
    std::fs::create_dir(path.join("look")).unwrap();
    let mut local = Local::open(path.join("look").join(FILE_NAME)).unwrap();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        local.ensure(topic.name(), 2, topic.policy()).unwrap();
    }
    let film = Item { title: Some("Film".into()), ..Item::default() };
    let item = NewRecord {
        topic: "items".into(),
        partition: 0,
        timestamp: Some(T0),
        key: Some(b"m1".to_vec()),
        value: Some(film.encode()),
        headers: Vec::new(),
    };
    let mut broken = click("ann", "b", T0, false);
    broken.value = Some(b"\xff".to_vec());
    let late = click("ann", "l", T0 - 3_600_000, false);
    let records = [
        item,
        click("ann", "1", T0, false),
        click("ann", "2", T0 + 1, true),
        click("bob", "3", T0 + 2, true),
        late,
        broken,
    ];
    local.append(&records).unwrap();
    let job = |more: &[&str]| run(path, &[more, &["--config", "job.toml"]].concat());
    let until_idle = || job(&["run", "--until-idle"]).good();
    until_idle();
    let replay = |more: &[&str]| job(&[&["dead-letters", "replay"], more].concat());

    let late = replay(&["--reason", "late"]).refused();
    assert!(late.contains("the reason late") && late.contains("it would be late again"), "{late}");
    let dry = replay(&["--dry-run", "--reason", "misrouted"]);
    assert!(dry.out.contains("       2 would be replayed"), "{}", dry.out);
    assert_eq!(dry.code, Some(0));
    // All of them: the broken one may be mended one day, so its refusal is a failure.
    let first = replay(&[]);
    assert_eq!(first.code, Some(1), "{}", first.err);
    for part in [
        "       2 replayed\n",
        "       2 refused\n",
        "       1 late ",
        "       1 still_refused ",
        "as unreadable",
    ] {
        assert!(first.out.contains(part), "{part}: {}", first.out);
    }
    assert!(first.out.contains("refused interactions["), "{}", first.out);
    // Twice is once, before the job has read it and after.
    for _ in 0..2 {
        let again = replay(&["--reason", "misrouted"]);
        assert!(again.out.contains("       0 replayed\n       2 replayed before"), "{}", again.out);
        assert_eq!(again.code, Some(0));
        until_idle();
    }
    let lines: Vec<Value> = parsed(&replay(&["--json"]).out);
    let outcomes: Vec<&str> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == "replayed_before").count(), 2, "{lines:?}");
    assert_eq!(outcomes.len(), 4);
    let one = replay(&["--topic", "interactions", "--reason", "unreadable", "--json"]);
    assert_eq!((parsed(&one.out)[0]["refusal"].as_str(), one.code), (Some("still_refused"), Some(1)));
    // On the topic they stand with their own headers and one more.
    let all = parsed(&job(&["tail", "interactions"]).good());
    let replayed: Vec<&Value> =
        all.iter().filter(|line| line["headers"]["ictflow-replay-of"].is_string()).collect();
    assert_eq!((all.len(), replayed.len()), (7, 2));
    for line in replayed {
        let user = line["key"].as_str().unwrap();
        let home = Partitioner::Murmur2.partition(user.as_bytes(), 2);
        assert_eq!(line["partition"].as_u64(), Some(home.into()));
        assert_eq!(line["headers"]["trace"], json!("t-1"));
        assert_eq!(line["timestamp"], line["value"]["event_time"]);
        let of = line["headers"]["ictflow-replay-of"].as_str().unwrap();
        assert!(of.starts_with(&format!("interactions[{}]@", 1 - home)), "{of}");
    }
    assert_eq!(parsed(&job(&["tail", "dead_letters"]).good()).len(), 4);
    // Erased users' letters stay where they are.
    job(&["erase", "bob"]).good();
    let names = parsed(&replay(&["--json", "--reason", "misrouted"]).out);
    assert!(names.iter().all(|line| line["outcome"] == "replayed_before"), "{names:?}");
    until_idle();
    let examples = job(&["tail", "examples"]).good();
    let bobs: Vec<Value> = parsed(&examples).into_iter().filter(|line| line["key"][0] == "bob").collect();
    assert!(bobs.last().unwrap()["value"].is_null(), "{bobs:?}");
}

#[test]
fn a_job_over_its_limit_ends_with_a_reason_and_a_place_to_look() {
    let world = world(90);
    let path = world.path();
    std::fs::write(
        path.join("job.toml"),
        "state = \"look\"\n[telemetry]\nlisten = \"off\"\n[limits]\ndead_letter_window = 100\n",
    )
    .unwrap();
    let good = std::fs::read_to_string(path.join("clicks.jsonl")).unwrap();
    let bad: String = (0..11).map(|n| format!("{{\"key\": \"u{n}\", \"value\": {{}}}}\n")).collect();
    let mended = good.lines().skip(175).map(|line| format!("{line}\n")).collect::<String>();
    let mut arguments = dry(&["--config", "job.toml"]);
    arguments.retain(|argument| !["--state", "look"].contains(argument));
    std::fs::write(path.join("clicks.jsonl"), good.clone() + &bad).unwrap();
    for _ in 0..2 {
        let message = run(path, &arguments).refused();
        for part in [
            "11 of the last 100 records up to interactions[0]@190",
            "11 unreadable",
            "[limits] max_dead_letter_ratio",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(tail(path, &["dead_letters"]).is_empty());
    }
    // Mended, it goes on; so it does where the limit is raised.
    let text = std::fs::read_to_string(path.join("job.toml")).unwrap();
    std::fs::write(path.join("clicks.jsonl"), good + &mended).unwrap();
    run(path, &arguments).good();
    std::fs::write(path.join("job.toml"), text.clone() + "max_dead_letter_ratio = 0.0\n").unwrap();
    run(path, &arguments).good();
    append(&path.join("clicks.jsonl"), &[json!({"key": "u1", "value": {}})]);
    assert!(run(path, &arguments).refused().contains("1 of the last 100 records"));
    std::fs::write(path.join("job.toml"), text.clone() + "max_dead_letter_ratio = 1\n").unwrap();
    run(path, &arguments).good();
    assert_eq!(parsed(&tail(path, &["dead_letters"])).len(), 1);
    std::fs::write(path.join("job.toml"), text + "max_dead_letter_ratio = 1.5\n").unwrap();
    let checked = run(path, &["check", "--config", "job.toml", "--offline"]);
    assert_eq!(checked.code, Some(1));
    assert!(checked.out.contains("limits.max_dead_letter_ratio"), "{}", checked.out);
}
