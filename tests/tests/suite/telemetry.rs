//! What a running job says of itself, read as Prometheus, a probe and a browser read it.

use ictflow_connectors::llm::Generate;
use ictflow_connectors::telemetry::Config;
use ictflow_connectors::telemetry::names;
use ictflow_dataflows::demo::report::{self, Shown};
use ictflow_dataflows::demo::samples::Samples;
use ictflow_dataflows::explain::Lineage;
use ictflow_dataflows::job::Job;
use ictflow_dataflows::status::Observer;
use ictflow_dataflows::summary::Summary;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::cot::CotRequest;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use ictflow_tests::support::http::{browse, get};
use ictflow_tests::support::world::{
    self, Hooked, World, append, candidates, close, event, hashed, item, template,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const T0: i64 = 1_000_000_000;
const SECOND: i64 = 1_000;

/// What must never be seen outside the topics: ids and a title that would also break a careless page.
const USER: &str = "u</script><script>document.title='captured'</script>\"{}\n";
const FILM: &str = "f\\\"} 1\n# HELP x";
const TITLE: &str = "</style></script><img src=x onerror=document.title='captured'> bait-title";

fn world(folder: &Path, job: &str) -> World {
    let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    let semantics = Semantics { cot_stride, ..Semantics::default() };
    World::new(folder, job, semantics, world::weights(384))
}

fn config() -> Config {
    Config { listen: "127.0.0.1:0".into(), lag_every_ms: 100, ..Config::default() }
}

fn small(user: &str, film: &str) -> Vec<Value> {
    let mut lines: Vec<Value> = vec![item(film, Some(TITLE), "1")];
    lines.extend(["b", "c", "d"].map(|id| item(id, Some(&format!("Film {id}")), "1")));
    lines.push(event(user, "1", "b", "rate", Some(5.0), T0));
    lines.push(event(user, "2", film, "rate", Some(5.0), T0 + SECOND));
    lines.push(event(user, "3", "c", "rate", Some(1.0), T0 + 2 * SECOND));
    lines.push(event(user, "4", "b", "impression", None, T0 - 1_000_000));
    lines.push(candidates(user, T0 + 3 * SECOND, &["c", "d"]));
    lines
}

fn step(job: &mut Job, observer: &mut Observer) {
    let step = job.step(Duration::from_millis(5)).unwrap();
    observer.step(job, &step);
    if step.epoch.is_some() {
        law(job);
    }
}

/// The law of the accounting at a committed epoch.
fn law(job: &Job) {
    let requester = job.requester();
    assert_eq!(
        requester.wanted().len(),
        requester.answered() + requester.queued() + requester.in_flight(),
        "wanted = answered + queued + in flight at epoch {}",
        job.committed()
    );
}

fn settle(job: &mut Job, observer: &mut Observer) {
    while !job.idle().unwrap() {
        step(job, observer);
    }
    observer.look(job);
}

/// The samples of a scrape by name and labels.
fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = get(address, "/metrics");
    assert_eq!(answer.status, 200);
    let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// What promtool says of a text of metrics.
fn promtool(metrics: &str) -> (bool, String) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("run promtool: {error}: deploy/test-tools.sh installs it"));
    tool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn codes(body: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(body).unwrap();
    let reasons = answer["reasons"].as_array().unwrap();
    reasons.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn metrics_pass_the_lint_and_equal_the_accounting() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut observer = Observer::start(&config(), "job").unwrap();
    let address = observer.address().unwrap();
    let before = scrape(address);
    assert_eq!(before["ictflow_features_published_total"], 0.0);
    assert!(!before.keys().any(|name| name.starts_with("ictflow_frontier")), "absent until known");
    let mut job = world.start(template(), hashed());
    observer.started(&job);
    append(&mut job, &small("u", "a"), world.partitions);
    settle(&mut job, &mut observer);
    let (passed, said) = promtool(&get(address, "/metrics").body);
    assert!(passed, "{said}");
    let (passed, said) = promtool("# HELP bad_thing x\n# TYPE bad_thing counter\nbad_thing 1\n");
    assert!(!passed, "the lint can fail: {said}");

    let seen = scrape(address);
    let (accounting, totals) = (job.requester().accounting.clone(), job.totals());
    let wanted = job.requester().wanted().len() as f64;
    assert!(wanted >= 2.0 && job.sink().features_live() == 2 && totals.committed.dead_letters == 1);
    for (name, value) in [
        ("ictflow_cot_wanted", wanted),
        ("ictflow_cot_answered", job.requester().answered() as f64),
        ("ictflow_cot_queued", 0.0),
        ("ictflow_cot_in_flight", 0.0),
        ("ictflow_cot_failed", job.failed().len() as f64),
        ("ictflow_cot_called_total", accounting.called as f64),
        ("ictflow_cot_first_calls_total", accounting.first_calls as f64),
        ("ictflow_cot_attempts_total", accounting.attempts as f64),
        ("ictflow_cot_cancelled_total", accounting.cancelled as f64),
        ("ictflow_llm_requests_total{outcome=\"answered\"}", accounting.ok as f64),
        ("ictflow_llm_request_duration_seconds_count", accounting.attempts as f64),
        ("ictflow_llm_tokens_total{direction=\"out\"}", accounting.tokens_out as f64),
        ("ictflow_embeddings_total", accounting.embeddings as f64),
        ("ictflow_features_published_total", totals.committed.features as f64),
        ("ictflow_features_retracted_total", totals.committed.retractions as f64),
        ("ictflow_examples_published_total", totals.committed.examples as f64),
        ("ictflow_epochs_committed_total", totals.epochs as f64),
        ("ictflow_commit_duration_seconds_count", totals.epochs as f64),
        ("ictflow_epoch_duration_seconds_count", totals.epochs as f64),
        ("ictflow_recovery_duration_seconds_count", 1.0),
        ("ictflow_epoch", job.committed() as f64),
        ("ictflow_dead_letters_total{reason=\"late\",stage=\"accept\"}", 1.0),
        ("ictflow_dead_letters_total{reason=\"conflict\",stage=\"accept\"}", 0.0),
        ("ictflow_source_records_total{topic=\"interactions\"}", job.judgements().interactions as f64),
        ("ictflow_source_records_total{topic=\"items\"}", 4.0),
        ("ictflow_live_records{kind=\"features\"}", job.sink().features_live() as f64),
        ("ictflow_live_records{kind=\"demonstrations\"}", job.demonstrations().len() as f64),
        ("ictflow_live_records{kind=\"items\"}", 4.0),
        ("ictflow_live_records{kind=\"users\"}", 1.0),
        ("ictflow_queue_depth{queue=\"generate\"}", 0.0),
        ("ictflow_ready", 1.0),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name}");
    }
    for queue in ["calls", "unjournaled", "read_ahead_interactions", "read_ahead_cot"] {
        assert!(seen[&format!("ictflow_queue_limit{{queue=\"{queue}\"}}")] > 0.0, "{queue}");
    }
    for topic in ["interactions", "items", "candidates", "cot", "embeddings"] {
        let lag = seen.iter().filter(|(name, _)| {
            name.starts_with("ictflow_source_lag") && name.contains(&format!("topic=\"{topic}\""))
        });
        assert!(lag.clone().count() > 0 && lag.clone().all(|(_, lag)| *lag == 0.0), "{topic}");
    }
    for frontier in ["input", "cot", "output"] {
        assert!(seen[&format!("ictflow_frontier_timestamp_seconds{{frontier=\"{frontier}\"}}")] > 1e9);
    }
    assert!(!seen.contains_key("ictflow_llm_oldest_pending_timestamp_seconds"), "none is pending");
    // Whatever is exposed stands in the file of names.
    let known: Vec<&str> = names::ALL.iter().map(|(name, _)| *name).collect();
    for name in seen.keys().filter(|name| !name.starts_with("process_")) {
        assert!(known.iter().any(|known| name.starts_with(known)), "{name}");
    }
    // A second batch moves them on, and they still agree.
    append(&mut job, &[event("u", "5", "d", "rate", Some(2.0), T0 + 9 * SECOND)], world.partitions);
    settle(&mut job, &mut observer);
    let moved = scrape(address);
    assert_eq!(moved["ictflow_cot_first_calls_total"], job.requester().accounting.first_calls as f64);
    for name in [
        "ictflow_cot_first_calls_total",
        "ictflow_epoch",
        "ictflow_features_published_total",
        "ictflow_feature_event_age_seconds_count",
    ] {
        assert!(moved[name] > seen[name], "{name} moved");
    }
    let wanted = job.requester().wanted().len() as f64;
    drop(job);
    // A new job over the same logs finds every answer.
    let second = self::world(folder.path(), "second");
    let mut observer = Observer::start(&config(), "second").unwrap();
    let mut job = second.start(template(), hashed());
    observer.started(&job);
    settle(&mut job, &mut observer);
    let seen = scrape(observer.address().unwrap());
    assert_eq!((seen["ictflow_llm_cache_hits_total"], seen["ictflow_cot_called_total"]), (wanted, 0.0));
}

