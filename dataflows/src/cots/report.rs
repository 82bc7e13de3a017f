//! What `ictflow cots` prints: figures of a run, and the distribution of the texts' quality. No part of a text.

use super::asking::Asked;
use super::judge::Judged;
use super::log::Version;
use super::quality::{Distribution, Quality};
use std::fmt::Write;

/// The dimensions as they are printed.
const DIMENSIONS: [(&str, fn(&Quality) -> f64); 5] = [
    ("quality", Quality::total),
    ("coherence", |quality| quality.coherence),
    ("completeness", |quality| quality.completeness),
    ("relevance", |quality| quality.relevance),
    ("consistency", |quality| quality.consistency),
];

/// What is shown of the long id of a model.
pub fn beginning(id: &str) -> &str {
    id.get(..16).unwrap_or(id)
}

/// The figures of a run: `possible` are the examples that may be asked, `first` those that were to be.
pub fn run(asked: &Asked, version: &Version, first: usize, possible: usize) -> String {
    let model = beginning(&version.llm_model);
    let Asked { made, failed, resumed, resumed_failed, left, calls, tokens_in, tokens_out, time } = asked;
    let seconds = time.as_secs_f64();
    let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
    let per_second = rate((tokens_in + tokens_out) as f64);
    let texts = rate(*made as f64);
    let control = if version.label_free { ", no decision stated" } else { "" };
    format!(
        "the first {first} of {possible} examples by {model} with {}{control}\n\
         made {made}, failed {failed}; before this run made {resumed}, failed {resumed_failed}; left by a budget {left}\n\
         {calls} calls, {tokens_in} tokens read and {tokens_out} written in {seconds:.1} s: {per_second:.1} tokens/s, {texts:.2} texts/s\n",
        version.prompt_version,
    )
}

/// The distributions of the texts' quality with the means of the controls. Empty without a text.
pub fn quality(judged: &Judged, encoder: &str) -> String {
    let mut out = String::new();
    let encoder = beginning(encoder);
    for (name, value) in DIMENSIONS {
        let spread = |qualities: &[Quality]| Distribution::of(qualities.iter().map(value));
        let Some(own) = spread(&judged.own) else { return out };
        if out.is_empty() {
            let texts = own.count;
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "\nthe quality of {texts} texts, the first in the order of asking, by the encoder {encoder}"
            );
            let _ = writeln!(
                out,
                "{:<13}{:>6}{:>7}{:>8}{:>7}{:>7}{:>7}   shuffled  template",
                "", "min", "25%", "median", "75%", "max", "mean"
            );
        }
        let mean = |qualities: &[Quality]| {
            spread(qualities).map_or_else(|| "-".to_owned(), |spread| format!("{:.3}", spread.mean))
        };
        let _ = writeln!(
            out,
            "{name:<13}{:>6.3}{:>7.3}{:>8.3}{:>7.3}{:>7.3}{:>7.3}{:>11}{:>10}",
            own.min,
            own.first_quartile,
            own.median,
            own.third_quartile,
            own.max,
            own.mean,
            mean(&judged.shuffled),
            mean(&judged.template),
        );
    }
    out
}
