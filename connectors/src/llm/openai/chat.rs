//! The bodies of `POST /chat/completions`, and what an answer's status means.

use super::config::{self, Config};
use crate::llm::Draft;
use crate::llm::health::Outcome;
use crate::llm::openai::prompt::ChatPrompt;
use crate::llm::prompt::Message;
use ictflow_schemas::cot::canonical_json;
use serde::Deserialize;
use std::time::Duration;

/// The schedule of attempts as one text: it enters content keys, so decimals are as the config has
/// them.
pub(super) fn parameters(config: &Config) -> String {
    let schedule: Vec<_> = (1..=config.attempts)
        .map(|attempt| match attempt {
            1 => serde_json::json!({"choice": "greedy"}),
            _ => serde_json::json!({
                "choice": "sampled", "seed": attempt, "temperature": config.temperature,
            }),
        })
        .collect();
    canonical_json(&serde_json::json!({"max_tokens": config.max_tokens, "schedule": schedule}))
}

/// The body of one attempt: the same bytes for the same messages and attempt, whenever it is made.
pub(super) fn body(config: &Config, messages: &[Message], attempt: u32) -> Vec<u8> {
    let messages: Vec<_> =
        messages.iter().map(|m| serde_json::json!({"role": m.role, "content": m.content})).collect();
    let mut body = serde_json::json!({
        "model": config.model,
        "messages": messages,
        "max_tokens": config.max_tokens,
        "stream": false,
        "temperature": 0,
    });
    if attempt > 1 {
        body["seed"] = attempt.into();
        body["temperature"] = config::temperature(&config.temperature).unwrap_or(1.0).into();
    }
    body.to_string().into_bytes()
}

/// An answer, as far as it is read.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Answer,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// A read answer: the draft, and the tokens where the service counts them.
pub(super) struct Read {
    /// The draft.
    pub(super) draft: Draft,
    /// Tokens of the prompt and of the answer.
    pub(super) usage: Option<(u64, u64)>,
}

/// The longest finish reason that is kept.
const REASON_BYTES: usize = 32;

/// Reads the body of an answer; `None` where it isn't one. Of several choices the first counts.
pub(super) fn read(body: &[u8], prompt: &ChatPrompt) -> Option<Read> {
    let completion: Completion = serde_json::from_slice(body).ok()?;
    let choice = completion.choices.into_iter().next()?;
    let reason = match choice.message.refusal {
        Some(refusal) if !refusal.is_empty() => "refusal".to_owned(),
        _ => choice.finish_reason.unwrap_or_else(|| "stop".to_owned()),
    };
    // The word goes into a record: a service that writes a novel there is no reason to keep it.
    let known =
        reason.len() <= REASON_BYTES && reason.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let written = prompt.parts(&choice.message.content.unwrap_or_default());
    let usage = completion.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
    let (tokens_in, tokens_out) = usage.unwrap_or_default();
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    let draft = Draft {
        text: written.join("\n"),
        written,
        tokens_in: count(tokens_in),
        tokens_out: count(tokens_out),
        finish_reason: if known { reason } else { "other".to_owned() },
    };
    Some(Read { draft, usage })
}

/// What a status says before the body is looked at; `Ok` for 200.
pub(super) fn outcome(status: u16) -> Outcome {
    match status {
        200 => Outcome::Ok,
        429 => Outcome::RateLimited,
        408 | 425 | 504 => Outcome::Timeout,
        500..=599 => Outcome::ServerError,
        400 | 413 | 422 => Outcome::Refused,
        // Another success than 200 has no answer for us.
        201..=299 => Outcome::Garbage,
        // A redirect, or a route or method that isn't there: the configuration is wrong.
        _ => Outcome::Denied,
    }
}

/// What the transport says.
pub(super) fn transport(error: &ureq::Error) -> (Outcome, &'static str) {
    match error {
        ureq::Error::Timeout(_) => (Outcome::Timeout, "it took longer than generator.openai.timeout_ms"),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            (Outcome::Timeout, "it took longer than generator.openai.timeout_ms")
        }
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            (Outcome::Transport, "the connection was refused")
        }
        ureq::Error::Io(_) => (Outcome::Transport, "the connection broke"),
        ureq::Error::ConnectionFailed => (Outcome::Transport, "no connection could be made"),
        ureq::Error::HostNotFound => (Outcome::Transport, "the host isn't known"),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => (Outcome::Transport, "the TLS handshake failed"),
        ureq::Error::RedirectFailed | ureq::Error::TooManyRedirects => {
            (Outcome::Denied, "it redirects, which isn't followed")
        }
        ureq::Error::BodyExceedsLimit(_) => {
            (Outcome::Garbage, "the answer is larger than generator.openai.max_answer_bytes")
        }
        ureq::Error::Protocol(_) => (Outcome::Garbage, "the answer isn't HTTP"),
        _ => (Outcome::Transport, "the exchange failed"),
    }
}

