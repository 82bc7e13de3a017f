//! Inputs: a seeded generator of sessions over a Zipf catalog, MovieLens-100K, and the answers to
//! both.
//!
//! **Sessions.** One starts a second of event time after another, of a user drawn evenly. Recall
//! offers 20 items drawn by Zipf (exponent 1); five of them are shown, two seconds apart; of those
//! shown 30% are clicked, 30% skipped, 40% left without an outcome. So an interaction is an
//! impression in 5 of 8 cases and an engagement in 1.5 of 8. Each epoch gets whole sessions.
//!
//! **Answers.** A pass of the very operators over the whole script finds every content key that will
//! ever be wanted; the template answers it, and hashed vectors are made of all texts. They stand on
//! `cot` and `embeddings` before a clock runs.

use crate::Fallible;
use fastrand::Rng;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::answer::{Progress, Subject, answer};
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::llm::validate::Validator;
use ictflow_dataflows::demo::movielens::{MovieLens, events};
use ictflow_dataflows::engine::Engine;
use ictflow_dataflows::sources::{Harvest, Judge};
use ictflow_dataflows::texts::Texts;
use ictflow_operators::clock::Clock;
use ictflow_operators::ict::Weights;
use ictflow_schemas::Millis;
use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRequest, PromptEntry, PromptView};
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::epoch::Actives;
use ictflow_schemas::framing::{Digest, Partitioner, text_digest};
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::{Item, ItemText};
use ictflow_schemas::topic::{NewRecord, Record, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The width of the hashed vectors: MiniLM's.
pub const WIDTH: usize = 384;

/// Items of a candidate set.
pub const OFFERED: usize = 20;

/// Impressions of a session.
const SHOWN: usize = 5;

const START: Millis = 1_700_000_000_000;

/// Draws ranks from 0 with probability in proportion to 1 / (rank + 1).
pub struct Zipf {
    /// Running sums of the weights.
    sums: Vec<f64>,
}

impl Zipf {
    /// Over `n` ranks.
    pub fn new(n: usize) -> Self {
        let sums = (1..=n).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Zipf { sums: sums.collect() }
    }

    /// The next rank.
    pub fn draw(&self, rng: &mut Rng) -> usize {
        let all = self.sums.last().copied().unwrap_or_default();
        let at = rng.f64() * all;
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1)
    }
}

/// Words without meaning.
pub struct Words(Rng);

impl Words {
    /// The words of a seed.
    pub fn new(seed: u64) -> Self {
        Words(Rng::with_seed(seed))
    }

    /// A word of two to four syllables.
    pub fn word(&mut self) -> String {
        let syllable = |rng: &mut Rng| {
            let (c, v) = (b"bdfgklmnprstv", b"aeiou");
            [c[rng.usize(..c.len())] as char, v[rng.usize(..v.len())] as char]
        };
        (0..self.0.usize(2..=4)).flat_map(|_| syllable(&mut self.0)).collect()
    }

    /// So many words.
    pub fn text(&mut self, count: usize) -> String {
        (0..count).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }
}

/// A vector of norm 1 in an even direction, nearly.
pub fn unit_vector(rng: &mut Rng, width: usize) -> Vec<f32> {
    let vector: Vec<f32> = (0..width).map(|_| rng.f32() + rng.f32() + rng.f32() - 1.5).collect();
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x / norm).collect()
}

/// Inputs that one epoch takes.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Records of `interactions` and `candidates`, in the order of their production.
    pub records: Vec<NewRecord>,
    /// How many of them are interactions.
    pub events: usize,
}

/// A whole input.
pub struct Script {
    /// The catalog.
    pub items: BTreeMap<String, Item>,
    /// What the job has seen before a clock runs.
    pub warm: Vec<Chunk>,
    /// What is measured, run by run.
    pub runs: Vec<Vec<Chunk>>,
    /// Under which it is meant.
    pub semantics: Semantics,
    /// Partitions of all topics.
    pub partitions: u32,
}

/// The sizes of a synthetic script.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Users.
    pub users: usize,
    /// Items.
    pub items: usize,
    /// Sessions before a clock runs.
    pub warm: usize,
    /// Sessions of an epoch that is measured.
    pub chunk: usize,
    /// Epochs of a run.
    pub chunks: usize,
    /// Runs.
    pub runs: usize,
    /// One CoT in so many examples.
    pub stride: u64,
    /// Demonstrations at most.
    pub demonstrations: usize,
    /// Partitions.
    pub partitions: u32,
}

