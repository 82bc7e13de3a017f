//! A data set from labelled examples: those that a job published, or an exported training set.
//!
//! Each example is a row, its label known when it says. Its history's entries are rows of their own, engagements
//! that are no examples, each once however many histories it stands in. So an example's history is again what it
//! was: the newest engagements strictly before it, where at least as many were kept as a ranker reads.
//!
//! **Order**: examples by (event_time, user, event_id by bytes), whatever order they come in; engagements of one
//! time by user, item and label, since a history's entry has no event id.
//!
//! **Duplicates**: of records of one key the newest counts, as on the topic; a training set must not have any.
//! Engagements that are equal in user, item, time and label are one.
//!
//! **Memory**: an example without its history, and 24 B an engagement.

use crate::epochs::read_whole;
use crate::names::Names as TopicNames;
use ictflow_connectors::parquet::Reader;
use ictflow_connectors::topics::Topics;
use ictflow_connectors::{Error, Result};
use ictflow_operators::accept;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::dataset::{Dataset, Names, TooMany};
use ictflow_schemas::example::{ExampleRecord, Verdict};
use ictflow_schemas::history::Label;
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Id, Millis};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// The kind of interactions: a history's entries may have several, which no ranker reads.
const KIND: &str = "example";

/// An example without its history.
#[derive(Debug)]
struct Compact {
    time: Millis,
    user: u32,
    event_id: Id,
    item: u32,
    label_time: Millis,
    verdict: Verdict,
}

/// What has been read.
#[derive(Debug, Default)]
struct Gathered {
    users: Names,
    items: Names,
    examples: HashMap<Vec<u8>, Compact>,
    /// (user, item, time, label).
    engagements: HashSet<(u32, u32, Millis, Label)>,
}

impl Gathered {
    /// Takes an example. Whether its key is new.
    fn add(&mut self, key: Vec<u8>, record: ExampleRecord) -> std::result::Result<bool, TooMany> {
        let user = self.users.intern(&record.user_id)?;
        for entry in &record.history {
            let item = self.items.intern(&entry.item_id)?;
            // A word that isn't one says nothing.
            let label = Label::of_word(&entry.label).unwrap_or(Label::None);
            self.engagements.insert((user, item, entry.event_time, label));
        }
        let verdict = match (record.label, record.implicit) {
            (1, _) => Verdict::Positive,
            (_, true) => Verdict::ImplicitNegative,
            (_, false) => Verdict::Negative,
        };
        let compact = Compact {
            time: record.event_time,
            user,
            event_id: record.event_id.into(),
            item: self.items.intern(&record.item_id)?,
            label_time: record.label_time,
            verdict,
        };
        Ok(self.examples.insert(key, compact).is_none())
    }

    /// The data set, with what is known of its items.
    fn into_data(self, items: BTreeMap<String, Item>, source: &str) -> Result<Dataset> {
        let full = |error: TooMany| Error::fatal(format!("reading {source}"), error, "take a part of it");
        let Gathered { users, items: names, examples, engagements } = self;
        let mut examples: Vec<Compact> = examples.into_values().collect();
        let id = |names: &Names, number: u32| names.ids()[number as usize].clone();
        examples.sort_by(|a, b| {
            let key = |e: &Compact| (e.time, id(&users, e.user));
            key(a).cmp(&key(b)).then_with(|| a.event_id.cmp(&b.event_id))
        });
        check(&examples, source)?;
        let mut data = Dataset::new(KIND);
        for (item, record) in &items {
            data.add_item(item, record).map_err(full)?;
        }
        for example in &examples {
            let times = (example.time, example.label_time);
            data.add_example(&id(&users, example.user), &id(&names, example.item), times, example.verdict)
                .map_err(full)?;
        }
        // A user without any example, one that was erased perhaps, has no rows.
        let kept: HashSet<u32> = examples.iter().map(|example| example.user).collect();
        let mut engagements: Vec<(Millis, Id, Id, Label)> = engagements
            .into_iter()
            .filter(|(user, ..)| kept.contains(user))
            .map(|(user, item, time, label)| (time, id(&users, user), id(&names, item), label))
            .collect();
        engagements.sort_unstable();
        for (time, user, item, label) in &engagements {
            data.add_engagement(user, item, *time, *label).map_err(full)?;
        }
        data.sort();
        Ok(data)
    }
}

