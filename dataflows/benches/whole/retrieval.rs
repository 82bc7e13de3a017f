//! Retrieval alone: what a demonstration that arrives, one that leaves and a click cost.
//!
//! The operator's step is called as the dataflow calls it, on one thread. The costs grow with the
//! demonstrations (a click), and with live users, live items and pairs (a demonstration).

use crate::ict::item;
use crate::report::{LONG_RUNS, Report, SHORT_RUNS, number};
use crate::script::{Words, Zipf, unit_vector};
use crate::{Arguments, Fallible};
use fastrand::Rng;
use ictflow_operators::clock::Clock;
use ictflow_operators::retrieval::{Input, PairUpdate, Retrieval, Search};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::demonstration::Demonstration;
use ictflow_schemas::feature::point_id;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::{Entry, History, Identity, Label};
use ictflow_schemas::vector::{VectorSum, quantise};
use std::sync::Arc;
use std::time::Instant;

const USERS: usize = 1_000;
const ITEMS: usize = 2_000;
const PAIRS: usize = 20;
const L: usize = 20;
const K: usize = 4;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let sizes: &[usize] = if arguments.quick { &[500, 5_000] } else { &[500, 5_000, 50_000] };
    for size in sizes {
        let mut stand = Stand::new(*size);
        let conditions = format!(
            "{} demonstrations, {} live pairs, 1,000 users, 2,000 items, 1 thread",
            number(*size as f64),
            number((USERS * PAIRS) as f64)
        );
        let begun = Instant::now();
        let pairs = stand.publish();
        if pairs != USERS * PAIRS {
            return Err(format!("{pairs} pairs came out of {}", USERS * PAIRS).into());
        }
        eprintln!("  {size}: all pairs once in {:.2} s", begun.elapsed().as_secs_f64());
        let (runs, each) = if *size > 5_000 { (LONG_RUNS, 20) } else { (SHORT_RUNS, 100) };
        let mut figure = |what: &str, work: &mut dyn FnMut() -> Fallible<f64>| {
            let runs: Vec<f64> = (0..runs).map(|_| work()).collect::<Fallible<_>>()?;
            report.add("retrieval", what, &conditions, "µs", runs)
        };
        figure("retrieval: a click, 20 pairs", &mut || stand.clicks(each))?;
        figure("retrieval: a demonstration arrives", &mut || stand.arrivals(each))?;
        figure("retrieval: a demonstration leaves", &mut || stand.departures(each))?;
    }
    Ok(())
}

struct Stand {
    rng: Rng,
    zipf: Zipf,
    items: Vec<(Id, Item)>,
    histories: Vec<History>,
    demonstrations: Vec<Arc<Demonstration>>,
    made: i64,
    retrieval: Retrieval,
}

impl Stand {
    fn new(size: usize) -> Self {
        let (mut rng, mut words) = (Rng::with_seed(2), Words::new(2));
        let items: Vec<(Id, Item)> =
            (0..ITEMS).map(|i| (format!("i{i:06}").into(), item(&mut rng, &mut words))).collect();
        let zipf = Zipf::new(ITEMS);
        let mut stand = Stand {
            rng,
            zipf,
            items,
            histories: Vec::new(),
            demonstrations: Vec::new(),
            made: 0,
            retrieval: Retrieval::new(Search::Exact, K),
        };
        stand.histories = (0..USERS).map(|_| (0..L as i64).map(|t| stand.entry(t)).collect()).collect();
        stand.demonstrations = (0..size).map(|_| stand.demonstration()).collect();
        stand
    }

    fn entry(&mut self, time: i64) -> Entry {
        Entry {
            event_time: time,
            event_id: format!("e{time:08}").into(),
            item: self.items[self.zipf.draw(&mut self.rng)].0.clone(),
            kind: "click".into(),
            label: Label::Positive,
        }
    }