/// The template, waiting for leave before each answer.
fn gated(gate: mpsc::Receiver<()>) -> Box<dyn Generate> {
    let hook = move |inner: &mut dyn Generate, request: &CotRequest, attempt: u32| {
        // The test may be over; then the thread ends with it.
        let _ = gate.recv();
        inner.generate(request, attempt)
    };
    Box::new(Hooked { inner: template(), hook })
}

#[test]
fn a_slow_llm_is_seen_by_its_queue_its_oldest_key_and_the_frontier() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let (allow, gate) = mpsc::channel();
    let mut observer = Observer::start(&config(), "job").unwrap();
    let address = observer.address().unwrap();
    let mut job = world.start(gated(gate), hashed());
    observer.started(&job);
    let mut lines: Vec<Value> = ["a", "b", "c"].map(|id| item(id, Some(&format!("Film {id}")), "1")).into();
    for user in 0..8 {
        lines.push(event(&format!("u{user}"), "1", "b", "rate", Some(5.0), T0));
        lines.push(event(&format!("u{user}"), "2", "a", "rate", Some(5.0), T0 + SECOND));
    }
    lines.push(candidates("u1", T0 + 3 * SECOND, &["c"]));
    append(&mut job, &lines, world.partitions);
    while job.requester().wanted().len() < 8 || job.requester().accounting.attempts == 0 {
        step(&mut job, &mut observer);
    }
    observer.look(&mut job);
    law(&job);
    let seen = scrape(address);
    assert_eq!((seen["ictflow_cot_wanted"], seen["ictflow_cot_answered"]), (8.0, 0.0));
    assert_eq!(seen["ictflow_cot_queued"] + seen["ictflow_cot_in_flight"], 8.0);
    assert_eq!(seen["ictflow_queue_depth{queue=\"generate\"}"], seen["ictflow_cot_queued"]);
    assert!(seen["ictflow_queue_depth{queue=\"calls\"}"] <= seen["ictflow_queue_limit{queue=\"calls\"}"]);
    let oldest = seen["ictflow_llm_oldest_pending_timestamp_seconds"];
    assert_eq!(seen["ictflow_frontier_timestamp_seconds{frontier=\"cot\"}"], oldest);
    assert_eq!(seen["ictflow_ready"], 1.0, "features don't wait for the LLM");
    // Half of them are answered, an item is edited, the rest follows: the law holds at every epoch.
    (0..4).for_each(|_| allow.send(()).unwrap());
    while job.requester().answered() < 4 {
        step(&mut job, &mut observer);
    }
    append(&mut job, &[item("a", Some("Film a, restored"), "2")], world.partitions);
    (0..40).for_each(|_| allow.send(()).unwrap());
    settle(&mut job, &mut observer);
    let seen = scrape(address);
    assert_eq!((seen["ictflow_cot_wanted"], seen["ictflow_cot_answered"]), (8.0, 8.0));
    assert!(seen["ictflow_frontier_timestamp_seconds{frontier=\"cot\"}"] >= oldest);
}

