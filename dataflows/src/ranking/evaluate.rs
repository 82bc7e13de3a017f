//! The evaluation: every arm on every backbone with every seed, measured side by side.
//!
//! Each cell trains on the training part, stops by the validation part, and scores the test part once, at
//! its end. Figures are means over seeds; differences are to the arm `strong` (to the first arm where that one
//! isn't asked for), with intervals by a bootstrap over the test's users.

use super::arms::{Arm, STRONG};
use super::cell::{Cell, Key};
use super::dataset::{Part, Prepared};
use super::failed;
use super::fit::{Material, Training, fit, predict, widened};
use super::model::{Model, Sizes};
use super::neighbours::{Neighbours, Selecting};
use super::tensors::{Columns, NeighbourColumns, Vocabularies};
use ictflow_connectors::Result;
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::bootstrap::{Comparison, Difference, Paired, Rounds};
use ictflow_operators::ranking::metrics::{Spread, auc, gauc, log_loss, rela_impr, spread};
use ictflow_operators::ranking::segments::{SLICES, Segment, segments};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rows of the table, in this order.
    pub arms: Vec<Arm>,
    /// The backbones, in this order.
    pub backbones: Vec<Kind>,
    /// Seeds 1 to this.
    pub seeds: u64,
    /// How large each model is.
    pub sizes: Sizes,
    /// How each model is trained.
    pub training: Training,
    /// Where cells, curves and tables stand.
    pub out: PathBuf,
}

/// Mean and deviation over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// The sample deviation; `None` for one seed.
    pub deviation: Option<f64>,
}

/// A difference to the reference arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// This arm's figure minus the reference's.
    pub difference: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The differences to the reference arm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gains {
    /// AUC.
    pub auc: Gain,
    /// GAUC.
    pub gauc: Gain,
    /// LogLoss: less is better.
    pub log_loss: Gain,
}

/// The figures of one segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentFigures {
    /// Its name.
    pub name: &'static str,
    /// Its test samples.
    pub samples: usize,
    /// AUC; `None` where a class is missing.
    pub auc: Option<f64>,
    /// GAUC; `None` where no user has both classes.
    pub gauc: Option<f64>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The backbone.
    pub backbone: &'static str,
    /// The arm.
    pub arm: &'static str,
    /// Validation AUC of the weights that were kept.
    pub valid_auc: Figure,
    /// AUC.
    pub auc: Figure,
    /// GAUC; `None` where no user has both classes.
    pub gauc: Option<Figure>,
    /// LogLoss.
    pub log_loss: Figure,
    /// RelaImpr over the reference, percent.
    pub rela_impr: Option<f64>,
    /// Differences to the reference; `None` for itself, and where a metric has no value.
    pub gains: Option<Gains>,
    /// By segment.
    pub segments: Vec<SegmentFigures>,
}

/// The table, with what it stands on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The digest of the data set.
    pub data: String,
    /// The protocol.
    pub protocol: &'static str,
    /// Training samples.
    pub train: usize,
    /// Validation samples.
    pub valid: usize,
    /// Test samples.
    pub test: usize,
    /// Users of the test.
    pub test_users: usize,
    /// Seeds 1 to this.
    pub seeds: u64,
    /// How large models were.
    pub sizes: Sizes,
    /// How they were trained.
    pub training: Training,
    /// The encoder of texts.
    pub encoder: String,
    /// The arm that others are compared with.
    pub reference: &'static str,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A data set as tensors, made when the first cell that isn't finished asks for it.
struct Tensors<'a> {
    prepared: &'a Prepared,
    vocabularies: Vocabularies,
    columns: Option<Columns>,
    neighbours: BTreeMap<Selecting, NeighbourColumns>,
    valid_users: Vec<u32>,
    valid_labels: Vec<bool>,
}

impl<'a> Tensors<'a> {
    fn new(prepared: &'a Prepared) -> Self {
        Tensors {
            prepared,
            vocabularies: Vocabularies::of(prepared),
            columns: None,
            neighbours: BTreeMap::new(),
            valid_users: prepared.users(Part::Valid),
            valid_labels: prepared.labels(Part::Valid),
        }
    }

