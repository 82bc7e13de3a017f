//! Neighbours as of each example's time: the batch replay that training and evaluation stand on.
//!
//! **Computes**, for every example e = (u, i) at t = its event_time: the selections and votes of
//! [`same_item`] and [`same_user`] from the labels known strictly before t, with the sketches effective
//! at t. The same functions as the live operator's, over the same rules; only time is another.
//!
//! **Known**: with a delay d a label counts as of label_time + d: in a ring where that is strictly before
//! t, in a sketch where it is strictly before B(t).
//!
//! **Nothing leaks.** A label is never known before its example happened ([`Error::LabelBeforeEvent`]), so
//! no example sees itself, nor one that happened at the same time; own pairs are left out by the sources;
//! [`leak`] checks what came out. In test builds `allow_self` and `allow_future` plant the two leaks that
//! an evaluation must be able to notice.
//!
//! **Order**: rows come by (event_time, user, event_id). The order in which examples are given never
//! shows.
//!
//! **Cost**: one pass. An example adds once to two sketches and two rings, and is compared with two rings;
//! the state is R examples an item and a user, one sketch each. [`Replay`] is an iterator: what isn't
//! kept of a row is gone.
//!
//! [`global`] replays the source of that name.

pub mod global;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use crate::retrieval::neighbours::{Neighbour, Neighbourhood, Sources, boundary};
use crate::retrieval::ring::Ring;
use crate::retrieval::same_item::same_item;
use crate::retrieval::same_user::{Item, same_user};
use crate::retrieval::sketch::{Side, Sketches};
use crate::retrieval::unit::centred;
use crate::retrieval::votes::{item_votes, user_votes};
use crate::splitmix::SplitMix64;
use ictflow_schemas::neighbour::{LabelledExample, Votes};
use ictflow_schemas::vector::Quantised;
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Why a replay can't be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A label that is older than its example could be seen by it.
    #[error(
        "example {event} of user {user} has its label at {label_time}, before it happened at {event_time}: check which columns are the times"
    )]
    LabelBeforeEvent {
        /// Its user.
        user: Id,
        /// Its event id.
        event: Id,
        /// When its label was known.
        label_time: Millis,
        /// When it happened.
        event_time: Millis,
    },
    /// Two examples are one.
    #[error(
        "example {event} of user {user} at {event_time} is given twice: drop duplicates, or give events an id"
    )]
    Duplicate {
        /// Their user.
        user: Id,
        /// Their event id.
        event: Id,
        /// When they happened.
        event_time: Millis,
    },
    /// Texts of two encoders.
    #[error("the text vector of item {item} is {found} wide, not {expected}: use one encoder for all")]
    Width {
        /// The item.
        item: Id,
        /// Its vector's width.
        found: usize,
        /// The width of the centre, or of the others.
        expected: usize,
    },
}

/// The centred texts of items.
#[derive(Clone, Debug, Default)]
pub struct Texts(HashMap<Id, Quantised>);

impl Texts {
    /// Centres quantised vectors. An empty centre is zeros.
    ///
    /// # Errors
    /// Where widths differ.
    pub fn new(vectors: &HashMap<Id, Quantised>, centre: &[i16]) -> Result<Self, Error> {
        let mut items: Vec<&Id> = vectors.keys().collect();
        items.sort_unstable();
        let first = items.first().map_or(0, |item| vectors[*item].len());
        let expected = if centre.is_empty() { first } else { centre.len() };
        if let Some(item) = items.into_iter().find(|item| vectors[*item].len() != expected) {
            return Err(Error::Width { item: item.clone(), found: vectors[item].len(), expected });
        }
        Ok(Texts(vectors.iter().map(|(item, vector)| (item.clone(), centred(vector, centre))).collect()))
    }

    /// The unit form of an item's centred text.
    pub fn unit(&self, item: &str) -> Option<&[i16]> {
        self.0.get(item).map(|unit| &**unit)
    }
}

/// How neighbours are taken. The default is what a job serves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// R, M, the sketch period and the label centre.
    pub neighbourhood: Neighbourhood,
    /// How much later than at label_time a label is known, milliseconds.
    pub label_delay_ms: Millis,
    /// The newest instead of the most similar: every score is 0.
    pub most_recent: bool,
    /// Labels, each with its user's rate, change places among the neighbours, by this seed; what is asked
    /// for keeps its own. A control: whatever neighbours' labels bring must be lost.
    pub permuted_labels: Option<u64>,
    /// An example is its own neighbour: a leak that an evaluation must notice.
    #[cfg(any(test, feature = "leaks"))]
    pub allow_self: bool,
    /// Labels of all times are known: a leak that an evaluation must notice.
    #[cfg(any(test, feature = "leaks"))]
    pub allow_future: bool,
}

