//! Splits, histories and segments are their definitions.

use ictflow_operators::history::Window;
use ictflow_operators::ranking::histories::{Histories, example, item_state};
use ictflow_operators::ranking::segments::{ItemKind, SLICES, segments};
use ictflow_operators::ranking::split::{
    Error, Hidden, Proportions, Sample, Split, by_time, leave_one_out, new_items,
};
use ictflow_schemas::Id;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::example::Verdict;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::{Entry, Label};
use ictflow_schemas::item::Item;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// (user, item, time, what it says): 0 negative, 1 positive, 2 an engagement without a label, 3 a negative
/// that isn't one.
type Raw = (u8, u8, i64, u8);

fn data(raws: &[Raw]) -> Dataset {
    let mut data = Dataset::new("rate");
    for &(user, item, time, says) in raws {
        let label = [Label::Negative, Label::Positive, Label::None, Label::Negative][usize::from(says)];
        data.add_row(&format!("u{user}"), &format!("i{item}"), time, label, says != 3).unwrap();
    }
    data.sort();
    data
}

fn raws() -> impl Strategy<Value = Vec<Raw>> {
    proptest::collection::vec((0..6u8, 0..12u8, 0..40i64, 0..4u8), 1..150)
}

fn number(data: &Dataset, sample: &Sample) -> u32 {
    data.rows()[sample.row as usize].number
}

/// Rows as they were given, by a split's part.
fn numbers(data: &Dataset, part: &[Sample]) -> Vec<u32> {
    part.iter().map(|sample| number(data, sample)).collect()
}

#[test]
fn equal_times_stand_on_the_earlier_side() {
    // Ten labelled rows, an eleventh without a label; the cuts after six and eight fall into equal times.
    let labels = [0, 1, 0, 1, 0, 1, 0, 0, 1, 1];
    let times = [1, 2, 3, 4, 5, 6, 6, 7, 9, 9];
    let mut raws: Vec<Raw> = (0..10).map(|n| (n as u8, 0, times[n], labels[n])).collect();
    raws.push((0, 0, 6, 2));
    let data = data(&raws);
    let parts = Proportions { train: 6, valid: 1, test: 3 };
    let error = by_time(&data, parts).unwrap_err();
    assert_eq!(error, Error::Empty { part: "validation", rows: 10 });
    let split = by_time(&data, Proportions { train: 50, valid: 20, test: 30 }).unwrap();
    assert_eq!(numbers(&data, &split.train), [0, 1, 2, 3, 4]);
    assert_eq!(numbers(&data, &split.valid), [5, 6]);
    assert_eq!(numbers(&data, &split.test), [7, 8, 9]);
    let periods = split.periods.unwrap();
    assert_eq!((periods.valid_from, periods.test_from), (6, 7));
    // A cut within the last time leaves no test.
    let late = by_time(&data, Proportions { train: 50, valid: 45, test: 5 });
    assert_eq!(late, Err(Error::Empty { part: "test", rows: 10 }));
}

#[test]
fn a_split_without_samples_or_with_one_class_is_refused() {
    let parts = Proportions::default();
    let empty = Error::Empty { part: "training", rows: 0 };
    assert_eq!(by_time(&data(&[]), parts), Err(empty.clone()));
    assert_eq!(by_time(&data(&[(0, 0, 1, 2)]), parts), Err(empty));
    let nothing = by_time(&data(&[(0, 0, 1, 1)]), Proportions { train: 0, valid: 0, test: 0 });
    assert_eq!(nothing, Err(Error::Empty { part: "training", rows: 1 }));
    let row = |n: i64, says| (0, n as u8, n, says);
    let raws: Vec<Raw> = (0..30).map(|n| row(n, if n < 27 { (n % 2) as u8 } else { 1 })).collect();
    let error = by_time(&data(&raws), parts).unwrap_err();
    assert_eq!(error, Error::OneClass { part: "test", samples: 3, class: "positive" });
    assert!(error.to_string().contains("choose another label rule"), "{error}");
    let hidden = Hidden { until_valid: 50, until_test: 50, seed: 1 };
    let error = new_items(&data(&raws), Proportions { train: 1, valid: 1, test: 1 }, hidden).unwrap_err();
    assert_eq!(error, Error::Shares { valid: 50, test: 50, of: 100 });
    let all = data(&[(0, 0, 1, 1), (0, 1, 2, 1), (0, 2, 3, 1)]);
    assert_eq!(leave_one_out(&all, 1), Err(Error::NoNegative("u0".to_owned())));
    assert_eq!(leave_one_out(&data(&[(0, 0, 1, 1)]), 1), Err(Error::Empty { part: "training", rows: 0 }));
}

