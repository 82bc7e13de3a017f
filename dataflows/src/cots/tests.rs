//! The run over a small data set, with generators that fail, loop and count.
#![allow(clippy::unwrap_used)]

use super::asking::{Asked, Budget, FAILED_CALLS, ask};
use super::examples::Examples;
use super::judge::judge;
use super::log::{CotLog, Version};
use super::quality::Quality;
use super::texts::{Variant, texts_by, texts_of};
use crate::ranking::dataset::{Prepared, Protocol};
use crate::ranking::world::prepared;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::llm::{Draft, Generate};
use ictflow_connectors::{Error, Result};
use ictflow_operators::eligible::selected;
use ictflow_operators::ranking::histories::example;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::CotRequest;
use ictflow_schemas::history::Label;
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn only_training_samples_with_a_history_are_asked_in_an_order_of_their_own() {
    let prepared = prepared(Protocol::Time);
    let examples = Examples::of(&prepared);
    let train = &prepared.split.train;
    let made = |place: u32| example(&prepared.data, &prepared.histories, train[place as usize]);
    let all: HashSet<u32> = examples.places().iter().copied().collect();
    assert_eq!(all.len(), examples.len());
    for place in 0..train.len() as u32 {
        assert_eq!(all.contains(&place), !made(place).history.is_empty(), "{place}");
    }
    let semantics = Semantics::default();
    let first = examples.places().iter().filter(|&&place| selected(&made(place), &semantics)).count();
    let selects: Vec<bool> =
        examples.places().iter().map(|&place| selected(&made(place), &semantics)).collect();
    assert!(first > 0 && selects[..first].iter().all(|&selects| selects));
    // Any prefix is a fair sample: of the whole period, and of both labels.
    let prefix = &examples.places()[..examples.len() / 4];
    let mean =
        |places: &[u32]| places.iter().map(|&place| f64::from(place)).sum::<f64>() / places.len() as f64;
    let (of_all, of_prefix) = (mean(examples.places()), mean(prefix));
    assert!((of_all - of_prefix).abs() < train.len() as f64 / 10.0, "{of_all} {of_prefix}");
    let liked = |places: &[u32]| places.iter().filter(|&&place| train[place as usize].positive).count();
    let share =
        liked(prefix) as f64 / prefix.len() as f64 - liked(examples.places()) as f64 / examples.len() as f64;
    assert!(share.abs() < 0.1, "{share}");
}

#[test]
fn a_view_states_the_label_or_none_and_a_history_before_its_example() {
    let prepared = prepared(Protocol::Time);
    let examples = Examples::of(&prepared);
    let (data, train) = (&prepared.data, &prepared.split.train);
    let version = version_of(&Template::new(Prompt::builtin()), false);
    for &place in examples.places() {
        let sample = train[place as usize];
        let (view, free) = (examples.view(place, false), examples.view(place, true));
        let label = if sample.positive { Label::Positive } else { Label::Negative };
        assert_eq!((view.decision, free.decision), (label, Label::None));
        assert_eq!(
            (&view.history, &view.item_text, &view.user),
            (&free.history, &free.item_text, &free.user)
        );
        assert!(!view.history.is_empty() && view.history.len() <= Semantics::default().prompt_history);
        let item = data.items().find(&view.item).unwrap();
        assert_eq!(item, sample.item);
        let time = data.rows()[sample.row as usize].time;
        let user = data.rows()[sample.row as usize].user;
        for (earlier, _, label) in &view.history {
            let earlier = data.items().find(earlier).unwrap();
            let row = data.rows().iter().find(|row| row.user == user && row.item == earlier).unwrap();
            assert!(row.time < time && row.label == *label);
        }
        let request = examples.request(version.key(&view), &view);
        assert_eq!(request.item.title, format!("film {}", view.item.trim_start_matches('i')));
        assert!(request.history.iter().all(|entry| entry.item.is_some()));
    }
}

/// Writes a good text of 10 tokens read and 5 written, but for what its faults say. Counts its calls.
struct Fake {
    prompt: Prompt,
    /// By request number from 0: whether every attempt loops.
    loops: fn(usize) -> bool,
    /// By call number from 0: an error.
    fails: fn(usize) -> Option<Error>,
    /// Answers that grow together.
    batch: usize,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    calls: usize,
    requests: Vec<String>,
}

impl Fake {
    fn of(seen: &Arc<Mutex<Seen>>) -> Self {
        Fake { prompt: Prompt::builtin(), loops: |_| false, fails: |_| None, batch: 1, seen: seen.clone() }
    }
}

