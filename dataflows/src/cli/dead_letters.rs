//! `ictflow dead-letters`: what was refused, and appending it to its inputs again after a fix.

use super::Store;
use crate::config::checked::Config;
use crate::dead_letters::replay::{Line, Of, Outcome, Refusal, Report, replay};
use crate::dead_letters::{Selection, Standing, input_named, read};
use crate::explain::job_of_outputs;
use crate::filter::utc;
use crate::names::Names;
use clap::{Args, Subcommand};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::dead_letter::Reason;
use ictflow_schemas::framing::hex;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::ops::Range;
use std::process::ExitCode;

/// Refused letters that are listed in the counts' company, of each kind.
const LISTED: u64 = 20;

/// Options of `dead-letters`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List committed dead letters, and count them by reason. Payloads, which may be personal, only with --payload.
    List(List),
    /// Append the records of dead letters to the inputs that they came from, once each, after a fix.
    Replay(Replay),
}

/// Which dead letters are meant.
#[derive(Debug, Args)]
struct Chosen {
    /// Only those refused for this: unreadable, oversized, misrouted, future, late, conflict, window_full or
    /// too_many_candidates.
    #[arg(long, value_name = "WORD", value_parser = reason)]
    reason: Option<Reason>,
    /// Only those of this input: interactions, items or candidates.
    #[arg(long)]
    topic: Option<String>,
    /// Only those of this partition of it.
    #[arg(long, value_name = "N", requires = "topic")]
    partition: Option<u32>,
    /// Only those that stand at this offset of it, or at these: 7, 7..12 (12 not among them), 7.. or ..12.
    #[arg(long, value_name = "OFFSETS", requires = "topic", value_parser = offsets)]
    offset: Option<Range<i64>>,
}

impl Chosen {
    fn selection(&self, names: &Names, stage: Option<String>) -> Result<Selection> {
        let topic = self.topic.as_ref().map(|topic| input_named(names, topic)).transpose()?;
        let (reason, partition, offsets) = (self.reason, self.partition, self.offset.clone());
        Ok(Selection { stage, reason, topic, partition, offsets })
    }
}

/// Options of `dead-letters list`.
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    chosen: Chosen,
    /// Only those refused at this stage, such as accept.
    #[arg(long, value_name = "WORD")]
    stage: Option<String>,
    /// Only the newest N; all are counted.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Also print what was refused: it may be personal.
    #[arg(long)]
    payload: bool,
    /// Print JSON Lines, one a dead letter, and no counts.
    #[arg(long)]
    json: bool,
}

/// Options of `dead-letters replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "A record is appended once, however often this is run. Refused by name are those that would be refused \
                  again, that are older than a newer record of their key, and those of erased users. Ends with 1 where one was \
                  refused that a fix could have let through or that was asked for by --offset, or where some are left."
)]
struct Replay {
    #[command(flatten)]
    store: Store,
    #[command(flatten)]
    chosen: Chosen,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON Lines, one a dead letter, and no counts.
    #[arg(long)]
    json: bool,
}

/// A reason by its word.
fn reason(word: &str) -> std::result::Result<Reason, String> {
    Reason::from_word(word).ok_or_else(|| {
        let words: Vec<&str> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        format!("expected {}", words.join(", "))
    })
}

/// An offset, or a range without its end.
fn offsets(text: &str) -> std::result::Result<Range<i64>, String> {
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
    let range = match text.split_once("..") {
        None => number(text).and_then(|offset| Some(offset..offset.checked_add(1)?)),
        Some(("", "")) => None,
        Some(("", to)) => number(to).map(|to| 0..to),
        Some((from, "")) => number(from).map(|from| from..i64::MAX),
        Some((from, to)) => number(from).zip(number(to)).map(|(from, to)| from..to),
    };
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| "expected an offset or a range such as 7, 7..12, 7.. or ..12".to_owned())
}

/// Lists or replays.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::List(arguments) => list(arguments).map(|()| ExitCode::SUCCESS),
        Command::Replay(arguments) => again(arguments),
    }
}

