//! A ranker on views of topics: the inputs it was trained on, lists, measurements, switches.
#![allow(clippy::unwrap_used)]

use super::catalog::Catalog;
use super::catalog::tests::{catalog, embedding, item, titled};
use super::followed::tests::record as recorded;
use super::prequential::{Contender, Labelled, Prequential};
use super::ranker::Ranker;
use super::ranking::{Ranking, rankings};
use super::score::{Candidate, Reads};
use super::shortfalls::Shortfalls;
use super::subscription::{Options, Subscription, Touched};
use super::view::View;
use super::view::tests::{feature, record, upsert};
use crate::names::Names;
use crate::ranking::arms::Arm;
use crate::ranking::dataset::{Part, Prepared, Protocol};
use crate::ranking::model::{Model, Sizes, settings};
use crate::ranking::neighbours::Neighbours;
use crate::ranking::tensors::{Columns, NeighbourColumns, Retrieved, Vocabularies};
use crate::ranking::world;
use candle_core::{Device, Var};
use ictflow_connectors::local::Local;
use ictflow_connectors::topics::Topics;
use ictflow_operators::ranking::backbones::{Kind, Settings};
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::layers::{Maker, Phase, Projection};
use ictflow_operators::ranking::scalars::vote_scalars;
use ictflow_operators::ranking::tables::Rows;
use ictflow_operators::ranking::variables::{Role, Variables, values};
use ictflow_operators::ranking::weights::{self, Description, Serving, TextInput, VectorInput};
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::feature::{Feature, VectorKind};
use ictflow_schemas::framing::hashed_row;
use ictflow_schemas::neighbour::{ItemVotes, UserVotes, Votes};
use ictflow_schemas::topic::{NewRecord, Policy, Record, Topic};
use ictflow_schemas::wire::{Format, Wire};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Rows of hashed tables in which the ids of the small worlds don't meet.
const ROWS: Rows = Rows { user: 1 << 16, item: 1 << 16, creator: 1 << 16, category: 1 << 16 };

fn serving(text: Option<TextInput>, vector: Option<&str>) -> Serving {
    let vector =
        vector.map(|version| VectorInput { kind: VectorKind::Attention, ict_weights: version.to_owned() });
    Serving { labels: true, votes: true, scalar_scale: 4.0, history: 3, text, vector }
}

/// The bytes of a ranker with drawn weights that reads texts of the encoder `e`, and vectors of 4 numbers.
fn drawn(kind: Kind, seed: u64) -> Vec<u8> {
    let text = TextInput { encoder: "e".to_owned(), width: 2 };
    let rows = Rows { user: 64, item: 64, creator: 16, category: 16 };
    let settings =
        Settings { d: 4, text: true, scalars: 11, vector: true, hidden: vec![8], ..Settings::default() };
    let mut variables = Variables::new(seed);
    rows.create(settings.d, kind.init(), &mut variables).unwrap();
    let maker = &mut Maker { variables: &mut variables, init: kind.init() };
    Projection::new(maker, "field_text", text.width, ictflow_operators::ict::TEXT_HIDDEN, settings.d)
        .unwrap();
    kind.build(&settings, &mut variables).unwrap();
    let serving = Some(serving(Some(text), Some("w")));
    let description = Description { backbone: kind, settings, rows, notes: BTreeMap::new(), serving };
    weights::write(&variables, &description).unwrap()
}

fn ranker() -> Ranker {
    Ranker::from_bytes(&drawn(Kind::DeepFm, 3)).unwrap()
}

/// A view of one user's vectors, each a number four times.
fn view(pairs: &[(&str, &str, f32)]) -> View {
    let mut view = View::new(1_000_000, None);
    for (substep, (user, item, x)) in (0..).zip(pairs) {
        let feature = feature(user, item, &[*x; 4]);
        view.take(&record((user, item), Some(feature.encode()), (1, substep))).unwrap();
    }
    view
}

fn lists(ranker: &Ranker, view: &View, catalog: &Catalog, users: &[&str], top: usize) -> Vec<Ranking> {
    let users: Vec<Id> = users.iter().map(|user| Id::from(*user)).collect();
    let mut all = Vec::new();
    rankings(ranker, (view, catalog), &users, top, |ranking| {
        all.push(ranking);
        Ok(true)
    })
    .unwrap();
    all
}

