//! What producers and operators of a simulated job do: events with the flaws that real ones have, edits of
//! items, candidate sets; answers that come twice, embeddings that go.

use super::log::Log;
use crate::support::world::record;
use fastrand::Rng;
use ictflow_dataflows::names::Names;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::framing::{Digest, Frame, unframe};
use ictflow_schemas::topic::{NewRecord, Record, Topic};
use ictflow_schemas::wire::Wire;
use serde_json::{Value, json};

/// Times of the simulated job, small so that all of them pass within a run.
pub const LATENESS: i64 = 60_000;
const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;

const USERS: usize = 5;
const ITEMS: usize = 7;
/// Titles that an item alternates between, so that texts come back.
const TITLES: usize = 4;

/// Kinds of outcomes, with values.
const OUTCOMES: [(&str, Option<f64>); 6] = [
    ("click", None),
    ("like", None),
    ("skip", None),
    ("rate", Some(5.0)),
    ("rate", Some(1.0)),
    ("play", Some(0.9)),
];

/// The producers.
pub struct Workload {
    partitions: u32,
    /// The producers' clock.
    pub now: i64,
    made: u64,
    /// Impressions: user, item, event id.
    shown: Vec<(String, String, String)>,
    /// Lines that may come again.
    recent: Vec<Value>,
}

impl Workload {
    /// Producers onto so many partitions.
    pub fn new(partitions: u32) -> Self {
        Workload { partitions, now: 1_700_000_000_000, made: 0, shown: Vec::new(), recent: Vec::new() }
    }

    /// The catalog and first candidate sets.
    pub fn opening(&mut self, rng: &mut Rng) -> Vec<NewRecord> {
        let mut lines: Vec<Value> = (0..ITEMS).map(|item| self.item(item, 0, 0)).collect();
        for user in 0..USERS {
            lines.push(self.candidates(rng, user));
        }
        self.records(&lines)
    }

    /// Candidate sets for all, so that pairs are live in the end.
    pub fn closing(&mut self, rng: &mut Rng) -> Vec<NewRecord> {
        let lines: Vec<Value> = (0..USERS).map(|user| self.candidates(rng, user)).collect();
        self.records(&lines)
    }

    fn records(&self, lines: &[Value]) -> Vec<NewRecord> {
        lines.iter().map(|line| record(line, self.partitions, "")).collect()
    }

    /// A batch of some records of any input.
    pub fn batch(&mut self, rng: &mut Rng) -> Vec<NewRecord> {
        let mut lines = Vec::new();
        for _ in 0..rng.usize(1..10) {
            self.now += match rng.u32(..40) {
                // Long enough for windows to close, seldom for pairs and demonstrations to expire.
                0 => rng.i64(5 * MINUTE..20 * MINUTE),
                1..=4 => rng.i64(MINUTE..4 * MINUTE),
                _ => rng.i64(0..15 * SECOND),
            };
            match rng.u32(..20) {
                0..=1 => {
                    let (item, title) = (rng.usize(..ITEMS), rng.usize(..TITLES));
                    lines.push(self.item(item, title, rng.u32(..2)));
                }
                2 => {
                    let key = item_id(rng.usize(..ITEMS));
                    lines.push(json!({"topic": "items", "key": key, "timestamp": self.now, "value": null}));
                }
                3 => {
                    let user = rng.usize(..USERS);
                    lines.push(self.candidates(rng, user));
                }
                _ => self.event(rng, &mut lines),
            }
        }
        self.records(&lines)
    }

