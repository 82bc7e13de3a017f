#![allow(clippy::unwrap_used)]

use super::*;
use crate::Disposition;
use ictflow_schemas::topic::Record;
use std::io::Write;

const NOW: Duration = Duration::ZERO;

struct House {
    folder: tempfile::TempDir,
}

impl House {
    fn new(content: impl AsRef<[u8]>) -> House {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("in.jsonl"), content).unwrap();
        House { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("in.jsonl")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn open(&self, follow: bool) -> Files {
        Files::open(&[Input { topic: "t".into(), path: self.file() }], &self.state(), follow).unwrap()
    }

    fn append(&self, bytes: impl AsRef<[u8]>) {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.file()).unwrap();
        file.write_all(bytes.as_ref()).unwrap();
    }

    /// Every record, not followed.
    fn all(&self) -> Vec<Record> {
        let mut files = self.open(false);
        let mut reader = files.reader("t", &[0]).unwrap();
        let mut all = Vec::new();
        loop {
            let some = reader.poll(3, NOW).unwrap();
            if some.is_empty() {
                assert_eq!(reader.positions(), files.ends("t").unwrap());
                assert_eq!(all.len() as i64, reader.positions()[0]);
                return all;
            }
            all.extend(some);
        }
    }
}

fn line(key: &str, value: &str) -> String {
    format!(r#"{{"key":"{key}","value":{value}}}"#)
}

fn good(offset: i64, key: &str, value: &str) -> Record {
    Record {
        partition: 0,
        offset,
        timestamp: None,
        key: Some(key.into()),
        value: Some(value.into()),
        framed: None,
        headers: Vec::new(),
    }
}

fn raw(offset: i64, value: impl Into<Vec<u8>>) -> Record {
    Record { key: None, value: Some(value.into()), ..good(offset, "", "") }
}

fn output(topic: &str) -> NewRecord {
    NewRecord {
        topic: topic.into(),
        partition: 0,
        timestamp: None,
        key: Some(b"k".to_vec()),
        value: None,
        headers: Vec::new(),
    }
}

#[test]
fn an_empty_file_is_an_empty_topic() {
    for follow in [false, true] {
        let house = House::new("");
        let mut files = house.open(follow);
        assert_eq!(files.partitions("t").unwrap(), Some(1));
        assert_eq!(files.ends("t").unwrap(), [0]);
        let mut reader = files.reader("t", &[0]).unwrap();
        assert!(reader.poll(10, NOW).unwrap().is_empty());
        assert_eq!(reader.positions(), [0]);
    }
}

#[test]
fn lines_of_every_kind_keep_their_numbers() {
    let mut content = b"\xef\xbb\xbf".to_vec();
    for part in [
        &b"{\"key\":\"a\",\"value\":1}\r\n"[..],
        b"\n",
        b"\r\n",
        b"{\"key\":\"a\",\"value\":\"\xfe\"}\n",
        b"no json\r\n",
        // The same record again: the store doesn't judge keys.
        b"{\"key\":\"a\",\"value\":1}\n",
        b"{\"key\":\"b\",\"value\":{ } , \"timestamp\":9}",
    ] {
        content.extend_from_slice(part);
    }
    assert_eq!(
        House::new(content).all(),
        [
            good(0, "a", "1"),
            raw(1, ""),
            raw(2, ""),
            raw(3, *b"{\"key\":\"a\",\"value\":\"\xfe\"}"),
            raw(4, "no json"),
            good(5, "a", "1"),
            Record { timestamp: Some(9), ..good(6, "b", "{ }") },
        ]
    );
}

#[test]
fn a_last_line_without_newline_counts_only_when_not_followed() {
    let house = House::new(format!("{}\n{}", line("a", "1"), line("b", "2")));
    assert_eq!(house.all(), [good(0, "a", "1"), good(1, "b", "2")]);
    let mut fixed = house.open(false);
    let mut follow = house.open(true);
    assert_eq!(follow.ends("t").unwrap(), [1]);
    let mut reader = follow.reader("t", &[0]).unwrap();
    assert_eq!(reader.poll(10, NOW).unwrap(), [good(0, "a", "1")]);
    assert!(reader.poll(10, NOW).unwrap().is_empty());
    assert_eq!(reader.positions(), [1]);
    house.append(format!("\n{}", line("c", "3")));
    assert_eq!(reader.poll(10, NOW).unwrap(), [good(1, "b", "2")]);
    assert!(reader.poll(10, NOW).unwrap().is_empty());
    // Opened before the append and not following: nothing new.
    assert_eq!(fixed.ends("t").unwrap(), [2]);
    let mut reader = fixed.reader("t", &[1]).unwrap();
    assert_eq!(reader.poll(10, NOW).unwrap(), [good(1, "b", "2")]);
    assert!(reader.poll(10, NOW).unwrap().is_empty());
}

#[test]
fn a_growing_file_is_followed_in_pieces() {
    let house = House::new("");
    let mut files = house.open(true);
    let mut reader = files.reader("t", &[0]).unwrap();
    let text: String = (0..3000).map(|i| line(&i.to_string(), "{}") + "\n").collect();
    let mut got = Vec::new();
    for piece in text.as_bytes().chunks(777) {
        house.append(piece);
        got.extend(reader.poll(100, NOW).unwrap());
        assert!(files.ends("t").unwrap()[0] >= reader.positions()[0]);
    }
    while got.len() < 3000 {
        let some = reader.poll(100, NOW).unwrap();
        assert!(!some.is_empty());
        got.extend(some);
    }
    for (at, record) in got.iter().enumerate() {
        assert_eq!(*record, good(at as i64, &at.to_string(), "{}"));
    }
}

#[test]
fn a_waiting_reader_wakes_for_a_line_and_ends_in_time_without() {
    let house = House::new("");
    let mut files = house.open(true);
    let mut reader = files.reader("t", &[0]).unwrap();
    let start = std::time::Instant::now();
    assert!(reader.poll(10, Duration::from_millis(50)).unwrap().is_empty());
    assert!(start.elapsed() >= Duration::from_millis(50));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(40));
            house.append(line("a", "1") + "\n");
        });
        assert_eq!(reader.poll(10, Duration::from_secs(60)).unwrap(), [good(0, "a", "1")]);
    });
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn readers_resume_at_any_line() {
    // Beyond two marks of the index, and lines of many lengths around the chunk's end.
    let lines: Vec<String> =
        (0..2500usize).map(|i| line(&i.to_string(), &format!("\"{}\"", "x".repeat(i % 701)))).collect();
    let house = House::new(lines.join("\n"));
    let mut files = house.open(false);
    assert_eq!(files.ends("t").unwrap(), [2500]);
    for from in [-1, 0, 1, 1023, 1024, 1025, 2047, 2048, 2499] {
        let mut reader = files.reader("t", &[from]).unwrap();
        assert_eq!(reader.positions(), [from.max(0)]);
        let record = reader.poll(1, NOW).unwrap().remove(0);
        assert_eq!(record.offset, from.max(0));
        assert_eq!(record.key.unwrap(), record.offset.to_string().into_bytes());
    }
    let mut reader = files.reader("t", &[2500]).unwrap();
    assert!(reader.poll(1, NOW).unwrap().is_empty());
    assert_eq!(reader.positions(), [2500]);
    let error = files.reader("t", &[2501]).err().unwrap();
    assert_eq!(error.detail, "partition 0 of topic t ends at 2500, a reader was asked from 2501");
    let error = files.reader("t", &[0, 0]).err().unwrap();
    assert_eq!(error.detail, "topic t has 1 partitions, 2 offsets were given");
}

