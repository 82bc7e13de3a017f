//! Asks the LLM and the encoder for what the journals request, outside the frontier.
//!
//! * The most valuable key first ([`crate::queue`] says which). A retraction cancels a request that isn't
//!   called yet.
//! * A key enters the set in flight at its first call and leaves only when an epoch has read its
//!   record back. So a key that is retracted while its call is under way and wanted again is not
//!   asked twice.
//! * An answer becomes visible only by its log: it is appended, durable, and read back.
//! * Closed until the logs were read to the ends seen at start and the job has caught up with its
//!   inputs: before that, what looks unanswered may be answered further on.
//! * A call that ends without a record goes back to the queue after a pause, its attempt number
//!   kept, though the key be retracted and wanted again meanwhile.
//! * While a generator can start no call, because its service is down or its budget is spent, none is
//!   handed over: the keys wait in their order, and what isn't called isn't accounted.
//!
//! At each epoch `wanted` is the sum of `answered`, `queued` and `in_flight`.
//!
//! Limits: one call under way a generator thread and [`AHEAD`] handed over; [`BATCH`] texts an
//! encoder call. The queue holds at most one entry a wanted key.

use crate::call_times::CallTimes;
use crate::callers::{Call, Called, Caller, Coder, Hands, Vectors};
use crate::names::Names;
use crate::pipeline::EpochOutput;
use crate::queue::{Activity, Queue};
use crate::texts::Texts;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::answer::{Interrupted, Progress};
use ictflow_connectors::llm::health::Health;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::{Disposition, Error, Result, clock};
use ictflow_schemas::Millis;
use ictflow_schemas::cot::{CotRequest, PromptEntry, PromptView};
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::framing::{Digest, Partitioner};
use ictflow_schemas::item::ItemText;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls handed over beside those under way, so that no thread waits for the next look at the queue.
const AHEAD: usize = 1;

/// Texts of one encoder call.
const BATCH: usize = 16;

/// The longest pause of a key, whatever a generator asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a key waits whose texts aren't there, and the longest time before a generator that can start
/// no call is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The accounting of one process (DESIGN: `wanted` and the rest).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Keys whose answer stood on the log when they came to be wanted.
    pub found_answered: u64,
    /// Distinct keys asked, without those that a predecessor has asked: so the figures of a job's
    /// processes can be added up.
    pub called: u64,
    /// Calls with attempt 1: one for each of these.
    pub first_calls: u64,
    /// Calls, retries included.
    pub attempts: u64,
    /// Requests retracted before their call.
    pub cancelled: u64,
    /// Answers with a text, to be journaled.
    pub ok: u64,
    /// Answers journaled as failed.
    pub failed: u64,
    /// Calls that ended without an answer, their keys queued again.
    pub interrupted: u64,
    /// Prompt tokens.
    pub tokens_in: i64,
    /// Generated tokens.
    pub tokens_out: i64,
    /// Texts embedded.
    pub embeddings: u64,
}

/// A wanted key without an answer.
struct Pending {
    view: Arc<PromptView>,
    /// Its place in the order of first wishes.
    number: u64,
}

/// The requester of a job.
pub struct Requester {
    names: Names,
    partitioner: Partitioner,
    partitions: u32,
    encoder: String,
    open: bool,
    /// The accounting file, until it was read for what a predecessor called.
    calls_file: Option<PathBuf>,
    /// Distinct keys in the prompt view.
    wanted: HashSet<Digest>,
    /// Wanted keys without an answer.
    unanswered: HashMap<Digest, Pending>,
    /// By number, since when each of these is wanted.
    since: BTreeMap<u64, Millis>,
    /// The next number.
    number: u64,
    queue: Queue,
    in_flight: HashSet<Digest>,
    called: HashSet<Digest>,
    /// How far keys had come that were retracted after a call.
    left: HashMap<Digest, Progress>,
    calls: Sender<Call>,
    /// The threads' end of `calls`, to take back what none has begun.
    to_call: Receiver<Call>,
    ended: Receiver<Called>,
    /// Generator threads.
    threads: usize,
    /// No call is handed over before this: the generators can start none.
    held_until: Option<Instant>,
    health: Option<Arc<Health>>,
    /// Calls handed over that haven't ended.
    handed: usize,
    unembedded: HashSet<Digest>,
    embed_queue: VecDeque<Digest>,
    embed_in_flight: HashSet<Digest>,
    texts: Sender<Vec<(Digest, Arc<str>)>>,
    vectors: Receiver<Result<Vectors>>,
    embedding: bool,
    /// What makes the calls where no thread does, and how often was looked at the queue: a millisecond each,
    /// so that pauses pass as the looks do.
    hands: Option<(Hands, u64)>,
    begun: Instant,
    /// What was asked and made.
    pub accounting: Accounting,
    times: CallTimes,
}