#[test]
fn files_that_rank_nothing_on_topics_are_refused() {
    let good = drawn(Kind::Din, 1);
    assert_eq!(Ranker::from_bytes(&good).unwrap().kind(), Kind::Din);
    let refused = |bytes: &[u8]| Ranker::from_bytes(bytes).unwrap_err().to_string();
    assert!(refused(&good[..good.len() / 2]).contains("doesn't read"));
    let changed = |change: &dyn Fn(&mut Description)| {
        let mut description = weights::describe(&good).unwrap();
        change(&mut description);
        weights::write(&Variables::new(0), &description).unwrap()
    };
    let trained_only = refused(&changed(&|description| description.serving = None));
    assert!(trained_only.contains("how inputs are made"), "{trained_only}");
    // What a file only claims to hold isn't asked of the memory.
    let huge = refused(&changed(&|description| description.rows.user = 1 << 40));
    assert!(huge.contains("smaller than the tables"), "{huge}");
    let endless = refused(&changed(&|description| description.rows.user = usize::MAX));
    assert!(endless.contains("smaller than the tables"), "{endless}");
    let width = |description: &mut Description| {
        description.rows = Rows { user: 2, item: 2, creator: 2, category: 2 };
        description.serving.as_mut().unwrap().text.as_mut().unwrap().width = 1 << 40;
    };
    assert!(refused(&changed(&width)).contains("smaller than the tables"));
}

/// A trained model as a ranker's file: its tables hashed, the rest as it is.
fn hashed(model: &Model, kind: Kind, sizes: &Sizes, prepared: &Prepared, known: &Vocabularies) -> Vec<u8> {
    let catalog = prepared.data.catalog();
    let tables = [
        ("user", &known.user, prepared.data.users().ids(), ROWS.user),
        ("item", &known.item, prepared.data.items().ids(), ROWS.item),
        ("creator", &known.creator, catalog.creator_names().ids(), ROWS.creator),
        ("category", &known.category, catalog.category_names().ids(), ROWS.category),
    ];
    let d = sizes.width;
    let mut served = Variables::new(0);
    for (table, vocabulary, ids, rows) in tables {
        let name = format!("{table}.weight");
        let compact = values(&model.variables.get(&name).unwrap().var).unwrap();
        let mut all = vec![0.0; rows * d];
        let mut taken = HashSet::new();
        for (number, id) in (0..).zip(ids) {
            let from = vocabulary.row(number) as usize;
            let to = hashed_row(table, id, rows as u32) as usize;
            assert!(taken.insert(to), "two ids in one row");
            all[to * d..][..d].copy_from_slice(&compact[from * d..][..d]);
        }
        let var = Var::from_vec(all, (rows, d), &Device::Cpu).unwrap();
        served.adopt(&name, Role::Table, var).unwrap();
    }
    for variable in model.variables.iter().filter(|variable| variable.role != Role::Table) {
        served.adopt(&variable.name, variable.role, variable.var.clone()).unwrap();
    }
    let text = TextInput { encoder: prepared.encoder.clone(), width: prepared.text_width };
    let serving = Serving {
        scalar_scale: sizes.scalar_scale,
        history: crate::ranking::dataset::HISTORY,
        ..serving(Some(text), None)
    };
    let settings = settings(model.arm(), sizes);
    let description =
        Description { backbone: kind, settings, rows: ROWS, notes: BTreeMap::new(), serving: Some(serving) };
    weights::write(&served, &description).unwrap()
}

