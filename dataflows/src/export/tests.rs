#![allow(clippy::unwrap_used)]

use super::*;
use ictflow_connectors::local::Local;
use ictflow_connectors::parquet::Reader;
use ictflow_schemas::example::{HistoryRecord, Served};
use ictflow_schemas::feature::VectorKind;
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{NewRecord, Policy};
use std::collections::BTreeMap;

const USERS: usize = 7;

fn names() -> Names {
    Names::new(&BTreeMap::new(), "")
}

/// The n-th of some examples; of each time there are two or three.
fn example_of(n: usize) -> ExampleRecord {
    let entry = |h: usize| HistoryRecord {
        item_id: format!("h{h}"),
        kind: "play".to_owned(),
        label: "none".to_owned(),
        event_time: h as i64 - 100,
    };
    let served = (n % 3 == 1).then(|| Served {
        epoch: n as i64,
        ict_weights: "w".to_owned(),
        vector_kind: VectorKind::Attention,
        demonstrations: Vec::new(),
        neighbours: vec![format!("neighbour {n}")],
        votes: vec![0.25; 9],
        ict: vec![n as f32; 4],
    });
    ExampleRecord {
        user_id: format!("u{}", n % USERS),
        event_time: (n * 5 % 16) as i64,
        event_id: format!("e{}", 100 - n),
        item_id: format!("m{}", n % 5),
        label: i32::from(n.is_multiple_of(2)),
        implicit: n % 4 == 1,
        label_time: 20 + n as i64,
        history: (0..n % 4).map(entry).collect(),
        served,
    }
}

fn key(example: &ExampleRecord) -> Vec<u8> {
    let ExampleRecord { user_id, event_time, event_id, .. } = example;
    let (user, event_id) = (user_id.as_str().into(), event_id.as_str().into());
    Identity { user, event_time: *event_time, event_id }.frame().into_bytes()
}

/// A record of `examples` under this key, on the user's of so many partitions.
fn under(key: Vec<u8>, value: Option<Vec<u8>>, partitions: u32) -> NewRecord {
    let user = Identity::of_key(&key).map(|identity| identity.user);
    let partition = user.map_or(0, |user| Partitioner::Murmur2.partition(user.as_bytes(), partitions));
    let (topic, key) = ("examples".to_owned(), Some(key));
    NewRecord { topic, partition, timestamp: None, key, value, headers: Vec::new() }
}

fn standing(example: &ExampleRecord, partitions: u32) -> NewRecord {
    under(key(example), Some(example.encode()), partitions)
}

fn item(id: &str, value: Option<Vec<u8>>) -> NewRecord {
    let (topic, key) = ("items".to_owned(), Some(id.as_bytes().to_vec()));
    NewRecord { topic, partition: 0, timestamp: None, key, value, headers: Vec::new() }
}

fn film(title: &str) -> Item {
    Item { title: Some(title.to_owned()), categories: vec!["drama".to_owned()], ..Item::default() }
}

/// Topics with these examples; of the items m0 is gone, m1's newest record can't be read, m2 was edited, and
/// there never was an m4.
fn topics(folder: &Path, partitions: u32, examples: &[NewRecord]) -> Local {
    let mut topics = Local::open(folder.join("topics.db")).unwrap();
    topics.ensure("examples", partitions, Policy::CompactAndTime).unwrap();
    topics.ensure("items", 1, Policy::Compact).unwrap();
    let title = |title: &str| Some(film(title).encode());
    let items = [
        item("m0", title("gone")),
        item("m1", title("one")),
        item("m2", title("old")),
        item("m3", title("three")),
        item("other", title("nobody was shown it")),
        item("m0", None),
        item("m1", Some(b"no record".to_vec())),
        item("m2", title("two")),
    ];
    topics.append(&items).unwrap();
    topics.append(examples).unwrap();
    topics
}

fn exported(topics: &mut Local, selection: &Selection, out: &Path) -> Result<Report> {
    let (names, semantics) = (names(), Semantics::default());
    let source = Source { names: &names, job: None, items_as: Format::Avro, semantics: &semantics };
    export(topics, source, selection, out, |_, done, of| assert!(done <= of))
}

fn rows(path: &Path) -> Vec<Row> {
    let mut reader = Reader::open(path).unwrap();
    reader.rows().unwrap()
}

/// A log in which examples were corrected, others retracted and one retracted and made again.
fn log(partitions: u32) -> (Vec<NewRecord>, Vec<ExampleRecord>) {
    let mut records = Vec::new();
    let mut newest = BTreeMap::new();
    let turn = |n: usize| n * 17 % 40;
    for n in (0..40).map(turn) {
        let first = ExampleRecord { label: 0, implicit: true, label_time: 99, ..example_of(n) };
        records.push(standing(&first, partitions));
    }
    for n in (0..40).map(turn) {
        let example = example_of(n);
        if n % 8 == 3 || n == 6 {
            records.push(under(key(&example), None, partitions));
        }
        if n % 8 != 3 {
            records.push(standing(&example, partitions));
            let at = (example.event_time, example.user_id.clone(), example.event_id.clone());
            newest.insert(at, example);
        }
    }
    (records, newest.into_values().collect())
}

