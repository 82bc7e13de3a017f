//! The CoT texts of a data set by training sample, as a ranker takes them, and their controls.
//!
//! All are functions of the log and the data set: nothing is asked, drawn or timed.

use super::examples::Examples;
use super::log::{CotLog, TEMPLATE, Version};
use crate::ranking::dataset::Prepared;
use ictflow_connectors::Result;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use serde::Serialize;
use std::borrow::Cow;

/// Which texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The LLM's, from the log.
    Llm,
    /// The template's, made here: of every example that may be asked. For a fair comparison take those of the
    /// samples that have the LLM's.
    Template,
    /// The LLM's, each at another sample: every sample that has a text gets that of the next one that has, in
    /// the order of asking, the last that of the first. Labels change with them. A single text is at none.
    Shuffled,
    /// The LLM's by the prompt that states no decision, from the log.
    LabelFree,
}

impl Variant {
    /// Its name in those of an evaluation's arms.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Llm => "llm",
            Variant::Template => "template",
            Variant::Shuffled => "shuffled",
            Variant::LabelFree => "label-free",
        }
    }
}

/// The texts of a variant, one entry a training sample, in the order of [`Prepared::split`]'s training part. `None`
/// where there is none: not asked yet, failed, or none that may be asked.
///
/// Where the log has answers of several models or prompts those of the one with the most texts count:
/// [`CotLog::of_model`] leaves those of one model, [`texts_by`] takes any version.
///
/// # Errors
/// None that a caller could cause.
pub fn texts_of(log: &CotLog, prepared: &Prepared, variant: Variant) -> Result<Vec<Option<String>>> {
    let examples = Examples::of(prepared);
    let written = |label_free: bool| {
        version_of(log, label_free).map_or_else(|| none(prepared), |version| by(log, &examples, version))
    };
    Ok(match variant {
        Variant::Llm => written(false),
        Variant::LabelFree => written(true),
        Variant::Shuffled => shuffled(&examples, written(false)),
        Variant::Template => template(&examples)?,
    })
}

/// What made the LLM's texts that count, with the decision stated or without it; `None` where there are none.
pub fn version_of(log: &CotLog, label_free: bool) -> Option<&Version> {
    log.most(|version| version.label_free == label_free && version.llm_model != TEMPLATE)
}

/// As [`texts_of`], of one version.
pub fn texts_by(log: &CotLog, prepared: &Prepared, version: &Version) -> Vec<Option<String>> {
    by(log, &Examples::of(prepared), version)
}

fn none(prepared: &Prepared) -> Vec<Option<String>> {
    vec![None; prepared.split.train.len()]
}

fn by(log: &CotLog, examples: &Examples<'_>, version: &Version) -> Vec<Option<String>> {
    let mut texts = none(examples.prepared());
    for &place in examples.places() {
        let key = version.key(&examples.view(place, version.label_free));
        texts[place as usize] = log.text(&key).map(str::to_owned);
    }
    texts
}

/// The texts one place on, in the order of asking: see [`Variant::Shuffled`].
pub fn shuffled(examples: &Examples<'_>, mut texts: Vec<Option<String>>) -> Vec<Option<String>> {
    let places: Vec<usize> = examples.places().iter().map(|&place| place as usize).collect();
    let held: Vec<usize> = places.into_iter().filter(|&place| texts[place].is_some()).collect();
    match held.as_slice() {
        [] => {}
        [one] => texts[*one] = None,
        // Each swap brings the next one's text here, and takes the first one's along to the end.
        all => all.windows(2).for_each(|pair| texts.swap(pair[0], pair[1])),
    }
    texts
}

/// The template's texts of all examples that may be asked.
///
/// # Errors
/// None that a caller could cause.
pub fn template(examples: &Examples<'_>) -> Result<Vec<Option<String>>> {
    let mut texts = none(examples.prepared());
    let mut template = Template::new(Prompt::builtin());
    for &place in examples.places() {
        texts[place as usize] = Some(template_text(examples, &mut template, place)?);
    }
    Ok(texts)
}

/// What the template writes of an example.
///
/// # Errors
/// None that a caller could cause.
pub fn template_text(examples: &Examples<'_>, template: &mut Template, place: u32) -> Result<String> {
    let view = examples.view(place, false);
    let key = Version::of(template, false).key(&view);
    Ok(template.generate(&examples.request(key, &view), 1)?.text)
}

/// What was asked of an example, as text: the item, then the history, newest first, since an encoder reads a text's
/// beginning. The decision isn't in it.
pub fn input_text(examples: &Examples<'_>, place: u32) -> String {
    use ictflow_schemas::history::Label;
    let view = examples.view(place, true);
    let request = examples.request(view.item_text, &view);
    let title = |title: &'_ str, categories: &str| match categories.is_empty() {
        true => title.to_owned(),
        false => format!("{title}, {categories}"),
    };
    let item = &request.item;
    let mut lines: Vec<Cow<'_, str>> = vec![title(&item.title, &item.categories).into()];
    lines.extend([&item.creator, &item.tags, &item.description].map(|value| Cow::from(value.as_str())));
    for entry in request.history.iter().rev() {
        let Some(item) = &entry.item else { continue };
        let said = match entry.label {
            Label::Positive => "liked",
            Label::Negative => "did not like",
            Label::None => "came across",
        };
        lines.push(format!("the user {said} {}", title(&item.title, &item.categories)).into());
    }
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}
