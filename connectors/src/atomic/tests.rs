#![allow(clippy::unwrap_used)]

use super::*;
use crate::Disposition;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::interaction::{KindRule, When};
use std::fmt::Write;

const INTER: &str = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";

struct House(tempfile::TempDir);

impl House {
    fn new(files: &[(&str, &[u8])]) -> House {
        let house = House(tempfile::tempdir().unwrap());
        for (name, content) in files {
            std::fs::write(house.0.path().join(name), content).unwrap();
        }
        house
    }

    fn rows(rows: &str) -> House {
        House::new(&[("d.inter", format!("{INTER}{rows}").as_bytes())])
    }

    fn open(&self) -> Result<Folder> {
        Folder::open(self.0.path(), None)
    }

    fn read(&self, columns: &Columns) -> Result<Dataset> {
        self.open()?.read(columns)
    }
}

fn named(columns: Columns, title: &str) -> Columns {
    Columns { title: Some(title.to_owned()), ..columns }
}

/// Rows as (user, item, time, label, engagement).
fn seen(data: &Dataset) -> Vec<(&str, &str, i64, Label, bool)> {
    let (users, items) = (data.users().ids(), data.items().ids());
    let row = |row: &ictflow_schemas::dataset::Row| {
        let (user, item) = (&users[row.user as usize], &items[row.item as usize]);
        (user.as_ref(), item.as_ref(), row.time, row.label, row.engagement)
    };
    data.rows().iter().map(row).collect()
}

#[test]
fn a_folder_is_read_in_the_order_of_events_with_its_catalog() {
    let items = "\u{feff}item_id:token\tname:token_seq\tyear:token\tgenres:token_seq\tmaker:token\ttags:token\tabout:token_seq\r\n\
                 1\tToy Story\t1995\tAnimation  Comedy Comedy\tJohn L.\ta b\tTwo toys.\r\n\r\n\
                 2\tGoldenEye\t\t\t\t\t\r\n1\tToy Story\t1995\tAnimation Comedy\tJohn L.\ta b\tThree toys.";
    let rows =
        format!("\u{feff}{INTER}7\t1\t4\t20\r\n8\t2\t 3.5 \t10.75\r\n7\t3\t5\t1e1").replace('\n', "\r\n");
    let house =
        House::new(&[("d.inter", rows.replace("\r\r", "\r").as_bytes()), ("d.item", items.as_bytes())]);
    let some = |name: &str| Some(name.to_owned());
    let columns = Columns {
        title: some("name"),
        year: some("year"),
        creator: some("maker"),
        categories: some("genres"),
        tags: some("tags"),
        description: some("about"),
        ..Columns::default()
    };
    let data = house.read(&columns).unwrap();
    let expected = [
        ("7", "3", 10_000, Label::Positive, true),
        ("8", "2", 10_750, Label::Negative, true),
        ("7", "1", 20_000, Label::Positive, true),
    ];
    assert_eq!(seen(&data), expected);
    let catalog = data.catalog();
    let text = "title: Toy Story (1995)\ncreator: John L.\ncategories: Animation, Comedy\ntags: a b\ndescription: Three toys.";
    assert_eq!(catalog.text(data.items().find("1").unwrap()), text);
    assert_eq!(catalog.text(data.items().find("2").unwrap()), "title: GoldenEye");
    assert_eq!(catalog.categories(0).len(), 2);
    assert!(!catalog.exists(data.items().find("3").unwrap()));
    // Without columns of items the ids of the file are there, their texts empty.
    let data = house.read(&Columns::default()).unwrap();
    assert!(data.catalog().exists(0) && data.catalog().text(0).is_empty());
}

