//! The newest vector of every live pair, from the records of the feature topic.
//!
//! **Computes**: by (user, item) the record with the greatest position (epoch, substep); a null value takes the
//! pair away.
//!
//! **Duplicates**: a record at or before the position of its pair's is dropped and counted, and so is one of a
//! pair that isn't here at or before its partition's newest tombstone: records of a partition rise in position,
//! so it was there before.
//!
//! **Unreadable** values take their pair away: its vector is known to be of the past. Records without the headers
//! of a job aren't ours, and are left alone. Both are counted.
//!
//! **Memory**: of a pair 4 B a component of its vector and a vote, and about 200 B; a history once for all of a
//! user's pairs that have the same. A limit on pairs holds at any moment.

use ictflow_connectors::{Error, Result};
use ictflow_schemas::feature::{CotStatus, Feature, VectorKind};
use ictflow_schemas::framing::unframe;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_PUBLISHED_AT, HEADER_SUBSTEP, Record};
use ictflow_schemas::wire::Wire;
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Where a record stands in its job's commits: with its key it names a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch. A backfill's are below zero, so all that the job writes after a promote is newer.
    pub epoch: i64,
    /// The place in the epoch's transaction.
    pub substep: i64,
}

/// A history with its labels, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserHistory {
    /// The items.
    pub items: Vec<Id>,
    /// 1, 0, or −1 for none; empty on records of before the field existed.
    pub labels: Vec<i32>,
}

/// What made a vector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage {
    /// The version of the ICT weights.
    pub ict_weights: String,
    /// The encoder.
    pub encoder: String,
    /// The kind of the vector.
    pub kind: VectorKind,
}

/// What is kept of a pair's newest feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// Where its record stands.
    pub position: Position,
    /// When it was published, by the job's clock.
    pub published_at: Option<Millis>,
    /// The newest history entry's time.
    pub event_time: Option<Millis>,
    /// How complete its demonstrations are.
    pub cot_status: CotStatus,
    /// How many it has.
    pub k: i32,
    /// The vector.
    pub ict: Box<[f32]>,
    /// The votes; empty where the record has none.
    pub votes: Box<[f32]>,
    /// The user's history.
    pub history: Arc<UserHistory>,
    /// What made it.
    pub lineage: Arc<Lineage>,
}

/// Records by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Vectors that were taken.
    pub upserts: u64,
    /// Tombstones that were taken.
    pub tombstones: u64,
    /// Records that were there before.
    pub duplicates: u64,
    /// Records of keys or without headers that no job writes.
    pub foreign: u64,
    /// Values that don't read.
    pub unreadable: u64,
}

/// The view.
#[derive(Debug)]
pub struct View {
    users: HashMap<Id, BTreeMap<Id, Vector>>,
    pairs: usize,
    most: usize,
    only: Option<HashSet<String>>,
    /// By partition, the newest tombstone.
    gone: BTreeMap<u32, Position>,
    lineages: HashSet<Arc<Lineage>>,
    /// What became of records, of the users that are kept.
    pub counts: Counts,
}

/// Lineages that are kept at most beside those in use.
const LINEAGES: usize = 64;

impl View {
    /// An empty view of at most so many pairs, of these users or of all.
    pub fn new(most: usize, only: Option<HashSet<String>>) -> Self {
        View {
            users: HashMap::new(),
            pairs: 0,
            most,
            only,
            gone: BTreeMap::new(),
            lineages: HashSet::new(),
            counts: Counts::default(),
        }
    }

    /// Forgets everything but the counts: another topic begins.
    pub fn clear(&mut self) {
        self.users.clear();
        self.gone.clear();
        self.lineages.clear();
        self.pairs = 0;
    }

    /// Takes a record. Gives its user where the user's pairs changed.
    ///
    /// # Errors
    /// `Fatal` where one more pair is live than may be kept.
    pub fn take(&mut self, record: &Record) -> Result<Option<Id>> {
        let Some((user, item)) = pair(record) else {
            self.counts.foreign += 1;
            return Ok(None);
        };
        if self.only.as_ref().is_some_and(|only| !only.contains(user)) {
            return Ok(None);
        }
        let Some(position) = position(record) else {
            self.counts.foreign += 1;
            return Ok(None);
        };
        let known = self.users.get(user).and_then(|pairs| pairs.get(item)).map(|vector| vector.position);
        if known
            .or_else(|| self.gone.get(&record.partition).copied())
            .is_some_and(|newest| newest >= position)
        {
            self.counts.duplicates += 1;
            return Ok(None);
        }
        let user = Id::from(user);
        let Some(value) = record.value.as_deref() else {
            self.counts.tombstones += 1;
            let gone = self.gone.entry(record.partition).or_insert(position);
            *gone = position.max(*gone);
            return Ok(self.remove(&user, item).then_some(user));
        };
        let feature = Feature::decode(value).ok();
        let fits = |feature: &Feature| *feature.user_id == *user && feature.item_id == item;
        let Some(feature) = feature.filter(fits) else {
            self.counts.unreadable += 1;
            return Ok(self.remove(&user, item).then_some(user));
        };
        self.counts.upserts += 1;
        let vector = self.vector(&user, feature, position, record.number(HEADER_PUBLISHED_AT));
        if self.users.entry(user.clone()).or_default().insert(item.into(), vector).is_none() {
            self.pairs += 1;
        }
        if self.pairs > self.most {
            return Err(Error::fatal(
                "keep the newest vectors",
                format!("more than {} pairs are live", self.most),
                "choose users by --user, or raise --max-pairs where the memory is there",
            ));
        }
        Ok(Some(user))
    }

