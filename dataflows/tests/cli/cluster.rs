//! One job in several processes: the binary as coordinator and as host.

use crate::support::{FILES, append, ended, events, parsed, recall, run, said, spawn, until, world};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Addresses that nobody listens on.
fn addresses(count: usize) -> Vec<String> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// Writes the configuration of a job over these processes. `more` are further lines, which begin at the
/// top.
fn config(path: &Path, name: &str, processes: &[String], more: &str) -> String {
    let file = format!("{name}.toml");
    let text = format!(
        "job = \"{name}\"\nstate = \"{name}\"\n{more}\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n\
         [telemetry]\nlisten = \"off\"\n[cluster]\nprocesses = {processes:?}\nlost_after_ms = 3000\n"
    );
    std::fs::write(path.join(&file), text).unwrap();
    file
}

/// Starts a process that hosts workers.
fn host(path: &Path, file: &str, process: usize) -> Child {
    spawn(path, &["run", "--config", file, "--process", &process.to_string()], Stdio::null())
}

fn coordinator<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    ["run", "--config", file].into_iter().chain(FILES).chain(more.iter().copied()).collect()
}

/// The compacted values of an output, without the time of a call, since each job here made its own, and without
/// what was served: that is no function of the logs. An impression that comes live behind a restart was served
/// something, where a job that reads all of them in one epoch had published nothing yet.
fn compacted(path: &Path, file: &str, topic: &str) -> BTreeMap<String, Value> {
    let lines = parsed(&run(path, &["tail", "--config", file, topic]).good());
    let mut newest = BTreeMap::new();
    for mut line in lines {
        if let Some(value) = line["value"].as_object_mut() {
            value.remove("cot_created_at");
            value.remove("served");
        }
        newest.insert(line["key"].to_string(), line["value"].take());
    }
    newest.retain(|_, value| !value.is_null());
    newest
}

