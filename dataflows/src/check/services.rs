//! The services beside the topics: whether they answer, let this client in, and fit the configuration.

use super::{Finding, Subject};
use ictflow_connectors::llm::openai;
use ictflow_connectors::{Error, qdrant};

/// The registry answers; the inputs' newest schemas can be read; ours may be registered.
pub(super) fn registry(subject: &mut Subject) -> Vec<Finding> {
    let failed = |error: Error| Finding::of("registry", error);
    subject.config.check_registry().err().map(failed).into_iter().collect()
}

/// The service behind the generator answers and has the model; no completion is asked for.
pub(super) fn llm(subject: &mut Subject) -> Vec<Finding> {
    let Some(config) = &subject.config.raw().generator.openai else { return Vec::new() };
    match openai::probe(config) {
        Err(error) => vec![Finding::of("generator.openai", error)],
        Ok(warnings) => {
            for warning in warnings {
                tracing::warn!(warning, "the LLM service answers");
            }
            Vec::new()
        }
    }
}

/// The vector store answers, and its collection fits the encoder.
pub(super) fn points(subject: &mut Subject) -> Vec<Finding> {
    let Some(config) = &subject.config.raw().qdrant else { return Vec::new() };
    // Without an encoder there is no width to hold the collection against; that is told already.
    let Some((_, width)) = subject.encoder else { return Vec::new() };
    let failed = |error: Error| Finding::of("qdrant.url", error);
    qdrant::probe(config, width).err().map(failed).into_iter().collect()
}