#[test]
fn a_too_long_line_is_cut_and_the_next_one_is_whole() {
    // At the limit a line is still whole; one byte more is too long.
    let fit = line("a", &format!("\"{}\"", "x".repeat(LINE_BYTES - line("a", "\"\"").len())));
    assert_eq!(fit.len(), LINE_BYTES);
    let long = line("b", &format!("\"{}\"", "y".repeat(LINE_BYTES + 1 - line("b", "\"\"").len())));
    let longer = "z".repeat(LINE_BYTES * 2);
    let house = House::new(format!("{fit}\n{long}\n{longer}\n{}\n{longer}", line("c", "1")));
    let all = house.all();
    assert_eq!(all.len(), 5);
    assert_eq!(all[0].key.as_deref(), Some(&b"a"[..]));
    assert_eq!(all[1], raw(1, &long.as_bytes()[..TRUNCATED_BYTES]));
    assert_eq!(all[2], raw(2, &longer.as_bytes()[..TRUNCATED_BYTES]));
    assert_eq!(all[3], good(3, "c", "1"));
    assert_eq!(all[4], raw(4, &longer.as_bytes()[..TRUNCATED_BYTES]));
    // A reader finds its way over them too.
    let mut reader = house.open(false).reader("t", &[3]).unwrap();
    assert_eq!(reader.poll(1, NOW).unwrap(), [good(3, "c", "1")]);
}

