//! Upserts, marks and purges, each guarded so that doing it again, or late, changes nothing.

use super::client::{Client, Counts, all, completed, first_failure};
use super::{collection, fields};
use crate::points::Point;
use crate::{Error, Result};
use qdrant_client::Payload;
use qdrant_client::qdrant::{
    Condition, DeletePointsBuilder, Filter, NamedVectors, PointId, PointStruct, Range,
    SetPayloadPointsBuilder, UpsertPointsBuilder, Value, WriteOrdering, WriteOrderingType,
};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Instant;
use uuid::Uuid;

/// The greatest epoch: Qdrant compares in f64, which counts exactly up to here.
const GREATEST_EPOCH: i64 = 1 << 53;

/// The bytes of points in one request, by a rough count; a batch is cut earlier where it has more.
const REQUEST_BYTES: usize = 16 << 20;

/// Between replicas, writes keep the order in which one of them took them.
fn ordering() -> WriteOrdering {
    WriteOrdering { r#type: WriteOrderingType::Medium as i32 }
}

/// An epoch as the payload and the filters hold it.
///
/// # Errors
/// `Fatal` where Qdrant couldn't compare it exactly.
fn checked_epoch(epoch: i64) -> Result<f64> {
    match (0..=GREATEST_EPOCH).contains(&epoch) {
        true => Ok(epoch as f64),
        false => Err(Error::fatal(
            format!("write points of epoch {epoch}"),
            format!("qdrant compares epochs exactly from 0 to {GREATEST_EPOCH}"),
            "report this: no job gets there",
        )),
    }
}

/// Holds for points that a write of this epoch may replace: those of earlier epochs, and those of
/// this one unless it marked them. So within one epoch a mark wins, in whatever order the two
/// arrive and however often.
fn replaceable(epoch: f64) -> Filter {
    Filter {
        must: vec![Condition::range(fields::EPOCH, Range { lte: Some(epoch), ..Range::default() })],
        should: vec![
            Condition::range(fields::EPOCH, Range { lt: Some(epoch), ..Range::default() }),
            Condition::matches(fields::DELETED, false),
        ],
        ..Filter::default()
    }
}

/// Holds for those of the points that exist and that no later epoch wrote.
fn markable(ids: &[Uuid], epoch: f64) -> Filter {
    Filter::must([
        Condition::has_id(ids.iter().map(|id| PointId::from(id.to_string()))),
        Condition::range(fields::EPOCH, Range { lte: Some(epoch), ..Range::default() }),
    ])
}

/// Holds for points that were marked at or before an epoch.
fn purgeable(epoch: f64) -> Filter {
    Filter::must([
        Condition::matches(fields::DELETED, true),
        Condition::range(fields::EPOCH, Range { lte: Some(epoch), ..Range::default() }),
    ])
}

/// Writes and marks; see [`crate::points::Points::write`]. Everything is checked before anything is
/// sent.
pub(super) async fn write(
    client: &Client,
    width: usize,
    epoch: i64,
    points: &[Point],
    deleted: &[Uuid],
) -> Result<()> {
    let guard = checked_epoch(epoch)?;
    check(width, epoch, points, deleted)?;
    let streams = client.config.streams;
    let failed = Cell::new(false);
    let writes = (0..streams).map(|stream| {
        let failed = &failed;
        let points: Vec<&Point> =
            points.iter().filter(|point| stream_of(point.id, streams) == stream).collect();
        let deleted: Vec<Uuid> =
            deleted.iter().copied().filter(|id| stream_of(*id, streams) == stream).collect();
        async move {
            let result = async {
                for batch in batches(&points, client.config.batch, REQUEST_BYTES) {
                    // Where one stream fails the call fails, so the others don't begin new requests.
                    if failed.get() {
                        return Ok(());
                    }
                    upsert(client, epoch, guard, batch).await?;
                }
                for batch in deleted.chunks(client.config.batch) {
                    if failed.get() {
                        return Ok(());
                    }
                    mark(client, epoch, guard, batch).await?;
                }
                Ok(())
            }
            .await;
            failed.set(failed.get() || result.is_err());
            result
        }
    });
    first_failure(all(writes.collect()).await)
}

/// The stream that all writes of a point go through.
fn stream_of(id: Uuid, streams: usize) -> usize {
    usize::try_from(id.as_u128() % streams as u128).unwrap_or(0)
}

/// Cuts points into requests of at most so many points and, beyond the first one, bytes.
fn batches<'a>(points: &'a [&'a Point], most: usize, bytes: usize) -> Vec<&'a [&'a Point]> {
    let mut batches = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (at, point) in points.iter().enumerate() {
        let weight = weight(point);
        if at > start && (at - start >= most || size + weight > bytes) {
            batches.push(&points[start..at]);
            (start, size) = (at, 0);
        }
        size += weight;
    }
    if start < points.len() {
        batches.push(&points[start..]);
    }
    batches
}

/// Roughly the bytes of a point on the wire.
fn weight(point: &Point) -> usize {
    let list = |texts: &[String]| texts.iter().map(|text| text.len() + 8).sum::<usize>();
    4 * (point.sample.len() + point.cot.len())
        + (point.user.len() + point.item.len() + point.digest.len() + 256)
        + (point.creator.as_ref().map_or(0, String::len) + list(&point.history) + list(&point.categories))
}

/// Refuses what the server would refuse later or, worse, take.
fn check(width: usize, epoch: i64, points: &[Point], deleted: &[Uuid]) -> Result<()> {
    let fault = |id: &Uuid, detail: String| {
        Err(Error::fatal(
            format!("write point {id} of epoch {epoch}"),
            detail,
            "report this: the dataflow made a wrong point",
        ))
    };
    let sizes = collection::sizes(width)?;
    let mut ids = BTreeSet::new();
    for point in points {
        for ((name, size), vector) in sizes.iter().zip([&point.sample, &point.cot]) {
            if vector.len() != *size {
                return fault(
                    &point.id,
                    format!("its vector {name} has {} components, not {size}", vector.len()),
                );
            }
            if !vector.iter().all(|value| value.is_finite()) {
                return fault(&point.id, format!("its vector {name} has a component that isn't finite"));
            }
        }
        if !ids.insert(point.id) {
            return fault(&point.id, "it is written twice".into());
        }
    }
    match deleted.iter().find(|id| ids.contains(id)) {
        Some(id) => fault(id, "it is both written and marked as deleted".into()),
        None => Ok(()),
    }
}

async fn upsert(client: &Client, epoch: i64, guard: f64, points: &[&Point]) -> Result<()> {
    let start = Instant::now();
    let structs: Vec<PointStruct> = points.iter().map(|point| point_struct(point, epoch)).collect();
    let name = &client.config.collection;
    let request = UpsertPointsBuilder::new(name, structs)
        .wait(true)
        .ordering(ordering())
        .update_filter(replaceable(guard))
        .timeout(client.config.server_timeout_s())
        .build();
    client
        .attempt(
            || format!("write {} points to collection {name}", points.len()),
            async || completed(client.qdrant.upsert_points(request.clone()).await?),
        )
        .await?;
    Counts::add(&client.counts.upserted, points.len() as u64);
    Counts::request(&client.counts.write_requests, &client.counts.write_us, start);
    Ok(())
}

/// Marks by a filter, since a write by id alone would make points that don't exist.
async fn mark(client: &Client, epoch: i64, guard: f64, ids: &[Uuid]) -> Result<()> {
    let start = Instant::now();
    let name = &client.config.collection;
    let mut payload = Payload::new();
    payload.insert(fields::DELETED, true);
    payload.insert(fields::EPOCH, epoch);
    let request = SetPayloadPointsBuilder::new(name, payload)
        .points_selector(markable(ids, guard))
        .wait(true)
        .ordering(ordering())
        .timeout(client.config.server_timeout_s())
        .build();
    client
        .attempt(
            || format!("mark {} points of collection {name} as deleted", ids.len()),
            async || completed(client.qdrant.set_payload(request.clone()).await?),
        )
        .await?;
    Counts::add(&client.counts.marked, ids.len() as u64);
    Counts::request(&client.counts.write_requests, &client.counts.write_us, start);
    Ok(())
}

/// Removes what was marked at or before an epoch.
pub(super) async fn purge(client: &Client, epoch: i64) -> Result<()> {
    let start = Instant::now();
    let name = &client.config.collection;
    let request = DeletePointsBuilder::new(name)
        .points(purgeable(checked_epoch(epoch)?))
        .wait(true)
        .ordering(ordering())
        .timeout(client.config.server_timeout_s())
        .build();
    client
        .attempt(
            || format!("purge collection {name} up to epoch {epoch}"),
            async || completed(client.qdrant.delete_points(request.clone()).await?),
        )
        .await?;
    Counts::add(&client.counts.purges, 1);
    Counts::request(&client.counts.write_requests, &client.counts.write_us, start);
    Ok(())
}

/// A point as it goes over the wire.
fn point_struct(point: &Point, epoch: i64) -> PointStruct {
    let mut payload = Payload::new();
    payload.insert(fields::USER, point.user.as_str());
    payload.insert(fields::ITEM, point.item.as_str());
    payload.insert(fields::POSITIVE, point.positive);
    payload.insert(fields::LABEL_TIME, point.label_time);
    payload.insert(fields::HISTORY, texts(&point.history));
    if let Some(creator) = &point.creator {
        payload.insert(fields::CREATOR, creator.as_str());
    }
    payload.insert(fields::CATEGORIES, texts(&point.categories));
    payload.insert(fields::DIGEST, point.digest.as_str());
    payload.insert(fields::EPOCH, epoch);
    payload.insert(fields::DELETED, false);
    let vectors = NamedVectors::default()
        .add_vector(fields::SAMPLE, point.sample.clone())
        .add_vector(fields::COT, point.cot.clone());
    PointStruct::new(point.id.to_string(), vectors, payload)
}

fn texts(texts: &[String]) -> Value {
    texts.iter().map(|text| Value::from(text.as_str())).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disposition;

    fn point(n: u128) -> Point {
        Point {
            id: Uuid::from_u128(n),
            sample: vec![0.5; 4],
            cot: vec![0.5; 2],
            user: "u".into(),
            item: "i".into(),
            positive: true,
            label_time: 1,
            history: vec!["h".into()],
            creator: None,
            categories: Vec::new(),
            digest: "d".into(),
        }
    }

    #[test]
    fn what_the_server_would_take_wrongly_is_refused_by_name() {
        let id = Uuid::from_u128;
        assert!(check(2, 1, &[point(1), point(2)], &[id(3), id(3)]).is_ok());
        let wide = Point { sample: vec![0.5; 5], ..point(1) };
        let narrow = Point { cot: vec![0.5], ..point(1) };
        let broken = Point { cot: vec![f32::NAN, 0.0], ..point(1) };
        for (points, deleted, words) in [
            (vec![wide], vec![], "sample has 5 components, not 4"),
            (vec![narrow], vec![], "cot has 1 components, not 2"),
            (vec![broken], vec![], "isn't finite"),
            (vec![point(1), point(1)], vec![], "written twice"),
            (vec![point(1)], vec![id(1)], "both written and marked"),
        ] {
            let error = check(2, 1, &points, &deleted).unwrap_err();
            assert_eq!(error.disposition, Disposition::Fatal);
            assert!(error.detail.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn epochs_end_where_a_double_does() {
        assert!(checked_epoch(0).is_ok() && checked_epoch(GREATEST_EPOCH).is_ok());
        assert!(checked_epoch(-1).is_err() && checked_epoch(GREATEST_EPOCH + 1).is_err());
    }

    #[test]
    fn batches_hold_every_point_once_within_both_limits() {
        let points: Vec<Point> = (0..10).map(point).collect();
        let points: Vec<&Point> = points.iter().collect();
        let one = weight(points[0]);
        let shape =
            |most, bytes| -> Vec<usize> { batches(&points, most, bytes).iter().map(|b| b.len()).collect() };
        assert_eq!(shape(10, usize::MAX), [10]);
        assert_eq!(shape(9, usize::MAX), [9, 1]);
        assert_eq!(shape(4, usize::MAX), [4, 4, 2]);
        assert_eq!(shape(10, 3 * one), [3, 3, 3, 1]);
        assert_eq!(shape(10, 3 * one - 1), [2, 2, 2, 2, 2]);
        // A point above the limit goes alone.
        assert_eq!(shape(10, 1), [1; 10]);
        assert_eq!(batches(&points, 4, usize::MAX).concat().len(), 10);
        assert!(batches(&[], 4, 4).is_empty());
    }

    #[test]
    fn one_point_has_one_stream_and_all_streams_have_points() {
        let ids: Vec<Uuid> =
            (0..1_000).map(|n: u32| Uuid::new_v5(&Uuid::NAMESPACE_URL, &n.to_be_bytes())).collect();
        for streams in [1, 2, 3, 16] {
            let used: BTreeSet<usize> = ids.iter().map(|id| stream_of(*id, streams)).collect();
            assert_eq!(used, (0..streams).collect());
        }
    }
}
