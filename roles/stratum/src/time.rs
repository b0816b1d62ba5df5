//! The one value through which time enters the roles.

use std::time::Duration;

/// One reading of both clocks, taken together by the program that drives the roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Time since an arbitrary moment at or before the process's start; never goes back.
    pub monotonic: Duration,
    /// Time since 1970-01-01 00:00 UTC.
    pub utc: Duration,
}

impl Now {
    /// Both clocks at zero offset from each other: for tests and simulations.
    pub const fn simulated(utc: Duration, since_start: Duration) -> Self {
        Now {
            monotonic: since_start,
            utc: Duration::from_nanos((utc.as_nanos() + since_start.as_nanos()) as u64),
        }
    }

    /// Whole seconds since 1970, as block headers carry them (32 bits, until 2106).
    pub const fn unix_seconds(self) -> u32 {
        self.utc.as_secs() as u32
    }

    /// Time that has passed on the monotonic clock since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Now) -> Duration {
        self.monotonic.saturating_sub(earlier.monotonic)
    }

    /// Both clocks moved on by `duration`.
    pub const fn plus(self, duration: Duration) -> Self {
        Now { monotonic: self.monotonic.saturating_add(duration), utc: self.utc.saturating_add(duration) }
    }
}
