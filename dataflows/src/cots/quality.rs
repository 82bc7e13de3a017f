//! The quality of a CoT text, from vectors: four dimensions of equal weight, each 0 to 1.
//!
//! | dimension | what it is |
//! | --- | --- |
//! | coherence | the mean of: the mean cosine of sentences that follow each other (1 for a text of one sentence), and the share of distinct words |
//! | completeness | the mean cosine of the text with four guideline sentences, one for each point that a CoT must cover |
//! | relevance | the cosine of the text with what was asked: the item and the history |
//! | consistency | the cosine of the text with a sentence that states the decision |
//!
//! A negative cosine counts as 0. The quality is the mean of the four; it is 0, and so is each, for a text that is
//! [`broken`]. The published score is the same but for the first half of coherence: there it is 1 less the
//! mean jump of sentiment (polarity and subjectivity, TextBlob) between sentences. Here the encoder judges that too.
//!
//! Similarities of one encoder compare texts of one kind with each other, and no more: a text that repeats its prompt
//! is relevant by this score. Read a figure beside that of shuffled texts and of template texts.

/// What a CoT must cover, a sentence a point.
pub const GUIDELINES: [&str; 4] = [
    "The history shows who this user is and what this user likes and dislikes.",
    "This is what the item is, what its features are, and which items are like it.",
    "The features of the item match the user's taste, or they do not.",
    "The user may also want something other than before, for variety.",
];

/// The least length of a text, in characters.
pub const LEAST_CHARACTERS: usize = 10;

/// The sentence that states a decision.
pub fn decision_sentence(positive: bool) -> &'static str {
    match positive {
        true => "The user liked the item and wanted it.",
        false => "The user did not like the item and turned it down.",
    }
}

/// Whether a text is no CoT at all: shorter than [`LEAST_CHARACTERS`], or with the mark of a prompt in it.
pub fn broken(text: &str) -> bool {
    text.trim().chars().nth(LEAST_CHARACTERS - 1).is_none() || text.contains("[INST]")
}

/// The sentences of a text: parted at line ends, and where a full stop, question or exclamation mark stands before
/// blanks and anything but a small letter.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    for line in text.lines() {
        let mut rest = line;
        let mut from = 0;
        while let Some(at) = rest[from..].find(['.', '!', '?']) {
            let end = from + at + 1;
            let after = rest[end..].trim_start();
            let begins = after.chars().next().is_some_and(|c| !c.is_lowercase());
            if after.len() < rest[end..].len() && begins {
                sentences.push(rest[..end].trim());
                rest = after;
                from = 0;
            } else {
                from = end;
            }
        }
        sentences.push(rest.trim());
    }
    sentences.retain(|sentence| sentence.chars().any(char::is_alphanumeric));
    sentences
}

/// The share of distinct words, in lower case; 0 without a word.
pub fn distinct_words(text: &str) -> f64 {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty()).collect();
    let distinct: std::collections::HashSet<&&str> = words.iter().collect();
    distinct.len() as f64 / words.len().max(1) as f64
}

/// The vectors of a text and of what it is held against. Norms don't matter.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'v> {
    /// The whole text's.
    pub text: &'v [f32],
    /// Those of its sentences, in their order.
    pub sentences: &'v [&'v [f32]],
    /// The guideline sentences'.
    pub guidelines: &'v [&'v [f32]],
    /// That of what was asked.
    pub input: &'v [f32],
    /// The decision sentence's.
    pub decision: &'v [f32],
}

/// The four dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Whether it hangs together.
    pub coherence: f64,
    /// Whether it covers what it must.
    pub completeness: f64,
    /// Whether it is about what was asked.
    pub relevance: f64,
    /// Whether it agrees with the decision.
    pub consistency: f64,
}

impl Quality {
    /// The quality of a text, by its vectors and its share of distinct words.
    pub fn of(vectors: &Vectors<'_>, distinct: f64) -> Self {
        let neighbours = vectors.sentences.windows(2).map(|pair| cosine(pair[0], pair[1]));
        let flow = mean(neighbours).unwrap_or(1.0);
        let guidelines = vectors.guidelines.iter().map(|guideline| cosine(vectors.text, guideline));
        Quality {
            coherence: (flow + distinct) / 2.0,
            completeness: mean(guidelines).unwrap_or_default(),
            relevance: cosine(vectors.text, vectors.input),
            consistency: cosine(vectors.text, vectors.decision),
        }
    }

    /// The mean of the four.
    pub fn total(&self) -> f64 {
        (self.coherence + self.completeness + self.relevance + self.consistency) / 4.0
    }
}

