//! Writing prompts: facts of a request, messages, the fence, and the skeleton of a guided answer.
//!
//! Pure functions of the prompt file and a [`CotRequest`]; every generator uses them. A guided
//! answer has three steps (who is this user, what is this item, why do they match or not). In each
//! the code writes the words that carry facts and decision, and the model fills short gaps: a small
//! model invents films, drops the decision or loops when it writes freely.
//!
//! # Item text is data
//! Every value is normalised, freed of invisible characters, of square brackets and of the marks of
//! control tokens, and capped in bytes. In a message values stand one a line, each behind its field
//! name, between the fence `[nonce]` and `[/nonce]`; the nonce is the first 8 hex digits of the
//! content key. A value holds neither a newline nor a bracket, so none can close the fence.

use crate::{Error, Result};
use ictflow_schemas::cot::CotRequest;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::Label;
use ictflow_schemas::item::{ItemText, normalise};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The longest title in a prompt, bytes. A token is at least one byte, so bytes bound tokens.
const TITLE_BYTES: usize = 72;
/// The longest genre in a prompt, bytes.
const GENRE_BYTES: usize = 24;
/// The longest part of a description in a prompt, bytes.
const ABOUT_BYTES: usize = 120;
/// Genres named for a taste.
const TASTE_GENRES: usize = 2;
/// Genres named for an item.
const ITEM_GENRES: usize = 3;
/// What stands for the model's words in a skeleton.
const GAP: &str = "{gap}";

/// The prompt file that ships with the program.
const BUILTIN: &str = include_str!("prompt.toml");

/// The steps of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Who is this user.
    User,
    /// What is this item.
    Item,
    /// Why the user wanted the item.
    MatchPositive,
    /// Why the user turned the item down.
    MatchNegative,
}

/// A chat message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}

/// Words that a gap must not hold: whole words, or beginnings (`ending` true).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forbidden {
    /// Lower-case word or its beginning.
    pub word: String,
    /// Whether any ending may follow.
    pub ending: bool,
}

impl Forbidden {
    fn new(word: &str) -> Self {
        match word.strip_suffix('*') {
            Some(stem) => Forbidden { word: stem.to_owned(), ending: true },
            None => Forbidden { word: word.to_owned(), ending: false },
        }
    }

    /// Whether a lower-case word is forbidden by this.
    pub fn matches(&self, word: &str) -> bool {
        match self.ending {
            true => word.starts_with(&self.word),
            false => word == self.word || word.strip_suffix('s').is_some_and(|one| one == self.word),
        }
    }
}

/// What the model fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Words that must not stand in it.
    pub forbidden: Vec<Forbidden>,
    /// The template's words for it.
    pub fixed: String,
}

/// A part of a guided answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Words that the code writes.
    Words(String),
    /// Words that the model writes; a full stop follows.
    Gap(Gap),
}

/// One step of a guided answer: what is asked, and how the answer is put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which step; its head comes from [`Prompt::head`].
    pub step: Step,
    /// The user message.
    pub ask: String,
    /// The answer's parts, in their order.
    pub pieces: Vec<Piece>,
    /// A sentence that the code adds after them, empty where there is none.
    pub closing: String,
}

/// Writes a part's text with these words in its gaps. A missing word leaves its gap empty.
pub fn write(part: &Part, gaps: &mut impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for piece in &part.pieces {
        match piece {
            Piece::Words(words) => join(&mut text, words),
            Piece::Gap(_) => {
                join(&mut text, &gaps.next().unwrap_or_default());
                text.push('.');
            }
        }
    }
    join(&mut text, &part.closing);
    text
}

fn join(text: &mut String, words: &str) {
    if !text.is_empty() && !words.is_empty() {
        text.push(' ');
    }
    text.push_str(words);
}

/// One side of a user's taste: genres, and a title that stands for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taste {
    /// Genres in lower case, the strongest first; empty where the items have none.
    pub genres: Vec<String>,
    /// A title.
    pub title: String,
}

/// What a prompt says of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemFacts {
    /// The title, empty where the item has none.
    pub title: String,
    /// Genres in lower case: the categories, or the tags where there are none.
    pub genres: Vec<String>,
    /// The beginning of the description, empty where the item has none.
    pub about: String,
}

