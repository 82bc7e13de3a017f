//! Files in, files and streams out.

use crate::support::{
    DRY, append, dry, ended, events, ictflow, parsed, recall, run, run_with, said, spawn, tail, text, until,
    world,
};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn the_quick_start_of_the_readme() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // As the README has them, word for word.
    let readme = include_str!("../../../README.md");
    let files: Vec<&str> = readme.split("<<'END'\n").skip(1).collect();
    for (name, content) in ["items.jsonl", "clicks.jsonl", "recall.jsonl"].into_iter().zip(&files) {
        assert!(readme.contains(&format!("cat > {name} <<'END'")), "{name}");
        std::fs::write(path.join(name), content.split("END\n").next().unwrap()).unwrap();
    }
    let ran = run(path, &DRY);
    assert!(
        ran.err.contains("3 of 3 interactions accepted, 0 seen before, dead letters: none"),
        "{}",
        ran.err
    );
    assert_eq!(ran.good(), "", "figures and warnings go to standard error");
    let features = parsed(&tail(path, &[]));
    assert_eq!(features.len(), 1);
    assert_eq!(features[0]["key"], json!(["ann", "m3"]));
    assert_eq!(features[0]["value"]["history"], json!(["m1"]));
    let examples = parsed(&tail(path, &["examples"]));
    let labels: Vec<_> = examples.iter().map(|e| (&e["value"]["item_id"], &e["value"]["label"])).collect();
    assert_eq!(labels, [(&json!("m1"), &json!(1)), (&json!("m2"), &json!(0))]);
    assert_eq!(tail(path, &["dead_letters"]), "");
    let explained = run(path, &["explain", "--state", "look", "ann", "m3"]).good();
    assert!(explained.starts_with("user ann, item m3: Paper Moon\n"), "{explained}");
    assert!(explained.contains("Blue Harbour"), "{explained}");
}

#[test]
fn standard_input_to_standard_output() {
    let world = world(60);
    let path = world.path();
    let clicks = text(&path.join("clicks.jsonl"));
    let arguments = [
        "run",
        "--dry",
        "--interactions",
        "-",
        "--items",
        "items.jsonl",
        "--candidates",
        "recall.jsonl",
        "--state",
        "look",
        "--features",
        "-",
        "--examples",
        "examples.jsonl",
    ];
    let out = run_with(path, &arguments, &clicks).good();
    assert!(out.lines().count() > 20, "{out}");
    assert_eq!(out, tail(path, &[]), "the pipe has just what is committed");
    assert_eq!(text(&path.join("examples.jsonl")), tail(path, &["examples"]));
    assert!(parsed(&out).iter().all(|line| line["headers"]["ictflow-epoch"].is_string()));
    // The same input again: nothing is committed, and so nothing comes out.
    assert_eq!(run_with(path, &arguments, &clicks).good(), "");
    // More input: what this run commits, and no more.
    let more: String = events(60..66).iter().map(|line| format!("{line}\n")).collect();
    let next = run_with(path, &arguments, &format!("{clicks}{more}")).good();
    assert!(!next.is_empty());
    assert_eq!(format!("{out}{next}"), tail(path, &[]));
    // Without input at all the copy of standard input serves.
    let both = [&arguments[..], &["--dead-letters", "-"]].concat();
    assert!(run(path, &both).refused().contains("another output goes there"));
}

#[test]
fn a_killed_job_leaves_files_that_go_on_without_a_gap_or_a_repeat() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let world = world(20);
    let path = world.path();
    let copies =
        ["--features", "features.jsonl", "--examples", "examples.jsonl", "--dead-letters", "dead.jsonl"];
    let copied = |name: &str| std::fs::read(path.join(name)).unwrap_or_default();
    let mut steps = 20;
    let mut random = seed;
    for round in 0..6 {
        let arguments = [&dry(&["--follow"])[..], &copies[..]].concat();
        let mut child = spawn(path, &arguments, Stdio::null());
        let before = copied("examples.jsonl").len();
        append(&path.join("clicks.jsonl"), &events(steps..steps + 6));
        append(&path.join("clicks.jsonl"), &[json!({"key": "u1", "value": {"nonsense": round}})]);
        append(&path.join("recall.jsonl"), &recall(steps + 6));
        steps += 6;
        until(path, "an example", || copied("examples.jsonl").len() > before);
        // Now, or while some later epoch is under way.
        append(&path.join("clicks.jsonl"), &events(steps..steps + 6));
        steps += 6;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((random >> 33) % 1_200));
        child.kill().unwrap();
        child.wait().unwrap();
        // What a death in the middle of a line leaves.
        if round % 2 == 0 {
            let whole = tail(path, &["--last", "1"]);
            let mut torn = copied("features.jsonl");
            assert!(torn.is_empty() || torn.ends_with(b"\n"));
            torn.extend_from_slice(&whole.as_bytes()[..whole.len() * 2 / 3]);
            std::fs::write(path.join("features.jsonl"), torn).unwrap();
        }
    }
    run(path, &[&dry(&[])[..], &copies[..]].concat()).good();
    for (name, topic) in
        [("features.jsonl", "features"), ("examples.jsonl", "examples"), ("dead.jsonl", "dead_letters")]
    {
        let (file, log) = (text(&path.join(name)), tail(path, &[topic]));
        assert!(!log.is_empty());
        for (n, (file, log)) in file.lines().zip(log.lines()).enumerate() {
            assert_eq!(file, log, "{name}, line {n}");
        }
        assert_eq!(file.lines().count(), log.lines().count(), "{name}");
    }
    // A file that was removed is written anew.
    std::fs::remove_file(path.join("features.jsonl")).unwrap();
    run(path, &[&dry(&[])[..], &copies[..]].concat()).good();
    assert_eq!(text(&path.join("features.jsonl")), tail(path, &[]));
}

