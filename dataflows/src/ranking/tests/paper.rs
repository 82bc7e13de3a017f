//! The paper's vector: which demonstrations there are, which texts they have, and that it runs end to end.

use super::super::arms::{ARMS, Arm, Cot};
use super::super::cots::Cots;
use super::super::dataset::{Part, Prepared, Protocol};
use super::super::delay::Delay;
use super::super::demonstrations::{DEMONSTRATIONS, DemonstrationColumns, Demonstrations, checked};
use super::super::evaluate::{Options, evaluate};
use super::super::fit::Training;
use super::super::tensors::{Columns, Retrieved, Vocabularies};
use super::super::{table, world};
use super::{TRAINING, options};
use crate::cots::log::CotLog;
use ictflow_connectors::Result;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_operators::eligible::selected;
use ictflow_operators::ranking::histories::{example, item_state};
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRecord, CotStatus, PromptView};
use ictflow_schemas::history::Label;
use ictflow_schemas::vector::{SCALE, quantise};
use std::path::Path;

fn named(names: &[&str]) -> Vec<Arm> {
    names.iter().map(|name| Arm::named(name).unwrap()).collect()
}

fn cots(prepared: &Prepared, arms: &[Arm], log: Option<&Path>) -> Result<Cots> {
    chosen(prepared, arms, log, false)
}

fn chosen(prepared: &Prepared, arms: &[Arm], log: Option<&Path>, paper_compat: bool) -> Result<Cots> {
    let cache = tempfile::tempdir().unwrap();
    let log = log.map(CotLog::read).transpose()?;
    Cots::of(prepared, arms, log.as_ref(), paper_compat, (&mut Hashed::new(16), cache.path()))
}

/// The demonstrations of an arm with the template's CoTs, whatever kind it asks for; `None` for one without.
pub(super) fn templates(prepared: &Prepared, arm: Arm) -> Option<DemonstrationColumns> {
    let cot = arm.demonstrations()?;
    let cots = cots(prepared, &named(&["paper-template"]), None).unwrap();
    let demonstrations = Demonstrations::of(prepared, &cots, Delay::NONE).unwrap();
    let vectors = cot.and_then(|_| cots.vectors(Cot::Template));
    Some(DemonstrationColumns::of(demonstrations, prepared, vectors).unwrap())
}

/// A log with a text for each sample that `told` or `free` passes, by place, with and without the label.
fn log(
    prepared: &Prepared,
    path: &Path,
    told: impl Fn(usize) -> Option<String>,
    free: impl Fn(usize) -> Option<String>,
) {
    let mut lines = String::new();
    for (place, sample) in prepared.split.train.iter().enumerate() {
        let example = example(&prepared.data, &prepared.histories, *sample);
        for (text, decision) in [(told(place), example.verdict.decision()), (free(place), Label::None)] {
            let Some(text) = text else { continue };
            let item_text = item_state(&prepared.data, sample.item).unwrap().text;
            let (user, item) = (example.identity.user.clone(), example.item.clone());
            let view = PromptView::new(user, item, item_text, decision, &example.history, 10);
            let record = CotRecord {
                status: if text.is_empty() { CotStatus::Failed } else { CotStatus::Ok },
                user_id: view.user.to_string(),
                item_id: view.item.to_string(),
                decision: decision.word().to_owned(),
                prompt_version: "p@1".to_owned(),
                llm_model: "m".to_owned(),
                parameters: "{}".to_owned(),
                text,
                attempts: 1,
                tokens_in: 100,
                tokens_out: 7,
                finish_reason: "stop".to_owned(),
                quality: 1.0,
                created_at: 0,
            };
            let key = String::from_utf8(record.topic_key(&view.content_key("p@1", "m", "{}"))).unwrap();
            let line = serde_json::json!({"key": key, "value": record, "timestamp": 0});
            lines.push_str(&format!("{line}\n"));
        }
    }
    std::fs::write(path, lines).unwrap();
}

/// Whether a training sample may be explained.
fn eligible(prepared: &Prepared, place: usize) -> bool {
    let sample = prepared.split.train[place];
    !prepared.histories.before(sample.row).is_empty()
}

