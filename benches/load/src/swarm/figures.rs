//! What miners count, in two forms: a few numbers that others may look at any time, and everything else, which a
//! thread keeps to itself until it is asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use crate::in_flight::latencies;

/// Kinds of refusals that are told apart at most; further ones are counted together.
const MAX_REASONS: usize = 64;

/// Which of two kinds a miner is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The miners that a farm has.
    Ordinary,
    /// Those that flood.
    Flooder,
}

/// What may be looked at any time. All only grow, but for what belongs to one block.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) submitted: AtomicU64,
    pub(super) ready: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) arrivals: AtomicU64,
}

/// One look at what all threads count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwarmCounts {
    /// Shares that were answered with "accepted".
    pub accepted: u64,
    /// Shares that were answered with anything else.
    pub refused: u64,
    /// Shares that were written.
    pub submitted: u64,
    /// Miners that have had their first job.
    pub ready: u64,
    /// Connections that failed or ended.
    pub lost: u64,
    /// Miners that have the block that is watched for.
    pub arrivals: u64,
}

impl SwarmCounts {
    pub(super) fn sum<'a>(counts: impl Iterator<Item = &'a Counts>) -> Self {
        let mut sum = SwarmCounts::default();
        for count in counts {
            for (sum, count) in [
                (&mut sum.accepted, &count.accepted),
                (&mut sum.refused, &count.refused),
                (&mut sum.submitted, &count.submitted),
                (&mut sum.ready, &count.ready),
                (&mut sum.lost, &count.lost),
                (&mut sum.arrivals, &count.arrivals),
            ] {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sum
    }
}

pub(super) fn add(count: &AtomicU64, more: u64) {
    // One thread writes each of them, and others only look.
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// What the miners of one class have measured since the last reset.
#[derive(Clone, Debug)]
pub struct ClassFigures {
    /// Shares that were accepted.
    pub accepted: u64,
    /// From a submission written to its answer read, in nanoseconds.
    pub answered: Histogram<u64>,
    /// Refused shares that were on their way when the miner read that their job was void.
    pub stale_crossing: u64,
    /// All other refused shares, by code and message.
    pub refused: BTreeMap<String, u64>,
    /// From the start of a watched block to a miner having its line, in nanoseconds.
    pub block_arrived: Histogram<u64>,
}

impl Default for ClassFigures {
    fn default() -> Self {
        ClassFigures {
            accepted: 0,
            answered: latencies(),
            stale_crossing: 0,
            refused: BTreeMap::new(),
            block_arrived: latencies(),
        }
    }
}

impl ClassFigures {
    pub(super) fn count_refusal(&mut self, reason: String) {
        let is_room = self.refused.len() < MAX_REASONS || self.refused.contains_key(&reason);
        let reason = if is_room { reason } else { "others".to_owned() };
        *self.refused.entry(reason).or_default() += 1;
    }

    fn add(&mut self, other: &ClassFigures) {
        self.accepted += other.accepted;
        self.stale_crossing += other.stale_crossing;
        for (sum, more) in
            [(&mut self.answered, &other.answered), (&mut self.block_arrived, &other.block_arrived)]
        {
            sum.add(more).expect("all histograms have the same bounds");
        }
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }
}

/// What both classes have measured.
#[derive(Clone, Debug, Default)]
pub struct SwarmFigures {
    /// The miners that a farm has.
    pub ordinary: ClassFigures,
    /// Those that flood.
    pub flooders: ClassFigures,
}

impl SwarmFigures {
    pub(super) const fn of(&mut self, class: Class) -> &mut ClassFigures {
        match class {
            Class::Ordinary => &mut self.ordinary,
            Class::Flooder => &mut self.flooders,
        }
    }

    pub(super) fn add(&mut self, other: &SwarmFigures) {
        self.ordinary.add(&other.ordinary);
        self.flooders.add(&other.flooders);
    }
}
