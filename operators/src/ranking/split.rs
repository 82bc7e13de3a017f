//! Which rows train, which choose, which test: the protocols.
//!
//! **[`by_time`]**, the default. Of the n labelled rows in the order of events the first
//! ⌊n · train / sum⌋ train and those up to ⌊n · (train + valid) / sum⌋ validate; then each part is
//! extended by the rows that have the time of its last one. So equal times stand together, on the earlier
//! side, and a part is a period: validation holds what is labelled in \[`valid_from`, `test_from`), the
//! test what comes later.
//!
//! **[`new_items`]**: by time, with items *hidden until* a period. A drawn share of the items is hidden
//! until the test begins, another until validation begins. A hidden item's rows before that time don't
//! exist: they train nothing, stand in no history, ring or sketch. An item is new in a period if no row
//! that exists names it before: the hidden ones are, and those that came with the period. Validation then holds its period's rows on items that are
//! new there and not hidden for the test, the test those on items that are new there; all other rows of
//! the two periods are no samples, but they happened: histories and rings see them. So at a period's
//! begin the rings of new items are empty and fill as it goes on; how full one is at a sample is
//! [`super::segments::Segment::earlier`]. Choosing on validation and testing meet different items.
//!
//! **[`leave_one_out`]**, the paper's. An interaction is an engagement, whatever its label. Of each user, in
//! the order of events, the last is the test's and the one before it validation's; the first gives no
//! sample, all others train. A user's only interaction gives none, of two the last tests. Each positive
//! comes with one negative: an item drawn evenly from those that the data set's rows name and no row of
//! this user does, ever. This protocol looks into the future (of other users, and of the user's own for
//! negatives); it is there for comparison with published figures.

use super::draws::Draws;
use super::histories;
use ictflow_schemas::Millis;
use ictflow_schemas::dataset::Dataset;

/// One labelled sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    /// The row that gives it its user, time and history.
    pub row: u32,
    /// The item: the row's own, or a drawn one.
    pub item: u32,
    /// The label.
    pub positive: bool,
}

impl Sample {
    /// Whether it is a drawn negative.
    pub fn is_drawn(&self, data: &Dataset) -> bool {
        data.rows()[self.row as usize].item != self.item
    }
}

/// A data set in three parts. Samples are in the order of events, a positive before its drawn negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// What trains.
    pub train: Vec<Sample>,
    /// What early stopping and every choice look at.
    pub valid: Vec<Sample>,
    /// What is looked at once.
    pub test: Vec<Sample>,
    /// By row, whether it exists: a row that doesn't is in no history, ring or sketch.
    pub visible: Vec<bool>,
    /// When validation and the test begin; `None` where the protocol has no periods.
    pub periods: Option<Periods>,
}

/// Where periods begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// The first time of validation.
    pub valid_from: Millis,
    /// The first time of the test.
    pub test_from: Millis,
}

/// Why a data set can't be split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A part has no samples.
    #[error("{part} has no samples of {rows} labelled rows: choose other proportions, or a larger data set")]
    Empty {
        /// Which part.
        part: &'static str,
        /// How many labelled rows there are.
        rows: usize,
    },
    /// A part has one class.
    #[error(
        "all {samples} samples of {part} are {class}: choose another label rule, or sample negatives (leave-one-out)"
    )]
    OneClass {
        /// Which part.
        part: &'static str,
        /// How many samples.
        samples: usize,
        /// Which class.
        class: &'static str,
    },
    /// Shares that leave nothing.
    #[error("items hidden for validation and test are {valid} and {test} in {of}: the sum must be less")]
    Shares {
        /// Hidden until validation.
        valid: u32,
        /// Hidden until the test.
        test: u32,
        /// Of so many.
        of: u32,
    },
    /// No negative.
    #[error("user {0} has rows on every item: no negative can be drawn, leave this user out")]
    NoNegative(String),
}

/// Parts of the labelled rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proportions {
    /// Train.
    pub train: u32,
    /// Validation.
    pub valid: u32,
    /// Test.
    pub test: u32,
}

