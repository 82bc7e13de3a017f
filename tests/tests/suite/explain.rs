//! The lineage of vectors: stale texts, other prompts, on every store.

use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_dataflows::explain::{Explanation, Lineage, live_pairs};
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::{CotRecord, CotStatus, topic_key};
use ictflow_schemas::framing::{Digest, Partitioner};
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_tests::support::world::{self, T0, World, feed, films, hashed, item, settle, template};
use std::path::Path;

fn world(folder: &Path, job: &str) -> World {
    let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    let semantics = Semantics { cot_stride, ..Semantics::default() };
    World::new(folder, job, semantics, world::weights(384))
}

fn explained(world: &World, user: &str, item: &str) -> Explanation {
    let names = world.names();
    let mut topics = world.topics();
    Lineage::read_pair(&mut *topics, &names, &world.job, Format::Avro, (user, item))
        .unwrap_or_else(|e| panic!("{e}"))
        .explanation(user, item)
        .unwrap_or_else(|| panic!("{user} and {item} have no feature"))
}

/// Every demonstration of every live pair has its example and its text, found by what it used, and most
/// have their prompt. Reading one pair tells the same as reading all.
pub fn every_demonstration_is_explained(world: &World) {
    let names = world.names();
    let mut topics = world.topics();
    let pairs = live_pairs(&mut *topics, &names).unwrap();
    let lineage = Lineage::read(&mut *topics, &names, &world.job, Format::Avro).unwrap();
    assert_eq!(lineage.pairs().len(), pairs.len());
    let (mut used, mut prompted) = (0, 0);
    let mut fullest: Option<(i32, &String, &String)> = None;
    for (user, item) in &pairs {
        let explanation = lineage.explanation(user, item).unwrap();
        for demonstration in &explanation.demonstrations {
            let example = demonstration.example.as_ref().unwrap_or_else(|| panic!("{explanation}"));
            let cot = demonstration.cot.as_ref().unwrap_or_else(|| panic!("{explanation}"));
            assert_eq!(demonstration.label, example.label);
            assert_eq!(demonstration.fresh, demonstration.content_key.as_ref() == Some(&cot.key));
            used += 1;
            prompted += usize::from(demonstration.prompt.as_ref().is_some_and(|p| !p.messages.is_empty()));
        }
        if fullest.as_ref().is_none_or(|(k, ..)| *k < explanation.k) {
            fullest = Some((explanation.k, user, item));
        }
    }
    assert!(used >= 20 && 2 * prompted > used, "{prompted} of {used}");
    let (_, user, item) = fullest.unwrap();
    let (mut whole, mut one) = (lineage.explanation(user, item).unwrap(), explained(world, user, item));
    // Neighbours' examples are read where one pair is asked for.
    assert!(one.neighbours.iter().all(|neighbour| neighbour.example.is_some()), "{one}");
    for neighbour in whole.neighbours.iter_mut().chain(&mut one.neighbours) {
        neighbour.example = None;
    }
    assert_eq!(one.to_string(), whole.to_string());
}

#[test]
fn a_stale_demonstration_shows_the_text_that_was_used_and_the_prompt_that_asked_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), "stale");
    let mut job = world.start(template(), hashed());
    feed(&mut job, &films(), world.partitions);
    let before = explained(&world, "u2", "c");
    let of = |explanation: &Explanation, user: &str| {
        let found = explanation.demonstrations.iter().find(|d| d.example.as_ref().unwrap().user == user);
        found.unwrap_or_else(|| panic!("{explanation}")).clone()
    };
    let fresh = of(&before, "u1");
    assert!(fresh.fresh);
    let first = fresh.cot.clone().unwrap();
    assert_eq!(fresh.content_key.as_ref(), Some(&first.key));
    assert_eq!((first.attempts, first.llm_model.as_str()), (1, "template"));
    let asked = fresh.prompt.unwrap().messages;
    assert!(asked.last().unwrap().content.contains("film: Film a"), "{asked:?}");
    drop(job);

    // The title changes while nothing may be asked: the old text serves. A newer record of the same user,
    // item and decision isn't it, since its text has no vector.
    world.generate = false;
    let mut job: Job = world.start(template(), hashed());
    let newer = CotRecord {
        status: CotStatus::Ok,
        user_id: "u1".into(),
        item_id: "a".into(),
        decision: "positive".into(),
        prompt_version: before.prompt_version.clone(),
        llm_model: before.llm_model.clone(),
        parameters: "{}".into(),
        text: "A text that nobody has embedded.".into(),
        attempts: 1,
        tokens_in: 0,
        tokens_out: 0,
        finish_reason: "stop".into(),
        quality: 1.0,
        created_at: T0,
    };
    let record = NewRecord {
        topic: world.names().of(Topic::Cot).to_owned(),
        partition: Partitioner::Murmur2.partition(b"u1", world.partitions),
        timestamp: None,
        key: Some(topic_key(CotStatus::Ok, &Digest([7; 32]))),
        value: Some(newer.encode()),
        headers: Vec::new(),
    };
    job.topics().append(&[record]).unwrap();
    feed(&mut job, &[item("a", Some("Film a, restored"), "1")], world.partitions);
    let after = explained(&world, "u2", "c");
    let stale = of(&after, "u1");
    assert!(!stale.fresh, "{after}");
    let used = stale.cot.unwrap();
    assert_eq!((&used.key, &used.text), (&first.key, &first.text));
    assert_ne!(stale.content_key, Some(used.key), "its own key isn't answered");
    assert_eq!(stale.example.unwrap().title, "Film a, restored");
    // The prompt is the one that asked then, with the title of then.
    assert_eq!(stale.prompt.unwrap().messages, asked);
    let text = after.to_string();
    assert!(text.contains("in its place the CoT of key") && !text.contains("nobody has embedded"), "{text}");

    // A title in the history is in no key: its prompt can't be rebuilt, and a wrong one isn't shown.
    feed(&mut job, &[item("b", Some("Film b, restored"), "1")], world.partitions);
    let edited = of(&explained(&world, "u2", "c"), "u1").prompt.unwrap();
    assert!(edited.messages.is_empty(), "{edited:?}");
    assert!(edited.unavailable.unwrap().contains("history were edited"));
}

#[test]
fn a_prompt_of_another_version_is_named_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "version");
    let file = include_str!("../../../connectors/src/llm/prompt.toml");
    let other = Prompt::parse(&format!("{file}\n# another version\n")).unwrap_or_else(|e| panic!("{e}"));
    let version = other.version().to_owned();
    let mut job = world.start(Box::new(Template::new(other)), hashed());
    feed(&mut job, &films(), world.partitions);
    settle(&mut job);
    let explanation = explained(&world, "u2", "c");
    assert!(explanation.k > 0, "{explanation}");
    for used in &explanation.demonstrations {
        let prompt = used.prompt.as_ref().unwrap();
        assert!(prompt.messages.is_empty() && used.cot.is_some());
        let reason = prompt.unavailable.as_ref().unwrap();
        assert!(reason.contains(&version) && reason.contains(Prompt::builtin().version()), "{reason}");
    }
}
