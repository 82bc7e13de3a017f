//! Neighbours alone: what a label costs, and what a sketch period does.
//!
//! The steps of `sketches` and `neighbours` are called as the dataflow calls them, on one thread: labels come
//! in epochs, each label touches the pairs of its item and of its user. A period is timed apart: then all
//! sketches that changed since the last one are compared anew.

use crate::ict::item;
use crate::report::{LONG_RUNS, Report, SHORT_RUNS, number};
use crate::script::{Words, Zipf};
use crate::{Arguments, Fallible};
use fastrand::Rng;
use ictflow_operators::clock::Clock;
use ictflow_operators::neighbours::{Input, Neighbours};
use ictflow_operators::retrieval::neighbours::Neighbourhood;
use ictflow_operators::retrieval::sketch::Side;
use ictflow_operators::sketches::{self, EffectiveSketches};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::Item;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::example::Verdict;
use ictflow_schemas::history::Identity;
use ictflow_schemas::neighbour::{LabelledExample, RATE_ONE, neighbour_id};
use std::sync::Arc;
use std::time::Instant;

const ITEMS: usize = 2_000;
const PAIRS: usize = 20;

/// Milliseconds between labels: an hour has 3,600 of them.
const STEP_MS: i64 = 1_000;

/// Labels of an epoch.
const EPOCH: usize = 100;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let sizes: &[usize] = if arguments.quick { &[200] } else { &[200, 1_000, 5_000] };
    for users in sizes {
        let mut stand = Stand::new(*users);
        let conditions = format!(
            "{} users, {PAIRS} pairs each, 2,000 items, 64 labels a user before, R 128, M 32, 1 thread",
            number(*users as f64)
        );
        stand.fill(64 * users);
        let pairs = stand.publish()?;
        eprintln!("  {users} users: {pairs} pairs");
        let epochs = if *users > 1_000 { 4 } else { 8 };
        let mut runs = Vec::new();
        for _ in 0..SHORT_RUNS {
            let (mut spent, mut touched) = (0.0, 0);
            for _ in 0..epochs {
                let (seconds, computed) = stand.labels(EPOCH);
                (spent, touched) = (spent + seconds, touched + computed);
            }
            runs.push((spent, touched));
        }
        let labels = (epochs * EPOCH) as f64;
        let by =
            |f: &dyn Fn(f64, f64) -> f64| runs.iter().map(|(s, t)| f(*s, *t as f64)).collect::<Vec<f64>>();
        report.add("neighbours", "neighbours: labels", &conditions, "/s", by(&|s, _| labels / s))?;
        report.add("neighbours", "neighbours: pairs computed", &conditions, "/s", by(&|s, t| t / s))?;
        report.add(
            "neighbours",
            "neighbours: pairs a label touches",
            &conditions,
            "",
            by(&|_, t| t / labels),
        )?;
        let (mut periods, mut touched) = (Vec::new(), Vec::new());
        for _ in 0..LONG_RUNS {
            stand.labels(EPOCH);
            let (seconds, computed) = stand.period();
            periods.push(seconds * 1e3);
            touched.push(computed as f64);
        }
        report.add("neighbours", "neighbours: a sketch period", &conditions, "ms", periods)?;
        report.add("neighbours", "neighbours: pairs a period computes", &conditions, "", touched)?;
    }
    Ok(())
}

struct Stand {
    rng: Rng,
    zipf: Zipf,
    users: usize,
    items: Vec<(Id, Item)>,
    made: u64,
    now: i64,
    period: i64,
    publish: bool,
    sketches: EffectiveSketches,
    neighbours: Neighbours,
}

