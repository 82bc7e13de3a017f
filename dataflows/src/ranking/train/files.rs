//! The files of a trained ranker: what serves it, and what tells of it.

use super::super::arms::{Arm, Vector};
use super::super::dataset::{HISTORY, Prepared};
use super::super::failed;
use super::super::model::{Model, ModelError, settings};
use super::super::neighbours::{Selecting, centre};
use super::{Options, Trained, card, curves, remove, write};
use candle_core::{Device, Var};
use ictflow_connectors::Result;
use ictflow_operators::ict::training::{Architecture, HashedRows, Module};
use ictflow_operators::ict::{Shape, Weights};
use ictflow_operators::ranking::variables::{Variables, values};
use ictflow_operators::ranking::weights::{self, Description, Serving, TextInput, VectorInput};
use ictflow_schemas::framing::hex;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The file of the ranker.
pub const RANKER: &str = "ranker.safetensors";
/// The file of the ICT weights.
pub const ICT: &str = "ict.safetensors";

/// The note of a ranker that says which data it was trained on: the digest of its contents, hex.
pub const DATA: &str = "data";
/// The note of a ranker that says how that was split: a protocol's name.
pub const PROTOCOL: &str = "protocol";

/// A file of weights as the card names it.
pub(super) struct File {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    pub(super) sha256: String,
}

impl File {
    fn of(name: &'static str, bytes: &[u8]) -> Self {
        File { name, bytes: bytes.len(), sha256: hex(&Sha256::digest(bytes)) }
    }
}

/// Writes all of them; the card comes last, so that where it stands all others do.
pub(super) fn write_all(
    prepared: &Prepared,
    options: &Options,
    (model, rows): (&Model, &HashedRows),
    trained: &Trained,
) -> Result<()> {
    let out = &options.out;
    let defect = |error: &dyn std::fmt::Display| failed(format!("write weights to {}", out.display()), error);
    remove(&out.join("card.md"))?;
    let ict = ict(prepared, options, (model, rows)).map_err(|e| defect(&e))?;
    // As a job will read it.
    let served = ict.as_deref().map(Weights::from_safetensors).transpose().map_err(|e| defect(&e))?;
    let serving = serving(prepared, options, served.as_ref());
    let ranker = ranker(prepared, options, (model, rows), serving).map_err(|e| defect(&e))?;
    write(&out.join(RANKER), &ranker)?;
    let mut files = vec![File::of(RANKER, &ranker)];
    match ict {
        Some(bytes) => {
            write(&out.join(ICT), &bytes)?;
            files.push(File::of(ICT, &bytes));
        }
        None => remove(&out.join(ICT))?,
    }
    write(&out.join("curves.csv"), trained.curve.csv().as_bytes())?;
    write(&out.join("curves.svg"), curves::svg(&trained.curve).as_bytes())?;
    write(&out.join("card.md"), card::text(prepared, options, trained, &files).as_bytes())
}

/// The architecture that makes an arm's vector.
fn architecture(arm: &Arm) -> Option<Architecture> {
    (arm.vector == Some(Vector::Attention)).then_some(Architecture::Attention)
}

/// The ranker: the backbone with its tables, hashed, and the text field's net. What makes the vector isn't in
/// it: a ranker reads vectors off the topic.
fn ranker(
    prepared: &Prepared,
    options: &Options,
    (model, rows): (&Model, &HashedRows),
    serving: Option<Serving>,
) -> std::result::Result<Vec<u8>, ModelError> {
    let is_own = |name: &str| {
        Module::is_table(name) || name.starts_with("backbone.") || name.starts_with("field_text.")
    };
    let mut served = Variables::new(options.seed);
    for variable in model.variables.iter().filter(|variable| is_own(&variable.name)) {
        let var = match rows.of_tensor(&variable.name) {
            Some(table) => {
                let d = variable.var.dim(1)?;
                let all = table.scatter(&values(&variable.var)?, d);
                Var::from_vec(all, (table.hashed_rows(), d), &Device::Cpu)?
            }
            None => variable.var.clone(),
        };
        served.adopt(&variable.name, variable.role, var)?;
    }
    let description = Description {
        backbone: options.backbone,
        settings: settings(&options.arm, &options.sizes),
        rows: options.rows,
        notes: notes(prepared, options),
        serving,
    };
    let bytes = weights::write(&served, &description)?;
    // What can't be read must not be written.
    weights::read(&bytes, &served)?;
    Ok(bytes)
}

/// What a consumer of `features` makes the ranker's inputs of; `None` where an arm reads what no feature has: an
/// item's rate alone, or neighbours selected in another way than a job does.
fn serving(prepared: &Prepared, options: &Options, ict: Option<&Weights>) -> Option<Serving> {
    let Options { arm, sizes, .. } = options;
    if arm.rate || arm.selecting != Selecting::Similar {
        return None;
    }
    let vector =
        |weights: &Weights| VectorInput { kind: weights.kind(), ict_weights: weights.version().to_owned() };
    Some(Serving {
        labels: arm.labels,
        votes: arm.votes,
        scalar_scale: sizes.scalar_scale,
        history: HISTORY,
        text: arm.text.then(|| TextInput { encoder: prepared.encoder.clone(), width: prepared.text_width }),
        vector: ict.map(vector),
    })
}

/// What training notes for people.
fn notes(prepared: &Prepared, options: &Options) -> BTreeMap<String, String> {
    let notes = [
        ("arm", options.arm.name.to_owned()),
        (DATA, prepared.digest.hex()),
        ("encoder", prepared.encoder.clone()),
        (PROTOCOL, prepared.protocol.name().to_owned()),
        ("seed", options.seed.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    notes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The ICT weights of the arm's vector; `None` where it has none.
fn ict(
    prepared: &Prepared,
    options: &Options,
    (model, rows): (&Model, &HashedRows),
) -> std::result::Result<Option<Vec<u8>>, ModelError> {
    let Some(architecture) = architecture(&options.arm) else { return Ok(None) };
    let shape = Shape {
        d: options.sizes.width,
        text: prepared.text_width,
        user_rows: rows.user.len(),
        item_rows: rows.item.len(),
        creator_rows: rows.creator.len(),
        category_rows: rows.category.len(),
    };
    let module = Module::untrained(architecture, shape, options.seed)?;
    for (name, var) in module.variables() {
        let trained = model
            .variables
            .get(name)
            .ok_or_else(|| candle_core::Error::Msg(format!("the model has no variable `{name}`")))?;
        // Training has a row of zeros behind the others, for ids that it doesn't know.
        var.set(&trained.var.narrow(0, 0, var.dim(0)?)?.contiguous()?)?;
    }
    let centre = prepared.has_texts().then(|| centre(prepared));
    Ok(Some(module.to_weights(rows, Some(prepared.encoder.as_str()), centre.as_deref())?))
}
