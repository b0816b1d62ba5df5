//! The state of one channel: its judge, its work, and the shares that wait for their acknowledgement.
//!
//! A channel never looks at other channels; what they share is the connection's.

use std::sync::Arc;

use stratum::hash::Hash;
use stratum::sv2::messages::SubmitSharesSuccess;
use stratum::{ChannelId, HashRate, Job, Now, SequenceNumber, Target, Work as WorkSum};

use super::send;
use super::workers::{Worker, Workers};
use crate::judge::Judge;
use crate::output::{Event, Output};
use crate::work::Work;

/// The share of its last published value by which a hash rate must differ to be published again.
const NOTICEABLE_CHANGE: f64 = 0.1;

/// Channels that the same extended job can be addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: ChannelId,
    /// Bytes of the extranonce, from the first reserved one to the last that a miner rolls: the same for all
    /// members (SV2 5.2.3).
    pub(super) full_size: usize,
}

/// One open standard or extended channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) group: Group,
    pub(super) is_standard: bool,
    pub(super) user_identity: String,
    /// What mines on it.
    pub(super) own: Worker,
    /// The devices behind it, where it is a proxy's that names them.
    pub(super) workers: Workers,
    pub(super) judge: Judge,
    pub(super) work: Arc<Work>,
    pub(super) published_rate: HashRate,
    /// What the peer declared since the last look at hash rates.
    pub(super) declared_rate: Option<HashRate>,
    pub(super) unacknowledged: Unacknowledged,
}

/// Accepted shares that the peer was not told of yet.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    pub(super) count: u32,
    last: SequenceNumber,
    /// The sum of their difficulties, and the fraction that earlier acknowledgements could not carry: the
    /// wire has whole numbers, and a device below difficulty 1 would otherwise seem to have done nothing.
    difficulty: f64,
}

impl Unacknowledged {
    fn add(&mut self, sequence_number: SequenceNumber, credited: WorkSum) {
        self.count += 1;
        self.last = sequence_number;
        self.difficulty += difficulty_of(credited);
    }

    /// The acknowledgement of everything that waits; `None` when nothing does.
    fn take(&mut self, channel_id: ChannelId) -> Option<SubmitSharesSuccess> {
        if self.count == 0 {
            return None;
        }
        let whole = self.difficulty.floor();
        self.difficulty -= whole;
        Some(SubmitSharesSuccess {
            channel_id,
            last_sequence_number: self.last,
            new_submits_accepted_count: std::mem::take(&mut self.count),
            // Saturates, as float to integer conversions do.
            new_shares_sum: whole as u64,
        })
    }
}

impl Channel {
    /// Counts a share that was credited this work as accepted but not yet acknowledged.
    pub(super) fn accept(&mut self, sequence_number: SequenceNumber, credited: WorkSum) {
        self.unacknowledged.add(sequence_number, credited);
    }

    /// Acknowledges what waits for it, if anything does.
    pub(super) fn acknowledge(&mut self, out: &mut Output) {
        if let Some(message) = self.unacknowledged.take(self.id) {
            send(message, out);
        }
    }

    /// Publishes our estimate of the hash rate where it has changed noticeably, and what the peer declared where
    /// there is none.
    pub(super) fn publish_hash_rate(&mut self, now: Now, out: &mut Output) {
        let declared = self.declared_rate.take();
        let Some(rate) = self.judge.hash_rate(now) else {
            declared.into_iter().for_each(|rate| self.set_published_rate(rate, out));
            return;
        };
        if (rate.0 - self.published_rate.0).abs() > NOTICEABLE_CHANGE * self.published_rate.0 {
            self.set_published_rate(rate, out);
        }
    }

    /// Publishes a hash rate, unless it is the one that was published last.
    pub(super) fn set_published_rate(&mut self, rate: HashRate, out: &mut Output) {
        if rate != self.published_rate {
            self.published_rate = rate;
            out.events.push(Event::HashRate { channel: self.id, rate });
        }
    }

    /// The merkle root of a job on a standard channel, where nothing is rolled.
    pub(super) fn merkle_root(&self, job: &Job) -> Hash {
        job.merkle_root(self.judge.reserved(), &[])
    }
}

/// The power of two that a share's credited work stands for. The work is rounded to whole hashes, so that its
/// quotient alone would drift from the difficulty that the peer was told.
fn difficulty_of(credited: WorkSum) -> f64 {
    (credited.0 as f64 / Target::DIFFICULTY_1.work().0 as f64).log2().round().exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sv2::{MAX_CHANNELS, MAX_PENDING_OPENS, opening::PendingOpen};

    #[test]
    fn a_peer_that_opens_everything_stays_within_the_stated_memory() {
        const LONGEST_IDENTITY: usize = 255;
        assert!(MAX_CHANNELS * (size_of::<Channel>() + LONGEST_IDENTITY) <= 16 << 20);
        assert!(MAX_PENDING_OPENS * (size_of::<PendingOpen>() + LONGEST_IDENTITY) <= 2 << 20);
    }

    #[test]
    fn sums_are_whole_and_lose_nothing() {
        let mut waiting = Unacknowledged::default();
        let half = Target::from_difficulty_exponent(-1).work();
        let told: Vec<_> = (0..4)
            .map(|number| {
                waiting.add(SequenceNumber(number), half);
                let told = waiting.take(ChannelId(2)).expect("a share waits");
                (told.last_sequence_number.0, told.new_submits_accepted_count, told.new_shares_sum)
            })
            .collect();
        assert_eq!(told, [(0, 1, 0), (1, 1, 1), (2, 1, 0), (3, 1, 1)]);
        assert_eq!(waiting.take(ChannelId(2)), None);
    }

    #[test]
    fn credited_work_is_the_difficulty_that_was_told() {
        for exponent in -32..90 {
            let credited = Target::from_difficulty_exponent(exponent).work();
            assert_eq!(difficulty_of(credited), 2f64.powi(exponent), "2^{exponent}");
        }
    }
}
