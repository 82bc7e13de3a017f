//! Ranking: from the ids of a sample, its scalars and its vector to the logit of a positive label.
//!
//! `ids` are the inputs and `tables` the embeddings, `embedding_bag` their means, `backbones` the models, `layers`
//! and `frozen` what they are built of, `loss` and `adam` what trains them, `weights` their file, `checkpoint` that
//! of a training under way. Everything is drawn from a seed by name ([`random::Stream`]), so one seed gives the
//! same weights on one machine, whatever the order of creation.
//!
//! `split`, `histories` and `segments` are what a data set becomes, `metrics` and `bootstrap` what is measured.

pub mod adam;
pub mod backbones;
pub mod bootstrap;
pub mod checkpoint;
pub mod draws;
pub mod embedding_bag;
pub mod frozen;
pub mod histories;
pub mod ids;
pub mod layers;
pub mod loss;
pub mod metrics;
pub mod random;
pub mod scalars;
pub mod segments;
pub mod split;
pub mod tables;
pub mod variables;
pub mod weights;

/// Why a model can't be built, run, trained or read.
#[derive(Debug, thiserror::Error)]
pub enum RankingError {
    /// The tensor library refused an operation: shapes that don't fit or an id beyond its table.
    #[error(
        "the tensors of a batch don't fit: {0} (hint: ids must be below the rows of their table, shapes as documented)"
    )]
    Tensor(#[from] candle_core::Error),
    /// A size that the model can't have.
    #[error("{what} is {found}, expected {expected} (hint: see the documentation of the model's settings)")]
    Size {
        /// Which.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The values that it may have.
        expected: &'static str,
    },
    /// An input is missing, or is there and the model wasn't built for it.
    #[error(
        "the input `{input}` is {found:?}, the model expects {expected:?} (hint: settings and batch must name the same inputs)"
    )]
    Input {
        /// Which.
        input: &'static str,
        /// Its shape in the batch; empty where it is absent.
        found: Vec<usize>,
        /// The shape that the settings ask for; empty where the model has no such input.
        expected: Vec<usize>,
    },
    /// Batch normalisation of one row has no variance.
    #[error("batch normalisation can't learn from {rows} rows (hint: drop a last batch of one row)")]
    Batch {
        /// The rows of the batch.
        rows: usize,
    },
    /// Two variables of one name.
    #[error("the variable `{name}` stands there twice (hint: a model is built once in its set of variables)")]
    Twice {
        /// The name.
        name: String,
    },
    /// A file isn't what it should be.
    #[error("the file of weights doesn't read: {detail} (hint: it may be cut or of another model)")]
    Unreadable {
        /// What the reader found.
        detail: String,
    },
    /// A tensor of a file is missing, unexpected or of another shape, type or content.
    #[error("tensor `{name}` {problem} (hint: the file belongs to a model of other settings)")]
    File {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}
