//! The collection: made with its payload indexes before any point, or checked against what is needed.

use super::client::{Client, completed};
use super::{Reached, fields};
use crate::{Error, Result};
use qdrant_client::qdrant::{
    CollectionInfo, CreateAlias, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder, Distance,
    FieldType, HnswConfigDiffBuilder, PayloadSchemaType, VectorParamsBuilder, VectorsConfigBuilder,
    vectors_config,
};
use std::collections::BTreeMap;

/// The oldest server that knows conditional upserts. An older one would ignore the condition in
/// silence, and old writes would win.
const OLDEST: (u32, u32) = (1, 16);

/// The widest vector that Qdrant takes.
const WIDEST: usize = 65_536;

/// The indexes of the payload. They come before the points: links of the graph that serve a filter
/// are only made for fields that have an index by then.
const INDEXES: [(&str, FieldType, PayloadSchemaType); 5] = [
    (fields::POSITIVE, FieldType::Bool, PayloadSchemaType::Bool),
    (fields::DELETED, FieldType::Bool, PayloadSchemaType::Bool),
    (fields::EPOCH, FieldType::Integer, PayloadSchemaType::Integer),
    (fields::USER, FieldType::Keyword, PayloadSchemaType::Keyword),
    (fields::ITEM, FieldType::Keyword, PayloadSchemaType::Keyword),
];

