//! The gains of a table as a picture: for each backbone and arm a dot with its interval, AUC on the left, GAUC
//! on the right. SVG without scripts or fonts of its own; its bytes depend on the figures alone.

use super::delay::Delay;
use super::report::{Gain, Report, Row};
use ictflow_connectors::telemetry::page::escape;
use std::fmt::Write as _;

/// Sizes in pixels.
const LINE: f64 = 18.0;
const NAMES: f64 = 210.0;
const PANEL: f64 = 280.0;
const GAP: f64 = 30.0;
const HEAD: f64 = 60.0;
const FOOT: f64 = 34.0;

/// How far apart ticks stand, from fine to coarse, and how many fit.
const STEPS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];
const TICKS: f64 = 7.0;

/// A scale from figures to pixels: it holds 0 and all intervals.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    fn over<'a>(gains: impl Iterator<Item = &'a Gain> + Clone) -> Self {
        let low = gains.clone().map(|gain| gain.low).fold(0.0_f64, f64::min);
        let high = gains.map(|gain| gain.high).fold(0.0_f64, f64::max);
        let fits = |step: &&f64| (high - low) / **step <= TICKS;
        let step = *STEPS.iter().find(fits).unwrap_or(&1.0);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        // Without any gain there is still an axis.
        if high > low { Scale { low, high, step } } else { Scale { low: -step, high: step, step } }
    }

    fn x(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low) * PANEL
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, step) = (self.low, self.step);
        let count = ((self.high - self.low) / step).round() as usize;
        (0..=count).map(move |tick| low + tick as f64 * step)
    }
}

/// A line of the picture.
enum Line<'r> {
    /// A backbone begins.
    Backbone(&'static str),
    /// An arm with its gains.
    Arm(&'r Row),
}

/// The picture; rows without a difference have no line.
pub fn svg(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut backbone = "";
    for row in report.rows.iter().filter(|row| row.gains.is_some()) {
        if row.backbone != backbone {
            backbone = row.backbone;
            lines.push(Line::Backbone(backbone));
        }
        lines.push(Line::Arm(row));
    }
    let (width, end) = (NAMES + 2.0 * PANEL + 2.0 * GAP, HEAD + LINE * lines.len() as f64);
    let height = end + FOOT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#fff\"/>\n"
    );
    let seeds = if report.seeds == 1 { "1 seed".to_owned() } else { format!("{} seeds", report.seeds) };
    let title = format!(
        "Gained over {}: protocol {}, {} test samples of {} users, {seeds}, 95% intervals over users",
        report.reference, report.protocol, report.test, report.test_users
    );
    // Writing to a String cannot fail.
    let _ = writeln!(text, "<text x=\"8\" y=\"20\" font-weight=\"bold\">{}</text>", escape(&title));
    let gains = report.rows.iter().filter_map(|row| row.gains.as_ref());
    panel(&mut text, "AUC", NAMES, end, &lines, &Scale::over(gains.clone().map(|g| &g.auc)), |g| g.auc);
    let right = NAMES + PANEL + GAP;
    panel(&mut text, "GAUC", right, end, &lines, &Scale::over(gains.map(|g| &g.gauc)), |g| g.gauc);
    for (place, line) in lines.iter().enumerate() {
        let y = middle(place) + 4.0;
        let _ = match line {
            Line::Backbone(name) => {
                writeln!(text, "<text x=\"8\" y=\"{y:.1}\" font-weight=\"bold\">{name}</text>")
            }
            Line::Arm(row) => writeln!(text, "<text x=\"20\" y=\"{y:.1}\">{}</text>", escape(&named(row))),
        };
    }
    text.push_str("</svg>\n");
    text
}

/// The middle of a line.
fn middle(place: usize) -> f64 {
    HEAD + LINE * (place as f64 + 0.5)
}

fn named(row: &Row) -> String {
    match row.label_delay {
        Delay::NONE => row.arm.to_owned(),
        delay => format!("{}, labels after {delay}", row.arm),
    }
}

/// One metric: ticks, and a dot with its interval for each arm. What excludes 0 is filled.
fn panel(
    text: &mut String,
    name: &str,
    left: f64,
    end: f64,
    lines: &[Line<'_>],
    scale: &Scale,
    gain: impl Fn(&super::report::Gains) -> Gain,
) {
    let _ = writeln!(text, "<text x=\"{left:.1}\" y=\"42\" font-weight=\"bold\">{name}</text>");
    for tick in scale.ticks() {
        let x = left + scale.x(tick);
        let zero = tick.abs() < scale.step / 2.0;
        let colour = if zero { "#666" } else { "#ddd" };
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\" stroke=\"{colour}\"/>",
            HEAD - 6.0
        );
        let said = if zero { "0".to_owned() } else { format!("{tick:+.3}") };
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{said}</text>",
            end + 14.0
        );
    }
    for (place, line) in lines.iter().enumerate() {
        let Line::Arm(row) = line else { continue };
        let Some(gain) = row.gains.as_ref().map(&gain) else { continue };
        let (y, x) = (middle(place), |value: f64| left + scale.x(value));
        let colour = if gain.difference < 0.0 { "#b3452c" } else { "#1f6f8b" };
        let fill = if gain.low > 0.0 || gain.high < 0.0 { colour } else { "#fff" };
        let _ = writeln!(
            text,
            "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            x(gain.low),
            x(gain.high),
            x(gain.difference)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gain(low: f64, difference: f64, high: f64) -> Gain {
        Gain { difference, low, high }
    }

    #[test]
    fn scales_hold_zero_and_every_interval_at_few_ticks() {
        for (gains, low, high, step) in [
            (vec![gain(0.0168, 0.0239, 0.0312)], 0.0, 0.035, 0.005),
            (vec![gain(-0.034, -0.03, -0.02), gain(0.001, 0.002, 0.003)], -0.04, 0.01, 0.01),
            (vec![], -0.001, 0.001, 0.001),
            (vec![gain(-9.0, 0.0, 9.0)], -9.0, 9.0, 1.0),
        ] {
            let scale = Scale::over(gains.iter());
            let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
            assert!(near(scale.low, low) && near(scale.high, high) && near(scale.step, step), "{gains:?}");
            let ticks: Vec<f64> = scale.ticks().collect();
            assert!(ticks.iter().any(|tick| tick.abs() < 1e-9), "{ticks:?} miss 0");
            assert!(near(scale.x(low), 0.0) && near(scale.x(high), PANEL));
        }
    }

    #[test]
    fn what_a_name_holds_cannot_leave_its_text() {
        assert_eq!(escape("a<b> & c"), "a&lt;b&gt; &amp; c");
    }
}
