//! An endless stream of input records from a seed, with the flaws that real streams have: of the
//! events 10% come late, 1% come twice, 0.1% come hopelessly late, a few are damaged or contradict an
//! earlier one; items are edited, deleted and come back.
//!
//! The same seed gives the same records, however they are cut.

use super::world::record;
use fastrand::Rng;
use ictflow_schemas::topic::NewRecord;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Event time of the first record.
const START: i64 = 1_700_000_000_000;
/// Event time between two events, milliseconds: 20,000 take 11 hours.
const PACE: i64 = 2_000;
/// Items of the catalog.
const ITEMS: usize = 150;
/// Items of a candidate set.
const OFFERED: usize = 10;
/// Events that may come twice.
const RECENT: usize = 200;

/// The stream.
pub struct Stream {
    rng: Rng,
    users: usize,
    partitions: u32,
    prefix: String,
    now: i64,
    events: usize,
    /// Impressions that may still get an outcome: user, item, event id.
    shown: VecDeque<(String, String, String)>,
    recent: VecDeque<Value>,
    deleted: Vec<usize>,
}

impl Stream {
    /// A stream of so many users over topics of so many partitions, whose names begin with `prefix`.
    pub fn new(seed: u64, users: usize, partitions: u32, prefix: &str) -> Self {
        Stream {
            rng: Rng::with_seed(seed),
            users,
            partitions,
            prefix: prefix.to_owned(),
            now: START,
            events: 0,
            shown: VecDeque::new(),
            recent: VecDeque::new(),
            deleted: Vec::new(),
        }
    }

    /// Records of `interactions` so far.
    pub fn events(&self) -> usize {
        self.events
    }

    /// The catalog, and a first candidate set for every user.
    pub fn opening(&mut self) -> Vec<NewRecord> {
        let mut lines: Vec<Value> = (0..ITEMS).map(|item| self.item(item, 0)).collect();
        lines.extend((0..self.users).map(|user| self.candidates(user)));
        self.records(&lines)
    }

    /// The records that follow, with at least so many of `interactions`.
    pub fn next(&mut self, events: usize) -> Vec<NewRecord> {
        let until = self.events + events;
        let mut lines = Vec::new();
        while self.events < until {
            self.now += self.rng.i64(1..2 * PACE);
            let n = self.events;
            self.event(&mut lines);
            if n.is_multiple_of(30) {
                let user = self.rng.usize(..self.users);
                lines.push(self.candidates(user));
            }
            if n.is_multiple_of(100) {
                self.edit(n, &mut lines);
            }
        }
        self.records(&lines)
    }

    fn records(&self, lines: &[Value]) -> Vec<NewRecord> {
        lines.iter().map(|line| record(line, self.partitions, &self.prefix)).collect()
    }

