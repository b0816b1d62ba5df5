//! How long to wait before dialling an upstream again.
//!
//! This module never dials and never draws a random number: the caller brings one for the jitter, so that a
//! thousand proxies that lost the same pool do not return in the same instant.

use std::time::Duration;

use stratum::Now;

/// The longest first delay. A pool that restarts is back within seconds, and every second is lost hashing.
pub const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay at first: a pool that is restarted by hand is back within a minute.
pub const LONGEST_DELAY_AT_FIRST: Duration = Duration::from_secs(5);

/// Failures in a row after which delays grow beyond [`LONGEST_DELAY_AT_FIRST`]: a minute or so.
const PATIENT_FAILURES: u32 = 15;

/// The longest delay: an operator who repairs something should see the effect within half a minute.
pub const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A connection that lasted this long was healthy, and the next delay is the first one again. One that is accepted
/// and dropped at once is not.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Counts the failures of one upstream in a row.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
    connected_at: Option<Now>,
}

impl Backoff {
    /// No failure yet.
    pub fn new() -> Self {
        Backoff::default()
    }

    /// The upstream accepted us.
    pub fn connected(&mut self, now: Now) {
        self.connected_at = Some(now);
    }

    /// The connection ended, or could not be made. Returns how long to wait before the next attempt: see
    /// [`delay`]. `random` is any 32 random bits.
    pub fn failed(&mut self, now: Now, random: u32) -> Duration {
        if self.connected_at.take().is_some_and(|connected| now.since(connected) >= HEALTHY_AFTER) {
            self.failures = 0;
        }
        let delay = delay(self.failures, random);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// The delay after `failures` earlier failures: [`FIRST_DELAY`] doubled as often, at most
/// [`LONGEST_DELAY_AT_FIRST`] in the first minute or so and [`LONGEST_DELAY`] afterwards, of which `random` takes away up to a half (0: half of it, `u32::MAX`: all of it).
pub fn delay(failures: u32, random: u32) -> Duration {
    // Five doublings already pass the longest delay.
    let longest = if failures < PATIENT_FAILURES { LONGEST_DELAY_AT_FIRST } else { LONGEST_DELAY };
    let whole = (FIRST_DELAY * (1 << failures.min(8))).min(longest);
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now::simulated(Duration::from_secs(1_700_000_000), Duration::from_secs(seconds))
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new();
        let delays: Vec<u64> = (0..17).map(|_| backoff.failed(at(0), u32::MAX).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 30, 30]);
        assert_eq!(delay(u32::MAX, u32::MAX), LONGEST_DELAY);
    }

    #[test]
    fn jitter_takes_away_no_more_than_a_half() {
        assert_eq!(delay(0, 0), Duration::from_millis(500));
        assert_eq!(delay(20, 0), Duration::from_secs(15));
        for random in [1, 77, u32::MAX / 3, u32::MAX - 1] {
            assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&delay(2, random)));
        }
    }

    #[test]
    fn only_a_healthy_minute_starts_over() {
        let mut backoff = Backoff::new();
        for _ in 0..3 {
            backoff.failed(at(0), u32::MAX);
        }
        backoff.connected(at(10));
        assert_eq!(backoff.failed(at(69), u32::MAX).as_secs(), 5);
        backoff.connected(at(100));
        assert_eq!(backoff.failed(at(160), u32::MAX).as_secs(), 1);
        assert_eq!(backoff.failed(at(161), u32::MAX).as_secs(), 2);
    }
}
