//! R4: the broker dies with a transaction open, and comes back on its data.

use super::supervised::Supervised;
use ictflow_tests::support::kafka::Broker;
use ictflow_tests::support::program::become_one;
use serde_json::Value;

const TEST: &str = "chaos::broker_kill::a_broker_killed_with_a_transaction_open_loses_and_doubles_nothing";

#[test]
fn a_broker_killed_with_a_transaction_open_loses_and_doubles_nothing() {
    become_one();
    let mut broker = Broker::start();
    let job = Supervised::new(
        &broker,
        TEST,
        1_500,
        |kafka| {
            kafka.request_timeout_ms = 2_000;
            kafka.delivery_timeout_ms = 4_000;
            kafka.transaction_timeout_ms = 10_000;
        },
        |file| file["run"]["max_restarts"] = 1_000.into(),
    );
    let (first, rest) = job.script.split_at(job.script.len() / 3);
    job.send(first);
    let program = job.start("run");
    program.until_ready();
    let rest = job.stop_within_a_transaction(&program, rest);
    let committed = program_committed(&job);
    broker.kill();
    program.signal("CONT");

    // It says why it waits, and what a person can do; it lives, and isn't ready.
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

    broker.restart();
    program.until_ready();
    let status = program.status();
    assert!(status["restarts"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(status["stalled"], Value::Null);
    assert!(program.get("/metrics").body.contains("\nictflow_stalled 0\n"));
    job.send(rest);
    program.until_past(committed);
    program.until_done();
    assert_eq!(program.said().matches("the status page is").count(), 1, "one process");
    program.finish();
    let aborted = job.aborted();
    assert!(aborted > 0, "the transaction was open when the broker died");
    println!("{aborted} records of the open transaction stand aborted on the log");
    job.holds();
}

/// The last epoch that stands committed on the broker.
fn program_committed(job: &Supervised) -> i64 {
    job.epochs().last().copied().unwrap_or(0)
}
