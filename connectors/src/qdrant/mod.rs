//! Points in a Qdrant collection, over gRPC.
//!
//! * **Delivery**: [`Points::write`] returns when every request came back as completed (`wait`):
//!   on the server's disk, applied, and found by lookups. On several replicas that holds for
//!   `write_consistency` of them. After a failed write any part of it may stand; the same call
//!   again makes it whole. A collection that vanished is a named `Retry`
//!   ([`crate::points::vanished`]): prepare it and fill it anew.
//! * **Ordering**: by epoch, a point. Requests may arrive late and twice, since a broken call is
//!   repeated by the client library once and by us after it. What a request may change is
//!   therefore decided on the server, in the same step that changes it:
//!   an upsert replaces only what an earlier epoch wrote, or this epoch and didn't mark;
//!   a mark changes only points that exist and that no later epoch wrote;
//!   a purge removes only what was marked up to its epoch. So for a point that stands, the result
//!   of any requests, in any order and number, is that of the greatest epoch, where a mark beats
//!   an upsert: a late upsert never brings a marked point back. Only where nothing stands any more
//!   can it: after a purge, or in a collection made anew, a request that was lost on the way until
//!   then inserts its old point. Such a point wastes a place among the candidates, and makes no
//!   wrong vector, since the dataflow drops ids it doesn't know; the next listing shows it. Purge
//!   epochs that are older than any request can be on its way. Writes of one point go through one
//!   stream, one request at a time. One job a collection: epochs of two jobs don't compare.
//! * **Retries**: a failure that may pass, and a write that isn't confirmed, `retries` times after
//!   `retry_base_ms`, doubled to `retry_max_ms`, each pause between its half and its whole; a
//!   longer one that the server asks for, up to `retry_max_ms`. Then `Retry`. What a person must
//!   correct is `Fatal` at once. `error.rs` is the one table of verdicts.
//! * **Limits**: `batch` points and 16 MiB a request, `streams` requests at a time, `query_batch`
//!   pairs a lookup and 10,000 ids a label, `page_points` a page and `max_points` a listing,
//!   `timeout_ms` and `connect_timeout_ms` a call, each twice for the library's own repetition. A
//!   call blocks its caller for at most (1 + `retries`) times that and the pauses. Vectors of at most
//!   65,536 components; epochs from 0 to 2^53.
//! * **Secrets**: the API key comes by reference and is printed nowhere; a server that repeats it
//!   isn't repeated. Over http to another machine it needs `allow_plaintext_api_key`. The payload
//!   holds user and item ids, which appear in no error and no log; points are named by their ids.
//! * **Telemetry**: [`Counts`]; debug lines of attempts.
//!
//! A point has the named vectors `sample` and `cot` under the dot product, and the payload `user`,
//! `item`, `positive`, `label_time`, `history`, `creator`, `categories`, `digest`, `epoch` and `deleted`.
//! Only `sample` is searched.
//!
//! The alias `COLLECTION-active` leads readers from outside to the collection in use: a job that goes on
//! in another collection points it there with one request, which replaces it. The job itself uses real names.

mod client;
mod collection;
mod config;
mod error;
mod list;
mod query;
mod write;

pub use client::Counts;
pub use config::Config;

use crate::points::{Point, Points, Query, Standing};
use crate::{Error, Result};
use client::Client;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tokio::runtime::{Builder, Handle, Runtime};
use uuid::Uuid;

/// The names in the payload and of the vectors.
mod fields {
    pub const USER: &str = "user";
    pub const ITEM: &str = "item";
    pub const POSITIVE: &str = "positive";
    pub const LABEL_TIME: &str = "label_time";
    pub const HISTORY: &str = "history";
    pub const CREATOR: &str = "creator";
    pub const CATEGORIES: &str = "categories";
    pub const DIGEST: &str = "digest";
    pub const EPOCH: &str = "epoch";
    pub const DELETED: &str = "deleted";
    pub const SAMPLE: &str = "sample";
    pub const COT: &str = "cot";
}

