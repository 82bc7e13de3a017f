//! Publishes lists: upserts keyed by user, on a topic of the consumer's own.
//!
//! 1. delivery: at least once. The newest record of a key is the user's list; the same list isn't written twice in
//!    a row, not even over a restart;
//! 2. keys: the raw user id, on the partition that the job's topics have the user on: as many partitions as
//!    `features`, by the job's partitioner;
//! 3. a user without a live pair gets a tombstone, if a list of theirs stands there.
//!
//! **Memory**: a digest a user with a list.

use super::ranking::{Ranked, Ranking};
use crate::epochs::read_whole;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::ranking::{RankedItem, Ranking as RankingRecord};
use ictflow_schemas::topic::{HEADER_PUBLISHED_AT, NewRecord, Policy};
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeSet, HashMap};

/// Records that are appended together.
const APPENDED: usize = 500;

/// The publisher of lists.
#[derive(Debug)]
pub struct Publisher {
    topic: String,
    partitions: u32,
    partitioner: Partitioner,
    /// The version of the ranker.
    ranker: String,
    /// The digest of each user's list that stands.
    standing: HashMap<Id, blake3::Hash>,
    waiting: Vec<NewRecord>,
    /// Lists that were written.
    pub lists: u64,
    /// Tombstones that were written.
    pub tombstones: u64,
}

impl Publisher {
    /// Makes the topic where it doesn't exist, and reads which lists stand there.
    ///
    /// # Errors
    /// `Fatal` where it exists with another number of partitions; and what the store says.
    pub fn open(
        topics: &mut dyn Topics,
        topic: &str,
        (partitions, partitioner): (u32, Partitioner),
        ranker: &str,
    ) -> Result<Self> {
        topics.ensure(topic, partitions, Policy::Compact)?;
        let mut standing = HashMap::new();
        read_whole(topics, topic, |record| {
            let user = record.key.and_then(|key| String::from_utf8(key).ok());
            match (user, record.value) {
                (Some(user), Some(value)) => {
                    standing.insert(Id::from(user), blake3::hash(&value));
                }
                (Some(user), None) => drop(standing.remove(user.as_str())),
                (None, _) => {}
            }
        })?;
        Ok(Publisher {
            topic: topic.to_owned(),
            partitions,
            partitioner,
            ranker: ranker.to_owned(),
            standing,
            waiting: Vec::new(),
            lists: 0,
            tombstones: 0,
        })
    }

    /// The users whose list stands on the topic.
    pub fn users(&self) -> BTreeSet<Id> {
        self.standing.keys().cloned().collect()
    }

    /// Takes a list to be written, unless just that stands there.
    ///
    /// # Errors
    /// What the store says, or `Fatal` where the list doesn't read back.
    pub fn take(&mut self, topics: &mut dyn Topics, ranking: &Ranking, now: Millis) -> Result<()> {
        let value = (!ranking.ranked.is_empty()).then(|| self.record(ranking).encode());
        let digest = value.as_deref().map(blake3::hash);
        if self.standing.get(&ranking.user).copied() == digest {
            return Ok(());
        }
        match digest {
            Some(digest) => {
                self.lists += 1;
                self.standing.insert(ranking.user.clone(), digest);
            }
            None => {
                self.tombstones += 1;
                self.standing.remove(&ranking.user);
            }
        }
        let key = ranking.user.as_bytes().to_vec();
        self.waiting.push(NewRecord {
            topic: self.topic.clone(),
            partition: self.partitioner.partition(&key, self.partitions),
            timestamp: None,
            key: Some(key),
            value,
            headers: vec![(HEADER_PUBLISHED_AT.to_owned(), now.to_string().into_bytes())],
        });
        if self.waiting.len() >= APPENDED { self.flush(topics) } else { Ok(()) }
    }

