//! The sink: one transaction an epoch with features, examples, dead letters and progress.
//!
//! It knows what stands on `features` (a digest a key) and writes only what differs, so an update
//! that changes nothing publishes nothing. The first epoch that publishes after a start writes the
//! *difference* between the recomputed state and what stands, tombstones included: nothing that a
//! predecessor published can be left over.
//!
//! For `examples` the same holds for those that weren't final at the last committed epoch; final ones
//! stay as they are. What was served with an impression is no function of the logs: examples are compared
//! without it, and one that is written again keeps it (`served.rs`).

mod served;
#[cfg(test)]
mod tests;

use crate::epochs::read_whole;
use crate::names::Names;
use crate::pipeline::EpochOutput;
use crate::shadow::{Agreement, Shadow};
use ictflow_connectors::clock;
use ictflow_connectors::topics::{Topics, Writer};
use ictflow_connectors::{Error, Result};
use ictflow_operators::Changes;
use ictflow_operators::examples::is_final;
use ictflow_operators::features::FeatureUpdate;
use ictflow_operators::retrieval::Found;
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::epoch::{EpochRecord, Progress, WRITER_VERSION};
use ictflow_schemas::example::{Example, ExampleRecord};
use ictflow_schemas::feature::{Feature, feature_key};
use ictflow_schemas::framing::unframe;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_PUBLISHED_AT, HEADER_SUBSTEP, NewRecord, Topic};
use ictflow_schemas::wire::{Wire, split_single_object, versions};
use ictflow_schemas::{Id, Millis};
use served::Kept;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// What one commit wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Vectors published.
    pub features: u64,
    /// Tombstones on `features`.
    pub retractions: u64,
    /// Examples published, tombstones among them.
    pub examples: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// A published value: a digest of its bytes, how many demonstrations it has, and the epoch in the header of
/// its record.
#[derive(Clone, Copy, Debug)]
struct Standing {
    digest: [u8; 16],
    k: usize,
    epoch: i64,
}

impl Standing {
    fn new(value: &[u8], k: usize, epoch: i64) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(value).as_bytes()[..16]);
        Standing { digest, k, epoch }
    }

    /// Whether it is the same value.
    fn is(&self, other: &Standing) -> bool {
        (self.digest, self.k) == (other.digest, other.k)
    }
}

/// The sink of a job.
pub struct Sink {
    writer: Box<dyn Writer>,
    names: Names,
    job: String,
    partitions: u32,
    semantics: Arc<Semantics>,
    standing: HashMap<Vec<u8>, Standing>,
    /// The topic of the shadow's vectors, where there is one.
    shadow: Option<Shadow>,
    /// Of these, those with all K demonstrations.
    full: usize,
    /// By user, the vectors that the last commit published.
    published: HashMap<Id, u64>,
    /// Live pairs without a feature: they wait for a vector.
    waiting: HashSet<Vec<u8>>,
    publishing: bool,
    /// Whether an older program wrote any of what stood when the sink was opened.
    old_schema: bool,
    /// What stood when the sink was opened, with the demonstrations used; taken once.
    used: Vec<Found>,
    /// Examples as a replay recomputes them, by key: those not final at the committed epoch.
    rebuilt: Option<Rebuilt>,
    /// What stood for impressions whose examples aren't final.
    served: Kept,
    /// Examples that came into being less those that went, for the accounting.
    examples: isize,
    /// The epoch of the newest good snapshot.
    snapshot: Option<i64>,
    /// By partition, the least event time of examples that are published; empty for all.
    least: Vec<Millis>,
    /// Added to the epoch that records name in their headers.
    header_base: i64,
}

/// What a backfill adds to the epochs in its records' headers. They are negative, so that whatever the job
/// writes to these topics after a promote counts as newer for readers who compare.
pub const BACKFILL_HEADERS: i64 = -(1 << 40);

/// Examples while a replay runs.
#[derive(Default)]
struct Rebuilt {
    /// Partition maxima at the committed epoch.
    maxima: Vec<Millis>,
    /// What stands on the topic, without what was served.
    standing: BTreeMap<Vec<u8>, (u32, Vec<u8>)>,
    /// What the replay gives, likewise.
    recomputed: BTreeMap<Vec<u8>, (u32, Vec<u8>)>,
}