    fn event(&mut self, lines: &mut Vec<Value>) {
        let id = format!("e{}", self.events);
        let (mut user, mut item) = (self.user(), self.popular());
        let (mut kind, mut value, mut impression) = ("impression", None, None);
        let outcome = self.rng.u32(..100);
        if outcome < 40 && !self.shown.is_empty() {
            let at = self.rng.usize(..self.shown.len());
            if let Some((shown_to, shown, shown_as)) = self.shown.remove(at) {
                (user, item) = (shown_to, shown);
                impression = self.rng.bool().then_some(shown_as);
            }
            (kind, value) = *self.rng.choice(OUTCOMES.iter()).unwrap_or(&OUTCOMES[0]);
        } else if outcome < 50 {
            (kind, value) = ("click", None);
        } else {
            self.shown.push_back((user.clone(), item.clone(), id.clone()));
            if self.shown.len() > 400 {
                self.shown.pop_front();
            }
        }
        // How late it is: hopelessly, or within the ten minutes that the job waits.
        let late = match self.rng.u32(..1_000) {
            0 => 2 * 3_600_000,
            1..=100 => self.rng.i64(1_000..600_000),
            _ => 0,
        };
        let line = json!({
            "topic": "interactions", "key": user, "timestamp": self.now,
            "value": {
                "event_id": id, "user_id": user, "item_id": item, "kind": kind, "value": value,
                "impression_id": impression, "event_time": self.now - late,
            },
        });
        if self.rng.u32(..1_000) == 0 {
            lines.push(json!({
                "topic": "interactions", "key": user, "timestamp": self.now, "raw": "ffff00",
            }));
            self.events += 1;
        }
        if self.rng.u32(..1_000) < 2
            && let Some(other) = self.recent.back()
        {
            let mut other = other.clone();
            other["value"]["item_id"] = json!(self.popular());
            other["timestamp"] = json!(self.now);
            lines.push(other);
            self.events += 1;
        }
        if self.rng.u32(..100) == 0 && !self.recent.is_empty() {
            lines.push(self.recent[self.rng.usize(..self.recent.len())].clone());
            self.events += 1;
        }
        lines.push(line.clone());
        self.events += 1;
        self.recent.push_back(line);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    fn edit(&mut self, n: usize, lines: &mut Vec<Value>) {
        let item = self.rng.usize(..ITEMS);
        match self.rng.u32(..10) {
            0 => {
                self.deleted.push(item);
                let key = item_id(item);
                lines.push(json!({"topic": "items", "key": key, "timestamp": self.now, "value": null}));
            }
            1..=3 if !self.deleted.is_empty() => {
                let at = self.rng.usize(..self.deleted.len());
                let back = self.deleted.swap_remove(at);
                lines.push(self.item(back, n));
            }
            _ => lines.push(self.item(item, n)),
        }
    }

    fn item(&mut self, item: usize, edit: usize) -> Value {
        json!({
            "topic": "items", "key": item_id(item), "timestamp": self.now,
            "value": {
                "title": format!("Film {item}, cut {edit}"),
                "creator": format!("studio {}", item % 30),
                "categories": [format!("genre {}", item % 12), format!("genre {}", item % 7)],
            },
        })
    }

    fn candidates(&mut self, user: usize) -> Value {
        let items: Vec<String> = (0..OFFERED).map(|_| item_id(self.rng.usize(..ITEMS))).collect();
        json!({
            "topic": "candidates", "key": user_id(user), "timestamp": self.now,
            "value": {"computed_at": self.now, "items": items},
        })
    }

    /// A user; every tenth event is of one of ten busy ones.
    fn user(&mut self) -> String {
        let among = if self.rng.u32(..10) == 0 { 10 } else { self.users };
        user_id(self.rng.usize(..among))
    }

    /// An item; low numbers are popular.
    fn popular(&mut self) -> String {
        let draw = self.rng.usize(..ITEMS);
        item_id(draw.min(self.rng.usize(..ITEMS)))
    }
}

/// Outcomes of an impression: kind and value.
const OUTCOMES: [(&str, Option<f64>); 7] = [
    ("click", None),
    ("like", None),
    ("skip", None),
    ("rate", Some(5.0)),
    ("rate", Some(2.0)),
    ("play", Some(0.75)),
    ("play", Some(0.25)),
];

fn user_id(user: usize) -> String {
    format!("u{user}")
}

fn item_id(item: usize) -> String {
    format!("i{item}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_records_however_they_are_cut() {
        let stream = |cuts: &[usize]| {
            let mut stream = Stream::new(7, 20, 3, "p-");
            let mut records = stream.opening();
            for cut in cuts {
                let left = cut - stream.events().min(*cut);
                records.extend(stream.next(left));
            }
            records
        };
        let whole = stream(&[5_000]);
        let cut = stream(&[1, 700, 5_000]);
        assert_eq!(whole[..5_000], cut[..5_000]);
        assert_ne!(whole, Stream::new(8, 20, 3, "p-").next(5_000));
        assert!(whole.iter().all(|record| record.topic.starts_with("p-") && record.partition < 3));
    }
}
