//! The gRPC services of the double. A call that it doesn't have is answered with `UNIMPLEMENTED`.

use super::connection::Scissors;
use super::store::{Collection, Id, Operation, Stored};
use super::{Call, Fault, Shared};
use ::qdrant_client::qdrant::collections_server::Collections;
use ::qdrant_client::qdrant::points_server::Points;
use ::qdrant_client::qdrant::with_payload_selector::SelectorOptions;
use ::qdrant_client::qdrant::*;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// All three services over one state.
#[derive(Clone)]
pub(super) struct Service(pub(super) Arc<Shared>);

impl Service {
    /// What every call goes through first: the key, the delay, the fault that is its turn.
    async fn enter<T>(
        &self,
        method: &'static str,
        points: usize,
        request: &Request<T>,
    ) -> Result<Option<Fault>, Status> {
        let (delay, key) = {
            let faults = self.0.faults.lock().unwrap();
            (faults.delay, faults.key.clone())
        };
        let given = request.metadata().get("api-key").and_then(|key| key.to_str().ok());
        let admitted = key.is_none() || key.as_deref() == given || method == "health_check";
        {
            let mut faults = self.0.faults.lock().unwrap();
            faults.calls.push(Call { method, points });
        }
        if !admitted {
            // As a careless proxy would put it.
            return Err(Status::unauthenticated(format!("Invalid API key: {}", given.unwrap_or("none"))));
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let fault = self.0.faults.lock().unwrap().take(method);
        match fault {
            Some(Fault::Refuse(code)) => Err(Status::new(code, "refused by the test")),
            Some(Fault::Throttle(seconds)) => {
                let mut status = Status::resource_exhausted("throttled by the test");
                status.metadata_mut().insert("retry-after", seconds.into());
                Err(status)
            }
            Some(Fault::CutBefore) => Err(cut(request)),
            fault => Ok(fault),
        }
    }

    /// Applies a write under the fault whose turn it is.
    async fn change<T>(
        &self,
        method: &'static str,
        points: usize,
        request: &Request<T>,
        operation: Operation,
    ) -> Answer<PointsOperationResponse> {
        let fault = self.enter(method, points, request).await?;
        let name = self.0.resolve(operation.collection());
        let apply = || self.0.collections(|all| find(all, &name)?.apply(&operation));
        match fault {
            None => apply()?,
            Some(Fault::Cut) => {
                apply()?;
                return Err(cut(request));
            }
            Some(Fault::Hold) => {
                self.0.faults.lock().unwrap().held.push(operation);
                return Err(cut(request));
            }
            Some(Fault::Slow(milliseconds)) => {
                apply()?;
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            }
            Some(Fault::Unconfirmed { status, applied }) => {
                if applied {
                    apply()?;
                }
                return Ok(Response::new(done(status)));
            }
            Some(other) => return Err(Status::internal(format!("{other:?} is no fault of a write"))),
        }
        Ok(Response::new(done(UpdateStatus::Completed)))
    }

    /// Reads under the fault whose turn it is.
    async fn read<T, R>(
        &self,
        method: &'static str,
        points: usize,
        request: &Request<T>,
        name: &str,
        read: impl FnOnce(&mut Collection) -> Result<R, Status>,
    ) -> Answer<R> {
        let fault = self.enter(method, points, request).await?;
        let name = self.0.resolve(name);
        let answer = self.0.collections(|all| read(find(all, &name)?))?;
        match fault {
            None => Ok(Response::new(answer)),
            Some(Fault::Cut) => Err(cut(request)),
            Some(Fault::Slow(milliseconds)) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Ok(Response::new(answer))
            }
            Some(other) => Err(Status::internal(format!("{other:?} is no fault of a read"))),
        }
    }
}

/// Cuts the connection of a call; the status never arrives.
fn cut<T>(request: &Request<T>) -> Status {
    if let Some(scissors) = request.extensions().get::<Scissors>() {
        scissors.cut();
    }
    Status::new(Code::Unavailable, "cut by the test")
}

fn find<'a>(
    all: &'a mut std::collections::BTreeMap<String, Collection>,
    name: &str,
) -> Result<&'a mut Collection, Status> {
    all.get_mut(name)
        .ok_or_else(|| Status::not_found(format!("Not found: Collection `{name}` doesn't exist!")))
}

