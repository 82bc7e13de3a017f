//! The transactional writer.

use super::client::{Context, Counts, Shared};
use super::error::{FENCED, PAUSE, UNREACHABLE, code, ended, failure};
use super::send::{check, known, send};
use crate::topics::Writer;
use crate::{Disposition, Error, Result};
use ictflow_schemas::topic::NewRecord;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The least time that a call of the protocol is given, also at the end of a deadline.
const LEAST: Duration = Duration::from_secs(1);

/// How long one attempt at fencing lasts; the next goes on where it stood.
const FENCE_SLICE: Duration = Duration::from_secs(2);

/// How much longer than its deadline the call is waited for that may never return.
const GRACE: Duration = Duration::from_secs(1);

/// A producer, shared with a call that may outlast the writer.
type Client = Arc<BaseProducer<Context>>;

/// Where a writer stands between calls.
enum State {
    /// No transaction is open.
    Idle(Client),
    /// A failure ended it; the producer is gone.
    Closed {
        /// Whether it was one after which no new start may go on.
        fatal: bool,
    },
}

/// A transactional writer: idle or closed, one transaction a call.
pub(super) struct KafkaWriter {
    shared: Arc<Shared>,
    id: String,
    group: Arc<ConsumerGroupMetadata>,
    state: State,
}

/// Why a transaction wasn't filled.
enum Unfilled {
    /// librdkafka says so.
    Failed(KafkaError),
    /// A call that doesn't keep its deadline; the producer can't be used any more.
    Hung,
}

impl From<KafkaError> for Unfilled {
    fn from(error: KafkaError) -> Self {
        Unfilled::Failed(error)
    }
}

impl KafkaWriter {
    /// Fences every earlier writer of the id and aborts what it left open.
    pub(super) fn open(shared: &Arc<Shared>, id: &str) -> Result<Self> {
        let context = || format!("fence the writers of {id}");
        let group = group(&shared.client, shared, id).map_err(|error| failure(context(), &error))?;
        let producer: BaseProducer<Context> = shared
            .config
            .writer(&shared.client, id)
            .create_with_context(Context::new(&shared.counts))
            .map_err(|error| failure(context(), &error))?;
        let deadline = Instant::now() + shared.config.transaction_timeout();
        let fence = |timeout: Duration| {
            let answer = producer.init_transactions(timeout.min(FENCE_SLICE));
            // A refused password only shows in the queue: the call itself would wait to its end.
            producer.poll(Duration::ZERO);
            answer
        };
        persist(deadline, || producer.context().lasting(), fence)
            .map_err(|error| producer.context().failure(context(), &error))?;
        producer.context().passed();
        Ok(KafkaWriter {
            shared: Arc::clone(shared),
            id: id.to_owned(),
            group: Arc::new(group),
            state: State::Idle(Arc::new(producer)),
        })
    }

    fn context(&self) -> String {
        format!("commit a transaction of {}", self.id)
    }

    /// Everything between begin and commit.
    fn fill(
        &self,
        producer: &Client,
        records: &[NewRecord],
        offsets: &[(String, u32, i64)],
        deadline: Instant,
    ) -> std::result::Result<(), Unfilled> {
        send(producer, records, deadline)?;
        if offsets.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (topic, partition, offset) in offsets {
            let partition = i32::try_from(*partition).unwrap_or(i32::MAX);
            list.add_partition_offset(topic, partition, Offset::Offset(*offset))?;
        }
        self.publish(producer, list, deadline)
    }