/// What a prompt says of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the user likes; `None` without a positive entry whose item is known.
    pub liked: Option<Taste>,
    /// What the user turns down; `None` without a negative entry whose item is known.
    pub disliked: Option<Taste>,
    /// The newest known title of the history, for a user with neither.
    pub seen: String,
    /// The item.
    pub item: ItemFacts,
    /// Genres of the item that prevail among the user's positive entries.
    pub shared_liked: Vec<String>,
    /// Genres of the item that prevail among the user's negative entries.
    pub shared_disliked: Vec<String>,
}

/// Makes one value fit for a prompt: normalised, without invisible characters and brackets,
/// without the marks of control tokens or this nonce, at most `bytes` long.
pub fn datum(value: &str, bytes: usize, nonce: &str) -> String {
    let visible = |c: &char| {
        !matches!(*c as u32,
        // Zero-width, direction and other format characters, tags, variation selectors, specials.
        0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfe00..=0xfe0f
        | 0xfeff | 0xfff0..=0xfffd | 0xe0000..=0xe0fff)
    };
    let mut text: String = normalise(value).chars().filter(visible).collect();
    text = text.replace(['[', '\u{ff3b}'], "(").replace([']', '\u{ff3d}'], ")");
    // Each removal may bring the next one together, so until nothing changes.
    loop {
        let mut next = text.replace("<|", "").replace("|>", "");
        if !nonce.is_empty() {
            next = next.replace(nonce, "").replace(&nonce.to_uppercase(), "");
        }
        let next = normalise(&next);
        if next == text {
            break;
        }
        text = next;
    }
    if text.len() > bytes {
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        // At a blank where that loses little.
        let end = text[..end].rfind(' ').filter(|blank| *blank >= end / 2).unwrap_or(end);
        text.truncate(end);
        text.truncate(text.trim_end_matches([' ', ',', '-', ':', ';', '(']).len());
    }
    text
}

fn genres_of(item: &ItemText, nonce: &str) -> Vec<String> {
    let list = if item.categories.is_empty() { &item.tags } else { &item.categories };
    let mut genres = Vec::new();
    for value in list.split(", ") {
        let genre = datum(value, GENRE_BYTES, nonce).to_lowercase();
        if !genre.is_empty() && !genres.contains(&genre) {
            genres.push(genre);
        }
    }
    genres
}

impl ItemFacts {
    fn new(item: &ItemText, nonce: &str) -> Self {
        let mut genres = genres_of(item, nonce);
        genres.truncate(ITEM_GENRES);
        ItemFacts {
            title: datum(&item.title, TITLE_BYTES, nonce),
            genres,
            about: datum(&item.description, ABOUT_BYTES, nonce),
        }
    }
}

/// A genre's standing in a history.
#[derive(Clone, Copy, Debug, Default)]
struct Votes {
    positive: usize,
    negative: usize,
    /// Place of the newest entry that has it.
    newest: usize,
}

impl Facts {
    /// The facts of a request: genres counted over the history's labelled entries.
    pub fn new(request: &CotRequest) -> Self {
        let nonce = nonce(request);
        let mut votes: BTreeMap<String, Votes> = BTreeMap::new();
        let mut entries = Vec::new();
        let mut seen = String::new();
        for (place, entry) in request.history.iter().enumerate() {
            let Some(item) = &entry.item else { continue };
            let (genres, title) = (genres_of(item, &nonce), datum(&item.title, TITLE_BYTES, &nonce));
            if !title.is_empty() {
                seen.clone_from(&title);
            }
            if entry.label == Label::None {
                continue;
            }
            let positive = entry.label == Label::Positive;
            for genre in &genres {
                let vote = votes.entry(genre.clone()).or_default();
                *(if positive { &mut vote.positive } else { &mut vote.negative }) += 1;
                vote.newest = place;
            }
            entries.push((positive, genres, title));
        }
        let liked = taste(&votes, &entries, true, &[]);
        let taken = liked.as_ref().map(|taste| taste.genres.clone()).unwrap_or_default();
        let disliked = taste(&votes, &entries, false, &taken);
        let item = ItemFacts::new(&request.item, &nonce);
        let shared = |positive: bool| {
            let prevails = |genre: &&String| votes.get(*genre).is_some_and(|v| v.margin(positive) > 0);
            item.genres.iter().filter(prevails).cloned().collect::<Vec<_>>()
        };
        let (shared_liked, shared_disliked) = (shared(true), shared(false));
        Facts { liked, disliked, seen, item, shared_liked, shared_disliked }
    }
}

