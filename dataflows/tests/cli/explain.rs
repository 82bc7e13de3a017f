//! `explain`, as text and as JSON. What it says of stale texts and other prompts: `tests/tests/suite`.

use crate::support::{FILES, dry, parsed, run, tail, world};
use serde_json::{Value, json};

#[test]
fn a_vector_with_its_demonstrations_prompts_and_texts() {
    let world = world(90);
    let path = world.path();
    // Demonstrations are what the paper's vector is made of.
    let config = "state = \"look\"\n[generator]\nkind = \"template\"\n[encoder]\nkind = \"hashed\"\n\
                  [ict]\nuntrained = \"decoder\"\n[telemetry]\nlisten = \"off\"\n";
    std::fs::write(path.join("job.toml"), config).unwrap();
    run(path, &[&["run", "--config", "job.toml"], &FILES[..]].concat()).good();
    let features = parsed(&tail(path, &[]));
    let fullest = features.iter().max_by_key(|line| line["value"]["k"].as_i64()).unwrap();
    let (user, item) = (fullest["key"][0].as_str().unwrap(), fullest["key"][1].as_str().unwrap());
    assert!(fullest["value"]["k"].as_i64().unwrap() >= 2, "{fullest}");
    let json = run(path, &["explain", "--state", "look", "--json", user, item]).good();
    let explained: Value = serde_json::from_str(&json).unwrap();
    // The newest record of the pair, the examples and the texts as they stand on the topics.
    let newest = parsed(&tail(path, &["--user", user, "--item", item, "--last", "1"])).pop().unwrap();
    for field in ["k", "cot_status", "cot_created_at", "prompt_version", "llm_model", "encoder", "event_time"]
    {
        assert_eq!(explained[field], newest["value"][field], "{field}");
    }
    let vector =
        |of: &Value| of.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    assert_eq!(vector(&explained["ict"]), vector(&newest["value"]["ict"]));
    assert_eq!(explained["title"], json!(format!("Film {}", &item[1..])));
    let cots = parsed(&tail(path, &["cot"]));
    let examples = parsed(&tail(path, &["examples"]));
    let used = explained["demonstrations"].as_array().unwrap();
    assert_eq!(used.len(), newest["value"]["demonstrations"].as_array().unwrap().len());
    let plain = run(path, &["explain", "--state", "look", user, item]).good();
    for (demonstration, recorded) in used.iter().zip(newest["value"]["demonstrations"].as_array().unwrap()) {
        for field in ["id", "score", "label", "fresh"] {
            assert_eq!(demonstration[field], recorded[field]);
        }
        let (example, cot) = (&demonstration["example"], &demonstration["cot"]);
        let stands = examples.iter().find(|line| {
            line["value"]["event_id"] == example["event_id"] && line["value"]["user_id"] == example["user"]
        });
        let stands = &stands.unwrap()["value"];
        for (shown, field) in [("item", "item_id"), ("label", "label"), ("label_time", "label_time")] {
            assert_eq!(example[shown], stands[field]);
        }
        assert_eq!(example["history"].as_array().unwrap().len(), stands["history"].as_array().unwrap().len());
        assert_eq!(demonstration["content_key"], cot["key"], "a fresh one has its own CoT");
        let record = &cots.iter().find(|line| line["key"] == cot["key"]).unwrap()["value"];
        for field in
            ["text", "llm_model", "attempts", "tokens_in", "tokens_out", "created_at", "finish_reason"]
        {
            assert_eq!(cot[field], record[field], "{field}");
        }
        let prompt = &demonstration["prompt"];
        assert_eq!(prompt["version"], record["prompt_version"]);
        let messages = prompt["messages"].as_array().unwrap_or_else(|| panic!("{prompt}"));
        assert_eq!(messages[0]["role"], json!("system"));
        let ask = messages.last().unwrap()["content"].as_str().unwrap();
        let nonce = &cot["key"].as_str().unwrap()[..8];
        assert!(ask.starts_with(&format!("[{nonce}]\n")) && ask.ends_with(&format!("[/{nonce}]")), "{ask}");
        assert!(ask.contains(example["title"].as_str().unwrap()), "{ask}");
        for line in ask.lines().chain(cot["text"].as_str().unwrap().lines()) {
            assert!(plain.contains(line), "{line} in {plain}");
        }
    }
    assert!(
        plain.contains(&format!("k {}", used.len())) && plain.contains("before the prompts of label"),
        "{plain}"
    );
}

#[test]
fn what_cannot_be_explained_is_said() {
    let world = world(6);
    let path = world.path();
    let message = run(path, &["explain", "--state", "look", "u1", "m1"]).refused();
    assert!(message.contains("look"), "{message}");
    run(path, &dry(&[])).good();
    let message = run(path, &["explain", "--state", "look", "nobody", "m1"]).refused();
    assert!(message.contains("user nobody and item m1 have no feature"), "{message}");
    assert!(run(path, &["explain", "u", "m"]).refused().contains("give --config FILE or --state DIR"));
}
