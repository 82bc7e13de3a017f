//! The Kafka connector against a real Apache Kafka: order, atomicity, fencing, positions.

#![allow(clippy::unwrap_used)]

use ictflow_connectors::kafka::{Compression, Config, Kafka, Mechanism, Protocol, Secret, Security};
use ictflow_connectors::topics::{Reader, Topics};
use ictflow_connectors::{Disposition, Error};
use ictflow_schemas::framing::{self, Partitioner};
use ictflow_schemas::topic::{HEADER_EPOCH, NewRecord, Policy, Record};
use ictflow_tests::support::kafka::{Broker, SASL_PASSWORD, SASL_USER, kcat, root, run_java, unique};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(30);

fn new(topic: &str, partition: u32, key: &str, value: &str) -> NewRecord {
    NewRecord {
        topic: topic.into(),
        partition,
        timestamp: None,
        key: Some(key.into()),
        value: Some(value.into()),
        headers: Vec::new(),
    }
}

/// Several records of one partition.
fn several(topic: &str, partition: u32, tag: &str, count: usize) -> Vec<NewRecord> {
    (0..count).map(|n| new(topic, partition, &format!("k{n}"), &format!("{tag}-{n}"))).collect()
}

/// Everything up to the ends of now. The reader must reach them, or the test fails.
fn read_to_ends(store: &mut Kafka, topic: &str, reader: &mut dyn Reader) -> Vec<Record> {
    let ends = store.ends(topic).unwrap();
    let mut records = Vec::new();
    let deadline = Instant::now() + LIMIT;
    loop {
        let polled = reader.poll(1_000, WAIT).unwrap();
        let empty = polled.is_empty();
        records.extend(polled);
        if empty {
            let positions = reader.positions();
            assert!(
                positions.iter().zip(&ends).all(|(position, end)| position >= end),
                "after an empty poll the positions {positions:?} are short of the ends {ends:?}"
            );
            return records;
        }
        assert!(Instant::now() < deadline, "the ends {ends:?} aren't reached: {:?}", reader.positions());
    }
}

/// Waits until a topic ends where it must: a commit is durable a moment before it is visible.
fn await_ends(store: &mut Kafka, topic: &str, expected: &[i64]) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let ends = store.ends(topic).unwrap();
        if ends == expected {
            return;
        }
        assert!(
            ends.iter().zip(expected).all(|(end, expected)| end <= expected),
            "{ends:?}, not {expected:?}"
        );
        assert!(Instant::now() < deadline, "the ends stay {ends:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Pseudo-random text, which no codec makes much smaller.
fn noise(length: usize) -> String {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(33 + (state >> 40) as u8 % 90)
    };
    (0..length).map(|_| next()).collect()
}

/// All committed records of a topic, by a new reader.
fn read_all(store: &mut Kafka, topic: &str) -> Vec<Record> {
    let partitions = store.partitions(topic).unwrap().unwrap();
    let mut reader = store.reader(topic, &vec![0; partitions as usize]).unwrap();
    read_to_ends(store, topic, reader.as_mut())
}

/// All committed records, once there are as many.
fn read_once_visible(store: &mut Kafka, topic: &str, count: usize) -> Vec<Record> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let records = read_all(store, topic);
        if records.len() >= count {
            return records;
        }
        assert!(Instant::now() < deadline, "only {records:?}");
    }
}

fn values(records: &[Record]) -> Vec<String> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    records.iter().map(|record| record.value.as_ref().map_or("null".into(), text)).collect()
}

/// A raw transactional producer, for what the connector never does: stay open, abort, be a zombie.
fn raw_transaction(broker: &Broker, id: &str) -> BaseProducer {
    let producer: BaseProducer =
        broker.client().set("transactional.id", id).set("transaction.timeout.ms", "30000").create().unwrap();
    producer.init_transactions(LIMIT).unwrap();
    producer
}

fn raw_send(producer: &BaseProducer, topic: &str, tag: &str, count: usize) {
    for n in 0..count {
        let (key, value) = (format!("k{n}"), format!("{tag}-{n}"));
        producer.send(BaseRecord::to(topic).partition(0).key(&key).payload(&value)).unwrap();
    }
    producer.flush(LIMIT).unwrap();
}

fn admin(broker: &Broker) -> (AdminClient<DefaultClientContext>, AdminOptions) {
    (
        broker.client().create().unwrap(),
        AdminOptions::new().request_timeout(Some(LIMIT)).operation_timeout(Some(LIMIT)),
    )
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

fn setting(broker: &Broker, topic: &str, key: &str) -> String {
    let (admin, options) = admin(broker);
    let answers = block_on(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options)).unwrap();
    let resource = answers.into_iter().next().unwrap().unwrap();
    resource.get(key).and_then(|entry| entry.value.clone()).unwrap()
}

fn is_retry(error: &Error) -> bool {
    matches!(error.disposition, Disposition::Retry { .. })
}

#[test]
fn a_topic_is_created_by_its_policy_and_another_partition_count_is_refused() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("ensure");
    assert_eq!(store.partitions(&topic).unwrap(), None);
    store.ensure(&topic, 3, Policy::Append).unwrap();
    store.ensure(&topic, 3, Policy::Append).unwrap();
    assert_eq!(store.partitions(&topic).unwrap(), Some(3));
    assert_eq!(store.ends(&topic).unwrap(), [0, 0, 0]);
    let error = store.ensure(&topic, 4, Policy::Append).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    let text = error.to_string();
    assert!(text.contains(&topic) && text.contains('3') && text.contains('4'), "{text}");

    assert_eq!(setting(broker, &topic, "cleanup.policy"), "delete");
    assert_eq!(setting(broker, &topic, "retention.ms"), "-1");
    for (policy, expected) in [(Policy::Compact, "compact"), (Policy::CompactAndTime, "compact,delete")] {
        let topic = unique("policy");
        store.ensure(&topic, 1, policy).unwrap();
        assert_eq!(setting(broker, &topic, "cleanup.policy"), expected);
    }
    assert_eq!(store.ensure(&unique("none"), 0, Policy::Append).unwrap_err().disposition, Disposition::Fatal);
    assert_eq!(store.ensure("no/such name", 1, Policy::Append).unwrap_err().disposition, Disposition::Fatal);
}

