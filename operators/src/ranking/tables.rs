//! The embedding tables as variables.

use super::RankingError;
use super::ids::Tables;
use super::variables::{Fill, Init, Role, Variables};
use serde::{Deserialize, Serialize};

/// The rows of the tables, row 0 (absent) included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// Of the user table.
    pub user: usize,
    /// Of the item table.
    pub item: usize,
    /// Of the creator table.
    pub creator: usize,
    /// Of the category table.
    pub category: usize,
}

impl Rows {
    /// Makes the four tables [rows, d] under the names of `schemas/weights.md`.
    ///
    /// # Errors
    /// Where a table has fewer than 2 rows or the variables already hold one.
    pub fn create(self, d: usize, init: Init, variables: &mut Variables) -> Result<Tables, RankingError> {
        let mut table = |what: &'static str, rows: usize| {
            if rows < 2 {
                return Err(RankingError::Size { what, found: rows, expected: "2 or more rows" });
            }
            let deviation = match init {
                Init::Torch => 1.0,
                Init::XavierNormal => (2.0 / (rows + d) as f64).sqrt(),
            };
            variables.create(what, &[rows, d], Role::Table, Fill::Normal(deviation))
        };
        Ok(Tables {
            user: table("user.weight", self.user)?,
            item: table("item.weight", self.item)?,
            creator: table("creator.weight", self.creator)?,
            category: table("category.weight", self.category)?,
        })
    }
}
