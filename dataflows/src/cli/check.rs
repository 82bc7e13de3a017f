//! `ictflow check`: everything that would keep a job from running, at once.

use super::Store;
use crate::check::{Report, Target, check, probe};
use clap::Args;
use ictflow_connectors::{Error, Result};
use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Ends with 0 where there is no problem, with 1 where there are some.")]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// Leave out what needs a connection.
    #[arg(long)]
    offline: bool,
    /// Also try whether the broker keeps its transactions, as `run` does before a new job. The only check
    /// that writes: a few records, to [topics.kafka] conformance_topic, which is made where it doesn't exist.
    #[arg(long, conflicts_with = "offline")]
    probe: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Checks, and prints what was found.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let target = match (&arguments.store.config, &arguments.store.state) {
        (Some(config), _) => Target::Config(config.clone()),
        (None, Some(state)) => Target::State(state.clone()),
        (None, None) => {
            return Err(Error::fatal("check", "no configuration", "give --config FILE or --state DIR"));
        }
    };
    let mut report = check(&target, arguments.offline);
    if arguments.probe {
        probe(&target, &mut report);
    }
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|e| Error::fatal("check", e, "this is a defect: please report it"))?,
        false => plain(&report),
    };
    // A reader that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line a check, its problems below it.
fn plain(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checked {
        let problems: Vec<_> = report.problems.iter().filter(|problem| problem.check == *check).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<8} {check}", if problems.is_empty() { "ok" } else { "problem" });
        for problem in problems {
            let _ = writeln!(text, "         {}: {} ({})", problem.key, problem.problem, problem.hint);
        }
    }
    for row in &report.conformance {
        let verdict = if row.holds { "holds" } else { "fails" };
        let _ = writeln!(text, "{verdict:<8} {}: wanted {}; {}", row.what, row.wanted, row.seen);
    }
    for (check, why) in &report.skipped {
        let _ = writeln!(text, "{:<8} {check}: {why}", "skipped");
    }
    let _ = writeln!(
        text,
        "{} of {} checks made, {} problems",
        report.checked.len(),
        report.checked.len() + report.skipped.len(),
        report.problems.len()
    );
    text
}