/// The sizes of the two named vectors.
///
/// # Errors
/// `Fatal` where Qdrant has no vectors of that size.
pub(super) fn sizes(width: usize) -> Result<[(&'static str, usize); 2]> {
    if width == 0 || width > WIDEST / 2 {
        return Err(Error::fatal(
            format!("hold vectors of width {width}"),
            format!("qdrant takes at most {WIDEST} components, and the sample vector has twice the width"),
            "use another encoder",
        ));
    }
    Ok([(fields::SAMPLE, 2 * width), (fields::COT, width)])
}

/// Asks the server for its version and the collection for its shape. Changes nothing.
///
/// # Errors
/// `Fatal` where the server is too old or the collection has other vectors or indexes.
pub(super) async fn look(client: &Client, width: usize) -> Result<Reached> {
    let expected = sizes(width)?;
    let url = &client.config.url;
    let version = client
        .attempt(
            || format!("reach qdrant at {url}"),
            async || Ok(client.qdrant.health_check().await?.version),
        )
        .await?;
    if version_of(&version).is_none_or(|version| version < OLDEST) {
        return Err(Error::fatal(
            format!("use the qdrant server at {url}"),
            format!("its version is {:?}", version.chars().take(40).collect::<String>()),
            "use Qdrant 1.16 or newer: an older one ignores the condition that keeps old writes out",
        ));
    }
    let name = client.config.collection.as_str();
    let exists = client
        .attempt(
            || format!("look for collection {name}"),
            async || Ok(client.qdrant.collection_exists(name).await?),
        )
        .await?;
    if !exists {
        return Ok(Reached { version, points: None, missing_indexes: Vec::new() });
    }
    let info = client
        .attempt(
            || format!("read the shape of collection {name}"),
            async || Ok(client.qdrant.collection_info(name).await?.result),
        )
        .await?
        .unwrap_or_default();
    let fault = |detail: String| {
        Error::fatal(
            format!("use the existing collection {name}"),
            detail,
            "name another qdrant.collection, or delete this one: the job fills a new one by itself",
        )
    };
    if let Some(difference) = difference(&vectors(&info), &expected) {
        return Err(fault(difference));
    }
    let mut missing_indexes = Vec::new();
    for (field, _, schema) in INDEXES {
        match info.payload_schema.get(field).map(|index| index.data_type()) {
            None => missing_indexes.push(field),
            Some(found) if found == schema => {}
            Some(found) => {
                let (found, wanted) = (found.as_str_name(), schema.as_str_name());
                return Err(fault(format!("its index on {field} is {found}, not {wanted}")));
            }
        }
    }
    Ok(Reached { version, points: Some(info.points_count.unwrap_or(0)), missing_indexes })
}

/// Makes the collection and its indexes as far as they don't exist, then checks them. What a crash
/// left half made is completed.
pub(super) async fn prepare(client: &Client, width: usize) -> Result<()> {
    if look(client, width).await?.points.is_none() {
        create(client, width).await?;
    }
    let missing = look(client, width).await?.missing_indexes;
    let name = &client.config.collection;
    for (field, kind, _) in INDEXES.into_iter().filter(|(field, ..)| missing.contains(field)) {
        let request = CreateFieldIndexCollectionBuilder::new(name, field, kind).wait(true).build();
        client
            .attempt(
                || format!("create the index on {field} of collection {name}"),
                async || completed(client.qdrant.create_field_index(request.clone()).await?),
            )
            .await?;
    }
    Ok(())
}

/// Points an alias at the collection in use. One request replaces an alias that led elsewhere, so there is
/// no moment without it.
pub(super) async fn activate(client: &Client, alias: &str) -> Result<()> {
    let name = client.config.collection.as_str();
    let request = CreateAlias { collection_name: name.to_owned(), alias_name: alias.to_owned() };
    client
        .attempt(
            || format!("point the alias {alias} at collection {name}"),
            async || {
                client.qdrant.create_alias(request.clone()).await?;
                Ok(())
            },
        )
        .await
}

async fn create(client: &Client, width: usize) -> Result<()> {
    let config = &client.config;
    let mut vectors = VectorsConfigBuilder::default();
    for (vector, size) in sizes(width)? {
        let mut params = VectorParamsBuilder::new(size as u64, Distance::Dot);
        if vector == fields::COT {
            // It is only stored: nothing searches it, so it needs no graph.
            params = params.hnsw_config(HnswConfigDiffBuilder::default().m(0)).on_disk(true);
        }
        vectors.add_named_vector_params(vector, params);
    }
    let mut request = CreateCollectionBuilder::new(&config.collection)
        .vectors_config(vectors)
        .timeout(config.server_timeout_s());
    if let Some(replication) = config.replication {
        request = request.replication_factor(replication);
    }
    if let Some(consistency) = config.write_consistency {
        request = request.write_consistency_factor(consistency);
    }
    let request = request.build();
    let name = config.collection.as_str();
    client
        .attempt(
            || format!("create collection {name}"),
            async || match client.qdrant.create_collection(request.clone()).await {
                Ok(_) => Ok(()),
                // A repeated or rival call may have made it: the check that follows decides.
                Err(error) => match client.qdrant.collection_exists(name).await {
                    Ok(true) => Ok(()),
                    _ => Err(error.into()),
                },
            },
        )
        .await
}

/// The named vectors of a collection: size, distance, and whether a point may hold several of one.
/// A single vector without a name stands under the empty name.
fn vectors(info: &CollectionInfo) -> BTreeMap<String, (usize, Distance, bool)> {
    let params = info.config.as_ref().and_then(|config| config.params.as_ref());
    let vectors = params.and_then(|params| params.vectors_config.as_ref());
    let shape = |params: &qdrant_client::qdrant::VectorParams| {
        (
            usize::try_from(params.size).unwrap_or(usize::MAX),
            params.distance(),
            params.multivector_config.is_some(),
        )
    };
    match vectors.and_then(|vectors| vectors.config.as_ref()) {
        None => BTreeMap::new(),
        Some(vectors_config::Config::Params(params)) => BTreeMap::from([(String::new(), shape(params))]),
        Some(vectors_config::Config::ParamsMap(map)) => {
            map.map.iter().map(|(name, params)| (name.clone(), shape(params))).collect()
        }
    }
}

/// What differs from the vectors that are needed, by name.
fn difference(
    found: &BTreeMap<String, (usize, Distance, bool)>,
    expected: &[(&str, usize)],
) -> Option<String> {
    for (name, size) in expected {
        let Some(&(found_size, distance, several)) = found.get(*name) else {
            return Some(format!("it has no vector named {name}"));
        };
        if found_size != *size {
            return Some(format!("its vector {name} has {found_size} components, not {size}"));
        }
        if distance != Distance::Dot {
            return Some(format!("its vector {name} has the distance {}, not Dot", distance.as_str_name()));
        }
        if several {
            return Some(format!("its vector {name} holds several vectors a point"));
        }
    }
    let other = found.keys().find(|name| expected.iter().all(|(expected, _)| expected != name))?;
    Some(format!("it has another vector, named {other:?}"))
}

/// Major and minor version; what follows the second number doesn't matter.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (text, fits) in [
            ("1.16.0", true),
            ("1.15.9", false),
            ("1.9.0", false),
            ("v1.20.1", true),
            ("2.0.0-dev", true),
            ("1.16", true),
            ("", false),
            ("dev", false),
        ] {
            assert_eq!(version_of(text).is_some_and(|version| version >= OLDEST), fits, "{text}");
        }
    }

    #[test]
    fn widths_end_where_qdrant_does() {
        assert_eq!(sizes(384).unwrap(), [("sample", 768), ("cot", 384)]);
        assert!(sizes(0).is_err() && sizes(32_768).is_ok() && sizes(32_769).is_err());
    }

    #[test]
    fn each_difference_is_named() {
        let good = || {
            BTreeMap::from([
                ("sample".to_owned(), (8, Distance::Dot, false)),
                ("cot".to_owned(), (4, Distance::Dot, false)),
            ])
        };
        let expected = sizes(4).unwrap();
        assert_eq!(difference(&good(), &expected), None);
        type Change = fn(&mut BTreeMap<String, (usize, Distance, bool)>);
        let table: [(&str, Change); 5] = [
            ("no vector named cot", |v| _ = v.remove("cot")),
            ("sample has 6 components, not 8", |v| _ = v.insert("sample".into(), (6, Distance::Dot, false))),
            ("cot has the distance Cosine", |v| _ = v.insert("cot".into(), (4, Distance::Cosine, false))),
            ("cot holds several", |v| _ = v.insert("cot".into(), (4, Distance::Dot, true))),
            ("another vector, named \"\"", |v| _ = v.insert(String::new(), (4, Distance::Dot, false))),
        ];
        for (words, change) in table {
            let mut found = good();
            change(&mut found);
            let text = difference(&found, &expected).unwrap_or_default();
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
