#![allow(clippy::unwrap_used)]

use super::*;
use crate::Disposition;
use crate::topics::Reader;
use ictflow_schemas::topic::Record;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const NOW: Duration = Duration::ZERO;

fn store() -> (tempfile::TempDir, Local) {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::open(folder.path().join("state").join(FILE_NAME)).unwrap();
    (folder, local)
}

fn record(topic: &str, partition: u32, key: &str, value: Option<&str>) -> NewRecord {
    NewRecord {
        topic: topic.into(),
        partition,
        timestamp: Some(7),
        key: Some(key.into()),
        value: value.map(Into::into),
        headers: Vec::new(),
    }
}

fn drain(reader: &mut dyn Reader, max: usize) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let some = reader.poll(max, NOW).unwrap();
        if some.is_empty() {
            return all;
        }
        assert!(some.len() <= max);
        all.extend(some);
    }
}

fn keys(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.key.clone().unwrap()).unwrap()).collect()
}

#[test]
fn records_come_back_whole_and_in_order() {
    let (_folder, mut local) = store();
    local.ensure("t", 2, Policy::Append).unwrap();
    assert_eq!(local.ends("t").unwrap(), [0, 0]);
    let full = NewRecord {
        timestamp: Some(-5),
        headers: vec![("a".into(), vec![0, 255]), ("a".into(), Vec::new())],
        ..record("t", 1, "k", Some(""))
    };
    let before = crate::clock::now_ms();
    local
        .append(&[
            record("t", 0, "x", Some("1")),
            full.clone(),
            record("t", 0, "", None),
            NewRecord { timestamp: None, ..record("t", 0, "y", Some("2")) },
            NewRecord { timestamp: Some(-1), ..record("t", 0, "z", Some("3")) },
        ])
        .unwrap();
    assert_eq!(local.ends("t").unwrap(), [4, 1]);
    let mut reader = local.reader("t", &[0, 0]).unwrap();
    let records = drain(&mut *reader, 100);
    assert_eq!(reader.positions(), [4, 1]);
    let zero: Vec<&Record> = records.iter().filter(|record| record.partition == 0).collect();
    assert_eq!(zero.iter().map(|record| record.offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!((zero[0].timestamp, zero[0].value.as_deref()), (Some(7), Some(&b"1"[..])));
    assert_eq!((zero[1].key.as_deref(), zero[1].value.as_deref()), (Some(&b""[..]), None));
    assert!(zero[2].timestamp.unwrap() >= before && zero[2].timestamp.unwrap() <= crate::clock::now_ms());
    assert_eq!(zero[3].timestamp, None);
    let one: Vec<&Record> = records.iter().filter(|record| record.partition == 1).collect();
    assert_eq!(
        *one[0],
        Record {
            partition: 1,
            offset: 0,
            timestamp: Some(-5),
            key: full.key,
            value: full.value,
            framed: None,
            headers: full.headers,
        }
    );
}

#[test]
fn a_reader_resumes_at_the_positions_of_another() {
    let (_folder, mut local) = store();
    local.ensure("t", 3, Policy::Append).unwrap();
    let records: Vec<NewRecord> =
        (0..300u32).map(|i| record("t", if i < 200 { 1 } else { i % 3 }, &i.to_string(), None)).collect();
    local.append(&records).unwrap();
    let mut all = Vec::new();
    let mut positions = vec![-3, 0, 0];
    loop {
        // A new reader for every poll: nothing but the positions carries over.
        let mut reader = local.reader("t", &positions).unwrap();
        let some = reader.poll(7, NOW).unwrap();
        positions = reader.positions();
        if some.is_empty() {
            break;
        }
        all.extend(some);
    }
    assert_eq!(positions, local.ends("t").unwrap());
    let mut places: Vec<(u32, i64)> = all.iter().map(|record| (record.partition, record.offset)).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 300);
    for partition in 0..3 {
        let offsets: Vec<i64> = all.iter().filter(|r| r.partition == partition).map(|r| r.offset).collect();
        assert!(offsets.iter().enumerate().all(|(at, &offset)| at as i64 == offset));
    }
}

#[test]
fn partitions_take_turns() {
    let (_folder, mut local) = store();
    local.ensure("t", 3, Policy::Append).unwrap();
    for partition in [0, 0, 0, 0, 0, 0, 1, 2, 2] {
        local.append(&[record("t", partition, "k", None)]).unwrap();
    }
    let polls = |max: usize| {
        let mut reader = Local::open_read_only(&local.path).unwrap().reader("t", &[0; 3]).unwrap();
        std::iter::from_fn(move || {
            let some = reader.poll(max, NOW).unwrap();
            (!some.is_empty()).then(|| some.iter().map(|r| (r.partition, r.offset)).collect::<Vec<_>>())
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(polls(3), [[(0, 0), (1, 0), (2, 0)], [(0, 1), (2, 1), (0, 2)], [(0, 3), (0, 4), (0, 5)]]);
    // What a partition doesn't use, the others may.
    assert_eq!(polls(9), [[(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (0, 3), (0, 4), (0, 5)]]);
    // Fewer places than partitions: none starves.
    assert_eq!(polls(1)[..4], [[(0, 0)], [(1, 0)], [(2, 0)], [(0, 1)]]);
}

#[test]
fn an_idle_poll_ends_in_time_and_a_new_record_ends_it_early() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::Append).unwrap();
    let mut reader = local.reader("t", &[0]).unwrap();
    let start = std::time::Instant::now();
    assert!(reader.poll(10, Duration::from_millis(60)).unwrap().is_empty());
    assert!(start.elapsed() >= Duration::from_millis(60));
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        local.append(&[record("t", 0, "k", None)]).unwrap();
    });
    let some = reader.poll(10, Duration::from_secs(60)).unwrap();
    assert_eq!(some.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(30));
    late.join().unwrap();
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let (_folder, mut local) = store();
    local.ensure("a", 1, Policy::Compact).unwrap();
    local.ensure("b", 2, Policy::Compact).unwrap();
    let mut writer = local.writer("job").unwrap();
    writer.commit(&[record("a", 0, "1", None), record("b", 1, "2", None)], &[("in".into(), 0, 5)]).unwrap();
    // The third record fails, after two were inserted.
    let bad = [record("a", 0, "3", None), record("b", 0, "4", None), record("b", 2, "5", None)];
    let error = writer.commit(&bad, &[("in".into(), 0, 9)]).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(error.detail.contains("topic b has 2 partitions, the record names partition 2"), "{error}");
    let error = local.append(&[record("a", 0, "3", None), record("c", 0, "6", None)]).unwrap_err();
    assert!(error.detail.contains("topic c doesn't exist"), "{error}");
    assert_eq!(local.ends("a").unwrap(), [1]);
    assert_eq!(local.ends("b").unwrap(), [0, 1]);
    assert_eq!(local.group_offsets("job").unwrap(), [("in".to_owned(), 0, 5)]);
    // The writer goes on, offsets stay without gaps.
    writer.commit(&[record("a", 0, "7", None)], &[("in".into(), 0, 6)]).unwrap();
    let mut reader = local.reader("a", &[0]).unwrap();
    assert_eq!(keys(&drain(&mut *reader, 10)), ["1", "7"]);
    assert_eq!(local.group_offsets("job").unwrap(), [("in".to_owned(), 0, 6)]);
}

#[test]
fn an_open_transaction_shows_to_nobody_and_leaves_with_its_connection() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::Append).unwrap();
    let mut reader = local.reader("t", &[0]).unwrap();
    let mut other = store::connect(&local.path, Access::Write).unwrap();
    let transaction = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    write::insert(&transaction, &[record("t", 0, "open", None)], "test").unwrap();
    assert_eq!(local.ends("t").unwrap(), [0]);
    assert!(reader.poll(10, NOW).unwrap().is_empty());
    // As a death before the commit: SQLite gets no chance to say goodbye properly.
    drop(transaction);
    drop(other);
    local.append(&[record("t", 0, "next", None)]).unwrap();
    assert_eq!(keys(&drain(&mut *reader, 10)), ["next"]);
}

