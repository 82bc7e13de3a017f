//! Lists for people and for programs. Ages are by the wall clock when they are printed.

use super::ranking::{Ranked, Ranking};
use ictflow_schemas::Millis;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A list as lines for people.
pub fn text(ranking: &Ranking, now: Millis) -> String {
    let Ranking { user, live, ranked } = ranking;
    if ranked.is_empty() {
        return format!("user {user}: no live pair\n");
    }
    let mut out = format!("user {user}: {} of {live} live pairs\n", ranked.len());
    let rows: Vec<[String; 7]> = (1..).zip(ranked).map(|(place, ranked)| row(place, ranked, now)).collect();
    let head = ["", "score", "vector age", "event age", "cot_status", "item", ""].map(str::to_owned);
    let width = |column: usize| {
        rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            // Numbers stand on the right; writing to a String cannot fail.
            let _ = match column < 4 {
                true => write!(line, "  {cell:>width$}"),
                false => write!(line, "  {cell:<width$}"),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn row(place: usize, ranked: &Ranked, now: Millis) -> [String; 7] {
    let since = |time: Option<Millis>| time.map_or_else(|| "-".to_owned(), |time| age(now - time));
    [
        place.to_string(),
        format!("{:.4}", ranked.score()),
        since(ranked.published_at),
        since(ranked.event_time),
        status(ranked).to_owned(),
        ranked.item.to_string(),
        ranked.title.to_string(),
    ]
}

/// A list as one JSON object. Ages are milliseconds, null where the record has no such time.
pub fn line(ranking: &Ranking, ranker: &str, now: Millis) -> Value {
    let item = |ranked: &Ranked| {
        json!({
            "item": ranked.item,
            "title": (!ranked.title.is_empty()).then_some(&ranked.title),
            "score": ranked.score(),
            "vector_age_ms": ranked.published_at.map(|time| now - time),
            "event_age_ms": ranked.event_time.map(|time| now - time),
            "cot_status": ranked.cot_status,
            "k": ranked.k,
            "epoch": ranked.position.epoch,
            "ict_weights": ranked.lineage.ict_weights,
        })
    };
    json!({
        "user": ranking.user,
        "live": ranking.live,
        "ranker": ranker,
        "ranked": ranking.ranked.iter().map(item).collect::<Vec<_>>(),
    })
}

fn status(ranked: &Ranked) -> &'static str {
    use ictflow_schemas::feature::CotStatus::{Full, None, Partial, Stale};
    match ranked.cot_status {
        None => "none",
        Partial => "partial",
        Stale => "stale",
        Full => "full",
    }
}

/// A duration in one unit. Times ahead of the clock count as now.
fn age(ms: Millis) -> String {
    let seconds = ms.max(0) as f64 / 1_000.0;
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3_600.0 => format!("{:.0} min", s / 60.0),
        s if s < 2.0 * 86_400.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::view::{Lineage, Position};
    use ictflow_schemas::feature::{CotStatus, VectorKind};
    use std::sync::Arc;

    fn ranking() -> Ranking {
        let lineage =
            Lineage { ict_weights: "w".to_owned(), encoder: "e".to_owned(), kind: VectorKind::Decoder };
        let ranked = |item: &str, title: &str, logit, published_at, event_time, cot_status| Ranked {
            item: item.into(),
            title: title.into(),
            logit,
            position: Position { epoch: 7, substep: 1 },
            published_at,
            event_time,
            cot_status,
            k: 4,
            lineage: Arc::new(lineage.clone()),
        };
        let ranked = vec![
            ranked("m3", "Paper Moon", 2.0, Some(998_500), Some(700_000), CotStatus::Full),
            ranked("m10", "", -1.0, None, None, CotStatus::None),
        ];
        Ranking { user: "ann".into(), live: 3, ranked }
    }

    #[test]
    fn people_see_columns() {
        let expected = "\
user ann: 2 of 3 live pairs
      score  vector age  event age  cot_status  item
  1  0.8808       1.5 s      5 min  full        m3    Paper Moon
  2  0.2689           -          -  none        m10
";
        assert_eq!(text(&ranking(), 1_000_000), expected);
        let none = Ranking { ranked: vec![], live: 0, ..ranking() };
        assert_eq!(text(&none, 0), "user ann: no live pair\n");
    }

    #[test]
    fn programs_see_one_object() {
        let line = line(&ranking(), "r", 1_000_000);
        assert_eq!((&line["user"], &line["live"], &line["ranker"]), (&json!("ann"), &json!(3), &json!("r")));
        let (first, second) = (&line["ranked"][0], &line["ranked"][1]);
        assert_eq!(first["vector_age_ms"], 1_500);
        assert_eq!((&first["cot_status"], &first["epoch"]), (&json!("full"), &json!(7)));
        assert!((first["score"].as_f64().unwrap() - 0.880_797).abs() < 1e-6);
        assert!(second["title"].is_null() && second["event_age_ms"].is_null());
    }

    #[test]
    fn ages_have_one_unit() {
        for (ms, text) in [
            (-5, "0.0 s"),
            (59_949, "59.9 s"),
            (60_000, "1 min"),
            (3_600_000, "1 h"),
            (172_799_000, "48 h"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }
}