    /// What the training of an arm reads.
    fn material(&mut self, arm: &Arm) -> Result<Material<'_>> {
        let columns = match self.columns.take() {
            Some(columns) => columns,
            None => Columns::of(self.prepared, &self.vocabularies)
                .map_err(|error| failed("lay out the data set", error))?,
        };
        let columns = &*self.columns.insert(columns);
        if arm.neighbours() && !self.neighbours.contains_key(&arm.selecting) {
            let neighbours = Neighbours::of(self.prepared, arm.selecting.options())?;
            let neighbours = NeighbourColumns::of(neighbours, &self.vocabularies)
                .map_err(|error| failed("lay out neighbours", error))?;
            self.neighbours.insert(arm.selecting, neighbours);
        }
        Ok(Material {
            columns,
            neighbours: self.neighbours.get(&arm.selecting).filter(|_| arm.neighbours()),
            valid_users: &self.valid_users,
            valid_labels: &self.valid_labels,
        })
    }

    /// Trains and scores a cell.
    fn cell(&mut self, key: &Key, sizes: &Sizes, training: &Training) -> Result<Cell> {
        let name = key.name();
        let context = |error: &dyn std::fmt::Display| failed(format!("train {name}"), error);
        let material = self.material(&key.arm)?;
        let model = Model::new(key.backbone, key.arm, sizes, material.columns, key.seed);
        let model = model.map_err(|e| context(&e))?;
        let curve = fit(&model, &material, training, key.seed, &name).map_err(|e| context(&e))?;
        let scores = predict(&model, &material, Part::Test).map_err(|e| context(&e))?;
        Cell::new(key, curve, scores)
    }
}

/// Trains what isn't finished yet, and measures all.
///
/// # Errors
/// `Fatal` where an arm needs texts that aren't there, a training diverges, or a file can't be written.
pub fn evaluate(prepared: &Prepared, options: &Options) -> Result<Report> {
    for arm in options.arms.iter().filter(|arm| arm.text) {
        prepared.need_texts(arm.name)?;
    }
    let mut tensors = Tensors::new(prepared);
    let test = Test::of(prepared);
    let reference = options.arms.iter().find(|arm| arm.name == STRONG).or(options.arms.first());
    let reference = reference.map_or("", |arm| arm.name);
    let cells = options.backbones.len() * options.arms.len() * options.seeds as usize;
    let mut done = 0;
    let mut rows = Vec::new();
    for backbone in &options.backbones {
        let mut of_arms = Vec::new();
        for arm in &options.arms {
            let mut of_seeds = Vec::new();
            for seed in 1..=options.seeds {
                let key = Key::of(prepared, *backbone, *arm, (&options.sizes, options.training), seed);
                done += 1;
                let found = Cell::read(&options.out, &key, test.labels.len())?;
                let word = if found.is_some() { "finished before" } else { "begins" };
                eprintln!("cell {done} of {cells}, {}: {word}", key.name());
                let cell = match found {
                    Some(cell) => cell,
                    None => {
                        let cell = tensors.cell(&key, &options.sizes, &options.training)?;
                        cell.write(&options.out, &key)?;
                        cell
                    }
                };
                of_seeds.push(cell);
            }
            of_arms.push((arm.name, of_seeds));
        }
        rows.extend(test.rows(*backbone, reference, &of_arms)?);
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
        reference,
        rows,
    })
}

/// What is known of the test's samples.
struct Test {
    users: Vec<u32>,
    labels: Vec<bool>,
    segments: Vec<Segment>,
}

impl Test {
    fn of(prepared: &Prepared) -> Self {
        let Prepared { data, split, histories, .. } = prepared;
        Test {
            users: prepared.users(Part::Test),
            labels: prepared.labels(Part::Test),
            segments: segments(data, split, histories, &split.test),
        }
    }

    fn count_users(&self) -> usize {
        let mut users = self.users.clone();
        users.sort_unstable();
        users.dedup();
        users.len()
    }