/// Prints what stands. Writes nothing, fences nobody.
fn list(arguments: &List) -> Result<()> {
    let config = arguments.store.config()?;
    let names = &config.options.names;
    let selection = arguments.chosen.selection(names, arguments.stage.clone())?;
    let mut topics = config.topics(true)?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest: VecDeque<String> = VecDeque::new();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    // A reader like `head` that has seen enough ends the command, not in an error.
    let mut open = true;
    // Headings only over what could be read: a failure stands alone.
    let mut headed = arguments.json;
    read(&mut *topics, names, &selection, |standing| {
        if !std::mem::replace(&mut headed, true) {
            open = writeln!(out, "{HEADINGS}").is_ok();
        }
        *counts.entry(standing.letter.reason.clone()).or_default() += 1;
        let line = if arguments.json {
            as_json(&standing, arguments.payload)
        } else {
            as_row(&standing, arguments.payload)
        };
        match arguments.limit {
            None => open = open && writeln!(out, "{line}").is_ok(),
            Some(limit) => {
                newest.push_back(line);
                if newest.len() > limit {
                    newest.pop_front();
                }
            }
        }
    })?;
    if !headed {
        open = writeln!(out, "{HEADINGS}").is_ok();
    }
    let rest = |out: &mut dyn Write| -> std::io::Result<()> {
        for line in &newest {
            writeln!(out, "{line}")?;
        }
        if !arguments.json {
            counted(out, &counts)?;
        }
        out.flush()
    };
    if open {
        let _ = rest(&mut out);
    }
    Ok(())
}

/// The headings of the table.
const HEADINGS: &str =
    "source                           stage    reason               committed                     bytes";

fn as_row(standing: &Standing, payload: bool) -> String {
    let letter = &standing.letter;
    let at = standing.committed_at.map_or_else(|| "-".to_owned(), utc);
    let bytes =
        letter.payload.as_ref().map_or_else(|| "null".to_owned(), |payload| payload.len().to_string());
    let mut row = format!(
        "{:<32} {:<8} {:<20} {at:<24} {bytes:>10}",
        letter.source().to_string(),
        letter.stage,
        letter.reason
    );
    if payload {
        row.push_str("  ");
        row.push_str(&shown(letter.payload.as_deref()));
    }
    row
}

/// A payload for a person: escaped text where it is one, else hex.
fn shown(payload: Option<&[u8]>) -> String {
    let Some(payload) = payload else { return "null".to_owned() };
    match std::str::from_utf8(payload) {
        Ok(text) => format!("{text:?}"),
        Err(_) => hex(payload),
    }
}

fn as_json(standing: &Standing, payload: bool) -> String {
    let letter = &standing.letter;
    let mut line = json!({
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "stage": letter.stage,
        "reason": letter.reason,
        "epoch": standing.epoch,
        "committed_at": standing.committed_at,
        "payload_bytes": letter.payload.as_ref().map(Vec::len),
    });
    if payload {
        line["key"] = json!(letter.key.as_deref().map(hex));
        line["payload"] = json!(letter.payload.as_deref().map(hex));
    }
    line.to_string()
}

fn counted(out: &mut dyn Write, counts: &BTreeMap<String, u64>) -> std::io::Result<()> {
    let total: u64 = counts.values().sum();
    if total == 0 {
        return writeln!(out, "no dead letters");
    }
    writeln!(out, "{total} dead letters:")?;
    for (word, count) in counts {
        let hint = Reason::from_word(word).map_or("", Reason::hint);
        writeln!(out, "  {count:>8} {word:<20} {hint}")?;
    }
    Ok(())
}