fn done(status: UpdateStatus) -> PointsOperationResponse {
    let result = Some(UpdateResult { operation_id: Some(0), status: status.into() });
    PointsOperationResponse { result, ..Default::default() }
}

/// The part of a payload that was asked for.
fn shown(point: &Stored, selector: Option<&WithPayloadSelector>) -> HashMap<String, Value> {
    match selector.and_then(|selector| selector.selector_options.as_ref()) {
        Some(SelectorOptions::Enable(true)) => point.payload.clone(),
        Some(SelectorOptions::Include(include)) => {
            point.payload.clone().into_iter().filter(|(name, _)| include.fields.contains(name)).collect()
        }
        Some(SelectorOptions::Exclude(exclude)) => {
            point.payload.clone().into_iter().filter(|(name, _)| !exclude.fields.contains(name)).collect()
        }
        Some(SelectorOptions::Enable(false)) | None => HashMap::new(),
    }
}

fn scored(collection: &Collection, request: &QueryPoints) -> Result<Vec<ScoredPoint>, Status> {
    let found = collection.nearest(request)?;
    Ok(found
        .into_iter()
        .map(|(score, id)| ScoredPoint {
            id: Some(id.write()),
            payload: collection
                .points
                .get(&id)
                .map(|point| shown(point, request.with_payload.as_ref()))
                .unwrap_or_default(),
            score,
            ..Default::default()
        })
        .collect())
}

/// Methods that the double doesn't have. Written as `async_trait` would write them, since it doesn't
/// look into macros.
macro_rules! absent {
    ($($name:ident: $request:ty => $answer:ty;)*) => {$(
        fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<$answer>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(concat!("the double has no ", stringify!($name)))) })
        }
    )*};
}

#[tonic::async_trait]
impl Points for Service {
    async fn upsert(&self, request: Request<UpsertPoints>) -> Answer<PointsOperationResponse> {
        let operation = Operation::Upsert(request.get_ref().clone());
        self.change("upsert", request.get_ref().points.len(), &request, operation).await
    }

    async fn set_payload(&self, request: Request<SetPayloadPoints>) -> Answer<PointsOperationResponse> {
        let operation = Operation::SetPayload(request.get_ref().clone());
        self.change("set_payload", 0, &request, operation).await
    }

    async fn delete(&self, request: Request<DeletePoints>) -> Answer<PointsOperationResponse> {
        let operation = Operation::Delete(request.get_ref().clone());
        self.change("delete", 0, &request, operation).await
    }

    async fn create_field_index(
        &self,
        request: Request<CreateFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        let index = request.get_ref();
        let schema = match index.field_type.and_then(|kind| FieldType::try_from(kind).ok()) {
            Some(FieldType::Keyword) => PayloadSchemaType::Keyword,
            Some(FieldType::Integer) => PayloadSchemaType::Integer,
            Some(FieldType::Bool) => PayloadSchemaType::Bool,
            other => return Err(Status::unimplemented(format!("the double has no index {other:?}"))),
        };
        self.read("create_field_index", 0, &request, &index.collection_name, |collection| {
            collection.indexes.insert(index.field_name.clone(), schema);
            collection.points_at_index.insert(index.field_name.clone(), collection.points.len());
            Ok(done(UpdateStatus::Completed))
        })
        .await
    }

    async fn scroll(&self, request: Request<ScrollPoints>) -> Answer<ScrollResponse> {
        let scroll = request.get_ref();
        let limit = scroll.limit.unwrap_or(10) as usize;
        if limit == 0 || scroll.order_by.is_some() {
            return Err(Status::invalid_argument("the double wants a limit above 0 and no order"));
        }
        self.read("scroll", limit, &request, &scroll.collection_name, |collection| {
            let offset = scroll.offset.as_ref().map(|offset| Id::read(Some(offset))).transpose()?;
            let mut ids = collection.matching(scroll.filter.as_ref())?;
            ids.retain(|id| offset.as_ref().is_none_or(|offset| id >= offset));
            let next_page_offset = ids.get(limit).map(Id::write);
            ids.truncate(limit);
            let result = ids
                .iter()
                .filter_map(|id| {
                    let point = collection.points.get(id)?;
                    let payload = shown(point, scroll.with_payload.as_ref());
                    Some(RetrievedPoint { id: Some(id.write()), payload, ..Default::default() })
                })
                .collect();
            Ok(ScrollResponse { next_page_offset, result, ..Default::default() })
        })
        .await
    }

