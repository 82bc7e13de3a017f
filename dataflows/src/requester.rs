//! Asks the LLM and the encoder for what the journals request, outside the frontier.
//!
//! * First in, first out. A retraction cancels a request that isn't called yet.
//! * A key enters the set in flight at its first call and leaves only when an epoch has read its
//!   record back. So a key that is retracted while its call is under way and wanted again is not
//!   asked twice.
//! * An answer becomes visible only by its log: it is appended, durable, and read back.
//! * Closed until the logs were read to the ends seen at start and the job has caught up with its
//!   inputs: before that, what looks unanswered may be answered further on.
//! * A call that ends without a record goes back to the queue after a pause, its attempt number
//!   kept.
//!
//! Limits: one call under way a generator thread and [`AHEAD`] handed over; [`BATCH`] texts an
//! encoder call. The queue holds one entry a wanted key.

use crate::call_times::CallTimes;
use crate::names::Names;
use crate::pipeline::EpochOutput;
use crate::texts::Texts;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::answer::{Interrupted, Progress, Subject, answer};
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::{Disposition, Error, Result, clock};
use ictflow_schemas::cot::{CotRecord, CotRequest, PromptEntry, PromptView};
use ictflow_schemas::embedding::{Embedding, EmbeddingStatus};
use ictflow_schemas::framing::{Digest, partition};
use ictflow_schemas::item::ItemText;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls handed to the generator thread beside the one under way.
const AHEAD: usize = 1;

/// Texts of one encoder call.
const BATCH: usize = 16;

/// The accounting of one process (DESIGN: `wanted` and the rest).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Distinct keys asked.
    pub called: u64,
    /// Calls with attempt 1.
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

/// A call for the generator thread.
struct Call {
    request: CotRequest,
    view: Arc<PromptView>,
    progress: Progress,
}

/// Texts by digest with their vectors.
type Vectors = Vec<(Digest, Vec<f32>)>;

/// What the generator thread says of a call.
enum Called {
    /// Call so and so of a key is under way.
    Attempt(Digest, u32),
    /// It ended: a record, or a failure of the endpoint.
    Ended(Digest, std::result::Result<Box<CotRecord>, Interrupted>),
}

/// A request that waits for its call.
#[derive(Clone, Copy, Debug)]
struct Queued {
    key: Digest,
    progress: Progress,
    not_before: Option<Instant>,
}

impl Queued {
    fn new(key: Digest) -> Self {
        Queued { key, progress: Progress::default(), not_before: None }
    }
}

/// The requester of a job.
pub struct Requester {
    names: Names,
    partitions: u32,
    encoder: String,
    open: bool,
    /// Distinct keys in the prompt view.
    wanted: HashSet<Digest>,
    /// Wanted keys without an answer.
    unanswered: HashMap<Digest, Arc<PromptView>>,
    queue: VecDeque<Queued>,
    in_flight: HashSet<Digest>,
    called: HashSet<Digest>,
    calls: Sender<Call>,
    ended: Receiver<Called>,
    /// Calls handed over that haven't ended.
    handed: usize,
    unembedded: HashSet<Digest>,
    embed_queue: VecDeque<Digest>,
    embed_in_flight: HashSet<Digest>,
    texts: Sender<Vec<(Digest, Arc<str>)>>,
    vectors: Receiver<Result<Vectors>>,
    embedding: bool,
    /// What was asked and made.
    pub accounting: Accounting,
    times: CallTimes,
}

