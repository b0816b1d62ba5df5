//! Keeps a flood of connections from filling the disk with log lines.
//!
//! Lines are limited for each kind on its own, so that a flood of strangers never hides what becomes of devices.
//! Lines about connections that had authorised are limited too, only less: anybody can authorise.

use std::sync::Mutex;
use std::time::Duration;

/// How long a limit counts, and how far apart the lines are that say how many others were withheld.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// Lines in a period about connections that never showed who they are: enough to see what is going on, and a few
/// hundred megabytes a day at the very worst.
const STRANGER_LINES: u32 = 20;

/// Lines in a period about connections that had authorised. More than that is a farm that lost its power or its
/// network, where the number says as much as the lines.
const DEVICE_LINES: u32 = 100;

/// The kinds of lines that peers can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineKind {
    /// A connection was turned away because all slots are taken.
    TurnedAway,
    /// A connection closed before it had authorised or opened a channel.
    StrangerClosed,
    /// A connection closed that had.
    DeviceClosed,
    /// There is something odd about a connection.
    Notice,
}

impl LineKind {
    /// All of them.
    const ALL: [LineKind; 4] =
        [LineKind::TurnedAway, LineKind::StrangerClosed, LineKind::DeviceClosed, LineKind::Notice];

    /// What a line that stands for many says of them.
    pub(super) fn what(self) -> &'static str {
        match self {
            LineKind::TurnedAway => "connections turned away",
            LineKind::StrangerClosed => "closed connections that had not authorised",
            LineKind::DeviceClosed => "closed connections that had authorised",
            LineKind::Notice => "what is odd about connections",
        }
    }

    fn limit(self) -> u32 {
        match self {
            LineKind::TurnedAway | LineKind::StrangerClosed | LineKind::Notice => STRANGER_LINES,
            LineKind::DeviceClosed => DEVICE_LINES,
        }
    }
}

/// Counts the lines of one kind. Times are monotonic.
#[derive(Debug, Default)]
struct Limiter {
    period_began: Duration,
    lines: u32,
    withheld: u64,
    reported: Duration,
}

impl Limiter {
    fn admit(&mut self, limit: u32, now: Duration) -> bool {
        if now.saturating_sub(self.period_began) >= PERIOD {
            self.period_began = now;
            self.lines = 0;
        }
        let admitted = self.lines < limit;
        if admitted {
            self.lines += 1;
        } else {
            self.withheld += 1;
        }
        admitted
    }

    fn take_withheld(&mut self, now: Duration) -> Option<u64> {
        if self.withheld == 0 || now.saturating_sub(self.reported) < PERIOD {
            return None;
        }
        self.reported = now;
        Some(std::mem::take(&mut self.withheld))
    }
}

/// The limiters of one role. Behind a lock that is taken when a connection ends, never for a share or a job.
#[derive(Debug, Default)]
pub(super) struct LogLimits([Mutex<Limiter>; LineKind::ALL.len()]);

impl LogLimits {
    /// Whether a line of this kind may be written now. If not, it is counted.
    pub(super) fn admit(&self, kind: LineKind, now: Duration) -> bool {
        self.limiter(kind).admit(kind.limit(), now)
    }

    /// How many lines were withheld, for every kind for which it is time to say so.
    pub(super) fn take_withheld(&self, now: Duration) -> impl Iterator<Item = (LineKind, u64)> {
        LineKind::ALL.into_iter().filter_map(move |kind| Some((kind, self.limiter(kind).take_withheld(now)?)))
    }

    fn limiter(&self, kind: LineKind) -> std::sync::MutexGuard<'_, Limiter> {
        self.0[kind as usize].lock().expect("nothing panics while it counts lines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: LineKind = LineKind::StrangerClosed;

    fn flood(limits: &LogLimits, kind: LineKind, lines: usize, now: Duration) -> usize {
        (0..lines).filter(|_| limits.admit(kind, now)).count()
    }

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let limits = LogLimits::default();
        let start = Duration::from_secs(100);
        assert_eq!(flood(&limits, KIND, 1000, start), STRANGER_LINES as usize);
        assert_eq!(limits.take_withheld(start).collect::<Vec<_>>(), [(KIND, 980)]);
        assert_eq!(limits.take_withheld(start + PERIOD).count(), 0, "there is nothing to say twice");
    }

    #[test]
    fn what_was_withheld_is_told_once_in_a_period() {
        let limits = LogLimits::default();
        let start = Duration::from_secs(100);
        flood(&limits, KIND, 21, start);
        assert_eq!(limits.take_withheld(start).collect::<Vec<_>>(), [(KIND, 1)]);
        flood(&limits, KIND, 5, start + PERIOD / 2);
        assert_eq!(limits.take_withheld(start + PERIOD / 2).count(), 0, "two listeners ask");
        assert_eq!(limits.take_withheld(start + PERIOD).collect::<Vec<_>>(), [(KIND, 5)]);
    }

    #[test]
    fn the_next_period_has_lines_again() {
        let limits = LogLimits::default();
        let start = Duration::from_secs(100);
        flood(&limits, KIND, 1000, start);
        assert!(!limits.admit(KIND, start + PERIOD - Duration::from_nanos(1)));
        assert_eq!(flood(&limits, KIND, 1000, start + PERIOD), STRANGER_LINES as usize);
    }

    #[test]
    fn strangers_never_hide_devices() {
        let limits = LogLimits::default();
        let start = Duration::from_secs(100);
        flood(&limits, LineKind::StrangerClosed, 1000, start);
        flood(&limits, LineKind::TurnedAway, 1000, start);
        assert_eq!(flood(&limits, LineKind::DeviceClosed, 1000, start), DEVICE_LINES as usize);
    }
}
