//! Metrics equal scikit-learn's numbers and their own definitions.

use ictflow_operators::ranking::bootstrap::{Difference, Paired, Rounds};
use ictflow_operators::ranking::draws::Draws;
use ictflow_operators::ranking::metrics::{Error, auc, gauc, log_loss, rela_impr, spread};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;

/// The rows of a golden case, made as `golden/metrics.py` says: users, labels, scores of the base and of the
/// other.
fn rows(case: &Value) -> (Vec<u32>, Vec<bool>, Vec<f64>, Vec<f64>) {
    let field = |name: &str| case[name].as_u64().unwrap() as u32;
    let (users, grid) = (field("users"), field("grid"));
    let clamped = case.get("clamped").is_some();
    let mut draws = Draws::new(case["seed"].as_u64().unwrap());
    let mut out = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..field("rows") {
        out.0.push(draws.below(users));
        let a = draws.below(grid);
        let b = (a + draws.below(grid)) / 2;
        let label = draws.below(4 * grid) < grid + 2 * a;
        out.1.push(label);
        if clamped {
            out.2.push(f64::from(u8::from(label)));
            out.3.push(f64::from(u8::from(label == (b.is_multiple_of(2)))));
        } else {
            let score = |n: u32| (f64::from(n) + 0.5) / f64::from(grid);
            out.2.push(score(a));
            out.3.push(score(b));
        }
    }
    out
}

fn close(ours: f64, golden: &Value, what: &str) {
    let golden = golden.as_f64().unwrap();
    assert!((ours - golden).abs() <= 1e-12 * golden.abs().max(1.0), "{what}: {ours}, golden {golden}");
}

#[test]
fn metrics_and_intervals_equal_the_golden_numbers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../golden/metrics.json")).unwrap();
    assert_eq!(cases.len(), 5);
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let (users, labels, a, b) = rows(case);
        for (scores, golden) in [(&a, &case["a"]), (&b, &case["b"])] {
            close(auc(&labels, scores).unwrap(), &golden["auc"], name);
            close(log_loss(&labels, scores).unwrap(), &golden["log_loss"], name);
            let gauc = gauc(&users, &labels, scores).unwrap();
            close(gauc.value, &golden["gauc"], name);
            let counts = (gauc.users as u64, gauc.rows);
            assert_eq!(Some(counts.0), golden["gauc_users"].as_u64(), "{name}");
            assert_eq!(Some(counts.1), golden["gauc_rows"].as_u64(), "{name}");
            assert_eq!(serde_json::to_value(&gauc.only_positive).unwrap(), golden["only_positive"], "{name}");
            assert_eq!(serde_json::to_value(&gauc.only_negative).unwrap(), golden["only_negative"], "{name}");
            assert_eq!(gauc.rows + gauc.rows_left_out, labels.len() as u64, "{name}");
        }
        let figures = (auc(&labels, &b).unwrap(), auc(&labels, &a).unwrap());
        match rela_impr(figures.0, figures.1) {
            Ok(percent) => close(percent, &case["rela_impr"], name),
            // The program that made the numbers has the formula alone, and its sign is wrong there.
            Err(error) => assert!(error == Error::NoSkill && figures.1 <= 0.5, "{name}: {error}"),
        }
        let Some(golden) = case.get("bootstrap") else { continue };
        let options = Rounds {
            rounds: golden["rounds"].as_u64().unwrap() as u32,
            seed: golden["seed"].as_u64().unwrap(),
            level: golden["level"].as_f64().unwrap(),
        };
        let found = Paired::new(&users, &labels).unwrap().compare(&[&a], &[&b], options).unwrap();
        let metrics = [("auc", found.auc), ("gauc", found.gauc), ("log_loss", found.log_loss)];
        for (metric, Difference { base, other, difference, low, high, rounds }) in metrics {
            let what = format!("{name}, {metric}");
            close(low, &golden[metric]["low"], &what);
            close(high, &golden[metric]["high"], &what);
            assert_eq!(Some(u64::from(rounds)), golden[metric]["rounds"].as_u64(), "{what}");
            close(base, &case["a"][metric], &what);
            close(other, &case["b"][metric], &what);
            assert_eq!(difference, other - base);
        }
    }
}

/// The definition, over all pairs.
fn auc_by_pairs(rows: &[(u8, bool, f64)]) -> Option<f64> {
    let (mut halves, mut all) = (0_u64, 0_u64);
    for (_, _, s) in rows.iter().filter(|row| row.1) {
        for (_, _, t) in rows.iter().filter(|row| !row.1) {
            all += 2;
            halves += if s > t { 2 } else { u64::from(s == t) };
        }
    }
    (all > 0).then(|| halves as f64 / all as f64)
}