impl Default for Proportions {
    /// 80, 10 and 10 in a hundred.
    fn default() -> Self {
        Proportions { train: 80, valid: 10, test: 10 }
    }
}

/// How many of a hundred items are hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Until validation begins.
    pub until_valid: u32,
    /// Until the test begins.
    pub until_test: u32,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Hidden {
    /// Ten and ten.
    fn default() -> Self {
        Hidden { until_valid: 10, until_test: 10, seed: 1 }
    }
}

/// The three parts, each with both classes.
fn checked(split: Split) -> Result<Split, Error> {
    let rows = split.train.len() + split.valid.len() + split.test.len();
    for (part, samples) in [("training", &split.train), ("validation", &split.valid), ("test", &split.test)] {
        let positive = samples.iter().filter(|sample| sample.positive).count();
        match (samples.len(), positive) {
            (0, _) => return Err(Error::Empty { part, rows }),
            (all, 0) => return Err(Error::OneClass { part, samples: all, class: "negative" }),
            (all, some) if all == some => {
                return Err(Error::OneClass { part, samples: all, class: "positive" });
            }
            _ => {}
        }
    }
    Ok(split)
}

/// The labelled rows of a data set, in the order of events.
fn labelled(data: &Dataset) -> Vec<Sample> {
    (0..data.rows().len() as u32).filter_map(|row| histories::sample(data, row)).collect()
}

/// The periods of labelled rows, and where they begin among them.
fn periods(data: &Dataset, all: &[Sample], parts: Proportions) -> Result<(Periods, usize, usize), Error> {
    let time = |at: usize| data.rows()[all[at].row as usize].time;
    let sum = u64::from(parts.train) + u64::from(parts.valid) + u64::from(parts.test);
    let cut = |share: u64| {
        // Wide, since the product of a count and a share may pass 64 bits.
        let place = (all.len() as u128 * u128::from(share)).checked_div(u128::from(sum)).unwrap_or(0);
        let mut place = place as usize;
        while place > 0 && place < all.len() && time(place) == time(place - 1) {
            place += 1;
        }
        place
    };
    let first = cut(u64::from(parts.train));
    let second = cut(u64::from(parts.train) + u64::from(parts.valid));
    let rows = all.len();
    for (part, is_empty) in
        [("training", first == 0), ("validation", second == first), ("test", second == rows)]
    {
        if is_empty {
            return Err(Error::Empty { part, rows });
        }
    }
    Ok((Periods { valid_from: time(first), test_from: time(second) }, first, second))
}

/// Global time split.
///
/// # Errors
/// Where a part has no samples or one class.
pub fn by_time(data: &Dataset, parts: Proportions) -> Result<Split, Error> {
    let mut train = labelled(data);
    let (periods, first, second) = periods(data, &train, parts)?;
    let test = train.split_off(second);
    let valid = train.split_off(first);
    checked(Split { train, valid, test, visible: vec![true; data.rows().len()], periods: Some(periods) })
}

/// Until when an item's rows don't exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Never,
    Valid,
    Test,
}

/// Draws the hidden items: of those that labelled rows name, sorted by id and shuffled, the first
/// ⌊n · share / 100⌋ for the test and the next for validation. A function of seed and ids alone.
fn hide(data: &Dataset, all: &[Sample], hidden: Hidden) -> Result<Vec<Until>, Error> {
    let (valid, test) = (hidden.until_valid, hidden.until_test);
    if u64::from(valid) + u64::from(test) >= 100 {
        return Err(Error::Shares { valid, test, of: 100 });
    }
    let mut items: Vec<u32> = all.iter().map(|sample| sample.item).collect();
    items.sort_unstable();
    items.dedup();
    items.sort_by(|&a, &b| data.items().ids()[a as usize].cmp(&data.items().ids()[b as usize]));
    Draws::new(hidden.seed).shuffle(&mut items);
    let count = |share: u32| items.len() * share as usize / 100;
    let mut until = vec![Until::Never; data.items().len()];
    for (at, &item) in items.iter().enumerate().take(count(test) + count(valid)) {
        until[item as usize] = if at < count(test) { Until::Test } else { Until::Valid };
    }
    Ok(until)
}

