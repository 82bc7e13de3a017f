//! Running the schedule of attempts for one content key, up to a record of `cot`.

use super::validate::Validator;
use super::{Draft, Generate};
use crate::{Disposition, Error};
use ictflow_schemas::Millis;
use ictflow_schemas::cot::{CotRecord, CotRequest, CotStatus};
use ictflow_schemas::framing::Digest;

/// How far a key has come. It goes back into the queue with a call that ended without an answer, so
/// that the schedule goes on where it stood and no call counts as a first one twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Attempts of the schedule that gave a draft.
    pub drafts: u32,
    /// Calls made, those that ended without a draft included.
    pub calls: u32,
    /// Prompt tokens so far.
    pub tokens_in: i64,
    /// Generated tokens so far.
    pub tokens_out: i64,
}

/// A key that ended without an answer: what failed, and where to go on.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Interrupted {
    /// What failed.
    #[source]
    pub error: Error,
    /// Where to go on; give it to [`answer`] again.
    pub progress: Progress,
    /// Whether a call was made and failed; `false` where none could be started
    /// ([`Generate::ready`]): the service is held back from, for every key.
    pub started: bool,
}

/// Whose key it is.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The user.
    pub user_id: &'a str,
    /// The item.
    pub item_id: &'a str,
}

/// Asks until a draft passes or the schedule is over; returns the record for the key.
///
/// `on_call` is invoked before each call with the key and the number of the call (1 for a key's
/// first call ever): what it writes is the accounting. `created_at` is the caller's clock.
///
/// A draft that every attempt failed to pass, or a request that the generator can never serve
/// ([`Disposition::Poison`]), gives a failed record.
///
/// # Errors
/// A call that failed otherwise, or none that could be started, with the progress to go on from.
pub fn answer(
    generator: &mut dyn Generate,
    validator: &Validator,
    request: &CotRequest,
    subject: Subject<'_>,
    progress: Progress,
    created_at: Millis,
    on_call: &mut dyn FnMut(&Digest, u32),
) -> Result<CotRecord, Interrupted> {
    let mut asking = Asking::new(generator, request, subject, progress, created_at);
    while let Some(attempt) = asking.attempt() {
        if let Some(wait) = generator.ready(request, &asking.progress) {
            let error = Error::retry(
                wait,
                "start a call to the LLM",
                "it is held back",
                "the service is down or the budget is spent: see the log above",
            );
            return Err(Interrupted { error, progress: asking.progress, started: false });
        }
        asking.progress.calls += 1;
        on_call(&request.key, asking.progress.calls);
        if let Err(error) = asking.take(generator.generate(request, attempt), validator) {
            return Err(Interrupted { error, progress: asking.progress, started: true });
        }
    }
    Ok(asking.record())
}

/// Asks for several keys at once, of a generator whose answers grow together and which is never held back
/// ([`Generate::batch`]): makes the next attempt of each. Says of each whether it has come to its end.
///
/// # Errors
/// By key, as [`answer`].
pub fn attempt_all(
    generator: &mut dyn Generate,
    validator: &Validator,
    keys: &mut [(&CotRequest, &mut Asking)],
) -> Vec<Result<bool, Error>> {
    let mut asked = Vec::new();
    for (request, asking) in keys.iter_mut() {
        if let Some(attempt) = asking.attempt() {
            asking.progress.calls += 1;
            asked.push((*request, attempt));
        }
    }
    let mut drafts = generator.generate_all(&asked).into_iter();
    let mut ends = Vec::with_capacity(keys.len());
    for (_, asking) in keys {
        let taken = match asking.attempt() {
            None => Ok(()),
            Some(_) => match drafts.next() {
                Some(draft) => asking.take(draft, validator),
                None => {
                    Err(Error::fatal("ask for several answers", "one has no result", "report this defect"))
                }
            },
        };
        ends.push(taken.map(|()| asking.attempt().is_none()));
    }
    ends
}

/// A key on its way through the schedule.
#[derive(Clone, Debug)]
pub struct Asking {
    record: CotRecord,
    attempts: u32,
    progress: Progress,
    ended: bool,
}

