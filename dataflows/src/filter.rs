//! Which records `ictflow tail` prints: filters that are joined by AND.
//!
//! A filter that a topic's records can't answer is an error, never silence: [`Filter::problems`].

use ictflow_schemas::dead_letter::Reason;
use ictflow_schemas::framing::unframe;
use ictflow_schemas::topic::{HEADER_EPOCH, Record, Topic};
use serde_json::Value;

/// What a record must be. An absent value lets every record pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The user that the record is about; of a dead letter, the raw key of a refused interaction or
    /// candidate set.
    pub user: Option<String>,
    /// The item that it is about or, for a candidate set, that it offers; of a dead letter, the raw key
    /// of a refused item.
    pub item: Option<String>,
    /// The whole key as it is printed: text, or a JSON array of its parts.
    pub key: Option<String>,
    /// The least record timestamp, milliseconds. A record without one doesn't pass.
    pub since: Option<i64>,
    /// The epoch that committed it; of `epochs`, the epoch that it bounds.
    pub epoch: Option<i64>,
    /// The reason of a dead letter.
    pub reason: Option<String>,
}

impl Filter {
    /// The filters that this topic can't answer, and reasons that don't exist.
    pub fn problems(&self, topic: Topic) -> Vec<String> {
        let mut problems = Vec::new();
        let mut refuse = |given: bool, topics: &[Topic], option: &str| {
            if given && !topics.contains(&topic) {
                let names: Vec<&str> = topics.iter().map(|topic| topic.name()).collect();
                problems.push(format!(
                    "{option} doesn't apply to {}, but to {}",
                    topic.name(),
                    names.join(", ")
                ));
            }
        };
        use Topic::{
            Candidates, Cot, DeadLetters, Epochs, Examples, Features, Interactions, Items, Progress,
        };
        let by_user = [Interactions, Candidates, Cot, Features, Examples, DeadLetters];
        refuse(self.user.is_some(), &by_user, "--user");
        let by_item = [Interactions, Items, Candidates, Cot, Features, Examples, DeadLetters];
        refuse(self.item.is_some(), &by_item, "--item");
        refuse(self.epoch.is_some(), &[Epochs, Progress, Features, Examples, DeadLetters], "--epoch");
        refuse(self.reason.is_some(), &[DeadLetters], "--reason");
        if let Some(reason) = &self.reason
            && let Err(error) = serde_json::from_value::<Reason>(Value::String(reason.clone()))
        {
            problems.push(format!("--reason {reason}: {error}"));
        }
        problems
    }

    /// What a record's bytes say without decoding its value; false where it can't pass.
    pub fn may_pass(&self, topic: Topic, record: &Record) -> bool {
        if self.since.is_some_and(|since| record.timestamp.is_none_or(|at| at < since)) {
            return false;
        }
        let header =
            |name: &str| record.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value);
        if let Some(epoch) = self.epoch
            && topic != Topic::Epochs
            && header(HEADER_EPOCH).is_none_or(|value| *value != epoch.to_string().into_bytes())
        {
            return false;
        }
        let Some(user) = &self.user else { return true };
        let key = record.key.as_deref().unwrap_or_default();
        match topic {
            Topic::Interactions | Topic::Candidates => key == user.as_bytes(),
            Topic::Features | Topic::Examples => {
                unframe(key).is_some_and(|parts| parts.first() == Some(&user.as_bytes()))
            }
            _ => true,
        }
    }

    /// Whether a record passes that may, given its printed line. `items` is the name of the topic of items.
    pub fn passes(&self, topic: Topic, line: &Value, items: &str) -> bool {
        let (key, value) = (&line["key"], &line["value"]);
        if let Some(wanted) = &self.key
            && key.as_str() != Some(wanted)
            && serde_json::from_str::<Value>(wanted).ok().is_none_or(|wanted| wanted != *key)
            && key.as_array().is_none_or(|parts| parts.len() != 1 || parts[0].as_str() != Some(wanted))
        {
            return false;
        }
        if let Some(epoch) = self.epoch
            && topic == Topic::Epochs
            && value["epoch"].as_i64() != Some(epoch)
        {
            return false;
        }
        if let Some(reason) = &self.reason
            && value["reason"].as_str() != Some(reason)
        {
            return false;
        }
        let letter = |of_items: bool, id: &str| {
            let hex = ictflow_schemas::framing::hex(id.as_bytes());
            (value["topic"].as_str() == Some(items)) == of_items && value["key"].as_str() == Some(&hex)
        };
        if let Some(user) = &self.user {
            let fits = match topic {
                Topic::Cot => value["user_id"].as_str() == Some(user),
                Topic::DeadLetters => letter(false, user),
                _ => true,
            };
            if !fits {
                return false;
            }
        }
        let Some(item) = &self.item else { return true };
        match topic {
            Topic::Items => key.as_str() == Some(item),
            // The key says it, so that a tombstone passes too.
            Topic::Features => key[1].as_str() == Some(item),
            Topic::Candidates => value["items"]
                .as_array()
                .is_some_and(|items| items.iter().any(|of| of.as_str() == Some(item))),
            Topic::DeadLetters => letter(true, item),
            _ => value["item_id"].as_str() == Some(item),
        }
    }
}

