//! Metrics of a ranker: AUC, GAUC, LogLoss, RelaImpr.
//!
//! Rows are given as parallel lists: a label (`true` = 1), a score, for GAUC a user; fewer than 2^32 of them. No metric depends
//! on the order of the rows, but for the last bits of LogLoss's sum.
//!
//! * **AUC** = Σ over (positive, negative) of \[s⁺ > s⁻\] + ½ \[s⁺ = s⁻\], over their number: the area
//!   under the ROC curve, ties by mid-ranks. Counted in integers and divided once.
//! * **GAUC** = Σ n_u AUC_u / Σ n_u over the users with both classes, n_u all rows of user u. A user
//!   with one class has no AUC and is left out; [`Gauc`] says which and how many rows that are.
//! * **LogLoss** = mean of −ln p for label 1 and −ln(1 − p) for label 0, p clamped to
//!   \[[`CLAMP`], 1 − [`CLAMP`]\] as scikit-learn does for doubles.
//! * **RelaImpr** = ((AUC − ½) / (AUC_base − ½) − 1) · 100, in percent.

use std::cmp::Ordering;

/// The least probability that LogLoss takes: the f64 epsilon.
pub const CLAMP: f64 = f64::EPSILON;

/// Why there is no figure.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The lists don't belong together.
    #[error("{labels} labels but {others} {what}: give one of each for every row")]
    Lengths {
        /// Labels.
        labels: usize,
        /// Entries of the other list.
        others: usize,
        /// What the other list is.
        what: &'static str,
    },
    /// Nothing to measure.
    #[error("no rows to measure: check the split and the segment")]
    Empty,
    /// AUC of one class.
    #[error("all {rows} rows are {class}: AUC needs both classes, check the label rule and the split")]
    OneClass {
        /// How many rows.
        rows: usize,
        /// Which class.
        class: &'static str,
    },
    /// No user has both classes.
    #[error("none of {users} users has rows of both classes: GAUC needs some, take a longer test period")]
    NoUser {
        /// How many users.
        users: usize,
    },
    /// A score that can't be compared.
    #[error("the score of row {row} is NaN: the training diverged, lower the learning rate")]
    NotANumber {
        /// The row's place in the list.
        row: usize,
    },
    /// A score that is no probability.
    #[error("the score {value} of row {row} is no probability: apply the sigmoid first")]
    NotAProbability {
        /// The row's place in the list.
        row: usize,
        /// Its score.
        value: f64,
    },
    /// A base without any skill.
    #[error("the base's AUC is 0.5 or less: an improvement relative to it has no meaning")]
    NoSkill,
    /// Nothing to draw.
    #[error("{0} must be at least 1: check the options")]
    Zero(&'static str),
    /// No share.
    #[error("the level {0} isn't within 0 to 1: 0.95 is usual")]
    Level(f64),
}

/// A metric or why there is none.
pub type Result<T> = std::result::Result<T, Error>;

pub(super) fn same_length(labels: usize, others: usize, what: &'static str) -> Result<()> {
    match labels {
        0 => Err(Error::Empty),
        _ if labels != others => Err(Error::Lengths { labels, others, what }),
        _ => Ok(()),
    }
}

fn comparable(labels: &[bool], scores: &[f64]) -> Result<()> {
    same_length(labels.len(), scores.len(), "scores")?;
    match scores.iter().position(|score| score.is_nan()) {
        Some(row) => Err(Error::NotANumber { row }),
        None => Ok(()),
    }
}

/// The order of two scores that aren't NaN; −0 and 0 are equal.
fn by_score(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
}

/// Counts pairs over rows that come in ascending order of scores, one group of ties after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pairs {
    /// Positives and negatives of the groups that are closed.
    positive: u64,
    negative: u64,
    /// Those of the open group.
    tied_positive: u64,
    tied_negative: u64,
    /// Twice the pairs in order, with half of the tied ones.
    twice: u128,
}

impl Pairs {
    /// A row, counted `weight` times.
    pub(super) fn add(&mut self, positive: bool, weight: u64) {
        if positive {
            self.tied_positive += weight;
        } else {
            self.tied_negative += weight;
        }
    }

    /// The end of a group of equal scores.
    pub(super) fn close(&mut self) {
        // Of a positive and the negatives below it two halves, of one and its ties one half.
        self.twice += u128::from(self.tied_positive) * u128::from(2 * self.negative + self.tied_negative);
        self.positive += self.tied_positive;
        self.negative += self.tied_negative;
        (self.tied_positive, self.tied_negative) = (0, 0);
    }

    /// The AUC; `None` where a class is missing.
    pub(super) fn auc(&self) -> Option<f64> {
        let all = 2 * u128::from(self.positive) * u128::from(self.negative);
        (all > 0).then(|| self.twice as f64 / all as f64)
    }
}

/// The pairs of rows in an order by score.
fn pairs(order: &[u32], labels: &[bool], scores: &[f64]) -> Pairs {
    let mut pairs = Pairs::default();
    for group in order.chunk_by(|&a, &b| scores[a as usize] == scores[b as usize]) {
        for &row in group {
            pairs.add(labels[row as usize], 1);
        }
        pairs.close();
    }
    pairs
}

/// The rows in ascending order of scores.
pub(super) fn ascending(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| by_score(scores[a as usize], scores[b as usize]).then(a.cmp(&b)));
    order
}

