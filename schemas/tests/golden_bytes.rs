//! Every version of every schema has golden bytes that decode for ever.
//!
//! `golden/values.json` holds, for each topic and version, the value's bytes and the record that they
//! mean. A new version adds an entry; no entry is ever changed. `GOLDEN=write` prints the entries of the
//! newest versions, to be added by hand.
#![allow(clippy::unwrap_used)]

use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::cot::{CotRecord, CotStatus};
use ictflow_schemas::dead_letter::DeadLetter;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::epoch::{Actives, EpochRecord, Erasure, Outputs, Progress};
use ictflow_schemas::example::{ExampleRecord, HistoryRecord, Served};
use ictflow_schemas::feature::{
    CotStatus as Status, Feature, NeighbourSource, UsedDemonstration, UsedNeighbour, VectorKind,
};
use ictflow_schemas::framing::hex;
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::Item;
use ictflow_schemas::ranking::{RankedItem, Ranking};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use std::collections::BTreeMap;
use std::fmt::Debug;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

struct Golden(BTreeMap<String, String>);

impl Golden {
    /// The bytes of a version decode to the record; those of the newest are what we write.
    fn check<T: Wire + PartialEq + Debug>(&self, version: u32, newest: bool, record: &T) {
        let name = format!("{}.v{version}", T::TOPIC.name());
        if std::env::var("GOLDEN").is_ok_and(|v| v == "write") {
            println!("  \"{name}\": \"{}\",", hex(&record.encode()));
            return;
        }
        let bytes = unhex(self.0.get(&name).unwrap_or_else(|| panic!("golden/values.json has no {name}")));
        assert_eq!(&T::decode(&bytes).unwrap(), record, "{name}");
        if newest {
            assert_eq!(hex(&record.encode()), hex(&bytes), "{name}");
        }
    }
}

