//! `ictflow rank` as a subscriber of a job on a real Kafka: its scores are those of the ranker on what stands on
//! the topics, by a computation of its own; aborted transactions stay unseen, and pairs leave by tombstone.

use crate::kafka_job::send;
use crate::parity::{mutated, semantics};
use candle_core::{Device, Tensor};
use ictflow_connectors::clock;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_dataflows::epochs::read_whole;
use ictflow_operators::ict::{TEXT_HIDDEN, Weights, count_scalar};
use ictflow_operators::ranking::backbones::{Backbone, Inputs, Kind, Settings};
use ictflow_operators::ranking::ids::{Ids, Tables};
use ictflow_operators::ranking::layers::{Maker, Phase, Projection};
use ictflow_operators::ranking::tables::Rows;
use ictflow_operators::ranking::variables::{Variables, values};
use ictflow_operators::ranking::weights::{self, Description, Serving, TextInput, VectorInput};
use ictflow_schemas::feature::{Feature, VectorKind, feature_key};
use ictflow_schemas::framing::{Partitioner, hashed_row};
use ictflow_schemas::item::Item;
use ictflow_schemas::ranking::Ranking;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_PUBLISHED_AT, HEADER_SUBSTEP, Policy, Topic};
use ictflow_schemas::vector::quantise;
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::kafka::{Broker, unique};
use ictflow_tests::support::program::{Program, become_one};
use ictflow_tests::support::world::{self, Store, World, hashed, item, settle, template};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

const TEST: &str = "rank::lists_are_what_the_ranker_says_of_the_topics_and_follow_them";
const LIMIT: Duration = Duration::from_secs(30);

/// The width of vectors, of texts, and the history that the ranker reads.
const D: usize = 32;
const TEXT: usize = 384;
const HISTORY: usize = 20;
const ROWS: Rows = Rows { user: 512, item: 1_024, creator: 64, category: 64 };
const SCALE: f64 = 4.0;

/// A ranker with drawn weights, and its parts.
struct Drawn {
    bytes: Vec<u8>,
    tables: Tables,
    text: Projection,
    backbone: Box<dyn Backbone>,
}

fn drawn(kind: Kind, ict_weights: &str) -> Drawn {
    let settings =
        Settings { d: D, text: true, scalars: 11, vector: true, hidden: vec![32, 16], ..Settings::default() };
    let mut variables = Variables::new(5);
    let tables = ROWS.create(D, kind.init(), &mut variables).unwrap();
    let maker = &mut Maker { variables: &mut variables, init: kind.init() };
    let text = Projection::new(maker, "field_text", TEXT, TEXT_HIDDEN, D).unwrap();
    let backbone = kind.build(&settings, &mut variables).unwrap();
    let serving = Serving {
        labels: true,
        votes: true,
        scalar_scale: SCALE,
        history: HISTORY,
        text: Some(TextInput { encoder: format!("hashed:{TEXT}"), width: TEXT }),
        vector: Some(VectorInput { kind: VectorKind::Decoder, ict_weights: ict_weights.to_owned() }),
    };
    let (notes, serving) = (BTreeMap::new(), Some(serving));
    let description = Description { backbone: kind, settings, rows: ROWS, notes, serving };
    Drawn { bytes: weights::write(&variables, &description).unwrap(), tables, text, backbone }
}

/// The catalog as the script leaves it.
struct Items(BTreeMap<String, (Item, Vec<f32>)>);

impl Items {
    fn of(script: &[Value]) -> Self {
        let mut items = BTreeMap::new();
        for line in script.iter().filter(|line| line["topic"] == "items") {
            let id = line["key"].as_str().unwrap().to_owned();
            match serde_json::from_value::<Option<Item>>(line["value"].clone()).unwrap() {
                Some(item) => {
                    let vector = Hashed::new(TEXT).embed(&[item.text()]).unwrap().remove(0);
                    let vector = quantise(&vector).iter().map(|x| f32::from(*x) / 16_384.0).collect();
                    items.insert(id, (item, vector))
                }
                None => items.remove(&id),
            };
        }
        Items(items)
    }

