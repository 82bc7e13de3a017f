//! Judging what a model wrote, before it may become a CoT.
//!
//! Only the model's own words count ([`Draft::written`]): the skeleton's are right by construction
//! and would hide a loop. The rules catch what small models do: they stop at once, run on, repeat
//! themselves, or copy the prompt.

use super::Draft;
use super::prompt::Prompt;
use std::collections::{BTreeMap, BTreeSet};

/// The longest text, bytes; longer ones would not fit a prompt of a later step.
const MAX_TEXT_BYTES: usize = 4_096;
/// Words that each part has at least.
const MIN_WORDS: usize = 2;
/// Words in a row that stand in the prompt make a copy.
const COPY_WORDS: usize = 5;
/// Words of the window in which repetition is judged.
const WINDOW_WORDS: usize = 50;
/// The least share of distinct words in a window. Good texts of this length stand at .7 and more.
const MIN_DISTINCT: f64 = 0.5;

/// Why a draft was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A part has too few words, or there is no part.
    Empty,
    /// The text is too long.
    Long,
    /// A control character, a mark of a control token or of the fence, or hardly any letters.
    Characters,
    /// Words in a row as in the prompt.
    Copy,
    /// It repeats itself.
    Loop,
}

impl Refusal {
    /// The word for the record's finish reason.
    pub fn word(self) -> &'static str {
        match self {
            Refusal::Empty => "empty",
            Refusal::Long => "long",
            Refusal::Characters => "characters",
            Refusal::Copy => "copy",
            Refusal::Loop => "loop",
        }
    }
}

/// The rules for answers to one prompt file.
pub struct Validator {
    /// Runs of [`COPY_WORDS`] words of the prompt.
    runs: BTreeSet<Vec<String>>,
    /// The examples' parts, whole: shorter ones have no run.
    parts: BTreeSet<Vec<String>>,
}

impl Validator {
    /// The rules for this prompt.
    pub fn new(prompt: &Prompt) -> Self {
        let (mut runs, mut parts) = (BTreeSet::new(), BTreeSet::new());
        for text in prompt.copyable() {
            let words = words(text);
            runs.extend(words.windows(COPY_WORDS).map(<[String]>::to_vec));
            parts.insert(words);
        }
        Validator { runs, parts }
    }

    /// Judges a draft. Returns its quality: the share of distinct words, 0 to 1.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn judge(&self, draft: &Draft) -> Result<f64, Refusal> {
        if draft.text.len() > MAX_TEXT_BYTES {
            return Err(Refusal::Long);
        }
        let parts: Vec<Vec<String>> = draft.written.iter().map(|part| words(part)).collect();
        if parts.is_empty() || parts.iter().any(|part| part.len() < MIN_WORDS) {
            return Err(Refusal::Empty);
        }
        if draft.written.iter().any(|part| !well_formed(part)) {
            return Err(Refusal::Characters);
        }
        for part in &parts {
            if self.parts.contains(part) || part.windows(COPY_WORDS).any(|run| self.runs.contains(run)) {
                return Err(Refusal::Copy);
            }
        }
        let all: Vec<String> = parts.concat();
        if (1..parts.len()).any(|n| parts[..n].contains(&parts[n])) || loops(&all) {
            return Err(Refusal::Loop);
        }
        Ok(distinct(&all))
    }
}

/// The words of a text in lower case, without punctuation.
fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric() && c != '\'');
    parts.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

fn well_formed(text: &str) -> bool {
    let strange = |c: char| (c.is_control() && c != '\n') || matches!(c, '[' | ']' | '\u{fffd}');
    let (mut letters, mut others) = (0, 0);
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        *(if c.is_alphabetic() { &mut letters } else { &mut others }) += 1;
    }
    !text.contains(strange) && !text.contains("<|") && !text.contains("|>") && letters > 2 * others
}

fn distinct(words: &[String]) -> f64 {
    let set: BTreeSet<&String> = words.iter().collect();
    set.len() as f64 / words.len().max(1) as f64
}

/// Whether words repeat: one three times in a row, three in a row three times, or too few distinct
/// ones in a window.
fn loops(words: &[String]) -> bool {
    let mut runs: BTreeMap<&[String], usize> = BTreeMap::new();
    for run in words.windows(3) {
        let seen = runs.entry(run).or_default();
        *seen += 1;
        if *seen == 3 || (run[0] == run[1] && run[1] == run[2]) {
            return true;
        }
    }
    let window = words.len().clamp(1, WINDOW_WORDS);
    words.windows(window).any(|window| distinct(window) < MIN_DISTINCT)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn judge(written: &[&str]) -> Result<f64, Refusal> {
        let written: Vec<String> = written.iter().map(|part| (*part).to_owned()).collect();
        let text = written.join(" ");
        let draft = Draft { text, written, tokens_in: 0, tokens_out: 0, finish_reason: "stop".into() };
        Validator::new(&Prompt::builtin()).judge(&draft)
    }

    #[test]
    fn a_good_draft_passes_with_its_share_of_distinct_words() {
        let quality = judge(&["fast pace and bold heroes", "dark themes and a cold end"]).unwrap();
        assert!((quality - 10.0 / 11.0).abs() < 1e-12, "{quality}");
    }

    #[test]
    fn each_refusal_has_its_cause() {
        let prompt = Prompt::builtin();
        let shot = prompt.examples().next().unwrap();
        let long = "word ".repeat(1000);
        let many: String = (0..900).map(|n| format!("w{n} ")).collect();
        for (written, refusal) in [
            (vec![], Refusal::Empty),
            (vec!["a fine story", ""], Refusal::Empty),
            (vec!["fine"], Refusal::Empty),
            (vec![long.as_str()], Refusal::Long),
            (vec![many.as_str()], Refusal::Long),
            (vec!["a fine\u{7} story"], Refusal::Characters),
            (vec!["a story [/1a2b3c4d] told"], Refusal::Characters),
            (vec!["a story <|im_end|> told"], Refusal::Characters),
            (vec!["12 34 56 78 of 9"], Refusal::Characters),
            (vec![shot], Refusal::Copy),
            (vec!["lines between the marks are data indeed"], Refusal::Copy),
            (vec!["dark and dark and dark and dark and dark"], Refusal::Loop),
            (vec!["so so so good"], Refusal::Loop),
            (vec!["a dark tale", "a dark tale"], Refusal::Loop),
        ] {
            assert_eq!(judge(&written), Err(refusal), "{written:?}");
        }
    }
}
