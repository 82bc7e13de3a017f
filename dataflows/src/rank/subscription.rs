//! Follows a job's topics: `epochs` say which topic its features are on, `features` fill the view, `items` and
//! `embeddings` the catalog. Committed records only: what an aborted transaction wrote is never read.
//!
//! 1. delivery: every record from the beginning, again after a start anew; the view drops duplicates;
//! 2. a switch of the outputs (promote, rollback) empties the view and reads the other topic to its end, before
//!    anything is told;
//! 3. a topic that doesn't exist, or whose end can't be reached within a minute, is `Fatal`; a store that doesn't
//!    answer is `Retry`, and the caller opens a new subscription.

use super::catalog::Catalog;
use super::followed::Followed;
use super::view::View;
use crate::names::Names;
use ictflow_connectors::topics::{Reader, Topics};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::topic::{Record, Topic};
use ictflow_schemas::wire::{Format, Wire};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Records of one poll.
const POLL: usize = 1_000;

/// How long one waits for records that stand there.
const THERE: Duration = Duration::from_millis(100);

/// How long one waits for records that may come.
const SLICE: Duration = Duration::from_millis(20);

/// Waits without a record after which an end counts as unreachable: a minute.
const PATIENCE: usize = 600;

/// What is followed.
#[derive(Clone, Debug)]
pub struct Options {
    /// The job; `None` where its topics don't say whose they are: then no switch is followed.
    pub job: Option<String>,
    /// The configured names of its topics.
    pub names: Names,
    /// How values of `items` are written.
    pub items: Format,
    /// The limits that a record of `items` must keep.
    pub semantics: Arc<Semantics>,
    /// The encoder whose text vectors are read and their width, if any are.
    pub encoder: Option<(String, usize)>,
    /// The users whose pairs are kept; all where `None`.
    pub users: Option<HashSet<String>>,
    /// The most live pairs that are kept.
    pub most: usize,
}

/// What a turn changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Users whose live pairs or vectors changed.
    pub users: BTreeSet<Id>,
    /// Whether something changed that rankers read of items: any list may be another.
    pub catalog: bool,
    /// Whether the features come from another topic now: all users changed.
    pub switched: bool,
}

/// One topic, read from its beginning.
struct Log {
    name: String,
    reader: Box<dyn Reader>,
}

impl Log {
    fn open(topics: &mut dyn Topics, name: &str) -> Result<Self> {
        let Some(partitions) = topics.partitions(name)? else {
            return Err(Error::fatal(
                "follow the topics",
                format!("topic {name} doesn't exist"),
                "has the job run yet? does the suffix fit?",
            ));
        };
        let reader = topics.reader(name, &vec![0; partitions as usize])?;
        Ok(Log { name: name.to_owned(), reader })
    }

    /// Reads what comes within a while.
    fn poll(&mut self, wait: Duration, mut keep: impl FnMut(Record) -> Result<()>) -> Result<()> {
        self.reader.poll(POLL, wait)?.into_iter().try_for_each(&mut keep)
    }

    /// Reads to the end that the topic has now.
    fn read_on(&mut self, topics: &mut dyn Topics, mut keep: impl FnMut(Record) -> Result<()>) -> Result<()> {
        let ends = topics.ends(&self.name)?;
        let mut waits = 0;
        while self.reader.positions().iter().zip(&ends).any(|(at, end)| at < end) {
            let records = self.reader.poll(POLL, THERE)?;
            waits = if records.is_empty() { waits + 1 } else { 0 };
            if waits > PATIENCE {
                return Err(Error::fatal(
                    format!("read topic {}", self.name),
                    "its end wasn't reached within a minute",
                    "is a transaction on it still open, or the store overloaded?",
                ));
            }
            records.into_iter().try_for_each(&mut keep)?;
        }
        Ok(())
    }
}

/// A subscription.
pub struct Subscription {
    topics: Box<dyn Topics>,
    options: Options,
    followed: Followed,
    epochs: Option<Log>,
    features: Log,
    items: Log,
    embeddings: Option<Log>,
    /// The newest vectors.
    pub view: View,
    /// What is known of items.
    pub catalog: Catalog,
}