    /// The rows of one backbone, from the cells of its arms.
    fn rows(&self, backbone: Kind, reference: &str, arms: &[(&'static str, Vec<Cell>)]) -> Result<Vec<Row>> {
        let scores = |cells: &[Cell]| cells.iter().map(|cell| widened(&cell.scores)).collect::<Vec<_>>();
        let base = arms.iter().find(|(arm, _)| *arm == reference).map(|(_, cells)| scores(cells));
        let base_auc = base.as_ref().and_then(|base| {
            mean(base.iter().map(|scores| auc(&self.labels, scores).ok()).collect::<Vec<_>>())
        });
        let mut rows = Vec::new();
        for (arm, cells) in arms {
            let context =
                |error: &dyn std::fmt::Display| failed(format!("measure {} {arm}", backbone.name()), error);
            let scores = scores(cells);
            let figure = |metric: &dyn Fn(&[f64]) -> Result<f64>| -> Result<Figure> {
                let values = scores.iter().map(|scores| metric(scores)).collect::<Result<Vec<_>>>()?;
                spread(&values).map(Figure::from).map_err(|e| context(&e))
            };
            let labels = &self.labels;
            let auc_figure = figure(&|scores| auc(labels, scores).map_err(|e| context(&e)))?;
            let log_loss = figure(&|scores| log_loss(labels, scores).map_err(|e| context(&e)))?;
            let gaucs: Option<Vec<f64>> = scores
                .iter()
                .map(|scores| gauc(&self.users, labels, scores).ok().map(|gauc| gauc.value))
                .collect();
            let valid: Vec<f64> =
                cells.iter().filter_map(|cell| cell.curve.best().map(|check| check.auc)).collect();
            let is_reference = *arm == reference;
            rows.push(Row {
                backbone: backbone.name(),
                arm,
                valid_auc: spread(&valid).map(Figure::from).map_err(|e| context(&e))?,
                rela_impr: base_auc
                    .filter(|_| !is_reference)
                    .and_then(|base| rela_impr(auc_figure.mean, base).ok()),
                auc: auc_figure,
                gauc: gaucs.and_then(|gaucs| spread(&gaucs).ok()).map(Figure::from),
                log_loss,
                gains: base.as_ref().filter(|_| !is_reference).and_then(|base| self.gains(base, &scores)),
                segments: self.segment_figures(&scores),
            });
        }
        Ok(rows)
    }

    /// The differences to the reference; `None` where a metric has no value.
    fn gains(&self, base: &[Vec<f64>], other: &[Vec<f64>]) -> Option<Gains> {
        fn lists(all: &[Vec<f64>]) -> Vec<&[f64]> {
            all.iter().map(Vec::as_slice).collect()
        }
        let paired = Paired::new(&self.users, &self.labels).ok()?;
        let Comparison { auc, gauc, log_loss } =
            paired.compare(&lists(base), &lists(other), Rounds::default()).ok()?;
        Some(Gains { auc: auc.into(), gauc: gauc.into(), log_loss: log_loss.into() })
    }

    /// The means over seeds within each segment.
    fn segment_figures(&self, scores: &[Vec<f64>]) -> Vec<SegmentFigures> {
        let of_slice = |(name, within): &(&'static str, fn(&Segment) -> bool)| {
            let rows: Vec<usize> =
                (0..self.labels.len()).filter(|row| within(&self.segments[*row])).collect();
            let labels: Vec<bool> = rows.iter().map(|row| self.labels[*row]).collect();
            let users: Vec<u32> = rows.iter().map(|row| self.users[*row]).collect();
            let (mut aucs, mut gaucs) = (Vec::new(), Vec::new());
            for scores in scores {
                let scores: Vec<f64> = rows.iter().map(|row| scores[*row]).collect();
                aucs.push(auc(&labels, &scores).ok());
                gaucs.push(gauc(&users, &labels, &scores).ok().map(|gauc| gauc.value));
            }
            SegmentFigures { name, samples: rows.len(), auc: mean(aucs), gauc: mean(gaucs) }
        };
        SLICES.iter().map(of_slice).collect()
    }
}

/// The mean; `None` where one is missing or there are none.
fn mean(values: Vec<Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.into_iter().collect::<Option<_>>()?;
    spread(&values).ok().map(|spread| spread.mean)
}

impl From<Spread> for Figure {
    fn from(spread: Spread) -> Self {
        Figure { mean: spread.mean, deviation: spread.deviation }
    }
}

impl From<Difference> for Gain {
    fn from(difference: Difference) -> Self {
        let Difference { difference, low, high, .. } = difference;
        Gain { difference, low, high }
    }
}
