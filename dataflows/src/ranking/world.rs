//! A small data set in which neighbours know what ids can't: items come one after the other, each is rated by
//! many users within a short time, and whether a user likes it depends on the group of both. In the test period
//! all items are new, so ids say nothing of them, while the ratings of users alike tell what they are.
#![allow(clippy::unwrap_used)]

use super::arms::Arm;
use super::dataset::{Prepared, Protocol};
use super::fit::Training;
use super::model::Sizes;
use super::train;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_operators::ranking::backbones;
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::tables::Rows;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::Label;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::Record;
use ictflow_schemas::wire::Wire;

/// Users, items, and the users that rate an item.
const USERS: u32 = 24;
const ITEMS: u32 = 60;
const RATERS: usize = 20;

/// Milliseconds between ratings.
const STEP: i64 = 600_000;

/// One rating in so many goes against the rule.
const NOISE: u32 = 12;

/// A rating: user, item, time, whether it is positive.
pub fn ratings() -> Vec<(u32, u32, i64, bool)> {
    let mut draws = Draws::new(11);
    let mut all = Vec::new();
    for item in 0..ITEMS {
        let group = draws.below(2);
        let mut users: Vec<u32> = (0..USERS).collect();
        draws.shuffle(&mut users);
        for user in &users[..RATERS] {
            let time = 1_600_000_000_000 + all.len() as i64 * STEP;
            let against = draws.below(NOISE) == 0;
            all.push((*user, item, time, (user % 2 == group) != against));
        }
    }
    all
}

/// The items with their ids.
pub fn items() -> impl Iterator<Item = (String, Item)> {
    (0..ITEMS).map(|item| {
        let record = Item {
            title: Some(format!("film {item}")),
            categories: (0..=item % 3).map(|category| format!("kind {category}")).collect(),
            creator: (item % 4 > 0).then(|| format!("studio {}", item % 5)),
            ..Item::default()
        };
        (format!("i{item}"), record)
    })
}

/// The data set.
pub fn data() -> Dataset {
    let mut data = Dataset::new("rate");
    for (id, record) in items() {
        data.add_item(&id, &record).unwrap();
    }
    for (user, item, time, positive) in ratings() {
        let label = if positive { Label::Positive } else { Label::Negative };
        data.add_row(&format!("u{user}"), &format!("i{item}"), time, label, true).unwrap();
    }
    data.sort();
    data
}

/// The data set, made ready by a protocol.
pub fn prepared(protocol: Protocol) -> Prepared {
    let cache = tempfile::tempdir().unwrap();
    Prepared::of(data(), protocol, &mut Hashed::new(16), cache.path()).unwrap()
}

/// A short training of a small ranker on it.
pub fn training(arm: &str, item_rows: usize, out: std::path::PathBuf) -> train::Options {
    train::Options {
        backbone: backbones::Kind::DeepFm,
        arm: Arm::named(arm).unwrap(),
        sizes: Sizes { width: 8, hidden: vec![16], ..Sizes::default() },
        training: Training { batch: 64, epochs: 4, ..Training::default() },
        seed: 1,
        rows: Rows { user: 64, item: item_rows, creator: 16, category: 16 },
        out,
        restart: false,
        told: train::Told::default(),
    }
}

/// The record on `embeddings` of a text, by the encoder of [`prepared`].
pub fn embedding(text: &str) -> Record {
    let mut encoder = Hashed::new(16);
    let value = Embedding {
        encoder: encoder.id().to_owned(),
        digest: text_digest(text).hex(),
        status: EmbeddingStatus::Ok,
        vector: encoder.embed(&[text.to_owned()]).unwrap().remove(0),
    };
    Record {
        partition: 0,
        offset: 0,
        timestamp: None,
        key: Some(value.key()),
        value: Some(value.encode()),
        framed: None,
        headers: vec![],
    }
}