impl Requester {
    /// Starts a thread for each generator, and one for the encoder; none `by_hand` ([`Requester::hands`]).
    /// Users are active for `pair_ttl`. With `calls_file` each call's key and attempt is appended to it
    /// before the call is made.
    ///
    /// # Errors
    /// `Fatal` where a thread can't be started or the file can't be opened.
    pub fn start(
        names: Names,
        (partitioner, partitions): (Partitioner, u32),
        pair_ttl: Millis,
        generators: Vec<Box<dyn Generate>>,
        validator: Validator,
        encoder: Box<dyn Embed>,
        (calls_file, by_hand): (Option<&Path>, bool),
    ) -> Result<Self> {
        let open = |path: &Path| {
            std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
                Error::fatal(format!("open {}", path.display()), e, "the accounting file must be writable")
            })
        };
        let encoder_id = encoder.id().to_owned();
        let health = generators.first().and_then(|generator| generator.health());
        let threads = generators.len();
        let times = CallTimes::default();
        // As many as are handed over at once, so that none waits outside for a thread to wake up.
        let (calls, to_call) = bounded(threads + AHEAD);
        let (ends, ended) = bounded(1024);
        let validator = Arc::new(validator);
        let mut callers = Vec::new();
        for generator in generators {
            callers.push(Caller {
                generator,
                validator: validator.clone(),
                calls_file: calls_file.map(open).transpose()?,
                calls: to_call.clone(),
                ended: ends.clone(),
                times: times.clone(),
            });
        }
        let (texts, to_embed) = bounded(1);
        let (made, vectors) = bounded(1);
        let coder = Coder { encoder, texts: to_embed, vectors: made, times: times.clone() };
        let hands = if by_hand {
            Some((Hands::new(callers, coder), 0))
        } else {
            for caller in callers {
                spawn("generator", move || caller.run())?;
            }
            spawn("encoder", move || coder.run())?;
            None
        };
        Ok(Requester {
            names,
            partitioner,
            partitions,
            encoder: encoder_id,
            open: false,
            calls_file: calls_file.map(Path::to_path_buf),
            wanted: HashSet::new(),
            unanswered: HashMap::new(),
            since: BTreeMap::new(),
            number: 0,
            queue: Queue::new(pair_ttl),
            in_flight: HashSet::new(),
            called: HashSet::new(),
            left: HashMap::new(),
            calls,
            to_call,
            ended,
            threads,
            held_until: None,
            health,
            handed: 0,
            unembedded: HashSet::new(),
            embed_queue: VecDeque::new(),
            embed_in_flight: HashSet::new(),
            texts,
            vectors,
            embedding: false,
            hands,
            begun: Instant::now(),
            accounting: Accounting::default(),
            times,
        })
    }

    /// What makes the calls where no thread does.
    pub fn hands(&mut self) -> Option<&mut Hands> {
        self.hands.as_mut().map(|(hands, _)| hands)
    }

    /// The time by which pauses pass.
    fn now(&self) -> Instant {
        match &self.hands {
            Some((_, looks)) => self.begun + Duration::from_millis(*looks),
            None => Instant::now(),
        }
    }

    /// Lets calls be made from now on. Keys that a predecessor has called go on from there, as far as its
    /// accounting file tells: no call counts as a first one twice.
    pub fn open(&mut self) {
        self.open = true;
        if let Some(path) = self.calls_file.take()
            && let Err(error) = self.recall(&path)
        {
            let path = path.display();
            tracing::warn!(%path, %error, "the accounting file can't be read: calls made before may count as first ones again");
        }
    }

    /// Reads which of the waiting keys were called before, and how often.
    fn recall(&mut self, path: &Path) -> std::io::Result<()> {
        if self.queue.is_empty() {
            return Ok(());
        }
        let mut made: HashMap<Digest, u32> = HashMap::new();
        for line in BufReader::new(std::fs::File::open(path)?).lines() {
            let line = line?;
            // A line that a kill cut off tells nothing.
            let Some((key, call)) = line.split_once(' ') else { continue };
            let (Some(key), Ok(call)) = (Digest::from_hex(key), call.parse::<u32>()) else { continue };
            if self.queue.contains(&key) {
                let most = made.entry(key).or_default();
                *most = call.max(*most);
            }
        }
        for (key, calls) in made {
            self.called.insert(key);
            let Some(Pending { view, number }) = self.unanswered.get(&key) else { continue };
            self.queue.put(key, view, *number, Progress { calls, ..Progress::default() }, None);
        }
        Ok(())
    }

    /// Lets no further call be made, and takes back what was handed over and no thread has begun. What is
    /// under way goes on: see [`Requester::under_way`].
    pub fn close(&mut self) {
        self.open = false;
        while let Ok(call) = self.to_call.try_recv() {
            let key = call.request.key;
            self.handed -= 1;
            self.in_flight.remove(&key);
            match self.unanswered.get(&key) {
                Some(Pending { view, number }) => self.queue.put(key, view, *number, call.progress, None),
                None => self.leave(key, call.progress),
            }
        }
    }

    /// Takes an epoch: its changed requests, the keys whose records it read back, and what it tells about
    /// the value of the waiting ones.
    pub fn apply(
        &mut self,
        output: &EpochOutput,
        answered: &[Digest],
        embedded: &[Digest],
        activity: &Activity,
    ) {
        self.queue.learn(activity);
        let mut changes: BTreeMap<Digest, isize> = BTreeMap::new();
        for (key, diff) in &output.wanted {
            *changes.entry(*key).or_default() += diff;
        }
        let mut came = Vec::new();
        for (key, diff) in changes {
            if diff > 0 && self.wanted.insert(key) {
                came.push(key);
            } else if diff < 0 {
                self.wanted.remove(&key);
            }
        }
        let mut generate: BTreeMap<Digest, (isize, &Arc<PromptView>)> = BTreeMap::new();
        for ((key, view), diff) in &output.generate {
            generate.entry(*key).or_insert((0, view)).0 += diff;
        }
        let now = clock::now_ms();
        let read_back: HashSet<&Digest> = answered.iter().collect();
        for (key, (diff, view)) in generate {
            if diff > 0 {
                self.want(key, view.clone(), now);
            } else if diff < 0 {
                self.retract(&key, read_back.contains(&key));
            }
        }
        for key in answered {
            // Read back, and yet still requested: what was written is gone again or wasn't usable.
            if self.in_flight.remove(key)
                && let Some(Pending { view, number }) = self.unanswered.get(key)
            {
                self.queue.put(*key, view, *number, Progress::default(), None);
            }
        }
        self.accounting.found_answered +=
            came.iter().filter(|key| !self.unanswered.contains_key(key)).count() as u64;
        let mut embed: BTreeMap<Digest, isize> = BTreeMap::new();
        for (text, diff) in &output.embed {
            *embed.entry(*text).or_default() += diff;
        }
        for (text, diff) in embed {
            if diff > 0 {
                self.unembedded.insert(text);
                if !self.embed_in_flight.contains(&text) {
                    self.embed_queue.push_back(text);
                }
            } else if diff < 0 {
                self.unembedded.remove(&text);
            }
        }
        for text in embedded {
            if self.embed_in_flight.remove(text) && self.unembedded.contains(text) {
                self.embed_queue.push_back(*text);
            }
        }
    }

    fn want(&mut self, key: Digest, view: Arc<PromptView>, now: Millis) {
        let number = self.number;
        self.number += 1;
        self.since.insert(number, now);
        if !self.in_flight.contains(&key) {
            let progress = self.left.remove(&key).unwrap_or_default();
            self.queue.put(key, &view, number, progress, None);
        }
        if let Some(before) = self.unanswered.insert(key, Pending { view, number }) {
            self.since.remove(&before.number);
        }
    }

    fn retract(&mut self, key: &Digest, answered: bool) {
        let Some(pending) = self.unanswered.remove(key) else { return };
        self.since.remove(&pending.number);
        if let Some(progress) = self.queue.remove(key) {
            // What an epoch answered was never to be called; that is no cancellation.
            self.accounting.cancelled += u64::from(self.open && !answered);
            if !answered {
                self.leave(*key, progress);
            }
        }
    }

    /// Remembers how far a key had come, so that no call of it counts as a first one twice.
    fn leave(&mut self, key: Digest, progress: Progress) {
        if progress.calls > 0 {
            self.left.insert(key, progress);
        }
    }

    /// Hands over what can be called now, and gives the records of the answers that came, to be
    /// appended to their logs. Never waits.
    ///
    /// # Errors
    /// `Fatal` where a generator or the encoder can't go on.
    pub fn pump(&mut self, texts: &Texts) -> Result<Vec<NewRecord>> {
        if let Some((_, looks)) = &mut self.hands {
            *looks += 1;
        }
        let mut records = Vec::new();
        self.collect(&mut records)?;
        if self.open {
            self.hand_over(texts);
        }
        Ok(records)
    }

    /// Whether nothing is queued, under way, or waiting to be read back.
    pub fn idle(&self) -> bool {
        self.unanswered.is_empty()
            && self.unembedded.is_empty()
            && self.in_flight.is_empty()
            && self.embed_in_flight.is_empty()
            && self.handed == 0
    }

    /// The distinct wanted keys at the last epoch.
    pub fn wanted(&self) -> &HashSet<Digest> {
        &self.wanted
    }

    /// Wanted keys with a record, ok or failed.
    pub fn answered(&self) -> usize {
        self.wanted.len() - self.unanswered.len()
    }

    /// Wanted keys that wait for their call, those in a pause too.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Wanted keys that are called, or whose record no epoch has read back yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().filter(|key| self.unanswered.contains_key(key)).count()
    }

    /// Calls handed over that haven't ended, and whether texts are being embedded.
    pub fn under_way(&self) -> usize {
        self.handed + usize::from(self.embedding)
    }

    /// Since when the key is wanted that has waited longest for its answer, milliseconds of the wall
    /// clock; after a restart, since its replay.
    pub fn oldest_pending(&self) -> Option<Millis> {
        self.since.first_key_value().map(|(_, since)| *since)
    }

    /// The counters of the service behind the generators, where there is one.
    pub fn health(&self) -> Option<&Arc<Health>> {
        self.health.as_ref()
    }

    /// Wanted texts without a vector.
    pub fn unembedded(&self) -> usize {
        self.unembedded.len()
    }

    /// Calls handed over that haven't ended, and how many that are at most.
    pub fn handed(&self) -> (usize, usize) {
        (self.handed, self.threads + AHEAD)
    }

    /// Texts that wait for the encoder.
    pub fn embed_queued(&self) -> usize {
        self.embed_queue.len()
    }

    /// How long the calls since the last look took.
    pub fn times(&self) -> &CallTimes {
        &self.times
    }

    fn collect(&mut self, records: &mut Vec<NewRecord>) -> Result<()> {
        loop {
            match self.ended.try_recv() {
                Ok(Called::Attempt(key, attempt)) => {
                    self.accounting.attempts += 1;
                    self.accounting.first_calls += u64::from(attempt == 1);
                    self.accounting.called += u64::from(self.called.insert(key));
                }
                Ok(Called::Ended(key, Ok(record))) => {
                    self.handed -= 1;
                    self.accounting.tokens_in += record.tokens_in;
                    self.accounting.tokens_out += record.tokens_out;
                    self.accounting.ok += u64::from(!record.text.is_empty());
                    self.accounting.failed += u64::from(record.text.is_empty());
                    records.push(NewRecord {
                        topic: self.names.of(Topic::Cot).to_owned(),
                        partition: self.partitioner.partition(record.user_id.as_bytes(), self.partitions),
                        timestamp: None,
                        key: Some(record.topic_key(&key)),
                        value: Some(record.encode()),
                        headers: Vec::new(),
                    });
                }
                Ok(Called::Ended(key, Err(interrupted))) => self.interrupted(key, interrupted)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(thread_died("generator")),
            }
        }
        match self.vectors.try_recv() {
            Ok(vectors) => {
                self.embedding = false;
                for (digest, vector) in vectors? {
                    self.accounting.embeddings += 1;
                    records.push(self.embedding(digest, vector));
                }
                Ok(())
            }
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(thread_died("encoder")),
        }
    }

    /// Takes a call that ended without a record.
    fn interrupted(&mut self, key: Digest, interrupted: Interrupted) -> Result<()> {
        let Interrupted { error, progress, started } = interrupted;
        self.handed -= 1;
        let Disposition::Retry { after } = error.disposition else {
            return Err(error);
        };
        let not_before = self.now() + after.min(LONGEST_PAUSE);
        if started {
            self.accounting.interrupted += 1;
            tracing::warn!(%error, "call ended without an answer, asking again later");
        } else {
            // Nothing is wrong with the key, and no other could be called either.
            let until = self.now() + after.min(LOOK_AGAIN);
            self.held_until = Some(self.held_until.map_or(until, |before| before.max(until)));
        }
        self.in_flight.remove(&key);
        match self.unanswered.get(&key) {
            Some(Pending { view, number }) => {
                self.queue.put(key, view, *number, progress, started.then_some(not_before));
            }
            None => {
                // Retracted before its call, as it turns out only now.
                self.accounting.cancelled += u64::from(!started && progress.calls == 0);
                self.leave(key, progress);
            }
        }
        Ok(())
    }

    /// The record of a vector; one that isn't of unit norm is journaled as failed.
    fn embedding(&self, digest: Digest, vector: Vec<f32>) -> NewRecord {
        let (encoder, digest) = (self.encoder.clone(), digest.hex());
        let mut record = Embedding { encoder, digest, status: EmbeddingStatus::Ok, vector };
        if record.usable().is_none() {
            record.status = EmbeddingStatus::Failed;
            record.vector.clear();
        }
        NewRecord {
            topic: self.names.of(Topic::Embeddings).to_owned(),
            partition: 0,
            timestamp: None,
            key: Some(record.key()),
            value: Some(record.encode()),
            headers: Vec::new(),
        }
    }

    /// Hands the first keys of the queue to the generator threads.
    fn call(&mut self, now: Instant, texts: &Texts) {
        while self.handed < self.threads + AHEAD
            && let Some(next) = self.queue.pop(now)
        {
            let Some(Pending { view, number }) = self.unanswered.get(&next.key) else { continue };
            let Some(request) = request(next.key, view, texts) else {
                // The item was edited or deleted since: the retraction is on its way.
                self.queue.put(next.key, view, *number, next.progress, Some(now + LOOK_AGAIN));
                continue;
            };
            let call = Call { request, view: view.clone(), progress: next.progress };
            if self.calls.try_send(call).is_err() {
                self.queue.put(next.key, view, *number, next.progress, None);
                break;
            }
            self.in_flight.insert(next.key);
            self.handed += 1;
        }
    }

    fn hand_over(&mut self, texts: &Texts) {
        let now = self.now();
        if self.held_until.is_none_or(|until| until <= now) {
            self.held_until = None;
            self.call(now, texts);
        }
        if !self.embedding {
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(digest) = self.embed_queue.pop_front()
            {
                if self.unembedded.contains(&digest)
                    && !self.embed_in_flight.contains(&digest)
                    && let Some(text) = texts.get(&digest)
                {
                    self.embed_in_flight.insert(digest);
                    batch.push((digest, text.clone()));
                }
            }
            if !batch.is_empty() {
                self.embedding = self.texts.send(batch).is_ok();
            }
        }
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        // Nobody would journal these answers: the threads must not begin what they still find.
        while self.to_call.try_recv().is_ok() {}
    }
}

/// The request of a key, with the texts that its ids have now.
fn request(key: Digest, view: &PromptView, texts: &Texts) -> Option<CotRequest> {
    Some(CotRequest {
        key,
        item: ItemText::parse(texts.get(&view.item_text)?),
        decision: view.decision,
        history: view
            .history
            .iter()
            .map(|(item, kind, label)| PromptEntry {
                item: texts.of_item(item).map(|text| ItemText::parse(text)),
                kind: kind.to_string(),
                label: *label,
            })
            .collect(),
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(|_| ()).map_err(|e| {
        Error::fatal(format!("start the {name} thread"), e, "is the limit of processes reached?")
    })
}

fn thread_died(name: &str) -> Error {
    Error::fatal(
        format!("wait for the {name}"),
        "its thread ended",
        "the log above says why; restart the job",
    )
}

/// How long an idle job waits before it looks again.
pub const IDLE: Duration = Duration::from_millis(10);
