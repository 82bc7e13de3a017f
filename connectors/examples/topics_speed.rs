//! Measures the embedded stores: `cargo run --release --example topics_speed [FOLDER]`.
//!
//! Prints appends and commits of small records by batch size (of one record: the time of one
//! synchronisation of the disk), polls, and the reading of a file of JSON Lines. The folder decides
//! which disk is measured.

use ictflow_connectors::files::{Files, Input};
use ictflow_connectors::local::{FILE_NAME, Local};
use ictflow_connectors::topics::Topics;
use ictflow_schemas::topic::{NewRecord, Policy};
use std::path::Path;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 8;

fn batch(count: u32, value: usize) -> Vec<NewRecord> {
    (0..count)
        .map(|i| NewRecord {
            topic: "t".into(),
            partition: i % PARTITIONS,
            timestamp: Some(1_700_000_000_000),
            key: Some(format!("user-{i}").into_bytes()),
            value: Some(vec![b'v'; value]),
            headers: vec![
                ("ictflow-epoch".into(), b"12".to_vec()),
                ("ictflow-substep".into(), b"3".to_vec()),
            ],
        })
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    for value in [100, 1000] {
        let path = folder.join(format!("ictflow-topics-speed-{}-{value}", std::process::id()));
        let mut local = Local::open(path.join(FILE_NAME))?;
        local.ensure("t", PARTITIONS, Policy::Append)?;
        println!("values of {value} bytes, two headers, {PARTITIONS} partitions");
        for (size, rounds) in [(1, 300), (1_000, 100), (10_000, 30), (100_000, 3)] {
            let records = batch(size, value);
            let start = Instant::now();
            for _ in 0..rounds {
                local.append(&records)?;
            }
            report("append", size, rounds, start.elapsed());
        }
        let mut writer = local.writer("job")?;
        let records = batch(10_000, value);
        let start = Instant::now();
        for round in 0..30 {
            writer.commit(&records, &[("in".into(), 0, round)])?;
        }
        report("commit", 10_000, 30, start.elapsed());

        let mut reader = local.reader("t", &[0; PARTITIONS as usize])?;
        let start = Instant::now();
        let mut read = 0;
        loop {
            let some = reader.poll(10_000, Duration::ZERO)?;
            if some.is_empty() {
                break;
            }
            read += some.len();
        }
        println!("  poll of {read} by 10000: {:.0} records/s", read as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..10_000 {
            reader.poll(10_000, Duration::ZERO)?;
        }
        println!("  idle poll: {:.1} us", start.elapsed().as_secs_f64() * 100.0);
        drop((local, writer, reader));
        if let Err(error) = std::fs::remove_dir_all(&path) {
            eprintln!("left {} behind: {error}", path.display());
        }
    }
    let path = folder.join(format!("ictflow-topics-speed-{}-files", std::process::id()));
    std::fs::create_dir_all(&path)?;
    files(&path)?;
    std::fs::remove_dir_all(&path)?;
    Ok(())
}

fn files(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let path = folder.join("interactions.jsonl");
    let line = r#"{"key":"user-12345","value":{"event_id":"e-123456","user_id":"user-12345","item_id":"item-678","kind":"play","value":0.75,"event_time":1700000000000},"timestamp":1700000000000}"#;
    std::fs::write(&path, format!("{line}\n").repeat(1_000_000))?;
    let mut files = Files::open(&[Input { topic: "interactions".into(), path }], folder, false)?;
    let start = Instant::now();
    let end = files.ends("interactions")?[0];
    println!(
        "file of {end} lines of {} bytes\n  ends: {:.0} lines/s",
        line.len(),
        end as f64 / start.elapsed().as_secs_f64()
    );
    let mut reader = files.reader("interactions", &[0])?;
    let start = Instant::now();
    while !reader.poll(10_000, Duration::ZERO)?.is_empty() {}
    println!("  poll by 10000: {:.0} records/s", end as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    files.reader("interactions", &[end - 1])?.poll(1, Duration::ZERO)?;
    println!("  reader at the last line: {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn report(what: &str, size: u32, rounds: u32, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    println!(
        "  {what} by {size}: {:.0} records/s, {:.2} ms a call",
        f64::from(size) * f64::from(rounds) / seconds,
        seconds * 1e3 / f64::from(rounds)
    );
}
