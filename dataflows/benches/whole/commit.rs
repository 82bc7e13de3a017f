//! Commits: one transaction of records as an epoch writes them, on each store.

use crate::report::{LONG_RUNS, Report, SHORT_RUNS};
use crate::{Arguments, Fallible};
use ictflow_connectors::kafka::{Config, Kafka};
use ictflow_connectors::local::Local;
use ictflow_connectors::topics::Topics;
use ictflow_schemas::topic::{HEADER_EPOCH, HEADER_PUBLISHED_AT, HEADER_SUBSTEP, NewRecord, Policy};
use std::time::Instant;

const PARTITIONS: u32 = 4;

/// Bytes of a value: a vector of 32 with 4 demonstrations and a history of 20.
const VALUE: usize = 900;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let folder = tempfile::tempdir_in(crate::stage::disk()?)?;
    let mut local = Local::open(folder.path().join("topics.db"))?;
    store(arguments, report, &mut local, "bench", "local, this folder's disk")?;
    match &arguments.kafka {
        Some(servers) => {
            let config = Config { bootstrap_servers: vec![servers.clone()], ..Config::default() };
            let mut kafka = Kafka::connect(config)?;
            // A topic of its own each time: what others wrote there would be counted as ours.
            let topic =
                format!("ictflow-bench-{}-{}", std::process::id(), ictflow_connectors::clock::now_ms());
            store(arguments, report, &mut kafka, &topic, &format!("kafka at {servers}"))
        }
        None => Ok(()),
    }
}

fn store(
    arguments: &Arguments,
    report: &mut Report,
    topics: &mut dyn Topics,
    topic: &str,
    name: &str,
) -> Fallible<()> {
    topics.ensure(topic, PARTITIONS, Policy::Append)?;
    let mut writer = topics.writer(topic)?;
    let sizes: &[(usize, usize)] = if arguments.quick {
        &[(1, 50), (1_000, 10)]
    } else {
        &[(1, 200), (100, 100), (1_000, 50), (10_000, 10)]
    };
    let mut written = 0;
    for (size, rounds) in sizes {
        let records = batch(topic, *size);
        let mut runs = Vec::new();
        for _ in 0..if *size < 10_000 { SHORT_RUNS } else { LONG_RUNS } {
            let begun = Instant::now();
            for round in 0..*rounds {
                writer.commit(&records, &[(topic.to_owned(), 0, round as i64)])?;
            }
            runs.push(begun.elapsed().as_secs_f64() * 1e3 / *rounds as f64);
            written += size * rounds;
        }
        let conditions =
            format!("{name}, {size} records of {VALUE} B with 3 headers, {PARTITIONS} partitions");
        report.add("commit", "commit of a transaction", conditions, "ms", runs)?;
    }
    // A store that lost records or that has others was not measured.
    let mut reader = topics.reader(topic, &[0; PARTITIONS as usize])?;
    let mut read = 0;
    loop {
        let some = reader.poll(10_000, std::time::Duration::from_secs(2))?;
        if some.is_empty() {
            break;
        }
        read += some.len();
    }
    if read == written {
        Ok(())
    } else {
        Err(format!("{written} records were committed on {name}, {read} read").into())
    }
}

fn batch(topic: &str, size: usize) -> Vec<NewRecord> {
    (0..size)
        .map(|i| NewRecord {
            topic: topic.to_owned(),
            partition: i as u32 % PARTITIONS,
            timestamp: None,
            key: Some(format!("user-{i:06} item-{i:06}").into_bytes()),
            // Bytes as even as those of floats: they don't compress away.
            value: Some(
                (0..VALUE).map(|b| ((i + b) as u32).wrapping_mul(2_654_435_769).to_be_bytes()[0]).collect(),
            ),
            headers: vec![
                (HEADER_EPOCH.into(), b"1234".to_vec()),
                (HEADER_SUBSTEP.into(), i.to_string().into_bytes()),
                (HEADER_PUBLISHED_AT.into(), b"1700000000000".to_vec()),
            ],
        })
        .collect()
}
