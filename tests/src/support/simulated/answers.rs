//! The LLM and the encoder of a simulated job: they answer, fail and refuse as a shared plan says.

use crate::support::world::template;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::encoder::hashed::Hashed;
use ictflow_connectors::llm::answer::Progress;
use ictflow_connectors::llm::{Draft, Generate};
use ictflow_connectors::{Error, Result};
use ictflow_schemas::cot::CotRequest;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The encoder's width.
pub const WIDTH: usize = 16;

/// How the next call ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// With a text.
    #[default]
    Good,
    /// With a draft that is refused: every attempt failed, the key is journaled as failed.
    Bad,
    /// With a failure of the service: the key is asked again.
    Failed,
    /// It can't be started.
    HeldBack,
    /// With a vector that isn't one: the text is journaled as failed.
    NoVector,
}

/// The plan, shared with the scheduler.
#[derive(Clone, Default)]
pub struct Plan(Arc<Mutex<(Reply, u64)>>);

impl Plan {
    /// Sets how the calls from now on end.
    pub fn set(&self, reply: Reply) {
        self.0.lock().unwrap().0 = reply;
    }

    fn next(&self) -> (Reply, u64) {
        let mut plan = self.0.lock().unwrap();
        plan.1 += 1;
        *plan
    }

    fn reply(&self) -> Reply {
        self.0.lock().unwrap().0
    }
}

/// The LLM: the template's text with a number, so that a second answer to a key is another text.
pub struct Llm {
    plan: Plan,
    inner: Box<dyn Generate>,
}

impl Llm {
    /// An LLM that follows a plan.
    pub fn new(plan: Plan) -> Self {
        Llm { plan, inner: template() }
    }
}

impl Generate for Llm {
    fn model(&self) -> &str {
        self.inner.model()
    }
    fn prompt_version(&self) -> &str {
        self.inner.prompt_version()
    }
    fn parameters(&self) -> &str {
        self.inner.parameters()
    }
    fn attempts(&self) -> u32 {
        self.inner.attempts()
    }
    fn ready(&mut self, _request: &CotRequest, _progress: &Progress) -> Option<Duration> {
        (self.plan.reply() == Reply::HeldBack).then_some(Duration::ZERO)
    }
    fn generate(&mut self, request: &CotRequest, attempt: u32) -> Result<Draft> {
        let (reply, number) = self.plan.next();
        match reply {
            Reply::Failed => Err(Error::retry(Duration::ZERO, "ask the LLM", "it is away", "it comes back")),
            Reply::Bad => {
                let draft = self.inner.generate(request, attempt)?;
                Ok(Draft { written: Vec::new(), ..draft })
            }
            _ => {
                let mut draft = self.inner.generate(request, attempt)?;
                draft.text.push_str(&format!(" ({number})"));
                Ok(draft)
            }
        }
    }
}

/// The encoder.
pub struct Encoder {
    plan: Plan,
    inner: Hashed,
}

impl Encoder {
    /// An encoder that follows a plan.
    pub fn new(plan: Plan) -> Self {
        Encoder { plan, inner: Hashed::new(WIDTH) }
    }
}

impl Embed for Encoder {
    fn id(&self) -> &str {
        self.inner.id()
    }
    fn width(&self) -> usize {
        self.inner.width()
    }
    fn embed(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = self.inner.embed(texts)?;
        if self.plan.reply() == Reply::NoVector
            && let Some(first) = vectors.first_mut()
        {
            first.fill(0.0);
        }
        Ok(vectors)
    }
}