#[test]
fn a_newer_writer_fences_the_older() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::Append).unwrap();
    let mut old = local.writer("job").unwrap();
    let mut epochs = local.writer("job.epochs").unwrap();
    old.commit(&[record("t", 0, "1", None)], &[]).unwrap();
    let mut new = Local::open(&local.path).unwrap().writer("job").unwrap();
    for _ in 0..2 {
        let error = old.commit(&[record("t", 0, "2", None)], &[("in".into(), 0, 1)]).unwrap_err();
        assert_eq!(error.disposition, Disposition::Fatal);
        assert_eq!(error.detail, "fenced: this writer has generation 1, the newest has 2");
    }
    // Fenced also without records, and other ids are untouched.
    assert!(old.commit(&[], &[]).is_err());
    epochs.commit(&[record("t", 0, "3", None)], &[]).unwrap();
    new.commit(&[record("t", 0, "4", None)], &[]).unwrap();
    let mut reader = local.reader("t", &[0]).unwrap();
    assert_eq!(keys(&drain(&mut *reader, 10)), ["1", "3", "4"]);
    assert!(local.group_offsets("job").unwrap().is_empty());
}

#[test]
fn a_concurrent_reader_sees_whole_epochs() {
    let (_folder, mut local) = store();
    local.ensure("a", 1, Policy::Append).unwrap();
    local.ensure("b", 2, Policy::Append).unwrap();
    let path = local.path.clone();
    let epochs = 150i64;
    let write = std::thread::spawn(move || {
        let mut writer = local.writer("job").unwrap();
        for epoch in 0..epochs {
            let key = epoch.to_string();
            let batch: Vec<NewRecord> =
                (0..10).flat_map(|i| [record("a", 0, &key, None), record("b", i % 2, &key, None)]).collect();
            writer.commit(&batch, &[("in".into(), 0, epoch)]).unwrap();
        }
    });
    let mut seen = Local::open_read_only(&path).unwrap();
    let mut reader = seen.reader("b", &[0, 0]).unwrap();
    let mut total = 0;
    while total < epochs * 10 {
        let ends = seen.ends("b").unwrap();
        assert!(ends[0] == ends[1] && ends[0] % 5 == 0, "{ends:?}");
        let some = reader.poll(usize::MAX, Duration::from_millis(20)).unwrap();
        assert_eq!(some.len() % 10, 0);
        let positions = reader.positions();
        assert!(positions.iter().zip(&ends).all(|(position, end)| position >= end));
        total += some.len() as i64;
        // `a` was written in the same transactions and read later.
        assert!(seen.ends("a").unwrap()[0] >= total);
    }
    write.join().unwrap();
}

