//! Figures of finished cells: what the scores of the test part are worth.

use super::arms::{Arm, Cot, PAIRS};
use super::cell::Cell;
use super::dataset::{Part, Prepared};
use super::delay::Delay;
use super::failed;
use super::fit::widened;
use super::report::{Figure, Gains, Pair, PerTokens, Row, SegmentFigures};
use ictflow_connectors::Result;
use ictflow_operators::ranking::backbones::Kind;
use ictflow_operators::ranking::bootstrap::{Paired, Rounds};
use ictflow_operators::ranking::metrics::{auc, gauc, log_loss, rela_impr, spread};
use ictflow_operators::ranking::segments::{SLICES, Segment, segments};

/// What is known of the test's samples.
pub struct Test {
    users: Vec<u32>,
    labels: Vec<bool>,
    segments: Vec<Segment>,
}

/// The scores of one arm, by seed.
type Scores = Vec<Vec<f64>>;

/// The finished cells of one backbone at one delay.
pub struct Finished {
    /// How much later than its event a label was known.
    pub delay: Delay,
    /// The backbone.
    pub backbone: Kind,
    /// By arm the cells of all seeds.
    pub arms: Vec<(&'static str, Vec<Cell>)>,
}

impl Finished {
    /// The scores of an arm that is there.
    fn scores(&self, arm: &str) -> Option<Scores> {
        let (_, cells) = self.arms.iter().find(|(name, _)| *name == arm)?;
        Some(cells.iter().map(|cell| widened(&cell.scores)).collect())
    }
}

impl Test {
    /// The test of a data set.
    pub fn of(prepared: &Prepared) -> Self {
        let Prepared { data, split, histories, .. } = prepared;
        Test {
            users: prepared.users(Part::Test),
            labels: prepared.labels(Part::Test),
            segments: segments(data, split, histories, &split.test),
        }
    }

    /// How many samples it has.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// How many users it has.
    pub fn count_users(&self) -> usize {
        let mut users = self.users.clone();
        users.sort_unstable();
        users.dedup();
        users.len()
    }

    /// The rows of one backbone, compared with the arm `reference` where it is there.
    ///
    /// # Errors
    /// `Fatal` where a metric that every part has can't be computed.
    pub fn rows(&self, finished: &Finished, reference: &str) -> Result<Vec<Row>> {
        let base = finished.scores(reference);
        let base_auc = base.as_ref().and_then(|base| {
            mean(base.iter().map(|scores| auc(&self.labels, scores).ok()).collect::<Vec<_>>())
        });
        let backbone = finished.backbone.name();
        let mut rows = Vec::new();
        for (arm, cells) in &finished.arms {
            let context = |error: &dyn std::fmt::Display| failed(format!("measure {backbone} {arm}"), error);
            let scores: Scores = cells.iter().map(|cell| widened(&cell.scores)).collect();
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
                label_delay: finished.delay,
                backbone,
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

    /// The pairs of arms that are both there; none where a metric has no value. `tokens` were paid for the
    /// LLM's texts.
    pub fn pairs(&self, finished: &Finished, tokens: i64) -> Vec<Pair> {
        let pair = |(arm, against): &(&'static str, &'static str)| {
            let gains = self.gains(&finished.scores(against)?, &finished.scores(arm)?)?;
            let shuffled =
                Arm::named(against).and_then(|arm| arm.demonstrations()) == Some(Some(Cot::Shuffled));
            let thousands = tokens as f64 / 1_000.0;
            let per_thousand_tokens = (shuffled && tokens > 0).then(|| PerTokens {
                auc: gains.auc.difference / thousands,
                gauc: gains.gauc.difference / thousands,
            });
            Some(Pair {
                per_thousand_tokens,
                label_delay: finished.delay,
                backbone: finished.backbone.name(),
                arm,
                against,
                gains,
            })
        };
        PAIRS.iter().filter_map(pair).collect()
    }

    /// The differences between two arms; `None` where a metric has no value.
    fn gains(&self, base: &[Vec<f64>], other: &[Vec<f64>]) -> Option<Gains> {
        fn lists(all: &[Vec<f64>]) -> Vec<&[f64]> {
            all.iter().map(Vec::as_slice).collect()
        }
        let paired = Paired::new(&self.users, &self.labels).ok()?;
        paired.compare(&lists(base), &lists(other), Rounds::default()).ok().map(Gains::from)
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
