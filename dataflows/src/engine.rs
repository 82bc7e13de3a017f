//! The worker threads: timely's own cluster of N workers in this process, and as many in each other
//! process of the job ([`crate::cluster`]).
//!
//! The engine takes epochs in order and gives their outputs in order. Each epoch is spread over this
//! process's workers, who exchange it with all by user, item and key; what comes out is exchanged back
//! to this process. One epoch is under way at a time: the sink's transaction is the unit of progress, so
//! a second one would only wait.
//!
//! [`Engine::here`] has one worker and no thread: it runs while it is asked to, in the caller's.

use crate::cluster::{Cluster, Session};
use crate::pipeline::{EpochInput, EpochOutput, Pipeline, pipeline};
use crossbeam_channel::{Receiver, Sender, bounded};
use ictflow_connectors::{Error, Result};
use ictflow_operators::Epoch;
use ictflow_operators::clock::Clock;
use ictflow_operators::ict::Versions;
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use timely::communication::allocator::thread::Thread;
use timely::communication::{Allocator, WorkerGuards};
use timely::worker::Worker;

type Command = (Epoch, Clock, EpochInput);

/// Running workers.
pub struct Engine {
    workers: Workers,
    /// By worker of this process, the events that its `history` has taken.
    events: Vec<u64>,
    /// Workers, those of other processes included.
    peers: usize,
    /// Whether a worker died: then there is nothing to wait for.
    dead: bool,
}

enum Workers {
    /// Threads: by worker its commands and its outputs.
    Threads {
        commands: Vec<Sender<Command>>,
        outputs: Vec<Receiver<EpochOutput>>,
        guards: Option<WorkerGuards<()>>,
    },
    /// One worker in the caller's thread, and its dataflow.
    Here(Box<(Worker, Pipeline)>),
}

impl Engine {
    /// One worker that runs in the caller's thread.
    pub fn here(semantics: &Arc<Semantics>, versions: &Versions) -> Self {
        let alone = Allocator::Thread(Thread::default());
        let mut worker = Worker::new(config(), alone, Some(Instant::now()));
        let pipeline = pipeline(&mut worker, 1, semantics, versions);
        Engine {
            workers: Workers::Here(Box::new((worker, pipeline))),
            events: vec![0],
            peers: 1,
            dead: false,
        }
    }

    /// Starts `workers` threads with the graph built.
    ///
    /// # Errors
    /// What timely says where threads can't be started.
    pub fn start(
        workers: usize,
        semantics: Arc<Semantics>,
        versions: impl Into<Versions>,
    ) -> std::result::Result<Self, String> {
        let (builders, others) = timely::CommunicationConfig::Process(workers).try_build()?;
        Engine::launch(Session { builders, others }, (workers, 1), semantics, versions.into())
    }

    /// As [`Engine::start`], with as many workers in each host of the cluster. They must have been
    /// gathered. Runs until it is dropped; then the hosts wait for the next one.
    ///
    /// # Errors
    /// `Fatal` where threads can't be started, or the processes can't all reach each other.
    pub fn start_in(
        cluster: &Cluster,
        workers: usize,
        semantics: Arc<Semantics>,
        versions: Versions,
    ) -> Result<Self> {
        let started = match cluster.session(workers)? {
            None => Engine::start(workers, semantics, versions),
            Some(session) => Engine::launch(session, (workers, cluster.processes()), semantics, versions),
        };
        started.map_err(threads)
    }

