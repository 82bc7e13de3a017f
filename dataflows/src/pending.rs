//! Since when each unanswered content key is wanted, for the age of the oldest one.
//!
//! Times are of the wall clock and only shown. Memory: two entries an unanswered key.

use crate::pipeline::EpochOutput;
use ictflow_schemas::Millis;
use ictflow_schemas::framing::Digest;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The unanswered keys by age.
#[derive(Debug, Default)]
pub struct Pending {
    since: HashMap<Digest, Millis>,
    by_age: BTreeSet<(Millis, Digest)>,
    found_answered: u64,
}

impl Pending {
    /// Takes an epoch's changes; what came to be wanted is so since `now`.
    pub fn apply(&mut self, output: &EpochOutput, now: Millis) {
        let mut requests: BTreeMap<Digest, isize> = BTreeMap::new();
        for ((key, _), diff) in &output.generate {
            *requests.entry(*key).or_default() += diff;
        }
        let mut wanted: BTreeMap<Digest, isize> = BTreeMap::new();
        for (key, diff) in &output.wanted {
            *wanted.entry(*key).or_default() += diff;
        }
        let came = wanted.iter().filter(|(_, diff)| **diff > 0);
        self.found_answered +=
            came.filter(|(key, _)| requests.get(*key).is_none_or(|diff| *diff <= 0)).count() as u64;
        for (key, diff) in requests {
            if diff > 0 && !self.since.contains_key(&key) {
                self.since.insert(key, now);
                self.by_age.insert((now, key));
            } else if diff < 0
                && let Some(since) = self.since.remove(&key)
            {
                self.by_age.remove(&(since, key));
            }
        }
    }

    /// Since when the oldest unanswered key is wanted; `None` where none is.
    pub fn oldest(&self) -> Option<Millis> {
        self.by_age.first().map(|(since, _)| *since)
    }

    /// Keys whose answer stood on the log when they came to be wanted.
    pub fn found_answered(&self) -> u64 {
        self.found_answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ictflow_schemas::cot::PromptView;
    use ictflow_schemas::framing::text_digest;
    use ictflow_schemas::history::Label;
    use std::sync::Arc;

    fn output(wanted: &[(&str, isize)], requests: &[(&str, isize)]) -> EpochOutput {
        let view = PromptView::new("u".into(), "i".into(), text_digest("t"), Label::Positive, &[], 1);
        EpochOutput {
            wanted: wanted.iter().map(|(key, diff)| (text_digest(key), *diff)).collect(),
            generate: requests
                .iter()
                .map(|(key, diff)| ((text_digest(key), Arc::new(view.clone())), *diff))
                .collect(),
            ..EpochOutput::default()
        }
    }

    #[test]
    fn the_oldest_is_the_one_that_came_first_and_is_still_unanswered() {
        let mut pending = Pending::default();
        assert_eq!(pending.oldest(), None);
        pending.apply(&output(&[("a", 1), ("b", 1)], &[("a", 1), ("b", 1)]), 10);
        pending.apply(&output(&[("c", 1), ("d", 1)], &[("c", 1)]), 20);
        assert_eq!((pending.oldest(), pending.found_answered()), (Some(10), 1));
        // One answered, one retracted; a change of the view alone is no new request.
        pending.apply(&output(&[("b", -1)], &[("a", -1), ("b", -1), ("c", 1), ("c", -1)]), 30);
        assert_eq!(pending.oldest(), Some(20));
        pending.apply(&output(&[], &[("c", -1)]), 40);
        assert_eq!((pending.oldest(), pending.found_answered()), (None, 1));
    }
}
