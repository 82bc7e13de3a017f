//! The names of a job's topics on the store.

use ictflow_schemas::topic::Topic;
use std::collections::BTreeMap;

/// A name for every topic. Inputs and the two answer logs are shared between jobs; bounds, progress
/// and outputs belong to one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(BTreeMap<Topic, String>);

impl Names {
    /// The default names, with some replaced. `suffix` is appended to the default names of the
    /// topics that belong to one job.
    pub fn new(replaced: &BTreeMap<Topic, String>, suffix: &str) -> Self {
        let name = |topic: Topic| {
            let own = matches!(
                topic,
                Topic::Epochs | Topic::Progress | Topic::Features | Topic::Examples | Topic::DeadLetters
            );
            let default = if own { format!("{}{suffix}", topic.name()) } else { topic.name().to_owned() };
            replaced.get(&topic).cloned().unwrap_or(default)
        };
        Names(Topic::ALL.into_iter().map(|topic| (topic, name(topic))).collect())
    }

    /// The topics by their names on the store.
    pub fn roles(&self) -> BTreeMap<String, Topic> {
        self.0.iter().map(|(topic, name)| (name.clone(), *topic)).collect()
    }

    /// The name of a topic.
    pub fn of(&self, topic: Topic) -> &str {
        &self.0[&topic]
    }
}