proptest! {
    #[test]
    fn a_time_split_is_periods_of_all_labelled_rows(raws in raws(), train in 1..9u32, valid in 1..9u32) {
        let data = data(&raws);
        let labelled = data.rows().iter().filter(|row| row.label != Label::None).count();
        let Ok(split) = by_time(&data, Proportions { train, valid, test: 3 }) else { return Ok(()) };
        let all: Vec<Sample> = [&split.train[..], &split.valid[..], &split.test[..]].concat();
        prop_assert_eq!(all.len(), labelled);
        prop_assert!(all.is_sorted_by(|a, b| a.row < b.row));
        prop_assert!(all.iter().all(|sample| !sample.is_drawn(&data)));
        prop_assert!(split.train.len() >= labelled * train as usize / (train + valid + 3) as usize);
        let periods = split.periods.unwrap();
        let time = |sample: &Sample| data.rows()[sample.row as usize].time;
        prop_assert!(split.train.iter().all(|sample| time(sample) < periods.valid_from));
        prop_assert!(split.valid.iter().all(|s| (periods.valid_from..periods.test_from).contains(&time(s))));
        prop_assert!(split.test.iter().all(|sample| time(sample) >= periods.test_from));
    }

    #[test]
    fn hidden_items_do_not_exist_before_their_period(raws in raws(), seed in any::<u64>()) {
        let data = data(&raws);
        let parts = Proportions { train: 4, valid: 3, test: 3 };
        let Ok(split) = new_items(&data, parts, Hidden { until_valid: 30, until_test: 30, seed }) else {
            return Ok(());
        };
        let periods = split.periods.unwrap();
        let rows = data.rows();
        let seen_before = |item: u32, from: i64| {
            rows.iter().zip(&split.visible).any(|(row, &visible)| visible && row.item == item && row.time < from)
        };
        prop_assert!(split.valid.iter().all(|s| !seen_before(s.item, periods.valid_from)));
        prop_assert!(split.test.iter().all(|s| !seen_before(s.item, periods.test_from)));
        // What is new in the whole data is a sample of its period, and nothing later is hidden.
        for (at, row) in rows.iter().enumerate() {
            let own = Sample { row: at as u32, item: row.item, positive: row.label == Label::Positive };
            prop_assert!(split.visible[at] || row.time < periods.test_from);
            let first = rows.iter().filter(|other| other.item == row.item).map(|other| other.time).min();
            if row.label != Label::None && first >= Some(periods.test_from) {
                prop_assert!(split.test.contains(&own));
            }
            if row.label != Label::None && row.time < periods.valid_from {
                prop_assert_eq!(split.train.contains(&own), split.visible[at]);
            }
        }
        // Choosing and testing meet different items.
        let items = |part: &[Sample]| part.iter().map(|s| s.item).collect::<BTreeSet<u32>>();
        prop_assert!(items(&split.valid).is_disjoint(&items(&split.test)));
        prop_assert!(items(&split.train).is_disjoint(&items(&split.test)));
    }

    #[test]
    fn leave_one_out_is_the_papers(raws in raws(), seed in any::<u64>()) {
        let data = data(&raws);
        let rows = data.rows();
        let split = match leave_one_out(&data, seed) {
            Ok(split) => split,
            Err(Error::NoNegative(user)) => {
                let items = |rows: Vec<u32>| rows.into_iter().collect::<BTreeSet<u32>>();
                let number = data.users().find(&user).unwrap();
                let own = items(rows.iter().filter(|row| row.user == number).map(|row| row.item).collect());
                prop_assert_eq!(own, items(rows.iter().map(|row| row.item).collect()));
                return Ok(());
            }
            Err(Error::Empty { .. }) => return Ok(()),
            Err(other) => panic!("{other}"),
        };
        let mut by_user: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.engagement) {
            by_user.entry(row.user).or_default().push(at as u32);
        }
        let part = |range: fn(usize) -> std::ops::Range<usize>| {
            let mut part: Vec<u32> =
                by_user.values().flat_map(|rows| rows[range(rows.len())].iter().copied()).collect();
            part.sort_unstable();
            part
        };
        let positives = |part: &[Sample]| -> Vec<u32> {
            part.iter().filter(|s| s.positive).map(|s| s.row).collect()
        };
        prop_assert_eq!(positives(&split.test), part(|n| n.max(2) - 1..n.max(1)));
        prop_assert_eq!(positives(&split.valid), part(|n| n.max(3) - 2..n.max(2) - 1));
        prop_assert_eq!(positives(&split.train), part(|n| 1..n.max(3) - 2));
        for part in [&split.train, &split.valid, &split.test] {
            for pair in part.chunks(2) {
                prop_assert_eq!(pair[0].row, pair[1].row);
                prop_assert!(pair[0].positive && !pair[0].is_drawn(&data));
                prop_assert!(!pair[1].positive && pair[1].is_drawn(&data));
                let user = rows[pair[1].row as usize].user;
                prop_assert!(rows.iter().all(|row| row.user != user || row.item != pair[1].item));
            }
        }
        prop_assert_eq!(leave_one_out(&data, seed), Ok(split));
    }

    #[test]
    fn a_history_is_the_windows(raws in raws(), length in 1..6usize, hidden in 0..5u32) {
        let data = data(&raws);
        let rows = data.rows();
        let visible: Vec<bool> = rows.iter().map(|row| hidden == 0 || row.number % 5 != hidden).collect();
        let histories = Histories::of(&data, &visible, length);
        let mut windows: BTreeMap<u32, Window> = BTreeMap::new();
        for (row, _) in rows.iter().zip(&visible).filter(|(row, visible)| row.engagement && **visible) {
            let (items, kind) = (data.items().ids(), Id::from("rate"));
            let item = items[row.item as usize].clone();
            let entry =
                Entry { event_time: row.time, event_id: row.event_id(), item, kind, label: row.label };
            windows.entry(row.user).or_default().insert(entry);
        }
        for (at, row) in rows.iter().enumerate() {
            let expected = windows.get(&row.user).map(|window| window.before(row.time, length));
            let sample = Sample { row: at as u32, item: row.item, positive: true };
            let found = example(&data, &histories, sample);
            prop_assert_eq!(&*found.history, expected.as_deref().unwrap_or_default());
            prop_assert_eq!(found.history.len(), histories.before(at as u32).len());
        }
    }

    #[test]
    fn segments_are_their_definitions(raws in raws(), seed in any::<u64>()) {
        let data = data(&raws);
        let Ok(split) = new_items(
            &data,
            Proportions { train: 5, valid: 2, test: 3 },
            Hidden { until_valid: 20, until_test: 20, seed },
        ) else {
            return Ok(());
        };
        let rows = data.rows();
        let histories = Histories::of(&data, &split.visible, 20);
        let mut samples = [&split.test[..], &split.train[..]].concat();
        samples.reverse();
        let found = segments(&data, &split, &histories, &samples);
        for (sample, segment) in samples.iter().zip(&found) {
            let row = &rows[sample.row as usize];
            let earlier = rows.iter().zip(&split.visible).filter(|(other, visible)| {
                **visible && other.item == sample.item && other.label != Label::None && other.time < row.time
            });
            prop_assert_eq!(segment.earlier as usize, earlier.count());
            let trained = |s: &&Sample| rows[s.row as usize].user == row.user;
            prop_assert_eq!(segment.trained_user, split.train.iter().any(|s| trained(&s)));
            prop_assert_eq!(segment.history as usize, histories.before(sample.row).len());
            let is_new = !split.train.iter().any(|s| s.item == sample.item);
            prop_assert_eq!(segment.item == ItemKind::New, is_new);
            let holding = SLICES.iter().filter(|(_, holds)| holds(segment)).count();
            prop_assert!((5..=6).contains(&holding));
        }
    }
}

