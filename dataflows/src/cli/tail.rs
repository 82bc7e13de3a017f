//! `ictflow tail`: decoded records of a topic, filtered, as JSON Lines.

use super::Store;
use crate::epochs::read_range;
use crate::filter::{Filter, time};
use crate::tail;
use clap::Args;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::{Record, Topic};
use ictflow_schemas::wire::Format;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

/// The most lines that `--last` holds back.
const MAX_LAST: usize = 1_000_000;

/// Records of one poll, and how long it waits at a topic's end.
const POLL: (usize, Duration) = (1_000, Duration::from_millis(200));

/// Options of `tail`.
#[derive(Debug, Args)]
#[command(after_help = "Filters are joined by AND. One that doesn't apply to the topic is an error.")]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// interactions, items, candidates, cot, embeddings, epochs, progress, features, examples or
    /// dead_letters.
    #[arg(default_value = "features")]
    topic: String,
    /// Go on when the end is reached.
    #[arg(long, short)]
    follow: bool,
    /// Add each value's bytes as hex.
    #[arg(long)]
    raw: bool,
    /// Print only the value of each record: null for a tombstone.
    #[arg(long, conflicts_with = "raw")]
    value: bool,
    /// Only records about this user; dead letters by their raw key.
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Only records about this item; candidate sets that offer it; dead letters of items by their raw key.
    #[arg(long, value_name = "ID")]
    item: Option<String>,
    /// Only records with this key, as it is printed: a text, or an array such as '["ann","m3"]'.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only this partition.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Only offsets from this one on, in each partition.
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    from: Option<i64>,
    /// Only records whose timestamp is this time or later: milliseconds, or RFC 3339 as in
    /// 2026-11-24T17:30:00Z. A record without timestamp isn't printed.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    since: Option<i64>,
    /// Only records that this epoch committed; of epochs, its bounds.
    #[arg(long, value_name = "N")]
    epoch: Option<i64>,
    /// Only dead letters with this reason.
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
    /// Only the last N of those that stand there now: by offset, over several partitions by timestamp.
    #[arg(long, value_name = "N", conflicts_with = "limit",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=MAX_LAST as u64))]
    last: Option<usize>,
    /// End after N lines.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
}

/// The topic of a name. The hint is a static text, so the names stand in the detail.
fn topic_of(name: &str) -> Result<Topic> {
    Topic::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = Topic::ALL.iter().map(|topic| topic.name()).collect();
        Error::fatal(
            "tail",
            format!("there is no topic {name}, but {}", known.join(", ")),
            "name its role: its name on the store comes from the configuration",
        )
    })
}

/// What is printed of a topic.
struct Printer<'a> {
    arguments: &'a Arguments,
    filter: Filter,
    topic: Topic,
    name: String,
    items: String,
    format: Format,
    out: std::io::BufWriter<std::io::StdoutLock<'static>>,
    printed: usize,
    /// The last ones by (timestamp, partition, offset), where asked for.
    held: BTreeMap<(i64, u32, i64), String>,
    holding: bool,
    several: bool,
    /// Why standard output can't be written, other than that nobody reads it any more.
    broken: Option<std::io::Error>,
}

impl Printer<'_> {
    /// Takes a record. False where nothing more is wanted.
    fn take(&mut self, record: &Record) -> bool {
        let Arguments { partition, from, raw, value, last, .. } = self.arguments;
        let out_of_range =
            partition.is_some_and(|p| p != record.partition) || from.is_some_and(|from| record.offset < from);
        if out_of_range || !self.filter.may_pass(self.topic, record) {
            return true;
        }
        let line = tail::line(self.topic, &self.name, record, self.format, *raw);
        if !self.filter.passes(self.topic, &line, &self.items) {
            return true;
        }
        let text = if *value { only_value(line).to_string() } else { line.to_string() };
        let Some(last) = last.filter(|_| self.holding) else { return self.print(&text) };
        let timestamp = if self.several { record.timestamp.unwrap_or(i64::MIN) } else { 0 };
        self.held.insert((timestamp, record.partition, record.offset), text);
        if self.held.len() > last {
            self.held.pop_first();
        }
        true
    }

    /// Prints a line. False where that was the last one, or nobody reads any more: a reader like `head`
    /// that has seen enough ends the command, not in an error.
    fn print(&mut self, text: &str) -> bool {
        self.printed += 1;
        let written = writeln!(self.out, "{text}");
        self.keep(written) && self.arguments.limit.is_none_or(|limit| self.printed < limit)
    }

    /// Prints what was held back. False where nobody reads any more.
    fn release(&mut self) -> bool {
        self.holding = false;
        let held = std::mem::take(&mut self.held);
        held.values().all(|text| self.print(text)) && self.flush()
    }

    fn flush(&mut self) -> bool {
        let flushed = self.out.flush();
        self.keep(flushed)
    }

    /// Whether a write went well; keeps a failure that a person must hear of.
    fn keep(&mut self, written: std::io::Result<()>) -> bool {
        match written {
            Ok(()) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(error) => self.broken = Some(error),
        }
        false
    }

    /// Ends the command.
    fn end(mut self) -> Result<()> {
        self.flush();
        match self.broken {
            None => Ok(()),
            Some(error) => {
                Err(Error::fatal("write to standard output", error, "lines are missing: is the disk full?"))
            }
        }
    }
}

