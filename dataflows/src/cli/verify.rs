//! `ictflow verify`: recomputes the outputs from the logs and compares.

use super::Store;
use crate::verify::compare::Kind;
use crate::verify::{Report, verify};
use clap::Args;
use ictflow_connectors::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Differences that are listed in the table's company.
const LISTED: usize = 20;

/// Options of `verify`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// The epoch; the committed one by default. At an older one, keys that were written again later may be
    /// compacted away: they are counted, not judged.
    #[arg(long)]
    epoch: Option<i64>,
    /// Interactions of one coarse epoch of the recomputation.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    chunk: u32,
    /// Print every difference as JSON Lines, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Verifies, and ends with 1 where anything differs. Calls nothing, writes nothing, fences nobody.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = arguments.store.config()?;
    let mut topics = config.topics(true)?;
    let (job, plan) = arguments.store.plan(&config, &mut *topics, arguments.chunk as usize)?;
    let mut shown = Shown::new("verify", "interactions");
    let report = verify(&mut *topics, &plan, &job, arguments.epoch, |done, of| shown.show(done, of))?;
    shown.finish();
    let mut out = std::io::stdout().lock();
    // A reader like `head` that has seen enough ends the command, not in an error.
    let _ = match arguments.json {
        true => lines(&mut out, &report),
        false => table(&mut out, &report),
    };
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lines(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    for violation in &report.violations {
        writeln!(out, "{}", serde_json::to_string(violation).unwrap_or_default())?;
    }
    Ok(())
}

fn table(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    writeln!(
        out,
        "epoch {}: recomputed {} features, {} examples and {} dead letters from {} interactions",
        report.epoch, report.features, report.examples, report.dead_letters, report.interactions
    )?;
    for (count, what) in [
        (report.superseded as u64, "keys were written again after the epoch and aren't judged"),
        (report.waiting, "live pairs wait for their item's vector"),
        (report.before_from as u64, "examples are older than the --from of the backfill that was promoted"),
        (
            report.expired as u64,
            "final examples are gone from a topic whose retention has taken records: they aren't judged",
        ),
        (
            report.compacted as u64,
            "dead letters are of records that compaction has taken since: they aren't judged",
        ),
        (
            report.erased as u64,
            "dead letters are of users who were erased since and stay: they aren't judged",
        ),
        (
            report.unreadable_views,
            "unreadable records of items or candidates, whose predecessors may be compacted away",
        ),
        (
            report.truncated as u64,
            "partitions of interactions lost records since the job began: differences may come from that",
        ),
    ] {
        if count > 0 {
            writeln!(out, "{count} {what}")?;
        }
    }
    if report.unpublished {
        writeln!(out, "the job hasn't caught up and published yet: features aren't judged")?;
    }
    if report.violations.is_empty() {
        return writeln!(out, "no difference");
    }
    let mut kinds: BTreeMap<(&str, Kind), usize> = BTreeMap::new();
    for violation in &report.violations {
        *kinds.entry((violation.topic, violation.kind)).or_default() += 1;
    }
    writeln!(out, "{} differences:", report.violations.len())?;
    for ((topic, kind), count) in kinds {
        writeln!(
            out,
            "  {count:>8} {topic:<12} {:<11} {}",
            format!("{kind:?}").to_lowercase(),
            kind.meaning()
        )?;
    }
    for violation in report.violations.iter().take(LISTED) {
        let place = violation.partition.zip(violation.offset);
        let place = place.map_or_else(String::new, |(p, o)| format!(" at partition {p}, offset {o}"));
        let kind = format!("{:?}", violation.kind).to_lowercase();
        writeln!(out, "  {kind} {} {}{place}", violation.topic, violation.key.join(" "))?;
    }
    if report.violations.len() > LISTED {
        writeln!(out, "  and {} more: --json prints all", report.violations.len() - LISTED)?;
    }
    writeln!(
        out,
        "a job that starts anew publishes the difference with its next epoch, but for final examples and dead letters, which it holds no more"
    )
}

/// A bar on a terminal, a plain line now and then elsewhere.
pub(super) struct Shown {
    /// The command, and what it counts.
    of: (&'static str, &'static str),
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Shown {
    pub(super) fn new(command: &'static str, what: &'static str) -> Self {
        let style = ProgressStyle::with_template(&format!(
            "{command} {{wide_bar}} {{pos}}/{{len}} {what} ({{per_sec}}, {{eta}} left)"
        ));
        let bar = || ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Shown { of: (command, what), bar: std::io::stderr().is_terminal().then(bar), last: Instant::now() }
    }

    pub(super) fn show(&mut self, done: u64, of: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(of);
            bar.set_position(done);
        } else if self.last.elapsed() > Duration::from_secs(10) {
            self.last = Instant::now();
            let (command, what) = self.of;
            eprintln!("{command}: {done} of {of} {what}");
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
