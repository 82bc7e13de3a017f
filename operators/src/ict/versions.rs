//! Weights by version: what the operators of a process look up by the versions that an epoch's clock names.
//!
//! **A switch is a pure function of the clock.** An operator serves the weights that the clock names, whatever
//! the process holds beside them; so a replay, a recomputation and another process give the same vectors, or
//! say that the file isn't there.
//!
//! **What may change while a job runs**: every value and the sizes of the tables. Not the kind of vector, for
//! the graph is built for one; not d, which readers of the topic rely on; not the texts' width, which is the
//! encoder's.
//!
//! **Memory**: the weights being served, those of the shadow, and older ones as long as anybody uses them.

use super::error::WeightsError;
use super::shape::Kind;
use super::weights::Weights;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Finds weights by their version, or says where it looked. It must not ask [`Versions`].
pub type Find = dyn Fn(&str) -> Result<Arc<Weights>, String> + Send + Sync;

/// Weights by version, shared by all workers of a process. A clone is the same.
#[derive(Clone)]
pub struct Versions(Arc<Shared>);

struct Shared {
    held: Mutex<Held>,
    find: Option<Box<Find>>,
}

struct Held {
    serving: Arc<Weights>,
    shadow: Option<Arc<Weights>>,
    found: HashMap<String, Weak<Weights>>,
}

impl From<Arc<Weights>> for Versions {
    /// One version, and no other.
    fn from(serving: Arc<Weights>) -> Self {
        Versions::new(serving, None)
    }
}

impl Versions {
    /// The version that serves, and what finds others.
    pub fn new(serving: Arc<Weights>, find: Option<Box<Find>>) -> Self {
        let held = Held { serving, shadow: None, found: HashMap::new() };
        Versions(Arc::new(Shared { held: Mutex::new(held), find }))
    }

    /// Whether others can be found than those that it was given.
    pub fn finds_others(&self) -> bool {
        self.0.find.is_some()
    }

    /// The weights for new epochs.
    pub fn serving(&self) -> Arc<Weights> {
        self.held().serving.clone()
    }

    /// The weights that stand beside them.
    pub fn shadow(&self) -> Option<Arc<Weights>> {
        self.held().shadow.clone()
    }

    /// The kind of vector that all of them make.
    pub fn kind(&self) -> Kind {
        self.held().serving.kind()
    }

    /// Takes other weights for new epochs.
    ///
    /// # Errors
    /// Where they may not follow those that serve: what differs, by name. Then nothing has changed.
    pub fn serve(&self, weights: Arc<Weights>) -> Result<(), WeightsError> {
        let mut held = self.held();
        follows(&held.serving, &weights)?;
        let before = std::mem::replace(&mut held.serving, weights);
        held.found.insert(before.version().to_owned(), Arc::downgrade(&before));
        Ok(())
    }

    /// Puts weights beside those that serve, or takes them away.
    ///
    /// # Errors
    /// As [`Versions::serve`].
    pub fn stand_beside(&self, weights: Option<Arc<Weights>>) -> Result<(), WeightsError> {
        let mut held = self.held();
        if let Some(weights) = &weights {
            follows(&held.serving, weights)?;
        }
        held.shadow = weights;
        Ok(())
    }

    /// The weights of a version.
    ///
    /// # Errors
    /// [`WeightsError::Unknown`] where they can't be found; where they may not follow those that serve, what
    /// differs, by name.
    pub fn get(&self, version: &str) -> Result<Arc<Weights>, WeightsError> {
        let mut held = self.held();
        let weights = self.find(&mut held, version)?;
        follows(&held.serving, &weights)?;
        Ok(weights)
    }