/// The value alone. Bytes that can't be decoded stay visible.
fn only_value(mut line: Value) -> Value {
    match line.get("undecodable") {
        Some(bytes) => json!({ "undecodable": bytes }),
        None => line["value"].take(),
    }
}

/// Prints a topic.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let topic = topic_of(&arguments.topic)?;
    let filter = Filter {
        user: arguments.user.clone(),
        item: arguments.item.clone(),
        key: arguments.key.clone(),
        since: arguments.since,
        epoch: arguments.epoch,
        reason: arguments.reason.clone(),
    };
    let problems = filter.problems(topic);
    if !problems.is_empty() {
        return Err(Error::fatal(
            "tail",
            problems.join("; "),
            "leave these filters out, or name another topic; see --help",
        ));
    }
    let config = arguments.store.config()?;
    let mut topics = config.topics(true)?;
    let names = match topic {
        Topic::Features | Topic::Examples => arguments.store.names(&config, &mut *topics)?,
        _ => config.options.names.clone(),
    };
    let name = names.of(topic).to_owned();
    if topics.partitions(&name)?.is_none() {
        return Err(Error::fatal(
            "tail",
            format!("topic {name} doesn't exist"),
            "has the job run yet? does the suffix fit?",
        ));
    }
    let ends = topics.ends(&name)?;
    let from = starts(arguments, &name, &ends)?;
    let mut printer = Printer {
        arguments,
        filter,
        topic,
        items: config.options.names.of(Topic::Items).to_owned(),
        format: config.formats().get(&topic).copied().unwrap_or(Format::Avro),
        out: std::io::BufWriter::new(std::io::stdout().lock()),
        printed: 0,
        held: BTreeMap::new(),
        holding: arguments.last.is_some(),
        broken: None,
        several: ends.len() > 1 && arguments.partition.is_none(),
        name,
    };
    if !arguments.follow {
        read_range(&mut *topics, &printer.name.clone(), &from, &ends, |record| printer.take(&record))?;
        printer.release();
        return printer.end();
    }
    let mut reader = topics.reader(&printer.name, &from)?;
    loop {
        for record in reader.poll(POLL.0, POLL.1)? {
            if !printer.take(&record) {
                return printer.end();
            }
        }
        let at_end = reader.positions().iter().zip(&ends).all(|(at, end)| at >= end);
        let reads = match printer.holding {
            true => !at_end || printer.release(),
            false => printer.flush(),
        };
        if !reads {
            return printer.end();
        }
    }
}

/// Where each partition is read from: one that isn't asked for, from its end.
fn starts(arguments: &Arguments, name: &str, ends: &[i64]) -> Result<Vec<i64>> {
    if let Some(partition) = arguments.partition
        && partition as usize >= ends.len()
    {
        return Err(Error::fatal(
            "tail",
            format!("topic {name} has no partition {partition}, but {}", ends.len()),
            "partitions count from 0",
        ));
    }
    let asked = |partition: usize| arguments.partition.is_none_or(|asked| asked as usize == partition);
    let from = arguments.from.unwrap_or(0);
    let longest = (0..ends.len()).filter(|p| asked(*p)).map(|p| ends[p]).max().unwrap_or(0);
    if from > longest {
        return Err(Error::fatal(
            "tail",
            format!("topic {name} ends at offset {longest}, before {from}"),
            "give an offset that exists, or the end itself with --follow",
        ));
    }
    Ok(ends.iter().enumerate().map(|(p, end)| if asked(p) { from.min(*end) } else { *end }).collect())
}