#[test]
fn a_poll_is_bounded_in_bytes() {
    let big = line("a", &format!("\"{}\"", "x".repeat(LINE_BYTES - 100))) + "\n";
    let house = House::new(big.repeat(6));
    let mut reader = house.open(false).reader("t", &[0]).unwrap();
    assert_eq!(reader.poll(10, NOW).unwrap().len(), 5);
    assert_eq!(reader.poll(10, NOW).unwrap().len(), 1);
}

#[test]
fn a_shrunken_file_is_noticed() {
    let house = House::new((line("a", "1") + "\n").repeat(10));
    let mut follow = house.open(true);
    let mut fixed = house.open(false);
    assert_eq!(follow.ends("t").unwrap(), [10]);
    std::fs::OpenOptions::new().write(true).open(house.file()).unwrap().set_len(30).unwrap();
    for error in [follow.ends("t").unwrap_err(), fixed.ends("t").unwrap_err()] {
        assert_eq!(error.disposition, Disposition::Fatal);
        assert_eq!(error.detail, "the file shrank to 30 bytes after more was read");
    }
}

#[test]
fn other_topics_live_in_the_state_folder() {
    let house = House::new(line("a", "1"));
    let mut files = house.open(false);
    files.ensure("t", 1, Policy::Append).unwrap();
    files.ensure("out", 1, Policy::Compact).unwrap();
    assert_eq!(files.partitions("out").unwrap(), Some(1));
    assert_eq!(files.partitions("none").unwrap(), None);
    files.append(&[output("out")]).unwrap();
    let mut old = files.writer("job").unwrap();
    let mut new = files.writer("job").unwrap();
    new.commit(&[output("out")], &[("t".into(), 0, 1)]).unwrap();
    assert!(old.commit(&[], &[]).unwrap_err().detail.starts_with("fenced"));
    assert_eq!(files.ends("out").unwrap(), [2]);
    assert_eq!(files.local().group_offsets("job").unwrap(), [("t".to_owned(), 0, 1)]);
    let mut reader = files.reader("out", &[0]).unwrap();
    assert_eq!(reader.poll(10, NOW).unwrap().len(), 2);

    let error = files.append(&[output("out"), output("t")]).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert_eq!(error.detail, "topic t is read from a file and can't be written");
    assert_eq!(new.commit(&[output("out"), output("t")], &[]).unwrap_err().detail, error.detail);
    assert_eq!(files.ends("out").unwrap(), [2]);
    assert_eq!(
        files.ensure("t", 4, Policy::Append).unwrap_err().detail,
        "topic t has 1 partitions, 4 were asked for"
    );

    let inputs = [Input { topic: "t".into(), path: house.file() }];
    let mut seen = Files::open_read_only(&inputs, &house.state(), false).unwrap();
    assert_eq!((seen.ends("t").unwrap(), seen.ends("out").unwrap()), (vec![1], vec![2]));
    assert!(seen.append(&[output("out")]).is_err());
}