    fn event(&mut self, rng: &mut Rng, lines: &mut Vec<Value>) {
        self.made += 1;
        let id = format!("e{}", self.made);
        let (mut user, mut item) = (user_id(rng.usize(..USERS)), item_id(rng.usize(..ITEMS)));
        let (mut kind, mut value, mut impression) = ("impression", None, None);
        if rng.u32(..10) < 6 {
            (kind, value) = OUTCOMES[rng.usize(..OUTCOMES.len())];
            if rng.u32(..3) > 0 && !self.shown.is_empty() {
                let at = rng.usize(self.shown.len().saturating_sub(12)..self.shown.len());
                let (shown_to, shown, shown_as) = self.shown[at].clone();
                (user, item) = (shown_to, shown);
                impression = rng.bool().then_some(shown_as);
            }
        } else {
            self.shown.push((user.clone(), item.clone(), id.clone()));
        }
        let late = match rng.u32(..40) {
            0 => rng.i64(LATENESS..10 * LATENESS),
            1..=6 => rng.i64(0..LATENESS),
            _ => 0,
        };
        let line = json!({
            "topic": "interactions", "key": user, "timestamp": self.now,
            "value": {
                "event_id": id, "user_id": user, "item_id": item, "kind": kind, "value": value,
                "impression_id": impression, "event_time": self.now - late,
            },
        });
        match rng.u32(..30) {
            0 => lines.push(json!({
                "topic": "interactions", "key": user, "timestamp": self.now, "raw": "ffff00",
            })),
            1 if !self.recent.is_empty() => {
                let mut other = self.recent[rng.usize(..self.recent.len())].clone();
                other["value"]["item_id"] = json!(item_id(rng.usize(..ITEMS)));
                lines.push(other);
            }
            2..=4 if !self.recent.is_empty() => {
                lines.push(self.recent[rng.usize(..self.recent.len())].clone());
            }
            _ => {}
        }
        lines.push(line.clone());
        self.recent.push(line);
        if self.recent.len() > 20 {
            self.recent.remove(0);
        }
    }

    fn item(&self, item: usize, title: usize, price: u32) -> Value {
        json!({
            "topic": "items", "key": item_id(item), "timestamp": self.now,
            "value": {
                "title": format!("Film {item}, cut {title}"), "creator": format!("studio {}", item % 3),
                "categories": [format!("genre {}", item % 2)], "attributes": {"price": price.to_string()},
            },
        })
    }

    fn candidates(&self, rng: &mut Rng, user: usize) -> Value {
        let value = match rng.u32(..12) {
            0 => Value::Null,
            _ => {
                let items: Vec<String> = (0..rng.usize(1..5)).map(|_| item_id(rng.usize(..ITEMS))).collect();
                json!({"computed_at": self.now - rng.i64(0..MINUTE), "items": items})
            }
        };
        json!({"topic": "candidates", "key": user_id(user), "timestamp": self.now, "value": value})
    }
}

fn user_id(user: usize) -> String {
    format!("u{user}")
}

fn item_id(item: usize) -> String {
    format!("i{item}")
}

fn again(topic: &str, record: Record) -> NewRecord {
    NewRecord {
        topic: topic.to_owned(),
        partition: record.partition,
        timestamp: record.timestamp,
        key: record.key,
        value: record.value,
        headers: record.headers,
    }
}

/// An answer that stands on its log, a second time: a predecessor's append that came late.
pub fn doubled_answer(rng: &mut Rng, log: &Log, names: &Names) -> Option<NewRecord> {
    let topic = names.of([Topic::Cot, Topic::Embeddings][rng.usize(..2)]);
    let records = log.whole(topic);
    let any = (!records.is_empty()).then(|| rng.usize(..records.len()))?;
    Some(again(topic, records[any].clone()))
}

/// What becomes of a standing embedding: it is tombstoned, overwritten by an unusable record, or also
/// refused, so that its text never has a vector again.
pub fn gone_embedding(rng: &mut Rng, log: &Log, names: &Names) -> Vec<NewRecord> {
    let topic = names.of(Topic::Embeddings);
    let records = log.whole(topic);
    if records.is_empty() {
        return Vec::new();
    }
    let record = records[rng.usize(..records.len())].clone();
    let parts = record.key.as_deref().and_then(unframe).unwrap_or_default();
    let [encoder, text] = parts[..] else { return Vec::new() };
    let (encoder, text) = (String::from_utf8_lossy(encoder), String::from_utf8_lossy(text));
    let Some(digest) = Digest::from_hex(text.strip_prefix("failed:").unwrap_or(&text)) else {
        return Vec::new();
    };
    let new = |key: Vec<u8>, value: Option<Vec<u8>>| NewRecord {
        topic: topic.to_owned(),
        partition: 0,
        timestamp: None,
        key: Some(key),
        value,
        headers: Vec::new(),
    };
    let ok = Frame::new().text(&encoder).text(&digest.hex()).into_bytes();
    let refusal = Embedding {
        encoder: encoder.into_owned(),
        digest: digest.hex(),
        status: EmbeddingStatus::Failed,
        vector: Vec::new(),
    };
    match rng.u32(..6) {
        0 => vec![new(ok, None)],
        1 => vec![new(ok, Some(b"unusable".to_vec()))],
        // A refusal that goes lets the text be asked again.
        2 => vec![new(refusal.key(), None)],
        _ => vec![new(refusal.key(), Some(refusal.encode())), new(ok, None)],
    }
}
