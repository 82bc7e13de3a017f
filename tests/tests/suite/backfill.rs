//! Backfills: a job's outputs once more, in coarse epochs, beside it, with the same bytes and without a call;
//! promoted and rolled back while nothing is lost.

mod outputs;
mod points;

use crate::parity::mutated;
use crate::rescale::{Counted, on_kafka, play, wide};
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_dataflows::backfill::{self, Order, Outcome, Plan, Report};
use ictflow_dataflows::epochs::{self, read_compacted};
use ictflow_dataflows::job::{Edge, Edges, Job};
use ictflow_dataflows::names::Names;
use ictflow_schemas::example::{ExampleRecord, comparable};
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Format, Wire};
use ictflow_tests::support::disturbed::disturb;
use ictflow_tests::support::world::{self, Hooked, World, hashed, settle, template};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// By key, what stands.
type Values = BTreeMap<Vec<u8>, Vec<u8>>;

/// A slice of ml-100k with 10% of its events late, 1% twice and, if it isn't small, some hopelessly late.
pub fn script(folder: &Path, events: &str, partitions: u32) -> Vec<Value> {
    let plain = mutated(folder, &["--no-mutations", "--events", events, "--partitions", "3"]);
    let disturbed = disturb(&plain, 5, partitions);
    let (late, twice, hopeless) = (disturbed.late, disturbed.duplicates, disturbed.hopeless);
    let drawn = format!("{late} late, {twice} twice, {hopeless} hopelessly late of {}", disturbed.events);
    assert!(12 * late > disturbed.events && 150 * twice > disturbed.events, "{drawn}");
    // One of a thousand: a small slice may have none.
    assert!(hopeless > 0 || disturbed.events < 1_600, "{drawn}");
    disturbed.lines
}

/// Cuts a script into parts with the same count of interactions.
pub fn cut(lines: &[Value], parts: usize) -> Vec<&[Value]> {
    let is_event = |(_, line): &(usize, &Value)| line["topic"] == "interactions";
    let events: Vec<usize> = lines.iter().enumerate().filter(is_event).map(|(at, _)| at).collect();
    let each = events.len().div_ceil(parts);
    let mut starts: Vec<usize> = (0..parts).map(|part| events[part * each]).collect();
    starts[0] = 0;
    let ends = starts[1..].iter().copied().chain([lines.len()]);
    starts.iter().zip(ends).map(|(start, end)| &lines[*start..end]).collect()
}

pub fn local(folder: &Path) -> World {
    let mut world = World::new(folder, "live", wide(10), world::weights(384));
    world.epoch = 100;
    world
}

pub fn start(world: &World) -> Job {
    world.start(template(), hashed())
}

pub fn order(name: &str) -> Order {
    Order { name: name.to_owned(), ..Order::default() }
}

pub fn to(name: &str, bound: &str) -> Order {
    Order { to: Some((bound.to_owned(), backfill::parse(bound).unwrap())), ..order(name) }
}

pub fn prepare(world: &World, order: &Order) -> ictflow_connectors::Result<Plan> {
    backfill::prepare(&mut *world.topics(), &world.options(), order, Format::Avro)
}