/// Texts, labels, votes, histories, creators, categories: what a ranker is served is what it was trained on.
#[test]
fn served_inputs_give_the_logits_of_training() {
    let prepared = world::prepared(Protocol::Time);
    let known = Vocabularies::of(&prepared);
    let columns = Columns::of(&prepared, &known).unwrap();
    let arm = Arm::named("votes").unwrap();
    let sizes = Sizes { width: 8, hidden: vec![16], ..Sizes::default() };
    // Votes of any value, so that none takes the place of another.
    let mut draws = Draws::new(5);
    let mut number = |below: u32| i64::from(draws.below(below));
    let votes: Vec<Votes> = (0..prepared.len())
        .map(|_| Votes {
            same_item: ItemVotes {
                ring: number(128),
                ring_positives: number(64),
                selected: 1 + number(32),
                positives: number(32),
                weights: 1 + number(1 << 20),
                weighted_labels: number(1 << 20) - (1 << 19),
            },
            same_user: UserVotes {
                selected: number(32),
                positives: number(32),
                weights: 1 + number(1 << 20),
                weighted_labels: number(1 << 20) - (1 << 19),
                deviations: number(20_000) - 10_000,
                weighted_deviations: number(1 << 29) - (1 << 28),
            },
        })
        .collect();
    let mut neighbours = Neighbours {
        votes: votes.iter().flat_map(|votes| vote_scalars(votes.numbers())).collect(),
        ..Neighbours::default()
    };
    for nearest in &mut neighbours.nearest {
        let places = prepared.len() * ictflow_operators::ict::MAX_NEIGHBOURS;
        nearest.users = vec![0; places];
        nearest.items = vec![0; places];
        nearest.labels = vec![0; places];
        nearest.scores = vec![0.0; places];
        nearest.ages = vec![0.0; places];
        nearest.residuals = vec![0.0; places];
        nearest.there = vec![0.0; places];
    }
    let neighbours = NeighbourColumns::of(neighbours, &known).unwrap();

    // The topics, as a job would have filled them.
    let semantics = Arc::new(Semantics::default());
    let encoder = (prepared.encoder.clone(), prepared.text_width);
    let mut catalog = Catalog::new(Format::Avro, semantics, Some(encoder));
    let mut embedded = HashSet::new();
    for (id, record) in world::items() {
        assert!(catalog.take_item(&item(&id, Some(&record))));
        embedded.insert(record.text());
    }
    for text in embedded {
        assert!(catalog.take_embedding(&world::embedding(&text)));
    }
    assert!(!catalog.waits());
    let range = prepared.range(Part::Test);
    let mut view = View::new(prepared.len(), None);
    let (users, items) = (prepared.data.users().ids(), prepared.data.items().ids());
    let rows = prepared.data.rows();
    let samples: Vec<(usize, &Id, &Id)> = range
        .clone()
        .zip(prepared.part(Part::Test))
        .map(|(place, sample)| {
            (place, &users[rows[sample.row as usize].user as usize], &items[sample.item as usize])
        })
        .collect();
    for ((place, user, item), sample) in samples.iter().zip(prepared.part(Part::Test)) {
        let before = prepared.histories.before(sample.row);
        let feature = Feature {
            history: before.iter().map(|row| items[rows[*row as usize].item as usize].to_string()).collect(),
            history_labels: before.iter().map(|row| rows[*row as usize].label.number()).collect(),
            votes: votes[*place].numbers().to_vec(),
            ..feature(user, item, &[])
        };
        view.take(&record((user, item), Some(feature.encode()), (1, *place as i64))).unwrap();
    }
    let candidates: Vec<Candidate<'_>> = samples
        .iter()
        .map(|(_, user, item)| Candidate { user, item, vector: view.get(user, item).unwrap() })
        .collect();

    for kind in Kind::ALL {
        let model = Model::new(kind, arm, &sizes, &columns, 9).unwrap();
        let ranker = Ranker::from_bytes(&hashed(&model, kind, &sizes, &prepared, &known)).unwrap();
        let samples: Vec<u32> = range.clone().map(|place| place as u32).collect();
        let batch = columns
            .batch(&samples, model.arm(), Retrieved { neighbours: Some(&neighbours), demonstrations: None })
            .unwrap();
        let trained = values(&model.logits(&batch, &mut Phase::Serving).unwrap()).unwrap();
        let served = ranker.logits(&candidates, &catalog, Reads::ALL).unwrap();
        assert!(trained.len() > 100 && trained.len() == served.len());
        let spread = trained.iter().fold(0.0_f32, |most, x| most.max((x - trained[0]).abs()));
        assert!(spread > 0.01, "{kind:?}: the logits say something");
        for ((trained, served), (place, user, item)) in
            trained.iter().zip(&served).zip(&samples_of(&prepared))
        {
            assert!((trained - served).abs() < 1e-5, "{kind:?} {place} {user} {item}: {trained}, {served}");
        }
        let without = ranker.logits(&candidates, &catalog, Reads::NEITHER).unwrap();
        assert_ne!(served, without, "{kind:?}: votes count");
    }
}

/// The test samples by place, for messages.
fn samples_of(prepared: &Prepared) -> Vec<(usize, Id, Id)> {
    let (users, items, rows) =
        (prepared.data.users().ids(), prepared.data.items().ids(), prepared.data.rows());
    let named = |(place, sample): (usize, &ictflow_operators::ranking::split::Sample)| {
        let user = users[rows[sample.row as usize].user as usize].clone();
        (place, user, items[sample.item as usize].clone())
    };
    prepared.range(Part::Test).zip(prepared.part(Part::Test)).map(named).collect()
}

