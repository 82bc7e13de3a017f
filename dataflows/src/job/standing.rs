//! Whether a job that failed is still the newest of its name.

use super::Job;
use ictflow_connectors::{Disposition, Error, Result};
use ictflow_schemas::topic::Topic;

impl Job {
    /// Asks whether a successor has taken the job over, before it is dropped and started anew: a new start
    /// would fence that successor. Of the two writers the one that failed can't tell a successor from its
    /// own timeout, but the other one was idle, and a successor fences both. Where neither can tell, a new
    /// start may be made: it reads from the record who committed what.
    ///
    /// # Errors
    /// `Fatal` where a successor runs; `Retry` where the store doesn't answer yet.
    pub fn standing(&mut self) -> Result<()> {
        let topic = self.options.names.of(Topic::Epochs).to_owned();
        // A writer that is asked while no broker answers is spent.
        self.topics.ends(&topic)?;
        for asked in [self.bounds.standing(&topic), self.sink.standing(&topic)] {
            match asked {
                Err(error) if error.disposition != Disposition::Restart => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What a successor's fence says, where there is one. A store that doesn't answer says nothing.
    pub fn fenced(&mut self) -> Option<Error> {
        self.standing().err().filter(|error| error.disposition == Disposition::Fatal)
    }
}
