//! The topic of vectors that weights make which stand beside those that serve.
//!
//! Its records are those of `features`, key by key, with the vector and the version of the shadow; they are
//! written in the same transactions. What stood before a start is put right as on `features`: by the difference.
//! Without a shadow nothing stands on it. It is for whoever compares two models before one is switched to: no
//! value of another output depends on it, `verify` doesn't judge it, and a backfill has none.
//!
//! Memory: a digest a feature.

use crate::epochs::read_whole;
use ictflow_connectors::Result;
use ictflow_connectors::topics::Topics;
use ictflow_operators::features::FeatureUpdate;
use ictflow_schemas::feature::feature_key;
use ictflow_schemas::framing::unframe;
use ictflow_schemas::topic::NewRecord;
use std::collections::{BTreeSet, HashMap};

/// How near the vectors of both are, over the pairs that an epoch touched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Pairs with both.
    pub pairs: u64,
    /// The mean of their cosines.
    pub mean: f64,
    /// The least of them.
    pub least: f64,
}

/// What stands on the topic.
pub struct Shadow {
    topic: String,
    standing: HashMap<Vec<u8>, [u8; 16]>,
    agreement: Option<Agreement>,
}

fn digest(value: &[u8]) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(value).as_bytes()[..16]);
    digest
}

impl Shadow {
    /// Reads what stands.
    ///
    /// # Errors
    /// What the store says.
    pub fn open(topics: &mut dyn Topics, topic: &str) -> Result<Self> {
        let mut standing = HashMap::new();
        read_whole(topics, topic, |record| {
            let Some(key) = record.key else { return };
            match record.value {
                Some(value) => standing.insert(key, digest(&value)),
                None => standing.remove(&key),
            };
        })?;
        Ok(Shadow { topic: topic.to_owned(), standing, agreement: None })
    }

    /// The agreement in the last epoch that touched a pair with both vectors.
    pub fn agreement(&self) -> Option<Agreement> {
        self.agreement
    }

    /// Brings what stands to what these updates say; where they are the first ones, they name every live pair, and
    /// what they don't name goes.
    pub fn follow<'u>(
        &mut self,
        updates: impl Iterator<Item = &'u FeatureUpdate> + Clone,
        first: bool,
        partition: impl Fn(&[u8]) -> u32,
        records: &mut Vec<NewRecord>,
    ) {
        let mut leftover = if first { self.standing.clone() } else { HashMap::new() };
        for update in updates.clone() {
            let key = feature_key(&update.user, &update.item);
            let user = update.user.as_bytes();
            leftover.remove(&key);
            let value = update.shadow.as_ref().map(|shadow| &*shadow.value);
            let changed = match value {
                Some(value) => {
                    let digest = digest(value);
                    self.standing.insert(key.clone(), digest) != Some(digest)
                }
                None => self.standing.remove(&key).is_some(),
            };
            if changed {
                records.push(self.record(partition(user), key, value.map(<[u8]>::to_vec)));
            }
        }
        let leftover: BTreeSet<Vec<u8>> = leftover.into_keys().collect();
        for key in leftover {
            let user = unframe(&key).and_then(|parts| parts.first().map(|user| user.to_vec()));
            self.standing.remove(&key);
            records.push(self.record(partition(&user.unwrap_or_default()), key, None));
        }
        self.note(updates);
    }

    fn note<'u>(&mut self, updates: impl Iterator<Item = &'u FeatureUpdate>) {
        let cosines = updates.filter_map(|update| Some(f64::from(update.shadow.as_ref()?.cosine) / 1e6));
        let (pairs, sum, least) = cosines.fold((0_u64, 0.0, f64::INFINITY), |(pairs, sum, least), cosine| {
            (pairs + 1, sum + cosine, cosine.min(least))
        });
        if pairs > 0 {
            self.agreement = Some(Agreement { pairs, mean: sum / pairs as f64, least });
        } else if self.standing.is_empty() {
            self.agreement = None;
        }
    }

    fn record(&self, partition: u32, key: Vec<u8>, value: Option<Vec<u8>>) -> NewRecord {
        NewRecord {
            topic: self.topic.clone(),
            partition,
            timestamp: None,
            key: Some(key),
            value,
            headers: Vec::new(),
        }
    }
}
