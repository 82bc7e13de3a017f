//! Training of rankers: samples a second, on one thread.
//!
//! MovieLens-100K with vectors of no meaning, which cost what real ones do; batches of 512, all that a step is:
//! gathering the batch, forward, backward, Adam. `benches/training.py` does the same in PyTorch.

use crate::report::{Report, SHORT_RUNS};
use crate::{Arguments, Fallible};
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_dataflows::config::checked::models;
use ictflow_dataflows::demo::movielens;
use ictflow_dataflows::ranking::arms::Arm;
use ictflow_dataflows::ranking::dataset::{Part, Prepared, Protocol, Source};
use ictflow_dataflows::ranking::delay::Delay;
use ictflow_dataflows::ranking::fit::{Material, Training, run_steps};
use ictflow_dataflows::ranking::model::{Model, Sizes};
use ictflow_dataflows::ranking::neighbours::{Neighbours, Selecting};
use ictflow_dataflows::ranking::tensors::{Columns, NeighbourColumns, Retrieved, Vocabularies};
use ictflow_operators::ict::Shape;
use ictflow_operators::ranking::backbones::Kind;
use std::time::Instant;

/// Arms that are measured: no neighbours, their votes, their vector.
const ARMS: [&str; 3] = ["strong", "votes", "attention+votes"];

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let cache = tempfile::tempdir()?;
    let source = Source {
        folder: models().join("data/ml-100k"),
        name: None,
        columns: movielens::columns(),
        protocol: Protocol::Time,
        users: None,
    };
    let prepared = Prepared::read(&source, &mut Hashed::new(Shape::default().text), cache.path())?;
    let vocabularies = Vocabularies::of(&prepared);
    let columns = Columns::of(&prepared, &vocabularies)?;
    let begun = Instant::now();
    let neighbours = Neighbours::of(&prepared, Selecting::Similar.options(Delay::NONE))?;
    let replayed = begun.elapsed().as_secs_f64();
    let neighbours = NeighbourColumns::of(neighbours, &vocabularies)?;
    let (users, labels) = (prepared.users(Part::Valid), prepared.labels(Part::Valid));
    let material = Material {
        columns: &columns,
        retrieved: Retrieved { neighbours: Some(&neighbours), demonstrations: None },
        valid_users: &users,
        valid_labels: &labels,
    };
    let (training, sizes) = (Training::default(), Sizes::default());
    let steps = if arguments.quick { 4 } else { 40 };
    for name in ARMS {
        let arm = Arm::named(name).ok_or("there is no such arm")?;
        let model = Model::new(Kind::DeepFm, arm, &sizes, &columns, 1)?;
        // The first steps make the moments and warm the caches.
        run_steps(&model, &material, &training, 1, 2)?;
        let mut runs = Vec::new();
        for _ in 0..SHORT_RUNS {
            let begun = Instant::now();
            let samples = run_steps(&model, &material, &training, 1, steps)?;
            runs.push(samples as f64 / begun.elapsed().as_secs_f64());
        }
        let conditions = format!(
            "deepfm with {name}, {} parameters, d {}, batches of {}, threads {}",
            model.variables.parameters(),
            sizes.width,
            training.batch,
            report.machine.model_threads
        );
        report.add("training", "training samples", conditions, "1/s", runs)?;
    }
    eprintln!("  neighbours of {} samples replayed in {replayed:.1} s", prepared.len());
    Ok(())
}
