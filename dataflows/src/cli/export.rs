//! `ictflow export`: a training set in Parquet from a job's topics.

use super::Store;
use super::verify::Shown;
use crate::export::{Report, Selection, Source, Stage, export};
use crate::filter::{time, utc};
use clap::Args;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `export`.
#[derive(Debug, Args)]
#[command(
    after_help = "A row is an example, by the newest record of its key: who, on what, when, label, label_time,\n\
        the history strictly before the event, and as served_* what stood on the feature topic when the impression\n\
        came: vector, votes, ids, epoch and weights, null where nothing did or it isn't known. title, creator and the\n\
        like are the item's texts of now. Rows are in the order (event_time, user_id, event_id): the same topics\n\
        give the same bytes. `ictflow train --parquet FILE` reads it, and any reader of Parquet.\n\n\
        Of the newest impressions only those with an outcome have a label yet: --until the time up to which all\n\
        labels are known, which the closing lines say."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// The file. It comes under its name when it is whole; a training set that is there is replaced then.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only examples of this event time or later: milliseconds, or RFC 3339 as in 2026-11-24T17:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    from: Option<i64>,
    /// Only examples before this event time.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    until: Option<i64>,
    /// Only examples of this user; may be given several times.
    #[arg(long, value_name = "ID")]
    user: Vec<String>,
    /// Print one JSON object: the counts, times and bytes.
    #[arg(long)]
    json: bool,
}

/// Exports what stands on the topics now. Calls nothing, writes to no topic, fences nobody.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { store, out, from, until, user, json } = arguments;
    if let (Some(from), Some(until)) = (from, until)
        && from >= until
    {
        let detail = format!("--from {} isn't before --until {}", utc(*from), utc(*until));
        return Err(Error::fatal("export", detail, "rows are from the first on and before the second"));
    }
    let config = store.config()?;
    let mut topics = config.topics(true)?;
    let names = store.names(&config, &mut *topics)?;
    let source = Source {
        names: &names,
        job: store.config.is_some().then_some(config.options.job.as_str()),
        items_as: config.formats().get(&Topic::Items).copied().unwrap_or(Format::Avro),
        semantics: &config.semantics,
    };
    let selection = Selection { from: *from, until: *until, users: user.iter().cloned().collect() };
    let mut shown = (Stage::Reading, Shown::new("export", "records"));
    let report = export(&mut *topics, source, &selection, out, |stage, done, of| {
        if stage != shown.0 {
            shown.1.finish();
            shown = (stage, Shown::new("export", "rows"));
        }
        shown.1.show(done, of);
    });
    // An error is printed below, not behind half a bar.
    shown.1.finish();
    let report = report?;
    let text = match json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|e| Error::fatal("print the report", e, "this is a defect: please report it"))?,
        false => told(&report, out),
    };
    // A reader like `head` that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    Ok(())
}

fn told(report: &Report, out: &Path) -> String {
    let Report { rows, positive, implicit, users, items, bytes, .. } = report;
    let mut lines = vec![
        format!(
            "{}: {rows} rows, {positive} positive, {implicit} implicit negatives; {users} users, {items} items; {} to {}; {bytes} bytes",
            out.display(),
            utc(report.first),
            utc(report.last)
        ),
        format!("{} rows say what was served with their impression", report.served),
    ];
    if let Some(settled) = report.settled {
        let mut line = format!(
            "labels of all impressions before {} are known, those before {} final",
            utc(settled.known_before),
            utc(settled.final_before)
        );
        if report.last >= settled.known_before {
            line += ": of later ones only those with an outcome have rows (--until leaves them out)";
        }
        lines.push(line);
    }
    for (count, what) in [
        (report.items_without_text, "items have no record, and no text"),
        (report.items_of_histories_only, "items stand in histories only: their texts are in no row"),
    ] {
        if count > 0 {
            lines.push(format!("{count} {what}"));
        }
    }
    lines.join("\n")
}
