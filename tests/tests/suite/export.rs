//! A training set holds what stands on a job's topics, with what was served, on embedded topics and on a broker:
//! called where such jobs are (`kafka_job.rs`, `consistency.rs`).

use ictflow_connectors::parquet::{Reader, Row};
use ictflow_dataflows::epochs::{read_compacted, read_whole};
use ictflow_dataflows::export::{Selection, Source, export};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::{HEADER_EPOCH, Topic};
use ictflow_schemas::wire::{Format, Wire};
use ictflow_tests::support::world::World;
use std::collections::BTreeMap;
use std::path::Path;

/// By item, the newest record that counts.
fn catalog(world: &World) -> BTreeMap<String, Item> {
    let (names, limits, mut items) = (world.names(), &world.semantics, BTreeMap::new());
    read_whole(&mut *world.topics(), names.of(Topic::Items), |record| {
        let (key, value) = (record.key.unwrap_or_default(), record.value);
        let bytes = key.len() + value.as_ref().map_or(0, Vec::len);
        let Ok(id) = String::from_utf8(key) else { return };
        if bytes > limits.max_record_bytes || id.len() > limits.max_id_bytes {
            return;
        }
        match value.map(|value| Item::decode(&value)) {
            None => drop(items.remove(&id)),
            Some(Ok(item)) => drop(items.insert(id, item)),
            Some(Err(_)) => {}
        }
    })
    .unwrap();
    items
}

/// Exports a job's examples and holds the file against its topics. How many rows say what was served.
pub fn holds_what_stands(world: &World, folder: &Path) -> u64 {
    let (names, out) = (world.names(), folder.join("set.parquet"));
    let source =
        Source { names: &names, job: Some(&world.job), items_as: Format::Avro, semantics: &world.semantics };
    let all = Selection::default();
    let report = export(&mut *world.topics(), source, &all, &out, |_, _, _| {}).unwrap();
    let (mut reader, mut rows) = (Reader::open(&out).unwrap(), Vec::new());
    loop {
        let more = reader.rows().unwrap();
        if more.is_empty() {
            break;
        }
        rows.extend(more);
    }
    let values = read_compacted(&mut *world.topics(), names.of(Topic::Examples)).unwrap();
    let mut examples: Vec<ExampleRecord> =
        values.into_values().map(|(_, value)| ExampleRecord::decode(&value).unwrap()).collect();
    examples.sort_by(|a, b| {
        let key = |e: &ExampleRecord| (e.event_time, e.user_id.clone(), e.event_id.clone());
        key(a).cmp(&key(b))
    });
    let catalog = catalog(world);
    // Of an item its text is kept, and nothing else.
    let text = |id: &str| {
        let item = catalog.get(id)?.clone();
        Some(Item { attributes: BTreeMap::new(), updated_at: 0, ..item })
    };
    let expected: Vec<Row> =
        examples.into_iter().map(|example| Row { item: text(&example.item_id), example }).collect();
    assert!(rows == expected, "{} rows, {} expected", rows.len(), expected.len());
    assert_eq!((report.rows, report.bytes), (rows.len() as u64, std::fs::metadata(&out).unwrap().len()));
    assert!(report.settled.is_some());

    // The history is of strictly before, and the vector is that of the epoch that is named.
    let mut published = BTreeMap::new();
    read_whole(&mut *world.topics(), names.of(Topic::Features), |record| {
        let Some(Ok(feature)) = record.value.as_deref().map(Feature::decode) else { return };
        let epoch = record.number(HEADER_EPOCH).unwrap();
        published.insert((feature.user_id.clone(), feature.item_id.clone(), epoch), feature);
    })
    .unwrap();
    let mut served = 0;
    for Row { example, .. } in &rows {
        assert!(example.history.iter().all(|entry| entry.event_time < example.event_time), "{example:?}");
        let Some(stood) = &example.served else { continue };
        served += 1;
        let feature = &published[&(example.user_id.clone(), example.item_id.clone(), stood.epoch)];
        assert_eq!((&feature.ict, &feature.votes), (&stood.ict, &stood.votes), "{example:?}");
    }
    assert_eq!(report.served, served);
    served
}
