//! The schemas that were fetched, by id and topic: a bounded number, and unknown ids for a while.

use super::client::{Client, Found};
use super::resolve::Reading;
use crate::Result;
use ictflow_schemas::topic::Topic;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// So many unknown ids at a time are asked again after a pause. Of more than that a lagging replica
/// isn't the reason, and whoever sends made-up ids must not hold the log up with pauses.
const CONFIRMED: usize = 16;

/// How each id's values are read, fetched at first use.
pub(super) struct Schemas {
    client: Client,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<(u32, Topic), Entry>,
    /// Counts uses, to tell the oldest.
    uses: u64,
}

struct Entry {
    /// `None`: the registry doesn't know the id.
    reading: Option<Arc<Reading>>,
    /// When an unknown id is asked again.
    until: Option<Instant>,
    used: u64,
}

impl Kept {
    fn get(&mut self, key: (u32, Topic), now: Instant) -> Option<Option<Arc<Reading>>> {
        self.uses += 1;
        let entry = self.entries.get_mut(&key)?;
        if entry.until.is_some_and(|until| until <= now) {
            return None;
        }
        entry.used = self.uses;
        Some(entry.reading.clone())
    }

    /// Keeps an entry; of more than `limit` the one that wasn't used for longest goes.
    fn put(
        &mut self,
        key: (u32, Topic),
        reading: Option<Arc<Reading>>,
        until: Option<Instant>,
        limit: usize,
    ) {
        self.uses += 1;
        self.entries.insert(key, Entry { reading, until, used: self.uses });
        while self.entries.len() > limit {
            let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(key, _)| *key) else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}

impl Schemas {
    pub(super) fn new(client: Client) -> Self {
        Schemas { client, kept: Mutex::default() }
    }

    /// How many ids are taken as unknown now.
    fn unknown(&self) -> usize {
        let (kept, now) = (self.kept.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        kept.entries.values().filter(|entry| entry.until.is_some_and(|until| until > now)).count()
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// How values of an id are read as records of a topic, `None` where the registry doesn't know it.
    ///
    /// # Errors
    /// `Fatal` where the registry can't be asked within the limits.
    pub(super) fn reading(&self, topic: Topic, id: u32) -> Result<Option<Arc<Reading>>> {
        let key = (id, topic);
        // Whoever panicked under the lock left at most one entry fewer.
        if let Some(known) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(key, Instant::now())
        {
            return Ok(known);
        }
        let config = self.client.config();
        let mut found = self.client.schema(id)?;
        if found == Found::Unknown && self.unknown() < CONFIRMED {
            // A replica of the registry may lag behind the one that gave the id away.
            std::thread::sleep(config.pause(1, None));
            found = self.client.schema(id)?;
        }
        let reading = match found {
            Found::Unknown => None,
            Found::TooLarge => Some(Reading::Never("its schema is beyond registry.max_schema_bytes".into())),
            Found::Schema(stored) if !stored.avro => Some(Reading::Never("its schema isn't of Avro".into())),
            Found::Schema(stored) if stored.references => {
                Some(Reading::Never("its schema refers to other subjects, which isn't supported".into()))
            }
            Found::Schema(stored) => Some(Reading::new(topic, &stored.text)),
        };
        let counts = self.client.counts();
        match &reading {
            None => {
                counts.unknown_ids.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(id, topic = topic.name(), "the schema registry doesn't know this id");
            }
            Some(Reading::Never(problem)) => {
                tracing::warn!(id, topic = topic.name(), problem, "values of this schema can't be read");
            }
            Some(_) => tracing::info!(id, topic = topic.name(), "took in a schema"),
        }
        counts.schemas.fetch_add(1, Ordering::Relaxed);
        let reading = reading.map(Arc::new);
        let until = reading.is_none().then(|| Instant::now() + config.unknown_for());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(key, reading.clone(), until, config.cache_schemas);
        Ok(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const TOPIC: Topic = Topic::Items;

    #[test]
    fn the_cache_holds_its_limit_and_forgets_the_one_unused_for_longest() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        let some = || Some(Arc::new(Reading::Never("x".into())));
        for id in 0..3 {
            kept.put((id, TOPIC), some(), None, 3);
        }
        assert_eq!(kept.entries.len(), 3);
        assert!(kept.get((0, TOPIC), now).is_some());
        kept.put((3, TOPIC), some(), None, 3);
        assert_eq!(kept.entries.len(), 3);
        assert!(kept.get((1, TOPIC), now).is_none(), "1 wasn't used for longest");
        assert!([0, 2, 3].into_iter().all(|id| kept.get((id, TOPIC), now).is_some()));
        assert!(kept.get((0, Topic::Candidates), now).is_none(), "another topic is another reading");
    }

    #[test]
    fn an_unknown_id_is_asked_again_after_its_time() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        let until = now + Duration::from_secs(60);
        kept.put((7, TOPIC), None, Some(until), 1);
        assert!(matches!(kept.get((7, TOPIC), now), Some(None)));
        assert!(kept.get((7, TOPIC), until).is_none());
    }
}
