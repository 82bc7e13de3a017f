//! A job that is killed with SIGKILL again and again, at random moments and at each edge of a commit,
//! while its input goes on: what the topics hold in the end is what they hold without a kill.

use super::undisturbed::{none_violated, undisturbed};
use crate::parity::verify;
use crate::qdrant_job::points_are_the_demonstrations;
use fastrand::Rng;
use ictflow_connectors::clock;
use ictflow_dataflows::epochs::read_whole;
use ictflow_dataflows::job::{Edge, Job};
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::parse_topic_key;
use ictflow_schemas::topic::{Policy, Topic};
use ictflow_tests::support::chaos::{first_seed, rounds};
use ictflow_tests::support::child::{self, Fault, Life, Line, Plan};
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::qdrant::{self, Double};
use ictflow_tests::support::stream::Stream;
use ictflow_tests::support::transactions;
use ictflow_tests::support::verifier::COMMITTED;
use ictflow_tests::support::world::{self, Store, World, calls, hashed, settle, template};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const EVENTS: usize = 20_000;
const USERS: usize = 200;
const PARTITIONS: u32 = 5;
/// Events that are produced in [`TICK`].
const BURST: usize = 15;
const TICK: Duration = Duration::from_millis(50);
/// Generator threads of a child.
const THREADS: usize = 2;

/// The child of the tests below; run by itself it does nothing.
#[test]
fn a_job_in_a_process_of_its_own() {
    child::obey();
}

const CHILD: &str = "chaos::kills::a_job_in_a_process_of_its_own";

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// From outside, so long after its birth.
    AfterBirth(Duration),
    /// From outside, so long after its first step.
    AfterStep(Duration),
    /// By itself at a pass of an edge; the number is drawn when it comes to it.
    Edge(Edge),
    /// By itself in a transaction.
    Transaction,
}

#[test]
fn kills_at_random_moments_leave_no_trace() {
    let seed = first_seed(61);
    let mut rng = Rng::with_seed(seed);
    let mut kills: Vec<Kill> = (0..rounds(20, 200))
        .map(|n| {
            let moment = Duration::from_millis(rng.u64(..1_500));
            // Every fourth may hit the start and the replay.
            if n % 4 == 3 { Kill::AfterBirth(moment) } else { Kill::AfterStep(moment) }
        })
        .collect();
    // Transactions are short, so all of these may miss them. One more goes where it leaves records to abort.
    kills.insert(rng.usize(..=kills.len()), Kill::Transaction);
    // A restart loads the newest snapshot, which a kill may have cut short.
    undergo(seed, kills, Some(Duration::from_secs(1)), None);
}

#[test]
fn kills_at_the_edges_of_a_commit_leave_no_trace() {
    let seed = first_seed(62);
    let mut rng = Rng::with_seed(seed);
    // Each life replays all epochs before it, so the long form grows with the square of this.
    let each = rounds(3, 12);
    let mut kills: Vec<Kill> =
        Edge::ALL.into_iter().flat_map(|edge| (0..each).map(move |_| Kill::Edge(edge))).collect();
    kills.extend((0..each).map(|_| Kill::Transaction));
    rng.shuffle(&mut kills);
    // Without snapshots there is always something to rebuild. With a store of points an epoch leaves something
    // outside before its transaction begins. The double runs in this process, so it outlives the kills.
    let double = Double::start();
    undergo(seed, kills, None, Some(&double));
}

fn semantics() -> Semantics {
    Semantics {
        cot_stride: CotStride { positive: 10, explicit_negative: 10, implicit_negative: 10 },
        max_demonstrations: 300,
        pair_ttl_ms: 6 * 3_600_000,
        demonstration_ttl_ms: 8 * 3_600_000,
        ..Semantics::default()
    }
}

/// Appends the stream at its pace until it is told to stop, then the rest up to [`EVENTS`].
struct Producer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Producer {
    fn start(world: &World, seed: u64) -> Producer {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut topics, stopped) = (world.raw_topics(), stop.clone());
        let mut stream = Stream::new(seed, USERS, PARTITIONS, &world.prefix);
        topics.append(&stream.opening()).unwrap();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                topics.append(&stream.next(BURST)).unwrap();
                std::thread::sleep(TICK);
            }
            while stream.events() < EVENTS {
                topics.append(&stream.next(1_000.min(EVENTS - stream.events()))).unwrap();
            }
            stream.events()
        });
        Producer { stop, thread }
    }

    /// The events produced.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What the lives of a job told.
#[derive(Default)]
struct Story {
    /// When a kill came.
    kills: Vec<i64>,
    /// When an epoch was committed.
    commits: Vec<i64>,
    /// From a birth to the first step, without the first.
    recoveries: Vec<i64>,
    /// The last epoch that a child said it had committed.
    committed: i64,
    /// Keys that a life called and whose answer wasn't on the log at its kill.
    in_flight: Vec<usize>,
    /// Kills at which the store of points held points of an epoch that isn't committed.
    ahead: usize,
}

