//! Times at the ends of what an i64 holds, through whole jobs.

use super::{PARTITIONS, account, semantics, start};
use crate::parity::verify;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::{EARLIEST, LATEST};
use ictflow_tests::support::world::{append, candidates, event, feed, item, settle, weights};
use serde_json::Value;

/// A small generator of numbers, from a seed that the test prints.
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

const CENTURY: i64 = 100 * 365 * 24 * 3_600_000;

/// A time: mostly in an hour of its own decade, else at an edge.
fn time(dice: &mut Dice) -> i64 {
    let edges = [
        i64::MIN,
        i64::MIN + 1,
        i64::MIN / 2,
        -CENTURY,
        EARLIEST - 1,
        EARLIEST,
        EARLIEST + 1,
        -1,
        0,
        1,
        LATEST - 1,
        LATEST,
        CENTURY,
        i64::MAX / 2,
        i64::MAX - 1,
        i64::MAX,
    ];
    match dice.below(4) {
        0 => dice.of(&edges),
        1 => dice.of(&[EARLIEST, 0, LATEST - 3_600_000]) + dice.below(3_600_000) as i64,
        2 => dice.next() as i64,
        _ => 1_700_000_000_000 + dice.below(3_600_000) as i64,
    }
}

fn script(dice: &mut Dice, records: usize) -> Vec<Value> {
    let mut lines: Vec<Value> =
        (0..6).map(|n| item(&format!("m{n}"), Some(&format!("Film {n}")), "1")).collect();
    for n in 0..records {
        let (user, film) = (format!("u{}", dice.below(9)), format!("m{}", dice.below(7)));
        let mut line = match dice.below(8) {
            0 => candidates(&user, time(dice), &[&film, "m0"]),
            1 => {
                let mut line = item(&film, Some(&format!("Film {n}")), "1");
                line["value"]["updated_at"] = time(dice).into();
                line
            }
            _ => {
                let kind = dice.of(&["click", "impression", "rate", "skip", "play"]);
                let value = matches!(kind, "rate" | "play").then(|| dice.below(6) as f64);
                let at = time(dice);
                // Some twice, so that one identity meets itself at the edges.
                event(&user, &format!("e{}", dice.below(records as u64)), &film, kind, value, at)
            }
        };
        let own = line["timestamp"].clone();
        line["timestamp"] = match dice.below(5) {
            0 => time(dice).into(),
            1 => Value::from(-1),
            2 => i64::MAX.into(),
            _ => own,
        };
        lines.push(line);
    }
    lines
}

#[test]
fn times_at_the_ends_of_i64_overflow_nowhere() {
    let weights = weights(384);
    for seed in [1_u64, 2, 3, 4, 5, 6] {
        println!("seed {seed}");
        let mut dice = Dice(seed);
        let folder = tempfile::tempdir().unwrap();
        // Windows from nothing to a century, which may reach over either end of what is read.
        let span = |dice: &mut Dice| dice.of(&[0, 1, 600_000, 3_600_000, CENTURY - 1, CENTURY]);
        let lateness_ms = span(&mut dice);
        let semantics = Semantics {
            lateness_ms,
            max_future_skew_ms: span(&mut dice).min(lateness_ms),
            attribution_window_ms: span(&mut dice),
            pair_ttl_ms: span(&mut dice),
            demonstration_ttl_ms: span(&mut dice),
            ..semantics()
        };
        assert_eq!(semantics.problems(), Vec::<String>::new());
        let (world, mut job) = start(folder.path(), semantics, &weights);
        let lines = script(&mut dice, 400);
        for part in lines.chunks(60) {
            append(&mut job, part, PARTITIONS);
            settle(&mut job);
        }
        account(&world, &job);
        assert!(job.judgements().accepted > 5, "seed {seed}: {:?}", job.judgements());
        verify(&world, &job, folder.path(), &["--min-features", "0"]);
        drop(job);
        // A restart replays the same.
        let mut job =
            world.start(ictflow_tests::support::world::template(), ictflow_tests::support::world::hashed());
        feed(&mut job, &[], PARTITIONS);
        verify(&world, &job, folder.path(), &["--min-features", "0"]);
    }
}
