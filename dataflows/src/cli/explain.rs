//! `ictflow explain`: the lineage of one vector.

use super::Store;
use crate::explain::{Lineage, job_of_outputs};
use clap::Args;
use ictflow_connectors::{Error, Result};
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Format;
use std::io::Write;

/// Options of `explain`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: Store,
    /// The user.
    user: String,
    /// The item.
    item: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Explains a pair.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { store, user, item, json } = arguments;
    let config = store.config()?;
    let mut topics = config.topics(true)?;
    let items = config.formats().get(&Topic::Items).copied().unwrap_or(Format::Avro);
    let pair = (user.as_str(), item.as_str());
    let names = &store.names(&config, &mut *topics)?;
    // A state folder alone doesn't say the job's name; its outputs do, for they belong to one job.
    let recorded = match store.config {
        None => job_of_outputs(&mut *topics, names)?,
        Some(_) => None,
    };
    let job = recorded.as_deref().unwrap_or(&config.options.job);
    let lineage = Lineage::read_pair(&mut *topics, names, job, items, pair)?;
    let Some(explanation) = lineage.explanation(user, item) else {
        return Err(Error::fatal(
            "explain",
            format!("user {user} and item {item} have no feature"),
            "is the pair live (offered or shown, not answered, within pair_ttl), and has its item a vector?",
        ));
    };
    let text = match json {
        true => serde_json::to_string_pretty(&explanation)
            .map_err(|e| Error::fatal("explain", e, "this is a defect: please report it"))?,
        false => explanation.to_string().trim_end().to_owned(),
    };
    // A reader like `head` that has seen enough ends the command, not in an error.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    Ok(())
}
