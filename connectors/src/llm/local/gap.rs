//! Filling one gap of a guided answer: which token may stand next, and the choice among them.
//!
//! A gap holds lower-case English words, commas, apostrophes and hyphens only. Capitals and digits
//! are where a small model makes up names and years, so it can't write any.

use super::tokens::Tokens;
use crate::llm::prompt::{Forbidden, Gap};

/// Words that a gap has at least before its full stop.
pub const MIN_WORDS: usize = 3;

/// Words that can't end a sentence; dropped where a gap was cut.
const HANGING: [&str; 36] = [
    "a", "about", "an", "and", "any", "are", "as", "at", "be", "but", "by", "can", "for", "from", "have",
    "in", "into", "is", "it", "its", "of", "often", "on", "or", "so", "some", "that", "the", "their", "them",
    "they", "to", "very", "which", "with", "who",
];

/// What a token does in a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Begins a word, with its blank.
    Word,
    /// Goes on with a word.
    Inner,
    /// A comma, or an apostrophe or hyphen within a word.
    Mark,
    /// Ends the gap.
    Stop,
    /// Never stands in a gap.
    Barred,
}

/// The roles of a vocabulary's tokens.
pub struct Roles {
    roles: Vec<Role>,
    pieces: Vec<Box<str>>,
}

impl Roles {
    /// Sorts a vocabulary.
    pub fn new(tokens: &Tokens, vocabulary: usize) -> Self {
        let (mut roles, mut pieces) = (Vec::with_capacity(vocabulary), Vec::with_capacity(vocabulary));
        for token in 0..vocabulary as u32 {
            let piece = tokens.piece(token).unwrap_or_default();
            let role = if token == tokens.chat().end { Role::Stop } else { role(&piece) };
            pieces.push(if role == Role::Barred { Box::default() } else { piece.into_boxed_str() });
            roles.push(role);
        }
        Roles { roles, pieces }
    }
}

fn role(piece: &str) -> Role {
    let letters = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase());
    if piece.strip_prefix(' ').is_some_and(letters) {
        return Role::Word;
    }
    if letters(piece) {
        return Role::Inner;
    }
    if piece == "," || piece == "-" || piece.strip_prefix('\'').is_some_and(letters) {
        return Role::Mark;
    }
    match piece.trim_start_matches(' ').chars().next() {
        Some('.' | '!' | ';' | '\n') => Role::Stop,
        _ => Role::Barred,
    }
}

/// How the next token is chosen.
#[derive(Clone, Debug)]
pub enum Choice {
    /// The most likely one.
    Greedy,
    /// Drawn from the likeliest ones that together have a share of `top_p`.
    Sampled {
        /// Divides the logits.
        temperature: f32,
        /// The share.
        top_p: f32,
        /// The generator's state.
        random: Random,
    },
}

/// SplitMix64: the same numbers for the same seed on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator from a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number, in [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What a step of writing gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This token was added.
    Token(u32),
    /// The sentence ended.
    Stop,
}

/// A gap while it is written.
pub struct Writer<'a> {
    roles: &'a Roles,
    forbidden: &'a [Forbidden],
    text: String,
    words: usize,
    last: Option<Role>,
}

impl<'a> Writer<'a> {
    /// An empty gap.
    pub fn new(roles: &'a Roles, gap: &'a Gap) -> Self {
        Writer { roles, forbidden: &gap.forbidden, text: String::new(), words: 0, last: None }
    }

