//! The REST API of a registry: its routes, what its answers mean, what is tried again.
//!
//! An id counts as unknown only where the registry itself says so, in its own JSON: a 404 of a proxy
//! or of a wrong base URL would else make every record unreadable.

use super::Counts;
use super::config::Config;
use crate::http::{Answer, Http};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The media type of requests.
const MEDIA: &str = "application/vnd.schemaregistry.v1+json";

/// The longest part of a registry's own words that an error repeats, in characters.
const LONGEST_QUOTE: usize = 500;

/// A client of one registry.
pub struct Client {
    http: Http,
    config: Config,
    counts: Counts,
}

/// A schema as a registry stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its text.
    pub text: String,
    /// Whether it is of Avro, and not of JSON Schema or Protobuf.
    pub avro: bool,
    /// Whether it uses types of other subjects.
    pub references: bool,
}

/// What a registry has under an id or a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A schema.
    Schema(Stored),
    /// Nothing: the registry says that it doesn't know it.
    Unknown,
    /// A schema beyond `max_schema_bytes`.
    TooLarge,
}

/// The answer of a route with a schema in it.
#[derive(Deserialize)]
struct SchemaAnswer {
    schema: String,
    #[serde(rename = "schemaType", default)]
    kind: Option<String>,
    #[serde(default)]
    references: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
struct IdAnswer {
    id: i64,
}

#[derive(Deserialize)]
struct CompatibilityAnswer {
    is_compatible: bool,
    #[serde(default)]
    messages: Option<Vec<String>>,
    /// What Apicurio says in the place of `messages`.
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error_code: i64,
    #[serde(default)]
    message: Option<String>,
}

/// An answer that isn't to be tried again.
enum Reply {
    Answer(Answer),
    TooLarge,
}

impl Client {
    /// A client, secrets read. Asks the registry nothing.
    ///
    /// # Errors
    /// `Fatal` where the config has problems or a secret can't be read.
    pub fn new(config: Config) -> Result<Self> {
        Ok(Client { http: config.http()?, config, counts: Counts::default() })
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What this client and what stands on it counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether the registry answers, under this URL and with these credentials.
    ///
    /// # Errors
    /// `Fatal` where it doesn't within the limits, refuses, or isn't a registry.
    pub fn probe(&self) -> Result<()> {
        let context = "reach the schema registry";
        let answer = self.ask(context, |http| http.get("schemas/types"))?;
        match answer {
            Reply::Answer(Answer { status: 200, body, .. })
                if serde_json::from_slice::<Vec<String>>(&body).is_ok() =>
            {
                Ok(())
            }
            Reply::Answer(answer) => Err(self.refused(context, &answer)),
            Reply::TooLarge => Err(self.stranger(context, "a very large answer")),
        }
    }

    /// The schema of an id.
    ///
    /// # Errors
    /// `Fatal` where the registry can't be asked within the limits, or answers something else.
    pub fn schema(&self, id: u32) -> Result<Found> {
        self.found(format!("read schema {id} of the registry"), &format!("schemas/ids/{id}"))
    }

    /// The newest schema of a subject.
    ///
    /// # Errors
    /// Those of [`Client::schema`].
    pub fn latest(&self, subject: &str) -> Result<Found> {
        let path = format!("subjects/{}/versions/latest", escape(subject));
        self.found(format!("read the newest schema of subject {subject}"), &path)
    }

    /// The id of a schema under a subject, `None` where it isn't registered there.
    ///
    /// # Errors
    /// Those of [`Client::schema`].
    pub fn lookup(&self, subject: &str, schema: &str) -> Result<Option<u32>> {
        let context = format!("look our schema up under subject {subject}");
        let path = format!("subjects/{}", escape(subject));
        match self.ask(&context, |http| http.post(&path, MEDIA, &body(schema)))? {
            Reply::Answer(answer) if answer.status == 200 => self.id(&context, &answer).map(Some),
            Reply::Answer(answer) if unknown(&answer) => Ok(None),
            Reply::Answer(answer) => Err(self.refused(&context, &answer)),
            // The answer repeats the schema, and another version of it may be larger than ours.
            Reply::TooLarge => Err(self.stranger(&context, "a schema beyond registry.max_schema_bytes")),
        }
    }

    /// Registers a schema under a subject; gives its id. One that is registered keeps its id.
    ///
    /// # Errors
    /// Those of [`Client::schema`], and `Fatal` where the registry refuses the schema, with its words.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        let context = format!("register our schema under subject {subject}");
        let path = format!("subjects/{}/versions", escape(subject));
        match self.ask(&context, |http| http.post(&path, MEDIA, &body(schema)))? {
            Reply::Answer(answer) if answer.status == 200 => self.id(&context, &answer),
            Reply::Answer(answer) if matches!(answer.status, 409 | 422) => Err(Error::fatal(
                context,
                said(&answer),
                "another schema stands there: name other topics, or change the subject's compatibility",
            )),
            Reply::Answer(answer) => Err(self.refused(&context, &answer)),
            Reply::TooLarge => Err(self.stranger(&context, "a very large answer")),
        }
    }

