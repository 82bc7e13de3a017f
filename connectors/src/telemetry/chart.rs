//! Line charts with axes, as SVG.

use super::page::escape;
use std::fmt::Write;

/// A line of a chart.
pub struct Series {
    /// Its name in the legend.
    pub name: &'static str,
    /// Its points, in order of x. They are drawn as steps: a value holds until the next one.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub struct Chart {
    /// What it shows.
    pub title: &'static str,
    /// What x is, with its unit.
    pub x: &'static str,
    /// What y is, with its unit.
    pub y: &'static str,
    /// Where y begins; what is less is drawn there.
    pub from: f64,
    /// The lines, at most four: so many colours can be told apart.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 220.0;
/// Room for the axes: left, right, top, bottom.
const ROOM: (f64, f64, f64, f64) = (52.0, 22.0, 18.0, 36.0);
/// About so many ticks an axis.
const TICKS: f64 = 4.0;

/// Ticks from `from` in round steps to just past `most`.
fn ticks(from: f64, most: f64) -> Vec<f64> {
    let wide = most - from;
    let wide = if wide > 0.0 && wide.is_finite() { wide } else { 1.0 };
    let raw = wide / TICKS;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw).unwrap_or(raw);
    let count = (wide / step).ceil().max(1.0) as usize;
    (0..=count).map(|n| from + n as f64 * step).collect()
}

/// A number with thousands set apart.
pub fn number(value: f64) -> String {
    if value.fract() != 0.0 {
        return format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 { format!("-{out}") } else { out }
}

impl Chart {
    /// The chart as a figure with title, legend and SVG.
    pub fn html(&self) -> String {
        let most = |get: fn(&(f64, f64)) -> f64| {
            self.series.iter().flat_map(|series| &series.points).map(get).fold(0.0, f64::max)
        };
        let (xs, ys) = (ticks(0.0, most(|p| p.0)), ticks(self.from, most(|p| p.1)));
        let (x_end, y_end) = (xs[xs.len() - 1], ys[ys.len() - 1]);
        let (left, right, top, bottom) = ROOM;
        let at_x = |x: f64| left + x / x_end * (WIDTH - left - right);
        let at_y = |y: f64| {
            let share = (y - self.from).max(0.0) / (y_end - self.from);
            HEIGHT - bottom - share * (HEIGHT - top - bottom)
        };
        let mut out = format!("<figure><figcaption><b>{}</b>", escape(self.title));
        for (n, series) in self.series.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(out, "<span class=\"key key-{n}\">{}</span>", escape(series.name));
        }
        let _ = write!(
            out,
            "</figcaption><svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        for y in &ys {
            let at = at_y(*y);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{left} {at:.1}H{}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - right,
                left - 6.0,
                at + 3.5,
                number(*y)
            );
        }
        for x in &xs {
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                at_x(*x),
                HEIGHT - bottom + 14.0,
                number(*x)
            );
        }
        let _ = write!(
            out,
            "<path class=\"axis\" d=\"M{left} {top}V{}H{}\"/><text class=\"tick\" x=\"{left}\" y=\"10\">{}</text><text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            HEIGHT - bottom,
            WIDTH - right,
            escape(self.y),
            WIDTH - right,
            HEIGHT - 4.0,
            escape(self.x)
        );
        for (n, series) in self.series.iter().enumerate() {
            let mut path = String::new();
            for (at, (x, y)) in series.points.iter().enumerate() {
                let (x, y) = (at_x(*x), at_y(*y));
                let _ = if at == 0 { write!(path, "M{x:.1} {y:.1}") } else { write!(path, "H{x:.1}V{y:.1}") };
            }
            let _ = write!(out, "<path class=\"line line-{n}\" d=\"{path}\"/>");
        }
        out.push_str("</svg></figure>");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_past_the_largest_value() {
        assert_eq!(ticks(0.0, 37.0), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(0.0, 18_860.0), [0.0, 5_000.0, 10_000.0, 15_000.0, 20_000.0]);
        assert_eq!(ticks(0.0, 40.0), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(0.5, 0.79), [0.5, 0.6, 0.7, 0.8]);
        for odd in [0.0, f64::NAN, f64::INFINITY, -3.0] {
            assert_eq!(ticks(0.0, odd).last(), Some(&1.0), "{odd}");
        }
    }

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1_000.0, "1,000"),
            (1_234_567.0, "1,234,567"),
            (0.25, "0.25"),
            (-1_500.0, "-1,500"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_chart_without_points_is_still_a_chart() {
        let chart = Chart {
            title: "a < b",
            x: "s",
            y: "n",
            from: 0.0,
            series: vec![Series { name: "x", points: vec![] }],
        };
        let html = chart.html();
        assert!(html.contains("a &lt; b") && html.contains("</svg>") && !html.contains("NaN"));
    }
}