/// Time split with items hidden until their period; validation and test hold new items only.
///
/// # Errors
/// Where a part has no samples or one class, or the shares hide everything.
pub fn new_items(data: &Dataset, parts: Proportions, hidden: Hidden) -> Result<Split, Error> {
    let all = labelled(data);
    let (periods, first, second) = periods(data, &all, parts)?;
    let until = hide(data, &all, hidden)?;
    let exists = |item: u32, time: Millis| match until[item as usize] {
        Until::Never => true,
        Until::Valid => time >= periods.valid_from,
        Until::Test => time >= periods.test_from,
    };
    let visible: Vec<bool> = data.rows().iter().map(|row| exists(row.item, row.time)).collect();
    let mut first_seen = vec![Millis::MAX; data.items().len()];
    for (row, _) in data.rows().iter().zip(&visible).filter(|&(_, &visible)| visible) {
        let seen = &mut first_seen[row.item as usize];
        *seen = row.time.min(*seen);
    }
    let is_new = |sample: &&Sample, from: Millis| first_seen[sample.item as usize] >= from;
    let is_visible = |sample: &&Sample| visible[sample.row as usize];
    let train = all[..first].iter().filter(is_visible).copied().collect();
    let valid = all[first..second].iter().filter(is_visible);
    let valid = valid.filter(|sample| is_new(sample, periods.valid_from)).copied().collect();
    let test = all[second..].iter().filter(|sample| is_new(sample, periods.test_from)).copied().collect();
    checked(Split { train, valid, test, visible, periods: Some(periods) })
}

/// The paper's leave-one-out with one drawn negative a positive.
///
/// # Errors
/// Where a part has no samples, or a user has rows on every item.
pub fn leave_one_out(data: &Dataset, seed: u64) -> Result<Split, Error> {
    let rows = data.rows();
    let mut by_user: Vec<Vec<u32>> = vec![Vec::new(); data.users().len()];
    // By item: 1 + the user whose rows name it, so that marks needn't be cleared.
    let mut named = vec![0_u32; data.items().len()];
    for (at, row) in rows.iter().enumerate() {
        by_user[row.user as usize].push(at as u32);
        named[row.item as usize] = u32::MAX;
    }
    let items: Vec<u32> = (0..data.items().len() as u32).filter(|&item| named[item as usize] > 0).collect();
    let mut split = Split {
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
        visible: vec![true; rows.len()],
        periods: None,
    };
    for (user, own) in by_user.iter().enumerate() {
        let mark = user as u32 + 1;
        let mut count = 0;
        for &row in own {
            let item = &mut named[rows[row as usize].item as usize];
            count += usize::from(*item != mark);
            *item = mark;
        }
        let engagements: Vec<u32> =
            own.iter().copied().filter(|&row| rows[row as usize].engagement).collect();
        if engagements.len() < 2 {
            continue;
        }
        if count == items.len() {
            return Err(Error::NoNegative(data.users().ids()[user].to_string()));
        }
        // One draw after the other would take long where nearly all items are the user's.
        let others: Vec<u32> = match 2 * count > items.len() {
            true => items.iter().copied().filter(|&item| named[item as usize] != mark).collect(),
            false => Vec::new(),
        };
        let mut draws = Draws::stream(seed, user as u64);
        let mut negative = || loop {
            let from = if others.is_empty() { &items } else { &others };
            let item = from[draws.below(from.len() as u32) as usize];
            if named[item as usize] != mark {
                return item;
            }
        };
        let last = engagements.len() - 1;
        for (place, &row) in engagements.iter().enumerate().skip(1) {
            let part = match last - place {
                0 => &mut split.test,
                1 => &mut split.valid,
                _ => &mut split.train,
            };
            part.push(Sample { row, item: rows[row as usize].item, positive: true });
            part.push(Sample { row, item: negative(), positive: false });
        }
    }
    for part in [&mut split.train, &mut split.valid, &mut split.test] {
        part.sort_by_key(|sample| (sample.row, !sample.positive));
    }
    checked(split)
}