/// How many training rows each item has, and which of them are then the tail.
#[test]
fn the_tail_is_at_most_a_fifth_or_the_least_count() {
    let cases: &[(&[u8], &[usize])] = &[
        (&[1, 2, 3, 4, 5], &[0]),
        (&[1, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[0, 1]),
        // Of three equal ones two would fit: none of them does.
        (&[1, 2, 2, 2, 4, 5, 6, 7, 8, 9], &[0]),
        (&[3, 3, 3, 4], &[0, 1, 2]),
        (&[2], &[0]),
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[0]),
    ];
    for (counts, tail) in cases {
        let mut raws: Vec<Raw> = Vec::new();
        for (item, &count) in counts.iter().enumerate() {
            raws.extend((0..count).map(|n| (n, item as u8, i64::from(n), n % 2)));
        }
        let data = data(&raws);
        let all: Vec<Sample> = (0..raws.len() as u32)
            .map(|row| Sample { row, item: data.rows()[row as usize].item, positive: true })
            .collect();
        let visible = vec![true; raws.len()];
        let histories = Histories::of(&data, &visible, 20);
        let split = Split { train: all.clone(), valid: vec![], test: vec![], visible, periods: None };
        let found = segments(&data, &split, &histories, &all);
        let mut items = BTreeSet::new();
        for (sample, segment) in all.iter().zip(&found) {
            if segment.item == ItemKind::Tail {
                items.insert(data.items().ids()[sample.item as usize].to_string());
            }
        }
        let expected: BTreeSet<String> = tail.iter().map(|item| format!("i{item}")).collect();
        assert_eq!(items, expected, "{counts:?}");
    }
}

