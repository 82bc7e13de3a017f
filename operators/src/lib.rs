//! The verbs of ictflow: what is computed, incrementally and exactly.
//!
//! Every operator is a plain struct with one method, `step`, that takes an epoch's changes and
//! gives the changes of its output; [`staged`] hangs it into a timely dataflow. So operators can
//! be tested without timely, and none of them sees a clock, randomness or thread order: the
//! present is the [`clock::Clock`] of the epoch, which comes from the logs.

pub mod accept;
pub mod answers;
pub mod as_of;
pub mod attribution;
pub mod catalog;
pub mod clock;
pub mod demonstrations;
pub mod eligible;
pub mod examples;
pub mod features;
pub mod history;
pub mod ict;
pub mod index;
pub mod journal;
pub mod labels;
pub mod neighbours;
pub mod pairs;
pub mod ranking;
pub mod recovery;
pub mod retrieval;
pub mod sketches;
mod splitmix;
pub mod staged;
pub mod standing;
pub mod vectors;

/// The time of the dataflow: the epoch.
pub type Epoch = u64;

/// Changes of an epoch: data with the sign and size of the change.
pub type Changes<D> = Vec<(D, isize)>;