#[test]
fn labels_come_from_a_column_a_rule_or_nothing() {
    let content = b"u:token\ti:token\tt:float\tclick:float\tratio:float\n\
                    a\t1\t1000\t1\t0.2\na\t2\t2000\t0\t0.7\na\t3\t3000\t1.0\t0.5";
    let house = House::new(&[("d.inter", content)]);
    let columns = |labels: Labels| Columns {
        user: "u".to_owned(),
        item: "i".to_owned(),
        time: "t".to_owned(),
        time_unit: TimeUnit::Microseconds,
        labels,
        ..Columns::default()
    };
    let labels = |columns: &Columns| -> Vec<(i64, Label, bool)> {
        seen(&house.read(columns).unwrap()).iter().map(|row| (row.2, row.3, row.4)).collect()
    };
    use Label::{Negative, Positive};
    let by_column = columns("click".parse().unwrap());
    assert_eq!(labels(&by_column), [(1, Positive, true), (2, Negative, false), (3, Positive, true)]);
    let engaged = Columns { negatives_engage: true, ..by_column };
    assert_eq!(labels(&engaged)[1], (2, Negative, true));
    // A play below 0.5 is nothing, from 0.6 it is positive, between them an engagement without a label.
    let play = KindRule {
        impression: false,
        engagement: When::From(0.5),
        positive: When::From(0.6),
        negative: When::Never,
    };
    let mut rule = columns(Labels::Value { column: "ratio".to_owned(), rule: play });
    assert!(house.read(&rule).unwrap_err().to_string().contains("all 1 labelled rows are positive"));
    rule.labels =
        Labels::Value { column: "ratio".to_owned(), rule: KindRule { negative: When::Below(0.3), ..play } };
    assert_eq!(labels(&rule), [(1, Negative, false), (2, Positive, true), (3, Label::None, true)]);
    assert_eq!(labels(&columns(Labels::Implicit)).iter().filter(|row| row.1 == Positive).count(), 3);
}

#[test]
fn a_label_rule_is_read_and_written() {
    let rule: Labels = "rating >= 4".parse().unwrap();
    assert_eq!(rule, Labels::from("rating", 4.0));
    assert_eq!(rule.to_string(), "rating >= 4");
    assert_eq!("rating>=0.5".parse::<Labels>().unwrap().to_string(), "rating >= 0.5");
    assert_eq!(" label ".parse(), Ok(Labels::Column("label".to_owned())));
    assert_eq!("implicit".parse(), Ok(Labels::Implicit));
    for wrong in ["", "rating > 4", "rating >= four", "rating >= nan", ">= 4", "rating = 4", "a >= b >= 3"] {
        let error = wrong.parse::<Labels>().unwrap_err();
        assert!(error.contains("COLUMN >= NUMBER"), "{wrong:?}: {error}");
    }
}

#[test]
fn a_name_is_found() {
    let good = format!("{INTER}1\t1\t5\t1\n1\t2\t1\t2\n");
    let one = House::new(&[("x.inter", good.as_bytes()), ("readme.md", b"")]);
    assert_eq!(one.read(&Columns::default()).unwrap().rows().len(), 2);
    let two = House::new(&[("x.inter", good.as_bytes()), ("y.inter", INTER.as_bytes())]);
    let several = two.open().unwrap_err().to_string();
    assert!(several.contains("several .inter files: x, y"), "{several}");
    assert!(Folder::open(two.0.path(), Some("x")).unwrap().read(&Columns::default()).is_ok());
    assert_eq!(Folder::open(two.0.path(), Some("x")).unwrap().name(), "x");
    let other = Folder::open(two.0.path(), Some("z")).unwrap_err().to_string();
    assert!(other.contains("no z.inter, but x.inter, y.inter"), "{other}");
    let own = two.0.path().file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(two.0.path().join(format!("{own}.inter")), good).unwrap();
    assert!(two.read(&Columns::default()).is_ok());
}

