//! The query of a request, read strictly: what is misspelt is refused instead of ignored.

use std::ops::RangeInclusive;
use std::time::{Duration, UNIX_EPOCH};

use super::problem::Problem;
use super::view::Span;

/// What comes behind the question mark of one request.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads a query that may have these keys, each once.
    pub(super) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let mut params: Vec<(String, String)> = Vec::new();
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.contains(&&*key) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Problem::bad_request(format!("unknown parameter {key:?}; known here: {known}")));
            }
            if params.iter().any(|(other, _)| *other == key) {
                return Err(Problem::bad_request(format!("the parameter {key} comes twice")));
            }
            params.push((key.into_owned(), value.into_owned()));
        }
        Ok(Params(params))
    }

    /// A text, unless it is absent or empty.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == key)?;
        (!value.is_empty()).then_some(value)
    }

    /// A whole number within `range`.
    pub(super) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize, Problem> {
        let Some(text) = self.text(key) else { return Ok(default) };
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
            let (first, last) = (range.start(), range.end());
            Problem::bad_request(format!("{key} must be a whole number from {first} to {last}"))
        })
    }

    /// One of some words, or the first of them.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
        let Some(text) = self.text(key) else { return Ok(choices[0].1) };
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            Problem::bad_request(format!("{key} must be one of {}", words.join(", ")))
        })
    }

    /// A moment, in unix microseconds.
    pub(super) fn time(&self, key: &str) -> Result<Option<u64>, Problem> {
        self.text(key)
            .map(|text| parse_time(text).map_err(|what| Problem::bad_request(format!("{key} {what}"))))
            .transpose()
    }

    /// The time between `from` and `to`; the last `default` before `now_us` when neither is there.
    pub(super) fn span(&self, now_us: u64, default: Duration) -> Result<Span, Problem> {
        let to_us = self.time("to")?.unwrap_or(now_us);
        let default_us = u64::try_from(default.as_micros()).unwrap_or(u64::MAX);
        let from_us = self.time("from")?.unwrap_or(to_us.saturating_sub(default_us));
        if from_us >= to_us {
            return Err(Problem::bad_request("from must be before to"));
        }
        Ok(Span { from_us, to_us })
    }
}

/// Reads RFC 3339 in UTC, into unix microseconds.
pub(super) fn parse_time(text: &str) -> Result<u64, &'static str> {
    let wrong = "must be a time of RFC 3339 in UTC, such as 2026-01-31T12:00:00Z";
    let time = humantime::parse_rfc3339(text).map_err(|_| wrong)?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| wrong)?;
    u64::try_from(since.as_micros()).map_err(|_| wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_strictly() {
        let params =
            Params::read(Some("limit=5&name=a%20b%26c&empty="), &["limit", "name", "empty"]).expect("known");
        assert_eq!(params.text("name"), Some("a b&c"));
        assert_eq!(params.text("empty"), None);
        assert_eq!(params.integer("limit", 1..=10, 3), Ok(5));
        assert_eq!(params.integer("other", 1..=10, 3), Ok(3));
        assert!(params.integer("limit", 6..=10, 6).is_err());
        assert!(params.choice("limit", &[("a", 1)]).is_err());
        assert!(Params::read(Some("limt=5"), &["limit"]).is_err());
        assert!(Params::read(Some("a=1&a=2"), &["a"]).is_err());
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z"), Ok(1_500_000));
        for wrong in [
            "",
            "yesterday",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-13-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
        ] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
        let params = Params::read(Some("from=1970-01-01T00:00:10Z"), &["from", "to"]).expect("known");
        let span = params.span(20_000_000, Duration::from_secs(3600)).expect("in order");
        assert_eq!(span, Span { from_us: 10_000_000, to_us: 20_000_000 });
        assert!(params.span(10_000_000, Duration::from_secs(1)).is_err());
    }
}
