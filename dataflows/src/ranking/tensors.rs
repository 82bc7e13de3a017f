//! A data set as tensors, and batches of it.
//!
//! Everything stands once, by item or by sample, and a batch is gathered by `index_select`: the training loop
//! does no work by row. Only the neighbours' distinct users and items are found batch by batch, since a model
//! computes what they give once each.
//!
//! **Vocabularies** are those of training: ids that a training sample or its history names have rows from 1
//! on, in the order of their numbers. All others share the last row, whose values are zeros and stay so: what is
//! new in validation and test is new to the model, and means over ids count it, as those of serving do. Row 0
//! stands for an absent id, which nothing counts.
//!
//! `train` has the rows of hashed tables in their place, since what it makes serves any id: see
//! [`Vocabularies::hashed`].
//!
//! **Slots**: items are gathered by slot = number + 1; slot 0 is an absent item, with zeros everywhere. An
//! item that training doesn't know has its text and known categories all the same.
//!
//! **Memory**: 4 B a history entry and a scalar of each sample, 768 B a neighbour-reading sample and source,
//! one text vector an item.

use super::arms::{Arm, RATE_SCALARS, Vector};
use super::dataset::{Part, Prepared};
use super::delay::Delay;
use super::demonstrations::DemonstrationColumns;
use super::neighbours::{Nearest, Neighbours};
use candle_core::{DType, Device, Result, Tensor};
use ictflow_operators::ict::training::{
    Demonstrations, HashedRows, Neighbours as Gathered, Parties, Samples, TableRows,
};
use ictflow_operators::ict::{MAX_NEIGHBOURS, SOURCES};
use ictflow_operators::ranking::embedding_bag::mean;
use ictflow_operators::ranking::ids::Ids;
use ictflow_operators::ranking::scalars::{LABEL_SCALARS, label_scalars};
use ictflow_operators::ranking::tables::Rows;
use ictflow_schemas::Id;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::history::Label;
use ictflow_schemas::neighbour::VOTES;
use ictflow_schemas::vector::SCALE;
use std::ops::Range;

/// The rows of a table by number in the data set.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    row: Vec<u32>,
    /// The row of what training doesn't know, the table's last one.
    unknown: u32,
}

impl Vocabulary {
    fn of(known: &[bool]) -> Self {
        let unknown = 1 + known.iter().filter(|known| **known).count() as u32;
        let mut next = 0;
        let row = known
            .iter()
            .map(|known| {
                next += u32::from(*known);
                if *known { next } else { unknown }
            })
            .collect();
        Vocabulary { row, unknown }
    }

    /// The rows as a hashed table has them, compactly: what training names gets the row of its hashed one, and
    /// so does any other id that shares one of these; all else is unknown. What serving would read, then.
    fn hashed(&self, ids: &[Id], table: &mut TableRows) -> Self {
        for (id, _) in ids.iter().zip(&self.row).filter(|(_, row)| **row != self.unknown) {
            table.add(id);
        }
        let unknown = table.len() as u32;
        let row = |id: &Id| Some(table.row_of(id)).filter(|row| *row > 0).unwrap_or(unknown);
        Vocabulary { row: ids.iter().map(row).collect(), unknown }
    }

    /// The row of a number.
    pub fn row(&self, number: u32) -> u32 {
        self.row[number as usize]
    }

    /// Whether training doesn't know a number.
    pub fn is_unknown(&self, number: u32) -> bool {
        self.row(number) == self.unknown
    }

    /// The rows of its table, the absent one and the unknown one included.
    pub fn rows(&self) -> usize {
        self.unknown as usize + 1
    }
}

/// The vocabularies of the four tables.
#[derive(Clone, Debug)]
pub struct Vocabularies {
    /// Of users.
    pub user: Vocabulary,
    /// Of items.
    pub item: Vocabulary,
    /// Of creators.
    pub creator: Vocabulary,
    /// Of categories.
    pub category: Vocabulary,
}

