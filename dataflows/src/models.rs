//! The models of a process: loaded once, lent to each job that it starts.
//!
//! A job that is started anew in the same process gets the same encoder, generators and weights; loading
//! a model takes seconds and its memory twice. A call that an earlier job left under way holds its model
//! until it ends, and the next job's call waits for it.

use ictflow_connectors::Result;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::answer::Progress;
use ictflow_connectors::llm::health::Health;
use ictflow_connectors::llm::validate::Validator;
use ictflow_connectors::llm::{Draft, Generate};
use ictflow_operators::ict::Versions;
use ictflow_schemas::cot::CotRequest;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The models.
pub struct Models {
    encoder: Encoder,
    generators: Vec<Generator>,
    validator: Validator,
    weights: Versions,
}

impl Models {
    /// Takes models that were loaded.
    pub fn new(
        encoder: Box<dyn Embed>,
        generators: Vec<Box<dyn Generate>>,
        validator: Validator,
        weights: Versions,
    ) -> Self {
        Models {
            encoder: Encoder::of(encoder),
            generators: generators.into_iter().map(Generator::of).collect(),
            validator,
            weights,
        }
    }

    /// The encoder, for one job.
    pub fn encoder(&self) -> Box<dyn Embed> {
        Box::new(self.encoder.clone())
    }

    /// The generators, for one job.
    pub fn generators(&self) -> Vec<Box<dyn Generate>> {
        self.generators.iter().map(|one| Box::new(one.clone()) as Box<dyn Generate>).collect()
    }

    /// What judges the generators' drafts.
    pub fn validator(&self) -> Validator {
        self.validator.clone()
    }

    /// The ICT weights. Those that a job switched to serve the next one, too.
    pub fn weights(&self) -> Versions {
        self.weights.clone()
    }
}

/// Locks, also where a call panicked: a model keeps nothing between calls that a panic could break.
fn lock<T: ?Sized>(model: &Mutex<T>) -> MutexGuard<'_, T> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An encoder that several jobs use one after the other. What it says of itself never waits for a call.
#[derive(Clone)]
struct Encoder {
    lent: Arc<Mutex<Box<dyn Embed>>>,
    id: Arc<str>,
    width: usize,
}

impl Encoder {
    fn of(encoder: Box<dyn Embed>) -> Self {
        Encoder { id: encoder.id().into(), width: encoder.width(), lent: Arc::new(Mutex::new(encoder)) }
    }
}

impl Embed for Encoder {
    fn id(&self) -> &str {
        &self.id
    }

    fn width(&self) -> usize {
        self.width
    }

    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        lock(&self.lent).embed(texts)
    }
}

/// A generator likewise.
#[derive(Clone)]
struct Generator {
    lent: Arc<Mutex<Box<dyn Generate>>>,
    model: Arc<str>,
    prompt_version: Arc<str>,
    parameters: Arc<str>,
    attempts: u32,
    health: Option<Arc<Health>>,
}

impl Generator {
    fn of(generator: Box<dyn Generate>) -> Self {
        Generator {
            model: generator.model().into(),
            prompt_version: generator.prompt_version().into(),
            parameters: generator.parameters().into(),
            attempts: generator.attempts(),
            health: generator.health(),
            lent: Arc::new(Mutex::new(generator)),
        }
    }
}

impl Generate for Generator {
    fn model(&self) -> &str {
        &self.model
    }

    fn prompt_version(&self) -> &str {
        &self.prompt_version
    }

    fn parameters(&self) -> &str {
        &self.parameters
    }

    fn attempts(&self) -> u32 {
        self.attempts
    }

    fn ready(&mut self, request: &CotRequest, progress: &Progress) -> Option<Duration> {
        lock(&self.lent).ready(request, progress)
    }

    fn health(&self) -> Option<Arc<Health>> {
        self.health.clone()
    }

    fn generate(&mut self, request: &CotRequest, attempt: u32) -> Result<Draft> {
        lock(&self.lent).generate(request, attempt)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ictflow_connectors::encoder::hashed::Hashed;
    use ictflow_connectors::llm::prompt::Prompt;
    use ictflow_connectors::llm::template::Template;

    #[test]
    fn what_is_lent_is_the_one_that_was_loaded() {
        let mut encoder = Encoder::of(Box::new(Hashed::new(16)));
        let mut again = encoder.clone();
        assert!(Arc::ptr_eq(&encoder.lent, &again.lent));
        let texts = ["a text".to_owned()];
        assert_eq!((again.id(), again.width()), (Hashed::new(16).id(), 16));
        assert_eq!(encoder.embed(&texts).unwrap(), again.embed(&texts).unwrap());
        assert_eq!(encoder.embed(&texts).unwrap(), Hashed::new(16).embed(&texts).unwrap());
        let template = Template::new(Prompt::builtin());
        let generator = Generator::of(Box::new(Template::new(Prompt::builtin())));
        assert_eq!(
            [generator.model(), generator.prompt_version(), generator.parameters()],
            [template.model(), template.prompt_version(), template.parameters()]
        );
        assert_eq!(generator.attempts(), template.attempts());
    }
}