    /// What is kept of a feature; shares what others of the user and of its making have.
    fn vector(
        &mut self,
        user: &str,
        feature: Feature,
        position: Position,
        published_at: Option<Millis>,
    ) -> Vector {
        let history = UserHistory {
            items: feature.history.into_iter().map(Id::from).collect(),
            labels: feature.history_labels,
        };
        let others = self.users.get(user).into_iter().flat_map(|pairs| pairs.values());
        let same = others.map(|vector| &vector.history).find(|other| ***other == history).cloned();
        Vector {
            position,
            published_at,
            event_time: feature.event_time,
            cot_status: feature.cot_status,
            k: feature.k,
            ict: feature.ict.into(),
            votes: feature.votes.into(),
            history: same.unwrap_or_else(|| Arc::new(history)),
            lineage: self.lineage(Lineage {
                ict_weights: feature.ict_weights,
                encoder: feature.encoder,
                kind: feature.vector_kind,
            }),
        }
    }

    fn lineage(&mut self, lineage: Lineage) -> Arc<Lineage> {
        if let Some(known) = self.lineages.get(&lineage) {
            return known.clone();
        }
        if self.lineages.len() >= LINEAGES {
            self.lineages.retain(|lineage| Arc::strong_count(lineage) > 1);
        }
        let lineage = Arc::new(lineage);
        self.lineages.insert(lineage.clone());
        lineage
    }

    fn remove(&mut self, user: &str, item: &str) -> bool {
        let Some(pairs) = self.users.get_mut(user) else { return false };
        let was = pairs.remove(item).is_some();
        if pairs.is_empty() {
            self.users.remove(user);
        }
        self.pairs -= usize::from(was);
        was
    }

    /// The newest vector of a pair.
    pub fn get(&self, user: &str, item: &str) -> Option<&Vector> {
        self.users.get(user)?.get(item)
    }

    /// A user's live pairs, by item.
    pub fn of_user(&self, user: &str) -> impl Iterator<Item = (&Id, &Vector)> {
        self.users.get(user).into_iter().flatten()
    }

    /// The users with live pairs, in the order of their ids.
    pub fn users(&self) -> BTreeSet<Id> {
        self.users.keys().cloned().collect()
    }

    /// All vectors, in no order.
    pub fn vectors(&self) -> impl Iterator<Item = &Vector> {
        self.users.values().flat_map(BTreeMap::values)
    }

    /// How many pairs are live.
    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }
}

/// The user and item of a record's key.
fn pair(record: &Record) -> Option<(&str, &str)> {
    let parts = unframe(record.key.as_deref()?)?;
    let [user, item] = parts[..] else { return None };
    Some((std::str::from_utf8(user).ok()?, std::str::from_utf8(item).ok()?))
}

