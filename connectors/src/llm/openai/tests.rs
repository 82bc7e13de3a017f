//! The generator against a listener that answers each request from a script.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::Disposition;
use crate::secret::Secret;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::Label;
use ictflow_schemas::item::ItemText;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

const GOOD: &str = r#"{"choices":[{"message":{"content":"one\n\ntwo\n\nthree"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20}}"#;

/// Answers one request a connection with these (status line's end and headers, body), in turn, and gives
/// the requests as they came.
fn serve(script: Vec<(&'static str, String)>) -> (Config, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (requests, came) = channel();
    std::thread::spawn(move || {
        for (head, body) in script {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
            loop {
                let text = String::from_utf8_lossy(&bytes);
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| {
                        line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned)
                    });
                    if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                        break;
                    }
                }
                let read = stream.read(&mut chunk).unwrap();
                assert!(read > 0, "the request broke off");
                bytes.extend_from_slice(&chunk[..read]);
            }
            let _ = requests.send(String::from_utf8(bytes).unwrap());
            let length = body.len();
            // A client that gave up is no failure of the listener.
            let _ = write!(
                stream,
                "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    let config = Config {
        base_url,
        model: "m".into(),
        retry_base_ms: 10,
        retry_max_ms: 5_000,
        breaker_failures: 2,
        breaker_open_ms: 60_000,
        ..Config::default()
    };
    (config, came)
}

fn request() -> CotRequest {
    CotRequest {
        key: text_digest("key"),
        item: ItemText { title: "Blue".into(), ..ItemText::default() },
        decision: Label::Positive,
        history: Vec::new(),
    }
}

fn open(config: Config) -> OpenAi {
    OpenAi::open(config, ChatPrompt::builtin()).unwrap()
}

fn call(generator: &mut OpenAi, progress: Progress) -> Result<Draft> {
    assert_eq!(generator.ready(&request(), &progress), None);
    generator.generate(&request(), progress.drafts + 1)
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn an_answer_comes_with_its_tokens_and_the_key_goes_only_into_its_header() {
    let (mut config, came) = serve(vec![("200 OK", GOOD.into())]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sk-canary\n").unwrap();
    config.api_key = Some(Secret::File { file: file.path().into() });
    assert!(!format!("{config:?}").contains("canary"));
    let mut generator = open(config);
    let draft = call(&mut generator, Progress::default()).unwrap();
    assert_eq!((draft.text.as_str(), draft.tokens_in, draft.tokens_out), ("one\ntwo\nthree", 100, 20));
    let request = came.recv().unwrap();
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
    assert!(request.to_lowercase().contains("\r\nauthorization: bearer sk-canary\r\n"));
    assert!(!body(&request).contains("canary"));
    let health = generator.health().unwrap();
    assert_eq!((health.requests(Outcome::Ok), health.tokens_in(), health.tokens_out()), (1, 100, 20));
}

#[test]
fn a_key_that_no_header_can_carry_is_refused_without_being_repeated() {
    for bad in ["zqx zqx", "zqx\r\nx: y", "zqx\u{e9}"] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bad).unwrap();
        let api_key = Some(Secret::File { file: file.path().into() });
        let config = Config {
            base_url: "http://127.0.0.1:1/v1".into(),
            model: "m".into(),
            api_key,
            ..Config::default()
        };
        let error = OpenAi::open(config, ChatPrompt::builtin()).err().unwrap().to_string();
        assert!(error.contains("generator.openai.api_key") && !error.contains("zqx"), "{error}");
    }
}