/// Sessions of one epoch of the warm-up.
const WARM_CHUNK: usize = 1_000;

impl Script {
    /// Sessions from a seed.
    pub fn synthetic(sizes: Sizes) -> Self {
        let mut semantics = Semantics { max_demonstrations: sizes.demonstrations, ..Semantics::default() };
        stride(&mut semantics, sizes.stride);
        let mut sessions = Sessions::new(sizes);
        let warm = (0..sizes.warm).step_by(WARM_CHUNK);
        Script {
            items: catalog(sizes.items),
            warm: warm.map(|first| sessions.chunk(WARM_CHUNK.min(sizes.warm - first))).collect(),
            runs: (0..sizes.runs)
                .map(|_| (0..sizes.chunks).map(|_| sessions.chunk(sizes.chunk)).collect())
                .collect(),
            semantics,
            partitions: sizes.partitions,
        }
    }

    /// MovieLens-100K: each rating an impression and its outcome at the same second. The ratings
    /// before `warm` are seen before a clock runs, then runs of `chunks` epochs of `chunk` ratings
    /// follow; of a chunk each user gets a candidate set with its films and 20 others. A day of this
    /// data has few events, so pairs live a year, as demonstrations do.
    pub fn movielens(
        folder: &Path,
        warm: usize,
        (runs, chunks, chunk): (usize, usize, usize),
        stride_of: u64,
        partitions: u32,
    ) -> Fallible<Self> {
        let data = MovieLens::read(folder)?;
        let year = 365 * 24 * 3_600_000;
        let mut semantics =
            Semantics { demonstration_ttl_ms: year, pair_ttl_ms: year, ..Semantics::default() };
        stride(&mut semantics, stride_of);
        let ids: Vec<&String> = data.items.keys().collect();
        let mut offered = 0;
        let mut chunk_of = |first: usize, count: usize| {
            let ratings = &data.ratings[first..first + count];
            let mut sets: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for rating in ratings {
                sets.entry(&rating.user).or_default().insert(&rating.item);
            }
            let mut made = Chunk::default();
            let start = ratings.first().map_or(0, |rating| rating.time);
            for (user, mut items) in sets {
                let size = items.len() + OFFERED;
                while items.len() < size {
                    offered = (offered + 7) % ids.len();
                    items.insert(ids[offered]);
                }
                let items = items.into_iter().map(str::to_owned).collect();
                made.records.push(candidates(user, start - 1, items, partitions));
            }
            for (n, rating) in ratings.iter().enumerate() {
                for event in events(first + n, rating) {
                    made.push(event, partitions);
                }
            }
            made
        };
        let needed = warm + runs * chunks * chunk;
        if data.ratings.len() < needed {
            return Err(format!("{} ratings are fewer than the {needed} wanted", data.ratings.len()).into());
        }
        let warm_chunks =
            (0..warm).step_by(2_000).map(|first| chunk_of(first, 2_000.min(warm - first))).collect();
        let measured = (0..runs)
            .map(|run| (0..chunks).map(|c| chunk_of(warm + (run * chunks + c) * chunk, chunk)).collect())
            .collect();
        Ok(Script { items: data.items.clone(), warm: warm_chunks, runs: measured, semantics, partitions })
    }

    /// The records of the catalog.
    pub fn catalog(&self) -> Vec<NewRecord> {
        let items = self.items.iter();
        items.map(|(id, item)| record(Topic::Items, id, Some(item.encode()), None, self.partitions)).collect()
    }

