//! Times as people and scripts write them: RFC 3339, always UTC.

use std::time::{Duration, UNIX_EPOCH};

/// Seconds of a day.
pub const DAY: u64 = 86_400;

/// The last second that four digits of a year have room for: 9999-12-31T23:59:59Z.
const LAST: u64 = 253_402_300_799;

/// Unix seconds as `2026-11-25T22:24:14Z`.
pub fn seconds(unix_seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Unix microseconds as `2026-11-25T22:24:14.123456Z`.
pub fn microseconds(unix_us: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_micros(unix_us.min(LAST * 1_000_000));
    humantime::format_rfc3339_micros(time).to_string()
}

/// The day that a unix second lies in, as `2026-11-25`.
pub fn day(unix_seconds: u64) -> String {
    seconds(unix_seconds)[..10].to_owned()
}

/// Unix microseconds of `2026-11-25T22:24:14Z`, with or without a fraction, or of the start of the day `2026-11-25`.
pub fn parse(text: &str) -> Result<u64, String> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339(&whole).map_err(|_| {
        format!("{text:?} is no time in UTC such as 2026-11-25T22:24:14Z, and no day such as 2026-11-25")
    })?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| format!("{text:?} is before 1970"))?;
    Ok(since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_out_and_come_back() {
        assert_eq!(seconds(1_795_645_454), "2026-11-25T22:24:14Z");
        assert_eq!(microseconds(1_795_645_454_123_456), "2026-11-25T22:24:14.123456Z");
        assert_eq!(day(1_795_645_454), "2026-11-25");
        assert_eq!(parse("2026-11-25T22:24:14Z"), Ok(1_795_645_454_000_000));
        assert_eq!(parse("2026-11-25T22:24:14.5Z"), Ok(1_795_645_454_500_000));
        assert_eq!(parse("2026-11-25"), Ok(1_795_564_800_000_000));
        assert_eq!(parse("2024-02-29").map(|us| day(us / 1_000_000)).as_deref(), Ok("2024-02-29"));
        for text in ["yesterday", "2026-13-01", "2026-11-25 22:24", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(seconds(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
