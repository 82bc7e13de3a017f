//! Measures the local store: `cargo run --release --example local_speed [FOLDER]`.
//!
//! Prints appends and commits of small records by batch size, polls, and the time to append one
//! record (one synchronisation of the disk). The folder decides which disk is measured.

use ictflow_connectors::local::{FILE_NAME, Local};
use ictflow_connectors::topics::Topics;
use ictflow_schemas::topic::{NewRecord, Policy};
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 8;

fn batch(count: u32, value: usize) -> Vec<NewRecord> {
    (0..count)
        .map(|i| NewRecord {
            topic: "t".into(),
            partition: i % PARTITIONS,
            timestamp: Some(1_700_000_000_000),
            key: format!("user-{i}").into_bytes(),
            value: Some(vec![b'v'; value]),
            headers: vec![
                ("ictflow-epoch".into(), b"12".to_vec()),
                ("ictflow-substep".into(), b"3".to_vec()),
            ],
        })
        .collect()
}

fn main() -> ictflow_connectors::Result<()> {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    for value in [100, 1000] {
        let path = folder.join(format!("ictflow-local-speed-{}-{value}", std::process::id()));
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
