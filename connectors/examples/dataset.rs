//! What a folder of atomic files holds, how fast it is read and what that takes.
//!
//!     cargo run --release -p ictflow-connectors --example dataset -- FOLDER ['COLUMN >= NUMBER'] [TITLE] [CATEGORIES]

use ictflow_connectors::atomic::{Columns, Folder};
use ictflow_schemas::history::Label;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().ok_or("name a folder with NAME.inter")?;
    let mut columns = Columns::default();
    if let Some(rule) = arguments.get(1) {
        columns.labels = rule.parse()?;
    }
    columns.title = arguments.get(2).cloned();
    columns.categories = arguments.get(3).cloned();
    let begin = Instant::now();
    let data = Folder::open(Path::new(folder), None)?.read(&columns)?;
    let seconds = begin.elapsed().as_secs_f64();
    let count = |label| data.rows().iter().filter(|row| row.label == label).count();
    println!(
        "{} rows ({} positive, {} negative), {} users, {} items, {} categories",
        data.rows().len(),
        count(Label::Positive),
        count(Label::Negative),
        data.users().len(),
        data.items().len(),
        data.catalog().category_names().len(),
    );
    println!("{seconds:.2} s, {:.0} rows/s", data.rows().len() as f64 / seconds);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(peak) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("peak {}", peak.trim_start_matches("VmHWM:").trim());
    }
    Ok(())
}