/// What a server and its collection say of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The server's version.
    pub version: String,
    /// How many points the collection holds, as the server estimates it; `None` where it doesn't
    /// exist yet.
    pub points: Option<u64>,
    /// Payload fields whose index is still to be made.
    pub missing_indexes: Vec<&'static str>,
}

/// A store of points in one collection.
pub struct Qdrant {
    client: Client,
    /// Always there until the drop.
    runtime: Option<Runtime>,
    width: Option<usize>,
    /// The alias that leads readers to the collection in use.
    alias: String,
}

/// The alias that leads readers from outside to the collection that a job uses now. `collection` is the
/// configured one.
pub fn alias_of(collection: &str) -> String {
    format!("{collection}-active")
}

impl Qdrant {
    /// Checks the config, reads its secret and builds the client. Nothing is sent before
    /// [`Points::prepare`].
    ///
    /// # Errors
    /// `Fatal` where the config has problems (all are named at once) or the secret can't be read.
    pub fn new(config: Config) -> Result<Self> {
        let alias = alias_of(&config.collection);
        let client = Client::new(config)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ictflow-qdrant")
            .enable_all()
            .build()
            .map_err(|error| Error::fatal("start the qdrant client", error, "raise the limit of threads"))?;
        Ok(Qdrant { client, runtime: Some(runtime), width: None, alias })
    }

    /// What this store counted.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.client.counts)
    }

    /// Runs a call to its end on the runtime. A caller inside another runtime, where blocking
    /// panics, gets a thread for it.
    fn run<T: Send>(&self, call: impl AsyncFnOnce(&Client) -> Result<T> + Send) -> Result<T> {
        let Some(runtime) = &self.runtime else {
            return Err(Error::fatal("use qdrant", "its client is closed", "report this"));
        };
        let handle = runtime.handle();
        if Handle::try_current().is_err() {
            return handle.block_on(call(&self.client));
        }
        std::thread::scope(|scope| match scope.spawn(|| handle.block_on(call(&self.client))).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// The width that [`Points::prepare`] was given.
    fn width(&self) -> Result<usize> {
        self.width.ok_or_else(|| {
            Error::fatal("use qdrant", "the collection isn't prepared", "report this: prepare comes first")
        })
    }
}

impl Drop for Qdrant {
    fn drop(&mut self) {
        // A runtime that waits for its threads panics where it is dropped inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Qdrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qdrant").field("config", &self.client.config).field("width", &self.width).finish()
    }
}

impl Points for Qdrant {
    fn prepare(&mut self, width: usize) -> Result<()> {
        self.run(async |client| collection::prepare(client, width).await)?;
        self.width = Some(width);
        Ok(())
    }

    fn list(&mut self) -> Result<BTreeMap<Uuid, Standing>> {
        self.run(async |client| list::list(client).await)
    }

    fn write(&mut self, epoch: i64, points: &[Point], deleted: &[Uuid]) -> Result<()> {
        let width = self.width()?;
        self.run(async |client| write::write(client, width, epoch, points, deleted).await)
    }

    fn nearest(&mut self, queries: &[Query], limit: usize) -> Result<Vec<Vec<Uuid>>> {
        let width = self.width()?;
        self.run(async |client| query::nearest(client, width, queries, limit).await)
    }

    fn purge(&mut self, epoch: i64) -> Result<()> {
        self.run(async |client| write::purge(client, epoch).await)
    }

    fn select(&mut self, collection: &str) {
        if self.client.config.collection != collection {
            self.client.config.collection = collection.to_owned();
            self.width = None;
        }
    }

    fn activate(&mut self) -> Result<()> {
        self.run(async |client| collection::activate(client, &self.alias).await)
    }
}

/// Asks whether the server is there, new enough, and lets this client in, and whether the collection,
/// if it exists, fits the encoder's width. Changes nothing, and tries once.
///
/// # Errors
/// `Retry` where the server isn't reached, `Fatal` where something must be corrected.
pub fn probe(config: &Config, width: usize) -> Result<Reached> {
    let qdrant = Qdrant::new(Config { retries: 0, ..config.clone() })?;
    qdrant.run(async |client| collection::look(client, width).await)
}
