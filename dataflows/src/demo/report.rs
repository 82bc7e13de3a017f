//! The demo's report: one file without script and without anything from elsewhere.
//!
//! Titles and CoT texts in it are untrusted: everything is escaped, and the policy in the file lets a
//! browser run nothing.

use super::samples::{Sample, Samples};
use crate::explain::Lineage;
use crate::summary::Summary;
use ictflow_connectors::telemetry::chart::{Chart, Series, number};
use ictflow_connectors::telemetry::graph::{self, Shown};
use ictflow_connectors::telemetry::page::{STYLE, escape};
use ictflow_connectors::{Error, Result};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// Users shown with their demonstrations.
const USERS: usize = 3;

/// Writes the report.
///
/// # Errors
/// `Fatal` where the file can't be written.
pub fn write(path: &Path, summary: &Summary, samples: &Samples, lineage: &Lineage) -> Result<()> {
    std::fs::write(path, html(summary, &samples.all(), lineage))
        .map_err(|e| Error::fatal(format!("write {}", path.display()), e, "the folder must be writable"))
}

/// The report as HTML. Writing to a String cannot fail, here and below.
fn html(summary: &Summary, samples: &[Sample], lineage: &Lineage) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>ictflow demo</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>ictflow demo</h1><span class=\"faint\">MovieLens-100K as streams, {} s</span></header>\n<main><div class=\"cards\">\n",
        number(summary.seconds.round())
    );
    figures(&mut out, summary);
    let _ = write!(
        out,
        "<div class=\"column\"><section class=\"card\"><h2>The dataflow at the end</h2>{}<p class=\"faint legend\"><span>dashed: a topic</span> <span>thick: outside the frontier</span></p></section>",
        graph::svg(|id| node(id, summary))
    );
    calls(&mut out, summary, samples);
    out.push_str("</div><div class=\"column\">");
    for chart in charts(samples) {
        let _ = write!(out, "<section class=\"card\">{}</section>", chart.html());
    }
    out.push_str("</div>");
    users(&mut out, lineage);
    let _ = write!(
        out,
        "<section class=\"card wide\"><h2>Versions</h2><table><tbody><tr><td>ICT weights</td><td>{}</td></tr><tr><td>LLM</td><td>{}</td></tr><tr><td>encoder</td><td>{}</td></tr></tbody></table></section>",
        escape(&summary.ict_weights),
        escape(&summary.llm_model),
        escape(&summary.encoder)
    );
    out.push_str("</div></main>\n<footer>All figures: summary.json beside this file. One vector explained whole: <code>ictflow explain --state FOLDER USER ITEM</code>.</footer>\n</body>\n</html>\n");
    out
}

fn figures(out: &mut String, summary: &Summary) {
    out.push_str("<section class=\"card wide\"><div class=\"figures\">");
    for (value, unit) in [
        (number(summary.interactions as f64), "interactions"),
        (number(summary.features_live as f64), "features live"),
        (number(summary.features_full_k as f64), "with all demonstrations"),
        (number(summary.features_published as f64), "features published"),
        (number(summary.wanted as f64), "CoTs wanted"),
        (format!("{:.0} %", 100.0 * summary.coverage), "answered"),
        (number(summary.attempts as f64), "LLM calls"),
        (number(summary.amplification), "amplification (1 is right)"),
        (number(summary.embeddings_computed as f64), "texts embedded"),
    ] {
        let _ = write!(out, "<div><b>{value}</b><small>{unit}</small></div>");
    }
    out.push_str("</div></section>");
}

/// The figure of a node of the drawing.
fn node(id: &str, summary: &Summary) -> Shown {
    let count = match id {
        "interactions" => summary.interactions,
        "items" => summary.item_updates,
        "history" => u64::try_from(summary.history_users).unwrap_or(0),
        "pairs" => summary.pairs_live as u64,
        "catalog" => summary.items as u64,
        "examples" => u64::try_from(summary.examples).unwrap_or(0),
        "eligible" => summary.wanted as u64,
        "generate" => summary.attempts,
        "cot" => summary.answered as u64,
        "encoder" | "embeddings" => summary.embeddings_computed,
        "demonstrations" => summary.demonstrations as u64,
        "retrieval" => summary.features_full_k as u64,
        "ict" => summary.features_live as u64,
        "features" => summary.features_published,
        _ => return Shown::unknown(),
    };
    Shown { value: number(count as f64), beside: String::new() }
}

