//! The only place where the program reads the clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stratum::Now;

/// Both clocks, with the moment from which monotonic time counts. One for the whole process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock whose monotonic time starts at zero now.
    pub fn start() -> Self {
        Clock { started: Instant::now() }
    }

    /// The monotonic clock alone, which costs half as much.
    pub fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    /// Both clocks, now. A wall clock before 1970 reads as 1970.
    pub fn now(&self) -> Now {
        Now {
            monotonic: self.started.elapsed(),
            utc: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
        }
    }

    /// The instant of a monotonic time, for timers.
    pub fn instant(&self, monotonic: Duration) -> tokio::time::Instant {
        (self.started + monotonic).into()
    }
}
