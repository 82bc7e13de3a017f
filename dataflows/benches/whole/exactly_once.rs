//! What exactly-once costs: the same job with its transactions and with plain appends in their place.
//!
//! The job without them has no fence and no atomic commit: killed, it would lose or double outputs. It is
//! made here alone, of a store whose transactional writers append. Both jobs read the same inputs, epoch by
//! epoch, in turn; the clock runs from the poll of an epoch's records to the end of its commit.

use crate::report::{Report, number};
use crate::script::{Chunk, Script, Sizes};
use crate::{Arguments, Fallible, stage, throughput};
use ictflow_connectors::Result;
use ictflow_connectors::kafka::{Config, Kafka};
use ictflow_connectors::topics::{Reader, Topics, Writer};
use ictflow_dataflows::job::{Job, Options};
use ictflow_dataflows::names::Names;
use ictflow_schemas::topic::{NewRecord, Policy, Topic};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Opens the store once more.
type Open = Arc<dyn Fn() -> Result<Box<dyn Topics>> + Send + Sync>;

/// A store whose writers append.
struct Plain {
    store: Box<dyn Topics>,
    open: Open,
}

impl Topics for Plain {
    fn partitions(&mut self, topic: &str) -> Result<Option<u32>> {
        self.store.partitions(topic)
    }
    fn ensure(&mut self, topic: &str, partitions: u32, policy: Policy) -> Result<()> {
        self.store.ensure(topic, partitions, policy)
    }
    fn ends(&mut self, topic: &str) -> Result<Vec<i64>> {
        self.store.ends(topic)
    }
    fn starts(&mut self, topic: &str) -> Result<Vec<i64>> {
        self.store.starts(topic)
    }
    fn offsets_at(&mut self, topic: &str, time_ms: i64) -> Result<Vec<i64>> {
        self.store.offsets_at(topic, time_ms)
    }
    fn reader(&mut self, topic: &str, from: &[i64]) -> Result<Box<dyn Reader>> {
        self.store.reader(topic, from)
    }
    fn append(&mut self, records: &[NewRecord]) -> Result<()> {
        self.store.append(records)
    }
    fn writer(&mut self, _: &str) -> Result<Box<dyn Writer>> {
        Ok(Box::new(Appending((self.open)()?)))
    }
}

struct Appending(Box<dyn Topics>);

impl Writer for Appending {
    fn commit(&mut self, records: &[NewRecord], _: &[(String, u32, i64)]) -> Result<()> {
        self.0.append(records)
    }
}

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    // Sessions of an epoch: about 1,000 and 100 interactions.
    for chunk in [125, 12] {
        let sizes = Sizes { chunk, ..throughput::sizes(500, 100) };
        let script = Script::synthetic(sizes);
        let folder = tempfile::tempdir_in(stage::disk()?)?;
        let path = folder.path().to_owned();
        compare(&script, "local", report, move || {
            Ok(Box::new(ictflow_connectors::local::Local::open(path.join("topics.db"))?))
        })?;
        if let Some(servers) = arguments.kafka.clone() {
            compare(&script, "kafka", report, move || {
                let config = Config { bootstrap_servers: vec![servers.clone()], ..Config::default() };
                Ok(Box::new(Kafka::connect(config)?))
            })?;
        }
    }
    Ok(())
}

fn compare(
    script: &Script,
    store: &str,
    report: &mut Report,
    open: impl Fn() -> Result<Box<dyn Topics>> + Send + Sync + 'static,
) -> Fallible<()> {
    let open: Open = Arc::new(open);
    // Topics of this run alone.
    let prefix = format!("bench-{}-{}-", std::process::id(), ictflow_connectors::clock::now_ms());
    let input = |topic: Topic| format!("{prefix}{}", topic.name());
    stage::fill_topics(&mut *open()?, script, &stage::weights()?, &input)?;
    let job = |kind: &str, topics: Box<dyn Topics>| -> Fallible<Job> {
        let own = |topic: Topic| match topic {
            Topic::Interactions | Topic::Items | Topic::Candidates | Topic::Cot | Topic::Embeddings => {
                input(topic)
            }
            _ => format!("{prefix}{}-{kind}", topic.name()),
        };
        let names: BTreeMap<Topic, String> =
            Topic::ALL.into_iter().map(|topic| (topic, own(topic))).collect();
        let options = stage::options(&format!("{prefix}{kind}"), script.partitions, 1);
        let options = Options { names: Names::new(&names, ""), create_inputs: None, ..options };
        stage::begin(stage::parts(topics, None)?, &script.semantics, options)
    };
    let mut with = job("with", open()?)?;
    let mut without = job("without", Box::new(Plain { store: open()?, open: open.clone() }))?;
    let mut producer = open()?;
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for (run, chunks) in script.runs.iter().enumerate() {
        let (mut seconds, mut events) = ([0.0; 2], 0);
        for (number, chunk) in chunks.iter().enumerate() {
            producer.append(&stage::named(&chunk.records, &input))?;
            // Who comes second finds caches filled: in turn.
            let mut jobs = [(0, &mut with), (1, &mut without)];
            if (run + number) % 2 == 1 {
                jobs.reverse();
            }
            for (kind, job) in jobs {
                seconds[kind] += epoch(job, chunk)?;
            }
            events += chunk.events;
        }
        for kind in 0..2 {
            rates[kind].push(events as f64 / seconds[kind]);
        }
        ratios.push(seconds[1] / seconds[0]);
    }
    let events = script.runs[0][0].events;
    let conditions =
        format!("{store}, 1 worker, 500 demonstrations, epochs of about {}", number(events as f64));
    let [on, off] = rates;
    let mut add = |what, unit, runs| report.add("exactly-once", what, &conditions, unit, runs);
    add("interactions, exactly once", "1/s", on)?;
    add("interactions, plain appends", "1/s", off)?;
    add("exactly once, share of the rate without", "ratio", ratios)
}

/// Reads a chunk, and commits it as one epoch.
fn epoch(job: &mut Job, chunk: &Chunk) -> Fallible<f64> {
    let (before, committed) = (job.judgements().accepted, job.committed());
    let begun = Instant::now();
    let waiting = |job: &Job| job.sources().iter().map(|source| source.waiting()).sum::<usize>();
    while waiting(job) < chunk.records.len() {
        job.gather(Duration::from_millis(5))?;
    }
    stage::close(job)?;
    let seconds = begun.elapsed().as_secs_f64();
    let (taken, epochs) = (job.judgements().accepted - before, job.committed() - committed);
    if taken != chunk.events as u64 || epochs != 1 {
        return Err(format!("{taken} of {} events were accepted, in {epochs} epochs", chunk.events).into());
    }
    Ok(seconds)
}