/// Reads a time: whole milliseconds since 1970 UTC, or RFC 3339 (`2026-11-24T17:30:00Z`, fractions of a
/// second cut to milliseconds, an offset like `+01:00`).
///
/// # Errors
/// Says what was expected.
pub fn time(text: &str) -> Result<i64, String> {
    if let Ok(ms) = text.parse::<i64>() {
        return Ok(ms);
    }
    rfc3339(text).ok_or_else(|| {
        "expected milliseconds since 1970 or RFC 3339, such as 2026-11-24T17:30:00Z".to_owned()
    })
}

/// A time as RFC 3339 in UTC, with milliseconds.
pub fn utc(ms: i64) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Years counted from March, so that a leap day is the last: eras of 400 years are alike.
    let day = days + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (year + 400 * era, month + 3),
        _ => (year + 400 * era + 1, month - 9),
    };
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{of_month:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Takes so many digits off the front.
fn digits(rest: &mut &str, count: usize) -> Option<i64> {
    let (number, after) = rest.split_at_checked(count)?;
    *rest = after;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

fn one_of(rest: &mut &str, chars: &[char]) -> Option<char> {
    let first = rest.chars().next().filter(|found| chars.contains(found))?;
    *rest = &rest[first.len_utf8()..];
    Some(first)
}

fn rfc3339(text: &str) -> Option<i64> {
    let mut rest = text;
    let year = digits(&mut rest, 4)?;
    one_of(&mut rest, &['-'])?;
    let month = digits(&mut rest, 2).filter(|month| (1..=12).contains(month))?;
    one_of(&mut rest, &['-'])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let day = digits(&mut rest, 2).filter(|day| (1..=longest).contains(day))?;
    one_of(&mut rest, &['T', 't', ' '])?;
    let hour = digits(&mut rest, 2).filter(|hour| *hour < 24)?;
    one_of(&mut rest, &[':'])?;
    let minute = digits(&mut rest, 2).filter(|minute| *minute < 60)?;
    one_of(&mut rest, &[':'])?;
    // A leap second counts as the second after it.
    let second = digits(&mut rest, 2).filter(|second| *second <= 60)?;
    let mut ms = 0;
    if one_of(&mut rest, &['.']).is_some() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let fraction = rest.get(..end).filter(|fraction| !fraction.is_empty())?;
        for (digit, worth) in fraction.bytes().zip([100, 10, 1]) {
            ms += i64::from(digit - b'0') * worth;
        }
        rest = &rest[end..];
    }
    let offset = match one_of(&mut rest, &['Z', 'z', '+', '-'])? {
        'Z' | 'z' => 0,
        sign => {
            let hours = digits(&mut rest, 2).filter(|hours| *hours < 24)?;
            one_of(&mut rest, &[':'])?;
            let minutes = hours * 60 + digits(&mut rest, 2).filter(|minutes| *minutes < 60)?;
            if sign == '+' { minutes } else { -minutes }
        }
    };
    if !rest.is_empty() {
        return None;
    }
    // Days since 1970 of a date, years counted from March so that a leap day is the last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 719_469;
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1_000 + ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("0", 0),
            ("-5", -5),
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999Z", -1),
            ("1997-09-20T03:05:10z", 874_724_710_000),
            ("1997-09-20 05:05:10.1239+02:00", 874_724_710_123),
            ("2000-02-29T00:00:00-01:30", 951_787_800_000),
            ("2024-03-01T00:00:00.5Z", 1_709_251_200_500),
            ("0000-03-01T00:00:00Z", -62_162_035_200_000),
        ] {
            assert_eq!(time(text), Ok(ms), "{text}");
        }
        for text in [
            "",
            "now",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00Zx",
            "2024-01-01T00:00:00+1:00",
            "2024-01-01T00:00:00+24:00",
            "é024-01-01T00:00:00Z",
            "+024-01-01T00:00:00Z",
        ] {
            assert!(time(text).unwrap_err().contains("RFC 3339"), "{text}");
        }
    }

    #[test]
    fn a_time_is_read_back_from_its_text() {
        assert_eq!(utc(1_709_251_200_500), "2024-03-01T00:00:00.500Z");
        assert_eq!(utc(951_787_799_999), "2000-02-29T01:29:59.999Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59.999Z");
        // Every day of 500 years, each at another time of it.
        for day in -110_000..73_000_i64 {
            let ms = day * 86_400_000 + day.rem_euclid(86_399_999);
            assert_eq!(time(&utc(ms)), Ok(ms), "{}", utc(ms));
        }
    }

    #[test]
    fn what_a_topic_cannot_answer_is_named() {
        let filter = Filter {
            user: Some("u".into()),
            epoch: Some(1),
            reason: Some("late".into()),
            ..Filter::default()
        };
        assert_eq!(filter.problems(Topic::DeadLetters), Vec::<String>::new());
        let problems = filter.problems(Topic::Items);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("--user doesn't apply to items, but to interactions,"));
        let unknown = Filter { reason: Some("lat".into()), ..Filter::default() };
        let problem = unknown.problems(Topic::DeadLetters).join("");
        assert!(problem.contains("lat") && problem.contains("window_full"), "{problem}");
    }
}
