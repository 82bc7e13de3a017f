//! A double of Qdrant: its gRPC interface in this process, over collections in memory.
//!
//! A real client talks to it over TCP. Filters, conditional upserts, marks by filter, pages and dot
//! products mean what they mean in Qdrant, as far as the connector uses them; anything else is
//! refused by name. It says nothing about Qdrant's own index, disk or replicas: searches are exact,
//! and what is applied is there at once.
//!
//! Faults are queued, each for one call: see [`Fault`]. The client library repeats a broken call once
//! by itself, so that one fault of that kind is never seen above it.

mod connection;
mod filter;
mod server;
mod store;

use super::world::MakePoints;
use connection::Connection;
use ictflow_connectors::points::Points;
use ictflow_connectors::qdrant::{Config, Qdrant};
use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::QdrantServer;
use qdrant_client::qdrant::{Distance, PayloadSchemaType, UpdateStatus, Value, VectorParams};
use serde_json::{Map, Value as Json};
use server::Service;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::{Collection, Id, Operation, Stored};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::Server;
use uuid::Uuid;

/// The collection that a job has by default.
pub const COLLECTION: &str = "ictflow";

/// How long a port may take to be free again after a stop.
const PORT_LIMIT: Duration = Duration::from_secs(30);

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this code, and nothing is done.
    Refuse(Code),
    /// It is refused as one too many, with the seconds to wait.
    Throttle(u64),
    /// The connection breaks before anything is done.
    CutBefore,
    /// All of it is done, then the connection breaks: the caller can't know.
    Cut,
    /// A write is on its way for long: the connection breaks, and it is done only by
    /// [`Double::release`].
    Hold,
    /// All of it is done; the answer takes so many milliseconds longer.
    Slow(u64),
    /// A write comes back with this status.
    Unconfirmed {
        /// The status.
        status: UpdateStatus,
        /// Whether it is done nevertheless.
        applied: bool,
    },
}

/// A call that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its method.
    pub method: &'static str,
    /// Points of an upsert, searches of a lookup, the limit of a page; else 0.
    pub points: usize,
}

/// A point as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    /// The payload.
    pub payload: Map<String, Json>,
    /// The named vectors.
    pub vectors: BTreeMap<String, Vec<f32>>,
}

#[derive(Default)]
struct Faults {
    delay: Duration,
    key: Option<String>,
    version: String,
    /// In order; one with a method waits for a call of it.
    queue: VecDeque<(Option<String>, Fault)>,
    held: Vec<Operation>,
    calls: Vec<Call>,
}

impl Faults {
    fn take(&mut self, method: &str) -> Option<Fault> {
        let fits =
            |(wanted, _): &(Option<String>, Fault)| wanted.as_deref().is_none_or(|wanted| wanted == method);
        let at = self.queue.iter().position(fits)?;
        self.queue.remove(at).map(|(_, fault)| fault)
    }
}

/// What the services and the test share.
#[derive(Default)]
struct Shared {
    collections: Mutex<BTreeMap<String, Collection>>,
    /// By alias, the collection that it leads to.
    aliases: Mutex<BTreeMap<String, String>>,
    faults: Mutex<Faults>,
}

impl Shared {
    fn collections<R>(&self, work: impl FnOnce(&mut BTreeMap<String, Collection>) -> R) -> R {
        work(&mut self.collections.lock().unwrap())
    }

    /// The collection of a name, which may be an alias.
    fn resolve(&self, name: &str) -> String {
        self.aliases.lock().unwrap().get(name).map_or(name, String::as_str).to_owned()
    }

    fn points_of(&self, collection: &str) -> BTreeMap<Uuid, Dump> {
        let collection = &self.resolve(collection);
        let dump = |(id, point): (&Id, &Stored)| {
            let Id::Uuid(id) = id else { return None };
            let payload = point.payload.iter().map(|(name, value)| (name.clone(), value.clone().into_json()));
            Some((*id, Dump { payload: payload.collect(), vectors: point.vectors.clone() }))
        };
        self.collections(|all| {
            all.get(collection)
                .map(|found| found.points.iter().filter_map(dump).collect())
                .unwrap_or_default()
        })
    }
}

/// What a double holds, without the double.
pub struct View(Arc<Shared>);

impl View {
    /// What stands in the default collection: empty where there is none.
    pub fn points(&self) -> BTreeMap<Uuid, Dump> {
        self.0.points_of(COLLECTION)
    }
}

/// Makes clients of the double at this URL, also in another process.
pub fn clients_of(url: &str) -> Arc<MakePoints> {
    let config = Config { url: url.to_owned(), ..Config::default() };
    Arc::new(move || {
        let client: Box<dyn Points> = Box::new(Qdrant::new(config.clone()).unwrap());
        (client, config.over_fetch)
    })
}

/// A running double. It ends with its value.
pub struct Double {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Double {
    /// Starts one on a free port of loopback.
    pub fn start() -> Self {
        let mut double =
            Double { shared: Arc::default(), address: SocketAddr::from(([127, 0, 0, 1], 0)), runtime: None };
        double.version("1.20.0");
        double.serve();
        double
    }