impl Votes {
    /// By how many entries one side leads; 0 where it doesn't.
    fn margin(&self, positive: bool) -> usize {
        match positive {
            true => self.positive.saturating_sub(self.negative),
            false => self.negative.saturating_sub(self.positive),
        }
    }

    fn side(&self, positive: bool) -> usize {
        if positive { self.positive } else { self.negative }
    }
}

/// One side of the taste: the genres that lead on it (or, if none does, its most frequent ones but
/// those taken by the other side), and the newest title that has the first of them.
fn taste(
    votes: &BTreeMap<String, Votes>,
    entries: &[(bool, Vec<String>, String)],
    positive: bool,
    taken: &[String],
) -> Option<Taste> {
    let side: Vec<_> = entries.iter().rev().filter(|(label, _, _)| *label == positive).collect();
    if side.is_empty() {
        return None;
    }
    let mut ranked: Vec<_> = votes
        .iter()
        .filter(|(genre, vote)| vote.side(positive) > 0 && !taken.contains(genre))
        .map(|(genre, vote)| ((vote.margin(positive), vote.side(positive), vote.newest), genre))
        .collect();
    // Descending; equal standings keep the genres' own order.
    ranked.sort_by(|(a, _), (b, _)| b.cmp(a));
    if ranked.iter().any(|((margin, _, _), _)| *margin > 0) {
        ranked.retain(|((margin, _, _), _)| *margin > 0);
    }
    let genres: Vec<String> = ranked.into_iter().take(TASTE_GENRES).map(|(_, genre)| genre.clone()).collect();
    let titled = |(_, _, title): &&&(bool, Vec<String>, String)| !title.is_empty();
    let has = |(_, own, _): &&&(bool, Vec<String>, String)| genres.first().is_some_and(|g| own.contains(g));
    let entry = side.iter().filter(titled).find(has).or_else(|| side.iter().find(titled));
    let title = entry.map(|(_, _, title)| title.clone()).unwrap_or_default();
    match genres.is_empty() && title.is_empty() {
        true => None,
        false => Some(Taste { genres, title }),
    }
}

/// The fence's nonce of a request.
fn nonce(request: &CotRequest) -> String {
    request.key.hex()[..8].to_owned()
}

/// Puts lines of data into the fence.
fn fence(nonce: &str, lines: &[String]) -> String {
    format!("[{nonce}]\n{}\n[/{nonce}]", lines.join("\n"))
}

