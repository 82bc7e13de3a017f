//! A job in one thread, in an order that a seed decides.
//!
//! The job is the real one, with all that belongs to it: judgement at the source, the dataflow on one
//! timely worker, the requester, the sink, the bounds and the recovery. It starts no thread (`by_hand`):
//! whatever happens at all happens because the scheduler drew it. What is around the job is made up:
//!
//! * `log.rs`: the topics, with appends that fail, commits that end in doubt, fences, control records;
//! * `points.rs`: the store of points, which fails before or after it did what it was asked;
//! * `answers.rs`: the LLM and the encoder; `workload.rs`: producers;
//! * `scheduler.rs`: draws what happens next, crashes at the edges of a commit and predecessors that wake
//!   up included;
//! * `ledger.rs`: holds the invariants against the topics after every step;
//! * `ending.rs`: lets the job come to rest, and holds its outputs against a recomputation.
//!
//! [`simulate`] runs a seed. With a [`Defect`] something is planted that must be found.

mod answers;
mod ending;
mod ledger;
mod log;
mod points;
mod scheduler;
mod workload;

pub use answers::WIDTH;
pub use ledger::Figures;
pub use log::Defect;
pub use scheduler::{Ended, simulate};