#[test]
fn a_file_that_is_not_the_copy_of_this_topic_is_refused() {
    let world = world(12);
    let path = world.path();
    run(path, &dry(&["--features", "features.jsonl", "--examples", "examples.jsonl"])).good();
    std::fs::write(path.join("notes.txt"), "mine\n").unwrap();
    for (name, says) in [
        ("notes.txt", "line 1 isn't one of a copy"),
        ("examples.jsonl", "is of topic examples"),
        ("clicks.jsonl", "it is an input"),
        (".", "isn't a regular file"),
        ("no/such/folder", "No such file"),
    ] {
        let before = std::fs::read(path.join(name)).ok();
        let message = run(path, &dry(&["--features", name])).refused();
        assert!(message.contains(says), "{message}");
        assert_eq!(std::fs::read(path.join(name)).ok(), before);
    }
    let message = run(path, &dry(&["--features", "x", "--examples", "./x"])).code;
    assert_ne!(message, Some(0), "one file for two outputs");
    // The copy of another job: as long, and of other records.
    let other = DRY.map(|argument| if argument == "look" { "other" } else { argument });
    let message = run(path, &[&other[..], &["--features", "features.jsonl"]].concat()).refused();
    assert!(message.contains("another") && message.contains("remove this one"), "{message}");
    // A copy that goes on further than the log.
    let mut longer = text(&path.join("features.jsonl"));
    let offset = parsed(&longer).len() - 1;
    let last = longer.lines().last().unwrap().replace(&format!("\"offset\":{offset}"), "\"offset\":9999");
    longer.push_str(&format!("{last}\n"));
    std::fs::write(path.join("features.jsonl"), &longer).unwrap();
    let message = run(path, &dry(&["--features", "features.jsonl"])).refused();
    assert!(message.contains("offset 9999") && message.contains("the topic ends at"), "{message}");
    assert_eq!(text(&path.join("features.jsonl")), longer);
}

#[test]
fn a_second_process_does_not_write_the_same_file() {
    let world = world(12);
    let path = world.path();
    let mut child = spawn(path, &dry(&["--follow", "--features", "features.jsonl"]), Stdio::null());
    until(path, "a feature", || path.join("features.jsonl").metadata().is_ok_and(|found| found.len() > 0));
    let message = run(path, &dry(&["--features", "features.jsonl"])).refused();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(message.contains("another process writes it"), "{message}");
}

#[test]
fn a_reader_that_closes_the_pipe_ends_the_job_after_the_commit() {
    let world = world(12);
    let path = world.path();
    let mut child = spawn(path, &dry(&["--follow", "--features", "-"]), Stdio::piped());
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"headers\":{"), "{line}");
    drop(reader);
    append(&path.join("clicks.jsonl"), &events(12..18));
    append(&path.join("recall.jsonl"), &recall(18));
    let status = ended(path, &mut child);
    assert!(status.success(), "{status}: {}", said(path));
    assert!(said(path).contains("nobody reads standard output any more"), "{}", said(path));
    // Nothing is lost: the log has all of it.
    run(path, &dry(&["--features", "features.jsonl"])).good();
    assert_eq!(text(&path.join("features.jsonl")), tail(path, &[]));
    // `tail` and `explain` end quietly too.
    for arguments in
        [&["tail", "--state", "look", "interactions"][..], &["explain", "--state", "look", "u0", "m0"]]
    {
        let mut child =
            ictflow(path, arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        let status = child.wait().unwrap();
        assert!(status.code().is_some(), "{status}");
    }
}

#[test]
fn a_configuration_holds_for_a_job_on_files_too() {
    let world = world(12);
    let path = world.path();
    std::fs::write(
        path.join("job.toml"),
        "job = \"mine\"\nstate = \"mystate\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n\
         [telemetry]\nlisten = \"off\"\n[semantics]\nhistory_length = 2\nprompt_history = 2\n",
    )
    .unwrap();
    let arguments =
        ["run", "--config", "job.toml", "--interactions", "clicks.jsonl", "--items", "items.jsonl"];
    let ran = run(path, &[&arguments[..], &["--candidates", "recall.jsonl"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(path.join("mystate").exists() && !path.join("state").exists());
    let tail = |topic| parsed(&run(path, &["tail", "--config", "job.toml", topic]).good());
    let features = tail("features");
    assert!(!features.is_empty());
    assert!(
        features.iter().all(|f| f["value"].is_null() || f["value"]["history"].as_array().unwrap().len() <= 2)
    );
    assert!(!tail("interactions").is_empty(), "the files are found again");
    let epochs = tail("epochs");
    assert!(epochs.iter().all(|epoch| epoch["value"]["job"] == "mine"));
    // Without a job there is nowhere to keep it.
    let refused = run(path, &["run", "--interactions", "clicks.jsonl", "--items", "items.jsonl"]).refused();
    assert!(refused.contains("--state"), "{refused}");
}

#[test]
fn a_full_disk_is_no_closed_pipe() {
    let world = world(12);
    let path = world.path();
    run(path, &dry(&[])).good();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = spawn(path, &["tail", "--state", "look"], Stdio::from(full));
    assert_eq!(ended(path, &mut child).code(), Some(1), "{}", said(path));
    assert!(said(path).contains("is the disk full?"), "{}", said(path));
}