    fn demonstration(&mut self) -> Arc<Demonstration> {
        self.made += 1;
        let draw = |stand: &mut Self| stand.items[stand.zipf.draw(&mut stand.rng)].clone();
        let (id, state) = draw(self);
        let history: Vec<(Id, Option<Item>)> =
            (0..L).map(|_| draw(self)).map(|(id, item)| (id, Some(item))).collect();
        let vectors = history.iter().filter_map(|(_, item)| item.as_ref()?.vector.as_ref());
        let text = VectorSum::over(vectors.map(|vector| &*vector.vector));
        let user = format!("d{:06}", self.rng.u32(..100_000)).into();
        let identity = Identity { user, event_time: self.made, event_id: "e".into() };
        Arc::new(Demonstration {
            label_time: self.made,
            id: point_id(&identity, "bench"),
            identity,
            item: id,
            positive: self.rng.bool(),
            mean: text.mean(384),
            text,
            history,
            cot: quantise(&unit_vector(&mut self.rng, 384)),
            cot_key: text_digest("key"),
            item_state: state,
            fresh: true,
            cot_created_at: 0,
        })
    }

    fn step(&mut self, mut changes: Vec<(Input, isize)>) -> Vec<PairUpdate> {
        let clock =
            Clock { maxima: [0].into(), now: 0, publish: true, actives: Arc::default(), shadow: None };
        changes.push((Input::Clock(0, clock), 1));
        let mut out = Vec::new();
        self.retrieval.step(changes, &mut out);
        out.into_iter().filter_map(|(output, _)| output.pair()).collect()
    }

    /// Everything at once: gives the pairs that came out.
    fn publish(&mut self) -> usize {
        let mut changes = Vec::new();
        changes.extend(self.items.iter().map(|item| (Input::Item(0, item.clone()), 1)));
        changes.extend(self.demonstrations.iter().map(|c| (Input::Demonstration(0, c.clone()), 1)));
        for user in 0..USERS {
            changes.push((Input::Newest(user_id(user), self.histories[user].clone()), 1));
            // Neighbouring items, so that no pair comes twice; every item is live.
            let first = user * PAIRS;
            let pairs = (first..first + PAIRS).map(|i| self.items[i % ITEMS].0.clone());
            changes.extend(pairs.map(|item| (Input::Pair((user_id(user), item)), 1)));
        }
        self.step(changes).into_iter().filter(|update| update.retrieved.is_some()).count()
    }

    /// Microseconds of one of `count` clicks, each an epoch of its own.
    fn clicks(&mut self, count: usize) -> Fallible<f64> {
        let mut spent = 0.0;
        for _ in 0..count {
            let user = self.rng.usize(..USERS);
            let old = self.histories[user].clone();
            let time = old.last().map_or(0, |entry| entry.event_time) + 1;
            let new: History = old[1..].iter().cloned().chain([self.entry(time)]).collect();
            self.histories[user] = new.clone();
            let changes =
                vec![(Input::Newest(user_id(user), old), -1), (Input::Newest(user_id(user), new), 1)];
            let begun = Instant::now();
            let out = self.step(changes);
            spent += begun.elapsed().as_secs_f64();
            if out.len() != PAIRS {
                return Err(format!("a click touched {} pairs, not {PAIRS}", out.len()).into());
            }
        }
        Ok(spent * 1e6 / count as f64)
    }

    fn arrivals(&mut self, count: usize) -> Fallible<f64> {
        let new: Vec<Arc<Demonstration>> = (0..count).map(|_| self.demonstration()).collect();
        self.demonstrations.extend(new.iter().cloned());
        self.changed(new, 1)
    }

    fn departures(&mut self, count: usize) -> Fallible<f64> {
        let old: Vec<Arc<Demonstration>> = self.demonstrations.drain(..count).collect();
        self.changed(old, -1)
    }

    /// Microseconds of one demonstration, each an epoch of its own.
    fn changed(&mut self, demonstrations: Vec<Arc<Demonstration>>, diff: isize) -> Fallible<f64> {
        let (mut spent, mut touched) = (0.0, 0);
        let count = demonstrations.len();
        for demonstration in demonstrations {
            let begun = Instant::now();
            let out = self.step(vec![(Input::Demonstration(0, demonstration), diff)]);
            spent += begun.elapsed().as_secs_f64();
            touched += out.len();
        }
        if touched == 0 {
            return Err(format!("{count} demonstrations came or left and no pair was touched").into());
        }
        Ok(spent * 1e6 / count as f64)
    }
}

fn user_id(user: usize) -> Id {
    format!("u{user:06}").into()
}
