//! The space of reserved extranonce bytes: which downstream holds which value.

use std::collections::{HashSet, VecDeque};

use crate::JobNumber;
use crate::job::RESERVED_SIZE;

/// Hands out reserved extranonce values so that no two live downstreams ever overlap.
///
/// A value that was given back goes to another downstream only after every job that it served is retired.
#[derive(Debug)]
pub struct ReservedExtranonces {
    limit: u64,
    next: u64,
    live: HashSet<u32>,
    /// Values given back, with the newest job that they may have served, oldest first.
    returned: VecDeque<(u32, JobNumber)>,
}

/// Every reserved value is held, or waits for its jobs to retire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {limit} extranonce values are in use")]
pub struct Exhausted {
    /// How many values there are.
    pub limit: u64,
}

impl ReservedExtranonces {
    /// A space of `limit` values, at most 2^32.
    pub fn new(limit: u64) -> Self {
        let limit = limit.min(1 << (8 * RESERVED_SIZE));
        ReservedExtranonces { limit, next: 0, live: HashSet::new(), returned: VecDeque::new() }
    }

    /// Takes a value that no live downstream holds and that no live job knows. `oldest_live_job` is the oldest
    /// job for which a share would still be accepted.
    ///
    /// Fails when the space is exhausted: the newcomer is refused, nobody else is touched.
    pub fn take(&mut self, oldest_live_job: JobNumber) -> Result<[u8; RESERVED_SIZE], Exhausted> {
        let value = match self.returned.front() {
            Some((value, newest_served)) if *newest_served < oldest_live_job => {
                let value = *value;
                self.returned.pop_front();
                value
            }
            _ if self.next < self.limit => {
                self.next += 1;
                (self.next - 1) as u32
            }
            _ => return Err(Exhausted { limit: self.limit }),
        };
        assert!(self.live.insert(value), "extranonce value {value:#x} is held twice");
        Ok(value.to_be_bytes())
    }

    /// Gives a value back. `newest_served` is the newest job that its holder may have been sent.
    pub fn give_back(&mut self, value: [u8; RESERVED_SIZE], newest_served: JobNumber) {
        let value = u32::from_be_bytes(value);
        assert!(self.live.remove(&value), "extranonce value {value:#x} was given back but not held");
        self.returned.push_back((value, newest_served));
    }

    /// How many values are held.
    pub fn live(&self) -> usize {
        self.live.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_returns_only_after_its_jobs_retired() {
        let mut space = ReservedExtranonces::new(2);
        let first = space.take(JobNumber(1)).expect("free");
        let second = space.take(JobNumber(1)).expect("free");
        assert_ne!(first, second);
        assert_eq!(space.take(JobNumber(1)), Err(Exhausted { limit: 2 }));
        space.give_back(first, JobNumber(5));
        assert_eq!(space.take(JobNumber(5)), Err(Exhausted { limit: 2 }));
        assert_eq!(space.take(JobNumber(6)), Ok(first));
        assert_eq!(space.live(), 2);
    }
}