impl Requester {
    /// Starts the two threads. With `calls_file` each call's key and attempt is appended to it
    /// before the call is made.
    pub fn start(
        names: Names,
        partitions: u32,
        generator: Box<dyn Generate>,
        validator: Validator,
        encoder: Box<dyn Embed>,
        calls_file: Option<&Path>,
    ) -> Result<Self> {
        let calls_file = match calls_file {
            None => None,
            Some(path) => {
                Some(std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
                    Error::fatal(
                        format!("open {}", path.display()),
                        e,
                        "the accounting file must be writable",
                    )
                })?)
            }
        };
        let encoder_id = encoder.id().to_owned();
        let times = CallTimes::default();
        let (calls, to_call) = bounded(AHEAD);
        let (ends, ended) = bounded(1024);
        let calling = times.clone();
        spawn("generator", move || generate(generator, &validator, calls_file, &to_call, &ends, &calling))?;
        let (texts, to_embed) = bounded(1);
        let (made, vectors) = bounded(1);
        let encoding = times.clone();
        spawn("encoder", move || embed(encoder, &to_embed, &made, &encoding))?;
        Ok(Requester {
            names,
            partitions,
            encoder: encoder_id,
            open: false,
            wanted: HashSet::new(),
            unanswered: HashMap::new(),
            queue: VecDeque::new(),
            in_flight: HashSet::new(),
            called: HashSet::new(),
            calls,
            ended,
            handed: 0,
            unembedded: HashSet::new(),
            embed_queue: VecDeque::new(),
            embed_in_flight: HashSet::new(),
            texts,
            vectors,
            embedding: false,
            accounting: Accounting::default(),
            times,
        })
    }

    /// Lets calls be made from now on.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Takes an epoch: its changed requests, and the keys whose records it read back.
    pub fn apply(&mut self, output: &EpochOutput, answered: &[Digest], embedded: &[Digest]) {
        for (key, diff) in &output.wanted {
            if *diff > 0 {
                self.wanted.insert(*key)
            } else {
                self.wanted.remove(key)
            };
        }
        let mut generate: BTreeMap<Digest, (isize, &Arc<PromptView>)> = BTreeMap::new();
        for ((key, view), diff) in &output.generate {
            generate.entry(*key).or_insert((0, view)).0 += diff;
        }
        for (key, (diff, view)) in generate {
            if diff > 0 {
                self.unanswered.insert(key, view.clone());
                if !self.in_flight.contains(&key) {
                    self.queue.push_back(Queued::new(key));
                }
            } else if diff < 0 && self.unanswered.remove(&key).is_some() && !self.in_flight.contains(&key) {
                // What an epoch answered was never to be called; that is no cancellation.
                self.accounting.cancelled += u64::from(self.open && !answered.contains(&key));
                self.queue.retain(|queued| queued.key != key);
            }
        }
        for key in answered {
            // Read back, and yet still requested: what was written is gone again or wasn't usable.
            if self.in_flight.remove(key) && self.unanswered.contains_key(key) {
                self.queue.push_back(Queued::new(*key));
            }
        }
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

    /// Hands over what can be called now, and gives the records of the answers that came, to be
    /// appended to their logs. Never waits.
    ///
    /// # Errors
    /// `Fatal` where a generator or the encoder can't go on.
    pub fn pump(&mut self, texts: &Texts) -> Result<Vec<NewRecord>> {
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

    /// Wanted texts without a vector.
    pub fn unembedded(&self) -> usize {
        self.unembedded.len()
    }

    /// Wanted keys that wait for a call.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Wanted keys that are called or whose answer isn't read back yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().filter(|key| self.unanswered.contains_key(*key)).count()
    }

    /// Calls handed over that haven't ended, and how many that are at most.
    pub fn handed(&self) -> (usize, usize) {
        (self.handed, AHEAD + 1)
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
                        partition: partition(record.user_id.as_bytes(), self.partitions),
                        timestamp: None,
                        key: Some(record.topic_key(&key)),
                        value: Some(record.encode()),
                        headers: Vec::new(),
                    });
                }
                Ok(Called::Ended(key, Err(Interrupted { error, progress }))) => {
                    self.handed -= 1;
                    let Disposition::Retry { after } = error.disposition else {
                        return Err(error);
                    };
                    self.accounting.interrupted += 1;
                    tracing::warn!(%error, "call ended without an answer, asking again later");
                    self.in_flight.remove(&key);
                    if self.unanswered.contains_key(&key) {
                        let not_before = Some(Instant::now() + after);
                        self.queue.push_back(Queued { key, progress, not_before });
                    }
                }
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

    fn hand_over(&mut self, texts: &Texts) {
        let now = Instant::now();
        let mut early = Vec::new();
        while self.handed <= AHEAD
            && let Some(queued) = self.queue.pop_front()
        {
            if queued.not_before.is_some_and(|time| now < time) {
                early.push(queued);
                continue;
            }
            let Some(view) = self.unanswered.get(&queued.key) else { continue };
            // The item was edited or deleted since: the retraction is on its way.
            let Some(request) = request(queued.key, view, texts) else { continue };
            let call = Call { request, view: view.clone(), progress: queued.progress };
            if self.calls.try_send(call).is_err() {
                early.push(queued);
                break;
            }
            self.in_flight.insert(queued.key);
            self.handed += 1;
        }
        for queued in early.into_iter().rev() {
            self.queue.push_front(queued);
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

fn generate(
    mut generator: Box<dyn Generate>,
    validator: &Validator,
    mut calls_file: Option<std::fs::File>,
    calls: &Receiver<Call>,
    ended: &Sender<Called>,
    times: &CallTimes,
) {
    while let Ok(call) = calls.recv() {
        let key = call.request.key;
        let mut begun: Option<Instant> = None;
        let mut on_call = |key: &Digest, attempt: u32| {
            if let Some(file) = &mut calls_file
                && let Err(error) = writeln!(file, "{} {attempt}", key.hex())
            {
                tracing::error!(%error, "the accounting file couldn't be written: the calls made are not all on record");
            }
            // The next attempt begins where the one before ended.
            if let Some(begun) = begun.replace(Instant::now()) {
                times.llm(begun.elapsed());
            }
            // The job may be gone; then nobody counts any more.
            let _ = ended.send(Called::Attempt(*key, attempt));
        };
        let subject = Subject { user_id: &call.view.user, item_id: &call.view.item };
        let result = answer(
            &mut *generator,
            validator,
            &call.request,
            subject,
            call.progress,
            clock::now_ms(),
            &mut on_call,
        );
        if let Some(begun) = begun {
            times.llm(begun.elapsed());
        }
        if ended.send(Called::Ended(key, result.map(Box::new))).is_err() {
            break;
        }
    }
}

fn embed(
    mut encoder: Box<dyn Embed>,
    texts: &Receiver<Vec<(Digest, Arc<str>)>>,
    vectors: &Sender<Result<Vectors>>,
    times: &CallTimes,
) {
    while let Ok(batch) = texts.recv() {
        let inputs: Vec<String> = batch.iter().map(|(_, text)| text.to_string()).collect();
        let begun = Instant::now();
        let made =
            encoder.embed(&inputs).map(|made| batch.iter().map(|(digest, _)| *digest).zip(made).collect());
        times.encoder(begun.elapsed());
        if vectors.send(made).is_err() {
            break;
        }
    }
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