/// The cosine of two vectors, 0 where it is negative or one has no length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (dot(a, b) / norms).clamp(0.0, 1.0) } else { 0.0 }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// How many there are.
    pub count: usize,
    /// The least.
    pub min: f64,
    /// A quarter is below, by linear interpolation between neighbours, as are the median and the third.
    pub first_quartile: f64,
    /// The middle.
    pub median: f64,
    /// A quarter is above.
    pub third_quartile: f64,
    /// The greatest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Distribution {
    /// The distribution of some finite values; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| {
            let place = share * last as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            values[low] + (values[high] - values[low]) * (place - low as f64)
        };
        Some(Distribution {
            count: values.len(),
            min: at(0.0),
            first_quartile: at(0.25),
            median: at(0.5),
            third_quartile: at(0.75),
            max: at(1.0),
            mean: mean(values.iter().copied())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EAST: [f32; 2] = [2.0, 0.0];
    const NORTH: [f32; 2] = [0.0, 0.5];
    const WEST: [f32; 2] = [-1.0, 0.0];
    const BETWEEN: [f32; 2] = [3.0, 3.0];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} isn't {expected}");
    }

    #[test]
    fn each_dimension_is_what_the_table_says() {
        let vectors = Vectors {
            text: &EAST,
            sentences: &[&EAST, &BETWEEN, &NORTH, &EAST],
            guidelines: &[&EAST, &NORTH, &WEST, &BETWEEN],
            input: &BETWEEN,
            decision: &WEST,
        };
        let half = 0.5_f64.sqrt();
        let quality = Quality::of(&vectors, 0.8);
        close(quality.coherence, ((half + half + 0.0) / 3.0 + 0.8) / 2.0);
        close(quality.completeness, (1.0 + 0.0 + 0.0 + half) / 4.0);
        close(quality.relevance, half);
        close(quality.consistency, 0.0);
        let sum = quality.coherence + quality.completeness + quality.relevance + quality.consistency;
        close(quality.total(), sum / 4.0);
    }

    #[test]
    fn a_text_of_one_sentence_hangs_together_and_a_vector_without_length_is_like_nothing() {
        let one = Vectors {
            text: &EAST,
            sentences: &[&EAST],
            guidelines: &[&EAST],
            input: &[0.0, 0.0],
            decision: &EAST,
        };
        let quality = Quality::of(&one, 1.0);
        assert_eq!(quality, Quality { coherence: 1.0, completeness: 1.0, relevance: 0.0, consistency: 1.0 });
    }

    #[test]
    fn another_text_is_less_relevant_and_less_consistent() {
        let own = Vectors { text: &EAST, sentences: &[], guidelines: &[], input: &EAST, decision: &BETWEEN };
        let other = Vectors { text: &NORTH, ..own };
        let (own, other) = (Quality::of(&own, 1.0), Quality::of(&other, 1.0));
        assert!(own.relevance > other.relevance, "{own:?} {other:?}");
        close(own.consistency, other.consistency);
        assert!(own.total() > other.total());
    }

    #[test]
    fn texts_are_parted_into_sentences() {
        let text = "This viewer enjoys crime films such as Heat (1995) because of their pace. It ends.\n\
                    Is it so? 12 Monkeys (1995) is odd!  e.g. this goes on. . \n\n  The v. small rest";
        assert_eq!(
            sentences(text),
            [
                "This viewer enjoys crime films such as Heat (1995) because of their pace.",
                "It ends.",
                "Is it so?",
                "12 Monkeys (1995) is odd!  e.g. this goes on.",
                "The v. small rest",
            ]
        );
        assert!(sentences(" \n. ! ").is_empty());
        assert_eq!(
            sentences("1.5 and 2.5 make 4. \u{c9}lan too."),
            ["1.5 and 2.5 make 4.", "\u{c9}lan too."]
        );
    }

    #[test]
    fn words_are_counted_once_in_any_case() {
        close(distinct_words("The film, the FILM; it's good"), 4.0 / 6.0);
        close(distinct_words(" .. "), 0.0);
    }

    #[test]
    fn what_is_no_text_is_broken() {
        for (text, expected) in [
            ("", true),
            ("   short    ", true),
            ("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}", true),
            ("ten chars.", false),
            ("a long text with [INST] in its middle", true),
        ] {
            assert_eq!(broken(text), expected, "{text:?}");
        }
    }

    #[test]
    fn quartiles_are_interpolated() {
        assert_eq!(Distribution::of([]), None);
        let one = Distribution::of([0.5]);
        let expected = Distribution {
            count: 1,
            min: 0.5,
            first_quartile: 0.5,
            median: 0.5,
            third_quartile: 0.5,
            max: 0.5,
            mean: 0.5,
        };
        assert_eq!(one, Some(expected));
        let four = Distribution::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((four.min, four.first_quartile, four.median), (1.0, 1.75, 2.5));
        assert_eq!((four.third_quartile, four.max, four.mean, four.count), (3.25, 4.0, 2.5, 4));
    }
}
