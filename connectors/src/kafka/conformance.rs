//! What exactly-once rests on, proven on the connected broker before a job relies on it.
//!
//! Brokers of other makes, proxies and test doubles take the calls of a transaction and may still show
//! aborted records. [`Kafka::prove`] makes the broker show what it does, on a topic of its own, in a second
//! or two. It leaves a few small records there, which the topic forgets after an hour, and positions of
//! nobody.

use super::client::{Context, Shared, lock};
use super::error::failure;
use super::reader::KafkaReader;
use super::send::send;
use super::writer::KafkaWriter;
use super::{Kafka, block_on};
use crate::topics::{Reader, Writer};
use crate::{Disposition, Error, Result, clock};
use ictflow_schemas::topic::NewRecord;
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The customary name of the topic.
pub const TOPIC: &str = "ictflow-conformance";

/// How long the topic keeps what was written, milliseconds.
const RETENTION_MS: &str = "3600000";

/// One wait for records.
const SLICE: Duration = Duration::from_millis(50);

/// One property: what a job needs, and what the broker did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What was tried.
    pub what: &'static str,
    /// What the broker must do.
    pub wanted: &'static str,
    /// What it did.
    pub seen: String,
    /// Whether that is what is wanted.
    pub holds: bool,
}

/// What a broker was seen to do, in the order in which it was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The properties.
    pub rows: Vec<Row>,
}

impl Report {
    /// Why no job may rely on this broker, `None` where it may: a `Fatal` error that names every property
    /// that doesn't hold.
    pub fn refusal(&self) -> Option<Error> {
        let failed: Vec<String> = self
            .rows
            .iter()
            .filter(|row| !row.holds)
            .map(|row| format!("{}: wanted {}, seen {}", row.what, row.wanted, row.seen))
            .collect();
        (!failed.is_empty()).then(|| {
            Error::fatal(
                "prove exactly-once on the broker",
                failed.join("; "),
                "outputs would be lost or doubled on it: use Apache Kafka 2.5 or newer, or one that keeps its transactions",
            )
        })
    }

    fn add(&mut self, what: &'static str, wanted: &'static str, (holds, seen): (bool, String)) {
        self.rows.push(Row { what, wanted, seen, holds });
    }
}

impl fmt::Display for Report {
    /// A line a property: whether it holds, what was tried, what is wanted, what was seen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |of: fn(&Row) -> &str| self.rows.iter().map(|row| of(row).len()).max().unwrap_or(0);
        let (what, wanted) = (width(|row| row.what), width(|row| row.wanted));
        for row in &self.rows {
            let verdict = if row.holds { "ok" } else { "FAILS" };
            writeln!(f, "{verdict:<5}  {:<what$}  {:<wanted$}  {}", row.what, row.wanted, row.seen)?;
        }
        Ok(())
    }
}

impl Kafka {
    /// Tries what exactly-once rests on. `topic` is made where it doesn't exist, with one partition;
    /// `id` names the transactional writers, `id` and `id`.crash: no other program may use them at the
    /// same time.
    ///
    /// # Errors
    /// `Retry` where no broker answers; `Fatal` where the topic can't be made or used by this client.
    /// A broker that answers and does something else is no error here but a row that doesn't hold.
    pub fn prove(&mut self, topic: &str, id: &str) -> Result<Report> {
        self.make(topic)?;
        let trial = Trial {
            shared: Arc::clone(&self.shared),
            topic: topic.to_owned(),
            mark: format!("{id} {}", clock::now_ms()),
            from: self.shared.ends(topic)?.first().copied().unwrap_or(0),
        };
        let mut report = Report::default();
        let crashed = format!("{id}.crash");
        let done = trial.run(id, &crashed, &mut report);
        // A broker that went away proves nothing: that may pass.
        self.shared.ends(topic)?;
        match done {
            Ok(()) => Ok(report),
            Err(error) if error.disposition == Disposition::Fatal && report.rows.is_empty() => Err(error),
            Err(error) => {
                report.add(
                    "the calls of a transaction",
                    "each answered in time",
                    (false, format!("{}: {}", error.context, error.detail)),
                );
                Ok(report)
            }
        }
    }

