//! Matches every example of `golden/keys.json`, which an independent program made.
#![allow(clippy::unwrap_used)]

use ictflow_schemas::Id;
use ictflow_schemas::cot::{PromptView, canonical_json};
use ictflow_schemas::feature::point_id;
use ictflow_schemas::framing::{Frame, Partitioner, hashed_row, hex, murmur2, text_digest};
use ictflow_schemas::history::{Entry, Identity, Label};
use ictflow_schemas::item::Item;
use ictflow_schemas::vector::{VectorSum, dot, history_term, quantise};
use serde_json::Value;

fn text(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let long = &map["long"];
            long["text"].as_str().unwrap().repeat(long["times"].as_u64().unwrap() as usize)
        }
        other => other.as_str().unwrap().to_owned(),
    }
}

fn optional(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| text(value))
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().map(|values| values.iter().map(text).collect()).unwrap_or_default()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn frame(parts: &[Value]) -> Frame {
    parts.iter().fold(Frame::new(), |frame, part| match part {
        Value::String(text) => frame.text(text),
        Value::Number(number) => frame.int(number.as_i64().unwrap()),
        Value::Object(map) => frame.bytes(&unhex(map["hex"].as_str().unwrap())),
        other => panic!("no part: {other}"),
    })
}

fn identity(value: &Value) -> Identity {
    Identity {
        user: value[0].as_str().unwrap().into(),
        event_time: value[1].as_i64().unwrap(),
        event_id: value[2].as_str().unwrap().into(),
    }
}

fn vectors(value: &Value, times: usize, width: usize) -> Vec<Vec<i16>> {
    let one: Vec<Vec<i16>> =
        value.as_array().unwrap().iter().filter(|v| !v.is_null()).map(|v| vector(v, width)).collect();
    one.iter().cycle().take(one.len() * times).cloned().collect()
}

fn vector(value: &Value, width: usize) -> Vec<i16> {
    let base: Vec<i16> = value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i16).collect();
    if width == 0 { base } else { base.iter().cycle().take(width).copied().collect() }
}

#[test]
fn every_golden_case_matches() {
    let golden: Value = serde_json::from_str(include_str!("../golden/keys.json")).unwrap();
    let mut seen = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (input, expected) = (&case["input"], &case["expected"]);
        let known = check(name, input, expected);
        seen += usize::from(known);
    }
    // The top-K case is the retrieval operator's: its test lives there.
    assert_eq!(seen, golden["cases"].as_array().unwrap().len() - 1);
}

