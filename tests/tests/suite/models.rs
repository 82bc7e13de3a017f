//! The life of ICT weights: a directory names those that serve, a job switches while it runs, and what it
//! publishes is what a job would that never knew others.

use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::validate::Validator;
use ictflow_dataflows::epochs::{read_compacted, read_whole};
use ictflow_dataflows::job::Job;
use ictflow_dataflows::recompute::Plan;
use ictflow_dataflows::verify::{Report, verify};
use ictflow_dataflows::weights::{ACTIVE, Directory, SHADOW, Watcher};
use ictflow_operators::ict::{Kind, Shape, Versions, Weights, untrained_of};
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::feature::Feature;
use ictflow_schemas::topic::Topic;
use ictflow_schemas::wire::Wire;
use ictflow_tests::support::world::{
    self, SECOND, T0, World, calls, event, feed, films, hashed, item, settle, template,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder with the topics of a world and a directory of weights.
struct Deployment {
    folder: tempfile::TempDir,
    world: World,
}

fn shape() -> Shape {
    Shape { user_rows: 64, item_rows: 64, creator_rows: 16, category_rows: 16, ..Shape::default() }
}

fn bytes(kind: Kind, seed: u64) -> Vec<u8> {
    untrained_of(kind, seed, shape()).unwrap()
}

fn version(bytes: &[u8]) -> String {
    Weights::from_safetensors(bytes).unwrap().version().to_owned()
}

impl Deployment {
    fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cot_stride = CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 };
        let semantics = Semantics { cot_stride, ..Semantics::default() };
        let mut world = World::new(folder.path(), "job", semantics, Arc::new(bytes(kind, 1)));
        world.calls_file = Some(folder.path().join("calls"));
        let deployment = Deployment { folder, world };
        std::fs::create_dir(deployment.weights()).unwrap();
        deployment.deploy("a.safetensors", &bytes(kind, 1));
        deployment
    }

    fn weights(&self) -> PathBuf {
        self.folder.path().join("weights")
    }

    /// Copies a file and names it, as a deployer does.
    fn deploy(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.weights().join(name), bytes).unwrap();
        self.name(name);
    }

    fn name(&self, name: &str) {
        self.point(ACTIVE, name);
    }

    fn point(&self, pointer: &str, name: &str) {
        let anew = self.weights().join("pointer.new");
        std::fs::write(&anew, format!("{name}\n")).unwrap();
        std::fs::rename(anew, self.weights().join(pointer)).unwrap();
    }

    fn directory(&self) -> Directory {
        Directory::new(self.weights())
    }

    fn versions(&self) -> Versions {
        let directory = self.directory();
        let versions = Versions::new(directory.active().unwrap(), Some(directory.finder()));
        versions.stand_beside(directory.shadow().unwrap()).unwrap();
        versions
    }

    fn start(&self) -> Job {
        start(&self.world, self.versions())
    }

    fn calls(&self) -> usize {
        calls(self.world.calls_file.as_ref().unwrap()).len()
    }

    fn features(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.world.compacted(Topic::Features)
    }

    /// What stands on the shadow's topic.
    fn beside(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let values = read_compacted(&mut *self.world.topics(), &shadow(&self.world)).unwrap();
        values.into_iter().map(|(key, (_, value))| (key, value)).collect()
    }

    /// What a job publishes that never knew other weights, over the same inputs and answers.
    fn fresh(&self, name: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.fresh_of(name, self.directory().active().unwrap())
    }

    fn fresh_of(&self, name: &str, weights: Arc<Weights>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let world = World { job: name.into(), generate: false, calls_file: None, ..self.world.clone() };
        let mut job = start(&world, weights.into());
        settle(&mut job);
        world.compacted(Topic::Features)
    }

    fn verified(&self, epoch: i64) -> Report {
        let (names, encoder) = (self.world.names(), hashed());
        let plan = Plan {
            names: &names,
            semantics: Arc::new(self.world.semantics.clone()),
            formats: BTreeMap::new(),
            encoder: (encoder.id().to_owned(), encoder.width()),
            weights: self.versions(),
            workers: 2,
            chunk: 700,
        };
        verify(&mut *self.world.topics(), &plan, "job", Some(epoch), |_, _| {}).unwrap()
    }

    /// The bounds of another epoch are recorded under these weights, as a kill before the commit leaves it.
    fn record_bounds(&self, ict_weights: &str) {
        let names = self.world.names();
        let mut topics = self.world.topics();
        let records = ictflow_dataflows::epochs::load(&mut *topics, names.of(Topic::Epochs), "job").unwrap();
        let mut bounds = records.last().unwrap().clone();
        bounds.epoch += 1;
        bounds.config = None;
        bounds.actives.ict_weights = ict_weights.to_owned();
        let mut writer = topics.writer("job.epochs").unwrap();
        ictflow_dataflows::epochs::commit(&mut *writer, names.of(Topic::Epochs), &bounds).unwrap();
    }
}

