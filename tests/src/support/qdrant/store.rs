//! What the double keeps: collections of points in memory, searched exactly.

use super::filter::{Fields, holds};
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{
    CreateCollection, DeletePoints, Distance, Filter, PayloadSchemaType, PointId, PointStruct,
    PointsSelector, QueryPoints, SetPayloadPoints, UpdateMode, UpsertPoints, VectorParams, query, vector,
    vector_input, vectors, vectors_config,
};
use std::collections::BTreeMap;
use tonic::Status;
use uuid::Uuid;

/// A point id; numbers come before UUIDs, as in Qdrant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Id {
    Num(u64),
    Uuid(Uuid),
}

impl Id {
    pub(super) fn read(id: Option<&PointId>) -> Result<Self, Status> {
        match id.and_then(|id| id.point_id_options.as_ref()) {
            Some(PointIdOptions::Num(number)) => Ok(Id::Num(*number)),
            Some(PointIdOptions::Uuid(text)) => text
                .parse()
                .map(Id::Uuid)
                .map_err(|_| Status::invalid_argument(format!("Unable to parse UUID: {text}"))),
            None => Err(Status::invalid_argument("No ID options provided")),
        }
    }

    pub(super) fn write(&self) -> PointId {
        match self {
            Id::Num(number) => (*number).into(),
            Id::Uuid(id) => id.to_string().into(),
        }
    }
}

/// A stored point.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    pub(super) payload: Fields,
    pub(super) vectors: BTreeMap<String, Vec<f32>>,
}

/// A collection.
#[derive(Clone, Debug, Default)]
pub(super) struct Collection {
    pub(super) vectors: BTreeMap<String, VectorParams>,
    pub(super) indexes: BTreeMap<String, PayloadSchemaType>,
    pub(super) points: BTreeMap<Id, Stored>,
    /// How many points stood when each index was made.
    pub(super) points_at_index: BTreeMap<String, usize>,
}

/// Something that changes points.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Upsert(UpsertPoints),
    SetPayload(SetPayloadPoints),
    Delete(DeletePoints),
}

impl Operation {
    pub(super) fn collection(&self) -> &str {
        match self {
            Operation::Upsert(upsert) => &upsert.collection_name,
            Operation::SetPayload(set) => &set.collection_name,
            Operation::Delete(delete) => &delete.collection_name,
        }
    }
}

impl Collection {
    pub(super) fn create(request: &CreateCollection) -> Result<Self, Status> {
        let config = request.vectors_config.as_ref().and_then(|config| config.config.clone());
        let vectors = match config {
            Some(vectors_config::Config::ParamsMap(map)) => map.map.into_iter().collect(),
            Some(vectors_config::Config::Params(params)) => BTreeMap::from([(String::new(), params)]),
            None => return Err(Status::invalid_argument("the double wants vectors")),
        };
        Ok(Collection { vectors, ..Collection::default() })
    }

    pub(super) fn apply(&mut self, operation: &Operation) -> Result<(), Status> {
        match operation {
            Operation::Upsert(upsert) => self.upsert(upsert),
            Operation::SetPayload(set) => {
                if set.key.is_some() {
                    return Err(Status::unimplemented("the double has no payload key"));
                }
                for id in self.selected(set.points_selector.as_ref(), true)? {
                    if let Some(point) = self.points.get_mut(&id) {
                        point.payload.extend(set.payload.clone());
                    }
                }
                Ok(())
            }
            Operation::Delete(delete) => {
                for id in self.selected(delete.points.as_ref(), false)? {
                    self.points.remove(&id);
                }
                Ok(())
            }
        }
    }

    fn upsert(&mut self, upsert: &UpsertPoints) -> Result<(), Status> {
        let mut parsed = Vec::new();
        for point in &upsert.points {
            parsed.push((Id::read(point.id.as_ref())?, self.checked(point)?));
        }
        for (id, point) in parsed {
            let replaces = match self.points.get(&id) {
                None => upsert.update_mode() != UpdateMode::UpdateOnly,
                Some(_) if upsert.update_mode() == UpdateMode::InsertOnly => false,
                // The condition is asked of the point that stands, never of a new one.
                Some(old) => match &upsert.update_filter {
                    Some(filter) => holds(filter, &id, &old.payload)?,
                    None => true,
                },
            };
            if replaces {
                self.points.insert(id, point);
            }
        }
        Ok(())
    }