#[test]
fn the_pool_is_what_the_log_explains_for_all_kinds_of_texts_alike() {
    let prepared = world::prepared(Protocol::Time);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cots.jsonl");
    let text = |place: usize| Some(format!("text {place}")).filter(|_| place % 5 < 2);
    // Some failed, and some have no text without the label.
    let told = |place| text(place).map(|text| if place % 7 == 0 { String::new() } else { text });
    let free = |place| text(place).filter(|_| place % 11 > 0).map(|text| format!("free {text}"));
    log(&prepared, &path, told, free);
    let arms: Vec<Arm> = ARMS.into_iter().filter(|arm| arm.demonstrations().is_some()).collect();
    assert_eq!(arms.len(), 10);
    let all = cots(&prepared, &arms, Some(&path)).unwrap();
    let pooled = |place: usize| {
        place % 5 < 2 && !place.is_multiple_of(7) && !place.is_multiple_of(11) && eligible(&prepared, place)
    };
    let expected: Vec<bool> = (0..prepared.split.train.len()).map(pooled).collect();
    assert_eq!(all.pool, expected);
    let count = expected.iter().filter(|pooled| **pooled).count();
    assert!(count > 100, "{count}");
    let figures = &all.figures;
    assert_eq!((figures.demonstrations, figures.explained), (count, count));
    assert_eq!((figures.tokens_in, figures.tokens_out), (100 * count as i64, 7 * count as i64));

    // A sample's text has the vector that the encoder gives it.
    let vector = |cot: Cot, place: usize| {
        let vectors = all.vectors(cot).unwrap();
        let row = vectors.row[place] as usize;
        (row > 0).then(|| vectors.vectors[row - 1].to_vec())
    };
    let of = |text: String| quantise(&Hashed::new(16).embed(&[text]).unwrap()[0]).to_vec();
    let mut moved = 0;
    for (place, pooled) in expected.iter().enumerate() {
        let own = pooled.then(|| of(format!("text {place}")));
        assert_eq!(vector(Cot::Llm, place), own, "{place}");
        assert_eq!(vector(Cot::LabelFree, place), pooled.then(|| of(format!("free text {place}"))));
        assert_eq!(vector(Cot::Template, place).is_some(), *pooled);
        let shuffled = vector(Cot::Shuffled, place);
        assert_eq!(shuffled.is_some(), *pooled);
        moved += usize::from(shuffled != own);
    }
    assert!(moved * 10 > count * 9, "only {moved} of {count} texts changed places");
    let sorted = |cot: Cot| {
        let mut all: Vec<_> = (0..expected.len()).filter_map(|place| vector(cot, place)).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(Cot::Shuffled), sorted(Cot::Llm), "the texts are the same");

    // What decides an arm's figures is another for each kind, and the same again.
    let digests = |cots: &Cots| -> Vec<String> {
        arms[..5].iter().map(|arm| cots.digest(arm).unwrap().to_owned()).collect()
    };
    let mut once = digests(&all);
    assert_eq!(once, digests(&cots(&prepared, &arms, Some(&path)).unwrap()));
    once.sort();
    once.dedup();
    assert_eq!(once.len(), 5);
    assert_eq!(all.digest(&Arm::named("votes").unwrap()), None);
}

#[test]
fn without_a_log_one_in_ten_is_a_demonstration_and_no_llm_is_read() {
    let prepared = world::prepared(Protocol::Time);
    let arms = named(&["decoder-nocot", "paper-template"]);
    let all = cots(&prepared, &arms, None).unwrap();
    for (place, pooled) in all.pool.iter().enumerate() {
        let example = example(&prepared.data, &prepared.histories, prepared.split.train[place]);
        assert_eq!(*pooled, selected(&example, &Semantics::default()), "{place}");
    }
    assert_eq!(all.figures.explained, 0);
    for (arm, said) in [
        ("paper-llm", "no log of them is given"),
        ("decoder-shuffled", "no log of them is given"),
        ("paper-label-free", "without the label"),
    ] {
        let error = cots(&prepared, &named(&[arm]), None).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("ictflow cots"), "{error}");
    }
    let none = cots(&prepared, &named(&["votes"]), None).unwrap();
    assert!(none.pool.is_empty(), "an arm without demonstrations has no pool");
}

#[test]
fn a_log_that_explains_nothing_or_is_none_is_refused() {
    let prepared = world::prepared(Protocol::Time);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cots.jsonl");
    let arms = named(&["paper-llm"]);
    for (text, said) in [("", "has a CoT"), ("{}\n", "line 1 isn't a record"), ("nothing\n", "line 1")] {
        std::fs::write(&path, text).unwrap();
        let error = cots(&prepared, &arms, Some(&path)).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = cots(&prepared, &arms, Some(&folder.path().join("none"))).unwrap_err().to_string();
    assert!(error.contains("/none") && error.contains("--cots"), "{error}");
    log(&prepared, &path, |place| Some(format!("text {place}")), |_| None);
    let whole = cots(&prepared, &arms, Some(&path)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 9]).unwrap();
    let torn = cots(&prepared, &arms, Some(&path)).unwrap();
    assert_eq!(whole.figures.explained - 1, torn.figures.explained, "a torn last line counts as none");
}