#[test]
fn standard_input_is_read_from_its_copy() {
    let house = House::new("");
    let inputs = [
        Input { topic: "t".into(), path: STDIN.into() },
        Input { topic: "items".into(), path: house.file() },
    ];
    let open = |piped: &str| {
        let inner = Local::open(house.state().join(local::FILE_NAME)).unwrap();
        let copy = |target: &Path| stdin::copy(piped.as_bytes(), target);
        Files::build(&inputs, &house.state(), true, inner, copy)
    };
    // No growth can come, so the last line counts even where files are followed.
    assert_eq!(open(&line("a", "1")).unwrap().ends("t").unwrap(), [1]);
    let mut files = open(&format!("{}\n{}", line("a", "1"), line("b", "2"))).unwrap();
    let mut reader = files.reader("t", &[1]).unwrap();
    assert_eq!(reader.poll(10, NOW).unwrap(), [good(1, "b", "2")]);
    assert!(open("other").err().unwrap().detail.contains("differs from the copy"));
    let mut seen = Files::open_read_only(&inputs, &house.state(), true).unwrap();
    assert_eq!(seen.ends("t").unwrap(), [2]);
    assert!(house.state().join("stdin-t.jsonl").exists());
}

#[test]
fn wrong_inputs_are_refused() {
    let house = House::new("");
    let input = |topic: &str, path: PathBuf| Input { topic: topic.into(), path };
    let refused = |inputs: &[Input]| Files::open(inputs, &house.state(), false).err().unwrap().to_string();
    assert!(
        refused(&[input("t", house.file()), input("t", house.file())]).contains("topic t is named twice")
    );
    assert!(
        refused(&[input("t", STDIN.into()), input("u", STDIN.into())])
            .contains("standard input is named for two topics")
    );
    assert!(refused(&[input("../t", STDIN.into())]).contains("can't name the copy"));
    assert!(refused(&[input("t", house.folder.path().into())]).contains("it isn't a regular file"));
    let missing = refused(&[input("t", house.folder.path().join("none.jsonl"))]);
    assert!(missing.contains("none.jsonl for topic t"), "{missing}");
}

#[test]
fn a_file_starts_at_0_and_times_are_found_by_line() {
    let timed = |ms: i64| format!("{{\"key\":\"k\",\"value\":1,\"timestamp\":{ms}}}\n");
    let untimed = line("k", "1") + "\n";
    let house = House::new(untimed.clone() + &timed(10) + "no json\n" + &timed(30) + &timed(20));
    let mut files = house.open(true);
    assert_eq!(files.starts("t").unwrap(), [0]);
    for (ms, expected) in [(i64::MIN, 1), (10, 1), (11, 3), (30, 3), (31, 5)] {
        assert_eq!(files.offsets_at("t", ms).unwrap(), [expected], "at {ms}");
    }
    // More lines than one look takes; what is appended counts where the file is followed.
    house.append(untimed.repeat(2_000) + &timed(40));
    assert_eq!(files.offsets_at("t", 31).unwrap(), [2_005]);
    assert_eq!(files.offsets_at("t", 41).unwrap(), [2_006]);
    // Other topics stand in the state folder.
    files.ensure("out", 1, Policy::Compact).unwrap();
    files.append(&[NewRecord { timestamp: Some(5), ..output("out") }]).unwrap();
    assert_eq!(files.starts("out").unwrap(), [0]);
    assert_eq!(files.offsets_at("out", 6).unwrap(), [1]);
}
