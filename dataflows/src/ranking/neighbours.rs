//! The neighbours of every sample as of its time: from the replay of the sources `same_item` and `same_user`.
//!
//! The replay sees every labelled row that exists: all samples, and the labelled rows that a protocol leaves
//! without a sample. What it gives is checked row by row: a neighbour that is the example itself, of its own
//! pair or later ends the work ([`checked`]).
//!
//! Text vectors are centred by their mean over the items that training knows.

use super::dataset::{Prepared, found};
use super::delay::Delay;
use super::failed;
use super::progress::Progress;
use ictflow_connectors::Result;
use ictflow_operators::as_of::{Options, Replay, Row, Texts, leak};
use ictflow_operators::ict::{MAX_NEIGHBOURS, SOURCES, age_scalar, age_units};
use ictflow_operators::ict::{residual_scalar, score_scalar};
use ictflow_operators::ranking::histories::{example, sample};
use ictflow_operators::ranking::scalars::vote_scalars;
use ictflow_operators::ranking::split::Sample;
use ictflow_operators::retrieval::neighbours::{Neighbour, Neighbourhood};
use ictflow_schemas::Id;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::neighbour::{LabelledExample, RATE_ONE, VOTES};
use ictflow_schemas::vector::{Quantised, VectorSum};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// How neighbours are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selecting {
    /// The most similar, as a job serves them.
    Similar,
    /// The most recent.
    Recent,
    /// The most similar, with labels that changed places among them: a control.
    Permuted,
}

/// The seed by which labels change places.
const PERMUTED: u64 = 1;

impl Selecting {
    /// The options of the replay, with labels that are known so much later.
    pub fn options(self, delay: Delay) -> Options {
        Options {
            neighbourhood: Neighbourhood::default(),
            label_delay_ms: delay.0,
            most_recent: self == Selecting::Recent,
            permuted_labels: (self == Selecting::Permuted).then_some(PERMUTED),
            ..Options::default()
        }
    }
}

/// The nearest neighbours of all samples in one source: [`MAX_NEIGHBOURS`] places a sample, row by row.
/// Places that are empty hold zeros.
#[derive(Clone, Debug, Default)]
pub struct Nearest {
    /// Users by number.
    pub users: Vec<u32>,
    /// Items by number.
    pub items: Vec<u32>,
    /// Labels.
    pub labels: Vec<u32>,
    /// Scores, as a vector reads them.
    pub scores: Vec<f32>,
    /// Ages: how much older than the newest that the source selected.
    pub ages: Vec<f32>,
    /// Residuals: labels less their users' like-rates then.
    pub residuals: Vec<f32>,
    /// 1 where there is one.
    pub there: Vec<f32>,
}

/// What the replay says of all samples.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// [`VOTES`] a sample.
    pub votes: Vec<f32>,
    /// By source: `same_item`, `same_user`.
    pub nearest: [Nearest; SOURCES],
}

/// A row that has no leak.
///
/// # Errors
/// `Fatal` where a neighbour is the example itself, of its own pair, or wasn't known before it.
pub fn checked(row: Row, label_delay_ms: i64) -> Result<Row> {
    match leak(&row, label_delay_ms) {
        None => Ok(row),
        Some(leak) => {
            let at = format!("{} of user {}", row.example.event_id, row.example.user);
            Err(failed(
                format!("replay neighbours of example {at}"),
                format!("{leak}: figures would be false"),
            ))
        }
    }
}

impl Neighbours {
    /// Replays the neighbours of all samples.
    ///
    /// # Errors
    /// `Fatal` where two examples are one or a leak was found.
    pub fn of(prepared: &Prepared, options: Options) -> Result<Self> {
        let delay = options.label_delay_ms;
        Neighbours::replay(prepared, options, |row| checked(row, delay))
    }