fn position(record: &Record) -> Option<Position> {
    Some(Position { epoch: record.number(HEADER_EPOCH)?, substep: record.number(HEADER_SUBSTEP)? })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ictflow_schemas::feature::feature_key;

    /// A feature without demonstrations.
    pub fn feature(user: &str, item: &str, ict: &[f32]) -> Feature {
        Feature {
            user_id: user.to_owned(),
            item_id: item.to_owned(),
            ict: ict.to_vec(),
            demonstrations: vec![],
            k: 0,
            history: vec!["h1".to_owned(), "h2".to_owned()],
            cot_status: CotStatus::None,
            cot_created_at: None,
            ict_weights: "w".to_owned(),
            encoder: "e".to_owned(),
            prompt_version: "p".to_owned(),
            llm_model: "m".to_owned(),
            event_time: Some(1_000),
            votes: vec![],
            neighbours: vec![],
            vector_kind: VectorKind::Attention,
            history_labels: vec![1, 0],
        }
    }

    /// A record of partition 0 as a job publishes it; a tombstone without a value.
    pub fn record(
        (user, item): (&str, &str),
        value: Option<Vec<u8>>,
        (epoch, substep): (i64, i64),
    ) -> Record {
        let headers = [(HEADER_EPOCH, epoch), (HEADER_SUBSTEP, substep), (HEADER_PUBLISHED_AT, 5_000)];
        Record {
            partition: 0,
            offset: 0,
            timestamp: None,
            key: Some(feature_key(user, item)),
            value,
            framed: None,
            headers: headers.map(|(name, n)| (name.to_owned(), n.to_string().into_bytes())).to_vec(),
        }
    }

    /// An upsert of a vector of one component.
    pub fn upsert(user: &str, item: &str, x: f32, position: (i64, i64)) -> Record {
        record((user, item), Some(feature(user, item, &[x]).encode()), position)
    }

    fn first(view: &View, user: &str, item: &str) -> Option<f32> {
        view.get(user, item).map(|vector| vector.ict[0])
    }

    #[test]
    fn the_newest_vector_of_each_pair_stands_until_its_tombstone() {
        let mut view = View::new(10, None);
        let mut take = |record: Record| view.take(&record).unwrap();
        assert_eq!(take(upsert("u", "a", 1.0, (1, 0))), Some("u".into()));
        assert_eq!(take(upsert("u", "b", 2.0, (1, 1))), Some("u".into()));
        assert_eq!(take(upsert("u", "a", 3.0, (2, 0))), Some("u".into()));
        assert_eq!(take(record(("u", "b"), None, (2, 1))), Some("u".into()));
        assert_eq!(take(record(("v", "b"), None, (2, 2))), None, "it wasn't here");
        assert_eq!(first(&view, "u", "a"), Some(3.0));
        assert_eq!((first(&view, "u", "b"), view.len()), (None, 1));
        assert_eq!(view.take(&record(("u", "a"), None, (3, 0))).unwrap(), Some("u".into()));
        assert!(view.is_empty() && view.users().is_empty());
        let counts = Counts { upserts: 3, tombstones: 3, ..Counts::default() };
        assert_eq!(view.counts, counts);
    }

    #[test]
    fn what_was_there_before_changes_nothing_also_after_a_tombstone() {
        let mut view = View::new(10, None);
        let records = [
            upsert("u", "a", 1.0, (-3, 7)),
            upsert("u", "b", 1.0, (1, 0)),
            upsert("u", "a", 2.0, (1, 1)),
            record(("u", "b"), None, (2, 0)),
            upsert("u", "c", 1.0, (2, 1)),
        ];
        for record in &records {
            assert!(view.take(record).unwrap().is_some());
        }
        for record in &records {
            assert_eq!(view.take(record).unwrap(), None);
        }
        assert_eq!(view.counts.duplicates, 5);
        assert_eq!((first(&view, "u", "a"), first(&view, "u", "b")), (Some(2.0), None));
        // Of one epoch the later substep is newer.
        view.take(&upsert("u", "a", 9.0, (1, 2))).unwrap();
        assert_eq!(first(&view, "u", "a"), Some(9.0));
        // A tombstone of one partition says nothing of another's records.
        let mut other = upsert("w", "a", 1.0, (1, 5));
        other.partition = 1;
        assert_eq!(view.take(&other).unwrap(), Some("w".into()));
        view.clear();
        assert_eq!(view.take(&records[1]).unwrap(), Some("u".into()), "another topic begins anew");
    }

    #[test]
    fn strangers_and_damage_are_counted_and_a_damaged_value_takes_its_pair() {
        let mut view = View::new(10, None);
        view.take(&upsert("u", "a", 1.0, (1, 0))).unwrap();
        let plain = Record { headers: vec![], ..upsert("u", "a", 2.0, (2, 0)) };
        let keyless = Record { key: Some(b"u".to_vec()), ..upsert("u", "a", 2.0, (2, 0)) };
        for stranger in [plain, keyless] {
            assert_eq!(view.take(&stranger).unwrap(), None);
        }
        assert_eq!((view.counts.foreign, first(&view, "u", "a")), (2, Some(1.0)));
        let of_another = record(("u", "a"), Some(feature("u", "b", &[1.0]).encode()), (2, 0));
        assert_eq!(view.take(&of_another).unwrap(), Some("u".into()));
        assert_eq!(view.take(&record(("u", "c"), Some(vec![1, 2]), (2, 1))).unwrap(), None);
        assert_eq!((view.counts.unreadable, view.len()), (2, 0));
    }

    #[test]
    fn users_are_chosen_pairs_are_limited_and_histories_shared() {
        let mut view = View::new(2, Some(HashSet::from(["u".to_owned()])));
        assert_eq!(view.take(&upsert("v", "a", 1.0, (1, 0))).unwrap(), None);
        for (item, substep) in [("a", 1), ("b", 2), ("a", 3)] {
            view.take(&upsert("u", item, 1.0, (1, substep))).unwrap();
        }
        let vectors: Vec<&Vector> = view.vectors().collect();
        let [one, other] = vectors[..] else { panic!("two pairs") };
        assert!(Arc::ptr_eq(&one.history, &other.history) && Arc::ptr_eq(&one.lineage, &other.lineage));
        assert_eq!((one.published_at, one.event_time), (Some(5_000), Some(1_000)));
        let full = view.take(&upsert("u", "c", 1.0, (1, 4))).unwrap_err().to_string();
        assert!(full.contains("more than 2 pairs are live") && full.contains("--max-pairs"), "{full}");
    }
}
