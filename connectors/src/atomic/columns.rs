//! Which column means what, and which rows are positive.

use ictflow_schemas::interaction::{KindRule, When};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The unit of a time column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnit {
    /// Seconds since 1970, RecBole's own.
    #[default]
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
}

impl TimeUnit {
    /// What to multiply a time by, and then to divide it by, for milliseconds.
    pub(super) fn to_millis(self) -> (i64, i64) {
        match self {
            TimeUnit::Seconds => (1_000, 1),
            TimeUnit::Milliseconds => (1, 1),
            TimeUnit::Microseconds => (1, 1_000),
        }
    }
}

impl fmt::Display for TimeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimeUnit::Seconds => "seconds",
            TimeUnit::Milliseconds => "milliseconds",
            TimeUnit::Microseconds => "microseconds",
        })
    }
}

/// Where a row's label comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// A column of 0 and 1.
    Column(String),
    /// A rule over a column, as the table of kinds has them.
    Value {
        /// The column.
        column: String,
        /// The rule.
        rule: KindRule,
    },
    /// None: every row is a positive. Only a protocol that samples negatives can use that.
    Implicit,
}

impl Labels {
    /// Positive from a value on, negative below it; every row is an engagement.
    pub fn from(column: &str, limit: f64) -> Self {
        let rule = KindRule {
            impression: false,
            engagement: When::Always,
            positive: When::From(limit),
            negative: When::Below(limit),
        };
        Labels::Value { column: column.to_owned(), rule }
    }
}

impl FromStr for Labels {
    type Err = String;

    /// Reads `COLUMN >= NUMBER`, `COLUMN`, or `implicit` (a column of that name can't be one of 0 and 1).
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |what: &str| {
            format!(
                "label rule {text:?} {what}: write 'COLUMN >= NUMBER', a column of 0 and 1, or 'implicit'"
            )
        };
        let plain = |name: &str| !name.is_empty() && !name.contains(['<', '>', '=', '\t']);
        if let Some((column, limit)) = text.split_once(">=") {
            let limit: f64 = limit.trim().parse().map_err(|_| refuse("has no number behind >="))?;
            return match column.trim() {
                _ if !limit.is_finite() => Err(refuse("has no finite number behind >=")),
                column if plain(column) => Ok(Labels::from(column, limit)),
                _ => Err(refuse("has no column before >=")),
            };
        }
        match text.trim() {
            "implicit" => Ok(Labels::Implicit),
            column if plain(column) => Ok(Labels::Column(column.to_owned())),
            _ => Err(refuse("has another form")),
        }
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Labels::Column(column) => f.write_str(column),
            Labels::Value { column, rule: KindRule { positive: When::From(limit), .. } } => {
                write!(f, "{column} >= {limit}")
            }
            Labels::Value { column, .. } => write!(f, "a rule over {column}"),
            Labels::Implicit => f.write_str("implicit"),
        }
    }
}

/// Which column means what. What is `None` isn't read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The user, in `NAME.inter`.
    pub user: String,
    /// The item, in `NAME.inter` and `NAME.item`.
    pub item: String,
    /// When it happened, in `NAME.inter`.
    pub time: String,
    /// The unit of `time`.
    pub time_unit: TimeUnit,
    /// The label, in `NAME.inter`.
    pub labels: Labels,
    /// Whether a row whose label column is 0 enters the history. An impression that nobody took does
    /// not; a film that somebody saw and disliked does.
    pub negatives_engage: bool,
    /// The kind of the interactions, as histories and content keys name it.
    pub kind: String,
    /// An item's title, in `NAME.item`; so are those below.
    pub title: Option<String>,
    /// Its year, which stands in brackets behind the title.
    pub year: Option<String>,
    /// Who made it.
    pub creator: Option<String>,
    /// Its categories.
    pub categories: Option<String>,
    /// Its tags.
    pub tags: Option<String>,
    /// Its description.
    pub description: Option<String>,
}

impl Default for Columns {
    /// RecBole's own names, ratings from 4 positive, nothing of items.
    fn default() -> Self {
        Columns {
            user: "user_id".to_owned(),
            item: "item_id".to_owned(),
            time: "timestamp".to_owned(),
            time_unit: TimeUnit::Seconds,
            labels: Labels::from("rating", 4.0),
            negatives_engage: false,
            kind: "rate".to_owned(),
            title: None,
            year: None,
            creator: None,
            categories: None,
            tags: None,
            description: None,
        }
    }
}

impl Columns {
    /// The columns of `NAME.item` that are named, with what they mean.
    pub(super) fn of_items(&self) -> impl Iterator<Item = (&'static str, &str)> {
        fn named<'a>(what: &'static str, name: &'a Option<String>) -> Option<(&'static str, &'a str)> {
            Some((what, name.as_deref()?))
        }
        [
            named("the title", &self.title),
            named("the year", &self.year),
            named("the creator", &self.creator),
            named("the categories", &self.categories),
            named("the tags", &self.tags),
            named("the description", &self.description),
        ]
        .into_iter()
        .flatten()
    }
}