impl Story {
    fn tell(&mut self, born: i64, lines: &[Line]) {
        for line in lines {
            match line.what.as_str() {
                "commit" => self.commits.push(line.at),
                "stepped" if !self.kills.is_empty() => self.recoveries.push(line.at - born),
                _ => {}
            }
            assert!(line.epoch >= self.committed, "epoch {} after {}", line.epoch, self.committed);
            self.committed = line.epoch;
        }
    }
}

fn undergo(seed: u64, kills: Vec<Kill>, snapshots: Option<Duration>, double: Option<&Double>) {
    eprintln!("kills: ICTFLOW_SEED={seed}");
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(folder.path(), &unique("killed"), semantics(), world::weights(384));
    world.store = Store::Kafka(Box::new(broker.config()));
    world.prefix = format!("{}-", unique("kills"));
    world.partitions = PARTITIONS;
    world.epoch = 500;
    world.calls_file = Some(folder.path().join("calls.txt"));
    world.snapshots = snapshots.map(|interval| (folder.path().join("snapshots"), interval));
    world.points = double.map(|double| qdrant::clients_of(&double.url()));
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(world.names().of(topic), PARTITIONS, Policy::Append).unwrap();
    }
    let plan = Plan {
        world: world.clone(),
        points: double.map(Double::url),
        threads: THREADS,
        call: Duration::from_millis(100),
        pause: Duration::from_millis(60),
        stop: folder.path().join("stop"),
        fault: None,
    };
    let producer = Producer::start(&world, seed);
    let (mut rng, mut story) = (Rng::with_seed(seed), Story::default());
    let count = kills.len();
    let mut kills = VecDeque::from(kills);
    let (mut lives, mut called) = (0, 0);
    while let Some(kill) = kills.pop_front() {
        if matches!(kill, Kill::Edge(Edge::Rebuilding)) && story.committed == 0 {
            // There is nothing to rebuild yet.
            kills.push_back(kill);
            continue;
        }
        let (born, lines) = live(&plan, folder.path(), lives, kill, &story, &mut rng);
        lives += 1;
        story.tell(born, &lines);
        story.kills.push(clock::now_ms());
        if let (Kill::Edge(Edge::PointsAcknowledged | Edge::BeforeCommit), Some(double)) = (kill, double) {
            story.ahead += usize::from(newest_epoch(double) > Some(story.committed));
        }
        let all = calls(world.calls_file.as_deref().unwrap());
        story.in_flight.push(unanswered(&world, &all[called..]).len());
        called = all.len();
    }
    let events = producer.finish();
    std::fs::write(&plan.stop, "").unwrap();
    let last = Life::spawn(CHILD, folder.path(), lives, &plan);
    let born = last.born;
    let (status, lines, said) = last.end();
    assert!(status.success(), "the last child: {status}: {said}");
    story.tell(born, &lines);
    assert!(events >= EVENTS);
    report(&mut story, count, events);
    accounted(&world, &story);
    same_as_undisturbed(&world, &story, folder.path(), double);
    no_transaction_is_open(broker, &world);
}

/// A life up to its kill: when it began and what it logged.
fn live(
    plan: &Plan,
    folder: &Path,
    number: usize,
    kill: Kill,
    story: &Story,
    rng: &mut Rng,
) -> (i64, Vec<Line>) {
    let fault = match kill {
        Kill::AfterBirth(_) | Kill::AfterStep(_) => None,
        Kill::Edge(Edge::Rebuilding) => {
            Some(Fault::Edge(Edge::Rebuilding, rng.u64(1..=story.committed as u64)))
        }
        Kill::Edge(edge) => Some(Fault::Edge(edge, rng.u64(1..=8))),
        Kill::Transaction => Some(Fault::Transaction(rng.u64(1..=8))),
    };
    let mut life = Life::spawn(CHILD, folder, number, &Plan { fault, ..plan.clone() });
    let born = life.born;
    let lines = match kill {
        Kill::AfterBirth(moment) => {
            std::thread::sleep(moment);
            life.kill()
        }
        Kill::AfterStep(moment) => {
            life.wait_for("stepped");
            std::thread::sleep(moment);
            life.kill()
        }
        Kill::Edge(_) | Kill::Transaction => {
            let (status, lines, said) = life.end();
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            assert_eq!(signal, Some(signal_hook::consts::SIGKILL), "{kill:?} {fault:?}: {status}: {said}");
            lines
        }
    };
    (born, lines)
}

/// Prints the figures, and holds the kills against the commits.
fn report(story: &mut Story, count: usize, events: usize) {
    let (first, last) = (story.commits.first().unwrap(), story.commits.last().unwrap());
    let between = story.kills.iter().filter(|kill| (first..last).contains(kill)).count();
    story.recoveries.sort();
    let (median, max) = (story.recoveries[story.recoveries.len() / 2], story.recoveries.last().unwrap());
    eprintln!(
        "kills: {count}, {between} of them between the first commit and the last, over {events} events and \
         {} epochs in {:.0} s; recovery median {:.2} s, maximum {:.2} s of {}",
        story.committed,
        (last - first) as f64 / 1e3,
        median as f64 / 1e3,
        *max as f64 / 1e3,
        story.recoveries.len(),
    );
    assert!(
        4 * between >= 3 * count,
        "{between} of {count} kills came between the first and the last commit"
    );
}

