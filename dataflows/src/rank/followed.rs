//! Which topic a job publishes its features on: that of the newest record of `epochs` that names one.

use ictflow_schemas::epoch::EpochRecord;

/// The topic that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    job: Option<String>,
    newest: i64,
    topic: String,
}

impl Followed {
    /// The configured topic of a job, until a record names another. Without a job's name no record does.
    pub fn new(job: Option<String>, configured: &str) -> Self {
        Followed { job, newest: 0, topic: configured.to_owned() }
    }

    /// Takes a record of the log of bounds; true where it names another topic. Of two records of one epoch the
    /// first counts. A switch is on record before its epoch is committed: by then the other topic already holds
    /// all that it is named for.
    pub fn take(&mut self, record: &EpochRecord) -> bool {
        if self.job.as_ref() != Some(&record.job) || record.epoch <= self.newest {
            return false;
        }
        self.newest = record.epoch;
        match &record.outputs {
            Some(outputs) if outputs.features != self.topic => {
                self.topic.clone_from(&outputs.features);
                true
            }
            _ => false,
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ictflow_schemas::epoch::{Actives, Outputs};
    use std::collections::BTreeMap;

    /// Bounds that name the features in force, or none.
    pub(in crate::rank) fn record(job: &str, epoch: i64, features: Option<&str>) -> EpochRecord {
        let outputs = |features: &str| Outputs {
            features: features.to_owned(),
            examples: "examples".to_owned(),
            collection: None,
        };
        EpochRecord {
            job: job.to_owned(),
            epoch,
            ends: BTreeMap::new(),
            maxima: vec![],
            clock: 0,
            actives: Actives::default(),
            config_digest: String::new(),
            config: None,
            starts: BTreeMap::new(),
            erasures: vec![],
            outputs: features.map(outputs),
        }
    }

    #[test]
    fn promotes_and_rollbacks_of_the_job_are_followed() {
        let mut followed = Followed::new(Some("j".to_owned()), "features");
        let steps = [
            ("j", 1, None, false, "features"),
            ("other", 2, Some("features.x"), false, "features"),
            ("j", 2, Some("features.b"), true, "features.b"),
            ("j", 3, None, false, "features.b"),
            ("j", 4, Some("features.b"), false, "features.b"),
            ("j", 5, Some("features"), true, "features"),
            // A fenced predecessor may have written the same epoch once more.
            ("j", 5, Some("features.c"), false, "features"),
            ("j", 4, Some("features.c"), false, "features"),
        ];
        for (job, epoch, features, switched, topic) in steps {
            assert_eq!(followed.take(&record(job, epoch, features)), switched, "{job} {epoch}");
            assert_eq!(followed.topic(), topic);
        }
        let mut nobody = Followed::new(None, "features");
        assert!(!nobody.take(&record("j", 1, Some("features.b"))));
    }
}