#[test]
fn readiness_follows_the_job_from_its_start_over_the_replay_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut job = world.start(template(), hashed());
    append(&mut job, &small("u", "a"), world.partitions);
    world::settle(&mut job);
    let committed = job.committed();
    drop(job);

    let mut observer = Observer::start(&config(), "job").unwrap();
    let address = observer.address().unwrap();
    let starting = get(address, "/readyz");
    assert_eq!((starting.status, codes(&starting.body)), (503, vec!["starting".to_owned()]));
    let mut asked = 0;
    let mut job = world
        .try_start_observed(template(), hashed(), |job| {
            observer.replayed(job);
            asked += 1;
            let (live, ready) = (get(address, "/livez"), get(address, "/readyz"));
            assert_eq!((live.status, ready.status), (200, 503), "{}", ready.body);
            assert_eq!(codes(&ready.body), ["replaying"]);
            assert!(get(address, "/metrics").body.contains("ictflow_ready 0"));
        })
        .unwrap();
    assert_eq!(asked, committed + 1, "before the replay and after each epoch");
    observer.started(&job);
    let ready = get(address, "/readyz");
    assert_eq!((ready.status, codes(&ready.body)), (503, vec!["not_publishing".to_owned()]));
    // The first new epoch publishes.
    append(&mut job, &[item("e", Some("Film e"), "1")], world.partitions);
    close(&mut job);
    observer.look(&mut job);
    let ready = get(address, "/readyz");
    assert_eq!((ready.status, codes(&ready.body)), (200, vec![]));
    assert_eq!(scrape(address)["ictflow_ready"], 1.0);
    let totals: Value = serde_json::from_str(&get(address, "/status.json").body).unwrap();
    assert_eq!(totals["status"]["totals"]["dead_letters"], 0, "a replay refuses nothing anew");
    assert_eq!(totals["status"]["cot"]["called"], 0);
    observer.finish(&mut job);
    let stopped = get(address, "/readyz");
    assert_eq!((stopped.status, codes(&stopped.body)), (503, vec!["stopped".to_owned()]));
    drop(observer);
    assert!(std::net::TcpStream::connect(address).is_err(), "the server ends with its observer");
}