impl Subscription {
    /// Reads all topics to the ends that they have now.
    ///
    /// # Errors
    /// `Fatal` where a topic doesn't exist or more pairs are live than may be kept; and what the store says.
    pub fn open(mut topics: Box<dyn Topics>, options: Options) -> Result<Self> {
        let names = &options.names;
        let mut followed = Followed::new(options.job.clone(), names.of(Topic::Features));
        // Without a log of bounds nothing was ever promoted.
        let mut epochs = match topics.partitions(names.of(Topic::Epochs))? {
            Some(_) => Some(Log::open(&mut *topics, names.of(Topic::Epochs))?),
            None => None,
        };
        if let Some(log) = &mut epochs {
            log.read_on(&mut *topics, |record| {
                follow(&mut followed, &record);
                Ok(())
            })?;
        }
        let features = Log::open(&mut *topics, followed.topic())?;
        let items = Log::open(&mut *topics, names.of(Topic::Items))?;
        let view = View::new(options.most, options.users.clone());
        let catalog = Catalog::new(options.items, options.semantics.clone(), options.encoder.clone());
        let mut subscription = Subscription {
            topics,
            options,
            followed,
            epochs,
            features,
            items,
            embeddings: None,
            view,
            catalog,
        };
        let mut touched = Touched::default();
        subscription.whole_features(&mut touched)?;
        subscription.whole_items(&mut touched)?;
        subscription.whole_embeddings(&mut touched)?;
        Ok(subscription)
    }

    /// Reads the features to their end.
    fn whole_features(&mut self, touched: &mut Touched) -> Result<()> {
        let Subscription { topics, features, view, .. } = self;
        features.read_on(&mut **topics, |record| {
            touched.users.extend(view.take(&record)?);
            Ok(())
        })
    }

    /// Reads the items to their end.
    fn whole_items(&mut self, touched: &mut Touched) -> Result<()> {
        let Subscription { topics, items, catalog, .. } = self;
        items.read_on(&mut **topics, |record| {
            touched.catalog |= catalog.take_item(&record);
            Ok(())
        })
    }

    /// Reads the embeddings to their end while a text of an item has none: from their beginning where texts are
    /// new.
    fn whole_embeddings(&mut self, touched: &mut Touched) -> Result<()> {
        let Subscription { topics, options, catalog, embeddings, .. } = self;
        if catalog.restarts() {
            *embeddings = Some(Log::open(&mut **topics, options.names.of(Topic::Embeddings))?);
        }
        match embeddings {
            Some(log) if catalog.waits() => log.read_on(&mut **topics, |record| {
                touched.catalog |= catalog.take_embedding(&record);
                Ok(())
            }),
            _ => Ok(()),
        }
    }

    /// Follows a switch of the outputs: the other topic is read to its end.
    fn whole_switch(&mut self, touched: &mut Touched, before: &str) -> Result<()> {
        touched.switched = self.followed.topic() != before;
        if touched.switched {
            self.features = Log::open(&mut *self.topics, self.followed.topic())?;
            self.view.clear();
            self.whole_features(touched)?;
        }
        Ok(())
    }

    /// Takes what came since; waits at most so long for features.
    ///
    /// # Errors
    /// As [`Subscription::open`].
    pub fn turn(&mut self, wait: Duration) -> Result<Touched> {
        let mut touched = Touched::default();
        let before = self.followed.topic().to_owned();
        let Subscription { followed, epochs, .. } = self;
        if let Some(log) = epochs {
            log.poll(SLICE, |record| {
                follow(followed, &record);
                Ok(())
            })?;
        }
        self.whole_switch(&mut touched, &before)?;
        let Subscription { features, items, view, catalog, .. } = self;
        features.poll(wait, |record| {
            touched.users.extend(view.take(&record)?);
            Ok(())
        })?;
        items.poll(SLICE, |record| {
            touched.catalog |= catalog.take_item(&record);
            Ok(())
        })?;
        self.whole_embeddings(&mut touched)?;
        Ok(touched)
    }

    /// Takes all that stands on the topics by now, and waits for nothing else.
    ///
    /// # Errors
    /// As [`Subscription::open`].
    pub fn catch_up(&mut self) -> Result<Touched> {
        let mut touched = Touched::default();
        let before = self.followed.topic().to_owned();
        let Subscription { topics, followed, epochs, .. } = self;
        if let Some(log) = epochs {
            log.read_on(&mut **topics, |record| {
                follow(followed, &record);
                Ok(())
            })?;
        }
        self.whole_switch(&mut touched, &before)?;
        self.whole_features(&mut touched)?;
        self.whole_items(&mut touched)?;
        self.whole_embeddings(&mut touched)?;
        Ok(touched)
    }

    /// The topic that the features come from.
    pub fn topic(&self) -> &str {
        self.followed.topic()
    }

    /// The store.
    pub fn topics(&mut self) -> &mut dyn Topics {
        &mut *self.topics
    }

    /// The store and what was read, for those who need both.
    pub fn parts(&mut self) -> (&mut dyn Topics, &View, &Catalog) {
        (&mut *self.topics, &self.view, &self.catalog)
    }
}

/// Takes a record of the log of bounds. One that doesn't read names no topic.
fn follow(followed: &mut Followed, record: &Record) {
    if let Some(Ok(epoch)) = record.value.as_deref().map(EpochRecord::decode) {
        followed.take(&epoch);
    }
}