impl Generate for Fake {
    fn model(&self) -> &str {
        "fake"
    }
    fn prompt_version(&self) -> &str {
        self.prompt.version()
    }
    fn parameters(&self) -> &str {
        "{}"
    }
    fn attempts(&self) -> u32 {
        2
    }
    fn batch(&self) -> usize {
        self.batch
    }
    fn generate(&mut self, request: &CotRequest, _attempt: u32) -> Result<Draft> {
        let mut seen = self.seen.lock().unwrap();
        let call = seen.calls;
        seen.calls += 1;
        let key = request.key.hex();
        if !seen.requests.contains(&key) {
            seen.requests.push(key.clone());
        }
        if let Some(error) = (self.fails)(call) {
            return Err(error);
        }
        let number = seen.requests.iter().position(|known| *known == key).unwrap();
        let words = if (self.loops)(number) { "so so so so" } else { "a bold tale of the sea" };
        Ok(Draft {
            text: format!("{words}, as {key} has it"),
            written: vec![words.to_owned()],
            tokens_in: 10,
            tokens_out: 5,
            finish_reason: "stop".into(),
        })
    }
}

fn version_of(generator: &dyn Generate, label_free: bool) -> Version {
    Version::of(generator, label_free)
}

const ENDLESS: Budget = Budget { examples: 8, tokens: None, time: None };

/// Asks with one fake, on the log of a folder.
fn run(prepared: &Prepared, folder: &Path, fake: Fake, budget: Budget) -> Result<Asked> {
    let examples = Examples::of(prepared);
    let mut log = CotLog::open(&folder.join("d.jsonl"))?;
    let version = version_of(&fake, false);
    ask(&examples, vec![Box::new(fake)], &Validator::new(&Prompt::builtin()), &version, budget, &mut log)
}

#[test]
fn a_run_asks_what_has_no_answer_and_a_failure_is_one() {
    let (prepared, folder) = (prepared(Protocol::Time), tempfile::tempdir().unwrap());
    let seen = Arc::default();
    let third_loops = || Fake { loops: |number| number == 2, ..Fake::of(&seen) };
    let asked = run(&prepared, folder.path(), third_loops(), ENDLESS).unwrap();
    let expected = Asked { made: 7, failed: 1, calls: 9, tokens_in: 90, tokens_out: 45, ..Asked::default() };
    assert_eq!(Asked { time: Duration::ZERO, ..asked }, expected);
    let more = Budget { examples: 10, ..ENDLESS };
    let asked = run(&prepared, folder.path(), third_loops(), more).unwrap();
    let expected = Asked {
        made: 2,
        resumed: 7,
        resumed_failed: 1,
        calls: 2,
        tokens_in: 20,
        tokens_out: 10,
        ..Asked::default()
    };
    assert_eq!(Asked { time: Duration::ZERO, ..asked }, expected);
    let asked = run(&prepared, folder.path(), third_loops(), more).unwrap();
    assert_eq!((asked.calls, asked.resumed, asked.resumed_failed), (0, 9, 1));
    assert_eq!(seen.lock().unwrap().requests.len(), 10);
}

#[test]
fn a_budget_ends_a_run_between_two_examples() {
    let (prepared, folder) = (prepared(Protocol::Time), tempfile::tempdir().unwrap());
    let seen = Arc::default();
    for (tokens, made, left) in [(0, 0, 8), (1, 1, 7), (30, 2, 5), (31, 3, 2)] {
        let budget = Budget { tokens: Some(tokens), ..ENDLESS };
        let asked = run(&prepared, folder.path(), Fake::of(&seen), budget).unwrap();
        assert_eq!((asked.made, asked.left), (made, left), "{tokens}");
    }
    let none = Budget { time: Some(Duration::ZERO), ..ENDLESS };
    let asked = run(&prepared, folder.path(), Fake::of(&seen), none).unwrap();
    assert_eq!((asked.made, asked.left, asked.resumed), (0, 2, 6));
}

