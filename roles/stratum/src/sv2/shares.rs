//! The two messages that go by once for every share, written and read without a copy on the heap.
//!
//! Every other message goes through the wire crates. These layouts are the same to the byte, which tests hold them to;
//! what is not exactly the message, fields of extensions among it, is left to the wire crates. Nothing here judges a
//! share.

use super::codec::EncodeError;
use super::frame::{FrameHeader, HEADER_SIZE};
use super::messages::{MAX_WORKER_IDENTITY, SubmitSharesSuccess, WORKER_IDENTITY_FIELD};
use super::{codes, tlv};
use crate::job::MAX_EXTRANONCE_SIZE;
use crate::{ChannelId, JobId, SequenceNumber};

/// Bytes of `SubmitSharesExtended` before its extranonce: six numbers, and the extranonce's length.
const FIXED_SIZE: usize = 6 * 4 + 1;

/// Bytes of `SubmitShares.Success`.
const SUCCESS_SIZE: usize = 3 * 4 + 8;

/// A share of an extended channel on its way up: `SubmitSharesExtended` (SV2 5.3.12) with a borrowed extranonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedShare<'a> {
    /// The channel.
    pub channel_id: ChannelId,
    /// The submission within its channel.
    pub sequence_number: SequenceNumber,
    /// The job.
    pub job_id: JobId,
    /// The header's nonce.
    pub nonce: u32,
    /// The header's time.
    pub ntime: u32,
    /// The header's version.
    pub version: u32,
    /// The bytes that were rolled, at most [`MAX_EXTRANONCE_SIZE`].
    pub extranonce: &'a [u8],
    /// The worker's name by extension 2, at most [`MAX_WORKER_IDENTITY`] bytes; empty to send none, which is right
    /// unless that extension was negotiated.
    pub worker_name: &'a str,
}

impl ExtendedShare<'_> {
    /// Appends the share to `out` as a frame. Fails, with `out` as it was, when the extranonce or the name
    /// is too long.
    pub fn encode_frame(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (length, limit) = (self.extranonce.len(), MAX_EXTRANONCE_SIZE);
        if length > limit {
            return Err(EncodeError { message: "SubmitSharesExtended", field: "extranonce", length, limit });
        }
        let name = self.worker_name.as_bytes();
        if name.len() > MAX_WORKER_IDENTITY {
            let (length, limit) = (name.len(), MAX_WORKER_IDENTITY);
            return Err(EncodeError {
                message: "SubmitSharesExtended",
                field: "user_identity",
                length,
                limit,
            });
        }
        let name_length = if name.is_empty() { 0 } else { tlv::TLV_HEADER_SIZE + name.len() };
        let header = FrameHeader {
            extension_type: 0,
            channel_msg: true,
            message_type: 0x1b,
            payload_length: (FIXED_SIZE + length + name_length) as u32,
        };
        let numbers =
            [self.channel_id.0, self.sequence_number.0, self.job_id.0, self.nonce, self.ntime, self.version];
        let mut fixed = [0; HEADER_SIZE + FIXED_SIZE];
        fixed[..HEADER_SIZE].copy_from_slice(&header.to_bytes());
        let (words, _) = fixed[HEADER_SIZE..].as_chunks_mut::<4>();
        for (word, number) in words.iter_mut().zip(numbers) {
            *word = number.to_le_bytes();
        }
        fixed[HEADER_SIZE + FIXED_SIZE - 1] = length as u8;
        out.reserve(fixed.len() + length + name_length);
        out.extend_from_slice(&fixed);
        out.extend_from_slice(self.extranonce);
        if !name.is_empty() {
            tlv::append(out, codes::WORKER_HASHRATE_TRACKING, WORKER_IDENTITY_FIELD, name);
        }
        Ok(())
    }
}