/// Refuses what no ranker could learn from.
fn check(examples: &[Compact], source: &str) -> Result<()> {
    let positive = examples.iter().filter(|example| example.verdict == Verdict::Positive).count();
    let (detail, hint) = match (examples.len(), positive) {
        (0, _) => ("there is no example".to_owned(), "has the job run, and did labels become known?"),
        (all, 0) => (format!("all {all} examples are negative"), "a ranker learns from both classes"),
        (all, some) if all == some => {
            (format!("all {all} examples are positive"), "a ranker learns from both classes")
        }
        _ => return Ok(()),
    };
    Err(Error::fatal(format!("reading {source}"), detail, hint))
}

/// The data set of an exported training set.
///
/// # Errors
/// Those of the file; `Fatal` where an example stands twice, there is none or one class only.
pub fn of_parquet(path: &Path) -> Result<Dataset> {
    let mut reader = Reader::open(path)?.without_served();
    let (mut gathered, mut items) = (Gathered::default(), BTreeMap::new());
    loop {
        let rows = reader.rows()?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let ExampleRecord { user_id, event_time, event_id, .. } = &row.example;
            let key = format!("{user_id}\0{event_time}\0{event_id}").into_bytes();
            let shown = format!("example {event_id} of user {user_id} at {event_time} stands there twice");
            if let Some(item) = row.item {
                items.insert(row.example.item_id.clone(), item);
            }
            let context = || format!("reading {}", path.display());
            let is_new = gathered
                .add(key, row.example)
                .map_err(|error| Error::fatal(context(), error, "take a part of it"))?;
            if !is_new {
                return Err(Error::fatal(context(), shown, "drop duplicates, or give events an id"));
            }
        }
    }
    gathered.into_data(items, &path.display().to_string())
}

/// Refuses a store without the topics `examples` and `items`.
///
/// # Errors
/// `Fatal` where one isn't there, and what the store says.
pub(crate) fn exist(topics: &mut dyn Topics, names: &TopicNames) -> Result<()> {
    for topic in [Topic::Examples, Topic::Items] {
        if topics.partitions(names.of(topic))?.is_none() {
            return Err(Error::fatal(
                "read examples",
                format!("topic {} doesn't exist", names.of(topic)),
                "has the job run yet? does the suffix fit?",
            ));
        }
    }
    Ok(())
}

