//! A signal while a job starts or replays.

use crate::support::{append, dry, ended, events, recall, run, said, spawn, tail, until, world};
use ictflow_dataflows::config::checked::Config;
use ictflow_dataflows::job::{Job, Started};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_replay_stops_between_two_epochs_and_the_next_start_makes_it_whole() {
    let world = world(24);
    let path = world.path();
    run(path, &dry(&[])).good();
    append(&path.join("clicks.jsonl"), &events(24..30));
    append(&path.join("recall.jsonl"), &recall(30));
    run(path, &dry(&[])).good();
    let committed = tail(path, &["progress"]);
    let files =
        ictflow_dataflows::config::checked::InputFiles::of_state(&path.join("look")).unwrap().unwrap();
    let config = Config::check(files.raw(&path.join("look")), Some(files)).unwrap_or_else(|e| panic!("{e}"));
    let start = |stop: &AtomicBool| {
        let mut parts = config.parts().unwrap_or_else(|e| panic!("{e}"));
        // A start from the last run's snapshot would have nothing left to replay.
        parts.snapshots = None;
        Job::start_unless(parts, config.semantics.clone(), config.options.clone(), stop, |_| {})
            .unwrap_or_else(|e| panic!("{e}"))
    };
    match start(&AtomicBool::new(true)) {
        Started::Stopped { replayed, recorded } => {
            assert_eq!(replayed, 0);
            assert!(recorded > 3, "{recorded}");
        }
        Started::Running(_) => panic!("it wasn't stopped"),
    }
    assert_eq!(tail(path, &["progress"]), committed, "a stopped replay commits nothing");
    match start(&AtomicBool::new(false)) {
        Started::Running(mut job) => assert!(job.idle().unwrap_or_else(|e| panic!("{e}"))),
        Started::Stopped { .. } => panic!("nobody stopped it"),
    }
    // Stopped from another thread, whenever that comes.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(3));
            stop.store(true, Ordering::Relaxed);
        });
        match start(&stop) {
            Started::Stopped { replayed, recorded } => assert!(replayed < recorded),
            Started::Running(job) => assert!(job.committed() > 0),
        }
    });
}

#[test]
fn a_signal_ends_a_start_and_a_run() {
    let world = world(24);
    let path = world.path();
    run(path, &dry(&[])).good();
    for wait in [0, 10, 40, 160] {
        let mut child = spawn(path, &dry(&["--follow"]), Stdio::null());
        std::thread::sleep(Duration::from_millis(wait));
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let status = ended(path, &mut child);
        // Before anything is under way the signal itself ends the process; later the job ends well.
        use std::os::unix::process::ExitStatusExt;
        assert!(status.success() || status.signal() == Some(15), "{status}: {}", said(path));
    }
    let mut child = spawn(path, &dry(&["--follow", "--features", "features.jsonl"]), Stdio::null());
    until(path, "the copy", || path.join("features.jsonl").metadata().is_ok_and(|found| found.len() > 0));
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert!(ended(path, &mut child).success(), "{}", said(path));
    assert_eq!(std::fs::read_to_string(path.join("features.jsonl")).unwrap(), tail(path, &[]));
}
