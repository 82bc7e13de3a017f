//! The HTTP client of the LLM endpoint and the schema registry.
//!
//! One request is one attempt: no redirect is followed, no proxy of the environment is used, nothing is
//! tried again here. What a status means is the caller's to decide.
//!
//! * **Limits**: the whole exchange within `timeout`, a connection within `connect_timeout`, an answer of
//!   at most `max_answer_bytes`.
//! * **Secrets**: the authorization header; no request, header or answer is ever logged. URLs with
//!   credentials are refused, since errors name URLs.

use crate::secret::Resolved;
use crate::{Error, Result};
use std::time::Duration;
use ureq::Agent;
use ureq::http::Uri;

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection.
    pub connect_timeout: Duration,
    /// For the whole exchange, from the first byte sent to the last one read.
    pub timeout: Duration,
    /// For the body of an answer.
    pub max_answer_bytes: u64,
}

/// A base URL with the limits and the credentials to ask it.
#[derive(Clone, Debug)]
pub struct Http {
    agent: Agent,
    base: String,
    authorization: Option<Resolved>,
    max_answer_bytes: u64,
}

/// An answer of any status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The header `Retry-After` as it came.
    pub retry_after: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Http {
    /// A client of a base URL. `authorization` is the whole value of that header.
    ///
    /// # Errors
    /// `Fatal` where the URL isn't one that [`url_problem`] lets pass.
    pub fn new(base: &str, authorization: Option<Resolved>, limits: Limits) -> Result<Self> {
        if let Some(problem) = url_problem(base) {
            return Err(Error::fatal(
                "read a base URL",
                problem,
                "give http://host:port/path or https://, secrets by reference",
            ));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_connect(Some(limits.connect_timeout))
            .timeout_global(Some(limits.timeout))
            .user_agent(concat!("ictflow/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Http {
            agent,
            base: base.trim_end_matches('/').to_owned(),
            authorization,
            max_answer_bytes: limits.max_answer_bytes,
        })
    }

    /// GET base/path.
    ///
    /// # Errors
    /// What the transport says; the status is never an error here.
    pub fn get(&self, path: &str) -> std::result::Result<Answer, ureq::Error> {
        let mut request = self.agent.get(format!("{}/{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization.expose());
        }
        self.read(request.call()?)
    }

    /// POST base/path with a JSON body of this media type.
    ///
    /// # Errors
    /// What the transport says; the status is never an error here.
    pub fn post(&self, path: &str, media: &str, body: &[u8]) -> std::result::Result<Answer, ureq::Error> {
        let mut request = self.agent.post(format!("{}/{path}", self.base)).header("content-type", media);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization.expose());
        }
        self.read(request.send(body)?)
    }

    fn read(
        &self,
        mut response: ureq::http::Response<ureq::Body>,
    ) -> std::result::Result<Answer, ureq::Error> {
        let retry_after = response.headers().get("retry-after");
        Ok(Answer {
            status: response.status().as_u16(),
            retry_after: retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned),
            body: response.body_mut().with_config().limit(self.max_answer_bytes).read_to_vec()?,
        })
    }
}

/// What is wrong with a base URL, if anything. The problem never repeats credentials.
pub fn url_problem(base: &str) -> Option<&'static str> {
    let Ok(uri) = base.parse::<Uri>() else { return Some("it is no URL of http:// or https://") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Some("it must begin with http:// or https://");
    }
    match uri.authority() {
        None => Some("it names no host"),
        Some(authority) if authority.as_str().contains('@') => Some("it holds credentials"),
        Some(_) if uri.query().is_some() => Some("it holds a query"),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_would_leak_or_mislead_are_refused() {
        assert_eq!(url_problem("http://127.0.0.1:8000/v1"), None);
        assert_eq!(url_problem("https://llm.example.org"), None);
        for (url, word) in [
            ("llm.example.org/v1", "http"),
            ("ftp://llm.example.org", "http"),
            ("http://user:word@llm.example.org", "credentials"),
            ("http://llm.example.org/v1?key=1", "query"),
            ("not a url", "no URL"),
        ] {
            let problem = url_problem(url).unwrap_or_default();
            assert!(problem.contains(word) && !problem.contains("word"), "{url}: {problem}");
        }
    }
}
