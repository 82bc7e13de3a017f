//! R19: a polite end under load leaves nothing to be done again.

use super::supervised::Supervised;
use ictflow_tests::support::chaos::{first_seed, rounds};
use ictflow_tests::support::kafka::Broker;
use ictflow_tests::support::program::become_one;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long answers under way are waited for.
const DRAIN: Duration = Duration::from_secs(10);

/// What an end takes besides: the epoch under way, a snapshot. Generous, for a busy machine.
const GRACE: Duration = Duration::from_secs(60);

#[test]
fn a_polite_end_under_load_leaves_no_epoch_uncommitted() {
    become_one();
    let test = "chaos::shutdown::a_polite_end_under_load_leaves_no_epoch_uncommitted";
    let rounds = rounds(3, 20);
    let mut seed = first_seed(19);
    println!("seed {seed}");
    let broker = Broker::shared();
    let job = Supervised::new(
        broker,
        test,
        400 * rounds as usize,
        |_| {},
        |file| {
            file["generator"]["drain_ms"] = (DRAIN.as_millis() as u64).into();
        },
    );
    for (round, part) in job.script.chunks(job.script.len().div_ceil(rounds as usize)).enumerate() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = Duration::from_millis((seed >> 33) % 2_000);
        let program = job.start(&format!("round-{round}"));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // All of it is sent, whatever the program does: the next round takes the rest.
                for block in part.chunks(10) {
                    job.send(block);
                    if !over.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            });
            program.until_phase("running");
            std::thread::sleep(wait);
            let told = Instant::now();
            program.finish();
            let took = told.elapsed();
            println!("round {round}: it ended {took:?} after the signal");
            assert!(took < DRAIN + GRACE, "{took:?}");
            over.store(true, Ordering::Relaxed);
        });
        let committed = job.committed();
        assert_eq!(job.recorded(), committed, "no epoch is recorded and uncommitted");
        println!("round {round}: ended {wait:?} after its start, at epoch {committed}");
    }
    job.holds(broker);
}

#[test]
fn a_polite_end_within_a_long_replay_is_quick_and_harmless() {
    become_one();
    let test = "chaos::shutdown::a_polite_end_within_a_long_replay_is_quick_and_harmless";
    let broker = Broker::shared();
    let job = Supervised::new(
        broker,
        test,
        400,
        |_| {},
        |file| {
            // Small epochs, and no snapshot that would shorten the replay.
            file["epochs"]["max_events"] = 8.into();
            file["epochs"]["interval_ms"] = 0.into();
            file["snapshots"] = serde_json::json!({"url": "off"});
        },
    );
    job.send(&job.script);
    let program = job.start("first");
    program.until_done();
    program.finish();
    let before = job.committed();
    assert!(before > 200, "{before}");

    let mut program = job.start("second");
    program.until("the replay", || {
        let status = program.status();
        assert_ne!(status["phase"], "running", "the replay was over too soon");
        (status["phase"] == "replaying").then_some(())
    });
    program.signal("TERM");
    assert!(program.ended().success(), "{}", program.said());
    assert!(program.said().contains("recorded epochs; nothing is lost"), "{}", program.said());
    assert_eq!(job.committed(), before, "a replay commits nothing");
    job.holds(broker);
}
