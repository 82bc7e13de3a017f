//! Pure predicates over records: one text for production asserts, property tests and verifiers.

use crate::epoch::EpochRecord;
use crate::feature::{CotStatus, Feature};

/// Why a record breaks an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// A feature is consistent in itself: k counts its demonstrations, scores ascend, the status
/// follows, the vector is finite.
pub fn feature(feature: &Feature, k_max: usize) -> Result<(), Violation> {
    let used = &feature.demonstrations;
    require(feature.k as usize == used.len() && used.len() <= k_max, || {
        format!("k is {} with {} demonstrations of {k_max}", feature.k, used.len())
    })?;
    require(used.windows(2).all(|pair| pair[0].score <= pair[1].score), || "scores do not ascend".into())?;
    let status = CotStatus::of(used.len(), k_max, used.iter().any(|d| !d.fresh));
    require(feature.cot_status == status, || {
        format!("cot_status is {:?}, its demonstrations say {status:?}", feature.cot_status)
    })?;
    require(feature.ict.iter().all(|x| x.is_finite()), || {
        "the vector has a component that is not finite".into()
    })?;
    require(feature.cot_created_at.is_some() != used.is_empty(), || "cot_created_at and k disagree".into())
}

/// A bounds record follows another: epochs are contiguous, offsets, maxima and clock never fall,
/// partition counts stay.
pub fn epoch_follows(before: &EpochRecord, after: &EpochRecord) -> Result<(), Violation> {
    require(after.epoch == before.epoch + 1, || format!("epoch {} follows {}", after.epoch, before.epoch))?;
    require(after.clock >= before.clock, || "the event clock fell".into())?;
    require(
        after.maxima.len() == before.maxima.len()
            && before.maxima.iter().zip(&after.maxima).all(|(b, a)| a >= b),
        || "a partition maximum fell or the partition count changed".into(),
    )?;
    for (topic, ends) in &before.ends {
        let next =
            after.ends.get(topic).ok_or_else(|| Violation(format!("topic {topic} left the bounds")))?;
        require(next.len() == ends.len() && ends.iter().zip(next).all(|(b, a)| a >= b), || {
            format!("an end offset of {topic} fell or its partition count changed")
        })?;
    }
    Ok(())
}