#[test]
fn handles_and_threads_write_at_once() {
    let (_folder, mut local) = store();
    local.ensure("t", 2, Policy::Append).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let mut handle = Local::open(&local.path).unwrap();
            scope.spawn(move || {
                for i in 0..40 {
                    let key = format!("{thread} {i:02}");
                    handle.append(&[record("t", 0, &key, None), record("t", 1, &key, None)]).unwrap();
                }
            });
        }
        // A connection without the gate stands for another process.
        let path = local.path.clone();
        scope.spawn(move || {
            let mut other = store::connect(&path, Access::Write).unwrap();
            for i in 0..40 {
                let transaction = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
                write::insert(&transaction, &[record("t", 0, &format!("4 {i:02}"), None)], "test").unwrap();
                transaction.commit().unwrap();
            }
        });
    });
    assert_eq!(local.ends("t").unwrap(), [200, 160]);
    let mut reader = local.reader("t", &[0, 0]).unwrap();
    let all = drain(&mut *reader, 50);
    for thread in 0..5 {
        let mine: Vec<String> = keys(&all.iter().filter(|r| r.partition == 0).cloned().collect::<Vec<_>>())
            .into_iter()
            .filter(|key| key.starts_with(&format!("{thread} ")))
            .collect();
        assert_eq!(mine.len(), 40);
        assert!(mine.is_sorted());
    }
}

#[test]
fn many_open_the_new_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut local = Local::open(&path).unwrap();
                local.ensure("t", 1, Policy::Compact).unwrap();
                local.append(&[record("t", 0, "k", None)]).unwrap();
            });
        }
    });
    assert_eq!(Local::open(&path).unwrap().ends("t").unwrap(), [6]);
}

#[test]
fn the_file_outlives_its_handles_and_reads_alone() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::CompactAndTime).unwrap();
    local.append(&[record("t", 0, "1", Some("v"))]).unwrap();
    let path = local.path.clone();
    drop(local);
    let mut seen = Local::open_read_only(&path).unwrap();
    assert_eq!(
        seen.topics().unwrap(),
        [TopicInfo { name: "t".into(), partitions: 1, policy: Policy::CompactAndTime }]
    );
    let mut reader = seen.reader("t", &[0]).unwrap();
    assert_eq!(drain(&mut *reader, 10).len(), 1);
    // A writer comes while the reader stands.
    let mut local = Local::open(&path).unwrap();
    local.append(&[record("t", 0, "2", None)]).unwrap();
    drop(local);
    assert_eq!(keys(&drain(&mut *reader, 10)), ["2"]);
    // Reading only means it.
    seen.ensure("t", 1, Policy::Compact).unwrap();
    for error in [
        seen.ensure("u", 1, Policy::Compact).unwrap_err(),
        seen.append(&[record("t", 0, "3", None)]).unwrap_err(),
        seen.writer("job").err().unwrap(),
    ] {
        assert!(error.detail.ends_with("is open for reading only"), "{error}");
    }
}

