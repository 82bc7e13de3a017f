//! The curves of a training as a picture: SVG, loss on the left, validation AUC on the right, the check whose
//! weights were kept marked. Its bytes depend on the curve alone.

use super::super::fit::{Check, Curve};
use std::fmt::Write as _;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 240.0;
/// Room for titles and axes: left, right, top, bottom.
const ROOM: (f64, f64, f64, f64) = (56.0, 16.0, 30.0, 40.0);

/// The picture.
pub(super) fn svg(curve: &Curve) -> String {
    let width = 2.0 * WIDTH;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" width=\"{width}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"none\">\n<rect width=\"{width}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let loss: [Line; 2] = [
        ("training loss", "#b45309", |check| check.loss),
        ("validation LogLoss", "#1d4ed8", |check| check.log_loss),
    ];
    panel(&mut out, 0.0, &loss, curve);
    panel(&mut out, WIDTH, &[("validation AUC", "#047857", |check: &Check| check.auc)], curve);
    out.push_str("</svg>\n");
    out
}

/// A line: its name, its colour, its value at a check.
type Line = (&'static str, &'static str, fn(&Check) -> f64);

/// One panel, its left edge at `x`.
fn panel(out: &mut String, x: f64, lines: &[Line], curve: &Curve) {
    let (left, right, top, bottom) = ROOM;
    let (width, height) = (WIDTH - left - right, HEIGHT - top - bottom);
    let all = || curve.checks.iter().flat_map(|check| lines.iter().map(move |(_, _, value)| value(check)));
    let y_ticks = ticks(all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let x_ticks = ticks(0.0, curve.checks.last().map_or(1.0, |check| check.epoch));
    let ends = |ticks: &[f64]| (ticks[0], ticks[ticks.len() - 1]);
    let ((x0, x1), (y0, y1)) = (ends(&x_ticks), ends(&y_ticks));
    let at_x = |epoch: f64| x + left + (epoch - x0) / (x1 - x0) * width;
    let at_y = |value: f64| top + (y1 - value) / (y1 - y0) * height;
    // Writing to a String cannot fail.
    for tick in &y_ticks {
        let at = at_y(*tick);
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {at:.1}h{width:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
             fill=\"#444\">{}</text>",
            x + left,
            x + left - 6.0,
            at + 4.0,
            number(*tick)
        );
    }
    for tick in &x_ticks {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
            at_x(*tick),
            top + height + 15.0,
            number(*tick)
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">epochs</text>",
        x + left + width / 2.0,
        top + height + 32.0
    );
    let mut title = x + left;
    for (name, colour, value) in lines {
        let _ = writeln!(out, "<text x=\"{title:.1}\" y=\"18\" fill=\"{colour}\">{name}</text>");
        title += 8.0 + 6.5 * name.len() as f64;
        let mut path = String::new();
        for (place, check) in curve.checks.iter().enumerate() {
            let pen = if place == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{pen}{:.1} {:.1}", at_x(check.epoch), at_y(value(check)));
        }
        let _ = writeln!(out, "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
        if let Some(best) = curve.best() {
            let (cx, cy) = (at_x(best.epoch), at_y(value(best)));
            let _ = writeln!(out, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
    }
}

/// Three to eleven ticks at round numbers that hold all from `low` to `high`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    if !(low.is_finite() && high.is_finite()) {
        return vec![0.0, 1.0];
    }
    let wide = (high - low).max(1e-6);
    // 1, 2 or 5 times a power of ten: at most six steps between the ends.
    let steps = (-7..12).flat_map(|power: i32| {
        let ten = 10f64.powi(power.abs());
        [1.0, 2.0, 5.0].map(|round| if power < 0 { round / ten } else { round * ten })
    });
    let step = steps.into_iter().find(|step| wide / step <= 6.0).unwrap_or(wide);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    let last = if last > first { last } else { first + 1.0 };
    (0..=(last - first) as usize).map(|n| (first + n as f64) * step).collect()
}

/// A tick's number, without the noise of binary fractions.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve() -> Curve {
        let check = |step: u64, loss, auc| Check {
            step,
            epoch: step as f64 / 10.0,
            loss,
            auc,
            gauc: None,
            log_loss: loss + 0.01,
        };
        Curve { checks: vec![check(5, 0.69, 0.5), check(10, 0.6, 0.71), check(15, 0.55, 0.705)], best: 10 }
    }

    #[test]
    fn ticks_are_round_and_hold_everything() {
        assert_eq!(ticks(0.0, 6.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        for (low, high) in [(0.5, 0.71), (0.0, 30.0), (0.6901, 0.6902), (0.7, 0.7), (-1.0, 250.0)] {
            let ticks = ticks(low, high);
            assert!((2..=11).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
            assert!(first <= low + 1e-9 && last >= high - 1e-9, "{low} {high}: {ticks:?}");
        }
        assert_eq!(ticks(f64::INFINITY, f64::NEG_INFINITY), [0.0, 1.0]);
        assert_eq!([number(0.30000000000000004), number(-0.0), number(12.0)], ["0.3", "0", "12"]);
    }

    #[test]
    fn the_picture_is_a_function_of_the_curve() {
        let picture = svg(&curve());
        assert_eq!(picture, svg(&curve()));
        assert_eq!(picture.matches("<circle").count(), 3, "the best check stands on each line");
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        let without = svg(&Curve { checks: Vec::new(), best: 0 });
        assert!(!without.contains("NaN") && !without.contains("circle"), "{without}");
    }
}
