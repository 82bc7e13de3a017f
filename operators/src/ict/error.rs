//! Why a file of weights is refused. Every message names what is wrong and says where to look.

use super::shape::Kind;

/// Why weights are refused.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The bytes aren't a safetensors file.
    #[error(
        "the weights are not a safetensors file: {detail} (hint: the file may be cut or of another format)"
    )]
    Unreadable {
        /// What the reader found.
        detail: String,
    },
    /// The metadata under `ictflow` doesn't read.
    #[error(
        "the weights' metadata `ictflow` doesn't read: {detail} (hint: schemas/weights.md has its fields)"
    )]
    Metadata {
        /// What the reader found.
        detail: String,
    },
    /// The weights make a kind of vector that this build doesn't know.
    #[error(
        "the weights make vectors of the kind `{found}`, this build makes `decoder` and `attention` (hint: use weights of these kinds or a newer build)"
    )]
    Kind {
        /// The kind that the file names.
        found: String,
    },
    /// The weights make another kind of vector than the one asked for.
    #[error(
        "the weights make vectors of the kind `{found}`, here only `{expected}` can be served (hint: use weights of the kind `{expected}`)"
    )]
    OtherKind {
        /// The kind of the file.
        found: Kind,
        /// The kind that is asked for.
        expected: Kind,
    },
    /// Weights that may not follow those that serve while a job runs.
    #[error(
        "{what} is {found}, expected {expected} as in the weights that serve (hint: only the values and the tables' rows may change while a job runs; start the job again with them)"
    )]
    Misfit {
        /// What of them.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it is with the weights that serve.
        expected: String,
    },
    /// A version that isn't to be found.
    #[error(
        "the ICT weights {version} aren't there: {detail} (hint: put the file of that version into [ict] directory of every process)"
    )]
    Unknown {
        /// The version.
        version: String,
        /// Where was looked.
        detail: String,
    },
    /// A tensor isn't there.
    #[error("tensor `{name}` is missing (hint: schemas/weights.md lists all names)")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor that the contract doesn't know, or that belongs to another kind.
    #[error(
        "tensor `{name}` is not part of the contract (hint: export the serving tensors of schemas/weights.md only)"
    )]
    Unexpected {
        /// Its name.
        name: String,
    },
    /// A tensor isn't f32.
    #[error("tensor `{name}` has the type {found}, expected F32 (hint: convert before exporting)")]
    Type {
        /// Its name.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor has another shape.
    #[error(
        "tensor `{name}` has the shape {found:?}, expected {expected} (hint: d and the text width come from `user.weight` and `text.0.weight`)"
    )]
    Shape {
        /// Its name.
        name: String,
        /// The shape that the other tensors ask for.
        expected: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A value is NaN or infinite.
    #[error("tensor `{name}` is not finite at element {index} (hint: the training diverged)")]
    NotFinite {
        /// Its name.
        name: String,
        /// The element, counted row by row.
        index: usize,
    },
    /// A component of a quantised vector is no integer of 16 bits.
    #[error(
        "tensor `{name}` holds {found} at element {index}, expected an integer from -32768 to 32767 (hint: it is in units of 2^-14)"
    )]
    NotQuantised {
        /// Its name.
        name: String,
        /// The element.
        index: usize,
        /// What it is.
        found: f32,
    },
    /// Row 0 of a hashed table holds something.
    #[error("row 0 of `{name}` is not all zeros (hint: it stands for an absent id; keep it out of training)")]
    AbsentRow {
        /// The tensor's name.
        name: String,
    },
    /// A width or a number of rows is out of range.
    #[error("{what} is {found}, expected {expected} (hint: see the limits in schemas/weights.md)")]
    Limit {
        /// Which.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The range.
        expected: &'static str,
    },
}
