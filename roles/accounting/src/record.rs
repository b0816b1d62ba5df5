//! What is written down of every share: one fixed-size record a verdict, and later ones for what became of those that
//! had to wait, and for what the upstream said.
//!
//! Records are only made here, never summed: that is the ledger's part.

use arrayvec::ArrayVec;
use stratum::job::MAX_EXTRANONCE_SIZE;
use stratum::{
    ChannelId, ConnectionId, DeviceId, Difficulty, JobNumber, Now, SequenceNumber, UpstreamChannelId,
    UpstreamId, Work,
};

/// Our decision over one share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It met the target that it was judged by.
    Accepted,
    /// It met the network's target too.
    BlockFound,
    /// It was refused.
    Rejected(RejectReason),
}

/// Why a share was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    /// Its job builds on an older tip, or belongs to an earlier life of the upstream channel.
    Stale,
    /// We never sent its job on this connection, or it is too old to be kept.
    JobNotFound,
    /// The same share came before.
    Duplicate,
    /// Its hash misses the target.
    LowDifficulty,
    /// It rolled version bits that it must not roll.
    BadVersionBits,
    /// Its time is below the job's minimum or more than two hours ahead.
    BadNtime,
    /// Its extranonce has the wrong length.
    BadExtranonce,
    /// It could not be read.
    Malformed,
    /// Its connection has not authorised.
    Unauthorised,
    /// Its connection has not subscribed, or its channel does not exist.
    NotSubscribed,
}

impl RejectReason {
    /// All reasons, for those who count by them.
    pub const ALL: [RejectReason; 10] = [
        RejectReason::Stale,
        RejectReason::JobNotFound,
        RejectReason::Duplicate,
        RejectReason::LowDifficulty,
        RejectReason::BadVersionBits,
        RejectReason::BadNtime,
        RejectReason::BadExtranonce,
        RejectReason::Malformed,
        RejectReason::Unauthorised,
        RejectReason::NotSubscribed,
    ];

    /// The name in metrics and summaries.
    pub const fn name(self) -> &'static str {
        match self {
            RejectReason::Stale => "stale",
            RejectReason::JobNotFound => "job_not_found",
            RejectReason::Duplicate => "duplicate",
            RejectReason::LowDifficulty => "low_difficulty",
            RejectReason::BadVersionBits => "bad_version_bits",
            RejectReason::BadNtime => "bad_ntime",
            RejectReason::BadExtranonce => "bad_extranonce",
            RejectReason::Malformed => "malformed",
            RejectReason::Unauthorised => "unauthorised",
            RejectReason::NotSubscribed => "not_subscribed",
        }
    }
}

/// What became of a share on our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It was refused, so there was nothing to pass on.
    Refused,
    /// Accepted at the device's difficulty, but worth nothing at the upstream's target.
    BelowUpstreamTarget,
    /// Sent upstream.
    Forwarded,
    /// Accepted and worth forwarding, but not sent.
    Dropped(DropReason),
    /// Accepted, and we are the pool.
    Kept,
    /// Accepted and worth forwarding, but the upstream has no number for its job yet: it waits for the answer to
    /// `SetCustomMiningJob` (SV2 5.3.19). What becomes of it then is a [`HeldRelease`].
    Held(HoldNumber),
}

/// Counts the shares that had to wait for their job, for one upstream and one life of the process, from 1. Wraps: far
/// fewer wait at a time. Two single bytes, so that a share's record is no larger for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldNumber([u8; 2]);

impl HoldNumber {
    /// This number.
    pub const fn new(number: u16) -> Self {
        HoldNumber(number.to_be_bytes())
    }

    /// The number itself.
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// The number of the share after this one.
    pub const fn next(self) -> Self {
        HoldNumber::new(self.get().wrapping_add(1))
    }
}

/// Why a share that was worth forwarding was not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The upstream was away.
    UpstreamLost,
    /// The upstream's channel was opened anew while the share was on its way.
    EpochEnded,
    /// The upstream took shares more slowly than they came, and its queue was full.
    QueueFull,
    /// It waited for its job, and our own process ended before that was known.
    ProcessEnded,
}

impl DropReason {
    /// All reasons, for those who count by them.
    pub const ALL: [DropReason; 4] =
        [DropReason::UpstreamLost, DropReason::EpochEnded, DropReason::QueueFull, DropReason::ProcessEnded];

    /// The name in metrics and summaries.
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::UpstreamLost => "upstream_lost",
            DropReason::EpochEnded => "epoch_ended",
            DropReason::QueueFull => "queue_full",
            DropReason::ProcessEnded => "process_ended",
        }
    }
}

