//! `consistency`, as text and as JSON. What it finds and names: `tests/tests/suite/consistency.rs`.

use crate::support::{dry, parsed, run, tail};
use serde_json::{Value, json};

#[test]
fn what_was_served_nothing_is_counted_and_said() {
    let world = crate::support::world(40);
    let path = world.path();
    run(path, &dry(&[])).good();
    let examples = parsed(&tail(path, &["examples"]));
    assert!(
        examples.iter().all(|line| line["value"]["served"] == Value::Null),
        "all was published at the end"
    );
    let plain = run(path, &["consistency", "--state", "look"]).good();
    assert!(plain.contains(&format!("{} labelled examples", examples.len())), "{plain}");
    assert!(plain.contains("nothing to compare"), "{plain}");
    let report: Value =
        serde_json::from_str(&run(path, &["consistency", "--state", "look", "--json"]).good()).unwrap();
    assert_eq!(report["examples"], json!(examples.len()));
    assert_eq!((&report["unserved"], &report["compared"]), (&json!(examples.len()), &json!(0)));
    assert_eq!(report["causes"], json!({}));
}

#[test]
fn without_a_job_it_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let refused = run(folder.path(), &["consistency"]).refused();
    assert!(refused.contains("give --config FILE or --state DIR"), "{refused}");
}
