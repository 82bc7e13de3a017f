//! Judging what a model wrote, before it may become a CoT.
//!
//! Only the model's own words count ([`Draft::written`]): the skeleton's are right by construction
//! and would hide a loop. The rules catch what small models do: they stop at once, run on, repeat
//! themselves, or copy the prompt. A free answer, which is the model's as a whole, may also be none,
//! have another form than was asked for, or another language; but it may name a title again and again.

use super::Draft;
use super::openai::prompt::ChatPrompt;
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
/// Words that each paragraph of a free answer has at least.
const MIN_FREE_WORDS: usize = 4;
/// Words in a row that make a loop when a free answer says them four times: longer than most titles.
const FREE_RUN_WORDS: usize = 6;
/// The words at the beginning of a free answer among which a refusal is looked for.
const REFUSAL_WORDS: usize = 16;
/// The least share of a free answer's words that are among the frequent ones of its language.
const MIN_COMMON: f64 = 0.1;
/// The least share of a free answer's letters that are Latin.
const MIN_LATIN: f64 = 0.5;
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
    /// The model declined, or the service's filter did.
    Refused,
    /// Another number of paragraphs than was asked for.
    Form,
    /// Another language or script.
    Language,
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
            Refusal::Refused => "refusal",
            Refusal::Form => "form",
            Refusal::Language => "language",
        }
    }
}

/// The rules for answers to one prompt file.
#[derive(Clone)]
pub struct Validator {
    /// Runs of [`COPY_WORDS`] words of the prompt.
    runs: BTreeSet<Vec<String>>,
    /// The examples' parts, whole: shorter ones have no run.
    parts: BTreeSet<Vec<String>>,
    /// What holds for free answers beside.
    free: Option<Free>,
}

/// What holds for free answers.
#[derive(Clone)]
struct Free {
    /// Paragraphs.
    parts: usize,
    common: BTreeSet<String>,
    refusals: Vec<Vec<String>>,
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
        Validator { runs, parts, free: None }
    }

    /// The rules for free answers to this chat prompt.
    pub fn free(prompt: &ChatPrompt) -> Self {
        let mut runs = BTreeSet::new();
        for text in prompt.copyable() {
            runs.extend(words(text).windows(COPY_WORDS).map(<[String]>::to_vec));
        }
        let rules = prompt.rules();
        let free = Free {
            parts: rules.parts,
            common: rules.common.iter().cloned().collect(),
            refusals: rules.refusals.iter().map(|phrase| words(phrase)).collect(),
        };
        Validator { runs, parts: BTreeSet::new(), free: Some(free) }
    }

    /// Judges a draft. Returns its quality: the share of distinct words, 0 to 1.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn judge(&self, draft: &Draft) -> Result<f64, Refusal> {
        if let Some(free) = &self.free {
            return self.judge_free(free, draft);
        }
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
        if (1..parts.len()).any(|n| parts[..n].contains(&parts[n])) || loops(&all, 3, 3) {
            return Err(Refusal::Loop);
        }
        Ok(distinct(&all))
    }

    fn judge_free(&self, free: &Free, draft: &Draft) -> Result<f64, Refusal> {
        if matches!(draft.finish_reason.as_str(), "content_filter" | "refusal") {
            return Err(Refusal::Refused);
        }
        // An answer that the limit of tokens cut has no end.
        if draft.text.len() > MAX_TEXT_BYTES || draft.finish_reason == "length" {
            return Err(Refusal::Long);
        }
        let parts: Vec<Vec<String>> = draft.written.iter().map(|part| words(part)).collect();
        let all: Vec<String> = parts.concat();
        if all.is_empty() {
            return Err(Refusal::Empty);
        }
        let beginning = &all[..all.len().min(REFUSAL_WORDS)];
        if free.refusals.iter().any(|phrase| beginning.windows(phrase.len().max(1)).any(|run| run == phrase))
        {
            return Err(Refusal::Refused);
        }
        if draft.written.iter().any(|part| !latin(part)) {
            return Err(Refusal::Language);
        }
        if parts.len() != free.parts {
            return Err(Refusal::Form);
        }
        if parts.iter().any(|part| part.len() < MIN_FREE_WORDS) {
            return Err(Refusal::Empty);
        }
        if draft.written.iter().any(|part| !well_formed(part)) {
            return Err(Refusal::Characters);
        }
        let common = all.iter().filter(|word| free.common.contains(*word)).count();
        if (common as f64) < MIN_COMMON * all.len() as f64 {
            return Err(Refusal::Language);
        }
        if parts.iter().any(|part| part.windows(COPY_WORDS).any(|run| self.runs.contains(run))) {
            return Err(Refusal::Copy);
        }
        if (1..parts.len()).any(|n| parts[..n].contains(&parts[n])) || loops(&all, FREE_RUN_WORDS, 4) {
            return Err(Refusal::Loop);
        }
        Ok(distinct(&all))
    }
}

