//! The whole dataflow on one screen.
//!
//! ```text
//! interactions ─ accept ─▶ events ─┬─ history ─┬─ examples ─┬─ eligible ─┬─ journal ─▶ generate ─▶ cot
//!                                  │           └─ newest ─┐ └─ labels ─┐ │
//! candidates ──────────────────────┴─ pairs ─────────────┐│            │ └────────────┐
//! items ─ accept ─▶ items ─ catalog ─┬─ states (broadcast)┼┼───────────┼─┬────────────┤
//!                                    └─ texts ─ journal ─▶ embed ─▶ embeddings        │
//! embeddings ─▶ vectors (broadcast) ─ catalog, demonstrations          │              │
//! cot ─▶ answers ────────────────────────────────────────┼┼────────────┼─ demonstrations
//!                                                        ││            │        │ newest (broadcast)
//!                                                        ▼▼            │        ▼
//!                            points ◀─ lookups ─ found ─▶ retrieval ◀──┼────────┘
//!                                                             │        ├─ sketches ─┐ effective (broadcast)
//!                                           pairs, states ────┼───▶ neighbours ◀────┘
//!                                                             └──┬─────┘
//!                                                             features ─▶ sink
//! ```
//! The state of users that no compacted log holds, in `history`, `pairs`, `eligible` and `labels`, is put
//! back, forgotten and saved through an input and an output of their own (`operators/src/recovery.rs`).
//!
//! `lookups` and `found` are there only where a store of points searches; it is written and asked
//! outside, between two of the times that every epoch has. Another one is for the rings of items that an
//! erasure left with too few labels.
//!
//! `features` takes the impressions too, and says what stood for them.
//!
//! What `features` reads for its vector is a property of the weights: a decoder reads demonstrations, so
//! `retrieval` has the pool; attention reads neighbours, and the pool stays away. Votes come either way. So the
//! kind stands while the graph does. Which weights of that kind are in force the clock of each epoch says.
//!
//! Data enters only at an epoch whose bounds are committed. What is slow or not deterministic, the
//! LLM and the encoder, runs outside: its answers are logs and come back as inputs. Nothing
//! downstream calls upstream; feedback happens only through a topic. Operators are named as the
//! files of `operators/src`.

use differential_dataflow::input::InputSession;
use differential_dataflow::{AsCollection, ExchangeData, VecCollection};
use ictflow_operators::answers::{self, AnswerChange};
use ictflow_operators::catalog::{self, ItemChange};
use ictflow_operators::clock::Clock;
use ictflow_operators::demonstrations::{self, Pooled, demonstrations, newest};
use ictflow_operators::eligible::{self, eligible};
use ictflow_operators::features::served::{ServedUpdate, Shown};
use ictflow_operators::features::{self, FeatureUpdate, features};
use ictflow_operators::history::{self, history};
use ictflow_operators::ict::{Kind, Versions};
use ictflow_operators::journal::journal;
use ictflow_operators::labels::{self, labels};
use ictflow_operators::neighbours::{self, neighbours};
use ictflow_operators::pairs::{self, CandidateChange, pairs};
use ictflow_operators::recovery::{Recovery, Saved};
use ictflow_operators::retrieval::{self, Found, Lookup, retrieval};
use ictflow_operators::sketches::sketches;
use ictflow_operators::staged::broadcast;
use ictflow_operators::vectors::{self, EmbeddingChange};
use ictflow_operators::{Changes, Epoch};
use ictflow_schemas::Id;
use ictflow_schemas::config::{Search, Semantics};
use ictflow_schemas::cot::PromptView;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::example::Example;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::history::Identity;
use ictflow_schemas::interaction::Event;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::Exchange;
use timely::worker::Worker;

/// What enters in one epoch, or one worker's share of it.
#[derive(Clone, Debug, Default)]
pub struct EpochInput {
    /// Accepted events.
    pub events: Vec<Event>,
    /// Records of `items`.
    pub items: Vec<ItemChange>,
    /// Records of `candidates`.
    pub candidates: Vec<CandidateChange>,
    /// Records of `cot`.
    pub answers: Vec<AnswerChange>,
    /// Records of `embeddings`.
    pub embeddings: Vec<EmbeddingChange>,
    /// Answers of the store of points.
    pub found: Vec<Found>,
    /// Users' states to put back, to forget, to save.
    pub recovery: Vec<Recovery>,
}