    fn serve(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let deadline = Instant::now() + PORT_LIMIT;
        let listener = loop {
            match runtime.block_on(TcpListener::bind(self.address)) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "bind {}: {error}", self.address),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.address = listener.local_addr().unwrap();
        let incoming = TcpListenerStream::new(listener).map(|stream| {
            stream.map(|stream| {
                let _ = stream.set_nodelay(true);
                Connection::new(stream)
            })
        });
        let service = Service(Arc::clone(&self.shared));
        let router = Server::builder()
            .add_service(PointsServer::new(service.clone()).max_decoding_message_size(usize::MAX))
            .add_service(CollectionsServer::new(service.clone()))
            .add_service(QdrantServer::new(service));
        runtime.spawn(router.serve_with_incoming(incoming));
        self.runtime = Some(runtime);
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops it: the port is closed, connections break. What it holds stays for a restart.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }

    /// Starts it again on its port, with what it held or empty.
    pub fn restart(&mut self, keep: bool) {
        self.stop();
        if !keep {
            self.shared.collections(BTreeMap::clear);
            self.shared.aliases.lock().unwrap().clear();
        }
        self.serve();
    }

    /// From now on clients must give this key.
    pub fn require_key(&self, key: &str) {
        self.faults().key = Some(key.to_owned());
    }

    /// The version that it tells.
    pub fn version(&self, version: &str) {
        self.faults().version = version.to_owned();
    }

    /// Every call from now on waits so long before anything is done.
    pub fn delay(&self, milliseconds: u64) {
        self.faults().delay = Duration::from_millis(milliseconds);
    }

    /// The next `n` calls of any method are refused as unavailable.
    pub fn fail_next(&self, n: usize) {
        self.fault(None, Fault::Refuse(Code::Unavailable), n);
    }

    /// The next `n` calls of a method, or of any, go wrong.
    pub fn fault(&self, method: Option<&str>, fault: Fault, n: usize) {
        self.faults().queue.extend((0..n).map(|_| (method.map(str::to_owned), fault)));
    }

    /// Forgets all faults that haven't come.
    pub fn forget_faults(&self) {
        self.faults().queue.clear();
    }

    /// Faults whose call hasn't come yet.
    pub fn faults_left(&self) -> usize {
        self.faults().queue.len()
    }

    /// Does the held writes now, in their order; a refused one changes nothing.
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut self.faults().held);
        for operation in &held {
            self.shared.collections(|all| {
                if let Some(collection) = all.get_mut(operation.collection()) {
                    let _ = collection.apply(operation);
                }
            });
        }
        held.len()
    }

    /// All calls so far, in the order of their arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.faults().calls.clone()
    }

    /// How many calls of a method arrived.
    pub fn count(&self, method: &str) -> usize {
        self.faults().calls.iter().filter(|call| call.method == method).count()
    }

    /// What stands in the default collection: empty where there is none.
    pub fn points(&self) -> BTreeMap<Uuid, Dump> {
        self.points_of(COLLECTION)
    }

    /// A look at what it holds, for another thread; it goes on over stops and restarts.
    pub fn view(&self) -> View {
        View(Arc::clone(&self.shared))
    }

    /// The collection that an alias leads to.
    pub fn alias(&self, alias: &str) -> Option<String> {
        self.shared.aliases.lock().unwrap().get(alias).cloned()
    }

    /// What stands in a collection, which an alias may name. Points with numbers as ids are left out.
    pub fn points_of(&self, collection: &str) -> BTreeMap<Uuid, Dump> {
        self.shared.points_of(collection)
    }

    /// Whether a collection exists.
    pub fn exists(&self, collection: &str) -> bool {
        self.shared.collections(|all| all.contains_key(collection))
    }

    /// The named vectors of a collection with their sizes.
    pub fn vectors(&self, collection: &str) -> BTreeMap<String, u64> {
        self.shared.collections(|all| {
            all.get(collection)
                .map(|found| found.vectors.iter().map(|(name, params)| (name.clone(), params.size)).collect())
                .unwrap_or_default()
        })
    }

    /// The payload indexes of a collection, each with how many points stood when it was made.
    pub fn indexes(&self, collection: &str) -> BTreeMap<String, usize> {
        self.shared.collections(|all| {
            all.get(collection).map(|found| found.points_at_index.clone()).unwrap_or_default()
        })
    }

    /// Makes a collection as another program would, in place of one of that name.
    pub fn make(&self, collection: &str, vectors: &[(&str, u64, Distance)]) {
        let params =
            |size, distance: Distance| VectorParams { size, distance: distance.into(), ..Default::default() };
        let vectors =
            vectors.iter().map(|(name, size, distance)| ((*name).to_owned(), params(*size, *distance)));
        let made = Collection { vectors: vectors.collect(), ..Collection::default() };
        self.shared.collections(|all| all.insert(collection.to_owned(), made));
    }

    /// Gives a collection a keyword index, as another program would.
    pub fn index(&self, collection: &str, field: &str) {
        self.shared.collections(|all| {
            let found = all.get_mut(collection).unwrap();
            found.indexes.insert(field.to_owned(), PayloadSchemaType::Keyword);
        });
    }

    /// Removes a collection, and with it the aliases that lead there.
    pub fn lose(&self, collection: &str) {
        self.shared.aliases.lock().unwrap().retain(|_, to| to != collection);
        self.shared.collections(|all| all.remove(collection));
    }

    /// Puts a point as another program would: under a number, with a payload of texts.
    pub fn plant(&self, collection: &str, id: u64, payload: &[(&str, &str)]) {
        let payload = payload.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        self.shared.collections(|all| {
            let found = all.get_mut(collection).unwrap();
            let vectors =
                found.vectors.iter().map(|(name, params)| (name.clone(), vec![0.0; params.size as usize]));
            let stored = Stored { payload, vectors: vectors.collect() };
            found.points.insert(Id::Num(id), stored);
        });
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