/// The words of a text in lower case, without punctuation.
fn words(text: &str) -> Vec<String> {
    let text = text.replace('\u{2019}', "'");
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

/// Whether at least half of a text's letters are Latin.
fn latin(text: &str) -> bool {
    let letters = text.chars().filter(|c| c.is_alphabetic());
    let (mut latin, mut all) = (0, 0);
    for c in letters {
        all += 1;
        latin += usize::from(c < '\u{250}');
    }
    latin as f64 >= MIN_LATIN * all as f64
}

fn distinct(words: &[String]) -> f64 {
    let set: BTreeSet<&String> = words.iter().collect();
    set.len() as f64 / words.len().max(1) as f64
}

/// Whether words repeat: one three times in a row, `length` in a row so many times, or too few
/// distinct ones in a window.
fn loops(words: &[String], length: usize, times: usize) -> bool {
    if words.windows(3).any(|run| run[0] == run[1] && run[1] == run[2]) {
        return true;
    }
    let mut runs: BTreeMap<&[String], usize> = BTreeMap::new();
    for run in words.windows(length) {
        let seen = runs.entry(run).or_default();
        *seen += 1;
        if *seen == times {
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

    const GOOD: [&str; 3] = [
        "This reader keeps coming back to \u{201c}The Lord of the Rings\u{201d} and similar long tales of friendship.",
        "The new edition of The Lord of the Rings is a slow, large story for patient people.",
        "Because The Lord of the Rings is what they finished before, it\u{2019}s a likely match for them.",
    ];

    fn judge_free(written: &[&str], reason: &str) -> Result<f64, Refusal> {
        let written: Vec<String> = written.iter().map(|part| (*part).to_owned()).collect();
        let text = written.join("\n");
        let draft = Draft { text, written, tokens_in: 0, tokens_out: 0, finish_reason: reason.into() };
        Validator::free(&ChatPrompt::builtin()).judge(&draft)
    }

    #[test]
    fn a_good_free_answer_may_name_a_title_again_and_again() {
        assert!(judge_free(&GOOD, "stop").unwrap() > 0.5);
        assert!(judge_free(&GOOD, "other").is_ok());
    }

    #[test]
    fn each_refusal_of_a_free_answer_has_its_cause() {
        let [one, two, three] = GOOD;
        let long = format!("{three} {}", (0..900).map(|n| format!("w{n} ")).collect::<String>());
        let run = "and then the people of the town went home again. ".repeat(4);
        let system = ChatPrompt::builtin();
        let copied = system.copyable().next().unwrap().lines().last().unwrap().to_owned();
        for (written, reason, refusal) in [
            (vec![], "stop", Refusal::Empty),
            (vec![one, two, ""], "stop", Refusal::Empty),
            (vec![one, two, "They match."], "stop", Refusal::Empty),
            (vec![one, two], "stop", Refusal::Form),
            (vec![one, two, three, one], "stop", Refusal::Form),
            (vec![one, two, three], "length", Refusal::Long),
            (vec![one, two, &long], "stop", Refusal::Long),
            (vec![one, two, three], "content_filter", Refusal::Refused),
            (vec![], "refusal", Refusal::Refused),
            (vec!["I\u{2019}m sorry, but I can't help with that."], "stop", Refusal::Refused),
            (vec!["As an AI, this is not for me to say, and so on.", two, three], "stop", Refusal::Refused),
            (vec![one, two, "a story [/1a2b3c4d] that is told here"], "stop", Refusal::Characters),
            (vec![one, two, "a story \u{fffd}\u{fffd} that is told here"], "stop", Refusal::Characters),
            (vec![one, two, "#### 12 %% 34 $$ 56 && 78 of the 9"], "stop", Refusal::Characters),
            (vec!["\u{8fd9}\u{4e2a}\u{7528}\u{6237}", two, three], "stop", Refusal::Language),
            (
                vec![
                    "Dieser Leser mag lange Geschichten sehr",
                    "Das Buch hat viele Seiten",
                    "Darum passt es gut zu ihm",
                ],
                "stop",
                Refusal::Language,
            ),
            (vec![one, two, &copied], "stop", Refusal::Copy),
            (vec![one, two, &run], "stop", Refusal::Loop),
            (vec![one, two, "it is so so so good for them"], "stop", Refusal::Loop),
            (vec![one, two, one], "stop", Refusal::Loop),
        ] {
            assert_eq!(judge_free(&written, reason), Err(refusal), "{written:?}");
        }
    }
}
