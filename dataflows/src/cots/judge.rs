//! The quality of texts by an encoder, and of two controls beside them: the same texts at other examples, and the
//! template's texts of the same examples.
//!
//! A text is held against its example's true decision, also where its prompt stated none. One that the encoder
//! refuses has quality 0, as has a [`broken`] one. Vectors are kept in a cache.

use super::examples::Examples;
use super::quality::{GUIDELINES, Quality, Vectors, broken, decision_sentence, distinct_words, sentences};
use super::texts::{input_text, template_text};
use crate::ranking::embeddings::Embeddings;
use ictflow_connectors::Result;
use ictflow_connectors::encoder::Embed;
use ictflow_connectors::llm::prompt::Prompt;
use ictflow_connectors::llm::template::Template;
use ictflow_schemas::framing::{Digest, text_digest};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// The qualities of some texts and of their controls, each by text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// The texts'.
    pub own: Vec<Quality>,
    /// Each held against the example before it in the list, the first against the last: another one's text. None
    /// where there is but one text.
    pub shuffled: Vec<Quality>,
    /// The template's for the same examples.
    pub template: Vec<Quality>,
}

/// Judges the texts of some training samples, each with its place. Vectors are kept in `cache`.
///
/// # Errors
/// Those of the encoder and of the cache.
pub fn judge(
    examples: &Examples<'_>,
    texts: &[(u32, String)],
    encoder: &mut dyn Embed,
    cache: &Path,
) -> Result<Judged> {
    let mut template = Template::new(Prompt::builtin());
    let mut asked = Vec::new();
    for (place, _) in texts {
        asked.push(Asked {
            input: input_text(examples, *place),
            decision: decision_sentence(examples.prepared().split.train[*place as usize].positive),
            template: template_text(examples, &mut template, *place)?,
        });
    }
    let mut all: BTreeSet<&str> = GUIDELINES.into_iter().collect();
    for (asked, (_, text)) in asked.iter().zip(texts) {
        all.extend([asked.input.as_str(), asked.decision]);
        for text in [text, &asked.template] {
            all.insert(text);
            all.extend(sentences(text));
        }
    }
    let vectors = Encoded::of(&all, encoder, cache)?;
    let own: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
    let mut shuffled = own.clone();
    shuffled.rotate_left(usize::from(own.len() > 1));
    let template: Vec<&str> = asked.iter().map(|asked| asked.template.as_str()).collect();
    let qualities = |texts: &[&str]| -> Vec<Quality> {
        texts.iter().zip(&asked).map(|(text, asked)| vectors.quality(text, asked)).collect()
    };
    let others = if own.len() > 1 { qualities(&shuffled) } else { Vec::new() };
    Ok(Judged { own: qualities(&own), shuffled: others, template: qualities(&template) })
}

/// What a text is held against.
struct Asked {
    input: String,
    decision: &'static str,
    template: String,
}

/// Vectors by text.
struct Encoded(HashMap<Digest, Vec<f32>>);

impl Encoded {
    fn of(texts: &BTreeSet<&str>, encoder: &mut dyn Embed, cache: &Path) -> Result<Self> {
        let texts: Vec<(Digest, &str)> = texts.iter().map(|text| (text_digest(text), *text)).collect();
        let wanted: BTreeSet<Digest> = texts.iter().map(|(digest, _)| *digest).collect();
        let mut embeddings = Embeddings::open(cache, encoder, |digest| wanted.contains(digest))?;
        embeddings.fill(&texts, encoder)?;
        let vector = |digest: &Digest| {
            let vector = embeddings.get(digest)?;
            Some((*digest, vector.iter().map(|x| f32::from(*x)).collect()))
        };
        Ok(Encoded(wanted.iter().filter_map(vector).collect()))
    }

    fn vector(&self, text: &str) -> Option<&[f32]> {
        self.0.get(&text_digest(text)).map(Vec::as_slice)
    }

    fn quality(&self, text: &str, asked: &Asked) -> Quality {
        if broken(text) {
            return Quality::default();
        }
        let sentences: Option<Vec<&[f32]>> =
            sentences(text).into_iter().map(|sentence| self.vector(sentence)).collect();
        let guidelines: Option<Vec<&[f32]>> =
            GUIDELINES.into_iter().map(|guideline| self.vector(guideline)).collect();
        let parts = (
            self.vector(text),
            sentences,
            guidelines,
            self.vector(&asked.input),
            self.vector(asked.decision),
        );
        let (Some(text_vector), Some(sentences), Some(guidelines), Some(input), Some(decision)) = parts
        else {
            return Quality::default();
        };
        let vectors =
            Vectors { text: text_vector, sentences: &sentences, guidelines: &guidelines, input, decision };
        Quality::of(&vectors, distinct_words(text))
    }
}