    /// Whether a schema may be registered under a subject by the registry's own rules: `None`, or
    /// what the registry says against it. A subject that doesn't exist takes anything.
    ///
    /// # Errors
    /// Those of [`Client::schema`].
    pub fn incompatibility(&self, subject: &str, schema: &str) -> Result<Option<String>> {
        let context = format!("check our schema against subject {subject}");
        let path = format!("compatibility/subjects/{}/versions/latest?verbose=true", escape(subject));
        match self.ask(&context, |http| http.post(&path, MEDIA, &body(schema)))? {
            Reply::Answer(answer) if answer.status == 200 => {
                let found: CompatibilityAnswer = self.read(&context, &answer)?;
                if found.is_compatible {
                    return Ok(None);
                }
                let words = found.messages.filter(|messages| !messages.is_empty());
                let words = words.map(|messages| messages.join("; ")).or(found.reason);
                Ok(Some(quote(&words.unwrap_or_else(|| "it gives no reason".into()))))
            }
            Reply::Answer(answer) if unknown(&answer) => Ok(None),
            Reply::Answer(answer) if answer.status == 422 => Ok(Some(said(&answer))),
            Reply::Answer(answer) => Err(self.refused(&context, &answer)),
            Reply::TooLarge => Err(self.stranger(&context, "a very large answer")),
        }
    }

    fn found(&self, context: String, path: &str) -> Result<Found> {
        match self.ask(&context, |http| http.get(path))? {
            Reply::TooLarge => Ok(Found::TooLarge),
            Reply::Answer(answer) if answer.status == 200 => {
                let found: SchemaAnswer = self.read(&context, &answer)?;
                if found.schema.len() > self.config.max_schema_bytes {
                    return Ok(Found::TooLarge);
                }
                Ok(Found::Schema(Stored {
                    text: found.schema,
                    avro: found.kind.is_none_or(|kind| kind == "AVRO"),
                    references: found.references.is_some_and(|references| !references.is_empty()),
                }))
            }
            Reply::Answer(answer) if unknown(&answer) => Ok(Found::Unknown),
            Reply::Answer(answer) => Err(self.refused(&context, &answer)),
        }
    }

    /// Asks until an answer comes that another attempt wouldn't change, within the limits.
    fn ask(
        &self,
        context: &str,
        request: impl Fn(&Http) -> std::result::Result<Answer, ureq::Error>,
    ) -> Result<Reply> {
        let mut failed = 0;
        loop {
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            let (detail, after) = match request(&self.http) {
                Ok(answer) if matches!(answer.status, 408 | 425 | 429 | 500..=599) => {
                    let after = answer.retry_after.as_deref().and_then(|text| text.trim().parse().ok());
                    (said(&answer), after.map(Duration::from_secs))
                }
                Ok(answer) => return Ok(Reply::Answer(answer)),
                Err(ureq::Error::BodyExceedsLimit(_)) => return Ok(Reply::TooLarge),
                Err(error) => (error.to_string(), None),
            };
            failed += 1;
            if failed > self.config.retries {
                return Err(Error::fatal(
                    context,
                    format!("{} failed {failed} times, at last: {detail}", self.config.url),
                    "is the registry up? registry.retries and retry_pause_ms say how long it is waited for",
                ));
            }
            self.counts.retries.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(context, detail, failed, "the schema registry failed, trying again");
            std::thread::sleep(self.config.pause(failed, after));
        }
    }