#[test]
fn lists_are_by_logit_then_item_whatever_is_ranked_with_them() {
    let (ranker, mut catalog) = (ranker(), catalog());
    catalog.take_item(&item("b", Some(&titled("Blue Harbour"))));
    let many: Vec<String> = (0..700).map(|n| format!("i{n}")).collect();
    let mut pairs =
        vec![("u", "b", 1.5), ("u", "d", -0.5), ("u", "c", 2.5), ("u", "a", 0.25), ("v", "b", 1.5)];
    pairs.extend(many.iter().map(|item| ("w", item.as_str(), 0.1)));
    let view = view(&pairs);
    let all = lists(&ranker, &view, &catalog, &["u", "nobody", "v", "w"], 1_000);
    assert_eq!(all.iter().map(|list| list.live).collect::<Vec<_>>(), [4, 0, 1, 700]);
    let first = &all[0];
    assert!(first.ranked.is_sorted_by(|a, b| (-a.logit, &a.item) <= (-b.logit, &b.item)));
    let titles: Vec<&str> = first.ranked.iter().map(|ranked| &*ranked.title).collect();
    assert_eq!(titles.iter().filter(|title| **title == "Blue Harbour").count(), 1);
    // Alone, and cut, it is the same list.
    let alone = lists(&ranker, &view, &catalog, &["u"], 2);
    assert_eq!((alone[0].live, alone[0].ranked.len()), (4, 2));
    for (alone, together) in alone[0].ranked.iter().zip(&first.ranked) {
        assert_eq!(alone.item, together.item);
        assert!((alone.logit - together.logit).abs() < 1e-6);
    }
    // A list that isn't wanted any more ends the work.
    let mut given = 0;
    let users = [Id::from("u"), "v".into()];
    let ended = rankings(&ranker, (&view, &catalog), &users, 1, |_| {
        given += 1;
        Ok(false)
    });
    ended.unwrap();
    assert_eq!(given, 1);
}

#[test]
fn vectors_of_another_width_are_refused_and_what_is_missing_is_counted() {
    let (ranker, mut catalog) = (ranker(), catalog());
    let mut view = view(&[("u", "b", 1.0), ("u", "c", 1.0), ("v", "b", 1.0)]);
    catalog.take_item(&item("b", Some(&titled("Blue Harbour"))));
    let other = Feature {
        ict_weights: "x".to_owned(),
        encoder: "f".to_owned(),
        vector_kind: VectorKind::Decoder,
        votes: vec![0.0; 9],
        history_labels: vec![],
        ..feature("w", "b", &[0.0; 4])
    };
    view.take(&record(("w", "b"), Some(other.encode()), (2, 0))).unwrap();
    let found = Shortfalls::of(&ranker, &view, &catalog);
    let expected = Shortfalls {
        live: 4,
        other_weights: BTreeMap::from([("x".to_owned(), 1)]),
        other_kind: 1,
        other_encoder: BTreeMap::from([("f".to_owned(), 1)]),
        no_votes: 3,
        no_labels: 1,
        no_text: 1,
        no_item: 1,
    };
    assert_eq!(found, expected);
    let warnings = found.warnings(&ranker);
    assert_eq!(warnings.len(), 7, "{warnings:?}");
    assert!(
        warnings[0]
            .1
            .starts_with("1 of 4 live vectors are of the ICT weights x, the ranker was trained with w")
    );
    catalog.take_embedding(&embedding(&titled("Blue Harbour").text(), Some([1.0, 0.0])));
    assert_eq!(Shortfalls::of(&ranker, &view, &catalog).no_text, 0);
    assert!(Shortfalls::default().warnings(&ranker).is_empty());

    view.take(&record(("w", "c"), Some(feature("w", "c", &[0.0; 5]).encode()), (2, 1))).unwrap();
    let wide = view.get("w", "c").unwrap();
    let candidate = Candidate { user: "w", item: "c", vector: wide };
    let refused = ranker.logits(&[candidate], &catalog, Reads::ALL).unwrap_err().to_string();
    assert!(refused.contains("has 5 numbers, the ranker reads 4"), "{refused}");
}

