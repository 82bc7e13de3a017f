//! Judges the records of the inputs, in offset order, before they enter the dataflow.
//!
//! **Computes**, for `interactions`, a function of one partition's log alone, in this order:
//! *oversized* (the record), *unreadable*, *oversized* (an id), *misrouted*, *future*; then the
//! partition maximum rises to the lesser of event_time and the record's timestamp; then *erased* (in
//! silence), *late*, *seen* or *conflict*, *window_full*. What is left is accepted. Since no epoch takes part, any cut into epochs accepts the same events.
//!
//! **Ties, duplicates**: an identity is (user_id, event_time, event_id). Accepted again with equal
//! fields it is *seen* and dropped in silence, with others a *conflict*.
//!
//! **Memory**: the identities accepted within `lateness` of the maximum, about 100 B each, at most
//! `max_window_events` a user; an id has at most `max_id_bytes`.

use crate::recovery::{self, Extent, Part, Saved, Unsaved};
use ictflow_schemas::candidates::Candidates;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::dead_letter::Reason;
use ictflow_schemas::framing::Frame;
use ictflow_schemas::history::Entry;
use ictflow_schemas::interaction::{Event, Interaction};
use ictflow_schemas::item::Item;
use ictflow_schemas::topic::Record;
use ictflow_schemas::wire::{Format, Wire};
use ictflow_schemas::{Id, Millis, NO_TIME, is_plausible};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What became of a record of `interactions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It enters the dataflow.
    Accepted(Event),
    /// The identity was accepted before, with equal fields: dropped, only counted.
    Seen,
    /// The user was erased after this record: dropped in silence.
    Erased,
    /// It becomes a dead letter.
    Refused(Reason),
}

/// The judge of one partition of `interactions`.
#[derive(Clone, Debug)]
pub struct Accept {
    semantics: Arc<Semantics>,
    partition: u32,
    partitions: u32,
    maximum: Millis,
    /// By user, the identities accepted within the lateness window, with a digest of their fields.
    users: HashMap<Id, BTreeMap<(Millis, Id), [u8; 32]>>,
    /// Records accepted since users without a recent event were last dropped.
    accepted_since_sweep: usize,
    unsaved: Unsaved,
    /// By user, the offset from which records count again.
    erased: HashMap<Id, i64>,
}

/// A user's window as saved: the identities with the digests of their fields.
type SavedWindow = Vec<(Millis, Id, [u8; 32])>;

impl Accept {
    /// A judge that has seen nothing.
    pub fn new(semantics: Arc<Semantics>, partition: u32, partitions: u32) -> Self {
        Accept {
            semantics,
            partition,
            partitions,
            maximum: NO_TIME,
            users: HashMap::new(),
            accepted_since_sweep: 0,
            unsaved: Unsaved::default(),
            erased: HashMap::new(),
        }
    }

    /// The partition maximum.
    pub fn maximum(&self) -> Millis {
        self.maximum
    }

    /// Raises the partition maximum to what is on record: an erased user's records may be gone from the
    /// log, or a truncation accepted.
    pub fn raise(&mut self, maximum: Millis) {
        self.maximum = self.maximum.max(maximum);
    }

    /// Forgets a user, and drops the user's records below an offset from now on.
    pub fn erase(&mut self, user: &Id, below: i64) {
        let from = self.erased.entry(user.clone()).or_insert(below);
        *from = (*from).max(below);
        self.users.remove(user);
        self.unsaved.insert(user);
    }

    /// The windows of users, as they have to be for the next record.
    pub fn save(&mut self, extent: Extent) -> Vec<Saved> {
        let users = self.unsaved.take(extent, self.users.keys().cloned());
        let oldest = self.maximum.saturating_sub(self.semantics.lateness_ms);
        let state = |user: &Id| {
            let window = self.users.get(user)?.range((oldest, Id::from(""))..);
            let saved: SavedWindow =
                window.map(|((time, id), fields)| (*time, id.clone(), *fields)).collect();
            (!saved.is_empty()).then(|| recovery::encode(&saved))
        };
        let saved = users.into_iter().map(|user| Saved { state: state(&user), user, part: Part::Accept });
        saved.collect()
    }

    /// Puts a window back.
    pub fn restore(&mut self, saved: Saved) {
        let Some(state) = &saved.state else { return };
        let window = recovery::decode::<SavedWindow>(state);
        let window = window.into_iter().map(|(time, id, fields)| ((time, id), fields));
        self.users.entry(saved.user).or_default().extend(window);
    }

    /// Judges the next record of the partition.
    pub fn judge(&mut self, record: &Record, format: Format) -> Judged {
        let interaction = match self.read(record, format) {
            Ok(interaction) => interaction,
            Err(reason) => return Judged::Refused(reason),
        };
        let home = self.semantics.partitioner.partition(interaction.user_id.as_bytes(), self.partitions);
        if home != self.partition {
            return Judged::Refused(Reason::Misrouted);
        }
        let time = interaction.event_time;
        let timestamp = record.timestamp.filter(|t| *t != -1).unwrap_or(time);
        if time > timestamp.saturating_add(self.semantics.max_future_skew_ms) {
            return Judged::Refused(Reason::Future);
        }
        self.maximum = self.maximum.max(time.min(timestamp));
        if self.erased.get(interaction.user_id.as_str()).is_some_and(|from| record.offset < *from) {
            return Judged::Erased;
        }
        let oldest = self.maximum.saturating_sub(self.semantics.lateness_ms);
        if time < oldest {
            return Judged::Refused(Reason::Late);
        }
        self.admit(interaction, oldest)
    }

    /// An interaction of a size that is read, whose key is its user.
    fn read(&self, record: &Record, format: Format) -> Result<Interaction, Reason> {
        sized(record, &self.semantics)?;
        let interaction = self.readable(record, format).ok_or(Reason::Unreadable)?;
        let ids = [&interaction.user_id, &interaction.item_id, &interaction.event_id];
        sized_ids(ids.into_iter().chain(&interaction.impression_id), &self.semantics)?;
        Ok(interaction)
    }

    /// A readable interaction, or `None`.
    fn readable(&self, record: &Record, format: Format) -> Option<Interaction> {
        let interaction = Interaction::decode_as(format, record.value.as_deref()?).ok()?;
        let rule = self.semantics.kinds.get(&interaction.kind)?;
        let ids = [&interaction.user_id, &interaction.item_id, &interaction.event_id];
        let has_ids = ids.iter().all(|id| !id.is_empty()) && interaction.impression_id.as_deref() != Some("");
        let has_value = !rule.needs_value() || interaction.value.is_some_and(f64::is_finite);
        let has_key = record.key.as_deref() == Some(interaction.user_id.as_bytes());
        let has_time = is_plausible(interaction.event_time);
        (has_ids && has_value && has_key && has_time).then_some(interaction)
    }

    /// Seen, conflict, window_full or accepted, for an event not older than `oldest`.
    fn admit(&mut self, interaction: Interaction, oldest: Millis) -> Judged {
        let user: Id = interaction.user_id.as_str().into();
        let event_id: Id = interaction.event_id.as_str().into();
        let fields = fields_digest(&interaction);
        let window = self.users.entry(user.clone()).or_default();
        // Older identities would be late, so they need no memory.
        while let Some(first) = window.first_entry() {
            if first.key().0 >= oldest {
                break;
            }
            first.remove();
        }
        if let Some(known) = window.get(&(interaction.event_time, event_id.clone())) {
            return if *known == fields { Judged::Seen } else { Judged::Refused(Reason::Conflict) };
        }
        if window.len() >= self.semantics.max_window_events {
            return Judged::Refused(Reason::WindowFull);
        }
        window.insert((interaction.event_time, event_id.clone()), fields);
        self.unsaved.insert(&user);
        self.sweep(oldest);
        let rule = self.semantics.kinds[&interaction.kind];
        Judged::Accepted(Event {
            user,
            partition: self.partition,
            engagement: rule.is_engagement(interaction.value),
            impression: rule.impression,
            impression_id: interaction.impression_id.as_deref().map(Id::from),
            entry: Entry {
                event_time: interaction.event_time,
                event_id,
                label: rule.label(interaction.value),
                item: interaction.item_id.into(),
                kind: interaction.kind.into(),
            },
        })
    }

    /// Drops users without an event in the window, at amortised constant cost a record.
    fn sweep(&mut self, oldest: Millis) {
        self.accepted_since_sweep += 1;
        if self.accepted_since_sweep > self.users.len() + 1024 {
            self.accepted_since_sweep = 0;
            self.users
                .retain(|_, window| window.last_key_value().is_some_and(|((time, _), _)| *time >= oldest));
        }
    }
}

/// A digest of all decoded fields; a value by its bits, so that equal means equal.
fn fields_digest(interaction: &Interaction) -> [u8; 32] {
    let mut frame = Frame::new().text(&interaction.item_id).text(&interaction.kind);
    frame = match interaction.value {
        Some(value) => frame.bytes(&value.to_bits().to_be_bytes()),
        None => frame.bytes(b""),
    };
    frame = match &interaction.impression_id {
        Some(id) => frame.int(1).text(id),
        None => frame.int(0),
    };
    // The identity itself is the map's key, so it need not be in the digest.
    ictflow_schemas::framing::digest(ictflow_schemas::framing::Domain::Identity, &frame).0
}

/// Refuses a record of more than `max_record_bytes`, key and value together as they stand on the topic.
fn sized(record: &Record, semantics: &Semantics) -> Result<(), Reason> {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let size = length(record.key.as_deref()).saturating_add(length(record.raw()));
    if size > semantics.max_record_bytes { Err(Reason::Oversized) } else { Ok(()) }
}

/// Refuses ids of more than `max_id_bytes`.
fn sized_ids<'a>(ids: impl IntoIterator<Item = &'a String>, semantics: &Semantics) -> Result<(), Reason> {
    if ids.into_iter().any(|id| id.len() > semantics.max_id_bytes) { Err(Reason::Oversized) } else { Ok(()) }
}

/// A record of `items` that counts: the item id and the item, `None` where it is deleted.
///
/// # Errors
/// In this order: *oversized* (the record), *unreadable*, *oversized* (the id).
pub fn item(record: &Record, format: Format, semantics: &Semantics) -> Result<(Id, Option<Item>), Reason> {
    sized(record, semantics)?;
    let id = text_key(record)?;
    let value = match record.value.as_deref() {
        None => None,
        Some(value) => Some(Item::decode_as(format, value).map_err(|_| Reason::Unreadable)?),
    };
    sized_ids([&id], semantics)?;
    Ok((id.into(), value))
}

/// A record of `candidates` that counts: the user and the set, `None` where it is withdrawn.
///
/// # Errors
/// In this order: *oversized* (the record), *unreadable* (also with an empty item id or an
/// implausible time), *oversized* (the user or an item id), *misrouted* (on another of `partitions`
/// than its key's: its offset would not compare with the others of the user),
/// *too_many_candidates*.
pub fn candidates(
    record: &Record,
    format: Format,
    partitions: u32,
    semantics: &Semantics,
) -> Result<(Id, Option<Candidates>), Reason> {
    sized(record, semantics)?;
    let user = text_key(record)?;
    let set = match record.value.as_deref() {
        None => None,
        Some(value) => Some(Candidates::decode_as(format, value).map_err(|_| Reason::Unreadable)?),
    };
    let readable =
        |set: &Candidates| is_plausible(set.computed_at) && !set.items.iter().any(String::is_empty);
    if !set.as_ref().is_none_or(readable) {
        return Err(Reason::Unreadable);
    }
    sized_ids(std::iter::once(&user).chain(set.iter().flat_map(|set| &set.items)), semantics)?;
    if semantics.partitioner.partition(user.as_bytes(), partitions) != record.partition {
        return Err(Reason::Misrouted);
    }
    if set.as_ref().is_some_and(|set| set.items.len() > semantics.max_candidates) {
        return Err(Reason::TooManyCandidates);
    }
    Ok((user.into(), set))
}

/// The key as a non-empty text.
fn text_key(record: &Record) -> Result<String, Reason> {
    let key = record.key.as_deref().unwrap_or_default();
    match std::str::from_utf8(key) {
        Ok(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(Reason::Unreadable),
    }
}