    fn launch(
        session: Session,
        (workers, processes): (usize, usize),
        semantics: Arc<Semantics>,
        versions: Versions,
    ) -> std::result::Result<Self, String> {
        let mut commands = Vec::new();
        let mut outputs = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..workers {
            let (command_in, command_out) = bounded::<Command>(1);
            let (output_in, output_out) = bounded::<EpochOutput>(1);
            commands.push(command_in);
            outputs.push(output_out);
            ends.push((command_out, output_in));
        }
        let guards =
            timely::execute::execute_from(session.builders, session.others, config(), move |worker| {
                // The coordinator's workers are the first.
                let (commands, outputs) = ends[worker.index()].clone();
                let mut pipeline = pipeline(worker, workers, &semantics, &versions);
                while let Ok((epoch, clock, input)) = commands.recv() {
                    let output = pipeline.run(worker, epoch, clock, input);
                    if outputs.send(output).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Engine {
            workers: Workers::Threads { commands, outputs, guards: Some(guards) },
            events: vec![0; workers],
            peers: workers * processes,
            dead: false,
        })
    }

    /// Runs one epoch and gives its output, in an order that doesn't depend on the workers.
    ///
    /// # Panics
    /// Where a worker died, or another process of the job: its peers can't go on, and a supervisor
    /// restarts all processes of the job.
    pub fn run(&mut self, epoch: Epoch, clock: Clock, input: EpochInput) -> EpochOutput {
        // Set until all workers have answered.
        self.dead = true;
        let mut whole = EpochOutput::default();
        match &mut self.workers {
            Workers::Threads { commands, outputs, .. } => {
                for (command, share) in commands.iter().zip(spread(input, commands.len())) {
                    command
                        .send((epoch, clock.clone(), share))
                        .expect("a timely worker runs until the engine stops");
                }
                for (worker, output) in outputs.iter().enumerate() {
                    let share = output.recv().expect("a timely worker runs until the engine stops");
                    self.events[worker] += share.events;
                    whole.merge(share);
                }
            }
            Workers::Here(here) => {
                let (worker, pipeline) = &mut **here;
                whole = pipeline.run(worker, epoch, clock, input);
                self.events[0] += whole.events;
            }
        }
        self.dead = false;
        whole.sort();
        whole
    }

    /// Workers, those of other processes included.
    pub fn peers(&self) -> usize {
        self.peers
    }

    /// By worker of this process, the events that its `history` has taken. What workers of other
    /// processes took isn't counted here.
    pub fn events_by_worker(&self) -> &[u64] {
        &self.events
    }
}

impl Drop for Engine {
    /// Ends the workers and waits for them, those of other processes too.
    fn drop(&mut self) {
        let Workers::Threads { commands, guards, .. } = &mut self.workers else { return };
        commands.clear();
        match guards.take() {
            // Its peers may wait for the dead one for ever.
            Some(guards) if self.dead => std::mem::forget(guards),
            guards => drop(guards),
        }
    }
}

/// Runs the workers of a process that only hosts them, until the coordinator's engine ends.
///
/// # Errors
/// `Fatal` where threads can't be started, or a worker died.
pub(crate) fn host(
    session: Session,
    workers: usize,
    semantics: Arc<Semantics>,
    versions: Versions,
) -> Result<()> {
    // The inputs close at once: every epoch is complete when the coordinator's workers say so.
    let run = move |worker: &mut Worker| drop(pipeline(worker, workers, &semantics, &versions));
    let guards =
        timely::execute::execute_from(session.builders, session.others, config(), run).map_err(threads)?;
    guards
        .join()
        .into_iter()
        .collect::<std::result::Result<(), String>>()
        .map_err(|e| Error::fatal("host workers", e, "start all processes of the job again together"))
}

fn threads(problem: String) -> Error {
    Error::fatal("start the timely workers", problem, "is the limit of threads reached?")
}

fn config() -> timely::WorkerConfig {
    let mut config = timely::WorkerConfig::default();
    // Idle arrangements go on merging, so that memory after retractions comes back.
    differential_dataflow::configure(
        &mut config,
        &differential_dataflow::Config::default().idle_merge_effort(Some(1000)),
    );
    config
}

/// Deals an epoch's input out to workers; timely exchanges it by key anyway.
fn spread(input: EpochInput, workers: usize) -> Vec<EpochInput> {
    let mut shares = vec![EpochInput::default(); workers];
    let deal = |i: usize| i % workers;
    for (i, event) in input.events.into_iter().enumerate() {
        shares[deal(i)].events.push(event);
    }
    for (i, item) in input.items.into_iter().enumerate() {
        shares[deal(i)].items.push(item);
    }
    for (i, set) in input.candidates.into_iter().enumerate() {
        shares[deal(i)].candidates.push(set);
    }
    for (i, answer) in input.answers.into_iter().enumerate() {
        shares[deal(i)].answers.push(answer);
    }
    for (i, embedding) in input.embeddings.into_iter().enumerate() {
        shares[deal(i)].embeddings.push(embedding);
    }
    for (i, found) in input.found.into_iter().enumerate() {
        shares[deal(i)].found.push(found);
    }
    for (i, recovery) in input.recovery.into_iter().enumerate() {
        shares[deal(i)].recovery.push(recovery);
    }
    shares
}

impl EpochOutput {
    /// Adds what a later time of the epoch gave. Of a feature that both have the later one stands.
    pub fn follow(&mut self, later: EpochOutput) {
        let again: BTreeSet<(&Id, &Id)> =
            later.features.iter().map(|(update, _)| (&update.user, &update.item)).collect();
        self.features.retain(|(update, _)| !again.contains(&(&update.user, &update.item)));
        self.merge(later);
    }

    /// Adds another worker's share.
    fn merge(&mut self, other: EpochOutput) {
        self.features.extend(other.features);
        self.served.extend(other.served);
        self.lacking.extend(other.lacking);
        self.examples.extend(other.examples);
        self.wanted.extend(other.wanted);
        self.generate.extend(other.generate);
        self.embed.extend(other.embed);
        self.demonstrations.extend(other.demonstrations);
        self.failed.extend(other.failed);
        self.lookups.extend(other.lookups);
        self.saved.extend(other.saved);
        self.recall = (self.recall.0 + other.recall.0, self.recall.1 + other.recall.1);
        self.history_users += other.history_users;
        self.left_out += other.left_out;
        self.events += other.events;
    }

    fn sort(&mut self) {
        self.features.sort();
        self.served.sort();
        self.examples.sort();
        self.wanted.sort();
        self.generate.sort();
        self.embed.sort();
        self.demonstrations.sort();
        self.failed.sort();
        self.lookups.sort();
        self.saved.sort();
        self.lacking.sort();
        self.lacking.dedup();
    }
}