/// What leaves in one epoch, or one worker's share of it.
#[derive(Clone, Debug, Default)]
pub struct EpochOutput {
    /// Touched pairs.
    pub features: Changes<FeatureUpdate>,
    /// What stood for impressions before the epoch.
    pub served: Vec<ServedUpdate>,
    /// Changed examples.
    pub examples: Changes<Arc<Example>>,
    /// The prompt view: distinct wanted keys.
    pub wanted: Changes<Digest>,
    /// Wanted keys without an answer.
    pub generate: Changes<(Digest, Arc<PromptView>)>,
    /// Wanted texts without a vector.
    pub embed: Changes<Digest>,
    /// Demonstrations in the pool.
    pub demonstrations: Changes<Arc<Demonstration>>,
    /// Demonstrations over `max_demonstrations`, left out of the pool: how many more.
    pub left_out: isize,
    /// Pairs that ask the store of points.
    pub lookups: Vec<Lookup>,
    /// Items whose rings an erasure left with too few labels; every worker names them.
    pub lacking: Vec<Id>,
    /// Recall of measured lookups: found, and of how many.
    pub recall: (u64, u64),
    /// Keys with only a failure standing.
    pub failed: Changes<Digest>,
    /// Users' states, where some were to be saved.
    pub saved: Vec<Saved>,
    /// Users with a newest history.
    pub history_users: isize,
    /// Events that this worker's `history` took.
    pub events: u64,
}

/// The inputs of one worker.
pub struct Inputs {
    events: InputSession<Epoch, Event, isize>,
    items: InputSession<Epoch, ItemChange, isize>,
    candidates: InputSession<Epoch, CandidateChange, isize>,
    answers: InputSession<Epoch, AnswerChange, isize>,
    embeddings: InputSession<Epoch, EmbeddingChange, isize>,
    found: InputSession<Epoch, Found, isize>,
    recovery: InputSession<Epoch, Recovery, isize>,
    clock: InputSession<Epoch, (u64, Clock), isize>,
}

/// A dataflow as one worker holds it.
pub struct Pipeline {
    inputs: Inputs,
    /// Workers of one process.
    local: usize,
    probe: ProbeHandle<Epoch>,
    outbox: Rc<RefCell<EpochOutput>>,
    taken: Rc<Cell<u64>>,
}