    /// The replay, each row through a check: tests plant leaks and look at what they are worth.
    pub(super) fn replay(
        prepared: &Prepared,
        options: Options,
        check: impl Fn(Row) -> Result<Row>,
    ) -> Result<Self> {
        let Prepared { data, histories, .. } = prepared;
        let mut asked: Vec<Sample> = prepared.samples().copied().collect();
        let count = asked.len();
        asked.extend(others(prepared));
        let texts = texts(prepared)?;
        let examples = asked
            .iter()
            .map(|sample| LabelledExample::of(&example(data, histories, *sample)))
            .collect::<Vec<_>>();
        let replay =
            Replay::new(examples, &texts, options).map_err(|error| failed("replay neighbours", error))?;
        let mut neighbours = Neighbours::with_room(count);
        let mut progress = Progress::new("replaying neighbours", asked.len());
        for (done, row) in replay.enumerate() {
            if done % 256 == 0 {
                progress.at(done, "");
            }
            let row = check(row)?;
            if row.place < count {
                neighbours.set(data, &row)?;
            }
        }
        Ok(neighbours)
    }

    fn with_room(samples: usize) -> Self {
        let places = samples * MAX_NEIGHBOURS;
        let nearest = || Nearest {
            users: vec![0; places],
            items: vec![0; places],
            labels: vec![0; places],
            scores: vec![0.0; places],
            ages: vec![0.0; places],
            residuals: vec![0.0; places],
            there: vec![0.0; places],
        };
        Neighbours { votes: vec![0.0; samples * VOTES], nearest: [nearest(), nearest()] }
    }

    fn set(&mut self, data: &Dataset, row: &Row) -> Result<()> {
        let begin = row.place * VOTES;
        self.votes[begin..begin + VOTES].copy_from_slice(&vote_scalars(row.sources.votes.numbers()));
        let of_sources = [&row.sources.same_item, &row.sources.same_user];
        for (nearest, selected) in self.nearest.iter_mut().zip(of_sources) {
            nearest.set(data, row.place * MAX_NEIGHBOURS, selected)?;
        }
        Ok(())
    }
}

impl Nearest {
    /// Sets the places from `begin` on to the nearest of the selected.
    fn set(&mut self, data: &Dataset, begin: usize, selected: &[Neighbour]) -> Result<()> {
        let nearest = &selected[selected.len().saturating_sub(MAX_NEIGHBOURS)..];
        // Of all that were selected, also those that the vector doesn't read: as serving counts.
        let newest = selected.iter().map(|neighbour| neighbour.example.label_time).max().unwrap_or_default();
        for (place, neighbour) in (begin..).zip(nearest) {
            let other = &neighbour.example;
            self.users[place] = found(data.users().find(&other.user), "user", &other.user)?;
            self.items[place] = found(data.items().find(&other.item), "item", &other.item)?;
            self.labels[place] = u32::from(other.label() == 1);
            self.scores[place] = score_scalar(neighbour.score);
            self.ages[place] = age_scalar(age_units(newest, other.label_time));
            self.residuals[place] = residual_scalar(RATE_ONE * other.label() - other.rate);
            self.there[place] = 1.0;
        }
        Ok(())
    }
}

/// The labelled rows that exist and are no samples. Only protocols with periods have some: elsewhere what
/// isn't a sample isn't there.
fn others(prepared: &Prepared) -> Vec<Sample> {
    let split = &prepared.split;
    if split.periods.is_none() {
        return Vec::new();
    }
    let sampled: HashSet<u32> = prepared.samples().map(|sample| sample.row).collect();
    let rows = (0..).zip(&split.visible).filter(|(row, visible)| **visible && !sampled.contains(row));
    rows.filter_map(|(row, _)| sample(&prepared.data, row)).collect()
}

/// The text vectors by item, centred.
fn texts(prepared: &Prepared) -> Result<Texts> {
    let ids = prepared.data.items().ids();
    let vectors: HashMap<Id, Quantised> = (ids.iter().zip(&prepared.texts))
        .filter_map(|(id, vector)| Some((id.clone(), vector.clone()?)))
        .collect();
    Texts::new(&vectors, &centre(prepared)).map_err(|error| failed("centre text vectors", error))
}

/// The mean of the text vectors over the items that training samples are on; zeros where there is none.
pub fn centre(prepared: &Prepared) -> Quantised {
    let trained: HashSet<u32> = prepared.split.train.iter().map(|sample| sample.item).collect();
    let vectors = (0..).zip(&prepared.texts).filter(|(item, _)| trained.contains(item));
    VectorSum::over(vectors.filter_map(|(_, vector)| vector.as_deref())).mean(prepared.text_width)
}
