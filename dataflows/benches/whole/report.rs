//! Figures with their spread: collected, written as JSON, printed as a Markdown table.

use crate::Fallible;
use crate::machine::Machine;
use serde::Serialize;
use std::path::Path;

/// Runs of one figure at least; where a run is short, [`SHORT_RUNS`].
pub const LONG_RUNS: usize = 3;

/// Runs of a figure whose run takes less than a second or so.
pub const SHORT_RUNS: usize = 5;

/// One figure: what was measured, under which conditions, and every run of it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The section that measured it.
    pub section: &'static str,
    /// What was measured.
    pub what: String,
    /// Sizes, workers, threads: all that the figure depends on.
    pub conditions: String,
    /// The unit of all values.
    pub unit: &'static str,
    /// The values in the order of the runs.
    pub runs: Vec<f64>,
    /// The least of them.
    pub min: f64,
    /// The middle one, of an even number the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

/// All figures of one start of the program.
#[derive(Debug, Serialize)]
pub struct Report {
    /// When it began, UTC.
    pub date: String,
    /// The arguments that it was started with.
    pub command: String,
    /// The commit of the checkout, with `-dirty` where files differ from it.
    pub commit: String,
    /// Whether sizes and times were the small ones.
    pub quick: bool,
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// Sections that failed, with the reason.
    pub failed: Vec<(&'static str, String)>,
}

impl Report {
    /// Adds a figure.
    ///
    /// # Errors
    /// Too few runs, or a value that isn't a positive number: then something wasn't measured.
    pub fn add(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        conditions: impl Into<String>,
        unit: &'static str,
        runs: Vec<f64>,
    ) -> Fallible<()> {
        let what = what.into();
        if runs.len() < LONG_RUNS {
            return Err(format!("{what}: {} runs are too few to tell a spread", runs.len()).into());
        }
        if let Some(odd) = runs.iter().find(|run| !(run.is_finite() && **run > 0.0)) {
            return Err(format!("{what}: a run gave {odd}, which measures nothing").into());
        }
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let figure = Figure {
            section,
            what,
            conditions: conditions.into(),
            unit,
            min: sorted[0],
            median: middle(&sorted),
            max: sorted[sorted.len() - 1],
            runs,
        };
        eprintln!("  {}: {} {} ({})", figure.what, number(figure.median), unit, figure.conditions);
        self.figures.push(figure);
        Ok(())
    }

    /// Writes `bench.json` into a folder.
    pub fn write(&self, folder: &Path) -> Fallible<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("bench.json"), serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }

    /// The table for people.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{}; commit {}; `{}`\n{}\n\n| what | conditions | median | min to max | unit |\n| --- | --- | ---: | ---: | --- |\n",
            self.date, self.commit, self.command, self.machine
        );
        for f in &self.figures {
            text += &format!(
                "| {} | {} | {} | {} to {} | {} |\n",
                f.what,
                f.conditions,
                number(f.median),
                number(f.min),
                number(f.max),
                f.unit
            );
        }
        for (section, reason) in &self.failed {
            text += &format!("| **{section} failed** | {} | | | |\n", reason.replace('\n', " "));
        }
        text
    }
}

/// The median of sorted values; 0 where there are none.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// The value below or at which a share of sorted values lies.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The slope of the line nearest to some points by least squares.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (x, y) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    over / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}

/// Three significant digits, thousands apart.
pub fn number(value: f64) -> String {
    let digits = 2 - value.abs().max(1e-9).log10().floor() as i32;
    if digits > 0 && value.fract() != 0.0 {
        return format!("{value:.*}", digits as usize);
    }
    let step = 10f64.powi((-digits).max(0));
    let whole = ((value / step).round() * step) as i64;
    let text = whole.to_string();
    let mut grouped = String::new();
    for (i, c) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) && c.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(c);
    }
    grouped
}

/// Holds the arithmetic of this file against values worked out by hand.
pub fn check_arithmetic() -> Fallible<()> {
    let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
    let texts = [0.001234, 0.5, 3.0, 12.34, 999.4, 18_860.0, 1_234_567.0].map(number);
    let holds = middle(&[1.0, 2.0, 4.0]) == 2.0
        && middle(&[1.0, 2.0, 4.0, 9.0]) == 3.0
        && percentile(&hundred, 0.5) == 50.0
        && percentile(&hundred, 0.99) == 99.0
        && percentile(&hundred, 1.0) == 100.0
        && slope(&[(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]) == 2.0
        && slope(&[(0.0, 1.0), (1.0, 0.0), (2.0, 2.0)]) == 0.5
        && texts == ["0.00123", "0.500", "3", "12.3", "999", "18,900", "1,230,000"];
    if holds { Ok(()) } else { Err(format!("the report's arithmetic is wrong: {texts:?}").into()) }
}
