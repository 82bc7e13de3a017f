//! The list of a user: the live pairs by descending logit.

use super::catalog::Catalog;
use super::ranker::Ranker;
use super::score::{Candidate, Reads, probability};
use super::view::{Lineage, Position, View};
use ictflow_connectors::Result;
use ictflow_schemas::feature::CotStatus;
use ictflow_schemas::{Id, Millis};
use std::sync::Arc;

/// Pairs whose users are ranked together.
const PAIRS_AT_ONCE: usize = 512;

/// One item of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// The item.
    pub item: Id,
    /// Its title, for people; empty where it has none.
    pub title: Box<str>,
    /// The logit, by which it is ranked.
    pub logit: f32,
    /// Where the record of its vector stands.
    pub position: Position,
    /// When that was published.
    pub published_at: Option<Millis>,
    /// The newest history entry's time.
    pub event_time: Option<Millis>,
    /// How complete its demonstrations are.
    pub cot_status: CotStatus,
    /// How many it has.
    pub k: i32,
    /// What made the vector.
    pub lineage: Arc<Lineage>,
}

impl Ranked {
    /// The probability of a positive label.
    pub fn score(&self) -> f64 {
        probability(self.logit)
    }
}

/// The list of a user.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// The user.
    pub user: Id,
    /// How many live pairs the user has.
    pub live: usize,
    /// The first of them, best first; of equal logits the lesser item id.
    pub ranked: Vec<Ranked>,
}

/// The lists of some users, at most `top` items each, given one by one in the order asked, until `each` is false.
///
/// # Errors
/// Those of [`Ranker::logits`] and of `each`.
pub fn rankings(
    ranker: &Ranker,
    (view, catalog): (&View, &Catalog),
    users: &[Id],
    top: usize,
    mut each: impl FnMut(Ranking) -> Result<bool>,
) -> Result<()> {
    let mut begin = 0;
    while begin < users.len() {
        let mut candidates = Vec::new();
        let mut ends = Vec::new();
        while candidates.len() < PAIRS_AT_ONCE && begin + ends.len() < users.len() {
            let user = &users[begin + ends.len()];
            candidates.extend(view.of_user(user).map(|(item, vector)| Candidate { user, item, vector }));
            ends.push(candidates.len());
        }
        let logits = ranker.logits(&candidates, catalog, Reads::ALL)?;
        let scored: Vec<(&Candidate<'_>, f32)> = candidates.iter().zip(logits).collect();
        let mut first = 0;
        for (user, end) in users[begin..].iter().zip(&ends) {
            if !each(ranking(user, &scored[first..*end], catalog, top))? {
                return Ok(());
            }
            first = *end;
        }
        begin += ends.len();
    }
    Ok(())
}

fn ranking(user: &Id, scored: &[(&Candidate<'_>, f32)], catalog: &Catalog, top: usize) -> Ranking {
    let mut order: Vec<&(&Candidate<'_>, f32)> = scored.iter().collect();
    order.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.item.cmp(b.item)));
    let ranked = |(candidate, logit): &(&Candidate<'_>, f32)| Ranked {
        item: candidate.item.into(),
        title: catalog.get(candidate.item).map(|facts| facts.title.clone()).unwrap_or_default(),
        logit: *logit,
        position: candidate.vector.position,
        published_at: candidate.vector.published_at,
        event_time: candidate.vector.event_time,
        cot_status: candidate.vector.cot_status,
        k: candidate.vector.k,
        lineage: candidate.vector.lineage.clone(),
    };
    Ranking {
        user: user.clone(),
        live: scored.len(),
        ranked: order.into_iter().take(top).map(ranked).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::upsert;
    use super::*;
    use ictflow_schemas::config::Semantics;
    use ictflow_schemas::wire::Format;

    #[test]
    fn of_equal_logits_the_lesser_item_comes_first() {
        let mut view = View::new(10, None);
        let items = ["b", "a", "c", "d"];
        for (substep, item) in (0..).zip(items) {
            view.take(&upsert("u", item, 0.0, (1, substep))).unwrap();
        }
        let of = |item: &'static str| Candidate { user: "u", item, vector: view.get("u", item).unwrap() };
        let candidates = items.map(of);
        let scored: Vec<_> = candidates.iter().zip([1.0, 1.0, 2.0, -1.0]).collect();
        let catalog = Catalog::new(Format::Avro, Arc::new(Semantics::default()), None);
        let list = ranking(&"u".into(), &scored, &catalog, 3);
        let order: Vec<&str> = list.ranked.iter().map(|ranked| &*ranked.item).collect();
        assert_eq!((list.live, order), (4, vec!["c", "a", "b"]));
    }
}
