//! Shares that are on their way from a miner to the pool, one in sixty-four of them: the swarm and the pool stub are
//! in one process, so that the time between the two ends of a proxy is a subtraction.
//!
//! A share is known by its rolled extranonce and nonce, which no two shares of a swarm have in common. Both ends
//! decide by them alone whether a share is looked at, so that all others cost nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;

/// Samples that are on their way at most. Further ones are not looked at: a proxy that holds back that many times
/// sixty-four shares has shown what there is to see.
const MAX_SAMPLES: usize = 1 << 20;

/// A new histogram of nanoseconds up to ten minutes; what takes longer counts as ten minutes.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 2).expect("the bounds are in order")
}

/// Nanoseconds from `start` to `end`.
pub fn nanoseconds(start: Instant, end: Instant) -> u64 {
    end.saturating_duration_since(start).as_nanos() as u64
}

/// What both ends know a share by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareKey(u64);

impl ShareKey {
    /// The key of a share, when it is one of those that are looked at.
    pub fn sampled(extranonce2: u32, nonce: u32) -> Option<ShareKey> {
        let key = u64::from(extranonce2) << 32 | u64::from(nonce);
        // Fibonacci hashing: the top six bits depend on all of the key.
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58 == 0).then_some(ShareKey(key))
    }
}

/// The sampled shares between the swarm and the pool stub.
#[derive(Debug)]
pub struct InFlight {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    submitted: HashMap<ShareKey, Instant>,
    forwarding: Histogram<u64>,
}

impl Default for InFlight {
    fn default() -> Self {
        InFlight { state: Mutex::new(State { submitted: HashMap::new(), forwarding: latencies() }) }
    }
}

impl InFlight {
    /// A miner submits a sampled share now.
    pub fn submitted(&self, key: ShareKey, now: Instant) {
        let mut state = self.lock();
        if state.submitted.len() < MAX_SAMPLES {
            state.submitted.insert(key, now);
        }
    }

    /// The pool received a sampled share.
    pub fn received(&self, key: ShareKey, now: Instant) {
        let mut state = self.lock();
        if let Some(submitted) = state.submitted.remove(&key) {
            state.forwarding.saturating_record(nanoseconds(submitted, now));
        }
    }

    /// A measurement begins: what was measured so far does not count, and what is on its way does.
    pub fn reset(&self) {
        self.lock().forwarding.reset();
    }

    /// From a submission to its arrival at the pool, in nanoseconds.
    pub fn forwarding(&self) -> Histogram<u64> {
        self.lock().forwarding.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_share_in_sixty_four_is_looked_at() {
        let sampled = (0..100).flat_map(|extranonce2| (0..1000).map(move |nonce| (extranonce2, nonce)));
        let count =
            sampled.filter(|(extranonce2, nonce)| ShareKey::sampled(*extranonce2, *nonce).is_some()).count();
        assert!((1_300..1_850).contains(&count), "{count} of 100,000");
    }
}
