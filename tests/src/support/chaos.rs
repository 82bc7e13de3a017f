//! The short and the long form of the fault tests: `make test` runs the short one, `make chaos`, with
//! ICTFLOW_CHAOS=1, the long one. Every test prints the seeds that it draws; ICTFLOW_SEED repeats one.

/// How often a test goes round: `short` times in `make test`, `long` times in `make chaos`.
pub fn rounds(short: u64, long: u64) -> u64 {
    if std::env::var_os("ICTFLOW_CHAOS").is_some() { long } else { short }
}

/// The first seed: that of ICTFLOW_SEED, else `default`.
///
/// # Panics
/// Where ICTFLOW_SEED is no number.
pub fn first_seed(default: u64) -> u64 {
    std::env::var("ICTFLOW_SEED").map_or(default, |seed| seed.parse().expect("ICTFLOW_SEED is a number"))
}
