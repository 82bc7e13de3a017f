//! Switching the ICT weights of a job that runs.
//!
//! The record of an epoch names the weights: from that epoch on every feature is made with them, and its first
//! commit publishes all live ones. Nothing else of a job depends on them, so a switch asks nothing of the LLM or
//! the encoder. A restart in between publishes a recorded epoch with the weights that it names, where they can
//! be found; else it publishes nothing and the next epoch, under the weights that serve then, publishes all.

use super::Job;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ict::{Versions, Weights};
use ictflow_schemas::epoch::{Actives, EpochRecord};
use std::sync::Arc;

impl Job {
    /// Serves these weights from the next epoch on. Says whether they are others than before.
    ///
    /// # Errors
    /// `Fatal` where they may not follow those that serve, which go on serving: what differs, by name.
    pub fn serve(&mut self, weights: Arc<Weights>) -> Result<bool> {
        if weights.version() == self.actives.ict_weights {
            return Ok(false);
        }
        let version = weights.version().to_owned();
        self.versions.serve(weights).map_err(|e| {
            Error::fatal(
                format!("serve the ICT weights {version}"),
                e,
                "those from before go on serving; end the job and start it with the new ones",
            )
        })?;
        self.actives = Arc::new(Actives { ict_weights: version, ..(*self.actives).clone() });
        Ok(true)
    }

    /// Publishes vectors of these weights beside the features from the next epoch on, or ends that: then what stands
    /// of them is retracted. Says whether they are others than before.
    ///
    /// # Errors
    /// As [`Job::serve`]; those that stood beside it before go on.
    pub fn stand_beside(&mut self, weights: Option<Arc<Weights>>) -> Result<bool> {
        let version = |weights: Option<&Arc<Weights>>| weights.map(|weights| weights.version().to_owned());
        let named = version(weights.as_ref());
        if named == version(self.versions.shadow().as_ref()) {
            return Ok(false);
        }
        self.versions.stand_beside(weights).map_err(|e| {
            let named = named.unwrap_or_default();
            Error::fatal(format!("publish the ICT weights {named} beside"), e, "what stood before goes on")
        })?;
        Ok(true)
    }

    /// The weights whose vectors are to be published beside.
    pub(super) fn shadow(&self) -> Option<Arc<Weights>> {
        self.options.names.shadow().and_then(|_| self.versions.shadow())
    }

    /// The weights by version.
    pub fn weights(&self) -> &Versions {
        &self.versions
    }

    /// Whether the last epoch was made with other weights than the next one will be.
    pub(super) fn switching(&self) -> bool {
        let version = |weights: &Option<Arc<Weights>>| weights.as_ref().map(|w| w.version().to_owned());
        let other_shadow = self.sink.publishing() && version(&self.beside) != version(&self.shadow());
        let other = |last: &EpochRecord| last.actives.ict_weights != self.actives.ict_weights;
        other_shadow || self.last.as_ref().is_some_and(other)
    }

    /// The weights with which an epoch's features can be made under the versions that it names; `None` where
    /// they can't.
    pub(super) fn weights_of(&self, record: &EpochRecord) -> Option<Arc<Weights>> {
        let named = &record.actives.ict_weights;
        if record.actives != (Actives { ict_weights: named.clone(), ..(*self.actives).clone() }) {
            return None;
        }
        let found = self.versions.get(named);
        if let Err(error) = &found {
            tracing::warn!(%error, epoch = record.epoch, "a recorded epoch publishes nothing, the next one all");
        }
        found.ok()
    }
}
