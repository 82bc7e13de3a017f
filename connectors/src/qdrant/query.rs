//! Lookups: the nearest points of each label for many pairs at a time.

use super::client::{Client, Counts, all, first_failure};
use super::{collection, fields, list};
use crate::points::Query;
use crate::{Error, Result};
use qdrant_client::qdrant::{
    Condition, Filter, QueryBatchPointsBuilder, QueryPoints, QueryPointsBuilder, SearchParamsBuilder,
    r#match::MatchValue,
};
use std::cell::RefCell;
use std::time::Instant;
use uuid::Uuid;

/// The most ids of one label that a lookup may ask for.
const GREATEST_LIMIT: usize = 10_000;

/// See [`crate::points::Points::nearest`].
pub(super) async fn nearest(
    client: &Client,
    width: usize,
    queries: &[Query],
    limit: usize,
) -> Result<Vec<Vec<Uuid>>> {
    check(width, queries, limit)?;
    if limit == 0 {
        return Ok(vec![Vec::new(); queries.len()]);
    }
    let (batch, streams) = (client.config.query_batch, client.config.streams);
    let found = RefCell::new(vec![Vec::new(); queries.len()]);
    let lookups = (0..streams).map(|stream| {
        let found = &found;
        async move {
            for (number, chunk) in queries.chunks(batch).enumerate().skip(stream).step_by(streams) {
                let ids = look_up(client, chunk, limit).await?;
                found.borrow_mut()[number * batch..][..chunk.len()].clone_from_slice(&ids);
            }
            Ok(())
        }
    });
    first_failure(all(lookups.collect()).await)?;
    Ok(found.into_inner())
}

/// Refuses what the server would refuse later.
fn check(width: usize, queries: &[Query], limit: usize) -> Result<()> {
    let fault = |detail: String| {
        Error::fatal("look up demonstrations", detail, "report this: the dataflow asks wrongly")
    };
    if limit > GREATEST_LIMIT {
        return Err(Error::fatal(
            "look up demonstrations",
            format!("{limit} of each label are more than {GREATEST_LIMIT}"),
            "lower qdrant.over_fetch",
        ));
    }
    let [(_, size), _] = collection::sizes(width)?;
    for query in queries {
        if query.sample.len() != size {
            return Err(fault(format!("a query has {} components, not {size}", query.sample.len())));
        }
        if !query.sample.iter().all(|value| value.is_finite()) {
            return Err(fault("a query has a component that isn't finite".into()));
        }
    }
    Ok(())
}

/// Holds for points with just this text. Named as a keyword, since the library takes a text with a
/// blank for a search of words, which holds for other texts too.
fn keyword(field: &str, text: &str) -> Condition {
    Condition::matches(field, MatchValue::Keyword(text.to_owned()))
}

/// Holds for live points of a label, those of just this user and item left out.
fn candidates(query: &Query, positive: bool) -> Filter {
    Filter {
        must: vec![
            Condition::matches(fields::DELETED, false),
            Condition::matches(fields::POSITIVE, positive),
        ],
        must_not: vec![
            Filter::must([keyword(fields::USER, &query.user), keyword(fields::ITEM, &query.item)]).into(),
        ],
        ..Filter::default()
    }
}

fn search(client: &Client, query: &Query, positive: bool, limit: usize) -> QueryPoints {
    let config = &client.config;
    let mut params = SearchParamsBuilder::default().exact(config.exact);
    if let Some(hnsw_ef) = config.hnsw_ef {
        params = params.hnsw_ef(hnsw_ef);
    }
    QueryPointsBuilder::new(&config.collection)
        .query(query.sample.clone())
        .using(fields::SAMPLE)
        .filter(candidates(query, positive))
        .params(params)
        .limit(limit as u64)
        .with_payload(false)
        .with_vectors(false)
        .build()
}

/// One request: two searches a pair, the positive ones first.
async fn look_up(client: &Client, queries: &[Query], limit: usize) -> Result<Vec<Vec<Uuid>>> {
    let start = Instant::now();
    let name = &client.config.collection;
    let searches: Vec<QueryPoints> = queries
        .iter()
        .flat_map(|query| [true, false].map(|positive| search(client, query, positive, limit)))
        .collect();
    let request =
        QueryBatchPointsBuilder::new(name, searches).timeout(client.config.server_timeout_s()).build();
    let answers = client
        .attempt(
            || format!("look up {} pairs in collection {name}", queries.len()),
            async || Ok(client.qdrant.query_batch(request.clone()).await?.result),
        )
        .await?;
    let fault =
        |detail: String, hint| Error::fatal(format!("look up pairs in collection {name}"), detail, hint);
    if answers.len() != 2 * queries.len() {
        return Err(fault(
            format!("{} answers came to {} searches", answers.len(), 2 * queries.len()),
            "look into the server's log",
        ));
    }
    let mut found = Vec::with_capacity(queries.len());
    for pair in answers.chunks(2) {
        let points = pair.iter().flat_map(|answer| answer.result.iter().take(limit));
        let ids: std::result::Result<Vec<Uuid>, String> =
            points.map(|point| list::uuid(point.id.as_ref())).collect();
        found.push(ids.map_err(|detail| fault(detail, list::FOREIGN))?);
    }
    Counts::add(&client.counts.lookups, queries.len() as u64);
    Counts::add(&client.counts.candidates, found.iter().map(|ids| ids.len() as u64).sum());
    Counts::request(&client.counts.lookup_requests, &client.counts.lookup_us, start);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_compared_whole() {
        let query = Query { sample: Vec::new(), user: "ann lee".into(), item: "blue harbour".into() };
        let shown = format!("{:?}", candidates(&query, true));
        for text in ["ann lee", "blue harbour"] {
            assert!(shown.contains(&format!("Keyword({text:?})")), "{shown}");
        }
    }

    #[test]
    fn queries_are_checked_before_they_are_sent() {
        let query = |sample| Query { sample, user: "u".into(), item: "i".into() };
        assert!(check(2, &[query(vec![0.0; 4])], GREATEST_LIMIT).is_ok());
        assert!(check(2, &[], GREATEST_LIMIT + 1).unwrap_err().hint.contains("over_fetch"));
        assert!(check(2, &[query(vec![0.0; 3])], 1).unwrap_err().detail.contains("3 components, not 4"));
        assert!(check(2, &[query(vec![f32::INFINITY; 4])], 1).is_err());
    }
}