    /// Adds positions to the transaction, in a thread of its own: with its group's coordinator away librdkafka
    /// (to 2.14 at least, its issue 5456) returns from this call only when one is back, whatever the timeout
    /// says. Then the thread keeps the producer until that moment, and the job learns at the deadline.
    fn publish(
        &self,
        producer: &Client,
        list: TopicPartitionList,
        deadline: Instant,
    ) -> std::result::Result<(), Unfilled> {
        let (answer, answered) = mpsc::channel();
        let (theirs, group) = (Arc::clone(producer), Arc::clone(&self.group));
        std::thread::spawn(move || {
            let call = |timeout: Duration| theirs.send_offsets_to_transaction(&list, &group, timeout);
            // Nobody listens any more where the deadline has passed.
            let _ = answer.send(persist(deadline, || false, call));
        });
        let limit = deadline.saturating_duration_since(Instant::now()).max(LEAST) + GRACE;
        match answered.recv_timeout(limit) {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Unfilled::Hung),
        }
    }

    /// Ends a transaction that couldn't be filled. The writer is idle again where it could be aborted.
    fn unfilled(&mut self, producer: Client, why: Unfilled, begun: Instant) -> Error {
        match why {
            Unfilled::Failed(error) => {
                let error = cause(&producer).unwrap_or(error);
                self.abort(producer, &error, begun)
            }
            // The broker aborts what is open after its timeout, or the next fence does.
            Unfilled::Hung => Error::restart(
                self.context(),
                format!("no coordinator took the positions in {:.1} s", begun.elapsed().as_secs_f64()),
                UNREACHABLE,
            ),
        }
    }

    /// Aborts the open transaction after a failure before its commit. The writer is idle again
    /// where that succeeds; the failure says whether another attempt may help.
    fn abort(&mut self, producer: Client, error: &KafkaError, begun: Instant) -> Error {
        if let Some(fatal) = self.fatal(&producer, begun) {
            return fatal;
        }
        let failed = producer.context().failure(self.context(), error);
        match self.leave(producer, begun) {
            Ok(()) => failed,
            Err(mut left) => {
                left.detail = format!("{error}; aborting it failed: {}", left.detail);
                left
            }
        }
    }

    /// Aborts the open transaction; the writer is idle again then. Where that fails nothing was
    /// committed: the broker aborts it after the timeout, or the next fence does.
    fn leave(&mut self, producer: Client, begun: Instant) -> Result<()> {
        let deadline = Instant::now() + self.shared.config.transaction_timeout();
        match serving(&producer, || {
            persist(deadline, || false, |timeout| producer.abort_transaction(timeout))
        }) {
            Ok(()) => {
                Counts::add(&self.shared.counts.aborts, 1);
                self.state = State::Idle(producer);
                Ok(())
            }
            Err(error) => Err(self.ended(&producer, &error, begun)),
        }
    }

    /// The failure of a producer that librdkafka closed for good, `None` where it can go on.
    fn fatal(&self, producer: &BaseProducer<Context>, begun: Instant) -> Option<Error> {
        let (code, reason) = producer.client().fatal_error()?;
        Some(ended(self.context(), code, reason, self.overdue(begun)))
    }

    /// The failure of a writer that must be dropped after an error.
    fn ended(&self, producer: &BaseProducer<Context>, error: &KafkaError, begun: Instant) -> Error {
        self.fatal(producer, begun).unwrap_or_else(|| {
            ended(self.context(), code(error).unwrap_or(Code::Unknown), error, self.overdue(begun))
        })
    }

    /// Whether a transaction begun then has outlived its timeout.
    fn overdue(&self, begun: Instant) -> bool {
        begun.elapsed() >= self.shared.config.transaction_timeout()
    }

    /// Takes the producer out of the state, to which it returns only where the writer may go on.
    fn take(&mut self) -> Result<Client> {
        match std::mem::replace(&mut self.state, State::Closed { fatal: false }) {
            State::Idle(producer) => Ok(producer),
            State::Closed { fatal: true } => {
                Err(Error::fatal(self.context(), "the writer was closed by a fence or a refusal", FENCED))
            }
            State::Closed { fatal: false } => Err(Error::restart(
                self.context(),
                "the writer is closed by an earlier failure",
                "drop the writer, fence again, read progress again",
            )),
        }
    }

    /// Remembers of a writer that a call has closed whether it may be replaced.
    fn closed<T>(&mut self, done: Result<T>) -> Result<T> {
        if let (Err(error), State::Closed { fatal }) = (&done, &mut self.state) {
            *fatal = error.disposition == Disposition::Fatal;
        }
        done
    }

    /// Begins a transaction.
    fn begin(&mut self, producer: Client, begun: Instant) -> Result<Client> {
        let Err(error) = producer.begin_transaction() else { return Ok(producer) };
        if let Some(fatal) = self.fatal(&producer, begun) {
            return Err(fatal);
        }
        let failed = producer.context().failure(self.context(), &error);
        if matches!(failed.disposition, Disposition::Retry { .. }) {
            self.state = State::Idle(producer);
        }
        Err(failed)
    }
}

impl Writer for KafkaWriter {
    fn commit(&mut self, records: &[NewRecord], offsets: &[(String, u32, i64)]) -> Result<()> {
        let done = self.transact(records, offsets);
        self.closed(done)
    }