#[test]
fn appended_records_are_read_in_order_with_every_field() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("append");
    store.ensure(&topic, 3, Policy::Append).unwrap();
    let count = 20_000;
    let records: Vec<_> = (0..count)
        .map(|n| NewRecord {
            timestamp: Some(1_700_000_000_000 + n),
            headers: vec![
                (HEADER_EPOCH.into(), n.to_string().into()),
                ("twice".into(), vec![0, 255]),
                ("twice".into(), vec![]),
            ],
            ..new(&topic, (n % 3) as u32, &format!("k{n}"), &n.to_string())
        })
        .collect();
    let begun = Instant::now();
    store.append(&records).unwrap();
    let appended = begun.elapsed();
    // An empty key and an empty value are neither absent nor a tombstone.
    store.append(&[NewRecord { key: Some(vec![]), value: Some(vec![]), ..new(&topic, 0, "", "") }]).unwrap();
    store.append(&[NewRecord { value: None, ..new(&topic, 0, "gone", "") }]).unwrap();
    store.append(&[]).unwrap();

    let begun = Instant::now();
    let mut reader = store.reader(&topic, &[0, 0, 0]).unwrap();
    let read = read_to_ends(&mut store, &topic, reader.as_mut());
    println!("20,000 records: appended in {appended:?}, read in {:?}", begun.elapsed());
    assert_eq!(read.len(), records.len() + 2);
    for partition in 0..3 {
        let of_partition: Vec<_> = read.iter().filter(|record| record.partition == partition).collect();
        for (offset, record) in of_partition.iter().enumerate() {
            assert_eq!(record.offset, offset as i64);
        }
        for (record, sent) in
            of_partition.iter().zip(records.iter().filter(|record| record.partition == partition))
        {
            assert_eq!(record.key, sent.key);
            assert_eq!(record.value, sent.value);
            assert_eq!(record.timestamp, sent.timestamp);
            assert_eq!(record.headers, sent.headers);
        }
    }
    let last: Vec<_> = read.iter().filter(|record| record.partition == 0).rev().take(2).collect();
    assert_eq!((last[0].key.as_deref(), last[0].value.as_deref()), (Some(&b"gone"[..]), None));
    assert_eq!((last[1].key.as_deref(), last[1].value.as_deref()), (Some(&b""[..]), Some(&b""[..])));
    // Without a timestamp the record has the clock's.
    assert!(last[0].timestamp.unwrap() > 1_700_000_100_000);
    assert_eq!(store.counts().records_appended.load(Ordering::Relaxed), records.len() as u64 + 2);
    assert_eq!(store.counts().records_read.load(Ordering::Relaxed), records.len() as u64 + 2);
}

#[test]
fn a_poll_returns_at_most_what_was_asked_for_and_a_reader_resumes() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("resume");
    store.ensure(&topic, 2, Policy::Append).unwrap();
    store.append(&several(&topic, 0, "a", 10)).unwrap();
    store.append(&several(&topic, 1, "b", 10)).unwrap();
    let mut reader = store.reader(&topic, &[0, 0]).unwrap();
    let mut first = Vec::new();
    while first.len() < 7 {
        let polled = reader.poll(3, WAIT).unwrap();
        assert!(polled.len() <= 3);
        first.extend(polled);
    }
    let positions = reader.positions();
    assert_eq!(
        positions.iter().sum::<i64>(),
        first.len() as i64,
        "positions count what was returned: {positions:?}"
    );
    drop(reader);
    // A new reader goes on exactly there, also over what is written meanwhile.
    store.append(&several(&topic, 0, "c", 5)).unwrap();
    let mut reader = store.reader(&topic, &positions).unwrap();
    assert_eq!(reader.positions(), positions);
    let rest = read_to_ends(&mut store, &topic, reader.as_mut());
    assert_eq!(first.len() + rest.len(), 25);
    assert_eq!(reader.positions(), [15, 10]);
    let mut all: Vec<_> = first.iter().chain(&rest).map(|record| (record.partition, record.offset)).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 25);
    // It also goes on after its end.
    store.append(&[new(&topic, 1, "k", "later")]).unwrap();
    assert_eq!(values(&read_to_ends(&mut store, &topic, reader.as_mut())), ["later"]);
}

#[test]
fn offsets_before_the_first_kept_start_there_and_offsets_past_the_end_are_refused() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("starts");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    store.append(&several(&topic, 0, "a", 10)).unwrap();
    let (admin, options) = admin(broker);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(4)).unwrap();
    block_on(admin.delete_records(&before, &options)).unwrap();
    let mut reader = store.reader(&topic, &[1]).unwrap();
    assert_eq!(reader.positions(), [4]);
    assert_eq!(values(&read_to_ends(&mut store, &topic, reader.as_mut()))[0], "a-4");

    let error = store.reader(&topic, &[11]).map(|_| ()).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(error.to_string().contains("11") && error.to_string().contains("10"), "{error}");
    let error = store.reader(&topic, &[0, 0]).map(|_| ()).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    let error = store.reader(&unique("missing"), &[0]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("doesn't exist"), "{error}");
}

