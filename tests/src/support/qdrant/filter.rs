//! What a filter means for one point. A condition that the double doesn't know is refused, never
//! taken as true or false.

use super::store::Id;
use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{Condition, FieldCondition, Filter, Range, Value};
use std::collections::HashMap;
use tonic::Status;

/// A point's payload on the wire.
pub(super) type Fields = HashMap<String, Value>;

/// Whether a filter holds: all of `must`, none of `must_not`, and of `should`, where it has any, at
/// least one.
pub(super) fn holds(filter: &Filter, id: &Id, payload: &Fields) -> Result<bool, Status> {
    let count = |conditions: &[Condition]| -> Result<usize, Status> {
        let mut count = 0;
        for condition in conditions {
            count += usize::from(condition_holds(condition, id, payload)?);
        }
        Ok(count)
    };
    let enough = match &filter.min_should {
        None => true,
        Some(few) => count(&few.conditions)? as u64 >= few.min_count,
    };
    Ok(enough
        && count(&filter.must)? == filter.must.len()
        && count(&filter.must_not)? == 0
        && (filter.should.is_empty() || count(&filter.should)? > 0))
}

fn condition_holds(condition: &Condition, id: &Id, payload: &Fields) -> Result<bool, Status> {
    match condition.condition_one_of.as_ref() {
        Some(ConditionOneOf::Field(field)) => field_holds(field, payload.get(&field.key)),
        Some(ConditionOneOf::Filter(filter)) => holds(filter, id, payload),
        Some(ConditionOneOf::HasId(ids)) => {
            for wanted in &ids.has_id {
                if Id::read(Some(wanted))? == *id {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Some(ConditionOneOf::Nested(nested)) => {
            let filter = nested.filter.clone().unwrap_or_default();
            for value in members(payload.get(&nested.key)) {
                if let Some(Kind::StructValue(object)) = &value.kind
                    && holds(&filter, id, &object.fields)?
                {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Some(ConditionOneOf::IsEmpty(field)) => Ok(members(payload.get(&field.key))
            .iter()
            .all(|value| matches!(value.kind, None | Some(Kind::NullValue(_))))),
        Some(ConditionOneOf::IsNull(field)) => Ok(members(payload.get(&field.key))
            .iter()
            .any(|value| matches!(value.kind, Some(Kind::NullValue(_))))),
        other => Err(Status::unimplemented(format!("the double has no condition {other:?}"))),
    }
}

/// The members of a list, or the one value: a condition holds where any of them fits.
fn members(value: Option<&Value>) -> Vec<&Value> {
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::ListValue(list)) => list.values.iter().collect(),
        _ => value.into_iter().collect(),
    }
}

fn field_holds(field: &FieldCondition, value: Option<&Value>) -> Result<bool, Status> {
    let FieldCondition { key, r#match, range, .. } = field;
    let known =
        FieldCondition { key: key.clone(), r#match: r#match.clone(), range: *range, ..Default::default() };
    if *field != known || (r#match.is_some() == range.is_some()) {
        return Err(Status::unimplemented(format!("the double has no condition {field:?}")));
    }
    let values = members(value);
    if let Some(range) = range {
        return Ok(values.iter().any(|value| in_range(range, value)));
    }
    let wanted = r#match.as_ref().and_then(|wanted| wanted.match_value.as_ref());
    let mut any = false;
    for value in values {
        any |= matches(wanted, value.kind.as_ref())?;
    }
    Ok(any)
}

fn in_range(range: &Range, value: &Value) -> bool {
    let number = match value.kind {
        Some(Kind::IntegerValue(integer)) => integer as f64,
        Some(Kind::DoubleValue(double)) => double,
        _ => return false,
    };
    range.lt.is_none_or(|limit| number < limit)
        && range.lte.is_none_or(|limit| number <= limit)
        && range.gt.is_none_or(|limit| number > limit)
        && range.gte.is_none_or(|limit| number >= limit)
}

fn matches(wanted: Option<&MatchValue>, value: Option<&Kind>) -> Result<bool, Status> {
    Ok(match (wanted, value) {
        (Some(MatchValue::Keyword(wanted)), Some(Kind::StringValue(text))) => wanted == text,
        (Some(MatchValue::Integer(wanted)), Some(Kind::IntegerValue(integer))) => wanted == integer,
        (Some(MatchValue::Boolean(wanted)), Some(Kind::BoolValue(value))) => wanted == value,
        (Some(MatchValue::Keywords(list)), Some(Kind::StringValue(text))) => list.strings.contains(text),
        (Some(MatchValue::Integers(list)), Some(Kind::IntegerValue(integer))) => {
            list.integers.contains(integer)
        }
        (
            Some(
                MatchValue::Keyword(_)
                | MatchValue::Integer(_)
                | MatchValue::Boolean(_)
                | MatchValue::Keywords(_)
                | MatchValue::Integers(_),
            ),
            _,
        ) => false,
        (other, _) => return Err(Status::unimplemented(format!("the double has no match {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn conditions_mean_what_they_say() {
        let id = Id::Uuid(Uuid::from_u128(7));
        let payload = Fields::from([
            ("user".to_owned(), Value::from("ann")),
            ("epoch".to_owned(), Value::from(5i64)),
            ("deleted".to_owned(), Value::from(false)),
            ("tags".to_owned(), Value::from(vec!["a", "b"])),
        ]);
        let range = |lt, lte, gt, gte| Condition::range("epoch", Range { lt, lte, gt, gte });
        let user = |name: &str| Condition::matches("user", name.to_owned());
        for (condition, expected) in [
            (user("ann"), true),
            (user("bob"), false),
            (Condition::matches("epoch", 5i64), true),
            (Condition::matches("epoch", "5".to_owned()), false),
            (Condition::matches("deleted", false), true),
            (Condition::matches("absent", false), false),
            (Condition::matches("tags", "b".to_owned()), true),
            (Condition::matches("user", vec!["bob".to_owned(), "ann".to_owned()]), true),
            (range(None, Some(5.0), None, None), true),
            (range(Some(5.0), None, None, None), false),
            (range(None, None, Some(5.0), None), false),
            (range(Some(6.0), None, None, Some(5.0)), true),
            (Condition::range("absent", Range { gte: Some(0.0), ..Range::default() }), false),
            (Condition::has_id([Uuid::from_u128(7).to_string()]), true),
            (Condition::has_id([Uuid::from_u128(8).to_string()]), false),
            (Condition::is_empty("absent"), true),
            (Condition::is_empty("user"), false),
            (Filter::must([user("ann"), user("bob")]).into(), false),
            (Filter::should([user("ann"), user("bob")]).into(), true),
            (Filter::must_not([user("bob")]).into(), true),
            (Filter::min_should(2, [user("ann"), user("bob")]).into(), false),
            (
                Filter { must: vec![user("ann")], should: vec![user("bob")], ..Filter::default() }.into(),
                false,
            ),
            (Filter::default().into(), true),
        ] {
            let held = condition_holds(&condition, &id, &payload).unwrap();
            assert_eq!(held, expected, "{condition:?}");
        }
        for unknown in [Condition::matches_text("user", "ann"), Condition::has_vector("cot")] {
            assert!(condition_holds(&unknown, &id, &payload).is_err(), "{unknown:?}");
        }
    }
}
