//! Damaged lines of files.

use super::{dead_letters, semantics};
use ictflow_connectors::files::{Files, Input};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::local::FILE_NAME;
use ictflow_dataflows::job::{Job, Options, Parts};
use ictflow_operators::ict::Weights;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use ictflow_tests::support::world::{Store, World, hashed, settle, template, weights};
use std::path::Path;
use std::sync::Arc;

const GOOD: &str =
    r#"{"event_id": "e1", "user_id": "ann", "item_id": "m1", "kind": "click", "event_time": 1700000000000}"#;

/// A line of ann with this value.
fn line(value: &str) -> Vec<u8> {
    format!(r#"{{"key": "ann", "value": {value}}}"#).into_bytes()
}

/// Damaged lines of `interactions`: name, line, reason, and the payload where it isn't the whole line.
fn table() -> Vec<(&'static str, Vec<u8>, &'static str, Option<String>)> {
    let of = |name, value: String, reason| (name, line(&value), reason, Some(value));
    let whole = |name, bytes: &[u8]| (name, bytes.to_vec(), "unreadable", None);
    let with = |from: &str, to: &str| GOOD.replace(from, to);
    let rated = |value: &str| with(r#""kind": "click""#, &format!(r#""kind": "rate", "value": {value}"#));
    let long = "x".repeat(300_000);
    vec![
        of("deep nesting", format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)), "unreadable"),
        of(
            "deep nesting in a field",
            with(r#""ann""#, &format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000))),
            "unreadable",
        ),
        whole("NaN", &line(&rated("NaN"))),
        whole("infinity", &line(&rated("Infinity"))),
        of("number out of range", rated("1e999"), "unreadable"),
        of("time of too many digits", with("1700000000000", "9223372036854775808"), "unreadable"),
        of("time with a fraction", with("1700000000000", "1700000000000.5"), "unreadable"),
        of("the least time", with("1700000000000", "-9223372036854775808"), "unreadable"),
        of("the greatest time", with("1700000000000", "9223372036854775807"), "unreadable"),
        of("unknown field", with(r#""kind""#, r#""extra": 1, "kind""#), "unreadable"),
        of("missing field", with(r#""kind": "click", "#, ""), "unreadable"),
        of("field of another type", with(r#""e1""#, "1"), "unreadable"),
        of("field twice", with(r#""kind""#, r#""event_id": "e2", "kind""#), "unreadable"),
        of("half a surrogate pair", with(r#""m1""#, r#""\ud800""#), "unreadable"),
        of("a list", format!("[{GOOD}]"), "unreadable"),
        of("a text", r#""hello""#.to_owned(), "unreadable"),
        of("oversized", with(r#""m1""#, &format!(r#""{long}""#)), "oversized"),
        whole("blank", b""),
        whole("no JSON", b"hello"),
        whole("truncated", &line(GOOD)[..60]),
        whole("not UTF-8", b"{\"key\": \"ann\", \"value\": \"\xff\"}"),
        whole("no value", br#"{"key": "ann"}"#),
        whole("another field", br#"{"key": "ann", "value": null, "headers": {}}"#),
        whole("key of another type", br#"{"key": 5, "value": null}"#),
    ]
}

/// A job over files.
fn start(folder: &Path, world: &World) -> Job {
    let input = |topic: Topic| Input { topic: topic.name().to_owned(), path: folder.join(topic.name()) };
    let inputs = [Topic::Interactions, Topic::Items, Topic::Candidates];
    let parts = Parts {
        topics: Box::new(Files::open(&inputs.map(input), folder, false).unwrap()),
        formats: inputs.map(|topic| (topic, Format::Json)).into(),
        generators: vec![template()],
        validator: Validator::new(&Prompt::builtin()),
        encoder: hashed(),
        weights: Arc::new(Weights::from_safetensors(&world.weights).unwrap()).into(),
        points: None,
        snapshots: None,
    };
    let options = Options {
        job: world.job.clone(),
        names: world.names(),
        workers: 1,
        epoch_max_events: 1_000,
        create_inputs: Some(1),
        generate: true,
        calls_file: None,
        dead_letters: world.dead_letters,
        accept_truncated: false,
        edges: Default::default(),
        by_hand: false,
        bounded: None,
        switch: None,
        cluster: Default::default(),
    };
    Job::start(parts, Arc::new(world.semantics.clone()), options).unwrap()
}

#[test]
fn damaged_lines_become_dead_letters_and_the_others_count() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(folder.path(), "lines", semantics(), weights(384));
    world.store = Store::Local(folder.path().join(FILE_NAME));
    let table = table();
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for (n, (_, damaged, ..)) in table.iter().enumerate() {
        lines.push(damaged.clone());
        lines.push(line(&GOOD.replace("e1", &format!("good{n}"))));
    }
    std::fs::write(folder.path().join("interactions"), lines.join(&b'\n')).unwrap();
    let items = [
        r#"{"key": "m1", "value": {"title": "Film"}}"#.to_owned(),
        r#"{"key": "m2", "value": {"title": "Another"}}"#.to_owned(),
        format!(
            r#"{{"key": "m2", "value": {{"attributes": {}1{}}}}}"#,
            r#"{"a":"#.repeat(5_000),
            "}".repeat(5_000)
        ),
        r#"{"key": "m2", "value": {"title": ["Another"]}}"#.to_owned(),
    ];
    std::fs::write(folder.path().join("items"), items.join("\n")).unwrap();
    let many = vec![r#""m""#; 100_000].join(",");
    let sets = [
        r#"{"key": "ann", "value": {"computed_at": 1700000000000, "items": ["m2"]}}"#.to_owned(),
        format!(r#"{{"key": "ann", "value": {{"computed_at": 1700000000000, "items": [{many}]}}}}"#),
        r#"{"key": "ann", "value": {"computed_at": 9223372036854775807, "items": ["m1"]}}"#.to_owned(),
    ];
    std::fs::write(folder.path().join("candidates"), sets.join("\n")).unwrap();

    let mut job = start(folder.path(), &world);
    settle(&mut job);
    let letters = dead_letters(&world);
    let of = |topic: Topic| letters.iter().filter(move |letter| letter.topic == topic.name());
    assert_eq!(of(Topic::Interactions).count(), table.len());
    for (n, (name, damaged, reason, payload)) in table.iter().enumerate() {
        let letter = of(Topic::Interactions).find(|letter| letter.offset == 2 * n as i64).expect(name);
        assert_eq!((letter.reason.as_str(), letter.partition), (*reason, 0), "{name}");
        let mut expected = payload.clone().map_or(damaged.clone(), String::into_bytes);
        let key = payload.as_ref().map(|_| b"ann".to_vec());
        expected.truncate(262_144 - key.as_ref().map_or(0, Vec::len));
        assert_eq!(letter.key, key, "{name}");
        assert!(letter.payload.as_ref() == Some(&expected), "{name}");
    }
    let judged = job.judgements();
    assert_eq!((judged.accepted, judged.seen), (table.len() as u64, 0));
    assert_eq!((judged.items, of(Topic::Items).count()), (2, 2));
    let reasons: Vec<&str> = of(Topic::Candidates).map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["oversized", "unreadable"]);
    assert_eq!(job.sink().features_live(), 1, "the set that can be read stands");
    drop(job);
    // The same once more: a replay judges alike.
    let mut job = start(folder.path(), &world);
    settle(&mut job);
    assert_eq!(dead_letters(&world).len(), letters.len());
    assert_eq!(job.sink().features_live(), 1);
}
