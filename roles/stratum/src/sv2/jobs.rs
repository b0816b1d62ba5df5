//! The two messages that come with every new block for every channel, read without a copy on the heap.
//!
//! An upstream that sends each of thousands of channels jobs of its own sends the same coinbase and merkle path each
//! time: whoever has them already need not copy them. What is not exactly the message, fields of extensions among it,
//! is left to the wire crates, whose layouts these are to the byte; tests hold them to it.

use super::frame::FrameHeader;
use super::messages::{NewExtendedMiningJob, SetNewPrevHash};
use crate::hash::Hash;
use crate::{ChannelId, JobId};

/// `NewExtendedMiningJob` (SV2 5.3.16) with everything long borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedJob<'a> {
    /// An extended channel or a group.
    pub channel_id: ChannelId,
    /// The job, for shares.
    pub job_id: JobId,
    /// The lowest time that a share may carry; none for a future job.
    pub min_ntime: Option<u32>,
    /// The block's version.
    pub version: u32,
    /// Whether the version bits of BIP 323 may be rolled.
    pub version_rolling_allowed: bool,
    /// Siblings of the coinbase on the way to the merkle root, lowest first; at most 255.
    pub merkle_path: &'a [Hash],
    /// The coinbase without witness data, up to the extranonce; at most 65,535 bytes.
    pub coinbase_tx_prefix: &'a [u8],
    /// The coinbase without witness data, after the extranonce; at most 65,535 bytes.
    pub coinbase_tx_suffix: &'a [u8],
}

impl<'a> ExtendedJob<'a> {
    /// The job that a frame is; `None` for every other message, for one that is malformed, and where fields of
    /// extensions follow.
    pub fn read(header: FrameHeader, payload: &'a [u8]) -> Option<Self> {
        if (header.extension_type, header.message_type) != (0, 0x1f) {
            return None;
        }
        let mut rest = payload;
        let channel_id = ChannelId(number(&mut rest)?);
        let job_id = JobId(number(&mut rest)?);
        let min_ntime = if flag(&mut rest)? { Some(number(&mut rest)?) } else { None };
        let version = number(&mut rest)?;
        let version_rolling_allowed = flag(&mut rest)?;
        let siblings = usize::from(*take(&mut rest, 1)?.first()?);
        let (merkle_path, _) = take(&mut rest, 32 * siblings)?.as_chunks::<32>();
        let coinbase_tx_prefix = bytes(&mut rest)?;
        let coinbase_tx_suffix = bytes(&mut rest)?;
        rest.is_empty().then_some(ExtendedJob {
            channel_id,
            job_id,
            min_ntime,
            version,
            version_rolling_allowed,
            merkle_path,
            coinbase_tx_prefix,
            coinbase_tx_suffix,
        })
    }
}

impl<'a> From<&'a NewExtendedMiningJob> for ExtendedJob<'a> {
    fn from(message: &'a NewExtendedMiningJob) -> Self {
        ExtendedJob {
            channel_id: message.channel_id,
            job_id: message.job_id,
            min_ntime: message.min_ntime,
            version: message.version,
            version_rolling_allowed: message.version_rolling_allowed,
            merkle_path: &message.merkle_path,
            coinbase_tx_prefix: &message.coinbase_tx_prefix,
            coinbase_tx_suffix: &message.coinbase_tx_suffix,
        }
    }
}

/// The tip that a frame is; `None` for every other message, and where fields of extensions follow.
pub(super) fn new_prev_hash(header: FrameHeader, payload: &[u8]) -> Option<SetNewPrevHash> {
    if (header.extension_type, header.message_type) != (0, 0x20) {
        return None;
    }
    let mut rest = payload;
    let message = SetNewPrevHash {
        channel_id: ChannelId(number(&mut rest)?),
        job_id: JobId(number(&mut rest)?),
        prev_hash: take(&mut rest, 32)?.try_into().ok()?,
        min_ntime: number(&mut rest)?,
        nbits: number(&mut rest)?,
    };
    rest.is_empty().then_some(message)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    take(rest, 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// A `BOOL`, or the count of an `OPTION`. Other values are the wire crates' to judge.
fn flag(rest: &mut &[u8]) -> Option<bool> {
    match take(rest, 1)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

/// A `B0_64K`.
fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(rest, 2)?.try_into().ok().map(u16::from_le_bytes)?;
    take(rest, usize::from(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Message;
    use super::*;

    fn header(message_type: u8, payload: &[u8]) -> FrameHeader {
        FrameHeader {
            extension_type: 0,
            channel_msg: true,
            message_type,
            payload_length: payload.len() as u32,
        }
    }

    /// What is read must be what the wire crates read, and what is not read must be left to them.
    fn check(payload: &[u8]) -> Result<(), TestCaseError> {
        let job = header(0x1f, payload);
        if let Some(read) = ExtendedJob::read(job, payload) {
            let expected = Message::decode_any(job, payload);
            let Ok(Message::NewExtendedMiningJob(expected)) = expected else {
                return Err(TestCaseError::fail(format!("{read:?} where {expected:?} was read")));
            };
            prop_assert_eq!(read, ExtendedJob::from(&expected));
        }
        let tip = header(0x20, payload);
        if let Some(read) = new_prev_hash(tip, payload) {
            prop_assert_eq!(Message::decode_any(tip, payload), Ok(Message::from(read)));
        }
        Ok(())
    }

    fn payload_of(message: Message) -> Vec<u8> {
        let mut frame = Vec::new();
        message.encode_frame(&mut frame).expect("it fits");
        frame.split_off(super::super::frame::HEADER_SIZE)
    }

    proptest! {
        #[test]
        fn jobs_and_tips_are_read_as_the_wire_crates_read_them(
            numbers in any::<[u32; 5]>(),
            min_ntime in any::<Option<u32>>(),
            version_rolling_allowed in any::<bool>(),
            merkle_path in prop::collection::vec(any::<[u8; 32]>(), 0..14),
            prefix in prop::collection::vec(any::<u8>(), 0..300),
            suffix in prop::collection::vec(any::<u8>(), 0..300),
            change in any::<(prop::sample::Index, u8)>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let [channel, job, version, ntime, nbits] = numbers;
            let (channel_id, job_id) = (ChannelId(channel), JobId(job));
            let job = NewExtendedMiningJob {
                channel_id,
                job_id,
                min_ntime,
                version,
                version_rolling_allowed,
                merkle_path,
                coinbase_tx_prefix: prefix,
                coinbase_tx_suffix: suffix,
            };
            let mut payload = payload_of(job.clone().into());
            prop_assert_eq!(ExtendedJob::read(header(0x1f, &payload), &payload), Some((&job).into()));
            check(&payload[..cut.index(payload.len())])?;
            let place = change.0.index(payload.len());
            payload[place] = change.1;
            check(&payload)?;
            let tip = SetNewPrevHash { channel_id, job_id, prev_hash: [7; 32], min_ntime: ntime, nbits };
            let payload = payload_of(tip.clone().into());
            prop_assert_eq!(new_prev_hash(header(0x20, &payload), &payload), Some(tip));
            check(&payload[..cut.index(payload.len())])?;
        }

        #[test]
        fn arbitrary_bytes_are_read_as_the_wire_crates_read_them(
            payload in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..120),
        ) {
            check(&payload)?;
        }
    }
}
