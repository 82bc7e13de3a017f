//! The state of users that no compacted log holds: saved, restored, erased.
//!
//! What derives from `interactions` alone can't be read again once the topic has forgotten it, and
//! reading it again takes time: the judge's windows, and those of the operators `history`, `pairs`,
//! `eligible` and `labels`. All of it belongs to one user, so it is saved user by user. Everything else in the
//! dataflow follows from this and the compacted logs, and is computed anew at a restart.
//!
//! The four operators take [`Recovery`] as an input and give [`Saved`] as an output. So the states
//! travel as any other data do, and any number of workers can restore what another number saved.
//!
//! **Order within a time**: restore, erase, the time's other input, save. `labels` erases after the other
//! input, which has what `history` takes back; its rings are filled again in a time of its own.

use crate::Changes;
use crate::staged::route;
use ictflow_schemas::Id;
use ictflow_schemas::history::{Entry, History};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// How many virtual shards users fall into.
pub const SHARDS: usize = 256;

/// The virtual shard of a user: the same in every version and for any number of workers.
pub fn shard(user: &str) -> u8 {
    (route(user) >> 56) as u8
}

/// Whose state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// [`crate::accept`].
    Accept,
    /// [`crate::history`].
    History,
    /// [`crate::pairs`].
    Pairs,
    /// [`crate::eligible`].
    Eligible,
    /// [`crate::labels`].
    Labels,
    /// What the sources refused of a partition, whose number stands in the place of the user.
    Refusals,
}

/// Which users are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Extent {
    /// Every one.
    All,
    /// Those whose state may have changed since they were last saved.
    Changed,
}

/// What is done to users' states.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Recovery {
    /// Puts a state back, into an operator that doesn't know the user.
    Restore(Saved),
    /// Forgets a user: all that was emitted is retracted.
    Erase(Id),
    /// Fills the ring of an item again that an erasure left with too few, for the worker named.
    Refill(u64, Id),
    /// Saves, for the worker named.
    Save(u64, Extent),
}

/// A user's state in one operator; `None` where there is none any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Saved {
    /// The user.
    pub user: Id,
    /// The operator.
    pub part: Part,
    /// The state's bytes.
    pub state: Option<Arc<[u8]>>,
}

impl Recovery {
    /// The worker that it goes to.
    pub fn route(&self) -> u64 {
        match self {
            Recovery::Restore(saved) => route(&saved.user),
            Recovery::Erase(user) => route(user),
            Recovery::Refill(worker, _) | Recovery::Save(worker, _) => *worker,
        }
    }

    /// Whether an operator has to do with it.
    pub fn concerns(&self, part: Part) -> bool {
        match self {
            Recovery::Restore(saved) => saved.part == part,
            Recovery::Refill(..) => part == Part::Labels,
            Recovery::Erase(_) | Recovery::Save(..) => true,
        }
    }
}

/// What one time brings an operator, in the order in which it has to be done.
#[derive(Debug, Default)]
pub struct Orders {
    /// States to put back.
    pub restore: Vec<Saved>,
    /// Users to forget.
    pub erase: BTreeSet<Id>,
    /// Items whose rings to fill again.
    pub refill: BTreeSet<Id>,
    /// Whom to save at the end.
    pub save: Option<Extent>,
}

impl Orders {
    /// Takes one.
    pub fn take(&mut self, recovery: Recovery) {
        match recovery {
            Recovery::Restore(saved) => self.restore.push(saved),
            Recovery::Erase(user) => {
                self.erase.insert(user);
            }
            Recovery::Refill(_, item) => {
                self.refill.insert(item);
            }
            Recovery::Save(_, extent) => self.save = Some(extent),
        }
    }
}

/// Users whose state may differ from what was last saved.
///
/// Memory: one shared id a user.
#[derive(Clone, Debug, Default)]
pub struct Unsaved(HashSet<Id>);

impl Unsaved {
    /// Notes a user.
    pub fn insert(&mut self, user: &Id) {
        if !self.0.contains(user) {
            self.0.insert(user.clone());
        }
    }

    /// Gives whom to save, each once, in no order: the unsaved ones, or all of `every`; and notes that
    /// they are.
    pub fn take(&mut self, extent: Extent, every: impl Iterator<Item = Id>) -> Vec<Id> {
        let unsaved = std::mem::take(&mut self.0);
        match extent {
            Extent::All => every.collect(),
            Extent::Changed => unsaved.into_iter().collect(),
        }
    }
}

/// Emits the states of users as an operator has them.
pub fn save<O, S: Serialize>(
    part: Part,
    users: Vec<Id>,
    wrap: impl Fn(Saved) -> O,
    state: impl Fn(&Id) -> Option<S>,
    out: &mut Changes<O>,
) {
    out.extend(users.into_iter().map(|user| {
        let state = state(&user).map(|state| encode(&state));
        (wrap(Saved { user, part, state }), 1)
    }));
}

/// A state's bytes.
pub fn encode(state: &impl Serialize) -> Arc<[u8]> {
    // Writing plain data to memory can't fail.
    postcard::to_stdvec(state).expect("a state is plain data").into()
}

/// Reads a state's bytes.
///
/// # Panics
/// Where they are none: whoever restores has verified their checksum and format.
pub fn decode<S: DeserializeOwned>(bytes: &[u8]) -> S {
    postcard::from_bytes(bytes).expect("a saved state has a verified checksum and format")
}

/// Histories of one user as indices into a table of their entries, since neighbours share most.
#[derive(Debug, Default)]
pub struct Packer {
    places: BTreeMap<Entry, u32>,
}

impl Packer {
    /// A table of these entries.
    pub fn new<'a>(entries: impl Iterator<Item = &'a Entry>) -> Self {
        let distinct: BTreeSet<&Entry> = entries.collect();
        Packer {
            places: distinct.into_iter().zip(0..).map(|(entry, place)| (entry.clone(), place)).collect(),
        }
    }

    /// A history that is in the table.
    pub fn pack(&self, history: &[Entry]) -> Vec<u32> {
        history.iter().map(|entry| self.places[entry]).collect()
    }

    /// The table.
    pub fn table(self) -> Vec<Entry> {
        self.places.into_keys().collect()
    }
}

/// The history that was packed.
pub fn unpack(table: &[Entry], places: &[u32]) -> History {
    places.iter().map(|place| table[*place as usize].clone()).collect()
}
