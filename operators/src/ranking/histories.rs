//! The history of every row of a data set, and rows as examples.
//!
//! **Computes**, for every row: the newest L engagements of its user with a time strictly before its own,
//! oldest first, in the order of events: what [`crate::history::Window::before`] gives. Rows of the same
//! time are never in each other's history. Engagements that aren't visible ([`super::split::Split`])
//! are in none.
//!
//! **Memory**: 4 B an engagement and 8 B a row: a history is a stretch of its user's engagements.

use super::split::Sample;
use ictflow_schemas::Id;
use ictflow_schemas::catalog::ItemState;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::example::{Example, Verdict};
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::history::{Entry, Identity, Label};

/// The histories of a data set's rows.
#[derive(Clone, Debug)]
pub struct Histories {
    /// The engagements of all users as places of rows, user by user, in the order of events.
    entries: Vec<u32>,
    /// By row, the stretch that is its history.
    stretches: Vec<(u32, u32)>,
}

impl Histories {
    /// The histories of the newest `length` visible engagements. `data` must be sorted, `visible` says of
    /// each row whether it exists.
    ///
    /// # Panics
    /// Where `visible` hasn't one entry a row.
    pub fn of(data: &Dataset, visible: &[bool], length: usize) -> Self {
        let rows = data.rows();
        assert_eq!(rows.len(), visible.len(), "one entry of visible a row");
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let enters = |at: usize| rows[at].engagement && visible[at];
        // Where each user's engagements begin, by counting.
        let mut begins = vec![0_u32; data.users().len() + 1];
        for (at, row) in rows.iter().enumerate().filter(|&(at, _)| enters(at)) {
            debug_assert!(at == 0 || rows[at - 1].time <= row.time, "rows are sorted");
            begins[row.user as usize + 1] += 1;
        }
        for user in 1..begins.len() {
            begins[user] += begins[user - 1];
        }
        let mut entries = vec![0; begins.last().copied().unwrap_or_default() as usize];
        let mut ends = begins.clone();
        let mut stretches = Vec::with_capacity(rows.len());
        let mut first = 0;
        for same_time in rows.chunk_by(|a, b| a.time == b.time) {
            for row in same_time {
                let (begin, end) = (begins[row.user as usize], ends[row.user as usize]);
                stretches.push((begin.max(end.saturating_sub(length)), end));
            }
            for (at, row) in (first..).zip(same_time).filter(|&(at, _)| enters(at)) {
                let end = &mut ends[row.user as usize];
                entries[*end as usize] = at as u32;
                *end += 1;
            }
            first += same_time.len();
        }
        Histories { entries, stretches }
    }

    /// The history of a row: places of rows, oldest first.
    pub fn before(&self, row: u32) -> &[u32] {
        let (begin, end) = self.stretches[row as usize];
        &self.entries[begin as usize..end as usize]
    }
}

/// A sample as an example, its label known when the data set says. A drawn negative is an implicit one, at the
/// time and with the history of the row it belongs to; its event id is that row's with `.negative` behind it. The
/// partition is 0.
pub fn example(data: &Dataset, histories: &Histories, sample: Sample) -> Example {
    let row = &data.rows()[sample.row as usize];
    let (users, items) = (data.users().ids(), data.items().ids());
    let drawn = sample.is_drawn(data);
    let own = row.event_id();
    let event_id = if drawn { Id::from(format!("{own}.negative")) } else { own };
    let entry = |&at: &u32| {
        let row = &data.rows()[at as usize];
        Entry {
            event_time: row.time,
            event_id: row.event_id(),
            item: items[row.item as usize].clone(),
            kind: data.kind.clone(),
            label: row.label,
        }
    };
    Example {
        identity: Identity { user: users[row.user as usize].clone(), event_time: row.time, event_id },
        partition: 0,
        item: items[sample.item as usize].clone(),
        verdict: match (sample.positive, drawn) {
            (true, _) => Verdict::Positive,
            (false, false) if !row.implicit => Verdict::Negative,
            (false, _) => Verdict::ImplicitNegative,
        },
        label_time: if drawn { row.time } else { data.label_time(row) },
        history: histories.before(sample.row).iter().map(entry).collect(),
    }
}

/// The sample of a row that is an example; `None` for another.
pub fn sample(data: &Dataset, row: u32) -> Option<Sample> {
    let of = &data.rows()[row as usize];
    if !of.example {
        return None;
    }
    let sample = |positive| Sample { row, item: of.item, positive };
    match of.label {
        Label::Positive => Some(sample(true)),
        Label::Negative => Some(sample(false)),
        Label::None => None,
    }
}

/// What is known of an item, without a vector; `None` where the data set has no record of it.
pub fn item_state(data: &Dataset, item: u32) -> Option<ItemState> {
    let catalog = data.catalog();
    let name = |names: &[Id], number: u32| names[number as usize].clone();
    catalog.exists(item).then(|| ItemState {
        text: text_digest(catalog.text(item)),
        creator: catalog.creator(item).map(|creator| name(catalog.creator_names().ids(), creator)),
        categories: catalog
            .categories(item)
            .iter()
            .map(|&category| name(catalog.category_names().ids(), category))
            .collect(),
        vector: None,
    })
}