    /// A point with vectors of the right names and sizes.
    fn checked(&self, point: &PointStruct) -> Result<Stored, Status> {
        let given = match point.vectors.clone().and_then(|vectors| vectors.vectors_options) {
            Some(vectors::VectorsOptions::Vectors(named)) => named.vectors.into_iter().collect(),
            Some(vectors::VectorsOptions::Vector(single)) => BTreeMap::from([(String::new(), single)]),
            None => BTreeMap::new(),
        };
        let mut vectors = BTreeMap::new();
        for (name, value) in given {
            let Some(vector::Vector::Dense(dense)) = value.vector else {
                return Err(Status::unimplemented("the double has dense vectors only"));
            };
            vectors.insert(name.clone(), self.sized(&name, dense.data)?);
        }
        Ok(Stored { payload: point.payload.clone(), vectors })
    }

    fn sized(&self, name: &str, vector: Vec<f32>) -> Result<Vec<f32>, Status> {
        let Some(params) = self.vectors.get(name) else {
            return Err(Status::invalid_argument(format!(
                "Wrong input: Not existing vector name error: {name}"
            )));
        };
        match params.size == vector.len() as u64 {
            true => Ok(vector),
            false => Err(Status::invalid_argument(format!(
                "Wrong input: Vector dimension error: expected dim: {}, got {}",
                params.size,
                vector.len()
            ))),
        }
    }

    /// The ids that a selector names. `strict`: ids that don't exist are an error.
    fn selected(&self, selector: Option<&PointsSelector>, strict: bool) -> Result<Vec<Id>, Status> {
        match selector.and_then(|selector| selector.points_selector_one_of.as_ref()) {
            Some(PointsSelectorOneOf::Filter(filter)) => self.matching(Some(filter)),
            Some(PointsSelectorOneOf::Points(list)) => {
                let ids: Vec<Id> =
                    list.ids.iter().map(|id| Id::read(Some(id))).collect::<Result<_, Status>>()?;
                match ids.iter().find(|id| strict && !self.points.contains_key(id)) {
                    Some(id) => Err(Status::not_found(format!("No point with id {id:?} found"))),
                    None => Ok(ids),
                }
            }
            None => Err(Status::invalid_argument("a selector is missing")),
        }
    }

    /// The ids of all points for which a filter holds, in order.
    pub(super) fn matching(&self, filter: Option<&Filter>) -> Result<Vec<Id>, Status> {
        let mut ids = Vec::new();
        for (id, point) in &self.points {
            if filter.map_or(Ok(true), |filter| holds(filter, id, &point.payload))? {
                ids.push(id.clone());
            }
        }
        Ok(ids)
    }

    /// The best points under the dot product, by descending score, then by id.
    pub(super) fn nearest(&self, request: &QueryPoints) -> Result<Vec<(f32, Id)>, Status> {
        let Some(query::Variant::Nearest(input)) = request.query.clone().and_then(|query| query.variant)
        else {
            return Err(Status::unimplemented("the double has nearest queries only"));
        };
        let Some(vector_input::Variant::Dense(dense)) = input.variant else {
            return Err(Status::unimplemented("the double has dense queries only"));
        };
        if !request.prefetch.is_empty() || request.lookup_from.is_some() {
            return Err(Status::unimplemented("the double has neither prefetch nor lookup"));
        }
        let using = request.using();
        let wanted = self.sized(using, dense.data)?;
        if self.vectors.get(using).is_none_or(|params| params.distance() != Distance::Dot) {
            return Err(Status::unimplemented("the double has the dot product only"));
        }
        let mut found = Vec::new();
        for id in self.matching(request.filter.as_ref())? {
            let vector = self.points.get(&id).and_then(|point| point.vectors.get(using));
            let Some(vector) = vector else { continue };
            let score = wanted.iter().zip(vector).map(|(x, y)| x * y).sum::<f32>();
            if request.score_threshold.is_none_or(|threshold| score >= threshold) {
                found.push((score, id));
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let offset = request.offset.unwrap_or(0) as usize;
        Ok(found.into_iter().skip(offset).take(request.limit.unwrap_or(10) as usize).collect())
    }
}