    /// Makes the topic where it doesn't exist.
    fn make(&self, topic: &str) -> Result<()> {
        if self.shared.partitions(topic)?.is_some() {
            return Ok(());
        }
        let context = || format!("create topic {topic}");
        let (admin, options) = self.admin()?;
        let replication =
            self.shared.config.replication.map_or(-1, |replicas| i32::try_from(replicas).unwrap_or(i32::MAX));
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(replication))
            .set("cleanup.policy", "delete")
            .set("retention.ms", RETENTION_MS);
        let answers =
            block_on(admin.create_topics([&new], &options)).map_err(|error| failure(context(), &error))?;
        match answers.into_iter().next() {
            Some(Err((_, code))) if code != Code::TopicAlreadyExists => {
                let mut refused = failure(context(), &KafkaError::AdminOp(code));
                refused.hint = "create it by hand with one partition, or set topics.kafka.conformance_topic to another or to off";
                Err(refused)
            }
            _ => self.await_topic(topic).map(|_| ()),
        }
    }
}

/// One try of everything.
struct Trial {
    shared: Arc<Shared>,
    topic: String,
    /// In every key of this trial: others may write to the topic at the same time.
    mark: String,
    /// Where the topic ended before.
    from: i64,
}

impl Trial {
    /// Adds a row for each property. An error ends the trial.
    fn run(&self, id: &str, crashed: &str, report: &mut Report) -> Result<()> {
        let mut writer = KafkaWriter::open(&self.shared, id)?;
        writer.commit(&[self.record("committed")], &[])?;
        let shown = self.shown_until("committed")?;
        report.add("a committed transaction", "is shown", told(&shown, &["committed"]));

        let raw = self.raw(crashed)?;
        self.fill(&raw, "aborted")?;
        self.call("abort a transaction", &raw, |timeout| raw.abort_transaction(timeout))?;
        writer.commit(&[self.record("after the abort")], &[])?;
        let shown = self.shown_until("after the abort")?;
        report.add("an aborted transaction", "is hidden", told(&shown, &["committed", "after the abort"]));

        report.add("the end behind markers", "is reached by a reader", self.end_is_reached()?);

        let open = self.fill(&raw, "open")?;
        let end = self.end()?;
        let shown = self.shown_now()?;
        let (hidden, seen) = told(&shown, &["committed", "after the abort"]);
        // Others may write meanwhile: the end may move, but not past this record.
        report.add(
            "an open transaction",
            "is hidden, and holds the end",
            (hidden && end <= open, format!("{seen}; it stands at {open}, the end is {end}")),
        );

        // The successor of one that died with its transaction open.
        let mut successor = KafkaWriter::open(&self.shared, crashed)?;
        successor.commit(&[self.record("after the crash")], &[])?;
        let shown = self.shown_until("after the crash")?;
        let all = ["committed", "after the abort", "after the crash"];
        report.add("a transaction left open", "is aborted by the next writer", told(&shown, &all));
        let woken = self.call("commit as a fenced writer", &raw, |timeout| raw.commit_transaction(timeout));
        let refused = refused(woken);
        drop(raw);

        // A writer between two transactions is fenced alike.
        let mut newest = KafkaWriter::open(&self.shared, id)?;
        let idle = self::refused(writer.commit(&[self.record("fenced")], &[]));
        newest.commit(&[self.record("after the fence")], &[])?;
        let shown = self.shown_until("after the fence")?;
        let (hidden, seen) = told(&shown, &[&all[..], &["after the fence"]].concat());
        report.add(
            "a fenced writer",
            "can't commit",
            (
                hidden && refused.0 && idle.0,
                format!("its open transaction {}, its next {}; {seen}", refused.1, idle.1),
            ),
        );
        Ok(())
    }

    fn record(&self, what: &str) -> NewRecord {
        NewRecord {
            topic: self.topic.clone(),
            partition: 0,
            timestamp: None,
            key: Some(self.mark.clone().into_bytes()),
            value: Some(what.as_bytes().to_vec()),
            headers: Vec::new(),
        }
    }

    /// A transactional producer without the connector's care.
    fn raw(&self, id: &str) -> Result<BaseProducer<Context>> {
        let raw: BaseProducer<Context> = self
            .shared
            .config
            .writer(&self.shared.client, id)
            .create_with_context(Context::new(&self.shared.counts))
            .map_err(|error| failure("create a transactional producer", &error))?;
        self.call("initialize transactions", &raw, |timeout| raw.init_transactions(timeout))?;
        Ok(raw)
    }

    /// Begins a transaction and writes a record that the broker acknowledges; gives its offset.
    fn fill(&self, raw: &BaseProducer<Context>, what: &str) -> Result<i64> {
        let context = "write within a transaction";
        raw.begin_transaction().map_err(|error| failure(context, &error))?;
        send(raw, &[self.record(what)], self.deadline()).map_err(|error| failure(context, &error))?;
        Ok(lock(&raw.context().deliveries).offset)
    }

