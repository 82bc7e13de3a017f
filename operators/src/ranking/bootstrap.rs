//! How sure a difference between two rankers is: a paired bootstrap over users.
//!
//! Rows of one user depend on each other, so a round draws *users*, as many as there are and with
//! replacement; a user that is drawn m times counts with all rows m times, in both rankers alike. The
//! metrics of both are taken over the round's rows and subtracted; the interval is the middle `level`
//! of the differences, with percentiles between two of them interpolated. In GAUC a user has the weight
//! m · n_u.
//!
//! With several seeds a ranker has one list of scores a seed, and its metric is the mean over them.
//!
//! A round costs one walk over the rows in their order by score, which is found once: about 2 ns a row
//! and list. The same seed gives the same rounds, and comparisons over the same users the same draws.

use super::draws::Draws;
use super::metrics::{Error, Pairs, Result, ascending, probabilities, row_loss, same_length, user_aucs};

/// Options of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounds {
    /// How many rounds.
    pub rounds: u32,
    /// The seed of the draws.
    pub seed: u64,
    /// The share of the differences that the interval holds, within 0 to 1.
    pub level: f64,
}

impl Default for Rounds {
    /// 1,000 rounds, 95%.
    fn default() -> Self {
        Rounds { rounds: 1_000, seed: 1, level: 0.95 }
    }
}

/// The difference of a metric: the other ranker's minus the base's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The base's metric over all rows.
    pub base: f64,
    /// The other's.
    pub other: f64,
    /// other − base.
    pub difference: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// Rounds that have the metric: those with both classes.
    pub rounds: u32,
}

/// A ranker against a base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// AUC: greater is better.
    pub auc: Difference,
    /// GAUC: greater is better.
    pub gauc: Difference,
    /// LogLoss: less is better.
    pub log_loss: Difference,
}

/// The rows that rankers are compared on.
#[derive(Clone, Debug)]
pub struct Paired<'a> {
    labels: &'a [bool],
    users: &'a [u32],
    /// Each row's user as a place among the users that are there, by number.
    places: Vec<u32>,
    /// The rows of each of these.
    rows: Vec<u32>,
}

/// The metrics of a round.
type Figures = [Option<f64>; 3];

/// One list of scores, made ready.
struct Scored {
    /// The rows in ascending order of scores: the user's place, the label, whether a group of ties ends.
    order: Vec<(u32, bool, bool)>,
    /// By place: rows · AUC and rows, zeros for a user with one class.
    aucs: Vec<(f64, u32)>,
    /// By place: the sum of the rows' losses.
    losses: Vec<f64>,
}

impl Scored {
    fn figures(&self, drawn: &[u32], rows: &[u32]) -> Figures {
        let mut pairs = Pairs::default();
        for &(place, positive, last) in &self.order {
            pairs.add(positive, u64::from(drawn[place as usize]));
            if last {
                pairs.close();
            }
        }
        let (mut sum, mut weight, mut loss, mut count) = (0.0, 0_u64, 0.0, 0_u64);
        for (place, &times) in drawn.iter().enumerate().filter(|&(_, &times)| times > 0) {
            let (auc, auc_rows) = self.aucs[place];
            sum += f64::from(times) * auc;
            weight += u64::from(times) * u64::from(auc_rows);
            loss += f64::from(times) * self.losses[place];
            count += u64::from(times) * u64::from(rows[place]);
        }
        let gauc = (weight > 0).then(|| sum / weight as f64);
        [pairs.auc(), gauc, Some(loss / count as f64)]
    }
}

/// The mean over the seeds' lists; `None` where one has none.
fn mean(lists: &[Scored], drawn: &[u32], rows: &[u32]) -> Figures {
    let mut sums = [Some(0.0); 3];
    for list in lists {
        for (sum, figure) in sums.iter_mut().zip(list.figures(drawn, rows)) {
            *sum = sum.zip(figure).map(|(sum, figure)| sum + figure);
        }
    }
    sums.map(|sum| sum.map(|sum| sum / lists.len() as f64))
}

/// A percentile of values in ascending order, interpolated between the two that are nearest.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

