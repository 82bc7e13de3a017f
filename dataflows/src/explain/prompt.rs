//! The prompt that asked for a CoT, rebuilt from the logs.
//!
//! Nothing of a prompt is kept: it is a function of the prompt file, the content key and what the key
//! stands for. So it is rebuilt, and shown only where two proofs hold: the rebuilt content key is the
//! record's key, and every word that the code wrote into the answer stands in the record's text. The
//! second finds edits of films in the history, whose titles no key holds, and how far values were capped.
//! A free answer of a chat service has no such words: there no item of the history may have been edited.

use super::{Lineage, Prompted, Said, label};
use ictflow_connectors::llm::openai::prompt::ChatPrompt;
use ictflow_connectors::llm::prompt::{CAPS, Message, Piece, Prompt, Script};
use ictflow_schemas::cot::{CotRecord, CotRequest, PromptEntry, PromptView};
use ictflow_schemas::example::ExampleRecord;
use ictflow_schemas::framing::Digest;
use ictflow_schemas::item::ItemText;

impl Lineage {
    /// The prompt of a CoT that a demonstration used, or why it can't be told.
    pub(super) fn prompted(
        &self,
        prompt: &Prompt,
        key: &Digest,
        cot: &CotRecord,
        example: &ExampleRecord,
    ) -> Prompted {
        let version = cot.prompt_version.clone();
        match self.messages(prompt, key, cot, example) {
            Ok(messages) => Prompted { version, messages, unavailable: None },
            Err(reason) => Prompted { version, messages: Vec::new(), unavailable: Some(reason) },
        }
    }

    fn messages(
        &self,
        prompt: &Prompt,
        key: &Digest,
        cot: &CotRecord,
        example: &ExampleRecord,
    ) -> Result<Vec<Said>, String> {
        let chat = ChatPrompt::builtin();
        if cot.prompt_version != prompt.version() && cot.prompt_version != chat.version() {
            return Err(format!(
                "it was asked with prompt {}, and this program has {} and {}",
                cot.prompt_version,
                prompt.version(),
                chat.version()
            ));
        }
        let texts = self.texts.get(&example.item_id).map(Vec::as_slice).unwrap_or_default();
        let asked =
            texts.iter().rev().map(|text| (text, self.view(example, text))).find(|(_, view)| {
                view.content_key(&cot.prompt_version, &cot.llm_model, &cot.parameters) == *key
            });
        let Some((text, view)) = asked else {
            return Err("it was asked for a history or an item text that the logs don't show any more".into());
        };
        let request = self.request(*key, &view, text);
        let said = |message: Message| Said { role: message.role.to_owned(), content: message.content };
        let edited = || String::from("items of its history were edited since it was asked");
        if cot.prompt_version == chat.version() {
            // A free answer has no words of the code's to hold against it.
            let once = |(item, _, _): &(ictflow_schemas::Id, ictflow_schemas::Id, _)| {
                self.texts.get(&**item).is_none_or(|texts| texts.windows(2).all(|pair| pair[0] == pair[1]))
            };
            return match view.history.iter().all(once) {
                true => Ok(chat.messages(&request).into_iter().map(said).collect()),
                false => Err(edited()),
            };
        }
        let script = CAPS.into_iter().map(|caps| prompt.script(&request, caps)).find(|s| wrote(s, &cot.text));
        let Some(script) = script else {
            return Err(edited());
        };
        let mut messages: Vec<Said> = prompt.head(view.decision).into_iter().map(said).collect();
        messages.push(Said { role: "user".to_owned(), content: script.ask });
        Ok(messages)
    }

    fn request(&self, key: Digest, view: &PromptView, text: &str) -> CotRequest {
        let entry = |(item, kind, label): &(ictflow_schemas::Id, ictflow_schemas::Id, _)| PromptEntry {
            item: self.text(item).map(|text| ItemText::parse(text)),
            kind: kind.to_string(),
            label: *label,
        };
        CotRequest {
            key,
            item: ItemText::parse(text),
            decision: label(view.decision.word()),
            history: view.history.iter().map(entry).collect(),
        }
    }
}

/// Whether a text has all the words that a script's code writes, in their order.
fn wrote(script: &Script, text: &str) -> bool {
    let mut rest = text;
    for piece in &script.pieces {
        let Piece::Words(words) = piece else { continue };
        let Some((_, after)) = rest.split_once(words.as_str()) else { return false };
        rest = after;
    }
    true
}