    fn creator(&self, id: &str) -> u32 {
        let creator = self.0.get(id).and_then(|(item, _)| item.creator_id());
        creator.map_or(0, |creator| hashed_row("creator", &creator, ROWS.creator as u32))
    }

    /// Four places are enough for the categories of these films.
    fn categories(&self, id: &str) -> [u32; 8] {
        let mut rows = [0; 8];
        let own = self.0.get(id).map(|(item, _)| item.category_ids()).unwrap_or_default();
        for (row, category) in rows.iter_mut().zip(&own) {
            *row = hashed_row("category", category, ROWS.category as u32);
        }
        assert!(own.len() <= rows.len());
        rows
    }
}

impl Drawn {
    /// The probability of one pair, by nothing of the command's but the ranker's weights.
    fn score(&self, feature: &Feature, items: &Items) -> f64 {
        let device = &Device::Cpu;
        let (user, item) = (feature.user_id.as_str(), feature.item_id.as_str());
        let of_item = |id: &str| hashed_row("item", id, ROWS.item as u32);
        let mut entries = [(0, 0, [0; 8]); HISTORY];
        for (entry, id) in entries.iter_mut().zip(&feature.history) {
            *entry = (of_item(id), items.creator(id), items.categories(id));
        }
        assert!(feature.history.len() <= HISTORY);
        let column = |values: Vec<u32>| Tensor::from_vec(values, (1, HISTORY), device).unwrap();
        let ids = Ids {
            user: Tensor::new(&[hashed_row("user", user, ROWS.user as u32)], device).unwrap(),
            item: Tensor::new(&[of_item(item)], device).unwrap(),
            creator: Tensor::new(&[items.creator(item)], device).unwrap(),
            categories: Tensor::new(&[items.categories(item)], device).unwrap(),
            history_items: column(entries.iter().map(|entry| entry.0).collect()),
            history_creators: column(entries.iter().map(|entry| entry.1).collect()),
            history_categories: Tensor::new(&[entries.map(|entry| entry.2)], device).unwrap(),
        };
        let known: Vec<&Vec<f32>> =
            feature.history.iter().filter_map(|id| Some(&items.0.get(id)?.1)).collect();
        let mean: Vec<f32> = (0..TEXT)
            .map(|i| known.iter().map(|vector| vector[i]).sum::<f32>() / known.len().max(1) as f32)
            .collect();
        let own = items.0.get(item).map_or_else(|| vec![0.0; TEXT], |(_, vector)| vector.clone());
        let projected = |vector: Vec<f32>| {
            self.text.forward(&Tensor::from_vec(vector, (1, TEXT), device).unwrap()).unwrap()
        };
        let of = |label: i32| feature.history_labels.iter().filter(|other| **other == label).count() as f32;
        let (positive, all) = (of(1), of(1) + of(0));
        let rate = (1_024.0 * (positive + 1.0) / (all + 2.0)).floor() / 1_024.0 - 0.5;
        let mut scalars = vec![rate, count_scalar(all as u64)];
        let votes = if feature.votes.is_empty() { vec![0.0; 9] } else { feature.votes.clone() };
        scalars.extend(votes);
        for count in [2, 6] {
            scalars[count] = count_scalar(scalars[count] as u64);
        }
        let scalars: Vec<f32> = scalars.into_iter().map(|x| x * SCALE as f32).collect();
        let inputs = Inputs {
            ids,
            tables: self.tables.clone(),
            text: Some([projected(own), projected(mean)]),
            scalars: Some(Tensor::from_vec(scalars, (1, 11), device).unwrap()),
            vector: Some(Tensor::from_vec(feature.ict.clone(), (1, D), device).unwrap()),
        };
        let logit = values(&self.backbone.logits(&inputs, &mut Phase::Serving).unwrap()).unwrap()[0];
        1.0 / (1.0 + (-f64::from(logit)).exp())
    }
}

