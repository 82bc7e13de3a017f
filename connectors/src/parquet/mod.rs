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
//!
//! An item's columns stand in every row on it, which compresses well. Of rows that differ the last one counts.
//! What is written has all columns, timestamps in milliseconds, zstd, and `ictflow.training_set` = `1` in the
//! file's metadata.
//!
//! # Delivery
//! A file comes under its name when it is whole and on the disk ([`Writer::finish`]); until then it has `.part`
//! behind it. Reading gives each row once; the first fault ends it.
//!
//! # Ordering
//! The order in which rows were written.
//!
//! # Retries
//! None: every failure is `Fatal`, names the file, the column and, where there is one, the row.
//!
//! # Limits
//! * [`GROUP`] rows are held while writing, [`BATCH`] while reading.
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
    /// The example.
    pub example: ExampleRecord,
    /// What is known of its item; `None` where it has no record. `attributes` and `updated_at` aren't kept.
    pub item: Option<Item>,
}