    /// Makes a blocking call of the protocol, its queue served.
    fn call(
        &self,
        context: &str,
        raw: &BaseProducer<Context>,
        call: impl Fn(Duration) -> std::result::Result<(), KafkaError>,
    ) -> Result<()> {
        let deadline = self.deadline();
        super::writer::serving(raw, || super::writer::persist(deadline, || false, call))
            .map_err(|error| failure(context, &error))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.config.request_timeout()
    }

    fn end(&self) -> Result<i64> {
        Ok(self.shared.ends(&self.topic)?.first().copied().unwrap_or(0))
    }

    fn reader(&self) -> Result<KafkaReader> {
        let mut from = vec![self.from];
        from.resize(self.shared.ends(&self.topic)?.len().max(1), 0);
        KafkaReader::open(&self.shared, &self.topic, &from)
    }

    /// The values of this trial that a new reader shows, up to the one that was committed last. Without it
    /// after a while, what was shown till then.
    fn shown_until(&self, last: &str) -> Result<Vec<String>> {
        self.shown(|shown| shown.iter().any(|value| value == last), self.deadline())
    }

    /// The values that a new reader shows up to the end of now.
    fn shown_now(&self) -> Result<Vec<String>> {
        self.shown(|_| false, Instant::now() + 4 * SLICE)
    }

    fn shown(&self, done: impl Fn(&[String]) -> bool, deadline: Instant) -> Result<Vec<String>> {
        let mut reader = self.reader()?;
        let mut shown = Vec::new();
        while !done(&shown) && Instant::now() < deadline {
            for record in reader.poll(1_000, SLICE)? {
                if record.key.as_deref() == Some(self.mark.as_bytes()) {
                    shown.push(String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned());
                }
            }
        }
        Ok(shown)
    }

    /// Whether a reader passes control and aborted records up to the end, and what was seen. The end lies
    /// behind this trial's last record and its marker; others may write behind it meanwhile.
    fn end_is_reached(&self) -> Result<(bool, String)> {
        let mut reader = self.reader()?;
        let (end, deadline) = (self.end()?, self.deadline());
        let mut own = -1;
        loop {
            for record in reader.poll(1_000, SLICE)? {
                if record.key.as_deref() == Some(self.mark.as_bytes()) {
                    own = record.offset;
                }
            }
            let reached = reader.positions().first().copied().unwrap_or(0);
            if reached >= end || Instant::now() >= deadline {
                let seen = format!("the end is {end}, its last record {own}, the reader at {reached}");
                return Ok((reached >= end && own < end, seen));
            }
        }
    }
}

/// Whether just these values were shown, in this order, and what was.
fn told(shown: &[String], wanted: &[&str]) -> (bool, String) {
    let seen = if shown.is_empty() {
        "nothing was shown".to_owned()
    } else {
        format!("shown: {}", shown.join(", "))
    };
    (shown == wanted, seen)
}

/// Whether a commit was refused for good, and what came of it.
fn refused(done: Result<()>) -> (bool, &'static str) {
    match done {
        Ok(()) => (false, "was committed"),
        Err(error) if error.disposition == Disposition::Fatal => (true, "was refused"),
        Err(_) => (false, "failed without being refused"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_refuses_by_the_name_of_what_fails() {
        let mut report = Report::default();
        report.add("a committed transaction", "is shown", told(&["committed".into()], &["committed"]));
        assert_eq!(report.refusal().map(|error| error.to_string()), None);
        report.add(
            "an aborted transaction",
            "is hidden",
            told(&["committed".into(), "aborted".into()], &["committed"]),
        );
        let refusal = report.refusal().unwrap();
        assert_eq!(refusal.disposition, Disposition::Fatal);
        assert_eq!(
            refusal.detail,
            "an aborted transaction: wanted is hidden, seen shown: committed, aborted"
        );
        let table = report.to_string();
        assert!(table.starts_with("ok     a committed transaction  is shown "), "{table}");
        assert!(table.lines().nth(1).unwrap().starts_with("FAILS  an aborted transaction"), "{table}");
    }

    #[test]
    fn a_commit_that_is_not_refused_is_told_apart() {
        let error = |disposition| Error { disposition, ..Error::fatal("commit", "no", "hint") };
        assert!(!refused(Ok(())).0);
        assert!(refused(Err(error(Disposition::Fatal))).0);
        assert!(!refused(Err(error(Disposition::Restart))).0);
        assert!(!refused(Err(error(Disposition::Retry { after: Duration::ZERO }))).0);
    }
}
