//! R4: the broker dies with a transaction open, and comes back on its data.

use super::supervised::Supervised;
use ictflow_tests::support::chaos::rounds;
use ictflow_tests::support::kafka::Broker;
use ictflow_tests::support::program::{Program, become_one};
use serde_json::Value;
use std::time::Instant;

const TEST: &str = "chaos::broker_kill::a_broker_killed_with_a_transaction_open_loses_and_doubles_nothing";

/// The longest pause before a new start, milliseconds.
const LONGEST_MS: u64 = 2_000;

#[test]
fn a_broker_killed_with_a_transaction_open_loses_and_doubles_nothing() {
    become_one();
    let least = rounds(1, 8) as usize;
    // A commit that was on its way to the broker ends a transaction that seemed open: then another is tried.
    let most = least + 3;
    let mut broker = Broker::start_default_pace();
    let job = Supervised::new(
        &broker,
        TEST,
        600 * (most + 1),
        |kafka| {
            kafka.request_timeout_ms = 2_000;
            kafka.delivery_timeout_ms = 4_000;
            kafka.transaction_timeout_ms = 10_000;
        },
        |file| {
            file["run"]["max_restarts"] = 1_000.into();
            file["run"]["restart_pause_max_ms"] = LONGEST_MS.into();
        },
    );
    let (first, mut rest) = job.script.split_at(job.script.len() / (most + 1));
    job.send(first);
    let program = job.start("run");
    program.until_ready();
    let (mut restarts, mut aborted) = (0, 0);
    for round in 0..most {
        if round >= least && aborted > 0 {
            break;
        }
        let (part, later) = rest.split_at(rest.len() / (most - round));
        rest = later;
        let unsent = job.stop_within_a_transaction(&program, part);
        let committed = job.committed();
        broker.kill();
        program.signal("CONT");
        says_why_it_waits(&program);
        let back = Instant::now();
        broker.restart();
        let answered = back.elapsed();
        program.until_ready();
        println!(
            "round {round}: the broker answered {answered:?} after its start, the job was ready {:?} later",
            back.elapsed() - answered
        );
        let status = program.status();
        let before = std::mem::replace(&mut restarts, status["restarts"].as_u64().unwrap());
        assert!(restarts > before, "{status}");
        assert_eq!(status["stalled"], Value::Null);
        assert!(program.get("/metrics").body.contains("\nictflow_stalled 0\n"));
        job.send(unsent);
        program.until_past(committed);
        program.until_done();
        aborted = job.aborted(&broker);
        println!("round {round}: {aborted} records of open transactions stand aborted on the log");
    }
    let said = program.said();
    assert_eq!(said.matches("the status page is").count(), 1, "one process");
    let pauses: Vec<f64> = said
        .lines()
        .filter(|line| line.contains("; new start "))
        .filter_map(|line| line.rsplit(" in ").next()?.strip_suffix(" s")?.parse().ok())
        .collect();
    assert!(pauses.len() >= least && pauses.iter().all(|pause| pause * 1e3 <= LONGEST_MS as f64), "{said}");
    program.finish();
    assert!(aborted > 0, "no transaction was open when the broker died");
    job.holds(&broker);
}

/// It says why it waits, and what a person can do; it lives, and isn't ready.
fn says_why_it_waits(program: &Program) {
    program.until_phase("stalled");
    let ready = program.get("/readyz");
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert!(ready.body.contains("\"stalled\""), "{}", ready.body);
    assert_eq!(program.get("/livez").status, 200);
    assert!(program.get("/metrics").body.contains("\nictflow_stalled 1\n"));
    let status = program.status();
    let hint = status["stalled"]["hint"].as_str().unwrap();
    assert!(hint.len() > 20, "{status}");
    assert!(program.said().contains("new start 1 of 1000"), "{}", program.said());
}