impl Sink {
    /// A sink over a fenced writer. `maxima` are those of the committed epoch, `None` for a job that
    /// hasn't committed any.
    pub fn open(
        topics: &mut dyn Topics,
        writer: Box<dyn Writer>,
        names: Names,
        job: &str,
        partitions: u32,
        semantics: Arc<Semantics>,
        maxima: Option<Vec<Millis>>,
    ) -> Result<Self> {
        let k = semantics.demonstrations;
        let mut standing = HashMap::new();
        // A store of points isn't asked again for what it answered before.
        let keep_used = semantics.search == Search::Stored;
        let mut used: HashMap<Vec<u8>, Found> = HashMap::new();
        let newest = versions(Topic::Features).last().map(|version| version.fingerprint);
        let mut old_schema = false;
        read_whole(topics, names.of(Topic::Features), |record| {
            let epoch = record.number(HEADER_EPOCH).unwrap_or_default();
            let Some(key) = record.key else { return };
            used.remove(&key);
            match record.value {
                Some(value) => {
                    old_schema |= split_single_object(&value).map(|(fingerprint, _)| fingerprint) != newest;
                    let feature = Feature::decode(&value).ok();
                    let k = feature.as_ref().map_or(0, |feature| feature.demonstrations.len());
                    standing.insert(key.clone(), Standing::new(&value, k, epoch));
                    used.extend(feature.filter(|_| keep_used).map(|feature| (key, standing_of(&feature))));
                }
                None => {
                    standing.remove(&key);
                }
            }
        })?;
        let mut served = Kept::default();
        let rebuilt = match maxima {
            None => None,
            Some(maxima) => {
                let mut rebuilt = Rebuilt { maxima, ..Rebuilt::default() };
                read_whole(topics, names.of(Topic::Examples), |record| {
                    let (Some(key), partition) = (record.key, record.partition) else { return };
                    if rebuilt.open(&key, partition, &semantics) {
                        let example = record.value.as_deref().map(ExampleRecord::decode);
                        let example = example.and_then(std::result::Result::ok);
                        served.seed(partition, &key, example.as_ref());
                        // What can't be read is none of ours, and differs from whatever must stand.
                        let plain = example.map(|example| example.without_served().encode());
                        match plain.or(record.value) {
                            Some(value) => rebuilt.standing.insert(key, (partition, value)),
                            None => rebuilt.standing.remove(&key),
                        };
                    }
                })?;
                Some(rebuilt)
            }
        };
        let shadow = names.shadow().map(|topic| Shadow::open(topics, topic)).transpose()?;
        Ok(Sink {
            writer,
            shadow,
            names,
            job: job.to_owned(),
            partitions,
            semantics,
            full: standing.values().filter(|standing| standing.k == k).count(),
            standing,
            published: HashMap::new(),
            waiting: HashSet::new(),
            publishing: false,
            old_schema,
            used: used.into_values().collect(),
            rebuilt,
            served,
            examples: 0,
            snapshot: None,
            least: Vec::new(),
            header_base: 0,
        })
    }

    /// Makes it the sink of a backfill: examples older than `least`, by partition, aren't published.
    pub fn of_backfill(&mut self, least: Vec<Millis>) {
        (self.least, self.header_base) = (least, BACKFILL_HEADERS);
    }

    /// The demonstrations that each standing feature uses, for a job that searches in a store of points;
    /// only once.
    pub fn take_used(&mut self) -> Vec<Found> {
        std::mem::take(&mut self.used)
    }

    /// Takes the output of a replayed epoch, which was committed before.
    pub fn replay(&mut self, examples: &Changes<Arc<Example>>) {
        if let Some(rebuilt) = &mut self.rebuilt {
            rebuilt.apply(examples, &self.semantics);
        }
    }

