//! `ictflow erase`: a user's data out of the job's outputs, logs and snapshots.

use super::Store;
use super::run::stop_flag;
use crate::job::{Job, Recorded, Started};
use clap::Args;
use ictflow_connectors::{Error, Result};
use std::io::Write;

/// Options of `erase`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// The user, as the key of interactions has it.
    user: String,
}

/// Takes the job over, erases the user in an epoch of its own, prints the receipt as JSON. A `run` of the
/// job that is under way is fenced: it ends, and its supervisor starts it again.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let config = arguments.store.config()?;
    // A name that is mistyped has no receipt.
    let options = &config.options;
    Recorded::of_committed(&mut *config.topics(true)?, &options.names, &options.job)?;
    let parts = config.parts()?;
    let stop = stop_flag()?;
    let mut options = config.options.clone();
    // Nothing is asked here: an answer that comes meanwhile would have to be erased again.
    options.generate = false;
    let mut job = match Job::start_unless(parts, config.semantics.clone(), options, &stop, |_| {})? {
        Started::Running(job) => *job,
        Started::Stopped { .. } => {
            return Err(Error::fatal(
                "erase a user",
                "stopped while recorded epochs were replayed; nothing was erased",
                "try again",
            ));
        }
    };
    let receipt = job.erase(&arguments.user)?;
    let text = serde_json::to_string_pretty(&receipt)
        .map_err(|e| Error::fatal("print the receipt", e, "this is a defect: please report it"))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::fatal("print the receipt", e, "the user is erased; erase again for a receipt"))
}