#[test]
fn input_that_waits_for_a_commit_for_too_long_makes_the_job_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let config = Config { commit_within_ms: 1, live_within_ms: 1, ..config() };
    let mut observer = Observer::start(&config, "job").unwrap();
    let address = observer.address().unwrap();
    let mut job = world.start(template(), hashed());
    observer.started(&job);
    append(&mut job, &small("u", "a"), world.partitions);
    settle(&mut job, &mut observer);
    // Records come and the loop doesn't take them in.
    append(&mut job, &[item("e", Some("Film e"), "1")], world.partitions);
    observer.look(&mut job);
    assert_eq!(observer.status().sources.iter().flat_map(|source| &source.lag).sum::<u64>(), 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(get(address, "/livez").status, 503);
    let ready = get(address, "/readyz");
    assert_eq!(
        (ready.status, codes(&ready.body)),
        (503, vec!["loop_stalled".into(), "commit_stalled".into()])
    );
}

#[test]
fn by_default_only_this_machine_can_ask() {
    let default = Config::default().address().unwrap().unwrap();
    assert!(default.ip().is_loopback(), "{default}");
    let observer = Observer::start(&config(), "job").unwrap();
    let port = observer.address().unwrap().port();
    let listening = Command::new("ss").args(["-ltnH", &format!("sport = :{port}")]).output();
    let text = match listening {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        // Without iproute2 the kernel's own table says it: 127.0.0.1 is 0100007F there.
        Err(_) => std::fs::read_to_string("/proc/net/tcp")
            .unwrap()
            .lines()
            .filter(|line| line.contains(&format!(":{port:04X} 00000000:0000 0A")))
            .map(|line| line.replace("0100007F", "127.0.0.1"))
            .collect(),
    };
    assert!(text.contains("127.0.0.1"), "{text}");
    assert!(
        !text.contains("0.0.0.0:") || text.matches("0.0.0.0:").count() == text.matches("0.0.0.0:*").count()
    );
}

/// A job over hostile ids and titles that has run to its end, with its samples.
fn hostile(world: &World, observer: &mut Observer) -> (Job, Samples) {
    let mut job = world.start(template(), hashed());
    observer.started(&job);
    let mut samples = Samples::begin();
    append(&mut job, &small(USER, FILM), world.partitions);
    while !job.idle().unwrap() {
        step(&mut job, observer);
        samples.look(&job);
    }
    observer.look(&mut job);
    assert!(job.sink().features_live() > 0 && !job.demonstrations().is_empty());
    (job, samples)
}

/// The text of the element with an id.
fn element<'a>(dom: &'a str, id: &str) -> &'a str {
    let start = dom.find(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("no {id} in {dom}"));
    let rest = &dom[start..];
    let rest = &rest[rest.find('>').unwrap() + 1..];
    &rest[..rest.find('<').unwrap()]
}

