//! Who makes the calls that the requester hands over.
//!
//! In production a thread for each generator and one for the encoder. A simulation, in which one thread does
//! everything in an order that a seed decides, has [`Hands`] instead: they make a call when they are told,
//! and hold its end back until they are told.

use crate::call_times::CallTimes;
use crossbeam_channel::{Receiver, Sender};
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::answer::{Interrupted, Progress, Subject, answer};
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::{Result, clock};
use ictflow_schemas::Millis;
use ictflow_schemas::cot::{CotRecord, CotRequest, PromptView};
use ictflow_schemas::framing::Digest;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

/// A call for a generator.
pub(crate) struct Call {
    pub request: CotRequest,
    pub view: Arc<PromptView>,
    pub progress: Progress,
}

/// What is said of a call.
pub(crate) enum Called {
    /// Call so and so of a key is under way.
    Attempt(Digest, u32),
    /// It ended: a record, a failure of the service, or a call that couldn't be started.
    Ended(Digest, std::result::Result<Box<CotRecord>, Interrupted>),
}

/// Texts by digest with their vectors.
pub(crate) type Vectors = Vec<(Digest, Vec<f32>)>;

/// A generator with what it takes to answer.
pub(crate) struct Caller {
    pub generator: Box<dyn Generate>,
    pub validator: Arc<Validator>,
    pub calls_file: Option<std::fs::File>,
    pub calls: Receiver<Call>,
    pub ended: Sender<Called>,
    pub times: CallTimes,
}

impl Caller {
    /// Makes the calls that are handed over, until the requester is gone.
    pub fn run(mut self) {
        while let Ok(call) = self.calls.recv() {
            let ended = self.make(&call, clock::now_ms());
            if self.ended.send(ended).is_err() {
                break;
            }
        }
    }

    /// Makes a call with its attempts, says of each that it is under way, and gives how it ended.
    fn make(&mut self, call: &Call, now: Millis) -> Called {
        let key = call.request.key;
        let Caller { generator, validator, calls_file, ended, times, .. } = self;
        let mut begun: Option<Instant> = None;
        let mut on_call = |key: &Digest, attempt: u32| {
            // One write a line: several threads append to the file.
            if let Some(file) = calls_file.as_mut()
                && let Err(error) = file.write_all(format!("{} {attempt}\n", key.hex()).as_bytes())
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
        let result =
            answer(&mut **generator, validator, &call.request, subject, call.progress, now, &mut on_call);
        if let Some(begun) = begun {
            times.llm(begun.elapsed());
        }
        Called::Ended(key, result.map(Box::new))
    }
}

/// The encoder with its ends of the queues.
pub(crate) struct Coder {
    pub encoder: Box<dyn Embed>,
    pub texts: Receiver<Vec<(Digest, Arc<str>)>>,
    pub vectors: Sender<Result<Vectors>>,
    pub times: CallTimes,
}

impl Coder {
    /// Embeds what is handed over, until the requester is gone.
    pub fn run(mut self) {
        while let Ok(batch) = self.texts.recv() {
            let made = self.make(&batch);
            if self.vectors.send(made).is_err() {
                break;
            }
        }
    }

    fn make(&mut self, batch: &[(Digest, Arc<str>)]) -> Result<Vectors> {
        let inputs: Vec<String> = batch.iter().map(|(_, text)| text.to_string()).collect();
        let begun = Instant::now();
        let made = self.encoder.embed(&inputs);
        self.times.encoder(begun.elapsed());
        Ok(batch.iter().map(|(digest, _)| *digest).zip(made?).collect())
    }
}

/// Callers without threads. A call is made when it is begun and ends when that is said, so an answer can be
/// as late as wished, or never come.
pub struct Hands {
    callers: Vec<Caller>,
    coder: Coder,
    /// By caller, the end of its call, not said yet.
    held: Vec<Option<Called>>,
    /// The vectors of the batch begun, not given yet.
    embedded: Option<Result<Vectors>>,
}

impl Hands {
    pub(crate) fn new(callers: Vec<Caller>, coder: Coder) -> Self {
        let held = callers.iter().map(|_| None).collect();
        Hands { callers, coder, held, embedded: None }
    }

    /// Begins the next call that is handed over, as of this time. Says whether there was one and a caller
    /// for it.
    pub fn call(&mut self, now: Millis) -> bool {
        let Some(free) = self.held.iter().position(Option::is_none) else { return false };
        let caller = &mut self.callers[free];
        let Ok(call) = caller.calls.try_recv() else { return false };
        self.held[free] = Some(caller.make(&call, now));
        true
    }

    /// Calls begun that haven't ended.
    pub fn calls(&self) -> usize {
        self.held.iter().flatten().count()
    }

    /// Ends one of these calls.
    pub fn end_call(&mut self, which: usize) {
        let mut held = self.held.iter_mut().enumerate().filter(|(_, held)| held.is_some());
        if let Some((caller, held)) = held.nth(which)
            && let Some(ended) = held.take()
        {
            // The requester that holds these hands has the other end.
            let _ = self.callers[caller].ended.send(ended);
        }
    }

    /// Begins to embed the batch that is handed over. Says whether there was one.
    pub fn embed(&mut self) -> bool {
        if self.embedded.is_some() {
            return false;
        }
        let Ok(batch) = self.coder.texts.try_recv() else { return false };
        self.embedded = Some(self.coder.make(&batch));
        true
    }

    /// Gives the vectors of the batch begun. Says whether there was one.
    pub fn end_embed(&mut self) -> bool {
        let Some(made) = self.embedded.take() else { return false };
        // As above.
        let _ = self.coder.vectors.send(made);
        true
    }
}