#[test]
fn starts_follow_deletions_and_times_are_found_among_committed_records() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("times");
    store.ensure(&topic, 2, Policy::Append).unwrap();
    assert_eq!(store.starts(&topic).unwrap(), [0, 0]);
    assert_eq!(store.offsets_at(&topic, 0).unwrap(), [0, 0]);
    // Times needn't rise with the offsets; near now, so that the broker's limits don't matter.
    let base = 1_700_000_000_000;
    let at = |partition, ms: i64| NewRecord {
        timestamp: Some(base + ms),
        ..new(&topic, partition, "k", &format!("at {ms}"))
    };
    let times = [10, 40, 20, 50];
    store.append(&times.map(|ms| at(0, ms))).unwrap();
    store.append(&[at(1, 30)]).unwrap();
    for (ms, expected) in
        [(0, [0, 0]), (10, [0, 0]), (11, [1, 0]), (30, [1, 0]), (31, [1, 1]), (41, [3, 1]), (51, [4, 1])]
    {
        assert_eq!(store.offsets_at(&topic, base + ms).unwrap(), expected, "at {ms}");
    }
    assert_eq!(store.offsets_at(&topic, -1).unwrap(), [0, 0]);
    assert_eq!(store.offsets_at(&topic, i64::MAX).unwrap(), [4, 1]);

    let (admin, options) = admin(broker);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(2)).unwrap();
    block_on(admin.delete_records(&before, &options)).unwrap();
    assert_eq!(store.starts(&topic).unwrap(), [2, 0]);
    assert_eq!(store.offsets_at(&topic, base).unwrap(), [2, 0]);
    assert_eq!(store.offsets_at(&topic, -1).unwrap(), [2, 0]);
    // A partition that lost all starts at its end.
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(&topic, 0, Offset::End).unwrap();
    block_on(admin.delete_records(&all, &options)).unwrap();
    assert_eq!(store.starts(&topic).unwrap(), [4, 0]);
    assert_eq!(store.ends(&topic).unwrap(), [4, 1]);

    // What isn't committed has no time yet: the end of a read_committed reader stands for it.
    let open = raw_transaction(broker, &unique("times-open"));
    open.begin_transaction().unwrap();
    open.send(BaseRecord::to(&topic).partition(1).key("k").payload("open").timestamp(base + 90)).unwrap();
    open.flush(LIMIT).unwrap();
    assert_eq!(store.offsets_at(&topic, base + 90).unwrap(), [4, 1]);
    open.commit_transaction(LIMIT).unwrap();
    await_ends(&mut store, &topic, &[4, 3]);
    assert_eq!(store.offsets_at(&topic, base + 90).unwrap(), [4, 1]);
    for missing in [store.starts("not-there"), store.offsets_at("not-there", 0)] {
        assert!(missing.unwrap_err().detail.contains("doesn't exist"));
    }
}

#[test]
fn a_reader_that_retention_overtook_fails_by_name() {
    let broker = Broker::shared();
    // A reader that fetches little ahead, so that the deletion comes before its next fetch.
    let mut store = Kafka::connect(Config { fetch_queue_records: 1, ..broker.config() }).unwrap();
    let topic = unique("overtaken");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let mut reader = store.reader(&topic, &[0]).unwrap();
    assert!(reader.poll(10, WAIT).unwrap().is_empty());
    drop(reader);
    store.append(&several(&topic, 0, "a", 10)).unwrap();
    // The position is checked when the reader is opened; what goes afterwards must be an error.
    let big = noise(400_000);
    for _ in 0..30 {
        store.append(&[new(&topic, 0, "k", &big)]).unwrap();
    }
    let mut reader = store.reader(&topic, &[0]).unwrap();
    assert!(!reader.poll(1, LIMIT).unwrap().is_empty());
    let (admin, options) = admin(broker);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic, 0, Offset::Offset(40)).unwrap();
    block_on(admin.delete_records(&before, &options)).unwrap();
    let deadline = Instant::now() + LIMIT;
    let error = loop {
        match reader.poll(1, WAIT) {
            Ok(records) => assert!(records.iter().all(|record| record.offset < 40)),
            Err(error) => break error,
        }
        assert!(Instant::now() < deadline, "the loss went unnoticed at {:?}", reader.positions());
    };
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    assert!(error.to_string().contains("retention"), "{error}");
}

#[test]
fn a_committed_transaction_is_visible_whole_with_headers_tombstones_and_offsets() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let (features, progress, input, id) =
        (unique("features"), unique("progress"), unique("input"), unique("job"));
    store.ensure(&input, 2, Policy::Append).unwrap();
    store.ensure(&features, 2, Policy::Compact).unwrap();
    store.ensure(&progress, 1, Policy::Compact).unwrap();
    let mut writer = store.writer(&id).unwrap();
    let headers = vec![(HEADER_EPOCH.to_string(), b"7".to_vec()), ("empty".to_string(), vec![])];
    let records = [
        NewRecord { headers: headers.clone(), ..new(&features, 0, "u1", "v1") },
        NewRecord { value: None, headers: headers.clone(), ..new(&features, 1, "u2", "") },
        new(&progress, 0, "job", "7"),
    ];
    writer.commit(&records, &[(input.clone(), 0, 41), (input.clone(), 1, 42)]).unwrap();
    // A marker takes an offset in each partition.
    await_ends(&mut store, &features, &[2, 2]);
    await_ends(&mut store, &progress, &[2]);
    let read = read_all(&mut store, &features);
    assert_eq!(read.len(), 2);
    for record in &read {
        assert_eq!(record.headers, headers);
        assert_eq!(record.value.is_none(), record.key.as_deref() == Some(b"u2"));
    }
    assert_eq!(values(&read_all(&mut store, &progress)), ["7"]);

    // The consumed positions stand under the group of the transactional id.
    let consumer: BaseConsumer = broker.client().set("group.id", &id).create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&input, 0);
    asked.add_partition(&input, 1);
    let committed = consumer.committed_offsets(asked, LIMIT).unwrap();
    let offsets: Vec<_> = committed.elements().iter().map(|element| element.offset()).collect();
    assert_eq!(offsets, [Offset::Offset(41), Offset::Offset(42)]);

    // The writer is idle again; nothing to write is fine, with and without offsets.
    writer.commit(&[], &[]).unwrap();
    writer.commit(&[], &[(input.clone(), 0, 50)]).unwrap();
    writer.commit(&[new(&progress, 0, "job", "8")], &[]).unwrap();
    await_ends(&mut store, &progress, &[4]);
    assert_eq!(values(&read_all(&mut store, &progress)), ["7", "8"]);
    assert_eq!(store.counts().commits.load(Ordering::Relaxed), 4);
}