/// Scores on a coarse grid, so that many are equal, with both zeros and both infinities.
fn scored() -> impl Strategy<Value = Vec<(u8, bool, f64)>> {
    let score = prop_oneof![
        4 => (-3..4i8).prop_map(|n| f64::from(n) / 2.0),
        2 => any::<f32>().prop_map(|x| if x.is_nan() { 0.25 } else { f64::from(x) }),
        1 => Just(-0.0),
        1 => prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ];
    proptest::collection::vec((0..6u8, any::<bool>(), score), 1..80)
}

fn lists(rows: &[(u8, bool, f64)]) -> (Vec<u32>, Vec<bool>, Vec<f64>) {
    let users = rows.iter().map(|row| u32::from(row.0) * 1_000_003).collect();
    (users, rows.iter().map(|row| row.1).collect(), rows.iter().map(|row| row.2).collect())
}

proptest! {
    #[test]
    fn auc_is_its_definition(rows in scored()) {
        let (_, labels, scores) = lists(&rows);
        match auc_by_pairs(&rows) {
            Some(expected) => prop_assert_eq!(auc(&labels, &scores).unwrap(), expected),
            None => {
                let error = auc(&labels, &scores).unwrap_err();
                prop_assert!(matches!(error, Error::OneClass { .. }), "{}", error);
            }
        }
    }

    #[test]
    fn gauc_is_a_loop_over_users(rows in scored()) {
        let (users, labels, scores) = lists(&rows);
        let mut by_user: BTreeMap<u8, Vec<(u8, bool, f64)>> = BTreeMap::new();
        for row in &rows {
            by_user.entry(row.0).or_default().push(*row);
        }
        let aucs: Vec<(f64, Option<f64>)> =
            by_user.values().map(|rows| (rows.len() as f64, auc_by_pairs(rows))).collect();
        let weight: f64 = aucs.iter().filter(|(_, auc)| auc.is_some()).map(|(n, _)| n).sum();
        let sum: f64 = aucs.iter().filter_map(|(n, auc)| auc.map(|auc| n * auc)).sum();
        match gauc(&users, &labels, &scores) {
            Ok(found) => {
                prop_assert!((found.value - sum / weight).abs() < 1e-12);
                let left_out = found.only_positive.len() + found.only_negative.len();
                prop_assert_eq!(left_out + found.users, by_user.len());
                prop_assert_eq!(left_out, aucs.iter().filter(|(_, auc)| auc.is_none()).count());
            }
            Err(error) => {
                prop_assert_eq!(weight, 0.0);
                prop_assert_eq!(error, Error::NoUser { users: by_user.len() });
            }
        }
    }

    #[test]
    fn no_metric_depends_on_the_order_of_rows(rows in scored(), seed in any::<u64>()) {
        let mut other = rows.clone();
        Draws::new(seed).shuffle(&mut other);
        let (one, two) = (lists(&rows), lists(&other));
        prop_assert_eq!(auc(&one.1, &one.2), auc(&two.1, &two.2));
        prop_assert_eq!(gauc(&one.0, &one.1, &one.2), gauc(&two.0, &two.1, &two.2));
    }
}

#[test]
fn what_has_no_figure_is_refused_with_a_hint() {
    let labels = [true, false];
    assert_eq!(auc(&[], &[]), Err(Error::Empty));
    assert_eq!(auc(&labels, &[0.5]), Err(Error::Lengths { labels: 2, others: 1, what: "scores" }));
    assert_eq!(auc(&labels, &[0.5, f64::NAN]), Err(Error::NotANumber { row: 1 }));
    assert_eq!(auc(&[false; 3], &[0.5; 3]), Err(Error::OneClass { rows: 3, class: "negative" }));
    assert_eq!(log_loss(&labels, &[0.5, 1.5]), Err(Error::NotAProbability { row: 1, value: 1.5 }));
    assert_eq!(log_loss(&labels, &[0.5, f64::NAN]), Err(Error::NotANumber { row: 1 }));
    assert_eq!(
        log_loss(&labels, &[f64::INFINITY, 0.5]).unwrap_err().to_string(),
        "the score inf of row 0 is no probability: apply the sigmoid first"
    );
    assert_eq!(gauc(&[1, 2], &labels, &[0.1, 0.2]).unwrap_err(), Error::NoUser { users: 2 });
    assert_eq!(
        gauc(&[1], &labels, &[0.1, 0.2]).unwrap_err(),
        Error::Lengths { labels: 2, others: 1, what: "users" }
    );
    assert_eq!(rela_impr(0.7, 0.5), Err(Error::NoSkill));
    assert_eq!(rela_impr(0.7, 0.45), Err(Error::NoSkill));
    assert_eq!(rela_impr(0.6, 0.55).map(f64::round), Ok(100.0));
    assert_eq!(spread(&[]), Err(Error::Empty));
    let one = spread(&[0.7]).unwrap();
    assert_eq!((one.mean, one.deviation), (0.7, None));
    assert_eq!(spread(&[1.0, 3.0]).unwrap().deviation, Some(2.0_f64.sqrt()));
}

