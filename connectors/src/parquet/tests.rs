#![allow(clippy::unwrap_used)]

use super::*;
use ictflow_schemas::example::{HistoryRecord, Served};
use ictflow_schemas::feature::VectorKind;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A row whose shape its number decides: lists of all lengths, items with all, some and none of their fields.
fn row(n: i64) -> Row {
    let text = |what: &str| Some(format!("{what} {n} – ü"));
    let item = match n % 4 {
        0 => None,
        1 => Some(Item::default()),
        _ => Some(Item {
            title: text("title"),
            creator: text("creator").filter(|_| n % 3 == 0),
            categories: (0..n % 4).map(|c| format!("kind {c}")).collect(),
            tags: (0..n % 3).map(|c| format!("tag {c}")).collect(),
            description: text("words"),
            language: Some("en".to_owned()).filter(|_| n % 5 == 0),
            ..Item::default()
        }),
    };
    let entry = |h: i64| HistoryRecord {
        item_id: format!("h{h}"),
        kind: "play".to_owned(),
        label: ["positive", "negative", "none"][(h % 3) as usize].to_owned(),
        event_time: n - 100 + h,
    };
    let served = (n % 3 != 0).then(|| Served {
        epoch: n - 5,
        ict_weights: format!("w{}", n % 2),
        vector_kind: [VectorKind::Decoder, VectorKind::Attention][(n % 2) as usize],
        demonstrations: (0..n % 5).map(|d| format!("d{d}")).collect(),
        neighbours: (0..n % 7).map(|d| format!("n{d}")).collect(),
        votes: (0..9).map(|v| (n + v) as f32 / 7.0).collect(),
        ict: (0..n % 4 * 8).map(|x| -1.0 / (n + x) as f32).collect(),
    });
    let example = ExampleRecord {
        user_id: format!("u{}", n % 7),
        event_time: n,
        event_id: format!("e{n}"),
        item_id: format!("i{n}"),
        label: i32::from(n % 3 == 1),
        implicit: n % 3 == 2,
        label_time: n + n % 5,
        history: (0..n % 21).map(entry).collect(),
        served,
    };
    Row { example, item }
}

fn written(rows: &[Row]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.parquet");
    let mut writer = Writer::create(&path).unwrap();
    for row in rows {
        writer.write(row.clone()).unwrap();
    }
    assert!(!path.exists(), "it has no name until it is whole");
    assert_eq!(writer.finish().unwrap(), rows.len() as u64);
    (folder, path)
}

fn read(path: &Path) -> crate::Result<Vec<Row>> {
    all(Reader::open(path)?)
}

fn all(mut reader: Reader) -> crate::Result<Vec<Row>> {
    let mut all = Vec::new();
    loop {
        let rows = reader.rows()?;
        if rows.is_empty() {
            return Ok(all);
        }
        assert!(rows.len() <= BATCH);
        all.extend(rows);
    }
}

#[test]
fn what_is_written_is_read_over_groups_and_batches() {
    for count in [1, 50, BATCH as i64, GROUP as i64 + BATCH as i64 + 7] {
        let rows: Vec<Row> = (0..count).map(row).collect();
        let (_folder, path) = written(&rows);
        assert!(read(&path).unwrap() == rows, "{count} rows");
    }
}

#[test]
fn what_was_served_can_be_passed_over() {
    let rows: Vec<Row> = (0..100).map(row).collect();
    let (_folder, path) = written(&rows);
    let plain = |row: Row| Row { example: ExampleRecord { served: None, ..row.example }, item: row.item };
    let expected: Vec<Row> = rows.into_iter().map(plain).collect();
    assert!(all(Reader::open(&path).unwrap().without_served()).unwrap() == expected);
}