/// What stands on `items` of those that are wanted. A record that the job would refuse changes nothing.
///
/// # Errors
/// What the store says.
pub(crate) fn items_named(
    topics: &mut dyn Topics,
    names: &TopicNames,
    items_as: Format,
    semantics: &Semantics,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, Item>> {
    let mut items = BTreeMap::new();
    read_whole(topics, names.of(Topic::Items), |record| match accept::item(&record, items_as, semantics) {
        Ok((id, Some(item))) if wanted(&id) => drop(items.insert(id.to_string(), item)),
        Ok((id, None)) => drop(items.remove(&*id)),
        _ => {}
    })?;
    Ok(items)
}

/// The data set of a job's topics `examples` and `items`, as they stand.
///
/// # Errors
/// Those of the store; `Fatal` where a topic isn't there or an example doesn't decode, there is none or one class
/// only.
pub fn of_topics(
    topics: &mut dyn Topics,
    names: &TopicNames,
    items_as: Format,
    semantics: &Semantics,
) -> Result<Dataset> {
    exist(topics, names)?;
    let name = names.of(Topic::Examples).to_owned();
    let source = format!("topic {name}");
    let mut gathered = Gathered::default();
    let mut unreadable = None;
    read_whole(topics, &name, |record| {
        let at = (record.partition, record.offset);
        let Some(key) = record.key else { return };
        let failed = match record.value.as_deref().map(ExampleRecord::decode) {
            None => {
                gathered.examples.remove(&key);
                return;
            }
            Some(Ok(example)) => gathered.add(key, example).err().map(|error| error.to_string()),
            Some(Err(error)) => Some(error.to_string()),
        };
        if let (Some(detail), None) = (failed, &unreadable) {
            unreadable = Some(format!("partition {}, offset {}: {detail}", at.0, at.1));
        }
    })?;
    if let Some(detail) = unreadable {
        let hint = "is the topic another program's? our records are written by the job alone";
        return Err(Error::fatal(format!("reading {source}"), detail, hint));
    }
    // Only items that an example or a history names.
    let items = items_named(topics, names, items_as, semantics, |id| gathered.items.find(id).is_some())?;
    gathered.into_data(items, &source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_connectors::parquet::{Row, Writer};
    use ictflow_operators::ranking::histories::{Histories, example, sample};
    use ictflow_schemas::example::HistoryRecord;

    fn record(
        user: &str,
        item: &str,
        times: (Millis, Millis),
        label: i32,
        history: &[(&str, Millis)],
    ) -> Row {
        let entry = |(item, time): &(&str, Millis)| HistoryRecord {
            item_id: (*item).to_owned(),
            kind: "play".to_owned(),
            label: if time % 2 == 0 { "positive" } else { "none" }.to_owned(),
            event_time: *time,
        };
        let (event_time, label_time) = times;
        let example = ExampleRecord {
            user_id: user.to_owned(),
            event_time,
            event_id: format!("e{event_time}"),
            item_id: item.to_owned(),
            label,
            implicit: label == 0 && label_time > event_time + 5,
            label_time,
            history: history.iter().map(entry).collect(),
            served: None,
        };
        let title = Some(format!("title of {item}"));
        Row { example, item: (item != "gone").then(|| Item { title, ..Item::default() }) }
    }

    fn rows() -> Vec<Row> {
        vec![
            record("v", "b", (40, 50), 0, &[]),
            record("u", "a", (10, 11), 1, &[("x", 2)]),
            record("u", "b", (30, 31), 0, &[("x", 2), ("a", 11), ("y", 20)]),
            record("u", "gone", (20, 28), 0, &[("x", 2), ("a", 11)]),
        ]
    }

    fn written(rows: Vec<Row>) -> (tempfile::TempDir, Result<Dataset>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.parquet");
        let mut writer = Writer::create(&path).unwrap();
        rows.into_iter().for_each(|row| writer.write(row).unwrap());
        writer.finish().unwrap();
        let data = of_parquet(&path);
        (folder, data)
    }

    #[test]
    fn examples_get_back_their_histories_labels_and_times() {
        let (_folder, data) = written(rows());
        let data = data.unwrap();
        let visible = vec![true; data.rows().len()];
        let histories = Histories::of(&data, &visible, 20);
        let mut found = Vec::new();
        for row in 0..data.rows().len() as u32 {
            let Some(sample) = sample(&data, row) else { continue };
            let example = example(&data, &histories, sample);
            let history: Vec<_> =
                example.history.iter().map(|e| (e.item.to_string(), e.event_time, e.label)).collect();
            found.push((
                example.identity.user.to_string(),
                example.item.to_string(),
                (example.identity.event_time, example.label_time),
                example.verdict,
                history,
            ));
        }
        let mut expected: Vec<_> = rows()
            .into_iter()
            .map(|row| {
                let e = row.example;
                let verdict = match (e.label, e.implicit) {
                    (1, _) => Verdict::Positive,
                    (_, true) => Verdict::ImplicitNegative,
                    _ => Verdict::Negative,
                };
                let history: Vec<_> = e
                    .history
                    .into_iter()
                    .map(|h| (h.item_id, h.event_time, Label::of_word(&h.label).unwrap()))
                    .collect();
                (e.user_id, e.item_id, (e.event_time, e.label_time), verdict, history)
            })
            .collect();
        expected.sort_by_key(|e| e.2);
        assert_eq!(found, expected);
        // Three engagements, however often they are named.
        assert_eq!(data.rows().iter().filter(|row| row.engagement).count(), 3);
        let text = |item: &str| data.catalog().text(data.items().find(item).unwrap());
        assert_eq!((text("a"), text("gone"), text("x")), ("title: title of a", "", ""));
        // The order in which rows come doesn't show.
        let mut turned = rows();
        turned.reverse();
        let (_folder, other) = written(turned);
        let other = other.unwrap();
        assert_eq!(other.rows(), data.rows());
        assert_eq!((other.users().ids(), other.items().ids()), (data.users().ids(), data.items().ids()));
    }

    #[test]
    fn what_teaches_nothing_is_refused() {
        let twice = [rows(), vec![rows().remove(1)]].concat();
        let only =
            |label: i32| rows().into_iter().filter(|row| row.example.label == label).collect::<Vec<_>>();
        for (rows, part) in [
            (twice, "example e10 of user u at 10 stands there twice"),
            (only(0), "all 3 examples are negative"),
            (only(1), "all 1 examples are positive"),
            (Vec::new(), "no rows"),
        ] {
            let (_folder, data) = written(rows);
            let error = data.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
