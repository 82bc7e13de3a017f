//! What a job's topics must hold, whatever was done to its processes: what a job that nothing disturbed
//! makes of the same logs.

use ictflow_dataflows::epochs::read_whole;
use ictflow_schemas::topic::Topic;
use ictflow_tests::support::verifier::{self, COMMITTED, COMPARED, Compacted, Outputs};
use ictflow_tests::support::world::{World, calls, hashed, settle, template};
use std::collections::BTreeMap;
use std::path::Path;

/// What a new job makes of the logs of a world, in coarse epochs. It asks nothing, also where it may
/// (`generate`): every answer stands.
pub fn undisturbed(world: &World, name: &str, folder: &Path, generate: bool) -> BTreeMap<Topic, Compacted> {
    let calls_file = folder.join(format!("{name}.txt"));
    let undisturbed = World {
        job: format!("{}-{name}", world.job),
        epoch: 5_000,
        snapshots: None,
        generate,
        // A collection belongs to one job, and changes nothing about an exact search.
        points: None,
        calls_file: Some(calls_file.clone()),
        ..world.clone()
    };
    let mut job = undisturbed.start(template(), hashed());
    settle(&mut job);
    let asked = &job.requester().accounting;
    assert_eq!((asked.attempts, asked.embeddings), (0, 0), "{name} asks what is answered");
    assert_eq!(calls(&calls_file), []);
    drop(job);
    COMPARED.map(|topic| (topic, undisturbed.compacted(topic))).into()
}

/// The records of a job's outputs and bounds, as a reader of committed ones sees them.
pub fn outputs(world: &World) -> Outputs {
    let (mut topics, names, mut outputs) = (world.topics(), world.names(), Outputs::new());
    for topic in COMMITTED.into_iter().chain([Topic::Epochs]) {
        let records = outputs.entry(topic).or_default();
        read_whole(&mut *topics, names.of(topic), |record| records.push(record)).unwrap();
    }
    outputs
}

/// Holds the outputs of a job at rest against what is expected.
pub fn none_violated(world: &World, expected: &BTreeMap<Topic, Compacted>) {
    let violations = verifier::check(&world.job, &outputs(world), expected);
    assert!(violations.is_empty(), "{}: {:?}", violations.len(), &violations[..violations.len().min(10)]);
}