/// Pictures of a page as a phone and as a desk shows it, in the build's folder for people to look at.
fn pictures(url: &str, name: &str) {
    for width in [400, 1_200] {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{width}.png"));
        browse(url, Some((&path, width)));
        let picture = std::fs::read(&path).unwrap();
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{}", path.display());
        let drawn = u32::from_be_bytes(picture[16..20].try_into().unwrap());
        assert_eq!(drawn, width, "the picture's own width");
    }
}

#[test]
fn a_browser_shows_the_live_figures_and_nothing_of_any_person() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut observer = Observer::start(&config(), "job").unwrap();
    let address = observer.address().unwrap();
    let (job, _) = hostile(&world, &mut observer);
    for path in ["/", "/metrics", "/status.json", "/livez", "/readyz"] {
        let answer = get(address, path);
        for bait in [USER, "captured", FILM, "f\\\"}", "bait-title", "Film b"] {
            assert!(!answer.body.contains(bait) && !answer.head.contains(bait), "{bait} in {path}");
        }
    }
    let dom = browse(&format!("http://{address}/"), None);
    assert_eq!(element(&dom, "job"), "job");
    assert_eq!(element(&dom, "state"), "ready");
    for (id, value) in [
        ("epoch", job.committed() as u64),
        ("wanted", job.requester().wanted().len() as u64),
        ("answered", job.requester().answered() as u64),
        ("attempts", job.requester().accounting.attempts),
        ("v-ict", job.sink().features_live() as u64),
        ("v-features", job.totals().committed.features),
        ("v-interactions", job.judgements().interactions),
        ("v-demonstrations", job.demonstrations().len() as u64),
    ] {
        assert_eq!(element(&dom, id), value.to_string(), "{id}");
    }
    assert_eq!(element(&dom, "amplification"), "1.00");
    assert!(dom.contains("read ahead interactions") && dom.contains("accept: late"));
    pictures(&format!("http://{address}/"), "status");
    // A job that is gone is said to be gone.
    let page = get(address, "/").body;
    drop(observer);
    let file = folder.path().join("page.html");
    std::fs::write(&file, page).unwrap();
    let dom = browse(&format!("file://{}", file.display()), None);
    assert_eq!(element(&dom, "state"), "no answer");
    assert!(element(&dom, "silent").contains("doesn't answer"));
}

#[test]
fn the_report_shows_users_and_texts_and_runs_nothing_of_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), "job");
    let mut observer = Observer::start(&Config::off(), "job").unwrap();
    let (job, samples) = hostile(&world, &mut observer);
    let lineage = Lineage::read(&mut *world.topics(), &world.names(), "job", Format::Avro).unwrap();
    let path = folder.path().join("report.html");
    let summary = Summary::of(&job, 1.0);
    let shown = Shown { summary: &summary, samples: &samples, lineage: &lineage, texts: &[], measured: None };
    report::write(&path, &shown).unwrap();
    let html = std::fs::read_to_string(&path).unwrap();
    let tags = || html.split('<').skip(1).filter_map(|rest| rest.split('>').next());
    for mark in ["script", "img", "iframe", "link", " src=", " href=", " on"] {
        let begins =
            |tag: &str| if mark.starts_with(' ') { tag.contains(mark) } else { tag.starts_with(mark) };
        assert_eq!(tags().find(|tag| begins(tag)), None, "{mark}");
    }
    assert!(!html.contains("@import"));
    let dom = browse(&format!("file://{}", path.display()), None);
    assert!(dom.contains("<title>ictflow demo</title>"), "no script took the title");
    assert_eq!(element(&dom, "v-ict"), job.sink().features_live().to_string());
    assert!(dom.contains("bait-title") && dom.contains("&lt;img"), "the title is there, as text");
    let (user, film) = lineage.pairs()[0];
    let used = lineage.feature(user, film).unwrap().demonstrations.len();
    assert!(used > 0);
    assert_eq!(dom.matches("<blockquote>").count(), used, "a text each");
    assert_eq!(dom.matches("class=\"chart\"").count(), 3);
    pictures(&format!("file://{}", path.display()), "report");
    let text = world.compacted(Topic::Cot).into_values().next().unwrap();
    let cot: ictflow_schemas::cot::CotRecord = ictflow_schemas::wire::Wire::decode(&text).unwrap();
    let first = cot.text.split(['\'', '"', '<', '&', '\n']).next().unwrap();
    assert!(dom.contains(first), "{first}");
}