/// Of these calls, the keys without a record on `cot`.
fn unanswered(world: &World, calls: &[(String, u32)]) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = calls.iter().map(|(key, _)| key.clone()).collect();
    let (mut topics, names) = (world.topics(), world.names());
    let cot = names.of(Topic::Cot);
    if topics.partitions(cot).unwrap().is_some() {
        read_whole(&mut *topics, cot, |record| {
            if let Some((_, key)) = record.key.as_deref().and_then(parse_topic_key) {
                keys.remove(&key.hex());
            }
        })
        .unwrap();
    }
    keys
}

/// No key is asked again but those in flight at a kill.
fn accounted(world: &World, story: &Story) {
    let all = calls(world.calls_file.as_deref().unwrap());
    let keys: BTreeSet<&String> = all.iter().map(|(key, _)| key).collect();
    let first = all.iter().filter(|(_, attempt)| *attempt == 1).count();
    let in_flight: usize = story.in_flight.iter().sum();
    let most = story.in_flight.iter().max().unwrap();
    eprintln!(
        "kills: {} calls for {} keys, {first} of them first ones; {in_flight} in flight at the kills, {most} at most",
        all.len(),
        keys.len()
    );
    assert!(keys.len() > 500, "{} keys", keys.len());
    assert!(first <= keys.len() + in_flight, "{first} first calls");
    assert!(all.len() <= keys.len() + in_flight, "{} calls", all.len());
    // Handed over are one a thread and one more; as many may have ended and not be journaled yet.
    assert!(*most <= 2 * (THREADS + 1), "{most} in flight at a kill");
    assert!(in_flight > 0, "no call was in flight at any kill: nothing was shown");
}

/// The newest epoch that wrote or marked a point.
fn newest_epoch(double: &Double) -> Option<i64> {
    double.points().values().filter_map(|point| point.payload["epoch"].as_i64()).max()
}

/// What the children left in the store of points is just the pool of the job, which is at rest.
fn points_are_the_pool(double: &Double, story: &Story, job: &Job) {
    let figures = job.points().unwrap();
    assert_eq!((figures.upserted, figures.deleted), (0, 0), "a restart at rest writes no point");
    let pool = job.demonstrations().len();
    eprintln!(
        "kills: {pool} demonstrations, {} points with those marked as deleted; {} kills between an epoch's points \
         and its commit",
        double.points().len(),
        story.ahead
    );
    assert!(pool > 20, "{pool} demonstrations");
    points_are_the_demonstrations(double, job);
    assert!(story.ahead > 0, "no kill left points of an epoch without its commit: nothing was shown");
}

/// The topics hold what the oracle says, and what a job holds that was never killed.
fn same_as_undisturbed(world: &World, story: &Story, folder: &Path, double: Option<&Double>) {
    let made = calls(world.calls_file.as_deref().unwrap()).len();
    let mut job = world.start(template(), hashed());
    assert_eq!(job.committed(), story.committed, "a restart at rest commits nothing");
    settle(&mut job);
    assert_eq!(job.committed(), story.committed, "a job at rest has nothing to do");
    assert_eq!((job.requester().accounting.attempts, job.requester().accounting.embeddings), (0, 0));
    if let Some(double) = double {
        points_are_the_pool(double, story, &job);
    }
    // A key whose call a kill ended may have been retracted since; one that is wanted is answered.
    let wanted: BTreeSet<String> = job.requester().wanted().iter().map(|key| key.hex()).collect();
    let unanswered = unanswered(world, &calls(world.calls_file.as_deref().unwrap()));
    assert!(unanswered.is_disjoint(&wanted), "wanted and unanswered: {unanswered:?}");
    let report = verify(world, &job, folder, &["--min-features", "1000"]);
    for rule in ["late", "seen", "conflict", "accepted_out_of_order", "item_delete", "text_edit"] {
        assert!(report["hits"][rule].as_u64().unwrap() >= 10, "{rule}: {report}");
    }
    drop(job);
    let expected = undisturbed(world, "replay", folder, false);
    assert!(expected == undisturbed(world, "again", folder, true), "two replays differ");
    none_violated(world, &expected);
    assert_eq!(calls(world.calls_file.as_deref().unwrap()).len(), made);
}

/// Every transaction ended, some of them by an abort that only a reader of uncommitted records sees.
fn no_transaction_is_open(broker: &Broker, world: &World) {
    let names = world.names();
    let mut aborted = BTreeMap::new();
    for topic in COMMITTED.into_iter().chain([Topic::Epochs]) {
        assert!(!transactions::open(broker, names.of(topic)), "a transaction is open on {topic:?}");
        aborted.insert(topic, transactions::aborted(broker, names.of(topic)));
    }
    eprintln!("kills: records of aborted transactions: {aborted:?}");
    assert!(aborted.values().sum::<usize>() > 0, "no kill fell into a transaction: nothing was shown");
}
