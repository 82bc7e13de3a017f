//! `check`: all problems at once, nothing written.

use crate::support::{dry, run, snapshot, tail, world};
use serde_json::Value;
use std::net::TcpListener;

#[test]
fn a_good_job_has_no_problem_and_nothing_is_written() {
    let world = world(12);
    let path = world.path();
    run(path, &dry(&["--features", "features.jsonl"])).good();
    let before = (snapshot(path), tail(path, &["epochs"]), tail(path, &["progress"]));
    let report = run(path, &["check", "--state", "look"]).good();
    assert!(report.contains("ok       recorded job") && report.contains(", 0 problems"), "{report}");
    let json: Value =
        serde_json::from_str(&run(path, &["check", "--state", "look", "--json"]).good()).unwrap();
    assert_eq!((&json["problems"], &json["skipped"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert_eq!((snapshot(path), tail(path, &["epochs"]), tail(path, &["progress"])), before);
    // Nothing was fenced: a job that runs meanwhile goes on. The files are the last run's.
    run(path, &dry(&["--features", "features.jsonl"])).good();
    // A configuration whose job was never started makes no folder.
    std::fs::write(
        path.join("new.toml"),
        "state = \"new\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n",
    )
    .unwrap();
    let before = snapshot(path);
    run(path, &["check", "--config", "new.toml"]).good();
    assert_eq!(snapshot(path), before);
    assert!(!path.join("new").exists());
    // What can't be looked at isn't said to be good.
    let text = std::fs::read_to_string(path.join("new.toml")).unwrap().replace("hashed", "minilm");
    let encoder = text.replace("[encoder]\n", "[encoder]\nfolder = \"no-encoder\"\n");
    let qdrant = "[qdrant]\nurl = \"http://127.0.0.1:1\"\n[ict]\nweights = \"/nowhere\"\n";
    std::fs::write(path.join("blind.toml"), format!("{encoder}{qdrant}")).unwrap();
    let ran = run(path, &["check", "--config", "blind.toml", "--json"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let skipped: Vec<&str> =
        report["skipped"].as_array().unwrap().iter().filter_map(|check| check[0].as_str()).collect();
    for check in ["ict weights", "vector store", "input topics", "recorded job"] {
        assert!(skipped.contains(&check), "{check}: {}", ran.out);
    }
}

#[test]
fn all_problems_are_listed_each_with_its_key_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // A port that nobody listens on.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(path.join("password"), "hunter2\n").unwrap();
    std::fs::write(path.join("file"), "").unwrap();
    std::fs::write(
        path.join("job.toml"),
        format!(
            r#"job = "a b"
wokers = 1
state = "file/state"
[epochs]
max_events = 900000
[encoder]
folder = "no-encoder"
[generator]
model = "no-model.gguf"
[ict]
weights = "no-weights"
[semantics]
demonstrations = 3
max_future_skew_ms = 700000
[topics]
kind = "kafka"
[topics.kafka]
bootstrap_servers = ["127.0.0.1:{port}"]
message_max_bytes = 1500
transaction_timeout_ms = 31000
[topics.kafka.security]
protocol = "sasl_plaintext"
mechanism = "PLAIN"
username = "u"
password = {{ file = "password" }}
ca_file = "no-ca.pem"
"#
        ),
    )
    .unwrap();
    let ran = run(path, &["check", "--config", "job.toml", "--json"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(!ran.out.contains("hunter2"));
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let problems = report["problems"].as_array().unwrap();
    for (check, key) in [
        ("configuration", "line 2"),
        ("configuration", "job"),
        ("configuration", "semantics.demonstrations"),
        ("configuration", "semantics.max_future_skew_ms"),
        ("configuration", "topics.kafka.security.protocol"),
        ("configuration", "topics.kafka.security"),
        ("limits", "epochs.max_events"),
        ("limits", "semantics.max_live_pairs"),
        ("state folder", "state file/state"),
        ("secrets", "topics.kafka.security.password"),
        ("certificates", "topics.kafka.security.ca_file"),
        ("encoder", "encoder.folder"),
        ("generator", "generator.model"),
        ("record sizes", "topics.kafka.message_max_bytes"),
    ] {
        let found = problems.iter().find(|problem| problem["check"] == check && problem["key"] == key);
        let found = found.unwrap_or_else(|| panic!("{check}, {key}: {}", ran.out));
        assert!(found["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{found}");
    }
    assert!(report["skipped"].as_array().unwrap().len() >= 5, "{}", ran.out);
    let plain = run(path, &["check", "--config", "job.toml"]);
    assert_eq!(plain.code, Some(1));
    assert!(plain.out.contains(&format!("{} problems", problems.len())), "{}", plain.out);
    // Nothing else is wrong here, and nobody answers.
    std::fs::write(
        path.join("lonely.toml"),
        format!(
            "state = \"s\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n[topics]\nkind = \"kafka\"\n\
             [topics.kafka]\nbootstrap_servers = [\"127.0.0.1:{port}\"]\nrequest_timeout_ms = 500\n"
        ),
    )
    .unwrap();
    let ran = run(path, &["check", "--config", "lonely.toml"]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(
        ran.out.contains("topics.kafka.bootstrap_servers") && ran.out.contains(" 1 problems"),
        "{}",
        ran.out
    );
    run(path, &["check", "--config", "lonely.toml", "--offline"]).good();
}

#[test]
fn what_the_start_would_refuse_is_found_without_a_start() {
    let world = world(12);
    let path = world.path();
    run(path, &dry(&[])).good();
    let problems = |config: &str| -> Vec<(String, String)> {
        std::fs::write(path.join("job.toml"), config).unwrap();
        let ran = run(path, &["check", "--config", "job.toml", "--json"]);
        let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.out));
        let text = |problem: &Value, of: &str| problem[of].as_str().unwrap_or_default().to_owned();
        let all = report["problems"].as_array().unwrap();
        all.iter().map(|problem| (text(problem, "check"), text(problem, "problem"))).collect()
    };
    let plain = "state = \"look\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n";
    let found = problems(&format!("{plain}[semantics]\nhistory_length = 30\n"));
    assert!(found.iter().any(|(c, p)| c == "recorded job" && p.contains("[semantics] differ")), "{found:?}");
    let found = problems(&format!("job = \"another\"\n{plain}"));
    assert!(
        found.iter().any(|(c, p)| c == "recorded job" && p.contains("belong to job ictflow")),
        "{found:?}"
    );
    // The inputs of that job were files: as topics they aren't there any more.
    assert!(problems(plain).iter().any(|(_, p)| p.contains("doesn't exist any more")));
    // A log that was cut below what the job has read.
    let clicks = std::fs::read_to_string(path.join("clicks.jsonl")).unwrap();
    let half: String = clicks.lines().take(5).map(|line| format!("{line}\n")).collect();
    std::fs::write(path.join("clicks.jsonl"), half).unwrap();
    let ran = run(path, &["check", "--state", "look"]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("ends at 5, before the recorded bound 24"), "{}", ran.out);
    std::fs::remove_file(path.join("recall.jsonl")).unwrap();
    let ran = run(path, &["check", "--state", "look"]);
    assert!(ran.out.contains("--candidates: ") && ran.out.contains("No such file"), "{}", ran.out);
    // What was no configuration at all.
    std::fs::write(path.join("job.toml"), "job = = 1\n").unwrap();
    let ran = run(path, &["check", "--config", "job.toml"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("line 1: "), "{}", ran.out);
    assert_eq!(run(path, &["check", "--config", "none.toml"]).code, Some(1));
    assert_eq!(run(path, &["check", "--state", "none"]).code, Some(1));
    assert!(run(path, &["check"]).refused().contains("give --config FILE or --state DIR"));
}