#[test]
fn a_comparison_refuses_what_it_cannot_draw() {
    let (users, labels, scores) = ([1, 1, 2], [true, false, true], [0.6, 0.5, 0.4]);
    let paired = Paired::new(&users, &labels).unwrap();
    let options = Rounds::default();
    let compare = |base: &[&[f64]], options| paired.compare(base, &[&scores], options);
    assert_eq!(compare(&[], options), Err(Error::Empty));
    assert_eq!(
        compare(&[&scores[..2]], options),
        Err(Error::Lengths { labels: 3, others: 2, what: "scores" })
    );
    assert_eq!(compare(&[&[0.5, 0.5, 2.0]], options), Err(Error::NotAProbability { row: 2, value: 2.0 }));
    assert_eq!(compare(&[&scores], Rounds { rounds: 0, ..options }), Err(Error::Zero("rounds")));
    assert_eq!(compare(&[&scores], Rounds { level: 1.5, ..options }), Err(Error::Level(1.5)));
    let one_class = Paired::new(&users, &[true; 3]).unwrap();
    let error = one_class.compare(&[&scores], &[&scores], options);
    assert_eq!(error, Err(Error::OneClass { rows: 3, class: "positive" }));
    // A ranker against itself: no difference, whatever is drawn; in a quarter of the rounds user 2 alone.
    let same = compare(&[&scores], options).unwrap();
    assert_eq!((same.auc.low, same.auc.high, same.log_loss.high), (0.0, 0.0, 0.0));
    assert!((650..850).contains(&same.auc.rounds) && same.log_loss.rounds == 1_000, "{same:?}");
}

#[test]
fn several_seeds_are_compared_by_their_means() {
    let mut draws = Draws::new(3);
    let n = 2_000;
    let users: Vec<u32> = (0..n).map(|_| draws.below(80)).collect();
    let labels: Vec<bool> = (0..n).map(|_| draws.below(2) == 1).collect();
    let mut ranker = |skill: f64| -> Vec<f64> {
        let noise = |draws: &mut Draws| f64::from(draws.below(1 << 20)) / f64::from(1 << 20);
        labels.iter().map(|&y| (1.0 - skill) * noise(&mut draws) + skill * f64::from(u8::from(y))).collect()
    };
    let (base, other) = ([ranker(0.05), ranker(0.05)], [ranker(0.15), ranker(0.15), ranker(0.15)]);
    let (base, other): (Vec<&[f64]>, Vec<&[f64]>) =
        (base.iter().map(Vec::as_slice).collect(), other.iter().map(Vec::as_slice).collect());
    let paired = Paired::new(&users, &labels).unwrap();
    let found = paired.compare(&base, &other, Rounds::default()).unwrap();
    let mean = spread(&other.iter().map(|scores| auc(&labels, scores).unwrap()).collect::<Vec<_>>()).unwrap();
    assert!((found.auc.other - mean.mean).abs() < 1e-12);
    assert!(found.auc.low > 0.0 && found.auc.low < found.auc.difference, "{found:?}");
    assert!(found.auc.high > found.auc.difference && found.gauc.low > 0.0, "{found:?}");
    assert!(found.log_loss.high < 0.0, "{found:?}");
    // The same seed draws the same rounds, another one others.
    assert_eq!(paired.compare(&base, &other, Rounds::default()), Ok(found));
    let other_seed = paired.compare(&base, &other, Rounds { seed: 2, ..Rounds::default() }).unwrap();
    assert_ne!(other_seed.auc.low, found.auc.low);
    assert!((other_seed.auc.low - found.auc.low).abs() < 0.01);
}
