//! What the demo shows at its end, on the terminal: users with what their vectors were made of, texts that the LLM
//! wrote, what vector and votes are worth to a ranker, and the lists of two users.

use super::prequential::Measured;
use super::trained::{self, Rankers};
use crate::epochs::read_compacted;
use crate::explain::{Explanation, Lineage, Neighbour};
use crate::names::Names;
use crate::rank::prequential::Row;
use crate::rank::print;
use crate::rank::ranking::rankings;
use crate::rank::shortfalls::Shortfalls;
use crate::rank::subscription::Subscription;
use crate::sources::usable;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Result, clock};
use ictflow_schemas::Id;
use ictflow_schemas::cot::{CotRecord, CotStatus};
use ictflow_schemas::feature::NeighbourSource;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Users shown with what their vectors were made of.
pub const USERS: usize = 3;

/// Texts shown where no vector has them.
const TEXTS: usize = 3;

/// Neighbours shown of each source, the nearest.
pub const NEAREST: usize = 2;

/// Users whose list is shown, and how long it is.
const RANKED: (usize, usize) = (2, 5);

/// A text that the LLM wrote of a labelled example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The user.
    pub user: String,
    /// The film's title.
    pub title: String,
    /// Whether the user liked it.
    pub liked: bool,
    /// The text.
    pub text: String,
}

/// A few live pairs, each of another user, in order of key.
pub fn pairs(subscription: &Subscription) -> Vec<(Id, Id)> {
    let first = |user: Id| {
        let (item, _) = subscription.view.of_user(&user).next()?;
        Some((user, item.clone()))
    };
    subscription.view.users().into_iter().filter_map(first).take(USERS).collect()
}

/// The first texts that stand on the log, of users in the order of their ids.
///
/// # Errors
/// What the store says.
pub fn texts(topics: &mut dyn Topics, names: &Names, catalog: &BTreeMap<String, Item>) -> Result<Vec<Text>> {
    let records = read_compacted(topics, names.of(Topic::Cot))?;
    let cots = records.values().filter_map(|(_, value)| CotRecord::decode(value).ok());
    let texts: BTreeSet<(String, String, bool, String)> = cots
        .filter(|cot| usable(cot, CotStatus::Ok))
        .map(|cot| (cot.user_id, cot.item_id, cot.decision == "positive", cot.text))
        .collect();
    let title = |item: &str| catalog.get(item).and_then(|item| item.title.clone());
    let shown = texts.into_iter().map(|(user, item, liked, text)| Text {
        title: title(&item).unwrap_or(item),
        user,
        liked,
        text,
    });
    Ok(shown.take(TEXTS).collect())
}

/// What the user of a label did, as people say it.
pub fn verdict(label: i32) -> &'static str {
    if label == 1 { "liked" } else { "did not like" }
}

/// The nearest neighbours of a source, nearest first.
pub fn nearest(explanation: &Explanation, source: NeighbourSource) -> impl Iterator<Item = &Neighbour> {
    let of = move |neighbour: &&Neighbour| neighbour.source == source;
    explanation.neighbours.iter().rev().filter(of).take(NEAREST)
}

/// How many labels vote, of both sources.
pub fn voters(explanation: &Explanation) -> String {
    let of = |source| explanation.neighbours.iter().filter(|neighbour| neighbour.source == source).count();
    let (others, own) = (of(NeighbourSource::SameItem), of(NeighbourSource::SameUser));
    format!("votes of others on it: {others}, of this user on other films: {own}")
}

/// A text, which may have several lines.
fn tell_text(text: &str) {
    text.lines().for_each(|line| println!("    {line}"));
}

