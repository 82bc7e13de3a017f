//! The demo's report: one file without script and without anything from elsewhere.
//!
//! Titles and CoT texts in it are untrusted: everything is escaped, and the policy in the file lets a
//! browser run nothing.

use super::closing::{self, Text, caveat, nearest, said, verdict, voters};
use super::prequential::{Measured, Point};
use super::samples::{Sample, Samples};
use crate::explain::{Explanation, Lineage};
use crate::summary::Summary;
use ictflow_connectors::telemetry::chart::{Chart, Series, number};
use ictflow_connectors::telemetry::graph;
use ictflow_connectors::telemetry::page::{STYLE, escape};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::feature::{NeighbourSource, VectorKind};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// What the report shows.
pub struct Shown<'a> {
    /// The figures.
    pub summary: &'a Summary,
    /// The same over time.
    pub samples: &'a Samples,
    /// Users with what their vectors were made of, the first few.
    pub lineage: &'a Lineage,
    /// Texts that no vector shows.
    pub texts: &'a [Text],
    /// What vector and votes are worth to a ranker, where that was measured.
    pub measured: Option<&'a Measured>,
}

/// Writes the report.
///
/// # Errors
/// `Fatal` where the file can't be written.
pub fn write(path: &Path, shown: &Shown<'_>) -> Result<()> {
    std::fs::write(path, html(shown))
        .map_err(|e| Error::fatal(format!("write {}", path.display()), e, "the folder must be writable"))
}