impl Asking {
    /// A key that has come so far. `created_at` is the caller's clock.
    pub fn new(
        generator: &dyn Generate,
        request: &CotRequest,
        subject: Subject<'_>,
        progress: Progress,
        created_at: Millis,
    ) -> Self {
        let record = CotRecord {
            status: CotStatus::Failed,
            user_id: subject.user_id.to_owned(),
            item_id: subject.item_id.to_owned(),
            decision: request.decision.word().to_owned(),
            prompt_version: generator.prompt_version().to_owned(),
            llm_model: generator.model().to_owned(),
            parameters: generator.parameters().to_owned(),
            text: String::new(),
            attempts: 0,
            tokens_in: 0,
            tokens_out: 0,
            finish_reason: "exhausted".to_owned(),
            quality: 0.0,
            created_at,
        };
        Asking { record, attempts: generator.attempts(), progress, ended: false }
    }

    /// The attempt that is next, from 1; `None` at the end.
    fn attempt(&self) -> Option<u32> {
        (!self.ended && self.progress.drafts < self.attempts).then_some(self.progress.drafts + 1)
    }

    /// Takes the result of an attempt.
    fn take(&mut self, result: crate::Result<Draft>, validator: &Validator) -> crate::Result<()> {
        let draft = match result {
            Ok(draft) => draft,
            Err(Error { disposition: Disposition::Poison, .. }) => {
                self.record.finish_reason = "unanswerable".to_owned();
                self.ended = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.progress.drafts += 1;
        self.progress.tokens_in += draft.tokens_in;
        self.progress.tokens_out += draft.tokens_out;
        match validator.judge(&draft) {
            Ok(quality) => {
                self.record.status = CotStatus::Ok;
                self.record.text = draft.text;
                self.record.quality = quality;
                self.record.finish_reason = draft.finish_reason;
                self.ended = true;
            }
            Err(refusal) => self.record.finish_reason = refusal.word().to_owned(),
        }
        Ok(())
    }

    /// The record, as it stands.
    pub fn record(mut self) -> CotRecord {
        self.record.attempts = i32::try_from(self.progress.calls).unwrap_or(i32::MAX);
        self.record.tokens_in = self.progress.tokens_in;
        self.record.tokens_out = self.progress.tokens_out;
        self.record
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::llm::prompt::Prompt;
    use crate::llm::template::Template;
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::history::Label;
    use ictflow_schemas::item::ItemText;
    use std::time::Duration;

    /// Gives these results in turn, and remembers the attempts that it was asked for.
    struct Scripted {
        results: Vec<crate::Result<&'static str>>,
        asked: Vec<u32>,
        /// Calls that it lets start.
        leaves: usize,
    }

    impl Generate for Scripted {
        fn model(&self) -> &str {
            "scripted"
        }
        fn prompt_version(&self) -> &str {
            "p@0"
        }
        fn parameters(&self) -> &str {
            "{}"
        }
        fn attempts(&self) -> u32 {
            3
        }
        fn ready(&mut self, _request: &CotRequest, _progress: &Progress) -> Option<Duration> {
            match self.leaves.checked_sub(1) {
                Some(left) => {
                    self.leaves = left;
                    None
                }
                None => Some(Duration::from_secs(9)),
            }
        }
        fn generate(&mut self, _request: &CotRequest, attempt: u32) -> crate::Result<Draft> {
            self.asked.push(attempt);
            let text = self.results.remove(0)?;
            let written = vec![text.to_owned()];
            Ok(Draft {
                text: text.to_owned(),
                written,
                tokens_in: 10,
                tokens_out: 2,
                finish_reason: "stop".into(),
            })
        }
    }

    const GOOD: &str = "a bold tale of the sea";
    const BAD: &str = "so so so";

    fn retry() -> crate::Result<&'static str> {
        Err(Error::retry(Duration::from_secs(1), "the call failed", "503", "see the service"))
    }

    fn request() -> CotRequest {
        CotRequest {
            key: text_digest("key"),
            item: ItemText { title: "Blue".into(), ..ItemText::default() },
            decision: Label::Positive,
            history: Vec::new(),
        }
    }

    type Outcome = (Result<CotRecord, Interrupted>, Vec<u32>, Vec<u32>);

    fn run(results: Vec<crate::Result<&'static str>>, progress: Progress) -> Outcome {
        run_with(usize::MAX, results, progress)
    }

    fn run_with(leaves: usize, results: Vec<crate::Result<&'static str>>, progress: Progress) -> Outcome {
        let mut generator = Scripted { results, asked: Vec::new(), leaves };
        let mut calls = Vec::new();
        let subject = Subject { user_id: "u", item_id: "i" };
        let validator = Validator::new(&Prompt::builtin());
        let out = answer(&mut generator, &validator, &request(), subject, progress, 7, &mut |key, call| {
            assert_eq!(*key, text_digest("key"));
            calls.push(call);
        });
        (out, generator.asked, calls)
    }

    #[test]
    fn a_refused_draft_is_asked_again_and_its_tokens_count() {
        let (out, asked, calls) = run(vec![Ok(BAD), Ok(GOOD)], Progress::default());
        let record = out.unwrap();
        assert_eq!((asked, calls), (vec![1, 2], vec![1, 2]));
        assert_eq!((record.status, record.text.as_str()), (CotStatus::Ok, GOOD));
        assert_eq!((record.attempts, record.tokens_in, record.tokens_out), (2, 20, 4));
        assert_eq!((record.finish_reason.as_str(), record.created_at), ("stop", 7));
        assert_eq!((record.decision.as_str(), record.user_id.as_str()), ("positive", "u"));
    }

    #[test]
    fn a_schedule_without_a_good_draft_fails_for_good() {
        let (out, asked, _) = run(vec![Ok(BAD), Ok(BAD), Ok(BAD)], Progress::default());
        let record = out.unwrap();
        assert_eq!(asked, vec![1, 2, 3]);
        assert_eq!((record.status, record.finish_reason.as_str()), (CotStatus::Failed, "loop"));
        assert_eq!((record.text.as_str(), record.attempts, record.tokens_in), ("", 3, 30));
    }

    #[test]
    fn a_failed_call_goes_on_where_it_stood_and_is_no_first_call() {
        let (out, asked, calls) = run(vec![Ok(BAD), retry()], Progress::default());
        let interrupted = out.unwrap_err();
        assert_eq!((asked, calls), (vec![1, 2], vec![1, 2]));
        assert!(matches!(interrupted.error.disposition, Disposition::Retry { .. }));
        let (out, asked, calls) = run(vec![Ok(GOOD)], interrupted.progress);
        assert_eq!((asked, calls), (vec![2], vec![3]));
        let record = out.unwrap();
        assert_eq!((record.attempts, record.tokens_in, record.tokens_out), (3, 20, 4));
    }

    #[test]
    fn a_first_call_that_fails_is_counted_once() {
        let (out, _, calls) = run(vec![retry()], Progress::default());
        assert_eq!(calls, vec![1]);
        let (out, asked, calls) = run(vec![Ok(GOOD)], out.unwrap_err().progress);
        assert!(out.is_ok());
        assert_eq!((asked, calls), (vec![1], vec![2]), "the schedule's first attempt, the second call");
    }

    #[test]
    fn a_call_that_cannot_be_started_is_not_accounted() {
        let (out, asked, calls) = run_with(0, vec![], Progress::default());
        let interrupted = out.unwrap_err();
        assert_eq!((asked, calls, interrupted.started), (vec![], vec![], false));
        assert_eq!(interrupted.progress, Progress::default());
        assert!(
            matches!(interrupted.error.disposition, Disposition::Retry { after } if after.as_secs() == 9)
        );
        // The second attempt of the schedule is held back too, and the draft before it isn't lost.
        let (out, asked, calls) = run_with(1, vec![Ok(BAD)], Progress::default());
        let interrupted = out.unwrap_err();
        assert_eq!((asked, calls, interrupted.started), (vec![1], vec![1], false));
        assert_eq!((interrupted.progress.drafts, interrupted.progress.calls), (1, 1));
        assert!(run(vec![retry()], Progress::default()).0.unwrap_err().started);
    }

    #[test]
    fn a_request_that_can_never_be_served_fails_for_good() {
        let poison = Err(Error::poison("cannot write the prompt", "too long", "shorten it"));
        let record = run(vec![poison], Progress::default()).0.unwrap();
        assert_eq!((record.status, record.finish_reason.as_str()), (CotStatus::Failed, "unanswerable"));
        let stop = Err(Error::fatal("the model failed", "gone", "see it"));
        assert!(run(vec![stop], Progress::default()).0.is_err());
    }

    #[test]
    fn keys_that_are_asked_together_have_the_records_of_keys_asked_alone() {
        let poison = || Err(Error::poison("cannot write the prompt", "too long", "shorten it"));
        // By round, what each key that is still open gets: the first passes at once, the second is refused once, the
        // third can't be asked, the fourth is refused three times.
        let results = vec![Ok(GOOD), Ok(BAD), poison(), Ok(BAD), Ok(GOOD), Ok(BAD), Ok(BAD)];
        let mut generator = Scripted { results, asked: Vec::new(), leaves: 0 };
        let (validator, request) = (Validator::new(&Prompt::builtin()), request());
        let subject = Subject { user_id: "u", item_id: "i" };
        let begin = |generator: &Scripted| Asking::new(generator, &request, subject, Progress::default(), 7);
        let mut open: Vec<(usize, Asking)> = (0..4).map(|n| (n, begin(&generator))).collect();
        let mut records = Vec::new();
        while !open.is_empty() {
            let mut keys: Vec<(&CotRequest, &mut Asking)> =
                open.iter_mut().map(|(_, asking)| (&request, asking)).collect();
            let ends = attempt_all(&mut generator, &validator, &mut keys);
            let mut ends = ends.into_iter().map(Result::unwrap);
            for (n, asking) in std::mem::take(&mut open) {
                match ends.next() {
                    Some(true) => records.push((n, asking.record())),
                    _ => open.push((n, asking)),
                }
            }
        }
        assert_eq!(generator.asked, [1, 1, 1, 1, 2, 2, 3]);
        let alone = [
            run(vec![Ok(GOOD)], Progress::default()),
            run(vec![Ok(BAD), Ok(GOOD)], Progress::default()),
            run(vec![poison()], Progress::default()),
            run(vec![Ok(BAD), Ok(BAD), Ok(BAD)], Progress::default()),
        ];
        records.sort_by_key(|(n, _)| *n);
        let records: Vec<CotRecord> = records.into_iter().map(|(_, record)| record).collect();
        assert_eq!(records, alone.map(|(out, _, _)| out.unwrap()));

        let mut gone = Scripted { results: vec![Ok(BAD), retry()], asked: Vec::new(), leaves: 0 };
        let (mut first, mut second) = (begin(&gone), begin(&gone));
        let mut keys = [(&request, &mut first), (&request, &mut second)];
        let ends = attempt_all(&mut gone, &validator, &mut keys);
        assert!(matches!(ends[0], Ok(false)) && ends[1].is_err());
        assert_eq!((second.record().attempts, first.record().attempts), (1, 1), "a failed call counts");
    }

    #[test]
    fn the_template_passes_in_one_attempt() {
        let mut template = Template::new(Prompt::builtin());
        let validator = Validator::new(&Prompt::builtin());
        for decision in [Label::Positive, Label::Negative] {
            let request = CotRequest { decision, ..request() };
            let subject = Subject { user_id: "u", item_id: "i" };
            let progress = Progress::default();
            let record =
                answer(&mut template, &validator, &request, subject, progress, 0, &mut |_, _| {}).unwrap();
            assert_eq!((record.status, record.attempts), (CotStatus::Ok, 1));
            assert!(record.text.contains("Blue"), "{}", record.text);
        }
    }
}
