//! What the local model writes for real users of the MovieLens sample, and how fast.
//!
//!     RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 \\
//!         cargo run --release -p ictflow-connectors --example cots -- [COUNT] [THREADS] [PROMPT FILE]
//!
//! Needs the files that `make models` fetches. The texts hold titles of the sample: don't publish
//! them.

use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::minilm::MiniLm;
use ictflow_connectors::llm::answer::{Progress, Subject, answer};
use ictflow_connectors::llm::local::{Decoding, Local};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_schemas::cot::{CotRecord, CotRequest, PromptEntry};
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::Label;
use ictflow_schemas::item::{Item, ItemText};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, default| arguments.get(n).map_or(Ok(default), |text| text.parse::<usize>());
    let (count, threads) = (number(0, 10)?, number(1, 1)?.max(1));
    let prompt = || match arguments.get(2) {
        Some(path) => Ok(Prompt::parse(&std::fs::read_to_string(path)?)?),
        None => Fallible::Ok(Prompt::builtin()),
    };
    let cache = match std::env::var_os("ICTFLOW_MODELS") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var("HOME")?).join(".cache/ictflow"),
    };
    let (items, requests) = sample(&cache.join("data/ml-100k"), count)?;

    let begin = Instant::now();
    let local = Local::open(&cache.join("llm/model.gguf"), prompt()?, &Decoding::default())?;
    println!("loaded in {:.2} s", begin.elapsed().as_secs_f64());
    let validator = Validator::new(&prompt()?);
    let begin = Instant::now();
    let records = std::thread::scope(|scope| -> Fallible<Vec<CotRecord>> {
        let mut handles = Vec::new();
        for part in requests.chunks(requests.len().div_ceil(threads).max(1)) {
            let (mut local, validator) = (local.another()?, &validator);
            handles.push(scope.spawn(move || -> Result<Vec<CotRecord>, String> {
                let subject = Subject { user_id: "", item_id: "" };
                let one = |request| {
                    answer(&mut local, validator, request, subject, Progress::default(), 0, &mut |_, _| {})
                };
                part.iter().map(one).collect::<Result<_, _>>().map_err(|e| e.to_string())
            }));
        }
        let mut records = Vec::new();
        for handle in handles {
            records.extend(handle.join().map_err(|_| "a thread panicked")??);
        }
        Ok(records)
    })?;
    let seconds = begin.elapsed().as_secs_f64();

    let mut attempts: BTreeMap<(i32, &str), usize> = BTreeMap::new();
    let (mut tokens_in, mut tokens_out, mut quality) = (0, 0, 0.0);
    for record in &records {
        let last = if record.text.is_empty() { "refused" } else { record.finish_reason.as_str() };
        *attempts.entry((record.attempts, last)).or_default() += 1;
        (tokens_in, tokens_out) = (tokens_in + record.tokens_in, tokens_out + record.tokens_out);
        quality += record.quality;
        println!(
            "--- {} attempt {} {} {:.2}",
            record.decision, record.attempts, record.finish_reason, record.quality
        );
        println!("{}", record.text);
    }
    let each = seconds / records.len().max(1) as f64;
    println!("{} CoTs in {seconds:.1} s on {threads} threads: {each:.2} s each", records.len());
    println!("{tokens_in} tokens in, {tokens_out} out; quality {:.3}", quality / records.len().max(1) as f64);
    println!("(attempts, finish): {attempts:?}");

    let mut encoder = MiniLm::load(&cache.join("encoder"))?;
    let texts: Vec<String> = items.into_iter().take(300).collect();
    let begin = Instant::now();
    encoder.embed(&texts)?;
    println!("item texts embedded a second: {:.1}", texts.len() as f64 / begin.elapsed().as_secs_f64());
    let texts: Vec<String> = records.into_iter().map(|record| record.text).collect();
    let begin = Instant::now();
    encoder.embed(&texts)?;
    println!("CoTs embedded a second: {:.1}", texts.len() as f64 / begin.elapsed().as_secs_f64());
    Ok(())
}

/// The item texts, and a request of each of `count` users: one of their ratings, and the ten before.
fn sample(folder: &Path, count: usize) -> Fallible<(Vec<String>, Vec<CotRequest>)> {
    let mut items: BTreeMap<String, String> = BTreeMap::new();
    for line in std::fs::read_to_string(folder.join("ml-100k.item"))?.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [id, title, year, genres] = fields[..] else { continue };
        let categories = genres.split(' ').map(String::from).collect();
        let item = Item { title: Some(format!("{title} ({year})")), categories, ..Item::default() };
        items.insert(id.to_owned(), item.text());
    }
    let mut users: BTreeMap<u32, Vec<(i64, String, Label)>> = BTreeMap::new();
    for line in std::fs::read_to_string(folder.join("ml-100k.inter"))?.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [user, item, rating, time] = fields[..] else { continue };
        let label = if rating.parse::<f32>()? >= 4.0 { Label::Positive } else { Label::Negative };
        users.entry(user.parse()?).or_default().push((time.parse()?, item.to_owned(), label));
    }
    let mut requests = Vec::new();
    for (user, events) in users.iter_mut().filter(|(user, _)| **user % 7 == 3).take(count) {
        events.sort();
        let at = 12 + (*user as usize * 31) % (events.len() - 12);
        let text = |item: &String| items.get(item).map(|text| ItemText::parse(text));
        let entry = |(_, item, label): &(i64, String, Label)| PromptEntry {
            item: text(item),
            kind: "rate".into(),
            label: *label,
        };
        let (_, item, decision) = &events[at];
        let history = events[at - 10..at].iter().map(entry).collect();
        let key = text_digest(&format!("{user} {item}"));
        requests.push(CotRequest { key, item: text(item).unwrap_or_default(), decision: *decision, history });
    }
    Ok((items.into_values().collect(), requests))
}