    /// Commits an epoch in one transaction. `bounds` is its record; `erased` are keys of examples that stand
    /// and go with their user, with their partitions.
    ///
    /// # Errors
    /// `Fatal` where the pairs are more than `max_live_pairs` (nothing is committed), where the
    /// writer is fenced, or where the outcome isn't known.
    pub fn commit(
        &mut self,
        bounds: &EpochRecord,
        publish: bool,
        output: &EpochOutput,
        dead_letters: &[DeadLetter],
        erased: &[(Vec<u8>, u32)],
        offsets: &[(String, u32, i64)],
    ) -> Result<Committed> {
        let mut committed = Committed { dead_letters: dead_letters.len() as u64, ..Committed::default() };
        let mut records = Vec::new();
        let epoch = bounds.epoch;
        let first = publish && !self.publishing;
        self.serve(bounds, output, erased);
        self.features(epoch, &output.features, publish, &mut records, &mut committed);
        if let Some(shadow) = self.shadow.as_mut().filter(|_| publish) {
            let partition = |user: &[u8]| self.semantics.partitioner.partition(user, self.partitions);
            shadow.follow(output.features.iter().map(|(update, _)| update), first, partition, &mut records);
        }
        if self.pairs_live() > self.semantics.max_live_pairs {
            return Err(Error::fatal(
                format!("commit epoch {epoch}"),
                format!(
                    "{} live pairs are more than max_live_pairs {}",
                    self.pairs_live(),
                    self.semantics.max_live_pairs
                ),
                "offer fewer candidates, shorten pair_ttl, or raise the limit in a new job",
            ));
        }
        let before = records.len();
        self.examples(&output.examples, erased, &mut records);
        committed.examples = (records.len() - before) as u64;
        self.served.prune(&bounds.maxima, &self.semantics);
        let dead = self.names.of(Topic::DeadLetters).to_owned();
        records
            .extend(dead_letters.iter().map(|letter| record(&dead, 0, letter.key(), Some(letter.encode()))));
        let progress = Progress {
            job: self.job.clone(),
            epoch,
            publishing: publish,
            writer_version: WRITER_VERSION.to_owned(),
            snapshot: self.snapshot,
        };
        let topic = self.names.of(Topic::Progress);
        records.push(record(topic, 0, progress.key(), Some(progress.encode())));
        let published_at = clock::now_ms().to_string().into_bytes();
        for (substep, record) in records.iter_mut().enumerate() {
            record.headers = vec![
                (HEADER_EPOCH.to_owned(), (self.header_base + epoch).to_string().into_bytes()),
                (HEADER_SUBSTEP.to_owned(), substep.to_string().into_bytes()),
                (HEADER_PUBLISHED_AT.to_owned(), published_at.clone()),
            ];
        }
        self.writer.commit(&records, offsets)?;
        Ok(committed)
    }

    /// Notes what stood for an epoch's impressions, before the epoch's features stand.
    fn serve(&mut self, bounds: &EpochRecord, output: &EpochOutput, erased: &[(Vec<u8>, u32)]) {
        for (key, partition) in erased {
            self.served.forget(*partition, key);
        }
        for erasure in &bounds.erasures {
            self.served.erase(&erasure.user);
        }
        // Nobody is served from a backfill's topics while it fills them.
        if self.header_base != 0 {
            return;
        }
        for update in &output.served {
            let (user, item) = (&update.shown.identity.user, &update.shown.item);
            // What an erased user's vector was made of is gone, also for what the user does since.
            if bounds.erasures.iter().any(|erasure| *erasure.user == **user) {
                continue;
            }
            if let Some(standing) = self.standing.get(&feature_key(user, item)) {
                self.served.note(self.partition(user.as_bytes()), standing.epoch, update);
            }
        }
    }

