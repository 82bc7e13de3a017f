//! The limits that a state has: under them, at them, over them, and at them while one goes as another comes.

use ictflow_connectors::{Disposition, Error};
use ictflow_dataflows::job::Job;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::epoch::Progress;
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{self, World, candidates, event, feed, hashed, item, template};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const T0: i64 = 1_000_000_000;
const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;

fn world(folder: &Path, change: impl Fn(&mut Semantics)) -> World {
    let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
    let mut semantics = Semantics { cot_stride, ..Semantics::default() };
    change(&mut semantics);
    World::new(folder, "job", semantics, world::weights(384))
}

fn started(world: &World) -> Job {
    world.start(template(), hashed())
}

/// Three users who each rate film `x` and, a minute apart, one of `a`, `b`, `c`: three demonstrations, that on
/// `c` the newest. Two films are offered to each: six live pairs.
fn small() -> Vec<Value> {
    let mut lines: Vec<Value> =
        ["a", "b", "c", "d", "e", "x"].iter().map(|id| item(id, Some(&format!("Film {id}")), "1")).collect();
    for (n, (user, film)) in [("u1", "a"), ("u2", "b"), ("u3", "c")].into_iter().enumerate() {
        let time = T0 + MINUTE * n as i64;
        lines.push(event(user, &format!("{user}-1"), "x", "rate", Some(5.0), time));
        lines.push(event(user, &format!("{user}-2"), film, "rate", Some(5.0), time + SECOND));
    }
    for user in ["u1", "u2", "u3"] {
        lines.push(candidates(user, T0 + 10 * MINUTE, &["d", "e"]));
    }
    lines
}

/// The films of the demonstrations in the pool, and how many are left out.
fn pool(job: &Job) -> (BTreeSet<String>, usize) {
    let films = job.demonstrations().iter().map(|c| c.item.to_string()).collect();
    (films, job.demonstrations_left_out())
}

fn of(films: &[&str], left_out: usize) -> (BTreeSet<String>, usize) {
    (films.iter().map(|film| (*film).to_owned()).collect(), left_out)
}

#[test]
fn the_newest_demonstrations_stay_and_the_rest_is_left_out_by_name() {
    let table: [(usize, &[&str], usize); 4] =
        [(4, &["a", "b", "c"], 0), (3, &["a", "b", "c"], 0), (2, &["b", "c"], 1), (0, &[], 3)];
    for (limit, films, left_out) in table {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path(), |s| s.max_demonstrations = limit);
        let mut job = started(&world);
        feed(&mut job, &small(), world.partitions);
        assert_eq!(pool(&job), of(films, left_out), "limit {limit}");
        let features = world.compacted(Topic::Features);
        assert_eq!(features.len(), 6);
        for value in features.values() {
            assert_eq!(Feature::decode(value).unwrap().k as usize, films.len(), "limit {limit}");
        }
        // Each has its answer all the same: it may be wanted as soon as a newer one goes.
        assert_eq!(job.requester().answered(), 3);
        drop(job);
        assert_eq!(pool(&started(&world)), of(films, left_out), "limit {limit}, after a restart");
    }
}

#[test]
fn at_the_limit_the_next_newest_takes_the_place_of_one_that_goes() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |s| s.max_demonstrations = 2);
    let mut job = started(&world);
    feed(&mut job, &small(), world.partitions);
    assert_eq!(pool(&job), of(&["b", "c"], 1));
    feed(&mut job, &[item("c", None, "")], world.partitions);
    assert_eq!(pool(&job), of(&["a", "b"], 0));
    feed(&mut job, &[item("c", Some("Film c"), "1"), item("b", None, "")], world.partitions);
    assert_eq!(pool(&job), of(&["a", "c"], 0), "one goes as another comes");
    feed(&mut job, &[item("b", Some("Film b"), "1")], world.partitions);
    assert_eq!(pool(&job), of(&["b", "c"], 1));
    assert_eq!(job.requester().accounting.attempts, 3, "and none is asked again");
}

/// Appends and steps until all of it is committed, or the job stops.
fn step(job: &mut Job, lines: &[Value], world: &World) -> Option<Error> {
    world::append(job, lines, world.partitions);
    while !job.idle().unwrap() {
        if let Err(error) = job.step(Duration::from_millis(5)) {
            return Some(error);
        }
    }
    None
}

fn committed(world: &World) -> i64 {
    let progress = world.compacted(Topic::Progress);
    progress.values().map(|value| Progress::decode(value).unwrap().epoch).max().unwrap_or(0)
}

/// The job stopped by this limit, and stays stopped: nothing of the epoch is visible.
fn stopped(error: &Error, world: &World, limit: usize, pairs: usize) {
    let says = format!("{pairs} live pairs are more than max_live_pairs {limit}");
    assert_eq!(error.disposition, Disposition::Fatal, "{error}");
    assert!(error.to_string().contains(&says), "{error}");
    assert!(error.hint.contains("raise the limit in a new job"), "{}", error.hint);
    let (before, epoch) = (world.compacted(Topic::Features), committed(world));
    let again = world.try_start(template(), hashed()).err().map(|error| error.to_string());
    assert!(again.as_ref().is_some_and(|again| again.contains(&says)), "{again:?}");
    assert_eq!((world.compacted(Topic::Features), committed(world)), (before, epoch));
}

#[test]
fn up_to_the_limit_of_live_pairs_a_job_runs() {
    for limit in [7, 6] {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path(), |s| s.max_live_pairs = limit);
        let mut job = started(&world);
        feed(&mut job, &small(), world.partitions);
        assert_eq!((job.sink().pairs_live(), world.compacted(Topic::Features).len()), (6, 6));
    }
}

#[test]
fn one_more_stops_it_by_name_before_it_commits() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |s| s.max_live_pairs = 5);
    let mut job = started(&world);
    let error = step(&mut job, &small(), &world).unwrap();
    drop(job);
    assert_eq!(world.compacted(Topic::Features).len(), 0);
    stopped(&error, &world, 5, 6);
}

#[test]
fn at_the_limit_one_pair_may_go_as_another_comes_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |s| s.max_live_pairs = 6);
    let mut job = started(&world);
    feed(&mut job, &small(), world.partitions);
    let later = T0 + 11 * MINUTE;
    assert!(step(&mut job, &[candidates("u1", later, &["d", "a"])], &world).is_none());
    assert_eq!(job.sink().pairs_live(), 6);
    // A deleted item takes a pair of each user with it.
    assert!(step(&mut job, &[item("d", None, "")], &world).is_none());
    assert_eq!(job.sink().pairs_live(), 3);
    assert!(step(&mut job, &[candidates("u1", later, &["a", "b", "c", "x"])], &world).is_none());
    assert_eq!(job.sink().pairs_live(), 6);
    let (features, epoch) = (world.compacted(Topic::Features), committed(&world));
    let error = step(&mut job, &[candidates("u2", later, &["a", "e"])], &world).unwrap();
    drop(job);
    assert_eq!((world.compacted(Topic::Features), committed(&world)), (features, epoch));
    stopped(&error, &world, 6, 7);
}

#[test]
fn pairs_that_wait_for_a_vector_count_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = world(folder.path(), |s| s.max_live_pairs = 5);
    world.generate = false;
    let mut job = started(&world);
    let error = step(&mut job, &small(), &world).unwrap();
    drop(job);
    stopped(&error, &world, 5, 6);
}