#[test]
fn measured_are_events_with_a_vector_of_before_their_label() {
    let (ranker, catalog) = (ranker(), catalog());
    let mut pairs: Vec<(String, String, f32)> = Vec::new();
    for n in 0..40 {
        pairs.push((format!("u{}", n % 4), format!("i{n}"), (n * 7 % 11) as f32 / 3.0 - 1.5));
    }
    let named: Vec<(&str, &str, f32)> = pairs.iter().map(|(u, i, x)| (u.as_str(), i.as_str(), *x)).collect();
    let view = view(&named);
    let logit = |user: &str, item: &str| {
        let candidate = Candidate { user, item, vector: view.get(user, item).unwrap() };
        ranker.logits(&[candidate], &catalog, Reads::ALL).unwrap()[0]
    };
    // Labels by the ranker's own order, but for one: one of 20 · 20 pairs of events stands the wrong way round
    // for each place that it is moved.
    let mut order: Vec<&(&str, &str, f32)> = named.iter().collect();
    order.sort_by(|a, b| logit(a.0, a.1).total_cmp(&logit(b.0, b.1)));
    let labels: Vec<bool> = (0..order.len()).map(|place| place >= 20).collect();
    let events: Vec<Labelled<'_>> = (order.iter().zip(&labels))
        .map(|((user, item, _), positive)| Labelled { user, item, time: 2_000, positive: *positive })
        .collect();
    let mut measured = Prequential::new(Contender::with_and_without(&ranker));
    measured.predict(&view, &catalog, &events[..30]).unwrap();
    measured.predict(&view, &catalog, &events[30..]).unwrap();
    let absent = Labelled { user: "u0", item: "nowhere", time: 2_000, positive: true };
    measured.predict(&view, &catalog, &[absent]).unwrap();
    let report = measured.report();
    assert_eq!((report.predicted, report.positive, report.users, report.without_vector), (40, 20, 4, 1));
    let [with, without] = &report.rows[..] else { panic!("two rows") };
    assert_eq!((with.name.as_str(), with.auc), ("with", Some(1.0)));
    assert_eq!(with.gauc, Some(1.0));
    assert!(without.auc.unwrap() < 1.0 && with.log_loss != without.log_loss);

    // The newest event of these histories is at 1,000.
    let late = Labelled { time: 999, ..events[0] };
    let leak = measured.predict(&view, &catalog, &[late]).unwrap_err().to_string();
    assert!(leak.contains("made of an event at 1000, the predicted one is of 999"), "{leak}");
    assert_eq!(measured.report(), report, "nothing of it is kept");
    assert!(Prequential::new(vec![]).report().rows.is_empty());
}

/// A store with a job's topics, of one partition each.
struct Store {
    _folder: tempfile::TempDir,
    file: std::path::PathBuf,
    topics: Local,
    names: Names,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("topics.sqlite");
        let mut topics = Local::open(&file).unwrap();
        let names = Names::new(&BTreeMap::new(), "");
        for topic in [Topic::Features, Topic::Items, Topic::Embeddings, Topic::Epochs] {
            topics.ensure(names.of(topic), 1, Policy::Append).unwrap();
        }
        topics.ensure("features.b", 1, Policy::Append).unwrap();
        Store { _folder: folder, file, topics, names }
    }

    fn append(&mut self, topic: &str, records: Vec<Record>) {
        let new = |record: Record| NewRecord {
            topic: topic.to_owned(),
            partition: 0,
            timestamp: None,
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        let records: Vec<NewRecord> = records.into_iter().map(new).collect();
        self.topics.append(&records).unwrap();
    }

    fn subscribe(&self) -> ictflow_connectors::Result<Subscription> {
        let options = Options {
            job: Some("j".to_owned()),
            names: self.names.clone(),
            items: Format::Avro,
            semantics: Arc::new(Semantics::default()),
            encoder: Some(("e".to_owned(), 2)),
            users: None,
            most: 100,
        };
        Subscription::open(Box::new(Local::open_read_only(&self.file)?), options)
    }
}

fn bounds(epoch: i64, features: Option<&str>) -> Record {
    let value = recorded("j", epoch, features);
    Record { key: Some(value.key()), value: Some(value.encode()), ..item("", None) }
}

/// Takes turns until one changes something.
fn turn(subscription: &mut Subscription) -> Touched {
    for _ in 0..100 {
        let touched = subscription.turn(Duration::from_millis(5)).unwrap();
        if touched != Touched::default() {
            return touched;
        }
    }
    panic!("nothing came")
}

