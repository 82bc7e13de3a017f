//! The producer's side of the demo: what it writes to the inputs, and what it remembers of them.

use super::movielens::{Rating, events};
use crate::job::Job;
use crate::names::Names;
use ictflow_connectors::Result;
use ictflow_connectors::topics::Topics;
use ictflow_schemas::Millis;
use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};

/// Ratings between two edits of the catalog, and of a batch where nothing is measured.
pub const BATCH_RATINGS: usize = 500;

/// Films of a candidate set beside those that are rated.
const OTHERS: usize = 20;

/// Partitions of the demo's topics.
pub const PARTITIONS: u32 = 4;

/// What the producer's side of the demo remembers.
pub struct Replay {
    /// The films as they stand.
    pub catalog: BTreeMap<String, Item>,
    rated: BTreeMap<String, BTreeSet<String>>,
    /// Film ids in a fixed order, from which others are offered.
    ids: Vec<String>,
    offered: usize,
    time: Millis,
    /// Ratings that were written.
    written: usize,
    /// The edits that were due by then.
    edits: usize,
    /// How many will be.
    all_edits: usize,
}

impl Replay {
    /// Before the first of so many ratings.
    pub fn new(items: &BTreeMap<String, Item>, ratings: usize) -> Self {
        Replay {
            catalog: items.clone(),
            rated: BTreeMap::new(),
            ids: items.keys().cloned().collect(),
            offered: 0,
            time: 0,
            written: 0,
            edits: 0,
            all_edits: ratings.div_ceil(BATCH_RATINGS),
        }
    }

    /// Films that a user hasn't rated and that exist, going round the catalog.
    fn others(&mut self, user: &str, besides: &BTreeSet<String>) -> Vec<String> {
        let mut others = Vec::new();
        let rated = self.rated.get(user);
        for _ in 0..self.ids.len() {
            if others.len() == OTHERS {
                break;
            }
            // A step that is coprime to most sizes spreads the offers over the catalog.
            self.offered = (self.offered + 7) % self.ids.len();
            let id = &self.ids[self.offered];
            let seen = rated.is_some_and(|rated| rated.contains(id)) || besides.contains(id);
            if !seen && self.catalog.contains_key(id) && !others.contains(id) {
                others.push(id.clone());
            }
        }
        others
    }
}

/// Writes the demo's input records.
pub struct Producer {
    topics: Box<dyn Topics>,
    names: Names,
}

impl Producer {
    /// A producer on a store, with the topics' names.
    pub fn new(topics: Box<dyn Topics>, names: Names) -> Self {
        Producer { topics, names }
    }

    fn record(
        &self,
        topic: Topic,
        key: &str,
        value: Option<Vec<u8>>,
        timestamp: Option<Millis>,
    ) -> NewRecord {
        NewRecord {
            topic: self.names.of(topic).to_owned(),
            partition: Partitioner::default().partition(key.as_bytes(), PARTITIONS),
            timestamp,
            key: Some(key.as_bytes().to_vec()),
            value,
            headers: Vec::new(),
        }
    }

    /// Makes the inputs and writes the catalog.
    ///
    /// # Errors
    /// What the store says, here and below.
    pub fn catalog(&mut self, items: &BTreeMap<String, Item>) -> Result<()> {
        for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
            self.topics.ensure(self.names.of(topic), PARTITIONS, topic.policy())?;
        }
        let records: Vec<NewRecord> =
            items.iter().map(|(id, item)| self.record(Topic::Items, id, Some(item.encode()), None)).collect();
        self.topics.append(&records)
    }

    /// Writes an item, or its deletion.
    pub fn item(&mut self, id: &str, item: Option<&Item>) -> Result<()> {
        let record = self.record(Topic::Items, id, item.map(Wire::encode), None);
        self.topics.append(&[record])
    }

    fn set(&self, user: &str, computed_at: Millis, items: Vec<String>) -> NewRecord {
        let value = Candidates { computed_at, items }.encode();
        self.record(Topic::Candidates, user, Some(value), Some(computed_at))
    }

    /// Offers every user of a batch the films that will be rated, and some others.
    pub fn offer(&mut self, replay: &mut Replay, ratings: &[Rating]) -> Result<()> {
        let mut rated: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for rating in ratings {
            rated.entry(&rating.user).or_default().insert(rating.item.clone());
        }
        let start = ratings.first().map_or(0, |rating| rating.time);
        let mut records = Vec::new();
        for (user, items) in rated {
            let others = replay.others(user, &items);
            records.push(self.set(user, start - 1, items.iter().cloned().chain(others).collect()));
            replay.rated.entry(user.to_owned()).or_default().extend(items);
        }
        self.topics.append(&records)
    }

    /// Writes the events of a batch, which comes after those before.
    pub fn rate(&mut self, replay: &mut Replay, ratings: &[Rating]) -> Result<()> {
        let mut records = Vec::new();
        for (number, rating) in (replay.written..).zip(ratings) {
            for event in events(number, rating) {
                records.push(self.record(
                    Topic::Interactions,
                    &rating.user,
                    Some(event.encode()),
                    Some(rating.time),
                ));
            }
        }
        replay.written += ratings.len();
        replay.time = ratings.last().map_or(replay.time, |rating| rating.time);
        self.topics.append(&records)
    }

    /// The catalog lives: edits are due each [`BATCH_RATINGS`] ratings. Price-like ones all the time, text edits and
    /// deletes now and then.
    pub fn edit(&mut self, replay: &mut Replay, job: &Job) -> Result<()> {
        let due = replay.written.saturating_sub(1) / BATCH_RATINGS;
        if due == replay.edits {
            return Ok(());
        }
        replay.edits = due;
        let pick = |offset: usize| replay.ids[(due * 13 + offset) % replay.ids.len()].clone();
        let (priced, retitled, deleted) = (pick(0), pick(5), pick(9));
        if let Some(item) = replay.catalog.get_mut(&priced) {
            item.attributes.insert("price".to_owned(), format!("{}.99", due % 30));
            let item = item.clone();
            self.item(&priced, Some(&item))?;
        }
        if due.is_multiple_of(10)
            && let Some(item) = replay.catalog.get_mut(&retitled)
        {
            item.description = Some(format!("Now in its edition of day {due}."));
            let item = item.clone();
            self.item(&retitled, Some(&item))?;
        }
        // Films that a demonstration is about stay, so that the end shows all K.
        let used = job.demonstrations().iter().any(|c| *c.item == *deleted);
        if due.is_multiple_of(20)
            && due + 1 < replay.all_edits
            && !used
            && replay.catalog.remove(&deleted).is_some()
        {
            self.item(&deleted, None)?;
        }
        Ok(())
    }

    /// A last set of films not seen, for every user.
    pub fn last_sets(&mut self, replay: &mut Replay) -> Result<()> {
        let users: Vec<String> = replay.rated.keys().cloned().collect();
        let mut records = Vec::new();
        for user in users {
            let others = replay.others(&user, &BTreeSet::new());
            records.push(self.set(&user, replay.time, others));
        }
        self.topics.append(&records)
    }
}
