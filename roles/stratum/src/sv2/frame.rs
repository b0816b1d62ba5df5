//! The six bytes before every message (SV2 3.2), and how long a message may be.
//!
//! This module never reads a payload.

/// Bytes of a frame header.
pub const HEADER_SIZE: usize = 6;

/// The bit of the extension type that says that the payload starts with a channel id (SV2 3.2.1).
const CHANNEL_MSG_BIT: u16 = 1 << 15;

/// The longest payload that a header can announce: its length has 24 bits.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;

/// The longest payload that we accept from a miner. The longest message that it has reason to send is
/// `SetupConnection` with five strings of 255 bytes, 1,291 bytes; the rest is room for extension fields.
pub const MAX_PAYLOAD_FROM_MINER: usize = 2 * 1024;

/// The longest payload that we accept from a downstream that declared work selection: `SetCustomMiningJob` with
/// the most coinbase outputs and merkle path that its fields hold takes 74,274 bytes.
pub const MAX_PAYLOAD_FROM_JOB_DECLARER: usize = 80 * 1024;

/// The longest payload that we accept from an upstream: `NewExtendedMiningJob` with the longest coinbase and merkle
/// path that its fields hold takes 139,253 bytes; the rest is room for extension fields. A `SetGroupChannel` for
/// more than 40,000 channels does not fit, and no upstream of ours is asked for that many.
pub const MAX_PAYLOAD_FROM_UPSTREAM: usize = 160 * 1024;

/// The longest payload that a job declaration server accepts while it waits for no transactions: `DeclareMiningJob`
/// with full byte strings and the 16,666 transactions that fit in a block takes 730,189 bytes. A longer list of
/// transactions is of no block.
pub const MAX_PAYLOAD_FROM_DECLARING_CLIENT: usize = 768 * 1024;

/// The longest payload that is accepted where transactions were asked for
/// (`ProvideMissingTransactions.Success`, `RequestTransactionData.Success`): a block holds 4,000,000 bytes of them
/// (BIP 141), each comes with three bytes of length, and excess data has 65,535 bytes.
pub const MAX_PAYLOAD_WITH_TRANSACTIONS: usize = 4 * 1024 * 1024;

/// The longest payload that a job declaration client accepts: `ProvideMissingTransactions` for every place that it
/// can name takes 131,076 bytes.
pub const MAX_PAYLOAD_FROM_DECLARATION_SERVER: usize = 160 * 1024;

/// The longest payload that a template provider accepts: `SubmitSolution` with the longest coinbase takes 65,557
/// bytes.
pub const MAX_PAYLOAD_FROM_TEMPLATE_CLIENT: usize = 80 * 1024;

/// The longest payload that a client of a template provider accepts while it waits for no transactions:
/// `NewTemplate` with the most outputs and merkle path that its fields hold takes 73,991 bytes.
pub const MAX_PAYLOAD_FROM_TEMPLATE_PROVIDER: usize = 80 * 1024;

/// A frame header. Every value of its six bytes is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The extension that defined the message, 0 for the core protocol; 15 bits.
    pub extension_type: u16,
    /// Whether the payload starts with the id of the channel that the message is for.
    pub channel_msg: bool,
    /// The message within its extension.
    pub message_type: u8,
    /// Bytes of payload, at most [`MAX_PAYLOAD`].
    pub payload_length: u32,
}

impl FrameHeader {
    /// Reads a header.
    pub const fn parse(bytes: [u8; HEADER_SIZE]) -> Self {
        let [extension_low, extension_high, message_type, length_low, length_middle, length_high] = bytes;
        let extension_type = u16::from_le_bytes([extension_low, extension_high]);
        FrameHeader {
            extension_type: extension_type & !CHANNEL_MSG_BIT,
            channel_msg: extension_type & CHANNEL_MSG_BIT != 0,
            message_type,
            payload_length: u32::from_le_bytes([length_low, length_middle, length_high, 0]),
        }
    }

    /// Writes a header. Bits beyond the 15 of the extension type and the 24 of the length are lost.
    pub const fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let channel_msg = if self.channel_msg { CHANNEL_MSG_BIT } else { 0 };
        let extension_type = (self.extension_type & !CHANNEL_MSG_BIT | channel_msg).to_le_bytes();
        let length = self.payload_length.to_le_bytes();
        [extension_type[0], extension_type[1], self.message_type, length[0], length[1], length[2]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_little_endian_with_the_channel_bit_on_top() {
        let header = FrameHeader {
            extension_type: 0x0102,
            channel_msg: true,
            message_type: 0x1b,
            payload_length: 0x03_0405,
        };
        assert_eq!(header.to_bytes(), [0x02, 0x81, 0x1b, 0x05, 0x04, 0x03]);
        assert_eq!(FrameHeader::parse(header.to_bytes()), header);
    }

    #[test]
    fn the_limits_hold_the_longest_messages_of_the_specification() {
        let setup_connection = 1 + 2 + 2 + 4 + 256 + 2 + 4 * 256;
        let custom_job = 3 * 4 + 256 + 32 + 3 * 4 + 256 + 4 + (2 + 65_535) + 4 + (1 + 255 * 32);
        let extended_job = 4 + 4 + 5 + 4 + 1 + (1 + 255 * 32) + 2 * (2 + 65_535);
        assert_eq!((setup_connection, custom_job, extended_job), (1_291, 74_274, 139_253));
        let declared_job = 4 + 256 + 4 + 2 * (2 + 65_535) + (2 + 16_666 * 32) + (2 + 65_535);
        let transactions = 8 + (2 + 65_535) + (2 + 16_666 * 3 + 4_000_000);
        let missing = 4 + 2 + 65_535 * 2;
        let solution = 8 + 3 * 4 + (2 + 65_535);
        let template = 8 + 1 + 4 + 4 + 256 + 4 + 8 + 4 + (2 + 65_535) + 4 + (1 + 255 * 32);
        assert_eq!((declared_job, transactions), (730_189, 4_115_545));
        assert_eq!((missing, solution, template), (131_076, 65_557, 73_991));
        assert!(declared_job < MAX_PAYLOAD_FROM_DECLARING_CLIENT);
        assert!(transactions < MAX_PAYLOAD_WITH_TRANSACTIONS);
        assert!(missing < MAX_PAYLOAD_FROM_DECLARATION_SERVER);
        assert!(solution < MAX_PAYLOAD_FROM_TEMPLATE_CLIENT);
        assert!(template < MAX_PAYLOAD_FROM_TEMPLATE_PROVIDER);
        assert!(setup_connection < MAX_PAYLOAD_FROM_MINER);
        assert!(custom_job < MAX_PAYLOAD_FROM_JOB_DECLARER);
        assert!(extended_job < MAX_PAYLOAD_FROM_UPSTREAM);
    }
}