/// The users with what their vectors were made of: demonstrations with their texts, or neighbours.
pub fn tell_users(lineage: &Lineage) {
    for (user, item) in lineage.pairs() {
        let Some(explanation) = lineage.explanation(user, item) else { continue };
        println!("\nuser {user} and the film offered, {}:", explanation.title);
        for used in explanation.demonstrations.iter().rev() {
            let Some(example) = &used.example else { continue };
            println!("  user {} {} {}", example.user, verdict(used.label), example.title);
            tell_text(used.cot.as_ref().map_or("(no text)", |cot| &cot.text));
        }
        println!("  {}, the nearest:", voters(&explanation));
        for neighbour in nearest(&explanation, NeighbourSource::SameItem) {
            let Some(example) = &neighbour.example else { continue };
            println!("  {:+.2}  user {} {} it", neighbour.similarity, example.user, verdict(neighbour.label));
        }
        for neighbour in nearest(&explanation, NeighbourSource::SameUser) {
            let Some(example) = &neighbour.example else { continue };
            println!(
                "  {:+.2}  the user {} {}",
                neighbour.similarity,
                verdict(neighbour.label),
                example.title
            );
        }
    }
}

/// Texts that no vector shows.
pub fn tell_texts(texts: &[Text]) {
    if texts.is_empty() {
        return;
    }
    println!(
        "\nwhat the LLM wrote of labelled examples; these vectors are made of neighbours, and don't read it:"
    );
    for Text { user, title, liked, text } in texts {
        println!("  user {user} {} {title}", verdict(i32::from(*liked)));
        tell_text(text);
    }
}

/// What vector and votes are worth to a ranker, and on which ratings that was measured.
pub fn tell_measured(measured: Option<&Measured>) {
    let Some(measured) = measured else {
        println!(
            "\nno ranker was measured: the replay ended before the ratings that trained and chose the weights did"
        );
        return;
    };
    println!("\n{}", said(measured));
    println!("  {:<22} {:>7} {:>7} {:>8}", "the ranker is given", "AUC", "GAUC", "LogLoss");
    for (name, cells) in table(measured) {
        println!("  {name:<22} {:>7} {:>7} {:>8}", cells[0], cells[1], cells[2]);
    }
    println!("  {}", caveat(measured));
}

/// What was measured, in one sentence.
pub fn said(measured: &Measured) -> String {
    let report = &measured.report;
    format!(
        "predicted, then learnt: {} ratings of {} users in the last tenth by time, which neither trained the weights nor \
         chose them",
        report.predicted, report.users
    )
}

/// What the figures can't say.
pub fn caveat(measured: &Measured) -> String {
    let missing = match measured.report.without_vector {
        0 => String::new(),
        n => format!("; {n} ratings of deleted films had no vector and are left out for both"),
    };
    format!(
        "neither: the same backbone trained without them, on ids, texts and the user's own like-rate. Batches of {} \
         ratings: a vector knows nothing of its own batch{missing}",
        measured.batch
    )
}

/// The figures as they are shown: both rankers, and the difference.
pub fn table(measured: &Measured) -> Vec<(&'static str, [String; 3])> {
    let plain = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.4}"));
    let signed = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:+.4}"));
    let row = |row: &Row| [row.auc, row.gauc, row.log_loss].map(plain);
    let names = ["vector and votes", "neither"];
    let mut rows: Vec<_> = names.into_iter().zip(measured.report.rows.iter().map(row)).collect();
    let gained = measured.gained;
    rows.push(("difference", [gained.auc, gained.gauc, gained.log_loss].map(signed)));
    rows
}

/// The lists of two users by the ranker, as `ictflow rank` prints them, and the command that does.
///
/// # Errors
/// Those of [`rankings`].
pub fn tell_ranked(subscription: &mut Subscription, rankers: &Rankers, state: &Path) -> Result<()> {
    let (count, top) = RANKED;
    let (_, view, catalog) = subscription.parts();
    let users: Vec<Id> = view.users().into_iter().take(count).collect();
    let named: Vec<String> = users.iter().map(|user| format!("--user {user}")).collect();
    println!(
        "\nictflow rank --state {} --model {} {} --top {top}",
        state.display(),
        trained::ranker(state).display(),
        named.join(" ")
    );
    rankings(&rankers.with, (view, catalog), &users, top, |ranking| {
        print!("{}", print::text(&ranking, clock::now_ms()));
        Ok(true)
    })?;
    for (_, warning) in Shortfalls::of(&rankers.with, view, catalog).warnings(&rankers.with) {
        eprintln!("warning: {warning}");
    }
    Ok(())
}