#[test]
fn only_a_training_set_is_replaced_and_only_by_a_whole_one() {
    let rows: Vec<Row> = (0..50).map(row).collect();
    let (folder, path) = written(&rows);
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    let mut writer = Writer::create(&path).unwrap();
    writer.write(row(1)).unwrap();
    assert_eq!(names(), 2);
    drop(writer);
    assert_eq!(names(), 1, "what isn't finished goes with its writer");
    assert!(read(&path).unwrap() == rows);
    let mut writer = Writer::create(&path).unwrap();
    writer.write(row(1)).unwrap();
    assert_eq!(writer.finish().unwrap(), 1);
    assert!(read(&path).unwrap() == [row(1)]);
    let other = folder.path().join("job.toml");
    std::fs::write(&other, "state = \"look\"\n").unwrap();
    for (path, part) in [(other.as_path(), "isn't Parquet"), (folder.path(), "it is a folder")] {
        let error = Writer::create(path).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(std::fs::read(&other).unwrap(), b"state = \"look\"\n");
    // Nothing is in an empty file, so nothing is lost.
    std::fs::write(&other, "").unwrap();
    Writer::create(&other).unwrap();
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    let rows: Vec<Row> = (0..500).map(row).collect();
    let (a, b) = (written(&rows), written(&rows));
    assert!(std::fs::read(&a.1).unwrap() == std::fs::read(&b.1).unwrap());
}

/// A file that pyarrow wrote: every column nullable, times in microseconds, texts in dictionaries, snappy, and
/// more columns than are read. `golden/training_set.py` made it.
#[test]
fn a_file_of_pyarrow_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/training_set.parquet");
    let rows = read(&path).unwrap();
    let example =
        |user: &str, item: &str, time: i64, label: i32, history: &[(&str, &str, i64)]| ExampleRecord {
            user_id: user.to_owned(),
            event_time: time,
            event_id: format!("e{}", time - 1_700_000_000_000),
            item_id: item.to_owned(),
            label,
            implicit: label == 0,
            label_time: time + 1_800_000,
            history: history
                .iter()
                .map(|(item, label, time)| HistoryRecord {
                    item_id: (*item).to_owned(),
                    kind: "play".to_owned(),
                    label: (*label).to_owned(),
                    event_time: *time,
                })
                .collect(),
            served: None,
        };
    let film = Item {
        title: Some("Fïlm".to_owned()),
        categories: vec!["drama".to_owned(), "war".to_owned()],
        ..Item::default()
    };
    let t = 1_700_000_000_000;
    assert_eq!(
        rows,
        [
            Row { example: example("ann", "m1", t + 1, 1, &[]), item: Some(film.clone()) },
            Row {
                example: example("bob", "m2", t + 2, 0, &[("m1", "positive", t), ("m3", "none", t + 1)]),
                item: None,
            },
            Row { example: example("ann", "m1", t + 3, 0, &[("m2", "negative", t + 2)]), item: Some(film) },
        ]
    );
}

/// A file of a few plain columns.
fn plain(
    message: &str,
    write: impl FnOnce(&mut SerializedFileWriter<std::fs::File>),
) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.parquet");
    let schema = Arc::new(parse_message_type(message).unwrap());
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::default())).unwrap();
    write(&mut writer);
    writer.close().unwrap();
    (folder, path)
}

/// user_id, item_id, event_time and label of one row.
fn one(message: &str, user: &str, time: i64, label: i64) -> crate::Result<Vec<Row>> {
    let (_folder, path) = plain(message, |writer| {
        let mut group = writer.next_row_group().unwrap();
        for text in [user, "m1"] {
            let mut column = group.next_column().unwrap().unwrap();
            let defined =
                message.contains("optional binary user_id").then_some([i16::from(!text.is_empty())]);
            let values: Vec<ByteArray> =
                Some(ByteArray::from(text)).into_iter().filter(|_| defined != Some([0])).collect();
            let levels = defined.as_ref().map(|d| &d[..]).filter(|_| text != "m1");
            column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
            column.close().unwrap();
        }
        for number in [time, label] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[number], None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    });
    read(&path)
}

const NEEDED: &str = "message m { required binary user_id (string); required binary item_id (string); \
    required int64 event_time; required int64 label; }";

