//! No record of ours outgrows what `Semantics::largest_record` says, which a store must take.
#![allow(clippy::unwrap_used)]

use ictflow_schemas::config::Semantics;
use ictflow_schemas::cot::{CotRecord, CotStatus};
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::example::{ExampleRecord, HistoryRecord, Served};
use ictflow_schemas::feature::{
    Feature, NeighbourSource, UsedDemonstration, UsedNeighbour, VectorKind, feature_key,
};
use ictflow_schemas::framing::Frame;
use ictflow_schemas::limits;
use ictflow_schemas::wire::Wire;

/// The longest name that a version may have, as services name models.
const VERSION: usize = 512;

/// A store's framing and our three headers, as `kafka` counts them.
const FRAMING: usize = 512;

/// By name, the size of each record at its largest.
fn largest(semantics: &Semantics) -> Vec<(&'static str, usize)> {
    let id = || "\u{e9}".repeat(semantics.max_id_bytes / 2) + &"x".repeat(semantics.max_id_bytes % 2);
    let version = || "v".repeat(VERSION);
    let feature = Feature {
        user_id: id(),
        item_id: id(),
        ict: vec![f32::MIN; limits::VECTOR_WIDTH],
        demonstrations: vec![
            UsedDemonstration {
                id: "00000000-0000-0000-0000-000000000000".to_owned(),
                score: i64::MIN,
                label: 1,
                fresh: true,
            };
            semantics.demonstrations
        ],
        k: i32::MIN,
        history: vec![id(); semantics.history_length],
        cot_status: ictflow_schemas::feature::CotStatus::Full,
        cot_created_at: Some(i64::MIN),
        ict_weights: version(),
        encoder: version(),
        prompt_version: version(),
        llm_model: version(),
        event_time: Some(i64::MIN),
        votes: vec![f32::MIN; ictflow_schemas::neighbour::VOTES],
        neighbours: vec![
            UsedNeighbour {
                source: NeighbourSource::SameUser,
                id: "00000000-0000-0000-0000-000000000000".to_owned(),
                score: i64::MIN,
                label: 1,
            };
            2 * semantics.neighbours.selected
        ],
        vector_kind: VectorKind::Attention,
        history_labels: vec![-1; semantics.history_length],
    };
    let entry = HistoryRecord {
        item_id: id(),
        kind: "k".repeat(limits::KIND_BYTES),
        label: "positive".to_owned(),
        event_time: i64::MIN,
    };
    let example = ExampleRecord {
        user_id: id(),
        event_time: i64::MIN,
        event_id: id(),
        item_id: id(),
        label: 1,
        implicit: true,
        label_time: i64::MIN,
        history: vec![entry; semantics.history_length],
        served: Some(Served {
            epoch: i64::MIN,
            ict_weights: version(),
            vector_kind: VectorKind::Attention,
            demonstrations: vec!["00000000-0000-0000-0000-000000000000".to_owned(); semantics.demonstrations],
            neighbours: vec![
                "00000000-0000-0000-0000-000000000000".to_owned();
                2 * semantics.neighbours.selected
            ],
            votes: vec![f32::MIN; ictflow_schemas::neighbour::VOTES],
            ict: vec![f32::MIN; limits::VECTOR_WIDTH],
        }),
    };
    // More of key and payload than a dead letter carries.
    let mut letter = DeadLetter {
        topic: "t".repeat(249),
        partition: i32::MIN,
        offset: i64::MIN,
        stage: "accept".to_owned(),
        reason: "too_many_candidates".to_owned(),
        key: Some(vec![1; semantics.max_record_bytes / 3]),
        payload: Some(vec![2; 2 * semantics.max_record_bytes]),
    };
    letter.cut(semantics.max_record_bytes);
    let kept = letter.key.as_ref().unwrap().len() + letter.payload.as_ref().unwrap().len();
    assert_eq!(kept, semantics.max_record_bytes);
    let cot = CotRecord {
        status: CotStatus::Ok,
        user_id: id(),
        item_id: id(),
        decision: "positive".to_owned(),
        prompt_version: version(),
        llm_model: version(),
        parameters: "p".repeat(1_024),
        text: "t".repeat(limits::COT_BYTES),
        attempts: i32::MIN,
        tokens_in: i64::MIN,
        tokens_out: i64::MIN,
        finish_reason: "characters".to_owned(),
        quality: 1.0,
        created_at: i64::MIN,
    };
    let embedding = Embedding {
        encoder: version(),
        digest: "0".repeat(64),
        status: EmbeddingStatus::Ok,
        vector: vec![f32::MIN; limits::TEXT_WIDTH],
    };
    let example_key = Frame::new().text(&id()).int(0).text(&id()).into_bytes();
    vec![
        ("feature", feature_key(&id(), &id()).len() + feature.encode().len()),
        ("example", example_key.len() + example.encode().len()),
        ("dead letter", letter.key().len() + letter.encode().len()),
        ("cot", 71 + cot.encode().len()),
        ("embedding", embedding.key().len() + embedding.encode().len()),
    ]
}

#[test]
fn no_record_outgrows_the_bound() {
    for (history_length, demonstrations, max_id_bytes, max_record_bytes) in [
        (20, 4, 256, 262_144),
        (1, 2, 1, limits::LEAST_RECORD_BYTES),
        (1_000, 64, limits::ID_BYTES, limits::LEAST_RECORD_BYTES),
        (1_000, 64, 7, 100_000),
        (1, 2, limits::ID_BYTES, 3_000_000),
    ] {
        let semantics = Semantics {
            history_length,
            demonstrations,
            max_id_bytes,
            max_record_bytes,
            prompt_history: 1,
            ..Semantics::default()
        };
        assert_eq!(semantics.problems(), Vec::<String>::new());
        let bound = semantics.largest_record();
        for (name, size) in largest(&semantics) {
            assert!(
                size + FRAMING <= bound,
                "{name} of {size} bytes, bound {bound}: {history_length} {max_id_bytes}"
            );
        }
        // The bound isn't loose either: what it adds to the largest of them is its overhead.
        let most = largest(&semantics).into_iter().map(|(_, size)| size).max().unwrap();
        assert!(bound <= most + 2 * limits::OVERHEAD + history_length * 40, "{bound} for {most}");
    }
}

#[test]
fn a_dead_letter_is_cut_key_first_and_only_beyond_the_limit() {
    let letter = |key: usize, payload: usize| {
        let mut letter = DeadLetter {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            stage: "accept".into(),
            reason: "oversized".into(),
            key: Some(vec![1; key]),
            payload: Some(vec![2; payload]),
        };
        letter.cut(10);
        (letter.key.unwrap().len(), letter.payload.unwrap().len())
    };
    for (given, kept) in
        [((3, 7), (3, 7)), ((3, 8), (3, 7)), ((10, 0), (10, 0)), ((11, 5), (10, 0)), ((0, 11), (0, 10))]
    {
        assert_eq!(letter(given.0, given.1), kept, "{given:?}");
    }
}
