//! How many workers and processes a job has, and how its input is cut into epochs, changes no byte of
//! what it publishes. On a real Apache Kafka.

use crate::backfill::coarse_equals_live;
use crate::kafka_job::send;
use crate::parity::{mutated, same, semantics, verify};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::kafka::Kafka;
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_tests::support::chaos;
use ictflow_tests::support::disturbed::disturb;
use ictflow_tests::support::hosts::{Hosts, hosted};
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::world::{self, Hooked, Store, World, hashed, settle, template};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// As for the comparison with the oracle, but with windows that no user of the plain data fills.
pub fn wide(stride: u64) -> Semantics {
    Semantics { max_window_events: Semantics::default().max_window_events, ..semantics(stride) }
}

/// A world on the shared broker, its input topics made.
pub fn on_kafka(folder: &Path, name: &str, semantics: Semantics) -> World {
    let mut world = World::new(folder, &unique(name), semantics, world::weights(384));
    world.store = Store::Kafka(Box::new(Broker::shared().config()));
    world.prefix = format!("{}-", unique(name));
    let names = world.names();
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    world
}

/// Sends a script in blocks of so many records, one step of the job after each.
pub fn play(world: &World, job: &mut Job, script: &[Value], block: usize) {
    // A client that isn't ours takes any timestamp.
    let producer = match &world.store {
        Store::Kafka(_) => Some(Broker::shared().client().create().unwrap()),
        Store::Local(_) => None,
    };
    for lines in script.chunks(block) {
        match &producer {
            Some(producer) => send(producer, lines, world),
            None => world::append(job, lines, world.partitions),
        }
        job.step(Duration::from_millis(5)).unwrap();
    }
    settle(job);
}

/// An encoder that counts the texts that it is asked for.
pub struct Counted(pub Box<dyn Embed>, pub Arc<AtomicUsize>);

impl Embed for Counted {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn width(&self) -> usize {
        self.0.width()
    }
    fn embed(&mut self, texts: &[String]) -> ictflow_connectors::Result<Vec<Vec<f32>>> {
        self.1.fetch_add(texts.len(), Ordering::Relaxed);
        self.0.embed(texts)
    }
}

