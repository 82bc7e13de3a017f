//! The names of a job's topics on the store.

use ictflow_schemas::epoch::Outputs;
use ictflow_schemas::topic::Topic;
use std::collections::BTreeMap;

/// A name for every topic. Inputs and the two answer logs are shared between jobs; bounds, progress
/// and outputs belong to one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    names: BTreeMap<Topic, String>,
    shadow: Option<String>,
}

impl Names {
    /// The default names, with some replaced. `suffix` is appended to the default names of the
    /// topics that belong to one job.
    pub fn new(replaced: &BTreeMap<Topic, String>, suffix: &str) -> Self {
        let name = |topic: Topic| {
            let default =
                if own(topic) { format!("{}{suffix}", topic.name()) } else { topic.name().to_owned() };
            replaced.get(&topic).cloned().unwrap_or(default)
        };
        Names { names: Topic::ALL.into_iter().map(|topic| (topic, name(topic))).collect(), shadow: None }
    }

    /// These names with a topic for the vectors of weights that stand beside those that serve.
    pub fn with_shadow(self, name: impl Into<String>) -> Names {
        Names { shadow: Some(name.into()), ..self }
    }

    /// The topic of such vectors, whose records are those of `features`; `None` where none are published.
    pub fn shadow(&self) -> Option<&str> {
        self.shadow.as_deref()
    }

    /// The names of a backfill of this job: the same inputs and answers, its own topics named as the job's
    /// with the backfill's name behind them, and no shadow.
    pub fn of_backfill(&self, backfill: &str) -> Names {
        let name = |(topic, name): (&Topic, &String)| match own(*topic) {
            true => (*topic, format!("{name}.{backfill}")),
            false => (*topic, name.clone()),
        };
        Names { names: self.names.iter().map(name).collect(), shadow: None }
    }

    /// The backfill whose features these are, where they are one's of this job.
    pub fn backfill_of<'a>(&self, features: &'a str) -> Option<&'a str> {
        features.strip_prefix(self.of(Topic::Features))?.strip_prefix('.').filter(|name| !name.is_empty())
    }

    /// These names with other outputs.
    pub fn with_outputs(&self, outputs: &Outputs) -> Names {
        let mut names = self.clone();
        names.names.insert(Topic::Features, outputs.features.clone());
        names.names.insert(Topic::Examples, outputs.examples.clone());
        names
    }

    /// The topics by their names on the store.
    pub fn roles(&self) -> BTreeMap<String, Topic> {
        let shadow = self.shadow.iter().map(|name| (name.clone(), Topic::Features));
        self.names.iter().map(|(topic, name)| (name.clone(), *topic)).chain(shadow).collect()
    }

    /// The name of a topic.
    pub fn of(&self, topic: Topic) -> &str {
        &self.names[&topic]
    }
}

/// Whether a topic belongs to one job.
fn own(topic: Topic) -> bool {
    matches!(topic, Topic::Epochs | Topic::Progress | Topic::Features | Topic::Examples | Topic::DeadLetters)
}