    /// Writes what waits; it is durable when this returns.
    ///
    /// # Errors
    /// What the store says. What waits is then written by the next call.
    pub fn flush(&mut self, topics: &mut dyn Topics) -> Result<()> {
        if !self.waiting.is_empty() {
            topics.append(&self.waiting).map_err(|error| Error {
                context: format!("publish lists on {}: {}", self.topic, error.context),
                ..error
            })?;
            self.waiting.clear();
        }
        Ok(())
    }

    fn record(&self, ranking: &Ranking) -> RankingRecord {
        let item = |ranked: &Ranked| RankedItem {
            item_id: ranked.item.to_string(),
            score: ranked.score(),
            cot_status: ranked.cot_status,
            epoch: ranked.position.epoch,
            published_at: ranked.published_at,
            event_time: ranked.event_time,
            ict_weights: ranked.lineage.ict_weights.clone(),
        };
        RankingRecord {
            user_id: ranking.user.to_string(),
            ranker: self.ranker.clone(),
            ranked: ranking.ranked.iter().map(item).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::view::{Lineage, Position};
    use ictflow_connectors::local::Local;
    use ictflow_schemas::feature::{CotStatus, VectorKind};
    use std::sync::Arc;

    fn ranking(user: &str, items: &[(&str, f32)]) -> Ranking {
        let lineage = Arc::new(Lineage {
            ict_weights: "w".to_owned(),
            encoder: "e".to_owned(),
            kind: VectorKind::Attention,
        });
        let ranked = |(item, logit): &(&str, f32)| Ranked {
            item: (*item).into(),
            title: "never published".into(),
            logit: *logit,
            position: Position { epoch: 3, substep: 0 },
            published_at: Some(10),
            event_time: None,
            cot_status: CotStatus::Partial,
            k: 2,
            lineage: lineage.clone(),
        };
        Ranking { user: user.into(), live: items.len(), ranked: items.iter().map(ranked).collect() }
    }

    #[test]
    fn lists_are_written_where_they_changed_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut topics = Local::open(folder.path().join("topics.sqlite")).unwrap();
        let open =
            |topics: &mut Local| Publisher::open(topics, "lists", (3, Partitioner::Murmur2), "r").unwrap();
        let mut publisher = open(&mut topics);
        for (lists, tombstones, list) in [
            (1, 0, ranking("u", &[("a", 1.0), ("b", 0.0)])),
            (1, 0, ranking("u", &[("a", 1.0), ("b", 0.0)])),
            (1, 0, ranking("v", &[])),
            (2, 0, ranking("v", &[("a", 1.0)])),
            (3, 0, ranking("u", &[("b", 2.0)])),
            (3, 1, ranking("v", &[])),
        ] {
            publisher.take(&mut topics, &list, 77).unwrap();
            assert_eq!((publisher.lists, publisher.tombstones), (lists, tombstones));
        }
        publisher.flush(&mut topics).unwrap();
        let mut again = open(&mut topics);
        assert_eq!(again.users(), BTreeSet::from([Id::from("u")]));
        again.take(&mut topics, &ranking("u", &[("b", 2.0)]), 78).unwrap();
        again.flush(&mut topics).unwrap();
        assert_eq!(again.lists, 0);

        let mut records = Vec::new();
        read_whole(&mut topics, "lists", |record| records.push(record)).unwrap();
        assert_eq!(records.len(), 4);
        for record in &records {
            let key = record.key.as_deref().unwrap();
            assert_eq!(record.partition, Partitioner::Murmur2.partition(key, 3));
            assert_eq!(record.number(HEADER_PUBLISHED_AT), Some(77));
        }
        let of_user =
            records.iter().rev().find(|record| record.key.as_deref() == Some(b"u".as_slice())).unwrap();
        let list = RankingRecord::decode(of_user.value.as_deref().unwrap()).unwrap();
        assert_eq!((list.user_id.as_str(), list.ranker.as_str(), list.ranked.len()), ("u", "r", 1));
        let first = &list.ranked[0];
        assert_eq!((first.item_id.as_str(), first.epoch, first.cot_status), ("b", 3, CotStatus::Partial));
        assert!((first.score - 0.880_797).abs() < 1e-6);
    }
}