    fn read<'a, T: Deserialize<'a>>(&self, context: &str, answer: &'a Answer) -> Result<T> {
        serde_json::from_slice(&answer.body).map_err(|e| self.stranger(context, &e.to_string()))
    }

    fn id(&self, context: &str, answer: &Answer) -> Result<u32> {
        let IdAnswer { id } = self.read(context, answer)?;
        u32::try_from(id).map_err(|_| self.stranger(context, "an id that no four bytes hold"))
    }

    /// A status that no attempt will change.
    fn refused(&self, context: &str, answer: &Answer) -> Error {
        let hint = match answer.status {
            401 | 403 => "set [registry] username and password, or token, to ones that may do this",
            // Else the registry would have said in its own words what it doesn't have.
            404 | 405 => {
                "is registry.url the base of the API, as in http://host:8081 or http://host/apis/ccompat/v7?"
            }
            _ => "the registry's own log may say more",
        };
        Error::fatal(context, format!("{}: {}", self.config.url, said(answer)), hint)
    }

    fn stranger(&self, context: &str, detail: &str) -> Error {
        Error::fatal(
            context,
            format!("{} answered what no registry does: {detail}", self.config.url),
            "is registry.url the base of the Confluent-compatible API?",
        )
    }
}

/// Whether the registry itself says that it doesn't have the thing: 404 with an error code of its own
/// (40401 subject, 40402 version, 40403 schema).
fn unknown(answer: &Answer) -> bool {
    answer.status == 404
        && serde_json::from_slice::<ErrorAnswer>(&answer.body)
            .is_ok_and(|error| matches!(error.error_code, 40401..=40403))
}

/// An answer's status, and the registry's words where it has any.
fn said(answer: &Answer) -> String {
    let error = serde_json::from_slice::<ErrorAnswer>(&answer.body).ok();
    match error.and_then(|error| error.message) {
        Some(message) => format!("status {}: {}", answer.status, quote(&message)),
        None => format!("status {}", answer.status),
    }
}

/// Words of a stranger for a line of ours.
fn quote(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_QUOTE).collect()
}

fn body(schema: &str) -> Vec<u8> {
    json!({ "schema": schema }).to_string().into_bytes()
}

/// A subject as one segment of a path.
fn escape(subject: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    subject
        .bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, retry_after: None, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn only_the_registrys_own_words_make_an_id_unknown() {
        assert!(unknown(&answer(404, r#"{"error_code":40403,"message":"Schema not found"}"#)));
        assert!(unknown(&answer(404, r#"{"error_code":40401}"#)));
        for (status, body) in [
            (404, "<html>404 Not Found</html>"),
            (404, r#"{"error_code":404,"message":"HTTP 404 Not Found"}"#),
            (404, ""),
            (500, r#"{"error_code":40403}"#),
        ] {
            assert!(!unknown(&answer(status, body)), "{status} {body}");
        }
    }

    #[test]
    fn subjects_stay_one_segment() {
        assert_eq!(escape("ranker.features-value"), "ranker.features-value");
        assert_eq!(escape(":.ns:a/b ü"), "%3A.ns%3Aa%2Fb%20%C3%BC");
    }

    #[test]
    fn strangers_words_are_cut_and_stay_on_one_line() {
        let long = answer(
            409,
            &json!({ "error_code": 409, "message": format!("a\nb{}", "x".repeat(9_999)) }).to_string(),
        );
        let text = said(&long);
        assert!(text.starts_with("status 409: a b") && text.len() == "status 409: ".len() + LONGEST_QUOTE);
    }
}