fn list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    noun: String,
    nouns: String,
    system: System,
    skeleton: Skeleton,
    closing: Closings,
    fixed: Fixed,
    forbidden: ForbiddenWords,
    shots: Shots,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct System {
    user: String,
    item: String,
    r#match: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skeleton {
    liked: String,
    disliked: String,
    seen: String,
    unknown: String,
    item: String,
    positive: String,
    negative: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Closings {
    positive: Closing,
    negative: Closing,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Closing {
    liked: String,
    disliked: String,
    new: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixed {
    liked: String,
    disliked: String,
    item: String,
    positive: String,
    negative: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForbiddenWords {
    genres: Vec<String>,
    liked: Vec<String>,
    disliked: Vec<String>,
    always: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shots {
    user: Vec<UserShot>,
    item: Vec<ItemShot>,
    positive: Vec<MatchShot>,
    negative: Vec<MatchShot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserShot {
    liked: Taste,
    liked_gap: String,
    disliked: Taste,
    disliked_gap: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemShot {
    title: String,
    genres: Vec<String>,
    gap: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchShot {
    liked: Taste,
    disliked: Taste,
    title: String,
    genres: Vec<String>,
    gap: String,
}

/// A prompt file, ready to write prompts.
pub struct Prompt {
    file: File,
    version: String,
}

impl Prompt {
    /// The prompt file that ships with the program.
    ///
    /// # Panics
    /// Never: a test parses the file.
    pub fn builtin() -> Self {
        Prompt::parse(BUILTIN).expect("the prompt file that ships with the program is well formed")
    }

    /// Reads a prompt file. Its version is name@ and the first 16 hex digits of its BLAKE3.
    ///
    /// # Errors
    /// A file that isn't TOML of this form, or whose skeleton lacks a gap.
    pub fn parse(text: &str) -> Result<Self> {
        const HINT: &str = "see the prompt file that ships with the program";
        let fail = |detail: String| Error::fatal("cannot read the prompt file", detail, HINT);
        let file: File = toml::from_str(text).map_err(|e| fail(e.to_string()))?;
        if file.name.is_empty() || file.name.contains(|c: char| c == '@' || c.is_whitespace()) {
            return Err(fail(format!("the name `{}` is empty or holds an @ or a blank", file.name)));
        }
        let skeleton = &file.skeleton;
        for (name, words) in [
            ("liked", &skeleton.liked),
            ("disliked", &skeleton.disliked),
            ("item", &skeleton.item),
            ("positive", &skeleton.positive),
            ("negative", &skeleton.negative),
        ] {
            if words.matches(GAP).count() != 1 || !words.ends_with(GAP) {
                return Err(fail(format!("skeleton.{name} does not end with its one {GAP}")));
            }
        }
        let version = format!("{}@{}", file.name, &blake3::hash(text.as_bytes()).to_hex()[..16]);
        Ok(Prompt { file, version })
    }

    /// name@BLAKE3 of the prompt file, 16 hex digits.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The messages before a request's own in a step: the same for all requests.
    pub fn head(&self, step: Step) -> Vec<Message> {
        let file = &self.file;
        let system = match step {
            Step::User => &file.system.user,
            Step::Item => &file.system.item,
            Step::MatchPositive | Step::MatchNegative => &file.system.r#match,
        };
        let mut messages = vec![Message { role: "system", content: system.clone() }];
        for (part, gaps) in self.shots(step) {
            messages.push(Message { role: "user", content: part.ask.clone() });
            let content = write(&Part { closing: String::new(), ..part }, &mut gaps.into_iter());
            messages.push(Message { role: "assistant", content });
        }
        messages
    }

    /// The examples of a step with the words in their gaps, written as a request's own part is.
    fn shots(&self, step: Step) -> Vec<(Part, Vec<String>)> {
        let shots = &self.file.shots;
        let nonce = |title: &str| text_digest(title).hex()[..8].to_owned();
        let matches = |shots: &[MatchShot]| {
            let one = |shot: &MatchShot| {
                let item = ItemFacts {
                    title: shot.title.clone(),
                    genres: shot.genres.clone(),
                    about: String::new(),
                };
                let (liked, disliked) = (Some(shot.liked.clone()), Some(shot.disliked.clone()));
                let facts = Facts { liked, disliked, item, ..Facts::default() };
                (self.match_part(step, &facts, &nonce(&shot.title)), vec![shot.gap.clone()])
            };
            shots.iter().map(one).collect()
        };
        match step {
            Step::User => {
                let one = |shot: &UserShot| {
                    let (liked, disliked) = (Some(shot.liked.clone()), Some(shot.disliked.clone()));
                    let facts = Facts { liked, disliked, ..Facts::default() };
                    let gaps = vec![shot.liked_gap.clone(), shot.disliked_gap.clone()];
                    (self.user_part(&facts, &nonce(&shot.liked.title)), gaps)
                };
                shots.user.iter().map(one).collect()
            }
            Step::Item => {
                let one = |shot: &ItemShot| {
                    let item = ItemFacts {
                        title: shot.title.clone(),
                        genres: shot.genres.clone(),
                        about: String::new(),
                    };
                    (self.item_part(&item, &nonce(&shot.title)), vec![shot.gap.clone()])
                };
                shots.item.iter().map(one).collect()
            }
            Step::MatchPositive => matches(&shots.positive),
            Step::MatchNegative => matches(&shots.negative),
        }
    }

    /// The parts of a request's answer, in the order of the steps.
    pub fn parts(&self, request: &CotRequest) -> Vec<Part> {
        let (facts, nonce) = (Facts::new(request), nonce(request));
        let step = match request.decision {
            Label::Positive => Step::MatchPositive,
            Label::Negative | Label::None => Step::MatchNegative,
        };
        let mut last = self.match_part(step, &facts, &nonce);
        last.closing = self.closing(step, &facts);
        vec![self.user_part(&facts, &nonce), self.item_part(&facts.item, &nonce), last]
    }

    /// The texts that an answer must not copy: instructions, and the examples' words for the gaps.
    pub fn copyable(&self) -> Vec<String> {
        let system = &self.file.system;
        let mut texts = vec![system.user.clone(), system.item.clone(), system.r#match.clone()];
        for step in [Step::User, Step::Item, Step::MatchPositive, Step::MatchNegative] {
            texts.extend(self.shots(step).into_iter().flat_map(|(_, gaps)| gaps));
        }
        texts
    }

    fn kinds(&self, genres: &[String]) -> String {
        match genres.is_empty() {
            true => self.file.nouns.clone(),
            false => format!("{} {}", list(genres), self.file.nouns),
        }
    }

    fn a_kind(&self, genres: &[String]) -> String {
        let kind = match genres.is_empty() {
            true => self.file.noun.clone(),
            false => format!("{} {}", list(genres), self.file.noun),
        };
        match kind.starts_with(['a', 'e', 'i', 'o', 'u']) {
            true => format!("an {kind}"),
            false => format!("a {kind}"),
        }
    }

    /// A title, or words for an item that has none.
    fn title(&self, title: &str, plural: bool) -> String {
        match (title.is_empty(), plural) {
            (false, _) => title.to_owned(),
            (true, false) => format!("this {}", self.file.noun),
            (true, true) => format!("some {}", self.file.nouns),
        }
    }

    /// A gap that may hold these genres' words and no other genre's, and none of the contrary.
    fn gap(&self, genres: &[String], contrary: &[String], fixed: &str) -> Gap {
        let words = &self.file.forbidden;
        let held: Vec<&str> = genres.iter().flat_map(|g| g.split(|c: char| !c.is_alphanumeric())).collect();
        let lacks = |word: &Forbidden| !held.iter().any(|own| !own.is_empty() && word.matches(own));
        let mut forbidden: Vec<Forbidden> =
            words.genres.iter().map(|w| Forbidden::new(w)).filter(lacks).collect();
        forbidden.extend(contrary.iter().chain(&words.always).map(|w| Forbidden::new(w)));
        Gap { forbidden, fixed: fixed.to_owned() }
    }

    /// Fills a skeleton and splits it at its gap.
    fn pieces(&self, skeleton: &str, title: &str, genres: &[String], gap: Option<Gap>) -> Vec<Piece> {
        let (kinds, title) = (self.kinds(genres), title.to_owned());
        // In one pass, so that a title with braces is never taken for a place.
        let mut words = String::new();
        let mut rest = skeleton.strip_suffix(GAP).unwrap_or(skeleton);
        while let Some(at) = rest.find('{') {
            words.push_str(&rest[..at]);
            rest = &rest[at..];
            let places = [
                ("{kinds}", kinds.clone()),
                ("{Kinds}", capitalised(&kinds)),
                ("{a_kind}", self.a_kind(genres)),
                ("{title}", title.clone()),
                ("{Title}", capitalised(&title)),
                ("{shared}", list(genres)),
            ];
            match places.iter().find(|(place, _)| rest.starts_with(place)) {
                Some((place, value)) => {
                    words.push_str(value);
                    rest = &rest[place.len()..];
                }
                None => {
                    words.push('{');
                    rest = &rest[1..];
                }
            }
        }
        words.push_str(rest);
        let mut pieces = vec![Piece::Words(words.trim_end().to_owned())];
        pieces.extend(gap.map(Piece::Gap));
        pieces
    }

    fn taste_lines(&self, facts: &Facts) -> Vec<String> {
        let mut lines = Vec::new();
        for (field, taste) in [("likes", &facts.liked), ("dislikes", &facts.disliked)] {
            if let Some(taste) = taste {
                let such =
                    if taste.title.is_empty() { String::new() } else { format!(" such as {}", taste.title) };
                lines.push(format!("{field}: {}{such}", self.kinds(&taste.genres)));
            }
        }
        if lines.is_empty() && !facts.seen.is_empty() {
            lines.push(format!("seen: {}", facts.seen));
        }
        lines
    }

    fn item_lines(&self, item: &ItemFacts) -> Vec<String> {
        let mut lines = vec![format!("{}: {}", self.file.noun, self.title(&item.title, false))];
        if !item.genres.is_empty() {
            lines.push(format!("genres: {}", item.genres.join(", ")));
        }
        if !item.about.is_empty() {
            lines.push(format!("about: {}", item.about));
        }
        lines
    }

    fn user_part(&self, facts: &Facts, nonce: &str) -> Part {
        let (skeleton, fixed, forbidden) = (&self.file.skeleton, &self.file.fixed, &self.file.forbidden);
        let mut pieces = Vec::new();
        if let Some(taste) = &facts.liked {
            let gap = self.gap(&taste.genres, &forbidden.liked, &fixed.liked);
            pieces.extend(self.pieces(
                &skeleton.liked,
                &self.title(&taste.title, true),
                &taste.genres,
                Some(gap),
            ));
        }
        if let Some(taste) = &facts.disliked {
            let gap = self.gap(&taste.genres, &forbidden.disliked, &fixed.disliked);
            pieces.extend(self.pieces(
                &skeleton.disliked,
                &self.title(&taste.title, true),
                &taste.genres,
                Some(gap),
            ));
        }
        if pieces.is_empty() {
            let words = if facts.seen.is_empty() { &skeleton.unknown } else { &skeleton.seen };
            pieces.extend(self.pieces(words, &facts.seen, &[], None));
        }
        let ask = fence(nonce, &self.taste_lines(facts));
        Part { step: Step::User, ask, pieces, closing: String::new() }
    }

    fn item_part(&self, item: &ItemFacts, nonce: &str) -> Part {
        let gap = self.gap(&item.genres, &self.file.forbidden.liked, &self.file.fixed.item);
        let pieces =
            self.pieces(&self.file.skeleton.item, &self.title(&item.title, false), &item.genres, Some(gap));
        Part { step: Step::Item, ask: fence(nonce, &self.item_lines(item)), pieces, closing: String::new() }
    }

    fn match_part(&self, step: Step, facts: &Facts, nonce: &str) -> Part {
        let (skeleton, fixed, forbidden) = (&self.file.skeleton, &self.file.fixed, &self.file.forbidden);
        let (skeleton, fixed, contrary, decision) = match step {
            Step::MatchPositive => (&skeleton.positive, &fixed.positive, &forbidden.liked, "liked it"),
            _ => (&skeleton.negative, &fixed.negative, &forbidden.disliked, "did not like it"),
        };
        let item = &facts.item;
        let gap = self.gap(&item.genres, contrary, fixed);
        let pieces = self.pieces(skeleton, &self.title(&item.title, false), &item.genres, Some(gap));
        let brief = ItemFacts { about: String::new(), ..item.clone() };
        let lines = [self.taste_lines(facts), self.item_lines(&brief), vec![format!("decision: {decision}")]];
        Part { step, ask: fence(nonce, &lines.concat()), pieces, closing: String::new() }
    }

    /// How the item's genres meet the user's taste. What speaks for the decision comes first.
    fn closing(&self, step: Step, facts: &Facts) -> String {
        let (liked, disliked) = (&facts.shared_liked, &facts.shared_disliked);
        let (words, shared) = match step {
            Step::MatchPositive => {
                let closing = &self.file.closing.positive;
                match (liked.is_empty(), disliked.is_empty()) {
                    (false, _) => (&closing.liked, liked),
                    (true, false) => (&closing.disliked, disliked),
                    (true, true) => (&closing.new, liked),
                }
            }
            _ => {
                let closing = &self.file.closing.negative;
                match (disliked.is_empty(), liked.is_empty()) {
                    (false, _) => (&closing.disliked, disliked),
                    (true, false) => (&closing.liked, liked),
                    (true, true) => (&closing.new, disliked),
                }
            }
        };
        match self.pieces(words, "", shared, None).pop() {
            Some(Piece::Words(words)) => words,
            _ => String::new(),
        }
    }
}