#[test]
fn golden_values_decode_for_ever() {
    let golden = Golden(serde_json::from_str(include_str!("../golden/values.json")).unwrap());
    let text = |t: &str| t.to_owned();
    golden.check(
        1,
        true,
        &Interaction {
            event_id: text("e-1"),
            user_id: text("Zoë 😀"),
            item_id: text("m9"),
            kind: text("rate"),
            value: Some(4.5),
            impression_id: Some(text("s-1")),
            event_time: 1_700_000_000_123,
        },
    );
    golden.check(
        1,
        true,
        &Item {
            title: Some(text("Heat (1995)")),
            creator: None,
            categories: vec![text("Crime"), text("Drama")],
            tags: vec![],
            description: Some(text("Two men.")),
            language: Some(text("en")),
            attributes: [(text("price"), text("9.99"))].into(),
            updated_at: 5,
        },
    );
    golden.check(1, true, &Candidates { computed_at: 7, items: vec![text("m1"), text("m2")] });
    golden.check(
        1,
        true,
        &CotRecord {
            status: CotStatus::Failed,
            user_id: text("u1"),
            item_id: text("m9"),
            decision: text("positive"),
            prompt_version: text("guided-1@0011223344556677"),
            llm_model: text("model"),
            parameters: text("{\"guided\":true}"),
            text: text(""),
            attempts: 3,
            tokens_in: 400,
            tokens_out: 60,
            finish_reason: text("loop"),
            quality: 0.25,
            created_at: 1_700_000_000_456,
        },
    );
    golden.check(
        1,
        true,
        &Embedding {
            encoder: text("hashed:2"),
            digest: "ab".repeat(32),
            status: EmbeddingStatus::Ok,
            vector: vec![0.6, -0.8],
        },
    );
    let epoch = EpochRecord {
        job: text("shop"),
        epoch: 3,
        ends: [(text("interactions"), vec![10, 20])].into(),
        maxima: vec![5, i64::MIN],
        clock: 5,
        actives: Actives {
            llm_model: text("m"),
            prompt_version: text("p"),
            parameters: text("{}"),
            encoder: text("e"),
            ict_weights: text("w"),
        },
        config_digest: "cd".repeat(32),
        config: Some(text("{}")),
        starts: BTreeMap::new(),
        erasures: vec![],
        outputs: None,
    };
    golden.check(1, false, &epoch);
    golden.check(
        2,
        true,
        &EpochRecord {
            starts: [(text("interactions"), vec![3, 0])].into(),
            erasures: vec![Erasure { user: text("u1"), interactions: 7, candidates: 0 }],
            outputs: Some(Outputs {
                features: text("features.b"),
                examples: text("examples.b"),
                collection: Some(text("b")),
            }),
            ..epoch
        },
    );
    let progress =
        Progress { job: text("shop"), epoch: 3, publishing: true, writer_version: text("1"), snapshot: None };
    golden.check(1, false, &progress);
    golden.check(2, true, &Progress { snapshot: Some(2), ..progress });
    let feature = Feature {
        user_id: text("u1"),
        item_id: text("m9"),
        ict: vec![0.5, -1.25],
        demonstrations: vec![UsedDemonstration { id: text("id"), score: -7, label: 1, fresh: false }],
        k: 1,
        history: vec![text("m0")],
        cot_status: Status::Partial,
        cot_created_at: Some(9),
        ict_weights: text("w"),
        encoder: text("e"),
        prompt_version: text("p"),
        llm_model: text("m"),
        event_time: None,
        votes: vec![],
        neighbours: vec![],
        vector_kind: VectorKind::Decoder,
        history_labels: vec![],
    };
    golden.check(1, false, &feature);
    let neighbour = |source, id: &str, score, label| UsedNeighbour { source, id: text(id), score, label };
    golden.check(
        2,
        true,
        &Feature {
            demonstrations: vec![],
            k: 0,
            cot_status: Status::None,
            cot_created_at: None,
            votes: vec![2.0, 0.25, -0.5, 0.0, 1.0, 0.5, 0.125, -0.25, 0.75],
            neighbours: vec![
                neighbour(NeighbourSource::SameItem, "n1", -1, 0),
                neighbour(NeighbourSource::SameUser, "n2", 1 << 28, 1),
            ],
            vector_kind: VectorKind::Attention,
            history_labels: vec![-1],
            ..feature
        },
    );
    let example = ExampleRecord {
        user_id: text("u1"),
        event_time: -1,
        event_id: text("e-1"),
        item_id: text("m9"),
        label: 0,
        implicit: true,
        label_time: 1_800_000,
        history: vec![HistoryRecord {
            item_id: text("m0"),
            kind: text("click"),
            label: text("positive"),
            event_time: -2,
        }],
        served: None,
    };
    golden.check(1, false, &example);
    golden.check(
        2,
        true,
        &ExampleRecord {
            served: Some(Served {
                epoch: -3,
                ict_weights: text("w"),
                vector_kind: VectorKind::Attention,
                demonstrations: vec![text("d1")],
                neighbours: vec![text("n1"), text("n2")],
                votes: vec![2.0, 0.25, -0.5, 0.0, 1.0, 0.5, 0.125, -0.25, 0.75],
                ict: vec![0.5, -1.25],
            }),
            ..example
        },
    );
    golden.check(
        1,
        true,
        &DeadLetter {
            topic: text("interactions"),
            partition: 2,
            offset: 11,
            stage: text("accept"),
            reason: text("late"),
            key: Some(b"u1".to_vec()),
            payload: None,
        },
    );
    let versions: usize = Topic::ALL.iter().map(|topic| ictflow_schemas::wire::versions(*topic).len()).sum();
    // One more: the lists of a consumer.
    assert_eq!(golden.0.len(), versions + 1, "an entry for every version of every topic");
}

#[test]
fn golden_rankings_decode_for_ever() {
    let text = |t: &str| t.to_owned();
    let record = Ranking {
        user_id: text("u1"),
        ranker: text("r"),
        ranked: vec![RankedItem {
            item_id: text("m9"),
            score: 0.75,
            cot_status: Status::Stale,
            epoch: -3,
            published_at: Some(9),
            event_time: None,
            ict_weights: text("w"),
        }],
    };
    if std::env::var("GOLDEN").is_ok_and(|v| v == "write") {
        println!("  \"rankings.v1\": \"{}\",", hex(&record.encode()));
        return;
    }
    let golden: BTreeMap<String, String> =
        serde_json::from_str(include_str!("../golden/values.json")).unwrap();
    let bytes = unhex(&golden["rankings.v1"]);
    assert_eq!(Ranking::decode(&bytes).unwrap(), record);
    assert_eq!(hex(&record.encode()), hex(&bytes));
}