#[test]
fn a_call_that_failed_is_made_again_and_a_service_that_is_gone_ends_the_run() {
    let (prepared, folder) = (prepared(Protocol::Time), tempfile::tempdir().unwrap());
    let seen = Arc::default();
    fn busy(call: usize) -> Option<Error> {
        let hint = "is the service well?";
        (call.is_multiple_of(3)).then(|| Error::retry(Duration::from_millis(1), "ask the LLM", "503", hint))
    }
    let asked = run(&prepared, folder.path(), Fake { fails: busy, ..Fake::of(&seen) }, ENDLESS).unwrap();
    assert_eq!((asked.made, asked.failed), (8, 0));
    assert_eq!(asked.calls as usize, seen.lock().unwrap().calls, "failed calls count too");

    fn gone(call: usize) -> Option<Error> {
        let hint = "is the service well?";
        (call >= 3).then(|| Error::retry(Duration::from_millis(1), "ask the LLM", "no answer", hint))
    }
    let folder = tempfile::tempdir().unwrap();
    let seen = Arc::default();
    let error = run(&prepared, folder.path(), Fake { fails: gone, ..Fake::of(&seen) }, ENDLESS).unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
    assert_eq!(seen.lock().unwrap().calls, 3 + FAILED_CALLS as usize);
    let asked = run(&prepared, folder.path(), Fake::of(&seen), ENDLESS).unwrap();
    assert_eq!((asked.resumed, asked.made), (3, 5), "what was answered before is kept");
}

#[test]
fn a_batch_asks_what_one_after_the_other_would() {
    let prepared = prepared(Protocol::Time);
    let second_loops = |seen: &Arc<Mutex<Seen>>| Fake { loops: |number| number == 1, ..Fake::of(seen) };
    let [alone, together] = [1, 3].map(|batch| {
        let (seen, folder) = (Arc::default(), tempfile::tempdir().unwrap());
        let fake = Fake { batch, ..second_loops(&seen) };
        let version = version_of(&fake, false);
        let asked = run(&prepared, folder.path(), fake, ENDLESS).unwrap();
        let log = CotLog::read(&folder.path().join("d.jsonl")).unwrap();
        (Asked { time: Duration::ZERO, ..asked }, texts_by(&log, &prepared, &version))
    });
    assert_eq!(alone, together);
    assert_eq!((alone.0.made, alone.0.failed, alone.0.calls), (7, 1, 9));
    // What is under way when a budget is spent ends: here the first three, of which one is asked twice.
    let (seen, folder) = (Arc::default(), tempfile::tempdir().unwrap());
    let budget = Budget { tokens: Some(1), ..ENDLESS };
    let fake = Fake { batch: 3, ..second_loops(&seen) };
    let asked = run(&prepared, folder.path(), fake, budget).unwrap();
    assert_eq!((asked.made, asked.failed, asked.left, asked.calls), (2, 1, 5, 4));
    fn breaks(call: usize) -> Option<Error> {
        (call == 4).then(|| Error::fatal("the local model failed", "gone", "fetch it again"))
    }
    let (seen, folder) = (Arc::default(), tempfile::tempdir().unwrap());
    let fake = Fake { batch: 3, fails: breaks, ..Fake::of(&seen) };
    assert!(run(&prepared, folder.path(), fake, ENDLESS).is_err());
    let asked = run(&prepared, folder.path(), Fake::of(&seen), ENDLESS).unwrap();
    assert!(asked.resumed >= 3 && asked.resumed + asked.made == 8, "{asked:?}");
}

#[test]
fn several_generators_answer_what_one_would() {
    let prepared = prepared(Protocol::Time);
    let examples = Examples::of(&prepared);
    let folder = tempfile::tempdir().unwrap();
    let texts = |threads: usize| {
        let mut log = CotLog::open(&folder.path().join(format!("{threads}.jsonl"))).unwrap();
        let template = || Box::new(Template::new(Prompt::builtin())) as Box<dyn Generate>;
        let generators: Vec<_> = std::iter::repeat_with(template).take(threads).collect();
        let version = version_of(&*generators[0], false);
        let budget = Budget { examples: 100, ..ENDLESS };
        let validator = Validator::new(&Prompt::builtin());
        let asked = ask(&examples, generators, &validator, &version, budget, &mut log).unwrap();
        assert_eq!((asked.made, asked.failed), (100, 0));
        texts_by(&log, &prepared, &version)
    };
    assert_eq!(texts(1), texts(4));
}

