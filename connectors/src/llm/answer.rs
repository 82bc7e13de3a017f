//! Running the schedule of attempts for one content key, up to a record of `cot`.

use super::Generate;
use super::validate::Validator;
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
    mut progress: Progress,
    created_at: Millis,
    on_call: &mut dyn FnMut(&Digest, u32),
) -> Result<CotRecord, Interrupted> {
    let mut record = CotRecord {
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
    while progress.drafts < generator.attempts() {
        if let Some(wait) = generator.ready(request, &progress) {
            let error = Error::retry(
                wait,
                "start a call to the LLM",
                "it is held back",
                "the service is down or the budget is spent: see the log above",
            );
            return Err(Interrupted { error, progress, started: false });
        }
        progress.calls += 1;
        on_call(&request.key, progress.calls);
        let draft = match generator.generate(request, progress.drafts + 1) {
            Ok(draft) => draft,
            Err(Error { disposition: Disposition::Poison, .. }) => {
                record.finish_reason = "unanswerable".to_owned();
                break;
            }
            Err(error) => return Err(Interrupted { error, progress, started: true }),
        };
        progress.drafts += 1;
        progress.tokens_in += draft.tokens_in;
        progress.tokens_out += draft.tokens_out;
        match validator.judge(&draft) {
            Ok(quality) => {
                record.status = CotStatus::Ok;
                record.text = draft.text;
                record.quality = quality;
                record.finish_reason = draft.finish_reason;
                break;
            }
            Err(refusal) => record.finish_reason = refusal.word().to_owned(),
        }
    }
    record.attempts = i32::try_from(progress.calls).unwrap_or(i32::MAX);
    record.tokens_in = progress.tokens_in;
    record.tokens_out = progress.tokens_out;
    Ok(record)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::llm::Draft;
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