    fn features(
        &mut self,
        epoch: i64,
        updates: &[(FeatureUpdate, isize)],
        publish: bool,
        records: &mut Vec<NewRecord>,
        committed: &mut Committed,
    ) {
        self.published.clear();
        if !publish {
            return;
        }
        let topic = self.names.of(Topic::Features).to_owned();
        // On the first epoch that publishes the updates name every live pair.
        let mut leftover: BTreeSet<Vec<u8>> =
            if self.publishing { BTreeSet::new() } else { self.standing.keys().cloned().collect() };
        self.publishing = true;
        for (update, _) in updates {
            let key = feature_key(&update.user, &update.item);
            let partition = self.partition(update.user.as_bytes());
            if update.live && update.value.is_none() {
                self.waiting.insert(key.clone());
            } else {
                self.waiting.remove(&key);
            }
            match &update.value {
                Some(value) => {
                    leftover.remove(&key);
                    let mut new = Standing::new(value, update.k, self.header_base + epoch);
                    let same = self.standing.get(&key).filter(|old| old.is(&new));
                    let published = same.is_none();
                    new.epoch = same.map_or(new.epoch, |old| old.epoch);
                    let old = self.standing.insert(key.clone(), new);
                    self.full -= usize::from(old.is_some_and(|old| old.k == self.semantics.demonstrations));
                    self.full += usize::from(new.k == self.semantics.demonstrations);
                    if published {
                        committed.features += 1;
                        *self.published.entry(update.user.clone()).or_default() += 1;
                        records.push(record(&topic, partition, key, Some(value.to_vec())));
                    }
                }
                None => {
                    leftover.remove(&key);
                    if self.forget(&key) {
                        committed.retractions += 1;
                        records.push(record(&topic, partition, key, None));
                    }
                }
            }
        }
        for key in leftover {
            // A key that isn't framed wasn't written by us; it goes all the same, from where it stood.
            let user =
                unframe(&key).and_then(|parts| parts.first().map(|user| user.to_vec())).unwrap_or_default();
            self.forget(&key);
            committed.retractions += 1;
            records.push(record(&topic, self.partition(&user), key, None));
        }
    }

    /// The partition of a user on `interactions`, and so on the outputs.
    fn partition(&self, user: &[u8]) -> u32 {
        self.semantics.partitioner.partition(user, self.partitions)
    }

    /// Removes a key from what stands, and says whether it stood.
    fn forget(&mut self, key: &[u8]) -> bool {
        let old = self.standing.remove(key);
        self.full -= usize::from(old.is_some_and(|old| old.k == self.semantics.demonstrations));
        old.is_some()
    }

    fn examples(
        &mut self,
        changes: &Changes<Arc<Example>>,
        erased: &[(Vec<u8>, u32)],
        records: &mut Vec<NewRecord>,
    ) {
        let topic = self.names.of(Topic::Examples).to_owned();
        self.examples += changes.iter().map(|(_, diff)| diff).sum::<isize>();
        let mut net = net(changes, Some(&self.served));
        if let Some(mut rebuilt) = self.rebuilt.take() {
            // The first new epoch: the difference for what was open, the changes for the rest.
            rebuilt.apply(changes, &self.semantics);
            net.retain(|key, (partition, _)| !rebuilt.open(key, *partition, &self.semantics));
            for (key, (partition, value)) in &rebuilt.recomputed {
                if rebuilt.standing.get(key).map(|(_, standing)| standing) != Some(value) {
                    let value = self.served.attach(*partition, key, value.clone());
                    net.insert(key.clone(), (*partition, Some(value)));
                }
            }
            for (key, (partition, _)) in &rebuilt.standing {
                if !rebuilt.recomputed.contains_key(key) {
                    net.insert(key.clone(), (*partition, None));
                }
            }
        }
        // An event of the user that came again since has an example of its own.
        for (key, partition) in erased {
            net.entry(key.clone()).or_insert((*partition, None));
        }
        net.retain(|key, (partition, _)| self.publishes(key, *partition));
        for (key, (partition, value)) in net {
            records.push(record(&topic, partition, key, value));
        }
    }

    /// Whether an example's key isn't older than the least time that is published.
    fn publishes(&self, key: &[u8], partition: u32) -> bool {
        let least = self.least.get(partition as usize).copied().unwrap_or(i64::MIN);
        least == i64::MIN || time_of_example(key).is_none_or(|time| time >= least)
    }

    /// The topic of the examples.
    pub fn examples_topic(&self) -> &str {
        self.names.of(Topic::Examples)
    }

    /// Features of a user that stand on the topic.
    pub fn features_of(&self, user: &str) -> usize {
        let of_user =
            |key: &&Vec<u8>| unframe(key).and_then(|parts| parts.first().copied()) == Some(user.as_bytes());
        self.standing.keys().filter(of_user).count()
    }