    async fn query(&self, request: Request<QueryPoints>) -> Answer<QueryResponse> {
        let query = request.get_ref();
        self.read("query", 1, &request, &query.collection_name, |collection| {
            Ok(QueryResponse { result: scored(collection, query)?, ..Default::default() })
        })
        .await
    }

    async fn query_batch(&self, request: Request<QueryBatchPoints>) -> Answer<QueryBatchResponse> {
        let batch = request.get_ref();
        self.read("query_batch", batch.query_points.len(), &request, &batch.collection_name, |collection| {
            let mut result = Vec::new();
            for query in &batch.query_points {
                if query.collection_name != batch.collection_name {
                    return Err(Status::invalid_argument("the collections of a batch differ"));
                }
                result.push(BatchResult { result: scored(collection, query)? });
            }
            Ok(QueryBatchResponse { result, ..Default::default() })
        })
        .await
    }

    async fn count(&self, request: Request<CountPoints>) -> Answer<CountResponse> {
        let count = request.get_ref();
        self.read("count", 0, &request, &count.collection_name, |collection| {
            let count = collection.matching(count.filter.as_ref())?.len() as u64;
            Ok(CountResponse { result: Some(CountResult { count }), ..Default::default() })
        })
        .await
    }

    absent! {
        get: GetPoints => GetResponse;
        update_vectors: UpdatePointVectors => PointsOperationResponse;
        delete_vectors: DeletePointVectors => PointsOperationResponse;
        overwrite_payload: SetPayloadPoints => PointsOperationResponse;
        delete_payload: DeletePayloadPoints => PointsOperationResponse;
        clear_payload: ClearPayloadPoints => PointsOperationResponse;
        delete_field_index: DeleteFieldIndexCollection => PointsOperationResponse;
        create_vector_name: CreateVectorNameRequest => PointsOperationResponse;
        delete_vector_name: DeleteVectorNameRequest => PointsOperationResponse;
        search: SearchPoints => SearchResponse;
        search_batch: SearchBatchPoints => SearchBatchResponse;
        search_groups: SearchPointGroups => SearchGroupsResponse;
        recommend: RecommendPoints => RecommendResponse;
        recommend_batch: RecommendBatchPoints => RecommendBatchResponse;
        recommend_groups: RecommendPointGroups => RecommendGroupsResponse;
        discover: DiscoverPoints => DiscoverResponse;
        discover_batch: DiscoverBatchPoints => DiscoverBatchResponse;
        update_batch: UpdateBatchPoints => UpdateBatchResponse;
        query_groups: QueryPointGroups => QueryGroupsResponse;
        facet: FacetCounts => FacetResponse;
        search_matrix_pairs: SearchMatrixPoints => SearchMatrixPairsResponse;
        search_matrix_offsets: SearchMatrixPoints => SearchMatrixOffsetsResponse;
    }
}

#[tonic::async_trait]
impl Collections for Service {
    async fn create(&self, request: Request<CreateCollection>) -> Answer<CollectionOperationResponse> {
        let fault = self.enter("create", 0, &request).await?;
        let create = request.get_ref();
        self.0.collections(|all| match all.contains_key(&create.collection_name) {
            true => Err(Status::already_exists(format!(
                "Wrong input: Collection `{}` already exists!",
                create.collection_name
            ))),
            false => {
                all.insert(create.collection_name.clone(), Collection::create(create)?);
                Ok(())
            }
        })?;
        match fault {
            Some(Fault::Cut) => Err(cut(&request)),
            _ => Ok(Response::new(CollectionOperationResponse { result: true, time: 0.0 })),
        }
    }

