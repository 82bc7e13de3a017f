//! Training sets in Parquet: one file, one labelled example a row, with its history and its item's text.
//!
//! `ictflow export` writes such files, `ictflow train` reads them; any reader of Parquet takes them, and any
//! writer may make them. Columns are found by their names, whatever their order; others are passed over.
//!
//! | column | type | needed | meaning |
//! | --- | --- | --- | --- |
//! | `user_id`, `item_id` | string | yes | who, and on what |
//! | `event_time` | timestamp (UTC) or integer | yes | when; an integer is milliseconds since 1970 |
//! | `label` | integer 0 or 1, or boolean | yes | the label |
//! | `event_id` | string | no | tells examples of one user and time apart. Left out: the row's place |
//! | `implicit` | boolean | no | whether a 0 stands for want of any outcome. Left out: false |
//! | `label_time` | as `event_time` | no | when the label was known. Left out: `event_time` |
//! | `history` | list of structs | no | engagements strictly before, oldest first: `item_id`, `kind`, `label` (`positive`, `negative`, `none`), `event_time` |
//! | `title`, `creator`, `description`, `language` | string | no | the item's text, as on the topic `items` |
//! | `categories`, `tags` | list of strings | no | the same; null, not empty, where no record of the item exists |
//! | `served_epoch` | integer | no | what stood on `features` for the pair when the impression came: the epoch that published it. Null in this and the next ones where nothing did or it isn't known |
//! | `served_ict_weights`, `served_vector_kind` | string | no | the version of the weights that made it; `decoder` or `attention` |
//! | `served_ict`, `served_votes` | list of floats | no | the vector; the nine votes |
//! | `served_demonstrations`, `served_neighbours` | list of strings | no | the ids of its demonstrations, nearest last; of its neighbours, those of `same_item` first, nearest last each |
//!
//! **Point in time**: `history` is of strictly before the example's event, by event times. What was served stood on
//! the topic before the impression came: of one that came late it may know events between the two. `label` became
//! known at `label_time`, so `label_time` - `event_time` is its delay, and whoever learns as of a time leaves out
//! labels that were known later. An item's columns are the exception: they are its text when the file was written.
//!
//! An item's columns stand in every row on it, which compresses well. Of rows that differ the last one counts.
//! What is written has all columns, timestamps in milliseconds, zstd, and `ictflow.training_set` = `1` in the
//! file's metadata. What was served is read where the first three of its columns are there; a list that isn't is
//! read as an empty one.
//!
//! # Delivery
//! A file comes under its name when it is whole and on the disk ([`Writer::finish`]); until then it has `.part`
//! behind it, and goes with its writer. A training set that has the name is replaced then; another kind of file is
//! refused before. Reading gives each row once; the first fault ends it.
//!
//! # Ordering
//! The order in which rows were written.
//!
//! # Retries
//! None: every failure is `Fatal`, names the file, the column and, where there is one, the row.
//!
//! # Limits
//! * [`GROUP`] rows are held while writing, [`BATCH`] while reading: with vectors of 256 numbers and 64 neighbours
//!   about 5 KB each.
//! * Compressed by zstd, by snappy or not at all. Lists of lists aren't read.
//!
//! # Secrets
//! None. Ids stand in errors, texts never do.
//!
//! # Telemetry
//! None.

mod read;
mod schema;
#[cfg(test)]
mod tests;
mod write;

pub use read::{BATCH, Reader};
pub use write::{GROUP, Writer};

use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::item::Item;

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The example, with what was served.
    pub example: ExampleRecord,
    /// What is known of its item; `None` where it has no record. `attributes` and `updated_at` aren't kept.
    pub item: Option<Item>,
}