impl Vocabularies {
    /// What training names.
    pub fn of(prepared: &Prepared) -> Self {
        let Prepared { data, split, histories, .. } = prepared;
        let catalog = data.catalog();
        let mut users = vec![false; data.users().len()];
        let mut items = vec![false; data.items().len()];
        for sample in &split.train {
            users[data.rows()[sample.row as usize].user as usize] = true;
            items[sample.item as usize] = true;
            for row in histories.before(sample.row) {
                items[data.rows()[*row as usize].item as usize] = true;
            }
        }
        let mut creators = vec![false; catalog.creator_names().len()];
        let mut categories = vec![false; catalog.category_names().len()];
        for (item, _) in (0..).zip(&items).filter(|(_, known)| **known) {
            if let Some(creator) = catalog.creator(item) {
                creators[creator as usize] = true;
            }
            catalog.categories(item).iter().for_each(|category| categories[*category as usize] = true);
        }
        Vocabularies {
            user: Vocabulary::of(&users),
            item: Vocabulary::of(&items),
            creator: Vocabulary::of(&creators),
            category: Vocabulary::of(&categories),
        }
    }

    /// The rows of hashed tables instead of each id its own; `rows` gets those that training names.
    pub fn hashed(&self, data: &Dataset, rows: &mut HashedRows) -> Self {
        let catalog = data.catalog();
        Vocabularies {
            user: self.user.hashed(data.users().ids(), &mut rows.user),
            item: self.item.hashed(data.items().ids(), &mut rows.item),
            creator: self.creator.hashed(catalog.creator_names().ids(), &mut rows.creator),
            category: self.category.hashed(catalog.category_names().ids(), &mut rows.category),
        }
    }

    /// The rows of whole hashed tables, as a reader of the files has them.
    #[cfg(test)]
    pub(crate) fn whole(data: &Dataset, rows: &HashedRows) -> Self {
        let of = |ids: &[Id], table: &TableRows| {
            let rows = table.hashed_rows() as u32;
            let row = |id: &Id| ictflow_schemas::framing::hashed_row(table.name(), id, rows);
            Vocabulary { row: ids.iter().map(row).collect(), unknown: rows - 1 }
        };
        let catalog = data.catalog();
        Vocabularies {
            user: of(data.users().ids(), &rows.user),
            item: of(data.items().ids(), &rows.item),
            creator: of(catalog.creator_names().ids(), &rows.creator),
            category: of(catalog.category_names().ids(), &rows.category),
        }
    }

    /// The rows of the four tables.
    pub fn rows(&self) -> Rows {
        Rows {
            user: self.user.rows(),
            item: self.item.rows(),
            creator: self.creator.rows(),
            category: self.category.rows(),
        }
    }
}

/// What is known of items, by slot.
#[derive(Clone, Debug)]
struct Items {
    /// [S].
    row: Tensor,
    /// [S].
    creator: Tensor,
    /// [S, C].
    categories: Tensor,
    /// [S, D], components divided by 2^14.
    text: Tensor,
    /// [S], the row of `text`; 0 where there is none.
    text_row: Tensor,
}

/// What the samples are, in the order train, validation, test. Clones share their tensors.
#[derive(Clone, Debug)]
pub struct Columns {
    items: Items,
    /// [N].
    user: Tensor,
    /// [N].
    slot: Tensor,
    /// [N, L], slots, oldest first.
    history: Tensor,
    /// [N].
    label: Tensor,
    /// [N, 2].
    own_labels: Tensor,
    /// The rows of tables.
    pub rows: Rows,
    /// D.
    pub text_width: usize,
    parts: [Range<usize>; 3],
}

/// The neighbours of all samples.
#[derive(Debug)]
pub struct NeighbourColumns {
    /// [N, 9].
    votes: Tensor,
    nearest: [NearestColumns; SOURCES],
}

/// [N, 16] each.
#[derive(Debug)]
struct NearestColumns {
    /// Rows of the user table.
    user: Tensor,
    /// Slots.
    slot: Tensor,
    label: Tensor,
    score: Tensor,
    age: Tensor,
    residual: Tensor,
    there: Tensor,
}

/// A batch, with what an arm asks for.
#[derive(Debug)]
pub struct Batch {
    /// The ids.
    pub ids: Ids,
    /// [B], 0 or 1.
    pub label: Tensor,
    /// The item's text [B, D] and the mean of the history's.
    pub text: Option<[Tensor; 2]>,
    /// [B, S].
    pub scalars: Option<Tensor>,
    /// The neighbours.
    pub neighbours: Option<(Parties, [Gathered; SOURCES])>,
    /// The demonstrations.
    pub demonstrations: Option<Demonstrations>,
}