/// Builds the graph on a worker; every process has `local` of them. Where there are several processes,
/// data enters and leaves at the first one's workers only.
pub fn pipeline(
    worker: &mut Worker,
    local: usize,
    semantics: &Arc<Semantics>,
    versions: &Versions,
) -> Pipeline {
    let peers = worker.peers();
    let home = (peers > local).then_some((worker.index() % local) as u64);
    let outbox = Rc::new(RefCell::new(EpochOutput::default()));
    let (probe, taken) = (ProbeHandle::new(), Rc::new(Cell::new(0)));
    let inputs = worker.dataflow::<Epoch, _, _>(|scope| {
        let (mut inputs, k) = (Inputs::new(), semantics.demonstrations);
        let clock = inputs.clock.to_collection(scope);
        let events = inputs.events.to_collection(scope);
        let candidates = inputs.candidates.to_collection(scope);
        let recovery = inputs.recovery.to_collection(scope);

        let vectors = vectors::vectors(inputs.embeddings.to_collection(scope));
        let known = broadcast(vectors.clone().flat_map(vectors::Output::known), peers);
        let embedded = vectors.flat_map(vectors::Output::answered);

        let catalog = catalog::catalog(inputs.items.to_collection(scope), known.clone());
        let states = broadcast(catalog.clone().flat_map(catalog::Output::item), peers);
        let item_texts = catalog.flat_map(catalog::Output::wanted);

        let histories =
            history(events.clone(), clock.clone(), recovery.clone(), semantics.clone(), taken.clone());
        let examples = histories.clone().flat_map(history::Output::example);
        let newest_histories = histories.clone().flat_map(history::Output::newest);
        let paired = pairs(events.clone(), candidates, clock.clone(), recovery.clone(), semantics.clone());
        let pairs = paired.clone().flat_map(pairs::Output::pair);

        let kept = labels(examples.clone(), clock.clone(), recovery.clone(), semantics.clone());
        let labelled = kept.clone().flat_map(labels::Output::label);
        let effective = sketches(labelled.clone(), clock.clone(), semantics.neighbours);

        let chosen = eligible(examples.clone(), states.clone(), clock.clone(), recovery, semantics.clone());
        let eligible = chosen.clone().flat_map(eligible::Output::eligible);
        let answers = answers::answers(inputs.answers.to_collection(scope));
        let prompts = eligible.clone().map(|e| (e.key, e.view));
        let generate = journal(prompts, answers.clone().flat_map(answers::Output::answered));

        let texts = answers.clone().flat_map(answers::Output::ok);
        let found = demonstrations(eligible, texts, states.clone(), known, clock.clone());
        let pooled = newest(
            found.clone().flat_map(demonstrations::Output::demonstration),
            semantics.max_demonstrations,
        );
        let pool = pooled.clone().flat_map(Pooled::kept);
        let cot_texts = found.flat_map(demonstrations::Output::wanted);
        let embed = journal(item_texts.concat(cot_texts).map(|text| (text, ())), embedded);

        let near = neighbours(
            neighbours::Inputs {
                pairs: pairs.clone(),
                everywhere: broadcast(labelled.clone(), peers),
                labels: labelled,
                again: broadcast(kept.clone().flat_map(labels::Output::again), peers),
                sketches: broadcast(effective, peers),
                items: states.clone(),
                clock: clock.clone(),
            },
            semantics.clone(),
            {
                let versions = versions.clone();
                Box::new(move |version| versions.in_force(version).text_centre().into())
            },
        );
        let reads_pool = versions.kind() == Kind::Decoder;
        let (search, k) = if reads_pool { (semantics.search, k) } else { (Search::Exact, 0) };
        let retrieved = retrieval(
            retrieval::Inputs {
                pairs,
                newest: newest_histories.clone(),
                items: states.clone(),
                demonstrations: broadcast(pool.clone().filter(move |_| reads_pool), peers),
                found: inputs.found.to_collection(scope),
                clock: clock.clone(),
            },
            search,
            k,
        );
        let features = features(
            features::Inputs {
                pairs: retrieved.clone().flat_map(retrieval::Output::pair),
                neighbours: near.clone().flat_map(neighbours::Output::pair),
                shown: events.flat_map(shown),
                items: states,
                clock,
            },
            versions.clone(),
            semantics,
        );

        let out = |outbox: &Rc<RefCell<EpochOutput>>| (outbox.clone(), probe.clone(), home);
        let updates = features.clone().flat_map(features::Output::update);
        deliver(updates, out(&outbox), |out, datum, diff| out.features.push((datum, diff)));
        let served = features.flat_map(features::Output::served);
        deliver(served, out(&outbox), |out, served, _| out.served.push(served));
        deliver(examples, out(&outbox), |out, datum, diff| out.examples.push((datum, diff)));
        deliver(generate.wanted, out(&outbox), |out, (key, _), diff| out.wanted.push((key, diff)));
        deliver(generate.requests, out(&outbox), |out, datum, diff| out.generate.push((datum, diff)));
        deliver(embed.requests, out(&outbox), |out, (text, ()), diff| out.embed.push((text, diff)));
        let lookups = retrieved.clone().flat_map(retrieval::Output::lookup);
        deliver(lookups, out(&outbox), |out, lookup, _| out.lookups.push(lookup));
        let recall = retrieved.flat_map(retrieval::Output::recall);
        deliver(recall, out(&outbox), |out, (found, of), _| {
            out.recall = (out.recall.0 + u64::from(found), out.recall.1 + u64::from(of));
        });
        let lacking = near.flat_map(neighbours::Output::lacks);
        deliver(lacking, out(&outbox), |out, item, _| out.lacking.push(item));
        deliver(pool, out(&outbox), |out, datum, diff| out.demonstrations.push((datum, diff)));
        let left_out = pooled.flat_map(Pooled::left_out);
        deliver(left_out, out(&outbox), |out, (), diff| out.left_out += diff);
        let failed = answers.flat_map(answers::Output::failed);
        deliver(failed, out(&outbox), |out, key, diff| out.failed.push((key, diff)));
        let saved = histories
            .flat_map(history::Output::saved)
            .concat(paired.flat_map(pairs::Output::saved))
            .concat(chosen.flat_map(eligible::Output::saved))
            .concat(kept.flat_map(labels::Output::saved));
        deliver(saved, out(&outbox), |out, saved, _| out.saved.push(saved));
        deliver(newest_histories, out(&outbox), |out, _, diff| out.history_users += diff);
        inputs
    });
    Pipeline { inputs, local, probe, outbox, taken }
}