/// One share and what we decided. Has a fixed size and owns nothing on the heap.
#[derive(Clone, Debug, PartialEq)]
pub struct ShareRecord {
    /// When the share was judged.
    pub judged: Now,
    /// Who hashed it; `None` when its connection had not authorised.
    pub device: Option<DeviceId>,
    /// The connection that it came in on.
    pub connection: ConnectionId,
    /// The downstream channel; 0 on SV1 connections.
    pub channel: ChannelId,
    /// The upstream whose job it solves, where the job is known.
    pub upstream: Option<UpstreamId>,
    /// The upstream's channel, where the job is known.
    pub upstream_channel: Option<UpstreamChannelId>,
    /// Our number of its job, where the job is known.
    pub job: Option<JobNumber>,
    /// What we decided.
    pub verdict: Verdict,
    /// What became of it.
    pub fate: Fate,
    /// Its number on the upstream's channel, once forwarded.
    pub sequence_number: Option<SequenceNumber>,
    /// What the device claims with it: what it was credited, or would have been if the share had been good. 0 where
    /// that is unknown, because the share could not be read or its sender had no difficulty yet.
    pub submitted: Work,
    /// What the share is worth to the upstream: the work of the upstream's target if it meets that, else 0.
    pub upstream_work: Work,
    /// The difficulty that its hash reached; `None` when it was not hashed.
    pub difficulty: Option<Difficulty>,
    /// Time between its job reaching us and the share, in milliseconds; 0 when the job is not known.
    pub job_age_ms: u32,
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The part of the extranonce between the job's coinbase prefix and suffix.
    pub rollable: ArrayVec<u8, MAX_EXTRANONCE_SIZE>,
}

impl ShareRecord {
    /// What the device is credited: the work of the target that the share was judged by. 0 when refused.
    pub fn credited(&self) -> Work {
        if matches!(self.verdict, Verdict::Rejected(_)) { Work(0) } else { self.submitted }
    }
}

/// What became of a share that was held: a record of its own, because it comes later. It says by itself whom it counts
/// for, so that sums need no look at the share.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldRelease {
    /// When it was known.
    pub released: Now,
    /// Who hashed the share.
    pub device: Option<DeviceId>,
    /// The upstream that it waited for.
    pub upstream: UpstreamId,
    /// The upstream's channel.
    pub upstream_channel: UpstreamChannelId,
    /// The share's number among those that were held for this upstream.
    pub number: HoldNumber,
    /// What became of it.
    pub fate: ReleaseFate,
    /// What the share was worth at the upstream's target when it was held, as its record says.
    pub held_work: Work,
    /// What it is worth to the upstream now: a target that came while it waited may be for its job, too. Never more than
    /// when it was held, so that the sums hold; 0 when it is below the target.
    pub work: Work,
}

/// What becomes of a share that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseFate {
    /// Sent upstream, with this number on the upstream's channel.
    Forwarded(SequenceNumber),
    /// Not sent.
    Dropped(DropReason),
    /// Not worth sending: the upstream's target had become harder when it took the job.
    BelowUpstreamTarget,
}

impl ReleaseFate {
    /// The fate of the share from then on.
    pub fn of_share(self) -> Fate {
        match self {
            ReleaseFate::Forwarded(_) => Fate::Forwarded,
            ReleaseFate::Dropped(reason) => Fate::Dropped(reason),
            ReleaseFate::BelowUpstreamTarget => Fate::BelowUpstreamTarget,
        }
    }

    /// Its number on the upstream's channel, once forwarded.
    pub fn sequence_number(self) -> Option<SequenceNumber> {
        match self {
            ReleaseFate::Forwarded(number) => Some(number),
            ReleaseFate::Dropped(_) | ReleaseFate::BelowUpstreamTarget => None,
        }
    }
}

/// What an upstream said of shares that were forwarded to it: a record of its own, because it comes later.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamAnswer {
    /// When the answer came.
    pub received: Now,
    /// Whose answer.
    pub upstream: UpstreamId,
    /// On which of its channels.
    pub channel: UpstreamChannelId,
    /// What it said.
    pub verdict: UpstreamVerdict,
}

/// Why a forwarded share has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossReason {
    /// The upstream never answered, and room was needed for another share.
    NeverAnswered,
    /// The connection or channel ended first.
    ConnectionEnded,
    /// We went over to another upstream.
    Failover,
    /// Our own process ended before the answer came.
    ProcessEnded,
}

impl LossReason {
    /// All reasons, for those who count by them.
    pub const ALL: [LossReason; 4] = [
        LossReason::NeverAnswered,
        LossReason::ConnectionEnded,
        LossReason::Failover,
        LossReason::ProcessEnded,
    ];

    /// The name in metrics and summaries.
    pub const fn name(self) -> &'static str {
        match self {
            LossReason::NeverAnswered => "never_answered",
            LossReason::ConnectionEnded => "connection_ended",
            LossReason::Failover => "failover",
            LossReason::ProcessEnded => "process_ended",
        }
    }
}

/// The two answers that SV2 has for shares, and what stands for none.
#[derive(Clone, Debug, PartialEq)]
pub enum UpstreamVerdict {
    /// SubmitShares.Success: every share up to and with `last` that waited for an answer is acknowledged.
    Acknowledged {
        /// The last sequence number that the answer covers.
        last: SequenceNumber,
        /// How many shares waited for it: what counts.
        count: u32,
        /// How many shares it says it took. Equals `count` unless the upstream miscounts.
        claimed: u32,
        /// The sum of their difficulties, as the upstream counts it.
        shares_sum: u64,
        /// What they are worth at the upstream's target, as we count it.
        work: Work,
    },
    /// SubmitShares.Error for one share.
    Rejected {
        /// The share's sequence number.
        sequence_number: SequenceNumber,
        /// The upstream's error code.
        code: String,
        /// What the share is worth at the upstream's target.
        work: Work,
    },
    /// No answer will come for `count` shares.
    Lost {
        /// The last sequence number among them.
        last: SequenceNumber,
        /// How many shares were not answered.
        count: u32,
        /// Why not.
        reason: LossReason,
        /// What they are worth at the upstream's target.
        work: Work,
    },
}
