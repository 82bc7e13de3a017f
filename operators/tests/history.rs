//! Histories and examples equal a differential implementation, in any order within `lateness`, cut
//! into any epochs, with duplicates, on 1, 2 and 4 workers.
#![allow(clippy::unwrap_used)]

use differential_dataflow::consolidation::consolidate;
use differential_dataflow::input::InputSession;
use ictflow_operators::accept::{Accept, Judged};
use ictflow_operators::clock::Clock;
use ictflow_operators::history::{Output, history};
use ictflow_schemas::Id;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::Example;
use ictflow_schemas::framing::Partitioner;
use ictflow_schemas::history::{Entry, History};
use ictflow_schemas::interaction::{Event, Interaction};
use ictflow_schemas::topic::Record;
use ictflow_schemas::wire::{Format, Wire};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

const PARTITIONS: u32 = 2;
const MINUTE: i64 = 60_000;

fn semantics() -> Arc<Semantics> {
    Arc::new(Semantics { history_length: 4, ..Semantics::default() })
}

/// What one generated record is: who, what, how late, and whether it repeats the one before.
#[derive(Clone, Debug)]
struct Raw {
    user: u8,
    item: u8,
    kind: u8,
    step: i64,
    delay: i64,
    repeat: bool,
}

fn raws() -> impl Strategy<Value = Vec<Raw>> {
    let raw = (0..12u8, 0..4u8, 0..6u8, 0..4 * MINUTE, 0..14 * MINUTE, 0..10u8).prop_map(
        |(user, item, kind, step, delay, repeat)| Raw { user, item, kind, step, delay, repeat: repeat == 0 },
    );
    proptest::collection::vec(raw, 1..160)
}

fn records(raws: &[Raw]) -> Vec<Record> {
    let kinds = [
        ("impression", None),
        ("impression", None),
        ("click", None),
        ("rate", Some(2.0)),
        ("skip", None),
        ("play", Some(0.7)),
    ];
    let mut now = 1_000 * MINUTE;
    let mut records: Vec<Record> = Vec::new();
    for (i, raw) in raws.iter().enumerate() {
        now += raw.step;
        if raw.repeat
            && let Some(last) = records.last()
        {
            let again = Record { offset: i as i64, ..last.clone() };
            records.push(again);
            continue;
        }
        let user = format!("u{}", raw.user);
        let (kind, value) = kinds[usize::from(raw.kind)];
        let interaction = Interaction {
            event_id: format!("e{i}"),
            user_id: user.clone(),
            item_id: format!("i{}", raw.item),
            kind: kind.to_owned(),
            value,
            impression_id: None,
            // Two thirds in order, the rest up to 14 minutes late: beyond `lateness` too.
            event_time: if i % 3 == 0 { now - raw.delay } else { now },
        };
        records.push(Record {
            partition: Partitioner::Murmur2.partition(user.as_bytes(), PARTITIONS),
            offset: i as i64,
            timestamp: Some(now),
            key: Some(user.into_bytes()),
            value: Some(interaction.encode()),
            framed: None,
            headers: Vec::new(),
        });
    }
    records
}

/// Accepted events with the maxima after each.
fn accepted(records: &[Record]) -> Vec<(Event, Vec<i64>)> {
    let mut judges: Vec<Accept> = (0..PARTITIONS).map(|p| Accept::new(semantics(), p, PARTITIONS)).collect();
    let mut events = Vec::new();
    for record in records {
        if let Judged::Accepted(event) = judges[record.partition as usize].judge(record, Format::Avro) {
            events.push((event, judges.iter().map(Accept::maximum).collect()));
        }
    }
    events
}

type Newest = BTreeMap<Id, History>;
type Found = (Newest, Vec<Arc<Example>>, Vec<u64>);

/// Runs the operator over epochs and gives the accumulated output and the events by worker.
fn run(workers: usize, epochs: Vec<(Vec<Event>, Vec<i64>)>) -> Found {
    let out: Arc<Mutex<Vec<(Output, isize)>>> = Arc::default();
    let sink = out.clone();
    let counts = timely::execute(timely::Config::process(workers), move |worker| {
        let (mut events, mut clocks) = (InputSession::new(), InputSession::new());
        let mut recovery = InputSession::new();
        let (taken, sink) = (Rc::new(Cell::new(0)), sink.clone());
        let (count, probe) = (taken.clone(), timely::dataflow::ProbeHandle::new());
        worker.dataflow::<u64, _, _>(|scope| {
            let found = history(
                events.to_collection(scope),
                clocks.to_collection(scope),
                recovery.to_collection(scope),
                semantics(),
                taken,
            );
            found
                .inspect(move |(output, _, diff): &(Output, u64, isize)| {
                    sink.lock().unwrap().push((output.clone(), *diff));
                })
                .probe_with(&probe);
        });
        for (i, (batch, maxima)) in epochs.iter().enumerate() {
            let epoch = i as u64 + 1;
            events.advance_to(epoch);
            clocks.advance_to(epoch);
            for (j, event) in batch.iter().enumerate() {
                if j % worker.peers() == worker.index() {
                    events.insert(event.clone());
                }
            }
            let now = maxima.iter().copied().max().unwrap();
            let clock = Clock {
                maxima: maxima.as_slice().into(),
                now,
                publish: true,
                actives: Arc::default(),
                shadow: None,
            };
            clocks.insert((worker.index() as u64, clock));
            events.advance_to(epoch + 1);
            clocks.advance_to(epoch + 1);
            recovery.advance_to(epoch + 1);
            recovery.flush();
            events.flush();
            clocks.flush();
            worker.step_while(|| probe.less_than(&(epoch + 1)));
        }
        count.get()
    })
    .unwrap()
    .join()
    .into_iter()
    .map(Result::unwrap)
    .collect();
    let mut all = std::mem::take(&mut *out.lock().unwrap());
    consolidate(&mut all);
    let (mut newest, mut examples) = (Newest::new(), Vec::new());
    for (output, diff) in all {
        assert_eq!(diff, 1, "accumulated output stands once: {output:?}");
        match output {
            Output::Newest(user, history) => assert!(newest.insert(user, history).is_none()),
            Output::Example(example) => examples.push(example),
            Output::Saved(saved) => panic!("nobody asked: {saved:?}"),
        }
    }
    examples.sort();
    (newest, examples, counts)
}

