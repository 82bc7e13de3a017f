//! Throughput of the path without models: interactions and vectors a second, by demonstrations and
//! workers, on sessions of the generator and on MovieLens.
//!
//! A job that has caught up takes epoch after epoch; the clock runs from the poll of an epoch's
//! records to its commit, not while the producer appends. Beside the wall clock stands the time that
//! the process was on a core: a figure per core-second isn't changed by neighbours on the machine.

use crate::report::{LONG_RUNS, Report, SHORT_RUNS};
use crate::script::{Script, Sizes};
use crate::{Arguments, Fallible, machine, stage};
use ictflow_dataflows::config::checked::models;
use std::time::Instant;

/// Users and items of the synthetic catalog.
pub const USERS: usize = 1_000;
/// Its items.
pub const ITEMS: usize = 2_000;

/// Examples of a session: its impressions, of which nearly all have a history.
const EXAMPLES: u64 = 5;

/// The sizes of sessions with so many demonstrations, of one in `stride` examples each: the warm-up
/// fills the pool a little beyond its limit, so that from then on each new one drives out the oldest.
pub fn sizes(demonstrations: usize, stride: u64) -> Sizes {
    Sizes {
        users: USERS,
        items: ITEMS,
        warm: demonstrations * stride as usize / EXAMPLES as usize * 23 / 20 + 4_000,
        chunk: 125,
        chunks: 8,
        runs: SHORT_RUNS,
        stride,
        demonstrations,
        partitions: 4,
    }
}

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let weights = stage::weights()?;
    // A small pool with the paper's stride would be new every few minutes: fewer come then.
    let pools: &[(usize, u64)] =
        if arguments.quick { &[(500, 100), (5_000, 10)] } else { &[(500, 100), (5_000, 100), (50_000, 10)] };
    for (pool, stride) in pools {
        let mut sizes = sizes(*pool, *stride);
        if *pool > 5_000 {
            (sizes.chunks, sizes.runs) = (4, LONG_RUNS);
        }
        let script = Script::synthetic(sizes);
        run(&script, &weights, "sessions", sizes.users, Some(*pool), report)?;
    }
    let (warm, runs) =
        if arguments.quick { (20_000, (SHORT_RUNS, 2, 500)) } else { (80_000, (SHORT_RUNS, 4, 500)) };
    let script = Script::movielens(&models().join("data/ml-100k"), warm, runs, 10, 4)?;
    run(&script, &weights, "ml-100k", 943, None, report)
}

fn run(
    script: &Script,
    weights: &std::sync::Arc<ictflow_operators::ict::Weights>,
    name: &str,
    users: usize,
    pool: Option<usize>,
    report: &mut Report,
) -> Fallible<()> {
    let base = tempfile::tempdir_in(stage::disk()?)?;
    let begun = Instant::now();
    stage::fill(base.path(), script, weights)?;
    eprintln!("  {name}: inputs and answers in {:.1} s", begun.elapsed().as_secs_f64());
    for workers in [1, 2] {
        let folder = tempfile::tempdir_in(stage::disk()?)?;
        stage::copy(base.path(), folder.path())?;
        let begun = Instant::now();
        let mut job = stage::start(folder.path(), &script.semantics, script.partitions, workers)?;
        eprintln!("  {name}: {workers} workers caught up in {:.1} s", begun.elapsed().as_secs_f64());
        if let Some(pool) = pool
            && job.demonstrations().len() != pool
        {
            return Err(
                format!("{} demonstrations are in the pool, not {pool}", job.demonstrations().len()).into()
            );
        }
        let before = job.demonstrations().clone();
        let epoch = script.runs.first().and_then(|run| run.first()).map_or(0, |chunk| chunk.events);
        let state = stage::conditions(&job, users, workers);
        let [mut events_wall, mut events_cpu, mut vectors_wall, mut vectors_cpu] = [const { Vec::new() }; 4];
        for chunks in &script.runs {
            let (mut wall, mut cpu, mut events) = (0.0, 0.0, 0);
            let before = job.totals().committed.features;
            for chunk in chunks {
                let (w, c) = stage::epoch(&mut job, chunk, |job| {
                    let (begun, on_core) = (Instant::now(), machine::cpu_seconds()?);
                    stage::close(job)?;
                    Ok((begun.elapsed().as_secs_f64(), machine::cpu_seconds()? - on_core))
                })?;
                (wall, cpu, events) = (wall + w, cpu + c, events + chunk.events);
            }
            let vectors = (job.totals().committed.features - before) as f64;
            events_wall.push(events as f64 / wall);
            events_cpu.push(events as f64 / cpu);
            vectors_wall.push(vectors / wall);
            vectors_cpu.push(vectors / cpu);
        }
        let total: usize = script.runs.iter().flatten().map(|chunk| chunk.events).sum();
        let new = job.demonstrations().difference(&before).count() as f64 * 1e3 / total as f64;
        let conditions = format!(
            "{name}, {state}, {} new or other demonstrations in 1,000 interactions, epochs of about {epoch}",
            crate::report::number(new)
        );
        let mut add = |what, unit, runs| report.add("throughput", what, &conditions, unit, runs);
        add("interactions", "1/s", events_wall)?;
        add("interactions per core", "1/core-s", events_cpu)?;
        add("feature vectors", "1/s", vectors_wall)?;
        add("feature vectors per core", "1/core-s", vectors_cpu)?;
    }
    Ok(())
}
