//! The LLM is asked once a key, and only for what changed.

use ictflow_connectors::llm::Generate;
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::CotRequest;
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::{CotStatus, Feature, feature_key};
use ictflow_schemas::framing::{Frame, Partitioner, text_digest};
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{
    self, Hooked, SECOND, T0, World, calls, close, event, feed, films, hashed, item, settle, template,
};
use serde_json::Value;
use std::path::Path;
use std::sync::mpsc;

/// Every example with a history gets a CoT.
fn every_example() -> Semantics {
    let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    Semantics { cot_stride, ..Semantics::default() }
}

fn world(folder: &Path, job: &str) -> World {
    let mut world = World::new(folder, job, every_example(), world::weights(384));
    world.calls_file = Some(folder.join(format!("{job}.calls")));
    world
}

fn count(world: &World) -> usize {
    calls(world.calls_file.as_ref().unwrap()).len()
}

fn started(world: &World) -> Job {
    world.start(template(), hashed())
}

#[test]
fn a_new_job_over_the_same_logs_calls_nothing_and_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let first = world(folder.path(), "first");
    let mut job = started(&first);
    feed(&mut job, &films(), first.partitions);
    assert_eq!(count(&first), 3, "one call for each example with a history");
    drop(job);
    let second = world(folder.path(), "second");
    let mut job = started(&second);
    settle(&mut job);
    assert_eq!(job.requester().wanted().len(), 3);
    assert_eq!((count(&second), job.requester().accounting.embeddings), (0, 0));
    assert_eq!(first.compacted(Topic::Features), second.compacted(Topic::Features));
    assert_eq!(second.compacted(Topic::Features).len(), 6);
    assert_eq!(first.compacted(Topic::Examples), second.compacted(Topic::Examples));
}

#[test]
fn a_restart_publishes_only_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut job = started(&world);
    feed(&mut job, &films(), world.partitions);
    let (epoch, features) = (job.committed(), world.compacted(Topic::Features));
    drop(job);
    // A leftover of nobody: the difference at start takes it away.
    let stray = feature_key("nobody", "a");
    let record = NewRecord {
        topic: world.names().of(Topic::Features).to_owned(),
        partition: Partitioner::Murmur2.partition(b"nobody", world.partitions),
        timestamp: None,
        key: Some(stray.clone()),
        value: Some(b"leftover".to_vec()),
        headers: vec![],
    };
    world.topics().append(&[record]).unwrap();
    let mut job = started(&world);
    assert_eq!(job.committed(), epoch, "a replay commits nothing");
    world::append(&mut job, &[item("e", Some("Film e"), "1")], world.partitions);
    let step = loop {
        let step = job.step(std::time::Duration::from_millis(20)).unwrap();
        if step.epoch.is_some() {
            break step;
        }
    };
    assert_eq!((step.committed.features, step.committed.retractions, step.committed.examples), (0, 1, 0));
    settle(&mut job);
    assert_eq!(world.compacted(Topic::Features), features);
    assert_eq!(count(&world), 3);
}

#[test]
fn an_edit_asks_only_the_examples_on_its_item_and_a_price_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut job = started(&world);
    feed(&mut job, &films(), world.partitions);
    let published = job.totals().committed.features;
    feed(&mut job, &[item("a", Some("Film a"), "2"), item("b", Some("Film b"), "3")], world.partitions);
    assert_eq!(count(&world), 3, "a price asks nothing");
    assert_eq!(job.totals().committed.features, published, "and publishes nothing");
    // `b` is in every history and has no eligible example: histories enter a key by ids.
    let embedded = job.requester().accounting.embeddings;
    feed(&mut job, &[item("b", Some("Film b, restored"), "3")], world.partitions);
    assert_eq!(count(&world), 3);
    assert_eq!(job.requester().accounting.embeddings, embedded + 1, "its new text");
    feed(&mut job, &[item("a", Some("Film a, restored"), "2")], world.partitions);
    assert_eq!(count(&world), 6, "the three examples on a");
    let file = calls(world.calls_file.as_ref().unwrap());
    let distinct: std::collections::BTreeSet<_> = file.iter().map(|(key, _)| key).collect();
    assert_eq!(distinct.len(), 6, "no key twice");
}