#[test]
fn mismatches_are_named() {
    let (_folder, mut local) = store();
    local.ensure("t", 4, Policy::Append).unwrap();
    local.ensure("t", 4, Policy::Append).unwrap();
    assert_eq!(local.partitions("t").unwrap(), Some(4));
    assert_eq!(local.partitions("u").unwrap(), None);
    assert_eq!(
        local.ensure("t", 8, Policy::Append).unwrap_err().to_string(),
        "ensuring topic t: topic t has 4 partitions, 8 were asked for (set the configured count to the \
         topic's, or use another topic or state folder)"
    );
    assert!(local.ensure("u", 0, Policy::Append).is_err());
    let error = local.reader("t", &[0; 3]).err().unwrap();
    assert_eq!(error.detail, "topic t has 4 partitions, 3 offsets were given");
    let error = local.reader("t", &[0, 0, 1, 0]).err().unwrap();
    assert_eq!(error.detail, "partition 2 of topic t ends at 0, a reader was asked from 1");
    assert!(local.ends("u").unwrap_err().detail.contains("topic u doesn't exist"));
}

#[test]
fn foreign_newer_and_missing_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    drop(Local::open(path("newer.db")).unwrap());
    let raw = Connection::open(path("newer.db")).unwrap();
    raw.pragma_update(None, "user_version", FORMAT_VERSION + 1).unwrap();
    drop(raw);
    for error in
        [Local::open(path("newer.db")).err().unwrap(), Local::open_read_only(path("newer.db")).err().unwrap()]
    {
        assert_eq!(error.detail, "its format is version 2, this program reads up to version 1");
        assert_eq!(error.disposition, Disposition::Fatal);
    }
    let raw = Connection::open(path("foreign.db")).unwrap();
    raw.execute_batch("CREATE TABLE t (a)").unwrap();
    drop(raw);
    assert_eq!(Local::open(path("foreign.db")).err().unwrap().detail, "it is a database of another program");
    std::fs::write(
        path("text.db"),
        "not a database, but long enough to look like a header of one. ".repeat(20),
    )
    .unwrap();
    let error = Local::open(path("text.db")).err().unwrap();
    assert!(error.hint.contains("isn't a store of ictflow"), "{error}");
    let error = Local::open_read_only(path("missing.db")).err().unwrap();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(!path("missing.db").exists());
    std::fs::write(path("empty.db"), "").unwrap();
    assert_eq!(Local::open_read_only(path("empty.db")).err().unwrap().detail, "it holds no topics yet");
    assert!(Local::open(folder.path()).is_err());
}

#[test]
fn a_removed_record_is_noticed() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::Append).unwrap();
    local.append(&[record("t", 0, "1", None), record("t", 0, "2", None)]).unwrap();
    let mut reader = local.reader("t", &[0]).unwrap();
    local.connection.execute("DELETE FROM records WHERE \"offset\" = 0", []).unwrap();
    let error = reader.poll(10, NOW).unwrap_err();
    assert_eq!(error.detail, "partition 0 has offset 1 where 0 is due");
    assert_eq!(reader.positions(), [0]);
}

#[test]
fn a_poll_is_bounded_in_bytes() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::Append).unwrap();
    let big = NewRecord { value: Some(vec![1; POLL_BYTES / 2]), ..record("t", 0, "k", None) };
    local.append(&[big.clone(), big.clone(), big]).unwrap();
    let mut reader = local.reader("t", &[0]).unwrap();
    assert_eq!(reader.poll(10, NOW).unwrap().len(), 2);
    assert_eq!(reader.poll(10, NOW).unwrap().len(), 1);
    assert!(reader.poll(10, NOW).unwrap().is_empty());
}