    /// Notes the newest good snapshot, for people who read `progress`.
    pub fn note_snapshot(&mut self, epoch: i64) {
        self.snapshot = Some(epoch);
    }

    /// Whether the sink's writer still stands; see [`Writer::standing`].
    pub(crate) fn standing(&mut self, topic: &str) -> Result<()> {
        self.writer.standing(topic)
    }

    /// How near the shadow's vectors are; `None` without a shadow.
    pub fn agreement(&self) -> Option<Agreement> {
        self.shadow.as_ref().and_then(Shadow::agreement)
    }

    /// Features that stand on the topic.
    pub fn features_live(&self) -> usize {
        self.standing.len()
    }

    /// Features with all K demonstrations.
    pub fn features_full_k(&self) -> usize {
        self.full
    }

    /// By user, the vectors that the last commit published.
    pub fn published(&self) -> &HashMap<Id, u64> {
        &self.published
    }

    /// Live pairs: those with a feature and those that wait for a vector.
    pub fn pairs_live(&self) -> usize {
        self.standing.len() + self.waiting.len()
    }

    /// Examples that stand, of those that came since this process committed its first epoch.
    pub fn examples_published(&self) -> isize {
        self.examples
    }

    /// Impressions of which it is kept what stood for them: their examples may still change.
    pub fn served_kept(&self) -> usize {
        self.served.len()
    }

    /// Whether what stands has records of an older schema, which the first epoch that publishes writes anew.
    pub fn outdated(&self) -> bool {
        self.old_schema && !self.publishing
    }

    /// Whether features are published by now.
    pub fn publishing(&self) -> bool {
        self.publishing
    }
}

impl Rebuilt {
    /// Whether an example's key was not final at the committed epoch.
    fn open(&self, key: &[u8], partition: u32, semantics: &Semantics) -> bool {
        let maximum = self.maxima.get(partition as usize).copied().unwrap_or(i64::MAX);
        time_of_example(key).is_some_and(|time| !is_final(time, maximum, semantics))
    }

    fn apply(&mut self, changes: &Changes<Arc<Example>>, semantics: &Semantics) {
        for (key, (partition, value)) in net(changes, None) {
            if !self.open(&key, partition, semantics) {
                continue;
            }
            match value {
                Some(value) => self.recomputed.insert(key, (partition, value)),
                None => self.recomputed.remove(&key),
            };
        }
    }
}

/// By key of `examples`, the partition and the value after an epoch's changes, with what was served where
/// that is given; `None` retracts.
fn net(changes: &Changes<Arc<Example>>, served: Option<&Kept>) -> BTreeMap<Vec<u8>, (u32, Option<Vec<u8>>)> {
    let mut net: BTreeMap<Vec<u8>, (u32, Option<Vec<u8>>)> = BTreeMap::new();
    for (example, diff) in changes {
        let key = example.identity.frame().into_bytes();
        let record = (*diff > 0).then(|| {
            let served = served.and_then(|served| served.of(example.partition, &key));
            ExampleRecord { served, ..example.record() }.encode()
        });
        let place = net.entry(key).or_insert((example.partition, None));
        if record.is_some() {
            place.1 = record;
        }
    }
    net
}

/// The event time in a key of `examples`.
pub(crate) fn time_of_example(key: &[u8]) -> Option<Millis> {
    let parts = unframe(key)?;
    parts.get(1).and_then(|time| <[u8; 8]>::try_from(*time).ok()).map(i64::from_be_bytes)
}

/// A feature's demonstrations, as retrieval takes them back.
pub(crate) fn standing_of(feature: &Feature) -> Found {
    Found {
        user: feature.user_id.as_str().into(),
        item: feature.item_id.as_str().into(),
        ids: feature.demonstrations.iter().filter_map(|used| used.id.parse().ok()).collect(),
        standing: true,
    }
}

fn record(topic: &str, partition: u32, key: Vec<u8>, value: Option<Vec<u8>>) -> NewRecord {
    NewRecord {
        topic: topic.to_owned(),
        partition,
        timestamp: None,
        key: Some(key),
        value,
        headers: Vec::new(),
    }
}