#[test]
fn while_a_new_text_is_written_the_old_one_serves_as_stale() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let (allow, gate) = mpsc::channel();
    let mut job = world.start(gated(gate), hashed());
    (0..3).for_each(|_| allow.send(()).unwrap());
    feed(&mut job, &films(), world.partitions);
    let feature =
        |world: &World| Feature::decode(&world.compacted(Topic::Features)[&feature_key("u1", "c")]).unwrap();
    // K is 4 and three demonstrations exist.
    assert_eq!((feature(&world).k, feature(&world).cot_status), (3, CotStatus::Partial));
    assert!(feature(&world).demonstrations.iter().all(|d| d.fresh));
    world::append(&mut job, &[item("a", Some("Film a, restored"), "1")], world.partitions);
    close(&mut job);
    let stale = feature(&world);
    assert_eq!(stale.k, 3, "an edit doesn't blank the topic");
    assert!(stale.demonstrations.iter().all(|d| !d.fresh));
    (0..3).for_each(|_| allow.send(()).unwrap());
    settle(&mut job);
    assert!(feature(&world).demonstrations.iter().all(|d| d.fresh));
}

#[test]
fn a_delete_retracts_pairs_and_demonstrations_and_a_rebirth_asks_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut job = started(&world);
    feed(&mut job, &films(), world.partitions);
    assert_eq!(job.demonstrations().len(), 3);
    feed(&mut job, &[item("a", None, ""), item("c", None, "")], world.partitions);
    assert_eq!(job.demonstrations().len(), 0);
    let features = world.compacted(Topic::Features);
    assert_eq!(features.len(), 3, "the pairs with d stay");
    for value in features.values() {
        assert_eq!(Feature::decode(value).unwrap().k, 0);
    }
    assert_eq!(job.totals().committed.retractions, 3);
    feed(&mut job, &[item("a", Some("Film a"), "9"), item("c", Some("Film c"), "9")], world.partitions);
    assert_eq!(job.demonstrations().len(), 3);
    assert_eq!(world.compacted(Topic::Features).len(), 6);
    assert_eq!(count(&world), 3, "the same keys as before: answered");
}

#[test]
fn a_removed_answer_is_asked_again_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let first = world(folder.path(), "first");
    let mut job = started(&first);
    feed(&mut job, &films(), first.partitions);
    drop(job);
    let removed = first.compacted(Topic::Cot).into_keys().next().unwrap();
    let place = {
        let mut found = None;
        ictflow_dataflows::epochs::read_whole(&mut *first.topics(), "cot", |record| {
            if record.key.as_deref() == Some(&removed) {
                found = Some(record.partition);
            }
        })
        .unwrap();
        found.unwrap()
    };
    let tombstone = NewRecord {
        topic: "cot".into(),
        partition: place,
        timestamp: None,
        key: Some(removed.clone()),
        value: None,
        headers: vec![],
    };
    first.topics().append(&[tombstone]).unwrap();
    let second = world(folder.path(), "second");
    let mut job = started(&second);
    settle(&mut job);
    let asked = calls(second.calls_file.as_ref().unwrap());
    assert_eq!(asked, [(String::from_utf8(removed).unwrap(), 1)]);
}