    /// Records of `cot` and `embeddings` that answer all that the script will ever ask.
    pub fn answers(&self, weights: &Arc<Weights>) -> Fallible<Vec<NewRecord>> {
        let mut encoder = Hashed::new(WIDTH);
        let mut template = Template::new(Prompt::builtin());
        let (views, texts) = self.wanted(weights)?;
        let validator = Validator::new(&Prompt::builtin());
        let mut records = Vec::new();
        let mut to_embed: BTreeMap<Digest, String> =
            self.items.values().map(Item::text).map(|text| (text_digest(&text), text)).collect();
        for (key, view) in views {
            let request = request(key, &view, &texts)?;
            let subject = Subject { user_id: &view.user, item_id: &view.item };
            let record =
                answer(&mut template, &validator, &request, subject, Progress::default(), 0, &mut |_, _| {})?;
            records.push(NewRecord {
                topic: Topic::Cot.name().to_owned(),
                partition: Partitioner::Murmur2.partition(view.user.as_bytes(), self.partitions),
                timestamp: None,
                key: Some(record.topic_key(&key)),
                value: Some(record.encode()),
                headers: Vec::new(),
            });
            to_embed.insert(text_digest(&record.text), record.text);
        }
        for (digest, text) in to_embed {
            let vector = encoder.embed(&[text])?.remove(0);
            let (encoder, digest) = (encoder.id().to_owned(), digest.hex());
            let embedding = Embedding { encoder, digest, status: EmbeddingStatus::Ok, vector };
            records.push(NewRecord {
                topic: Topic::Embeddings.name().to_owned(),
                partition: 0,
                timestamp: None,
                key: Some(embedding.key()),
                value: Some(embedding.encode()),
                headers: Vec::new(),
            });
        }
        Ok(records)
    }

    /// Every key that the script ever asks, with its view; and the texts of the items.
    pub fn wanted(&self, weights: &Arc<Weights>) -> Fallible<(BTreeMap<Digest, Arc<PromptView>>, Texts)> {
        let (generator, encoder) = (Template::new(Prompt::builtin()), Hashed::new(WIDTH));
        let semantics = Arc::new(self.semantics.clone());
        let partitions = self.partitions;
        let mut judge = Judge::new(
            semantics.clone(),
            BTreeMap::new(),
            partitions,
            partitions,
            (encoder.id(), encoder.width()),
        );
        let actives = Arc::new(Actives {
            llm_model: generator.model().to_owned(),
            prompt_version: generator.prompt_version().to_owned(),
            parameters: generator.parameters().to_owned(),
            encoder: encoder.id().to_owned(),
            ict_weights: weights.version().to_owned(),
        });
        let mut engine = Engine::start(1, semantics, weights.clone())?;
        let (mut texts, mut views) = (Texts::default(), BTreeMap::new());
        let mut offsets: BTreeMap<(String, u32), i64> = BTreeMap::new();
        let catalog = Chunk { records: self.catalog(), events: 0 };
        for (epoch, chunk) in
            std::iter::once(&catalog).chain(&self.warm).chain(self.runs.iter().flatten()).enumerate()
        {
            let mut harvest = Harvest::default();
            for topic in [Topic::Items, Topic::Candidates, Topic::Interactions] {
                let records = chunk.records.iter().filter(|new| new.topic == topic.name());
                let records = records.map(|new| read(new, &mut offsets)).collect();
                judge.judge(topic, topic.name(), records, &mut texts, &mut harvest);
            }
            if let Some(letter) = harvest.dead_letters.first() {
                return Err(format!("the script has a record that is refused: {}", letter.reason).into());
            }
            let maxima = judge.maxima();
            let clock = Clock {
                now: maxima.iter().copied().max().unwrap_or_default(),
                maxima: maxima.into(),
                publish: false,
                actives: actives.clone(),
                shadow: None,
            };
            let output = engine.run(epoch as u64 + 1, clock, harvest.input);
            views.extend(output.generate.into_iter().filter(|(_, diff)| *diff > 0).map(|(asked, _)| asked));
        }
        Ok((views, texts))
    }
}

/// The request of a key, as the job would make it.
pub fn request(key: Digest, view: &PromptView, texts: &Texts) -> Fallible<CotRequest> {
    let item = texts.get(&view.item_text).ok_or("a wanted key names a text that isn't there")?;
    let entry = |(item, kind, label): &(Arc<str>, Arc<str>, _)| PromptEntry {
        item: texts.of_item(item).map(|text| ItemText::parse(text)),
        kind: kind.to_string(),
        label: *label,
    };
    Ok(CotRequest {
        key,
        item: ItemText::parse(item),
        decision: view.decision,
        history: view.history.iter().map(entry).collect(),
    })
}

impl Chunk {
    fn push(&mut self, event: Interaction, partitions: u32) {
        let value = Some(event.encode());
        let new = record(Topic::Interactions, &event.user_id, value, Some(event.event_time), partitions);
        self.records.push(new);
        self.events += 1;
    }
}

struct Sessions {
    rng: Rng,
    zipf: Zipf,
    sizes: Sizes,
    made: usize,
}