#[cfg(any(test, feature = "leaks"))]
impl Options {
    fn sees_itself(&self) -> bool {
        self.allow_self
    }

    fn sees_the_future(&self) -> bool {
        self.allow_future
    }
}

#[cfg(not(any(test, feature = "leaks")))]
impl Options {
    fn sees_itself(&self) -> bool {
        false
    }

    fn sees_the_future(&self) -> bool {
        false
    }
}

/// An example with its neighbours as of its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The place of the example in what was given.
    pub place: usize,
    /// The example, with its own label.
    pub example: Arc<LabelledExample>,
    /// What both sources say.
    pub sources: Sources,
}

/// The replay: an iterator over [`Row`]s by (event_time, user, event_id).
#[derive(Debug)]
pub struct Replay<'t> {
    texts: &'t Texts,
    options: Options,
    /// What is asked for, in the order of rows, with its place.
    queries: std::vec::IntoIter<(Arc<LabelledExample>, usize)>,
    /// What is known in time, oldest first, from the next one on.
    labels: std::iter::Peekable<std::vec::IntoIter<Arc<LabelledExample>>>,
    of_users: HashMap<Id, Ring>,
    of_items: HashMap<Id, Ring>,
    users: Sketches,
    items: Sketches,
}

impl<'t> Replay<'t> {
    /// Prepares the replay of examples in any order.
    ///
    /// # Errors
    /// Where an example is given twice, or its label is older than itself.
    pub fn new(
        examples: impl IntoIterator<Item = LabelledExample>,
        texts: &'t Texts,
        options: Options,
    ) -> Result<Self, Error> {
        let mut queries: Vec<(Arc<LabelledExample>, usize)> =
            examples.into_iter().map(Arc::new).zip(0..).collect();
        queries.sort_unstable_by(|(a, _), (b, _)| key(a).cmp(&key(b)));
        check(&queries)?;
        let mut labels: Vec<Arc<LabelledExample>> =
            queries.iter().map(|(example, _)| example.clone()).collect();
        labels.sort_unstable();
        if let Some(seed) = options.permuted_labels {
            permute(&mut labels, seed);
        }
        let label_centre = options.neighbourhood.label_centre;
        Ok(Replay {
            texts,
            options,
            queries: queries.into_iter(),
            labels: labels.into_iter().peekable(),
            of_users: HashMap::new(),
            of_items: HashMap::new(),
            users: Sketches::new(Side::User, label_centre),
            items: Sketches::new(Side::Item, label_centre),
        })
    }

    /// Lets all be known that is known before `time`; gives what a ring shows at it.
    fn advance(&mut self, time: Millis) -> Millis {
        let (mut shown, mut effective) = (time, boundary(time, self.options.neighbourhood.sketch_period_ms));
        if self.options.sees_the_future() {
            (shown, effective) = (Millis::MAX, Millis::MAX);
        } else {
            shown = shown.saturating_sub(self.options.label_delay_ms);
            effective = effective.saturating_sub(self.options.label_delay_ms);
        }
        // Nobody has to be told which sketches changed: each row looks at those it needs.
        let mut unread = BTreeSet::new();
        while let Some(label) = self.labels.next_if(|label| label.label_time < shown) {
            for (rings, key) in [(&mut self.of_users, &label.user), (&mut self.of_items, &label.item)] {
                let ring = rings.entry(key.clone()).or_default();
                ring.insert(label.clone());
                // Time only goes on here, and nothing is taken back.
                ring.forget(self.options.neighbourhood.ring, |_| true);
            }
            self.users.change(&label, 1, &mut unread);
            self.items.change(&label, 1, &mut unread);
        }
        self.users.advance(effective, &mut unread);
        self.items.advance(effective, &mut unread);
        shown
    }

