//! Every limit of the configuration, at its edge and one beyond.
#![allow(clippy::unwrap_used)]

use super::checked::Config;
use super::raw::Raw;
use ictflow_schemas::config::Semantics;
use std::collections::BTreeSet;
use toml::{Table, Value};

const LOCAL: &str = include_str!("../../../deploy/config/local.toml");
const KAFKA: &str = include_str!("../../../deploy/config/kafka.toml");

/// A key, the last value that is taken, the first that isn't, and what must be set beside it.
type Row = (&'static str, i64, i64, &'static [(&'static str, i64)]);

const CENTURY: i64 = 100 * 365 * 24 * 3_600_000;
const DAY: i64 = 24 * 3_600_000;
const LOW: [(&str, i64); 2] = [("semantics.history_length", 1), ("semantics.prompt_history", 0)];

const ROWS: &[Row] = &[
    ("workers", 1, 0, &[]),
    ("workers", 256, 257, &[]),
    ("epochs.interval_ms", 0, -1, &[]),
    ("epochs.interval_ms", 60_000, 60_001, &[]),
    ("epochs.max_events", 1, 0, &[]),
    ("epochs.max_events", 1_000_000, 1_000_001, &[]),
    ("limits.dead_letter_window", 10, 9, &[]),
    ("limits.dead_letter_window", 1_000_000, 1_000_001, &[]),
    ("run.max_restarts", 0, -1, &[]),
    ("run.max_restarts", 1_000, 1_001, &[]),
    ("run.restart_pause_ms", 10, 9, &[]),
    ("run.restart_pause_ms", 600_000, 600_001, &[("run.restart_pause_max_ms", 600_000)]),
    ("run.restart_pause_ms", 30_000, 30_001, &[]),
    ("run.restart_pause_max_ms", 600_000, 600_001, &[]),
    ("run.restart_pause_max_ms", 500, 499, &[]),
    ("snapshots.interval_ms", 1_000, 999, &[]),
    ("snapshots.interval_ms", 86_400_000, 86_400_001, &[]),
    ("topics.partitions", 1, 0, &[]),
    ("topics.partitions", 1_000, 1_001, &[]),
    ("topics.kafka.request_timeout_ms", 100, 99, &[]),
    (
        "topics.kafka.request_timeout_ms",
        300_000,
        300_001,
        &[("topics.kafka.transaction_timeout_ms", 400_000)],
    ),
    ("topics.kafka.request_timeout_ms", 59_999, 60_000, &[]),
    ("topics.kafka.delivery_timeout_ms", 100, 99, &[]),
    ("topics.kafka.delivery_timeout_ms", DAY, DAY + 1, &[("topics.kafka.transaction_timeout_ms", DAY)]),
    ("topics.kafka.delivery_timeout_ms", 60_000, 60_001, &[]),
    (
        "topics.kafka.transaction_timeout_ms",
        1_000,
        999,
        &[("topics.kafka.delivery_timeout_ms", 900), ("topics.kafka.request_timeout_ms", 900)],
    ),
    ("topics.kafka.transaction_timeout_ms", DAY, DAY + 1, &[]),
    ("topics.kafka.message_max_bytes", 262_144 + 8_192, 262_144 + 8_191, &[]),
    (
        "topics.kafka.message_max_bytes",
        1_000_000_000,
        1_000_000_001,
        &[("topics.kafka.send_queue_kib", 2_000_000)],
    ),
    ("topics.kafka.message_max_bytes", 65_536 * 1_024, 65_536 * 1_024 + 1, &[]),
    ("topics.kafka.send_queue_records", 1, 0, &[]),
    ("topics.kafka.send_queue_records", 10_000_000, 10_000_001, &[]),
    ("topics.kafka.send_queue_kib", 1_024, 1_023, &[]),
    ("topics.kafka.send_queue_kib", 2_097_151, 2_097_152, &[]),
    ("topics.kafka.fetch_queue_records", 1, 0, &[]),
    ("topics.kafka.fetch_queue_records", 10_000_000, 10_000_001, &[]),
    ("topics.kafka.fetch_queue_kib", 1_024, 1_023, &[]),
    ("topics.kafka.fetch_queue_kib", 2_097_151, 2_097_152, &[]),
    ("topics.kafka.fetch_wait_ms", 1, 0, &[]),
    ("topics.kafka.fetch_wait_ms", 10_000, 10_001, &[]),
    ("topics.kafka.replication", 1, 0, &[]),
    ("topics.kafka.replication", 32_767, 32_768, &[]),
    ("semantics.history_length", 1, 0, &[("semantics.prompt_history", 0)]),
    ("semantics.history_length", 1_000, 1_001, &[]),
    ("semantics.prompt_history", 20, 21, &[]),
    ("semantics.demonstrations", 2, 0, &[]),
    ("semantics.demonstrations", 2, 3, &[]),
    ("semantics.demonstrations", 64, 66, &[]),
    ("semantics.lateness_ms", 0, -1, &[("semantics.max_future_skew_ms", 0)]),
    ("semantics.lateness_ms", CENTURY, CENTURY + 1, &[]),
    ("semantics.max_future_skew_ms", 0, -1, &[]),
    ("semantics.max_future_skew_ms", 600_000, 600_001, &[]),
    ("semantics.attribution_window_ms", 0, -1, &[]),
    ("semantics.attribution_window_ms", CENTURY, CENTURY + 1, &[]),
    ("semantics.pair_ttl_ms", 0, -1, &[]),
    ("semantics.pair_ttl_ms", CENTURY, CENTURY + 1, &[]),
    ("semantics.demonstration_ttl_ms", 0, -1, &[]),
    ("semantics.demonstration_ttl_ms", CENTURY, CENTURY + 1, &[]),
    ("semantics.max_window_events", 1, 0, &[]),
    ("semantics.max_window_events", 1_000_000, 1_000_001, &[]),
    ("semantics.max_record_bytes", 1_024, 1_023, &[]),
    ("semantics.max_record_bytes", 67_108_864, 67_108_865, &[]),
    ("semantics.max_id_bytes", 1, 0, &[]),
    ("semantics.max_id_bytes", 1_024, 1_025, &[]),
    ("semantics.max_candidates", 1, 0, &[]),
    ("semantics.max_candidates", 100_000, 100_001, &[]),
    ("semantics.max_live_pairs", 1, 0, &[]),
    ("semantics.max_live_pairs", 100_000_000, 100_000_001, &[]),
    ("semantics.max_demonstrations", 0, -1, &[]),
    ("semantics.max_demonstrations", 10_000_000, 10_000_001, &[]),
    ("semantics.neighbours.ring", 32, 31, &[]),
    ("semantics.neighbours.ring", 4_096, 4_097, &[]),
    ("semantics.neighbours.selected", 1, 0, &[]),
    ("semantics.neighbours.selected", 128, 129, &[]),
    ("semantics.neighbours.sketch_period_ms", 0, -1, &[]),
    ("semantics.neighbours.label_centre", 0, -1, &[]),
    ("semantics.neighbours.label_centre", 1_024, 1_025, &[]),
    ("semantics.cot_stride.positive", 1, 0, &[]),
    ("semantics.cot_stride.positive", 1_000_000_000, 1_000_000_001, &[]),
    ("semantics.cot_stride.explicit_negative", 1, 0, &[]),
    ("semantics.cot_stride.explicit_negative", 1_000_000_000, 1_000_000_001, &[]),
    ("semantics.cot_stride.implicit_negative", 1, 0, &[]),
    ("semantics.cot_stride.implicit_negative", 1_000_000_000, 1_000_000_001, &[]),
];

fn place<'a>(table: &'a mut Table, path: &str) -> (&'a mut Table, String) {
    let mut parts: Vec<&str> = path.split('.').collect();
    let last = parts.pop().unwrap().to_owned();
    let mut here = table;
    for part in parts {
        here = here.get_mut(part).unwrap_or_else(|| panic!("no section {part}")).as_table_mut().unwrap();
    }
    (here, last)
}

/// What is wrong with an example file in which these values are set.
fn problems(text: &str, values: &[(&str, i64)]) -> String {
    let mut table: Table = text.parse().unwrap();
    for (path, value) in values {
        let (section, key) = place(&mut table, path);
        section.insert(key, Value::Integer(*value));
    }
    match Value::Table(table).try_into::<Raw>() {
        Ok(raw) => Config::check(raw, None).err().map(|error| error.to_string()).unwrap_or_default(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_limit_holds_at_its_edge_and_not_one_beyond() {
    for (path, last, beyond, others) in ROWS {
        let text = if path.starts_with("topics.kafka") { KAFKA } else { LOCAL };
        let with = |value| problems(text, &[others, &[(*path, value)][..]].concat());
        assert_eq!(with(*last), "", "{path} = {last}");
        let refused = with(*beyond);
        // A type error names the value's line and not always its key.
        let named = refused.contains(path.rsplit('.').next().unwrap())
            || refused.contains("cot_stride")
            || refused.contains("semantics: times must be")
            || refused.contains(&format!("invalid value: integer `{beyond}`"));
        assert!(!refused.is_empty() && named, "{path} = {beyond}: {refused:?}");
    }
}

/// A number in an example file without a row above is a limit that nobody tested. Sections with tests
/// of their own beside their code are left out here.
#[test]
fn every_number_of_the_example_files_has_its_row() {
    fn walk(prefix: &str, table: &Table, found: &mut BTreeSet<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(table) => walk(&path, table, found),
                Value::Integer(_) => drop(found.insert(path)),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    for text in [LOCAL, KAFKA] {
        walk("", &text.parse().unwrap(), &mut found);
    }
    let ours = |path: &&String| {
        !path.contains('.')
            || ["epochs.", "limits.", "run.", "topics.", "semantics."]
                .iter()
                .any(|part| path.starts_with(part))
    };
    let tested: BTreeSet<&str> = ROWS.iter().map(|row| row.0).collect();
    let untested: Vec<&String> =
        found.iter().filter(ours).filter(|path| !tested.contains(path.as_str())).collect();
    assert!(untested.is_empty(), "limits without a row: {untested:?}");
    assert!(found.iter().filter(ours).count() > 25, "{found:?}");
}

#[test]
fn limits_that_meet_are_checked_against_each_other() {
    let large = [("semantics.max_record_bytes", 1_000_000 - 8_192)];
    assert_eq!(problems(KAFKA, &large), "");
    let large = [("semantics.max_record_bytes", 1_000_000 - 8_191)];
    assert!(problems(KAFKA, &large).contains("topics.kafka.message_max_bytes must be at least 1000001"));
    // Long histories of long ids: an example would outgrow a record of the store.
    let long = [("semantics.history_length", 1_000), ("semantics.max_id_bytes", 1_024)];
    let least =
        Semantics { history_length: 1_000, max_id_bytes: 1_024, ..Semantics::default() }.largest_record();
    assert!(problems(KAFKA, &long).contains(&format!("must be at least {least}")));
    let raised = [&long[..], &[("topics.kafka.message_max_bytes", least as i64)]].concat();
    assert_eq!(problems(KAFKA, &raised), "");
    // One SQLite file takes any of them.
    assert_eq!(problems(LOCAL, &long), "");
    assert!(problems(LOCAL, &LOW).is_empty());
}

#[test]
fn kinds_are_few_and_their_names_short() {
    let with = |names: Vec<String>| {
        let mut semantics = Semantics::default();
        let rule = semantics.kinds["click"];
        semantics.kinds.extend(names.into_iter().map(|name| (name, rule)));
        semantics.problems().join("; ")
    };
    let free = 64 - Semantics::default().kinds.len();
    assert_eq!(with((0..free).map(|n| format!("kind{n}")).collect()), "");
    assert!(with((0..=free).map(|n| format!("kind{n}")).collect()).contains("semantics.kinds"));
    assert_eq!(with(vec!["k".repeat(64)]), "");
    assert!(with(vec!["k".repeat(65)]).contains("semantics.kinds"));
    assert!(with(vec![String::new()]).contains("semantics.kinds"));
}

#[test]
fn the_ratio_of_dead_letters_is_a_share() {
    let with = |value: &str| {
        let text = LOCAL.replace("max_dead_letter_ratio = 0.1", &format!("max_dead_letter_ratio = {value}"));
        assert!(value == "0.1" || text != LOCAL);
        let raw = toml::from_str::<Raw>(&text).unwrap_or_else(|e| panic!("{value}: {e}"));
        Config::check(raw, None).err().map(|error| error.to_string()).unwrap_or_default()
    };
    for value in ["0.0", "0.1", "1.0"] {
        assert_eq!(with(value), "");
    }
    for value in ["-0.1", "1.000001", "nan", "inf", "-inf"] {
        assert!(with(value).contains("limits.max_dead_letter_ratio must be 0.0 to 1.0"), "{value}");
    }
}
