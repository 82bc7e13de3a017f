//! Asks for the CoTs of the first examples, within a budget, and keeps every answer as it comes.
//!
//! * A key with an answer in the log isn't asked, be it a text or a failure: so the same command goes on after
//!   a kill where it stood, and one that was finished asks nothing.
//! * A budget is looked at before an example is begun, never within one: what is under way ends and is kept. So it
//!   is passed by at most the attempts of the examples under way: one a generator, or its batch.
//! * A generator whose answers grow together ([`Generate::batch`]) has so many examples under way; one that has
//!   ended makes room for the next, and one that was refused is tried again beside new ones.
//! * A call that a service failed is made again after the pause that it asks for, the key's schedule kept. After
//!   [`FAILED_CALLS`] of them for one key the run ends in the service's error; what was answered stands in the log.
//!
//! Each generator has a thread. The log's lines are in the order in which answers end; which examples are asked, and
//! what a local model says of each, doesn't depend on threads and batches.

use super::examples::Examples;
use super::log::{CotLog, Version};
use crate::ranking::progress::Progress as Bar;
use crossbeam_channel::{Sender, bounded};
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::answer::{Asking, Interrupted, Progress, Subject, answer, attempt_all};
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::{Disposition, Result, clock};
use ictflow_schemas::cot::{CotRecord, CotRequest, CotStatus, PromptView};
use ictflow_schemas::framing::Digest;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Failed calls of one key after which the run is given up.
pub const FAILED_CALLS: u32 = 20;

/// How often a pause looks whether the run has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The first examples so many, those answered before too.
    pub examples: usize,
    /// Tokens read and written.
    pub tokens: Option<u64>,
    /// Wall time from the first call on.
    pub time: Option<Duration>,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Texts made.
    pub made: usize,
    /// Examples all of whose attempts failed.
    pub failed: usize,
    /// Texts that were there before.
    pub resumed: usize,
    /// Failures that were there before, not asked again.
    pub resumed_failed: usize,
    /// Examples that a budget left unasked.
    pub left: usize,
    /// Calls, those that ended without an answer included.
    pub calls: u64,
    /// Prompt tokens.
    pub tokens_in: i64,
    /// Generated tokens.
    pub tokens_out: i64,
    /// Wall time from the first call on.
    pub time: Duration,
}

/// What threads share.
struct Shared<'r> {
    examples: &'r Examples<'r>,
    validator: &'r Validator,
    version: &'r Version,
    budget: Budget,
    /// The places that aren't answered.
    open: Vec<u32>,
    /// The next of them.
    next: AtomicUsize,
    tokens: AtomicI64,
    stopped: AtomicBool,
    begun: Instant,
}

/// An example under way.
struct Example {
    view: PromptView,
    request: CotRequest,
}

impl Example {
    fn subject(&self) -> Subject<'_> {
        Subject { user_id: &self.view.user, item_id: &self.view.item }
    }
}

/// How an example ended.
enum End {
    /// Its record.
    Record(Digest, Box<CotRecord>),
    /// A budget was spent while it waited for a service.
    Left(Progress),
}