/// A new job over the same logs, which may not generate: it must give the same bytes without a call or
/// an embedding.
fn replayed(first: &World, name: &str, workers: usize, hosts: Option<Hosts>) {
    let cluster = hosts.as_ref().map(|hosts| hosts.cluster.clone()).unwrap_or_default();
    let processes = cluster.processes();
    let world = World {
        job: name.to_owned(),
        workers,
        cluster,
        epoch: 100_000,
        generate: false,
        calls_file: None,
        ..first.clone()
    };
    let (calls, texts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counter = calls.clone();
    let generator = Hooked {
        inner: template(),
        hook: move |inner: &mut dyn ictflow_connectors::llm::Generate, request: &_, attempt| {
            counter.fetch_add(1, Ordering::Relaxed);
            inner.generate(request, attempt)
        },
    };
    let mut job = world.start(Box::new(generator), Box::new(Counted(hashed(), texts.clone())));
    settle(&mut job);
    let shares = job.events_by_worker().to_vec();
    let accepted = job.judgements().accepted;
    assert!(job.committed() < 20, "{} coarse epochs", job.committed());
    drop(job);
    if let Some(hosts) = hosts {
        hosts.finish();
    }
    assert_eq!(
        (calls.load(Ordering::Relaxed), texts.load(Ordering::Relaxed)),
        (0, 0),
        "calls and embeddings"
    );
    // Every worker had its share, those of other processes too.
    let all = (workers * processes) as u64;
    assert!(shares.iter().all(|share| 2 * all * share > accepted), "{shares:?} of {accepted}");
    assert!(processes == 1 || shares.iter().sum::<u64>() < accepted, "{shares:?} of {accepted}");
    same(first, &world);
}

#[test]
fn live_small_epochs_equal_coarse_ones_at_any_count_of_workers_and_processes() {
    const NAME: &str = "rescale::live_small_epochs_equal_coarse_ones_at_any_count_of_workers_and_processes";
    if hosted(&wide(200), &world::weights(384)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let seed = chaos::first_seed(11);
    println!("seed {seed}");
    let plain = mutated(folder.path(), &["--no-mutations", "--partitions", "3"]);
    let first = on_kafka(folder.path(), "live", wide(200));
    let disturbed = disturb(&plain, seed, first.partitions);
    let share = |n: u64, of: u64| n as f64 / of as f64;
    for (n, least) in [(disturbed.late, 0.095), (disturbed.duplicates, 0.009), (disturbed.hopeless, 0.0007)] {
        assert!(share(n, disturbed.events) > least, "{n} of {}", disturbed.events);
    }
    let calls = folder.path().join("calls");
    let mut world = first.clone();
    world.calls_file = Some(calls.clone());
    let mut job = world.start(template(), hashed());
    play(&world, &mut job, &disturbed.lines, 1_000);
    let judged = job.judgements();
    assert_eq!(judged.seen, disturbed.duplicates, "{:?}", judged.dead_letters);
    let refused: Vec<(String, u64)> =
        judged.dead_letters.iter().map(|(reason, n)| (reason.to_string(), *n)).collect();
    assert_eq!(refused, [("late".to_owned(), disturbed.hopeless)]);
    let (features, epochs) = (first.compacted(Topic::Features).len(), job.committed());
    assert!(features >= 10_000, "{features} live features");
    assert!(epochs >= 100, "{epochs} epochs");
    assert!(!world::calls(&calls).is_empty());
    drop(job);
    println!(
        "{} events, {features} live features in {epochs} epochs: {} late, {} twice, {} hopelessly late",
        disturbed.events, disturbed.late, disturbed.duplicates, disturbed.hopeless
    );
    for workers in [1, 2, 4] {
        replayed(&first, &format!("{}-{workers}", first.job), workers, None);
    }
    let name = format!("{}-processes", first.job);
    replayed(&first, &name, 1, Some(Hosts::start(1, NAME, &name, 1)));
    // The command for it, beside the job instead of a new one.
    let more_than = [(Topic::Features, 9_999), (Topic::Examples, 10_000), (Topic::DeadLetters, 0)];
    let outcome = coarse_equals_live(&first, more_than);
    assert!(outcome.epoch < 20, "{} coarse epochs", outcome.epoch);
    println!("a backfill gave the same bytes in {} epochs", outcome.epoch);
}

#[test]
fn a_job_goes_on_with_other_workers_and_processes_after_each_restart() {
    const NAME: &str = "rescale::a_job_goes_on_with_other_workers_and_processes_after_each_restart";
    if hosted(&semantics(10), &world::weights(384)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "2000", "--seed", "5", "--partitions", "3"]);
    let first = on_kafka(folder.path(), "rescaled", semantics(10));
    let parts: Vec<&[Value]> = script.chunks(script.len().div_ceil(6)).collect();
    let mut committed = 0;
    for (workers, part) in [1, 2, 3, 1].into_iter().zip(&parts) {
        let world = World { workers, ..first.clone() };
        let mut job = world.start(template(), hashed());
        assert_eq!(job.committed(), committed, "a restart commits nothing by itself");
        play(&world, &mut job, part, 100);
        committed = job.committed();
    }
    // In two processes of two workers, which one coordinator uses for two starts.
    let hosts = Hosts::start(1, NAME, &first.job, 2);
    let world = World { workers: 2, cluster: hosts.cluster.clone(), ..first.clone() };
    for part in &parts[4..] {
        let mut job = world.start(template(), hashed());
        assert_eq!(job.committed(), committed, "a restart commits nothing by itself");
        play(&world, &mut job, part, 100);
        committed = job.committed();
    }
    hosts.finish();
    let job = first.start(template(), hashed());
    verify(&first, &job, folder.path(), &["--min-features", "500", "--min-full", "0.3"]);
    drop(job);
    replayed(&first, &format!("{}-again", first.job), 1, None);
}

#[test]
fn a_lost_host_ends_the_job_and_one_process_goes_on_from_the_commit() {
    const NAME: &str = "rescale::a_lost_host_ends_the_job_and_one_process_goes_on_from_the_commit";
    if hosted(&semantics(10), &world::weights(384)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "800", "--seed", "6", "--partitions", "3"]);
    let (before, after) = script.split_at(script.len() / 2);
    let first = World::new(folder.path(), "lost", semantics(10), world::weights(384));
    let mut hosts = Hosts::start(2, NAME, &first.job, 1);
    let world = World { cluster: hosts.cluster.clone(), ..first.clone() };
    let mut job = world.start(template(), hashed());
    play(&world, &mut job, before, 100);
    let committed = job.committed();
    hosts.kill(1);
    let went_on = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        play(&world, &mut job, after, 100);
    }));
    assert!(went_on.is_err(), "the job can't go on without a part of its state");
    assert!(job.committed() >= committed);
    drop(job);
    let mut job = first.start(template(), hashed());
    // What the lost run had appended stands; the rest is new, and what comes twice changes nothing.
    play(&first, &mut job, after, 100);
    verify(&first, &job, folder.path(), &["--min-features", "50"]);
    drop(job);
    replayed(&first, "lost-again", 1, None);
}

#[test]
fn an_input_topic_that_grew_is_refused_by_name() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let script = mutated(folder.path(), &["--events", "100", "--seed", "7", "--partitions", "3"]);
    let admin: AdminClient<DefaultClientContext> = broker.client().create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for grown in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        let world = on_kafka(folder.path(), "grown", semantics(10));
        let mut job = world.start(template(), hashed());
        play(&world, &mut job, &script, 1_000);
        let committed = job.committed();
        assert!(committed > 0);
        drop(job);
        let name = world.names().of(grown).to_owned();
        let more = NewPartitions::new(&name, world.partitions as usize + 1);
        let done = runtime.block_on(admin.create_partitions([&more], &AdminOptions::new())).unwrap();
        done[0].as_ref().unwrap();
        let mut kafka = Kafka::connect(broker.config()).unwrap();
        while kafka.partitions(&name).unwrap() != Some(world.partitions + 1) {
            std::thread::sleep(Duration::from_millis(50));
        }
        for workers in [1, 2] {
            let world = World { workers, ..world.clone() };
            let error = match world.try_start(template(), hashed()) {
                Err(error) => error,
                Ok(_) => panic!("{name} grew and the job started"),
            };
            let told = error.to_string();
            assert!(told.contains(&name) && told.contains('3') && told.contains('4'), "{told}");
            assert!(told.contains("a changed partition count moves users"), "{told}");
        }
    }
}
