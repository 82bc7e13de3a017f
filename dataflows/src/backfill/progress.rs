//! How a backfill shows how far it is: a bar with an estimate on a terminal, plain lines elsewhere.

use crate::job::Job;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often the bar is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Shows a backfill's progress on standard error.
pub struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    begun: Instant,
    last: Option<Instant>,
    /// Records read when it was first looked at: those of a replay went faster.
    before: Option<u64>,
}

impl Progress {
    /// For a backfill of this name.
    pub fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            const TEMPLATE: &str = "{prefix} [{elapsed_precise}] {wide_bar} {pos}/{len} records, {msg}";
            let style =
                ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style).with_prefix(name.to_owned())
        });
        Progress { name: name.to_owned(), bar, begun: Instant::now(), last: None, before: None }
    }

    /// Shows the job as it stands, not too often.
    pub fn report(&mut self, job: &Job) {
        let every = if self.bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        if self.last.is_none_or(|last| last.elapsed() >= every) {
            self.last = Some(Instant::now());
            self.show(job);
        }
    }

    /// Shows the job a last time.
    pub fn finish(&mut self, job: &Job) {
        self.show(job);
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn show(&mut self, job: &Job) {
        let extent = job.extent();
        let before = *self.before.get_or_insert(extent.taken);
        let figures = Figures {
            done: extent.taken,
            whole: extent.whole,
            since: extent.taken.saturating_sub(before),
            elapsed: self.begun.elapsed(),
        };
        let waits = match job.stalled() {
            Some(_) => ", waits for the store of points".to_owned(),
            None => {
                let (wanted, answered) = (job.requester().wanted().len(), job.requester().answered());
                format!(", {answered} of {wanted} CoTs")
            }
        };
        let message = format!("{}, epoch {}{waits}", figures.rate(), job.committed());
        match &self.bar {
            Some(bar) => {
                bar.set_length(figures.whole);
                bar.set_position(figures.done);
                bar.set_message(message);
            }
            None => {
                eprintln!("backfill {}: {} of {} records, {message}", self.name, figures.done, figures.whole);
            }
        }
    }
}

/// What an estimate is made of.
struct Figures {
    done: u64,
    whole: u64,
    /// Records since the first look, and the time since then.
    since: u64,
    elapsed: Duration,
}

impl Figures {
    /// Records a second, and how long the rest takes at this pace.
    fn rate(&self) -> String {
        let rate = self.since as f64 / self.elapsed.as_secs_f64().max(0.001);
        let left = self.whole.saturating_sub(self.done);
        match (left, rate >= 1.0) {
            (0, _) => format!("{rate:.0} a second"),
            (_, false) => "no estimate yet".to_owned(),
            _ => format!("{rate:.0} a second, {} left", span((left as f64 / rate) as u64)),
        }
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_needs_a_pace() {
        let figures = |done, since, seconds| {
            Figures { done, whole: 1_000, since, elapsed: Duration::from_secs(seconds) }.rate()
        };
        assert_eq!(figures(0, 0, 0), "no estimate yet");
        assert_eq!(figures(100, 100, 10), "10 a second, 1 min 30 s left");
        assert_eq!(figures(1_000, 1_000, 10), "100 a second");
        assert_eq!(
            (span(59), span(60), span(3_600)),
            ("59 s".into(), "1 min 0 s".into(), "1 h 0 min".into())
        );
    }
}
