//! The ids of a batch of samples, and the tables that they index.

use candle_core::{Result, Tensor};

/// The ids of a batch of B samples: u32 rows of the tables, 0 = absent. T history entries, oldest first and
/// padded at the end; C categories an item.
#[derive(Clone, Debug)]
pub struct Ids {
    /// `[B]`.
    pub user: Tensor,
    /// `[B]`.
    pub item: Tensor,
    /// `[B]`.
    pub creator: Tensor,
    /// `[B, C]`.
    pub categories: Tensor,
    /// `[B, T]`.
    pub history_items: Tensor,
    /// `[B, T]`.
    pub history_creators: Tensor,
    /// `[B, T, C]`.
    pub history_categories: Tensor,
}

/// The embedding tables [rows, d], shared by a backbone and the vector's module. Row 0 is zeros and stays so.
#[derive(Clone, Debug)]
pub struct Tables {
    /// By user.
    pub user: Tensor,
    /// By item.
    pub item: Tensor,
    /// By creator.
    pub creator: Tensor,
    /// By category.
    pub category: Tensor,
}

/// Rows of a table: ids of any shape to that shape and d.
///
/// # Errors
/// Where an id is beyond the table.
pub fn rows(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let mut shape = ids.dims().to_vec();
    shape.push(table.dim(1)?);
    table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)
}