/// What was retrieved for all samples, as far as an arm needs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retrieved<'a> {
    /// The neighbours.
    pub neighbours: Option<&'a NeighbourColumns>,
    /// The demonstrations.
    pub demonstrations: Option<&'a DemonstrationColumns>,
}

impl Batch {
    /// The query samples of the vector.
    pub fn samples(&self) -> Option<Samples> {
        let [item_text, history_text] = self.text.clone()?;
        Some(Samples { ids: self.ids.clone(), item_text, history_text })
    }
}

fn slot(item: u32) -> u32 {
    item + 1
}

impl Columns {
    /// The columns of a data set.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn of(prepared: &Prepared, vocabularies: &Vocabularies) -> Result<Self> {
        let Prepared { data, histories, .. } = prepared;
        let count = prepared.len();
        let length = super::dataset::HISTORY;
        let mut users = Vec::with_capacity(count);
        let mut slots = Vec::with_capacity(count);
        let mut labels = Vec::with_capacity(count);
        let mut history = Vec::with_capacity(count * length);
        for sample in prepared.samples() {
            let row = &data.rows()[sample.row as usize];
            users.push(vocabularies.user.row(row.user));
            slots.push(slot(sample.item));
            labels.push(f32::from(u8::from(sample.positive)));
            let before = histories.before(sample.row);
            history.extend(before.iter().map(|row| slot(data.rows()[*row as usize].item)));
            history.extend(std::iter::repeat_n(0, length - before.len()));
        }
        let ranges = [Part::Train, Part::Valid, Part::Test].map(|part| prepared.range(part));
        let device = &Device::Cpu;
        Ok(Columns {
            items: Items::of(prepared, vocabularies)?,
            user: Tensor::from_vec(users, count, device)?,
            slot: Tensor::from_vec(slots, count, device)?,
            history: Tensor::from_vec(history, (count, length), device)?,
            label: Tensor::from_vec(labels, count, device)?,
            own_labels: own_labels(prepared, Delay::NONE)?,
            rows: vocabularies.rows(),
            text_width: prepared.text_width,
            parts: ranges,
        })
    }

    /// The same samples with labels that are known so much later. What users engaged with is known at once.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn delayed(&self, prepared: &Prepared, delay: Delay) -> Result<Self> {
        Ok(Columns { own_labels: own_labels(prepared, delay)?, ..self.clone() })
    }

    /// Where a part stands.
    pub fn range(&self, part: Part) -> Range<usize> {
        self.parts[part as usize].clone()
    }

    /// The ids of the samples `at`, with the slots of their items and histories.
    fn ids(&self, at: &Tensor) -> Result<(Ids, [Tensor; 2])> {
        let slots = self.slot.index_select(at, 0)?;
        let history = self.history.index_select(at, 0)?;
        let (batch, length) = history.dims2()?;
        let entries = history.flatten_all()?;
        let items = &self.items;
        let ids = Ids {
            user: self.user.index_select(at, 0)?,
            item: items.row.index_select(&slots, 0)?,
            creator: items.creator.index_select(&slots, 0)?,
            categories: items.categories.index_select(&slots, 0)?,
            history_items: items.row.index_select(&entries, 0)?.reshape((batch, length))?,
            history_creators: items.creator.index_select(&entries, 0)?.reshape((batch, length))?,
            history_categories: items.categories.index_select(&entries, 0)?.reshape((batch, length, ()))?,
        };
        Ok((ids, [slots, history]))
    }

    /// The samples `at`, as the module of a vector reads them.
    pub(super) fn samples(&self, at: &Tensor) -> Result<Samples> {
        let (ids, [slots, history]) = self.ids(at)?;
        let [item_text, history_text] = self.items.texts(&slots, &history)?;
        Ok(Samples { ids, item_text, history_text })
    }

    /// The labels of the samples `at`, 0 or 1.
    pub(super) fn labels(&self, at: &Tensor) -> Result<Tensor> {
        self.label.index_select(at, 0)
    }

    /// The batch of some samples, as an arm needs it.
    ///
    /// # Errors
    /// Where a sample is beyond the data set, or the arm needs what wasn't retrieved.
    pub fn batch(&self, samples: &[u32], arm: &Arm, retrieved: Retrieved<'_>) -> Result<Batch> {
        let at = Tensor::new(samples, &Device::Cpu)?;
        let (ids, [slots, history]) = self.ids(&at)?;
        let items = &self.items;
        let text = if arm.reads_texts() { Some(items.texts(&slots, &history)?) } else { None };
        let missing = |what: &str| candle_core::Error::Msg(format!("the arm {} needs {what}", arm.name));
        let neighbours = || retrieved.neighbours.ok_or_else(|| missing("neighbours"));
        let demonstrations = || retrieved.demonstrations.ok_or_else(|| missing("demonstrations"));
        let mut scalars = Vec::new();
        if arm.labels {
            scalars.push(self.own_labels.index_select(&at, 0)?);
        }
        if arm.rate {
            // Rows first: a narrowed tensor isn't contiguous, and none else can be picked from.
            scalars.push(neighbours()?.votes.index_select(&at, 0)?.narrow(1, 0, RATE_SCALARS)?.contiguous()?);
        }
        if arm.votes {
            scalars.push(neighbours()?.votes.index_select(&at, 0)?);
        }
        let scalars = if scalars.is_empty() { None } else { Some(Tensor::cat(&scalars, 1)?) };
        let (neighbours, demonstrations) = match arm.vector {
            None => (None, None),
            Some(Vector::Attention) => (Some(neighbours()?.gather(&at, items)?), None),
            Some(Vector::Decoder(_)) => (None, Some(demonstrations()?.gather(&at, self)?)),
        };
        Ok(Batch { ids, label: self.labels(&at)?, text, scalars, neighbours, demonstrations })
    }
}