#[test]
fn demonstrations_are_of_the_pool_and_were_known_before() {
    let prepared = world::prepared(Protocol::Time);
    let cots = cots(&prepared, &named(&["paper-template"]), None).unwrap();
    let all: Vec<_> = prepared.samples().copied().collect();
    let rows = prepared.data.rows();
    for delay in ["0", "10h"] {
        let delay: Delay = delay.parse().unwrap();
        let found = Demonstrations::of(&prepared, &cots, delay).unwrap();
        let mut full = 0;
        for (place, sample) in all.iter().enumerate() {
            let own = &rows[sample.row as usize];
            let known = |other: &usize| {
                let row = &rows[all[*other].row as usize];
                let same = (row.user, row.item) == (own.user, own.item);
                cots.pool[*other] && delay.known(row.time, own.time) && !same
            };
            let known = (0..cots.pool.len()).filter(known).count();
            let places = place * DEMONSTRATIONS..(place + 1) * DEMONSTRATIONS;
            let there = &found.there[places.clone()];
            let used: Vec<usize> = (found.samples[places].iter().zip(there))
                .filter(|(_, there)| **there > 0.0)
                .map(|(sample, _)| *sample as usize)
                .collect();
            assert_eq!(used.len(), known.min(DEMONSTRATIONS), "sample {place}");
            assert!(there.is_sorted(), "absent ones come first");
            for other in used {
                let row = &rows[all[other].row as usize];
                assert!(cots.pool[other] && delay.known(row.time, own.time), "sample {place}, {other}");
            }
            full += usize::from(known >= DEMONSTRATIONS);
        }
        assert!(full > 500, "only {full} have all of them");
    }
}

/// The switch reaches the demonstrations, the cells' key and the table.
#[test]
fn the_published_rule_looks_into_the_future_and_says_so() {
    let prepared = world::prepared(Protocol::Time);
    let arms = named(&["strong", "paper-nocot"]);
    let [strict, published] = [false, true].map(|compat| chosen(&prepared, &arms, None, compat).unwrap());
    assert_eq!(strict.pool, published.pool);
    assert_ne!(strict.digest(&arms[1]), published.digest(&arms[1]), "other demonstrations are another cell");
    let times: Vec<i64> =
        prepared.samples().map(|sample| prepared.data.rows()[sample.row as usize].time).collect();
    let [by_strict, by_published] = [&strict, &published].map(|cots| {
        let found = Demonstrations::of(&prepared, cots, Delay::NONE).unwrap();
        let picks = (0..found.samples.len()).filter(|at| found.there[*at] > 0.0);
        picks.filter(|at| times[found.samples[*at] as usize] >= times[at / DEMONSTRATIONS]).count()
    });
    assert!(by_strict == 0 && by_published > 100, "{by_strict} and {by_published} aren't earlier");
    let out = tempfile::tempdir().unwrap();
    let training = Training { epochs: 1, ..TRAINING };
    let options = Options { training, ..options(out.path(), &["strong", "paper-nocot"], 1) };
    let told = |cots: &Cots| {
        let text = table::text(&evaluate(&prepared, cots, &options).unwrap());
        text.contains("chosen by the published rule")
    };
    assert!(!told(&strict) && told(&published));
}

#[test]
fn a_planted_leak_ends_the_replay_of_demonstrations() {
    use ictflow_operators::as_of::global::{GlobalOptions, GlobalReplay};
    use std::collections::HashMap;
    use std::sync::Arc;
    let prepared = world::prepared(Protocol::Time);
    let all: Vec<_> = prepared.samples().collect();
    let examples: Vec<_> =
        all.iter().map(|s| Arc::new(example(&prepared.data, &prepared.histories, **s))).collect();
    let ids = prepared.data.items().ids();
    let vectors: HashMap<_, _> = (ids.iter().cloned().zip(&prepared.texts))
        .filter_map(|(id, vector)| Some((id, vector.clone()?)))
        .collect();
    let semantics = Semantics::default();
    let options = GlobalOptions {
        pool: None,
        semantics: &semantics,
        prompt_version: "p",
        label_delay_ms: 0,
        paper_compat: false,
    };
    let rows: Vec<_> = GlobalReplay::new(&examples, &vectors, options).unwrap().collect();
    let row = rows.iter().rev().find(|row| !row.used.is_empty()).unwrap();
    assert!(checked(row.clone(), Delay::NONE).is_ok());
    // What is used by a later example is asked by itself, or by an earlier one.
    let used = row.used[0].0.identity.clone();
    let itself = examples.iter().find(|example| example.identity == used).unwrap().clone();
    let mut leaking = row.clone();
    leaking.example = itself;
    let error = checked(leaking, Delay::NONE).unwrap_err().to_string();
    assert!(error.contains("its own neighbour") && error.contains("figures would be false"), "{error}");
    let mut early = row.clone();
    early.example = examples[1].clone();
    let error = checked(early, Delay::NONE).unwrap_err().to_string();
    assert!(error.contains("not known before"), "{error}");
}