/// How often the generator and the encoder were asked.
#[derive(Clone, Default)]
struct Asked(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Asked {
    fn counts(&self) -> (usize, usize) {
        (self.0.load(Ordering::Relaxed), self.1.load(Ordering::Relaxed))
    }
}

/// The job of a backfill.
fn job(world: &World, plan: &Plan, asked: &Asked) -> Job {
    let calls = asked.0.clone();
    let generator = Hooked {
        inner: template(),
        hook: move |inner: &mut dyn Generate, request: &_, attempt| {
            calls.fetch_add(1, Ordering::Relaxed);
            inner.generate(request, attempt)
        },
    };
    let encoder = Box::new(Counted(hashed(), asked.1.clone()));
    let validator = Validator::new(&Prompt::builtin());
    let mut parts = world.parts(vec![Box::new(generator)], validator, encoder).unwrap();
    parts.snapshots = None;
    Job::start(parts, Arc::new(world.semantics.clone()), backfill::options(&world.options(), plan)).unwrap()
}

/// Runs a backfill to its end and compares it; gives how it ended and what was asked.
fn run(world: &World, order: &Order) -> (Outcome, (usize, usize)) {
    let (plan, asked) = (prepare(world, order).unwrap(), Asked::default());
    let mut job = job(world, &plan, &asked);
    assert!(backfill::drive(&mut job, &AtomicBool::new(false), |_| {}).unwrap());
    drop(job);
    (conclude(world, &plan), asked.counts())
}

pub fn filled(world: &World, order: &Order) -> Report {
    run(world, order).0.parity.unwrap()
}

fn conclude(world: &World, plan: &Plan) -> Outcome {
    backfill::conclude(&mut *world.topics(), &world.options(), plan).unwrap()
}

/// What stands on a topic of these names, as jobs over the same logs agree on it.
pub fn values(world: &World, names: &Names, topic: Topic) -> Values {
    let values = read_compacted(&mut *world.topics(), names.of(topic)).unwrap();
    values.into_iter().map(|(key, (_, value))| (key, comparable(topic, &value).into_owned())).collect()
}

fn of_backfill(world: &World, name: &str, topic: Topic) -> Values {
    values(world, &world.names().of_backfill(name), topic)
}

/// The live job's committed epochs.
pub fn committed(world: &World) -> i64 {
    epochs::load(&mut *world.topics(), world.names().of(Topic::Epochs), &world.job).unwrap().len() as i64
}

/// Backfills a job at rest in coarse epochs: byte for byte what stands on its topics, each with more than so
/// many keys, without a call or an embedding.
pub fn coarse_equals_live(world: &World, more_than: [(Topic, usize); 3]) -> Outcome {
    let (outcome, asked) = run(world, &order("coarse"));
    assert_eq!(asked, (0, 0), "calls and embeddings");
    let report = outcome.parity.as_ref().unwrap();
    assert!(report.equal() && report.exact && report.later_epochs == 0, "{report}");
    for (topic, least) in more_than {
        let (here, there) = (of_backfill(world, "coarse", topic), world.compacted(topic));
        assert!(here == there, "{topic:?}: {} and {} keys", here.len(), there.len());
        assert!(here.len() > least, "{topic:?}: {}", here.len());
    }
    assert_eq!(report.features.equal as usize, world.compacted(Topic::Features).len());
    outcome
}

/// Live in small epochs, then a backfill in one coarse one.
fn the_same_bytes_and_no_call(folder: &Path, world: &World) {
    let mut live = start(world);
    play(world, &mut live, &script(folder, "1500", world.partitions), 100);
    assert!(live.committed() > 20, "{} epochs", live.committed());
    let more_than = [(Topic::Features, 300), (Topic::Examples, 500), (Topic::DeadLetters, 0)];
    let outcome = coarse_equals_live(world, more_than);
    assert!(outcome.epoch <= 4, "{} coarse epochs", outcome.epoch);
    // The live job wasn't disturbed.
    live.topics();
    settle(&mut live);
}

#[test]
fn a_backfill_gives_the_bytes_of_live_without_a_call() {
    let folder = tempfile::tempdir().unwrap();
    the_same_bytes_and_no_call(folder.path(), &local(folder.path()));
}

#[test]
fn a_backfill_gives_the_bytes_of_live_without_a_call_on_kafka() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = on_kafka(folder.path(), "backfill", wide(10));
    world.epoch = 100;
    the_same_bytes_and_no_call(folder.path(), &world);
}