/// What is wrong, the folder, the options, and what the error says.
type Case = (&'static str, House, Columns, &'static [&'static str]);

fn malformed() -> Vec<Case> {
    let plain = Columns::default;
    let good = "1\t1\t5\t1\n1\t2\t1\t2\n";
    let inter = |text: &str| House::new(&[("d.inter", text.as_bytes())]);
    let both = |rows: &str, items: &[u8]| {
        House::new(&[("d.inter", format!("{INTER}{rows}").as_bytes()), ("d.item", items)])
    };
    let label = Columns { labels: Labels::Column("rating".to_owned()), ..plain() };
    let item = "item_id:token\tname:token_seq\n";
    vec![
        ("no file", House::new(&[("d.item", b"")]), plain(), &["no .inter file", "name the data set"]),
        ("empty file", inter(""), plain(), &["d.inter", "the file is empty"]),
        ("only a mark", inter("\u{feff}"), plain(), &["the file is empty"]),
        ("header only", inter(INTER), plain(), &["a header and no rows"]),
        ("header and blanks", inter(&format!("{INTER}\n\r\n")), plain(), &["a header and no rows"]),
        ("no header", inter(good), plain(), &["line 1 of", "column \"1\" has no type", "name:type"]),
        ("unknown type", inter("user_id:int\n1"), plain(), &["\"user_id\" has the type \"int\""]),
        ("name twice", inter("a:token\ta:float\n1\t1"), plain(), &["\"a\" is empty or there twice"]),
        ("no name", inter(":token\n1"), plain(), &["name \"\" is empty"]),
        (
            "missing column",
            House::rows(good),
            Columns { user: "who".to_owned(), ..plain() },
            &["there is no column who, but user_id, item_id, rating, timestamp", "name the columns"],
        ),
        (
            "missing column of items",
            both(good, format!("{item}1\tx\n").as_bytes()),
            named(plain(), "title"),
            &["d.item", "no column title, but item_id, name"],
        ),
        ("no file of items", House::rows(good), named(plain(), "title"), &["no .item file, and the title"]),
        ("empty file of items", both(good, b""), plain(), &["d.item", "the file is empty"]),
        (
            "item without id",
            both(good, format!("{item}\tx\n").as_bytes()),
            plain(),
            &["line 2", "item_id is empty"],
        ),
        ("fewer fields", House::rows("1\t1\t5\t1\n1\t2\t3\n"), plain(), &["line 3", "3 fields", "4 columns"]),
        ("more fields", House::rows("1\t1\t5\t1\t\n"), plain(), &["line 2", "5 fields", "4 columns"]),
        ("torn last line", House::rows("1\t1\t5\t1\n1"), plain(), &["line 3", "1 fields"]),
        ("no number", House::rows("1\t1\tgood\t1\n"), plain(), &["line 2", "rating is \"good\", no number"]),
        ("no value", House::rows("1\t1\t\t1\n"), plain(), &["rating is empty, and a number"]),
        ("NaN", House::rows("1\t1\tNaN\t1\n"), plain(), &["rating is NaN, not a finite number"]),
        ("inf", House::rows("1\t1\t-inf\t1\n"), plain(), &["rating is -inf, not a finite number"]),
        ("overflow", House::rows("1\t1\t1e999\t1\n"), plain(), &["rating is 1e999, not a finite"]),
        ("time no number", House::rows("1\t1\t5\tnow\n"), plain(), &["timestamp is \"now\", no number"]),
        ("time NaN", House::rows("1\t1\t5\tnan\n"), plain(), &["timestamp is nan, not a finite"]),
        ("negative time", House::rows("1\t1\t5\t-1\n"), plain(), &["time -1 in seconds", "set the unit"]),
        (
            "milliseconds as seconds",
            House::rows("1\t1\t5\t881250949000\n"),
            plain(),
            &["881250949000 in seconds"],
        ),
        ("time beyond i64", House::rows("1\t1\t5\t1e30\n"), plain(), &["1e30 in seconds", "1970 to 2199"]),
        ("time beyond a product", House::rows("1\t1\t5\t9223372036854775807\n"), plain(), &["in seconds"]),
        ("no user", House::rows("\t1\t5\t1\n"), plain(), &["line 2", "user_id is empty"]),
        ("no item", House::rows("1\t\t5\t1\n"), plain(), &["item_id is empty"]),
        (
            "label of stars",
            House::rows(good),
            label.clone(),
            &["label rating is 5, neither 0 nor 1", "threshold"],
        ),
        (
            "sequence",
            inter(&INTER.replace("rating:float", "rating:float_seq")),
            plain(),
            &["rating is a sequence"],
        ),
        (
            "all positive",
            House::rows("1\t1\t5\t1\n"),
            plain(),
            &["rating >= 4", "all 1 labelled rows are positive"],
        ),
        (
            "all negative",
            House::rows("1\t1\t3\t1\n"),
            plain(),
            &["all 1 labelled rows are negative", "threshold"],
        ),
        (
            "not UTF-8",
            House::new(&[("d.inter", &[INTER.as_bytes(), b"1\t\xff\t5\t1\n"].concat())]),
            plain(),
            &["line 2", "byte 3 isn't UTF-8"],
        ),
        ("UTF-16", House::new(&[("d.inter", b"\xff\xfeu\0s\0")]), plain(), &["line 1", "isn't UTF-8"]),
    ]
}

#[test]
fn what_is_malformed_is_refused_with_its_place_and_a_hint() {
    for (what, house, columns, parts) in malformed() {
        let error = house.read(&columns).map(|data| data.rows().len()).unwrap_err();
        assert_eq!(error.disposition, Disposition::Fatal, "{what}");
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{what}: {part:?} isn't in {text:?}");
        }
        assert!(!error.hint.is_empty() && !text.ends_with('.'), "{what}: {text}");
    }
}

#[test]
fn a_line_without_end_is_refused() {
    let long = vec![b'x'; LINE_BYTES + 2];
    let house = House::new(&[("d.inter", &[INTER.as_bytes(), &long].concat())]);
    let error = house.read(&Columns::default()).unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("longer than 16777216 bytes"), "{error}");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let house = House::new(&[]);
    std::fs::create_dir(house.0.path().join("d.inter")).unwrap();
    let error = house.read(&Columns::default()).unwrap_err().to_string();
    assert!(error.contains("isn't a regular file"), "{error}");
    let error = Folder::open(&house.0.path().join("none"), None).unwrap_err().to_string();
    assert!(error.contains("opening the data set in"), "{error}");
}