#[test]
fn each_failure_has_its_outcome_and_disposition() {
    let garbage = || GOOD[..40].to_owned();
    for (head, answer, outcome, poison) in [
        ("429 Slow", String::new(), Outcome::RateLimited, false),
        ("500 Broken", String::new(), Outcome::ServerError, false),
        ("200 OK", garbage(), Outcome::Garbage, false),
        ("200 OK", r#"{"choices":[]}"#.into(), Outcome::Garbage, false),
        ("200 OK", "x".repeat(2_001), Outcome::Garbage, false),
        ("400 Bad", String::new(), Outcome::Refused, true),
        ("413 Large", String::new(), Outcome::Refused, true),
        ("422 Odd", String::new(), Outcome::Refused, true),
        ("401 Who", String::new(), Outcome::Denied, false),
        ("404 What", String::new(), Outcome::Denied, false),
        ("307 There\r\nlocation: /elsewhere", String::new(), Outcome::Denied, false),
    ] {
        let (config, _came) = serve(vec![(head, answer)]);
        let mut generator = open(Config { max_answer_bytes: 2_000, ..config });
        let error = call(&mut generator, Progress::default()).unwrap_err();
        assert_eq!(matches!(error.disposition, Disposition::Poison), poison, "{head}: {error}");
        assert_eq!(matches!(error.disposition, Disposition::Retry { .. }), !poison, "{head}: {error}");
        let health = generator.health().unwrap();
        for other in Outcome::ALL {
            assert_eq!(health.requests(other), u64::from(other == outcome), "{head}: {}", other.word());
        }
        assert_eq!(health.breaker_open(), outcome == Outcome::Denied, "{head}");
        let waits = generator.ready(&request(), &Progress::default()).is_some();
        assert_eq!(waits, matches!(outcome, Outcome::Denied | Outcome::RateLimited), "{head}");
    }
    let mut generator = open(Config {
        base_url: {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}/v1", listener.local_addr().unwrap())
        },
        model: "m".into(),
        ..Config::default()
    });
    let error = call(&mut generator, Progress::default()).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    assert_eq!(generator.health().unwrap().requests(Outcome::Transport), 1);
}

#[test]
fn a_retry_has_the_same_body_and_another_attempt_another_seed() {
    let limited = ("429 Slow\r\nretry-after: 0", String::new());
    let (config, came) = serve(vec![limited, ("200 OK", GOOD.into()), ("200 OK", GOOD.into())]);
    let mut generator = open(config);
    assert!(call(&mut generator, Progress::default()).is_err());
    call(&mut generator, Progress { calls: 1, ..Progress::default() }).unwrap();
    call(&mut generator, Progress { calls: 2, drafts: 1, ..Progress::default() }).unwrap();
    let bodies: Vec<String> = came.iter().map(|request| body(&request).to_owned()).collect();
    assert_eq!(bodies[0], bodies[1]);
    assert!(!bodies[0].contains("seed") && bodies[2].contains("\"seed\":2"));
    assert_eq!(generator.health().unwrap().retries(), 2, "after a failed call, as the key's progress says");
}

#[test]
fn a_pause_is_heeded_up_to_the_limit_by_every_clone() {
    let (config, _came) = serve(vec![("429 Slow\r\nretry-after: 3600", String::new())]);
    let mut generator = open(config);
    let mut clone = generator.clone();
    let error = call(&mut generator, Progress::default()).unwrap_err();
    assert_eq!(error.disposition, Disposition::Retry { after: Duration::from_secs(5) });
    let wait = clone.ready(&request(), &Progress::default()).unwrap();
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(5), "{wait:?}");
    assert!(!generator.health().unwrap().breaker_open());
}

#[test]
fn pauses_double_up_to_their_limit() {
    let generator = open(Config { retry_base_ms: 8, retry_max_ms: 100, ..serve(vec![]).0 });
    for (failures, bound) in [(0, 8), (1, 16), (3, 64), (4, 100), (40, 100), (u32::MAX, 100)] {
        let longest = (0..2_000).map(|_| generator.shared.pause(failures)).max().unwrap();
        assert!(longest.as_millis() <= bound && longest.as_millis() > bound / 2, "{failures}: {longest:?}");
    }
}

#[test]
fn failures_in_a_row_open_the_breaker_for_every_clone() {
    let broken = || ("503 Down", String::new());
    let (config, _came) = serve(vec![broken(), broken()]);
    let mut generator = open(config);
    let mut clone = generator.clone();
    assert!(call(&mut generator, Progress::default()).is_err());
    assert!(!generator.health().unwrap().breaker_open());
    assert!(call(&mut clone, Progress::default()).is_err());
    assert!(generator.health().unwrap().breaker_open());
    assert!(generator.ready(&request(), &Progress::default()).unwrap() > Duration::from_secs(50));
}