fn start(world: &World, versions: Versions) -> Job {
    let validator = Validator::new(&Prompt::builtin());
    let mut parts = world.parts(vec![template()], validator, hashed()).unwrap();
    parts.weights = versions;
    let mut options = world.options();
    options.names = options.names.with_shadow(shadow(world));
    Job::start(parts, Arc::new(world.semantics.clone()), options).unwrap()
}

/// The shadow's topic.
fn shadow(world: &World) -> String {
    format!("features_shadow.{}", world.job)
}

/// Somebody rates one of the candidates of the others, a day after nothing else.
fn later() -> Vec<Value> {
    vec![
        event("u1", "u1-3", "c", "rate", Some(5.0), T0 + 700 * SECOND),
        event("u4", "u4-1", "d", "rate", Some(1.0), T0 + 900 * SECOND),
    ]
}

fn served(features: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeSet<String> {
    features.values().map(|value| Feature::decode(value).unwrap().ict_weights).collect()
}

fn of(version: &str) -> BTreeSet<String> {
    BTreeSet::from([version.to_owned()])
}

#[test]
fn a_job_that_switches_publishes_what_one_would_that_never_knew_the_weights_before() {
    for kind in [Kind::Decoder, Kind::Attention] {
        let deployment = Deployment::new(kind);
        let mut watcher = Watcher::eager(deployment.directory());
        let mut job = deployment.start();
        feed(&mut job, &films(), deployment.world.partitions);
        watcher.look(&mut job);
        let (first, before, called) = (job.committed(), deployment.features(), deployment.calls());
        assert!(called > 0 && before.len() == 6, "{} features", before.len());
        assert_eq!(served(&before), of(&version(&bytes(kind, 1))));

        let other = bytes(kind, 2);
        deployment.deploy("b.safetensors", &other);
        assert!(job.idle().unwrap());
        let published = job.totals().committed.features;
        watcher.look(&mut job);
        settle(&mut job);
        assert_eq!(job.committed(), first + 1, "one epoch, and no other");
        assert_eq!(job.totals().committed.features, published + before.len() as u64);
        let after = deployment.features();
        assert_eq!(served(&after), of(&version(&other)));
        assert_eq!(after, deployment.fresh("fresh"));
        assert_ne!(after, before);
        watcher.look(&mut job);
        settle(&mut job);
        assert_eq!((watcher.figures.switched, watcher.figures.refused), (1, 0));
        assert_eq!((job.committed(), deployment.calls()), (first + 1, called), "no epoch and no call");

        feed(&mut job, &later(), deployment.world.partitions);
        let last = job.committed();
        assert_eq!(deployment.features(), deployment.fresh("later"));
        for epoch in [first, first + 1, last] {
            let report = deployment.verified(epoch);
            assert_eq!(report.violations, [], "{kind}, epoch {epoch}");
            assert!(report.features > 0);
        }

        // A restart replays both versions, and publishes nothing that stands.
        drop(job);
        let standing = deployment.features();
        let mut job = deployment.start();
        feed(&mut job, &[item("e", Some("Film e"), "1")], deployment.world.partitions);
        assert_eq!(job.totals().committed.features, 0);
        assert_eq!(deployment.features(), standing);
    }
}

#[test]
fn a_restart_in_the_middle_of_a_switch_is_the_switch() {
    let b = bytes(Kind::Decoder, 2);
    let begun = || {
        let deployment = Deployment::new(Kind::Decoder);
        let mut job = deployment.start();
        feed(&mut job, &films(), deployment.world.partitions);
        let committed = job.committed();
        drop(job);
        deployment.deploy("b.safetensors", &b);
        deployment.record_bounds(&version(&b));
        (deployment, committed)
    };

    // The successor goes on with the new ones.
    let (deployment, committed) = begun();
    let mut job = deployment.start();
    assert_eq!(job.committed(), committed + 1);
    let switched = deployment.features();
    assert_eq!(served(&switched), of(&version(&b)));
    settle(&mut job);
    assert_eq!(job.committed(), committed + 1, "the recorded epoch published all");
    assert_eq!(switched, deployment.fresh("fresh"));
    assert_eq!(deployment.verified(committed + 1).violations, []);

    // Or the deployer thought better of it: the recorded epoch is what it says, the next one switches back.
    let (deployment, committed) = begun();
    let before = deployment.features();
    deployment.name("a.safetensors");
    let mut job = deployment.start();
    assert_eq!(served(&deployment.features()), of(&version(&b)));
    assert!(!job.idle().unwrap());
    settle(&mut job);
    assert_eq!((job.committed(), &deployment.features()), (committed + 2, &before));

    // Or took the file away: the recorded epoch publishes nothing.
    let (deployment, committed) = begun();
    let before = deployment.features();
    deployment.name("a.safetensors");
    std::fs::remove_file(deployment.weights().join("b.safetensors")).unwrap();
    let mut job = deployment.start();
    assert_eq!((job.committed(), &deployment.features()), (committed + 1, &before));
    settle(&mut job);
    assert_eq!((job.committed(), &deployment.features()), (committed + 2, &before));
}

#[test]
fn a_start_with_another_kind_republishes_all_under_it() {
    let deployment = Deployment::new(Kind::Decoder);
    let mut job = deployment.start();
    feed(&mut job, &films(), deployment.world.partitions);
    let before = deployment.features();
    drop(job);
    let attention = bytes(Kind::Attention, 2);
    deployment.deploy("b.safetensors", &attention);
    let mut job = deployment.start();
    settle(&mut job);
    let after = deployment.features();
    assert_eq!((after.len(), served(&after)), (before.len(), of(&version(&attention))));
    assert_eq!(after, deployment.fresh("fresh"));
    assert_eq!(deployment.verified(job.committed()).violations, []);
}

#[test]
fn what_does_not_fit_is_refused_once_and_those_from_before_go_on_serving() {
    let deployment = Deployment::new(Kind::Decoder);
    let mut watcher = Watcher::eager(deployment.directory());
    let mut job = deployment.start();
    feed(&mut job, &films(), deployment.world.partitions);
    watcher.look(&mut job);
    let committed = job.committed();
    let whole = bytes(Kind::Decoder, 3);
    let narrow = untrained_of(Kind::Decoder, 3, Shape { d: 16, ..shape() }).unwrap();
    let other_texts = untrained_of(Kind::Decoder, 3, Shape { text: 20, ..shape() }).unwrap();
    let refused: [(&str, &dyn Fn(&Path)); 5] = [
        ("d", &|path: &Path| std::fs::write(path.join("next.safetensors"), &narrow).unwrap()),
        ("texts", &|path: &Path| std::fs::write(path.join("next.safetensors"), &other_texts).unwrap()),
        ("kind", &|path: &Path| {
            std::fs::write(path.join("next.safetensors"), bytes(Kind::Attention, 3)).unwrap()
        }),
        ("a cut file", &|path: &Path| std::fs::write(path.join("next.safetensors"), &whole[..999]).unwrap()),
        ("no file", &|path: &Path| std::fs::remove_file(path.join("next.safetensors")).unwrap()),
    ];
    for (n, (what, deploy)) in refused.into_iter().enumerate() {
        deploy(&deployment.weights());
        deployment.name("next.safetensors");
        watcher.look(&mut job);
        watcher.look(&mut job);
        settle(&mut job);
        assert_eq!(watcher.figures.refused, n as u64 + 1, "{what}");
        assert_eq!((watcher.figures.switched, job.committed()), (0, committed), "{what}");
    }
    feed(&mut job, &later(), deployment.world.partitions);
    assert_eq!(served(&deployment.features()), of(&version(&bytes(Kind::Decoder, 1))));
    // Once it is whole it serves, under the name that was refused.
    deployment.deploy("next.safetensors", &whole);
    watcher.look(&mut job);
    settle(&mut job);
    assert_eq!(served(&deployment.features()), of(&version(&whole)));
}

#[test]
fn several_workers_switch_together() {
    let mut deployment = Deployment::new(Kind::Attention);
    deployment.world.workers = 3;
    let mut watcher = Watcher::eager(deployment.directory());
    let mut job = deployment.start();
    feed(&mut job, &films(), deployment.world.partitions);
    deployment.deploy("b.safetensors", &bytes(Kind::Attention, 2));
    watcher.look(&mut job);
    // The switch comes with input.
    world::append_and_step(&mut job, &later(), deployment.world.partitions).unwrap();
    settle(&mut job);
    deployment.world.workers = 1;
    assert_eq!(deployment.features(), deployment.fresh("fresh"));
}

#[test]
fn a_shadow_is_published_beside_and_leaves_the_features_as_they_are() {
    for kind in [Kind::Decoder, Kind::Attention] {
        let deployment = Deployment::new(kind);
        let partitions = deployment.world.partitions;
        let mut watcher = Watcher::eager(deployment.directory());
        let mut job = deployment.start();
        feed(&mut job, &films(), partitions);
        watcher.look(&mut job);
        let (committed, features) = (job.committed(), deployment.features());
        assert!(deployment.beside().is_empty() && job.sink().agreement().is_none());

        let other = Arc::new(Weights::from_safetensors(&bytes(kind, 2)).unwrap());
        std::fs::write(deployment.weights().join("b.safetensors"), bytes(kind, 2)).unwrap();
        deployment.point(SHADOW, "b.safetensors");
        watcher.look(&mut job);
        settle(&mut job);
        assert_eq!((job.committed(), &deployment.features()), (committed + 1, &features));
        assert_eq!(deployment.beside(), deployment.fresh_of("beside", other.clone()));
        let agreement = job.sink().agreement().unwrap();
        assert_eq!(agreement.pairs, features.len() as u64);
        assert!(-1.0 < agreement.least && agreement.least <= agreement.mean && agreement.mean < 1.0);

        feed(&mut job, &later(), partitions);
        let (features, beside) = (deployment.features(), deployment.beside());
        assert_eq!(features, deployment.fresh("plain"));
        assert_eq!(beside, deployment.fresh_of("later", other.clone()));
        assert_eq!(deployment.verified(job.committed()).violations, []);

        // One that doesn't fit is refused, the one before goes on.
        deployment.point(SHADOW, "gone.safetensors");
        watcher.look(&mut job);
        settle(&mut job);
        assert_eq!((watcher.figures.refused, &deployment.beside()), (1, &beside));

        // A restart writes nothing that stands.
        drop(job);
        deployment.point(SHADOW, "b.safetensors");
        let written = || {
            let mut records = 0;
            let topic = shadow(&deployment.world);
            read_whole(&mut *deployment.world.topics(), &topic, |_| records += 1).unwrap();
            records
        };
        let before = written();
        let mut job = deployment.start();
        feed(&mut job, &[item("e", Some("Film e"), "1")], partitions);
        assert_eq!((written(), &deployment.beside(), &deployment.features()), (before, &beside, &features));

        // It comes to serve, and nothing stands beside it any more.
        deployment.name("b.safetensors");
        std::fs::remove_file(deployment.weights().join(SHADOW)).unwrap();
        let mut watcher = Watcher::eager(deployment.directory());
        watcher.look(&mut job);
        settle(&mut job);
        assert_eq!(deployment.features(), beside);
        assert!(deployment.beside().is_empty() && job.sink().agreement().is_none());
        assert_eq!((watcher.figures.switched, watcher.figures.refused), (1, 0));
    }
}
