//! Data sets for training and evaluation: rows and a catalog as numbers, ids in tables.
//!
//! An id stands once; rows name it by its number, counted from 0 in the order in which the ids came. So
//! a row takes [`ROW_BYTES`], whatever its ids. Rows are in the order of events, (time, number), where
//! the number is the row's place in its source: what a row's event id is made of, so that this order is
//! the project's (event_time, event_id by bytes) within a user.

use crate::example::Verdict;
use crate::history::Label;
use crate::item::Item;
use crate::{Id, Millis};
use std::collections::HashMap;

/// What a row takes in memory.
pub const ROW_BYTES: usize = size_of::<Row>();

/// One interaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// When it happened.
    pub time: Millis,
    /// The user's number.
    pub user: u32,
    /// The item's number.
    pub item: u32,
    /// Its place among the rows of the source, from 0.
    pub number: u32,
    /// What it says.
    pub label: Label,
    /// Whether it enters the user's history.
    pub engagement: bool,
    /// Whether it is an example. An engagement with a label needn't be one: its example may stand elsewhere.
    pub example: bool,
    /// Whether an example's negative label stands for want of any outcome.
    pub implicit: bool,
}

impl Row {
    const NOTHING: Row = Row {
        time: 0,
        user: 0,
        item: 0,
        number: 0,
        label: Label::None,
        engagement: false,
        example: false,
        implicit: false,
    };

    /// The event id: `r` and ten digits of the number, so that the order by bytes is that of the source.
    pub fn event_id(&self) -> Id {
        format!("r{:010}", self.number).into()
    }
}

/// The bound of a table of ids, of the rows and of the lists of categories: numbers are u32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than 4294967294 {0}")]
pub struct TooMany(pub &'static str);

/// Ids and their numbers.
#[derive(Clone, Debug, Default)]
pub struct Names {
    ids: Vec<Id>,
    numbers: HashMap<Id, u32>,
}

impl Names {
    /// The number of an id, which gets the next one where it is new.
    ///
    /// # Errors
    /// Where no number is left.
    pub fn intern(&mut self, id: &str) -> Result<u32, TooMany> {
        if let Some(&number) = self.numbers.get(id) {
            return Ok(number);
        }
        let number = next(self.ids.len(), "ids")?;
        let id = Id::from(id);
        self.ids.push(id.clone());
        self.numbers.insert(id, number);
        Ok(number)
    }

    /// The number of an id that is there.
    pub fn find(&self, id: &str) -> Option<u32> {
        self.numbers.get(id).copied()
    }

    /// The ids, by number.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// The next number of a table; the largest u32 stays free for "none".
fn next(length: usize, what: &'static str) -> Result<u32, TooMany> {
    u32::try_from(length).ok().filter(|&number| number < NONE).ok_or(TooMany(what))
}

/// No creator.
const NONE: u32 = u32::MAX;

/// What is known of one item, as places in the catalog's tables.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// Where its text begins; [`ABSENT`] for an item without a record.
    text: usize,
    text_bytes: u32,
    creator: u32,
    categories: u32,
    category_count: u32,
}

const ABSENT: usize = usize::MAX;

impl Facts {
    const NOTHING: Facts =
        Facts { text: ABSENT, text_bytes: 0, creator: NONE, categories: 0, category_count: 0 };
}

/// Texts, creators and categories by the rules of [`Item`]. All texts share one buffer.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    facts: Vec<Facts>,
    text: String,
    category_lists: Vec<u32>,
    creators: Names,
    categories: Names,
}

impl Catalog {
    /// Sets an item's facts; of several the last ones stand.
    fn set(&mut self, item: u32, record: &Item) -> Result<(), TooMany> {
        let creator = match record.creator_id() {
            Some(creator) => self.creators.intern(&creator)?,
            None => NONE,
        };
        let categories = next(self.category_lists.len(), "categories of items")?;
        for category in record.category_ids() {
            let number = self.categories.intern(&category)?;
            self.category_lists.push(number);
        }
        let category_count = next(self.category_lists.len(), "categories of items")? - categories;
        let text = record.text();
        let text_bytes = u32::try_from(text.len()).map_err(|_| TooMany("bytes of an item's text"))?;
        let facts = Facts { text: self.text.len(), text_bytes, creator, categories, category_count };
        self.text.push_str(&text);
        if self.facts.len() <= item as usize {
            self.facts.resize(item as usize + 1, Facts::NOTHING);
        }
        self.facts[item as usize] = facts;
        Ok(())
    }

