//! R22: a job in one thread, in orders that seeds decide, against its invariants after every step and a
//! recomputation at the end; and proof that it finds what is planted.

use ictflow_tests::support::chaos::{first_seed, rounds};
use ictflow_tests::support::oracle;
use ictflow_tests::support::simulated::{Defect, Ended, Figures, simulate};

/// Seeds of `make test` and of `make chaos`.
const SHORT: u64 = 200;
const LONG: u64 = 1_000;

fn seeds() -> std::ops::Range<u64> {
    match std::env::var_os("ICTFLOW_SEED") {
        Some(_) => first_seed(0)..first_seed(0) + 1,
        None => 1..1 + rounds(SHORT, LONG),
    }
}

fn well(seed: u64, ended: Ended) -> (Figures, String) {
    match ended {
        Ended::Well { figures, digest } => (figures, digest),
        Ended::Badly { why, after } => {
            panic!("seed {seed} (ICTFLOW_SEED={seed} repeats it): {why}\nafter\n  {}", after.join("\n  "))
        }
    }
}

#[test]
fn whatever_order_a_seed_gives_the_outputs_are_those_of_the_logs() {
    let seeds = seeds();
    let many = seeds.end - seeds.start >= SHORT;
    let mut total = Figures::default();
    for seed in seeds.clone() {
        total.add(&well(seed, simulate(seed, None, None)).0);
    }
    println!("seeds {seeds:?}: {total:?}");
    // What a scheduler doesn't draw it can't find.
    if many {
        let rare: Vec<_> = total.all().into_iter().filter(|(_, seen)| *seen < SHORT / 4).collect();
        assert!(rare.is_empty(), "seen less than once in four seeds: {rare:?}");
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [1, 2, 3] {
        let runs = [0, 1].map(|_| well(seed, simulate(seed, None, None)));
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}

#[test]
fn the_oracle_agrees_with_a_job_at_rest() {
    for seed in [11, 12, 13] {
        let folder = tempfile::tempdir().unwrap();
        well(seed, simulate(seed, None, Some(folder.path())));
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (dumps, wanted, weights) = (path(""), path("wanted.txt"), path("weights.safetensors"));
        let arguments = ["verify", "--dumps", &dumps, "--wanted", &wanted, "--weights", &weights];
        let (ok, text) = oracle::run("oracle.py", &arguments);
        assert!(ok, "seed {seed}: the oracle found differences:\n{text}");
    }
}

#[test]
fn what_is_planted_is_found_within_the_seeds() {
    for defect in Defect::ALL {
        let found = (1..=SHORT).find_map(|seed| match simulate(seed, Some(defect), None) {
            Ended::Badly { why, .. } => Some((seed, why)),
            Ended::Well { .. } => None,
        });
        let Some((seed, why)) = found else { panic!("{defect:?} wasn't found in {SHORT} seeds") };
        println!("{defect:?}: seed {seed}: {}", why.chars().take(160).collect::<String>());
    }
}