impl<'a> Paired<'a> {
    /// Rows by their labels and users.
    ///
    /// # Errors
    /// Where the lists differ in length or are empty.
    pub fn new(users: &'a [u32], labels: &'a [bool]) -> Result<Self> {
        same_length(labels.len(), users.len(), "users")?;
        let mut there = users.to_vec();
        there.sort_unstable();
        there.dedup();
        let mut rows = vec![0; there.len()];
        let places = users
            .iter()
            .map(|user| {
                let place = there.partition_point(|other| other < user);
                rows[place] += 1;
                place as u32
            })
            .collect();
        Ok(Paired { labels, users, places, rows })
    }

    fn scored(&self, scores: &[f64]) -> Result<Scored> {
        let aucs = user_aucs(self.users, self.labels, scores)?;
        probabilities(scores)?;
        let order = ascending(scores);
        let last = |at: usize| {
            order.get(at + 1).is_none_or(|&next| scores[next as usize] != scores[order[at] as usize])
        };
        let mut losses = vec![0.0; self.rows.len()];
        for ((&place, &positive), &score) in self.places.iter().zip(self.labels).zip(scores) {
            losses[place as usize] += row_loss(positive, score);
        }
        let ordered = order.iter().enumerate();
        Ok(Scored {
            order: ordered
                .map(|(at, &row)| (self.places[row as usize], self.labels[row as usize], last(at)))
                .collect(),
            aucs: aucs
                .iter()
                .map(|user| user.auc.map_or((0.0, 0), |auc| (f64::from(user.rows) * auc, user.rows)))
                .collect(),
            losses,
        })
    }

    /// Compares a ranker with a base: a list of probabilities a seed, each with one a row.
    ///
    /// # Errors
    /// Where a list is missing, of another length or holds anything but probabilities, the rows have one
    /// class or no user has both, or the options have no round or a level outside 0 to 1.
    pub fn compare(&self, base: &[&[f64]], other: &[&[f64]], options: Rounds) -> Result<Comparison> {
        if base.is_empty() || other.is_empty() {
            return Err(Error::Empty);
        }
        if options.rounds == 0 {
            return Err(Error::Zero("rounds"));
        }
        if !(0.0..=1.0).contains(&options.level) {
            return Err(Error::Level(options.level));
        }
        let ready =
            |lists: &[&[f64]]| lists.iter().map(|scores| self.scored(scores)).collect::<Result<Vec<_>>>();
        let (base, other) = (ready(base)?, ready(other)?);
        let once = vec![1; self.rows.len()];
        let whole = (mean(&base, &once, &self.rows), mean(&other, &once, &self.rows));
        let users = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let mut draws = Draws::new(options.seed);
        let mut drawn = vec![0; self.rows.len()];
        let mut differences = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..options.rounds {
            drawn.fill(0);
            for _ in 0..users {
                drawn[draws.below(users) as usize] += 1;
            }
            let (base, other) = (mean(&base, &drawn, &self.rows), mean(&other, &drawn, &self.rows));
            for (list, pair) in differences.iter_mut().zip(base.iter().zip(other)) {
                if let (Some(base), Some(other)) = pair {
                    list.push(other - base);
                }
            }
        }
        let rows = self.labels.len();
        let one_class = Error::OneClass { rows, class: if self.labels[0] { "positive" } else { "negative" } };
        let absent = [one_class, Error::NoUser { users: self.rows.len() }, Error::Empty];
        let mut all = differences.into_iter().zip(whole.0).zip(whole.1).zip(absent);
        let mut next = || match all.next() {
            Some((((mut list, Some(base)), Some(other)), _)) if !list.is_empty() => {
                list.sort_unstable_by(f64::total_cmp);
                let outside = (1.0 - options.level) / 2.0;
                let (low, high) = (percentile(&list, outside), percentile(&list, 1.0 - outside));
                let rounds = list.len() as u32;
                Ok(Difference { base, other, difference: other - base, low, high, rounds })
            }
            Some((_, error)) => Err(error),
            None => Err(Error::Empty),
        };
        Ok(Comparison { auc: next()?, gauc: next()?, log_loss: next()? })
    }
}