#[test]
fn commits_are_quick_and_positions_pass_every_marker() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("epochs");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let mut writer = store.writer(&unique("job.epochs")).unwrap();
    let mut reader = store.reader(&topic, &[0]).unwrap();
    let rounds = 10;
    let (mut commits, mut passes) = (Duration::ZERO, Duration::ZERO);
    for n in 0..rounds {
        let begun = Instant::now();
        writer.commit(&[new(&topic, 0, "job", &n.to_string())], &[]).unwrap();
        commits += begun.elapsed();
        await_ends(&mut store, &topic, &[2 * (n + 1)]);
        let deadline = Instant::now() + LIMIT;
        let mut got = Vec::new();
        while got.is_empty() && Instant::now() < deadline {
            got = reader.poll(10, WAIT).unwrap();
        }
        assert_eq!(values(&got), [n.to_string()]);
        // The record is below the marker, so the position isn't at the end yet: an empty poll is.
        let begun = Instant::now();
        assert!(reader.poll(10, Duration::ZERO).unwrap().is_empty());
        passes += begun.elapsed();
        assert_eq!(reader.positions(), [2 * (n + 1)]);
    }
    println!(
        "a commit of one record takes {:?}, passing its marker {:?}",
        commits / rounds as u32,
        passes / rounds as u32
    );
}

#[test]
fn an_aborted_transaction_is_invisible_and_positions_pass_it() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("aborted");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let raw = raw_transaction(broker, &unique("raw"));
    raw.begin_transaction().unwrap();
    raw_send(&raw, &topic, "bad", 7);
    raw.abort_transaction(LIMIT).unwrap();
    store.append(&several(&topic, 0, "good", 2)).unwrap();
    await_ends(&mut store, &topic, &[10]);
    let mut reader = store.reader(&topic, &[0]).unwrap();
    assert_eq!(values(&read_to_ends(&mut store, &topic, reader.as_mut())), ["good-0", "good-1"]);
    assert_eq!(reader.positions(), [10]);

    // At the tail nothing follows that could carry the position past it.
    raw.begin_transaction().unwrap();
    raw_send(&raw, &topic, "worse", 3);
    raw.abort_transaction(LIMIT).unwrap();
    await_ends(&mut store, &topic, &[14]);
    assert!(reader.poll(10, Duration::ZERO).unwrap().is_empty());
    assert_eq!(reader.positions(), [14]);

    // Another store's ends are passed too, once the reader has looked for itself.
    raw.begin_transaction().unwrap();
    raw_send(&raw, &topic, "worst", 1);
    raw.abort_transaction(LIMIT).unwrap();
    let ends = [16];
    await_ends(&mut broker.connect(), &topic, &ends);
    let deadline = Instant::now() + LIMIT;
    while reader.positions() < ends.to_vec() {
        assert!(Instant::now() < deadline, "{:?} of {ends:?}", reader.positions());
        assert!(reader.poll(10, WAIT).unwrap().is_empty());
    }

    // Not vacuous: who reads uncommitted records sees the aborted ones.
    let dirty: BaseConsumer = broker
        .client()
        .set("group.id", "dirty")
        .set("isolation.level", "read_uncommitted")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
    dirty.assign(&list).unwrap();
    let mut bad = 0;
    while let Some(Ok(message)) = dirty.poll(LIMIT) {
        bad += usize::from(message.payload().is_some_and(|payload| payload.starts_with(b"bad")));
    }
    assert_eq!(bad, 7);
}

#[test]
fn the_end_is_the_last_stable_offset_while_a_transaction_is_open() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("open");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    store.append(&several(&topic, 0, "before", 2)).unwrap();
    let raw = raw_transaction(broker, &unique("raw"));
    raw.begin_transaction().unwrap();
    raw_send(&raw, &topic, "open", 3);
    store.append(&several(&topic, 0, "after", 2)).unwrap();
    assert_eq!(store.ends(&topic).unwrap(), [2], "records past an open transaction can't be read yet");
    let mut reader = store.reader(&topic, &[0]).unwrap();
    assert_eq!(values(&read_to_ends(&mut store, &topic, reader.as_mut())), ["before-0", "before-1"]);
    assert_eq!(reader.positions(), [2]);
    raw.commit_transaction(LIMIT).unwrap();
    await_ends(&mut store, &topic, &[8]);
    let rest = read_to_ends(&mut store, &topic, reader.as_mut());
    assert_eq!(values(&rest), ["open-0", "open-1", "open-2", "after-0", "after-1"]);
    assert_eq!(reader.positions(), [8]);
}

#[test]
fn a_second_writer_fences_the_first_and_aborts_what_it_left_open() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let (topic, id) = (unique("fence"), unique("job"));
    store.ensure(&topic, 1, Policy::Append).unwrap();

    // A zombie of another process, in the middle of its transaction.
    let zombie = raw_transaction(broker, &id);
    zombie.begin_transaction().unwrap();
    raw_send(&zombie, &topic, "zombie", 5);
    assert_eq!(store.ends(&topic).unwrap(), [0]);
    let mut first = store.writer(&id).unwrap();
    assert_eq!(store.ends(&topic).unwrap(), [6], "the open transaction is aborted when the writer is there");
    assert!(zombie.commit_transaction(LIMIT).is_err());
    first.commit(&[new(&topic, 0, "k", "first")], &[]).unwrap();

    // And one of our own, idle: its next commit fails for good and writes nothing.
    let mut second = store.writer(&id).unwrap();
    let error = first.commit(&[new(&topic, 0, "k", "too late")], &[]).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    assert!(error.hint.contains("another writer"), "{error}");
    let again = first.commit(&[], &[]).unwrap_err();
    assert_eq!(again.disposition, Disposition::Fatal, "a closed writer stays closed: {again}");
    second.commit(&[new(&topic, 0, "k", "second")], &[]).unwrap();
    await_ends(&mut store, &topic, &[10]);
    assert_eq!(values(&read_all(&mut store, &topic)), ["first", "second"]);

    // Writers of other ids are left alone.
    let mut other = store.writer(&unique("job")).unwrap();
    let mut third = store.writer(&id).unwrap();
    other.commit(&[new(&topic, 0, "k", "other")], &[]).unwrap();
    third.commit(&[new(&topic, 0, "k", "third")], &[]).unwrap();
}

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn an_idle_writer_tells_a_successor_and_leaves_no_trace() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let (topic, id) = (unique("standing"), unique("standing"));
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let mut writer = store.writer(&id).unwrap();
    writer.standing(&topic).unwrap();
    writer.commit(&[new(&topic, 0, "k", "mine")], &[]).unwrap();
    writer.standing(&topic).unwrap();
    writer.commit(&[new(&topic, 0, "k", "mine too")], &[]).unwrap();
    let group: BaseConsumer = broker.client().set("group.id", &id).create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topic, 0);
    let published = group.committed_offsets(asked, LIMIT).unwrap();
    assert_eq!(published.elements()[0].offset(), Offset::Invalid, "no position was published");
    let mut successor = store.writer(&id).unwrap();
    let error = writer.standing(&topic).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    assert!(error.hint.contains("only one job of a name may run"), "{error}");
    assert_eq!(writer.standing(&topic).unwrap_err().disposition, Disposition::Fatal);
    assert_eq!(writer.commit(&[], &[]).unwrap_err().disposition, Disposition::Fatal);
    successor.commit(&[new(&topic, 0, "k", "its own")], &[]).unwrap();
    assert_eq!(values(&read_once_visible(&mut store, &topic, 3)), ["mine", "mine too", "its own"]);
}