#[test]
fn texts_come_back_by_sample_and_controls_beside_them() {
    let (prepared, folder) = (prepared(Protocol::Time), tempfile::tempdir().unwrap());
    let examples = Examples::of(&prepared);
    let path = folder.path().join("d.jsonl");
    let variants = [Variant::Llm, Variant::Shuffled, Variant::LabelFree];
    let of = |variant| texts_of(&CotLog::read(&path).unwrap(), &prepared, variant).unwrap();
    assert!(variants.iter().all(|&variant| of(variant).iter().all(Option::is_none)));
    let seen = Arc::default();
    run(&prepared, folder.path(), Fake { loops: |number| number == 3, ..Fake::of(&seen) }, ENDLESS).unwrap();
    // A template's answers are never taken for an LLM's, however many there are.
    let mut log = CotLog::open(&path).unwrap();
    for (generator, label_free, count) in [
        (Box::new(Template::new(Prompt::builtin())) as Box<dyn Generate>, false, 40),
        (Box::new(Fake { prompt: Prompt::label_free(), ..Fake::of(&seen) }) as Box<dyn Generate>, true, 2),
    ] {
        let version = version_of(&*generator, label_free);
        let validator = Validator::new(&Prompt::builtin());
        let budget = Budget { examples: count, ..ENDLESS };
        ask(&examples, vec![generator], &validator, &version, budget, &mut log).unwrap();
    }
    drop(log);

    let [own, shuffled, free] = variants.map(of);
    let held = |texts: &[Option<String>]| -> Vec<u32> {
        examples.places().iter().copied().filter(|&place| texts[place as usize].is_some()).collect()
    };
    let asked = examples.places()[..8].to_vec();
    let answered: Vec<u32> = [&asked[..3], &asked[4..]].concat();
    assert_eq!(held(&own), answered, "the fourth failed");
    assert_eq!((held(&shuffled), held(&free)), (answered.clone(), asked[..2].to_vec()));
    assert_eq!(own.iter().flatten().count(), 7, "and none stands at another sample");
    for (n, place) in answered.iter().enumerate() {
        let next = answered[(n + 1) % answered.len()];
        assert_eq!(shuffled[*place as usize], own[next as usize]);
        assert_ne!(shuffled[*place as usize], own[*place as usize]);
    }
    let template = of(Variant::Template);
    assert_eq!(held(&template), examples.places());
    let title = &prepared.data.items().ids()[prepared.split.train[asked[0] as usize].item as usize];
    let title = format!("film {}", title.trim_start_matches('i'));
    assert!(template[asked[0] as usize].as_ref().unwrap().to_lowercase().contains(&title));
}

/// Counts words, each at a place of its hash: texts with words in common are near.
struct Words;

impl Embed for Words {
    fn id(&self) -> &str {
        "words"
    }
    fn width(&self) -> usize {
        256
    }
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let vector = |text: &String| {
            let mut vector = vec![0.0_f32; 256];
            for word in
                text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
            {
                vector[usize::from(blake3::hash(word.as_bytes()).as_bytes()[0])] += 1.0;
            }
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter().map(|x| x / norm).collect()
        };
        Ok(texts.iter().map(vector).collect())
    }
}

#[test]
fn shuffled_texts_are_less_relevant_and_less_consistent_than_the_own() {
    let (prepared, cache) = (prepared(Protocol::Time), tempfile::tempdir().unwrap());
    let examples = Examples::of(&prepared);
    let template =
        texts_of(&CotLog::read(&cache.path().join("none")).unwrap(), &prepared, Variant::Template).unwrap();
    let mut texts: Vec<(u32, String)> = examples.places()[..80]
        .iter()
        .map(|&place| (place, template[place as usize].clone().unwrap()))
        .collect();
    let judged = judge(&examples, &texts, &mut Words, cache.path()).unwrap();
    let mean = |qualities: &[Quality], of: fn(&Quality) -> f64| {
        qualities.iter().map(of).sum::<f64>() / qualities.len() as f64
    };
    assert_eq!(judged.own, judged.template, "these are the template's texts");
    assert_eq!(judged.shuffled.len(), 80);
    for dimension in [|quality: &Quality| quality.relevance, |quality: &Quality| quality.consistency] {
        let (own, shuffled) = (mean(&judged.own, dimension), mean(&judged.shuffled, dimension));
        assert!(own > shuffled, "{own} {shuffled}");
    }
    // What says nothing of the example changes nothing: its order among the texts, and texts that are broken.
    texts[0].1 = "[INST] a text that was never finished".to_owned();
    let broken = judge(&examples, &texts, &mut Words, cache.path()).unwrap();
    assert_eq!(broken.own[0], Quality::default());
    assert_eq!(broken.own[1..], judged.own[1..]);
    let alone = judge(&examples, &texts[1..2], &mut Words, cache.path()).unwrap();
    assert_eq!((alone.own.as_slice(), alone.shuffled.len()), (&judged.own[1..2], 0));
    assert!(judge(&examples, &[], &mut Words, cache.path()).unwrap().own.is_empty());
}