/// Refuses what can't be replayed whatever its records are.
fn possible(arguments: &Replay, config: &Config) -> Result<()> {
    if config.files().is_some() {
        return Err(Error::fatal(
            "replay dead letters",
            "the inputs are files, which only their owner writes",
            "append the mended lines to the file: they are judged like any others",
        ));
    }
    let refusal = arguments.chosen.reason.and_then(|reason| Some((reason, Refusal::of_reason(reason)?)));
    match refusal {
        None => Ok(()),
        Some((reason, refusal)) => Err(Error::fatal(
            "replay dead letters",
            format!("those with the reason {} aren't replayed: of each, {}", reason.word(), refusal.why()),
            "unreadable, misrouted and window_full ones can be; dead-letters list shows them",
        )),
    }
}

/// Replays, and ends with 1 where something that was asked for wasn't done.
fn again(arguments: &Replay) -> Result<ExitCode> {
    let config = arguments.store.config()?;
    possible(arguments, &config)?;
    let names = &config.options.names;
    let selection = arguments.chosen.selection(names, None)?;
    let mut topics = config.topics_of_replay(arguments.dry_run)?;
    let recorded = match arguments.store.config {
        None => job_of_outputs(&mut *topics, names)?,
        Some(_) => None,
    };
    let job = recorded.as_deref().unwrap_or(&config.options.job);
    let of = Of { job, names, semantics: config.semantics.clone() };
    let mut out = std::io::stdout().lock();
    let mut told: BTreeMap<Refusal, u64> = BTreeMap::new();
    let report = replay(&mut *topics, &of, &selection, arguments.dry_run, |line| {
        // What nobody reads any more isn't an error: the records are appended all the same.
        if arguments.json {
            let _ = writeln!(out, "{}", line_json(line, arguments.dry_run));
        } else if let Outcome::Refused(refusal) = line.outcome {
            let count = told.entry(refusal).or_default();
            *count += 1;
            if *count <= LISTED {
                let _ = writeln!(out, "refused {} ({}): {}", line.source, line.reason, refusal.why());
            }
        }
    })?;
    if !arguments.json {
        let _ = summed(&mut out, &report, arguments.dry_run);
    }
    let _ = out.flush();
    let named = arguments.chosen.offset.is_some();
    let done = report.left == 0 && report.refused.keys().all(|refusal| refusal.is_settled() && !named);
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line_json(line: &Line, dry: bool) -> String {
    let (outcome, refusal) = match line.outcome {
        Outcome::Replayed(_) if dry => ("would_replay", None),
        Outcome::Replayed(_) => ("replayed", None),
        Outcome::Before => ("replayed_before", None),
        Outcome::Refused(refusal) => ("refused", Some(refusal)),
        Outcome::Left => ("left", None),
    };
    let to = match line.outcome {
        Outcome::Replayed(partition) => Some(partition),
        _ => None,
    };
    json!({
        "topic": line.source.topic,
        "partition": line.source.partition,
        "offset": line.source.offset,
        "reason": line.reason,
        "outcome": outcome,
        "to_partition": to,
        "refusal": refusal.map(Refusal::word),
        "why": refusal.map(Refusal::why),
    })
    .to_string()
}

fn summed(out: &mut impl Write, report: &Report, dry: bool) -> std::io::Result<()> {
    let refused: u64 = report.refused.values().sum();
    writeln!(out, "{:>8} {}", report.replayed, if dry { "would be replayed" } else { "replayed" })?;
    writeln!(out, "{:>8} replayed before, or accepted by now", report.before)?;
    writeln!(out, "{refused:>8} refused")?;
    for (refusal, count) in &report.refused {
        writeln!(out, "  {count:>8} {:<14} {}", refusal.word(), refusal.why())?;
    }
    if report.left > 0 {
        writeln!(out, "{:>8} left: run it again", report.left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_one_or_a_range_without_its_end() {
        for (text, range) in
            [("7", 7..8), ("7..12", 7..12), ("7..", 7..i64::MAX), ("..12", 0..12), ("0", 0..1)]
        {
            assert_eq!(offsets(text), Ok(range), "{text}");
        }
        for text in
            ["", "..", "12..7", "7..7", "..0", "-1", "+1", "a", "1..b", "9223372036854775807", "1...2"]
        {
            assert!(offsets(text).is_err(), "{text}");
        }
    }
}
