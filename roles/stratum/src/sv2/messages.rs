//! Every message of every protocol, and of extension 1, as plain data of ours.
//!
//! Each message is declared once; its layout is that of the wire crates' type of the same name. A message serves
//! both directions of the protocol: ids are numbers as this connection counts them, and who speaks to an upstream
//! converts them to the upstream's own id types. Unknown messages are kept as they came, for those who must forward
//! them (SV2 3.4.1).
//!
//! Nothing here is checked beyond lengths, UTF-8 and the protocol number: hash rates may be no numbers, targets
//! zero, sizes absurd. That is for the state machines to judge. Nor is it asked which protocol a connection speaks:
//! what does not belong there is the state machines' to refuse. How much a message may hold is bounded by the longest
//! payload that its receiver takes (see [`super::frame`]); decoding allocates a few times that at most.
//!
//! - `common`: connections, and extension 1.
//! - `mining`: channels, jobs and shares.
//! - `job_declaration`: tokens, declared jobs and solutions.
//! - `template_distribution`: block templates.

use std::fmt;

use stratum_core::binary_sv2::{self, Deserialize, GetSize};

use super::codec::{DecodeError, EncodeError, FromWire, Lower, ToWire};
use super::frame::{self, FrameHeader, HEADER_SIZE};
use super::{codes, jobs, shares, tlv};
use crate::ChannelId;
use crate::hash::Hash;

/// The sub-protocols of SV2 (SV2 3.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 0: jobs and shares.
    Mining,
    /// 1: declaration of custom jobs.
    JobDeclaration,
    /// 2: block templates.
    TemplateDistribution,
}

/// Pairs `RequestExtensions` with its answer; 16 bits, unlike every other request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExtensionsRequestId(pub u16);

/// Stands for a job of job declaration (`mining_job_token`): whoever shows it is taken for the one that it was given
/// to, so it never reaches a log. At most 255 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MiningJobToken(pub Vec<u8>);

impl From<Vec<u8>> for MiningJobToken {
    fn from(bytes: Vec<u8>) -> Self {
        MiningJobToken(bytes)
    }
}

impl fmt::Debug for MiningJobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MiningJobToken({} bytes)", self.0.len())
    }
}

/// Extension 0x0002's field of `SubmitSharesExtended` that carries the worker's name.
pub(super) const WORKER_IDENTITY_FIELD: u8 = 1;

/// The longest worker name of extension 0x0002, in bytes.
pub const MAX_WORKER_IDENTITY: usize = 32;

/// What a message is called and numbered, and how its payload is read and written.
trait Payload: Sized {
    const NAME: &'static str;
    const EXTENSION_TYPE: u16;
    const CHANNEL_MSG: bool;
    const TYPE: u8;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
    fn decode(payload: &mut [u8]) -> Result<(Self, usize), DecodeError>;
}

/// What extensions append to a message. By default nothing is sent, and well-formed fields are ignored.
trait ExtensionFields: Payload {
    fn append_to(&self, _out: &mut Vec<u8>) -> Result<(), EncodeError> {
        Ok(())
    }

    fn read(&mut self, trailing: &[u8]) -> Result<(), DecodeError> {
        match tlv::find(trailing, 0, 0) {
            tlv::Trailing::Fields(_) => Ok(()),
            tlv::Trailing::Junk => {
                Err(DecodeError::TrailingBytes { message: Self::NAME, extra: trailing.len() })
            }
        }
    }
}