/// The area under the ROC curve.
///
/// # Errors
/// Where the lists differ in length or are empty, a score is NaN, or a class is missing.
pub fn auc(labels: &[bool], scores: &[f64]) -> Result<f64> {
    comparable(labels, scores)?;
    let pairs = pairs(&ascending(scores), labels, scores);
    pairs
        .auc()
        .ok_or(Error::OneClass { rows: labels.len(), class: if labels[0] { "positive" } else { "negative" } })
}

/// The rows of one user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UserAuc {
    /// The user.
    pub user: u32,
    /// How many rows.
    pub rows: u32,
    /// How many of them are positive.
    pub positive: u32,
    /// The AUC within them; `None` where a class is missing.
    pub auc: Option<f64>,
}

/// The AUC within each user, by user.
///
/// # Errors
/// Where the lists differ in length or are empty, or a score is NaN.
pub fn user_aucs(users: &[u32], labels: &[bool], scores: &[f64]) -> Result<Vec<UserAuc>> {
    comparable(labels, scores)?;
    same_length(labels.len(), users.len(), "users")?;
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| {
        let (a, b) = (a as usize, b as usize);
        users[a].cmp(&users[b]).then(by_score(scores[a], scores[b])).then(a.cmp(&b))
    });
    let user = |rows: &[u32]| {
        let pairs = pairs(rows, labels, scores);
        let (user, positive) = (users[rows[0] as usize], pairs.positive as u32);
        UserAuc { user, rows: rows.len() as u32, positive, auc: pairs.auc() }
    };
    Ok(order.chunk_by(|&a, &b| users[a as usize] == users[b as usize]).map(user).collect())
}

/// AUC within users, and whom it leaves out.
#[derive(Clone, Debug, PartialEq)]
pub struct Gauc {
    /// The mean over users, weighted by their rows.
    pub value: f64,
    /// Users that count.
    pub users: usize,
    /// Their rows.
    pub rows: u64,
    /// Users left out since all of their rows are positive, by number.
    pub only_positive: Vec<u32>,
    /// Users left out since all of their rows are negative, by number.
    pub only_negative: Vec<u32>,
    /// The rows of those left out.
    pub rows_left_out: u64,
}

/// The mean of the AUC within users, weighted by their rows.
///
/// # Errors
/// Where the lists differ in length or are empty, a score is NaN, or no user has both classes.
pub fn gauc(users: &[u32], labels: &[bool], scores: &[f64]) -> Result<Gauc> {
    let all = user_aucs(users, labels, scores)?;
    let (mut sum, mut rows) = (0.0, 0_u64);
    let mut left_out = [Vec::new(), Vec::new()];
    let mut rows_left_out = 0;
    for user in &all {
        match user.auc {
            Some(auc) => {
                sum += f64::from(user.rows) * auc;
                rows += u64::from(user.rows);
            }
            None => {
                left_out[usize::from(user.positive == 0)].push(user.user);
                rows_left_out += u64::from(user.rows);
            }
        }
    }
    if rows == 0 {
        return Err(Error::NoUser { users: all.len() });
    }
    let [only_positive, only_negative] = left_out;
    let users = all.len() - only_positive.len() - only_negative.len();
    Ok(Gauc { value: sum / rows as f64, users, rows, only_positive, only_negative, rows_left_out })
}

/// The loss of one row.
pub(super) fn row_loss(positive: bool, probability: f64) -> f64 {
    let p = probability.clamp(CLAMP, 1.0 - CLAMP);
    -(if positive { p } else { 1.0 - p }).ln()
}

pub(super) fn probabilities(scores: &[f64]) -> Result<()> {
    let wrong = |value: &f64| !(0.0..=1.0).contains(value);
    match scores.iter().position(wrong) {
        Some(row) if scores[row].is_nan() => Err(Error::NotANumber { row }),
        Some(row) => Err(Error::NotAProbability { row, value: scores[row] }),
        None => Ok(()),
    }
}

/// The mean negative logarithm of the probability of the true label.
///
/// # Errors
/// Where the lists differ in length or are empty, or a score isn't within 0 to 1.
pub fn log_loss(labels: &[bool], scores: &[f64]) -> Result<f64> {
    same_length(labels.len(), scores.len(), "scores")?;
    probabilities(scores)?;
    let sum: f64 = labels.iter().zip(scores).map(|(&positive, &score)| row_loss(positive, score)).sum();
    Ok(sum / labels.len() as f64)
}

/// By how many percent an AUC's distance from ½ is greater than a base's.
///
/// # Errors
/// Where the base's AUC is ½ or less: a percentage of no skill would say the opposite of what it looks like.
pub fn rela_impr(auc: f64, base: f64) -> Result<f64> {
    let skill = base - 0.5;
    if skill <= 0.0 {
        return Err(Error::NoSkill);
    }
    Ok(((auc - 0.5) / skill - 1.0) * 100.0)
}

/// A metric over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The sample deviation (n − 1); `None` for one seed.
    pub deviation: Option<f64>,
}

/// Mean and deviation of a metric over seeds.
///
/// # Errors
/// Where there is none.
pub fn spread(values: &[f64]) -> Result<Spread> {
    if values.is_empty() {
        return Err(Error::Empty);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    let deviation = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
    Ok(Spread { mean, deviation })
}