/// Asks for the first examples of the budget that have no answer in the log.
///
/// # Errors
/// Those of a generator that can't go on and of the log. What was answered before stands there.
pub fn ask(
    examples: &Examples<'_>,
    generators: Vec<Box<dyn Generate>>,
    validator: &Validator,
    version: &Version,
    budget: Budget,
    log: &mut CotLog,
) -> Result<Asked> {
    let mut asked = Asked::default();
    let (mut open, mut keys) = (Vec::new(), HashSet::new());
    for &place in examples.places().iter().take(budget.examples) {
        let key = version.key(&examples.view(place, version.label_free));
        match log.get(&key) {
            Some(answer) if answer.text.is_some() => asked.resumed += 1,
            Some(_) => asked.resumed_failed += 1,
            // Two samples of one key are answered together.
            None if keys.insert(key) => open.push(place),
            None => {}
        }
    }
    let shared = Shared {
        examples,
        validator,
        version,
        budget,
        next: AtomicUsize::new(0),
        tokens: AtomicI64::new(0),
        stopped: AtomicBool::new(false),
        begun: Instant::now(),
        open,
    };
    let mut bar = Bar::new("asking for CoTs", shared.open.len());
    let written = std::thread::scope(|scope| {
        let (ends, ended) = bounded::<Result<End>>(generators.len().max(1));
        for mut generator in generators {
            let (shared, ends) = (&shared, ends.clone());
            scope.spawn(move || match generator.batch() {
                0 | 1 => shared.one_by_one(&mut *generator, &ends),
                batch => shared.together(&mut *generator, batch, &ends),
            });
        }
        drop(ends);
        let mut first_error = None;
        // To the end of all threads: what is under way is paid for, and kept.
        for end in ended {
            match end.and_then(|end| asked.take(end, log)) {
                Ok(()) => {
                    let seconds = shared.begun.elapsed().as_secs_f64();
                    let tokens = asked.tokens_in + asked.tokens_out;
                    let note = format!("{} failed, {tokens} tokens in {seconds:.0} s", asked.failed);
                    bar.at(asked.made + asked.failed, &note);
                }
                Err(error) => {
                    shared.stopped.store(true, Ordering::Relaxed);
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    });
    // Before any error: what was written last is kept too.
    let synced = log.sync();
    asked.time = shared.begun.elapsed();
    asked.left = shared.open.len() - asked.made - asked.failed;
    written.and(synced)?;
    Ok(asked)
}

impl Asked {
    fn take(&mut self, end: End, log: &mut CotLog) -> Result<()> {
        match end {
            End::Left(progress) => {
                self.calls += u64::from(progress.calls);
                self.tokens_in += progress.tokens_in;
                self.tokens_out += progress.tokens_out;
                Ok(())
            }
            End::Record(key, record) => {
                self.calls += u64::try_from(record.attempts).unwrap_or_default();
                self.tokens_in += record.tokens_in;
                self.tokens_out += record.tokens_out;
                log.append(&key, &record)?;
                *(if record.status == CotStatus::Ok { &mut self.made } else { &mut self.failed }) += 1;
                Ok(())
            }
        }
    }
}

impl Shared<'_> {
    /// Whether no example may be begun any more.
    fn over(&self) -> bool {
        let spent = u64::try_from(self.tokens.load(Ordering::Relaxed)).unwrap_or_default();
        self.stopped.load(Ordering::Relaxed)
            || self.budget.tokens.is_some_and(|most| spent >= most)
            || self.budget.time.is_some_and(|longest| self.begun.elapsed() >= longest)
    }

    /// The next example; `None` where none is left or may be begun.
    fn next(&self) -> Option<Example> {
        if self.over() {
            return None;
        }
        let place = *self.open.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        let view = self.examples.view(place, self.version.label_free);
        let key = self.version.key(&view);
        Some(Example { request: self.examples.request(key, &view), view })
    }

    /// Says how an example ended, and whether to go on.
    fn tell(&self, end: Result<End>, ends: &Sender<Result<End>>) -> bool {
        if let Ok(End::Record(_, record)) = &end {
            self.tokens.fetch_add(record.tokens_in + record.tokens_out, Ordering::Relaxed);
        }
        let failed = end.is_err();
        ends.send(end).is_ok() && !failed
    }

    /// Asks example after example.
    fn one_by_one(&self, generator: &mut dyn Generate, ends: &Sender<Result<End>>) {
        while let Some(example) = self.next() {
            let end = self.answered(generator, &example);
            if !self.tell(end, ends) {
                break;
            }
        }
    }

    /// Asks as many examples at once.
    fn together(&self, generator: &mut dyn Generate, batch: usize, ends: &Sender<Result<End>>) {
        let mut open: Vec<(Example, Asking)> = Vec::new();
        loop {
            while open.len() < batch
                && let Some(example) = self.next()
            {
                let progress = Progress::default();
                let now = clock::now_ms();
                let asking = Asking::new(generator, &example.request, example.subject(), progress, now);
                open.push((example, asking));
            }
            if open.is_empty() {
                return;
            }
            let mut keys: Vec<(&CotRequest, &mut Asking)> =
                open.iter_mut().map(|(example, asking)| (&example.request, asking)).collect();
            let told = attempt_all(generator, self.validator, &mut keys);
            for ((example, asking), told) in std::mem::take(&mut open).into_iter().zip(told) {
                let end = match told {
                    Ok(false) => {
                        open.push((example, asking));
                        continue;
                    }
                    Ok(true) => Ok(End::Record(example.request.key, Box::new(asking.record()))),
                    Err(error) => Err(error),
                };
                if !self.tell(end, ends) {
                    return;
                }
            }
        }
    }

    /// Asks until an example has ended.
    fn answered(&self, generator: &mut dyn Generate, example: &Example) -> Result<End> {
        let Example { request, .. } = example;
        let (mut progress, mut failures) = (Progress::default(), 0);
        loop {
            let (subject, now) = (example.subject(), clock::now_ms());
            match answer(generator, self.validator, request, subject, progress, now, &mut |_, _| {}) {
                Ok(record) => return Ok(End::Record(request.key, Box::new(record))),
                Err(Interrupted { error, progress: reached, started }) => {
                    let Disposition::Retry { after } = error.disposition else { return Err(error) };
                    failures += u32::from(started);
                    if failures >= FAILED_CALLS {
                        return Err(error);
                    }
                    progress = reached;
                    let end = Instant::now() + after;
                    while Instant::now() < end {
                        if self.over() {
                            return Ok(End::Left(progress));
                        }
                        std::thread::sleep(LOOK_AGAIN.min(after));
                    }
                }
            }
        }
    }
}