    fn facts(&self, item: u32) -> &Facts {
        self.facts.get(item as usize).unwrap_or(&Facts::NOTHING)
    }

    /// Whether the source has a record of the item.
    pub fn exists(&self, item: u32) -> bool {
        self.facts(item).text != ABSENT
    }

    /// The item's text ([`Item::text`]); empty where nothing is known of it.
    pub fn text(&self, item: u32) -> &str {
        let facts = self.facts(item);
        if facts.text == ABSENT {
            return "";
        }
        &self.text[facts.text..facts.text + facts.text_bytes as usize]
    }

    /// The number of the item's creator.
    pub fn creator(&self, item: u32) -> Option<u32> {
        Some(self.facts(item).creator).filter(|&creator| creator != NONE)
    }

    /// The numbers of the item's categories, each once, in their order.
    pub fn categories(&self, item: u32) -> &[u32] {
        let facts = self.facts(item);
        let begin = facts.categories as usize;
        &self.category_lists[begin..begin + facts.category_count as usize]
    }

    /// The creators.
    pub fn creator_names(&self) -> &Names {
        &self.creators
    }

    /// The categories.
    pub fn category_names(&self) -> &Names {
        &self.categories
    }
}

/// Interactions and a catalog. Grows by [`Dataset::add_item`] and [`Dataset::add_row`], and is in order
/// after [`Dataset::sort`].
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The kind of its interactions, as it stands in histories.
    pub kind: Id,
    users: Names,
    items: Names,
    rows: Vec<Row>,
    /// How long after its time a row's label was known, by number; empty where that is never later.
    delays: Vec<Millis>,
    catalog: Catalog,
}

impl Dataset {
    /// An empty one.
    pub fn new(kind: &str) -> Self {
        Dataset {
            kind: kind.into(),
            users: Names::default(),
            items: Names::default(),
            rows: Vec::new(),
            delays: Vec::new(),
            catalog: Catalog::default(),
        }
    }

    /// Adds or replaces what is known of an item.
    ///
    /// # Errors
    /// Where no number is left.
    pub fn add_item(&mut self, id: &str, record: &Item) -> Result<u32, TooMany> {
        let item = self.items.intern(id)?;
        self.catalog.set(item, record)?;
        Ok(item)
    }

    /// Adds an interaction: the next row of the source. With a label it is an example, and the label was known
    /// at its time.
    ///
    /// # Errors
    /// Where no number is left.
    pub fn add_row(
        &mut self,
        user: &str,
        item: &str,
        time: Millis,
        label: Label,
        engagement: bool,
    ) -> Result<(), TooMany> {
        let example = label != Label::None;
        self.push(user, item, Row { time, label, engagement, example, ..Row::NOTHING })
    }

    /// Adds an example whose label was known at `label_time`, and which is no engagement: an impression. The
    /// engagements before it are rows of their own.
    ///
    /// # Errors
    /// Where no number is left.
    pub fn add_example(
        &mut self,
        user: &str,
        item: &str,
        (time, label_time): (Millis, Millis),
        verdict: Verdict,
    ) -> Result<(), TooMany> {
        let implicit = verdict == Verdict::ImplicitNegative;
        let row = Row { time, label: verdict.decision(), example: true, implicit, ..Row::NOTHING };
        self.push(user, item, row)?;
        if label_time != time {
            self.delays.resize(self.rows.len(), 0);
            self.delays[self.rows.len() - 1] = label_time.saturating_sub(time);
        }
        Ok(())
    }

    /// Adds an engagement that is no example.
    ///
    /// # Errors
    /// Where no number is left.
    pub fn add_engagement(
        &mut self,
        user: &str,
        item: &str,
        time: Millis,
        label: Label,
    ) -> Result<(), TooMany> {
        self.push(user, item, Row { time, label, engagement: true, ..Row::NOTHING })
    }

    fn push(&mut self, user: &str, item: &str, row: Row) -> Result<(), TooMany> {
        let number = next(self.rows.len(), "rows")?;
        let (user, item) = (self.users.intern(user)?, self.items.intern(item)?);
        self.rows.push(Row { user, item, number, ..row });
        Ok(())
    }

