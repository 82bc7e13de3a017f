//! The ICT kernel: microseconds of a pair and of its parts, on one thread.

use crate::report::{Report, SHORT_RUNS};
use crate::script::{Words, unit_vector};
use crate::{Arguments, Fallible};
use fastrand::Rng;
use ictflow_operators::ict::{DemonstrationTokens, Prefix, Sample, Shape, Weights, untrained};
use ictflow_schemas::Id;
use ictflow_schemas::catalog::{Item, ItemState, ItemVector};
use ictflow_schemas::example::Verdict;
use ictflow_schemas::framing::text_digest;
use ictflow_schemas::vector::{VectorSum, quantise};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

/// Demonstrations of a vector.
const K: usize = 4;

/// Entries of a history.
const L: usize = 20;

/// Queries of the batch.
const QUERIES: usize = 256;

pub fn measure(arguments: &Arguments, report: &mut Report) -> Fallible<()> {
    let weights = Weights::from_safetensors(&untrained(7, Shape::default())?)?;
    let (runs, seconds) = if arguments.quick { (SHORT_RUNS, 0.01) } else { (2 * SHORT_RUNS + 1, 0.3) };
    let mut rng = Rng::with_seed(1);
    let mut words = Words::new(1);
    let items: Vec<(Id, Item)> =
        (0..200).map(|i| (format!("i{i:06}").into(), item(&mut rng, &mut words))).collect();
    let history = |rng: &mut Rng| -> Vec<(Id, Option<Item>)> {
        (0..L)
            .map(|_| &items[rng.usize(..items.len())])
            .map(|(id, item)| (id.clone(), Some(item.clone())))
            .collect()
    };
    let samples: Vec<(String, usize, Vec<(Id, Option<Item>)>, VectorSum)> = (0..64)
        .map(|user| {
            let history = history(&mut rng);
            let vectors = history.iter().filter_map(|(_, item)| item.as_ref()?.vector.as_ref());
            let sum = VectorSum::over(vectors.map(|vector| &*vector.vector));
            (format!("u{user:06}"), rng.usize(..items.len()), history, sum)
        })
        .collect();
    let sample = |n: usize| {
        let (user, i, history, text) = &samples[n % samples.len()];
        Sample { user, item_id: &items[*i].0, item: &items[*i].1, history, text }
    };
    let cot = quantise(&unit_vector(&mut rng, 384));

    let tokens: Vec<DemonstrationTokens> =
        (0..samples.len()).map(|n| weights.demonstration(&sample(n), &cot, Verdict::Positive)).collect();
    let prefixes: Vec<Prefix> = (0..64)
        .map(|n| weights.prefix(&(0..K).map(|k| &tokens[(n + 7 * k) % 64]).collect::<Vec<_>>()))
        .collect();
    let queries: Vec<(&Prefix, Vec<f32>)> =
        (0..QUERIES).map(|n| (&prefixes[n % 64], weights.sample_token(&sample(n)))).collect();
    let whole = weights.forward(&queries);
    for (n, (prefix, query)) in queries.iter().enumerate() {
        let alone = weights.decode_after(prefix, query);
        if alone.iter().zip(&whole[n * alone.len()..]).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err("a vector has other bits in a batch: a figure of it would mean nothing".into());
        }
    }

    let mut add = |what: &str, conditions: &str, of: usize, work: &mut dyn FnMut()| {
        report.add("ict", what, conditions, "µs", microseconds(runs, seconds, of, work))
    };
    add(
        "ICT vector of a pair",
        "K 4, d 32, 1 thread, query and prefix kept, batches of 256",
        QUERIES,
        &mut || {
            black_box(weights.forward(black_box(&queries)));
        },
    )?;
    let (prefix, query) = &queries[0];
    add("ICT vector of a pair", "as before, one by one", 1, &mut || {
        black_box(weights.decode_after(black_box(prefix), black_box(query)));
    })?;
    let four: Vec<&DemonstrationTokens> = tokens.iter().take(K).collect();
    add("ICT prefix of 4 demonstrations", "1 thread, their tokens kept", 1, &mut || {
        black_box(weights.prefix(black_box(&four)));
    })?;
    add("ICT tokens of a demonstration", "1 thread, history of 20, whole", 1, &mut || {
        black_box(weights.demonstration(black_box(&sample(3)), &cot, Verdict::Positive));
    })?;
    let (user, i, history, text) = &samples[0];
    let rows: Vec<_> = history.iter().map(|(id, item)| weights.item_rows(id, item.as_deref())).collect();
    add("ICT user part", "1 thread, history of 20, rows kept", 1, &mut || {
        black_box(weights.user_part(black_box(user), &rows, text));
    })?;
    let (id, item) = &items[*i];
    add("ICT rows of an item", "1 thread, creator and 2 categories hashed", 1, &mut || {
        black_box(weights.item_rows(black_box(id), Some(item)));
    })?;
    let vector = item.vector.as_ref().map(|vector| &*vector.vector);
    add("ICT item part", "1 thread, rows kept", 1, &mut || {
        black_box(weights.item_part(black_box(&rows[0]), vector));
    })?;
    Ok(())
}

/// An item with a vector of its own.
pub fn item(rng: &mut Rng, words: &mut Words) -> Item {
    let text = text_digest(&words.text(6));
    Arc::new(ItemState {
        text,
        creator: Some(words.word().into()),
        categories: vec![format!("c{}", rng.u32(..20)).into(), format!("c{}", 20 + rng.u32(..20)).into()],
        vector: Some(ItemVector { text, vector: quantise(&unit_vector(rng, 384)) }),
    })
}

/// Runs of some seconds each, in microseconds of one of the `of` things that a call does.
pub fn microseconds(runs: usize, seconds: f64, of: usize, work: &mut dyn FnMut()) -> Vec<f64> {
    // How many calls make a run, found by doubling; that also warms the caches.
    let mut calls = 1u32;
    loop {
        let begun = Instant::now();
        (0..calls).for_each(|_| work());
        if begun.elapsed().as_secs_f64() > seconds || calls > 1 << 28 {
            break;
        }
        calls *= 2;
    }
    let run = |_| {
        let begun = Instant::now();
        (0..calls).for_each(|_| work());
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(calls) / of as f64
    };
    (0..runs).map(run).collect()
}
