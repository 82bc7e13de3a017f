//! The generators of CoT texts that `[generator]` names, and what judges their drafts.

use super::checked::models;
use super::raw::{Generator, GeneratorKind};
use ictflow_connectors::Result;
use ictflow_connectors::llm::Generate;
use ictflow_connectors::llm::local::{Decoding, Local};
use ictflow_connectors::llm::openai::OpenAi;
use ictflow_connectors::llm::openai::prompt::ChatPrompt;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_connectors::llm::validate::Validator;

/// Opens one generator for each thread: `threads`, or without it one of a model in this process and the
/// `concurrency` of a service. With `label_free` they ask by the prompt that states no decision. Of a local model,
/// which is loaded once whatever their number, `batch` answers of each grow together.
///
/// # Errors
/// `Fatal` where the model can't be loaded, or a value of the service is out of its bounds.
pub(crate) fn open(
    config: &Generator,
    label_free: bool,
    (threads, batch): (Option<usize>, usize),
) -> Result<(Vec<Box<dyn Generate>>, Validator)> {
    if config.kind == GeneratorKind::Openai {
        let prompt = || if label_free { ChatPrompt::label_free() } else { ChatPrompt::builtin() };
        let service = config.openai.clone().unwrap_or_default();
        let threads = threads.unwrap_or(service.concurrency);
        let service = OpenAi::open(service, prompt())?;
        let clone = || Box::new(service.clone()) as Box<dyn Generate>;
        return Ok((std::iter::repeat_with(clone).take(threads).collect(), Validator::free(&prompt())));
    }
    let prompt = || if label_free { Prompt::label_free() } else { Prompt::builtin() };
    let threads = threads.unwrap_or(1);
    let mut generators: Vec<Box<dyn Generate>> = Vec::new();
    if config.kind == GeneratorKind::Local {
        let file = config.model.clone().unwrap_or_else(|| models().join("llm").join("model.gguf"));
        let local = Local::open(&file, prompt(), &Decoding::default())?;
        for _ in 1..threads {
            generators.push(Box::new(local.another()?.batched(batch)?));
        }
        generators.push(Box::new(local.batched(batch)?));
    } else {
        let template = || Box::new(Template::new(prompt())) as Box<dyn Generate>;
        generators.extend(std::iter::repeat_with(template).take(threads));
    }
    Ok((generators, Validator::new(&prompt())))
}