#[test]
fn requests_refused_in_a_row_open_it_too_so_that_a_wrong_setting_spends_few_keys() {
    let refused = || ("400 Bad", String::new());
    let (config, _came) = serve(vec![refused(), ("200 OK", GOOD.into()), refused(), refused()]);
    let mut generator = open(config);
    assert!(call(&mut generator, Progress::default()).is_err());
    assert!(call(&mut generator, Progress::default()).is_ok(), "an answer starts the count anew");
    assert!(call(&mut generator, Progress::default()).is_err());
    assert!(!generator.health().unwrap().breaker_open());
    let error = call(&mut generator, Progress::default()).unwrap_err();
    assert!(matches!(error.disposition, Disposition::Poison));
    assert!(generator.health().unwrap().breaker_open());
}

#[test]
fn a_probe_whose_leave_is_not_used_is_left_to_another() {
    let (config, _came) = serve(vec![("401 Who", String::new()), ("200 OK", GOOD.into())]);
    let mut generator = open(Config { breaker_open_ms: 1, ..config });
    assert!(call(&mut generator, Progress::default()).is_err());
    std::thread::sleep(Duration::from_millis(2));
    let mut other = generator.clone();
    assert_eq!(other.ready(&request(), &Progress::default()), None);
    assert!(generator.ready(&request(), &Progress::default()).is_some(), "one probe and no other");
    drop(other);
    assert!(call(&mut generator, Progress::default()).is_ok());
    assert!(!generator.health().unwrap().breaker_open());
}

#[test]
fn a_spent_budget_holds_calls_back() {
    let (config, _came) = serve(vec![("200 OK", GOOD.into())]);
    let mut generator = open(Config { tokens_per_minute: 1_400, ..config });
    let health = generator.health().unwrap();
    assert_eq!(health.budget_left(), Some(1_400));
    call(&mut generator, Progress::default()).unwrap();
    let left = health.budget_left().unwrap();
    assert!((1_280..1_300).contains(&left), "120 tokens were taken: {left}");
    let mut clones: Vec<OpenAi> = (0..4).map(|_| generator.clone()).collect();
    let waits: Vec<bool> =
        clones.iter_mut().map(|clone| clone.ready(&request(), &Progress::default()).is_some()).collect();
    assert_eq!((waits[0], waits[3]), (false, true), "the reservations of calls under way count");
    drop(clones);
    assert!(health.budget_left().unwrap() >= left, "what isn't used is given back");
}

#[test]
fn the_probe_tells_what_is_wrong() {
    let list = r#"{"object":"list","data":[{"id":"m"},{"id":"other\u0007"}]}"#;
    let probe = |head, body: &str, model: &str| {
        let (config, came) = serve(vec![(head, body.to_owned())]);
        let result = probe(&Config { model: model.into(), ..config });
        assert!(came.recv().unwrap().starts_with("GET /v1/models HTTP/1.1\r\n"));
        result
    };
    assert_eq!(probe("200 OK", list, "m").unwrap(), Vec::<String>::new());
    assert!(probe("200 OK", "<html>", "m").unwrap()[0].contains("can't be read"));
    assert!(probe("404 Not", "", "m").unwrap()[0].contains("lists no models"));
    for (head, body, model, words) in [
        ("200 OK", list, "n", "it has no model n; it lists 2: m, other ("),
        ("401 Who", "", "m", "generator.openai.api_key"),
        ("302 There\r\nlocation: /x", "", "m", "redirects"),
        ("503 Down", "", "m", "base_url"),
    ] {
        let error = probe(head, body, model).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.disposition, Disposition::Fatal);
    }
    let nowhere = Config { base_url: "http://127.0.0.1:1/v1".into(), model: "m".into(), ..Config::default() };
    assert!(super::probe(&nowhere).unwrap_err().to_string().contains("is the service up"));
    assert!(super::probe(&Config::default()).unwrap_err().to_string().contains("base_url"));
}
