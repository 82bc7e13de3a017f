//! The verbs of ictflow: operators over the nouns of `schemas`, and the ICT module.

pub mod ict;