/// Holds the outputs of a job in several processes against those of one.
fn same(path: &Path, several: &str) {
    let one = config(path, "one", &[], "");
    run(path, &coordinator(&one, &[])).good();
    for topic in ["features", "examples"] {
        let (expected, found) = (compacted(path, &one, topic), compacted(path, several, topic));
        assert!(expected.len() > 10, "{topic}: {}", expected.len());
        assert_eq!(found.len(), expected.len(), "{topic}");
        for (key, value) in &expected {
            assert_eq!(found.get(key), Some(value), "{topic} {key}");
        }
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn two_processes_give_what_one_gives_and_both_end_well() {
    let world = world(60);
    let path = world.path();
    let file = config(path, "two", &addresses(2), "workers = 2");
    let mut child = host(path, &file, 1);
    let ran = run(path, &coordinator(&file, &[]));
    assert_eq!(ran.code, Some(0), "{} {}", ran.err, said(path));
    assert!(ended(path, &mut child).success(), "{}", said(path));
    assert!(!said(path).contains("panicked") && !said(path).contains("awaiting"), "{}", said(path));
    same(path, &file);
}

#[test]
fn three_processes_end_well_at_a_signal_to_the_coordinator() {
    let world = world(30);
    let path = world.path();
    let file = config(path, "three", &addresses(3), "");
    // In any order of their starts.
    let mut second = host(path, &file, 2);
    let mut first =
        spawn(path, &coordinator(&file, &["--follow", "--features", "features.jsonl"]), Stdio::null());
    let mut third = host(path, &file, 1);
    until(path, "a feature", || path.join("features.jsonl").metadata().is_ok_and(|found| found.len() > 0));
    signal(&first, "-TERM");
    for child in [&mut first, &mut second, &mut third] {
        assert!(ended(path, child).success(), "{}", said(path));
    }
}

#[test]
fn a_lost_process_ends_the_others_and_a_restart_of_all_goes_on() {
    let world = world(24);
    let path = world.path();
    let file = config(path, "lost", &addresses(2), "");
    let mut steps = 24;
    // What is done to which process: the other one ends with an error that names it.
    for (process, done, other) in [
        (1, "-KILL", "process 1 at "),
        (0, "-KILL", "process 0 at "),
        (1, "-STOP", "process 1 at "),
        (0, "-STOP", "process 0 at "),
    ] {
        let before = said(path).len();
        let mut children = [
            spawn(path, &coordinator(&file, &["--follow", "--features", "features.jsonl"]), Stdio::null()),
            host(path, &file, 1),
        ];
        let length = || path.join("features.jsonl").metadata().map_or(0, |found| found.len());
        let had = length();
        append(&path.join("clicks.jsonl"), &events(steps..steps + 6));
        append(&path.join("recall.jsonl"), &recall(steps + 6));
        steps += 6;
        until(path, "a feature", || length() > had);
        signal(&children[process], done);
        let code = ended(path, &mut children[1 - process]).code();
        let now = said(path)[before..].to_owned();
        assert_eq!(code, Some(1), "{now}");
        assert!(now.contains(&format!("{other}127.0.0.1:")) && now.contains(" is lost: "), "{now}");
        assert!(now.contains("start all processes of the job again together"), "{now}");
        assert!(!now.contains("panicked"), "{now}");
        children[process].kill().unwrap();
        children[process].wait().unwrap();
    }
    let mut child = host(path, &file, 1);
    let ran = run(path, &coordinator(&file, &[]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ended(path, &mut child).success(), "{}", said(path));
    same(path, &file);
}

#[test]
fn a_process_that_differs_is_refused_by_name() {
    let world = world(12);
    let path = world.path();
    let processes = addresses(2);
    let file = config(path, "mine", &processes, "");
    let text = std::fs::read_to_string(path.join(&file)).unwrap();
    for (more, from, to, says) in [
        ("[semantics]\nhistory_length = 19\n", "", "", "its semantics is "),
        ("", "job =", "workers = 2\njob =", "its workers is 2, process 0 has 1"),
        ("", "job = \"mine\"", "job = \"yours\"", "its job is yours, process 0 has mine"),
    ] {
        let before = said(path).len();
        std::fs::write(path.join("other.toml"), format!("{}{more}", text.replace(from, to))).unwrap();
        let mut child = host(path, "other.toml", 1);
        let message = run(path, &coordinator(&file, &[])).refused();
        assert!(message.contains("let process 1 join the job") && message.contains(says), "{message}");
        assert_eq!(ended(path, &mut child).code(), Some(1));
        let now = &said(path)[before..];
        assert!(now.contains("join process 0 at ") && now.contains(says), "{now}");
    }
    let epochs = run(path, &["tail", "--config", &file, "epochs"]);
    assert_ne!(epochs.code, Some(0), "nothing was made: {}", epochs.out);
}

#[test]
fn one_that_never_comes_ends_the_start_by_name() {
    let world = world(12);
    let path = world.path();
    let processes = addresses(3);
    let file = config(path, "alone", &processes, "");
    let text = std::fs::read_to_string(path.join(&file)).unwrap();
    std::fs::write(path.join(&file), format!("{text}start_timeout_ms = 1000\n")).unwrap();
    let message = run(path, &coordinator(&file, &[])).refused();
    assert!(
        message.contains(&format!("wait for process 1 at {}, 2 at {}", processes[1], processes[2])),
        "{message}"
    );
    let message = run(path, &["run", "--config", &file, "--process", "2"]).refused();
    assert!(message.contains(&format!("connect to process 0 at {}", processes[0])), "{message}");
    assert!(message.contains("cluster.start_timeout_ms"), "{message}");
    // A number that no address has, an address that is taken, an option that isn't a host's.
    let message = run(path, &["run", "--config", &file, "--process", "3"]).refused();
    assert!(message.contains("there is no host 3"), "{message}");
    let held = TcpListener::bind(&processes[1]).unwrap();
    let message = run(path, &["run", "--config", &file, "--process", "1"]).refused();
    assert!(message.contains(&format!("listen on {}", processes[1])), "{message}");
    drop(held);
    let message = run(path, &["run", "--config", &file, "--process", "1", "--until-idle"]).refused();
    assert!(message.contains("--until-idle is for the coordinator"), "{message}");
}

#[test]
fn check_refuses_a_network_that_was_not_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let wide = ["10.0.0.1:7101".to_owned(), "10.0.0.2:7101".to_owned()];
    let file = config(path, "wide", &wide, "");
    let ran = run(path, &["check", "--offline", "--config", &file]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("cluster.processes") && ran.out.contains("private_network"), "{}", ran.out);
    let text = std::fs::read_to_string(path.join(&file)).unwrap();
    std::fs::write(path.join(&file), format!("{text}private_network = true\n")).unwrap();
    run(path, &["check", "--offline", "--config", &file]).good();
}
