//! Latency from an event to the commit of the epoch that holds it, at a paced load.
//!
//! A producer thread appends at a fixed rate, whatever the job does (an open loop): the time of an
//! event runs from the moment when it was *due* to be appended, so a stall counts for every event
//! that it holds up, those not yet appended among them. The rate is a share of what the same job took
//! in epochs of a thousand just before.
//!
//! One partition: then the job takes events in the order of their production, and the number that it
//! has taken says which ones a commit covers.

use crate::report::{LONG_RUNS, Report, percentile};
use crate::script::{Chunk, Script, Sizes};
use crate::{Arguments, Fallible, stage, throughput};
use ictflow_connectors::topics::Topics;
use ictflow_dataflows::job::Job;
use ictflow_schemas::topic::{NewRecord, Topic};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the producer looks what is due.
const TICK: Duration = Duration::from_millis(5);

/// How long a job may take to commit what is left after the producer's end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load and how the job gathers.
struct Load {
    share: f64,
    /// How long input is gathered before an epoch closes; the configuration's `interval_ms`.
    gather: Duration,
}

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let (pool, seconds) = if arguments.quick { (500, 3.0) } else { (5_000, 15.0) };
    let loads = [
        Load { share: 0.25, gather: Duration::ZERO },
        Load { share: 0.5, gather: Duration::ZERO },
        Load { share: 0.5, gather: Duration::from_millis(500) },
    ];
    // Runs long enough for any rate are cut from one long input; what isn't used is not appended.
    let most = if arguments.quick { 60_000 } else { 200_000 };
    let sizes = Sizes { partitions: 1, chunk: 125, chunks: 8, runs: 1, ..throughput::sizes(pool, 100) };
    let script = Script::synthetic(Sizes { runs: most / 8_000 + 1, ..sizes });
    let base = tempfile::tempdir_in(stage::disk()?)?;
    stage::fill(base.path(), &script, &stage::weights()?)?;
    let mut job = stage::start(base.path(), &script.semantics, 1, 1)?;
    let mut chunks = script.runs.iter().flatten();
    let begun = Instant::now();
    let (mut events, mut spent) = (0, 0.0);
    for chunk in chunks.by_ref().take(if arguments.quick { 4 } else { 12 }) {
        spent += stage::epoch(&mut job, chunk, |job| {
            let begun = Instant::now();
            stage::close(job)?;
            Ok(begun.elapsed().as_secs_f64())
        })?;
        events += chunk.events;
    }
    let full = events as f64 / spent;
    eprintln!(
        "  it takes {full:.0} events/s in epochs of a thousand ({:.1} s)",
        begun.elapsed().as_secs_f64()
    );
    let rest: Vec<&Chunk> = chunks.collect();
    let mut feed = rest.iter().flat_map(|chunk| &chunk.records);
    for load in loads {
        let rate = full * load.share;
        let (mut halves, mut nineties, mut tops) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..LONG_RUNS {
            let wanted = (rate * seconds) as usize;
            let batch = take(&mut feed, wanted);
            let mut times = paced(base.path(), &mut job, batch, rate, load.gather)?;
            times.sort_by(f64::total_cmp);
            halves.push(percentile(&times, 0.5));
            nineties.push(percentile(&times, 0.99));
            tops.push(percentile(&times, 1.0));
        }
        let conditions = format!(
            "{}, open loop at {} events/s ({:.0}% of saturation) for {seconds} s, epochs close {}",
            stage::conditions(&job, sizes.users, 1),
            crate::report::number(rate),
            load.share * 100.0,
            if load.gather.is_zero() {
                "at once".to_owned()
            } else {
                format!("every {} ms", load.gather.as_millis())
            }
        );
        let mut add = |what, runs| report.add("latency", what, &conditions, "ms", runs);
        add("event to commit, p50", halves)?;
        add("event to commit, p99", nineties)?;
        add("event to commit, largest", tops)?;
    }
    Ok(())
}

/// Takes whole records up to so many interactions; fewer where the input ends.
fn take<'a>(feed: &mut impl Iterator<Item = &'a NewRecord>, events: usize) -> Vec<NewRecord> {
    let mut batch = Vec::new();
    let mut taken = 0;
    while taken < events
        && let Some(record) = feed.next()
    {
        taken += usize::from(is_event(record));
        batch.push(record.clone());
    }
    batch
}

fn is_event(record: &NewRecord) -> bool {
    record.topic == Topic::Interactions.name()
}

/// Appends a batch at a rate while the job runs, and gives each event's milliseconds to its commit.
fn paced(
    folder: &Path,
    job: &mut Job,
    batch: Vec<NewRecord>,
    rate: f64,
    gather: Duration,
) -> Fallible<Vec<f64>> {
    let total = batch.iter().filter(|record| is_event(record)).count();
    if total < 200 {
        return Err(format!("{total} events are too few for a 99th percentile: the input ended").into());
    }
    let first = job.judgements().interactions;
    let begun = Instant::now();
    let mut topics = stage::open(folder)?;
    let producer = std::thread::spawn(move || produce(&mut topics, batch, rate, begun));
    let mut times = Vec::with_capacity(total);
    let (mut closed, mut produced) = (Instant::now(), None);
    while times.len() < total {
        // As `ictflow run` does it.
        if closed.elapsed() < gather {
            job.journal()?;
            std::thread::sleep(Duration::from_millis(1).min(gather - closed.elapsed().min(gather)));
            continue;
        }
        if job.step(Duration::from_millis(5))?.epoch.is_some() {
            closed = Instant::now();
            let now = begun.elapsed().as_secs_f64();
            let taken = (job.judgements().interactions - first) as usize;
            times.extend((times.len()..taken).map(|n| (now - n as f64 / rate) * 1e3));
        }
        if producer.is_finished() && produced.is_none() {
            produced = Some(Instant::now());
        }
        if produced.is_some_and(|since| since.elapsed() > PATIENCE) {
            return Err(
                format!("{} of {total} events were committed a minute after the last", times.len()).into()
            );
        }
    }
    producer.join().map_err(|_| "the producer panicked")??;
    // An open loop above saturation measures the length of the run and nothing else.
    let tenth = total / 10;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (early, late) = (mean(&times[..tenth]), mean(&times[total - tenth..]));
    if late > 3.0 * early + 1_000.0 {
        return Err(format!(
            "saturated at {rate:.0} events/s: {early:.0} ms at the start, {late:.0} ms at the end"
        )
        .into());
    }
    Ok(times)
}

/// Appends each event when it is due, with the candidate sets that stand before it.
fn produce(topics: &mut dyn Topics, batch: Vec<NewRecord>, rate: f64, begun: Instant) -> Fallible<()> {
    let mut batch = batch.into_iter().peekable();
    let mut sent = 0;
    while batch.peek().is_some() {
        let due = (begun.elapsed().as_secs_f64() * rate) as usize + 1;
        let mut records = Vec::new();
        while sent < due
            && let Some(record) = batch.next()
        {
            sent += usize::from(is_event(&record));
            records.push(record);
        }
        if records.is_empty() {
            std::thread::sleep(TICK);
        } else {
            topics.append(&records)?;
        }
    }
    Ok(())
}
