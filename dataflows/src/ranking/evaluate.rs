//! The evaluation: every arm on every backbone with every seed, at every label delay, measured side by side.
//!
//! Each cell trains on the training part, stops by the validation part, and scores the test part once, at
//! its end. Figures are means over seeds; differences are to the arm `strong` (to the first arm where that one
//! isn't asked for) at the same delay, with intervals by a bootstrap over the test's users.

use super::arms::{Arm, Cot, STRONG};
use super::cell::{Cell, Key};
use super::cots::Cots;
use super::dataset::{Part, Prepared};
use super::delay::Delay;
use super::demonstrations::{DemonstrationColumns, Demonstrations};
use super::failed;
use super::fit::{Material, Training, fit, predict};
use super::measure::{Finished, Test};
use super::model::{Model, Sizes};
use super::neighbours::{Neighbours, Selecting};
use super::report::Report;
use super::tensors::{Columns, NeighbourColumns, Retrieved, Vocabularies};
use crate::machine;
use ictflow_connectors::{Error, Result};
use ictflow_operators::ranking::backbones::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rows of the table, in this order.
    pub arms: Vec<Arm>,
    /// The backbones, in this order.
    pub backbones: Vec<Kind>,
    /// The label delays, in this order: all of the above at each.
    pub delays: Vec<Delay>,
    /// Seeds 1 to this.
    pub seeds: u64,
    /// How large each model is.
    pub sizes: Sizes,
    /// How each model is trained.
    pub training: Training,
    /// Cells that are trained at once. It decides no figure.
    pub jobs: usize,
    /// Where cells, curves and tables stand.
    pub out: PathBuf,
}

/// A data set as tensors at one label delay.
struct Tensors<'a> {
    prepared: &'a Prepared,
    cots: &'a Cots,
    vocabularies: Vocabularies,
    delay: Delay,
    columns: Columns,
    neighbours: BTreeMap<Selecting, NeighbourColumns>,
    demonstrations: BTreeMap<Option<Cot>, DemonstrationColumns>,
    valid_users: Vec<u32>,
    valid_labels: Vec<bool>,
}

impl<'a> Tensors<'a> {
    fn new(prepared: &'a Prepared, cots: &'a Cots) -> Result<Self> {
        let vocabularies = Vocabularies::of(prepared);
        let columns = Columns::of(prepared, &vocabularies).map_err(laid_out)?;
        Ok(Tensors {
            prepared,
            cots,
            vocabularies,
            delay: Delay::NONE,
            columns,
            neighbours: BTreeMap::new(),
            demonstrations: BTreeMap::new(),
            valid_users: prepared.users(Part::Valid),
            valid_labels: prepared.labels(Part::Valid),
        })
    }

    /// Goes over to a delay, and makes what arms read at it.
    fn prepare<'k>(&mut self, delay: Delay, arms: impl Iterator<Item = &'k Arm>) -> Result<()> {
        if delay != self.delay {
            self.columns = self.columns.delayed(self.prepared, delay).map_err(laid_out)?;
            self.neighbours.clear();
            self.demonstrations.clear();
            self.delay = delay;
        }
        for arm in arms {
            if arm.neighbours() && !self.neighbours.contains_key(&arm.selecting) {
                let neighbours = Neighbours::of(self.prepared, arm.selecting.options(delay))?;
                let neighbours = NeighbourColumns::of(neighbours, &self.vocabularies).map_err(laid_out)?;
                self.neighbours.insert(arm.selecting, neighbours);
            }
            if let Some(cot) = arm.demonstrations().filter(|cot| !self.demonstrations.contains_key(cot)) {
                let columns = self.demonstrated(cot)?;
                self.demonstrations.insert(cot, columns);
            }
        }
        Ok(())
    }

    /// The demonstrations with a kind of CoTs. Which they are is found once for all kinds.
    fn demonstrated(&self, cot: Option<Cot>) -> Result<DemonstrationColumns> {
        let vectors = cot.and_then(|cot| self.cots.vectors(cot));
        match (self.demonstrations.values().next(), vectors) {
            (Some(columns), Some(vectors)) => columns.with(vectors).map_err(laid_out),
            // An arm without CoTs doesn't read those that may be in it.
            (Some(columns), None) => Ok(columns.clone()),
            (None, vectors) => {
                let demonstrations = Demonstrations::of(self.prepared, self.cots, self.delay)?;
                DemonstrationColumns::of(demonstrations, self.prepared, vectors).map_err(laid_out)
            }
        }
    }

    /// What the training of an arm reads, once it is made.
    fn material(&self, arm: &Arm) -> Material<'_> {
        Material {
            columns: &self.columns,
            retrieved: Retrieved {
                neighbours: self.neighbours.get(&arm.selecting).filter(|_| arm.neighbours()),
                demonstrations: arm.demonstrations().and_then(|cot| self.demonstrations.get(&cot)),
            },
            valid_users: &self.valid_users,
            valid_labels: &self.valid_labels,
        }
    }

    /// Trains and scores a cell.
    fn cell(&self, key: &Key, options: &Options) -> Result<Cell> {
        let name = key.name();
        let context = |error: &dyn std::fmt::Display| failed(format!("train {name}"), error);
        let material = self.material(&key.arm);
        let model = Model::new(key.backbone, key.arm, &options.sizes, material.columns, key.seed);
        let model = model.map_err(|e| context(&e))?;
        let curve = fit(&model, &material, &options.training, key.seed, &name).map_err(|e| context(&e))?;
        let scores = predict(&model, &material, Part::Test).map_err(|e| context(&e))?;
        Cell::new(key, machine::here(), curve, scores)
    }
}

