//! Compact tables and hashed ones: which row of the file a row of training is.
//!
//! A data set has far fewer ids than a hashed table has rows. Training keeps a row for each hashed row
//! that some id of the data set has; ids that share a hashed row share it here too, so that training
//! sees the collisions that serving will see.

use super::super::Shape;
use super::TrainingError;
use ictflow_schemas::framing::hashed_row;
use std::collections::BTreeMap;

/// The rows of one table. Row 0, absent, is row 0 of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRows {
    table: &'static str,
    /// Of the hashed table.
    rows: u32,
    /// By compact row.
    hashed: Vec<u32>,
    compact: BTreeMap<u32, u32>,
}

impl TableRows {
    /// No id yet; `table` is `user`, `item`, `creator` or `category`, `rows` the hashed table's, 2 or
    /// more.
    pub fn new(table: &'static str, rows: u32) -> Self {
        TableRows { table, rows, hashed: vec![0], compact: BTreeMap::from([(0, 0)]) }
    }

    /// From the hashed row of each compact row, from row 0 on.
    ///
    /// # Errors
    /// [`TrainingError::Rows`] where row 0 isn't row 0, a row is beyond the hashed table, or one
    /// stands there twice.
    pub fn from_hashed(table: &'static str, rows: u32, hashed: &[u32]) -> Result<Self, TrainingError> {
        let wrong = |problem: String| TrainingError::Rows { table, problem };
        if hashed.first() != Some(&0) {
            return Err(wrong("don't begin with row 0".into()));
        }
        let mut all = TableRows::new(table, rows);
        for row in &hashed[1..] {
            if !(1..rows).contains(row) {
                return Err(wrong(format!("name row {row} of a hashed table of {rows} rows")));
            }
            if all.compact.contains_key(row) {
                return Err(wrong(format!("name hashed row {row} twice")));
            }
            all.compact_of(*row);
        }
        Ok(all)
    }

    /// The compact row of an id, a new one where its hashed row is new.
    pub fn add(&mut self, id: &str) -> u32 {
        self.compact_of(hashed_row(self.table, id, self.rows))
    }

    /// The compact row of an id, 0 where its hashed row isn't known.
    pub fn row_of(&self, id: &str) -> u32 {
        self.compact.get(&hashed_row(self.table, id, self.rows)).copied().unwrap_or(0)
    }

    /// The table's name.
    pub fn name(&self) -> &'static str {
        self.table
    }

    /// How many compact rows, row 0 included.
    pub fn len(&self) -> usize {
        self.hashed.len()
    }

    /// Whether there is no row but row 0.
    pub fn is_empty(&self) -> bool {
        self.hashed.len() == 1
    }

    /// How many rows the hashed table has.
    pub fn hashed_rows(&self) -> usize {
        self.rows as usize
    }

    fn compact_of(&mut self, hashed: u32) -> u32 {
        let next = self.hashed.len() as u32;
        let row = *self.compact.entry(hashed).or_insert(next);
        if row == next {
            self.hashed.push(hashed);
        }
        row
    }

    /// The hashed table [rows, d] of a compact one. Rows that no id of the data set has are zeros: of
    /// an id that training never saw nothing is known.
    pub fn scatter(&self, compact: &[f32], d: usize) -> Vec<f32> {
        let mut table = vec![0.0; self.hashed_rows() * d];
        for (row, values) in self.hashed.iter().zip(compact.chunks_exact(d)) {
            table[*row as usize * d..][..d].copy_from_slice(values);
        }
        table
    }

    /// The compact table of a hashed one [rows, d].
    pub(super) fn gather(&self, table: &[f32], d: usize) -> Vec<f32> {
        self.hashed.iter().flat_map(|row| &table[*row as usize * d..][..d]).copied().collect()
    }
}

/// The rows of the four tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedRows {
    /// Of users.
    pub user: TableRows,
    /// Of items.
    pub item: TableRows,
    /// Of creators.
    pub creator: TableRows,
    /// Of categories.
    pub category: TableRows,
}

impl HashedRows {
    /// No id yet; the hashed tables' rows are those of a file's shape.
    pub fn new(file: &Shape) -> Self {
        HashedRows {
            user: TableRows::new("user", file.user_rows as u32),
            item: TableRows::new("item", file.item_rows as u32),
            creator: TableRows::new("creator", file.creator_rows as u32),
            category: TableRows::new("category", file.category_rows as u32),
        }
    }

    /// The table of a tensor's name.
    pub fn of_tensor(&self, name: &str) -> Option<&TableRows> {
        [&self.user, &self.item, &self.creator, &self.category]
            .into_iter()
            .find(|rows| name.strip_suffix(".weight") == Some(rows.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_share_a_hashed_row_share_the_compact_row() {
        let mut rows = TableRows::new("user", 4);
        let ids = ["a", "b", "c", "d", "e", "f", "g"];
        let compact: Vec<u32> = ids.iter().map(|id| rows.add(id)).collect();
        assert!(!rows.is_empty() && rows.len() <= 4);
        for (id, row) in ids.iter().zip(&compact) {
            assert_eq!(rows.row_of(id), *row);
            assert_eq!(rows.hashed[*row as usize], hashed_row("user", id, 4));
        }
        let other = TableRows::from_hashed("user", 4, &rows.hashed).unwrap();
        assert_eq!(other, rows);
        assert_eq!(TableRows::new("user", 1000).row_of("a"), 0);
    }

    #[test]
    fn scattered_rows_come_back() {
        let rows = TableRows::from_hashed("item", 5, &[0, 3, 1]).unwrap();
        let compact = [0.0, 0.0, 1.0, 2.0, 3.0, 4.0];
        let table = rows.scatter(&compact, 2);
        assert_eq!(table, [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
        assert_eq!(rows.gather(&table, 2), compact);
    }

    #[test]
    fn rows_that_contradict_themselves_are_refused() {
        for (hashed, problem) in [
            (&[][..], "begin with row 0"),
            (&[1][..], "begin with row 0"),
            (&[0, 5][..], "row 5 of a hashed table of 5 rows"),
            (&[0, 2, 0][..], "row 0 of"),
            (&[0, 2, 2][..], "hashed row 2 twice"),
        ] {
            let error = TableRows::from_hashed("item", 5, hashed).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("`item`"), "{error}");
        }
    }
}
