//! `template`: the skeleton with fixed words in its gaps, without a model.
//!
//! For fast tests and as the ablation of what a model adds. The same request gives the same text.
//!
//! * **Delivery, Ordering, Retries**: as a pure function; one attempt.
//! * **Limits**: the prompt's caps.
//! * **Secrets, Telemetry**: it logs and counts nothing.

use super::prompt::{CAPS, Piece, Prompt, write};
use super::{Draft, Generate};
use crate::Result;
use ictflow_schemas::cot::{CotRequest, canonical_json};

/// The generator without a model.
pub struct Template {
    prompt: Prompt,
    parameters: String,
}

impl Template {
    /// A template on a prompt file.
    pub fn new(prompt: Prompt) -> Self {
        let parameters =
            canonical_json(&serde_json::json!({"guided": true, "schedule": [{"choice": "fixed"}]}));
        Template { prompt, parameters }
    }
}

impl Generate for Template {
    fn model(&self) -> &str {
        "template"
    }

    fn prompt_version(&self) -> &str {
        self.prompt.version()
    }

    fn parameters(&self) -> &str {
        &self.parameters
    }

    fn attempts(&self) -> u32 {
        1
    }

    fn generate(&mut self, request: &CotRequest, _attempt: u32) -> Result<Draft> {
        let script = self.prompt.script(request, CAPS[0]);
        let fixed = |piece: &Piece| match piece {
            Piece::Gap(gap) => Some(gap.fixed.clone()),
            Piece::Words(_) => None,
        };
        let written: Vec<String> = script.pieces.iter().filter_map(fixed).collect();
        Ok(Draft {
            text: write(&script.pieces, &written),
            written,
            tokens_in: 0,
            tokens_out: 0,
            finish_reason: "stop".into(),
        })
    }
}