    fn row(&self, example: Arc<LabelledExample>, place: usize, shown: Millis) -> Row {
        let Neighbourhood { ring, selected, .. } = self.options.neighbourhood;
        let similar = !self.options.most_recent;
        let user = |user: &str| self.users.unit(user).filter(|_| similar);
        let item = |item: &str| Item {
            sketch: self.items.unit(item).filter(|_| similar),
            text: self.texts.unit(item).filter(|_| similar),
        };
        let of_item = seen(&self.of_items, &example.item, shown, ring);
        let of_user = seen(&self.of_users, &example.user, shown, ring);
        let mut by_item = same_item(&example.user, of_item, user, selected);
        let mut by_user = same_user(&example.item, of_user, item, selected);
        let itself = self.options.sees_itself().then_some(&example);
        if let Some(example) = itself {
            let (user, item) = (user(&example.user), item(&example.item));
            plant(&mut by_item, example, crate::retrieval::same_item::score(user, user), selected);
            plant(&mut by_user, example, crate::retrieval::same_user::score(item, item), selected);
        }
        let others = of_item.iter().filter(|other| other.user != example.user).chain(itself);
        let votes = Votes {
            same_item: item_votes(others.map(|other| &**other), &by_item),
            same_user: user_votes(&by_user, |item| self.items.rate(item)),
        };
        let sources = Sources { same_item: by_item, same_user: by_user, votes };
        Row { place, example, sources }
    }
}

impl Iterator for Replay<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let (example, place) = self.queries.next()?;
        let shown = self.advance(example.event_time);
        Some(self.row(example, place, shown))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.queries.size_hint()
    }
}

impl ExactSizeIterator for Replay<'_> {}

/// What the ring of a key shows before a time.
fn seen<'r>(
    rings: &'r HashMap<Id, Ring>,
    key: &str,
    time: Millis,
    length: usize,
) -> &'r [Arc<LabelledExample>] {
    rings.get(key).map_or(&[], |ring| ring.before(time, length))
}

/// The order of rows.
fn key(example: &LabelledExample) -> (Millis, &str, &str) {
    (example.event_time, &example.user, &example.event_id)
}

fn check(queries: &[(Arc<LabelledExample>, usize)]) -> Result<(), Error> {
    let named = |example: &LabelledExample| (example.user.clone(), example.event_id.clone());
    for (example, _) in queries {
        let (label_time, event_time) = (example.label_time, example.event_time);
        if label_time < event_time {
            let (user, event) = named(example);
            return Err(Error::LabelBeforeEvent { user, event, label_time, event_time });
        }
    }
    for pair in queries.windows(2) {
        if key(&pair[0].0) == key(&pair[1].0) {
            let (user, event) = named(&pair[0].0);
            return Err(Error::Duplicate { user, event, event_time: pair[0].0.event_time });
        }
    }
    Ok(())
}

/// Lets labels, each with its user's rate, change places: Fisher and Yates's shuffle by SplitMix64. The
/// labels are in order, so the order in which they were given doesn't show.
fn permute(labels: &mut [Arc<LabelledExample>], seed: u64) {
    let mut said: Vec<_> = labels.iter().map(|label| (label.verdict, label.rate)).collect();
    let mut stream = SplitMix64(seed);
    for last in (1..said.len()).rev() {
        let number = u128::from(stream.bits());
        said.swap(last, ((number * (last as u128 + 1)) >> 64) as usize);
    }
    for (label, (verdict, rate)) in labels.iter_mut().zip(said) {
        *label = Arc::new(LabelledExample { verdict, rate, ..(**label).clone() });
    }
}

/// Puts an example among its own neighbours, where its score would have it.
fn plant(neighbours: &mut Vec<Neighbour>, example: &Arc<LabelledExample>, score: i64, selected: usize) {
    neighbours.push(Neighbour { score, example: example.clone() });
    neighbours.sort_unstable();
    neighbours.drain(..neighbours.len().saturating_sub(selected));
}

/// What a row may not have among its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Leak {
    /// The example itself.
    #[error("an example is its own neighbour")]
    Itself,
    /// Another example of the same user on the same item.
    #[error("a neighbour is of the example's own user and item")]
    OwnPair,
    /// A label that wasn't known before the example happened.
    #[error("a neighbour's label was not known before the example happened")]
    Later,
}

/// The first leak of a row, if any. It looks at what was selected; that sketches hold nothing later is
/// for the tests of the replay to show.
pub fn leak(row: &Row, label_delay_ms: Millis) -> Option<Leak> {
    let example = &row.example;
    let neighbours = row.sources.same_item.iter().chain(&row.sources.same_user);
    neighbours.map(|neighbour| &neighbour.example).find_map(|other| {
        if key(other) == key(example) {
            Some(Leak::Itself)
        } else if (&other.user, &other.item) == (&example.user, &example.item) {
            Some(Leak::OwnPair)
        } else if other.label_time.saturating_add(label_delay_ms) >= example.event_time {
            Some(Leak::Later)
        } else {
            None
        }
    })
}
