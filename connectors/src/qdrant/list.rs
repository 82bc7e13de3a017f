//! The listing: pages of the whole collection in the order of ids, without vectors.

use super::client::{Client, Counts};
use super::fields;
use crate::points::Standing;
use crate::{Error, Result};
use qdrant_client::qdrant::{
    PayloadIncludeSelector, PointId, RetrievedPoint, ScrollPointsBuilder, point_id::PointIdOptions,
    value::Kind, with_payload_selector::SelectorOptions,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Every point with what it says of itself.
///
/// # Errors
/// `Fatal` where the collection holds more than `max_points`, or points that aren't ours.
pub(super) async fn list(client: &Client) -> Result<BTreeMap<Uuid, Standing>> {
    let config = &client.config;
    let name = &config.collection;
    let fault = |detail: String, hint| Error::fatal(format!("list collection {name}"), detail, hint);
    let mut standing = BTreeMap::new();
    let mut offset: Option<PointId> = None;
    loop {
        let fields = [fields::EPOCH, fields::DELETED, fields::DIGEST].map(String::from).to_vec();
        let mut request = ScrollPointsBuilder::new(name)
            .limit(config.page_points)
            .with_payload(SelectorOptions::Include(PayloadIncludeSelector { fields }))
            .with_vectors(false)
            .timeout(config.server_timeout_s());
        if let Some(offset) = offset.clone() {
            request = request.offset(offset);
        }
        let request = request.build();
        let page = client
            .attempt(
                || format!("list collection {name}"),
                async || Ok(client.qdrant.scroll(request.clone()).await?),
            )
            .await?;
        let before = standing.len();
        for point in &page.result {
            let (id, stands) = read(point).map_err(|detail| fault(detail, FOREIGN))?;
            standing.insert(id, stands);
        }
        if standing.len() > config.max_points {
            return Err(fault(
                format!("it holds more than {} points", config.max_points),
                "raise qdrant.max_points, or purge the collection",
            ));
        }
        match page.next_page_offset {
            None => break,
            // A page that adds nothing would be asked for for ever.
            Some(_) if standing.len() == before => {
                return Err(fault("a page brings nothing new".into(), "look into the server's log"));
            }
            next => offset = next,
        }
    }
    Counts::add(&client.counts.listed, standing.len() as u64);
    Ok(standing)
}

/// What to do about points of another program.
pub(super) const FOREIGN: &str = "give the job a collection of its own by qdrant.collection";

/// The UUID of a point of ours.
pub(super) fn uuid(id: Option<&PointId>) -> std::result::Result<Uuid, String> {
    match id.and_then(|id| id.point_id_options.as_ref()) {
        Some(PointIdOptions::Uuid(text)) => {
            text.parse().map_err(|_| "it holds a point whose id is no UUID".to_owned())
        }
        Some(PointIdOptions::Num(number)) => Err(format!("it holds point {number}, and ours have UUIDs")),
        None => Err("it gave a point without an id".to_owned()),
    }
}

fn read(point: &RetrievedPoint) -> std::result::Result<(Uuid, Standing), String> {
    let id = uuid(point.id.as_ref())?;
    let kind = |field: &str| point.payload.get(field).and_then(|value| value.kind.as_ref());
    let missing = |field: &str| format!("its point {id} has no {field} as ours do");
    let Some(Kind::IntegerValue(epoch)) = kind(fields::EPOCH) else { return Err(missing(fields::EPOCH)) };
    let Some(Kind::BoolValue(deleted)) = kind(fields::DELETED) else { return Err(missing(fields::DELETED)) };
    let Some(Kind::StringValue(digest)) = kind(fields::DIGEST) else { return Err(missing(fields::DIGEST)) };
    Ok((id, Standing { epoch: *epoch, deleted: *deleted, digest: digest.clone() }))
}