#[test]
fn a_subscription_follows_vectors_items_embeddings_and_the_switch_to_other_outputs() {
    let mut store = Store::new();
    store.append("features", vec![upsert("u", "a", 1.0, (1, 0)), upsert("u", "b", 2.0, (1, 1))]);
    store.append("features.b", vec![upsert("u", "c", 3.0, (-1, 0)), upsert("v", "c", 3.0, (-1, 1))]);
    store.append("items", vec![item("a", Some(&titled("one")))]);
    store.append("epochs", vec![bounds(1, None)]);
    let mut subscription = store.subscribe().unwrap();
    assert_eq!((subscription.topic(), subscription.view.len()), ("features", 2));
    assert!(subscription.catalog.waits() && subscription.catalog.text("a").is_none());

    store.append("features", vec![record(("u", "b"), None, (2, 0)), upsert("w", "a", 1.0, (2, 1))]);
    let touched = turn(&mut subscription);
    assert_eq!(touched.users, BTreeSet::from([Id::from("u"), "w".into()]));
    assert!(!touched.catalog && !touched.switched && subscription.view.get("u", "b").is_none());

    let text = |title: &str| titled(title).text();
    store.append(
        "embeddings",
        vec![embedding(&text("two"), Some([0.0, 1.0])), embedding(&text("one"), Some([1.0, 0.0]))],
    );
    assert!(turn(&mut subscription).catalog && subscription.catalog.text("a").is_some());
    // A text that was embedded before an item had it is found by reading the log once more.
    store.append("items", vec![item("c", Some(&titled("two")))]);
    assert!(turn(&mut subscription).catalog && subscription.catalog.text("c").is_some());
    assert!(!subscription.catalog.waits());

    store.append("epochs", vec![bounds(2, None), bounds(3, Some("features.b"))]);
    let touched = turn(&mut subscription);
    assert!(touched.switched && subscription.topic() == "features.b");
    assert_eq!(subscription.view.users(), BTreeSet::from([Id::from("u"), "v".into()]));
    assert!(subscription.view.get("u", "a").is_none(), "it stood on the topic before");
    // What a job writes after a promote is newer than the backfill's.
    store.append("features.b", vec![upsert("u", "c", 9.0, (3, 0))]);
    assert_eq!(turn(&mut subscription).users, BTreeSet::from([Id::from("u")]));
    assert_eq!(subscription.view.get("u", "c").unwrap().ict[0], 9.0);

    // Who comes later is told by the log of bounds.
    let later = store.subscribe().unwrap();
    assert_eq!((later.topic(), later.view.len()), ("features.b", 2));
    // A rollback names the topic before.
    store.append("epochs", vec![bounds(4, Some("features"))]);
    assert!(turn(&mut subscription).switched);
    assert_eq!(subscription.view.users(), BTreeSet::from([Id::from("u"), "w".into()]));
}

/// One turn takes one poll's records; what is measured must not miss any.
#[test]
fn a_subscription_that_catches_up_takes_all_that_stands_there() {
    let mut store = Store::new();
    store.append("items", vec![item("a", Some(&titled("one")))]);
    let mut subscription = store.subscribe().unwrap();
    assert_eq!(subscription.catch_up().unwrap(), Touched::default());
    let newest = 2_500;
    store.append("features", (1..=newest).map(|epoch| upsert("u", "a", epoch as f32, (epoch, 0))).collect());
    store.append("embeddings", vec![embedding(&titled("one").text(), Some([0.0, 1.0]))]);
    let touched = subscription.catch_up().unwrap();
    assert!(touched.catalog && touched.users == BTreeSet::from([Id::from("u")]));
    assert_eq!(subscription.view.get("u", "a").unwrap().ict[0], newest as f32);
    assert!(subscription.catalog.text("a").is_some());
    store.append("epochs", vec![bounds(1, Some("features.b"))]);
    assert!(subscription.catch_up().unwrap().switched && subscription.view.is_empty());
}

#[test]
fn a_topic_that_does_not_exist_is_named() {
    let mut store = Store::new();
    store.append("epochs", vec![bounds(1, Some("features.gone"))]);
    let refused = store.subscribe().map(drop).unwrap_err().to_string();
    assert!(refused.contains("topic features.gone doesn't exist"), "{refused}");
}