/// A backfill that is stopped, then killed at an edge, then ended.
fn killed_and_resumed(folder: &Path, world: &World) {
    let mut live = start(world);
    play(world, &mut live, &script(folder, "1000", world.partitions), 200);
    let order = Order { epoch_events: Some(300), ..order("b") };
    let plan = prepare(world, &order).unwrap();
    let asked = Asked::default();
    let stop = AtomicBool::new(false);
    let mut first = job(world, &plan, &asked);
    let ended = backfill::drive(&mut first, &stop, |job| stop.store(job.committed() >= 3, Ordering::Relaxed));
    assert!(!ended.unwrap());
    let reached = first.committed();
    assert!(first.extent().taken < first.extent().whole, "{:?}", first.extent());
    drop(first);
    assert!(backfill::outcome(&mut *world.topics(), &world.options(), &plan).unwrap().is_none());
    // The live job goes on meanwhile: the bounds stay.
    play(world, &mut live, cut(&script(folder, "1100", world.partitions), 3)[2], 200);
    assert_eq!(prepare(world, &order).unwrap(), plan);
    for (n, edge) in [Edge::BoundsRecorded, Edge::Committed].into_iter().enumerate() {
        let at = reached + 1 + n as i64;
        let edges = Edges::new(move |passed, epoch| assert!((passed, epoch) != (edge, at), "killed"));
        let mut killed = job(&World { edges, ..world.clone() }, &plan, &asked);
        let result =
            catch_unwind(AssertUnwindSafe(|| backfill::drive(&mut killed, &AtomicBool::new(false), |_| {})));
        assert!(result.is_err(), "{edge:?}");
    }
    let mut last = job(world, &plan, &asked);
    assert!(last.committed() > reached);
    assert!(backfill::drive(&mut last, &AtomicBool::new(false), |_| {}).unwrap());
    let epochs = last.committed();
    drop(last);
    assert!(epochs > reached + 2, "{epochs} epochs");
    let outcome = conclude(world, &plan);
    let report = outcome.parity.clone().unwrap();
    assert!(report.equal() && report.exact && report.later_epochs > 0, "{report}");
    assert_eq!(asked.counts(), (0, 0));
    // One that has ended says so, and compares again.
    assert_eq!(outcome.epoch, epochs);
    assert_eq!(conclude(world, &plan), outcome);
    // Other bounds under the same name are refused.
    let other = prepare(world, &to("b", "epoch:2")).unwrap_err().to_string();
    assert!(other.contains("begun with another --to"), "{other}");
}

#[test]
fn a_killed_backfill_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    killed_and_resumed(folder.path(), &local(folder.path()));
}

#[test]
fn a_killed_backfill_goes_on_where_it_was_on_kafka() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = on_kafka(folder.path(), "resumed", wide(10));
    world.epoch = 200;
    killed_and_resumed(folder.path(), &world);
}

#[test]
fn bounds_say_what_is_read_and_what_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let world = local(folder.path());
    let mut live = start(&world);
    let lines = script(folder.path(), "1000", world.partitions);
    let thirds = cut(&lines, 3);
    let (first, second) = lines.split_at(lines.len() - thirds[2].len());
    play(&world, &mut live, first, 100);
    let middle = live.committed();
    let then: Vec<Values> = [Topic::Features, Topic::Examples].map(|topic| world.compacted(topic)).into();
    play(&world, &mut live, second, 100);
    drop(live);

    // An epoch of the live job: what stood then, byte for byte, later epochs counted apart.
    let report = filled(&world, &to("then", &format!("epoch:{middle}")));
    assert!(report.equal() && report.exact, "{report}");
    assert_eq!(report.later_epochs, committed(&world) - middle);
    assert!(of_backfill(&world, "then", Topic::Features) == then[0]);
    assert!(of_backfill(&world, "then", Topic::Examples) == then[1]);
    assert!(world.compacted(Topic::Examples) != then[1], "the live job went on");

    // A time: only earlier records, and the report says that no live epoch is just that.
    let examples = world.compacted(Topic::Examples);
    let mut times: Vec<i64> =
        examples.values().map(|value| ExampleRecord::decode(value).unwrap().event_time).collect();
    times.sort();
    let time = times[times.len() / 2];
    let plan = prepare(&world, &to("time", &time.to_string())).unwrap();
    let at = world.topics().offsets_at("interactions", time).unwrap();
    assert_eq!(plan.until[&Topic::Interactions], at);
    assert!(!plan.details.exact && plan.details.live_epoch < committed(&world));
    let report = filled(&world, &to("time", &time.to_string()));
    assert!(!report.exact && report.to_string().contains("differences are expected"), "{report}");
    let early = of_backfill(&world, "time", Topic::Examples);
    assert!(!early.is_empty() && early.len() < examples.len());
    assert!(early.values().all(|value| ExampleRecord::decode(value).unwrap().event_time < time));

    // Offsets: nothing of a partition past them.
    let offsets = format!("offset:interactions/0={},interactions/1=0", at[0]);
    let plan = prepare(&world, &to("offsets", &offsets)).unwrap();
    let ends = world.topics().ends("interactions").unwrap();
    assert_eq!(plan.until[&Topic::Interactions], [at[0], 0, ends[2]]);
    filled(&world, &to("offsets", &offsets));
    let some = of_backfill(&world, "offsets", Topic::Examples);
    assert!(!some.is_empty() && some.len() < examples.len());

    // Published from a time on: all features, and the later examples.
    let from = |text: &str| Some((text.to_owned(), backfill::parse(text).unwrap()));
    let report = filled(&world, &Order { from: from(&time.to_string()), ..order("from") });
    assert!(report.equal() && report.exact, "{report}");
    assert_eq!(report.examples.before_from, times.iter().filter(|at| **at < time).count() as u64);
    assert!(of_backfill(&world, "from", Topic::Features) == world.compacted(Topic::Features));
    let late = of_backfill(&world, "from", Topic::Examples);
    assert_eq!(late.len(), times.iter().filter(|at| **at >= time).count());
    assert!(late.values().all(|value| ExampleRecord::decode(value).unwrap().event_time >= time));
    // From an offset: the time of its record, in its partition alone.
    let text = format!("offset:interactions/1={}", at[1]);
    let order = Order { from: from(&text), ..order("from-offset") };
    let plan = prepare(&world, &order).unwrap();
    assert_eq!((plan.from[0], plan.from[2]), (i64::MIN, i64::MIN));
    assert!(plan.from[1] >= time);
    let report = filled(&world, &order);
    assert!(report.equal() && report.examples.before_from > 0, "{report}");

    for (bound, says) in [
        ("epoch:100000".to_owned(), "has committed epoch"),
        (format!("offset:interactions/0={}", ends[0] + 1), "before"),
        ("offset:interactions/3=0".to_owned(), "has no partition 3"),
    ] {
        let refused = prepare(&world, &to("refused", &bound)).unwrap_err().to_string();
        assert!(refused.contains(says), "{bound}: {refused}");
    }
    let refused = prepare(&world, &Order { from: from("epoch:1"), ..super::backfill::order("refused") });
    assert!(refused.unwrap_err().to_string().contains("takes no epoch"));
}

