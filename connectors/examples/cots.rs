//! CoTs of real users of the MovieLens sample: what the local model writes, and how fast.
//!
//!     RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 cargo run --release -p ictflow-connectors --example cots -- 30

use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::local::{Decoding, Local};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_schemas::cot::{CotRequest, PromptEntry};
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::Label;
use ictflow_schemas::item::ItemText;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10);
    let cache = std::env::var("ICTFLOW_MODELS")
        .map(PathBuf::from)
        .unwrap_or_else(|_| PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/ictflow"));
    let requests = requests(&cache, count)?;
    let prompt = match std::env::var("PROMPT") {
        Ok(path) => Prompt::parse(&std::fs::read_to_string(path)?)?,
        Err(_) => Prompt::builtin(),
    };
    let begin = Instant::now();
    let mut generator = Local::open(&cache.join("llm/model.gguf"), prompt, &Decoding::default())?;
    println!(
        "load {:.2} s; {} {}",
        begin.elapsed().as_secs_f64(),
        generator.prompt_version(),
        generator.parameters()
    );
    let begin = Instant::now();
    let (mut tokens_in, mut tokens_out, mut cut) = (0, 0, 0);
    for (n, request) in requests.iter().enumerate() {
        let begin = Instant::now();
        let attempt = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(1);
        let draft = generator.generate(request, attempt)?;
        println!(
            "--- {n} {} {:.2} s in {} out {} {}\n{}",
            request.decision.word(),
            begin.elapsed().as_secs_f64(),
            draft.tokens_in,
            draft.tokens_out,
            draft.finish_reason,
            draft.text
        );
        tokens_in += draft.tokens_in;
        tokens_out += draft.tokens_out;
        cut += usize::from(draft.finish_reason == "length");
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{count} in {seconds:.1} s = {:.2} s each, {tokens_in} in, {tokens_out} out, {cut} cut",
        seconds / count as f64
    );
    Ok(())
}

fn requests(cache: &std::path::Path, count: usize) -> Result<Vec<CotRequest>, Box<dyn std::error::Error>> {
    let items: BTreeMap<String, ItemText> = std::fs::read_to_string(cache.join("data/ml-100k/ml-100k.item"))?
        .lines()
        .skip(1)
        .filter_map(|line| {
            let f: Vec<&str> = line.split('\t').collect();
            let categories = f.get(3)?.split(' ').collect::<Vec<_>>().join(", ");
            Some((
                f[0].to_owned(),
                ItemText { title: format!("{} ({})", f[1], f[2]), categories, ..ItemText::default() },
            ))
        })
        .collect();
    let mut users: BTreeMap<u32, Vec<(i64, String, Label)>> = BTreeMap::new();
    for line in std::fs::read_to_string(cache.join("data/ml-100k/ml-100k.inter"))?.lines().skip(1) {
        let f: Vec<&str> = line.split('\t').collect();
        let label = if f[2].parse::<f32>()? >= 4.0 { Label::Positive } else { Label::Negative };
        users.entry(f[0].parse()?).or_default().push((f[3].parse()?, f[1].to_owned(), label));
    }
    let mut out = Vec::new();
    for (user, events) in users.iter_mut().filter(|(user, _)| *user % 7 == 3).take(count) {
        events.sort();
        let at = 12 + (*user as usize * 31) % (events.len() - 12);
        let history = events[at - 10..at]
            .iter()
            .map(|(_, item, label)| PromptEntry {
                item: items.get(item).cloned(),
                kind: "rate".into(),
                label: *label,
            })
            .collect();
        let (_, item, decision) = &events[at];
        out.push(CotRequest {
            key: text_digest(&format!("{user} {item}")),
            item: items[item].clone(),
            decision: *decision,
            history,
        });
    }
    Ok(out)
}