fn laid_out(error: candle_core::Error) -> Error {
    failed("lay out the data set", error)
}

/// The cells of an evaluation, counted through.
struct Cells<'a> {
    options: &'a Options,
    /// Samples of the test.
    samples: usize,
    counted: AtomicUsize,
    all: usize,
}

impl Cells<'_> {
    fn say(&self, key: &Key, word: &str) {
        let number = self.counted.fetch_add(1, Ordering::Relaxed) + 1;
        eprintln!("cell {number} of {}, {}: {word}", self.all, key.name());
    }

    /// The cells of some keys in their order: read back where they are finished, else trained.
    fn of<'a>(
        &self,
        keys: &[Key],
        delay: Delay,
        (prepared, cots): (&'a Prepared, &'a Cots),
        tensors: &mut Option<Tensors<'a>>,
    ) -> Result<Vec<Cell>> {
        let mut cells: Vec<Option<Cell>> = Vec::new();
        for key in keys {
            cells.push(Cell::read(&self.options.out, key, self.samples)?);
            if cells.last().is_some_and(Option::is_some) {
                self.say(key, "finished before");
            }
        }
        let missing: Vec<usize> = (0..keys.len()).filter(|place| cells[*place].is_none()).collect();
        if !missing.is_empty() {
            let tensors = match tensors {
                Some(tensors) => tensors,
                None => tensors.insert(Tensors::new(prepared, cots)?),
            };
            tensors.prepare(delay, missing.iter().map(|place| &keys[*place].arm))?;
            self.train(keys, &missing, tensors, &mut cells)?;
        }
        Ok(cells.into_iter().flatten().collect())
    }

    /// Trains the missing ones, some at once. The first failure lets those under way end and begins no other.
    fn train(
        &self,
        keys: &[Key],
        missing: &[usize],
        tensors: &Tensors<'_>,
        cells: &mut [Option<Cell>],
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let ended = Mutex::new((cells, Ok(())));
        let work = || {
            while let Some(place) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let key = &keys[*place];
                self.say(key, "begins");
                let made = tensors.cell(key, self.options);
                let made = made.and_then(|cell| cell.write(&self.options.out, key).map(|()| cell));
                let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                match made {
                    Ok(cell) => ended.0[*place] = Some(cell),
                    Err(error) => {
                        next.store(missing.len(), Ordering::Relaxed);
                        ended.1 = Err(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.clamp(1, missing.len()) {
                scope.spawn(work);
            }
        });
        ended.into_inner().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// Trains what isn't finished yet, and measures all.
///
/// # Errors
/// `Fatal` where an arm needs texts that aren't there, a training diverges, or a file can't be written.
pub fn evaluate(prepared: &Prepared, cots: &Cots, options: &Options) -> Result<Report> {
    for arm in options.arms.iter().filter(|arm| arm.reads_texts()) {
        prepared.need_texts(arm.name)?;
    }
    let mut tensors = None;
    let test = Test::of(prepared);
    let reference = options.arms.iter().find(|arm| arm.name == STRONG).or(options.arms.first());
    let reference = reference.map_or("", |arm| arm.name);
    let of_delay = options.backbones.len() * options.arms.len() * options.seeds as usize;
    let cells = Cells {
        options,
        samples: test.len(),
        counted: AtomicUsize::new(0),
        all: of_delay * options.delays.len(),
    };
    let (mut rows, mut pairs, mut machines) = (Vec::new(), Vec::new(), BTreeSet::new());
    for delay in &options.delays {
        let mut keys = Vec::with_capacity(of_delay);
        for backbone in &options.backbones {
            for arm in &options.arms {
                let trained = (&options.sizes, options.training);
                let key = |seed| Key::of((prepared, cots), *backbone, *arm, trained, (*delay, seed));
                keys.extend((1..=options.seeds).map(key));
            }
        }
        let mut made = cells.of(&keys, *delay, (prepared, cots), &mut tensors)?.into_iter();
        for backbone in &options.backbones {
            let arms: Vec<(&str, Vec<Cell>)> = options
                .arms
                .iter()
                .map(|arm| (arm.name, made.by_ref().take(options.seeds as usize).collect()))
                .collect();
            machines.extend(arms.iter().flat_map(|(_, cells)| cells).map(|cell| cell.machine.clone()));
            let finished = Finished { delay: *delay, backbone: *backbone, arms };
            rows.extend(test.rows(&finished, reference)?);
            pairs.extend(test.pairs(&finished, cots.figures.tokens_in + cots.figures.tokens_out));
        }
    }
    let split = &prepared.split;
    Ok(Report {
        data: prepared.digest.hex(),
        protocol: prepared.protocol.name(),
        train: split.train.len(),
        valid: split.valid.len(),
        test: split.test.len(),
        test_users: test.count_users(),
        seeds: options.seeds,
        sizes: options.sizes.clone(),
        training: options.training,
        encoder: prepared.encoder.clone(),
        machines: machines.into_iter().collect(),
        pool: (cots.figures.demonstrations > 0).then(|| cots.figures.clone()),
        reference,
        rows,
        pairs,
    })
}