/// Declares the messages: name, the specification's name, extension, type number, channel bit, fields, and the
/// fields of extensions, for which [`ExtensionFields`] is then written by hand.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $name:ident = $text:literal, $extension:literal, $type:literal, $channel_msg:literal {
            $($(#[$field_doc:meta])* $field:ident: $field_type:ty,)*
        }
        $(+ {$($(#[$extra_doc:meta])* $extra:ident: $extra_type:ty,)*})?
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $field_type,)*
                $($($(#[$extra_doc])* pub $extra: $extra_type,)*)?
            }

            impl Payload for $name {
                const NAME: &'static str = $text;
                const EXTENSION_TYPE: u16 = $extension;
                const CHANNEL_MSG: bool = $channel_msg;
                const TYPE: u8 = $type;

                fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                    $(let $field = self.$field.lower();)*
                    let wire = wire::$name {
                        $($field: $field
                            .to_wire()
                            .map_err(|fault| fault.of(Self::NAME, stringify!($field)))?,)*
                    };
                    let start = out.len();
                    out.resize(start + wire.get_size(), 0);
                    binary_sv2::to_writer(wire, &mut out[start..])
                        .expect("the buffer is as long as the message says that it is");
                    Ok(())
                }

                fn decode(payload: &mut [u8]) -> Result<(Self, usize), DecodeError> {
                    let length = payload.len();
                    let wire = wire::$name::from_bytes(payload)
                        .map_err(|error| DecodeError::of_wire(Self::NAME, length, &error))?;
                    let size = wire.get_size();
                    let message = $name {
                        $($field: FromWire::from_wire(wire.$field).map_err(|reason| DecodeError::Field {
                            message: Self::NAME,
                            field: stringify!($field),
                            reason,
                        })?,)*
                        $($($extra: Default::default(),)*)?
                    };
                    Ok((message, size))
                }
            }

            messages!(@extension_fields $name $($($extra)*)?);

            impl From<$name> for Message {
                fn from(message: $name) -> Message {
                    Message::$name(message)
                }
            }
        )*
    };
    (@extension_fields $name:ident) => { impl ExtensionFields for $name {} };
    (@extension_fields $name:ident $($extra:ident)+) => {};
}

/// Declares the sum of all messages, and how one is told from another.
macro_rules! any_message {
    ($($name:ident)*) => {
        /// Any message of any protocol, or of extension 1.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Message {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
            /// See [`Unknown`].
            Unknown(Unknown),
        }

        impl Message {
            /// The message's name, as the specification spells it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Message::$name(_) => <$name as Payload>::NAME,)*
                    Message::Unknown(_) => "an unknown message",
                }
            }

            /// Appends the message to `out` as a frame: header and payload.
            ///
            /// Fails, with `out` as it was, when a value is longer than its field holds.
            pub fn encode_frame(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                match self {
                    $(Message::$name(message) => encode_frame(message, out),)*
                    Message::Unknown(message) => message.encode_frame(out),
                }
            }

            /// Reads the message of a frame.
            ///
            /// Whether the header's channel bit is the specified one is not checked: implementations of different
            /// ages differ, and it says nothing new about a known message. Extension fields (SV2 3.4.3) after the
            /// message are skipped, except for those that are fields of the struct; other trailing bytes are an
            /// error. Allocates a few times the payload's length at most.
            pub fn decode(header: FrameHeader, payload: &[u8]) -> Result<Message, DecodeError> {
                if let Some(success) = shares::success(header, payload) {
                    return Ok(Message::SubmitSharesSuccess(success));
                }
                if let Some(tip) = jobs::new_prev_hash(header, payload) {
                    return Ok(Message::SetNewPrevHash(tip));
                }
                Message::decode_any(header, payload)
            }

            /// The same by the wire crates alone.
            pub(super) fn decode_any(header: FrameHeader, payload: &[u8]) -> Result<Message, DecodeError> {
                match (header.extension_type, header.message_type) {
                    $((<$name as Payload>::EXTENSION_TYPE, <$name as Payload>::TYPE) => {
                        decode_payload::<$name>(payload).map(Message::$name)
                    })*
                    _ => Unknown::decode(header, payload).map(Message::Unknown),
                }
            }
        }
    };
}

mod common;
mod job_declaration;
mod mining;
mod template_distribution;

pub use common::*;
pub use job_declaration::*;
pub use mining::*;
pub use template_distribution::*;