impl Inputs {
    fn new() -> Self {
        Inputs {
            events: InputSession::new(),
            items: InputSession::new(),
            candidates: InputSession::new(),
            answers: InputSession::new(),
            embeddings: InputSession::new(),
            found: InputSession::new(),
            recovery: InputSession::new(),
            clock: InputSession::new(),
        }
    }
}

impl Pipeline {
    /// Runs one time: feeds this worker's share, steps until the time is complete everywhere, and
    /// gives this worker's share of the output. Every worker must run every time, in order.
    pub fn run(&mut self, worker: &mut Worker, epoch: Epoch, clock: Clock, input: EpochInput) -> EpochOutput {
        let inputs = &mut self.inputs;
        inputs.clock.advance_to(epoch);
        // Its own copy, and those of its counterparts in other processes.
        for index in (worker.index()..worker.peers()).step_by(self.local) {
            inputs.clock.insert((index as u64, clock.clone()));
        }
        feed(&mut inputs.events, epoch, input.events);
        feed(&mut inputs.items, epoch, input.items);
        feed(&mut inputs.candidates, epoch, input.candidates);
        feed(&mut inputs.answers, epoch, input.answers);
        feed(&mut inputs.embeddings, epoch, input.embeddings);
        feed(&mut inputs.found, epoch, input.found);
        feed(&mut inputs.recovery, epoch, input.recovery);
        inputs.clock.advance_to(epoch + 1);
        inputs.clock.flush();
        let probe = &self.probe;
        worker.step_or_park_while(Some(PARK), || probe.less_than(&(epoch + 1)));
        EpochOutput { events: self.taken.take(), ..self.outbox.take() }
    }
}

/// The impression that an event is.
fn shown(event: Event) -> Option<Shown> {
    let Event { user, entry, impression, .. } = event;
    let identity = Identity { user, event_time: entry.event_time, event_id: entry.event_id };
    impression.then_some(Shown { identity, item: entry.item })
}

/// How long a worker sleeps at most when it has nothing to do; it is woken by messages.
const PARK: std::time::Duration = std::time::Duration::from_millis(5);

fn feed<D: ExchangeData>(session: &mut InputSession<Epoch, D, isize>, epoch: Epoch, data: Vec<D>) {
    session.advance_to(epoch);
    for datum in data {
        session.insert(datum);
    }
    session.advance_to(epoch + 1);
    session.flush();
}

/// Ends a stream in the outbox of the worker `home`, else of its own, with the probe that says when an epoch is complete.
fn deliver<D: ExchangeData>(
    stream: VecCollection<'_, Epoch, D, isize>,
    (outbox, probe, home): (Rc<RefCell<EpochOutput>>, ProbeHandle<Epoch>, Option<u64>),
    put: impl Fn(&mut EpochOutput, D, isize) + 'static,
) {
    let stream = match home {
        Some(worker) => stream.inner.exchange(move |_| worker).as_collection(),
        None => stream,
    };
    // One epoch is under way at a time, so what comes belongs to it.
    stream
        .inspect(move |(datum, _, diff): &(D, Epoch, isize)| {
            put(&mut outbox.borrow_mut(), datum.clone(), *diff)
        })
        .probe_with(&probe);
}
