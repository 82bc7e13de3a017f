//! The journal: what is wanted and not yet answered. Used twice, for CoTs and for embeddings.
//!
//! **Computes**: requests = distinct(wanted) ▷ distinct(answered), an arranged anti-join on the key.
//! The answered side holds every key of the log, wanted or not, so a key that was answered once is
//! never requested. A request is retracted when it is answered or no longer wanted.
//!
//! **Memory**: differential's arrangements of both sides.

use crate::Epoch;
use differential_dataflow::{ExchangeData, VecCollection};
use ictflow_schemas::framing::Digest;

/// The wanted keys, each once, with what is needed to ask; and the requests among them.
pub struct Journal<'s, V: 'static> {
    /// distinct(wanted).
    pub wanted: VecCollection<'s, Epoch, (Digest, V), isize>,
    /// Those without an answer.
    pub requests: VecCollection<'s, Epoch, (Digest, V), isize>,
}

/// The operator `journal`. Equal keys come with equal values: a content key digests all of them.
pub fn journal<'s, V: ExchangeData + std::hash::Hash>(
    wanted: VecCollection<'s, Epoch, (Digest, V), isize>,
    answered: VecCollection<'s, Epoch, Digest, isize>,
) -> Journal<'s, V> {
    let wanted = wanted.distinct();
    let requests = wanted.clone().antijoin(answered.distinct());
    Journal { wanted, requests }
}