/// The test runs itself again as a child that appends and commits without end and says what was
/// acknowledged, and kills it with SIGKILL, a few times over on one file.
#[test]
fn a_kill_loses_nothing_acknowledged() {
    const CHILD: &str = "ICTFLOW_TEST_KILLED_CHILD";
    const NAME: &str = "local::tests::a_kill_loses_nothing_acknowledged";
    if let Some(path) = std::env::var_os(CHILD) {
        let mut local = Local::open(path).unwrap();
        let mut writer = local.writer("job").unwrap();
        loop {
            local.append(&[record("log", 0, "k", Some("answer"))]).unwrap();
            let epoch: Vec<NewRecord> = (0..200).map(|i| record("out", i % 2, "k", None)).collect();
            writer.commit(&epoch, &[]).unwrap();
            println!("ack {} {}", local.ends("log").unwrap()[0], local.ends("out").unwrap()[0]);
        }
    }
    let (_folder, mut local) = store();
    local.ensure("log", 1, Policy::Compact).unwrap();
    local.ensure("out", 2, Policy::Compact).unwrap();
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(CHILD, &local.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = (0i64, 0i64);
        let mut acks = 0;
        for line in lines.by_ref() {
            let line = line.unwrap();
            // The harness prints "test NAME ... " in front of the first line.
            let Some((_, numbers)) = line.split_once("ack ") else { continue };
            let (log, out) = numbers.split_once(' ').unwrap();
            acknowledged = (log.parse().unwrap(), out.parse().unwrap());
            acks += 1;
            if acks == 5 * round {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success());
        assert!(acks >= 5 * round);
        // Another open after the death, with recovery of the log.
        let mut seen = Local::open(&local.path).unwrap();
        assert!(seen.ends("log").unwrap()[0] >= acknowledged.0);
        let out = seen.ends("out").unwrap();
        assert!(out[0] >= acknowledged.1 && out[0] == out[1] && out[0] % 100 == 0, "{out:?}");
        let mut reader = seen.reader("out", &[0, 0]).unwrap();
        assert_eq!(drain(&mut *reader, 1000).len() as i64, out[0] * 2);
    }
}

#[test]
fn starts_and_times_are_found_by_partition() {
    let (_folder, mut local) = store();
    local.ensure("t", 3, Policy::Append).unwrap();
    let at = |partition, ms| NewRecord { timestamp: Some(ms), ..record("t", partition, "k", None) };
    assert_eq!(local.starts("t").unwrap(), [0, 0, 0]);
    assert_eq!(local.offsets_at("t", 0).unwrap(), [0, 0, 0]);
    // Times needn't rise, and -1 is no time.
    local.append(&[at(0, -1), at(0, 10), at(0, 30), at(0, 20), at(1, -7), at(1, 30)]).unwrap();
    assert_eq!(local.starts("t").unwrap(), [0, 0, 0]);
    for (ms, expected) in [
        (i64::MIN, [1, 0, 0]),
        (-6, [1, 1, 0]),
        (10, [1, 1, 0]),
        (11, [2, 1, 0]),
        (30, [2, 1, 0]),
        (31, [4, 2, 0]),
        (i64::MAX, [4, 2, 0]),
    ] {
        assert_eq!(local.offsets_at("t", ms).unwrap(), expected, "at {ms}");
    }
    local.connection.execute("DELETE FROM records WHERE partition = 0 AND \"offset\" < 2", []).unwrap();
    assert_eq!(local.starts("t").unwrap(), [2, 0, 0]);
    assert_eq!(local.offsets_at("t", 0).unwrap(), [2, 1, 0]);
    assert!(local.starts("u").unwrap_err().detail.contains("topic u doesn't exist"));
    assert!(local.offsets_at("u", 0).unwrap_err().detail.contains("topic u doesn't exist"));
}

#[test]
fn a_writer_knows_whether_it_stands() {
    let (_folder, mut local) = store();
    local.ensure("t", 1, Policy::Append).unwrap();
    let mut first = local.writer("job").unwrap();
    let mut other = local.writer("job.epochs").unwrap();
    first.standing("t").unwrap();
    let mut second = local.writer("job").unwrap();
    let error = first.standing("t").unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(error.detail.starts_with("fenced"), "{error}");
    assert!(!error.starts_anew());
    second.standing("t").unwrap();
    other.standing("t").unwrap();
    assert_eq!(local.ends("t").unwrap(), [0], "nothing was written");
    assert!(local.group_offsets("job").unwrap().is_empty());
}
