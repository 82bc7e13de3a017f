//! The replay against `golden/neighbours.json`, made by the independent program `golden/neighbours.py`.
#![allow(clippy::unwrap_used)]

use super::*;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::history::{Entry, Identity, Label};
use ictflow_schemas::neighbour::signs;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Golden {
    signs: Vec<(String, String, String)>,
    ring: usize,
    selected: usize,
    sketch_period_ms: i64,
    label_centre: i32,
    label_delay_ms: i64,
    centre: Vec<i16>,
    vectors: BTreeMap<String, Vec<i16>>,
    examples: Vec<GoldenExample>,
    rows: Vec<GoldenRow>,
    sketches: Vec<GoldenSketch>,
}

#[derive(Deserialize)]
struct GoldenExample {
    user: String,
    item: String,
    event_time: i64,
    event_id: String,
    verdict: String,
    label_time: i64,
    history: Vec<String>,
    rate: i32,
}

#[derive(Deserialize)]
struct GoldenRow {
    event_id: String,
    same_item: Vec<(String, i64)>,
    same_user: Vec<(String, i64)>,
    item_votes: [i64; 6],
    user_votes: [i64; 6],
    numbers: [f32; 9],
}

#[derive(Deserialize)]
struct GoldenSketch {
    side: String,
    id: String,
    until: i64,
    rate: i32,
    sum: Vec<i32>,
    unit: Vec<i16>,
}

fn example(golden: &GoldenExample) -> Example {
    let entry = |label: &String| Entry {
        event_time: 0,
        event_id: "e".into(),
        item: "i".into(),
        kind: "k".into(),
        label: match &**label {
            "positive" => Label::Positive,
            "negative" => Label::Negative,
            _ => Label::None,
        },
    };
    Example {
        identity: Identity {
            user: golden.user.as_str().into(),
            event_time: golden.event_time,
            event_id: golden.event_id.as_str().into(),
        },
        partition: 0,
        item: golden.item.as_str().into(),
        verdict: match &*golden.verdict {
            "positive" => Verdict::Positive,
            "negative" => Verdict::Negative,
            _ => Verdict::ImplicitNegative,
        },
        label_time: golden.label_time,
        history: golden.history.iter().map(entry).collect(),
    }
}

fn check(found: &Sources, golden: &GoldenRow) {
    let at = &golden.event_id;
    let named = |selected: &[Neighbour]| {
        selected.iter().map(|n| (n.example.event_id.to_string(), n.score)).collect::<Vec<_>>()
    };
    assert_eq!(named(&found.same_item), golden.same_item, "{at}");
    assert_eq!(named(&found.same_user), golden.same_user, "{at}");
    let votes = found.votes.same_item;
    let sums = [
        votes.ring,
        votes.ring_positives,
        votes.selected,
        votes.positives,
        votes.weights,
        votes.weighted_labels,
    ];
    assert_eq!(sums, golden.item_votes, "{at}");
    let votes = found.votes.same_user;
    let sums = [
        votes.selected,
        votes.positives,
        votes.weights,
        votes.weighted_labels,
        votes.deviations,
        votes.weighted_deviations,
    ];
    assert_eq!(sums, golden.user_votes, "{at}");
    assert_eq!(found.votes.numbers().map(f32::to_bits), golden.numbers.map(f32::to_bits), "{at}");
}

#[test]
fn an_independent_program_agrees() {
    let golden: Golden = serde_json::from_str(include_str!("../../golden/neighbours.json")).unwrap();
    for (table, id, hex) in &golden.signs {
        assert_eq!(&ictflow_schemas::framing::hex(&signs(table, id)), hex, "{table} {id}");
    }
    let examples: Vec<LabelledExample> =
        golden.examples.iter().map(|e| LabelledExample::of(&example(e))).collect();
    for (found, golden) in examples.iter().zip(&golden.examples) {
        assert_eq!(found.rate, golden.rate, "{}", golden.event_id);
    }
    let vectors: HashMap<Id, Quantised> =
        golden.vectors.iter().map(|(item, v)| (item.as_str().into(), v.as_slice().into())).collect();
    let texts = Texts::new(&vectors, &golden.centre).unwrap();
    let options = Options {
        neighbourhood: Neighbourhood {
            ring: golden.ring,
            selected: golden.selected,
            sketch_period_ms: golden.sketch_period_ms,
            label_centre: golden.label_centre,
        },
        label_delay_ms: golden.label_delay_ms,
        ..Options::default()
    };
    let rows: Vec<Row> = Replay::new(examples.iter().cloned(), &texts, options).unwrap().collect();
    assert_eq!(rows.len(), golden.rows.len());
    for (row, golden) in rows.iter().zip(&golden.rows) {
        assert_eq!(*row.example.event_id, *golden.event_id);
        check(&row.sources, golden);
    }
    for sketch in &golden.sketches {
        let side = if sketch.side == "user" { Side::User } else { Side::Item };
        let mut found = Sketches::new(side, golden.label_centre);
        let mut changed = BTreeSet::new();
        examples.iter().for_each(|example| found.change(example, 1, &mut changed));
        found.advance(sketch.until, &mut changed);
        assert_eq!(found.rate(&sketch.id), sketch.rate, "{}", sketch.id);
        assert_eq!(found.sum(&sketch.id), Some(&*sketch.sum), "{}", sketch.id);
        assert_eq!(found.unit(&sketch.id), Some(&*sketch.unit), "{}", sketch.id);
    }
}