/// A million items and as many rows: what counts is that it ends, and that each id is there once.
#[test]
fn a_million_items_are_read() {
    const ITEMS: u32 = 1_000_000;
    let mut items = String::from("item_id:token\tname:token_seq\tgenres:token_seq\n");
    let mut rows = String::from(INTER);
    for n in 0..ITEMS {
        writeln!(items, "i{n}\tClip {n}\tG{} G{}", n % 19, n % 7).unwrap();
        // A step without a common divisor goes once through all items.
        let item = u64::from(n) * 7_919 % u64::from(ITEMS);
        writeln!(rows, "u{}\ti{item}\t{}\t{}", n % 20_011, n % 5 + 1, 1_600_000_000 - n).unwrap();
    }
    let house = House::new(&[("d.inter", rows.as_bytes()), ("d.item", items.as_bytes())]);
    let columns = Columns { categories: Some("genres".to_owned()), ..named(Columns::default(), "name") };
    let data = house.read(&columns).unwrap();
    assert_eq!((data.rows().len(), data.items().len(), data.users().len()), (1_000_000, 1_000_000, 20_011));
    assert!(data.rows().is_sorted_by_key(|row| (row.time, row.number)));
    assert_eq!(data.catalog().text(999_999), "title: Clip 999999\ncategories: G10, G0");
    assert_eq!(data.catalog().category_names().len(), 19);
}