    /// Chooses the next token; `spent` are the tokens, each once, whose logits the penalty lowers.
    /// `None` where no token may stand next.
    pub fn step(
        &mut self,
        logits: &mut [f32],
        spent: &[u32],
        penalty: f32,
        choice: &mut Choice,
    ) -> Option<Next> {
        for token in spent {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        for (token, logit) in logits.iter_mut().enumerate() {
            // A model with broken weights gives NaN; no order is defined on it.
            if !logit.is_finite() || !self.fits(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        loop {
            let token = match choice {
                Choice::Greedy => likeliest(logits)?,
                Choice::Sampled { temperature, top_p, random } => {
                    draw(logits, *temperature, *top_p, random.next())?
                }
            };
            if self.roles.roles[token] == Role::Stop {
                return Some(Next::Stop);
            }
            if self.says_forbidden(token) {
                logits[token] = f32::NEG_INFINITY;
                continue;
            }
            let role = self.roles.roles[token];
            self.text.push_str(&self.roles.pieces[token]);
            self.words += usize::from(role == Role::Word);
            self.last = Some(role);
            return Some(Next::Token(token as u32));
        }
    }

    /// Whether a token's role may follow the last one's.
    fn fits(&self, token: usize) -> bool {
        let role = self.roles.roles.get(token).copied().unwrap_or(Role::Barred);
        let hyphen = self.text.ends_with('-');
        match (self.last, role) {
            (_, Role::Barred) => false,
            (None, role) => role == Role::Word,
            (Some(Role::Mark), Role::Inner) => hyphen,
            (Some(Role::Mark), Role::Word) => !hyphen,
            (Some(Role::Mark), _) => false,
            (_, Role::Stop) => self.words >= MIN_WORDS,
            _ => true,
        }
    }

    /// Whether a token would end the text in a forbidden word, or in a word that only begins one:
    /// barred from its ending, the model would invent another.
    fn says_forbidden(&self, token: usize) -> bool {
        let text = format!("{}{}", self.text, self.roles.pieces[token]);
        let word = text.rsplit(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
        !word.is_empty()
            && self.forbidden.iter().any(|forbidden| forbidden.matches(word) || forbidden.begins(word))
    }

    /// The gap's words. Where it was `cut` at its limit the last word may be half a word, and the
    /// words before it may not end a sentence: they are dropped.
    pub fn finish(self, cut: bool) -> String {
        let mut words: Vec<&str> = self.text.split_whitespace().collect();
        if cut {
            words.pop();
            while words.last().is_some_and(|word| HANGING.contains(&word.trim_end_matches([',', '-']))) {
                words.pop();
            }
        }
        words.join(" ").trim_end_matches([',', '-', ' ']).to_owned()
    }
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > f32::NEG_INFINITY && best.is_none_or(|best| *logit > logits[best]) {
            best = Some(token);
        }
    }
    best
}

/// Draws a token by a number in [0, 1).
fn draw(logits: &[f32], temperature: f32, top_p: f32, number: f64) -> Option<usize> {
    let top = logits[likeliest(logits)?];
    let weight = |logit: f32| f64::from((logit - top) / temperature).exp();
    // Anything less likely than a ten-thousandth of the top adds nothing to the share.
    let mut likely: Vec<(usize, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| (token, weight(*logit)))
        .filter(|(_, w)| *w > 1e-4)
        .collect();
    likely.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = likely.iter().map(|(_, w)| w).sum();
    let mut share = 0.0;
    let kept = likely.iter().take_while(|(_, w)| {
        let within = share < f64::from(top_p) * total;
        share += w;
        within
    });
    let kept: Vec<(usize, f64)> = kept.copied().collect();
    let mut left = number * kept.iter().map(|(_, w)| w).sum::<f64>();
    for (token, weight) in &kept {
        left -= weight;
        if left < 0.0 {
            return Some(*token);
        }
    }
    kept.last().map(|(token, _)| *token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_have_roles() {
        for (piece, expected) in [
            (" dark", Role::Word),
            ("ness", Role::Inner),
            (",", Role::Mark),
            ("'s", Role::Mark),
            ("-", Role::Mark),
            (".", Role::Stop),
            (".\n", Role::Stop),
            ("\n\n", Role::Stop),
            (" Paris", Role::Barred),
            ("1", Role::Barred),
            (" [", Role::Barred),
            (" ", Role::Barred),
            ("", Role::Barred),
            ("é", Role::Barred),
        ] {
            assert_eq!(role(piece), expected, "{piece:?}");
        }
    }

    #[test]
    fn drawing_keeps_to_the_share_and_is_repeatable() {
        let logits = [0.0, 4.0, f32::NEG_INFINITY, 3.9, -5.0];
        let mut random = Random::new(2);
        let numbers: Vec<f64> = (0..200).map(|_| random.next()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        let drawn: Vec<usize> = numbers.iter().map(|n| draw(&logits, 0.7, 0.9, *n).unwrap()).collect();
        assert!(drawn.iter().all(|token| [1, 3].contains(token)), "{drawn:?}");
        assert!(drawn.contains(&1) && drawn.contains(&3));
        let mut again = Random::new(2);
        assert_eq!(again.next(), numbers[0]);
        assert_eq!(draw(&[f32::NEG_INFINITY; 3], 0.7, 0.9, 0.5), None);
    }
}