/// The same by differential's own operators, over the set of events: every event is kept, every
/// history is reduced from all of them.
fn differential(
    events: Vec<Event>,
    examples: Vec<Arc<Example>>,
) -> (Newest, BTreeMap<(Id, i64, Id), History>) {
    type Both = (Vec<((Id, Vec<Entry>), isize)>, Vec<(((Id, i64, Id), Vec<Entry>), isize)>);
    let out: Arc<Mutex<Both>> = Arc::default();
    let sink = out.clone();
    let length = semantics().history_length;
    timely::execute_directly(move |worker| {
        let (mut input, mut asks) = (InputSession::new(), InputSession::new());
        worker.dataflow::<u64, _, _>(|scope| {
            let events = input.to_collection(scope).filter(|event: &Event| event.engagement);
            let entries = events.map(|event| (event.user, event.entry));
            let newest = move |_: &_, all: &[(&Entry, isize)], out: &mut Vec<(Vec<Entry>, isize)>| {
                let skip = all.len().saturating_sub(length);
                out.push((all[skip..].iter().map(|(entry, _)| (*entry).clone()).collect(), 1));
            };
            let (first, second) = (sink.clone(), sink.clone());
            entries.clone().reduce(newest).inspect(move |(datum, _, diff)| {
                first.lock().unwrap().0.push((datum.clone(), *diff));
            });
            asks.to_collection(scope)
                .map(|example: Arc<Example>| {
                    let identity = &example.identity;
                    (identity.user.clone(), (identity.event_time, identity.event_id.clone()))
                })
                .join(entries)
                .filter(|(_, ((time, _), entry))| entry.event_time < *time)
                .map(|(user, ((time, id), entry))| ((user, time, id), entry))
                .reduce(move |_, all, out: &mut Vec<(Vec<Entry>, isize)>| {
                    let skip = all.len().saturating_sub(length);
                    out.push((all[skip..].iter().map(|(entry, _)| (*entry).clone()).collect(), 1));
                })
                .inspect(move |(datum, _, diff)| second.lock().unwrap().1.push((datum.clone(), *diff)));
        });
        events.into_iter().for_each(|event| input.insert(event));
        examples.into_iter().for_each(|example| asks.insert(example));
    });
    let (mut newest, mut before) = std::mem::take(&mut *out.lock().unwrap());
    consolidate(&mut newest);
    consolidate(&mut before);
    (
        newest.into_iter().map(|((user, entries), _)| (user, entries.into())).collect(),
        before.into_iter().map(|((ask, entries), _)| (ask, entries.into())).collect(),
    )
}

fn epochs(events: &[(Event, Vec<i64>)], size: usize) -> Vec<(Vec<Event>, Vec<i64>)> {
    events
        .chunks(size)
        .map(|chunk| {
            (chunk.iter().map(|(event, _)| event.clone()).collect(), chunk.last().unwrap().1.clone())
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_differential_for_any_order_batching_and_workers(raws in raws(), size in 1..40usize) {
        let events = accepted(&records(&raws));
        prop_assume!(!events.is_empty());
        let (newest, examples, _) = run(1, epochs(&events, size));
        let plain: Vec<Event> = events.iter().map(|(event, _)| event.clone()).collect();
        let (oracle, before) = differential(plain, examples.clone());
        prop_assert_eq!(&newest, &oracle);
        for example in &examples {
            let ask = (example.identity.user.clone(), example.identity.event_time, example.identity.event_id.clone());
            prop_assert_eq!(&example.history, &before.get(&ask).cloned().unwrap_or_default());
        }
        // One epoch, an epoch an event, and the set in order of time: the same collections.
        let maxima = events.last().unwrap().1.clone();
        let mut sorted: Vec<(Event, Vec<i64>)> =
            events.iter().map(|(event, _)| (event.clone(), maxima.clone())).collect();
        sorted.sort();
        for (workers, epochs) in [(1, epochs(&events, 1)), (2, epochs(&events, size)), (4, epochs(&events, events.len())), (2, epochs(&sorted, sorted.len()))] {
            let (other_newest, other_examples, _) = run(workers, epochs);
            prop_assert_eq!(&newest, &other_newest);
            prop_assert_eq!(&examples, &other_examples);
        }
    }
}

#[test]
fn both_of_two_workers_take_a_fair_share() {
    let raws: Vec<Raw> = (0..600)
        .map(|i| Raw {
            user: (i % 97) as u8,
            item: (i % 4) as u8,
            kind: (i % 6) as u8,
            step: 1_000,
            delay: 0,
            repeat: false,
        })
        .collect();
    let events = accepted(&records(&raws));
    let (_, _, counts) = run(2, epochs(&events, 50));
    let total: u64 = counts.iter().sum();
    assert_eq!(total as usize, events.len());
    assert!(counts.iter().all(|count| 4 * count > total), "shares {counts:?} of {total}");
}