any_message! {
    SetupConnection SetupConnectionSuccess SetupConnectionError ChannelEndpointChanged Reconnect
    OpenStandardMiningChannel OpenStandardMiningChannelSuccess OpenMiningChannelError OpenExtendedMiningChannel
    OpenExtendedMiningChannelSuccess NewMiningJob UpdateChannel UpdateChannelError CloseChannel
    SetExtranoncePrefix SubmitSharesStandard SubmitSharesExtended SubmitSharesSuccess SubmitSharesError
    NewExtendedMiningJob SetNewPrevHash SetTarget SetCustomMiningJob SetCustomMiningJobSuccess
    SetCustomMiningJobError SetGroupChannel
    AllocateMiningJobToken AllocateMiningJobTokenSuccess DeclareMiningJob DeclareMiningJobSuccess
    DeclareMiningJobError ProvideMissingTransactions ProvideMissingTransactionsSuccess PushSolution
    CoinbaseOutputConstraints NewTemplate TemplateSetNewPrevHash RequestTransactionData
    RequestTransactionDataSuccess RequestTransactionDataError SubmitSolution
    RequestExtensions RequestExtensionsSuccess RequestExtensionsError
}

/// A message that none of the others is, as it came. The receiver ignores it, or forwards it when it is for a
/// channel that ends elsewhere (SV2 3.4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The extension that defined the message; 15 bits.
    pub extension_type: u16,
    /// The message within its extension.
    pub message_type: u8,
    /// The channel that the message is for, when its header says that it is for one.
    pub channel_id: Option<ChannelId>,
    /// The payload, without the channel id.
    pub payload: Vec<u8>,
}

impl Unknown {
    fn encode_frame(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let channel_id = self.channel_id.map(|channel| channel.0.to_le_bytes());
        let channel_id = channel_id.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let limit = frame::MAX_PAYLOAD - channel_id.len();
        let length = self.payload.len();
        if length > limit {
            return Err(EncodeError { message: "an unknown message", field: "payload", length, limit });
        }
        let header = FrameHeader {
            extension_type: self.extension_type,
            channel_msg: self.channel_id.is_some(),
            message_type: self.message_type,
            payload_length: (channel_id.len() + length) as u32,
        };
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(channel_id);
        out.extend_from_slice(&self.payload);
        Ok(())
    }

    fn decode(header: FrameHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (channel_id, payload) = match (header.channel_msg, payload.split_first_chunk::<4>()) {
            (false, _) => (None, payload),
            (true, Some((channel_id, rest))) => (Some(ChannelId(u32::from_le_bytes(*channel_id))), rest),
            (true, None) => {
                return Err(DecodeError::Malformed {
                    message: "an unknown message",
                    length: payload.len(),
                    reason: "it ends within its channel id",
                });
            }
        };
        let (extension_type, message_type) = (header.extension_type, header.message_type);
        Ok(Unknown { extension_type, message_type, channel_id, payload: payload.to_vec() })
    }
}

impl From<Unknown> for Message {
    fn from(message: Unknown) -> Message {
        Message::Unknown(message)
    }
}

fn encode_frame<M: ExtensionFields>(message: &M, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_SIZE]);
    if let Err(error) = message.encode(out).and_then(|()| message.append_to(out)) {
        out.truncate(start);
        return Err(error);
    }
    let length = out.len() - start - HEADER_SIZE;
    if length > frame::MAX_PAYLOAD {
        // Only lists of transactions can be that long.
        out.truncate(start);
        return Err(EncodeError { message: M::NAME, field: "payload", length, limit: frame::MAX_PAYLOAD });
    }
    let header = FrameHeader {
        extension_type: M::EXTENSION_TYPE,
        channel_msg: M::CHANNEL_MSG,
        message_type: M::TYPE,
        payload_length: length as u32,
    };
    out[start..start + HEADER_SIZE].copy_from_slice(&header.to_bytes());
    Ok(())
}

fn decode_payload<M: ExtensionFields>(payload: &[u8]) -> Result<M, DecodeError> {
    // The wire crates want to borrow the bytes mutably.
    let (mut message, size) = M::decode(&mut payload.to_vec())?;
    message.read(&payload[size..])?;
    Ok(message)
}