#[test]
fn what_is_hidden_depends_on_ids_and_seed_alone() {
    let raws: Vec<Raw> =
        (0..200).map(|n| ((n % 7) as u8, (n * 7 % 40) as u8, n, (n / 3 % 2) as u8)).collect();
    let mut other = raws.clone();
    other.reverse();
    let parts = Proportions { train: 5, valid: 2, test: 3 };
    let hidden = |raws: &[Raw], seed| {
        let data = data(raws);
        let split = new_items(&data, parts, Hidden { until_valid: 25, until_test: 25, seed }).unwrap();
        let name = |(row, _): (&ictflow_schemas::dataset::Row, &bool)| {
            data.items().ids()[row.item as usize].to_string()
        };
        let gone = data.rows().iter().zip(&split.visible).filter(|(_, visible)| !**visible);
        gone.map(name).collect::<BTreeSet<String>>()
    };
    assert_eq!(hidden(&raws, 4).len(), 20);
    assert_eq!(hidden(&raws, 4), hidden(&other, 4));
    assert_ne!(hidden(&raws, 4), hidden(&raws, 5));
}

#[test]
fn samples_become_examples() {
    let mut data = Dataset::new("rate");
    let item = Item {
        title: Some("Toy Story".to_owned()),
        creator: Some(" John  L. ".to_owned()),
        categories: vec!["Comedy".to_owned(), "Comedy".to_owned()],
        ..Item::default()
    };
    data.add_item("a", &item).unwrap();
    for (item, time, label) in [("a", 1, Label::Positive), ("b", 2, Label::None), ("c", 2, Label::Negative)] {
        data.add_row("u", item, time, label, true).unwrap();
    }
    data.add_row("v", "d", 3, Label::Positive, true).unwrap();
    data.sort();
    let histories = Histories::of(&data, &[true; 4], 20);
    let own = example(&data, &histories, Sample { row: 2, item: 2, positive: false });
    assert_eq!((own.verdict, own.label_time, own.item.as_ref()), (Verdict::Negative, 2, "c"));
    assert_eq!((own.identity.user.as_ref(), own.identity.event_id.as_ref()), ("u", "r0000000002"));
    // The row of the same time isn't in it.
    let entry = Entry {
        event_time: 1,
        event_id: "r0000000000".into(),
        item: "a".into(),
        kind: "rate".into(),
        label: Label::Positive,
    };
    assert_eq!(*own.history, [entry]);
    let drawn = example(&data, &histories, Sample { row: 2, item: 3, positive: false });
    assert_eq!((drawn.verdict, drawn.item.as_ref()), (Verdict::ImplicitNegative, "d"));
    assert_eq!(drawn.identity.event_id.as_ref(), "r0000000002.negative");
    assert_eq!(drawn.history, own.history);
    let state = item_state(&data, 0).unwrap();
    assert_eq!(state.text, text_digest("title: Toy Story\ncreator: John L.\ncategories: Comedy, Comedy"));
    assert_eq!(state.creator.as_deref(), Some("John L."));
    assert_eq!(state.categories, [Id::from("Comedy")]);
    assert_eq!(item_state(&data, 1), None);
}
