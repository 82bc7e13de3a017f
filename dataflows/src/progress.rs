//! How a job shows that it goes on: bars on a terminal, a plain line now and then elsewhere.

use crate::job::Job;
use ictflow_operators::ict::Kind;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often a bar is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Shows a job's figures while it runs.
pub struct Reporter {
    name: &'static str,
    bars: Option<Bars>,
    last: Option<Instant>,
}

struct Bars {
    state: ProgressBar,
    input: ProgressBar,
    cots: ProgressBar,
    features: ProgressBar,
}

impl Reporter {
    /// A reporter on standard error.
    pub fn new(name: &'static str) -> Self {
        let bars = std::io::stderr().is_terminal().then(Bars::new);
        Reporter { name, bars, last: None }
    }

    /// Says how many events are expected, for an estimate.
    pub fn expect(&self, events: u64) {
        if let Some(bars) = &self.bars {
            bars.input.set_length(events);
        }
    }

    /// Shows the job as it stands, not too often.
    pub fn report(&mut self, job: &Job) {
        let every = if self.bars.is_some() { DRAW_EVERY } else { LINE_EVERY };
        if self.last.is_none_or(|last| last.elapsed() >= every) {
            self.last = Some(Instant::now());
            self.show(job);
        }
    }

    /// Shows the job a last time.
    pub fn finish(&mut self, job: &Job) {
        self.show(job);
        if let Some(bars) = &self.bars {
            for bar in [&bars.state, &bars.input, &bars.cots, &bars.features] {
                bar.abandon();
            }
        }
    }

    fn show(&self, job: &Job) {
        let (requester, sink) = (job.requester(), job.sink());
        let (wanted, answered) = (requester.wanted().len(), requester.answered());
        let events = job.judgements().interactions;
        // Vectors of neighbours have no demonstrations, and are whole as they come.
        let of_demonstrations = job.vector_kind() == Kind::Decoder;
        match &self.bars {
            Some(bars) => {
                bars.state.set_message(format!(
                    "epoch {}, {} demonstrations, {} texts to embed",
                    job.committed(),
                    job.demonstrations().len(),
                    requester.unembedded()
                ));
                bars.input.set_length(bars.input.length().unwrap_or_default().max(events));
                bars.input.set_position(events);
                bars.cots.set_length(wanted as u64);
                bars.cots.set_position(answered as u64);
                bars.features.set_length(sink.features_live() as u64);
                let (whole, what) = match of_demonstrations {
                    true => (sink.features_full_k(), "with all demonstrations"),
                    false => (sink.features_live(), "live"),
                };
                bars.features.set_position(whole as u64);
                bars.features.set_message(what);
            }
            None => eprintln!(
                "{}: epoch {}, {events} interactions, {} features live{}, {answered} of {wanted} CoTs, {} demonstrations, {} texts to embed",
                self.name,
                job.committed(),
                sink.features_live(),
                match of_demonstrations {
                    true => format!(" ({} with all demonstrations)", sink.features_full_k()),
                    false => String::new(),
                },
                job.demonstrations().len(),
                requester.unembedded()
            ),
        }
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let bar = |name: &'static str, template: &str| {
            // The templates are constants that parse; a plain bar is no reason to fail.
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(0).with_style(style).with_prefix(name))
        };
        Bars {
            state: bar("", "{spinner} [{elapsed_precise}] {msg}"),
            input: bar("interactions", "  {prefix:>12} {wide_bar} {pos}/{len} ({per_sec}, {eta} left)"),
            cots: bar("CoTs", "  {prefix:>12} {wide_bar} {pos}/{len} answered"),
            features: bar("features", "  {prefix:>12} {wide_bar} {pos}/{len} {msg}"),
        }
    }
}
