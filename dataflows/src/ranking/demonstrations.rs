//! The demonstrations of every sample as of its time: from the replay of the source `global`.
//!
//! Demonstrations are training samples of a pool ([`super::cots`]); those of a sample are the K nearest that
//! were labelled strictly before it, half of them positive where there are enough. None goes for its age, as in
//! the paper. What the replay gives is checked row by row, as neighbours are; only the published rule
//! ([`GlobalOptions::paper_compat`]), which leaks, isn't.

use super::cots::{CotVectors, Cots};
use super::dataset::{Part, Prepared};
use super::delay::Delay;
use super::failed;
use super::progress::Progress;
use super::tensors::{Columns, distinct};
use candle_core::{DType, Device, Tensor};
use ictflow_connectors::Result;
use ictflow_operators::as_of::global::{GlobalOptions, GlobalReplay, GlobalRow, leak};
use ictflow_operators::ict::training::Demonstrations as Gathered;
use ictflow_operators::ranking::histories::example;
use ictflow_schemas::config::{CotStride, Semantics};
use ictflow_schemas::example::Example;
use ictflow_schemas::history::Identity;
use ictflow_schemas::vector::{Quantised, SCALE};
use ictflow_schemas::{Id, Millis};
use std::collections::HashMap;
use std::sync::Arc;

/// K: the demonstrations of a sample.
pub const DEMONSTRATIONS: usize = 4;

/// Longer than any data set: no demonstration goes for its age.
const FOR_EVER: Millis = i64::MAX / 4;

/// The demonstrations of all samples, [`DEMONSTRATIONS`] places a sample, nearest last. Absent ones come first.
#[derive(Clone, Debug, PartialEq)]
pub struct Demonstrations {
    /// Training samples; 0 where there is none.
    pub samples: Vec<u32>,
    /// 1 where there is one, else 0.
    pub there: Vec<f32>,
}

/// The rules of the replay: all of the pool, for ever.
fn semantics() -> Semantics {
    Semantics {
        demonstrations: DEMONSTRATIONS,
        cot_stride: CotStride { positive: 1, explicit_negative: 1, implicit_negative: 1 },
        demonstration_ttl_ms: FOR_EVER,
        ..Semantics::default()
    }
}

/// A row that has no leak.
///
/// # Errors
/// `Fatal` where a demonstration is the example itself, of its own pair, or wasn't known before it.
pub fn checked(row: GlobalRow, delay: Delay) -> Result<GlobalRow> {
    match leak(&row, delay.0) {
        None => Ok(row),
        Some(leak) => {
            let Identity { user, event_id, .. } = &row.example.identity;
            let context = format!("replay demonstrations of example {event_id} of user {user}");
            Err(failed(context, format!("{leak}: figures would be false")))
        }
    }
}

impl Demonstrations {
    /// Replays the demonstrations of all samples, from a pool of training samples.
    ///
    /// # Errors
    /// `Fatal` where two examples are one, or a leak was found and the published rule, which leaks, wasn't asked
    /// for.
    pub fn of(prepared: &Prepared, cots: &Cots, delay: Delay) -> Result<Self> {
        let Prepared { data, histories, texts, .. } = prepared;
        let examples: Vec<Arc<Example>> =
            prepared.samples().map(|sample| Arc::new(example(data, histories, *sample))).collect();
        let places: HashMap<&Identity, u32> =
            examples[prepared.range(Part::Train)].iter().map(|example| &example.identity).zip(0..).collect();
        let vectors: HashMap<Id, Quantised> = (data.items().ids().iter().zip(texts))
            .filter_map(|(id, vector)| Some((id.clone(), vector.clone()?)))
            .collect();
        let semantics = semantics();
        let options = GlobalOptions {
            pool: Some(&cots.pool),
            semantics: &semantics,
            prompt_version: "evaluation",
            label_delay_ms: delay.0,
            paper_compat: cots.figures.paper_compat,
        };
        let replay = GlobalReplay::new(&examples, &vectors, options)
            .map_err(|error| failed("replay demonstrations", error))?;
        let mut all = Demonstrations {
            samples: vec![0; examples.len() * DEMONSTRATIONS],
            there: vec![0.0; examples.len() * DEMONSTRATIONS],
        };
        let mut progress = Progress::new("replaying demonstrations", examples.len());
        for (done, row) in replay.enumerate() {
            if done % 256 == 0 {
                progress.at(done, "");
            }
            let row = if cots.figures.paper_compat { row } else { checked(row, delay)? };
            let begin = (row.place + 1) * DEMONSTRATIONS - row.used.len();
            for (place, (used, _)) in (begin..).zip(&row.used) {
                let sample = places.get(&used.identity).ok_or_else(|| {
                    failed(
                        "replay demonstrations",
                        "a demonstration isn't a training sample: this is a defect",
                    )
                })?;
                all.samples[place] = *sample;
                all.there[place] = 1.0;
            }
        }
        Ok(all)
    }
}

