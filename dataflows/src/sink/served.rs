//! What stood on `features` for impressions whose examples may still change.
//!
//! The dataflow answers an impression in the epoch that brings it; its label comes later, and may be
//! corrected until the example is final. Until then what stood waits here, and goes out with every record
//! of the example. It is in no snapshot: after a restart it is known of the examples that stand on the topic
//! with it, and no more of impressions that wait for their label.
//!
//! Memory: an impression that isn't final and whose pair had a feature, with its key: 4 bytes a component of
//! the vector, 16 an id of a demonstration or neighbour, 36 of votes; about 2 KiB with a vector of 256
//! components and all 64 neighbours.

use ictflow_operators::examples::is_final;
use ictflow_operators::features::served::{ServedUpdate, Stood};
use ictflow_schemas::Millis;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::{ExampleRecord, Served};
use ictflow_schemas::framing::unframe;
use ictflow_schemas::wire::Wire;
use std::collections::BTreeMap;

/// By partition, event time and key of the example: the epoch that published the feature, and what it was.
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<(u32, Millis, Vec<u8>), (i64, Stood)>);

impl Kept {
    /// Notes what stood for an impression, published by this epoch.
    pub fn note(&mut self, partition: u32, epoch: i64, update: &ServedUpdate) {
        let identity = &update.shown.identity;
        let key = identity.frame().into_bytes();
        self.0.insert((partition, identity.event_time, key), (epoch, update.stood.clone()));
    }

    /// Notes what the newest record of an example says.
    pub fn seed(&mut self, partition: u32, key: &[u8], record: Option<&ExampleRecord>) {
        let Some(time) = super::time_of_example(key) else { return };
        let served = record.and_then(|record| record.served.as_ref());
        let place = (partition, time, key.to_vec());
        match served.and_then(|served| Some((served.epoch, Stood::of(served)?))) {
            Some(stood) => self.0.insert(place, stood),
            None => self.0.remove(&place),
        };
    }

    /// What stood for an example.
    pub fn of(&self, partition: u32, key: &[u8]) -> Option<Served> {
        let time = super::time_of_example(key)?;
        self.0.get(&(partition, time, key.to_vec())).map(|(epoch, stood)| stood.record(*epoch))
    }

    /// An example's value with what stood.
    pub fn attach(&self, partition: u32, key: &[u8], value: Vec<u8>) -> Vec<u8> {
        let Some(served) = self.of(partition, key) else { return value };
        match ExampleRecord::decode(&value) {
            Ok(record) => ExampleRecord { served: Some(served), ..record }.encode(),
            // It was encoded by this process.
            Err(_) => value,
        }
    }

    /// Forgets an example that goes.
    pub fn forget(&mut self, partition: u32, key: &[u8]) {
        if let Some(time) = super::time_of_example(key) {
            self.0.remove(&(partition, time, key.to_vec()));
        }
    }

    /// Forgets a user.
    pub fn erase(&mut self, user: &str) {
        let of_user =
            |key: &[u8]| unframe(key).and_then(|parts| parts.first().copied()) == Some(user.as_bytes());
        self.0.retain(|(_, _, key), _| !of_user(key));
    }

    /// Forgets the examples that are final: they have their last value.
    pub fn prune(&mut self, maxima: &[Millis], semantics: &Semantics) {
        for (partition, maximum) in (0_u32..).zip(maxima) {
            let from = (partition, Millis::MIN, Vec::new());
            while let Some((place, _)) = self.0.range(from.clone()..).next()
                && place.0 == partition
                && is_final(place.1, *maximum, semantics)
            {
                let place = place.clone();
                self.0.remove(&place);
            }
        }
    }

    /// How many impressions it knows.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