#[test]
fn positions_never_pass_an_unread_record() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("mixed");
    store.ensure(&topic, 2, Policy::Append).unwrap();
    let mut writing = store.another();
    let mut writer = writing.writer(&unique("job")).unwrap();
    let raw = raw_transaction(broker, &unique("raw"));
    let target = topic.clone();
    // Plain records, committed and aborted ones, so that every kind of gap comes in every place.
    let hand = std::thread::spawn(move || {
        let mut dice = Dice(7);
        for n in 0..120 {
            let records = several(&target, dice.roll(2) as u32, &format!("{n}"), 1 + dice.roll(4) as usize);
            match dice.roll(3) {
                0 => writing.append(&records).unwrap(),
                1 => writer.commit(&records, &[]).unwrap(),
                _ => {
                    raw.begin_transaction().unwrap();
                    raw_send(&raw, &target, "aborted", 2);
                    raw.abort_transaction(LIMIT).unwrap();
                }
            }
            std::thread::sleep(Duration::from_millis(dice.roll(20)));
        }
    });

    let mut reader = store.reader(&topic, &[0, 0]).unwrap();
    let mut dice = Dice(11);
    let (mut read, mut claims) = (Vec::new(), Vec::new());
    let mut done = false;
    let deadline = Instant::now() + 3 * LIMIT;
    loop {
        let written = hand.is_finished();
        let ends = (written || dice.roll(3) == 0).then(|| store.ends(&topic).unwrap());
        let max = 1 + dice.roll(6) as usize;
        let polled = reader.poll(max, Duration::from_millis([0, 1, 30][dice.roll(3) as usize])).unwrap();
        assert!(polled.len() <= max);
        let empty = polled.is_empty();
        read.extend(polled);
        let positions = reader.positions();
        if empty && let Some(ends) = ends {
            assert!(positions.iter().zip(&ends).all(|(p, e)| p >= e), "{positions:?} are short of {ends:?}");
            // The markers of the last transaction may be a moment away.
            if written && done {
                break;
            }
            done = written;
        }
        claims.push((positions, read.len()));
        assert!(Instant::now() < deadline);
    }
    hand.join().unwrap();

    let truth = read_all(&mut store, &topic);
    assert!(truth.len() > 100 && values(&truth).iter().all(|value| !value.starts_with("aborted")));
    for partition in 0..2 {
        let of = |records: &[Record]| -> Vec<i64> {
            records
                .iter()
                .filter(|record| record.partition == partition)
                .map(|record| record.offset)
                .collect()
        };
        let truth = of(&truth);
        assert_eq!(of(&read), truth, "each once, in order");
        // What each answer claimed: everything below its positions had been returned.
        for (positions, count) in &claims {
            let below = truth.iter().filter(|offset| **offset < positions[partition as usize]).count();
            assert_eq!(of(&read[..*count]).len(), below, "at {positions:?}");
        }
    }
    let quiet = claims.windows(2).filter(|pair| pair[0].1 == pair[1].1).count();
    assert!(quiet > 10, "too few empty polls to prove anything: {quiet}");
}

#[test]
fn compacted_gaps_are_passed() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("compacted");
    let (admin, options) = admin(broker);
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "200"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "300"),
        ("delete.retention.ms", "0"),
    ];
    let fresh = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let fresh = settings.iter().fold(fresh, |topic, (key, value)| topic.set(key, value));
    block_on(admin.create_topics([&fresh], &options)).unwrap()[0].as_ref().unwrap();
    store.ensure(&topic, 1, Policy::Compact).unwrap();
    for round in 0..10 {
        store.append(&several(&topic, 0, &format!("r{round}"), 10)).unwrap();
    }
    let deadline = Instant::now() + LIMIT;
    let mut round = 10;
    let (kept, reader) = loop {
        // A segment is rolled by a later append only, and the newest is never compacted.
        std::thread::sleep(Duration::from_millis(300));
        store.append(&several(&topic, 0, &format!("r{round}"), 1)).unwrap();
        round += 1;
        let mut reader = store.reader(&topic, &[0]).unwrap();
        let kept = read_to_ends(&mut store, &topic, reader.as_mut());
        if kept[0].offset > 1 && kept.len() < 40 {
            break (kept, reader);
        }
        assert!(Instant::now() < deadline, "nothing was compacted: {} records", kept.len());
    };
    // The first offsets are gaps, though the log still starts at 0; the newest of each key stays.
    assert_eq!(reader.positions(), store.ends(&topic).unwrap());
    for n in 1..10 {
        let key = format!("k{n}");
        let newest = kept.iter().rfind(|record| record.key.as_deref() == Some(key.as_bytes())).unwrap();
        assert_eq!(newest.value.as_deref(), Some(format!("r9-{n}").as_bytes()));
    }
    // A reader that starts within a gap; the cleaner may have widened it since.
    let mut within = store.reader(&topic, &[1]).unwrap();
    assert!(read_to_ends(&mut store, &topic, within.as_mut())[0].offset >= kept[0].offset);
    assert_eq!(within.positions(), store.ends(&topic).unwrap());
}

/// Keys as users have them, and lengths around murmur2's words of four bytes.
fn keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> =
        ["u1", "user-42", "Ünïcödé", "用户一百", "пользователь", "🙂", "a\nb", "\u{0}"]
            .iter()
            .map(|key| key.as_bytes().to_vec())
            .collect();
    keys.extend((1..20).map(|length| (0..length).map(|n| (n * 37 + 200) as u8).collect()));
    keys.push(vec![0xff; 5]);
    keys.extend((0..200).map(|n| format!("user-{n}").into_bytes()));
    keys
}