#[test]
fn an_embedding_that_goes_leaves_the_older_text_as_a_recomputation_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = world(folder.path(), "first");
    let mut job = started(&first);
    feed(&mut job, &films(), first.partitions);
    let before = first.compacted(Topic::Features);
    let edit = item("c", Some("Film c, restored"), "1");
    feed(&mut job, std::slice::from_ref(&edit), first.partitions);
    assert_ne!(first.compacted(Topic::Features), before, "the new text serves");
    // The new text's vector goes, and none comes: the encoder has refused it.
    let text = serde_json::from_value::<Item>(edit["value"].clone()).unwrap().text();
    let (encoder, digest) = (hashed().id().to_owned(), text_digest(&text).hex());
    let ok = Frame::new().text(&encoder).text(&digest).into_bytes();
    let refusal = Embedding { encoder, digest, status: EmbeddingStatus::Failed, vector: vec![] };
    let new = |key: Vec<u8>, value: Option<Vec<u8>>| NewRecord {
        topic: "embeddings".into(),
        partition: 0,
        timestamp: None,
        key: Some(key),
        value,
        headers: vec![],
    };
    job.topics().append(&[new(refusal.key(), Some(refusal.encode())), new(ok, None)]).unwrap();
    settle(&mut job);
    assert_eq!(first.compacted(Topic::Features), before, "the older text serves again");
    drop(job);
    let second = world(folder.path(), "second");
    settle(&mut started(&second));
    assert_eq!(second.compacted(Topic::Features), before);
}

/// The template, waiting for leave before each answer.
fn gated(gate: mpsc::Receiver<()>) -> Box<dyn Generate> {
    let hook = move |inner: &mut dyn Generate, request: &CotRequest, attempt: u32| {
        // The test may be over; then the thread ends with it.
        let _ = gate.recv();
        inner.generate(request, attempt)
    };
    Box::new(Hooked { inner: template(), hook })
}

#[test]
fn a_key_retracted_in_flight_and_wanted_again_is_not_asked_twice() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let (allow, gate) = mpsc::channel();
    let mut job = world.start(gated(gate), hashed());
    let mut lines = vec![item("a", Some("Film a"), "1"), item("b", Some("Film b"), "1")];
    lines.push(event("u1", "1", "b", "rate", Some(5.0), T0));
    lines.push(event("u1", "2", "a", "rate", Some(5.0), T0 + SECOND));
    world::append(&mut job, &lines, world.partitions);
    while count(&world) == 0 {
        job.step(std::time::Duration::from_millis(5)).unwrap();
    }
    // The call is under way. The item goes, and comes back with the same text.
    world::append(&mut job, &[item("a", None, "")], world.partitions);
    close(&mut job);
    assert_eq!(job.requester().wanted().len(), 0);
    world::append(&mut job, &[item("a", Some("Film a"), "1")], world.partitions);
    close(&mut job);
    assert_eq!(job.requester().wanted().len(), 1);
    allow.send(()).unwrap();
    settle(&mut job);
    assert_eq!(count(&world), 1);
    assert_eq!((job.requester().accounting.called, job.requester().accounting.first_calls), (1, 1));
    assert_eq!(job.demonstrations().len(), 1);
}

#[test]
fn a_late_event_corrects_what_was_emitted_and_gets_its_own_history() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "job");
    world.semantics.history_length = 3;
    world.semantics.prompt_history = 3;
    let mut job = started(&world);
    let minute = 60 * SECOND;
    let mut lines: Vec<Value> =
        ["a", "b", "c", "d", "e", "f"].iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    lines.push(event("u", "old", "f", "click", None, T0 - minute));
    for (n, film) in ["a", "b", "c", "d"].into_iter().enumerate() {
        lines.push(event("u", &format!("s{n}"), film, "impression", None, T0 + minute * n as i64));
        lines.push(event("u", &format!("o{n}"), film, "rate", Some(1.0), T0 + minute * n as i64 + SECOND));
    }
    feed(&mut job, &lines, world.partitions);
    let example = |world: &World, time: i64, id: &str| {
        let key = Frame::new().text("u").int(time).text(id).into_bytes();
        world.compacted(Topic::Examples).get(&key).map(|value| ExampleRecord::decode(value).unwrap())
    };
    let ids = |example: &ExampleRecord| {
        example.history.iter().map(|e| e.item_id.clone()).collect::<Vec<_>>().join("")
    };
    assert_eq!(ids(&example(&world, T0 + 3 * minute, "s3").unwrap()), "abc");
    // Late by minutes: a like on `e` before all but the first, and a better outcome for `b`.
    let late = T0 + 30 * SECOND;
    feed(
        &mut job,
        &[
            event("u", "late", "e", "like", None, late),
            event("u", "o1-again", "b", "like", None, T0 + minute + 2 * SECOND),
        ],
        world.partitions,
    );
    assert_eq!(
        ids(&example(&world, late, "late").unwrap()),
        "fa",
        "its own history, behind more than L newer"
    );
    assert_eq!(ids(&example(&world, T0 + minute, "s1").unwrap()), "fae");
    let corrected = example(&world, T0 + minute, "s1").unwrap();
    assert_eq!((corrected.label, corrected.label_time), (1, T0 + minute + 2 * SECOND));
    assert_eq!(ids(&example(&world, T0 + 2 * minute, "s2").unwrap()), "ebb");
    // Beyond lateness it is a dead letter.
    feed(
        &mut job,
        &[event("u", "x", "a", "click", None, T0 + 60 * minute), event("u", "y", "a", "click", None, T0)],
        world.partitions,
    );
    let letters: Vec<DeadLetter> = world
        .compacted(Topic::DeadLetters)
        .values()
        .map(|value| DeadLetter::decode(value).unwrap())
        .collect();
    assert_eq!(letters.iter().map(|letter| letter.reason.as_str()).collect::<Vec<_>>(), ["late"]);
}

