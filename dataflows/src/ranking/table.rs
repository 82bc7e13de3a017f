//! The table of an evaluation: aligned text for a person, JSON and CSV for programs. Its bytes depend on the
//! figures and on the machines alone.

use super::cell::write;
use super::cots::PoolFigures;
use super::delay::Delay;
use super::plot;
use super::report::{Figure, Gain, Report};
use ictflow_connectors::{Error, Result};
use std::fmt::Write as _;
use std::path::Path;

/// The aligned text: the rows, then AUC by segment.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} training, {} validation, {} test samples of {} users; protocol {}; {}",
        report.train,
        report.valid,
        report.test,
        report.test_users,
        report.protocol,
        if report.seeds == 1 { "1 seed".to_owned() } else { format!("{} seeds", report.seeds) }
    );
    let _ = writeln!(text, "trained on: {}", report.machines.join("; "));
    if let Some(pool) = &report.pool {
        let PoolFigures { demonstrations, explained, explained_by, tokens_in, tokens_out, paper_compat } =
            pool;
        let by = explained_by.as_ref().map(|by| format!(": {by}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "demonstrations: {demonstrations}, of them explained by an LLM{by}: {explained} ({tokens_in} tokens read, {tokens_out} written)"
        );
        if *paper_compat {
            let _ = writeln!(
                text,
                "chosen by the published rule: an example may be its own demonstration, others' may be later"
            );
        }
    }
    let _ = writeln!(
        text,
        "differences and RelaImpr are to the arm {}, intervals hold 95% of a bootstrap over users\n",
        report.reference
    );
    text.push_str(&aligned(&rows(report)));
    if !report.pairs.is_empty() {
        text.push_str("\narms that differ in one thing\n");
        text.push_str(&aligned(&pairs(report)));
    }
    for pair in &report.pairs {
        if let Some(gained) = &pair.per_thousand_tokens {
            let (backbone, arm, against) = (pair.backbone, pair.arm, pair.against);
            let _ = writeln!(
                text,
                "gained a thousand tokens, {backbone} {arm} against {against}: AUC {:+.6}, GAUC {:+.6}",
                gained.auc, gained.gauc
            );
        }
    }
    text.push_str("\nAUC by segment of the test\n");
    text.push_str(&aligned(&segments(report)));
    text
}

/// Whether labels were delayed anywhere: then lines name their delay.
fn delayed(report: &Report) -> bool {
    report.rows.iter().any(|row| row.label_delay != Delay::NONE)
}

/// Entries of a line, behind its delay where it is said.
fn line(delay: Option<&str>, entries: impl IntoIterator<Item = String>) -> Vec<String> {
    delay.map(str::to_owned).into_iter().chain(entries).collect()
}

/// A row of the table a line.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let delayed = delayed(report);
    let heads =
        ["backbone", "arm", "valid AUC", "AUC", "GAUC", "LogLoss", "RelaImpr", "AUC gained", "GAUC gained"];
    let mut lines = vec![line(delayed.then_some("delay"), heads.map(str::to_owned))];
    for row in &report.rows {
        let gains = row.gains.as_ref();
        let delay = row.label_delay.to_string();
        let entries = [
            row.backbone.to_owned(),
            row.arm.to_owned(),
            figure(&row.valid_auc),
            figure(&row.auc),
            row.gauc.as_ref().map_or(NONE.to_owned(), figure),
            figure(&row.log_loss),
            row.rela_impr.map_or(NONE.to_owned(), |percent| format!("{percent:+.2}%")),
            gains.map_or(NONE.to_owned(), |gains| gain(&gains.auc)),
            gains.map_or(NONE.to_owned(), |gains| gain(&gains.gauc)),
        ];
        lines.push(line(delayed.then_some(&delay), entries));
    }
    lines
}

/// A pair of arms a line.
fn pairs(report: &Report) -> Vec<Vec<String>> {
    let delayed = delayed(report);
    let heads = ["backbone", "arm", "against", "AUC gained", "GAUC gained"];
    let mut lines = vec![line(delayed.then_some("delay"), heads.map(str::to_owned))];
    for pair in &report.pairs {
        let delay = pair.label_delay.to_string();
        let entries = [
            pair.backbone.to_owned(),
            pair.arm.to_owned(),
            pair.against.to_owned(),
            gain(&pair.gains.auc),
            gain(&pair.gains.gauc),
        ];
        lines.push(line(delayed.then_some(&delay), entries));
    }
    lines
}