fn charts(samples: &[Sample]) -> [Chart; 3] {
    let line = |name, get: fn(&Sample) -> u64| Series {
        name,
        points: samples.iter().map(|sample| (sample.seconds, get(sample) as f64)).collect(),
    };
    let x = "seconds of the replay";
    [
        Chart {
            title: "Features while CoTs fill in",
            x,
            y: "live features",
            series: vec![line("live", |s| s.features), line("with all demonstrations", |s| s.full)],
        },
        Chart {
            title: "CoT coverage",
            x,
            y: "content keys",
            series: vec![line("wanted", |s| s.wanted), line("answered", |s| s.answered)],
        },
        Chart {
            title: "LLM calls",
            x,
            y: "calls since the start",
            series: vec![line("made", |s| s.calls), line("by asking everything again", |s| s.recomputed)],
        },
    ]
}

fn calls(out: &mut String, summary: &Summary, samples: &[Sample]) {
    let last = samples.last().copied().unwrap_or_default();
    let times = if last.calls == 0 {
        String::new()
    } else {
        format!(", {} times as many", number((last.recomputed as f64 / last.calls as f64).round()))
    };
    let _ = write!(
        out,
        "<section class=\"card\"><h2>Asked once for each thing that changed</h2>\
         <p>Made: <b>{}</b> first calls for {} distinct keys. A pipeline that asks everything again would have made <b>{}</b>{times}.</p>\
         <p class=\"faint\">Asking everything again means: at each of the {} epochs that brought input one call for every content key that was wanted at that epoch, whether it was answered before or not. Retries are left out on both sides.</p></section>",
        number(last.calls as f64),
        number(summary.called as f64),
        number(last.recomputed as f64),
        number(last.refreshes as f64)
    );
}

/// A score as the sum of two cosines, -2 to 2: vectors are unit ones times 2^14.
fn similarity(score: i64) -> String {
    format!("{:.2}", score as f64 / f64::from(1 << 28))
}

/// Users with their history and, of one offered film, the demonstrations.
fn users(out: &mut String, lineage: &Lineage) {
    out.push_str("<section class=\"card wide\"><h2>Three users, and what their vectors were made of</h2>");
    let mut shown = BTreeSet::new();
    for (user, item) in lineage.pairs() {
        if shown.len() == USERS || !shown.insert(user) {
            continue;
        }
        let Some(feature) = lineage.feature(user, item) else { continue };
        let _ = write!(out, "<h3>user {}, offered {}</h3>", escape(user), escape(&lineage.title(item)));
        let history: Vec<String> = feature.history.iter().map(|id| lineage.title(id)).collect();
        let _ = write!(
            out,
            "<p><span class=\"faint\">History, oldest first:</span> {}</p>",
            if history.is_empty() { "none".to_owned() } else { escape(&history.join(" · ")) }
        );
        for used in feature.demonstrations.iter().rev() {
            let Some((example, cot)) = lineage.demonstration(&used.id, used.fresh) else { continue };
            let _ = write!(
                out,
                "<p>user {} <b>{}</b> {} <span class=\"faint\">score {}{}</span></p><blockquote>{}</blockquote>",
                escape(&example.user_id),
                if used.label == 1 { "liked" } else { "did not like" },
                escape(&lineage.title(&example.item_id)),
                similarity(used.score),
                if used.fresh { "" } else { ", stale" },
                escape(cot.map_or("(its text isn't on the log any more)", |cot| &cot.text))
            );
        }
    }
    if shown.is_empty() {
        out.push_str("<p class=\"faint\">No pair is live.</p>");
    }
    out.push_str("</section>");
}