    fn standing(&mut self, topic: &str) -> Result<()> {
        let done = self.ask(topic);
        self.closed(done)
    }
}

impl KafkaWriter {
    /// One transaction.
    fn transact(&mut self, records: &[NewRecord], offsets: &[(String, u32, i64)]) -> Result<()> {
        let producer = self.take()?;
        let offsets_known = || {
            let context = |topic: &str, partition: u32| format!("publish the offset of {topic}[{partition}]");
            offsets.iter().try_for_each(|(topic, partition, _)| {
                known(&self.shared, || context(topic, *partition), topic, *partition)
            })
        };
        if let Err(error) = check(&self.shared, records).and_then(|()| offsets_known()) {
            self.state = State::Idle(producer);
            return Err(error);
        }
        let begun = Instant::now();
        let deadline = begun + self.shared.config.transaction_timeout();
        let producer = self.begin(producer, begun)?;
        if let Err(why) = self.fill(&producer, records, offsets, deadline) {
            return Err(self.unfilled(producer, why, begun));
        }
        match serving(&producer, || {
            persist(deadline, || false, |timeout| producer.commit_transaction(timeout))
        }) {
            Ok(()) => {
                producer.context().passed();
                Counts::add(&self.shared.counts.commits, 1);
                Counts::add(&self.shared.counts.records_committed, records.len());
                self.state = State::Idle(producer);
                Ok(())
            }
            Err(error) => {
                let abortable =
                    matches!(&error, KafkaError::Transaction(e) if e.txn_requires_abort() && !e.is_fatal());
                if abortable {
                    return Err(self.abort(producer, &error, begun));
                }
                Err(self.ended(&producer, &error, begun))
            }
        }
    }

    /// Adds a position to a transaction and aborts it: the broker refuses a fenced writer at once.
    fn ask(&mut self, topic: &str) -> Result<()> {
        let producer = self.take()?;
        let begun = Instant::now();
        let producer = self.begin(producer, begun)?;
        let deadline = begun + self.shared.config.request_timeout();
        let position = [(topic.to_owned(), 0, 0)];
        match self.fill(&producer, &[], &position, deadline) {
            Ok(()) => self.leave(producer, begun),
            Err(why) => Err(self.unfilled(producer, why, begun)),
        }
    }
}

/// Why the open transaction must be aborted, `None` where it need not be. A record is often
/// reported as purged only, since librdkafka drops the others of its transaction. Asking to begin
/// another is refused with the cause, and changes nothing while one is open.
fn cause(producer: &BaseProducer<Context>) -> Option<KafkaError> {
    match producer.begin_transaction() {
        Err(KafkaError::Transaction(error)) if error.txn_requires_abort() || error.is_fatal() => {
            Some(KafkaError::Transaction(error))
        }
        _ => None,
    }
}

/// Repeats a call of the protocol while librdkafka says that the same call may be made again, to
/// the deadline or until it is hopeless.
pub(super) fn persist(
    deadline: Instant,
    hopeless: impl Fn() -> bool,
    mut call: impl FnMut(Duration) -> std::result::Result<(), KafkaError>,
) -> std::result::Result<(), KafkaError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match call(left.max(LEAST)) {
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && Instant::now() < deadline && !hopeless() =>
            {
                std::thread::sleep(PAUSE.min(Duration::from_millis(100)));
            }
            answer => return answer,
        }
    }
}

/// Makes a blocking call while another thread serves the producer's queue, which abort and commit
/// wait for.
pub(super) fn serving<T>(producer: &BaseProducer<Context>, call: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                producer.poll(Duration::from_millis(2));
            }
        });
        let answer = call();
        done.store(true, Ordering::Release);
        answer
    })
}

/// The metadata of the group named as the transactional id, without joining it. Only a consumer
/// gives it out; it is dropped at once.
fn group(
    client: &ClientConfig,
    shared: &Arc<Shared>,
    id: &str,
) -> std::result::Result<ConsumerGroupMetadata, KafkaError> {
    let mut settings = client.clone();
    settings.set("group.id", id);
    let consumer: BaseConsumer<Context> = settings.create_with_context(Context::new(&shared.counts))?;
    consumer.group_metadata().ok_or_else(|| KafkaError::ClientCreation("the group has no metadata".into()))
}