/// The demonstrations of all samples as tensors. Clones share them.
#[derive(Clone, Debug)]
pub struct DemonstrationColumns {
    /// [N, K], training samples.
    picks: Tensor,
    /// [N, K].
    there: Tensor,
    /// By training sample a row of `vectors`.
    row: Tensor,
    /// The CoTs' vectors, components divided by 2^14; row 0 is zeros.
    vectors: Tensor,
}

impl DemonstrationColumns {
    /// The demonstrations of all samples with one kind of CoTs, or without any.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn of(
        demonstrations: Demonstrations,
        prepared: &Prepared,
        cots: Option<&CotVectors>,
    ) -> candle_core::Result<Self> {
        let device = &Device::Cpu;
        let shape = (prepared.len(), DEMONSTRATIONS);
        let Demonstrations { samples, there } = demonstrations;
        let columns = DemonstrationColumns {
            picks: Tensor::from_vec(samples, shape, device)?,
            there: Tensor::from_vec(there, shape, device)?,
            row: Tensor::zeros(prepared.part(Part::Train).len(), DType::U32, device)?,
            vectors: Tensor::zeros((1, prepared.text_width), DType::F32, device)?,
        };
        match cots {
            Some(cots) => columns.with(cots),
            None => Ok(columns),
        }
    }

    /// The same demonstrations with other CoTs.
    ///
    /// # Errors
    /// Where memory can't be had.
    pub fn with(&self, cots: &CotVectors) -> candle_core::Result<Self> {
        let width = self.vectors.dim(1)?;
        let mut vectors = vec![0.0; width];
        vectors.extend(cots.vectors.iter().flat_map(|vector| vector.iter()).map(|x| f32::from(*x) / SCALE));
        Ok(DemonstrationColumns {
            row: Tensor::new(cots.row.as_slice(), &Device::Cpu)?,
            vectors: Tensor::from_vec(vectors, (cots.vectors.len() + 1, width), &Device::Cpu)?,
            ..self.clone()
        })
    }

    /// The demonstrations of the samples `at`, each once.
    pub(super) fn gather(&self, at: &Tensor, columns: &Columns) -> candle_core::Result<Gathered> {
        let picks = self.picks.index_select(at, 0)?;
        let (all, places) = distinct(&picks.flatten_all()?.to_vec1::<u32>()?);
        let all = Tensor::new(all.as_slice(), &Device::Cpu)?;
        Ok(Gathered {
            samples: columns.samples(&all)?,
            cot: self.vectors.index_select(&self.row.index_select(&all, 0)?, 0)?,
            label: columns.labels(&all)?.to_dtype(DType::U32)?,
            picks: Tensor::from_vec(places, picks.dims(), &Device::Cpu)?,
            there: self.there.index_select(at, 0)?,
        })
    }
}
