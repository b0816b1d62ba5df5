//! One extended channel with an upstream while it is open: what the upstream set for it, its future jobs, and its
//! unanswered shares.
//!
//! This module never publishes work and never sends anything. What an upstream says is checked here before any
//! other module relies on it; each check fails with words for the operator.

use std::collections::VecDeque;
use std::sync::Arc;

use arrayvec::ArrayVec;
use stratum::hash::Hash;
use stratum::job::{EXTRANONCE2_SIZE, MAX_EXTRANONCE_SIZE, MAX_MERKLE_PATH, RESERVED_SIZE};
use stratum::sv2::jobs::ExtendedJob;
use stratum::sv2::messages::OpenExtendedMiningChannelSuccess;
use stratum::{Epoch, Target, UpstreamChannelId, UpstreamJobId};

use crate::pending::Pending;

/// Extranonce bytes that we need of an upstream: ours to tell devices apart, and theirs to roll.
pub const MIN_ROLLABLE_SIZE: usize = RESERVED_SIZE + EXTRANONCE2_SIZE;

/// Future jobs that one channel holds: pools keep one or two (an empty block and a full one). The oldest makes room
/// for a newer one.
pub const MAX_FUTURE_JOBS: usize = 16;

/// The longest coinbase prefix that we take, in bytes. What may precede the extranonce in a valid coinbase has 142
/// bytes at most: the rest is generosity.
pub const MAX_COINBASE_PREFIX: usize = 1024;

/// The longest coinbase suffix that we take, in bytes: about a thousand outputs. All of it is sent to every SV1
/// miner with every job.
pub const MAX_COINBASE_SUFFIX: usize = 32 * 1024;

/// The easiest exponent of `nbits` on any network (regtest's proof-of-work limit is 0x207fffff).
const MAX_NBITS_EXPONENT: u32 = 0x20;

/// An extranonce prefix.
pub(crate) type Prefix = ArrayVec<u8, MAX_EXTRANONCE_SIZE>;

/// A job as a message brought it.
#[derive(Debug)]
pub(crate) struct ReceivedJob {
    pub(crate) id: UpstreamJobId,
    /// `None` for a future job.
    pub(crate) min_ntime: Option<u32>,
    pub(crate) version: u32,
    pub(crate) version_rolling_allowed: bool,
    pub(crate) coinbase_prefix: Arc<[u8]>,
    pub(crate) coinbase_suffix: Arc<[u8]>,
    pub(crate) merkle_path: Arc<[Hash]>,
}

/// The long parts of the job and the tip that came last. An upstream that sends every channel jobs of its own sends them
/// again and again: thousands of devices then share one copy.
#[derive(Debug)]
pub(crate) struct LatestParts {
    coinbase_prefix: Arc<[u8]>,
    coinbase_suffix: Arc<[u8]>,
    merkle_path: Arc<[Hash]>,
    tip: Option<Arc<ChannelTip>>,
}

impl LatestParts {
    pub(crate) fn new() -> Self {
        LatestParts {
            coinbase_prefix: Arc::new([]),
            coinbase_suffix: Arc::new([]),
            merkle_path: Arc::new([]),
            tip: None,
        }
    }

    /// A tip, shared if it came before.
    pub(crate) fn tip(&mut self, tip: ChannelTip) -> Arc<ChannelTip> {
        match &self.tip {
            Some(latest) if **latest == tip => Arc::clone(latest),
            _ => Arc::clone(self.tip.insert(Arc::new(tip))),
        }
    }

    /// The job of a message, sharing what it can.
    pub(crate) fn job(&mut self, message: ExtendedJob<'_>) -> ReceivedJob {
        if *self.coinbase_prefix != *message.coinbase_tx_prefix {
            self.coinbase_prefix = message.coinbase_tx_prefix.into();
        }
        if *self.coinbase_suffix != *message.coinbase_tx_suffix {
            self.coinbase_suffix = message.coinbase_tx_suffix.into();
        }
        if *self.merkle_path != *message.merkle_path {
            self.merkle_path = message.merkle_path.into();
        }
        ReceivedJob {
            id: UpstreamJobId(message.job_id.0),
            min_ntime: message.min_ntime,
            version: message.version,
            version_rolling_allowed: message.version_rolling_allowed,
            coinbase_prefix: Arc::clone(&self.coinbase_prefix),
            coinbase_suffix: Arc::clone(&self.coinbase_suffix),
            merkle_path: Arc::clone(&self.merkle_path),
        }
    }
}

/// A job that waits for its SetNewPrevHash, with the prefix that was current when it came.
#[derive(Debug)]
pub(crate) struct FutureJob {
    pub(crate) job: Arc<ReceivedJob>,
    pub(crate) prefix: Prefix,
}

/// What a SetNewPrevHash said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChannelTip {
    pub(crate) previous_hash: Hash,
    pub(crate) nbits: u32,
    pub(crate) network_target: Target,
}