#[test]
fn only_what_has_no_answer_is_asked_where_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = local(folder.path());
    world.calls_file = Some(folder.path().join("live.calls"));
    let lines = script(folder.path(), "800", world.partitions);
    let [first, second] = cut(&lines, 2)[..] else { unreachable!("two parts") };
    let mut live = start(&world);
    play(&world, &mut live, first, 100);
    drop(live);
    let answered = world::calls(world.calls_file.as_ref().unwrap()).len();
    // The rest without a call.
    world.generate = false;
    let mut live = start(&world);
    play(&world, &mut live, second, 100);
    let (wanted, known) = (live.requester().wanted().len(), live.requester().answered());
    assert!(answered > 10 && known < wanted, "{answered} answered, {known} of {wanted} wanted");
    drop(live);

    let silent = filled(&world, &order("silent"));
    assert!(silent.equal() && silent.exact, "{silent}");

    let asking = Order { generate: true, ..order("asking") };
    let (outcome, (calls, texts)) = run(&world, &asking);
    assert_eq!((outcome.called as usize, calls), (wanted - known, wanted - known));
    assert!(texts > 0 && outcome.embedded as usize == texts);
    let report = outcome.parity.unwrap();
    assert!(!report.exact && !report.equal(), "{report}");
    let used = |name: &str| -> BTreeSet<String> {
        let values = of_backfill(&world, name, Topic::Features).into_values();
        let features = values.map(|value| Feature::decode(&value).unwrap());
        features.flat_map(|feature| feature.demonstrations).map(|used| used.id).collect()
    };
    let (asked, known) = (used("asking"), used("silent"));
    assert!(asked.difference(&known).count() > 10, "{} and {}", asked.len(), known.len());
    assert!(report.differences.iter().any(|told| told.reason.contains("demonstrations")), "{report}");
    // Now all have one: nothing is asked.
    let (outcome, asked) = run(&world, &Order { generate: true, ..order("again") });
    assert_eq!((outcome.called, asked), (0, (0, 0)));
    assert!(of_backfill(&world, "again", Topic::Features) == of_backfill(&world, "asking", Topic::Features));
}