/// The acknowledgement that a frame is; `None` for every other message, and where fields of extensions follow.
pub(super) fn success(header: FrameHeader, payload: &[u8]) -> Option<SubmitSharesSuccess> {
    if (header.extension_type, header.message_type) != (0, 0x1c) {
        return None;
    }
    let payload: &[u8; SUCCESS_SIZE] = payload.try_into().ok()?;
    let (words, _) = payload.as_chunks::<4>();
    let number = |index: usize| u32::from_le_bytes(words[index]);
    Some(SubmitSharesSuccess {
        channel_id: ChannelId(number(0)),
        last_sequence_number: SequenceNumber(number(1)),
        new_submits_accepted_count: number(2),
        new_shares_sum: u64::from(number(4)) << 32 | u64::from(number(3)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::messages::{Message, SubmitSharesExtended};
    use super::*;

    fn by_the_wire_crates(share: &ExtendedShare<'_>) -> Vec<u8> {
        let message = SubmitSharesExtended {
            channel_id: share.channel_id,
            sequence_number: share.sequence_number,
            job_id: share.job_id,
            nonce: share.nonce,
            ntime: share.ntime,
            version: share.version,
            extranonce: share.extranonce.to_vec(),
            user_identity: (!share.worker_name.is_empty()).then(|| share.worker_name.to_owned()),
        };
        let mut out = b"kept".to_vec();
        Message::from(message).encode_frame(&mut out).expect("it fits");
        out
    }

    /// The bytes as SV2 5.3.12 has them, written down by hand.
    #[test]
    fn a_share_is_laid_out_as_specified() {
        let share = ExtendedShare {
            channel_id: ChannelId(0x0403_0201),
            sequence_number: SequenceNumber(5),
            job_id: JobId(6),
            nonce: 0x0a09_0807,
            ntime: 0x0e0d_0c0b,
            version: 0x2000_e000,
            extranonce: &[0xf1, 0xf2, 0xf3],
            worker_name: "",
        };
        let mut out = Vec::new();
        share.encode_frame(&mut out).expect("it fits");
        let expected = concat!(
            "0080", "1b", "1c0000", "01020304", "05000000", "06000000", "0708090a", "0b0c0d0e", "00e00020",
            "03f1f2f3"
        );
        assert_eq!(hex::encode(&out), expected);
    }

    #[test]
    fn a_longer_extranonce_than_the_field_holds_is_refused() {
        let share = ExtendedShare {
            channel_id: ChannelId(1),
            sequence_number: SequenceNumber(1),
            job_id: JobId(1),
            nonce: 0,
            ntime: 0,
            version: 0,
            extranonce: &[0; MAX_EXTRANONCE_SIZE + 1],
            worker_name: "",
        };
        let mut out = b"kept".to_vec();
        let error = share.encode_frame(&mut out).expect_err("too long");
        assert_eq!(error.to_string(), "SubmitSharesExtended.extranonce is 33 long, and the field holds 32");
        assert_eq!(out, b"kept");
        let name = "w".repeat(MAX_WORKER_IDENTITY + 1);
        let share = ExtendedShare { extranonce: &[], worker_name: &name, ..share };
        assert_eq!(share.encode_frame(&mut out).expect_err("too long").field, "user_identity");
        assert_eq!(out, b"kept");
    }

    proptest! {
        #[test]
        fn every_share_is_written_as_the_wire_crates_write_it(
            numbers in any::<[u32; 6]>(),
            extranonce in prop::collection::vec(any::<u8>(), 0..=MAX_EXTRANONCE_SIZE),
            worker_name in "[ -~]{0,32}",
        ) {
            let [channel, sequence_number, job, nonce, ntime, version] = numbers;
            let share = ExtendedShare {
                channel_id: ChannelId(channel),
                sequence_number: SequenceNumber(sequence_number),
                job_id: JobId(job),
                nonce,
                ntime,
                version,
                extranonce: &extranonce,
                worker_name: &worker_name,
            };
            let mut out = b"kept".to_vec();
            share.encode_frame(&mut out).expect("it fits");
            prop_assert_eq!(out, by_the_wire_crates(&share));
        }

        #[test]
        fn every_acknowledgement_is_read_as_the_wire_crates_read_it(
            payload in prop::collection::vec(any::<u8>(), 0..24),
            message_type in prop_oneof![9 => Just(0x1c_u8), 1 => any::<u8>()],
            extension_type in prop_oneof![9 => Just(0_u16), 1 => 0_u16..4],
            channel_msg in any::<bool>(),
        ) {
            let payload_length = payload.len() as u32;
            let header = FrameHeader { extension_type, channel_msg, message_type, payload_length };
            let expected = Message::decode_any(header, &payload);
            match success(header, &payload) {
                Some(read) => prop_assert_eq!(expected, Ok(Message::from(read))),
                None => prop_assert!(
                    !matches!(expected, Ok(Message::SubmitSharesSuccess(_))) || payload.len() != SUCCESS_SIZE
                ),
            }
            prop_assert_eq!(Message::decode(header, &payload), Message::decode_any(header, &payload));
        }
    }
}