    /// The weights that a clock names.
    ///
    /// # Panics
    /// Where they aren't there: no vector can be made then. A job has made sure before it began the epoch; a
    /// process that only hosts workers learns of it here.
    pub fn in_force(&self, version: &str) -> Arc<Weights> {
        self.get(version).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, serving another version whatever its kind and widths: for a recomputation.
    ///
    /// # Errors
    /// [`WeightsError::Unknown`] where it can't be found.
    pub fn serving_version(&self, version: &str) -> Result<Versions, WeightsError> {
        self.find(&mut self.held(), version).map(Versions::from)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing is left half done where a holder panicked.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, held: &mut Held, version: &str) -> Result<Arc<Weights>, WeightsError> {
        let own = [Some(&held.serving), held.shadow.as_ref()];
        if let Some(weights) = own.into_iter().flatten().find(|weights| weights.version() == version) {
            return Ok(weights.clone());
        }
        if let Some(weights) = held.found.get(version).and_then(Weak::upgrade) {
            return Ok(weights);
        }
        let unknown = |detail: String| WeightsError::Unknown { version: version.to_owned(), detail };
        let found = match &self.0.find {
            Some(find) => find(version),
            None => Err(format!("this process has the version {} only", held.serving.version())),
        };
        let weights = found.map_err(unknown)?;
        held.found.retain(|_, weights| weights.strong_count() > 0);
        held.found.insert(version.to_owned(), Arc::downgrade(&weights));
        Ok(weights)
    }
}

/// Refuses weights that may not follow others while a job runs.
fn follows(serving: &Weights, next: &Weights) -> Result<(), WeightsError> {
    let (ours, theirs) = (serving.shape(), next.shape());
    for (what, found, expected) in [
        ("the kind of the new weights", next.kind().to_string(), serving.kind().to_string()),
        ("d of the new weights", theirs.d.to_string(), ours.d.to_string()),
        ("the text width of the new weights", theirs.text.to_string(), ours.text.to_string()),
    ] {
        if found != expected {
            return Err(WeightsError::Misfit { what, found, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Shape, untrained_of};
    use super::*;

    fn small() -> Shape {
        Shape { d: 8, text: 16, user_rows: 4, item_rows: 4, creator_rows: 4, category_rows: 4 }
    }

    fn made(kind: Kind, seed: u64, shape: Shape) -> Arc<Weights> {
        Arc::new(Weights::from_safetensors(&untrained_of(kind, seed, shape).unwrap()).unwrap())
    }

    #[test]
    fn a_version_is_found_once_and_let_go_of_with_its_last_user() {
        let other = made(Kind::Decoder, 2, small());
        let (version, asked) = (other.version().to_owned(), Arc::new(Mutex::new(0)));
        let count = asked.clone();
        let find = move |named: &str| {
            *count.lock().unwrap() += 1;
            if named == other.version() { Ok(Arc::new((*other).clone())) } else { Err("not here".to_owned()) }
        };
        let versions = Versions::new(made(Kind::Decoder, 1, small()), Some(Box::new(find)));
        let first = versions.get(&version).unwrap();
        assert!(Arc::ptr_eq(&first, &versions.get(&version).unwrap()));
        assert_eq!(*asked.lock().unwrap(), 1);
        drop(first);
        versions.get(&version).unwrap();
        assert_eq!(*asked.lock().unwrap(), 2);
        let told = versions.get("v9").unwrap_err().to_string();
        assert!(told.contains("v9") && told.contains("not here"), "{told}");
        // What served is known by its version as long as anybody uses it.
        let before = versions.serving();
        versions.serve(versions.get(&version).unwrap()).unwrap();
        assert!(Arc::ptr_eq(&versions.get(before.version()).unwrap(), &before));
    }

    #[test]
    fn what_may_not_follow_is_refused_by_name_and_changes_nothing() {
        let versions = Versions::from(made(Kind::Decoder, 1, small()));
        let serving = versions.serving();
        for (other, named) in [
            (made(Kind::Attention, 1, small()), "attention, expected decoder"),
            (made(Kind::Decoder, 1, Shape { d: 12, ..small() }), "d of the new weights is 12, expected 8"),
            (
                made(Kind::Decoder, 1, Shape { text: 20, ..small() }),
                "the text width of the new weights is 20, expected 16",
            ),
        ] {
            for refused in [versions.serve(other.clone()), versions.stand_beside(Some(other.clone()))] {
                let told = refused.unwrap_err().to_string();
                assert!(told.contains(named) && told.contains("start the job again"), "{told}");
            }
            assert!(Arc::ptr_eq(&versions.serving(), &serving) && versions.shadow().is_none());
        }
        let larger = made(Kind::Decoder, 1, Shape { user_rows: 9, ..small() });
        versions.serve(larger.clone()).unwrap();
        assert!(Arc::ptr_eq(&versions.serving(), &larger));
        assert!(versions.get("another").unwrap_err().to_string().contains(larger.version()));
    }
}