fn config(world: &World, broker: &Broker, folder: &Path) -> String {
    let names = world.names();
    let named: String =
        Topic::ALL.map(|topic| format!("{} = \"{}\"\n", topic.name(), names.of(topic))).concat();
    let text = format!(
        "job = \"{}\"\nstate = \"{}\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n\
         [topics]\nkind = \"kafka\"\n[topics.names]\n{named}[topics.kafka]\nbootstrap_servers = [\"{}\"]\n",
        world.job,
        folder.join("state").display(),
        broker.bootstrap()
    );
    let file = folder.join("job.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn features(world: &World) -> BTreeMap<(String, String), Feature> {
    let values = world.compacted(Topic::Features);
    let features = values.values().map(|value| Feature::decode(value).unwrap());
    features.map(|feature| ((feature.user_id.clone(), feature.item_id.clone()), feature)).collect()
}

/// Writes a vector that no reader may see: its transaction is aborted.
fn abort_a_vector(broker: &Broker, world: &World, of: &Feature) {
    let ghost = Feature { user_id: "ghost".to_owned(), ..of.clone() };
    let producer: BaseProducer = broker.client().set("transactional.id", unique("aborts")).create().unwrap();
    producer.init_transactions(LIMIT).unwrap();
    producer.begin_transaction().unwrap();
    let (key, value) = (feature_key("ghost", &of.item_id), ghost.encode());
    let header = |key| Header { key, value: Some("1000000") };
    let headers = [HEADER_EPOCH, HEADER_SUBSTEP, HEADER_PUBLISHED_AT]
        .into_iter()
        .fold(OwnedHeaders::new(), |headers, key| headers.insert(header(key)));
    let names = world.names();
    let message = BaseRecord::to(names.of(Topic::Features)).partition(0).key(&key).payload(&value);
    producer.send(message.headers(headers)).map_err(|(error, _)| error).unwrap();
    producer.flush(LIMIT).unwrap();
    producer.abort_transaction(LIMIT).unwrap();
}

#[test]
fn lists_are_what_the_ranker_says_of_the_topics_and_follow_them() {
    become_one();
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut script =
        mutated(path, &["--no-mutations", "--events", "300", "--seed", "3", "--partitions", "3"]);
    let mut world = World::new(path, &unique("rank"), semantics(10), world::weights(TEXT));
    world.store = Store::Kafka(Box::new(broker.config()));
    world.prefix = format!("{}-", unique("rank"));
    world.epoch = 100;
    let names = world.names();
    let mut topics = world.topics();
    for topic in [Topic::Interactions, Topic::Items, Topic::Candidates] {
        topics.ensure(names.of(topic), world.partitions, Policy::Append).unwrap();
    }
    let producer: BaseProducer = broker.client().create().unwrap();
    send(&producer, &script, &world);
    let mut job = world.start(template(), hashed());
    settle(&mut job);

    let version = Weights::from_safetensors(&world.weights).unwrap().version().to_owned();
    let ranker = drawn(Kind::DeepFm, &version);
    let (file, config) = (path.join("ranker.safetensors"), config(&world, broker, path));
    std::fs::write(&file, &ranker.bytes).unwrap();
    let first = ["rank", "--config", &config, "--model", file.to_str().unwrap(), "--top", "1000"];
    let run = |more: &[&str]| {
        let output = Program::run(TEST, &[&first[..], more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        (Program::printed(&text(&output.stdout)), text(&output.stderr))
    };

    // Every list, against the ranker on what stands on the topic.
    let standing = features(&world);
    abort_a_vector(broker, &world, standing.values().next().unwrap());
    let items = Items::of(&script);
    let before = clock::now_ms();
    let (lists, said) = run(&["--all", "--json"]);
    let after = clock::now_ms();
    assert!(!said.contains("ICT weights"), "{said}");
    let mut ranked = BTreeMap::new();
    for list in &lists {
        let scores: Vec<f64> =
            list["ranked"].as_array().unwrap().iter().map(|one| one["score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "{list}");
        for one in list["ranked"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            ranked.insert((text(&list["user"]), text(&one["item"])), one.clone());
        }
    }
    assert!(standing.len() > 50);
    let pairs = |all: &BTreeMap<(String, String), Value>| all.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(pairs(&ranked), standing.keys().cloned().collect());
    let mut spread = BTreeSet::new();
    for (pair, feature) in &standing {
        let (one, expected) = (&ranked[pair], ranker.score(feature, &items));
        let found = one["score"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-5, "{pair:?}: {found}, {expected}");
        spread.insert((found * 1e4) as i64);
        assert_eq!(one["cot_status"], json!(feature.cot_status));
        assert_eq!(one["k"], feature.k);
        assert_eq!(one["ict_weights"], json!(version));
        let age = one["event_age_ms"].as_i64();
        let in_between = |time: i64| age.is_some_and(|age| (before - time..=after - time).contains(&age));
        assert!(feature.event_time.map_or(age.is_none(), in_between), "{one}");
        assert!(one["vector_age_ms"].as_i64().is_some_and(|age| (0..=after).contains(&age)), "{one}");
    }
    assert!(spread.len() > 20, "the ranker tells pairs apart");
    let (ghost, _) = run(&["--user", "ghost", "--json"]);
    assert_eq!((ghost.len(), &ghost[0]["live"]), (1, &json!(0)), "its transaction was aborted");

    // The lists on a topic of their own, on their users' partitions; the same ones aren't written twice.
    let lists_topic = format!("{}lists", world.prefix);
    let published = || {
        let mut lists = Vec::new();
        read_whole(&mut *world.topics(), &lists_topic, |record| {
            let user = record.key.clone().unwrap();
            assert_eq!(record.partition, Partitioner::Murmur2.partition(&user, world.partitions));
            let list = Ranking::decode(record.value.as_deref().unwrap()).unwrap();
            assert_eq!(list.user_id.as_bytes(), user);
            lists.push(list);
        })
        .unwrap();
        lists
    };
    run(&["--all", "--publish", &lists_topic]);
    let there = published();
    assert_eq!(there.len(), lists.len());
    for list in &there {
        for one in &list.ranked {
            let printed = &ranked[&(list.user_id.clone(), one.item_id.clone())];
            assert!((printed["score"].as_f64().unwrap() - one.score).abs() < 1e-6);
            assert_eq!(printed["epoch"], one.epoch);
        }
    }
    run(&["--all", "--publish", &lists_topic]);
    assert_eq!(published(), there);

    // One that follows sees a pair leave with its item, and new vectors of the user.
    let fewer = |pairs: &BTreeMap<(String, String), Feature>, user: &str| {
        pairs.keys().filter(|(other, _)| other == user).map(|(_, item)| item.clone()).collect::<Vec<_>>()
    };
    let user =
        lists.iter().find(|list| list["live"].as_u64().unwrap() > 2).unwrap()["user"].as_str().unwrap();
    let gone = fewer(&standing, user).pop().unwrap();
    let following = [&first[..], &["--user", user, "--json", "--follow"]].concat();
    let program = Program::start_printing(TEST, path, "follow", &following);
    let last = || {
        let printed = std::fs::read_to_string(path.join("follow.out")).unwrap_or_default();
        Program::printed(&printed).pop()
    };
    let shown = |list: &Value| {
        let items =
            list["ranked"].as_array().unwrap().iter().map(|one| one["item"].as_str().unwrap().to_owned());
        items.collect::<BTreeSet<_>>()
    };
    let before = program.until("the list", || last().filter(|list| shown(list).contains(&gone)));
    assert_eq!(shown(&before), fewer(&standing, user).into_iter().collect());
    let deleted = item(&gone, None, "0");
    script.push(deleted.clone());
    send(&producer, &[deleted], &world);
    settle(&mut job);
    let now = features(&world);
    let expected: BTreeSet<String> = fewer(&now, user).into_iter().collect();
    assert!(!expected.contains(&gone) && !expected.is_empty());
    let list = program.until("the list without the item", || last().filter(|list| shown(list) == expected));
    let items = Items::of(&script);
    let scored = |list: &Value| {
        list["ranked"].as_array().unwrap().iter().all(|one| {
            let pair = (user.to_owned(), one["item"].as_str().unwrap().to_owned());
            (one["score"].as_f64().unwrap() - ranker.score(&now[&pair], &items)).abs() < 1e-5
        })
    };
    // Where the item stood in the history too, the catalog's and the vectors' news may come apart.
    if !scored(&list) {
        program.until("its last scores", || last().filter(|list| shown(list) == expected && scored(list)));
    }
    program.finish();
}