#[test]
fn a_batch_has_its_demonstrations() {
    let prepared = world::prepared(Protocol::Time);
    let arm = Arm::named("paper-template").unwrap();
    let cots = cots(&prepared, &[arm], None).unwrap();
    let found = Demonstrations::of(&prepared, &cots, Delay::NONE).unwrap();
    let vectors = cots.vectors(Cot::Template).unwrap();
    let demonstrations = DemonstrationColumns::of(found.clone(), &prepared, Some(vectors)).unwrap();
    let vocabularies = Vocabularies::of(&prepared);
    let columns = Columns::of(&prepared, &vocabularies).unwrap();
    let test = prepared.range(Part::Test);
    let samples = [0, 3, 500, test.start as u32, test.end as u32 - 1];
    let retrieved = Retrieved { demonstrations: Some(&demonstrations), ..Retrieved::default() };
    let batch = columns.batch(&samples, &arm, retrieved).unwrap();
    assert!(batch.scalars.is_none() && batch.text.is_some(), "the module reads texts, the backbone none");
    let batch = batch.demonstrations.unwrap();
    let all: Vec<_> = prepared.samples().copied().collect();
    let picks = batch.picks.to_vec2::<u32>().unwrap();
    let there = batch.there.to_vec2::<f32>().unwrap();
    let mut compared = 0;
    for (place, sample) in samples.iter().enumerate() {
        for k in 0..DEMONSTRATIONS {
            let at = *sample as usize * DEMONSTRATIONS + k;
            assert_eq!(there[place][k], found.there[at]);
            if there[place][k] == 0.0 {
                continue;
            }
            let (row, other) = (picks[place][k] as usize, found.samples[at] as usize);
            assert_eq!(batch.label.to_vec1::<u32>().unwrap()[row], u32::from(all[other].positive));
            let item = batch.samples.ids.item.to_vec1::<u32>().unwrap()[row];
            assert_eq!(item, vocabularies.item.row(all[other].item));
            let cot: Vec<f32> = batch.cot.get(row).unwrap().to_vec1().unwrap();
            let expected = &vectors.vectors[vectors.row[other] as usize - 1];
            assert!(cot.iter().zip(expected.iter()).all(|(x, y)| *x == f32::from(*y) / SCALE));
            compared += 1;
        }
    }
    assert!(compared >= 3 * DEMONSTRATIONS, "{compared}");
}

#[test]
fn the_papers_arms_are_evaluated_side_by_side() {
    let prepared = world::prepared(Protocol::Time);
    let (out, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path().join("cots.jsonl");
    log(&prepared, &path, |place| Some(format!("text {}", place % 9)), |_| None);
    let arms = ["ids", "strong", "paper-nocot", "paper-llm", "paper-shuffled", "decoder-llm"];
    let cots = cots(&prepared, &named(&arms), Some(&path)).unwrap();
    let training = Training { epochs: 1, ..TRAINING };
    let options = Options { training, jobs: 2, ..options(out.path(), &arms, 1) };
    let report = evaluate(&prepared, &cots, &options).unwrap();
    assert_eq!(report.rows.len(), arms.len());
    let text = table::text(&report);
    for part in ["explained by an LLM", "paper-llm", "paper-shuffled", "gained a thousand tokens"] {
        assert!(text.contains(part), "{part} isn't in {text}");
    }
    let pair = report.pairs.iter().find(|pair| pair.against == "paper-shuffled").unwrap();
    let tokens = 107.0 * report.pool.as_ref().unwrap().explained as f64;
    let gained = pair.per_thousand_tokens.unwrap();
    assert!((gained.auc - pair.gains.auc.difference / tokens * 1_000.0).abs() < 1e-12);
    let other = report.pairs.iter().find(|pair| pair.against == "paper-nocot").unwrap();
    assert!(other.per_thousand_tokens.is_none(), "the control is shuffled texts");
}