/// What the users' own labels say of all samples, [N, 2].
fn own_labels(prepared: &Prepared, delay: Delay) -> Result<Tensor> {
    let Prepared { data, histories, .. } = prepared;
    let rows = data.rows();
    let mut all = Vec::with_capacity(prepared.len() * LABEL_SCALARS);
    for sample in prepared.samples() {
        let before = histories.before(sample.row).iter().map(|row| &rows[*row as usize]);
        let known = before.filter(|row| delay.known(data.label_time(row), rows[sample.row as usize].time));
        let (mut positive, mut labels) = (0, 0);
        for row in known.filter(|row| row.label != Label::None) {
            positive += i64::from(row.label == Label::Positive);
            labels += 1;
        }
        all.extend(label_scalars(positive, labels));
    }
    Tensor::from_vec(all, (prepared.len(), LABEL_SCALARS), &Device::Cpu)
}

impl Items {
    fn of(prepared: &Prepared, vocabularies: &Vocabularies) -> Result<Self> {
        let catalog = prepared.data.catalog();
        let items = 0..prepared.data.items().len() as u32;
        let slots = items.len() + 1;
        let width = prepared.text_width;
        let most = items.clone().map(|item| catalog.categories(item).len()).max().unwrap_or_default().max(1);
        let (mut row, mut creator) = (vec![0], vec![0]);
        let mut categories = vec![0; most];
        let mut text = vec![0.0; width];
        let mut text_row = vec![0];
        for item in items {
            row.push(vocabularies.item.row(item));
            creator.push(catalog.creator(item).map_or(0, |creator| vocabularies.creator.row(creator)));
            let own = catalog.categories(item);
            categories.extend(own.iter().map(|category| vocabularies.category.row(*category)));
            categories.extend(std::iter::repeat_n(0, most - own.len()));
            match &prepared.texts[item as usize] {
                Some(vector) => text.extend(vector.iter().map(|x| f32::from(*x) / SCALE)),
                None => text.extend(std::iter::repeat_n(0.0, width)),
            }
            text_row.push(if prepared.texts[item as usize].is_some() { slot(item) } else { 0 });
        }
        let device = &Device::Cpu;
        Ok(Items {
            row: Tensor::from_vec(row, slots, device)?,
            creator: Tensor::from_vec(creator, slots, device)?,
            categories: Tensor::from_vec(categories, (slots, most), device)?,
            text: Tensor::from_vec(text, (slots, width), device)?,
            text_row: Tensor::from_vec(text_row, slots, device)?,
        })
    }

    /// The items' texts and the means of the histories' texts. Sums are exact: components are multiples of
    /// 2^-14, and no sum of a history leaves f32's 24 bits.
    fn texts(&self, slots: &Tensor, history: &Tensor) -> Result<[Tensor; 2]> {
        let rows = self.text_row.index_select(&history.flatten_all()?, 0)?.reshape(history.dims())?;
        Ok([self.text.index_select(slots, 0)?, mean(&self.text, &rows)?])
    }
}