#[test]
fn the_needed_columns_are_enough() {
    let rows = one(NEEDED, "ann", 1_700_000_000_000, 1).unwrap();
    let example = ExampleRecord {
        user_id: "ann".to_owned(),
        event_time: 1_700_000_000_000,
        event_id: "0000000000".to_owned(),
        item_id: "m1".to_owned(),
        label: 1,
        implicit: false,
        label_time: 1_700_000_000_000,
        history: Vec::new(),
        served: None,
    };
    assert_eq!(rows, [Row { example, item: None }]);
}

/// The rows of a file of another program: vectors in doubles, and no lists of votes and ids. Null where empty.
fn served(weights: &str, kind: &str) -> crate::Result<Vec<Row>> {
    let message = format!(
        "{} optional int64 served_epoch; optional binary served_ict_weights (string); \
         optional binary served_vector_kind (string); \
         optional group served_ict (list) {{ repeated group list {{ optional double element; }} }} }}",
        NEEDED.trim_end_matches('}')
    );
    let (_folder, path) = plain(&message, |writer| {
        let mut group = writer.next_row_group().unwrap();
        let texts = |values: [&str; 2]| {
            let defined = values.map(|value| i16::from(!value.is_empty()));
            let values: Vec<ByteArray> =
                values.into_iter().filter(|value| !value.is_empty()).map(ByteArray::from).collect();
            (values, defined)
        };
        let (needed, told) = (texts(["ann", "bob"]), [texts([weights, ""]), texts([kind, ""])]);
        for _ in 0..2 {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&needed.0, None, None).unwrap();
            column.close().unwrap();
        }
        for (values, defined) in [(&[7, 8][..], None), (&[0, 1], None), (&[3], Some(&[1, 0][..]))] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(values, defined, None).unwrap();
            column.close().unwrap();
        }
        for (values, defined) in told {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&defined), None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[0.5, -2.0], Some(&[3, 3, 0]), Some(&[0, 1, 0])).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    });
    read(&path)
}

#[test]
fn what_another_program_says_was_served_is_read_or_named() {
    let found: Vec<_> = served("w", "attention").unwrap().into_iter().map(|row| row.example.served).collect();
    let expected = Served {
        epoch: 3,
        ict_weights: "w".to_owned(),
        vector_kind: VectorKind::Attention,
        demonstrations: Vec::new(),
        neighbours: Vec::new(),
        votes: Vec::new(),
        ict: vec![0.5, -2.0],
    };
    assert_eq!(found, [Some(expected), None]);
    for (weights, kind, part) in [
        ("", "decoder", "served_ict_weights"),
        ("w", "", "served_vector_kind"),
        ("w", "mean", "\"mean\" is neither decoder nor attention"),
    ] {
        let error = served(weights, kind).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("row 1"), "{error}");
    }
}

#[test]
fn what_is_malformed_is_named() {
    let nullable = NEEDED.replace("required binary user_id", "optional binary user_id");
    let renamed = NEEDED.replace("label;", "stars;");
    for (result, parts) in [
        (one(&renamed, "ann", 1, 1), vec!["no column label", "user_id, item_id, event_time, stars"]),
        (one(NEEDED, "ann", 1, 2), vec!["column label", "row 1", "2, neither 0 nor 1"]),
        (one(NEEDED, "", 1, 1), vec!["column user_id", "row 1", "empty"]),
        (one(&nullable, "", 1, 1), vec!["column user_id", "row 1", "null"]),
        (one(NEEDED, "ann", 1_700_000_000_000_000, 1), vec!["event_time", "in milliseconds"]),
    ] {
        let error = result.unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} isn't in {error:?}");
        }
    }
    let (_folder, path) = plain(NEEDED, |_| {});
    assert!(read(&path).unwrap_err().to_string().contains("no rows"));
    let folder = tempfile::tempdir().unwrap();
    for (bytes, part) in [(&b""[..], "empty"), (b"user_id,item_id\n1,2\n", "name a Parquet file")] {
        let path = folder.path().join("other");
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    // Cut off in the middle: the directory at its end is gone.
    let (_folder, path) = written(&(0..50).map(row).collect::<Vec<_>>());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(read(&path).is_err());
}
