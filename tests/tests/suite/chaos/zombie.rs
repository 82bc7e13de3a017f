//! R3: a process that was paused wakes up after its successor has started.

use super::supervised::Supervised;
use super::undisturbed::outputs;
use ictflow_tests::support::chaos::rounds;
use ictflow_tests::support::kafka::Broker;
use ictflow_tests::support::program::become_one;
use std::time::{Duration, Instant};

#[test]
fn a_zombie_is_fenced_and_nothing_of_it_is_visible() {
    become_one();
    wakes_up("chaos::zombie::a_zombie_is_fenced_and_nothing_of_it_is_visible", 60_000);
}

/// To the broker its timeout and its fence look the same: it asks with its other writer, and stays away.
#[test]
fn a_zombie_that_slept_past_its_timeout_does_not_fence_its_successor() {
    become_one();
    wakes_up("chaos::zombie::a_zombie_that_slept_past_its_timeout_does_not_fence_its_successor", 3_000);
}

fn wakes_up(test: &'static str, timeout_ms: u64) {
    let broker = Broker::shared();
    for round in 0..rounds(1, 5) {
        println!("round {round}");
        once(broker, test, timeout_ms);
    }
}

fn once(broker: &Broker, test: &'static str, timeout_ms: u64) {
    let job = Supervised::new(
        broker,
        test,
        1_200,
        |kafka| {
            kafka.request_timeout_ms = 2_000;
            kafka.delivery_timeout_ms = 2_500;
            kafka.transaction_timeout_ms = timeout_ms;
        },
        |_| {},
    );
    let (first, rest) = job.script.split_at(job.script.len() / 3);
    job.send(first);
    let mut paused = job.start("paused");
    paused.until_ready();
    let rest = job.stop_within_a_transaction(&paused, rest);
    let slept = Instant::now();

    let successor = job.start("successor");
    successor.until_ready();
    let (second, rest) = rest.split_at(rest.len() / 2);
    job.send(second);
    successor.until_past(successor.committed());
    // At rest it writes nothing: what comes on the topics while the zombie wakes is the zombie's.
    successor.until_idle();
    let before = outputs(&job.world);
    if timeout_ms < 10_000 {
        let left = Duration::from_millis(timeout_ms + 1_000).saturating_sub(slept.elapsed());
        std::thread::sleep(left);
    }
    paused.signal("CONT");
    let status = paused.ended();
    assert_eq!(status.code(), Some(1), "{}", paused.said());
    let said = paused.said();
    assert!(said.contains("only one job of a name may run"), "{said}");
    println!("the zombie said: {}", said.lines().last().unwrap_or_default());
    let after = outputs(&job.world);
    for (topic, records) in &before {
        assert!(after[topic] == *records, "the zombie wrote to {topic:?}");
    }

    // The successor never noticed.
    let epoch = successor.committed();
    job.send(rest);
    successor.until_past(epoch);
    successor.until_done();
    assert_eq!(successor.status()["restarts"], 0);
    successor.finish();
    assert!(job.aborted(broker) > 0, "what it had written was aborted");
    job.holds(broker);
}
