//! What a job knew at each of its epochs, from the logs alone.
//!
//! The recorded epochs are run again one by one, as they were cut, through the same dataflow, which computes
//! no feature meanwhile. So for every label, engagement and demonstration it is known in which epoch it came.
//!
//! Memory: all examples with their histories, the identities of all impressions and engagements, every
//! demonstration that ever stood, the catalog.

use crate::cluster::Cluster;
use crate::engine::Engine;
use crate::pipeline::{EpochInput, EpochOutput};
use crate::recompute::Plan;
use crate::sources::{Harvest, Judge, Source};
use crate::texts::Texts;
use ictflow_connectors::Result;
use ictflow_connectors::topics::Topics;
use ictflow_operators::Changes;
use ictflow_operators::catalog::{self, Catalog};
use ictflow_operators::clock::Clock;
use ictflow_operators::index::set;
use ictflow_operators::vectors::{self, Vectors};
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::epoch::EpochRecord;
use ictflow_schemas::example::Example;
use ictflow_schemas::history::Identity;
use ictflow_schemas::interaction::Event;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// The inputs that decide what is known of examples; candidates only say who is served.
const READ: [Topic; 4] = [Topic::Items, Topic::Embeddings, Topic::Cot, Topic::Interactions];

/// A label as it stands at the end.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The example.
    pub example: Arc<Example>,
    /// The epoch that brought the label as it is.
    pub epoch: i64,
}

/// A demonstration as it stood last.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// The demonstration.
    pub demonstration: Arc<Demonstration>,
    /// The epochs in which it came and in which its text last changed.
    pub epochs: (i64, i64),
}

/// What the epochs brought.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// Every example with its label.
    pub examples: BTreeMap<Identity, Known>,
    /// The epoch of each impression.
    pub shown: HashMap<Identity, i64>,
    /// The epoch of each engagement.
    pub engaged: HashMap<Identity, i64>,
    /// By user, times and epochs of the engagements.
    pub engagements: HashMap<Id, Vec<(Millis, i64)>>,
    /// Every demonstration that ever stood.
    pub demonstrations: HashMap<Uuid, Told>,
    /// The catalog at the end.
    pub items: HashMap<Id, Item>,
    /// The event clock after each epoch.
    pub clocks: BTreeMap<i64, Millis>,
}

impl Replayed {
    /// Runs the recorded epochs. `progress` is told how many are done, and of how many.
    ///
    /// # Errors
    /// `Fatal` where a log can't be read to an epoch's ends.
    pub fn read(
        topics: &mut dyn Topics,
        plan: &Plan<'_>,
        records: &[EpochRecord],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self> {
        let count = |topic: Topic| {
            let ends = records.last().and_then(|record| record.ends.get(topic.name()));
            ends.map_or(1, Vec::len)
        };
        let mut judge = Judge::new(
            plan.semantics.clone(),
            plan.formats.clone(),
            count(Topic::Interactions) as u32,
            count(Topic::Candidates) as u32,
            (&plan.encoder.0, plan.encoder.1),
        );
        for erasure in records.iter().flat_map(|record| &record.erasures) {
            judge.erase(erasure);
        }
        let mut sources = Vec::new();
        for topic in READ {
            sources.push(Source::open(topics, topic, plan.names.of(topic), &vec![0; count(topic)])?);
        }
        let mut engine = Engine::start_in(
            &Cluster::default(),
            plan.workers,
            plan.semantics.clone(),
            plan.weights.clone(),
        )?;
        let (mut texts, mut items) = (Texts::default(), Items::default());
        let mut replayed = Replayed::default();
        let nothing = Vec::new();
        for (done, record) in (1..).zip(records) {
            let mut harvest = Harvest::default();
            for source in &mut sources {
                let (topic, name) = (source.topic(), plan.names.of(source.topic()));
                let ends = record.ends.get(topic.name()).unwrap_or(&nothing);
                judge.judge(topic, name, source.take_to(ends)?, &mut texts, &mut harvest);
            }
            judge.raise(&record.maxima);
            let input = harvest.input;
            replayed.clocks.insert(record.epoch, record.clock);
            replayed.events(&input.events, record.epoch);
            items.take(&input, &mut replayed.items);
            let clock = Clock {
                maxima: record.maxima.as_slice().into(),
                now: record.clock,
                publish: false,
                actives: Arc::new(record.actives.clone()),
                shadow: None,
            };
            let output = engine.run(done, clock, input);
            replayed.take(output, record.epoch);
            progress(done, records.len() as u64);
        }
        Ok(replayed)
    }

    fn events(&mut self, events: &[Event], epoch: i64) {
        for event in events {
            let identity = || Identity {
                user: event.user.clone(),
                event_time: event.entry.event_time,
                event_id: event.entry.event_id.clone(),
            };
            if event.impression {
                self.shown.insert(identity(), epoch);
            }
            if event.engagement {
                self.engaged.insert(identity(), epoch);
                let of_user = self.engagements.entry(event.user.clone()).or_default();
                of_user.push((event.entry.event_time, epoch));
            }
        }
    }

    fn take(&mut self, output: EpochOutput, epoch: i64) {
        let mut now: BTreeMap<Identity, Option<Arc<Example>>> = BTreeMap::new();
        for (example, diff) in output.examples {
            let place = now.entry(example.identity.clone()).or_default();
            if diff > 0 {
                *place = Some(example);
            }
        }
        for (identity, example) in now {
            let Some(example) = example else {
                self.examples.remove(&identity);
                continue;
            };
            let label = |example: &Example| (example.verdict, example.label_time);
            let before = self.examples.get(&identity);
            let same = before.filter(|before| label(&before.example) == label(&example));
            let known = Known { epoch: same.map_or(epoch, |same| same.epoch), example };
            self.examples.insert(identity, known);
        }
        for (demonstration, diff) in output.demonstrations {
            if diff > 0 {
                let id = demonstration.id;
                let before = self.demonstrations.get(&id);
                let text = |told: &Demonstration| (told.cot_key, told.cot.clone());
                let same = before.filter(|before| text(&before.demonstration) == text(&demonstration));
                let epochs = (
                    before.map_or(epoch, |before| before.epochs.0),
                    same.map_or(epoch, |same| same.epochs.1),
                );
                self.demonstrations.insert(id, Told { demonstration, epochs });
            }
        }
    }
}

/// The operators that give the catalog.
#[derive(Default)]
struct Items {
    vectors: Vectors,
    catalog: Catalog,
}

impl Items {
    fn take(&mut self, input: &EpochInput, items: &mut HashMap<Id, Item>) {
        let mut known = Changes::new();
        self.vectors.step(input.embeddings.iter().map(|change| (change.clone(), 1)).collect(), &mut known);
        let mut changes: Changes<catalog::Input> = known
            .into_iter()
            .filter_map(|(output, diff)| {
                Some((catalog::Input::Vector(0, vectors::Output::known(output)?), diff))
            })
            .collect();
        changes.extend(input.items.iter().map(|change| (catalog::Input::Item(change.clone()), 1)));
        let mut states = Changes::new();
        self.catalog.step(changes, &mut states);
        for (output, diff) in states {
            if let Some((id, item)) = output.item() {
                set(items, id, item, diff);
            }
        }
    }
}
