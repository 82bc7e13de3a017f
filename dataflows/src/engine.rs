//! The worker threads: timely's own cluster of N workers in this process.
//!
//! The engine takes epochs in order and gives their outputs in order. Each epoch is spread over the
//! workers, who exchange it by user, item and key. One epoch is under way at a time: the sink's
//! transaction is the unit of progress, so a second one would only wait.

use crate::pipeline::{EpochInput, EpochOutput, pipeline};
use crossbeam_channel::{Receiver, Sender, bounded};
use ictflow_operators::Epoch;
use ictflow_operators::clock::Clock;
use ictflow_operators::ict::Weights;
use ictflow_schemas::config::Semantics;
use std::sync::Arc;
use timely::communication::WorkerGuards;

type Command = (Epoch, Clock, EpochInput);

/// Running workers.
pub struct Engine {
    commands: Vec<Sender<Command>>,
    outputs: Vec<Receiver<EpochOutput>>,
    guards: Option<WorkerGuards<()>>,
    /// By worker, the events that its `history` has taken.
    events: Vec<u64>,
}

impl Engine {
    /// Starts `workers` threads with the graph built.
    ///
    /// # Errors
    /// What timely says where threads can't be started.
    pub fn start(workers: usize, semantics: Arc<Semantics>, weights: Arc<Weights>) -> Result<Self, String> {
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
        let mut config = timely::WorkerConfig::default();
        // Idle arrangements go on merging, so that memory after retractions comes back.
        differential_dataflow::configure(
            &mut config,
            &differential_dataflow::Config::default().idle_merge_effort(Some(1000)),
        );
        let config =
            timely::Config { communication: timely::CommunicationConfig::Process(workers), worker: config };
        let guards = timely::execute(config, move |worker| {
            let (commands, outputs) = ends[worker.index()].clone();
            let mut pipeline = pipeline(worker, &semantics, &weights);
            while let Ok((epoch, clock, input)) = commands.recv() {
                let output = pipeline.run(worker, epoch, clock, input);
                if outputs.send(output).is_err() {
                    break;
                }
            }
        })?;
        Ok(Engine { commands, outputs, guards: Some(guards), events: vec![0; workers] })
    }

    /// Runs one epoch and gives its output, in an order that doesn't depend on the workers.
    ///
    /// # Panics
    /// Where a worker died: its peers can't go on, and a supervisor restarts the process.
    pub fn run(&mut self, epoch: Epoch, clock: Clock, input: EpochInput) -> EpochOutput {
        let shares = spread(input, self.commands.len());
        for (command, share) in self.commands.iter().zip(shares) {
            command.send((epoch, clock.clone(), share)).expect("a timely worker runs until the engine stops");
        }
        let mut whole = EpochOutput::default();
        for (worker, output) in self.outputs.iter().enumerate() {
            let share = output.recv().expect("a timely worker runs until the engine stops");
            self.events[worker] += share.events;
            whole.merge(share);
        }
        whole.sort();
        whole
    }

    /// Workers, in all.
    pub fn peers(&self) -> usize {
        self.commands.len()
    }

    /// By worker, the events that its `history` has taken.
    pub fn events_by_worker(&self) -> &[u64] {
        &self.events
    }
}

impl Drop for Engine {
    /// Ends the workers and waits for them.
    fn drop(&mut self) {
        self.commands.clear();
        if let Some(guards) = self.guards.take() {
            drop(guards);
        }
    }
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
    /// Adds another worker's share, or that of the epoch's second time.
    pub fn merge(&mut self, other: EpochOutput) {
        self.features.extend(other.features);
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
        self.events += other.events;
    }

    fn sort(&mut self) {
        self.features.sort();
        self.examples.sort();
        self.wanted.sort();
        self.generate.sort();
        self.embed.sort();
        self.demonstrations.sort();
        self.failed.sort();
        self.lookups.sort();
        self.saved.sort();
    }
}
