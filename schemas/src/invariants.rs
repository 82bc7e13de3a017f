//! Pure predicates over records: one text for production asserts, property tests and verifiers.

use crate::epoch::EpochRecord;
use crate::feature::{CotStatus, Feature, NeighbourSource, UsedNeighbour, VectorKind};
use crate::neighbour::VOTES;

/// Why a record breaks an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// A feature is consistent in itself: k counts its demonstrations, scores ascend, the status
/// follows, vector and votes are finite, neighbours stand in their order.
pub fn feature(feature: &Feature, k_max: usize, neighbours_max: usize) -> Result<(), Violation> {
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
    require(feature.cot_created_at.is_some() != used.is_empty(), || "cot_created_at and k disagree".into())?;
    require(feature.votes.len() == VOTES && feature.votes.iter().all(|x| x.is_finite()), || {
        format!("the votes are {:?}, not nine finite numbers", feature.votes)
    })?;
    let order = |neighbour: &UsedNeighbour| (neighbour.source, neighbour.score);
    require(feature.neighbours.is_sorted_by_key(order), || "neighbours are out of order".into())?;
    for source in [NeighbourSource::SameItem, NeighbourSource::SameUser] {
        let of_source = feature.neighbours.iter().filter(|neighbour| neighbour.source == source);
        require(of_source.count() <= neighbours_max, || format!("too many neighbours of {source:?}"))?;
    }
    require(feature.history_labels.len() == feature.history.len(), || {
        "history and history_labels differ in length".into()
    })?;
    require(feature.vector_kind == VectorKind::Decoder || used.is_empty(), || {
        "a vector of attention has demonstrations".into()
    })
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

/// Epochs are committed one after the other: none is left out, none committed again.
pub fn commit_follows(before: i64, after: i64) -> Result<(), Violation> {
    require(after == before + 1, || format!("epoch {after} was committed after epoch {before}"))
}

/// A published record names an epoch whose bounds are recorded and that is committed.
pub fn published(epoch: i64, recorded: i64, committed: i64) -> Result<(), Violation> {
    require(epoch >= 1 && epoch <= recorded, || {
        format!("a record of epoch {epoch} is published, bounds are recorded to {recorded}")
    })?;
    require(epoch <= committed, || {
        format!("a record of epoch {epoch} is published, {committed} is committed")
    })
}

/// Every wanted key is answered, waits for its call, or is in flight.
pub fn accounting(wanted: usize, answered: usize, queued: usize, in_flight: usize) -> Result<(), Violation> {
    require(wanted == answered + queued + in_flight, || {
        format!("{wanted} keys are wanted, {answered} answered, {queued} queued, {in_flight} in flight")
    })
}

/// No key has a first call twice, but for those whose answer a crash took: in flight, it may be asked as if
/// it never was.
pub fn first_calls(first: usize, distinct: usize, cut_off: usize) -> Result<(), Violation> {
    require(first <= distinct + cut_off, || {
        format!("{first} first calls of {distinct} keys, {cut_off} in flight at crashes")
    })
}

/// A published vector was made of demonstrations that stand in the store of points.
pub fn demonstrations_stand(feature: &Feature, stands: impl Fn(&str) -> bool) -> Result<(), Violation> {
    match feature.demonstrations.iter().find(|used| !stands(&used.id)) {
        None => Ok(()),
        Some(used) => Err(Violation(format!(
            "the vector of {} and {} uses point {}, which doesn't stand",
            feature.user_id, feature.item_id, used.id
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holds_at_its_edge_and_breaks_one_beyond() {
        assert!(commit_follows(0, 1).is_ok());
        assert!(
            commit_follows(4, 4).is_err() && commit_follows(4, 6).is_err() && commit_follows(4, 3).is_err()
        );
        assert!(published(3, 3, 3).is_ok() && published(1, 3, 3).is_ok());
        assert!(published(3, 2, 3).is_err() && published(3, 3, 2).is_err() && published(0, 3, 3).is_err());
        assert!(accounting(6, 1, 2, 3).is_ok());
        assert!(accounting(6, 1, 2, 2).is_err() && accounting(6, 2, 2, 3).is_err());
        assert!(first_calls(5, 3, 2).is_ok() && first_calls(6, 3, 2).is_err());
    }
}