impl Sessions {
    fn new(sizes: Sizes) -> Self {
        Sessions { rng: Rng::with_seed(20), zipf: Zipf::new(sizes.items), sizes, made: 0 }
    }

    /// Some sessions; the events of all stand in the order of time.
    fn chunk(&mut self, sessions: usize) -> Chunk {
        let mut sets = Vec::new();
        let mut events = Vec::new();
        for _ in 0..sessions {
            self.session(&mut sets, &mut events);
        }
        events.sort_by_key(|event: &Interaction| event.event_time);
        let mut chunk = Chunk { records: sets, events: 0 };
        for event in events {
            chunk.push(event, self.sizes.partitions);
        }
        chunk
    }

    fn session(&mut self, sets: &mut Vec<NewRecord>, events: &mut Vec<Interaction>) {
        let number = self.made;
        self.made += 1;
        let start = START + 1_000 * number as Millis;
        let user = user_id(self.rng.usize(..self.sizes.users));
        let mut offered: Vec<usize> = Vec::new();
        while offered.len() < OFFERED.min(self.sizes.items) {
            let item = self.zipf.draw(&mut self.rng);
            if !offered.contains(&item) {
                offered.push(item);
            }
        }
        let items = offered.iter().map(|item| item_id(*item)).collect();
        sets.push(candidates(&user, start, items, self.sizes.partitions));
        for (n, item) in offered.iter().take(SHOWN).enumerate() {
            let event = |event_id: String, kind: &str, impression_id, event_time| Interaction {
                event_id,
                user_id: user.clone(),
                item_id: item_id(*item),
                kind: kind.to_owned(),
                value: None,
                impression_id,
                event_time,
            };
            let (shown, time) = (format!("s{number}-{n}"), start + 2_000 * n as Millis + 1);
            events.push(event(shown.clone(), "impression", None, time));
            let kind = match self.rng.u32(..10) {
                0..3 => "click",
                3..6 => "skip",
                _ => continue,
            };
            events.push(event(format!("o{number}-{n}"), kind, Some(shown), time + 1_000));
        }
    }
}

/// The items of a synthetic catalog.
pub fn catalog(count: usize) -> BTreeMap<String, Item> {
    let mut words = Words::new(10);
    let mut rng = Rng::with_seed(10);
    let item = |rng: &mut Rng, words: &mut Words| Item {
        title: Some(words.text(3)),
        creator: Some(format!("creator {}", rng.u32(..500))),
        categories: vec![format!("category {}", rng.u32(..20)), format!("category {}", 20 + rng.u32(..20))],
        description: Some(words.text(12)),
        ..Item::default()
    };
    (0..count).map(|i| (item_id(i), item(&mut rng, &mut words))).collect()
}

/// The id of a synthetic user.
pub fn user_id(user: usize) -> String {
    format!("u{user:07}")
}

/// The id of a synthetic item.
pub fn item_id(item: usize) -> String {
    format!("i{item:07}")
}

/// A candidate set's record.
pub fn candidates(user: &str, computed_at: Millis, items: Vec<String>, partitions: u32) -> NewRecord {
    let value = Candidates { computed_at, items }.encode();
    record(Topic::Candidates, user, Some(value), Some(computed_at), partitions)
}

/// A record of an input under its default name, where its key belongs.
pub fn record(
    topic: Topic,
    key: &str,
    value: Option<Vec<u8>>,
    timestamp: Option<Millis>,
    partitions: u32,
) -> NewRecord {
    NewRecord {
        topic: topic.name().to_owned(),
        partition: Partitioner::Murmur2.partition(key.as_bytes(), partitions),
        timestamp,
        key: Some(key.as_bytes().to_vec()),
        value,
        headers: Vec::new(),
    }
}

/// A record as its store would give it back.
fn read(new: &NewRecord, offsets: &mut BTreeMap<(String, u32), i64>) -> Record {
    let next = offsets.entry((new.topic.clone(), new.partition)).or_default();
    *next += 1;
    Record {
        framed: None,
        partition: new.partition,
        offset: *next - 1,
        timestamp: new.timestamp,
        key: new.key.clone(),
        value: new.value.clone(),
        headers: Vec::new(),
    }
}

/// The same stride for all classes.
pub fn stride(semantics: &mut Semantics, stride: u64) {
    let all = &mut semantics.cot_stride;
    (all.positive, all.explicit_negative, all.implicit_negative) = (stride, stride, stride);
}