fn check(name: &str, input: &Value, expected: &Value) -> bool {
    let kind = name.split([':', ',']).next().unwrap();
    match kind {
        "digest" => {
            let mut parts = input["parts"].as_array().unwrap().clone();
            let framed = frame(&parts);
            assert_eq!(hex(&framed.into_bytes()), expected["framed"].as_str().unwrap(), "{name}");
            use ictflow_schemas::framing::{Domain, digest};
            let domain = match parts.remove(0).as_str().unwrap() {
                "identity" => Domain::Identity,
                "text" => Domain::Text,
                "key" => Domain::Key,
                "row" => Domain::Row,
                other => panic!("no domain: {other}"),
            };
            let digest = digest(domain, &frame(&parts));
            assert_eq!(digest.hex(), expected["digest"].as_str().unwrap(), "{name}");
            assert_eq!(digest.number().to_string(), expected["number"].as_str().unwrap(), "{name}");
        }
        "topic key" => {
            let framed = frame(input["parts"].as_array().unwrap()).into_bytes();
            assert_eq!(hex(&framed), expected["framed"].as_str().unwrap(), "{name}");
        }
        "item text" => {
            let raw = &input["item"];
            let item = Item {
                title: optional(&raw["title"]),
                creator: optional(&raw["creator"]),
                categories: list(&raw["categories"]),
                tags: list(&raw["tags"]),
                description: optional(&raw["description"]),
                language: optional(&raw["language"]),
                ..Item::default()
            };
            let text = item.text();
            if let Some(expected) = expected["text"].as_str() {
                assert_eq!(text, expected, "{name}");
            } else {
                assert_eq!(text.len() as u64, expected["utf8_bytes"].as_u64().unwrap(), "{name}");
                assert!(text.ends_with(expected["ends"].as_str().unwrap()), "{name}");
            }
            assert_eq!(text_digest(&text).hex(), expected["digest"].as_str().unwrap(), "{name}");
        }
        "example hash" => {
            let digest = identity(&input["identity"]).digest();
            assert_eq!(digest.hex(), expected["digest"].as_str().unwrap(), "{name}");
            for (stride, rest) in expected["mod"].as_object().unwrap() {
                assert_eq!(
                    digest.number() % stride.parse::<u64>().unwrap(),
                    rest.as_u64().unwrap(),
                    "{name}"
                );
            }
        }
        "content key" => {
            let history: Vec<Entry> = input["history"]
                .as_array()
                .unwrap()
                .iter()
                .enumerate()
                .map(|(i, entry)| Entry {
                    event_time: i as i64,
                    event_id: Id::from("e"),
                    item: entry["item"].as_str().unwrap().into(),
                    kind: entry["kind"].as_str().unwrap().into(),
                    label: match entry["label"].as_str().unwrap() {
                        "positive" => Label::Positive,
                        "negative" => Label::Negative,
                        _ => Label::None,
                    },
                })
                .collect();
            let parameters = canonical_json(&input["parameters"]);
            assert_eq!(parameters, expected["parameters"].as_str().unwrap(), "{name}");
            let item_text = text_digest(input["item_text"].as_str().unwrap());
            assert_eq!(item_text.hex(), expected["item_digest"].as_str().unwrap(), "{name}");
            let decision = if input["decision"] == "positive" { Label::Positive } else { Label::Negative };
            let view = PromptView::new(
                input["user_id"].as_str().unwrap().into(),
                input["item_id"].as_str().unwrap().into(),
                item_text,
                decision,
                &history,
                input["P"].as_u64().unwrap() as usize,
            );
            let key = view.content_key(
                input["prompt_version"].as_str().unwrap(),
                input["llm_model"].as_str().unwrap(),
                &parameters,
            );
            assert_eq!(key.hex(), expected["content_key"].as_str().unwrap(), "{name}");
        }
        "point id" => {
            let id = point_id(&identity(&input["identity"]), input["prompt_version"].as_str().unwrap());
            assert_eq!(id.to_string(), expected["uuid"].as_str().unwrap(), "{name}");
        }
        "hashed rows" => {
            for (rows, row) in expected["row"].as_object().unwrap() {
                let got = hashed_row(
                    input["table"].as_str().unwrap(),
                    input["id"].as_str().unwrap(),
                    rows.parse().unwrap(),
                );
                assert_eq!(u64::from(got), row.as_u64().unwrap(), "{name}");
            }
        }
        "partition" => {
            let user = text(&input["user_id"]);
            assert_eq!(
                i64::from(murmur2(user.as_bytes())),
                expected["murmur2_i32"].as_i64().unwrap(),
                "{name}"
            );
            for (count, number) in expected["partition"].as_object().unwrap() {
                let got = Partitioner::Murmur2.partition(user.as_bytes(), count.parse().unwrap());
                assert_eq!(u64::from(got), number.as_u64().unwrap(), "{name}");
            }
        }
        "i16" => {
            let vector: Vec<f32> =
                input["f32"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            let expected: Vec<i16> =
                expected["i16"].as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i16).collect();
            assert_eq!(&*quantise(&vector), &expected[..], "{name}");
        }
        "a_c" => {
            let width = input["d"].as_u64().unwrap() as usize;
            let entries = vectors(&input["vectors"], 1, 0);
            let mean = VectorSum::over(entries.iter().map(Vec::as_slice)).mean(width);
            let expected: Vec<i16> =
                expected["a_c"].as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i16).collect();
            assert_eq!(&*mean, &expected[..], "{name}");
        }
        "score" => {
            let width = input["width"].as_u64().unwrap_or(0) as usize;
            let times = input["repeat"].as_u64().unwrap_or(1) as usize;
            let history = vectors(&input["history"], times, width);
            let sum = VectorSum::over(history.iter().map(Vec::as_slice));
            let a = vector(&input["a_c"], width);
            let by_rows: i64 = history.iter().map(|h| i64::from(dot(h, &a))).sum();
            assert_eq!(sum.dot(&a), by_rows, "{name}: the sum's product is the products' sum");
            let item = dot(&vector(&input["item"], width), &vector(&input["b_c"], width));
            let score = history_term(by_rows, sum.n) + i64::from(item);
            assert_eq!(score, expected["score"].as_i64().unwrap(), "{name}");
        }
        "top-K" => return false,
        other => panic!("no check for {other}"),
    }
    true
}