#[test]
fn the_newest_record_of_each_key_is_a_row_in_the_order_of_events_at_any_partition_count() {
    let mut bytes = Vec::new();
    for partitions in [1, 3, 8] {
        let folder = tempfile::tempdir().unwrap();
        let (records, expected) = log(partitions);
        let mut topics = topics(folder.path(), partitions, &records);
        let out = folder.path().join("set.parquet");
        let report = exported(&mut topics, &Selection::default(), &out).unwrap();
        let item = |id: &str| match id {
            "m1" => Some(film("one")),
            "m2" => Some(film("two")),
            "m3" => Some(film("three")),
            _ => None,
        };
        let expected: Vec<Row> =
            expected.into_iter().map(|example| Row { item: item(&example.item_id), example }).collect();
        assert_eq!(rows(&out), expected);
        let count =
            |of: fn(&ExampleRecord) -> bool| expected.iter().filter(|row| of(&row.example)).count() as u64;
        let told = Report {
            rows: 35,
            positive: count(|example| example.label == 1),
            implicit: count(|example| example.implicit),
            served: count(|example| example.served.is_some()),
            users: USERS as u64,
            items: 5,
            items_without_text: 2,
            items_of_histories_only: 3,
            first: 0,
            last: 14,
            settled: None,
            bytes: std::fs::metadata(&out).unwrap().len(),
        };
        assert_eq!(report, told);
        assert!(told.positive > 5 && told.implicit > 5 && told.served > 5, "{told:?}");
        bytes.push(std::fs::read(&out).unwrap());
    }
    assert!(bytes[0] == bytes[1] && bytes[1] == bytes[2]);
}

#[test]
fn a_selection_is_by_event_time_from_the_first_on_and_before_the_second_and_by_user() {
    let folder = tempfile::tempdir().unwrap();
    let (records, all) = log(3);
    let mut topics = topics(folder.path(), 3, &records);
    let users = |users: &[&str]| users.iter().map(|user| (*user).to_owned()).collect();
    for (from, until, of, least) in [
        (Some(5), Some(9), users(&[]), 5),
        (None, Some(5), users(&["u1", "u4"]), 2),
        (Some(14), None, users(&[]), 1),
    ] {
        let selection = Selection { from, until, users: of };
        let out = folder.path().join("part.parquet");
        exported(&mut topics, &selection, &out).unwrap();
        let found: Vec<ExampleRecord> = rows(&out).into_iter().map(|row| row.example).collect();
        let wanted = |example: &&ExampleRecord| {
            (from.unwrap_or(0)..until.unwrap_or(99)).contains(&example.event_time)
                && (selection.users.is_empty() || selection.users.contains(&example.user_id))
        };
        let expected: Vec<ExampleRecord> = all.iter().filter(wanted).cloned().collect();
        assert!(expected.len() >= least && expected.len() < all.len(), "{selection:?}");
        assert_eq!(found, expected, "{selection:?}");
    }
}

#[test]
fn what_cannot_be_exported_is_told_and_leaves_the_file_as_it_was() {
    let one = example_of(1);
    let all = Selection::default();
    let nobody = Selection { users: BTreeSet::from(["nobody".to_owned()]), ..Selection::default() };
    let gone = vec![standing(&one, 1), under(key(&one), None, 1)];
    let other = vec![under(key(&example_of(2)), Some(one.encode()), 1)];
    let torn = vec![standing(&example_of(2), 1), under(key(&one), Some(one.encode()[..20].to_vec()), 1)];
    let stranger = vec![under(b"no frame".to_vec(), Some(one.encode()), 1)];
    // Nobody reads what was written again.
    let mended = [torn.clone(), vec![standing(&one, 1)]].concat();
    for (records, selection, part) in [
        (Vec::new(), &all, "there is no example"),
        (gone, &all, "there is no example"),
        (vec![standing(&one, 1)], &nobody, "no example is selected"),
        (other, &all, "partition 0, offset 0: its key names another example"),
        (torn, &all, "partition 0, offset 1: "),
        (stranger, &all, "partition 0, offset 0: its key names no example"),
        (mended, &all, ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut topics = topics(folder.path(), 1, &records);
        let out = folder.path().join("sets/set.parquet");
        std::fs::create_dir(out.parent().unwrap()).unwrap();
        std::fs::write(&out, b"PAR1 of before").unwrap();
        let result = exported(&mut topics, selection, &out);
        assert_eq!(std::fs::read_dir(out.parent().unwrap()).unwrap().count(), 1, "{part}");
        if part.is_empty() {
            assert_eq!(result.unwrap().rows, 2);
            continue;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(std::fs::read(&out).unwrap(), b"PAR1 of before");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut empty = Local::open(folder.path().join("topics.db")).unwrap();
    let out = folder.path().join("set.parquet");
    let error = exported(&mut empty, &all, &out).unwrap_err().to_string();
    assert!(error.contains("topic examples doesn't exist"), "{error}");
    let mut topics = topics(&folder.path().join("more"), 1, &[standing(&one, 1)]);
    let error = exported(&mut topics, &all, &folder.path().join("none/set.parquet")).unwrap_err().to_string();
    assert!(error.contains("none/set.parquet") && error.contains("a folder that can be written"), "{error}");
    assert!(!out.exists());
}
