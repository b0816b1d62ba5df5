//! Latencies, counted without a lock: what the share path and the fan-out of jobs measure themselves with.
//!
//! A histogram has a fixed size: sixteen classes for every doubling from a microsecond to about two minutes, so
//! that any quantile is known to within some seven percent. It never reads a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Classes per doubling.
const STEPS: u64 = 16;

/// The first class that is not exact: below 16 microseconds there is one class for each.
const STEPS_LOG2: u32 = STEPS.ilog2();

/// Doublings above the exact classes: 16 microseconds times 2^23 are 134 seconds, longer than any connection waits
/// for anything. Longer times count as the longest.
const DOUBLINGS: u32 = 23;

/// Number of classes.
const CLASSES: usize = (STEPS as usize) * (DOUBLINGS as usize + 1);

/// The latencies of one role.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From the last byte of a share read to the last byte of its answer written.
    pub share_ack: Latency,
    /// From the last byte read of a new block, at the upstream or node, to the last byte written to one miner.
    pub new_block: Latency,
}

/// A histogram that many tasks record into at once.
#[derive(Debug)]
pub struct Latency {
    classes: Box<[AtomicU64]>,
    sum_micros: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Latency { classes: (0..CLASSES).map(|_| AtomicU64::new(0)).collect(), sum_micros: AtomicU64::new(0) }
    }
}

impl Latency {
    /// Counts one latency.
    pub fn record(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.classes[class_of(micros)].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What has been counted up to now. Latencies that are recorded meanwhile may be in it or not.
    pub fn snapshot(&self) -> LatencySnapshot {
        let classes = self.classes.iter().map(|class| class.load(Ordering::Relaxed)).collect();
        LatencySnapshot { classes, sum: Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)) }
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug)]
pub struct LatencySnapshot {
    classes: Vec<u64>,
    sum: Duration,
}

impl LatencySnapshot {
    /// How many latencies there are.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// All latencies added up.
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// The latency that a share of `quantile` (0 to 1) of all does not exceed, rounded up to the end of its class.
    /// `None` when nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = ((count as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        let class = self.classes.iter().position(|class| {
            seen += class;
            seen >= wanted
        });
        class.map(|class| Duration::from_micros(last_of(class)))
    }

    /// How many latencies do not exceed `limit`; exact when `limit` is a power of two of microseconds less one.
    pub fn count_up_to(&self, limit: Duration) -> u64 {
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        self.classes
            .iter()
            .enumerate()
            .filter(|(class, _)| last_of(*class) <= micros)
            .map(|(_, count)| count)
            .sum()
    }
}

fn class_of(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let doubling = micros.ilog2() - STEPS_LOG2;
    let step = (micros >> doubling) - STEPS;
    let class = STEPS * u64::from(doubling + 1) + step;
    (class as usize).min(CLASSES - 1)
}

/// The longest latency of a class, in microseconds.
fn last_of(class: usize) -> u64 {
    let class = class as u64;
    if class < STEPS {
        return class;
    }
    let (doubling, step) = (class / STEPS - 1, class % STEPS);
    ((STEPS + step + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_each_other_without_a_gap() {
        for class in 1..CLASSES - 1 {
            assert_eq!(class_of(last_of(class)), class);
            assert_eq!(class_of(last_of(class - 1) + 1), class);
        }
        assert_eq!(class_of(u64::MAX), CLASSES - 1);
    }

    #[test]
    fn quantiles_are_within_seven_percent() {
        let latency = Latency::default();
        for millis in 1..=1000 {
            latency.record(Duration::from_millis(millis));
        }
        let snapshot = latency.snapshot();
        for (quantile, millis) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = snapshot.quantile(quantile).expect("not empty").as_secs_f64() * 1000.0;
            assert!((millis..millis * 1.07).contains(&found), "{quantile}: {found} ms");
        }
        assert_eq!(snapshot.count(), 1000);
        assert_eq!(snapshot.sum(), Duration::from_micros(500_500_000));
        assert_eq!(snapshot.count_up_to(Duration::from_micros((1 << 20) - 1)), 1000);
        assert_eq!(Latency::default().snapshot().quantile(0.5), None);
    }
}