#[test]
fn keys_land_where_java_clients_and_librdkafka_put_them() {
    let broker = Broker::shared();
    let keys = keys();
    let hex: String = keys.iter().map(|key| framing::hex(key) + "\n").collect();
    for count in [1u32, 3, 7, 12] {
        let printed = run_java(&root().join("tests/kafka/Partition.java"), &[&count.to_string()], &hex);
        let java: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
        let ours: Vec<u32> = keys.iter().map(|key| Partitioner::Murmur2.partition(key, count)).collect();
        assert_eq!(ours, java, "of {count} partitions");
        if count == 7 {
            assert!(
                (0..7).all(|partition| ours.contains(&partition)),
                "the keys don't reach every partition"
            );
        }
    }

    // librdkafka's own, which C, Python and Go clients share, by what they do on a topic.
    let mut store = broker.connect();
    for (setting, ours) in [
        ("murmur2", Partitioner::Murmur2),
        ("murmur2_random", Partitioner::Murmur2),
        ("consistent", Partitioner::Crc32),
        ("consistent_random", Partitioner::Crc32),
    ] {
        let count = 7;
        let topic = unique("partitioned");
        store.ensure(&topic, count, Policy::Append).unwrap();
        let producer: BaseProducer = broker.client().set("partitioner", setting).create().unwrap();
        for key in &keys {
            producer.send(BaseRecord::to(&topic).key(key).payload("x")).unwrap();
        }
        producer.flush(LIMIT).unwrap();
        let read = read_all(&mut store, &topic);
        assert_eq!(read.len(), keys.len());
        for record in read {
            let key = record.key.unwrap();
            assert_eq!(record.partition, ours.partition(&key, count), "{setting} {key:?}");
        }
    }
}

