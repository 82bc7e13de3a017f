//! A seeded disturber: it delivers interactions of a script late, twice, and hopelessly late.

use ictflow_schemas::framing::Partitioner;
use serde_json::Value;
use std::collections::BTreeMap;

/// How late an accepted event may be, by the default semantics, milliseconds.
const LATENESS: i64 = 600_000;

/// A disturbed script, and how often what was done to it.
#[derive(Debug, Default)]
pub struct Disturbed {
    /// The records, in order of delivery.
    pub lines: Vec<Value>,
    /// Interactions.
    pub events: u64,
    /// Interactions that are delivered late, within the lateness.
    pub late: u64,
    /// Interactions that are delivered a second time.
    pub duplicates: u64,
    /// Interactions that are delivered after their partition's maximum has passed them by more than the
    /// lateness.
    pub hopeless: u64,
}

/// Where a record is delivered: at a time, then in an order.
type Place = (i64, usize, u8);

/// Disturbs a script whose records carry the time of their delivery as timestamp, and whose events carry
/// no later time: 10% of the interactions come late, 1% twice, 0.1% hopelessly late, as the seed says.
///
/// An event that comes at most [`LATENESS`] after its time is never refused, however late the others
/// come: whatever was delivered before it has a time at or before its own delivery.
///
/// # Panics
/// Where a record has no timestamp.
pub fn disturb(script: &[Value], seed: u64, partitions: u32) -> Disturbed {
    let mut random = seed;
    let mut draw = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut found = Disturbed::default();
    let mut placed: Vec<(Place, Value)> = Vec::new();
    let mut hopeless: Vec<(usize, &Value)> = Vec::new();
    // By partition, the events that are delivered in time: (place, event time).
    let mut delivered: BTreeMap<u32, Vec<(Place, i64)>> = BTreeMap::new();
    let partition =
        |line: &Value| Partitioner::Murmur2.partition(line["key"].as_str().unwrap().as_bytes(), partitions);
    let later = |line: &Value, when: i64| {
        let mut line = line.clone();
        line["timestamp"] = when.into();
        line
    };
    for (order, line) in script.iter().enumerate() {
        let when = line["timestamp"].as_i64().expect("a time of delivery");
        if line["topic"] != "interactions" {
            placed.push(((when, order, 0), line.clone()));
            continue;
        }
        found.events += 1;
        let of = line["value"]["event_time"].as_i64().expect("an event time");
        let chance = draw(1_000);
        let delay = 1_000 + draw(LATENESS as u64 - 2_000) as i64;
        let mut place = |when: i64, second: u8| {
            placed.push(((when, order, second), later(line, when)));
            delivered.entry(partition(line)).or_default().push(((when, order, second), of));
        };
        match chance {
            0 => hopeless.push((order, line)),
            1..=100 => {
                place(of + delay, 0);
                found.late += 1;
            }
            101..=110 => {
                place(when, 0);
                place(of + delay, 1);
                found.duplicates += 1;
            }
            _ => place(when, 0),
        }
    }
    for events in delivered.values_mut() {
        events.sort_unstable();
        let mut maximum = i64::MIN;
        for (_, of) in events {
            maximum = maximum.max(*of);
            *of = maximum;
        }
    }
    for (order, line) in hopeless {
        let of = line["value"]["event_time"].as_i64().unwrap_or_default();
        let passed = delivered
            .get(&partition(line))
            .and_then(|events| events.get(events.partition_point(|(_, maximum)| *maximum <= of + LATENESS)));
        match passed {
            Some(((when, after, _), _)) => {
                placed.push(((*when, *after, 2), later(line, *when)));
                found.hopeless += 1;
            }
            // Nothing comes after it that is so much newer.
            None => placed.push(((line["timestamp"].as_i64().unwrap_or_default(), order, 0), line.clone())),
        }
    }
    placed.sort_by_key(|(place, _)| *place);
    found.lines = placed.into_iter().map(|(_, line)| line).collect();
    found
}
