//! MovieLens-100K as streams: a catalog, and each rating as an impression and its outcome.

use ictflow_connectors::{Error, Result};
use ictflow_schemas::Millis;
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::item::Item;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

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
        let mut ratings = Vec::new();
        for row in rows(&folder.join("ml-100k.inter"))? {
            ratings.push(Rating {
                user: field(&row, "user_id")?.to_owned(),
                item: field(&row, "item_id")?.to_owned(),
                stars: number(&row, "rating")?,
                time: (number(&row, "timestamp")? * 1000.0) as Millis,
            });
        }
        ratings.sort_by_key(|rating| rating.time);
        let mut items = BTreeMap::new();
        for row in rows(&folder.join("ml-100k.item"))? {
            let (title, year) = (field(&row, "movie_title")?, field(&row, "release_year")?);
            let title = if year.is_empty() { title.to_owned() } else { format!("{title} ({year})") };
            let item = Item {
                title: Some(title),
                categories: field(&row, "class")?.split_whitespace().map(str::to_owned).collect(),
                ..Item::default()
            };
            items.insert(field(&row, "item_id")?.to_owned(), item);
        }
        Ok(MovieLens { ratings, items })
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

type Row = HashMap<String, String>;

/// The rows of a file whose header names its columns `name:type`.
fn rows(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::fatal(
            format!("read {}", path.display()),
            e,
            "run `make models`, which fetches the sample data",
        )
    })?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split('\t')
        .map(|name| name.split(':').next().unwrap_or_default())
        .collect();
    Ok(lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            header.iter().map(|name| (*name).to_owned()).zip(line.split('\t').map(str::to_owned)).collect()
        })
        .collect())
}

fn field<'a>(row: &'a Row, name: &str) -> Result<&'a str> {
    row.get(name).map(String::as_str).ok_or_else(|| {
        Error::fatal("read MovieLens-100K", format!("a row has no column {name}"), "run `make models` again")
    })
}

fn number(row: &Row, name: &str) -> Result<f64> {
    let text = field(row, name)?;
    text.parse().map_err(|_| {
        Error::fatal("read MovieLens-100K", format!("{name} is {text}, no number"), "run `make models` again")
    })
}