#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) id: UpstreamChannelId,
    pub(crate) group: UpstreamChannelId,
    pub(crate) epoch: Epoch,
    pub(crate) rollable_size: usize,
    pub(crate) fixed_version: bool,
    /// The prefix of jobs that come from now on.
    pub(crate) prefix: Prefix,
    /// The target of jobs that become active from now on.
    pub(crate) target: Target,
    pub(crate) tip: Option<Arc<ChannelTip>>,
    /// Whether a job of this channel was active yet.
    pub(crate) started: bool,
    pub(crate) pending: Pending,
    /// Shares that the upstream refused since it last acknowledged any.
    pub(crate) refused_in_a_row: u32,
    future: VecDeque<FutureJob>,
}

impl Channel {
    /// The channel that an upstream opened for us. `fixed_version` says that the upstream takes no rolled versions.
    pub(crate) fn open(
        message: &OpenExtendedMiningChannelSuccess,
        epoch: Epoch,
        fixed_version: bool,
    ) -> Result<Self, String> {
        let rollable_size = usize::from(message.extranonce_size);
        check_target(message.target)?;
        Ok(Channel {
            id: UpstreamChannelId(message.channel_id.0),
            group: UpstreamChannelId(message.group_channel_id.0),
            epoch,
            rollable_size,
            fixed_version,
            prefix: check_extranonce(&message.extranonce_prefix, rollable_size)?,
            target: message.target,
            tip: None,
            started: false,
            pending: Pending::new(),
            refused_in_a_row: 0,
            future: VecDeque::new(),
        })
    }

    /// Sets the prefix of the jobs that come from now on (SV2 5.3.10). Jobs that came before keep theirs.
    pub(crate) fn set_prefix(&mut self, prefix: &[u8]) -> Result<(), String> {
        self.prefix = check_extranonce(prefix, self.rollable_size)?;
        Ok(())
    }

    /// Holds a future job until its SetNewPrevHash. A job with the id of an earlier one replaces it.
    pub(crate) fn hold(&mut self, job: Arc<ReceivedJob>) {
        self.future.retain(|held| held.job.id != job.id);
        if self.future.len() == MAX_FUTURE_JOBS {
            self.future.pop_front();
        }
        self.future.push_back(FutureJob { job, prefix: self.prefix.clone() });
    }

    /// Sets the tip. Returns the future job that was made for it; all others are void (SV2 5.3.17).
    pub(crate) fn set_tip(&mut self, tip: Arc<ChannelTip>, job: UpstreamJobId) -> Option<FutureJob> {
        self.tip = Some(tip);
        std::mem::take(&mut self.future).into_iter().rev().find(|held| held.job.id == job)
    }
}

/// Fails when a job cannot be mined on, or is larger than we would send to miners.
pub(crate) fn check_job(job: ExtendedJob<'_>) -> Result<(), String> {
    let too_large = |what: &str, size: usize, limit: usize| {
        Err(format!("the upstream's job has a {what} of {size}, and we take {limit} at most"))
    };
    if job.merkle_path.len() > MAX_MERKLE_PATH {
        return too_large("merkle path", job.merkle_path.len(), MAX_MERKLE_PATH);
    }
    if job.coinbase_tx_prefix.len() > MAX_COINBASE_PREFIX {
        return too_large("coinbase prefix", job.coinbase_tx_prefix.len(), MAX_COINBASE_PREFIX);
    }
    if job.coinbase_tx_suffix.len() > MAX_COINBASE_SUFFIX {
        return too_large("coinbase suffix", job.coinbase_tx_suffix.len(), MAX_COINBASE_SUFFIX);
    }
    Ok(())
}

/// Fails when no network has such a target: a hash could never be told from a block then.
pub(crate) fn check_tip(previous_hash: Hash, nbits: u32) -> Result<ChannelTip, String> {
    let network_target = Target::from_compact(nbits);
    let hardest = Target::from_le_bytes([0; 32]);
    if nbits >> 24 > MAX_NBITS_EXPONENT || network_target == hardest {
        return Err(format!("the upstream's network target {nbits:#010x} is none"));
    }
    Ok(ChannelTip { previous_hash, nbits, network_target })
}

/// Fails for a target that no hash meets: every share would be kept from the upstream, and nobody would notice.
pub(crate) fn check_target(target: Target) -> Result<(), String> {
    if target < Target::HARDEST {
        return Err("the upstream set a target of zero, which no share can meet".to_owned());
    }
    Ok(())
}

fn check_extranonce(prefix: &[u8], rollable_size: usize) -> Result<Prefix, String> {
    let size = prefix.len() + rollable_size;
    if rollable_size < MIN_ROLLABLE_SIZE || size > MAX_EXTRANONCE_SIZE {
        return Err(format!(
            "the upstream leaves {rollable_size} extranonce bytes after a prefix of {}: we need at least \
             {MIN_ROLLABLE_SIZE}, and at most {MAX_EXTRANONCE_SIZE} with the prefix",
            prefix.len()
        ));
    }
    Ok(prefix.iter().copied().collect())
}
