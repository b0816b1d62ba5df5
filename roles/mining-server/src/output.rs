//! What a connection hands back to the program that drives it.

use std::fmt;

use arrayvec::ArrayVec;
use stratum::extranonce::Exhausted;
use stratum::hash::Hash;
use stratum::job::{JobOrigin, MAX_EXTRANONCE_SIZE, RESERVED_SIZE};
use stratum::{ChannelId, ConnectionId, DeviceId, Epoch, HashRate, JobNumber};

use crate::record::ShareRecord;

/// Collects what one or more calls into a connection produced. The driver handles the events first and writes
/// the bytes after them, so that a block is on its way before its miner hears of it.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes for the peer: SV1 lines, or plain SV2 frames that the driver encrypts.
    pub bytes: Vec<u8>,
    /// What others must know or do, oldest first.
    pub events: Vec<Event>,
    /// Set when the connection must be closed once the bytes are written. No further call may follow.
    pub close: Option<CloseReason>,
}

/// What others must know or do.
#[derive(Debug)]
pub enum Event {
    /// A share was judged.
    Share(Box<ShareEvent>),
    /// A device is ready to mine and needs an upstream channel of its own (only with a channel per device).
    /// The driver answers with work for this channel, when there is any.
    OpenUpstream {
        /// The downstream channel that the work is for.
        channel: ChannelId,
        /// The worker name.
        user_identity: String,
        /// What the device says it hashes, or our guess.
        hash_rate: HashRate,
    },
    /// The device of this channel is gone (only with a channel per device).
    CloseUpstream {
        /// The downstream channel.
        channel: ChannelId,
    },
    /// Our estimate of a device's hash rate changed; the upstream's channel is kept current with it.
    HashRate {
        /// The downstream channel.
        channel: ChannelId,
        /// The estimate.
        rate: HashRate,
    },
    /// This connection cannot remember more shares of the jobs that it has: it needs a new job.
    NewJobWanted {
        /// The downstream channel.
        channel: ChannelId,
    },
    /// What an SV1 miner may do with the version bits changed. Until the first one it rolls nothing.
    VersionRolling(VersionRolling),
    /// An SV1 miner was seen rolling version bits outside its mask. Said once for each connection.
    RolledOutsideMask,
    /// Something that the operator should see once, at the log level of information.
    Notice(String),
}

/// What an SV1 miner may do with the version bits (BIP 310).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionRolling {
    /// It did not ask to roll any, or only such that nobody may roll.
    #[default]
    NotNegotiated,
    /// It was told the mask that it negotiated.
    Granted,
    /// It negotiated a mask and was told an empty one, because the job that it has or is about to get forbids
    /// rolling. Many ASICs mine slower then, or leave.
    Withheld,
}

/// A verdict, and the share itself where it is to be passed on.
#[derive(Debug)]
pub struct ShareEvent {
    /// The record; whoever decides the share's fate completes it and passes it to the ledger.
    pub record: ShareRecord,
    /// Set when the share goes upstream, or is a block and goes to our node.
    pub forward: Option<ForwardShare>,
}

/// A share on its way to the upstream or the node.
#[derive(Clone, Debug)]
pub struct ForwardShare {
    /// The life of the upstream channel that its job belongs to.
    pub epoch: Epoch,
    /// Where its job came from.
    pub origin: JobOrigin,
    /// Our number of its job.
    pub job: JobNumber,
    /// Who submitted it.
    pub connection: ConnectionId,
    /// On which of its channels.
    pub channel: ChannelId,
    /// The header's version.
    pub version: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's nonce.
    pub nonce: u32,
    /// The part of the extranonce between the job's coinbase prefix and suffix.
    pub rollable: ArrayVec<u8, MAX_EXTRANONCE_SIZE>,
    /// The block hash, in internal byte order.
    pub hash: Hash,
    /// Whether it meets the network's target.
    pub is_block: bool,
}

/// What connections share: who is who, and who holds which extranonce. Asked when a connection or channel opens,
/// never for a share.
pub trait Registry {
    /// The device that mines under this worker name.
    fn device(&mut self, worker_name: &str) -> DeviceId;

    /// A reserved extranonce value that no other live downstream holds.
    fn take_reserved(&mut self) -> Result<[u8; RESERVED_SIZE], Exhausted>;

    /// Gives back a value that [`Registry::take_reserved`] handed out.
    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]);
}

/// Whose fault an ending is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer on the miner's side.
    Downstream,
    /// The pool's side.
    Upstream,
    /// Ours, or the operator's choice.
    Ours,
    /// Nobody's: miners come and go, and networks fail.
    Nobody,
}

/// Why a connection ends. Says enough to be logged as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// Whose fault.
    pub fault: Fault,
    /// What happened, in words.
    pub what: String,
}

impl CloseReason {
    /// The peer did something that no miner does.
    pub fn downstream(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Downstream, what: what.into() }
    }

    /// The peer or the network ended it, as they may.
    pub fn gone(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Nobody, what: what.into() }
    }

    /// The upstream leaves us nothing else.
    pub fn upstream(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Upstream, what: what.into() }
    }

    /// Our own limits or wishes.
    pub fn ours(what: impl Into<String>) -> Self {
        CloseReason { fault: Fault::Ours, what: what.into() }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
