//! What stands under one key of an answer log, shared by [`crate::answers`] and [`crate::vectors`].
//!
//! An answer and its failure have topic keys of their own; of each the newest record stands, and an
//! unusable one is its tombstone. The key is answered if either stands, and an answer beats a failure.

/// The standing answer and failure of one key, with what was last emitted of them.
#[derive(Debug)]
pub struct Standing<V> {
    answer: Option<V>,
    failed: bool,
    /// `None`: not answered; `Some(None)`: only a failure stands.
    emitted: Option<Option<V>>,
}

impl<V> Default for Standing<V> {
    fn default() -> Self {
        Standing { answer: None, failed: false, emitted: None }
    }
}

impl<V: Clone + PartialEq> Standing<V> {
    /// Takes the next record of the failure's key.
    pub fn set_failed(&mut self, stands: bool) {
        self.failed = stands;
    }

    /// Takes the next record of the answer's key; `None` is a tombstone.
    pub fn set_answer(&mut self, answer: Option<V>) {
        self.answer = answer;
    }

    /// Hands what changed to `emit`, retraction first: the answer, or `None` where only a failure
    /// stands. False where nothing stands any more and the key can be forgotten.
    pub fn settle(&mut self, mut emit: impl FnMut(Option<V>, isize)) -> bool {
        let now = match &self.answer {
            Some(answer) => Some(Some(answer.clone())),
            None => self.failed.then_some(None),
        };
        if now != self.emitted {
            if let Some(old) = self.emitted.take() {
                emit(old, -1);
            }
            if let Some(new) = now.clone() {
                emit(new, 1);
            }
            self.emitted = now;
        }
        self.emitted.is_some()
    }
}
