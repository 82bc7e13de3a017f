//! Items of the catalog and the normalised text that prompts and embeddings use.

use crate::Millis;
use crate::limits::CATEGORIES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use unicode_normalization::UnicodeNormalization;

/// A record of the topic `items`; a null value deletes the item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Title.
    #[serde(default)]
    pub title: Option<String>,
    /// Who made it.
    #[serde(default)]
    pub creator: Option<String>,
    /// Categories, genres.
    #[serde(default)]
    pub categories: Vec<String>,
    /// Free tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Description.
    #[serde(default)]
    pub description: Option<String>,
    /// Language code.
    #[serde(default)]
    pub language: Option<String>,
    /// Everything else (price, stock): never part of the text, so an edit of it asks nothing.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// The owner's time of the record; informative, the offset decides.
    #[serde(default)]
    pub updated_at: Millis,
}

/// Normalises one value: NFC, then each run of Unicode White_Space or control characters (Cc) to
/// one blank, trimmed.
pub fn normalise(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut gap = false;
    for c in value.nfc() {
        if c.is_whitespace() || c.is_control() {
            gap = true;
        } else {
            if gap && !out.is_empty() {
                out.push(' ');
            }
            gap = false;
            out.push(c);
        }
    }
    out
}

impl Item {
    /// The item's text: lines `field: value` in the order title, creator, categories, tags,
    /// description, language. A list is joined by `, ` as given and normalised as one value; a
    /// value that is then empty is left out.
    pub fn text(&self) -> String {
        let fields = [
            ("title", self.title.clone().unwrap_or_default()),
            ("creator", self.creator.clone().unwrap_or_default()),
            ("categories", self.categories.join(", ")),
            ("tags", self.tags.join(", ")),
            ("description", self.description.clone().unwrap_or_default()),
            ("language", self.language.clone().unwrap_or_default()),
        ];
        let mut lines = Vec::new();
        for (field, value) in fields {
            let value = normalise(&value);
            if !value.is_empty() {
                lines.push(format!("{field}: {value}"));
            }
        }
        lines.join("\n")
    }

    /// The creator id: the normalised value, `None` where it is empty.
    pub fn creator_id(&self) -> Option<String> {
        self.creator.as_deref().map(normalise).filter(|creator| !creator.is_empty())
    }

    /// The category ids: the first [`CATEGORIES`] of the normalised values in their order, empty ones and repeats
    /// left out. A ranker reads them as lists of one length, that of the item with the most; so it has a limit.
    pub fn category_ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        for category in &self.categories {
            let id = normalise(category);
            if !id.is_empty() && !ids.contains(&id) {
                ids.push(id);
            }
            if ids.len() == CATEGORIES {
                break;
            }
        }
        ids
    }
}

/// An item's text read back into its fields: what a prompt may say of the item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemText {
    /// Title, empty where the item has none.
    pub title: String,
    /// Creator, empty where the item has none.
    pub creator: String,
    /// Categories as one joined value.
    pub categories: String,
    /// Tags as one joined value.
    pub tags: String,
    /// Description.
    pub description: String,
    /// Language.
    pub language: String,
}

impl ItemText {
    /// Reads a text that [`Item::text`] made. Values hold no newline, so lines are fields.
    pub fn parse(text: &str) -> Self {
        let mut fields = ItemText::default();
        for line in text.lines() {
            if let Some((field, value)) = line.split_once(": ") {
                let slot = match field {
                    "title" => &mut fields.title,
                    "creator" => &mut fields.creator,
                    "categories" => &mut fields.categories,
                    "tags" => &mut fields.tags,
                    "description" => &mut fields.description,
                    "language" => &mut fields.language,
                    _ => continue,
                };
                *slot = value.to_owned();
            }
        }
        fields
    }
}