    async fn collection_exists(
        &self,
        request: Request<CollectionExistsRequest>,
    ) -> Answer<CollectionExistsResponse> {
        self.enter("collection_exists", 0, &request).await?;
        let exists = self.0.collections(|all| all.contains_key(&request.get_ref().collection_name));
        Ok(Response::new(CollectionExistsResponse { result: Some(CollectionExists { exists }), time: 0.0 }))
    }

    async fn get(&self, request: Request<GetCollectionInfoRequest>) -> Answer<GetCollectionInfoResponse> {
        let name = request.get_ref().collection_name.clone();
        self.read("collection_info", 0, &request, &name, |collection| {
            let map = VectorParamsMap { map: collection.vectors.clone().into_iter().collect() };
            let vectors_config = Some(match map.map.get("") {
                Some(single) => VectorsConfig { config: Some(vectors_config::Config::Params(*single)) },
                None => VectorsConfig { config: Some(vectors_config::Config::ParamsMap(map)) },
            });
            let params = Some(CollectionParams { shard_number: 1, vectors_config, ..Default::default() });
            let schema = |kind: &PayloadSchemaType| PayloadSchemaInfo {
                data_type: *kind as i32,
                ..Default::default()
            };
            let info = CollectionInfo {
                status: CollectionStatus::Green.into(),
                config: Some(CollectionConfig { params, ..Default::default() }),
                payload_schema: collection
                    .indexes
                    .iter()
                    .map(|(name, kind)| (name.clone(), schema(kind)))
                    .collect(),
                points_count: Some(collection.points.len() as u64),
                ..Default::default()
            };
            Ok(GetCollectionInfoResponse { result: Some(info), time: 0.0 })
        })
        .await
    }

    async fn update_aliases(&self, request: Request<ChangeAliases>) -> Answer<CollectionOperationResponse> {
        use alias_operations::Action;
        let fault = self.enter("update_aliases", 0, &request).await?;
        for operation in &request.get_ref().actions {
            let Some(Action::CreateAlias(create)) = &operation.action else {
                return Err(Status::unimplemented("the double only creates aliases"));
            };
            self.0.collections(|all| {
                find(all, &create.collection_name)?;
                match all.contains_key(&create.alias_name) {
                    true => Err(Status::invalid_argument(format!(
                        "Wrong input: Collection `{}` already exists!",
                        create.alias_name
                    ))),
                    false => Ok(()),
                }
            })?;
            // One that leads elsewhere is replaced.
            let (alias, to) = (create.alias_name.clone(), create.collection_name.clone());
            self.0.aliases.lock().unwrap().insert(alias, to);
        }
        match fault {
            Some(Fault::Cut) => Err(cut(&request)),
            _ => Ok(Response::new(CollectionOperationResponse { result: true, time: 0.0 })),
        }
    }

    async fn delete(&self, request: Request<DeleteCollection>) -> Answer<CollectionOperationResponse> {
        self.enter("delete_collection", 0, &request).await?;
        let result = self.0.collections(|all| all.remove(&request.get_ref().collection_name).is_some());
        Ok(Response::new(CollectionOperationResponse { result, time: 0.0 }))
    }

    absent! {
        list: ListCollectionsRequest => ListCollectionsResponse;
        update: UpdateCollection => CollectionOperationResponse;
        list_collection_aliases: ListCollectionAliasesRequest => ListAliasesResponse;
        list_aliases: ListAliasesRequest => ListAliasesResponse;
        collection_cluster_info: CollectionClusterInfoRequest => CollectionClusterInfoResponse;
        update_collection_cluster_setup: UpdateCollectionClusterSetupRequest => UpdateCollectionClusterSetupResponse;
        create_shard_key: CreateShardKeyRequest => CreateShardKeyResponse;
        delete_shard_key: DeleteShardKeyRequest => DeleteShardKeyResponse;
        list_shard_keys: ListShardKeysRequest => ListShardKeysResponse;
    }
}

#[tonic::async_trait]
impl qdrant_server::Qdrant for Service {
    async fn health_check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckReply> {
        self.enter("health_check", 0, &request).await?;
        let version = self.0.faults.lock().unwrap().version.clone();
        Ok(Response::new(HealthCheckReply { title: "a double of qdrant".into(), version, commit: None }))
    }
}