/// What stands where there is no figure.
const NONE: &str = "-";

/// A segment a line, an arm a column.
fn segments(report: &Report) -> Vec<Vec<String>> {
    let mut head = vec!["segment".to_owned(), "samples".to_owned()];
    head.extend(report.rows.iter().map(|row| match row.label_delay {
        Delay::NONE => format!("{} {}", row.backbone, row.arm),
        delay => format!("{} {} after {delay}", row.backbone, row.arm),
    }));
    let mut lines = vec![head];
    let first = report.rows.first().map_or(&[][..], |row| &row.segments);
    for (place, segment) in first.iter().enumerate() {
        let mut line = vec![segment.name.to_owned(), segment.samples.to_string()];
        let auc = |auc: Option<f64>| auc.map_or(NONE.to_owned(), |auc| format!("{auc:.4}"));
        line.extend(report.rows.iter().map(|row| auc(row.segments[place].auc)));
        lines.push(line);
    }
    lines
}

fn figure(figure: &Figure) -> String {
    match figure.deviation {
        Some(deviation) => format!("{:.4} ±{deviation:.4}", figure.mean),
        None => format!("{:.4}", figure.mean),
    }
}

fn gain(gain: &Gain) -> String {
    format!("{:+.4} [{:+.4}, {:+.4}]", gain.difference, gain.low, gain.high)
}

/// Columns as wide as their widest entry, two blanks between them.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (entry, width) in line.iter().zip(&widths) {
            let _ = write!(row, "{entry:<width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// One line a row of the table.
pub fn csv(report: &Report) -> String {
    let mut text = String::from(
        "backbone,arm,label_delay,seeds,valid_auc,auc,auc_deviation,gauc,gauc_deviation,log_loss,log_loss_deviation,\
         rela_impr,auc_gained,auc_low,auc_high,gauc_gained,gauc_low,gauc_high\n",
    );
    let maybe = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for row in &report.rows {
        let gain = |gain: Option<Gain>| {
            [gain.map(|gain| gain.difference), gain.map(|gain| gain.low), gain.map(|gain| gain.high)]
        };
        let mut values = vec![
            Some(row.valid_auc.mean),
            Some(row.auc.mean),
            row.auc.deviation,
            row.gauc.map(|gauc| gauc.mean),
            row.gauc.and_then(|gauc| gauc.deviation),
            Some(row.log_loss.mean),
            row.log_loss.deviation,
            row.rela_impr,
        ];
        values.extend(gain(row.gains.map(|gains| gains.auc)));
        values.extend(gain(row.gains.map(|gains| gains.gauc)));
        let values: Vec<String> = values.into_iter().map(maybe).collect();
        let (backbone, arm, delay) = (row.backbone, row.arm, row.label_delay);
        let _ = writeln!(text, "{backbone},{arm},{delay},{},{}", report.seeds, values.join(","));
    }
    text
}

/// One line a row of the table and a segment.
pub fn segments_csv(report: &Report) -> String {
    let mut text = String::from("backbone,arm,label_delay,segment,samples,auc,gauc\n");
    let maybe = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    for row in &report.rows {
        for segment in &row.segments {
            let _ = writeln!(
                text,
                "{},{},{},{},{},{},{}",
                row.backbone,
                row.arm,
                row.label_delay,
                segment.name,
                segment.samples,
                maybe(segment.auc),
                maybe(segment.gauc)
            );
        }
    }
    text
}

/// Writes NAME.txt, NAME.json, NAME.csv, NAME-segments.csv and, as a picture, NAME.svg.
///
/// # Errors
/// `Fatal` where a file can't be written.
pub fn write_all(report: &Report, out: &Path, name: &str) -> Result<()> {
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| Error::fatal("write the table", error, "this is a defect: please report it"))?;
    for (end, text) in [
        (".txt", text(report)),
        (".json", json + "\n"),
        (".csv", csv(report)),
        ("-segments.csv", segments_csv(report)),
        (".svg", plot::svg(report)),
    ] {
        write(&out.join(format!("{name}{end}")), &text)?;
    }
    Ok(())
}
