//! `ictflow consistency`: what was served against what training sees.

use super::Store;
use super::verify::Shown;
use crate::consistency::{Report, TOLD, TOLERANCE, consistency};
use clap::Args;
use ictflow_connectors::{Error, Result};
use std::io::Write;

/// Options of `consistency`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// Print one JSON object: the counts, shares, drift and causes, and the first differences.
    #[arg(long)]
    json: bool,
}

/// Compares, and ends with 0 whatever it found: that something differs is a measure, no failure.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let config = arguments.store.config()?;
    let mut topics = config.topics(true)?;
    let (job, plan) = arguments.store.plan(&config, &mut *topics, 0)?;
    let mut shown = Shown::new("consistency", "epochs");
    let report = consistency(&mut *topics, &plan, &job, |done, of| shown.show(done, of))?;
    shown.finish();
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|e| Error::fatal("print the report", e, "this is a defect: please report it"))?,
        false => told(&report),
    };
    // A reader like `head` that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    Ok(())
}

fn told(report: &Report) -> String {
    let mut lines = vec![
        format!("epoch {}, as-of vectors by the weights {}", report.epoch, report.ict_weights),
        format!(
            "{} labelled examples: {} were served nothing or it isn't known, {} can't be made as of then, {} compared",
            report.examples, report.unserved, report.unmade, report.compared
        ),
    ];
    let Some(share) = report.share() else {
        lines.push("nothing to compare: an example names what was served where its pair had a feature before its impression, and no restart lay between impression and label".to_owned());
        return lines.join("\n");
    };
    let percent = |part: u64| 100.0 * part as f64 / report.compared as f64;
    lines.push(format!(
        "equal: {:.2}% (votes to the bit {:.2}%, vectors within {TOLERANCE:e} {:.2}%)",
        100.0 * share,
        percent(report.equal_votes),
        percent(report.equal_vectors)
    ));
    lines.push(format!(
        "vectors: distance {:.6} on average, {:.6} at the 95th percentile",
        report.vectors.mean, report.vectors.p95
    ));
    lines.push(format!(
        "votes: distance {:.6} on average of the nine, {:.6} at the 95th percentile",
        report.votes.mean, report.votes.p95
    ));
    if report.other_width > 0 {
        lines.push(format!("{} vectors are of another width and no part of it", report.other_width));
    }
    let differ = report.compared - report.equal;
    if differ == 0 {
        lines.push("no difference".to_owned());
        return lines.join("\n");
    }
    lines.push(format!("{differ} differ; an example may have several causes:"));
    for (cause, count) in &report.causes {
        lines.push(format!("  {count:>8} {:<18} {}", cause.name(), cause.meaning()));
    }
    for difference in &report.differences {
        let causes: Vec<&str> = difference.causes.iter().map(|cause| cause.name()).collect();
        let vector = difference.vector.map_or("another width".to_owned(), |vector| format!("{vector:.6}"));
        lines.push(format!(
            "  {} {} {} at {}: vector {vector}, votes {:.6}: {}",
            difference.user,
            difference.item,
            difference.event_id,
            difference.event_time,
            difference.votes,
            causes.join(", ")
        ));
    }
    if differ as usize > TOLD {
        lines.push(format!("  and {} more", differ as usize - TOLD));
    }
    lines.join("\n")
}