#[test]
fn an_independent_client_reads_what_was_committed() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("kcat");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let raw = raw_transaction(broker, &unique("raw"));
    raw.begin_transaction().unwrap();
    raw_send(&raw, &topic, "aborted", 2);
    raw.abort_transaction(LIMIT).unwrap();
    let mut writer = store.writer(&unique("job")).unwrap();
    let records = [
        NewRecord {
            timestamp: Some(1_700_000_000_123),
            headers: vec![(HEADER_EPOCH.into(), b"3".to_vec())],
            ..new(&topic, 0, "k", "text with Ünïcödé")
        },
        NewRecord { value: None, ..new(&topic, 0, "gone", "") },
    ];
    writer.commit(&records, &[]).unwrap();
    store.append(&[new(&topic, 0, "k", "plain")]).unwrap();
    await_ends(&mut store, &topic, &[7]);
    let output = kcat(broker)
        .args([
            "-C",
            "-t",
            &topic,
            "-p",
            "0",
            "-o",
            "beginning",
            "-e",
            "-q",
            "-X",
            "isolation.level=read_committed",
        ])
        .args(["-f", "%o|%T|%k|%S|%s|%h\n"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(
        lines[0],
        format!("3|1700000000123|k|{}|text with Ünïcödé|{HEADER_EPOCH}=3", "text with Ünïcödé".len())
    );
    assert!(
        lines[1].starts_with("4|") && lines[1].contains("|gone|-1|"),
        "a tombstone has size -1: {}",
        lines[1]
    );
    assert!(lines[2].starts_with("6|") && lines[2].contains("|k|5|plain|"), "{}", lines[2]);
}

#[test]
fn what_strangers_write_is_read() {
    let broker = Broker::shared();
    let topic = unique("strangers");
    let mut store =
        Kafka::connect(Config { topics_without_headers: vec![topic.clone()], ..broker.config() }).unwrap();
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let mut expected = Vec::new();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let mut child = kcat(broker)
            .args(["-P", "-t", &topic, "-p", "0", "-K", ":", "-z", codec, "-X", "linger.ms=100"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = String::new();
        for n in 0..20 {
            let value = format!("{codec}-{n}-{}", "compressible ".repeat(20));
            lines += &format!("k{n}:{value}\n");
            expected.push(value);
        }
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    // A header name that isn't UTF-8 would stop the process inside the client library.
    use std::os::unix::ffi::OsStrExt;
    let mut child = kcat(broker)
        .args(["-P", "-t", &topic, "-p", "0", "-H"])
        .arg(std::ffi::OsStr::from_bytes(b"bad\xff\xfename=x"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"bad header\n").unwrap();
    assert!(child.wait().unwrap().success());
    expected.push("bad header".into());
    let read = read_all(&mut store, &topic);
    assert_eq!(values(&read), expected);
    assert!(read.iter().all(|record| record.headers.is_empty()));
    assert_eq!(read.last().unwrap().key, None);
}

#[test]
fn every_compression_is_written() {
    let broker = Broker::shared();
    let topic = unique("compression");
    for compression in
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        let mut store = Kafka::connect(Config { compression, ..broker.config() }).unwrap();
        store.ensure(&topic, 1, Policy::Append).unwrap();
        store.append(&several(&topic, 0, &format!("{compression:?}"), 100)).unwrap();
    }
    assert_eq!(read_all(&mut broker.connect(), &topic).len(), 500);
}

#[test]
fn a_record_that_kafka_cannot_carry_is_poison_and_the_writer_goes_on() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let topic = unique("sizes");
    let limit = broker.config().message_max_bytes;
    store.ensure(&topic, 1, Policy::Append).unwrap();
    let mut writer = store.writer(&unique("job")).unwrap();

    // The largest value that fits, found from the refusal's own limit.
    let fits = |length: usize| new(&topic, 0, "k", &"x".repeat(length));
    let largest = limit - 61 - 1 - 10 - 5 * 5 - 1;
    for record in [
        fits(largest + 1),
        NewRecord { timestamp: Some(0), ..fits(1) },
        NewRecord { timestamp: Some(-5), ..fits(1) },
    ] {
        for error in [
            writer.commit(&[fits(1), record.clone()], &[]).unwrap_err(),
            store.append(&[record]).unwrap_err(),
        ] {
            assert_eq!(error.disposition, Disposition::Poison, "{error}");
            assert!(!error.to_string().contains("xxx"), "a record's content is shown");
        }
    }
    assert_eq!(store.ends(&topic).unwrap(), [0], "nothing of a refused call is written");
    writer.commit(&[fits(largest)], &[]).unwrap();
    store.append(&[fits(largest)]).unwrap();

    // A broker whose limit is lower than ours: the transaction is aborted, and the next one works.
    let small = unique("small");
    let (admin, options) = admin(broker);
    let fresh = NewTopic::new(&small, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    block_on(admin.create_topics([&fresh], &options)).unwrap()[0].as_ref().unwrap();
    let noise = noise(20_000);
    let error = writer.commit(&[fits(1), new(&small, 0, "k", &noise)], &[]).unwrap_err();
    assert_eq!(error.disposition, Disposition::Poison, "{error}");
    // librdkafka needs a second abort to mend the gap that the refused record left.
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = writer.commit(&[new(&small, 0, "k", "short")], &[]) {
        assert!(is_retry(&error) && !error.to_string().contains("Purge"), "the cause isn't told: {error}");
        assert!(Instant::now() < deadline, "{error}");
    }
    assert_eq!(values(&read_once_visible(&mut store, &small, 1)), ["short"]);
    assert_eq!(read_all(&mut store, &topic).len(), 2, "the record beside the refused one is aborted too");
    assert_eq!(store.append(&[new(&small, 0, "k", &noise)]).unwrap_err().disposition, Disposition::Poison);
    store.append(&[new(&small, 0, "k", "short too")]).unwrap();
    assert!(store.counts().aborts.load(Ordering::Relaxed) >= 1);
}

#[test]
fn a_topic_or_partition_that_is_missing_is_named() {
    let broker = Broker::shared();
    let mut store = broker.connect();
    let (topic, missing) = (unique("there"), unique("missing"));
    store.ensure(&topic, 2, Policy::Append).unwrap();
    let mut writer = store.writer(&unique("job")).unwrap();
    for (record, words) in
        [(new(&missing, 0, "k", "v"), "doesn't exist"), (new(&topic, 2, "k", "v"), "has 2 partitions")]
    {
        for error in [
            writer.commit(std::slice::from_ref(&record), &[]).unwrap_err(),
            store.append(std::slice::from_ref(&record)).unwrap_err(),
        ] {
            assert_eq!(error.disposition, Disposition::Fatal);
            assert!(
                error.to_string().contains(words) && error.to_string().contains(&record.topic),
                "{error}"
            );
        }
    }
    writer.commit(&[new(&topic, 1, "k", "v")], &[]).unwrap();
    assert_eq!(store.partitions(&missing).unwrap(), None, "writing creates no topic");
}

#[test]
fn a_password_is_checked_and_never_shown() {
    let broker = Broker::shared();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let config = Config {
        bootstrap_servers: vec![broker.sasl_bootstrap()],
        request_timeout_ms: 5_000,
        security: Security {
            protocol: Protocol::SaslPlaintext,
            mechanism: Mechanism::Plain,
            username: Some(SASL_USER.into()),
            password: Some(Secret::File { file: file.clone() }),
            allow_plaintext_sasl: true,
            ..Security::default()
        },
        ..Config::default()
    };
    std::fs::write(&file, SASL_PASSWORD).unwrap();
    let mut store = Kafka::connect(config.clone()).unwrap();
    let topic = unique("secret");
    store.ensure(&topic, 1, Policy::Append).unwrap();
    store.writer(&unique("job")).unwrap().commit(&[new(&topic, 0, "k", "v")], &[]).unwrap();
    await_ends(&mut store, &topic, &[2]);
    assert_eq!(values(&read_all(&mut store, &topic)), ["v"]);

    std::fs::write(&file, "wrong-battery").unwrap();
    let begun = Instant::now();
    let error = Kafka::connect(config).map(|_| ()).unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    assert!(error.to_string().contains("password") && !error.to_string().contains("battery"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[cfg(feature = "tls")]
#[test]
fn tls_checks_the_broker_and_the_broker_checks_the_client() {
    let broker = Broker::start_encrypted();
    let password = broker.file("password");
    std::fs::write(&password, SASL_PASSWORD).unwrap();
    let wrong = broker.file("wrong");
    std::fs::write(&wrong, "wrong-battery").unwrap();
    let scram = Security {
        protocol: Protocol::SaslSsl,
        mechanism: Mechanism::ScramSha512,
        ca_file: Some(broker.file("ca.pem")),
        username: Some(SASL_USER.into()),
        password: Some(Secret::File { file: password.clone() }),
        ..Security::default()
    };
    let mutual = Security {
        protocol: Protocol::Ssl,
        ca_file: Some(broker.file("ca.pem")),
        certificate_file: Some(broker.file("client.pem")),
        key_file: Some(broker.file("client.key")),
        key_password: Some(Secret::File { file: password }),
        ..Security::default()
    };
    let connect = |server: String, security: &Security| {
        Kafka::connect(Config {
            bootstrap_servers: vec![server],
            request_timeout_ms: 5_000,
            security: security.clone(),
            ..Config::default()
        })
    };
    for (n, (server, security)) in
        [(broker.scram_bootstrap(), &scram), (broker.mutual_bootstrap(), &mutual)].into_iter().enumerate()
    {
        let mut store = connect(server, security).unwrap();
        let topic = format!("encrypted-{n}");
        store.ensure(&topic, 1, Policy::Append).unwrap();
        store.writer(&format!("job-{n}")).unwrap().commit(&[new(&topic, 0, "k", "v")], &[]).unwrap();
        assert_eq!(values(&read_once_visible(&mut store, &topic, 1)), ["v"]);
    }

    let stranger = Some(broker.file("stranger.pem"));
    let refused = [
        (
            "a wrong password",
            broker.scram_bootstrap(),
            Security { password: Some(Secret::File { file: wrong }), ..scram.clone() },
        ),
        ("another authority", broker.scram_bootstrap(), Security { ca_file: stranger, ..scram.clone() }),
        ("another host name", broker.scram_bootstrap().replace("127.0.0.1", "localhost"), scram),
        (
            "no certificate",
            broker.mutual_bootstrap(),
            Security { certificate_file: None, key_file: None, key_password: None, ..mutual },
        ),
    ];
    for (what, server, security) in refused {
        let error = connect(server, &security).map(|_| ()).unwrap_err();
        println!("{what}: {error}");
        // A broker that misses a certificate just hangs up, as one does that is going down.
        assert_eq!(is_retry(&error), what == "no certificate", "{what}: {error}");
        assert!(!error.to_string().contains("battery"), "{error}");
    }
}

#[test]
fn a_broker_that_is_not_there_may_come_back() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = Config {
        bootstrap_servers: vec![format!("127.0.0.1:{port}")],
        request_timeout_ms: 1_000,
        ..Config::default()
    };
    let error = Kafka::connect(config).map(|_| ()).unwrap_err();
    assert!(is_retry(&error), "{error}");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    let error = Kafka::connect(Config::default()).map(|_| ()).unwrap_err();
    assert!(
        error.disposition == Disposition::Fatal && error.to_string().contains("bootstrap_servers"),
        "{error}"
    );
}

#[test]
fn a_broker_that_crashes_or_hangs_loses_and_doubles_nothing() {
    let mut broker = Broker::start();
    let config = Config {
        request_timeout_ms: 2_000,
        delivery_timeout_ms: 3_000,
        transaction_timeout_ms: 4_000,
        ..broker.config()
    };
    let mut store = Kafka::connect(config).unwrap();
    let (topic, id) = ("crash", "job");
    store.ensure(topic, 1, Policy::Append).unwrap();
    let mut reader = store.reader(topic, &[0]).unwrap();
    let mut writer = store.writer(id).unwrap();
    store.append(&[new(topic, 0, "k", "appended")]).unwrap();
    writer.commit(&[new(topic, 0, "k", "committed")], &[]).unwrap();
    await_ends(&mut store, topic, &[3]);
    assert_eq!(values(&read_to_ends(&mut store, topic, reader.as_mut())), ["appended", "committed"]);

    broker.kill();
    assert!(is_retry(&store.append(&[new(topic, 0, "k", "unacknowledged")]).unwrap_err()));
    assert!(is_retry(&store.ends(topic).unwrap_err()));
    let error = loop {
        match reader.poll(10, WAIT) {
            Ok(records) => assert!(records.is_empty()),
            Err(error) => break error,
        }
    };
    assert!(is_retry(&error), "an idle reader notices: {error}");

    // What was acknowledged is there; the same reader and writer go on.
    broker.restart();
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = store.append(&[new(topic, 0, "k", "again")]) {
        assert!(is_retry(&error) && Instant::now() < deadline, "{error}");
    }
    while let Err(error) = writer.commit(&[new(topic, 0, "k", "committed again")], &[]) {
        // A restart may cost the writer its epoch; then it is fenced anew, as the job does.
        assert!(Instant::now() < deadline, "{error}");
        if !is_retry(&error) {
            writer = store.writer(id).unwrap();
        }
    }
    let deadline = Instant::now() + LIMIT;
    let mut read = Vec::new();
    while read.len() < 2 {
        assert!(Instant::now() < deadline, "{read:?}");
        match reader.poll(10, WAIT) {
            Ok(records) => read.extend(values(&records)),
            Err(error) => assert!(is_retry(&error), "{error}"),
        }
    }
    assert_eq!(read, ["again", "committed again"]);

    // A broker that hangs in the middle: the outcome is an error, and after a fence nothing of the
    // failed transaction is there.
    broker.pause();
    let begun = Instant::now();
    let error = writer.commit(&[new(topic, 0, "k", "hanging")], &[]).unwrap_err();
    println!("a commit on a hanging broker failed after {:?}: {error}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "waits are bounded");
    broker.resume();
    let deadline = Instant::now() + LIMIT;
    let mut writer = loop {
        match store.writer(id) {
            Ok(writer) => break writer,
            Err(error) => assert!(is_retry(&error) && Instant::now() < deadline, "{error}"),
        }
    };
    writer.commit(&[new(topic, 0, "k", "after the fence")], &[]).unwrap();
    let expected = ["appended", "committed", "again", "committed again", "after the fence"];
    // A record that was appended while the broker was away may have arrived unacknowledged.
    let mut all = values(&read_once_visible(&mut store, topic, expected.len()));
    all.retain(|value| value != "unacknowledged");
    assert_eq!(all, expected);
    println!("an own broker started in {:?}", broker.started_in());
}

/// librdkafka's call that adds positions doesn't keep its timeout (its issue 5456). The mock cluster has the
/// group's coordinator where nobody answers; the transaction's own is another broker.
#[test]
fn positions_without_a_coordinator_end_at_the_deadline() {
    let double = MockCluster::new(2).unwrap();
    double.create_topic("output", 1, 1).unwrap();
    double.coordinator(MockCoordinator::Transaction("writer".into()), 1).unwrap();
    double.coordinator(MockCoordinator::Group("writer".into()), 2).unwrap();
    double.partition_leader("output", 0, Some(1)).unwrap();
    let config = Config {
        bootstrap_servers: double.bootstrap_servers().split(',').map(str::to_owned).collect(),
        request_timeout_ms: 2_000,
        delivery_timeout_ms: 3_000,
        transaction_timeout_ms: 4_000,
        ..Config::default()
    };
    let mut kafka = Kafka::connect(config).unwrap();
    let mut writer = kafka.writer("writer").unwrap();
    let position = [("output".to_owned(), 0, 1)];
    writer.commit(&[new("output", 0, "k", "before")], &position).unwrap();
    double.broker_down(2).unwrap();
    let begun = Instant::now();
    let error = writer.commit(&[new("output", 0, "k", "meanwhile")], &position).unwrap_err();
    assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
    assert_eq!(error.disposition, Disposition::Restart, "{error}");
    assert!(error.to_string().contains("no coordinator took the positions"), "{error}");
    let closed = writer.commit(&[new("output", 0, "k", "after")], &[]).unwrap_err();
    assert_eq!(closed.disposition, Disposition::Restart, "{closed}");

    double.broker_up(2).unwrap();
    let mut successor = kafka.writer("writer").unwrap();
    successor.commit(&[new("output", 0, "k", "after")], &position).unwrap();
}