#[test]
fn another_configuration_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "job");
    let mut job = started(&world);
    feed(&mut job, &films(), world.partitions);
    drop(job);
    world.semantics.pair_ttl_ms += 1;
    let error = world.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains("semantics") && error.contains("another name"), "{error}");
}

#[test]
fn a_job_on_the_outputs_of_another_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let first = world(folder.path(), "first");
    let mut job = started(&first);
    feed(&mut job, &films(), first.partitions);
    drop(job);
    let second = World { job: "second".into(), topics_of: Some("first".into()), ..first.clone() };
    let error = second.try_start(template(), hashed()).err().unwrap().to_string();
    assert!(error.contains("belong to job first") && error.contains("suffix"), "{error}");
}

#[test]
fn an_epoch_recorded_under_other_weights_publishes_nothing_and_the_next_one_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "job");
    let mut job = started(&world);
    feed(&mut job, &films(), world.partitions);
    let committed = job.committed();
    drop(job);
    // As a kill between the bounds and the commit leaves it: an item, and bounds that hold it.
    let names = world.names();
    let mut topics = world.topics();
    topics.append(&[world::record(&item("a", Some("Film a"), "7"), world.partitions, "")]).unwrap();
    let records = ictflow_dataflows::epochs::load(&mut *topics, names.of(Topic::Epochs), "job").unwrap();
    let mut bounds = records.last().unwrap().clone();
    bounds.epoch += 1;
    bounds.config = None;
    let ends = topics.ends("items").unwrap();
    bounds.ends.insert("items".into(), ends);
    let mut writer = topics.writer("job.epochs").unwrap();
    ictflow_dataflows::epochs::commit(&mut *writer, names.of(Topic::Epochs), &bounds).unwrap();
    // The successor has other weights.
    let before = world.compacted(Topic::Features);
    world.weights = std::sync::Arc::new(
        ictflow_operators::ict::untrained(8, ictflow_operators::ict::Shape::default()).unwrap(),
    );
    let mut job = started(&world);
    assert_eq!(job.committed(), committed + 1);
    assert_eq!(world.compacted(Topic::Features), before, "nothing under a name that isn't its own");
    world::append(&mut job, &[item("e", Some("Film e"), "1")], world.partitions);
    settle(&mut job);
    let version = job.actives().ict_weights.clone();
    let features = world.compacted(Topic::Features);
    assert_eq!(features.len(), before.len());
    for (key, value) in &features {
        let feature = Feature::decode(value).unwrap();
        assert_eq!(feature.ict_weights, version);
        assert_ne!(feature.ict, Feature::decode(&before[key]).unwrap().ict);
    }
    assert_eq!(count(&world), 3, "and no call");
}
