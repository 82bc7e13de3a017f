//! `make bench`: honest figures of the whole path, each with its conditions and its spread.
//!
//! ```text
//! make bench                                  everything
//! make bench BENCH="--quick"                  small sizes, a quarter of an hour or so
//! make bench BENCH="--only ict --only commit" some sections
//! make bench BENCH="--kafka HOST:PORT"        commits and the cost of exactly-once on a real Kafka too
//! ```
//!
//! `target/bench/bench.json` gets every run of every figure; standard output the table. A section
//! that can't measure what it says fails by name, and the program with it; the others go on.
//!
//! Sections are the files beside this one. Inputs are made by a seeded generator or are MovieLens;
//! CoTs and vectors stand on their logs before a clock runs, so no model is part of the path, except
//! in the two sections of the models.

mod backfill;
mod commit;
mod exactly_once;
mod ict;
mod latency;
mod machine;
mod memory;
mod models;
mod neighbours;
mod recovery;
mod report;
mod retrieval;
mod script;
mod stage;
mod throughput;
mod training;

use clap::Parser;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;

/// What everything here returns: a failure is for a person at the terminal.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures ictflow.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Small sizes and few seconds: to see that it runs, not to publish.
    #[arg(long)]
    pub quick: bool,
    /// Only this section; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Measure commits and the cost of exactly-once on this Kafka too.
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka: Option<String>,
    /// The folder of bench.json.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"))]
    out: PathBuf,
    /// Given by `cargo bench`; without it, under `cargo test`, the smallest section is tried once.
    #[arg(long, hide = true)]
    bench: bool,
    /// A store whose job is run for its memory, in a process of its own.
    #[arg(long, hide = true, value_name = "FOLDER")]
    memory_of: Option<PathBuf>,
}

type Section = (&'static str, fn(&Arguments, &mut Report) -> Fallible<()>);

const SECTIONS: [Section; 13] = [
    ("throughput", throughput::measure),
    ("latency", latency::measure),
    ("retrieval", retrieval::measure),
    ("neighbours", neighbours::measure),
    ("ict", ict::measure),
    ("memory", memory::measure),
    ("commit", commit::measure),
    ("exactly-once", exactly_once::measure),
    ("recovery", recovery::measure),
    ("backfill", backfill::measure),
    ("training", training::measure),
    ("encoder", models::encoder),
    ("llm", models::llm),
];

fn main() -> ExitCode {
    // A dead worker leaves its peers waiting for ever: the process goes down whole.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        std::process::abort();
    }));
    let under_test = !std::env::args().any(|argument| argument == "--bench");
    let result = if under_test { smoke() } else { run(&Arguments::parse()) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Fallible<()> {
    if let Some(folder) = &arguments.memory_of {
        return memory::child(folder);
    }
    if let Some(unknown) = arguments.only.iter().find(|name| SECTIONS.iter().all(|(known, _)| known != name))
    {
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no section {unknown}: take one of {}", known.join(", ")).into());
    }
    let mut report = Report {
        date: machine::date()?,
        command: std::env::args().skip(1).filter(|a| a != "--bench").collect::<Vec<_>>().join(" "),
        commit: machine::commit(),
        quick: arguments.quick,
        machine: machine::Machine::here()?,
        figures: Vec::new(),
        failed: Vec::new(),
    };
    for (name, measure) in SECTIONS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("{name}");
        if let Err(error) = measure(arguments, &mut report) {
            eprintln!("  {name} failed: {error}");
            report.failed.push((name, error.to_string()));
        }
        // A later section that brings the process down doesn't take the figures before it along.
        report.write(&arguments.out)?;
    }
    println!("{}", report.markdown());
    if report.failed.is_empty() { Ok(()) } else { Err("not everything could be measured".into()) }
}

/// What `cargo test` runs: the smallest section, and that its report is whole.
fn smoke() -> Fallible<()> {
    report::check_arithmetic()?;
    let folder = tempfile::tempdir()?;
    let out = folder.path().to_str().ok_or("the temporary folder's name isn't UTF-8")?;
    run(&Arguments::parse_from(["whole", "--quick", "--only", "ict", "--out", out]))?;
    let text = std::fs::read_to_string(folder.path().join("bench.json"))?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let figures = report["figures"].as_array().ok_or("the report has no figures")?;
    let ordered = |figure: &serde_json::Value| {
        let value = |name: &str| figure[name].as_f64().unwrap_or(f64::NAN);
        let runs = figure["runs"].as_array().map_or(0, Vec::len);
        runs >= report::SHORT_RUNS && value("min") <= value("median") && value("median") <= value("max")
    };
    if figures.len() < 5 || !figures.iter().all(ordered) {
        return Err(format!("the report isn't whole: {text}").into());
    }
    if run(&Arguments::parse_from(["whole", "--only", "nothing", "--out", out])).is_ok() {
        return Err("a section that doesn't exist was run".into());
    }
    println!("bench: its smallest section ran, {} figures", figures.len());
    Ok(())
}
