//! Words for the operator, limited so that a peer cannot fill a log.

use std::time::Duration;

use stratum::Now;

use crate::output::UpstreamOutput;

/// Notices of one upstream a minute: more than any healthy upstream causes in an hour. Further ones are counted and
/// the count is told with the next.
const MAX_NOTICES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);

/// Characters of a peer's text that are repeated to the operator: enough for any error code in use.
const MAX_QUOTED: usize = 64;

/// Lets the first notices of every minute pass.
#[derive(Debug)]
pub(crate) struct Notices {
    period_began: Now,
    told: u32,
    withheld: u64,
}

impl Notices {
    pub(crate) fn new(now: Now) -> Self {
        Notices { period_began: now, told: 0, withheld: 0 }
    }

    /// Tells the operator, or counts that it was not told.
    pub(crate) fn tell(&mut self, now: Now, out: &mut UpstreamOutput, what: impl FnOnce() -> String) {
        if now.since(self.period_began) >= PERIOD {
            self.period_began = now;
            self.told = 0;
        }
        if self.told == MAX_NOTICES {
            self.withheld += 1;
            return;
        }
        self.told += 1;
        let mut what = what();
        if self.withheld > 0 {
            what.push_str(&format!(" ({} earlier notices were withheld)", self.withheld));
            self.withheld = 0;
        }
        out.notices.push(what);
    }
}

/// A peer's text as it is safe to show: visible ASCII only, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(MAX_QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_notices_is_cut_and_counted() {
        let now = Now { monotonic: Duration::ZERO, utc: Duration::ZERO };
        let mut notices = Notices::new(now);
        let mut out = UpstreamOutput::default();
        for _ in 0..1000 {
            notices.tell(now, &mut out, || "again".to_owned());
        }
        assert_eq!(out.notices.len(), MAX_NOTICES as usize);
        notices.tell(now.plus(PERIOD), &mut out, || "later".to_owned());
        assert_eq!(out.notices.last().map(String::as_str), Some("later (980 earlier notices were withheld)"));
    }

    #[test]
    fn quoted_text_cannot_write_to_a_terminal() {
        assert_eq!(quoted("bad\u{1b}[31m\ncode"), "bad[31mcode");
        assert_eq!(quoted(&"x".repeat(500)).len(), MAX_QUOTED);
    }
}