    /// Leaves out the rows of users that aren't wanted. Numbers, of rows too, stay: what is left has the same
    /// event ids.
    pub fn retain_users(&mut self, wanted: impl Fn(&str) -> bool) {
        let wanted: Vec<bool> = self.users.ids.iter().map(|id| wanted(id)).collect();
        self.rows.retain(|row| wanted[row.user as usize]);
    }

    /// When a row's label was known.
    pub fn label_time(&self, row: &Row) -> Millis {
        row.time + self.delays.get(row.number as usize).copied().unwrap_or(0)
    }

    /// Puts the rows into the order of events.
    pub fn sort(&mut self) {
        self.rows.sort_unstable_by_key(|row| (row.time, row.number));
    }

    /// The users.
    pub fn users(&self) -> &Names {
        &self.users
    }

    /// The items: those with a record and those of the rows.
    pub fn items(&self) -> &Names {
        &self.items
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What is known of the items.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_keeps_ids_once_and_rows_in_order() {
        let mut data = Dataset::new("rate");
        let item = |title: &str, creator: &str, categories: &[&str]| Item {
            title: Some(title.to_owned()),
            creator: Some(creator.to_owned()),
            categories: categories.iter().map(|&c| c.to_owned()).collect(),
            ..Item::default()
        };
        data.add_item("a", &item("Old", "x", &["Drama"])).unwrap();
        data.add_item("b", &item("Bee", "  ", &["War", "Drama", "War"])).unwrap();
        data.add_item("a", &item("New", "y", &["Comedy"])).unwrap();
        data.add_row("u", "c", 5, Label::Positive, true).unwrap();
        data.add_row("v", "a", 3, Label::None, false).unwrap();
        data.add_row("u", "a", 5, Label::Negative, true).unwrap();
        data.sort();
        let order: Vec<_> = data.rows().iter().map(|row| (row.time, row.number)).collect();
        assert_eq!(order, [(3, 1), (5, 0), (5, 2)]);
        assert_eq!(data.rows()[1].event_id().as_ref(), "r0000000000");
        let catalog = data.catalog();
        assert_eq!(catalog.text(0), "title: New\ncreator: y\ncategories: Comedy");
        assert_eq!(catalog.text(1), "title: Bee\ncategories: War, Drama, War");
        assert_eq!((catalog.exists(1), catalog.exists(2), catalog.text(2)), (true, false, ""));
        let names = |item| {
            let all = catalog.category_names().ids();
            catalog.categories(item).iter().map(|&c| all[c as usize].as_ref()).collect::<Vec<_>>()
        };
        assert_eq!((names(0), names(1), names(2)), (vec!["Comedy"], vec!["War", "Drama"], vec![]));
        assert_eq!((catalog.creator(1), catalog.creator(2)), (None, None));
        assert_eq!(catalog.creator_names().ids()[catalog.creator(0).unwrap() as usize].as_ref(), "y");
        assert_eq!(data.items().find("c"), Some(2));
        assert_eq!(ROW_BYTES, 24);
        data.retain_users(|user| user == "u");
        let left: Vec<_> = data.rows().iter().map(|row| (row.user, row.number)).collect();
        assert_eq!((left, data.users().find("v")), (vec![(0, 0), (0, 2)], Some(1)));
    }

    #[test]
    fn examples_know_when_their_labels_were_known() {
        let mut data = Dataset::new("rate");
        data.add_row("u", "a", 5, Label::Positive, true).unwrap();
        data.add_row("u", "a", 6, Label::None, true).unwrap();
        data.add_example("u", "b", (2, 9), Verdict::ImplicitNegative).unwrap();
        data.add_example("u", "c", (4, 4), Verdict::Positive).unwrap();
        data.add_engagement("u", "c", 4, Label::Positive).unwrap();
        data.sort();
        let told: Vec<_> = data
            .rows()
            .iter()
            .map(|row| (row.time, data.label_time(row), row.label, row.example, row.implicit, row.engagement))
            .collect();
        assert_eq!(
            told,
            [
                (2, 9, Label::Negative, true, true, false),
                (4, 4, Label::Positive, true, false, false),
                (4, 4, Label::Positive, false, false, true),
                (5, 5, Label::Positive, true, false, true),
                (6, 6, Label::None, false, false, true),
            ]
        );
    }
}
