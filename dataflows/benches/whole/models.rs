//! The models of this process: texts that the encoder embeds a second, tokens of the LLM.
//!
//! Texts and requests come from MovieLens: item texts, and the CoTs that the template writes for real
//! users, of the length that the LLM's have. Needs what `make models` fetches.

use crate::report::{LONG_RUNS, Report, SHORT_RUNS};
use crate::script::{Script, request};
use crate::{Arguments, Fallible, stage};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::minilm::MiniLm;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::local::{Decoding, Local};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_dataflows::config::checked::models;
use ictflow_schemas::cot::CotRequest;
use std::time::Instant;

/// Texts of one call of the encoder, as the job makes them.
const BATCH: usize = 16;

/// Requests of MovieLens users, the texts of its items in a mixed order.
fn sample(count: usize) -> Fallible<(Vec<CotRequest>, Vec<String>)> {
    let script = Script::movielens(&models().join("data/ml-100k"), 10_000, (0, 0, 0), 10, 1)?;
    let (views, texts) = script.wanted(&stage::weights()?)?;
    let requests: Vec<CotRequest> =
        views.iter().take(count).map(|(key, view)| request(*key, view, &texts)).collect::<Fallible<_>>()?;
    if requests.len() < count {
        return Err(format!("{} requests are fewer than {count}", requests.len()).into());
    }
    // Films of all years, not only the first.
    let items: Vec<String> = script.items.values().map(|item| item.text()).collect();
    let mixed = (0..items.len()).map(|n| items[n * 611 % items.len()].clone());
    Ok((requests, mixed.collect()))
}

pub fn encoder(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let count = if arguments.quick { 64 } else { 320 };
    let (requests, items) = sample(count)?;
    let mut template = Template::new(Prompt::builtin());
    let cots = requests
        .iter()
        .map(|request| Ok(template.generate(request, 1)?.text))
        .collect::<Fallible<Vec<_>>>()?;
    let mut encoder = MiniLm::load(&models().join("encoder"))?;
    for (name, texts) in [("item texts", &items[..count]), ("CoTs", &cots[..])] {
        let bytes = texts.iter().map(String::len).sum::<usize>() / texts.len();
        let mut runs = Vec::new();
        for _ in 0..if arguments.quick { LONG_RUNS } else { SHORT_RUNS } {
            let begun = Instant::now();
            for batch in texts.chunks(BATCH) {
                let vectors = encoder.embed(batch)?;
                if vectors.len() != batch.len()
                    || vectors.iter().any(|vector| vector.len() != encoder.width())
                {
                    return Err("the encoder gave other vectors than asked".into());
                }
            }
            runs.push(texts.len() as f64 / begun.elapsed().as_secs_f64());
        }
        let conditions = format!(
            "MiniLM, {name} of {bytes} B on average, batches of {BATCH}, threads {}",
            report.machine.model_threads
        );
        report.add("encoder", "texts embedded", conditions, "1/s", runs)?;
    }
    Ok(())
}

/// Tokens of a gap at most in the short run: the least that the decoding allows.
const SHORT_GAP: u32 = 4;

pub fn llm(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let count = if arguments.quick { 4 } else { 12 };
    let (requests, _) = sample(count)?;
    let file = models().join("llm/model.gguf");
    let load = |max_gap_tokens| {
        let decoding = Decoding { max_gap_tokens, ..Decoding::default() };
        Local::open(&file, Prompt::builtin(), &decoding)
    };
    let (mut long, mut short) = (load(Decoding::default().max_gap_tokens)?, load(SHORT_GAP)?);
    // The heads of the prompts are computed at first use and kept.
    for request in &requests {
        long.generate(request, 1)?;
        short.generate(request, 1)?;
    }
    let [mut cots, mut prompt, mut written] = [const { Vec::new() }; 3];
    let mut each = (0, 0);
    for _ in 0..LONG_RUNS {
        let all = timed(&mut long, &requests)?;
        let little = timed(&mut short, &requests)?;
        let tokens = all.written - little.written;
        let seconds = all.seconds - little.seconds;
        if tokens <= 0 || seconds <= 0.0 {
            return Err(format!("{tokens} more tokens took {seconds} s more: nothing to divide").into());
        }
        // The two ask the same and differ in the tokens they may write: that is the cost of one.
        let token = seconds / tokens as f64;
        let reading = all.seconds - token * all.written as f64;
        cots.push(requests.len() as f64 / all.seconds);
        written.push(1.0 / token);
        prompt.push(all.read as f64 / reading);
        each = (all.read / requests.len() as i64, all.written / requests.len() as i64);
    }
    let conditions = format!(
        "SmolLM2-135M in this process, 1 call at a time, threads {}, {} tokens read and {} written a CoT",
        report.machine.model_threads, each.0, each.1
    );
    report.add("llm", "CoTs written", &conditions, "1/s", cots)?;
    report.add("llm", "LLM tokens read, the kept head counted", &conditions, "1/s", prompt)?;
    report.add("llm", "LLM tokens written", &conditions, "1/s", written)
}

struct Timed {
    seconds: f64,
    read: i64,
    written: i64,
}

fn timed(llm: &mut Local, requests: &[CotRequest]) -> Fallible<Timed> {
    let begun = Instant::now();
    let (mut read, mut written) = (0, 0);
    for request in requests {
        let draft = llm.generate(request, 1)?;
        (read, written) = (read + draft.tokens_in, written + draft.tokens_out);
    }
    Ok(Timed { seconds: begun.elapsed().as_secs_f64(), read, written })
}
