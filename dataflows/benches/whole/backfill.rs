//! Backfills: interactions a second in coarse epochs up to the committed one, publication included, and that
//! their outputs are the live ones.

use crate::report::{LONG_RUNS, Report, number};
use crate::script::Script;
use crate::{Arguments, Fallible, stage, throughput};
use ictflow_dataflows::backfill::{self, Order};
use ictflow_dataflows::job::Job;
use ictflow_schemas::wire::Format;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let sizes = throughput::sizes(500, 100);
    let warm = if arguments.quick { sizes.warm } else { 8 * sizes.warm };
    let script = Script::synthetic(crate::script::Sizes { warm, ..sizes });
    let folder = tempfile::tempdir_in(stage::disk()?)?;
    stage::fill(folder.path(), &script, &stage::weights()?)?;
    for workers in [1, 2] {
        let live = stage::options(&format!("live-{workers}"), script.partitions, workers);
        let live = ictflow_dataflows::job::Options {
            names: ictflow_dataflows::names::Names::new(&Default::default(), &format!(".{workers}")),
            ..live
        };
        let topics = || -> Fallible<_> { Ok(Box::new(stage::open(folder.path())?)) };
        let begun = Instant::now();
        let mut job = stage::begin(stage::parts(topics()?, None)?, &script.semantics, live.clone())?;
        let caught_up = begun.elapsed().as_secs_f64();
        let interactions = job.judgements().interactions as f64;
        let conditions = stage::conditions(&job, sizes.users, workers);
        eprintln!("  the live job took {} in {caught_up:.1} s", number(interactions));
        let mut rates = Vec::new();
        for run in 0..LONG_RUNS {
            let order = Order { name: format!("run-{run}"), ..Order::default() };
            let begun = Instant::now();
            let plan = backfill::prepare(job.topics(), &live, &order, Format::Avro)?;
            let parts = stage::parts(topics()?, None)?;
            let options = backfill::options(&live, &plan);
            let mut filling = Job::start(parts, Arc::new(script.semantics.clone()), options)?;
            backfill::drive(&mut filling, &AtomicBool::new(false), |_| {})?;
            rates.push(interactions / begun.elapsed().as_secs_f64());
            drop(filling);
            let parity = backfill::conclude(job.topics(), &live, &plan)?.parity;
            if !parity.as_ref().is_some_and(|parity| parity.equal() && parity.exact) {
                return Err(format!("the backfill's outputs aren't the live ones: {parity:?}").into());
            }
        }
        let conditions = format!("{} interactions, {conditions}, epochs of 100,000", number(interactions));
        report.add("backfill", "backfill, interactions", conditions, "1/s", rates)?;
    }
    Ok(())
}
