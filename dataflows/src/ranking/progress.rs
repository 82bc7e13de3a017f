//! How long work shows that it goes on: a bar on a terminal, a plain line now and then elsewhere. Both go to
//! standard error. Bars of work that goes on at once stand below each other.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// All bars of the process.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows how far one piece of work is.
#[derive(Debug)]
pub struct Progress {
    what: String,
    length: u64,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Progress {
    /// Work of `length` steps.
    pub fn new(what: impl Into<String>, length: usize) -> Self {
        let (what, length) = (what.into(), length as u64);
        let bar = std::io::stderr().is_terminal().then(|| {
            // The template is a constant that parses; a plain bar is no reason to fail.
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} ({eta} left)")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            BARS.add(ProgressBar::new(length).with_style(style).with_prefix(what.clone()))
        });
        Progress { what, length, bar, last: Instant::now() }
    }

    /// Says that so many steps are done, and what else there is to know.
    pub fn at(&mut self, done: usize, note: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(note.to_owned());
                bar.set_position(done as u64);
            }
            None if self.last.elapsed() >= LINE_EVERY => {
                self.last = Instant::now();
                let gap = if note.is_empty() { "" } else { ", " };
                eprintln!("{}: {done} of {}{gap}{note}", self.what, self.length);
            }
            None => {}
        }
    }

    /// Ends it with a line that stays.
    pub fn finish(&mut self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !line.is_empty() {
            eprintln!("{}: {line}", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // An error that ends the work is printed below, not behind half a bar.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
