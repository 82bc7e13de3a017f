//! `ictflow promote` and `ictflow rollback`: which outputs the job writes.

use super::Store;
use super::run::stop_flag;
use crate::backfill::{self, Demands, MAX_BEHIND, Switched};
use clap::Args;
use ictflow_connectors::{Error, Result};
use std::io::Write;

/// Options of `promote`.
#[derive(Debug, Args)]
pub(super) struct Promote {
    #[command(flatten)]
    store: Store,
    /// The backfill.
    name: String,
    /// Promote one that hasn't ended, wasn't compared, isn't equal or is far behind.
    #[arg(long)]
    force: bool,
    /// By how many interactions it may be behind the job: they follow in one epoch.
    #[arg(long, value_name = "N", default_value_t = MAX_BEHIND)]
    max_behind: u64,
}

/// Options of `rollback`.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    #[command(flatten)]
    store: Store,
}

/// Makes a backfill's outputs the job's.
pub(super) fn promote(arguments: &Promote) -> Result<()> {
    let config = arguments.store.config()?;
    let stop = stop_flag()?;
    let collection = config.raw().qdrant.as_ref().map(|qdrant| qdrant.collection.as_str());
    let demands = Demands { force: arguments.force, max_behind: arguments.max_behind };
    let switched = backfill::promote(
        || config.parts(),
        &config.semantics,
        &config.options,
        collection,
        (&arguments.name, demands),
        &stop,
    )?;
    tell("promote", &switched)
}

/// Goes back to the outputs before the last promote.
pub(super) fn rollback(arguments: &Rollback) -> Result<()> {
    let config = arguments.store.config()?;
    let stop = stop_flag()?;
    let collection = config.raw().qdrant.as_ref().map(|qdrant| qdrant.collection.as_str());
    let switched =
        backfill::rollback(|| config.parts(), &config.semantics, &config.options, collection, &stop)?;
    tell("rollback", &switched)
}

fn tell(command: &str, switched: &Switched) -> Result<()> {
    let outputs = &switched.outputs;
    let places = match &outputs.collection {
        Some(collection) => {
            format!("{}, {} and collection {collection}", outputs.features, outputs.examples)
        }
        None => format!("{} and {}", outputs.features, outputs.examples),
    };
    let text = match switched.epoch {
        Some(epoch) => format!("{command}: from epoch {epoch} on the job writes {places}"),
        None => format!("{command}: the job writes {places} already"),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|e| {
        Error::fatal("print what was done", e, "it is done: tail epochs shows the outputs on record")
    })
}
