//! Memory: bytes per user, item and live pair, as slopes over states of several sizes.
//!
//! Each state is built by a job in a process of its own, from a store that another process wrote, so
//! that nothing freed before is counted or used again. What is read is the memory that no file backs,
//! when the job is idle, what the allocator keeps of freed memory included, as the machine's owner
//! sees it; the slope by least squares leaves the fixed part out.

use crate::report::{LONG_RUNS, Report, slope};
use crate::script::{Chunk, Script, Sizes, candidates, item_id, record, stride, user_id};
use crate::{Arguments, Fallible, machine, stage};
use fastrand::Rng;
use ictflow_schemas::Millis;
use ictflow_schemas::config::Semantics;
use ictflow_schemas::interaction::Interaction;
use ictflow_schemas::topic::{NewRecord, Topic};
use ictflow_schemas::wire::Wire;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a child finds beside its store.
#[derive(Serialize, Deserialize)]
struct Plan {
    semantics: Semantics,
    partitions: u32,
}

/// What a child says of its job.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    bytes: f64,
    users: isize,
    items: usize,
    interactions: usize,
    pairs: usize,
    demonstrations: usize,
}

const PLAN: &str = "plan.json";

/// Entries of a user's history: L.
const HISTORY: usize = 20;

type Case = (&'static str, fn(usize) -> Script, fn(&State) -> f64, &'static str);

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let cases: [Case; 4] = [
        (
            "memory of a user",
            users,
            |state| state.users as f64,
            "history of 20 and as many labels in rings, no pair, nothing open; 1,000 items",
        ),
        (
            "memory of a label",
            rings,
            |state| state.interactions as f64,
            "in its user's ring and its item's, both below 128; 1,000 users, 1,000 items, histories full",
        ),
        (
            "memory of an item",
            items,
            |state| state.items as f64,
            "text of about 150 B and its vector of 384; no user",
        ),
        (
            "memory of a live pair",
            pairs,
            |state| state.pairs as f64,
            "1,000 users, 2,000 items, 500 demonstrations",
        ),
    ];
    let scales: [&[usize]; 4] = if arguments.quick {
        [&[2_500, 5_000, 10_000], &[30, 60, 90], &[2_500, 5_000, 10_000], &[10, 20, 40]]
    } else {
        [
            &[5_000, 10_000, 20_000, 40_000],
            &[30, 60, 90, 120],
            &[5_000, 10_000, 20_000, 40_000],
            &[10, 20, 40, 80],
        ]
    };
    for ((what, script, count, conditions), scales) in cases.into_iter().zip(scales) {
        let mut points: Vec<Vec<(f64, f64)>> = vec![Vec::new(); LONG_RUNS];
        for scale in scales {
            let script = script(*scale);
            let base = tempfile::tempdir_in(stage::disk()?)?;
            stage::fill(base.path(), &script, &stage::weights()?)?;
            let plan = Plan { semantics: script.semantics.clone(), partitions: script.partitions };
            for points in &mut points {
                let folder = tempfile::tempdir_in(stage::disk()?)?;
                stage::copy(base.path(), folder.path())?;
                std::fs::write(folder.path().join(PLAN), serde_json::to_string(&plan)?)?;
                let state = job_of(folder.path())?;
                points.push((count(&state), state.bytes));
            }
        }
        let sizes: Vec<String> = points[0].iter().map(|(n, _)| format!("{n:.0}")).collect();
        let conditions = format!("{conditions}; slope over {}", sizes.join(", "));
        report.add("memory", what, conditions, "B", points.iter().map(|points| slope(points)).collect())?;
    }
    Ok(())
}

/// Runs this program on a store, in a process of its own.
fn job_of(folder: &Path) -> Fallible<State> {
    let out = Command::new(std::env::current_exe()?)
        .args(["--bench", "--memory-of"])
        .arg(folder)
        .stderr(Stdio::inherit())
        .output()?;
    if !out.status.success() {
        return Err(format!("the job whose memory is measured ended with {}", out.status).into());
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// The child: builds the state and says what it takes.
pub fn child(folder: &Path) -> Fallible<()> {
    let plan: Plan = serde_json::from_str(&std::fs::read_to_string(folder.join(PLAN))?)?;
    let job = stage::start(folder, &plan.semantics, plan.partitions, 1)?;
    let state = State {
        bytes: machine::resident()?,
        users: job.history_users(),
        items: job.items(),
        interactions: job.judgements().interactions as usize,
        pairs: job.sink().features_live(),
        demonstrations: job.demonstrations().len(),
    };
    println!("{}", serde_json::to_string(&state)?);
    Ok(())
}

/// Users with 20 clicks each, round by round, a tenth of a second of event time apart, and then a
/// click a minute of one more user, until all are final. So at any time the same few thousand are
/// open, whatever the size.
fn users(count: usize) -> Script {
    users_with(count, HISTORY)
}

/// The same with another number of clicks each.
pub fn users_with(count: usize, clicks: usize) -> Script {
    let mut semantics = Semantics::default();
    // No example is chosen: what is held for CoTs is not a user's memory.
    stride(&mut semantics, 1 << 60);
    let (start, items): (Millis, usize) = (1_700_000_000_000, 1_000);
    let mut rng = Rng::with_seed(30);
    let all = clicks * count;
    let end = start + 100 * all as Millis;
    let clicks = (0..all).map(|n| (n % count, n / count, start + 100 * n as Millis));
    let last = (0..60).map(|minute| (count, minute, end + 60_000 * minute as Millis));
    let records: Vec<NewRecord> = clicks
        .chain(last)
        .map(|(user, number, time)| click(user, &format!("e{number}"), rng.usize(..items), time))
        .collect();
    let warm = records.chunks(10_000).map(|part| Chunk { records: part.to_vec(), events: part.len() });
    Script {
        items: crate::script::catalog(items),
        warm: warm.collect(),
        runs: Vec::new(),
        semantics,
        partitions: 1,
    }
}

fn click(user: usize, event_id: &str, item: usize, event_time: Millis) -> NewRecord {
    let event = Interaction {
        event_id: event_id.to_owned(),
        user_id: user_id(user),
        item_id: item_id(item),
        kind: "click".to_owned(),
        value: None,
        impression_id: None,
        event_time,
    };
    record(Topic::Interactions, &event.user_id, Some(event.encode()), Some(event_time), 1)
}

/// 1,000 users with so many clicks each: longer rings, all else alike.
fn rings(clicks: usize) -> Script {
    users_with(1_000, clicks)
}

/// Items with their texts and vectors.
fn items(count: usize) -> Script {
    let mut script = users(1);
    script.items = crate::script::catalog(count);
    script
}

/// Users with candidate sets of this size each.
fn pairs(each: usize) -> Script {
    let (users, items) = (1_000, 2_000);
    let sizes = Sizes {
        users,
        items,
        warm: 4_000,
        chunk: 0,
        chunks: 0,
        runs: 0,
        stride: 10,
        demonstrations: 500,
        partitions: 1,
    };
    let mut script = Script::synthetic(sizes);
    // After all events, so that no outcome takes a pair away.
    let computed_at = 1_700_000_000_000 + 4_100_000;
    let set = |user: usize| (0..each).map(|n| item_id((user * 7 + n * 23) % items)).collect();
    let records = (0..users).map(|user| candidates(&user_id(user), computed_at, set(user), 1)).collect();
    script.warm.push(Chunk { records, events: 0 });
    script
}