impl NeighbourColumns {
    /// The neighbours of all samples as tensors.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn of(neighbours: Neighbours, vocabularies: &Vocabularies) -> Result<Self> {
        let Neighbours { votes, nearest: [same_item, same_user] } = neighbours;
        let count = votes.len() / VOTES;
        Ok(NeighbourColumns {
            votes: Tensor::from_vec(votes, (count, VOTES), &Device::Cpu)?,
            nearest: [
                NearestColumns::of(same_item, vocabularies, count)?,
                NearestColumns::of(same_user, vocabularies, count)?,
            ],
        })
    }

    fn gather(&self, at: &Tensor, items: &Items) -> Result<(Parties, [Gathered; SOURCES])> {
        let pick = |column: &Tensor| column.index_select(at, 0);
        let mut users = Vec::new();
        let mut slots = Vec::new();
        for nearest in &self.nearest {
            users.extend(pick(&nearest.user)?.flatten_all()?.to_vec1::<u32>()?);
            slots.extend(pick(&nearest.slot)?.flatten_all()?.to_vec1::<u32>()?);
        }
        let (users, user_places) = distinct(&users);
        let (slots, slot_places) = distinct(&slots);
        let device = &Device::Cpu;
        let half = user_places.len() / SOURCES;
        let place = |places: &[u32], source: usize| {
            let of_source = &places[source * half..(source + 1) * half];
            Tensor::from_slice(of_source, (at.dim(0)?, MAX_NEIGHBOURS), device)
        };
        let gathered = |source: usize| -> Result<Gathered> {
            let nearest = &self.nearest[source];
            Ok(Gathered {
                user: place(&user_places, source)?,
                item: place(&slot_places, source)?,
                label: pick(&nearest.label)?,
                score: pick(&nearest.score)?,
                age: pick(&nearest.age)?,
                residual: pick(&nearest.residual)?,
                there: pick(&nearest.there)?,
            })
        };
        let sources = [gathered(0)?, gathered(1)?];
        let slots = Tensor::new(slots.as_slice(), device)?;
        let parties = Parties {
            users: Tensor::new(users.as_slice(), device)?,
            items: items.row.index_select(&slots, 0)?,
            creators: items.creator.index_select(&slots, 0)?,
            categories: items.categories.index_select(&slots, 0)?,
            text: items.text.index_select(&slots, 0)?,
        };
        Ok((parties, sources))
    }
}

impl NearestColumns {
    fn of(nearest: Nearest, vocabularies: &Vocabularies, count: usize) -> Result<Self> {
        let Nearest { users, items, labels, scores, ages, residuals, there } = nearest;
        let shape = (count, MAX_NEIGHBOURS);
        let device = &Device::Cpu;
        let present = || there.iter().map(|there| *there > 0.0);
        let numbers = |values: &[u32], number: &dyn Fn(u32) -> u32| {
            let rows =
                values.iter().zip(present()).map(|(value, there)| if there { number(*value) } else { 0 });
            Tensor::from_vec(rows.collect::<Vec<u32>>(), shape, device)
        };
        Ok(NearestColumns {
            user: numbers(&users, &|user| vocabularies.user.row(user))?,
            slot: numbers(&items, &slot)?,
            label: Tensor::from_vec(labels, shape, device)?,
            score: Tensor::from_vec(scores, shape, device)?,
            age: Tensor::from_vec(ages, shape, device)?,
            residual: Tensor::from_vec(residuals, shape, device)?,
            there: Tensor::from_vec(there, shape, device)?,
        })
    }
}

/// The distinct values in ascending order, and the place of each value among them.
pub(super) fn distinct(values: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut all = values.to_vec();
    all.sort_unstable();
    all.dedup();
    let place = |value: &u32| all.partition_point(|other| other < value) as u32;
    let places = values.iter().map(place).collect();
    (all, places)
}

/// The probabilities [B] of a batch as numbers.
///
/// # Errors
/// Where they are no list.
pub fn scores(probabilities: &Tensor) -> Result<Vec<f32>> {
    probabilities.to_dtype(DType::F32)?.to_vec1()
}