/// The report as HTML. Writing to a String cannot fail, here and below.
fn html(shown: &Shown<'_>) -> String {
    let Shown { summary, samples, lineage, texts, measured } = shown;
    let samples = &samples.all();
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
    for chart in charts(samples, summary.vector_kind) {
        let _ = write!(out, "<section class=\"card\">{}</section>", chart.html());
    }
    out.push_str("</div>");
    if let Some(measured) = measured {
        worth(&mut out, measured);
    }
    users(&mut out, lineage);
    written(&mut out, texts);
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
        match summary.vector_kind {
            VectorKind::Decoder => (number(summary.features_full_k as f64), "with all demonstrations"),
            VectorKind::Attention => (number(summary.demonstrations as f64), "demonstrations"),
        },
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
fn node(id: &str, summary: &Summary) -> graph::Shown {
    let count = match id {
        "interactions" => summary.interactions,
        "items" => summary.item_updates,
        "history" => u64::try_from(summary.history_users).unwrap_or(0),
        "pairs" => summary.pairs_live as u64,
        "catalog" => summary.items as u64,
        "examples" | "neighbours" => u64::try_from(summary.examples).unwrap_or(0),
        "eligible" => summary.wanted as u64,
        "generate" => summary.attempts,
        "cot" => summary.answered as u64,
        "encoder" | "embeddings" => summary.embeddings_computed,
        "demonstrations" => summary.demonstrations as u64,
        "retrieval" => summary.features_full_k as u64,
        "ict" => summary.features_live as u64,
        "features" => summary.features_published,
        _ => return graph::Shown::unknown(),
    };
    graph::Shown { value: number(count as f64), beside: String::new() }
}

fn charts(samples: &[Sample], kind: VectorKind) -> [Chart; 3] {
    let line = |name, get: fn(&Sample) -> u64| Series {
        name,
        points: samples.iter().map(|sample| (sample.seconds, get(sample) as f64)).collect(),
    };
    let x = "seconds of the replay";
    let mut features = vec![line("live", |s| s.features)];
    if kind == VectorKind::Decoder {
        features.push(line("with all demonstrations", |s| s.full));
    }
    [
        Chart { title: "Features while CoTs fill in", x, y: "live features", from: 0.0, series: features },
        Chart {
            title: "CoT coverage",
            x,
            y: "content keys",
            from: 0.0,
            series: vec![line("wanted", |s| s.wanted), line("answered", |s| s.answered)],
        },
        Chart {
            title: "LLM calls",
            x,
            y: "calls since the start",
            from: 0.0,
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

/// What vector and votes are worth to a ranker.
fn worth(out: &mut String, measured: &Measured) {
    let _ = write!(
        out,
        "<section class=\"card\"><h2>What vector and votes are worth to a ranker</h2><p>{}.</p><table><thead><tr><th>the ranker is given</th><th class=\"n\">AUC</th><th class=\"n\">GAUC</th><th class=\"n\">LogLoss</th></tr></thead><tbody>",
        capitalised(&said(measured))
    );
    for (name, cells) in closing::table(measured) {
        let cells: String = cells.iter().map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
        let _ = write!(out, "<tr><td>{name}</td>{cells}</tr>");
    }
    let _ = write!(
        out,
        "</tbody></table><p class=\"faint\">{}.</p></section>",
        escape(&capitalised(&caveat(measured)))
    );
    let line = |name, get: fn(&Point) -> f64| Series {
        name,
        points: measured.curve.iter().map(|point| (point.predicted as f64, get(point))).collect(),
    };
    let chart = Chart {
        title: "AUC of all that was predicted so far",
        x: "ratings predicted",
        y: "AUC, from chance",
        from: 0.5,
        series: vec![line("vector and votes", |p| p.with), line("neither", |p| p.without)],
    };
    let _ = write!(out, "<section class=\"card\">{}</section>", chart.html());
}

/// A sentence's first letter as a capital.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// Users with their history and, of one offered film, what the vector was made of.
fn users(out: &mut String, lineage: &Lineage) {
    out.push_str("<section class=\"card wide\"><h2>Three users, and what their vectors were made of</h2>");
    let mut shown = BTreeSet::new();
    for (user, item) in lineage.pairs() {
        if shown.len() == closing::USERS || !shown.insert(user) {
            continue;
        }
        let Some(explanation) = lineage.explanation(user, item) else { continue };
        let _ = write!(out, "<h3>user {}, offered {}</h3>", escape(user), escape(&explanation.title));
        let history: Vec<&str> = explanation.history.iter().map(|entry| entry.title.as_str()).collect();
        let _ = write!(
            out,
            "<p><span class=\"faint\">History, oldest first:</span> {}</p>",
            if history.is_empty() { "none".to_owned() } else { escape(&history.join(" · ")) }
        );
        demonstrations(out, &explanation);
        neighbours(out, &explanation);
    }
    if shown.is_empty() {
        out.push_str("<p class=\"faint\">No pair is live.</p>");
    }
    out.push_str("</section>");
}

fn demonstrations(out: &mut String, explanation: &Explanation) {
    for used in explanation.demonstrations.iter().rev() {
        let Some(example) = &used.example else { continue };
        let _ = write!(
            out,
            "<p>user {} <b>{}</b> {} <span class=\"faint\">score {}{}</span></p><blockquote>{}</blockquote>",
            escape(&example.user),
            verdict(used.label),
            escape(&example.title),
            similarity(used.score),
            if used.fresh { "" } else { ", stale" },
            escape(used.cot.as_ref().map_or("(its text isn't on the log any more)", |cot| &cot.text))
        );
    }
}

/// How many labels vote, and the nearest of them.
fn neighbours(out: &mut String, explanation: &Explanation) {
    let _ = write!(out, "<p class=\"faint\">{}; the nearest:</p>", capitalised(&voters(explanation)));
    for (source, what) in [(NeighbourSource::SameItem, "on it"), (NeighbourSource::SameUser, "of the user")] {
        for neighbour in nearest(explanation, source) {
            let Some(example) = &neighbour.example else { continue };
            let (who, film) = match source {
                NeighbourSource::SameItem => (format!("user {}", example.user), "it".to_owned()),
                NeighbourSource::SameUser => ("the user".to_owned(), example.title.clone()),
            };
            let _ = write!(
                out,
                "<p>{} <b>{}</b> {} <span class=\"faint\">{what}, similarity {:+.2}</span></p>",
                escape(&who),
                verdict(neighbour.label),
                escape(&film),
                neighbour.similarity
            );
        }
    }
}

/// Texts that no vector shows.
fn written(out: &mut String, texts: &[Text]) {
    if texts.is_empty() {
        return;
    }
    out.push_str(
        "<section class=\"card wide\"><h2>What the LLM wrote of labelled examples</h2>\
         <p class=\"faint\">These vectors are made of neighbours and don't read it; weights of the kind decoder do.</p>",
    );
    for Text { user, title, liked, text } in texts {
        let _ = write!(
            out,
            "<p>user {} <b>{}</b> {}</p><blockquote>{}</blockquote>",
            escape(user),
            verdict(i32::from(*liked)),
            escape(title),
            escape(text)
        );
    }
    out.push_str("</section>");
}
