//! MovieLens-100K as streams: a catalog, and each rating as an impression and its outcome.

use ictflow_connectors::atomic::{Columns, Folder, Items};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::dataset::Dataset;
use ictflow_schemas::history::Label;
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::Item;
use std::collections::BTreeMap;
use std::path::Path;

/// The data set's name.
const NAME: &str = "ml-100k";

/// What is wrong with the sample is mended by fetching it again.
const AGAIN: &str = "run `make models`, which fetches the sample data";

/// One rating.
#[derive(Clone, Debug)]
pub struct Rating {
    /// The user.
    pub user: String,
    /// The film.
    pub item: String,
    /// One to five stars.
    pub stars: f64,
    /// When, in milliseconds.
    pub time: Millis,
    /// Whether that is a positive label.
    pub positive: bool,
}

/// The data set.
pub struct MovieLens {
    /// The ratings in time order; equal times stay in the file's order.
    pub ratings: Vec<Rating>,
    /// The films.
    pub items: BTreeMap<String, Item>,
}

impl MovieLens {
    /// Reads the RecBole atomic files of a folder.
    ///
    /// # Errors
    /// `Fatal` where a file or a column is missing, or a number isn't one.
    pub fn read(folder: &Path) -> Result<Self> {
        Folder::open(folder, Some(NAME))
            .and_then(|folder| MovieLens::parse(&folder))
            .map_err(|error| Error { hint: AGAIN, ..error })
    }

    /// The same files as training reads them.
    ///
    /// # Errors
    /// As [`MovieLens::read`].
    pub fn dataset(folder: &Path) -> Result<Dataset> {
        Folder::open(folder, Some(NAME))
            .and_then(|folder| folder.read(&columns()))
            .map_err(|error| Error { hint: AGAIN, ..error })
    }

    fn parse(folder: &Folder) -> Result<Self> {
        let columns = columns();
        let mut ratings = Vec::new();
        let mut rows = folder.interactions(&columns)?;
        while let Some(row) = rows.row()? {
            ratings.push(Rating {
                user: row.user.to_owned(),
                item: row.item.to_owned(),
                stars: row.value.unwrap_or_default(),
                time: row.time,
                positive: row.label == Label::Positive,
            });
        }
        ratings.sort_by_key(|rating| rating.time);
        let mut items = BTreeMap::new();
        let mut rows = folder.items(&columns)?;
        while let Some((id, item)) = rows.as_mut().map_or(Ok(None), Items::row)? {
            items.insert(id.to_owned(), item);
        }
        Ok(MovieLens { ratings, items })
    }
}

/// What the columns of MovieLens-100K mean.
pub fn columns() -> Columns {
    Columns {
        title: Some("movie_title".to_owned()),
        year: Some("release_year".to_owned()),
        categories: Some("class".to_owned()),
        ..Columns::default()
    }
}

/// A rating as the events that a site would have logged: the film was shown, then rated at the same
/// second.
pub fn events(number: usize, rating: &Rating) -> [Interaction; 2] {
    let shown = format!("s{number}");
    let event = |event_id: String, kind: &str, value, impression_id| Interaction {
        event_id,
        user_id: rating.user.clone(),
        item_id: rating.item.clone(),
        kind: kind.to_owned(),
        value,
        impression_id,
        event_time: rating.time,
    };
    [
        event(shown.clone(), "impression", None, None),
        event(format!("r{number}"), "rate", Some(rating.stars), Some(shown)),
    ]
}
