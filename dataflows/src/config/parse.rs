//! The text of a configuration as [`Raw`], with every key that doesn't fit, not just the first.
//!
//! The parser stops at one misfit. So its lines are blanked and the rest is parsed again. No line of the
//! file is ever repeated in a message: it could be a secret written in the wrong place.

use super::raw::Raw;
use std::fmt;
use std::ops::Range;

/// The most misfits that are told of one file.
const MAX_MISFITS: usize = 100;

/// A key or value that the file can't have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Its line, from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Parses a file: what fits of it, and what doesn't. `None` where it isn't TOML: then nothing of it is known.
pub fn parse(text: &str) -> (Option<Raw>, Vec<Misfit>) {
    let mut misfits = Vec::new();
    let mut kept = text.to_owned();
    loop {
        let error = match toml::from_str::<Raw>(&kept) {
            Ok(raw) => return (Some(raw), misfits),
            Err(error) => error,
        };
        let span = error.span();
        let line = span.as_ref().map(|span| 1 + kept[..span.start.min(kept.len())].matches('\n').count());
        misfits.push(Misfit { line, message: error.message().trim().replace('\n', ", ") });
        if toml::from_str::<toml::Table>(&kept).is_err() {
            return (None, misfits);
        }
        let blanked = span.and_then(|span| blank(&kept, span)).filter(|blanked| *blanked != kept);
        match blanked.filter(|rest| toml::from_str::<toml::Table>(rest).is_ok()) {
            Some(rest) if misfits.len() < MAX_MISFITS => kept = rest,
            // What is left can't be told apart: what was found must be mended first.
            _ => return (Some(Raw::default()), misfits),
        }
    }
}

/// The text without the lines of a span, their newlines kept so that lines keep their numbers. A table
/// goes with all of its keys.
fn blank(text: &str, span: Range<usize>) -> Option<String> {
    let start = text.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let rest = text.get(span.end.max(span.start)..)?;
    let mut end = span.end + rest.find('\n').unwrap_or(rest.len());
    if text[start..].trim_start().starts_with('[') {
        let header = |line: &&str| line.trim_start().starts_with('[');
        let after = &text[end..];
        let keys = after.lines().skip(1).take_while(|line| !header(line));
        end += keys.map(|line| 1 + line.len()).sum::<usize>();
        end = end.min(text.len());
    }
    let gone: String = text.get(start..end)?.chars().filter(|c| *c == '\n').collect();
    Some(format!("{}{gone}{}", &text[..start], text.get(end..)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_misfit_is_told_with_its_line() {
        let text = "job = 5\nwokers = 1\nworkers = 2\n[epochs]\ninterval = 3\nmax_events = 7\n\n[nothing]\na = 1\nb = [\n 2,\n]\n\
                    [topics]\nkind = \"kafkaa\"\n[topics.kafka.security]\npassword = \"hunter2\"\n[ict]\nweights = true\n";
        let (raw, misfits) = parse(text);
        let lines: Vec<usize> = misfits.iter().filter_map(|misfit| misfit.line).collect();
        let mut sorted = lines.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 5, 8, 14, 16, 18], "{misfits:?}");
        let raw = raw.unwrap();
        assert_eq!((raw.workers, raw.epochs.max_events), (Some(2), 7));
        let told = format!("{misfits:?}");
        assert!(
            told.contains("wokers") && told.contains("by reference") && !told.contains("hunter2"),
            "{told}"
        );
    }

    #[test]
    fn what_is_no_toml_is_one_misfit() {
        let (raw, misfits) = parse("job = \"a\"\nworkers = = 2\nwokers = 1\n");
        assert!(raw.is_none());
        assert_eq!(misfits.len(), 1, "{misfits:?}");
        assert_eq!(misfits[0].line, Some(2));
        // A value over several lines that can't be cut out ends the search, and nothing false is told.
        let (_, misfits) = parse("other = [\n 1,\n 2,\n]\n");
        assert_eq!(misfits.len(), 1, "{misfits:?}");
        assert_eq!(parse("").1, Vec::new());
    }
}
