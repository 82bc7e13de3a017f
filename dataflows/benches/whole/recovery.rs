//! Recovery: how long a start takes by the size of the state, from a snapshot and by a replay, and what a
//! snapshot takes.
//!
//! Users have three clicks each, all final, and no pair: what grows is what a snapshot holds. A start is timed
//! from nothing to a job that has caught up; nothing came after the snapshot, so none of it is a replay. It
//! reads the catalog's 1,000 items and vectors again, as every start does.

use crate::memory::users_with;
use crate::report::{LONG_RUNS, Report, number};
use crate::{Arguments, Fallible, stage};
use std::path::Path;
use std::time::Instant;

/// Clicks of a user.
const CLICKS: usize = 3;

/// The largest state that is replayed too.
const REPLAYED: usize = 100_000;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let sizes: &[usize] = if arguments.quick { &[1_000, 10_000] } else { &[10_000, 100_000, 1_000_000] };
    sizes.iter().try_for_each(|users| recover(*users, report))
}

fn recover(users: usize, report: &mut Report) -> Fallible<()> {
    let script = users_with(users, CLICKS);
    let base = tempfile::tempdir_in(stage::disk()?)?;
    stage::fill(base.path(), &script, &stage::weights()?)?;
    let semantics = script.semantics.clone();
    drop(script);
    let snapshots = base.path().join("snapshots");
    let start = |snapshots: Option<&Path>| -> Fallible<(f64, ictflow_dataflows::job::Job)> {
        let parts = stage::parts(Box::new(stage::open(base.path())?), snapshots)?;
        let begun = Instant::now();
        let job = stage::begin(parts, &semantics, stage::options("bench", 1, 1))?;
        Ok((begun.elapsed().as_secs_f64(), job))
    };
    let (_, mut job) = start(Some(&snapshots))?;
    let begun = Instant::now();
    job.snapshot();
    let written = begun.elapsed().as_secs_f64();
    let figures = job.snapshots().ok_or("the job keeps no snapshots")?;
    let (committed, held) = (job.committed(), job.history_users() as f64);
    if figures.epoch != Some(committed) || figures.failures > 0 {
        return Err(format!("no snapshot of epoch {committed} was written: {figures:?}").into());
    }
    drop(job);
    // Once: a snapshot of the same epoch isn't written again, so there is no spread to tell.
    eprintln!(
        "  {users} users: snapshot of {} B in {written:.2} s, the job stood still for {:.2} s of it",
        number(figures.bytes as f64),
        figures.pause.as_secs_f64()
    );
    let conditions = format!("{} users, {CLICKS} clicks each", number(users as f64));
    let mut restarts = Vec::new();
    for _ in 0..LONG_RUNS {
        let (seconds, job) = start(Some(&snapshots))?;
        if job.snapshots().and_then(|found| found.epoch) != Some(committed)
            || job.history_users() as f64 != held
        {
            return Err("the start did not take the snapshot".into());
        }
        restarts.push(seconds);
    }
    report.add("recovery", "start from a snapshot", &conditions, "s", restarts)?;
    if users <= REPLAYED {
        let mut replays = Vec::new();
        for _ in 0..LONG_RUNS {
            replays.push(start(None)?.0);
        }
        report.add("recovery", "start by a replay of all", &conditions, "s", replays)?;
    }
    // One number that doesn't vary: the same state is the same bytes.
    let bytes = figures.bytes as f64 / held;
    report.add("recovery", "snapshot of a user", &conditions, "B", vec![bytes; LONG_RUNS])
}
