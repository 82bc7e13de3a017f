//! The effective sketches of users and items, for everyone who compares by them.
//!
//! **Computes**: of every user and item with an effective label the unit form of its sketch
//! ([`crate::retrieval::sketch`]) and the rate of its labels at the event clock. A sketch stands still until the clock passes a
//! multiple of the sketch period: then all that changed since are emitted at once. A label that comes
//! later than that is in at once, so that the result stays a function of the labels and the clock.
//!
//! **Late changes, duplicates**: as of the sketches; changes of one epoch are netted first.
//!
//! **Memory**: that of the sketches, by owner; each stands on one worker.

use crate::clock::Clock;
use crate::retrieval::neighbours::{Neighbourhood, boundary};
use crate::retrieval::sketch::{Side, Sketches};
use crate::staged::{route, staged};
use crate::{Changes, Epoch};
use differential_dataflow::VecCollection;
use ictflow_schemas::neighbour::LabelledExample;
use ictflow_schemas::vector::Quantised;
use ictflow_schemas::{Id, Millis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What the operator takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Input {
    /// A labelled example, for the sketch of one side.
    Label(Side, Arc<LabelledExample>),
    /// The epoch's clock, for the worker named.
    Clock(u64, Clock),
}

/// The unit form of an effective sketch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Effective {
    /// Whose kind it is.
    pub side: Side,
    /// Whose it is.
    pub id: Id,
    /// The unit form.
    pub unit: Quantised,
    /// The rate of its labels, in 1/1024. Only items' are read.
    pub rate: i32,
}

/// The state of the operator.
#[derive(Debug)]
pub struct EffectiveSketches {
    period: Millis,
    users: Sketches,
    items: Sketches,
    emitted: HashMap<(Side, Id), (Quantised, i32)>,
}

impl EffectiveSketches {
    /// An empty state.
    pub fn new(neighbourhood: Neighbourhood) -> Self {
        EffectiveSketches {
            period: neighbourhood.sketch_period_ms,
            users: Sketches::new(Side::User, neighbourhood.label_centre),
            items: Sketches::new(Side::Item, neighbourhood.label_centre),
            emitted: HashMap::new(),
        }
    }

    /// Takes an epoch's changes.
    pub fn step(&mut self, changes: Changes<Input>, out: &mut Changes<Effective>) {
        let mut labels: BTreeMap<(Side, Arc<LabelledExample>), isize> = BTreeMap::new();
        let mut clock = None;
        for (input, diff) in changes {
            match input {
                Input::Label(side, label) => *labels.entry((side, label)).or_default() += diff,
                Input::Clock(_, now) => clock = Some(now),
            }
        }
        let (mut users, mut items) = (BTreeSet::new(), BTreeSet::new());
        for ((side, label), diff) in labels.into_iter().filter(|(_, diff)| *diff != 0) {
            match side {
                Side::User => self.users.change(&label, diff, &mut users),
                Side::Item => self.items.change(&label, diff, &mut items),
            }
        }
        if let Some(clock) = clock {
            let effective = boundary(clock.now, self.period);
            self.users.advance(effective, &mut users);
            self.items.advance(effective, &mut items);
        }
        for (side, sketches, changed) in [(Side::User, &self.users, users), (Side::Item, &self.items, items)]
        {
            for id in changed {
                let new = sketches.shared_unit(&id).map(|unit| (unit.clone(), sketches.rate(&id)));
                let old = match &new {
                    Some(new) => self.emitted.insert((side, id.clone()), new.clone()),
                    None => self.emitted.remove(&(side, id.clone())),
                };
                if old != new {
                    let effective = |(unit, rate)| Effective { side, id: id.clone(), unit, rate };
                    out.extend(old.map(|old| (effective(old), -1)));
                    out.extend(new.map(|new| (effective(new), 1)));
                }
            }
        }
    }
}

/// The operator `sketches`.
pub fn sketches<'s>(
    labels: VecCollection<'s, Epoch, Arc<LabelledExample>, isize>,
    clock: VecCollection<'s, Epoch, (u64, Clock), isize>,
    neighbourhood: Neighbourhood,
) -> VecCollection<'s, Epoch, Effective, isize> {
    let mut state = EffectiveSketches::new(neighbourhood);
    let input = labels
        .flat_map(|label| [Input::Label(Side::User, label.clone()), Input::Label(Side::Item, label)])
        .concat(clock.map(|(worker, clock)| Input::Clock(worker, clock)));
    let by = |input: &Input| match input {
        Input::Label(side, label) => route(side.owner(label)),
        Input::Clock(worker, _) => *worker,
    };
    staged(input, "sketches", by, move |_, changes, out| state.step(changes, out))
}