/// The pause of a header `Retry-After`: seconds, or an HTTP date against `now_ms`. `None` where it is
/// neither; a date that is past gives zero.
pub(super) fn retry_after(value: &str, now_ms: i64) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // What overflows is longer than any limit.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let ms = http_date(value)?.checked_mul(1_000)?.saturating_sub(now_ms);
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = fields[..] else { return None };
    let number = |text: &str, high: i64| -> Option<i64> {
        let plain = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|value| plain && *value <= high)
    };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let (day, year) = (number(day, 31)?, number(year, 9_999)?);
    let time: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = time[..] else { return None };
    // Days before a month's first day, in a year that begins with March so that a leap day is last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + number(hour, 23)?) * 60 + number(minute, 59)?) * 60 + number(second, 60)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config() -> Config {
        Config { model: "m".into(), attempts: 2, ..Config::default() }
    }

    #[test]
    fn parameters_are_canonical_with_decimals_as_text() {
        assert_eq!(
            parameters(&config()),
            r#"{"max_tokens":400,"schedule":[{"choice":"greedy"},{"choice":"sampled","seed":2,"temperature":"0.7"}]}"#
        );
    }

    #[test]
    fn a_body_depends_on_messages_and_attempt_alone() {
        let messages = [Message { role: "user", content: "say \"yes\"\n".into() }];
        assert_eq!(
            String::from_utf8(body(&config(), &messages, 1)).unwrap(),
            r#"{"max_tokens":400,"messages":[{"content":"say \"yes\"\n","role":"user"}],"model":"m","stream":false,"temperature":0}"#
        );
        let second = body(&config(), &messages, 2);
        assert_eq!(second, body(&config(), &messages, 2));
        let second: serde_json::Value = serde_json::from_slice(&second).unwrap();
        assert_eq!((&second["seed"], &second["temperature"]), (&2.into(), &0.7.into()));
    }

    #[test]
    fn answers_are_read_leniently_and_garbage_is_none() {
        let prompt = ChatPrompt::builtin();
        let read = |text: &str| super::read(text.as_bytes(), &prompt);
        let full = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"a b\n\nc d\n\ne f"},
            "finish_reason":"stop","logprobs":null}],"usage":{"prompt_tokens":12,"completion_tokens":7,"total_tokens":19}}"#;
        let good = read(full).unwrap();
        assert_eq!((good.draft.text.as_str(), good.draft.written.len()), ("a b\nc d\ne f", 3));
        assert_eq!((good.draft.tokens_in, good.draft.tokens_out, good.usage), (12, 7, Some((12, 7))));
        let bare =
            read(r#"{"choices":[{"message":{"content":null},"finish_reason":"content_filter"}]}"#).unwrap();
        assert_eq!((bare.draft.text.as_str(), bare.draft.finish_reason.as_str()), ("", "content_filter"));
        assert_eq!(bare.usage, None);
        let refused = read(r#"{"choices":[{"message":{"refusal":"No."},"finish_reason":"stop"}]}"#).unwrap();
        assert_eq!(refused.draft.finish_reason, "refusal");
        let novel = format!(r#"{{"choices":[{{"message":{{}},"finish_reason":"{}"}}]}}"#, "x".repeat(33));
        assert_eq!(read(&novel).unwrap().draft.finish_reason, "other");
        for garbage in
            ["", "<html>", "{}", r#"{"choices":[]}"#, r#"{"choices":[{}]}"#, &full[..full.len() / 2]]
        {
            assert!(read(garbage).is_none(), "{garbage}");
        }
    }

    #[test]
    fn every_status_has_its_outcome() {
        for (status, word) in [
            (200, "ok"),
            (204, "garbage"),
            (301, "denied"),
            (400, "refused"),
            (401, "denied"),
            (403, "denied"),
            (404, "denied"),
            (408, "timeout"),
            (413, "refused"),
            (422, "refused"),
            (429, "rate_limited"),
            (500, "server_error"),
            (503, "server_error"),
            (599, "server_error"),
        ] {
            assert_eq!(outcome(status).word(), word, "{status}");
        }
    }

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        let now = 784_111_777_000; // Sun, 06 Nov 1994 08:49:37 GMT
        for (value, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999", Some(u64::from(u32::MAX))),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1993 08:50:37 GMT", Some(0)),
            ("Thu, 29 Feb 1996 00:00:00 GMT", Some(41_440_223)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now).map(|pause| pause.as_secs()), seconds, "{value}");
        }
    }
}