impl Stand {
    fn new(users: usize) -> Self {
        let (mut rng, mut words) = (Rng::with_seed(2), Words::new(2));
        let items = (0..ITEMS).map(|i| (format!("i{i:06}").into(), item(&mut rng, &mut words))).collect();
        let semantics = Arc::new(Semantics::default());
        let Neighbourhood { sketch_period_ms: period, .. } = semantics.neighbours;
        Stand {
            rng,
            zipf: Zipf::new(ITEMS),
            users,
            items,
            made: 0,
            // Within the first period.
            now: 0,
            period,
            publish: false,
            sketches: EffectiveSketches::new(semantics.neighbours),
            neighbours: Neighbours::new(semantics, Box::new(|_| [].into())),
        }
    }

    fn label(&mut self) -> Arc<LabelledExample> {
        self.made += 1;
        let identity = Identity {
            user: user_id(self.rng.usize(..self.users)),
            event_time: self.now,
            event_id: format!("e{:08}", self.made).into(),
        };
        let verdict = if self.rng.bool() { Verdict::Positive } else { Verdict::Negative };
        Arc::new(LabelledExample {
            label_time: self.now,
            event_time: self.now,
            user: identity.user.clone(),
            event_id: identity.event_id.clone(),
            item: self.items[self.zipf.draw(&mut self.rng)].0.clone(),
            verdict,
            rate: RATE_ONE / 2,
            partition: 0,
            id: neighbour_id(&identity),
        })
    }

    /// One epoch: gives its seconds and how many pairs were computed.
    fn epoch(&mut self, labels: Vec<Arc<LabelledExample>>, mut inputs: Vec<(Input, isize)>) -> (f64, usize) {
        let clock = Clock {
            maxima: [self.now].into(),
            now: self.now,
            publish: self.publish,
            actives: Arc::default(),
            shadow: None,
        };
        let begun = Instant::now();
        let mut sketched = vec![(sketches::Input::Clock(0, clock.clone()), 1)];
        for label in labels {
            for side in [Side::User, Side::Item] {
                sketched.push((sketches::Input::Label(side, label.clone()), 1));
            }
            inputs.push((Input::OfUser(label.clone()), 1));
            inputs.push((Input::OfItem(0, label), 1));
        }
        let (mut effective, mut out) = (Vec::new(), Vec::new());
        self.sketches.step(sketched, &mut effective);
        inputs.extend(effective.into_iter().map(|(sketch, diff)| (Input::Sketch(0, sketch), diff)));
        inputs.push((Input::Clock(0, clock), 1));
        let computed = self.neighbours.step(inputs, &mut out);
        (begun.elapsed().as_secs_f64(), computed)
    }

    /// Labels of before, then a period, so that all sketches are effective.
    fn fill(&mut self, count: usize) {
        let labels = (0..count).map(|_| self.label()).collect();
        let items = self.items.iter().map(|item| (Input::Item(0, item.clone()), 1)).collect();
        self.epoch(labels, items);
        self.period();
    }

    /// All pairs: gives how many.
    fn publish(&mut self) -> Fallible<usize> {
        self.publish = true;
        let mut inputs = Vec::new();
        for user in 0..self.users {
            let first = user * PAIRS;
            let items = (first..first + PAIRS).map(|i| self.items[i % ITEMS].0.clone());
            inputs.extend(items.map(|item| (Input::Pair((user_id(user), item)), 1)));
        }
        let (_, computed) = self.epoch(Vec::new(), inputs);
        match computed == self.users * PAIRS {
            true => Ok(computed),
            false => Err(format!("{computed} pairs came out of {}", self.users * PAIRS).into()),
        }
    }

    /// An epoch of labels that are known in it, within a period.
    fn labels(&mut self, count: usize) -> (f64, usize) {
        let labels = (0..count).map(|_| self.label()).collect();
        self.now += STEP_MS.min(self.period - 1 - self.now.rem_euclid(self.period));
        self.epoch(labels, Vec::new())
    }

    /// The next period begins.
    fn period(&mut self) -> (f64, usize) {
        self.now = (self.now.div_euclid(self.period) + 1) * self.period;
        self.epoch(Vec::new(), Vec::new())
    }
}

fn user_id(user: usize) -> Id {
    format!("u{user:06}").into()
}
