//! What must hold of every record, and of all of them together.

use std::collections::HashSet;

use mining_server::{DropReason, Fate, Settings, ShareEvent, ShareUse, Verdict, Work};
use stratum::hash::Hash;
use stratum::{ChannelId, Difficulty, JobNumber, Target};

/// Sums over all shares of a connection.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) judged: u64,
    pub(crate) accepted: u64,
    solutions: HashSet<(JobNumber, Vec<u8>, u32, u32, u32)>,
    hashes: HashSet<Hash>,
}

impl Records {
    /// Takes what was decided over one share while `work` was current.
    pub(crate) fn take(&mut self, settings: &Settings, work: Option<&Work>, share: &ShareEvent) {
        self.judged += 1;
        let record = &share.record;
        if let Verdict::Rejected(_) = record.verdict {
            assert_eq!(record.fate, Fate::Refused);
            assert_eq!(
                (record.credited().0, record.upstream_work.0),
                (0, 0),
                "nothing is credited for nothing"
            );
            return assert!(share.forward.is_none(), "a refused share goes nowhere");
        }
        self.accepted += 1;
        let work = work.expect("no share is accepted without work");
        assert!(record.credited().0 > 0, "an accepted share is worth something");
        let job = record.job.expect("an accepted share has a job");
        let is_block = record.verdict == Verdict::BlockFound;
        let reached = record.difficulty.expect("an accepted share was hashed").0;
        let credited = record.credited().0 as f64 / Target::DIFFICULTY_1.work().0 as f64;
        assert!(reached >= credited * 0.999, "{reached} was credited as {credited}");
        let solution = (job, record.rollable.to_vec(), record.version, record.ntime, record.nonce);
        assert!(self.solutions.insert(solution), "a share was accepted twice");
        self.check_fate(settings, work, share, is_block);
    }

    fn check_fate(&mut self, settings: &Settings, work: &Work, share: &ShareEvent, is_block: bool) {
        let record = &share.record;
        match (settings.share_use, record.fate) {
            (ShareUse::Keep, Fate::Kept) => assert_eq!(share.forward.is_some(), is_block),
            (ShareUse::Forward, Fate::Forwarded) => assert!(work.live && share.forward.is_some()),
            (ShareUse::Forward, Fate::BelowUpstreamTarget) => {
                assert_eq!(record.upstream_work.0, 0);
                assert!(!is_block && share.forward.is_none(), "a block goes out whatever the target");
            }
            (ShareUse::Forward, Fate::Dropped(DropReason::UpstreamLost)) => {
                assert!(!work.live && share.forward.is_none());
            }
            (ShareUse::Forward, Fate::Dropped(DropReason::EpochEnded)) => assert!(share.forward.is_none()),
            (_, fate) => panic!("an accepted share became {fate:?}"),
        }
        if let Some(forward) = &share.forward {
            assert_eq!(forward.epoch, work.epoch, "a share crossed epochs");
            assert!(self.hashes.insert(forward.hash), "a hash was forwarded twice");
            assert_eq!(forward.is_block, is_block);
            assert_eq!(Difficulty::of_hash(&forward.hash), record.difficulty.expect("it was hashed"));
        }
    }
}

/// The channel of an SV1 connection's records.
pub(crate) const SV1_CHANNEL: ChannelId = ChannelId(0);
