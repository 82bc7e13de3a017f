//! `ictflow cots`: CoT texts for the training examples of a data set, asked within a budget and judged.

use super::data_set::DataSetOptions;
use crate::config::checked::{Config, models};
use crate::config::generators;
use crate::config::raw::{Generator, GeneratorKind};
use crate::cots::asking::{Budget, ask};
use crate::cots::examples::Examples;
use crate::cots::judge::{Judged, judge};
use crate::cots::log::{CotLog, Version, default_path};
use crate::cots::report;
use crate::ranking::dataset::Prepared;
use clap::{Args, ValueEnum};
use ictflow_connectors::atomic::Folder;
use ictflow_connectors::{Error, Result};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `cots`.
#[derive(Debug, Args)]
#[command(after_help = "Only samples of the training part are asked: the prompt states the label.\n\
        The order of asking is by the examples' hashes, those first that a job would select, so the first N are a fair sample.\n\
        Answers stand in the log, records of cot as JSON Lines, and are never asked again, failed ones neither: the same\n\
        command goes on after a kill, and a larger --count adds to it. The log holds titles and what persons did with them.\n\
        Quality: coherence, completeness, relevance and consistency, each 0 to 1 and judged by the encoder; beside the\n\
        texts' own stand the means of the same texts at other examples (shuffled) and of the template's texts.")]
pub(super) struct Arguments {
    #[command(flatten)]
    data_set: DataSetOptions,
    #[command(flatten)]
    asking: AskingOptions,
}

/// Who is asked what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Asking")]
struct AskingOptions {
    /// What writes the texts; that of --config, else the local model, where it isn't given.
    #[arg(long)]
    generator: Option<GeneratorOption>,
    /// A configuration file (TOML) of a job, of which [generator] is taken: a service needs it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask by a prompt that doesn't state the decision: the control of what the label in a text is worth.
    #[arg(long)]
    label_free: bool,
    /// Ask the first N examples, those counted that were answered before; 0 asks nothing.
    #[arg(long, value_name = "N", default_value_t = 60)]
    count: usize,
    /// Begin no example once N tokens were read and written in this run.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Begin no example once N seconds have passed since the first call of this run.
    #[arg(long, value_name = "N")]
    max_seconds: Option<u64>,
    /// Threads that ask; for a service its concurrency, else 1, where it isn't given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Answers of the local model that grow together, of each thread: it reads its weights once for all of them. The
    /// texts are the same.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: u16,
    /// The CoT log; cots/NAME.jsonl in the cache folder where it isn't given.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Judge the quality of the first N texts; 0 judges none.
    #[arg(long, value_name = "N", default_value_t = 200)]
    judge: usize,
}

/// The generators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GeneratorOption {
    /// Fixed words, without a model.
    Template,
    /// A LLaMA-family model in this process.
    Local,
    /// A service that speaks OpenAI's chat completions.
    Openai,
}

/// Asks, judges and prints.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let asking = &arguments.asking;
    let generator = generator(asking)?;
    let source = arguments.data_set.source()?;
    let path = match &asking.log {
        Some(path) => path.clone(),
        None => default_path(Folder::open(&source.folder, source.name.as_deref())?.name()),
    };
    let mut encoder = arguments.data_set.encoder()?;
    let vectors = models().join("vectors");
    let prepared = Prepared::read(&source, &mut *encoder, &vectors)?;
    let examples = Examples::of(&prepared);
    let mut log = CotLog::open(&path)?;
    if log.torn() > 0 {
        let torn = log.torn();
        eprintln!(
            "the log ended in a torn line of {torn} bytes, which was dropped: its example is asked again"
        );
    }
    let threads = (asking.threads.map(usize::from), usize::from(asking.batch));
    let (generators, validator) = generators::open(&generator, asking.label_free, threads)?;
    let Some(one) = generators.first() else {
        return Err(Error::fatal("ask for CoTs", "no call may be under way", "raise --threads"));
    };
    let version = Version::of(&**one, asking.label_free);
    let budget = Budget {
        examples: asking.count,
        tokens: asking.max_tokens,
        time: asking.max_seconds.map(Duration::from_secs),
    };
    let asked = ask(&examples, generators, &validator, &version, budget, &mut log)?;
    let first = asking.count.min(examples.len());
    let mut text = report::run(&asked, &version, first, examples.len());
    let judged = match asking.judge {
        0 => Judged::default(),
        most => {
            let key = |place: u32| version.key(&examples.view(place, version.label_free));
            let told = |&place: &u32| log.text(&key(place)).map(|text| (place, text.to_owned()));
            let texts: Vec<_> = examples.places().iter().take(first).filter_map(told).take(most).collect();
            judge(&examples, &texts, &mut *encoder, &vectors.join("cots"))?
        }
    };
    text.push_str(&report::quality(&judged, encoder.id()));
    // A reader that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    eprintln!("the log: {}", path.display());
    Ok(())
}

/// The generator's section of the configuration, with the one that the command line names.
fn generator(asking: &AskingOptions) -> Result<Generator> {
    let mut generator = match &asking.config {
        None => Generator::default(),
        Some(path) => {
            let raw = Config::raw_of(path)?;
            let problems = Config::problems(&raw);
            if !problems.is_empty() {
                let hint = "fix all of them, then try again";
                return Err(Error::fatal("check the configuration", problems.join("; "), hint));
            }
            raw.generator
        }
    };
    match asking.generator {
        None => {}
        Some(GeneratorOption::Template) => generator.kind = GeneratorKind::Template,
        Some(GeneratorOption::Local) => generator.kind = GeneratorKind::Local,
        Some(GeneratorOption::Openai) => {
            generator.kind = GeneratorKind::Openai;
            if generator.openai.is_none() {
                let hint = "name a configuration file with [generator.openai] by --config";
                return Err(Error::fatal("ask a service", "nothing says which", hint));
            }
        }
    }
    Ok(generator)
}
