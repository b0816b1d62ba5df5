//! What a connection hands back to the program that drives it.

use accounting::{Introduction, ShareRecord};
use stratum::extranonce::Exhausted;
use stratum::hash::Hash;
use stratum::job::{JobOrigin, RESERVED_SIZE};
use stratum::sv2::messages::SetCustomMiningJob;
use stratum::{ChannelId, DeviceId, Epoch, HashRate, Now};

pub use stratum::{CloseReason, Fault};

/// Collects what one or more calls into a connection produced. The driver passes the shares on first, handles the
/// events, and writes the bytes after both, so that a block is on its way before its miner hears of it.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes for the peer: SV1 lines, or plain SV2 frames that the driver encrypts.
    pub bytes: Vec<u8>,
    /// The shares that were judged, oldest first. Apart from the events because there are so many more of them: they
    /// are kept by value, in memory that the driver empties and uses again.
    pub shares: Vec<ShareEvent>,
    /// What others must know or do, oldest first.
    pub events: Vec<Event>,
    /// The custom jobs that the owner of the work is asked for, oldest first. Each is answered once; only connections
    /// that take custom jobs ask.
    pub custom_jobs: Vec<CustomJobRequest>,
    /// Set when the connection must be closed once the bytes are written. No further call may follow.
    pub close: Option<CloseReason>,
}

/// A `SetCustomMiningJob` with what its owner must know of the channel.
#[derive(Debug)]
pub struct CustomJobRequest {
    /// The user identity of the channel; of a group, that of its first extended channel.
    pub user_identity: String,
    /// Bytes of the channel's extranonce, reserved and rolled ones together. The job's `rollable_size`.
    pub extranonce_size: usize,
    /// What the peer sent.
    pub message: SetCustomMiningJob,
}

/// What others must know or do.
#[derive(Debug)]
pub enum Event {
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

/// What the upstream or the node must know of a share beyond its record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForwardShare {
    /// The life of the upstream channel that its job belongs to.
    pub epoch: Epoch,
    /// Where its job came from.
    pub origin: JobOrigin,
    /// The block hash, in internal byte order.
    pub hash: Hash,
    /// Whether it meets the network's target.
    pub is_block: bool,
}

/// What connections share: who is who, and who holds which extranonce. Asked when a connection or channel opens or
/// closes, never for a share.
pub trait Registry {
    /// The device that a machine is which begins to mine on this channel. The address in `introduction` is what only the
    /// connection itself can know, that of a PROXY header.
    fn join(&mut self, channel: ChannelId, introduction: &Introduction<'_>) -> DeviceId;

    /// A share of a device on this channel was accepted; said from time to time. Returns the device that later ones
    /// are of: another one where two machines were taken for one. Takes no lock unless that is in question.
    fn note_share(&mut self, channel: ChannelId, device: DeviceId, now: Now) -> DeviceId;

    /// A device no longer mines on this channel.
    fn leave(&mut self, channel: ChannelId, device: DeviceId);

    /// A reserved extranonce value that no other live downstream holds.
    fn take_reserved(&mut self) -> Result<[u8; RESERVED_SIZE], Exhausted>;

    /// Gives back a value that [`Registry::take_reserved`] handed out.
    fn give_back_reserved(&mut self, reserved: [u8; RESERVED_SIZE]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a share event at most: it is moved from the judge through an output and two queues to the ledger, so
    /// that every byte is copied several times a share, and a full queue of 8192 shares must stay near two megabytes.
    const MOST_SHARE_EVENT_BYTES: usize = 272;

    #[test]
    fn a_share_event_is_small_enough_to_be_moved() {
        let size = size_of::<ShareEvent>();
        assert!(size <= MOST_SHARE_EVENT_BYTES, "a share event has {size} bytes");
    }
}
